"""Which rights a kernel's ABI lets us deny, and that the ruleset alone, without any system call filter, denies them."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from cliproxy.errors import SandboxError
from cliproxy.sandbox import landlock
from cliproxy.sandbox.landlock import Rights, deniable_rights, landlock_abi, restrict

ABI = landlock_abi()


@pytest.mark.parametrize(
    ("abi", "files", "network", "scopes"),
    [
        (1, 0x1FFF, 0, 0),
        (2, 0x3FFF, 0, 0),  # refer
        (3, 0x7FFF, 0, 0),  # truncate
        (4, 0x7FFF, 3, 0),  # TCP
        (5, 0xFFFF, 3, 0),  # ioctl_dev
        (6, 0xFFFF, 3, 3),  # scopes
        (7, 0xFFFF, 3, 3),
        (99, 0xFFFF, 3, 3),
    ],
)
def test_each_abi_denies_all_that_it_can(abi: int, files: int, network: int, scopes: int) -> None:
    assert deniable_rights(abi, may_connect=False) == Rights(files, network, scopes)


def test_the_dialer_may_connect_but_not_bind() -> None:
    assert deniable_rights(7, may_connect=True).network == landlock.BIND_TCP
    assert deniable_rights(3, may_connect=True).network == 0


@pytest.mark.parametrize(("abi", "length"), [(1, 8), (3, 8), (4, 16), (5, 16), (6, 24)])
def test_the_struct_is_as_long_as_that_kernel_knows_it(abi: int, length: int) -> None:
    encoded = deniable_rights(abi, may_connect=False).encode()
    assert len(encoded) == length
    assert struct.unpack_from("=Q", encoded)[0] == deniable_rights(abi, may_connect=False).files


def test_a_scope_without_network_rights_keeps_its_place() -> None:
    assert len(Rights(1, 0, 3).encode()) == 24


def test_without_landlock_nothing_is_pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landlock, "landlock_abi", lambda: 0)
    with pytest.raises(SandboxError, match=r"no Landlock; use Linux 5\.13 or newer"):
        restrict(read_paths=(), may_connect=False)


def test_what_the_kernel_refuses_is_an_error() -> None:
    """Without no_new_privs an ordinary user may not restrict itself."""
    if ABI < 1:
        pytest.skip("no Landlock here")
    script = """
        import os
        from cliproxy.sandbox.calls import prctl
        from cliproxy.sandbox.landlock import restrict
        from cliproxy.errors import SandboxError
        if os.geteuid() == 0:
            os.setresuid(65534, 65534, 65534)
        try:
            restrict(read_paths=(), may_connect=False)
        except SandboxError as error:
            print(error)
    """
    assert _output(script) == ["the kernel refused the Landlock ruleset (Operation not permitted); see `cliproxy doctor`"]


@pytest.mark.parametrize("needed", [1, 4, 6])
def test_the_ruleset_alone_denies_files_tcp_abstract_sockets_and_signals(needed: int, tmp_path: Path) -> None:
    if needed > ABI:
        pytest.skip(f"Landlock ABI {ABI} here")
    readable = tmp_path / "readable"
    readable.write_text("text")
    script = """
        import os, socket, sys
        from cliproxy.sandbox.calls import prctl
        from cliproxy.sandbox.landlock import restrict
        listener = socket.create_server(("127.0.0.1", 0))
        named = socket.socket(socket.AF_UNIX); named.bind(b"\\0cliproxy-landlock-%d" % os.getpid()); named.listen(1)
        inside, outside = os.pipe(), os.pipe()
        stranger = os.getpid()
        child = os.fork()
        if child:
            os.waitpid(child, 0)
            os._exit(0)
        prctl(38, 1)
        def attempts():
            def attempt(act):
                try:
                    act()
                    return "done"
                except OSError as error:
                    return type(error).__name__
            def connect(family, address):
                with socket.socket(family) as sock:
                    sock.connect(address)
            files = [lambda: os.close(os.open("/etc/passwd", os.O_RDONLY)), lambda: os.listdir("/"), lambda: os.close(os.open(sys.argv[1], os.O_WRONLY)),
                     lambda: os.close(os.open(sys.argv[1] + str(os.getpid()), os.O_CREAT | os.O_WRONLY)), lambda: os.mkdir(sys.argv[1] + ".d" + str(len(seen))),
                     lambda: os.close(os.open("/dev/null", os.O_RDWR))]
            tcp = [lambda: connect(socket.AF_INET, listener.getsockname()), lambda: socket.create_server(("127.0.0.1", 0)).close()]
            scopes = [lambda: connect(socket.AF_UNIX, named.getsockname()), lambda: os.kill(stranger, 0)]
            return [attempt(act) for act in {"1": files, "4": tcp, "6": scopes}[sys.argv[2]]]
        seen = []
        seen += attempts()
        restrict(read_paths=(sys.argv[1],), may_connect=False)
        after = attempts()
        with open(sys.argv[1]) as file:
            text = file.read()
        print(set(seen), set(after), text, flush=True)
        os._exit(0)
    """
    assert _output(script, str(readable), str(needed)) == ["{'done'} {'PermissionError'} text"]


def test_a_directory_grants_its_files_but_not_its_list(tmp_path: Path) -> None:
    if ABI < 1:
        pytest.skip("no Landlock here")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "file").write_text("text")
    script = """
        import os, sys
        from cliproxy.sandbox.calls import prctl
        from cliproxy.sandbox.landlock import restrict
        prctl(38, 1)
        restrict(read_paths=(sys.argv[1], "/dev/null", "/nonexistent/at/all"), may_connect=True)
        with open(sys.argv[1] + "/inner/file") as file:
            print(file.read())
        for path in (sys.argv[1], "/dev/null"):
            try:
                os.close(os.open(path, os.O_RDONLY))
                print("done")
            except PermissionError:
                print("refused")
    """
    assert _output(script, str(tmp_path)) == ["text", "refused", "refused"]


def _output(script: str, *arguments: str) -> list[str]:
    result = subprocess.run(
        [sys.executable, "-I", "-B", "-c", textwrap.dedent(script), *arguments], capture_output=True, text=True, timeout=60, check=False, env=dict(os.environ)
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()
