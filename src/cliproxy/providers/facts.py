"""What a kind of provider wants on the wire, and the request heads made from that.

`build_head` is the only source of outbound request lines and headers: its inputs are these facts, the operator's settings and the
credential. Nothing that a client or a worker sent can get into it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cliproxy import __version__
from cliproxy.dialects import Dialect, Endpoint
from cliproxy.providers.origin import Origin


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointFacts:
    """`path` is relative to the provider's `base_url`; `dialect` is what is spoken there."""

    path: str
    dialect: Dialect


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderFacts:
    """`remote`: answers come over the network. `auth_header` and `auth_scheme` say where a credential goes (`Authorization`, `Bearer `)."""

    kind: str
    remote: bool
    auth_header: bytes
    auth_scheme: bytes
    endpoints: Mapping[Endpoint, EndpointFacts]


def build_head(facts: ProviderFacts, endpoint: Endpoint, *, origin: Origin, base_path: str, credential: bytes | None, stream: bool) -> bytes:
    """Return the head of a request up to and including `Content-Length: `; the caller adds the number and the empty line.

    `credential` has been checked to hold visible ASCII only; `None` leaves the header out. Raises `KeyError` when the provider lacks `endpoint`.
    """
    path = (base_path + facts.endpoints[endpoint].path).encode("ascii")
    lines = [b"POST " + path + b" HTTP/1.1", b"Host: " + origin.host_field]
    if credential is not None:
        lines.append(facts.auth_header + b": " + facts.auth_scheme + credential)
    lines += [
        b"Content-Type: application/json",
        b"Accept: text/event-stream" if stream else b"Accept: application/json",
        b"Accept-Encoding: identity",  # a compressed answer is refused: we would have to unpack it to see reflected secrets
        b"User-Agent: cliproxy/" + __version__.encode("ascii"),
        b"Content-Length: ",
    ]
    return b"\r\n".join(lines)
