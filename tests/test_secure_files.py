from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from cliproxy import secure_files
from cliproxy.errors import ConfigError


@pytest.fixture
def home(tmp_path: Path) -> Path:
    path = tmp_path / "home"
    secure_files.create_private_directory(path)
    return path


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_what_is_made_is_private_whatever_the_umask(home: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        secure_files.write_private_file(home / "file", b"x", replace=False)
        os.close(secure_files.create_private_file(home / "empty"))
        os.umask(umask & 0o077)
        secure_files.create_private_directory(home / "directory")
    finally:
        os.umask(before)
    assert (mode_of(home / "file"), mode_of(home / "empty"), mode_of(home / "directory")) == (0o600, 0o600, 0o700)


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700, 0o500])
def test_stricter_modes_are_accepted(home: Path, mode: int) -> None:
    secure_files.write_private_file(home / "file", b"x", replace=False)
    (home / "file").chmod(mode & 0o600)
    home.chmod(0o500 if mode == 0o500 else 0o700)
    secure_files.verify_private_file(home / "file")
    secure_files.verify_private_directory(home)


@pytest.mark.parametrize("bit", [0o040, 0o020, 0o010, 0o004, 0o002, 0o001])
def test_each_bit_for_others_is_refused_with_the_cure(home: Path, bit: int) -> None:
    secure_files.write_private_file(home / "file", b"x", replace=False)
    (home / "file").chmod(0o600 | bit)
    for use in (secure_files.verify_private_file, lambda path: secure_files.read_private_file(path, limit=10)):
        with pytest.raises(ConfigError, match=f"chmod 600 {home}/file"):
            use(home / "file")
    (home / "sub").mkdir(0o700)
    (home / "sub").chmod(0o700 | bit)
    with pytest.raises(ConfigError, match=f"chmod 700 {home}/sub"):
        secure_files.verify_private_directory(home / "sub")
    assert mode_of(home / "file") == 0o600 | bit  # nothing is mended behind the operator's back


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file away needs root")
def test_the_owner_must_be_us(home: Path) -> None:
    secure_files.write_private_file(home / "file", b"x", replace=False)
    os.chown(home / "file", 12345, -1)
    with pytest.raises(ConfigError, match="belongs to uid 12345"):
        secure_files.verify_private_file(home / "file")
    with pytest.raises(ConfigError, match="belongs to uid 12345"):
        secure_files.write_private_file(home / "file", b"y", replace=True)
    assert (home / "file").read_bytes() == b"x"
    os.chown(home, 12345, -1)
    with pytest.raises(ConfigError, match="belongs to uid 12345, who could exchange"):
        secure_files.create_private_file(home / "new")


@pytest.mark.skipif(os.geteuid() != 0, reason="root's links are the only ones that are followed")
def test_a_link_on_the_way_is_followed_only_if_root_made_it(tmp_path: Path, home: Path) -> None:
    secure_files.write_private_file(home / "file", b"x", replace=False)
    (tmp_path / "link").symlink_to(home)
    secure_files.verify_private_file(tmp_path / "link" / "file")
    os.chown(tmp_path / "link", 12345, -1, follow_symlinks=False)
    with pytest.raises(ConfigError, match="symbolic link"):
        secure_files.verify_private_file(tmp_path / "link" / "file")


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(ConfigError, match="symbolic link"):
        secure_files.verify_private_file(tmp_path / "a" / "file")


def test_the_file_itself_is_never_a_link(home: Path) -> None:
    secure_files.write_private_file(home / "real", b"x", replace=False)
    (home / "link").symlink_to(home / "real")
    (home / "dangling").symlink_to(home / "nowhere")
    for name in ("link", "dangling"):
        for use in (secure_files.verify_private_file, secure_files.verify_private_directory, lambda path: secure_files.open_private_file(path, write=True)):
            with pytest.raises(ConfigError, match="symbolic link"):
                use(home / name)
        with pytest.raises(ConfigError):
            secure_files.write_private_file(home / name, b"y", replace=True)
        with pytest.raises(ConfigError):
            secure_files.create_private_file(home / name)
    assert (home / "real").read_bytes() == b"x"
    assert not (home / "nowhere").exists()


@pytest.mark.parametrize(("mode", "safe"), [(0o755, True), (0o775, False), (0o757, False), (0o1777, True), (0o711, True)])
def test_a_parent_that_others_may_write_to_is_refused_unless_sticky(tmp_path: Path, mode: int, safe: bool) -> None:
    parent = tmp_path / "parent"
    (parent / "inner").mkdir(parents=True, mode=0o700)
    secure_files.write_private_file(parent / "inner" / "file", b"x", replace=False)
    parent.chmod(mode)
    if safe:
        secure_files.verify_private_file(parent / "inner" / "file")
    else:
        with pytest.raises(ConfigError, match=f"chmod go-w {parent}"):
            secure_files.verify_private_file(parent / "inner" / "file")


@pytest.mark.parametrize("make", [lambda path: os.mkfifo(path, 0o600), lambda path: path.mkdir(0o700)], ids=["fifo", "directory"])
def test_what_is_no_plain_file_is_refused_without_waiting(home: Path, make: object) -> None:
    make(home / "odd")  # type: ignore[operator]
    with pytest.raises(ConfigError):
        secure_files.read_private_file(home / "odd", limit=10)


def test_a_missing_parent_or_file_says_create_it(home: Path) -> None:
    for path in (home / "none" / "file", home / "none"):
        with pytest.raises(ConfigError, match="create it"):
            secure_files.verify_private_file(path)


def test_reading_is_bounded(home: Path) -> None:
    secure_files.write_private_file(home / "file", b"12345", replace=False)
    assert secure_files.read_private_file(home / "file", limit=5) == b"12345"
    with pytest.raises(ConfigError, match="longer than 4 bytes"):
        secure_files.read_private_file(home / "file", limit=4)


def test_writing_replaces_whole_or_not_at_all(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secure_files.write_private_file(home / "file", b"old", replace=False)
    with pytest.raises(ConfigError, match="already"):
        secure_files.write_private_file(home / "file", b"new", replace=False)

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(ConfigError, match="No space left"):
            secure_files.write_private_file(home / "file", b"new", replace=True)
    assert (home / "file").read_bytes() == b"old"
    secure_files.write_private_file(home / "file", b"new", replace=True)
    assert (home / "file").read_bytes() == b"new"
    assert [entry.name for entry in home.iterdir()] == ["file"]


def test_writing_is_durable_before_and_after_the_rename(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    real_fsync, real_rename = os.fsync, os.rename

    def noted_fsync(fd: int) -> None:
        steps.append("sync " + ("directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file"))
        real_fsync(fd)

    def noted_rename(*names: Any, **more: Any) -> None:
        steps.append("rename")
        real_rename(*names, **more)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "rename", noted_rename)
    secure_files.write_private_file(home / "file", b"x", replace=True)
    assert steps == ["sync file", "rename", "sync directory"]


def test_an_existing_directory_is_verified_not_widened_or_narrowed(home: Path) -> None:
    secure_files.create_private_directory(home)
    home.chmod(0o750)
    with pytest.raises(ConfigError, match="chmod 700"):
        secure_files.create_private_directory(home)
    assert mode_of(home) == 0o750
