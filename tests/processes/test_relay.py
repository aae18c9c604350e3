"""What children say becomes whole, harmless, bounded lines under their own names; neither side ever waits for the other."""

from __future__ import annotations

import itertools
import os
import select

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliproxy.processes.lines import MAX_LINE_BYTES
from cliproxy.processes.relay import LINES_BURST, LINES_PER_SECOND, PAUSE_SECONDS, PIPE_BYTES, Relay, SafeLines


def lines_of(data: bytes, *, name: str = "worker-0") -> list[str]:
    lines = SafeLines(name, 0.0)
    return [*lines.take(data, 0.0), *lines.end()]


SAID = {
    "a line of ours keeps its words": (b"cliproxy: worker-0: ValueError at x.py:1\n", ["cliproxy: worker-0: ValueError at x.py:1"]),
    "nor is the role's name said twice": (b"cliproxy: worker: no boot record\n", ["cliproxy: worker-0: no boot record"]),
    "no line is another's": (b"cliproxy: vault: all is lost\n", ["cliproxy: worker-0: vault: all is lost"]),
    "no line is the supervisor's": (b"cliproxy: stopped\n", ["cliproxy: worker-0: stopped"]),
    "a foreign line": (b"free(): invalid pointer\n", ["cliproxy: worker-0: free(): invalid pointer"]),
    "two lines": (b"a\nb\n", ["cliproxy: worker-0: a", "cliproxy: worker-0: b"]),
    "empty lines": (b"\n\n\na\n\n", ["cliproxy: worker-0: a"]),
    "a line without an end": (b"a\nlast words", ["cliproxy: worker-0: a", "cliproxy: worker-0: last words"]),
    "an escape sequence": (b"\x1b]0;owned\x07\n", ["cliproxy: worker-0: \\x1b]0;owned\\x07"]),
    "a C1 control": ("\x9b31m\n".encode(), ["cliproxy: worker-0: \\x9b31m"]),
    "a C1 control in no UTF-8": (b"\x9b31m\n", ["cliproxy: worker-0: \\x9b31m"]),
    "a way back over the line": (b"good\rbad\x08\n", ["cliproxy: worker-0: good\\rbad\\x08"]),
    "an order of writing": ("\u202eevil\u2066\u200f\n".encode(), ["cliproxy: worker-0: \\u202eevil\\u2066\\u200f"]),
    "line ends of Unicode": ("a\u2028b\x85c\n".encode(), ["cliproxy: worker-0: a\\u2028b\\x85c"]),
    "invalid UTF-8": (b"\xff\xed\xa0\x80\n", ["cliproxy: worker-0: \\xff\\xed\\xa0\\x80"]),
    "letters": ("café 例 🙂\n".encode(), ["cliproxy: worker-0: café 例 🙂"]),
}


@pytest.mark.parametrize(("data", "lines"), SAID.values(), ids=SAID.keys())
def test_what_is_said_becomes(data: bytes, lines: list[str]) -> None:
    assert lines_of(data) == lines


def test_a_line_is_cut_and_says_by_how_much() -> None:
    (line,) = lines_of(b"x" * (MAX_LINE_BYTES + 77) + b"\n")
    assert line == "cliproxy: worker-0: " + "x" * MAX_LINE_BYTES + "… (77 bytes more)"


def test_the_loader_of_a_start_speaks_for_the_command() -> None:
    assert lines_of(b"cliproxy: server.port: ignored\n", name="") == ["cliproxy: server.port: ignored"]


@given(st.lists(st.binary(max_size=300) | st.text(max_size=100).map(lambda text: text.encode("utf-8", "surrogatepass")), max_size=20))
def test_whatever_is_said_comes_out_printable_bounded_and_under_its_name(pieces: list[bytes]) -> None:
    for line in lines_of(b"\n".join(pieces)):
        assert line.startswith("cliproxy: worker-0: ") and len(line) <= 4 * MAX_LINE_BYTES + 100
        assert all(character.isprintable() or character == "\t" for character in line)


@given(st.binary(max_size=90), st.lists(st.integers(0, 90), max_size=8))
def test_how_it_is_cut_into_reads_changes_nothing(data: bytes, cuts: list[int]) -> None:
    lines = SafeLines("worker-0", 0.0)
    out: list[str] = []
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for number, (begin, end) in enumerate(itertools.pairwise(edges)):
        out += lines.take(data[begin:end], number * 1000.0)  # so slowly that the rate is no matter
    whole = SafeLines("worker-0", 0.0)
    expected = [line for number, piece in enumerate(data.split(b"\n")[:-1]) for line in whole.take(piece + b"\n", number * 1000.0)]
    whole.take(data.split(b"\n")[-1], 1e9)
    assert [*out, *lines.end()] == [*expected, *whole.end()]


