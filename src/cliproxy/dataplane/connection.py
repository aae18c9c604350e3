"""One client connection: its state, its deadline, what waits to be sent. `dataplane.server` says what always holds.

HANDSHAKE ──> READING ──> BUSY ──> READING …      BUSY: the exchange owes an answer
                 └─ refused ──> LINGER            the answer is out; input is discarded so that a reset does not overtake it (RFC 9112 §9.6)
any ──> CLOSED                                    nothing is sent or delivered any more
"""

from __future__ import annotations

import asyncio
import http
import math
from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from cliproxy.bounds import LINGER_BYTES, LINGER_SECONDS, MAX_UNSENT_BYTES, MIN_READER_BYTES, PIPELINE_BYTES, WRITE_HIGH_WATER_BYTES
from cliproxy.errors import CliproxyError, FramingError, NotPermitted, RateLimited, Unavailable
from cliproxy.ingress.address import Address, IpAddress, parse_address
from cliproxy.ingress.framing import Framer, Phase, RawRequest

if TYPE_CHECKING:
    from cliproxy.dataplane.server import Server
    from cliproxy.limits.shared import Slot

_STATUS_LINES: Final = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in http.HTTPStatus}
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_CLOSE: Final = b"Connection: close\r\n"
_CHUNKED: Final = b"Transfer-Encoding: chunked\r\n"
_LAST_CHUNK: Final = b"0\r\n\r\n"
_BODILESS: Final = frozenset({204, 304})  # RFC 9110 §6.4.1


class State(IntEnum):
    """What the connection is doing; the picture is in the module's docstring."""

    HANDSHAKE = 0
    READING = 1
    BUSY = 2
    LINGER = 3
    CLOSED = 4


class Verdict(IntEnum):
    """What becomes of a new connection: served, answered with 403, or closed."""

    SERVE = 0
    REFUSE = 1
    CLOSE = 2


