"""Whatever strangers, clients and providers send or do not read, memory is bounded, it ends by itself, and others are served meanwhile: the whole gateway.

What the worker's server does alone is in test_resource_exhaustion_ingress.py. Sources: Slowloris (2009), R.U.D.Y., slow read (Shekyan, 2012), zip bombs
(CVE-2025-69223 in aiohttp, among many), endless responses to curl (CVE-2023-38039: endless headers).
"""

from __future__ import annotations

import contextlib
import gzip
import json
import select
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cliproxy.bounds import MAX_EVENT_BYTES, STREAM_WINDOW_BYTES
from cliproxy.dataplane.answering import MAX_UNSENT_BYTES
from cliproxy.dataplane.server import ACCEPTS_PER_TURN
from cliproxy.egress.upstream import MAX_RESPONSE_HEAD_BYTES
from fakes.gateway import Gateway
from fakes.provider import FakeProvider
from fakes.wire import WireAnswer, WireClient, request_bytes

MIB = 1 << 20
PER_ADDRESS, IN_ALL = 64, 200
HEAD_SECONDS = BODY_SECONDS = 1.5
FAULTS = ["endless", "endless-head", "huge-head", "many-headers", "interim-flood", "trailer-flood", "big", "large-error", "gzip", "status-500"]
MESSAGES = [{"role": "user", "content": "Hello."}]
PATIENCE = 30.0


@pytest.fixture(scope="module")
def provider() -> Iterator[FakeProvider]:
    with FakeProvider() as running:
        yield running


@pytest.fixture(scope="module")
def gateway(provider: FakeProvider) -> Iterator[Gateway]:
    limits = {
        "max_connections": IN_ALL,
        "max_connections_per_address": PER_ADDRESS,
        "head_timeout_seconds": HEAD_SECONDS,
        "body_timeout_seconds": BODY_SECONDS,
        "stalled_reader_seconds": 2.0,
    }
    settings = {
        "server": {"limits": limits},
        "providers": {
            "fake": {"base_url": provider.base_url, "models": ["gpt-4o-mini", *(f"fault-{name}" for name in FAULTS)]},
            "brief": {"base_url": provider.base_url, "timeouts": {"total": 2.0}},
        },
        "models": {"endless-for-two-seconds": {"provider": "brief", "model": "fault-endless"}},
    }
    with Gateway(settings, credentials=dict.fromkeys(("fake", "brief"), "sk-canary-000000000000")) as running:
        yield running


def resident_bytes(gateway: Gateway) -> int:
    """Return the memory of all children that is their own (not shared with a file)."""
    total = 0
    for pid in gateway.children().values():
        total += next(int(line.split()[1]) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("RssAnon:")) * 1024
    return total


class Meanwhile:
    """Another client, who is served as long as the `with` block lasts, and what memory does in that time. The attackers have other addresses."""

    def __init__(self, gateway: Gateway, *, at_least: int = 10) -> None:
        self._gateway = gateway
        self._at_least = at_least
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._failure: BaseException | None = None
        self.served = 0
        self.most = 0

    def __enter__(self) -> Meanwhile:
        self._pids = self._gateway.children()
        self._client = WireClient(self._gateway.port)  # before the attack, as a client has
        self.before = self.most = resident_bytes(self._gateway)
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        until = time.monotonic() + PATIENCE
        while self.served < self._at_least and self._failure is None and time.monotonic() < until:
            time.sleep(0.01)
        self._over.set()
        self._thread.join(PATIENCE)
        self._client.socket.close()
        if kind is None:
            assert self._failure is None, self._failure
            assert self.served >= self._at_least
            assert self._gateway.children() == self._pids, "nobody died of it"

    @property
    def grown(self) -> int:
        """By how many bytes all children together grew, at most."""
        return self.most - self.before

    def _run(self) -> None:
        try:
            while not self._over.is_set():
                for model in ("echo", "gpt-4o-mini"):
                    body = {"model": model, "messages": MESSAGES}
                    assert self._client.ask("POST", "/v1/chat/completions", key=self._gateway.key, body=body).status == 200
                self.served += 1
                self.most = max(self.most, resident_bytes(self._gateway))
                time.sleep(0.005)
        except BaseException as failure:
            self._failure = failure


def attacker(gateway: Gateway, number: int, *, receive_buffer: int | None = None) -> socket.socket:
    """Return a connection from an address of its own."""
    sock = socket.socket()
    sock.settimeout(PATIENCE)
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.bind((f"127.0.{1 + number // 250}.{1 + number % 250}", 0))
    sock.connect(("127.0.0.1", gateway.port))
    return sock


