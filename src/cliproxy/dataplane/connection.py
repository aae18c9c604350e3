"""One client connection: its state, its deadline, its answers. `dataplane.server` says what always holds; `dataplane.states` is the table of its states.

    IDLE ─ HEAD ─ BODY ─ VETTED ──> ASKED ─ STREAMING ──> IDLE …     asked: the exchange owes an answer
                     └─ refused, or last ──> LINGERING               the answer is out; what the client sends is discarded
    any ──> CLOSED                                                   nothing is sent or delivered any more

Its parts: `Intake` reads; `Answering` and its `Outbox` answer; `Unread` keeps account of what the client does not read. Answers to a connection that is gone
are dropped.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Final, cast

from cliproxy.bounds import KIB, MIB, PIPELINE_BYTES
from cliproxy.dataplane.answering import Answering
from cliproxy.dataplane.host import Client, Host
from cliproxy.dataplane.intake import Intake
from cliproxy.dataplane.outbox import CONTINUE
from cliproxy.dataplane.rooms import Account
from cliproxy.dataplane.states import TRANSITIONS, Event, State
from cliproxy.dataplane.unread import Unread
from cliproxy.errors import CliproxyError, FramingError, Unavailable
from cliproxy.ingress.address import Address
from cliproxy.ingress.framing import Framer, Phase, RawRequest
from cliproxy.ingress.rules.address_rate import Buckets

WRITE_HIGH_WATER_BYTES = 64 * KIB  # asyncio's default
LINGER_SECONDS = 2.0  # after an error answer input is discarded this long, so that a reset does not overtake the answer (RFC 9112 §9.6)
LINGER_BYTES = 16 * MIB

LISTEN_SECONDS: Final = 5.0  # between two reads of a socket on which enough waits behind the call under way, to notice that the client leaves
MAX_PIPELINED_BYTES: Final = 1024 * 1024  # what is read for that; who sends more and leaves is noticed with the call's end
_UNSENT_BYTES: Final = 1  # that the transport may hold before `paused` says so: then nobody need ask it

_IDLE, _HEAD, _BODY, _VETTED, _ASKED, _STREAMING, _LINGERING, _CLOSED = State


class Connection(Answering, asyncio.Protocol):
    """A client's connection. `host.Client` says what the exchange may do with it; `secure` whether it is TLS."""

    __slots__ = (
        "_counted",
        "_framer",
        "_intake",
        "_lingered",
        "_serving",
        "account",
        "address",
        "buckets",
        "call",
        "client",
        "ip",
        "prepaid",
        "presented",
    )

    def __init__(self, host: Host[Connection], client: Address, *, secure: bool, buckets: Buckets | None) -> None:
        """The host admitted `client` and counts it until `forget`. `buckets`: where its address's are."""
        limits = host.limits
        self.account = host.strangers
        super().__init__(host, Unread(host.unread, self.account), secure=secure)
        self._framer = Framer(max_head_bytes=limits.max_head_bytes, max_headers=limits.max_headers, max_body_bytes=limits.max_body_bytes)
        self._intake = Intake(self._framer, host.bodies, self.account)
        self._deadline = host.after(limits.head_timeout_seconds)
        self._serving = False  # `_serve` is at it: an answer that is given inside only changes the state
        self._lingered = 0
        self._counted = True  # by the rules of who may connect
        self.client = client
        self.address = client.text
        self.ip = client.ip
        self.buckets = buckets
        self.prepaid = False
        self.call: object = None
        self.presented: object = None

    # --- what the exchange calls: the rest is `Answering`'s ---

    def abort(self) -> None:
        """Break the connection off without a word to the exchange, as `host.Client` says."""
        self._state = TRANSITIONS[self._state][Event.GONE]
        self._outbox.clear()
        self._transport.abort()

    def authenticated(self, presented: object, account: Account) -> None:
        """A key is good on this connection, as `host.Client` says."""
        self.presented, self.account = presented, account
        self._intake.belong_to(account)
        self._unread.belong_to(account)
        if self._counted:
            self._host.authenticated(self)

    # --- what the transport calls ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection carries HTTP from now on; over TLS, its handshake is done."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance
        self._transport.set_write_buffer_limits(high=_UNSENT_BYTES)
        self._deadline = self._host.after(self._host.limits.head_timeout_seconds)
        self._host.remember(self)

    def data_received(self, data: bytes) -> None:
        """Bytes of the client."""
        host = self._host
        host.collecting = True
        try:
            state = self._state
            if state <= _VETTED:
                self._framer.feed(data)
                if self.paused:
                    self._bound_input()
                else:
                    self._serve()
            elif state <= _STREAMING:
                self._framer.feed(data)
                self._bound_input()
            elif state is _LINGERING:
                self._lingered += len(data)
                if self._lingered > LINGER_BYTES:
                    self.abort()
        except Exception as error:  # noqa: BLE001 - a bug in one connection's code closes that connection and no other
            self.failed(error)
        host.flush_dirty()

    def eof_received(self) -> None:
        """The client sends no more. Most are gone then; who half-closes and still waits is not told apart (nor does nginx). The transport closes."""
        self._gone()

    def connection_lost(self, exc: BaseException | None) -> None:
        """The transport is closed; nothing more is called."""
        self._gone()
        self._uncount()
        self._intake.close()
        self._unread.close()
        self._outbox.clear()
        self._ending = None

    def pause_writing(self) -> None:
        """The client reads more slowly than we write."""
        self.paused = True
        self._watch_reader()
        if _ASKED <= self._state <= _STREAMING:
            self._tell(self._host.exchange.on_paused)

    def resume_writing(self) -> None:
        """The client has caught up."""
        self.paused = False
        self._watch_reader()
        outbox = self._outbox
        if (outbox.size or self._ending is not None) and not outbox.is_scheduled:
            self._schedule()
        if self._state <= _VETTED:
            if self._state is _IDLE:
                self._deadline = self._host.after(self._host.limits.idle_timeout_seconds)
            self._serve_on()
        elif self._state <= _STREAMING:
            self._tell(self._host.exchange.on_writable)

    # --- what the host calls ---

    @property
    def state(self) -> State:
        """What the connection is doing."""
        return self._state

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way, nor waits to be read or written."""
        return self._state is _IDLE and not (self.paused or self._outbox.size or self._framer.buffer)

    @property
    def is_answering(self) -> bool:
        """Whether the exchange owes an answer, or the rest of one."""
        return _ASKED <= self._state <= _STREAMING

    def give_way(self) -> None:
        """End, so that somebody else has room. It counts no more when this returns."""
        self._host.end(self)
        self._uncount()

    def sweep(self, now: float) -> None:
        """Act on a deadline that has passed."""
        if self._deadline <= now:
            self._expire()
        elif self._unread.deadline <= now:
            if self._unread.is_stalled(self._transport):
                self.drop()
            else:
                self._watch_reader()

    def drain(self, deadline: float) -> None:
        """Keep the connection until `deadline` at most if it is idle; the answer under way will be its last."""
        self._outbox.keep_alive = False
        if self._state is _IDLE:
            self._deadline = min(self._deadline, deadline)

    def failed(self, error: BaseException) -> None:
        """Code of ours raised: close this connection, report, go on."""
        self._host.report_fault(error)
        self.drop()

    def drop(self) -> None:
        """Break off, and tell the exchange if it owes an answer."""
        self._gone()
        self._outbox.clear()
        self._transport.abort()

    # --- reading ---

    def _serve(self) -> None:
        """Hand requests to the exchange, one at a time, until one is under way, the client does not read, or more bytes are needed."""
        if self._serving:
            return  # the loop below goes on
        self._serving = True
        framer = self._framer
        try:
            while self._state <= _VETTED and not self.paused:
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
            if framer.buffer:
                self._bound_input()
        finally:
            self._serving = False

    def _serve_on(self) -> None:
        """Go on reading, with what was read before first, outside of this connection's own turn."""
        if self._intake.is_paused:
            self._intake.resume(self._transport)
        if self._framer.buffer:
            try:
                self._serve()
            except Exception as error:  # noqa: BLE001 - as in data_received
                self.failed(error)

    def _bound_input(self) -> None:
        """Stop reading when too much waits behind what is under way, or behind what the client does not read; drop who takes others' room that way."""
        intake = self._intake
        waiting = len(self._framer.buffer)
        if not intake.hold(self._framer.held + waiting):
            self.drop()
        elif waiting > PIPELINE_BYTES and not intake.is_paused:
            intake.pause(self._transport)
            if self._state >= _ASKED:
                self._deadline = self._host.after(LISTEN_SECONDS)

    def _begin(self, request: RawRequest) -> None:
        host = self._host
        outbox = self._outbox
        self._state = TRANSITIONS[self._state][Event.REQUEST]
        self._deadline = math.inf
        outbox.keep_alive = request.keep_alive and not host.draining
        outbox.chunked = not request.http_1_0
        outbox.omits_body = request.method == b"HEAD"
        try:
            host.exchange.on_request(self, request)
        except CliproxyError as error:
            if self._state is not _ASKED:
                raise
            self.respond(*host.encode_error(error, request))

    def _await_rest(self) -> None:
        """Part of a request is there: set its deadline, take its toll, count what we hold."""
        host = self._host
        intake = self._intake
        if self._framer.phase is Phase.HEAD:
            if self._state is _IDLE:
                self._state = TRANSITIONS[_IDLE][Event.PART_OF_HEAD]
                self._deadline = host.after(host.limits.head_timeout_seconds)
            return
        if self._state <= _HEAD:
            self._state = TRANSITIONS[self._state][Event.PART_OF_BODY]
            self._deadline = host.after(host.limits.body_timeout_seconds)
            if not self._ask(host.exchange.on_body):
                return
        fits = intake.hold(self._framer.held + len(self._framer.buffer))
        if self._state is _BODY and (intake.must_be_vetted or not fits):
            if not self._vet():
                return
            fits = fits or intake.is_within_share
        if not fits:
            self._refuse(Unavailable("The gateway holds more request bodies than it may; try again in a moment.", code="overloaded"))
        elif self._framer.wants_continue:
            self._framer.wants_continue = False
            self._outbox.append(CONTINUE)
            self._schedule()

    def _vet(self) -> bool:
        """Say whether the request under way may send the rest of its body, which strangers may not make us hold; answer it if not."""
        if not self._ask(self._host.exchange.on_head):
            return False
        self._state = TRANSITIONS[self._state][Event.SENDER_VETTED]
        return True

    def _ask(self, rule: Callable[[Client, RawRequest], None]) -> bool:
        """Say whether the request whose body is still to come may go on; answer it if not."""
        request = self._framer.announced
        if request is not None:
            try:
                rule(self, request)
            except CliproxyError as error:
                self._refuse(error)
                return False
        return True

    def _refuse(self, error: CliproxyError) -> None:
        """Answer a request that is not whole, then close: what follows has no meaning."""
        outbox = self._outbox
        outbox.keep_alive = False
        seen = self._framer.partial_head
        self._intake.close()
        status, headers, body = self._host.encode_error(error, seen)
        outbox.open(status, self._host.common[self.secure], headers, b"Content-Length: %d\r\n" % len(body))
        outbox.append(body)
        self._linger(close=False)

    # --- between two requests ---

    def _answered(self) -> None:
        """The request under way has its whole answer."""
        self.call = None
        self.prepaid = False
        if self._intake.held:
            self._intake.hold(0)
        outbox = self._outbox
        if not outbox.keep_alive:
            self._linger(close=True)
            return
        if self.paused:
            self._bound_unread()
        elif outbox.size > WRITE_HIGH_WATER_BYTES:
            self.flush()  # at once: what of it waits then counts before the next large answer asks for room
        elif not outbox.is_scheduled:
            self._schedule()
        if self._state >= _LINGERING:
            return
        self._state = TRANSITIONS[self._state][Event.ANSWERED]
        self._deadline = self._host.after(self._host.limits.idle_timeout_seconds)
        if not self._serving and (self._framer.buffer or self._intake.is_paused):
            self._serve_on()

    def _linger(self, *, close: bool) -> None:
        """Nothing is sent after what waits; the client has `LINGER_SECONDS` to close. `close`: it is not in the middle of sending."""
        self._state = TRANSITIONS[self._state][Event.LAST_ANSWERED]
        self._deadline = self._host.after(LINGER_SECONDS)
        if not self.secure:
            self._ending = self._transport.write_eof
        elif close:
            self._ending = self._transport.close  # TLS knows no half-closed connection
        if self._intake.is_paused:
            self._intake.resume(self._transport)
        if not self._outbox.is_scheduled:
            self._schedule()

    # --- time and ending ---

    def _expire(self) -> None:
        host = self._host
        state = self._state
        if _HEAD <= state <= _VETTED:
            self._refuse(FramingError("The request did not arrive in time.", status=408))
            host.flush_dirty()
        elif state is _IDLE:
            if self.paused or self._outbox.size:
                self._deadline = host.after(LINGER_SECONDS)  # not idle: it still has an answer to read
            else:
                self._state = TRANSITIONS[state][Event.LAST_ANSWERED]
                self._deadline = host.after(LINGER_SECONDS)
                self._transport.close()
                self._watch_reader()  # the last answer may still be on its way, to somebody who reads nothing
        elif state is _ASKED or state is _STREAMING:  # whether the client has left stands behind what it sent, of which enough waits
            self._deadline = host.after(LISTEN_SECONDS)
            if self._intake.is_paused and not self.paused and len(self._framer.buffer) < MAX_PIPELINED_BYTES:
                self._intake.resume(self._transport)
        elif state is _LINGERING and (self.paused or self._transport.get_write_buffer_size()):
            self._deadline = host.after(LINGER_SECONDS)  # the answer is still on its way; `_watch_reader` bounds that
        else:
            self.drop()

    def _gone(self) -> None:
        state = self._state
        self._state = TRANSITIONS[state][Event.GONE]
        self._deadline = self._host.after(self._host.limits.stalled_reader_seconds)  # for the transport to get rid of what it has
        if _ASKED <= state <= _STREAMING:
            self._tell(self._host.exchange.on_client_gone)

    def _tell(self, what: Callable[[Client], None]) -> None:
        try:
            what(self)
        except Exception as error:  # noqa: BLE001 - as in data_received
            self._host.report_fault(error)
            self.abort()

    def _uncount(self) -> None:
        if self._counted:
            self._counted = False
            self._host.forget(self)
