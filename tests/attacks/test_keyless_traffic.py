"""What somebody without a key can do to the key holders who share its address: nothing.

Found by attacking, with the defaults: in four seconds of anonymous posts a good key from the same address got three answers and 1,584 times 429. Any web page
can do that to 127.0.0.1, any neighbour behind a NAT to the others.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from fakes.gateway import Gateway
from fakes.wire import WireClient

MESSAGES = [{"role": "user", "content": "Hello."}]
CHAT = {"model": "echo", "messages": MESSAGES}
RATE, BURST, WORKERS = 10, 20, 2  # the specification's numbers
WRONG = "cpk_" + "A" * 49


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    settings = {"server": {"workers": WORKERS, "rate_limit": {"requests_per_second": RATE, "burst": BURST}}}
    with Gateway(settings) as running:
        yield running


class Flood:
    """Strangers who ask from our own address as fast as they can, as long as the `with` block lasts, and what they were answered."""

    def __init__(self, gateway: Gateway, method: str, path: str, **more: Any) -> None:
        self.statuses: Counter[int] = Counter()
        self.seconds = 0.0
        self._ask = (method, path, more)
        self._gateway = gateway
        self._over = threading.Event()
        self._refused = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(2)]

    def __enter__(self) -> Flood:
        self._began = time.monotonic()
        for thread in self._threads:
            thread.start()
        assert self._refused.wait(30)  # from here on the bucket of strangers is empty
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(30)
        self.seconds = time.monotonic() - self._began

    def _run(self) -> None:
        method, path, more = self._ask
        client = WireClient(self._gateway.port)
        while not self._over.is_set():
            answer = client.ask(method, path, **more)
            self.statuses[answer.status] += 1
            if answer.status == 429:
                assert int(answer.headers["retry-after"]) >= 1
                self._refused.set()
            if answer.headers.get("connection") == "close":
                client.socket.close()
                client = WireClient(self._gateway.port)
        client.socket.close()


FLOODS: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "no key": ("POST", "/v1/chat/completions", {"body": CHAT}, 401),
    "bad keys": ("POST", "/v1/messages", {"body": CHAT, "key": WRONG}, 401),
    "no route": ("GET", "/nowhere", {}, 404),
    "another method": ("GET", "/v1/chat/completions", {}, 405),
    "a page that needs no key": ("GET", "/healthz", {}, 200),
    "a name that no model can have": ("GET", "/v1/models/%00", {}, 404),
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_without_a_key_refuses_no_good_key_of_the_same_address(gateway: Gateway, name: str) -> None:
    method, path, more, status = FLOODS[name]
    with Flood(gateway, method, path, **more) as flood:
        with WireClient(gateway.port) as client:  # one that stays
            answered = Counter(client.ask("POST", "/v1/chat/completions", key=gateway.key, body=CHAT).status for _ in range(100))
        for _ in range(20):  # and ones that come anew
            with WireClient(gateway.port) as client:
                answered[client.ask("GET", "/v1/models", key=gateway.key).status] += 1
    assert answered == {200: 120}
    assert flood.statuses[429] and set(flood.statuses) <= {status, 429}  # all of it, where the flood before has emptied the bucket
    assert flood.statuses[status] <= BURST + RATE * flood.seconds + WORKERS, "strangers have the specification's numbers"


def test_a_key_holder_pays_for_his_mistakes_himself(gateway: Gateway) -> None:
    """A path that is none, another method, a page without a key: with a good key none of them is a stranger's."""
    with Flood(gateway, "POST", "/v1/chat/completions", body=CHAT), WireClient(gateway.port) as client:
        asked = [("GET", "/nowhere"), ("PUT", "/v1/chat/completions"), ("GET", "/v1/models/%00"), ("GET", "/healthz"), ("GET", "/readyz")]
        assert [client.ask(method, path, key=gateway.key).status for method, path in asked] == [404, 405, 404, 200, 200]


MANY = 2000  # more than a start asks `/readyz`


