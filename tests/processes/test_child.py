"""How children begin and end: the boot record, the slots, the exit codes, and lines that hold no secret."""

import os
import re
import signal
import socket
import sys

import pytest

from cliproxy.errors import ChannelError, ConfigError, SandboxError, TamperedVault
from cliproxy.ipc.channel import ChannelClosed
from cliproxy.ipc.control import Down, SupervisorControl, Up
from cliproxy.processes import topology
from cliproxy.processes.boot import Boot, decode_boot, encode_boot, is_sealed, read_sealed, seal
from cliproxy.processes.child import Control
from cliproxy.processes.lines import describe, exit_code
from cliproxy.processes.spawn import build_id, lift, spawn

PREFIX = """
import os, sys
from cliproxy.processes import child
from cliproxy.processes.child import Down, Up
from cliproxy.processes.descriptors import channel, is_socket, take, vacate
from cliproxy.errors import *
def prepare(boot): return 5
def body(boot, prepared, control): pass
"""
MAIN = "\nchild.main('dialer', prepare=prepare, body=body)\n"


def boot(**changes):
    fields = {
        "role": "dialer",
        "name": "dialer",
        "build": build_id(),
        "generation": 3,
        "settings": b"",
        "home": "/nowhere",
        "operator_uid": 0,
        "uid": os.getuid(),
        "gid": os.getgid(),
        "serving": True,
        "sandbox": False,
        "supervisor_pid": os.getpid(),
    }
    return Boot(**{**fields, **changes})


class Run:
    def __init__(self, code, *, record=None, sealed=True, extra=None):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control = SupervisorControl(ours)
        end = lift(theirs.detach())
        data = encode_boot(record or boot())
        if sealed:
            memfd = lift(seal(data, name="boot"))
        else:
            memfd = lift(os.memfd_create("boot", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
            os.write(memfd, data)
        self.stderr, writer = os.pipe()
        os.set_blocking(writer, False)  # as the relay makes it
        self.pid = spawn([sys.executable, "-I", "-B", "-c", PREFIX + code + MAIN], descriptors={3: end, 4: memfd, **(extra or {})}, output=writer)
        for number in (end, memfd, writer):
            os.close(number)

    def end(self):
        """Return exit status or minus signal, and what was on stderr."""
        with os.fdopen(self.stderr, "rb") as file:
            text = file.read().decode()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]), text

    def report(self):
        while True:
            reports = self.control.receive()
            if reports is None or reports:
                return reports


def test_the_body_gets_what_prepare_made():
    run = Run("def body(boot, prepared, control): control.send(Up.READY, boot.generation, prepared)")
    (report,) = run.report()
    assert (report.kind, report.argument, report.value) == (Up.READY, 3, 5)
    assert run.end() == (0, "")


ENDS = {
    "a body that returns": ("", 0, r"\A\Z"),
    "a wrong configuration": ("def prepare(boot): raise ConfigError('bad', cure='mend it')", 78, r"\Acliproxy: dialer: bad; mend it\n\Z"),
    "a kernel that lacks something": ("def prepare(boot): raise SandboxError('no seccomp', cure='newer kernel')", 78, "no seccomp; newer kernel"),
    "a vault that was tampered with": ("def prepare(boot): raise TamperedVault('rows are missing')", 78, "rows are missing"),
    "an unexpected error in prepare": ("def prepare(boot): raise KeyError('sk-secret')", 70, r"\Acliproxy: dialer: KeyError at .*<string>:\d+\n\Z"),
    "an unexpected error in the body": ("def body(b, p, c): int('sk-secret')", 70, r"\Acliproxy: dialer: ValueError at "),
    "an interpreter's way out": ("def body(b, p, c): sys.exit(0)", 70, "SystemExit"),
    "a file that is missing": ("def prepare(boot): open('/nowhere/file')", 70, r"FileNotFoundError: No such file or directory \(/nowhere/file\)"),
    "another channel's end": ("from cliproxy.ipc.channel import ChannelClosed\ndef body(b, p, c): raise ChannelClosed('vault closed')", 70, "vault closed"),
}


@pytest.mark.parametrize(("code", "status", "line"), ENDS.values(), ids=ENDS.keys())
def test_an_end_has_its_exit_code_and_at_most_one_line_without_a_secret(code, status, line):
    got, text = Run(code).end()
    assert got == status
    assert re.search(line, text)
    assert text.count("\n") <= 1
    assert "sk-secret" not in text