@contextlib.contextmanager
def attackers(gateway: Gateway, count: int, *, addresses: int = 250, receive_buffer: int | None = None) -> Iterator[list[socket.socket]]:
    socks = [attacker(gateway, number % addresses, receive_buffer=receive_buffer) for number in range(count)]
    try:
        yield socks
    finally:
        for sock in socks:
            sock.close()


def read_to_end(sock: socket.socket) -> bytes:
    """Return everything up to the end, however it comes."""
    data = b""
    try:
        while piece := sock.recv(65536):
            data += piece
    except ConnectionError:
        pass
    return data


def chat(key: str, model: str, *, stream: bool = False, headers: tuple[str, ...] = ()) -> bytes:
    return request_bytes("POST", "/v1/chat/completions", key=key, body={"model": model, "messages": MESSAGES, "stream": stream}, headers=headers)


# --- strangers -----------------------------------------------------------------------------------------------------------


def test_a_flood_of_connections_is_held_to_the_caps(gateway: Gateway) -> None:
    """20,000 attempts from five addresses, each with the beginning of a request, all left open until the server closes them."""
    head = request_bytes("GET", "/healthz")[:-10]
    with Meanwhile(gateway) as meanwhile:
        held: list[socket.socket] = []
        most_open = 0
        try:
            for number in range(20_000):
                sock = attacker(gateway, number % 5)
                sock.setblocking(False)
                with contextlib.suppress(OSError):
                    sock.send(head)
                held.append(sock)
                if len(held) >= 500:
                    most_open = max(most_open, accepted(gateway))
                    forget_closed(held)
            assert most_open <= min(5 * PER_ADDRESS, IN_ALL) + 2 * ACCEPTS_PER_TURN, "who gives way is closed a turn later"
            assert most_open >= PER_ADDRESS, "the caps were reached"
        finally:
            for sock in held:
                sock.close()
    assert meanwhile.grown < 32 * MIB


def accepted(gateway: Gateway) -> int:
    """Return how many connections the gateway has: those of its port that are open and that a process has taken (those that still wait have no inode)."""
    local = f":{gateway.port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1].endswith(local) and row[3] in ("01", "08") and row[9] != "0" for row in rows)


def forget_closed(held: list[socket.socket]) -> None:
    """Close the connections of `held` that the server has closed and forget them."""
    ended, _, _ = select.select(held, [], [], 0)  # nothing is ever answered: readable is closed (or 408, then closed)
    for sock in ended:
        sock.close()
    gone = set(map(id, ended))
    held[:] = [sock for sock in held if id(sock) not in gone]


def test_one_address_cannot_take_the_others_places(gateway: Gateway) -> None:
    with Meanwhile(gateway), attackers(gateway, 3 * PER_ADDRESS, addresses=1) as crowd:
        until = time.monotonic() + PATIENCE
        while len(crowd) - len(select.select(crowd, [], [], 0.1)[0]) > PER_ADDRESS:  # nothing is answered: readable is closed
            assert time.monotonic() < until
        for number in range(20):  # new connections from elsewhere are served
            with attacker(gateway, 10 + number) as sock:
                sock.sendall(request_bytes("GET", "/healthz", headers=("Connection: close",)))
                assert read_to_end(sock).startswith(b"HTTP/1.1 200")


def test_slow_heads_and_slow_bodies_end_with_408(gateway: Gateway) -> None:
    """Each announces 8 MiB and sends some; what was announced costs nothing."""
    announced = request_bytes("POST", "/v1/chat/completions", key=gateway.key, headers=("Content-Length: 8388608",))
    chunked = request_bytes("POST", "/v1/chat/completions", key=gateway.key, headers=("Transfer-Encoding: chunked",))
    slow = [  # how each begins, and the trickle that keeps a naive timeout from firing
        (b"G", b""),
        (b"POST", b""),
        (b"GET /v1/models HTTP/1.1\r\n", b"x"),
        (request_bytes("GET", "/v1/models")[:-2], b"x"),
        (announced, b" "),
        (announced + b"{" * 65536, b" "),
        (chunked, b""),
        (chunked + b"1\r\n{\r\n", b""),
    ]
    with Meanwhile(gateway) as meanwhile, attackers(gateway, 160) as crowd:
        waiting = {sock: number % len(slow) for number, sock in enumerate(crowd)}
        for sock, kind in waiting.items():
            sock.sendall(slow[kind][0])
        answers: list[bytes] = []
        until = time.monotonic() + PATIENCE
        while waiting and time.monotonic() < until:
            ready, _, _ = select.select(list(waiting), [], [], 0.1)
            for sock in ready:
                del waiting[sock]
                answers.append(read_to_end(sock))
            for sock, kind in waiting.items():
                with contextlib.suppress(OSError):
                    sock.send(slow[kind][1])
        assert not waiting, f"{len(waiting)} of {len(crowd)} are still held"
    # A trickle that crosses the answer may reset the connection before it was read.
    assert {answer[:12] for answer in answers} <= {b"HTTP/1.1 408", b""}
    assert sum(answer.startswith(b"HTTP/1.1 408") for answer in answers) > len(crowd) // 2
    assert meanwhile.grown < 64 * MIB  # 1.2 GiB were announced


