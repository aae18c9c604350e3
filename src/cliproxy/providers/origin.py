"""Where a provider is: `base_url` taken apart into an origin (scheme, host, port) and a path.

The origin's text (`https://api.example.com:443`) is part of a credential's sealed record, the name of a pool of connections and the only
thing that egress may ask the dialer for, so there is one spelling of it: lower case, always with the port, IPv6 compressed in brackets.
What has no single obvious meaning (userinfo, query, `0x7f.1`, percent signs, dot segments) is refused.
"""

from __future__ import annotations

import ipaddress
import re

import msgspec

from cliproxy.bounds import MAX_HOST_CHARS
from cliproxy.errors import ConfigError

MAX_BASE_URL_CHARS = 2048

_DEFAULT_PORTS = {"https": 443, "http": 80}
_URL = re.compile(r"(https?)://(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9.-]+)(?::([0-9]{1,5}))?((?:/[A-Za-z0-9._~!$&'()*+,;=:@-]*)*)")
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_NUMBER = re.compile(r"0x[0-9a-f]*|[0-9]+")  # what the URL standard's "ends in a number" check takes for part of an IPv4 address
_CURE = "write it like https://api.example.com/v1"


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """Scheme, host (lower case, without brackets) and port. `str(origin)` is its one spelling."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.scheme}://{self._bracketed()}:{self.port}"

    @property
    def tls(self) -> bool:
        """Whether connections to it are encrypted."""
        return self.scheme == "https"

    @property
    def host_field(self) -> bytes:
        """The value of `Host`: without the port where it is the scheme's default (RFC 9110 §7.2)."""
        host = self._bracketed()
        return (host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}").encode("ascii")

    def names_loopback(self) -> bool:
        """Return whether the host is literally a loopback address or `localhost`; a name that happens to resolve to one is not."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def _bracketed(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host


def parse_base_url(base_url: str) -> tuple[Origin, str]:
    """Return the origin in `base_url` and its path, without a slash at the end (`""` or `/v1`). Raises `ConfigError`."""
    match = _URL.fullmatch(base_url) if len(base_url) <= MAX_BASE_URL_CHARS else None
    if match is None:
        raise ConfigError("this is no plain http(s) URL of scheme, host, port and path", cure=_CURE)
    scheme, host, port_text, path = match.groups()
    port = int(port_text) if port_text else _DEFAULT_PORTS[scheme]
    if not 1 <= port <= 65535:
        raise ConfigError(f"port {port} does not exist", cure=_CURE)
    segments = path.split("/")
    if any(segment in (".", "..") for segment in segments) or "" in segments[1:-1]:
        raise ConfigError("the path has empty or dot segments", cure=_CURE)
    return Origin(scheme=scheme, host=_parse_host(host), port=port), path.removesuffix("/")


def _parse_host(host: str) -> str:
    if host.startswith("["):
        try:
            return str(ipaddress.IPv6Address(host[1:-1]))
        except ValueError:
            raise ConfigError("the host is no IPv6 address", cure=_CURE) from None
    host = host.lower()
    labels = host.split(".")
    if _NUMBER.fullmatch(labels[-1]) or not labels[-1]:
        try:
            return str(ipaddress.IPv4Address(host))  # refuses 0x7f.1, 127.1, 0177.0.0.1 and 2130706433, which inet_aton takes
        except ValueError:
            raise ConfigError("the host is neither a name nor a dotted IPv4 address", cure="write a name, or four decimal numbers") from None
    if len(host) > MAX_HOST_CHARS or not all(_LABEL.fullmatch(label) for label in labels):
        raise ConfigError("the host is no DNS name", cure="write the name with letters, digits, hyphens and dots (xn-- for other alphabets)")
    return host
