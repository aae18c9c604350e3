"""What the children say, and how it reaches the operator: whole lines that cannot steer a terminal, each under the name of who said it.

A child's stdout and stderr are the write end of a pipe of its own, so no child can read what is typed in the supervisor's terminal, write an escape sequence
to it, or speak under another's name. Neither side ever waits: the write end does not block (`lines.say` drops and counts what does not fit), and what the
operator's end does not take is kept within a bound (`outlet`).

    SafeLines   pure: bytes in, safe lines out, at most `LINES_PER_SECOND`
    Relay       the pipes of all children in the supervisor's poll
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from typing import Final

import msgspec

from cliproxy.processes.lines import MAX_LINE_BYTES, visible
from cliproxy.processes.spawn import lift

LINES_PER_SECOND: Final = 10.0  # for each child; systemd's journal takes 10,000 in 30 s from a whole service
LINES_BURST: Final = 100.0  # a reload may have a word about each of a hundred credentials
PAUSE_SECONDS: Final = 1.0  # a child that says more is not read for so long: its pipe fills, and what it says is lost at its own end
PIPE_BYTES: Final = 65536  # a pipe's room (pipe(7)): one read empties it
_LAST_READS: Final = 2  # of a dead child's pipe; somebody else who holds it open cannot keep us here
_OURS: Final = "cliproxy: "


class SafeLines(msgspec.Struct):
    """One child's output. Every line that comes out is printable, shorter than 4 × `MAX_LINE_BYTES` + 100 characters, and begins with `prefix`.

    A read costs a token, and each further line in it another one; without a token lines are counted and dropped, and `quiet_until` says until when the child
    is better not read. Times are seconds on any steady clock.
    """

    name: str
    now: float
    quiet_until: float = 0.0
    _tokens: float = LINES_BURST
    _begun: bytearray = msgspec.field(default_factory=bytearray)  # the line that has no end yet
    _cut: int = 0  # bytes of that line that were not kept
    _dropped: int = 0
    _last_dropped: str = ""

    @property
    def prefix(self) -> str:
        """What every line begins with."""
        return f"{_OURS}{self.name}: " if self.name else _OURS

    def take(self, data: bytes, now: float) -> list[str]:
        """Return the lines that `data` ends, within the rate."""
        self._tokens = min(LINES_BURST, self._tokens + max(0.0, now - self.now) * LINES_PER_SECOND)
        self.now = now
        *ended, rest = data.split(b"\n")
        out: list[str] = []
        for piece in ended:
            self._keep(piece)
            line = self._end_line()
            if self._tokens < 1:
                self._drop(line)
                continue
            self._tokens -= 1
            if line:
                out.append(line)
        if not ended:
            self._tokens -= 1
        self._keep(rest)
        if self._tokens < 1:
            self.quiet_until = now + PAUSE_SECONDS
        return out

    def resume(self) -> list[str]:
        """The pause is over: return the line that says how many were dropped, if any were."""
        self.quiet_until = 0.0
        dropped, self._dropped, self._last_dropped = self._dropped, 0, ""
        return [f"{self.prefix}lines dropped, more than {LINES_PER_SECOND:g} a second: {dropped}"] if dropped else []

    def end(self) -> list[str]:
        """The child is dead: return its last words. The very last line is among them whatever it said before."""
        unfinished = self._end_line()
        last = unfinished or self._last_dropped
        if self._dropped and not unfinished:
            self._dropped -= 1  # the one that is shown after all
        return [*self.resume(), *([last] if last else [])]

    def _keep(self, piece: bytes) -> None:
        room = max(0, MAX_LINE_BYTES - len(self._begun))
        self._begun += piece[:room]
        self._cut += max(0, len(piece) - room)

    def _end_line(self) -> str:
        """Return the line that has been kept, safe, and begin the next one. Empty for an empty line."""
        text = visible(self._begun.decode("utf-8", "backslashreplace"))
        more = f"… ({self._cut} bytes more)" if self._cut else ""
        self._begun.clear()
        self._cut = 0
        role = self.name.rpartition("-")[0] or self.name  # before its boot record is read a child knows its role only
        for own in (_OURS, f"{self.name}: ", f"{role}: "):
            text = text.removeprefix(own)
        return f"{self.prefix}{text}{more}" if text else ""

    def _drop(self, line: str) -> None:
        if line:
            self._dropped += 1
            self._last_dropped = line


class Relay:
    """The pipes of the children that live, read when `poll` says so. `say` takes each line."""

    def __init__(self, poll: select.poll, say: Callable[[str], None]) -> None:
        self._poll = poll
        self._say = say
        self._ends: dict[str, int] = {}  # child's name to the read end of its pipe
        self._lines: dict[int, SafeLines] = {}
        self._quiet: set[int] = set()  # not polled until their pause is over

    def __contains__(self, number: int) -> bool:
        return number in self._lines

    def open(self, name: str, now: float) -> int:
        """Return the end on which child `name` is to write, which does not block. The caller closes it once the child has it. Raises `OSError`."""
        self.close(name)  # of one that could not be started
        ends = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        reader, writer = lift(ends[0]), lift(ends[1])
        self._ends[name] = reader
        self._lines[reader] = SafeLines(name, now)
        self._poll.register(reader, select.POLLIN)
        return writer

    def heard(self, number: int, now: float) -> None:
        """The pipe `number` has something to read, or its far end is closed."""
        data = _read(number)
        if data is None:
            return
        lines = self._lines[number]
        if data:
            self._say_all(lines.take(data, now))
        if not data or lines.quiet_until > now:
            self._poll.unregister(number)
            if data:
                self._quiet.add(number)

    def close(self, name: str) -> None:
        """Child `name` is dead: pass on its last words."""
        number = self._ends.pop(name, -1)
        if number < 0:
            return
        lines = self._lines.pop(number)
        for _ in range(_LAST_READS):
            if data := _read(number):
                self._say_all(lines.take(data, lines.now))
        self._say_all(lines.end())
        self._quiet.discard(number)
        try:
            self._poll.unregister(number)
        except KeyError:
            pass  # quiet, or its far end was closed before
        os.close(number)

    def next_time(self) -> float:
        """Return when `tick` has something to do; infinity if never."""
        return min((self._lines[number].quiet_until for number in self._quiet), default=float("inf"))

    def tick(self, now: float) -> None:
        """Read those again whose pause is over."""
        for number in [each for each in self._quiet if self._lines[each].quiet_until <= now]:
            self._quiet.discard(number)
            self._say_all(self._lines[number].resume())
            self._poll.register(number, select.POLLIN)

    def _say_all(self, lines: list[str]) -> None:
        for line in lines:
            self._say(line)


def _read(number: int) -> bytes | None:
    """Return what the pipe holds; empty at its end, `None` when it holds nothing now."""
    try:
        return os.read(number, PIPE_BYTES)
    except BlockingIOError:
        return None
