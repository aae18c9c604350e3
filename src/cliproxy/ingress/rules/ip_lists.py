"""Which addresses may connect: allowlist, denylist, and what the policy feed blocks.

What always holds:
- A block of the policy feed denies, whatever the lists say: it is the operator's emergency brake.
- Else the longest matching prefix of the two lists decides; where both name the same network, it denies.
- Else a non-empty, enabled allowlist denies, anything else admits. So the specification's example (`0.0.0.0/0` denied, two networks allowed) works as
  its comment says, and an allowlist that names IPv4 only lets no IPv6 in.

Networks become disjoint intervals once; a look-up is one bisection, however many networks there are.
"""

from __future__ import annotations

import ipaddress
from bisect import bisect_right
from collections.abc import Iterable

from cliproxy.config.schema import ServerSecurity
from cliproxy.errors import ConfigError
from cliproxy.ingress.address import Address

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_MAPPED_BITS = 96  # ::ffff:0:0/96
_FAMILY_BITS = {4: 32, 6: 128}


class IpLists:
    """An immutable table of verdicts; `with_blocked` makes the next one."""

    __slots__ = ("_allowed", "_default", "_denied", "_starts", "_verdicts")

    name = "ip_lists"

    def __init__(self, security: ServerSecurity, blocked: Iterable[str] = ()) -> None:
        """Raises `ConfigError` for an entry that is no network."""
        allowlist = security.ip_allowlist
        self._allowed = tuple(parse_network(text) for text in allowlist.allowed_ips) if allowlist.enabled else ()
        self._denied = tuple(parse_network(text) for text in security.ip_denylist)
        self._default = not self._allowed
        self._starts: dict[int, list[int]] = {}
        self._verdicts: dict[int, list[bool]] = {}
        self._build(tuple(parse_network(text) for text in blocked))

    def with_blocked(self, blocked: Iterable[str]) -> IpLists:
        """Return the same lists with other blocked networks. Raises `ConfigError` for an entry that is no network."""
        twin = object.__new__(IpLists)
        twin._allowed, twin._denied, twin._default = self._allowed, self._denied, self._default
        twin._starts, twin._verdicts = {}, {}
        twin._build(tuple(parse_network(text) for text in blocked))
        return twin

    def admits(self, address: Address) -> bool:
        """Say whether `address` may connect."""
        version = address.version
        return self._verdicts[version][bisect_right(self._starts[version], address.value) - 1]

    def _build(self, blocked: tuple[Network, ...]) -> None:
        for version, bits in _FAMILY_BITS.items():
            verdicts: dict[Network, bool] = {network: True for network in self._allowed if network.version == version}
            verdicts.update((network, False) for network in self._denied if network.version == version)  # an exact tie denies
            edges = _flatten(verdicts, default=self._default, end=1 << bits)
            barred = _flatten({network: True for network in blocked if network.version == version}, default=False, end=1 << bits)
            starts = sorted({start for start, _ in edges} | {start for start, _ in barred})
            self._starts[version] = starts
            self._verdicts[version] = [_at(edges, start) and not _at(barred, start) for start in starts]


def parse_network(text: str) -> Network:
    """Return the network that `text` (an address or CIDR block) names; a mapped IPv4 network is that IPv4 network. Raises `ConfigError`."""
    try:
        network = ipaddress.ip_network(text)
    except ValueError:
        raise ConfigError(f"{text!r} is no IP address or CIDR block", cure="write it as 192.0.2.7, 10.0.0.0/8 or 2001:db8::/32") from None
    if isinstance(network, ipaddress.IPv6Network):
        if network.network_address.scope_id is not None:
            raise ConfigError(f"{text!r} has a zone", cure="remove the %zone")
        mapped = network.network_address.ipv4_mapped
        if mapped is not None and network.prefixlen >= _MAPPED_BITS:
            return ipaddress.IPv4Network((mapped, network.prefixlen - _MAPPED_BITS))
    return network


_Edges = list[tuple[int, bool]]  # ascending: from here on, this verdict


def _flatten(verdicts: dict[Network, bool], *, default: bool, end: int) -> _Edges:
    """Return nested networks as disjoint intervals that cover everything from 0: inside a network its own verdict, after it its parent's."""
    edges: _Edges = [(0, default)]
    open_networks: list[tuple[int, bool]] = []  # (first address behind it, verdict), innermost last

    def place(start: int, verdict: bool) -> None:
        if edges[-1][0] == start:
            edges[-1] = (start, verdict)
        elif edges[-1][1] is not verdict:
            edges.append((start, verdict))

    def close_until(start: int) -> None:
        while open_networks and open_networks[-1][0] <= start:
            behind, _ = open_networks.pop()
            if behind < end:
                place(behind, open_networks[-1][1] if open_networks else default)

    for network in sorted(verdicts, key=lambda network: (int(network.network_address), network.prefixlen)):
        start = int(network.network_address)
        close_until(start)
        place(start, verdicts[network])
        open_networks.append((start + network.num_addresses, verdicts[network]))
    close_until(end)
    return edges


def _at(edges: _Edges, address: int) -> bool:
    return edges[bisect_right(edges, address, key=lambda edge: edge[0]) - 1][1]
