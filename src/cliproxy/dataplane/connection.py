"""One client connection: its state, its deadline, its answers. `dataplane.server` says what always holds. Its states:

    READING ──> BUSY ──> READING …     BUSY: the exchange owes an answer
       └─ refused, or last ──> LINGER  the answer is out; input is discarded so that a reset does not overtake it (RFC 9112 §9.6)
    any ──> CLOSED                     nothing is sent or delivered any more

Answers to a connection that is gone are dropped.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING, Final, cast

from cliproxy.bounds import (
    LINGER_BYTES,
    LINGER_SECONDS,
    MAX_STRANGERS_BODY_BYTES,
    MAX_UNREAD_BYTES,
    MAX_UNSENT_BYTES,
    MIN_READER_BYTES,
    PIPELINE_BYTES,
    WRITE_HIGH_WATER_BYTES,
)
from cliproxy.dataplane.outbox import CHUNKED, CLOSE, CONTINUE, Outbox
from cliproxy.errors import CliproxyError, FramingError, Unavailable
from cliproxy.ingress.address import Address
from cliproxy.ingress.framing import Framer, Phase, RawRequest

if TYPE_CHECKING:
    from cliproxy.dataplane.server import Server
    from cliproxy.ingress.rules.address_rate import Buckets

_BODILESS: Final = frozenset({204, 304})  # RFC 9110 §6.4.1


class State(IntEnum):
    """What the connection is doing; the picture is in the module's docstring."""

    READING = 0
    BUSY = 1
    LINGER = 2
    CLOSED = 3


