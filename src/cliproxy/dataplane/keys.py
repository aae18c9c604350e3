"""Where a client's key stands in its request, and what it proves.

What always holds: whatever is wrong with a key or its place, the same work is done and the same is known afterwards: no proof. A request that presents two
different keys presents none, since whoever reads only one of the places would take it for somebody else.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter

import msgspec

from cliproxy.auth.client_keys import digest_of, proof_of
from cliproxy.dataplane.routes import key_parameter_of
from cliproxy.dataplane.surfaces.paths import parameters
from cliproxy.dataplane.surfaces.table import SURFACES
from cliproxy.ingress.framing import RawRequest

# What stands in the vendors' own headers, a tuple. One call, since it is made for each request.
_in_headers: Callable[[RawRequest], tuple[bytes | None, ...]] = attrgetter(*(surface.key_header for surface in SURFACES if surface.key_header))
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

    It stands in `Authorization: Bearer`, in the header of any vendor, or, on the paths of a vendor that has one, in the query; in several of them if it is the
    same. Another scheme in Authorization, or an empty value, is a key that differs from every other.
    """
    token: bytes | None = None
    value = request.authorization
    if value is not None:
        token = value[7:].strip(b" ") if value[:7].lower() == b"bearer " else b""  # RFC 6750 §2.1; the scheme's case does not matter
    for other in _in_headers(request):
        if other is not None:
            token = other if token is None or token == other else b""
    if request.query is not None:
        parameter = key_parameter_of(request.path)
        if parameter:
            for other in parameters(request.query, parameter):
                token = other if token is None or token == other else b""
    return token or None
