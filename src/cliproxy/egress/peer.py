"""Whom a socket of the dialer's must lead to, judged by what the kernel says of it and not by what the dialer says.

The dialer parses names and addresses from the network, so it may fall; what it hands over then must not get a credential. TLS settles that for `https`; for
`http` this does, as far as an address can. What it cannot: where the origin is a name (`plain_http`), whoever chooses the address chooses the host, among those
that the provider's entry allows.

`verify`, before a byte is written:

    1. it is a TCP socket, and connected
    2. to the port of the origin (or of the proxy that leads there), and not to itself
    3. an address in the origin is the address; `localhost` is 127.0.0.1 or ::1
    4. any other name leads to an address that the provider's entry allows, by the same rules as in the dialer (`providers/vet.py`)
"""

from __future__ import annotations

import ipaddress
import socket

import msgspec

from cliproxy.config.schema import Provider
from cliproxy.errors import ChannelError, ForbiddenAddress
from cliproxy.providers.origin import Origin, parse_base_url
from cliproxy.providers.vet import IPAddress, verify_address

_LOCALHOST = frozenset({ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1")})


class Peer(msgspec.Struct, frozen=True):
    """What is dialled: an origin of a provider's, or the proxy on the way to it. `private`: private and loopback addresses are allowed too."""

    origin: Origin
    private: bool

    def verify(self, sock: socket.socket) -> None:
        """Raise `ChannelError` unless `sock` leads there; `OSError` if it leads nowhere any more."""
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL) != socket.IPPROTO_TCP:  # 1; a Unix socket has protocol 0
            raise ChannelError(f"the dialer handed over what is no TCP socket for {self.origin}")
        address, port = sock.getpeername()[:2]
        if port != self.origin.port or sock.getsockname()[:2] == (address, port):  # 2
            raise ChannelError(f"the dialer handed over a socket to port {port} for {self.origin}, or one to itself")
        if not self._allows(address):
            raise ChannelError(f"the dialer handed over a socket to {address} for {self.origin}")

    def _allows(self, address: str) -> bool:
        found = _plain(ipaddress.ip_address(address))
        if self.origin.host == "localhost":
            return found in _LOCALHOST
        try:
            return found == _plain(ipaddress.ip_address(self.origin.host))  # 3
        except ValueError:
            pass
        try:
            verify_address(str(found), loopback=False, private=self.private)  # 4
        except ForbiddenAddress:
            return False
        return True


def peer_of(provider: Provider) -> Peer:
    """Return whom connections for `provider` lead to. A proxy may be in a private network, since the operator has named it."""
    if provider.proxy:
        return Peer(parse_base_url(provider.proxy)[0], private=True)
    return Peer(parse_base_url(provider.base_url)[0], private=provider.private_network)


def _plain(address: IPAddress) -> IPAddress:
    """An IPv4 address inside an IPv6 one is that address."""
    return (address.ipv4_mapped or address) if isinstance(address, ipaddress.IPv6Address) else address
