"""Step 8: whether a call that a worker asks for may leave, decided from what egress itself knows and from the final bytes.

The worker is not trusted: the principal is proven by P, the endpoint is an enum, the model's route and the limits are ours, and what the
body asks for (model, tokens, choices, stream) is read again from the bytes that would leave. An `AuthorizedRequest` is used once.

    1. P proves a living principal; its networks and models are checked again; lockdown and disabled providers are honoured
    2. the route's model is spliced in and the final body is read again; what it asks for must be what the worker said, within the cap
    3. the limits take their part: requests, tokens and concurrency, of the key and of the provider; what was taken is given back on a refusal
    4. a credential sealed to the target's origin is chosen
"""

from __future__ import annotations

import msgspec

from cliproxy.auth.client_keys import digest_of
from cliproxy.auth.principals import Principal
from cliproxy.bounds import MAX_ESTIMATE_FLOOR_TOKENS
from cliproxy.config.routes import RouteTable, Target
from cliproxy.config.schema import Settings
from cliproxy.dialects import Endpoint
from cliproxy.egress.admission import Admission, Reservation
from cliproxy.egress.inject import BoundCredential, Injector
from cliproxy.errors import ChannelError, NotAuthenticated, NotFound, NotPermitted, SchemaError, Unavailable
from cliproxy.ipc.mux import Call
from cliproxy.ipc.policy_feed import PolicyFeed
from cliproxy.translators.openai_chat.usage import reread as reread_chat
from cliproxy.translators.openai_embeddings.usage import reread as reread_embeddings

_ENDPOINTS = {int(endpoint): endpoint for endpoint in Endpoint}


class AuthorizedRequest(msgspec.Struct, frozen=True, gc=False):
    """A call that may leave once, to `target` only. `credential` is None for a provider inside the process."""

    call: Call
    endpoint: Endpoint
    principal: Principal
    target: Target
    credential: BoundCredential | None
    body: bytes
    stream: bool
    reservation: Reservation


class Authoriser:
    """The decision of step 8 over the tables of one configuration; limits outlive a reload."""

    def __init__(self, settings: Settings, policy: PolicyFeed, injector: Injector, admission: Admission) -> None:
        self._policy = policy
        self._injector = injector
        self._admission = admission
        self.reconfigure(settings)

    def reconfigure(self, settings: Settings) -> None:
        """Take new tables. Raises `ConfigError` and changes nothing if a route leads nowhere."""
        self._routes = RouteTable(settings)
        self._max_tokens = settings.requests.max_tokens
        self._admission.reconfigure(settings)

    def authorise(self, call: Call, body: bytes, *, now: float, wall: float) -> AuthorizedRequest:
        """Return the call made ready, or raise the `ClientError` or `Unavailable` that its client gets.

        Raises `ChannelError` when the worker says what an honest one cannot: the body is not what it described.
        """
        self._policy.require_fresh(now)
        principal = self._policy.principals.find(digest_of(call.proof), wall)
        if principal is None:
            raise NotAuthenticated
        rules = self._policy.rules
        if rules.lockdown:
            raise Unavailable("The gateway is locked down by its operator.", code="lockdown", retry_after=60.0)
        if not principal.allows_address(call.address):
            raise NotPermitted("This API key may not be used from your address.", code="address_not_permitted")
        if not principal.allows_model(call.model):
            raise NotPermitted("This API key may not use that model.", param="model", code="model_not_permitted")
        route = self._routes.find(call.model)
        if route is None:
            raise NotFound("There is no model of that name here; GET /v1/models lists them.", param="model", code="model_not_found")
        target = route.targets[0]
        if target.provider in rules.disabled_providers:
            raise Unavailable(f"Provider {target.provider} is switched off by the operator.", code="provider_disabled", retry_after=60.0)
        endpoint = self._endpoint_of(call, target)
        final = body[: call.hole] + target.model_json + body[call.hole :]
        tokens = self._read_again(call, endpoint, target, final)
        credential = self._credential_for(target)
        reservation = self._admission.reserve(principal, target.provider, tokens=tokens, now=now, wall=wall)
        return AuthorizedRequest(call, endpoint, principal, target, credential, final, call.stream, reservation)

    def _credential_for(self, target: Target) -> BoundCredential | None:
        if not target.facts.remote:
            return None
        credential = self._injector.for_provider(target.provider)
        if credential is None:
            raise Unavailable(f"The gateway has no credential for provider {target.provider} at its configured origin.", code="no_credential", retry_after=60.0)
        return credential

    def _endpoint_of(self, call: Call, target: Target) -> Endpoint:
        endpoint = _ENDPOINTS.get(call.endpoint)
        if endpoint is None:
            raise ChannelError(f"endpoint {call.endpoint} does not exist")
        if endpoint not in target.facts.endpoints:
            raise SchemaError("The provider of this model does not have this endpoint.", param="model", code="endpoint_not_supported")
        return endpoint

    def _read_again(self, call: Call, endpoint: Endpoint, target: Target, final: bytes) -> int:
        """Return the tokens to reserve; raises `ChannelError` unless the final bytes ask for just what the worker said."""
        if endpoint is Endpoint.EMBEDDINGS:
            model = reread_embeddings(final)
            if model != target.model or call.stream:
                raise ChannelError("an embeddings body is not what the worker said")
            return max(call.estimate, _floor(final))
        read = reread_chat(final)
        if read.model != target.model or read.stream != call.stream or read.n != call.n or read.max_tokens != call.max_tokens:
            raise ChannelError("a chat body is not what the worker said")
        if read.max_tokens > self._max_tokens:
            raise SchemaError(f"max_tokens is above this gateway's limit of {self._max_tokens}.", param="max_tokens")
        return max(call.estimate, _floor(final)) + read.max_tokens * read.n


def _floor(body: bytes) -> int:
    """Return the least prompt tokens that we reserve whatever the worker estimates; capped, since an image is long and costs little."""
    return min(len(body) // 8, MAX_ESTIMATE_FLOOR_TOKENS)
