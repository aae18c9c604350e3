"""Which paths there are, what each is for, and in whose words its errors are told: `surfaces/table.py`, looked up.

What always holds: a path means the same whatever the method, so that 405 and 404 are told apart.
"""

from __future__ import annotations

from typing import Final

from cliproxy.dataplane.surfaces.surface import ClientRoute, Surface
from cliproxy.dataplane.surfaces.table import DEFAULT, SURFACES
from cliproxy.errors import ClientError
from cliproxy.ingress.framing import RawRequest
from cliproxy.ingress.head import PartialHead
from cliproxy.translators.table import CLIENTS

MAX_QUERY_PARAMETERS = 32  # of Gemini's paths; its SDKs send two

EXACT: Final[dict[bytes, ClientRoute]] = {
    **{path: ClientRoute(surface, b"POST", None, CLIENTS[call]) for surface in SURFACES for path, call in surface.calls.items()},
    **{path: ClientRoute(surface, b"GET", page) for surface in SURFACES for path, page in surface.pages.items()},
}
# What a client is told that took another path than it meant.
NO_ROUTE: Final = "There is no such route. The base URL for OpenAI's SDKs ends in /v1; for Anthropic's and Google's it has no path."
_WITH_PARAMETERS: Final = tuple(surface for surface in SURFACES if surface.key_parameter)
_HINTED: Final = tuple(surface for surface in SURFACES if surface.hint)


def route_of(request: RawRequest) -> ClientRoute | None:
    """Return the row of the request's path, `None` if there is none. Raises `NotFound` for a name that no model can have, 400 for a bad query."""
    path = request.path
    if request.query is not None and request.query.count(b"&") >= MAX_QUERY_PARAMETERS and key_parameter_of(path):
        raise ClientError(f"The query has more than {MAX_QUERY_PARAMETERS} parameters.", code="invalid_request")
    route = EXACT.get(path)
    if route is not None:
        return route
    return surface_of(request).find(path, request.query)


def surface_of(seen: RawRequest | PartialHead) -> Surface:
    """Return in whose words an error about `seen` is told, whether there is such a path or not: the path decides, then the headers."""
    route = EXACT.get(seen.path)
    if route is not None:
        return route.surface
    for surface in SURFACES:
        if surface.owns(seen.path):
            return surface
    for surface in _HINTED:
        if getattr(seen, surface.hint) not in (None, False):  # an empty header is one too
            return surface
    return DEFAULT


def key_parameter_of(path: bytes) -> bytes:
    """Return the query parameter that a key may stand in on `path`; empty: none."""
    for surface in _WITH_PARAMETERS:
        if path in surface.pages or path in surface.calls or surface.owns(path):
            return surface.key_parameter
    return b""