@given(st.lists(st.tuples(st.integers(0, 500), st.floats(0, 5)), max_size=30))
def test_the_rate_holds_and_every_line_is_shown_or_counted(turns: list[tuple[int, float]]) -> None:
    lines = SafeLines("worker-0", 0.0)
    now, shown, counted, said = 0.0, 0, 0, 0
    for count, pause in turns:
        now += pause
        if 0 < lines.quiet_until <= now:
            counted += sum(int(line.rpartition(" ")[2]) for line in lines.resume())
        shown += len(lines.take(b"x\n" * count, now))
        said += count
        assert shown <= LINES_BURST + LINES_PER_SECOND * now
    last = lines.end()
    counted += sum(int(line.rpartition(" ")[2]) for line in last if "dropped" in line)
    shown += sum("dropped" not in line for line in last)
    assert shown + counted == said


def test_who_says_too_much_is_not_read_for_a_while_with_or_without_lines() -> None:
    flood = SafeLines("worker-0", 0.0)
    assert len(flood.take(b"x\n" * 1000, 5.0)) == LINES_BURST
    assert flood.quiet_until == 5.0 + PAUSE_SECONDS
    assert flood.resume() == ["cliproxy: worker-0: lines dropped, more than 10 a second: 900"]
    drops = SafeLines("worker-0", 0.0)
    for _ in range(int(LINES_BURST)):
        assert not drops.quiet_until
        drops.take(b"x", 5.0)  # wakes the supervisor, and never ends a line
    assert drops.quiet_until


def test_the_last_words_are_heard_after_any_flood() -> None:
    flood = SafeLines("vault", 0.0)
    flood.take(b"x\n" * 1000 + b"cliproxy: vault: rows are missing\n", 5.0)
    assert flood.end() == ["cliproxy: vault: lines dropped, more than 10 a second: 900", "cliproxy: vault: rows are missing"]


# --- the pipes -----------------------------------------------------------------------------------------------------------


class Shell:
    """A relay with a poll of its own, whose time the test makes."""

    def __init__(self) -> None:
        self.poll = select.poll()
        self.said: list[str] = []
        self.relay = Relay(self.poll, self.said.append)

    def turn(self, now: float) -> int:
        """One turn of the supervisor's loop; return how many descriptors were ready."""
        ready = self.poll.poll(0)
        for number, _ in ready:
            assert number in self.relay
            self.relay.heard(number, now)
        self.relay.tick(now)
        return len(ready)


def test_a_pipe_is_for_writing_only_and_never_blocks_who_writes() -> None:
    shell = Shell()
    writer = shell.relay.open("worker-0", 0.0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.read(writer, 1)
    assert not os.get_blocking(writer) and not os.get_inheritable(writer)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(writer, b"x" * 4096)
    os.close(writer)
    shell.relay.close("worker-0")


def test_each_line_is_passed_on_in_its_turn_and_the_rest_at_the_end() -> None:
    shell = Shell()
    writer = shell.relay.open("worker-0", 0.0)
    os.write(writer, b"one\ntw")
    shell.turn(0.0)
    assert shell.said == ["cliproxy: worker-0: one"]
    os.write(writer, b"o\nlast words")
    os.close(writer)
    shell.relay.close("worker-0")
    assert shell.said[1:] == ["cliproxy: worker-0: two", "cliproxy: worker-0: last words"]
    assert shell.poll.poll(0) == []


def test_a_child_that_closes_its_end_wakes_nobody_any_more() -> None:
    shell = Shell()
    os.close(shell.relay.open("worker-0", 0.0))
    assert shell.turn(0.0) == 1
    assert shell.turn(0.0) == 0
    shell.relay.close("worker-0")


def test_a_flood_wakes_the_supervisor_once_a_pause() -> None:
    shell = Shell()
    writer = shell.relay.open("worker-0", 0.0)
    os.write(writer, b"\n" * PIPE_BYTES)
    assert shell.turn(0.0) == 1
    os.write(writer, b"x\n" * 1000)
    assert [shell.turn(PAUSE_SECONDS * part / 10) for part in range(10)] == [0] * 10
    assert shell.relay.next_time() == PAUSE_SECONDS
    shell.turn(PAUSE_SECONDS)
    assert shell.turn(PAUSE_SECONDS) == 1
    assert shell.relay.next_time() == 2 * PAUSE_SECONDS
    os.close(writer)
    shell.relay.close("worker-0")
    assert shell.said[-2:] == ["cliproxy: worker-0: lines dropped, more than 10 a second: 989", "cliproxy: worker-0: x"]


def test_a_child_that_could_not_be_started_leaves_nothing_open() -> None:
    shell = Shell()
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(3):
        os.close(shell.relay.open("worker-0", 0.0))
    shell.relay.close("worker-0")
    shell.relay.close("worker-0")
    assert set(os.listdir("/proc/self/fd")) == before