def test_who_says_nothing_or_never_reads_is_let_go(gateway: Gateway) -> None:
    """Pipelined questions whose answers nobody takes."""
    question = request_bytes("GET", "/v1/models", key=gateway.key) * 500
    with Meanwhile(gateway) as meanwhile, attackers(gateway, 40, receive_buffer=4096) as crowd:
        for sock in crowd:
            sock.setblocking(False)
        sent = 0
        ended: set[int] = set()
        until = time.monotonic() + PATIENCE
        while len(ended) < len(crowd) and time.monotonic() < until:
            for sock in crowd:
                try:
                    sent += sock.send(question)
                except BlockingIOError:
                    pass
                except OSError:
                    ended.add(id(sock))
            time.sleep(0.05)
        assert len(ended) == len(crowd)
    assert meanwhile.grown < 40 * (MAX_UNSENT_BYTES + MIB)


def test_a_body_that_is_too_large_is_413_before_it_is_sent(gateway: Gateway) -> None:
    endless = b"8000\r\n" + b"a" * 0x8000 + b"\r\n"
    with Meanwhile(gateway) as meanwhile:
        for length in ("8388609", "1073741824", "999999999999999", "99999999999999999999999"):
            with WireClient(gateway.port) as client:
                client.send(request_bytes("POST", "/v1/chat/completions", key=gateway.key, headers=(f"Content-Length: {length}",)))
                answer = client.answer()
                assert (answer.status, answer.headers["connection"]) == (413, "close"), length
        for _ in range(5):
            with attacker(gateway, 1) as sock:
                sock.sendall(request_bytes("POST", "/v1/chat/completions", key=gateway.key, headers=("Transfer-Encoding: chunked",)))
                with contextlib.suppress(ConnectionError):
                    for _ in range(2048):  # 64 MiB, if anybody took them
                        sock.sendall(endless)
                assert read_to_end(sock)[:12] in (b"HTTP/1.1 413", b"")
    assert meanwhile.grown < 40 * MIB


@pytest.mark.parametrize(
    ("bomb", "status"),
    [
        (b"[]," * 2_000_000 + b"[]", 400),
        (b'{"a":' * 1_000_000, 400),
        (b"[" * 4_000_000, 400),
        (b'{"":0},' * 1_000_000, 400),
        (b"1" * 4_000_000, 400),
        (b'"' + b"\\u0061" * 1_000_000 + b'"', 200),
        (b" " * 8_000_000, 200),
    ],
    ids=["empty lists", "nested objects", "nested lists", "objects", "digits", "escapes", "blanks"],
)
def test_a_body_that_is_dear_to_decode_is_refused_cheaply(gateway: Gateway, bomb: bytes, status: int) -> None:
    """8 MB of `[],` would cost 1 s and 193 MB; here a second client asks all the time and is served."""
    body = b'{"model":"echo","messages":[{"role":"user","content":"x"}],"x":[' + bomb + b"]}"
    with Meanwhile(gateway, at_least=3) as meanwhile:
        for _ in range(3):
            with WireClient(gateway.port) as client:
                assert client.ask("POST", "/v1/chat/completions", key=gateway.key, body=body).status == status
    assert meanwhile.grown < 96 * MIB


# --- zip bombs -----------------------------------------------------------------------------------------------------------

BOMB = zlib.compress(b"0" * (64 * MIB), 9)


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "deflate", "br", "zstd", "compress", "gzip, gzip", "identity, gzip", "GZIP", "aws-chunked"])
def test_a_compressed_request_is_415_and_is_not_unpacked(gateway: Gateway, coding: str) -> None:
    body = gzip.compress(b"0" * (8 * MIB)) if "gzip" in coding.lower() else BOMB
    with Meanwhile(gateway, at_least=3) as meanwhile:
        for _ in range(5):
            with WireClient(gateway.port) as client:
                answer = client.ask("POST", "/v1/chat/completions", key=gateway.key, body=body, headers=(f"Content-Encoding: {coding}",))
                assert answer.status == 415
    assert meanwhile.grown < 16 * MIB


