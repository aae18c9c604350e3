"""A client's address as everybody here sees it: one normal form, so that no rule can be passed by spelling.

What always holds: a mapped IPv4 address (`::ffff:192.0.2.1`) is that IPv4 address; a zone is no part of an address. An IPv6 client is counted by
its /64, the least that a network hands out (RFC 6177 §2): inside it a client has 2^64 addresses for nothing.
"""

from __future__ import annotations

import ipaddress

import msgspec

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class Address(msgspec.Struct, frozen=True):
    """`text` is the canonical spelling, `value` the number, `version` 4 or 6; `group` what is counted: the address, or its /64."""

    text: str
    ip: IpAddress
    version: int
    value: int
    group: bytes


def parse_address(host: str) -> Address:
    """Return the address that `host`, as the kernel spells it, names. Raises `ValueError` on anything else."""
    ip: IpAddress = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        mapped = ip.ipv4_mapped
        if mapped is None:
            return Address(str(ip), ip, 6, int(ip), ip.packed[:8])
        ip = mapped
    return Address(str(ip), ip, 4, int(ip), ip.packed)
