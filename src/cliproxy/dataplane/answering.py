"""What a connection says: answers, framed and collected until the end of the loop turn, and account of what its client does not read.

What always holds: a request gets one answer, and nothing that comes without a request, or twice, is sent; `paused` says whether the transport holds anything;
who has more that is not read than his share is dropped.
"""

from __future__ import annotations

import asyncio
import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Final

from cliproxy.bounds import MIB
from cliproxy.dataplane.host import Host
from cliproxy.dataplane.outbox import CHUNKED, Outbox
from cliproxy.dataplane.states import TRANSITIONS, Event, State
from cliproxy.dataplane.unread import Unread

MAX_UNSENT_BYTES = 1 * MIB  # held for a client that does not read, then the connection is aborted; 4 stream windows

_BODILESS: Final = frozenset({204, 304})  # RFC 9110 §6.4.1
_MAX_HEAD_BYTES: Final = 16 * 1024  # of an answer of ours, generously: what `has_room_for` leaves for it
_ASKED, _STREAMING, _LINGERING, _CLOSED = State.ASKED, State.STREAMING, State.LINGERING, State.CLOSED


class Answering:
    """The answering side of a connection; `host.Client` says what the exchange calls."""

    __slots__ = ("_deadline", "_ending", "_host", "_outbox", "_state", "_transport", "_unread", "paused", "secure")

    _transport: asyncio.Transport

    def __init__(self, host: Host[Any], unread: Unread, *, secure: bool) -> None:
        self._host = host
        self._outbox = Outbox()
        self._unread = unread
        self._state = State.IDLE
        self._deadline = math.inf
        self._ending: Callable[[], None] | None = None  # called after the last write
        self.paused = False
        self.secure = secure

    def respond(self, status: int, headers: bytes, body: bytes) -> None:
        """Send a whole answer, as `host.Client` says."""
        if self._state is not _ASKED:
            self._answer_out_of_place()
            return
        outbox = self._outbox
        common = self._host.common[self.secure]
        if status in _BODILESS:
            outbox.open(status, common, headers, b"")
        else:
            outbox.open(status, common, headers, b"Content-Length: %d\r\n" % len(body))
            if body and not outbox.omits_body:
                outbox.append(body)
        self._answered()

    def start_stream(self, status: int, headers: bytes) -> None:
        """Begin an answer of unknown length, as `host.Client` says."""
        if self._state is not _ASKED:
            self._answer_out_of_place()
            return
        outbox = self._outbox
        self._state = TRANSITIONS[_ASKED][Event.STREAM]
        outbox.keep_alive = outbox.keep_alive and outbox.chunked
        outbox.open(status, self._host.common[self.secure], headers, CHUNKED if outbox.chunked else b"")
        if not outbox.is_scheduled:
            self._schedule()

    def write_chunk(self, data: bytes) -> None:
        """Add to the stream, as `host.Client` says."""
        outbox = self._outbox
        if self._state is not _STREAMING or not data or outbox.omits_body:
            return
        outbox.stream(data)
        if self.paused:
            self._bound_unread()
        elif not outbox.is_scheduled:
            self._schedule()

    def end_stream(self) -> None:
        """The stream is complete; the connection goes on with its next request."""
        if self._state is _STREAMING:
            self._outbox.end_stream()
            self._answered()

    def has_room_for(self, count: int) -> bool:
        """Whether a whole answer of `count` bytes may be added to what the client's principal does not read."""
        return self._unread.has_room_for(count + _MAX_HEAD_BYTES)

    def hold_back(self, change: int) -> None:
        """Count what the exchange keeps until the client reads, as `host.Client` says."""
        if not self._unread.keep(change) and self._state < _CLOSED:
            self.drop()

    # --- what the host calls ---

    def flush(self) -> None:
        """Hand everything that waits to the transport, in one write."""
        outbox = self._outbox
        outbox.is_scheduled = False
        if self.paused or self._state >= _CLOSED:
            return
        data = outbox.take()
        if data:
            self._transport.write(data)
            if self.paused and not self._unread.count(len(data)):  # uvloop keeps all of it until the last byte has left
                self.drop()
                return
        if self._ending is not None:
            ending, self._ending = self._ending, None
            ending()
            self._watch_reader()

    # --- what the whole connection does ---

    @abstractmethod
    def drop(self) -> None:
        """Break off, and tell the exchange if it owes an answer."""

    @abstractmethod
    def failed(self, error: BaseException) -> None:
        """Code of ours raised: close this connection, report, go on."""

    @abstractmethod
    def _answered(self) -> None:
        """The request under way has its whole answer."""

    # --- inside ---

    def _answer_out_of_place(self) -> None:
        """Nobody is there for it; or it is a bug."""
        if self._state < _CLOSED:
            self.failed(RuntimeError("an answer without a request, or a second one"))

    def _schedule(self) -> None:
        self._outbox.is_scheduled = True
        self._host.mark_dirty(self)

    def _bound_unread(self) -> None:
        """Count what waits for a client that does not read; drop one for whom too much does."""
        outbox = self._outbox
        fits = self._unread.count(self._transport.get_write_buffer_size() + outbox.size)
        if not fits or (outbox.size > MAX_UNSENT_BYTES and self._state is _STREAMING):
            self.drop()

    def _watch_reader(self) -> None:
        """Start over with the time in which the client must read something, if anything waits for it."""
        waits = self.paused or (self._state is _LINGERING and self._transport.get_write_buffer_size() > 0)
        if not waits:
            self._unread.count(0)
        self._unread.watch(self._transport, self._host.after(self._host.limits.stalled_reader_seconds) if waits else math.inf)
