"""The numbered path of DESIGN §3 in the worker: from a framed request to a call, and from a call's answer to the client's bytes.

What always holds: a request gets exactly one answer; a refusal before egress costs egress nothing; a client that goes away cancels its call;
a stream that broke ends with an error event and never with `[DONE]`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import msgspec

from cliproxy import __version__
from cliproxy.bounds import MAX_DATA_FRAME_BYTES, STREAM_GRANT_BYTES
from cliproxy.config.schema import Settings
from cliproxy.dataplane.errors import encode_error
from cliproxy.dataplane.link import EgressLink
from cliproxy.dataplane.server import Connection, RawRequest
from cliproxy.dataplane.steps import IdentifiedRequest, Presented, admit, authenticate, decode, encode, present
from cliproxy.dataplane.unauthenticated import AuthenticationTally
from cliproxy.dialects import Endpoint
from cliproxy.errors import ClientError, CliproxyError, NotAuthenticated, NotFound, RateLimited, Unavailable, UpstreamError
from cliproxy.ingress.rules.address_rate import AddressRate
from cliproxy.ipc.mux import Abort, Answer, Call, Reroute
from cliproxy.translators.openai_chat.decode import ChatRequest
from cliproxy.translators.openai_chat.stream import KEEP_ALIVE, StreamFilter, error_event

JSON_HEADERS = b"Content-Type: application/json\r\n"
SSE_HEADERS = b"Content-Type: text/event-stream; charset=utf-8\r\nX-Accel-Buffering: no\r\n"
BAD_ANSWER = Abort(
    status=502, kind="upstream_error", code="bad_upstream_answer", message="The provider answered in a form that was not asked for.", retry_after=0.0
)
HEALTHY = b'{"status":"ok","version":"%s"}' % __version__.encode()


class ModelItem(msgspec.Struct, frozen=True):
    """One entry of `GET /v1/models`, in OpenAI's shape."""

    id: str
    created: int
    owned_by: str
    object: str = "model"