def test_a_child_leaves_when_the_supervisor_is_gone():
    run = Run("import select\ndef body(b, p, c):\n    c.send(Up.READY)\n    while True:\n        select.select([c], [], [])\n        c.receive()")
    assert run.report()
    run.control.close()
    assert run.end() == (0, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_service_managers_signals_are_the_supervisors_business(number):
    run = Run("import select\ndef body(b, p, c):\n    c.send(Up.READY)\n    select.select([c], [], [])\n    c.send(Up.DRAINED)")
    assert run.report()
    os.kill(run.pid, number)
    run.control.order(Down.STOP)
    assert [report.kind for report in run.report()] == [Up.DRAINED]
    assert run.end() == (0, "")


def test_an_unsealed_boot_record_is_refused():
    status, text = Run("", sealed=False).end()
    assert (status, text) == (70, "cliproxy: dialer: the boot record is not sealed\n")


def test_a_boot_record_for_another_role_is_refused():
    status, text = Run("", record=boot(role="vault")).end()
    assert status == 70 and "for 'vault'" in text


def test_a_child_of_another_build_does_not_start():
    status, text = Run("def prepare(boot): raise KeyError", record=boot(build="0.0.9+0123456789abcdef")).end()
    assert status == 75 and "while 0.0.9+0123456789abcdef runs" in text


def test_empty_slots_are_occupied_and_strangers_closed():
    stray = lift(os.memfd_create("stray", os.MFD_CLOEXEC))
    code = """
def body(boot, prepared, control):
    received = os.open('/dev/null', os.O_RDONLY)
    control.send(Up.READY, received, is_socket(5) * 2 + is_socket(6))
"""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    end = lift(theirs.detach())
    run = Run(code, extra={5: end, 9: stray})
    os.close(end)
    os.close(stray)
    (report,) = run.report()
    assert report.argument == 7  # 5 is a channel, 6 the placeholder, 9 was no slot of the dialer
    assert report.value == 2
    ours.close()
    assert run.end() == (0, "")


def test_a_replacement_is_on_its_slot_before_the_body_sees_the_order():
    code = """
import select
def body(boot, prepared, control):
    control.send(Up.READY)
    select.select([control], [], [])
    (order,) = control.receive()
    os.write(order.argument, b'hello')
    control.send(Up.DRAINED, len(order.descriptors), len(os.listdir('/proc/self/fd')))
    moved = take(order.argument)
    moved.send(b'moved %d %d' % (moved.fileno() >= 176, is_socket(order.argument)))
    moved.close()
"""
    run = Run(code)
    assert run.report()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    run.control.order(Down.REPLACE, topology.DialerDescriptors.EGRESS_FD, (theirs.fileno(),))
    theirs.close()
    assert ours.recv(100) == b"hello"
    (report,) = run.report()
    assert report.argument == 0
    assert ours.recv(100) == b"moved 1 0"
    assert ours.recv(100) == b""  # nobody holds the far end any more
    assert run.end() == (0, "")
    ours.close()


@pytest.mark.parametrize("slot", [0, 2, 3, 4, 7, 400, 2**32 - 1])
def test_only_channels_are_replaceable(slot):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control = Control(theirs, replaceable=topology.replaceable("dialer"))
    before = len(os.listdir("/proc/self/fd"))
    SupervisorControl(ours).order(Down.REPLACE, slot, (0,))
    with pytest.raises(ChannelError, match="not replaceable"):
        control.receive()
    assert len(os.listdir("/proc/self/fd")) == before
    ours.close()
    theirs.close()


def test_a_sealed_record_cannot_be_changed_by_anyone():
    memfd = seal(b"settings", name="x")
    assert is_sealed(memfd) and read_sealed(memfd) == b"settings" == read_sealed(memfd)
    for change in (lambda: os.write(memfd, b"x"), lambda: os.ftruncate(memfd, 0), lambda: os.ftruncate(memfd, 100)):
        with pytest.raises(OSError):
            change()
    os.close(memfd)


def test_what_is_no_memfd_or_too_long_is_not_read():
    reader, writer = os.pipe()
    with pytest.raises(ChannelError):
        read_sealed(reader)
    os.close(reader)
    os.close(writer)
    memfd = os.memfd_create("x")
    os.ftruncate(memfd, 100 * 1024 * 1024)
    with pytest.raises(ChannelError):
        read_sealed(memfd)
    os.close(memfd)


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x80", encode_boot(boot())[:-1], encode_boot(boot()) + b"x"])
def test_a_damaged_boot_record_is_refused(data):
    with pytest.raises(ChannelError):
        decode_boot(data)


def test_errors_have_the_exit_code_of_whose_fault_they_are():
    assert [exit_code(error) for error in (ConfigError("a", cure="b"), SandboxError("a", cure="b"), TamperedVault("x"))] == [78, 78, 78]
    assert [exit_code(error) for error in (ChannelClosed("a"), ValueError("x"), OSError(5, "x"))] == [70, 70, 70]
    assert "sk-" not in describe(ValueError("sk-secret"))


FLOOD = """
def body(boot, prepared, control):
    for _ in range(5000):
        child.say('x' * 100)
    control.send(Up.READY, boot.generation)
    __import__("select").select([control], [], [])
    child.say('cliproxy: dialer: after')
"""


def test_what_nobody_reads_holds_no_child_up_and_is_counted():
    run = Run(FLOOD)
    assert run.report()
    read = os.read(run.stderr, 1 << 20)
    run.control.order(Down.STOP)
    status, text = run.end()
    assert (status, set(read.split(b"\n"))) == (0, {b"x" * 100, b""})
    assert text == f"cliproxy: lines dropped that nobody read in time: {5000 - read.count(bytes([10]))}\ncliproxy: dialer: after\n"


DEVICES = {
    "a terminal": "def prepare(boot): import pty; pty.openpty()",
    "another device": "def prepare(boot): os.open('/dev/zero', os.O_RDONLY)",
}


@pytest.mark.parametrize("code", DEVICES.values(), ids=DEVICES.keys())
def test_no_process_goes_on_with_a_device(code):
    status, text = Run(f"import os\n{code}").end()
    assert status == 78
    assert re.search(r"descriptor \d+ is a terminal or another device; report this", text)
