"""The supervisor's stderr may be a stopped terminal, a full pipe, a file, a socket, or gone: it never waits for it, and loses nothing uncounted."""

from __future__ import annotations

import os
import pty
import select
import socket
import termios
import tty
from collections.abc import Callable

import pytest

from cliproxy.processes.outlet import MAX_WAITING_BYTES, Outlet


class Shell:
    """An outlet and the poll that it registers with."""

    def __init__(self, number: int) -> None:
        self.poll = select.poll()
        self.outlet = Outlet(number, self.poll)

    def turn(self) -> bool:
        """One turn of the supervisor's loop; return whether the outlet was ready."""
        ready = self.poll.poll(0)
        for number, _ in ready:
            assert number == self.outlet.descriptor
            self.outlet.ready()
        return bool(ready)


def pipe() -> tuple[int, int]:
    return os.pipe()


def stream() -> tuple[int, int]:
    ours, theirs = socket.socketpair()
    return ours.detach(), theirs.detach()


def terminal() -> tuple[int, int]:
    master, slave = pty.openpty()
    tty.setraw(slave)
    return master, slave


ENDS: dict[str, Callable[[], tuple[int, int]]] = {"pipe": pipe, "socket": stream, "terminal": terminal}


@pytest.fixture(params=ENDS)
def ends(request: pytest.FixtureRequest) -> tuple[int, int]:
    """Where it is read, and where it is written."""
    return ENDS[request.param]()


def read_all(reader: int) -> bytes:
    data = b""
    while select.select([reader], [], [], 0.1)[0] and (piece := os.read(reader, 65536)):
        data += piece
    return data


def test_a_line_goes_out_at_once(ends: tuple[int, int]) -> None:
    reader, writer = ends
    Shell(writer).outlet.write("cliproxy: ready")
    assert read_all(reader) == b"cliproxy: ready\n"


def test_nobody_reads_and_nobody_waits(ends: tuple[int, int]) -> None:
    """Were it to wait, this test would not end. What came out of it is whole lines, in order, and the number of the others."""
    reader, writer = ends
    shell = Shell(writer)
    count = 20_000
    for number in range(count):
        shell.outlet.write(f"line {number} {'x' * 80}")
    data = b""
    while piece := read_all(reader):
        data += piece
        while shell.turn():
            pass
    *lines, last = data.decode().splitlines()
    assert [line.split()[1] for line in lines] == [str(number) for number in range(len(lines))]
    assert len(data) > MAX_WAITING_BYTES
    assert last == f"cliproxy: lines dropped that nobody read in time: {count - len(lines)}"
    assert shell.poll.poll(0) == []  # nothing waits, nothing wakes


def test_the_flags_that_others_see_are_not_changed(ends: tuple[int, int]) -> None:
    """A terminal is the shell's too."""
    _, writer = ends
    Shell(writer).outlet.write("x")
    assert os.get_blocking(writer)


def test_a_stopped_terminal_holds_nobody_up() -> None:
    master, slave = terminal()
    shell = Shell(slave)
    termios.tcflow(slave, termios.TCOOFF)
    shell.outlet.write("waits")
    assert read_all(master) == b""
    shell.outlet.finish(0.1)
    termios.tcflow(slave, termios.TCOON)
    shell.outlet.finish(5.0)
    assert read_all(master) == b"waits\n"


def test_where_no_description_of_its_own_is_to_be_had_it_asks_before_each_write(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError

    reader, writer = os.pipe()
    monkeypatch.setattr(os, "open", refuse)
    test_nobody_reads_and_nobody_waits((reader, writer))


def test_a_reader_that_went_away_costs_nothing() -> None:
    reader, writer = os.pipe()
    shell = Shell(writer)
    os.close(reader)
    for _ in range(10_000):
        shell.outlet.write("x" * 100)
    assert shell.poll.poll(0) == []


def test_a_file_is_shared_with_whoever_else_writes_to_it(tmp_path) -> None:
    file = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    outlet = Outlet(file, select.poll())
    os.write(file, b"before\n")
    outlet.write("ours")
    os.write(file, b"after\n")
    assert (tmp_path / "log").read_bytes() == b"before\nours\nafter\n"


def test_a_closed_stderr_is_no_reason_to_fail() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    os.close(writer)
    Outlet(writer, select.poll()).write("x")
