"""One key that fills what all clients of a worker share, and another key's ordinary client, who gets every answer: a real gateway.

Found by attack: 60 clients of one key asked for streams of 1 MB and read nothing; 41 were answered `overloaded`, and so were two of an ordinary client's calls.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator

import pytest

from fakes.gateway import Gateway
from fakes.wire import WireClient, request_bytes

CLIENTS = 60
ORDINARY_CALLS = 30
CALL = {"model": "echo", "messages": [{"role": "user", "content": "Hello."}]}


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    many = 1_000_000_000
    settings = {
        "server": {
            "workers": 1,
            "limits": {"max_connections_per_address": 1024, "max_connections": 1024, "body_timeout_seconds": 60, "stalled_reader_seconds": 60},
        },
        "requests": {"max_tokens": 1_000_000},
        "auth": {"key_limits": {"requests_per_minute": many, "tokens_per_minute": many, "concurrency": 100_000}},
    }
    with Gateway(settings) as running:
        yield running


@pytest.fixture(scope="module")
def ordinary(gateway: Gateway) -> str:
    """Another client's key."""
    return str(json.loads(gateway.run("keys", "create", "--json", "--name", "ordinary"))["key"])


def question(key: str, size: int, *, stream: bool) -> bytes:
    body = {"model": "echo", "messages": [{"role": "user", "content": "x" * size}], "stream": stream, "max_tokens": 1_000_000}
    return request_bytes("POST", "/v1/chat/completions", key=key, body=body)


@contextlib.contextmanager
def attackers(gateway: Gateway, data: bytes) -> Iterator[list[socket.socket]]:
    """Clients that send `data`, all at the same time, and read nothing."""
    socks = []

    def send(sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            sock.sendall(data)

    threads = []
    try:
        for _ in range(CLIENTS):
            sock = socket.socket()
            socks.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.settimeout(60)
            sock.connect(("127.0.0.1", gateway.port))
            threads.append(threading.Thread(target=send, args=(sock,), daemon=True))
        for thread in threads:
            thread.start()
        yield socks
    finally:
        for sock in socks:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        for thread in threads:
            thread.join(30)


@pytest.mark.parametrize(("size", "stream"), [(1_000_000, True), (1_000_000, False), (60_000, False)])
def test_one_key_that_reads_nothing_leaves_another_its_answers(gateway: Gateway, ordinary: str, size: int, stream: bool) -> None:
    with attackers(gateway, question(gateway.key, size, stream=stream) * (2_000_000 // size)):
        statuses = []
        for number in range(ORDINARY_CALLS):
            with WireClient(gateway.port) as client:
                client.send(question(ordinary, 200_000 if number % 10 == 0 else 100, stream=number % 2 == 0))
                answer = client.answer()
                statuses.append((answer.status, answer.complete, answer.body if answer.status != 200 else b""))
        assert statuses == [(200, True, b"")] * ORDINARY_CALLS


def test_bodies_of_one_key_that_never_end_leave_another_the_room(gateway: Gateway, ordinary: str) -> None:
    """Each announces what may be announced and sends all of it but a byte: in all more than one key may hold, and less than a worker."""
    length = 8_000_000
    head = request_bytes("POST", "/v1/chat/completions", key=gateway.key, headers=(f"Content-Length: {length}",))
    socks = []
    try:
        for _ in range(33):
            sock = socket.create_connection(("127.0.0.1", gateway.port), timeout=60)
            socks.append(sock)
            with contextlib.suppress(OSError):
                sock.sendall(head + bytes(length - 1))
        refused = 0
        for sock in socks:
            sock.setblocking(False)
            with contextlib.suppress(OSError):
                refused += sock.recv(65536).startswith(b"HTTP/1.1 503 ")
        assert refused  # the attack reached the bound of its own key
        with WireClient(gateway.port) as client:
            client.send(question(ordinary, 4_000_000, stream=False))
            assert client.answer().status == 200
    finally:
        for sock in socks:
            sock.close()


# --- connections ---------------------------------------------------------------------------------------------------------

HALVES = {"idle": b"", "half a head": b"G", "half a body": b"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\n{"}


def kept_open(gateway: Gateway, key: str, address: str, half: bytes) -> socket.socket:
    """A connection on which `key` was good, once, and `half` follows."""
    with contextlib.suppress(ConnectionError):
        sock = socket.create_connection(("127.0.0.1", gateway.port), timeout=30, source_address=(address, 0))
        sock.sendall(request_bytes("GET", "/v1/models", key=key))
        sock.recv(65536)
        sock.sendall(half)
        return sock
    return socket.socket()  # turned away


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("crowd", ["an address", "a worker"])
def test_one_key_s_connections_leave_another_key_room(crowd: str, half: str) -> None:
    """One key, good once on each of as many connections as there may be, kept every other key of the address, or of the worker, out."""
    most = 40
    limits = {"max_connections": most, "max_connections_per_address": 10} if crowd == "a worker" else {"max_connections_per_address": most}
    with Gateway({"server": {"workers": 1, "limits": {**limits, "body_timeout_seconds": 60, "head_timeout_seconds": 60}}}) as gateway:
        stolen = str(json.loads(gateway.run("keys", "create", "--json", "--name", "stolen"))["key"])
        with WireClient(gateway.port) as client:
            assert client.ask("GET", "/v1/models", key=gateway.key).status == 200
        kept = []
        try:
            for number in range(most + 10):
                address = "127.0.0.1" if crowd == "an address" else f"127.0.1.{1 + number // 10}"
                kept.append(kept_open(gateway, stolen, address, HALVES[half]))
            with WireClient(gateway.port) as stays:
                for _ in range(10):
                    assert stays.ask("POST", "/v1/chat/completions", key=gateway.key, body=CALL).status == 200
                    with WireClient(gateway.port) as comes:
                        assert comes.ask("GET", "/v1/models", key=gateway.key).status == 200
                    kept.append(kept_open(gateway, stolen, "127.0.0.1", HALVES[half]))
        finally:
            for sock in kept:
                sock.close()
