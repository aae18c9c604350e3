"""The checks between a request's bytes and egress, as steps that consume each other's types (steps 3 to 7 of docs/architecture.md).

    RawRequest ── authenticate ──> IdentifiedRequest ── decode ──> DecodedRequest ── admit ──> AdmittedRequest ── encode ──> OutboundRequest

Skipping one does not type-check. Each raises the `ClientError` or `Unavailable` that the client gets; none does I/O. Times are passed in.
From `DecodedRequest` on the client's bytes are not held any more: a request that may be sent again is kept as its decoded value.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import msgspec

from cliproxy.auth.principals import Principal
from cliproxy.config.routes import Profile, Route, RouteTable
from cliproxy.dataplane.keys import Presented
from cliproxy.dialects import ENDPOINTS, Operation
from cliproxy.errors import NotAuthenticated, NotFound, NotPermitted, SchemaError, Unavailable, UnsupportedFeature
from cliproxy.ingress.address import IpAddress
from cliproxy.ingress.framing import RawRequest
from cliproxy.ipc.policy_feed import PolicyFeed
from cliproxy.translators.table import TARGETS, ClientRow, DecodeOptions, RequestFacts

MAX_SESSION_CHARS = 256  # of `x-session-id`; longer ones are no session


class IdentifiedRequest(msgspec.Struct, frozen=True, gc=False):
    """A request whose key is known, alive and used from where it may be."""

    raw: RawRequest
    principal: Principal
    proof: bytes


class DecodedRequest(msgspec.Struct, frozen=True, gc=False):
    """A request whose body is what the schema says. `body` is what the row's `decode` made of its `size` bytes; `session` what the client calls its own."""

    principal: Principal
    proof: bytes
    row: ClientRow
    body: Any
    facts: RequestFacts
    session: bytes | None
    size: int


class AdmittedRequest(msgspec.Struct, frozen=True, gc=False):
    """A request for a model that exists and that its principal may use. `profiles`: what it may be written for, in that order; never empty for calls."""

    decoded: DecodedRequest
    route: Route
    profiles: tuple[Profile, ...]


class OutboundRequest(msgspec.Struct, frozen=True, gc=False):
    """What leaves for egress: our own encoding, without the upstream's model name, which egress puts in at `model_offset`.

    `dropped` are the client's names of the fields that were left out; `translated` says whether the answer will be in another dialect than the client's.
    """

    admitted: AdmittedRequest
    profile: Profile
    body: bytes
    model_offset: int
    dropped: tuple[str, ...]
    translated: bool


def authenticate(raw: RawRequest, presented: Presented, policy: PolicyFeed, *, address: IpAddress, now: float, wall: float) -> IdentifiedRequest:
    """Step 4. Raises `NotAuthenticated`, the same for every reason; 503 without a fresh policy."""
    proof = presented.proof
    principal = policy.principals.find(presented.digest, wall)
    policy.require_fresh(now)
    if principal is None or proof is None:
        raise NotAuthenticated
    if policy.rules.lockdown:
        raise Unavailable("The gateway is locked down by its operator.", code="lockdown", retry_after=60.0)
    if not principal.allows_address(address):
        raise NotPermitted("This API key may not be used from your address.", code="address_not_permitted")
    return IdentifiedRequest(raw, principal, proof)


def decode(request: IdentifiedRequest, row: ClientRow, options: DecodeOptions) -> DecodedRequest:
    """Step 5. Raises `SchemaError` naming the field."""
    raw = request.raw
    body = row.decode(raw.body, options, raw.content_type)
    return DecodedRequest(request.principal, request.proof, row, body, body if row.facts_of is None else row.facts_of(body), raw.session, len(raw.body))


def admit(request: DecodedRequest, table: RouteTable) -> AdmittedRequest:
    """Step 6: 404 for a model that does not exist, 403 for one that the key may not use, 400 for one that cannot do what is asked.

    A count is the exception: without a provider that counts there are no profiles, and the worker guesses.
    """
    route = find_model(request.facts.model, request.principal, table)
    row = request.row
    profiles = route.profiles(row.operation, row.dialect)
    if not profiles and row.operation is not Operation.COUNT_TOKENS:
        raise SchemaError("The provider of this model does not have this endpoint.", param="model", code="endpoint_not_supported")
    return AdmittedRequest(request, route, profiles)


