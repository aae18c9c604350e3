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

from cliproxy.auth.client_keys import digest_of
from cliproxy.bounds import COOLDOWNS_PER_PACKET, MAX_REROUTES, MAX_ROUTE_TARGETS
from cliproxy.config.routes import Profile, RouteTable, Target
from cliproxy.config.schema import Provider, Settings
from cliproxy.dialects import ENDPOINT_NAMES, ENDPOINTS, Endpoint
from cliproxy.egress.admission import Admission
from cliproxy.egress.call import Asked, AuthorizedRequest, Call, Progress
from cliproxy.egress.cooldowns import PROBE_LOOK_SECONDS, Cooldown, Cooldowns, Fault
from cliproxy.egress.inject import BoundCredential, Injector
from cliproxy.egress.routing import Router, Tried
from cliproxy.errors import ChannelError, CliproxyError, NotAuthenticated, NotFound, NotPermitted, ProviderLimited, SchemaError, Unavailable
from cliproxy.ipc.messages import CooldownRecord
from cliproxy.ipc.mux import CallHead, Reroute
from cliproxy.ipc.policy_feed import PolicyFeed
from cliproxy.metering.table import METERS
from cliproxy.providers.table import facts_of

MAX_ESTIMATE_FLOOR_TOKENS = 4096  # prompt tokens reserved at least, from the body's length

_ENDPOINTS = {int(endpoint): endpoint for endpoint in Endpoint}
_IN_PROCESS: tuple[BoundCredential | None, ...] = (None,)


