"""Addresses and origins as text: which spellings the configuration accepts.

A function returns what is wrong and how to mend it, or `None`. Every accepted spelling means the same thing to every parser: no octal or
hexadecimal IPv4, no zone, no user, no query, no dot segments.
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

Complaint = tuple[str, str]

_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")
_URL_CHARACTERS = re.compile(r"[A-Za-z0-9._~:/\[\]-]+")


def complaint_about_network(text: str) -> Complaint | None:
    """Judge an address or CIDR block of an allowlist, denylist or key."""
    try:
        interface = ipaddress.ip_interface(text)
    except ValueError:
        return "this is no IP address or CIDR block", "write it as 192.0.2.7, 10.0.0.0/8 or 2001:db8::/32"
    if "%" in text:
        return "an address here has no zone", "remove the %zone"
    network = interface.network
    if isinstance(network, ipaddress.IPv6Network) and network.network_address.ipv4_mapped is not None and network.prefixlen >= 96:
        return "IPv4 addresses are judged as IPv4", f"write {network.network_address.ipv4_mapped}/{network.prefixlen - 96}"
    if "/" in text and interface.ip != network.network_address:
        return "this block has bits set after its prefix", f"write {network}"
    return None


def complaint_about_listener(text: str) -> Complaint | None:
    """Judge one address of `server.listen`."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return "this is no IP address", 'write it as "127.0.0.1", "::1", "0.0.0.0" or "::"'
    if getattr(address, "scope_id", None) is not None:
        return "an address here has no zone", "remove the %zone"
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return "an IPv4 address is written as IPv4", f'write "{address.ipv4_mapped}"'
    if address.is_multicast:
        return "nobody can listen on a multicast address", "write an address of this machine"
    return None


def is_loopback(host: str) -> bool:
    """Is `host` a loopback address literal or `localhost`?"""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def complaint_about_base_url(text: str, *, plain_http: bool) -> Complaint | None:
    """Judge a provider's `base_url`. Plain HTTP only to loopback or where `plain_http` says so."""
    example = "write it as https://api.example.com/v1"
    if not _URL_CHARACTERS.fullmatch(text):
        if "@" in text:
            return "a URL here has no user or password", "remove them; a credential is added with `cliproxy credentials add`"
        if "?" in text or "#" in text:
            return "a URL here has no query and no fragment", example
        return "this URL has characters that a base URL never needs", example + " (a name outside ASCII in its xn-- form)"
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        return "this is no URL", example
    if parts.scheme not in ("https", "http") or not text.startswith(f"{parts.scheme}://"):
        return "this is no http or https URL", example
    if not host or not _is_host(host, bracketed=parts.netloc.startswith("[")):
        return "the host of this URL is neither a name nor a plain IP address", example
    if port == 0 or parts.netloc.endswith(":"):
        return "the port of this URL is not between 1 and 65535", "correct it or leave it out"
    segments = parts.path.split("/")[1:]
    if any(segment in (".", "..") for segment in segments) or "//" in parts.path:
        return "the path of this URL has empty or dot segments", example
    if parts.scheme == "http" and not plain_http and not is_loopback(host):
        return "plain HTTP would send the credential in clear", "write https://, or plain_http: true if that network is trusted"
    return None


def host_of(base_url: str) -> str:
    """Return the host of a URL that `complaint_about_base_url` had nothing against, without brackets."""
    return urlsplit(base_url).hostname or ""


def _is_host(host: str, *, bracketed: bool) -> bool:
    if bracketed:
        try:
            address = ipaddress.IPv6Address(host)
        except ValueError:
            return False
        return address.scope_id is None and address.ipv4_mapped is None
    labels = host.split(".")
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        return False
    if re.fullmatch(r"[0-9]+|0[xX][0-9A-Fa-f]*", labels[-1]):  # WHATWG URL: a last label of digits makes it an IPv4 address
        try:
            ipaddress.IPv4Address(host)
        except ValueError:
            return False
    return True
