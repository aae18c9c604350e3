"""Server-sent events from bytes that arrive in any pieces (WHATWG HTML, section 9.2, "Server-sent events").

What always holds: what comes out are whole events, each ended by a blank line, with `\\n` as the only line end and without a byte order mark; how the bytes
were cut makes no difference to them; no event is longer than its splitter allows (`MAX_EVENT_BYTES`, unless its dialect has larger ones), whether it came in
one piece or in a thousand, so that the next who splits them (the worker, after egress) need not refuse what the first let pass.
"""

from __future__ import annotations

from cliproxy.bounds import EVENT_PIECES_PER_JOIN, MAX_EVENT_BYTES
from cliproxy.errors import UpstreamError

KEEP_ALIVE = b": keep-alive\n\n"  # a comment: every client ignores it
_BOM = b"\xef\xbb\xbf"
CR = 13


class EventSplitter:
    """Collects bytes until they are whole events.

    `clear`: nothing is held and nothing remembered, so that bytes which end with a blank line, hold no CR and are no longer than `max_bytes` are what `feed`
    would return for them. Who feeds event by event saves the call.
    """

    __slots__ = ("_after_cr", "_began", "_held", "_held_bytes", "_joined", "_start", "clear", "max_bytes")

    def __init__(self, max_bytes: int = MAX_EVENT_BYTES) -> None:
        self.max_bytes = max_bytes
        self.clear = False  # a byte order mark may come
        self._held: list[bytes] = []  # an unfinished event; pieces are joined once, when its end is there
        self._held_bytes = 0
        self._joined = 0  # that many of the pieces are joined lots
        self._after_cr = False  # the last byte was a CR, written as LF: an LF that follows belongs to it
        self._began = False
        self._start = b""  # the first bytes, while they may be a byte order mark

    @property
    def held_bytes(self) -> int:
        """Bytes of an unfinished event."""
        return self._held_bytes

    @property
    def at_boundary(self) -> bool:
        """Whether nothing of an unfinished event is held."""
        return not self._held and not self._start

    def feed(self, data: bytes) -> bytes:
        """Return the events that `data` completes, together; empty if none.

        Raises `UpstreamError` when an event is larger than `max_bytes`.
        """
        self.clear = False
        if not self._began:
            data = self._without_mark(data)
        if CR in data or self._after_cr:
            data = self._with_line_feeds(data)
        if not self._held:
            end = data.rfind(b"\n\n") + 2
            if end == 1:  # not found
                self._hold(data)
                return b""
            if len(data) > self.max_bytes:
                _verify_lengths(data[:end], self.max_bytes)
            if end == len(data):
                self.clear = not self._after_cr
                return data  # the common case: whole events in one piece
            self._hold(data[end:])
            return data[:end]
        if data[:1] == b"\n" and self._held[-1].endswith(b"\n"):
            end = max(data.rfind(b"\n\n") + 2, 1)
        else:
            end = data.rfind(b"\n\n") + 2
            if end == 1:
                self._hold(data)
                return b""
        self._held.append(data[:end])
        events = b"".join(self._held)
        self._held.clear()
        self._held_bytes = self._joined = 0
        if len(events) > self.max_bytes:
            _verify_lengths(events, self.max_bytes)
        if end < len(data):
            self._hold(data[end:])
        else:
            self.clear = not self._after_cr
        return events

    def _hold(self, data: bytes) -> None:
        if not data:
            return
        self._held.append(data)
        self._held_bytes += len(data)
        if self._held_bytes > self.max_bytes:
            raise _too_large()
        if len(self._held) - self._joined >= EVENT_PIECES_PER_JOIN:
            self._held[self._joined :] = [b"".join(self._held[self._joined :])]
            self._joined += 1

    def _without_mark(self, data: bytes) -> bytes:
        data = self._start + data
        if len(data) < len(_BOM) and _BOM.startswith(data):
            self._start = data
            return b""
        self._start = b""
        self._began = True
        return data.removeprefix(_BOM)

    def _with_line_feeds(self, data: bytes) -> bytes:
        """Return `data` with LF for CR LF and for CR, whatever the piece before ended with."""
        if self._after_cr and data[:1] == b"\n":
            data = data[1:]
            self._after_cr = False
        if data:
            self._after_cr = data[-1] == CR
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _verify_lengths(events: bytes, max_bytes: int) -> None:
    """Raise `UpstreamError` if one of the whole `events` is longer than `max_bytes`."""
    start = 0
    while len(events) - start > max_bytes:
        end = events.rfind(b"\n\n", start, start + max_bytes) + 2
        if end == 1:  # no event ends within that many bytes
            raise _too_large()
        start = end


def _too_large() -> UpstreamError:
    return UpstreamError("The provider sent an event that is larger than the gateway takes.", code="upstream_too_large")


def data_line(events: bytes, at: int) -> bytes:
    """Return the value of the `data:` line around index `at`, without the space that may lead it; empty if that line is another."""
    start = events.rfind(b"\n", 0, at) + 1
    end = events.find(b"\n", at)
    line = events[start : end if end >= 0 else len(events)]
    if not line.startswith(b"data:"):
        return b""
    return line[6:] if line[5:6] == b" " else line[5:]
