"""What a client without a valid key can make us hold or compute: next to nothing.

Found by attacking: 32 connections of one address without a key, each with 8 MB of a body that never ended, took all the room that a worker has for bodies, so
that the next client's pictures were answered with 503; and 16 KB of query cost fifteen times what 16 KB of header cost.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator

import pytest

from cliproxy.bounds import MAX_STRANGERS_BODY_BYTES
from cliproxy.dataplane.keys import token_of
from cliproxy.dataplane.routes import MAX_QUERY_PARAMETERS, route_of
from cliproxy.dataplane.surfaces.paths import MAX_QUERY_VALUE_BYTES, parameters
from cliproxy.errors import ClientError, NotFound
from cliproxy.ingress.framing import Framer, RawRequest
from fakes.gateway import Gateway
from fakes.wire import WireClient

LARGE = 8 * 1024 * 1024
WRONG = "cpk_" + "A" * 49
LIST, GEMINI = "/v1beta/models", "/v1beta/models/echo:generateContent"


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with Gateway() as running:
        yield running


def head(method: str, path: str, length: int | None, *lines: str) -> bytes:
    """A head whose body is still to come; `length` None: in chunks."""
    framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json", framing, *lines, "", ""]).encode()


STRANGERS = {
    "no key": ("POST", "/v1/chat/completions", LARGE, (), 401),
    "a wrong key": ("POST", "/v1/messages", LARGE, (f"x-api-key: {WRONG}",), 401),
    "a wrong key in the query": ("POST", f"{GEMINI}?key={WRONG}", LARGE, (), 401),
    "no key, and asks first": ("POST", "/v1/chat/completions", 10, ("Expect: 100-continue",), 401),
    "a path that is none": ("POST", "/chat/completions", LARGE, (), 404),
    "a page that needs no key": ("GET", "/healthz", LARGE, (), 413),
    "a page that needs one": ("GET", "/v1/models", LARGE, (), 413),
    "another method": ("PUT", "/v1/chat/completions", LARGE, (), 413),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_a_strangers_large_body_is_refused_by_its_head(gateway: Gateway, name: str) -> None:
    method, path, length, lines, status = STRANGERS[name]
    with WireClient(gateway.port) as client:
        client.send(head(method, path, length, *lines))  # and nothing of its body
        answer = client.answer()
        assert answer.status == status and answer.complete and answer.headers["connection"] == "close"


def test_a_strangers_body_without_a_length_is_refused_once_it_is_large(gateway: Gateway) -> None:
    with WireClient(gateway.port) as client:
        client.send(head("POST", "/v1/chat/completions", None) + b"%x\r\n" % LARGE)
        assert client.answer().status == 401


def test_the_early_401_is_the_one_that_a_small_body_gets(gateway: Gateway) -> None:
    """One body for every reason, and for every size."""
    answers = []
    for lines in ((), (f"Authorization: Bearer {WRONG}",), ("Authorization: Basic x",), (f"x-api-key: {WRONG}", f"x-goog-api-key: {gateway.key}")):
        for data in (head("POST", "/v1/messages", LARGE, *lines), head("POST", "/v1/messages", 2, *lines) + b"{}"):
            with WireClient(gateway.port) as client:
                client.send(data)
                answers.append(client.answer())
    assert {answer.status for answer in answers} == {401}
    assert len({re.sub(rb"req_[0-9a-f]{20}", b"", answer.body) for answer in answers}) == 1
    assert len({tuple(sorted(name for name in answer.headers if name != "connection")) for answer in answers}) == 1


def test_strangers_do_not_take_the_room_for_bodies(gateway: Gateway) -> None:
    strangers = []
    try:
        for _ in range(40):
            sock = socket.create_connection(("127.0.0.1", gateway.port))
            strangers.append(sock)
            sock.sendall(head("POST", "/v1/chat/completions", LARGE) + bytes(2 * MAX_STRANGERS_BODY_BYTES))
            assert sock.recv(65536).startswith(b"HTTP/1.1 401 ")
        body = b'{"model":"echo","messages":[{"role":"user","content":"Hello."}]' + b" " * (4 * MAX_STRANGERS_BODY_BYTES) + b"}"
        with WireClient(gateway.port) as client:
            client.send(head("POST", "/v1/chat/completions", len(body), f"Authorization: Bearer {gateway.key}"))
            client.send(body[:-1])
            client.send(body[-1:])
            assert client.answer().status == 200
    finally:
        for sock in strangers:
            sock.close()


def test_who_has_a_key_may_send_its_body_after_asking(gateway: Gateway) -> None:
    body = b'{"model":"echo","messages":[{"role":"user","content":"Hello."}]}'
    with WireClient(gateway.port) as client:
        client.send(head("POST", "/v1/chat/completions", len(body), "Expect: 100-continue", f"Authorization: Bearer {gateway.key}"))
        assert client.head().status == 100
        client.send(body)
        assert client.answer().status == 200
        assert client.ask("GET", "/v1/models", key=gateway.key).status == 200  # the connection goes on


# --- a query costs what its bytes cost -----------------------------------------------------------------------------------


def raw(target: str) -> RawRequest:
    framer = Framer(max_head_bytes=16384, max_headers=100, max_body_bytes=1024)
    framer.feed(f"GET {target} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
    request = framer.next_request()
    assert request is not None
    return request


@pytest.mark.parametrize("path", [LIST, GEMINI, "/v1/models/m:countTokens", "/v1beta/models/m", "/v1beta/nowhere"])
def test_more_parameters_than_anybody_sends_are_refused_on_every_gemini_path(path: str) -> None:
    with pytest.raises(ClientError) as refused:
        route_of(raw(path + "?" + "&" * MAX_QUERY_PARAMETERS))
    assert refused.value.status == 400
    assert token_of(raw(LIST + "?" + "&" * (MAX_QUERY_PARAMETERS - 2) + "&key=k1")) == b"k1"


def test_a_value_that_is_too_long_for_any_use_is_not_decoded() -> None:
    assert parameters(b"key=" + b"%41" * 53, b"key") == [b"A" * 53]
    long = b"%41" * MAX_QUERY_VALUE_BYTES
    assert parameters(b"key=" + long, b"key") == [long]


def test_a_name_that_is_too_long_for_any_model_is_not_decoded() -> None:
    assert route_of(raw("/v1/models/" + "%F0%9F%94%91" * 256)) is not None  # 256 characters, each as long as can be
    with pytest.raises(NotFound):
        route_of(raw("/v1/models/" + "%41" * 5000))