def find_model(name: str, principal: Principal, table: RouteTable) -> Route:
    """Return the route of the public model `name`. Raises `NotFound`, with names like it that this key may use, or `NotPermitted`."""
    route = table.find(name)
    if route is None:
        near = table.near(name, principal.allows_model)
        hint = f" Did you mean {' or '.join(near)}?" if near else " The list of models names those that there are."
        raise NotFound("There is no model of that name here." + hint, param="model", code="model_not_found")
    if not principal.allows_model(name):
        raise NotPermitted("This API key may not use that model.", param="model", code="model_not_permitted")
    return route


def encode(request: AdmittedRequest) -> OutboundRequest:
    """Step 7, for the first of the request's profiles that can say it. Raises what was wrong with the first one if none can."""
    profiles = request.profiles
    if len(profiles) == 1:
        return encode_for(request, profiles[0])
    refusal: UnsupportedFeature | None = None
    for profile in profiles:
        try:
            return encode_for(request, profile)
        except UnsupportedFeature as error:
            refusal = refusal or error
    if refusal is None:
        raise SchemaError("The provider of this model does not have this endpoint.", param="model", code="endpoint_not_supported")
    raise refusal


def encode_for(request: AdmittedRequest, profile: Profile) -> OutboundRequest:
    """Step 7, for one profile. Raises `UnsupportedFeature` with the client's own path of what that one cannot say."""
    decoded = request.decoded
    row = decoded.row
    endpoint, quirks = profile
    if row.same is not None and ENDPOINTS[endpoint][1] is row.dialect:
        encoded = row.same(decoded.body, quirks)
        prefix = encoded.prefix
        dropped = encoded.dropped
        if dropped:
            dropped = tuple(client_path(name, row.field_names) for name in dropped)
        return OutboundRequest(request, profile, prefix + encoded.suffix, len(prefix), dropped, False)
    target = TARGETS.get(endpoint)
    if target is None or row.hub_of is None:
        raise UnsupportedFeature("The provider of this model does not have this endpoint.", param="model", code="endpoint_not_supported")
    try:
        hub = row.hub_of(decoded.body)
    except UnsupportedFeature as error:
        raise _naming(error, error.param) from None
    try:
        encoded = target.encode(hub, quirks)
    except UnsupportedFeature as error:
        raise _naming(error, client_path(error.param or "", row.field_names) or None) from None
    dropped = tuple(client_path(name, row.field_names) for name in encoded.dropped)
    return OutboundRequest(request, profile, encoded.prefix + encoded.suffix, len(encoded.prefix), dropped, True)


def _naming(error: UnsupportedFeature, path: str | None) -> UnsupportedFeature:
    """Return `error` about the client's field at `path`, which its message names too: many clients show nothing else."""
    message = error.message
    if path and path not in (word.strip(".,:;()") for word in message.split()):
        message = f"{message.removesuffix('.')} ({path})."
    return UnsupportedFeature(message, param=path, code=error.code)


def client_path(name: str, field_names: Mapping[str, str]) -> str:
    """Return the client's own path of `name`, a field of the hub or something inside one; what is a client's path already stays as it is."""
    known = field_names.get(name)
    if known is not None:
        return known
    for end, character in enumerate(name):
        if character in ".[":
            field = field_names.get(name[:end])
            return name if field is None else field + name[end:]
    return name


def session_of(request: AdmittedRequest) -> str:
    """Return what calls of one session have in common; empty where there is none. Only routes with affinity care.

    A hash with the principal in it: it tells nobody what the client calls its sessions, and no two principals share one.
    """
    decoded = request.decoded
    said = decoded.session
    if not said:
        said = decoded.row.session_of(decoded.body).encode("utf-8", "replace")
    if not 0 < len(said) <= MAX_SESSION_CHARS:
        return ""
    return sha256(decoded.principal.id.encode() + b"\0" + said).hexdigest()[:32]
