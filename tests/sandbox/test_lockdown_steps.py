"""The lockdown's steps one by one, and what happens when one cannot be taken. What the steps add up to: `test_sandbox_lockdown.py`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

AS_ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not AS_ROOT, reason="needs root")

PRELUDE = """
import os, sys, socket, threading, time, signal
from cliproxy.errors import SandboxError
from cliproxy.sandbox.calls import system_call, prctl
from cliproxy.sandbox.lockdown import lock_down, refuse_io_uring
from cliproxy.sandbox.roles import PROFILES
ROLE_UID = 61002 if os.geteuid() == 0 else os.geteuid()
ROLE_GID = 61002 if os.geteuid() == 0 else os.getegid()
def lock(role="vault", **changes):
    settings = dict(keep=frozenset({0, 1, 2}), ancillary=frozenset(), replaceable=frozenset(), listening=frozenset(), uid=ROLE_UID, gid=ROLE_GID,
                    parent_pid=os.getppid())
    lock_down(PROFILES[role], **(settings | changes))
def say(text):
    os.write(1, (text + chr(10)).encode())
"""


def run(body: str, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    script = PRELUDE + textwrap.dedent(body) + "\nos._exit(0)\n"
    return subprocess.run([sys.executable, "-I", "-B", "-c", script, *arguments], capture_output=True, text=True, timeout=60, check=False, **options)  # type: ignore[call-overload,no-any-return]


def said(body: str, *arguments: str, **options: object) -> list[str]:
    result = run(body, *arguments, **options)
    assert result.returncode == 0, (result.returncode, result.stderr)
    return result.stdout.splitlines()


def test_only_what_is_kept_stays_open() -> None:
    found = said(
        """
        descriptors = {name: os.open("/dev/null", os.O_RDWR) for name in ("kept", "secret")}
        os.dup2(descriptors["kept"], 100); os.dup2(descriptors["secret"], 500)
        lock(keep=frozenset({1, 2, 100}))
        def is_open(number):
            try:
                os.get_inheritable(number)
            except OSError:
                return False
            return True
        say(str([number for number in range(1024) if is_open(number)]))
        say("null" if os.fstat(0).st_rdev == os.makedev(1, 3) else "something else")
        """,
        stdin=subprocess.PIPE,
    )
    assert found == ["[0, 1, 2, 100]", "null"]


def test_a_number_below_three_is_never_left_free() -> None:
    """Or the next connection would get it, and the next message for the operator."""
    found = said(
        """
        listener = socket.create_server(("127.0.0.1", 0)); client = socket.create_connection(listener.getsockname())
        answer = os.dup(1); os.close(0)
        lock("worker", keep=frozenset({answer, listener.fileno(), client.fileno()}))
        connection, _ = listener.accept()
        os.write(answer, str(connection.fileno() > 2).encode())
        os.write(1, b"lost"); os.write(2, b"lost")
        """
    )
    assert found == ["True"]


def test_a_process_with_threads_is_refused() -> None:
    found = said(
        """
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        try:
            lock()
        except SandboxError as error:
            say(str(error))
        """
    )
    assert found == ["the process has 2 threads at lockdown; start threads after it"]


def test_an_orphan_does_not_go_on() -> None:
    assert run('lock(parent_pid=os.getppid() + 1); say("alive")').stdout == ""
    assert run('lock(parent_pid=os.getppid() + 1); say("alive")').returncode == 1


def test_the_process_dies_with_its_parent(tmp_path: Path) -> None:
    """Killed, not asked: the child sleeps in C and looks at nothing."""
    report = tmp_path / "child"
    parent = subprocess.Popen(
        [
            sys.executable,
            "-I",
            "-B",
            "-c",
            PRELUDE
            + textwrap.dedent("""
                parent, ready = os.getpid(), os.pipe()
                child = os.fork()
                if child == 0:
                    lock(keep=frozenset({0, 1, 2, ready[1]}), parent_pid=parent)
                    os.write(ready[1], b"!")
                    time.sleep(600)
                os.read(ready[0], 1)
                with open(sys.argv[1], "w") as file:
                    file.write(str(child))
                print("locked", flush=True)
                time.sleep(600)
                """),
            str(report),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "locked\n"
        child = int(report.read_text())
        assert _state(child) not in ("", "Z")
    finally:
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 20
    while _state(child) not in ("", "Z"):
        assert time.monotonic() < deadline, "the child outlived its parent"
        time.sleep(0.01)


def _state(process: int) -> str:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def test_an_equal_can_neither_trace_nor_read_it() -> None:
    """The attacker is of the same uid and not locked down; before the lockdown it succeeds."""
    found = said(
        """
        if os.geteuid() == 0:
            os.setgroups([]); os.setresgid(ROLE_UID, ROLE_UID, ROLE_UID); os.setresuid(ROLE_UID, ROLE_UID, ROLE_UID); prctl(4, 1)
        go, ready = os.pipe(), os.pipe()
        parent = os.getpid()
        child = os.fork()
        if child == 0:
            os.read(go[0], 1)
            lock(keep=frozenset({0, 1, 2, ready[1]}), parent_pid=parent)
            os.write(ready[1], b"!")
            time.sleep(600)
        def attempt(name, act):
            try:
                act()
                say(name + " done")
            except OSError as error:
                say(name + " " + type(error).__name__)
        def attempts():
            attempt("mem", lambda: os.close(os.open(f"/proc/{child}/mem", os.O_RDONLY)))
            attempt("fd", lambda: os.listdir(f"/proc/{child}/fd"))
            attempt("environ", lambda: open(f"/proc/{child}/environ").read())
            attempt("maps", lambda: open(f"/proc/{child}/maps").read())
            attempt("trace", lambda: (system_call("ptrace", 0x4206, child, 0, 0), system_call("ptrace", 17, child, 0, 0)) if locked else None)
            attempt("pidfd", lambda: system_call("pidfd_getfd", os.pidfd_open(child), 1, 0))
        locked = False
        attempts()
        os.write(go[1], b"!"); os.read(ready[0], 1)
        locked = True
        attempts()
        os.kill(child, 9)
        """
    )
    names = ("mem", "fd", "environ", "maps", "trace", "pidfd")
    assert found == [f"{name} done" for name in names] + [f"{name} PermissionError" for name in names]


@needs_root
def test_the_identity_is_taken_in_all_three_places_and_without_groups() -> None:
    found = said("os.setgroups([4, 27]); lock(); say(str((os.getresuid(), os.getresgid(), os.getgroups())))")
    assert found == ["((61002, 61002, 61002), (61002, 61002, 61002), [])"]


def test_who_may_not_change_identity_is_told() -> None:
    drop = "os.setresgid(61003, 61003, 61003); os.setresuid(61003, 61003, 61003); prctl(4, 1);" if AS_ROOT else ""
    found = said(
        f"""
        {drop}
        try:
            lock(uid=61004, gid=61004)
        except SandboxError as error:
            say(str(error))
        """
    )
    assert found == ["cannot become uid 61004, gid 61004 (Operation not permitted); start the gateway as root or as that user"]


def test_a_group_leader_without_a_session_is_told() -> None:
    found = said(
        """
        os.setpgid(0, 0)
        try:
            lock()
        except SandboxError as error:
            say(str(error))
        """
    )
    assert found == ["no session of its own: the process leads its group; start it without a process group of its own"]


@pytest.mark.parametrize("role", ["worker", "egress", "dialer", "vault", "auditor", "admin"])
def test_only_listed_files_can_be_read_and_only_where_the_role_may_open(role: str, tmp_path: Path) -> None:
    listed, other = tmp_path / "listed", tmp_path / "other"
    for file in (listed, other):
        file.write_text("text")
        file.chmod(0o644)
    for parent in (tmp_path, *tmp_path.parents[:-2]):
        if parent.owner() != "root" or AS_ROOT:
            parent.chmod(parent.stat().st_mode | 0o755)
    body = """
        lock(sys.argv[1], read_paths=(sys.argv[2], "/nonexistent"))
        for path, flags in ((sys.argv[2], os.O_RDONLY), (sys.argv[3], os.O_RDONLY), (sys.argv[2], os.O_RDWR)):
            try:
                os.close(os.open(path, flags))
                say("done")
            except OSError as error:
                say(type(error).__name__)
        """
    result = run(body, role, str(listed), str(other))
    if role == "dialer":
        assert (result.returncode, result.stdout.splitlines()) == (0, ["done", "PermissionError", "PermissionError"])
    else:
        assert (result.returncode, result.stdout) == (-signal.SIGSYS, "")


def test_io_uring_is_absent_after_the_first_filter_and_all_else_works() -> None:
    found = said(
        """
        refuse_io_uring()
        for name in ("io_uring_setup", "io_uring_enter", "io_uring_register"):
            try:
                system_call(name, 1, 0, 0, 0)
            except OSError as error:
                say(os.strerror(error.errno))
        say(str(prctl(39)))
        os.close(os.open("/dev/null", os.O_RDONLY))
        if os.fork() == 0:
            os._exit(0)
        os.wait()
        say("works")
        """
    )
    assert found == ["Function not implemented"] * 3 + ["1", "works"]


def test_an_event_loop_made_for_the_lockdown_has_its_spare_descriptor_and_no_io_uring() -> None:
    """libuv would open /dev/null with its first stream, and that would be after the lockdown."""
    found = said(
        """
        from cliproxy.sandbox.loop import make_event_loop
        loop = make_event_loop()
        targets = [os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}") and int(name) > 2]
        say(str("/dev/null" in targets))
        say(str(any("io_uring" in target for target in targets)))
        """
    )
    assert found == ["True", "False"]


def test_what_goes_wrong_after_the_lockdown_is_reported_without_opening_a_source() -> None:
    result = run('lock()\ndef fail():\n    raise ValueError("a mistake")\nfail()')
    assert result.returncode == 1
    assert result.stderr.rstrip().endswith("ValueError: a mistake")
    assert "in fail" in result.stderr


def test_a_late_import_names_the_module_and_the_cure() -> None:
    found = said(
        """
        lock()
        try:
            import colorsys
        except ImportError as error:
            say(f"{type(error).__name__} {isinstance(error, SandboxError)} {error}")
        """
    )
    assert found == ["LateImport True module colorsys was asked for after the lockdown; import colorsys in the role's prepare()"]


def test_what_was_imported_before_can_be_imported_again() -> None:
    assert said("import json\nlock()\nimport json, os.path\nfrom json import decoder\nsay(json.dumps([1]))") == ["[1]"]


def test_a_step_that_a_containers_filter_refuses_is_named() -> None:
    """The container's own filter stands in for its runtime's."""
    found = said(
        """
        from cliproxy.sandbox import lockdown
        from cliproxy.sandbox.bpf import ALLOW, Policy, Rule, errno_action
        prctl(38, 1)
        lockdown._install(Policy({"capset": Rule((), errno_action(1))}, known=ALLOW, unknown=ALLOW))
        try:
            lock()
        except SandboxError as error:
            say(str(error))
        """
    )
    assert found == ["the lockdown was refused (capset: Operation not permitted); allow the call in the container profile"]


@pytest.mark.parametrize("call", ["seccomp", "landlock_restrict_self", "close_range", "prctl"])
def test_a_lockdown_never_goes_on_without_a_step(call: str) -> None:
    found = said(
        """
        from cliproxy.sandbox import lockdown
        from cliproxy.sandbox.bpf import ALLOW, Policy, Rule, errno_action
        prctl(38, 1)
        lockdown._install(Policy({sys.argv[1]: Rule((), errno_action(1))}, known=ALLOW, unknown=ALLOW))
        try:
            lock()
            say("locked")
        except SandboxError as error:
            say("refused")
        """,
        call,
    )
    assert found == ["refused"]


def test_a_kernel_that_only_pretends_is_found_out() -> None:
    """A filter that answers 0 without doing anything, as a faulty emulation would."""
    for call in ("seccomp", "landlock_restrict_self", "setresuid" if AS_ROOT else "seccomp", "prctl"):
        found = said(
            """
            from cliproxy.sandbox import lockdown
            from cliproxy.sandbox.bpf import ALLOW, Action, Policy, Rule, Verdict
            prctl(38, 1)
            lockdown._install(Policy({sys.argv[1]: Rule((), Action(Verdict.ERRNO, 0))}, known=ALLOW, unknown=ALLOW))
            try:
                lock()
                say("locked")
            except SandboxError as error:
                say("refused")
            """,
            call,
        )
        assert found == ["refused"], call
