"""The supervisor's own files: private, never followed through links, only ever appended to."""

import os
import socket
import stat

import pytest

from cliproxy.errors import ConfigError
from cliproxy.processes.workspace import Workspace


@pytest.fixture
def home(tmp_path):
    for name in ("run", "logs"):
        (tmp_path / name).mkdir(mode=0o700)
    return tmp_path


def locked(home):
    workspace = Workspace(str(home))
    workspace.lock()
    return workspace


def test_the_directories_are_made_private(tmp_path):
    locked(tmp_path)
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("run", "logs")} == {0o700}


def test_one_supervisor_per_home(home):
    first = locked(home)
    with pytest.raises(ConfigError, match=rf"a cliproxy \(pid {os.getpid()}\) runs there"):
        locked(home)
    with pytest.raises(ConfigError, match="runs there"):
        Workspace(str(home)).verify_free()
    os.close(first._lock)
    Workspace(str(home)).verify_free()
    locked(home)


def test_looking_creates_nothing(home):
    Workspace(str(home)).verify_free()
    Workspace(str(home / "nowhere")).verify_free()
    assert list((home / "run").iterdir()) == []
    assert not (home / "nowhere").exists()


UNSAFE = {
    "a directory that others may read": (lambda home: (home / "logs").chmod(0o755), "others may read or write it; chmod go="),
    "a link in place of the directory": (lambda home: ((home / "run").rmdir(), (home / "run").symlink_to("/tmp")), "run: "),
    "a file in place of the directory": (lambda home: ((home / "logs").rmdir(), (home / "logs").touch()), "logs: "),
    "a lock that is a link": (lambda home: (home / "run" / "lock").symlink_to("/etc/passwd"), "lock: Too many levels of symbolic links"),
    "a lock that is a device": (lambda home: os.mkfifo(home / "run" / "lock", 0o600), "not a regular file"),
    "a lock that others may write": (lambda home: ((home / "run" / "lock").touch(), (home / "run" / "lock").chmod(0o666)), "others may read or write it"),
}


@pytest.mark.parametrize(("spoil", "problem"), UNSAFE.values(), ids=UNSAFE.keys())
def test_an_unsafe_place_is_refused_with_the_cure(home, spoil, problem):
    spoil(home)
    with pytest.raises(ConfigError, match=problem):
        locked(home)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_another_users_directory_is_refused(home):
    os.chown(home / "logs", 65534, 65534)
    with pytest.raises(ConfigError, match="belongs to uid 65534; chown it"):
        locked(home)


def test_the_first_segment_is_made_and_the_newest_is_gone_on_with(home):
    workspace = locked(home)
    index, first = workspace.open_newest_segment()
    assert index == 1
    os.write(first, b"one\n")
    assert workspace.open_newest_segment()[0] == 1
    os.write(workspace.create_segment(2), b"two\n")
    index, second = workspace.open_newest_segment()
    assert index == 2
    os.write(second, b"three\n")
    assert (home / "logs" / "audit-00000002.jsonl").read_bytes() == b"two\nthree\n"
    with pytest.raises(ConfigError, match="File exists"):
        workspace.create_segment(2)


@pytest.mark.parametrize("opening", ["open_newest_segment", "open_checkpoints"])
def test_what_the_auditor_gets_only_grows(home, opening):
    opened = getattr(locked(home), opening)()
    descriptor = opened[1] if isinstance(opened, tuple) else opened
    os.write(descriptor, b"first\n")
    os.pwrite(descriptor, b"second\n", 0)  # Linux appends, whatever the offset, on O_APPEND
    with pytest.raises(OSError):
        os.read(descriptor, 1)
    assert os.readlink(f"/proc/self/fd/{descriptor}").startswith(str(home))
    with open(f"/proc/self/fd/{descriptor}", "rb") as file:
        assert file.read() == b"first\nsecond\n"


def test_a_segment_that_is_a_link_is_refused(home):
    (home / "logs" / "audit-00000004.jsonl").symlink_to("/etc/passwd")
    with pytest.raises(ConfigError, match=r"audit-00000004\.jsonl: Too many levels"):
        locked(home).open_newest_segment()


def test_the_control_socket_works_under_a_path_longer_than_an_address(home):
    deep = home / ("d" * 120)
    deep.mkdir(mode=0o700)
    workspace = locked(deep)
    listening = socket.socket(fileno=workspace.open_control_socket())
    mode = (deep / "run" / "control.sock").stat().st_mode
    assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o600
    directory = os.open(deep / "run", os.O_PATH)
    with listening, socket.socket(socket.AF_UNIX) as client:
        client.connect(f"/proc/self/fd/{directory}/control.sock")
    os.close(directory)
    workspace.remove_control_socket()
    workspace.remove_control_socket()
    assert not (deep / "run" / "control.sock").exists()


def test_the_stale_socket_of_a_killed_supervisor_is_replaced(home):
    first = locked(home)
    os.close(first.open_control_socket())
    socket.socket(fileno=first.open_control_socket()).close()
