"""Resource exhaustion by strangers, as far as the worker's server goes: what each of them can make us hold is bounded, ends by itself,
and others keep being served."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator

import pytest

from cliproxy.bounds import PIPELINE_BYTES
from cliproxy.config.schema import ServerLimits
from cliproxy.dataplane.connection import WRITE_HIGH_WATER_BYTES
from cliproxy.dataplane.rooms import Account
from cliproxy.ingress.framing import MAX_CHUNKS_PER_BODY
from cliproxy.ingress.rules.address_rate import AddressRate
from cliproxy.limits.shared import SharedRates, create
from fakes.echo_server import EchoServer, read_all, read_answer

HOST = b"Host: gateway\r\n"
GET = b"GET /echo HTTP/1.1\r\n" + HOST + b"\r\n"
POST = b"POST /echo HTTP/1.1\r\n" + HOST
KIB = 1024


@contextlib.contextmanager
def crowd(server: EchoServer, count: int) -> Iterator[list[socket.socket]]:
    socks = [server.connect() for _ in range(count)]
    try:
        yield socks
    finally:
        for sock in socks:
            sock.close()


def still_serves(server: EchoServer) -> bool:
    with server.connect() as sock:
        sock.sendall(GET)
        return read_answer(sock)[2] == b"GET /echo "


def test_slow_heads_hold_their_own_connections_only_and_end() -> None:
    with EchoServer(limits=ServerLimits(head_timeout_seconds=0.5)) as server, crowd(server, 100) as slow:
        for number, sock in enumerate(slow):
            sock.sendall((GET * 2)[: 1 + number % (len(GET) - 2)])
        server.wait_until(lambda: server.server.open_connections >= 100)
        assert still_serves(server)
        for sock in slow:
            assert read_all(sock).startswith(b"HTTP/1.1 408 ")
        for sock in slow:
            sock.close()
        server.wait_until(lambda: server.server.open_connections == 0)
        assert len(server.exchange.seen) == 1


def test_slow_bodies_end_and_give_back_what_they_held() -> None:
    with EchoServer(limits=ServerLimits(body_timeout_seconds=0.5)) as server, crowd(server, 50) as slow:
        for sock in slow:
            sock.sendall(POST + b"Content-Length: 1000\r\n\r\n" + bytes(999))
        server.wait_until(lambda: server.server.bodies.taken == 50 * 999)
        assert still_serves(server)
        for sock in slow:
            assert read_all(sock).startswith(b"HTTP/1.1 408 ")
        assert server.call(lambda: server.server.bodies.taken) == 0


def test_all_bodies_together_are_bounded_and_small_requests_go_on() -> None:
    with EchoServer(max_held_bytes=2_000_000) as server, crowd(server, 12) as uploading:
        refused = 0
        for sock in uploading:
            with contextlib.suppress(ConnectionError):
                sock.sendall(POST + b"Content-Length: 400000\r\n\r\n" + bytes(300_000))
        server.wait_until(lambda: sum(c.state.name == "LINGERING" for c in server.server._connections) >= 6)
        assert server.call(lambda: server.server.bodies.taken) <= 2_000_000
        assert still_serves(server)
        for sock in uploading:
            sock.settimeout(0.2)
            with contextlib.suppress(TimeoutError, ConnectionError):
                answer = sock.recv(65536)
                assert answer.startswith(b"HTTP/1.1 503 ") and b"Retry-After: 1\r\n" in answer
                refused += 1
        assert refused >= 6


def test_a_body_without_end_is_cut_at_the_bound() -> None:
    with EchoServer(limits=ServerLimits(max_body_bytes=100_000)) as server, server.connect() as sock:
        sock.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n")
        chunk = b"1000\r\n" + bytes(4096) + b"\r\n"
        with contextlib.suppress(ConnectionError):
            for _ in range(1000):
                sock.sendall(chunk)
        assert read_all(sock).startswith(b"HTTP/1.1 413 ")
        assert server.exchange.seen == []


def test_a_body_in_tiny_chunks_is_refused_before_it_costs_time() -> None:
    with EchoServer() as server, server.connect() as sock:
        sock.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * (MAX_CHUNKS_PER_BODY + 1))
        assert read_all(sock).startswith(b"HTTP/1.1 413 ")


def test_a_head_without_end_is_cut_at_the_bound() -> None:
    with EchoServer() as server, server.connect() as sock:
        with contextlib.suppress(ConnectionError):
            sock.sendall(b"GET / HTTP/1.1\r\n" + HOST + b"X-Filler: " + b"a" * 1_000_000)
        assert read_all(sock).startswith(b"HTTP/1.1 431 ")


def test_there_are_never_more_connections_than_the_cap_and_the_oldest_without_a_key_give_way() -> None:
    with EchoServer(limits=ServerLimits(max_connections=1000, max_connections_per_address=20)) as server, crowd(server, 20) as socks:
        server.wait_until(lambda: server.server.open_connections == 20)
        for sock in socks:
            sock.sendall(GET[:-2])  # half a head
        with contextlib.ExitStack() as newcomers:
            for _ in range(30):
                newcomer = newcomers.enter_context(server.connect())
                newcomer.sendall(GET)
                assert read_answer(newcomer)[0] == 200
                assert server.call(lambda: server.rules._caps.open) == 20
            assert [read_all(sock) for sock in socks] == [b""] * 20
            server.wait_until(lambda: server.server.open_connections == 20)
        assert set(server.denied) == {("127.0.0.1", "connection_caps")}
        assert not server.faults


def test_who_has_a_key_and_a_request_under_way_gives_way_to_nobody() -> None:
    with EchoServer(limits=ServerLimits(max_connections=1000, max_connections_per_address=20)) as server, crowd(server, 20) as socks:
        for sock in socks:
            sock.sendall(b"GET /later HTTP/1.1\r\n" + HOST + b"\r\n")
        server.wait_until(lambda: len(server.exchange.waiting) == 20)
        server.call(lambda: [connection.authenticated("key", Account("key-1")) for connection in server.exchange.waiting])
        for _ in range(30):
            with server.connect() as extra:
                assert read_all(extra) == b""
        server.call(lambda: [connection.respond(200, b"", b"") for connection in server.exchange.waiting])
        assert [read_answer(sock)[0] for sock in socks] == [200] * 20
        with server.connect() as newcomer:  # now they are idle, and HTTP's clients expect that an idle connection closes
            newcomer.sendall(GET)
            assert read_answer(newcomer)[0] == 200
        socks[1].sendall(GET)
        assert read_answer(socks[1])[0] == 200
        assert read_all(socks[0]) == b""


def test_answers_to_pipelined_requests_do_not_pile_up_for_who_does_not_read() -> None:
    with EchoServer(limits=ServerLimits(stalled_reader_seconds=2.0)) as server, server.connect(receive_buffer=4096) as sock:
        sock.settimeout(0.5)
        request = b"GET /large?%d HTTP/1.1\r\n" % (32 * KIB) + HOST + b"\r\n"
        with contextlib.suppress(TimeoutError, ConnectionError):
            for _ in range(1000):
                sock.sendall(request * 100)
        # The kernel's socket buffer takes some; of the rest one high water and two answers at most, not ten thousand answers of 32 KiB.
        largest = server.call(lambda: max((c._outbox.size + c._transport.get_write_buffer_size() for c in server.server._connections), default=0))
        assert largest <= WRITE_HIGH_WATER_BYTES + 2 * 34 * KIB
        assert max(server.call(lambda: [len(c._framer.buffer) for c in server.server._connections])) <= PIPELINE_BYTES + 256 * KIB
        assert len(server.exchange.seen) < 1000
        assert still_serves(server)
        server.wait_until(lambda: server.server.open_connections <= 1)


def test_a_flood_from_one_address_gets_429_and_another_address_is_served() -> None:
    rates = SharedRates(create(), rate=1, burst=5)
    rate = AddressRate(rates, None)

    class Limited:
        def on_request(self, connection: object, request: object) -> None:
            wait = rate.stranger(connection, time.monotonic())  # type: ignore[arg-type]
            connection.respond(200 if wait is None else 429, b"", b"")  # type: ignore[attr-defined]

        def on_client_gone(self, connection: object) -> None: ...

        on_paused = on_writable = on_client_gone

    with EchoServer(rate=rate, exchange=Limited()) as server, server.connect() as sock:
        sock.sendall(GET * 50)
        statuses = [read_answer(sock)[0] for _ in range(50)]
        assert statuses[:5] == [200] * 5 and statuses.count(200) <= 7
        with socket.socket() as other:
            other.settimeout(20)
            other.bind(("127.0.0.2", 0))
            other.connect((server.host, server.port))
            other.sendall(GET)
            assert read_answer(other)[0] == 200


def test_a_compressed_body_is_refused_before_anything_is_unpacked() -> None:
    with EchoServer() as server:
        answer = server.ask(POST + b"Content-Encoding: gzip\r\nContent-Length: 20\r\n\r\n" + bytes(20))
        assert answer.startswith(b"HTTP/1.1 415 ")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("size", [1, 3, 61])
def test_packets_of_few_bytes_are_served_all_the_same(size: int) -> None:
    with EchoServer() as server, server.connect() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        data = (POST + b"Content-Length: 300\r\n\r\n" + b"b" * 300 + GET) * 2
        for at in range(0, len(data), size):
            sock.sendall(data[at : at + size])
        assert [read_answer(sock)[2] for _ in range(4)] == [b"POST /echo " + b"b" * 300, b"GET /echo "] * 2
