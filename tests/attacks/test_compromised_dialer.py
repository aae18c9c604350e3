"""A fallen dialer hands egress sockets to itself: of a provider that is spoken to in clear it gets no head, and so no credential.

The dialer is the test, everything behind it is real: the client of its edge, the pool, a grant.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import pytest

from cliproxy.config.schema import Provider
from cliproxy.dialects import Endpoint
from cliproxy.egress.dialer_client import DialerClient
from cliproxy.egress.inject import Injector
from cliproxy.egress.peer import Peer, peer_of
from cliproxy.egress.pool import Pool
from cliproxy.errors import ChannelError
from cliproxy.ipc.channel import PacketChannel
from cliproxy.ipc.messages import Dialled, EgressToDialer
from cliproxy.providers.origin import parse_base_url
from cliproxy.secret import Secret
from fakes.rig import SECRET, Recorder, request, run

Pair = tuple[socket.socket, socket.socket]  # what egress gets, and what the attacker listens at


def unix_pair(port: int, stack: ExitStack) -> Pair:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    return near, far


def own_listener(port: int, stack: ExitStack) -> Pair:
    server = stack.enter_context(closing(socket.create_server(("127.0.0.1", 0))))
    near = socket.create_connection(server.getsockname())
    return near, server.accept()[0]


def own_listener_at_the_same_port(port: int, stack: ExitStack) -> Pair:
    server = stack.enter_context(closing(socket.create_server(("127.0.0.2", port))))
    near = socket.create_connection(server.getsockname())
    return near, server.accept()[0]


def datagrams_to_the_same_port(port: int, stack: ExitStack) -> Pair:
    far = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    far.bind(("127.0.0.1", port))
    near = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    near.connect(("127.0.0.1", port))
    return near, far


def connected_to_itself(port: int, stack: ExitStack) -> Pair:
    near = socket.socket()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    near.bind(("127.0.0.1", port))
    near.connect(("127.0.0.1", port))
    return near, near.dup()


REDIRECTIONS: list[Callable[[int, ExitStack], Pair]] = [unix_pair, own_listener, own_listener_at_the_same_port, datagrams_to_the_same_port, connected_to_itself]


@pytest.fixture
def free_port() -> Iterator[int]:
    """A TCP port of 127.0.0.1 that nobody listens at: the provider is down."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    yield port


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("redirection", REDIRECTIONS, ids=lambda redirection: redirection.__name__)
def test_a_fallen_dialer_gets_no_head_of_a_provider_in_clear(redirection: Callable[[int, ExitStack], Pair], host: str, free_port: int) -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        base_url = f"http://{host}:{free_port}/v1"
        providers = {"local": Provider(base_url=base_url)}
        injector = Injector(providers)
        injector.grant("c", provider="local", origin=str(parse_base_url(base_url)[0]), secret=Secret(SECRET))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        violations: list[str] = []
        client = DialerClient(loop, ours, violated=violations.append)
        dialer: PacketChannel[EgressToDialer] = PacketChannel(theirs, incoming=EgressToDialer, peer="egress", per_second=100.0)
        pool = Pool(loop, dialer=client, providers=providers, contexts={})
        bound = injector.for_provider("local")
        assert bound is not None
        call = Recorder()
        pool.send(call, bound, Endpoint.CHAT_COMPLETIONS, request(), stream=False)
        while (question := dialer.receive()) is None:
            await asyncio.sleep(0.001)
        with ExitStack() as stack:
            near, far = redirection(free_port, stack)
            stack.enter_context(far)
            dialer.send(Dialled(dial=question.dial, address="127.0.0.1"), [near.fileno()])
            near.close()
            await asyncio.wait_for(call.ended.wait(), 10)
            assert call.error is not None and len(violations) == 1
            far.setblocking(False)
            try:
                got = far.recv(65536)
            except BlockingIOError:
                got = b""
            assert got == b""  # and above all no `Authorization`
        pool.close()

    run(work)


def socket_to(address: str, port: int) -> socket.socket:
    """A socket that says it is connected there."""

    class Told:
        def getsockopt(self, level: int, option: int) -> int:
            return socket.IPPROTO_TCP

        def getpeername(self) -> tuple[str, int]:
            return address, port

        def getsockname(self) -> tuple[str, int]:
            return "192.168.1.5", 50_000

    return Told()  # type: ignore[return-value]


PEERS = {
    "a name, a public address": ({"base_url": "https://api.example.com"}, "8.8.8.8", 443, True),
    "another port": ({"base_url": "https://api.example.com"}, "8.8.8.8", 444, False),
    "a name, loopback": ({"base_url": "http://api.example.com", "plain_http": True}, "127.0.0.1", 80, False),
    "a name, the machine's own secrets": ({"base_url": "http://api.example.com", "plain_http": True, "private_network": True}, "169.254.169.254", 80, False),
    "a name, a private address": ({"base_url": "http://api.example.com", "plain_http": True}, "10.0.0.1", 80, False),
    "a name, a private address that may be": ({"base_url": "http://vllm.lan:8000", "plain_http": True, "private_network": True}, "10.0.0.1", 8000, True),
    "an address": ({"base_url": "http://10.0.0.1:8000", "plain_http": True, "private_network": True}, "10.0.0.1", 8000, True),
    "another than that address": ({"base_url": "http://10.0.0.1:8000", "plain_http": True, "private_network": True}, "10.0.0.2", 8000, False),
    "an IPv4 address in an IPv6 one": ({"base_url": "http://127.0.0.1:8000"}, "::ffff:127.0.0.1", 8000, True),
    "localhost in IPv6": ({"base_url": "http://localhost:8000"}, "::1", 8000, True),
    "localhost, of which there are more": ({"base_url": "http://localhost:8000"}, "127.0.0.3", 8000, False),
    "the proxy": ({"base_url": "https://api.example.com", "proxy": "http://10.1.1.1:3128"}, "10.1.1.1", 3128, True),
    "past the proxy": ({"base_url": "https://api.example.com", "proxy": "http://10.1.1.1:3128"}, "8.8.8.8", 443, False),
    "a proxy by its name": ({"base_url": "https://api.example.com", "proxy": "http://proxy.lan:3128"}, "192.168.0.9", 3128, True),
}


@pytest.mark.parametrize(("settings", "address", "port", "allowed"), PEERS.values(), ids=PEERS)
def test_a_peer_is_judged_by_its_address_and_port(settings: dict[str, object], address: str, port: int, allowed: bool) -> None:
    peer: Peer = peer_of(Provider(**settings))  # type: ignore[arg-type]
    if allowed:
        peer.verify(socket_to(address, port))
    else:
        with pytest.raises(ChannelError, match="handed over"):
            peer.verify(socket_to(address, port))
