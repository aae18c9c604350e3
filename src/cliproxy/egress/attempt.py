"""One attempt of a call from its authorisation to its settlement: what the provider sends, turned into frames for the worker, bounded and settled once.

What always holds: the worker gets exactly one ending (a final ANSWER, END or ABORT) unless it cancelled or the call goes on with another attempt, which
only one can that has told the worker nothing; the attempt is settled exactly
once, whatever happened (a bug of ours too); at most `STREAM_WINDOW_BYTES` of an answer are under way without credit, and the provider is not read while the
worker or its client does not take more.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping
from typing import Protocol

import msgspec

from cliproxy.bounds import MAX_DATA_FRAME_BYTES, MAX_WHOLE_ANSWER_BYTES, STREAM_WINDOW_BYTES
from cliproxy.egress.call import AuthorizedRequest, Outgoing
from cliproxy.egress.rooms import Room
from cliproxy.errors import ClientError, CliproxyError, ProviderRefusal, UpstreamError
from cliproxy.ipc.mux import Abort, Answer, Kind
from cliproxy.metering.stream import StreamMeter
from cliproxy.metering.usage import Usage

ANSWER_PIECES_PER_JOIN = 1024  # pieces of a whole answer are joined in lots of these: 32 MiB in reads of two bytes were 900 MB

_encoder = msgspec.msgpack.Encoder()
_FAULT = UpstreamError("The gateway failed to read the provider's answer.", status=500, code="internal_error")  # the loop reports what was raised


class Sending(Protocol):
    """What the pool (or the echo provider) returns for a call under way."""

    def cancel(self) -> None:
        """Close the connection: the provider notices."""

    def pause_reading(self) -> None:
        """Take no more from the provider for now."""

    def resume_reading(self) -> None:
        """Go on."""


class Ledger(Protocol):
    """Who is told how an attempt goes. `held`: bytes of whole answers that wait for their end, or for a slow client, of all calls, by principal.
    `unfinished`: bytes of events that are not whole yet, of all calls, by provider: it is he who may leave them so."""

    held: Room[str]
    unfinished: Room[str]

    def answered(self, attempt: Attempt) -> None:
        """The worker has the first of the answer: this is the call's last attempt."""

    def settled(self, attempt: Attempt, outcome: Outcome, error: CliproxyError | None) -> bool:
        """Called exactly once per attempt; `error` is what its client would get. True: the call goes on without this attempt, which then says no more."""


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """How a call ended: the provider's status (0: none), our error code (empty: fine), usage if it was told, bytes received."""

    status: int
    error: str
    usage: Usage | None
    received: int
    duration_ms: int


