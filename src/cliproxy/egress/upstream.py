"""One connection to a provider: the bytes of answers, framed strictly, to a call's callbacks.

What always holds:
- Framing is llhttp's strict mode and then ours: one `Content-Length` or `Transfer-Encoding: chunked` alone, no upgrade, no content coding,
  bounded head, trailers, interim answers and length. Bytes that nobody asked for end the connection.
- The credential is replaced in everything that is passed on. Answers of 300 and above are not passed on: they become `ProviderRefusal`.
- What one read brings is passed on in one `on_data`.
- A stream in AWS's framing is passed on as server-sent events: behind this there is no other kind of stream.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from enum import IntEnum
from typing import Protocol, cast

import httptools

from cliproxy.bounds import KIB, MAX_DATA_FRAME_BYTES, MIB
from cliproxy.config.schema import ProviderTimeouts
from cliproxy.egress.answers import refusal_of, verify_media_type
from cliproxy.egress.head import BrokenAnswer, read_head
from cliproxy.egress.sent import Sent
from cliproxy.errors import UpstreamError
from cliproxy.formats.event_stream import EventStreamDecoder
from cliproxy.providers.facts import EVENT_STREAM, Framing

MAX_ERROR_BODY_BYTES = 64 * KIB  # of a provider's error; what is longer is not read
MAX_RESPONSE_HEAD_BYTES = 64 * KIB  # nginx allows 4 to 8 KiB, curl 300 KiB; providers send some 3 KiB
MAX_RESPONSE_HEADERS = 128
MAX_RESPONSE_TRAILERS = 16
MAX_INTERIM_RESPONSES = 8  # 1xx before the answer
MAX_RESPONSE_BYTES = 64 * MIB  # on the wire; an embeddings answer of 2,048 inputs is 60 MB


class State(IntEnum):
    """How far a connection has come with what it carries."""

    IDLE = 0
    AWAITING_HEAD = 1  # a request is written, and the final head of its answer is not in
    IN_BODY = 2
    COMPLETE = 3  # the answer is whole, or enough of a refusal was read; never outlasts one read
    CLOSED = 4


class Event(IntEnum):
    """What happens to a connection."""

    REQUEST = 0
    HEAD = 1
    END = 2
    REUSED = 3
    CLOSED = 4


class IllegalTransition(Exception):
    """Something happened to a connection that cannot in its state: a bug, or bytes that the parser should have refused."""


class After(dict[State, State]):
    """The states that follow one event; a lookup in vain raises `IllegalTransition`."""

    def __missing__(self, state: State) -> State:
        raise IllegalTransition(f"nothing like that can happen to a connection that is {state.name}")


TRANSITIONS: dict[Event, After] = {
    Event.REQUEST: After({State.IDLE: State.AWAITING_HEAD}),
    Event.HEAD: After({State.AWAITING_HEAD: State.IN_BODY}),
    Event.END: After({State.IN_BODY: State.COMPLETE}),
    Event.REUSED: After({State.COMPLETE: State.IDLE}),
    Event.CLOSED: After(dict.fromkeys(State, State.CLOSED)),
}


class Owner(Protocol):
    """Whose connection it is: the pool of its origin. `now`: its clock, seconds."""

    now: Callable[[], float]

    def ready(self, connection: Connection) -> None:
        """It is new, or its answer is complete and it may be used again."""

    def gone(self, connection: Connection) -> None:
        """It is closed."""


class Connection(asyncio.Protocol):
    """A connection to one provider, carrying one call at a time."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._now = owner.now
        self.state = State.IDLE
        self.since = 0.0  # idle: since when; else when bytes last came, or the request was sent
        self.transport: asyncio.Transport
        self._sent: Sent | None = None
        self._parts: list[bytes] = []
        self.on_body = self._parts.append  # looked up once by the parser: no Python frame per chunk
        self._headers: list[tuple[bytes, bytes]] = []
        self._kept: dict[bytes, bytes] | None = None  # a head that was not passed on yet
        self._status = 0
        self._received = 0
        self._interim = 0
        self._keep_alive = False
        self._until_close = False
        self._paused = False
        self._held = b""
        self._messages: EventStreamDecoder | None = None  # of a stream in AWS's framing
        self._unfinished = 0  # bytes of a message of it that the call was told of
        self._refused: list[bytes] | None = None  # the body of an error, for our eyes only
        self._refused_headers: dict[bytes, bytes] = {}
        self._refused_bytes = 0
        self._parser = httptools.HttpResponseParser(self)

    def usable(self) -> bool:
        """Return whether a request may be written to it."""
        return self.state is State.IDLE and not self.transport.is_closing()

    def begin(self, sent: Sent, now: float) -> None:
        """`sent` is about to be written; the bytes from now on are its answer."""
        self._sent = sent
        sent.connection = self
        self.since = now
        self.state = TRANSITIONS[Event.REQUEST][self.state]
        self._received = 0
        self._interim = 0
        self._keep_alive = False  # of the answer before: one that ends with the connection would take it for its own

    def abort(self) -> None:
        """Close at once. The call on it, if any, was told before or is told by `connection_lost`."""
        self.transport.abort()

    def pause(self) -> None:
        """Stop reading."""
        if not self._paused and not self.transport.is_closing():
            self._paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        if self._paused and not self.transport.is_closing():
            self._paused = False
            self.since = self._now()
            self.transport.resume_reading()

    def enforce(self, timeouts: ProviderTimeouts, now: float) -> None:
        """End the call on it if one of its deadlines has passed."""
        sent = self._sent
        if sent is None:
            return
        if now - sent.started > timeouts.total:
            self._fail("The provider's answer took too long.", code="provider_total_timeout", status=504)
        elif self._paused:
            return
        elif self.state is State.AWAITING_HEAD and now - self.since > timeouts.first_byte:
            self._fail("The provider did not answer in time.", code="provider_timeout", status=504)
        elif self.state is not State.AWAITING_HEAD and now - self.since > timeouts.idle:
            self._fail("The provider stopped in the middle of its answer.", code="provider_idle_timeout", status=504)

    # --- asyncio.Protocol ----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._owner.ready(self)

    def data_received(self, data: bytes) -> None:
        sent = self._sent
        if sent is None:
            self.abort()  # nothing was asked
            return
        self._received += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, BrokenAnswer):
                self._fail(str(error.__context__), code="provider_bad_answer")
            elif isinstance(error, httptools.HttpParserUpgrade):
                self._fail("The provider wants to switch protocols.", code="provider_bad_answer")
            else:
                self._fail("The provider's answer is not valid HTTP.", code="provider_bad_http")
            return
        if self.state is State.AWAITING_HEAD:
            if self._received > MAX_RESPONSE_HEAD_BYTES:
                self._fail("The head of the provider's answer is too large.", code="provider_bad_answer")
            return
        if self._received > MAX_RESPONSE_BYTES:
            self._fail("The provider's answer is too large.", code="provider_answer_too_large")
            return
        self.since = self._now()
        self._pass_on(sent)

    def eof_received(self) -> None:
        """The provider will send no more: the transport closes itself, and `connection_lost` says what that means."""

    def connection_lost(self, exc: Exception | None) -> None:
        sent, self._sent = self._sent, None
        state, self.state = self.state, TRANSITIONS[Event.CLOSED][self.state]
        self._owner.gone(self)
        if sent is None or sent.call is None:
            return
        # A body without a length ends with the connection (RFC 9112 §6.3). Whether it was cut shows in its own syntax: JSON, or `[DONE]`.
        if exc is None and self._until_close and state is State.IN_BODY:
            self._finish(sent)
        else:
            sent.fail(UpstreamError("The provider broke off the connection.", code="provider_broke_off"))

    # --- httptools -----------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self.state is State.COMPLETE:
            raise BrokenAnswer("The provider sent more than one answer.")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        headers = self._headers
        self._headers = []
        status = self._status = self._parser.get_status_code()
        size = sum(len(name) + len(value) for name, value in headers) if self._received > MAX_RESPONSE_HEAD_BYTES else 0
        if len(headers) > MAX_RESPONSE_HEADERS or size > MAX_RESPONSE_HEAD_BYTES:
            raise BrokenAnswer("The head of the provider's answer is too large.")
        if status < 200:
            self._interim += 1
            if (status <= 101 and status != 100) or self._interim > MAX_INTERIM_RESPONSES:
                raise BrokenAnswer("The provider sent an interim answer that was not asked for.")
            return
        if status > 599:
            raise BrokenAnswer("The provider answered with a status that does not exist.")
        assert self._sent is not None  # data_received looked
        self._kept, self._until_close = read_head(headers, status=status, version=self._parser.get_http_version(), guard=self._sent.guard)
        self.state = TRANSITIONS[Event.HEAD][self.state]

    def on_message_complete(self) -> None:
        if self.state is not State.AWAITING_HEAD:  # else it was an interim answer
            if len(self._headers) > MAX_RESPONSE_TRAILERS:
                raise BrokenAnswer("The provider sent too many trailers.")
            self.state = TRANSITIONS[Event.END][self.state]
            self._keep_alive = self._parser.should_keep_alive()  # only true in here
        self._headers = []  # trailers are dropped (RFC 9110 §6.5.1)

    # --- from bytes to the call ----------------------------------------------------------------------------------

    def _pass_on(self, sent: Sent) -> None:
        call = sent.call
        if call is None:
            self._parts.clear()
            return  # cancelled; the connection is closing
        if self._kept is not None:
            kept = self._kept
            if self._status >= 300:
                self._refused = []
                self._refused_bytes = 0
                self._refused_headers = kept
            else:
                try:
                    kept[b"content-type"] = verify_media_type(kept, endpoint=sent.endpoint, stream=sent.stream, framing=sent.framing)
                except UpstreamError as error:
                    self._end(sent)
                    sent.fail(error)
                    return
                if sent.stream and sent.framing is Framing.AWS_EVENT_STREAM:
                    self._messages = EventStreamDecoder()
                    self._unfinished = 0
                    kept[b"content-type"] = EVENT_STREAM
                call.on_head(self._status, kept)
            self._kept = None
        parts = self._parts
        if parts:
            data = parts[0] if len(parts) == 1 else b"".join(parts)
            parts.clear()
            if self._refused is not None:
                self._refused_bytes += len(data)
                if self._refused_bytes <= MAX_ERROR_BODY_BYTES:
                    self._refused.append(data)
                else:
                    self._keep_alive = False  # enough read
                    if self.state is State.IN_BODY:
                        self.state = TRANSITIONS[Event.END][self.state]
            else:
                if self._messages is not None:
                    data = self._messages.feed(data)
                if data:
                    data, self._held = sent.guard.feed(self._held, data)
                if data and sent.call is not None:
                    call.on_data(data)
                if self._messages is not None and sent.call is not None and (self._unfinished or self._messages.held_bytes > MAX_DATA_FRAME_BYTES):
                    self._unfinished = self._messages.held_bytes
                    call.on_unfinished(self._unfinished)
                if self._messages is not None and self._messages.broken is not None and sent.call is not None:
                    broken = self._messages.broken
                    self._end(sent)
                    sent.fail(broken)
                    return
        if self.state is State.COMPLETE:
            self._finish(sent)

    def _finish(self, sent: Sent) -> None:
        """The answer is complete. The connection is given back first, so that what the owner does next may use it."""
        held, self._held = self._held, b""
        refused, self._refused = self._refused, None
        messages, self._messages = self._messages, None
        status, headers = self._status, self._refused_headers
        call, sent.call, sent.connection = sent.call, None, None
        # An answer to a request that has not wholly left may be kept alive by the provider; what it then reads as a request is no request.
        if self._keep_alive and call is not None and not self.transport.get_write_buffer_size():
            self._sent = None
            self.state = TRANSITIONS[Event.REUSED][self.state]
            self.resume()
            self._owner.ready(self)
        else:
            self._end(sent)
        if call is None:
            return
        if refused is not None:
            call.on_failure(refusal_of(status, headers, b"".join(refused), guard=sent.guard, wall=time.time()))
            return
        if held:
            call.on_data(sent.guard.last(held))
        if messages is not None:
            messages.finish()
            if messages.broken is not None:
                call.on_failure(messages.broken)
                return
        call.on_complete()

    def _fail(self, message: str, *, code: str, status: int = 502) -> None:
        sent = self._sent
        self._end(sent)
        if sent is not None:
            sent.fail(UpstreamError(message, status=status, code=code))

    def _end(self, sent: Sent | None) -> None:
        self._sent = None
        self.state = TRANSITIONS[Event.CLOSED][self.state]
        self._held = b""
        self._messages = None
        self._refused = None
        self._parts.clear()
        self.abort()