@pytest.mark.parametrize("coding", ["gzip", "gzip, chunked", "deflate, chunked", "chunked, gzip"])
def test_a_compressed_transfer_is_broken_http(gateway: Gateway, coding: str) -> None:
    with WireClient(gateway.port) as client:
        client.send(request_bytes("POST", "/v1/chat/completions", key=gateway.key, headers=(f"Transfer-Encoding: {coding}",)) + BOMB[:1000])
        assert client.answer().status == 400


def test_a_provider_is_asked_for_no_compression_and_its_bomb_is_not_unpacked(gateway: Gateway, provider: FakeProvider) -> None:
    provider.reset()
    with Meanwhile(gateway) as meanwhile:
        for stream in (False, True):
            answer = _ask(gateway, "fault-gzip", stream=stream, headers=("Accept-Encoding: gzip, br, zstd",))
            assert answer.status == 502
            assert b"\x1f\x8b" not in answer.body
    for request in provider.record()["requests"]:
        assert dict(request["headers"]).get("Accept-Encoding", "identity") == "identity"
    assert meanwhile.grown < 16 * MIB


# --- providers -----------------------------------------------------------------------------------------------------------


def _ask(gateway: Gateway, model: str, **more: Any) -> WireAnswer:
    with WireClient(gateway.port) as client:
        client.send(chat(gateway.key, model, **more))
        return client.answer()


def test_a_provider_s_heads_without_end_are_cut_off(gateway: Gateway) -> None:
    """30 at once: each may cost its bound, and is a 502 for who asked and for nobody else."""
    with Meanwhile(gateway) as meanwhile, ThreadPoolExecutor(30) as pool:
        models = [f"fault-{name}" for name in ("endless-head", "huge-head", "many-headers", "interim-flood", "trailer-flood", "large-error") * 5]
        answers = list(pool.map(lambda model: _ask(gateway, model), models))
    assert {answer.status for answer in answers} <= {400, 502}
    assert [answer.status for answer, model in zip(answers, models, strict=True) if answer.status == 400 and model != "fault-large-error"] == []
    assert meanwhile.grown < 30 * 4 * MAX_RESPONSE_HEAD_BYTES + 16 * MIB


def test_streams_without_end_that_nobody_reads_cost_their_windows(gateway: Gateway, provider: FakeProvider) -> None:
    readers = 40
    provider.reset()
    with Meanwhile(gateway) as meanwhile, attackers(gateway, readers, receive_buffer=65536) as crowd:
        for sock in crowd:
            sock.sendall(chat(gateway.key, "fault-endless", stream=True))
        until = time.monotonic() + PATIENCE
        while provider.record()["broken_off"] < readers and time.monotonic() < until:
            time.sleep(0.1)
        assert provider.record()["broken_off"] == readers, "a reader that takes nothing is let go, and the provider with it"
    # In each of worker and egress: the window, what one read brings, and both once more while they are joined for a write.
    assert meanwhile.grown < readers * 2 * 4 * STREAM_WINDOW_BYTES + 16 * MIB


def test_a_stream_without_end_that_is_read_ends_after_its_time(gateway: Gateway) -> None:
    with Meanwhile(gateway) as meanwhile, WireClient(gateway.port) as client:
        client.send(chat(gateway.key, "endless-for-two-seconds", stream=True))
        assert client.head().status == 200
        received, tail = 0, b""
        while not tail.endswith(b"0\r\n\r\n"):
            data = client.socket.recv(1 << 18)
            assert data, tail
            received += len(data)
            tail = (tail + data)[-2000:]
        assert b'"error"' in tail and b"[DONE]" not in tail
        assert received > MAX_EVENT_BYTES
    assert meanwhile.grown < 16 * MIB


def test_a_whole_answer_is_held_up_to_its_bound(gateway: Gateway) -> None:
    with Meanwhile(gateway) as meanwhile, ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: _ask(gateway, "fault-big"), range(10)))
    assert {answer.status for answer in answers} == {502}  # 3 MiB of a text that is no chat completion
    assert meanwhile.grown < 10 * 12 * MIB


def test_after_all_that_the_same_processes_serve(gateway: Gateway) -> None:
    assert _ask(gateway, "gpt-4o-mini").status == 200
    assert "Traceback" not in gateway.messages() and "Error" not in gateway.messages()
    assert json.loads(gateway.run("status", "--json"))