class Attempt:
    """An attempt that has left, or is about to. The pool calls `on_…`; the worker's channel calls `credit` and `cancel`."""

    __slots__ = (
        "_answered",
        "_backlog",
        "_began",
        "_channel",
        "_complete",
        "_held",
        "_joined",
        "_ledger",
        "_media",
        "_over",
        "_parts",
        "_paused",
        "_received",
        "_sending",
        "_sse",
        "_status",
        "_upstream_id",
        "_usage",
        "_window",
        "ended_by_us",
        "request",
        "stream",
    )

    def __init__(self, request: AuthorizedRequest, *, channel: Outgoing, ledger: Ledger) -> None:
        self.request = request
        self.stream = request.call.stream
        self._channel = channel
        self._ledger = ledger
        self._began = time.monotonic()
        self._sending: Sending | None = None
        self._sse: StreamMeter | None = None
        self._parts: list[bytes] = []
        self._joined = 0  # that many of the parts are joined batches
        self._received = 0
        self._held = 0  # bytes of it that are counted in a room
        self._status = 0
        self._upstream_id = ""
        self._media = ""
        self._window = STREAM_WINDOW_BYTES
        self._backlog: deque[bytes] = deque()
        self._answered = False
        self._paused = False
        self._complete = False  # the provider has said everything; END follows once the backlog is gone
        self._usage: Usage | None = None
        self._over = False
        self.ended_by_us = False

    @property
    def may_go_on(self) -> bool:
        """Whether the call can be tried elsewhere: the worker knows nothing of this attempt, and nobody has ended the call."""
        return not self._answered and not self.ended_by_us

    # --- the sender ---

    def sent(self, sending: Sending) -> None:
        """The request has left, or is about to."""
        if self._over:
            sending.cancel()
        else:
            self._sending = sending

    def on_head(self, status: int, headers: Mapping[bytes, bytes]) -> None:
        """A successful answer begins; its media type is the one asked for (the pool has checked). Headers by allow-list, names in lower case."""
        self._status = status
        self._upstream_id = headers.get(b"x-request-id", b"").decode("ascii")
        meter = self.request.call.asked.meter
        if meter.media:
            self._media = headers.get(b"content-type", b"").decode("ascii")
        if self.request.stream and meter.stream is not None:
            self._sse = meter.stream()
            asyncio.get_running_loop().call_soon(self._answer_head)

    def on_data(self, data: bytes) -> None:
        """A piece of the body, at most the pool's read size."""
        if self._over:
            return
        self._received += len(data)
        if self._sse is not None:
            try:
                events = self._sse.feed(data)
                if not events.isascii():
                    _verify_text(events)
            except UpstreamError as error:
                self._fail(error)
                return
            except Exception:
                self._fail(_FAULT)
                raise
            if self._held or not events or len(data) - len(events) > MAX_DATA_FRAME_BYTES:
                self.on_unfinished(self._sse.held_bytes)
                if self._over:
                    return
            if events:
                self._deliver(events)
            return
        parts = self._parts
        parts.append(data)
        if len(parts) - self._joined >= ANSWER_PIECES_PER_JOIN:
            parts[self._joined :] = [b"".join(parts[self._joined :])]
            self._joined += 1
        if self._received > MAX_DATA_FRAME_BYTES:  # ordinary answers go on
            if self._received > MAX_WHOLE_ANSWER_BYTES:
                self._fail(UpstreamError("The provider's answer is larger than the gateway takes.", code="provider_answer_too_large"))
            else:
                self._hold(self._ledger.held, self.request.call.asked.principal.id, self._received)

    def on_unfinished(self, size: int) -> None:
        """`size` bytes of an event that is not whole yet are held for this attempt. What is no larger than a frame is not counted."""
        size = 0 if size <= MAX_DATA_FRAME_BYTES else size
        if size != self._held and not self._over:
            self._hold(self._ledger.unfinished, self.request.target.provider, size)

    def on_complete(self) -> None:
        """The body is whole."""
        if self._over:
            return
        try:
            if self._sse is not None:
                self._finish_stream(self._sse)
            else:
                parts, self._parts = self._parts, []
                self._finish_whole(parts.pop() if len(parts) == 1 else b"".join(parts))
        except UpstreamError as error:
            self._fail(error)
        except Exception:
            self._fail(_FAULT)
            raise

    def on_failure(self, error: CliproxyError) -> None:
        """Nothing more comes: the provider refused, timed out, broke off, or its framing was wrong. A stream that has told its end is whole all the same."""
        if self._sse is not None and self._sse.is_over:
            self.on_complete()
            return
        if isinstance(error, ProviderRefusal):
            self._status = error.provider_status
        self._fail(error)

    # --- the worker ---

    def credit(self, count: int) -> bool:
        """The worker takes `count` more bytes. `False`: it grants more than was sent, which an honest one does not."""
        self._window += count
        if self._window > STREAM_WINDOW_BYTES:
            return False
        self._drain()
        return True

    def cancel(self, code: str) -> None:
        """The client went away, or its worker: the provider is cancelled, nothing more is said."""
        self._end(code, None)

    def abort(self, error: CliproxyError) -> None:
        """The gateway ends the call: the worker is told."""
        self.ended_by_us = True
        self._fail(error)

    def channel_ready(self) -> None:
        """The channel takes more again."""
        self._drain()

    # --- inside ---

    def _hold(self, room: Room[str], owner: str, size: int) -> None:
        """`size` bytes are held now: count them, and end the attempt if they are more than its owner's share of what all may hold."""
        more = size - self._held
        if more < 0:
            room.give_back(owner, -more)
        fits = more <= 0 or room.add(owner, more)
        self._held = size
        if not fits:
            self._fail(UpstreamError("The gateway holds more answers than it may; try again in a moment.", status=503, code="overloaded"))

    def _finish_whole(self, body: bytes) -> None:
        usage = self.request.call.asked.meter.usage_of(body)
        if len(body) <= MAX_DATA_FRAME_BYTES:
            self._answer(body, final=True)
            self._end("", usage)
            return
        self._complete, self._usage = True, usage
        self._answer(b"", final=False)
        self._deliver(body)

    def _finish_stream(self, sse: StreamMeter) -> None:
        rest = sse.finish()  # raises when the stream broke off
        self._complete, self._usage = True, sse.usage
        if rest:
            self._deliver(rest)
        else:
            self._drain()

    def _answer(self, body: bytes, *, final: bool) -> None:
        self._answered = True
        request = self.request
        # Positional, in the order of `ipc.mux.Answer`: keywords cost.
        target = request.target
        answer = Answer(200, self._sse is not None, final, self._upstream_id, 0.0, body, target.provider, target.model, request.attempt, self._media)
        self._ledger.answered(self)
        self._channel.queue(Kind.ANSWER, self.stream, _encoder.encode(answer))

    def _answer_head(self) -> None:
        """The turn is over and the provider's head came without a body: let the client see that it has begun."""
        if self._sse is not None and not self._answered and not self._over:
            self._answer(b"", final=False)

    def _deliver(self, data: bytes) -> None:
        if not self._backlog and len(data) <= self._window and len(data) <= MAX_DATA_FRAME_BYTES and not self._complete and not self._channel.paused:
            self._window -= len(data)
            if self._answered:
                self._channel.queue(Kind.DATA, self.stream, data)
            else:
                self._answer(data, final=False)
            if self._channel.paused:
                self._pause()
            return
        for start in range(0, len(data), MAX_DATA_FRAME_BYTES):
            self._backlog.append(data[start : start + MAX_DATA_FRAME_BYTES])
        self._drain()

    def _drain(self) -> None:
        """Send what the window allows; then either pause the provider, or go on, or say that it is over."""
        if self._over:
            return
        while self._backlog and self._window > 0 and not self._channel.paused:
            piece = self._backlog.popleft()
            if len(piece) > self._window:
                self._backlog.appendleft(piece[self._window :])
                piece = piece[: self._window]
            self._window -= len(piece)
            if self._answered:
                self._channel.queue(Kind.DATA, self.stream, piece)
            else:
                self._answer(piece, final=False)
        if self._backlog or self._channel.paused:
            self._pause()
        elif self._complete:
            if not self._answered:
                self._answer(b"", final=False)
            self._channel.queue(Kind.END, self.stream, b"")
            self._end("", self._usage)
        elif self._paused:
            self._paused = False
            if self._sending is not None:
                self._sending.resume_reading()

    def _pause(self) -> None:
        if not self._paused and self._sending is not None:
            self._paused = True
            self._sending.pause_reading()

    def _fail(self, error: CliproxyError) -> None:
        if self._over:
            return
        abort = abort_of(error)
        if not self._end(abort.code, None, error):
            self._channel.queue(Kind.ABORT, self.stream, _encoder.encode(abort))

    def _end(self, code: str, usage: Usage | None, error: CliproxyError | None = None) -> bool:
        """Settle, once. Returns whether the call goes on with another attempt."""
        if self._over:
            return False
        self._over = True
        sending, self._sending = self._sending, None
        if sending is not None and code:
            sending.cancel()
        self._backlog.clear()
        self._parts.clear()
        if self._held and self._sse is None:
            self._ledger.held.give_back(self.request.call.asked.principal.id, self._held)
        elif self._held:
            self._ledger.unfinished.give_back(self.request.target.provider, self._held)
        if usage is None and self._sse is not None:
            usage = self._sse.usage
        duration = int((time.monotonic() - self._began) * 1000)
        return self._ledger.settled(self, Outcome(self._status, code, usage, self._received, duration), error)


def _verify_text(events: bytes) -> None:
    """Raise `UpstreamError` unless whole events are UTF-8: clients' libraries have no clean error for anything else."""
    try:
        events.decode()
    except UnicodeDecodeError:
        raise UpstreamError("The provider's answer is not text.", code="bad_upstream_answer") from None


def abort_of(error: CliproxyError) -> Abort:
    """Return the ABORT that reports `error`."""
    status = getattr(error, "status", 500)
    return Abort(
        status=status if isinstance(status, int) else 500,
        kind=str(getattr(error, "kind", "internal_error")),
        code=str(getattr(error, "code", "internal_error")),
        message=error.message if isinstance(error, ClientError | UpstreamError) else str(error),
        retry_after=float(getattr(error, "retry_after", None) or 0.0),
    )
