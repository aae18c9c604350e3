"""The numbered path of docs/architecture.md in the worker: from a framed request to a call that egress has, or to an answer of our own.

What always holds: a request gets exactly one answer, in its own dialect; a refusal before egress costs egress nothing; a client that goes away cancels its
call, also between two reroutes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from cliproxy import __version__
from cliproxy.bounds import MAX_DATA_FRAME_BYTES, MAX_ROUTE_TARGETS, MIB
from cliproxy.config.routes import Profile, RouteTable
from cliproxy.config.schema import Settings
from cliproxy.dataplane.answers import JSON_HEADERS, Origins
from cliproxy.dataplane.call_frames import BAD_ANSWER, error_of, frame_of
from cliproxy.dataplane.calls import PendingCall
from cliproxy.dataplane.errors import encode_error, id_headers
from cliproxy.dataplane.host import Client
from cliproxy.dataplane.keys import Presented, present, token_of
from cliproxy.dataplane.link import EgressLink
from cliproxy.dataplane.models import ModelPages
from cliproxy.dataplane.rooms import Accounts, Room
from cliproxy.dataplane.routes import NO_ROUTE, route_of, surface_of
from cliproxy.dataplane.steps import (
    AdmittedRequest,
    IdentifiedRequest,
    OutboundRequest,
    admit,
    authenticate,
    decode,
    encode,
    encode_for,
    find_model,
    session_of,
)
from cliproxy.dataplane.surfaces.surface import ClientRoute, Page, Surface
from cliproxy.dataplane.unauthenticated import AuthenticationTally
from cliproxy.errors import ClientError, CliproxyError, NotAuthenticated, NotFound, RateLimited, Unavailable, UnsupportedFeature
from cliproxy.ingress.framing import RawRequest
from cliproxy.ingress.rules.address_rate import AddressRate
from cliproxy.ipc.mux import Answer, Reroute
from cliproxy.translators.table import ClientRow, DecodeOptions

MAX_KEPT_REQUEST_BYTES = 128 * MIB  # bodies of requests that a worker keeps decoded, for a reroute or until their answer is translated; 503 above
MAX_COLLECTED_BYTES = 128 * MIB  # whole answers that a worker holds until it can translate them; 4 of the largest

HEALTHY = b'{"status":"ok","version":"%s"}' % __version__.encode()
_OPEN_PAGES = frozenset({Page.HEALTH, Page.READY})  # no key is asked for
_ESTIMATED = b"x-cliproxy-token-count: estimate\r\n"


class Exchange:
    """All requests of one worker. Owns nothing that outlives the process."""

    def __init__(self, settings: Settings, link: EgressLink, tally: AuthenticationTally, *, address_limit: AddressRate, draining: Callable[[], bool]) -> None:
        requests = settings.requests
        self._requests = requests
        self._options = DecodeOptions(requests.max_tokens, requests.on_excess, requests.provider_state)
        self._table = RouteTable(settings)
        self._models = ModelPages(self._table, max_tokens=requests.max_tokens)
        self._link = link
        self._policy = link.policy
        self._tally = tally
        self._address_limit = address_limit
        self._draining = draining
        self._id_prefix = f"req_{os.urandom(6).hex()}"
        self._id_count = 0
        self._streams: set[PendingCall] = set()
        self.clock = time.monotonic()  # coarse: advanced by `sweep`; good enough for keep-alive comments
        self._accounts = Accounts()
        self.collected = Room(MAX_COLLECTED_BYTES, least=MAX_DATA_FRAME_BYTES)
        self.kept = Room(MAX_KEPT_REQUEST_BYTES, least=MAX_DATA_FRAME_BYTES)
        self.origin_headers: Callable[[Answer], bytes] = Origins().headers
        self._keep_alive_after = settings.server.limits.keepalive_comment_seconds
        self._pages: dict[Page, Callable[[Client, RawRequest, str, ClientRoute], None]] = {
            Page.HEALTH: self._health,
            Page.READY: self._ready,
            Page.MODELS: self._list_models,
            Page.MODEL: self._one_model,
        }

    # --- what the server calls ---

    def on_request(self, connection: Client, request: RawRequest) -> None:
        """Answer `request`, now or when egress has answered."""
        self._id_count += 1
        request_id = f"{self._id_prefix}{self._id_count:08x}"
        now = time.monotonic()
        try:
            route = self._route_of(connection, request, now)
            if request.method != route.method:
                hint = route.surface.method_hint if route.page is Page.MODEL else ""
                refusal = ClientError(f"This route takes {route.method.decode()} only{hint}.", code="method_not_allowed", status=405)
                self.refuse(connection, refusal, request_id, route.surface, extra=b"Allow: " + route.method + b"\r\n")
            elif route.row is not None:
                self._call(connection, request, request_id, route, route.row, now)
            elif route.page is not None:
                self._pages[route.page](connection, request, request_id, route)
        except CliproxyError as error:
            self.refuse(connection, error, request_id, surface_of(request))

    def on_body(self, connection: Client, request: RawRequest) -> None:
        """Let a stranger's request pay before its body is read. Whose key was good on this connection before pays with the whole request."""
        if connection.presented is None and not self._is_holder(connection, present(token_of(request)), time.time()):
            self._toll(connection, time.monotonic())
            connection.prepaid = True

    def on_head(self, connection: Client, request: RawRequest) -> None:
        """Raise what `request` is refused for before its body is read: strangers make us hold none, and the gateway's own pages take none."""
        route = route_of(request)
        if route is None:
            raise NotFound(NO_ROUTE, code="unknown_route")
        if route.row is None or request.method != route.method:
            raise ClientError(f"{request.method.decode()} takes no body on this route.", code="body_too_long", status=413)
        self._identify(connection, request, time.monotonic())
        connection.prepaid = self._address_limit.limits_holders  # it has paid just now

    def on_client_gone(self, connection: Client) -> None:
        """The client closed while its request was under way: the call is cancelled, upstream too."""
        call = connection.call
        if isinstance(call, PendingCall):
            self.cancel(call, "client_gone")
            call.cancelled()

    def on_paused(self, connection: Client) -> None:
        """The client does not read: `PendingCall` grants no more credit."""

    def on_writable(self, connection: Client) -> None:
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

    # --- pages ---

    def _health(self, connection: Client, request: RawRequest, request_id: str, route: ClientRoute) -> None:
        connection.respond(200, JSON_HEADERS, HEALTHY)

    def _ready(self, connection: Client, request: RawRequest, request_id: str, route: ClientRoute) -> None:
        if self._draining():
            raise Unavailable("draining", code="draining")
        if not self._link.is_ready(time.monotonic()):
            raise Unavailable("not ready", code="not_ready")
        connection.respond(200, JSON_HEADERS, b'{"status":"ready"}')

    def _list_models(self, connection: Client, request: RawRequest, request_id: str, route: ClientRoute) -> None:
        identified = self._identify(connection, request, time.monotonic())
        self._tally.admitted(connection.address, identified.principal.id)
        connection.respond(200, _headers(request_id, route.surface), self._models.listed(identified.principal, route.surface))

    def _one_model(self, connection: Client, request: RawRequest, request_id: str, route: ClientRoute) -> None:
        identified = self._identify(connection, request, time.monotonic())
        self._tally.admitted(connection.address, identified.principal.id)
        found = find_model(route.model, identified.principal, self._table)
        connection.respond(200, _headers(request_id, route.surface), self._models.one(route.model, found, route.surface))

    def _identify(self, connection: Client, request: RawRequest, now: float) -> IdentifiedRequest:
        """Say whose request it is, and take its token from the bucket of whom that makes it. Raises `RateLimited` too."""
        token = token_of(request)
        # A connection repeats its key; what it proves need not be worked out anew. Whether that still counts is looked up for each request.
        known = connection.presented
        presented = known if isinstance(known, Presented) and known.token == token else present(token)
        wall = time.time()
        try:
            identified = authenticate(request, presented, self._policy, address=connection.ip, now=now, wall=wall)
        except NotAuthenticated:
            connection.presented = None
            self._toll(connection, now)
            self._tally.refused(connection.address)
            raise
        except CliproxyError:  # trouble of ours, or a key from where it may not be used: only who is no stranger pays nothing
            if not self._is_holder(connection, presented, wall):
                self._toll(connection, now)
            raise
        if known is not presented:
            connection.authenticated(presented, self._accounts.of(identified.principal.id))
        if self._address_limit.limits_holders:
            self._wait(connection, self._address_limit.holder(connection, now))
        return identified

    # --- who pays ---

    def _route_of(self, connection: Client, request: RawRequest, now: float) -> ClientRoute:
        """Return the route of `request`. Unless it is one on which the key is asked for, the request pays here. Raises `RateLimited` before anything else."""
        route = None
        try:
            route = route_of(request)
            if route is None:
                raise NotFound(NO_ROUTE, code="unknown_route")
        finally:
            if (route is None or request.method != route.method or route.page in _OPEN_PAGES) and not self._is_holder(
                connection, present(token_of(request)), time.time()
            ):
                self._toll(connection, now)
        return route

    def _is_holder(self, connection: Client, presented: Presented, wall: float) -> bool:
        """Whether a key was presented that is good, here and now."""
        principal = None if presented.proof is None else self._policy.principals.find(presented.digest, wall)
        return principal is not None and principal.allows_address(connection.ip)

    def _toll(self, connection: Client, now: float) -> None:
        """Take a stranger's token. Raises `RateLimited`."""
        self._wait(connection, self._address_limit.stranger(connection, now))

    def _wait(self, connection: Client, wait: float | None) -> None:
        if wait is not None:
            self._tally.denied(connection.address, self._address_limit.name)
            raise RateLimited("Too many requests from your address.", retry_after=wait)

    # --- calls ---

    def _call(self, connection: Client, request: RawRequest, request_id: str, route: ClientRoute, row: ClientRow, now: float) -> None:
        identified = self._identify(connection, request, now)
        options = self._options
        if route.model:
            options = DecodeOptions(options.max_tokens, options.on_excess, options.provider_state, route.model, route.stream, route.batch)
        admitted = admit(decode(identified, row, options), self._table)
        if not admitted.profiles:
            self._estimate(connection, request_id, route, row, admitted)
            return
        outbound = encode(admitted)
        call = PendingCall(self, connection, request_id, route.surface, array=route.array)
        try:
            self._send(call, outbound, ())
        except BaseException:  # a bug too: what was counted for the call must not stay so
            call.cancelled()
            raise
        connection.call = call

    def _estimate(self, connection: Client, request_id: str, route: ClientRoute, row: ClientRow, admitted: AdmittedRequest) -> None:
        """No provider of the model counts tokens: tell our own guess, and that it is one."""
        decoded = admitted.decoded
        self._tally.admitted(connection.address, decoded.principal.id)
        assert row.encode_answer is not None
        body = row.encode_answer(decoded.facts.estimate, request=decoded.body, id=request_id, model=decoded.facts.model, created=0)
        connection.respond(200, _headers(request_id, route.surface) + _ESTIMATED, body)

    def _send(self, call: PendingCall, outbound: OutboundRequest, tried: tuple[str, ...]) -> None:
        call.expect(outbound)
        admitted = outbound.admitted
        session = session_of(admitted) if admitted.route.affinity else ""
        call.stream = self._link.send(call, frame_of(outbound, session, tried, request_id=call.request_id, address=call.connection.address), outbound.body)

    # --- what a pending call asks for ---

    def refuse(self, connection: Client, error: CliproxyError, request_id: str, surface: Surface, extra: bytes = b"") -> None:
        """Answer with `error`, in the client's dialect."""
        status, headers, body = encode_error(error, request_id, surface)
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

    def cancel(self, call: PendingCall, code: str) -> None:
        """Nobody waits for `call`; `code` says why."""
        self.finished(call)
        self._link.cancel(call.stream, code)

    def reroute(self, call: PendingCall, reroute: Reroute) -> None:
        """Write the kept request for the profile that egress names and send it again. Raises `CliproxyError` if that cannot be.

        A profile that cannot say the request counts as tried with all its targets, and the next one that has others is taken.
        """
        admitted = call.kept
        named = None if admitted is None else _profile_named(admitted, reroute)
        if admitted is None or named is None or len(reroute.tried) > MAX_ROUTE_TARGETS:
            raise error_of(BAD_ANSWER)
        tried = dict.fromkeys(reroute.tried)
        for profile in (named, *(other for other in admitted.profiles if other != named)):
            targets = [target.id for group in admitted.route.groups_for(profile) for target in group.targets]
            if all(target in tried for target in targets):
                continue
            try:
                outbound = encode_for(admitted, profile)
            except UnsupportedFeature:
                tried.update(dict.fromkeys(targets))
                continue
            self._send(call, outbound, tuple(tried))
            return
        raise Unavailable("No provider that could answer this request can take it now; try again in a moment.", code="no_target")


def _profile_named(admitted: AdmittedRequest, reroute: Reroute) -> Profile | None:
    """Return the profile of the request's route that `reroute` names; `None`: there is none."""
    return next((profile for profile in admitted.profiles if (profile.endpoint, profile.quirks) == (reroute.endpoint, reroute.quirks)), None)


def _headers(request_id: str, surface: Surface) -> bytes:
    """Return the headers of an answer that we make ourselves."""
    return JSON_HEADERS + id_headers(request_id, surface)