class Exchange:
    """All requests of one worker. Owns nothing that outlives the process."""

    def __init__(self, settings: Settings, link: EgressLink, tally: AuthenticationTally, *, address_limit: AddressRate, draining: Callable[[], bool]) -> None:
        self._requests = settings.requests
        self._models = frozenset(settings.models)
        self._model_items = tuple(ModelItem(id=name, created=0, owned_by=route.provider) for name, route in sorted(settings.models.items()))
        self._link = link
        self._policy = link.policy
        self._tally = tally
        self._address_limit = address_limit
        self._draining = draining
        self._id_prefix = f"req_{os.urandom(6).hex()}"
        self._id_count = 0
        self._streams: set[PendingCall] = set()
        self.clock = time.monotonic()  # coarse: advanced by `sweep`; good enough for keep-alive comments
        self._keep_alive_after = settings.server.limits.keepalive_comment_seconds
        self._calls: dict[bytes, Endpoint] = {b"/v1/chat/completions": Endpoint.CHAT_COMPLETIONS, b"/v1/embeddings": Endpoint.EMBEDDINGS}
        self._pages: dict[bytes, Callable[[Connection, RawRequest, str], None]] = {
            b"/v1/models": self._list_models,
            b"/healthz": self._health,
            b"/readyz": self._ready,
        }

    # --- what the server calls ---

    def on_request(self, connection: Connection, request: RawRequest) -> None:
        """Answer `request`, now or when egress has answered."""
        self._id_count += 1
        request_id = f"{self._id_prefix}{self._id_count:08x}"
        try:
            now = time.monotonic()
            wait = self._address_limit(connection, now)
            if wait is not None:
                self._tally.denied(connection.address, self._address_limit.name)
                raise RateLimited("Too many requests from your address.", retry_after=wait)
            endpoint = self._calls.get(request.path)
            page = self._pages.get(request.path) if endpoint is None else None
            if endpoint is None and page is None:
                raise NotFound("There is no such route.", code="unknown_route")
            method = b"GET" if page is not None else b"POST"
            if request.method != method:
                refusal = ClientError(f"This route takes {method.decode()} only.", code="method_not_allowed", status=405)
                self.refuse(connection, refusal, request_id, extra=b"Allow: " + method + b"\r\n")
            elif endpoint is not None:
                self._call(connection, request, request_id, endpoint, now)
            elif page is not None:
                page(connection, request, request_id)
        except CliproxyError as error:
            self.refuse(connection, error, request_id)

    def on_client_gone(self, connection: Connection) -> None:
        """The client closed while its request was under way: the call is cancelled, upstream too."""
        call = connection.call
        if isinstance(call, PendingCall):
            self.cancel(call)

    def on_paused(self, connection: Connection) -> None:
        """The client does not read: `PendingCall` grants no more credit."""

    def on_writable(self, connection: Connection) -> None:
        """The client reads again."""
        call = connection.call
        if isinstance(call, PendingCall):
            call.resume()

    def sweep(self, now: float) -> None:
        """Once a second: send a keep-alive comment on streams whose client has heard nothing for a while."""
        self.clock = now
        for call in tuple(self._streams):
            if now - call.heard_at >= self._keep_alive_after:
                call.heard_at = now
                call.keep_alive()

    # --- routes ---

    def _health(self, connection: Connection, request: RawRequest, request_id: str) -> None:
        connection.respond(200, JSON_HEADERS, HEALTHY)

    def _ready(self, connection: Connection, request: RawRequest, request_id: str) -> None:
        if self._draining():
            raise Unavailable("draining", code="draining")
        if not self._link.is_ready(time.monotonic()):
            raise Unavailable("not ready", code="not_ready")
        connection.respond(200, JSON_HEADERS, b'{"status":"ready"}')

    def _list_models(self, connection: Connection, request: RawRequest, request_id: str) -> None:
        identified = self._identify(connection, request, time.monotonic())
        self._tally.admitted(connection.address, identified.principal.id)
        items = [item for item in self._model_items if identified.principal.allows_model(item.id)]
        body = msgspec.json.encode({"object": "list", "data": items})
        connection.respond(200, JSON_HEADERS + b"x-request-id: %s\r\n" % request_id.encode(), body)

    def _identify(self, connection: Connection, request: RawRequest, now: float) -> IdentifiedRequest:
        token = bearer_token(request)
        # A connection repeats its key; what it proves need not be worked out anew. Whether that still counts is looked up for each request.
        known = connection.presented
        presented = known if isinstance(known, Presented) and known.token == token else present(token)
        try:
            identified = authenticate(request, presented, self._policy, address=connection.ip, now=now, wall=time.time())
        except NotAuthenticated:
            connection.presented = None
            self._tally.refused(connection.address)
            raise
        connection.presented = presented
        return identified

    def _call(self, connection: Connection, request: RawRequest, request_id: str, endpoint: Endpoint, now: float) -> None:
        identified = self._identify(connection, request, now)
        outbound = encode(admit(decode(identified, endpoint, self._requests), self._models))
        asked = outbound.admitted.decoded.body
        max_tokens, n, stream_filter = 0, 1, None
        if isinstance(asked, ChatRequest):
            max_tokens, n = asked.max_tokens, asked.n
            if asked.stream:
                stream_filter = StreamFilter(asked.include_usage)
        body = outbound.body
        size = len(body)
        call = PendingCall(self, connection, request_id, stream_filter)
        # Positional, in the order of `ipc.mux.Call`: keywords cost half a microsecond here.
        frame = Call(
            endpoint,
            identified.proof,
            request_id,
            connection.address,
            asked.model,
            max_tokens,
            n,
            stream_filter is not None,
            asked.estimate,
            outbound.hole,
            size,
            body if size <= MAX_DATA_FRAME_BYTES else b"",
        )
        call.stream = self._link.send(call, frame, body)
        connection.call = call

    # --- what a pending call asks for ---

    def refuse(self, connection: Connection, error: CliproxyError, request_id: str, extra: bytes = b"") -> None:
        """Answer with `error`, in the client's dialect."""
        status, headers, body = encode_error(error, request_id)
        connection.respond(status, headers + extra, body)

    def streaming(self, call: PendingCall) -> None:
        """`call` has begun to stream: keep it alive."""
        call.heard_at = self.clock
        self._streams.add(call)

    def grant(self, call: PendingCall, count: int) -> None:
        """Let egress send `count` more bytes."""
        self._link.grant(call.stream, count)

    def finished(self, call: PendingCall) -> None:
        """`call` has its ending. Before the answer's last write: that may start the connection's next request."""
        call.connection.call = None
        if call.started:
            self._streams.discard(call)

    def cancel(self, call: PendingCall) -> None:
        """Nobody waits for `call`."""
        self.finished(call)
        self._link.cancel(call.stream)