class Connection(asyncio.Protocol):
    """A client's connection.

    `address` and `ip` are the client's, normalised; `secure` says whether it is TLS. `paused`: the client does not read, send no more than a bounded
    buffer. `call` and `presented` are the exchange's own: what belongs to the request under way, and to the connection.
    """

    __slots__ = (
        "_counted",
        "_deadline",
        "_dirty",
        "_ending",
        "_framer",
        "_held",
        "_keep_alive",
        "_lingered",
        "_omits_body",
        "_outbox",
        "_phase",
        "_reading_paused",
        "_server",
        "_serving",
        "_stall_deadline",
        "_stall_mark",
        "_state",
        "_streaming",
        "_transport",
        "_unread",
        "_vetted",
        "address",
        "buckets",
        "call",
        "client",
        "ip",
        "paused",
        "prepaid",
        "presented",
        "secure",
    )

    _transport: asyncio.Transport

    def __init__(self, server: Server, client: Address, *, secure: bool, buckets: Buckets | None) -> None:
        """The server admitted `client` and counts it until `forget`. `buckets`: where its address's are."""
        limits = server.limits
        self._server = server
        self._framer = Framer(max_head_bytes=limits.max_head_bytes, max_headers=limits.max_headers, max_body_bytes=limits.max_body_bytes)
        self._outbox = Outbox()
        self._state = State.READING
        self._phase = Phase.BETWEEN
        self._deadline = server.after(limits.head_timeout_seconds)
        self._stall_deadline = math.inf
        self._stall_mark = 0
        self._unread = 0  # bytes that were written and wait for the client
        self._dirty = False
        self._ending: Callable[[], None] | None = None  # called after the last write
        self._keep_alive = True
        self._omits_body = False
        self._streaming = False
        self._serving = False
        self._vetted = False
        self._reading_paused = False
        self._counted = True
        self._held = 0
        self._lingered = 0
        self.client = client
        self.address = client.text
        self.ip = client.ip
        self.secure = secure
        self.buckets = buckets
        self.paused = False
        self.prepaid = False
        self.call: object = None
        self.presented: object = None

    # --- what the exchange calls ---

    def authenticated(self, presented: object) -> None:
        """A key is good on this connection, `presented`: from now on it is no stranger's, who give way first when there is no room."""
        self.presented = presented
        if self._counted:
            self._server.authenticated(self)

    def respond(self, status: int, headers: bytes, body: bytes) -> None:
        """Send a whole answer to the request under way. `headers`: encoded lines, each with its CRLF. Adds Content-Length, Connection, Date, security."""
        if not self._may_answer():
            return
        if status in _BODILESS:
            self._open_answer(status, headers, b"")
        else:
            self._open_answer(status, headers, b"Content-Length: %d\r\n" % len(body))
            if body and not self._omits_body:
                self._outbox.append(body)
        self._answered()

    def start_stream(self, status: int, headers: bytes) -> None:
        """Begin an answer of unknown length: chunked, or delimited by the connection's end for HTTP/1.0. `end_stream` or `abort` must follow."""
        if not self._may_answer():
            return
        self._streaming = True
        self._open_answer(status, headers, CHUNKED if self._outbox.chunked else b"")

    def write_chunk(self, data: bytes) -> None:
        """Add to the stream. What one loop turn adds leaves as one chunk in one write. A client that let too much pile up is dropped."""
        if not self._streaming or not data or self._omits_body or self._state is not State.BUSY:
            return
        self._outbox.stream(data)
        if self._outbox.size > MAX_UNSENT_BYTES and self.paused:
            self.drop()
        elif not self._dirty:
            self._mark_dirty()

    def end_stream(self) -> None:
        """The stream is complete; the connection goes on with its next request."""
        if not self._streaming or self._state is not State.BUSY:
            return
        self._outbox.end_stream(omits_body=self._omits_body)
        self._answered()

    def abort(self) -> None:
        """Break the connection off, so that the client can't take what it has for the whole answer. The exchange is not told: it knows."""
        self._state = State.CLOSED
        self._outbox.clear()
        self._transport.abort()

    # --- what the transport calls ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection carries HTTP from now on; over TLS, its handshake is done."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance
        self._transport.set_write_buffer_limits(high=WRITE_HIGH_WATER_BYTES)
        self._deadline = self._server.after(self._server.limits.head_timeout_seconds)
        self._server.remember(self)

    def data_received(self, data: bytes) -> None:
        """Bytes of the client."""
        server = self._server
        server.collecting = True
        try:
            state = self._state
            if state is State.READING:
                self._framer.feed(data)
                self._serve()
                if self.paused:
                    self._bound_unread()
            elif state is State.BUSY:
                self._framer.feed(data)
                self._bound_unread()
            elif state is State.LINGER:
                self._lingered += len(data)
                if self._lingered > LINGER_BYTES:
                    self.abort()
        except Exception as error:  # noqa: BLE001 - a bug in one connection's code closes that connection and no other
            self.failed(error)
        server.flush_dirty()

    def eof_received(self) -> None:
        """The client sends no more. Most are gone then; who half-closes and still waits is not told apart (nor does nginx). The transport closes."""
        self._gone()

    def connection_lost(self, exc: BaseException | None) -> None:
        """The transport is closed; nothing more is called."""
        self._gone()
        self._uncount()
        self._hold(0)
        self._count_unread(0)
        self._framer.close()
        self._outbox.clear()
        self._ending = None

    def pause_writing(self) -> None:
        """The client reads more slowly than we write."""
        self.paused = True
        self._watch_reader()
        if self._state is State.BUSY:
            self._tell(self._server.exchange.on_paused)

    def resume_writing(self) -> None:
        """The client has caught up."""
        self.paused = False
        self._watch_reader()
        if (self._outbox or self._ending is not None) and not self._dirty:
            self._mark_dirty()
        if self._state is State.BUSY:
            self._tell(self._server.exchange.on_writable)
        elif self._state is State.READING:
            if self._phase is Phase.BETWEEN:
                self._deadline = self._server.after(self._server.limits.idle_timeout_seconds)
            self._serve_on()

    # --- what the server calls ---

    @property
    def state(self) -> State:
        """What the connection is doing."""
        return self._state

    @property
    def is_crowded(self) -> bool:
        """Whether the worker holds so much for slow clients that no large answer may be added."""
        return self._server.unread > MAX_UNREAD_BYTES

    def sweep(self, now: float) -> None:
        """Act on a deadline that has passed."""
        if self._deadline <= now:
            self._expire()
        elif self._stall_deadline <= now:
            if self._transport.get_write_buffer_size() > self._stall_mark - MIN_READER_BYTES:
                self.drop()
            else:
                self._watch_reader()

    def drain(self, deadline: float) -> None:
        """Keep the connection until `deadline` at most if it is idle; the answer under way will be its last."""
        self._keep_alive = False
        if self._state is State.READING and self._phase is Phase.BETWEEN:
            self._deadline = min(self._deadline, deadline)

    def flush(self) -> None:
        """Hand everything that waits to the transport, in one write."""
        self._dirty = False
        if self.paused or self._state is State.CLOSED:
            return
        if self._outbox:
            data = self._outbox.take()
            self._transport.write(data)
            if self.paused:
                self._count_unread(len(data))  # uvloop keeps all of it until the last byte has left
        if self._ending is not None:
            ending, self._ending = self._ending, None
            ending()
            self._watch_reader()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way, nor waits to be read or written."""
        return self._state is State.READING and self._phase is Phase.BETWEEN and not (self.paused or self._outbox or self._framer.unread)

    def give_way(self) -> None:
        """End, so that somebody else has room. It counts no more when this returns."""
        self._server.end(self)
        self._uncount()

    def failed(self, error: BaseException) -> None:
        """Code of ours raised: close this connection, report, go on."""
        self._server.report_fault(error)
        self.drop()

    def drop(self) -> None:
        """Break off, and tell the exchange if it owes an answer."""
        self._gone()
        self._outbox.clear()
        self._transport.abort()

    # --- reading ---

    def _serve(self) -> None:
        """Hand requests to the exchange, one at a time, until one is under way or more bytes are needed."""
        if self._serving:
            return  # an answer given inside `on_request`; the loop below goes on
        self._serving = True
        try:
            framer = self._framer
            while self._state is State.READING and not self.paused:
                try:
                    request = framer.next_request()
                except FramingError as error:
                    self._refuse(error)
                    return
                if request is None:
                    if framer.phase is not Phase.BETWEEN:
                        self._await_rest()
                    return
                self._begin(request)
                if self._outbox.size >= WRITE_HIGH_WATER_BYTES:
                    self.flush()  # and learn whether the client reads, before the next request is begun
        finally:
            self._serving = False

    def _serve_on(self) -> None:
        """Go on reading, with what was read before first, outside of this connection's own turn."""
        if self._reading_paused:
            self._reading_paused = False
            self._transport.resume_reading()
        if self._framer.unread:
            try:
                self._serve()
            except Exception as error:  # noqa: BLE001 - as in data_received
                self.failed(error)

    def _bound_unread(self) -> None:
        """Stop reading when too much waits behind what is under way."""
        unread = self._framer.unread
        self._hold(unread)
        if unread > PIPELINE_BYTES and not self._reading_paused:
            self._reading_paused = True
            self._transport.pause_reading()

    def _begin(self, request: RawRequest) -> None:
        server = self._server
        self._state = State.BUSY
        self._phase = Phase.BETWEEN
        self._deadline = math.inf
        self._keep_alive = request.keep_alive and not server.draining
        self._outbox.chunked = not request.http_1_0
        self._omits_body = request.method == b"HEAD"
        try:
            server.exchange.on_request(self, request)
        except CliproxyError as error:
            if self._streaming or self._state is not State.BUSY:
                raise
            self.respond(*server.encode_error(error, request))

    def _await_rest(self) -> None:
        """Part of a request is there: set its deadline, take its toll, count what we hold."""
        server = self._server
        framer = self._framer
        phase = framer.phase
        if phase is not self._phase:
            self._phase = phase
            if phase is Phase.HEAD:
                self._deadline = server.after(server.limits.head_timeout_seconds)
                return
            self._deadline = server.after(server.limits.body_timeout_seconds)
            if not self._ask(server.exchange.on_body):
                return
            self._vetted = False
        if phase is Phase.BODY:
            if not self._vetted and (framer.wants_continue or framer.expected > MAX_STRANGERS_BODY_BYTES) and not self._vet():
                return
            if framer.wants_continue:
                framer.wants_continue = False
                self._outbox.append(CONTINUE)
                self._mark_dirty()
            self._hold(framer.held)
            if server.is_overloaded:
                self._refuse(Unavailable("The gateway holds more request bodies than it may; try again in a moment.", code="overloaded"))

    def _vet(self) -> bool:
        """Say whether the request under way may send the rest of its body, which strangers may not make us hold; answer it if not."""
        self._vetted = self._ask(self._server.exchange.on_head)
        return self._vetted

    def _ask(self, rule: Callable[[Connection, RawRequest], None]) -> bool:
        """Say whether the request whose body is still to come may go on; answer it if not."""
        request = self._framer.announced
        if request is not None:
            try:
                rule(self, request)
            except CliproxyError as error:
                self._refuse(error)
                return False
        return True

    def _hold(self, count: int) -> None:
        """Account for `count` bytes of bodies and of what waits behind them."""
        self._server.held += count - self._held
        self._held = count

    def _refuse(self, error: CliproxyError) -> None:
        """Answer a request that is not whole, then close: what follows has no meaning."""
        self._keep_alive = False
        seen = self._framer.glimpse
        self._framer.close()
        self._hold(0)
        status, headers, body = self._server.encode_error(error, seen)
        self._open_answer(status, headers, b"Content-Length: %d\r\n" % len(body))
        self._outbox.append(body)
        self._linger(close=False)

    def _count_unread(self, count: int) -> None:
        """Account for `count` bytes that wait for the client."""
        self._server.unread += count - self._unread
        self._unread = count

    # --- writing ---

    def _may_answer(self) -> bool:
        if self._state is State.BUSY and not self._streaming:
            return True
        if self._state is not State.CLOSED:
            self.failed(RuntimeError("an answer without a request, or a second one"))
        return False

    def _open_answer(self, status: int, headers: bytes, framing: bytes) -> None:
        if not self._keep_alive or not (self._outbox.chunked or framing):
            self._keep_alive = False
            framing += CLOSE
        self._outbox.open(status, self._server.common_headers(secure=self.secure), headers, framing)
        if not self._dirty:
            self._mark_dirty()

    def _answered(self) -> None:
        """The request under way has its whole answer."""
        self._streaming = False
        self.call = None
        self.prepaid = False
        self._hold(0)
        if not self._keep_alive:
            self._linger(close=True)
            return
        if not self._dirty:
            self._mark_dirty()
        self._state = State.READING
        self._deadline = self._server.after(self._server.limits.idle_timeout_seconds)
        if not self._serving:
            self._serve_on()

    def _linger(self, *, close: bool) -> None:
        """Nothing is sent after what waits; the client has `LINGER_SECONDS` to close. `close`: it is not in the middle of sending."""
        self._state = State.LINGER
        self._deadline = self._server.after(LINGER_SECONDS)
        if not self.secure:
            self._ending = self._transport.write_eof
        elif close:
            self._ending = self._transport.close  # TLS knows no half-closed connection
        if self._reading_paused:
            self._reading_paused = False
            self._transport.resume_reading()
        if not self._dirty:
            self._mark_dirty()

    def _mark_dirty(self) -> None:
        self._dirty = True
        self._server.mark_dirty(self)

    # --- time and ending ---

    def _uncount(self) -> None:
        if self._counted:
            self._counted = False
            self._server.forget(self)

    def _expire(self) -> None:
        server = self._server
        if self._state is State.READING and self._phase is not Phase.BETWEEN:
            self._refuse(FramingError("The request did not arrive in time.", status=408))
            server.flush_dirty()
        elif self._state is State.READING:
            if self.paused or self._outbox:
                self._deadline = server.after(LINGER_SECONDS)  # not idle: it still has an answer to read
            else:
                self._state = State.LINGER
                self._deadline = server.after(LINGER_SECONDS)
                self._transport.close()
                self._watch_reader()  # the last answer may still be on its way, to somebody who reads nothing
        elif self._state is State.LINGER and (self.paused or self._transport.get_write_buffer_size()):
            self._deadline = server.after(LINGER_SECONDS)  # the answer is still on its way; `_watch_reader` bounds that
        else:
            self.drop()

    def _watch_reader(self) -> None:
        """Start over with the time in which the client must read something, if anything waits for it."""
        self._stall_mark = self._transport.get_write_buffer_size()
        waits = self.paused or (self._state is State.LINGER and self._stall_mark > 0)
        if not waits:
            self._count_unread(0)
        self._stall_deadline = self._server.after(self._server.limits.stalled_reader_seconds) if waits else math.inf

    def _gone(self) -> None:
        state, self._state = self._state, State.CLOSED
        self._deadline = self._server.after(self._server.limits.stalled_reader_seconds)  # for the transport to get rid of what it has
        if state is State.BUSY:
            self._tell(self._server.exchange.on_client_gone)

    def _tell(self, what: Callable[[Connection], None]) -> None:
        try:
            what(self)
        except Exception as error:  # noqa: BLE001 - as in data_received
            self._server.report_fault(error)
            self.abort()
