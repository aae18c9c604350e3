"""The checks between a request's bytes and egress, as steps that consume each other's types (DESIGN §3, steps 3 to 7).

    RawRequest ── authenticate ──> IdentifiedRequest ── decode ──> DecodedRequest ── admit ──> AdmittedRequest ── encode ──> OutboundRequest

Skipping one does not type-check. Each raises the `ClientError` or `Unavailable` that the client gets; none does I/O. Times are passed in.
"""

from __future__ import annotations

import msgspec

from cliproxy.auth.client_keys import digest_of, proof_of
from cliproxy.auth.principals import Principal
from cliproxy.config.schema import Requests
from cliproxy.dataplane.server import RawRequest
from cliproxy.dialects import Endpoint
from cliproxy.errors import NotAuthenticated, NotFound, NotPermitted, Unavailable
from cliproxy.ingress.address import IpAddress
from cliproxy.ipc.policy_feed import PolicyFeed
from cliproxy.translators.openai_chat.decode import ChatRequest, decode_chat
from cliproxy.translators.openai_chat.encode import encode_with_hole as encode_chat
from cliproxy.translators.openai_embeddings.decode import EmbeddingsRequest, decode_embeddings
from cliproxy.translators.openai_embeddings.encode import encode_with_hole as encode_embeddings

NO_KEY = bytes(32)  # hashed in place of a missing proof, so that every refusal does the same work


class Presented(msgspec.Struct, frozen=True, gc=False):
    """A token as a client presented it, and what it proves: `proof` is None unless it is well-formed; `digest` is what is looked up."""

    token: bytes | None
    proof: bytes | None
    digest: bytes

    def __repr__(self) -> str:
        return "Presented(***)"

    def __rich_repr__(self) -> list[tuple[str, object]]:  # msgspec's own would show the token
        return []


class IdentifiedRequest(msgspec.Struct, frozen=True, gc=False):
    """A request whose key is known, alive and used from where it may be."""

    raw: RawRequest
    principal: Principal
    proof: bytes


class DecodedRequest(msgspec.Struct, frozen=True, gc=False):
    """A request whose body is what the schema says."""

    identified: IdentifiedRequest
    endpoint: Endpoint
    body: ChatRequest | EmbeddingsRequest


class AdmittedRequest(msgspec.Struct, frozen=True, gc=False):
    """A request for a model that exists and that its principal may use."""

    decoded: DecodedRequest


class OutboundRequest(msgspec.Struct, frozen=True, gc=False):
    """What leaves for egress: our own encoding, with a hole for the upstream's model name."""

    admitted: AdmittedRequest
    body: bytes
    hole: int


def present(token: bytes | None) -> Presented:
    """Return what `token` proves. The same work for every token, malformed or missing too."""
    proof = proof_of(token or b"")
    return Presented(token, proof, digest_of(proof or NO_KEY))


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


def decode(request: IdentifiedRequest, endpoint: Endpoint, rules: Requests) -> DecodedRequest:
    """Step 5. Raises `SchemaError` naming the field."""
    if endpoint is Endpoint.CHAT_COMPLETIONS:
        return DecodedRequest(request, endpoint, decode_chat(request.raw.body, max_tokens_cap=rules.max_tokens, on_excess=rules.on_excess))
    return DecodedRequest(request, endpoint, decode_embeddings(request.raw.body))


def admit(request: DecodedRequest, models: frozenset[str]) -> AdmittedRequest:
    """Step 6: 404 for a model that does not exist, 403 for one that the key may not use."""
    model = request.body.model
    if model not in models:
        raise NotFound("There is no model of that name here; GET /v1/models lists them.", param="model", code="model_not_found")
    if not request.identified.principal.allows_model(model):
        raise NotPermitted("This API key may not use that model.", param="model", code="model_not_permitted")
    return AdmittedRequest(request)


def encode(request: AdmittedRequest) -> OutboundRequest:
    """Step 7."""
    body = request.decoded.body
    prefix, suffix = encode_chat(body) if isinstance(body, ChatRequest) else encode_embeddings(body)
    return OutboundRequest(request, prefix + suffix, len(prefix))