class PendingCall:
    """One call from the moment egress has it until its client has the answer."""

    __slots__ = ("_exchange", "_filter", "_owed", "_request_id", "connection", "heard_at", "started", "stream")

    def __init__(self, exchange: Exchange, connection: Connection, request_id: str, stream_filter: StreamFilter | None) -> None:
        self._exchange = exchange
        self.connection = connection
        self._request_id = request_id
        self._filter = stream_filter
        self._owed = 0  # bytes passed on to the client's connection and not yet granted anew
        self.started = False
        self.stream = 0
        self.heard_at = 0.0

    def on_answer(self, answer: Answer) -> None:
        if answer.final and not answer.sse:
            connection = self.connection
            connection.call = None  # before the answer is written: that may start the connection's next request
            connection.respond(answer.status, b"%sx-request-id: %s\r\n" % (JSON_HEADERS, self._request_id.encode()), answer.body)
            return
        if answer.sse != (self._filter is not None):
            self._exchange.cancel(self)
            self.on_abort(BAD_ANSWER)
            return
        self.started = True
        self.connection.start_stream(answer.status, b"%sx-request-id: %s\r\n" % (SSE_HEADERS if answer.sse else JSON_HEADERS, self._request_id.encode()))
        if answer.sse:
            self._exchange.streaming(self)
        if answer.body:
            self.on_data(answer.body)
        if answer.final:
            self.on_end()

    def on_data(self, data: bytes) -> None:
        connection = self.connection
        self.heard_at = self._exchange.clock
        try:
            passed = data if self._filter is None else self._filter.feed(data)
        except UpstreamError as error:
            self._exchange.cancel(self)
            self.on_abort(Abort(error.status, error.kind, error.code, error.message, 0.0))
            return
        connection.write_chunk(passed)
        self._owed += len(data)
        if self._owed >= STREAM_GRANT_BYTES and not connection.paused:
            self.resume()

    def on_end(self) -> None:
        self._exchange.finished(self)
        self.connection.end_stream()

    def on_abort(self, abort: Abort) -> None:
        self._exchange.finished(self)
        if not self.started:
            self._exchange.refuse(self.connection, error_of(abort), self._request_id)
        elif self._filter is None:
            self.connection.abort()  # half a JSON text: the broken framing is the only honest ending
        else:
            self.connection.write_chunk(error_event(abort.message, kind=abort.kind, code=abort.code))
            self.connection.end_stream()

    def on_reroute(self, reroute: Reroute) -> None:
        self.on_abort(BAD_ANSWER)  # no route of ours has two profiles yet

    def resume(self) -> None:
        """The client reads: pay what is owed in credit."""
        owed, self._owed = self._owed, 0
        if owed:
            self._exchange.grant(self, owed)

    def keep_alive(self) -> None:
        """Send a comment, unless the client is not even reading. Only whole events were written, so it stands between two."""
        if not self.connection.paused:
            self.connection.write_chunk(KEEP_ALIVE)


def bearer_token(request: RawRequest) -> bytes | None:
    """Return what follows `Bearer` in the Authorization header (RFC 6750 §2.1; the scheme's case does not matter), or `None`."""
    value = request.authorization
    if value is None or value[:7].lower() != b"bearer ":
        return None
    return value[7:].strip(b" ")


def error_of(abort: Abort) -> CliproxyError:
    """Return the error that `abort` reports, for the encoder of error answers."""
    if abort.status == 429:
        return RateLimited(abort.message, retry_after=max(abort.retry_after, 1.0))
    if abort.status == 503:
        return Unavailable(abort.message, code=abort.code, retry_after=max(abort.retry_after, 1.0))
    if abort.status >= 500:
        return UpstreamError(abort.message, status=abort.status, code=abort.code)
    if abort.status == 401:
        return NotAuthenticated()
    error = ClientError(abort.message, code=abort.code, status=abort.status)
    error.kind = abort.kind
    return error