class Wait(NamedTuple):
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

    def admit(self, head: CallHead, *, now: float, wall: float) -> Asked:
        """Return what the call asks for, as one that may be tried, or raise the `ClientError` or `Unavailable` that its client gets.

        Raises `ChannelError` when the worker says what an honest one cannot.
        """
        self._policy.require_fresh(now)
        principal = self._policy.principals.find(digest_of(head.proof), wall)
        if principal is None:
            raise NotAuthenticated
        if self._policy.rules.lockdown:
            raise _lockdown()
        if not principal.allows_address(head.address):
            raise NotPermitted("This API key may not be used from your address.", code="address_not_permitted")
        if not principal.allows_model(head.model):
            raise NotPermitted("This API key may not use that model.", param="model", code="model_not_permitted")
        route = self._routes.find(head.model)
        if route is None:
            raise NotFound("There is no model of that name here; GET /v1/models lists them.", param="model", code="model_not_found")
        endpoint = _ENDPOINTS.get(head.endpoint)
        if endpoint is None:
            raise ChannelError(f"endpoint {head.endpoint} does not exist")
        meter = METERS.get(endpoint)
        if meter is None or (head.stream and meter.stream is None):
            raise ChannelError(f"endpoint {head.endpoint} is not spoken here, or not streamed")
        tried = head.tried
        if len(tried) > MAX_ROUTE_TARGETS:
            raise ChannelError("a call was tried more often than there are targets")
        if head.max_tokens < 0 or head.n < 0:
            raise ChannelError("a call that asks for less than nothing would make room in a limit")
        return Asked(
            head.request_id,
            head.address,
            principal,
            route,
            endpoint,
            meter,
            route.groups_for((endpoint, head.quirks)),
            head.max_tokens,
            head.n,
            head.stream,
            head.estimate,
            head.model_offset,
            f"{principal.id}\0{head.session}" if head.session else "",
            head.client,
        )

    def resume(self, asked: Asked, tried: tuple[str, ...], before: Progress | None) -> Progress:
        """Return how far a call has come that was admitted just now: it goes on where it was before its REROUTE, and is counted once. Where that is not known,
        the worker's word for what was `tried` takes targets away."""
        if before is not None:
            reservation, before.reservation = before.reservation, None
            if reservation is not None:
                self._admission.count_once(asked.principal, reservation)
            return before
        if tried:
            progress = Progress(Tried([id for id in tried if id in asked.route.by_id]))
            progress.attempts = len(progress.note().targets)
            return progress
        return Progress()

    # --- once for an attempt ---

    def authorise(self, call: Call, *, now: float, wall: float) -> AuthorizedRequest | Wait | Reroute:
        """Return the next attempt of `call`; or when to ask again; or what the worker is to write the call anew for. Raises the error that the client gets
        when there is nothing left to try.

        Raises `ChannelError` when the body is not what the worker said.
        """
        rules = self._policy.rules
        asked, progress = call.asked, call.progress
        if progress.attempts or progress.rounds:
            self._policy.require_fresh(now)
            if rules.lockdown:
                raise _lockdown()
        limited: ProviderLimited | None = None
        reservation = progress.reservation
        while progress.attempts < self._max_attempts:
            chosen = self._only_one(asked, progress) or self._router.choose(
                asked.groups,
                asked.endpoint,
                credentials=self._credentials,
                tried=progress.tried,
                disabled=rules.disabled_providers,
                session=asked.session,
                now=now,
            )
            if chosen is None:
                step = self._otherwise(asked, progress, limited, now)
                if reservation is None and type(step) is Wait:  # it holds its key's place while it waits, like any other call
                    progress.reservation = self._admission.hold(asked.principal, tokens=_tokens(asked, len(call.body)), now=now, wall=wall)
                return step
            target, credential = chosen
            final = self._spliced(call, target)
            try:
                if reservation is None:
                    tokens = _tokens(asked, len(final))
                    reservation = progress.reservation = self._admission.reserve(asked.principal, target.provider, tokens=tokens, now=now, wall=wall)
                else:
                    self._admission.move(reservation, target.provider, now=now)
            except ProviderLimited as error:
                progress.note().providers.add(target.provider)
                limited = error
                continue
            progress.attempts += 1
            progress.waited = 0.0
            request = AuthorizedRequest(call, target, credential, reservation, asked.stream, progress.attempts, now, final)
            if self.cooldowns.table:
                request.probe = self.cooldowns.begin(request.key, now)
            if len(asked.route.targets) > 1:
                request.counted = True
                self._router.began(target)
            return request
        raise progress.error or limited or Unavailable("The call was tried as often as it may be.", code="attempts_exhausted")

    def _only_one(self, asked: Asked, progress: Progress) -> tuple[Target, BoundCredential | None] | None:
        """Return what `choose` would, in the common case of one target, one credential and no trouble."""
        if progress.tried is None and not self.cooldowns.table and len(asked.groups) == 1:
            targets = asked.groups[0].targets
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

    def _spliced(self, call: Call, target: Target) -> bytes:
        """Return the final body for `target`, which asks for just what the worker said; raises `ChannelError` if it does not."""
        asked = call.asked
        filling = target.fillings[asked.endpoint]
        body, offset = call.body, asked.model_offset
        final = body[:offset] + filling + body[offset:] if filling else body
        found = asked.meter.asked_for(final)
        if (
            found.model != (target.model if filling else "")
            or found.max_tokens != asked.max_tokens
            or found.n != asked.n
            or (found.stream != asked.stream and (found.stream is not None or asked.meter.says_stream))
        ):
            raise ChannelError(f"a body for {ENDPOINT_NAMES[asked.endpoint]} is not what the worker said")
        if asked.max_tokens > self._max_tokens:
            raise SchemaError(f"max_tokens is above this gateway's limit of {self._max_tokens}.", param="max_tokens")
        return final

    # --- nothing to choose ---

    def _otherwise(self, asked: Asked, progress: Progress, limited: ProviderLimited | None, now: float) -> Wait | Reroute:
        """Nobody of the call's profile can take it now: another profile's target can, or one will soon, or it has failed."""
        disabled = self._policy.rules.disabled_providers
        profiles = asked.route.profiles(ENDPOINTS[asked.endpoint][0], asked.client)
        if not profiles:
            raise SchemaError("The provider of this model does not have this endpoint.", param="model", code="endpoint_not_supported")
        others = [(profile, asked.route.groups_for(profile)) for profile in profiles]
        for profile, groups in others:
            if groups is asked.groups or progress.reroutes >= MAX_REROUTES:
                continue
            if self._router.can(groups, profile.endpoint, credentials=self._credentials, tried=progress.tried, disabled=disabled, now=now):
                progress.reroutes += 1
                return _reroute_to(profile, progress)
        cooldown = self._router.soonest(
            [(asked.endpoint, asked.groups), *((profile.endpoint, groups) for profile, groups in others)],
            credentials=self._credentials,
            disabled=disabled,
            now=now,
        )
        wait = None if cooldown is None else self._wait(progress, cooldown, now)
        if wait is not None:
            return wait
        if progress.error is not None:
            raise progress.error
        if cooldown is not None:
            raise cooldown.error(now)
        if limited is not None:
            raise limited
        names = sorted({target.provider for target in asked.route.targets})
        if all(name in disabled for name in names):
            raise Unavailable(f"Provider {', '.join(names)} is switched off by the operator.", code="provider_disabled", retry_after=60.0)
        names = [name for name in names if name not in disabled]
        message = f"The gateway has no credential for {', '.join(names)} at the configured address: its operator adds one with `cliproxy credentials add`."
        raise Unavailable(message, code="no_credential", retry_after=60.0)

    def _wait(self, progress: Progress, cooldown: Cooldown, now: float) -> Wait | None:
        """Return how long a call may wait for `cooldown`, or for the verdict of a call that probes it; `None`: no longer. A call that has waited and finds
        that another one probes, or that it cools longer, goes on with the same round."""
        seconds = PROBE_LOOK_SECONDS if cooldown.is_probed(now) else cooldown.wait(now)
        if progress.waited + seconds > self._routing.max_wait_seconds:
            return None
        if not progress.waited:
            if progress.rounds >= self._routing.retry_rounds:
                return None
            progress.rounds += 1
            progress.tried = None  # what has cooled down is tried again; what failed without cooling has had its turn
        progress.waited += seconds
        return Wait(seconds)

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
        progress = request.call.progress
        progress.error = error
        tried = progress.note()
        tried.pairs.add((request.target.id, request.key.credential))
        if fault.everywhere:
            tried.providers.add(request.target.provider)

    # --- across restarts ---

    def take_cooldown_changes(self, *, now: float, wall: float) -> tuple[CooldownRecord, ...]:
        """Return what the vault has not been told of cooldowns: a packet's worth at most."""
        return self.cooldowns.take_changes(now=now, wall=wall, most=COOLDOWNS_PER_PACKET)


def _tokens(asked: Asked, size: int) -> int:
    """Return what is set aside for a call whose body has `size` bytes."""
    return max(asked.estimate, min(size // 8, MAX_ESTIMATE_FLOOR_TOKENS)) + asked.max_tokens * asked.n


def _lockdown() -> Unavailable:
    return Unavailable("The gateway is locked down by its operator.", code="lockdown", retry_after=60.0)


def _reroute_to(profile: Profile, progress: Progress) -> Reroute:
    tried = () if progress.tried is None else {*progress.tried.targets, *(target for target, _ in progress.tried.pairs)}
    return Reroute(endpoint=int(profile.endpoint), quirks=int(profile.quirks), tried=tuple(sorted(tried)))
