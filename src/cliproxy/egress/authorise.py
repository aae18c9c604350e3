"""Step 8: whether a call that a worker asks for may leave, and where to, decided from what egress itself knows and from the final bytes.

The worker is not trusted: the principal is proven by P, the endpoint is an enum, the model's route and the limits are ours, and what the
body asks for (model, tokens, choices, stream) is read again from the bytes that would leave. What a worker says of earlier attempts only takes
targets away.

`admit`, once for a call:

    1. P proves a living principal; its networks and models are checked again; lockdown is honoured
    2. the model has a route, and the body's profile is one of it

`authorise`, once for each attempt, since policy, limits and cooldowns may have changed meanwhile:

    3. a target is chosen that is not switched off, with a credential sealed to its origin, neither of them cooling
    4. the target's model is spliced in and the final body is read again; what it asks for must be what the worker said, within the cap
    5. the limits take their part: requests, tokens and concurrency, of the key (once for a call) and of the provider
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import NamedTuple

import msgspec

from cliproxy.auth.client_keys import digest_of
from cliproxy.auth.principals import Principal
from cliproxy.bounds import COOLDOWNS_PER_PACKET, MAX_ESTIMATE_FLOOR_TOKENS, MAX_REROUTES, MAX_ROUTE_TARGETS
from cliproxy.config.routes import Group, Profile, Route, RouteTable, Target
from cliproxy.config.schema import Provider, Settings
from cliproxy.dialects import ENDPOINT_NAMES, ENDPOINTS, Dialect, Endpoint
from cliproxy.egress.admission import Admission, Reservation
from cliproxy.egress.cooldowns import PROBE_LOOK_SECONDS, Cooldown, Cooldowns, Fault, Key
from cliproxy.egress.inject import BoundCredential, Injector
from cliproxy.egress.routing import Router, Tried
from cliproxy.errors import ChannelError, CliproxyError, NotAuthenticated, NotFound, NotPermitted, ProviderLimited, SchemaError, Unavailable
from cliproxy.ipc.messages import CooldownRecord
from cliproxy.ipc.mux import Call, Reroute
from cliproxy.ipc.policy_feed import PolicyFeed
from cliproxy.metering.table import METERS, Meter
from cliproxy.providers.table import facts_of

_ENDPOINTS = {int(endpoint): endpoint for endpoint in Endpoint}
_DIALECTS = {dialect.value: dialect for dialect in Dialect}
_IN_PROCESS: tuple[BoundCredential | None, ...] = (None,)


class Order(msgspec.Struct, gc=False):
    """A call that may leave, until it has its answer: what the worker said of it, and how far it has come. `body` (with its hole) goes when the answer
    begins: from then on nothing is tried again. `error` is the last attempt's; `kept` are the bytes of `body` that the desk counts; `unknown`: what one of
    the attempts used, nobody knows; `waited`: seconds since the last attempt."""

    request_id: str
    address: str
    principal: Principal
    route: Route
    endpoint: Endpoint
    meter: Meter
    groups: tuple[Group, ...]
    max_tokens: int
    n: int
    stream: bool
    estimate: int
    hole: int
    body: bytes
    session: str
    said_client: str
    tried: Tried | None = None
    attempts: int = 0
    rounds: int = 0
    waited: float = 0.0
    reroutes: int = 0
    reservation: Reservation | None = None
    error: CliproxyError | None = None
    kept: int = 0
    unknown: bool = False

    def __repr__(self) -> str:
        return f"Order({self.request_id})"

    @property
    def client(self) -> Dialect:
        """The client's dialect; the endpoint's, where the worker did not say."""
        return _DIALECTS.get(self.said_client, ENDPOINTS[self.endpoint][1])

    def note(self) -> Tried:
        """Return what was tried, to be added to."""
        if self.tried is None:
            self.tried = Tried()
        return self.tried


class AuthorizedRequest(msgspec.Struct, gc=False):
    """One attempt of a call, which may leave once, to `target` only. `credential` is None for a provider inside the process."""

    order: Order
    target: Target
    credential: BoundCredential | None
    reservation: Reservation
    stream: bool
    attempt: int
    started: float
    body: bytes | None
    probe: bool = False
    counted: bool = False  # among the calls under way, where a router has a choice

    def __repr__(self) -> str:
        return f"AuthorizedRequest({self.order.request_id}, {self.attempt})"

    @property
    def size(self) -> int:
        """Bytes of the body, while it has not left."""
        return 0 if self.body is None else len(self.body)

    @property
    def endpoint(self) -> Endpoint:
        """What is asked of the provider."""
        return self.order.endpoint

    @property
    def key(self) -> Key:
        """What cools when this fails."""
        return Key(self.target.provider, "" if self.credential is None else self.credential.id, self.target.model, int(self.order.endpoint))

    def take_body(self) -> bytes:
        """Return the final bytes, once: whoever sends them has them."""
        body, self.body = self.body, None
        if body is None:
            raise ChannelError("a call was about to leave twice")
        return body


class Rest(NamedTuple):
    """Nobody can take the call now; one may in `seconds`, which are within what the configuration lets a call wait."""

    seconds: float


# What says who a provider is and how it is reached: the rest (limits, priorities, names of models) is about us.
_who = attrgetter("kind", "base_url", "plain_http", "private_network", "ca_file", "proxy", "auth", "api_version", "project", "location", "region")


class Authoriser:
    """The decision of step 8 over the tables of one configuration; limits outlive a reload, and cooldowns of providers that stay who they are."""

    def __init__(self, settings: Settings, policy: PolicyFeed, injector: Injector, admission: Admission) -> None:
        self._policy = policy
        self._injector = injector
        self._admission = admission
        self.cooldowns = Cooldowns(transient_seconds=settings.routing.cooldown_seconds)
        self._router = Router(self.cooldowns)
        self._providers: Mapping[str, Provider] = {}
        self.reconfigure(settings, now=0.0)

    def reconfigure(self, settings: Settings, *, now: float) -> None:
        """Take new tables. Raises `ConfigError` and changes nothing if a route leads nowhere."""
        self._routes = RouteTable(settings)
        for name, before in self._providers.items():
            after = settings.providers.get(name)
            if after is None or _who(after) != _who(before):
                self.cooldowns.forget(name, now=now)  # the operator has mended it, as like as not
        self._providers = settings.providers
        self._in_process = {name for name, provider in settings.providers.items() if not facts_of(name, kind=provider.kind).remote}
        self._max_tokens = settings.requests.max_tokens
        self._routing = settings.routing
        self._max_attempts = settings.routing.max_attempts
        self.cooldowns.transient_seconds = settings.routing.cooldown_seconds
        self._router.reset()
        self._admission.reconfigure(settings)

    # --- once for a call ---

    def admit(self, call: Call, body: bytes, *, now: float, wall: float) -> Order:
        """Return the call as one that may be tried, or raise the `ClientError` or `Unavailable` that its client gets.

        Raises `ChannelError` when the worker says what an honest one cannot.
        """
        self._policy.require_fresh(now)
        principal = self._policy.principals.find(digest_of(call.proof), wall)
        if principal is None:
            raise NotAuthenticated
        if self._policy.rules.lockdown:
            raise _lockdown()
        if not principal.allows_address(call.address):
            raise NotPermitted("This API key may not be used from your address.", code="address_not_permitted")
        if not principal.allows_model(call.model):
            raise NotPermitted("This API key may not use that model.", param="model", code="model_not_permitted")
        route = self._routes.find(call.model)
        if route is None:
            raise NotFound("There is no model of that name here; GET /v1/models lists them.", param="model", code="model_not_found")
        endpoint = _ENDPOINTS.get(call.endpoint)
        if endpoint is None:
            raise ChannelError(f"endpoint {call.endpoint} does not exist")
        meter = METERS.get(endpoint)
        if meter is None or (call.stream and meter.stream is None):
            raise ChannelError(f"endpoint {call.endpoint} is not spoken here, or not streamed")
        tried = call.tried
        if len(tried) > MAX_ROUTE_TARGETS:
            raise ChannelError("a call was tried more often than there are targets")
        if call.max_tokens < 0 or call.n < 0:
            raise ChannelError("a call that asks for less than nothing would make room in a limit")
        order = Order(
            call.request_id,
            call.address,
            principal,
            route,
            endpoint,
            meter,
            route.groups_for((endpoint, call.quirks)),
            call.max_tokens,
            call.n,
            call.stream,
            call.estimate,
            call.hole,
            body,
            f"{principal.id}\0{call.session}" if call.session else "",
            call.client,
        )
        if tried:
            order.tried = Tried([id for id in tried if id in route.by_id])
            order.attempts = len(order.tried.targets)
        return order

    # --- once for an attempt ---

    def authorise(self, order: Order, *, now: float, wall: float) -> AuthorizedRequest | Rest | Reroute:
        """Return the next attempt of `order`; or when to ask again; or what the worker is to write the call anew for. Raises the error that the client gets
        when there is nothing left to try.

        Raises `ChannelError` when the body is not what the worker said.
        """
        rules = self._policy.rules
        if order.attempts or order.rounds:
            self._policy.require_fresh(now)
            if rules.lockdown:
                raise _lockdown()
        limited: ProviderLimited | None = None
        reservation = order.reservation
        while order.attempts < self._max_attempts:
            chosen = self._only_one(order) or self._router.choose(
                order.groups,
                order.endpoint,
                credentials=self._credentials,
                tried=order.tried,
                disabled=rules.disabled_providers,
                session=order.session,
                now=now,
            )
            if chosen is None:
                step = self._otherwise(order, limited, now)
                if reservation is None and type(step) is Rest:  # it holds its key's place while it waits, like any other call
                    order.reservation = self._admission.hold(order.principal, tokens=_tokens(order, len(order.body)), now=now, wall=wall)
                return step
            target, credential = chosen
            final = self._spliced(order, target)
            try:
                if reservation is None:
                    tokens = _tokens(order, len(final))
                    reservation = order.reservation = self._admission.reserve(order.principal, target.provider, tokens=tokens, now=now, wall=wall)
                else:
                    self._admission.move(reservation, target.provider, now=now)
            except ProviderLimited as error:
                order.note().providers.add(target.provider)
                limited = error
                continue
            order.attempts += 1
            order.waited = 0.0
            request = AuthorizedRequest(order, target, credential, reservation, order.stream, order.attempts, now, final)
            if self.cooldowns.table:
                request.probe = self.cooldowns.begin(request.key, now)
            if len(order.route.targets) > 1:
                request.counted = True
                self._router.began(target)
            return request
        raise order.error or limited or Unavailable("The call was tried as often as it may be.", code="attempts_exhausted")

    def _only_one(self, order: Order) -> tuple[Target, BoundCredential | None] | None:
        """Return what `choose` would, in the common case of one target, one credential and no trouble."""
        if order.tried is None and not self.cooldowns.table and len(order.groups) == 1:
            targets = order.groups[0].targets
            if len(targets) == 1:
                target = targets[0]
                credentials = self._credentials(target)
                if len(credentials) == 1 and target.provider not in self._policy.rules.disabled_providers:
                    return target, credentials[0]
        return None

    def _credentials(self, target: Target) -> Sequence[BoundCredential | None]:
        """Return what `target` can be called with; a reload since the call came may have left nothing."""
        if target.facts.remote:
            return self._injector.credentials_of(target.provider)
        return _IN_PROCESS if target.provider in self._in_process else ()

    def _spliced(self, order: Order, target: Target) -> bytes:
        """Return the final body for `target`, which asks for just what the worker said; raises `ChannelError` if it does not."""
        filling = target.fillings[order.endpoint]
        body, hole = order.body, order.hole
        final = body[:hole] + filling + body[hole:] if filling else body
        asked = order.meter.asked_for(final)
        if (
            asked.model != (target.model if filling else "")
            or asked.max_tokens != order.max_tokens
            or asked.n != order.n
            or (asked.stream != order.stream and (asked.stream is not None or order.meter.says_stream))
        ):
            raise ChannelError(f"a body for {ENDPOINT_NAMES[order.endpoint]} is not what the worker said")
        if order.max_tokens > self._max_tokens:
            raise SchemaError(f"max_tokens is above this gateway's limit of {self._max_tokens}.", param="max_tokens")
        return final

    # --- nothing to choose ---

    def _otherwise(self, order: Order, limited: ProviderLimited | None, now: float) -> Rest | Reroute:
        """Nobody of the call's profile can take it now: another profile's target can, or one will soon, or it has failed."""
        disabled = self._policy.rules.disabled_providers
        profiles = order.route.profiles(ENDPOINTS[order.endpoint][0], order.client)
        if not profiles:
            raise SchemaError("The provider of this model does not have this endpoint.", param="model", code="endpoint_not_supported")
        others = [(profile, order.route.groups_for(profile)) for profile in profiles]
        for profile, groups in others:
            if groups is order.groups or order.reroutes >= MAX_REROUTES:
                continue
            if self._router.can(groups, profile.endpoint, credentials=self._credentials, tried=order.tried, disabled=disabled, now=now):
                order.reroutes += 1
                return _reroute_to(profile, order)
        cooldown = self._router.soonest(
            [(order.endpoint, order.groups), *((profile.endpoint, groups) for profile, groups in others)],
            credentials=self._credentials,
            disabled=disabled,
            now=now,
        )
        rest = None if cooldown is None else self._rest(order, cooldown, now)
        if rest is not None:
            return rest
        if order.error is not None:
            raise order.error
        if cooldown is not None:
            raise cooldown.error(now)
        if limited is not None:
            raise limited
        names = sorted({target.provider for target in order.route.targets})
        if all(name in disabled for name in names):
            raise Unavailable(f"Provider {', '.join(names)} is switched off by the operator.", code="provider_disabled", retry_after=60.0)
        names = [name for name in names if name not in disabled]
        message = f"The gateway has no credential for {', '.join(names)} at the configured address: its operator adds one with `cliproxy credentials add`."
        raise Unavailable(message, code="no_credential", retry_after=60.0)

    def _rest(self, order: Order, cooldown: Cooldown, now: float) -> Rest | None:
        """Return how long `order` may wait for `cooldown`, or for the verdict of a call that probes it; `None`: no longer. A call that has waited and finds
        that another one probes, or that it cools longer, goes on with the same round."""
        seconds = PROBE_LOOK_SECONDS if cooldown.is_probed(now) else cooldown.wait(now)
        if order.waited + seconds > self._routing.max_wait_seconds:
            return None
        if not order.waited:
            if order.rounds >= self._routing.retry_rounds:
                return None
            order.rounds += 1
            order.tried = None  # what has cooled down is tried again; what failed without cooling has had its turn
        order.waited += seconds
        return Rest(seconds)

    # --- what became of an attempt ---

    def answered(self, request: AuthorizedRequest) -> None:
        """The provider's answer has begun, and the worker has its first part."""
        if self.cooldowns.table:
            self.cooldowns.succeeded(request.key, started=request.started)

    def ended(self, request: AuthorizedRequest, fault: Fault | None, *, now: float) -> None:
        """The attempt is over: with `fault`, or without one that says anything about the provider."""
        if request.counted:
            self._router.ended(request.target)
        if fault is not None:
            self.cooldowns.failed(request.key, fault, started=request.started, now=now)
        elif request.probe:
            self.cooldowns.released(request.key, started=request.started)

    def tried(self, request: AuthorizedRequest, error: CliproxyError, fault: Fault) -> None:
        """The attempt failed with `error` before its answer began, and the call goes on without this target."""
        order = request.order
        order.error = error
        tried = order.note()
        tried.pairs.add((request.target.id, request.key.credential))
        if fault.everywhere:
            tried.providers.add(request.target.provider)

    def count_once(self, order: Order, before: Order) -> None:
        """`order` is the call of `before` again, after a REROUTE: it goes on where that was, and is counted once."""
        order.tried, order.attempts, order.rounds, order.reroutes, order.error = before.tried, before.attempts, before.rounds, before.reroutes, before.error
        order.unknown, order.waited = before.unknown, before.waited
        if before.reservation is not None:
            self._admission.count_once(order.principal, before.reservation)

    # --- across restarts ---

    def take_cooldown_changes(self, *, now: float, wall: float) -> tuple[CooldownRecord, ...]:
        """Return what the vault has not been told of cooldowns: a packet's worth at most."""
        return self.cooldowns.take_changes(now=now, wall=wall, most=COOLDOWNS_PER_PACKET)


def _tokens(order: Order, size: int) -> int:
    """Return what is set aside for a call whose body has `size` bytes."""
    return max(order.estimate, min(size // 8, MAX_ESTIMATE_FLOOR_TOKENS)) + order.max_tokens * order.n


def _lockdown() -> Unavailable:
    return Unavailable("The gateway is locked down by its operator.", code="lockdown", retry_after=60.0)


def _reroute_to(profile: Profile, order: Order) -> Reroute:
    tried = () if order.tried is None else {*order.tried.targets, *(target for target, _ in order.tried.pairs)}
    return Reroute(endpoint=int(profile.endpoint), quirks=int(profile.quirks), tried=tuple(sorted(tried)))
