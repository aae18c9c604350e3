"""Which addresses may be connected to. Judged after resolving, on the address itself, so no spelling of a name gets around it.

    loopback            only for origins that are literally loopback, or say `private_network: true`
    private, shared     only with `private_network: true`
    metadata services, link-local, multicast, unspecified, documentation, benchmark, transition and reserved ranges: never
    everything else     allowed in IPv4; in IPv6 only 2000::/3, the part that IANA gives out

An IPv4 address inside an IPv6 one is judged as IPv4. Sources: the IANA special-purpose address registries (RFC 6890 and its updates).
"""

from __future__ import annotations

import ipaddress

from cliproxy.errors import ForbiddenAddress

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _networks(rows: dict[str, str]) -> tuple[tuple[_Network, str], ...]:
    return tuple((ipaddress.ip_network(text), reason) for text, reason in rows.items())


_NEVER = _networks(
    {
        # Services that hand out a machine's own credentials: reachable from inside, and the first thing an SSRF asks for.
        "169.254.169.254/32": "metadata",
        "169.254.170.2/32": "metadata",  # AWS ECS
        "100.100.100.200/32": "metadata",  # Alibaba
        "168.63.129.16/32": "metadata",  # Azure, in the middle of public space
        "192.0.0.192/32": "metadata",  # Oracle
        "fd00:ec2::254/128": "metadata",  # AWS
        "fd20:ce::254/128": "metadata",  # Google
        "0.0.0.0/8": "unspecified",  # Linux connects 0.0.0.0 to loopback
        "169.254.0.0/16": "link_local",
        "192.0.0.0/24": "reserved",
        "192.0.2.0/24": "documentation",
        "192.88.99.0/24": "transition",
        "198.18.0.0/15": "benchmark",
        "198.51.100.0/24": "documentation",
        "203.0.113.0/24": "documentation",
        "224.0.0.0/4": "multicast",
        "240.0.0.0/4": "reserved",
        "::/128": "unspecified",
        "64:ff9b:1::/48": "transition",
        "2001::/23": "reserved",  # Teredo, benchmarking, ORCHID
        "2001:db8::/32": "documentation",
        "2002::/16": "transition",  # 6to4: any IPv4 address in disguise
        "3fff::/20": "documentation",
        "fe80::/10": "link_local",
        "fec0::/10": "reserved",
        "ff00::/8": "multicast",
    }
)
_LOOPBACK = _networks({"127.0.0.0/8": "loopback", "::1/128": "loopback"})
_PRIVATE = _networks({"10.0.0.0/8": "private", "100.64.0.0/10": "shared", "172.16.0.0/12": "private", "192.168.0.0/16": "private", "fc00::/7": "private"})
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def verify_address(text: str, *, loopback: bool, private: bool) -> IPAddress:
    """Return the address in `text`, in the form to connect to, if it may be: `loopback` and `private` say what else than public ones may.

    Raises `ForbiddenAddress`, also for what is no address or has a scope (`fe80::1%eth0`).
    """
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise ForbiddenAddress(text, reason="malformed") from None
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            raise ForbiddenAddress(text, reason="scoped")
        if address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        elif address in _NAT64:
            # On an IPv6-only host this is how IPv4 is reached. The translator is another machine, so only public targets make sense.
            verify_address(str(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)), loopback=False, private=False)
            return address
    reason = _class_of(address)
    if reason == "loopback" and (loopback or private):
        return address
    if reason in ("private", "shared") and private:
        return address
    if reason:
        raise ForbiddenAddress(str(address), reason=reason)
    return address


def _class_of(address: IPAddress) -> str:
    """Return why `address` is not public; empty if it is."""
    for network, reason in (*_NEVER, *_LOOPBACK, *_PRIVATE):
        if address.version == network.version and address in network:
            return reason
    if address.version == 6 and address not in _GLOBAL_UNICAST:
        return "reserved"
    return ""