class Connection(asyncio.Protocol):
    """A client's connection.

    `address` and `ip` are the client's, normalised; `secure` says whether it is TLS. `paused`: the client does not read, send no more than a bounded
    buffer. `call` is the exchange's own, for whatever belongs to the request under way. Answers to a connection that is gone are dropped.
    """

    __slots__ = (
        "_body",
        "_chunked",
        "_counted",
        "_deadline",
        "_dirty",
        "_ending",
        "_framer",
        "_held",
        "_keep_alive",
        "_lingered",
        "_omits_body",
        "_out",
        "_phase",
        "_reading_paused",
        "_server",
        "_serving",
        "_stall_deadline",
        "_stall_mark",
        "_state",
        "_streaming",
        "_transport",
        "_unsent",
        "address",
        "call",
        "client",
        "ip",
        "paused",
        "prepaid",
        "secure",
        "slot",
    )

    _transport: asyncio.Transport
    client: Address
    address: str
    ip: IpAddress

    def __init__(self, server: Server) -> None:
        limits = server.limits
        self._server = server
        self._framer = Framer(max_head_bytes=limits.max_head_bytes, max_headers=limits.max_headers, max_body_bytes=limits.max_body_bytes)
        self._state = State.HANDSHAKE
        self._phase = Phase.BETWEEN
        self._deadline = server.after(limits.head_timeout_seconds)
        self._out: list[bytes] = []
        self._body: list[bytes] = []  # of a stream: what the next chunk will hold
        self._unsent = 0  # bytes in both, counted while streaming
        self._dirty = False
        self._ending: Callable[[], None] | None = None  # called after the last write
        self._keep_alive = True
        self._omits_body = False
        self._streaming = False
        self._chunked = False
        self._serving = False
        self._reading_paused = False
        self._counted = False
        self._held = 0
        self._lingered = 0
        self._stall_mark = 0
        self._stall_deadline = math.inf
        self.secure = False
        self.paused = False
        self.prepaid = False
        self.slot: Slot | None = None
        self.call: object = None

    # --- what the exchange calls ---

    def respond(self, status: int, headers: bytes, body: bytes) -> None:
        """Send a whole answer to the request under way. `headers`: encoded lines, each with its CRLF. Adds Content-Length, Connection, Date, security."""
        if not self._may_answer():
            return
        if status in _BODILESS:
            self._open_answer(status, headers)
        else:
            self._open_answer(status, headers, b"Content-Length: %d\r\n" % len(body))
            if not self._omits_body:
                self._out.append(body)
        self._answered()

    def start_stream(self, status: int, headers: bytes) -> None:
        """Begin an answer of unknown length: chunked, or delimited by the connection's end for HTTP/1.0. `end_stream` or `abort` must follow."""
        if not self._may_answer():
            return
        self._streaming = True
        if self._chunked:
            self._open_answer(status, headers, _CHUNKED)
        else:
            self._keep_alive = False
            self._open_answer(status, headers)
        self._mark_dirty()

    def write_chunk(self, data: bytes) -> None:
        """Add to the stream. What one loop turn adds leaves as one chunk in one write. A client that let too much pile up is aborted."""
        if not self._streaming or not data or self._omits_body or self._state is not State.BUSY:
            return
        self._body.append(data)
        self._unsent += len(data)
        if self._unsent > MAX_UNSENT_BYTES and self.paused:
            self.drop()
        else:
            self._mark_dirty()

    def end_stream(self) -> None:
        """The stream is complete; the connection goes on with its next request."""
        if not self._streaming or self._state is not State.BUSY:
            return
        self._seal_chunk()
        if self._chunked and not self._omits_body:
            self._out.append(_LAST_CHUNK)
        self._answered()

    def abort(self) -> None:
        """Break the connection off, so that the client can't take what it has for the whole answer. The exchange is not told: it knows."""
        self._state = State.CLOSED
        self._transport.abort()

    # --- what the transport calls ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Step 1: judge the address; over TLS the handshake follows only then."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        try:
            peer = transport.get_extra_info("peername")
            self.client = client = parse_address(peer[0])
        except (TypeError, IndexError, ValueError):  # gone before we looked
            self._state = State.CLOSED
            transport.abort()
            return
        self.address = client.text
        self.ip = client.ip
        server = self._server
        verdict = server.admit(self, client)
        if verdict is Verdict.CLOSE:
            self._state = State.CLOSED
            transport.abort()
            return
        self._counted = True
        if verdict is Verdict.REFUSE:
            transport.set_write_buffer_limits(high=WRITE_HIGH_WATER_BYTES)
            self._refuse(NotPermitted("Your address may not connect here.", code="address_not_permitted"))
            self.flush()
        elif server.tls is not None:
            server.shake_hands(self, transport)
        else:
            self.opened(transport, secure=False)

    def opened(self, transport: asyncio.Transport, *, secure: bool) -> None:
        """The connection carries HTTP from now on; `transport` is the TLS one when `secure`."""
        self._transport = transport
        transport.set_write_buffer_limits(high=WRITE_HIGH_WATER_BYTES)
        self.secure = secure
        self._state = State.READING
        self._deadline = self._server.after(self._server.limits.head_timeout_seconds)
        if self._framer.unread:  # came with the end of the handshake
            self._serve()

    def data_received(self, data: bytes) -> None:
        """Bytes of the client."""
        server = self._server
        server.collecting = True
        try:
            state = self._state
            if state is State.READING:
                self._framer.feed(data)
                self._serve()
            elif state is State.BUSY:
                self._framer.feed(data)
                if self._framer.unread > PIPELINE_BYTES and not self._reading_paused:
                    self._reading_paused = True
                    self._transport.pause_reading()
            elif state is State.LINGER:
                self._lingered += len(data)
                if self._lingered > LINGER_BYTES:
                    self.abort()
            elif state is State.HANDSHAKE:
                # Decrypted bytes that overtook the news that the handshake is done. Before it began nothing may come: never read TLS's port as clear text.
                self._framer.feed(data)
                if not self.secure or self._framer.unread > PIPELINE_BYTES:
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
        if self._counted:
            self._counted = False
            self._server.forget(self, self.client)
        self._release()
        self._framer.close()
        self._out.clear()
        self._body.clear()

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
        if self._out or self._body:
            self._mark_dirty()
        if self._state is State.BUSY:
            self._tell(self._server.exchange.on_writable)
        elif self._state is State.READING:
            try:
                self._serve()
            except Exception as error:  # noqa: BLE001 - as in data_received
                self.failed(error)

    # --- what the server calls ---

    @property
    def state(self) -> State:
        """What the connection is doing."""
        return self._state

    def sweep(self, now: float) -> None:
        """Act on a deadline that has passed."""
        if self._deadline <= now:
            self._expire()
        elif self._stall_deadline <= now:
            size = self._transport.get_write_buffer_size()
            if size > self._stall_mark - MIN_READER_BYTES:
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
        if self._body:
            self._seal_chunk()
        out = self._out
        if out:
            data = out[0] if len(out) == 1 else b"".join(out)
            out.clear()
            self._unsent = 0
            self._transport.write(data)
        if self._ending is not None:
            self._ending()
            self._ending = None
            self._watch_reader()

    def failed(self, error: BaseException) -> None:
        """Code of ours raised: close this connection, report, go on."""
        self._server.report_fault(error)
        self.drop()

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
        finally:
            self._serving = False

    def _begin(self, request: RawRequest) -> None:
        server = self._server
        self._state = State.BUSY
        self._phase = Phase.BETWEEN
        self._deadline = math.inf
        self._keep_alive = request.keep_alive and not server.draining
        self._chunked = not request.http_1_0
        self._omits_body = request.method == b"HEAD"
        try:
            server.exchange.on_request(self, request)
        except CliproxyError as error:
            if self._streaming or self._state is not State.BUSY:
                raise
            self.respond(*server.encode_error(error))

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
            wait = server.prepay(self)
            if wait is not None:
                self._refuse(RateLimited("Too many requests from your address.", retry_after=wait))
                return
        if phase is Phase.BODY:
            if framer.wants_continue:
                framer.wants_continue = False
                self._out.append(_CONTINUE)
                self._mark_dirty()
            server.held += framer.held - self._held
            self._held = framer.held
            if server.is_overloaded:
                self._refuse(Unavailable("The gateway holds more request bodies than it may; try again in a moment.", code="overloaded"))

    def _expire(self) -> None:
        server = self._server
        if self._state is State.READING:
            if self._phase is not Phase.BETWEEN:
                self._refuse(FramingError("The request did not arrive in time.", status=408))
                server.flush_dirty()
            elif not self.paused:
                self._state = State.LINGER
                self._deadline = server.after(LINGER_SECONDS)
                self._transport.close()
        elif self._state is State.LINGER and (self.paused or self._transport.get_write_buffer_size()):
            self._deadline = server.after(LINGER_SECONDS)  # the answer is still on its way; `_watch_reader` bounds that
        else:
            self.drop()

    def _watch_reader(self) -> None:
        """Start over with the time in which the client must read something, if anything waits for it."""
        self._stall_mark = self._transport.get_write_buffer_size()
        waits = self.paused or (self._state is State.LINGER and self._stall_mark > 0)
        self._stall_deadline = self._server.after(self._server.limits.stalled_reader_seconds) if waits else math.inf

    def _refuse(self, error: CliproxyError) -> None:
        """Answer a request that is not whole, then close: what follows has no meaning."""
        self._keep_alive = False
        self._omits_body = False
        self._framer.close()
        self._release()
        status, headers, body = self._server.encode_error(error)
        self._open_answer(status, headers, b"Content-Length: %d\r\n" % len(body))
        self._out.append(body)
        self._linger()

    def _linger(self, *, close: bool = False) -> None:
        """Nothing is sent after what waits. Then the client has `LINGER_SECONDS` to close first."""
        self._state = State.LINGER
        self._deadline = self._server.after(LINGER_SECONDS)
        transport = self._transport
        if not self.secure:  # TLS knows no half-closed connection
            self._ending = transport.write_eof
        elif close:
            self._ending = transport.close
        self._mark_dirty()

    # --- writing ---

    def _may_answer(self) -> bool:
        if self._state is not State.BUSY:
            if self._state is State.CLOSED:
                return False
            self.failed(RuntimeError("an answer without a request"))
            return False
        if self._streaming:
            self.failed(RuntimeError("a second answer to one request"))
            return False
        return True

    def _open_answer(self, status: int, headers: bytes, framing: bytes = b"") -> None:
        self._out.append(
            (_STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status)
            + self._server.common_headers(secure=self.secure)
            + headers
            + framing
            + (b"\r\n" if self._keep_alive else _CLOSE + b"\r\n")
        )

    def _seal_chunk(self) -> None:
        """Move the stream's bytes of this turn to what is sent, as one chunk."""
        body = self._body
        if not body:
            return
        if self._chunked:
            self._out.append(b"%x\r\n" % sum(map(len, body)))
            body.append(b"\r\n")
        self._out += body
        body.clear()

    def _answered(self) -> None:
        """The request under way has its whole answer."""
        self._streaming = False
        self._unsent = 0
        self.call = None
        self.prepaid = False
        self._release()
        if not self._keep_alive:
            self._linger(close=True)
            return
        self._mark_dirty()
        self._state = State.READING
        self._deadline = self._server.after(self._server.limits.idle_timeout_seconds)
        if self._reading_paused:
            self._reading_paused = False
            self._transport.resume_reading()
        if self._framer.unread and not self._serving:
            try:
                self._serve()
            except Exception as error:  # noqa: BLE001 - as in data_received; the caller is another connection's turn
                self.failed(error)

    def _mark_dirty(self) -> None:
        if not self._dirty:
            self._dirty = True
            self._server.mark_dirty(self)

    # --- ending ---

    def drop(self) -> None:
        """Break off, and tell the exchange if it owes an answer."""
        self._gone()
        self._transport.abort()

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
            self._state = State.CLOSED
            self._transport.abort()

    def _release(self) -> None:
        self._server.held -= self._held
        self._held = 0
