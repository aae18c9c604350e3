"""Where a client's key stands in its request, and what it proves.

What always holds: whatever is wrong with a key or its place, the same work is done and the same is known afterwards: no proof. A request that presents two
different keys presents none, since whoever reads only one of the places would take it for somebody else.
"""

from __future__ import annotations

import msgspec

from cliproxy.auth.client_keys import digest_of, proof_of
from cliproxy.dataplane.routes import is_gemini, parameters
from cliproxy.ingress.framing import RawRequest

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


def present(token: bytes | None) -> Presented:
    """Return what `token` proves. The same work for every token, malformed or missing too."""
    proof = proof_of(token or b"")
    return Presented(token, proof, digest_of(proof or NO_KEY))


def token_of(request: RawRequest) -> bytes | None:
    """Return the one token that the request presents, or `None`.

    It stands in `Authorization: Bearer`, `x-api-key`, `x-goog-api-key`, or, on Gemini's paths only, in the query as `key`; in several of them if it is the
    same. Another scheme in Authorization, or an empty value, is a key that differs from every other.
    """
    token: bytes | None = None
    value = request.authorization
    if value is not None:
        token = value[7:].strip(b" ") if value[:7].lower() == b"bearer " else b""  # RFC 6750 §2.1; the scheme's case does not matter
    if request.api_key is not None:
        token = request.api_key if token is None or token == request.api_key else b""
    if request.goog_api_key is not None:
        token = request.goog_api_key if token is None or token == request.goog_api_key else b""
    if request.query is not None and is_gemini(request.path):
        for other in parameters(request.query, b"key"):
            token = other if token is None or token == other else b""
    return token or None
