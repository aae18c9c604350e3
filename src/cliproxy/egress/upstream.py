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
from typing import TYPE_CHECKING, Protocol, cast

import httptools

from cliproxy.bounds import (
    MAX_DATA_FRAME_BYTES,
    MAX_ERROR_BODY_BYTES,
    MAX_INTERIM_RESPONSES,
    MAX_RESPONSE_BYTES,
    MAX_RESPONSE_HEAD_BYTES,
    MAX_RESPONSE_HEADERS,
    MAX_RESPONSE_TRAILERS,
)
from cliproxy.dialects import Endpoint
from cliproxy.egress.answers import refusal_of, verify_media_type
from cliproxy.egress.head import BrokenAnswer, read_head
from cliproxy.egress.reflection import ReflectionGuard
from cliproxy.errors import CliproxyError, UpstreamError
from cliproxy.formats.event_stream import EventStreamDecoder
from cliproxy.providers.facts import EVENT_STREAM, Framing

if TYPE_CHECKING:
    from cliproxy.config.schema import ProviderTimeouts
    from cliproxy.egress.pool import Lane, Pool


class UpstreamCall(Protocol):
    """Who sent a request. Nothing is called after `on_complete`, `on_failure` or the owner's own `cancel()`."""

    def on_head(self, status: int, headers: dict[bytes, bytes]) -> None:
        """A successful answer begins; headers by allow-list, names in lower case."""

    def on_data(self, data: bytes) -> None:
        """Some of its body, at most what one read brings (256 KiB)."""

    def on_unfinished(self, size: int) -> None:
        """So many bytes of a message in AWS's framing are held until it is whole; 0: none any more."""

    def on_complete(self) -> None:
        """The body is complete."""

    def on_failure(self, error: CliproxyError) -> None:
        """`UpstreamError` (a `ProviderRefusal` if the provider said so itself) or `Unavailable`. May come after data."""


class Sent:
    """A request on its way, for its owner to cancel or to hold back. `may_have_left`: bytes of it were given to a connection."""

    __slots__ = ("_pool", "body", "call", "connection", "endpoint", "framing", "guard", "head", "lane", "may_have_left", "started", "stream")

    def __init__(
        self,
        call: UpstreamCall,
        pool: Pool,
        lane: Lane,
        guard: ReflectionGuard,
        stream: bool,
        head: bytes,
        body: bytes,
        started: float,
        endpoint: Endpoint = Endpoint.CHAT_COMPLETIONS,
        framing: Framing = Framing.SSE,
    ) -> None:
        self.call: UpstreamCall | None = call
        self._pool = pool
        self.lane = lane
        self.guard = guard
        self.stream = stream
        self.endpoint = endpoint
        self.framing = framing
        self.head = head
        self.body = body
        self.started = started
        self.connection: Connection | None = None
        self.may_have_left = False

    def cancel(self) -> None:
        """End the call: its connection is closed, which is how the provider learns of it. Idempotent; no callback follows."""
        self.call = None
        if self.connection is not None:
            self.connection.abort()
        else:
            self._pool.forget_waiting(self)

    def pause_reading(self) -> None:
        """Take no more bytes from the provider for now. Idle time does not count while paused."""
        if self.connection is not None:
            self.connection.pause()

    def resume_reading(self) -> None:
        """Take bytes again."""
        if self.connection is not None:
            self.connection.resume()

    def fail(self, error: CliproxyError) -> None:
        """End the call with `error`; nothing if it has ended."""
        call, self.call, self.connection = self.call, None, None
        if call is not None:
            call.on_failure(error)


class Connection(asyncio.Protocol):
    """A connection to one provider, carrying one call at a time."""

    def __init__(self, pool: Pool, lane: Lane) -> None:
        self._pool = pool
        self._now = pool.now
        self.lane = lane
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
        self._answering = False  # the final head is in
        self._complete = False
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
        return self._sent is None and not self.transport.is_closing()

    def begin(self, sent: Sent, now: float) -> None:
        """`sent` is about to be written; the bytes from now on are its answer."""
        self._sent = sent
        sent.connection = self
        self.since = now
        self._received = 0
        self._interim = 0
        self._answering = False
        self._complete = False

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
        elif not self._answering and now - self.since > timeouts.first_byte:
            self._fail("The provider did not answer in time.", code="provider_timeout", status=504)
        elif self._answering and now - self.since > timeouts.idle:
            self._fail("The provider stopped in the middle of its answer.", code="provider_idle_timeout", status=504)

    # --- asyncio.Protocol ----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._pool.ready(self)

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
        if not self._answering:
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
        self._pool.gone(self)
        if sent is None or sent.call is None:
            return
        # A body without a length ends with the connection (RFC 9112 §6.3). Whether it was cut shows in its own syntax: JSON, or `[DONE]`.
        if exc is None and self._until_close and self._answering and not self._complete:
            self._finish(sent)
        else:
            sent.fail(UpstreamError("The provider broke off the connection.", code="provider_broke_off"))

    # --- httptools -----------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._complete:
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
        self._answering = True

    def on_message_complete(self) -> None:
        if self._answering:
            if len(self._headers) > MAX_RESPONSE_TRAILERS:
                raise BrokenAnswer("The provider sent too many trailers.")
            self._complete = True
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
                    self._complete, self._keep_alive = True, False  # enough read
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
        if self._complete:
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
            self.resume()
            self._pool.ready(self)
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
        self._held = b""
        self._messages = None
        self._refused = None
        self._parts.clear()
        self.abort()