class Elsewhere(WireClient):
    """A client at an address whose buckets are still full: the gateway's start asks `/readyz` from 127.0.0.1."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30, source_address=("127.0.0.9", 0))
        self.rest = b""


def head(length: int, *lines: str) -> bytes:
    return "\r\n".join(["POST /v1/chat/completions HTTP/1.1", "Host: h", f"Content-Length: {length}", *lines, "", ""]).encode()


BODY = b'{"model":"echo","messages":[{"role":"user","content":"Hello."}]}'


@pytest.mark.parametrize("padding", [0, 100_000])
def test_a_stranger_pays_for_a_body_before_it_sends_it_and_a_key_holder_does_not(padding: int) -> None:
    body = BODY + b" " * padding
    with Gateway({"server": {"rate_limit": {"requests_per_second": 0.001, "burst": MANY}}}) as gateway:
        with Elsewhere(gateway.port) as client:
            for _ in range(MANY - 2):  # two are left
                assert client.ask("GET", "/healthz").status == 200
        strangers = [Elsewhere(gateway.port) for _ in range(3)]
        for number, stranger in enumerate(strangers):
            stranger.send(head(100))  # and no byte of the body
            if number == 2:
                assert stranger.answer().status == 429
        with Elsewhere(gateway.port) as client:
            for _ in range(3):
                client.send(head(len(body), f"Authorization: Bearer {gateway.key}"))
                client.send(body[:10])
                client.send(body[10:])
                assert client.answer().status == 200
        for stranger in strangers[:2]:
            stranger.send(bytes(100))
            assert stranger.answer().status == 401, "paid when its head came, and not again"
            stranger.socket.close()


def test_key_holders_have_a_limit_by_address_where_the_operator_says_so() -> None:
    limit = {"requests_per_second": 1000, "burst": 1000, "authenticated_requests_per_second": 0.001, "authenticated_burst": 5}
    body = BODY + b" " * 100_000  # asked for its key by its head too: pays once
    with Gateway({"server": {"workers": 1, "rate_limit": limit}}) as gateway, WireClient(gateway.port) as client:
        for sent in (BODY, body, BODY, body, BODY):
            client.send(head(len(sent), f"Authorization: Bearer {gateway.key}"))
            client.send(sent)
            assert client.answer().status == 200
        assert client.ask("POST", "/v1/chat/completions", key=gateway.key, body=CHAT).status == 429
        assert client.ask("POST", "/v1/chat/completions", body=CHAT).status == 401, "strangers have a bucket of their own"


# --- connections ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("half", [b"", b"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\n", head(100) + b"{"])
def test_half_sent_requests_keep_no_good_key_of_the_same_address_out(half: bytes) -> None:
    """256 of them reset the good client for as long as a head may take."""
    with Gateway({"server": {"workers": 1, "limits": {"max_connections_per_address": 64}}}) as gateway:
        strangers = []
        try:
            for number in range(200):
                sock = socket.create_connection(("127.0.0.1", gateway.port))
                strangers.append(sock)
                sock.sendall(half)
                if number >= 64 and number % 8 == 0:
                    with WireClient(gateway.port) as client:
                        assert client.ask("POST", "/v1/chat/completions", key=gateway.key, body=CHAT).status == 200
            with WireClient(gateway.port) as stays:
                for _ in range(20):
                    for sock in [socket.create_connection(("127.0.0.1", gateway.port)) for _ in range(10)]:
                        strangers.append(sock)
                        sock.sendall(half)
                    assert stays.ask("POST", "/v1/chat/completions", key=gateway.key, body=CHAT).status == 200
        finally:
            for sock in strangers:
                sock.close()


def test_a_worker_that_strangers_filled_has_room_for_who_had_a_good_key_lately() -> None:
    with Gateway({"server": {"workers": 1, "limits": {"max_connections": 60, "max_connections_per_address": 20}}}) as gateway:
        with WireClient(gateway.port) as client:
            assert client.ask("GET", "/v1/models", key=gateway.key).status == 200
        strangers = [socket.create_connection(("127.0.0.1", gateway.port), source_address=(f"127.0.1.{1 + number // 10}", 0)) for number in range(80)]
        try:
            for _ in range(30):
                with WireClient(gateway.port) as client:
                    assert client.ask("POST", "/v1/chat/completions", key=gateway.key, body=CHAT).status == 200
        finally:
            for sock in strangers:
                sock.close()
