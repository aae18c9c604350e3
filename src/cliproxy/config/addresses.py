"""Addresses and origins as text: which spellings the configuration accepts.

A function returns what is wrong and how to mend it, or `None`. Every accepted spelling means the same thing to every parser: no octal or
hexadecimal IPv4, no zone, no user, no query, no dot segments.
"""

from __future__ import annotations

import ipaddress

from cliproxy.errors import ConfigError
from cliproxy.providers.origin import parse_base_url

Complaint = tuple[str, str]


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
    if "@" in text.split("://", 1)[-1].split("/", 1)[0]:
        return "a URL here has no user or password", "remove them; a credential is added with `cliproxy credentials add`"
    if "?" in text or "#" in text:
        return "a URL here has no query and no fragment", "write it like https://api.example.com/v1"
    try:
        origin, _ = parse_base_url(text)
    except ConfigError as error:
        return error.problem, error.cure
    if ":" in origin.host and ipaddress.IPv6Address(origin.host).ipv4_mapped is not None:
        return "the host is an IPv4 address written as IPv6", "write the four decimal numbers"
    if not origin.tls and not plain_http and not origin.names_loopback():
        return "plain HTTP would send the credential in clear", "write https://, or plain_http: true if that network is trusted"
    return None


def complaint_about_proxy(text: str) -> Complaint | None:
    """Judge a provider's `proxy`: an HTTP proxy without user, password or path."""
    if "@" in text.split("://", 1)[-1]:
        return "a proxy here has no user and no password", "let the proxy know this machine by its address"
    try:
        origin, path = parse_base_url(text)
    except ConfigError:
        return "this is no plain URL of scheme, host and port", "write it like http://proxy.example.com:3128"
    if origin.tls or path:
        return "only proxies that are spoken to over http, without a path, are known", "write it like http://proxy.example.com:3128"
    return None


def sends_in_clear(base_url: str) -> bool:
    """Does a URL that `complaint_about_base_url` had nothing against send prompts over a network without TLS?"""
    origin, _ = parse_base_url(base_url)
    return not origin.tls and not origin.names_loopback()
