"""Streams and large bodies byte by byte: silence, timeouts, slow readers, broken ends, HTTP/1.0, pipelining."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cliproxy.formats.sse import KEEP_ALIVE
from fakes.gateway import Gateway
from fakes.provider import EVENTS, FakeProvider, chat_events, long_stream, wide_embeddings_body
from fakes.wire import WireClient, events_of, request_bytes

SECRET = "sk-fake-0123456789abcdef"
USER = [{"role": "user", "content": "hello there"}]
FAULTS = ("endless", "reset-mid", "cut-chunked", "ends-early", "pause", "trickle-20", "long-6144", "wide-8192", "slow", "interim", "stall")
READERS = 8
STALLED_READER_SECONDS = 5.0
MIB = 1 << 20


@pytest.fixture(scope="module")
def provider() -> Iterator[FakeProvider]:
    with FakeProvider() as running:
        yield running


@pytest.fixture(scope="module")
def gateway(provider: FakeProvider) -> Iterator[Gateway]:
    settings = {
        "server": {"limits": {"keepalive_comment_seconds": 0.5, "stalled_reader_seconds": STALLED_READER_SECONDS}},
        "providers": {
            "fake": {"base_url": provider.base_url, "models": ["gpt-4o-mini", *(f"fault-{name}" for name in FAULTS)]},
            "impatient": {"base_url": provider.base_url, "timeouts": {"first_byte": 1.0, "idle": 2.5}},
            "brief": {"base_url": provider.base_url, "timeouts": {"total": 1.0}},
        },
        "models": {
            "stalls": {"provider": "impatient", "model": "fault-stall"},
            "stalls-midway": {"provider": "impatient", "model": "fault-stall-mid"},
            "takes-too-long": {"provider": "brief", "model": "fault-trickle-500"},
        },
    }
    with Gateway(settings, credentials=dict.fromkeys(("fake", "impatient", "brief"), SECRET)) as running:
        yield running


def chat(model: str, *, stream: bool = True, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": USER, "stream": stream, **more}


def chat_request(gateway: Gateway, model: str, **more: Any) -> bytes:
    headers = more.pop("headers", ())
    version = more.pop("version", "1.1")
    return request_bytes("POST", "/v1/chat/completions", key=gateway.key, body=chat(model, **more), headers=headers, version=version)


def resident_bytes(pid: int) -> int:
    """Return the memory of a process that is its own (not shared with a file)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon")


def wait_for_broken_off(provider: FakeProvider, count: int, *, seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while (seen := provider.record()["broken_off"]) != count:
        assert time.monotonic() < until, f"{seen} connections were closed, not {count}"
        time.sleep(0.05)


# --- silence -------------------------------------------------------------------------------------------------------------


def test_a_silent_provider_is_bridged_by_comments_and_ended_by_the_idle_timeout(gateway: Gateway) -> None:
    with WireClient(gateway.port) as client:
        client.send(chat_request(gateway, "stalls-midway"))
        answer = client.answer()
    assert answer.complete
    assert answer.body.count(b": keep-alive\n\n") >= 1
    *texts, last = events_of(answer.body)
    assert [event.encode() for event in texts] == [event.removeprefix(b"data: ").strip() for event in chat_events("fault", [" token0"])[:2]]
    assert json.loads(last)["error"]["code"] == "provider_idle_timeout"
    assert b"[DONE]" not in answer.body


def test_comments_in_a_pause_in_the_middle_of_an_event_change_nothing_of_the_events(gateway: Gateway) -> None:
    with WireClient(gateway.port) as client:
        client.send(chat_request(gateway, "fault-pause"))
        answer = client.answer()
    assert answer.body.count(b": keep-alive\n\n") >= 1
    expected = chat_events("fault", [f" token{number}" for number in range(EVENTS)])
    assert events_of(answer.body) == [event.decode().removeprefix("data: ").strip() for event in expected]


def test_a_provider_that_sends_no_first_byte_is_504_and_its_connection_is_closed(gateway: Gateway, provider: FakeProvider) -> None:
    provider.reset()
    with WireClient(gateway.port) as whole, WireClient(gateway.port) as streamed:
        whole.send(chat_request(gateway, "stalls", stream=False))
        streamed.send(chat_request(gateway, "stalls", stream=True))
        for client in (whole, streamed):
            answer = client.answer()
            assert answer.status == 504
            assert answer.error["code"] == "provider_timeout"
    wait_for_broken_off(provider, 2)


def test_an_answer_that_takes_longer_than_all_of_it_may_ends_with_an_error_event(gateway: Gateway) -> None:
    with WireClient(gateway.port) as client:
        client.send(chat_request(gateway, "takes-too-long"))
        answer = client.answer()
    assert json.loads(events_of(answer.body)[-1])["error"]["code"] == "provider_total_timeout"
    assert b"[DONE]" not in answer.body


# --- broken ends ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["reset-mid", "cut-chunked", "ends-early"])
def test_a_broken_stream_ends_with_an_error_event_and_no_done(gateway: Gateway, fault: str) -> None:
    with WireClient(gateway.port) as client:
        client.send(chat_request(gateway, f"fault-{fault}"))
        answer = client.answer()
        assert answer.status == 200
        assert answer.complete  # our own framing is whole, so that every client reads the event
        error = json.loads(events_of(answer.body)[-1])["error"]
        assert error["type"] == "upstream_error"
        assert "broke off" in error["message"]
        assert b"[DONE]" not in answer.body
        assert client.ask("GET", "/healthz").status == 200  # the connection goes on


# --- HTTP of all ages ----------------------------------------------------------------------------------------------------


def test_an_http_1_0_client_gets_a_stream_that_the_connections_end_delimits(gateway: Gateway) -> None:
    with WireClient(gateway.port) as client:
        client.send(chat_request(gateway, "fault-trickle-20", version="1.0"))
        answer = client.answer()
    assert "transfer-encoding" not in answer.headers
    assert "content-length" not in answer.headers
    # On a busy machine the stream may be silent for long enough that a comment stands between two events.
    assert answer.body.replace(KEEP_ALIVE, b"") == b"".join(chat_events("fault", [f" token{number}" for number in range(EVENTS)]))


def test_an_http_1_0_client_gets_a_whole_answer_with_its_length(gateway: Gateway) -> None:
    with WireClient(gateway.port) as client:
        client.send(chat_request(gateway, "gpt-4o-mini", version="1.0", stream=False))
        answer = client.answer()
        assert "content-length" in answer.headers
        assert answer.json["choices"]
        assert client.is_closed()


def test_pipelined_requests_are_answered_in_order(gateway: Gateway) -> None:
    with WireClient(gateway.port) as client:
        first = chat_request(gateway, "fault-trickle-20")
        second = chat_request(gateway, "echo", stream=False)
        client.send(first + second + request_bytes("GET", "/healthz") + chat_request(gateway, "gpt-4o-mini"))
        streamed, whole, health, last = (client.answer() for _ in range(4))
    assert events_of(streamed.body)[-1] == "[DONE]"
    assert whole.json["model"] == "echo"
    assert health.json["status"] == "ok"
    assert events_of(last.body)[-1] == "[DONE]"


def test_a_request_that_arrives_byte_by_byte_is_answered(gateway: Gateway) -> None:
    with WireClient(gateway.port) as client:
        for byte in chat_request(gateway, "gpt-4o-mini"):
            client.send(bytes([byte]))
        assert events_of(client.answer().body)[-1] == "[DONE]"


def test_interim_answers_of_the_provider_stay_with_us(gateway: Gateway) -> None:
    with WireClient(gateway.port) as client:
        client.send(chat_request(gateway, "fault-interim", stream=False))
        answer = client.answer()
    assert answer.status == 200
    assert "link" not in answer.headers


# --- large ---------------------------------------------------------------------------------------------------------------


def test_several_mib_of_embeddings_arrive_byte_by_byte(gateway: Gateway) -> None:
    expected = wide_embeddings_body("fault", 64, 8192)
    assert len(expected) > 4 * MIB
    with WireClient(gateway.port) as client:
        for _ in range(2):
            answer = client.ask("POST", "/v1/embeddings", key=gateway.key, body={"model": "fault-wide-8192", "input": ["a"] * 64})
            assert answer.status == 200
            assert answer.complete
            assert hashlib.sha256(answer.body).digest() == hashlib.sha256(expected).digest()


def test_an_image_of_four_mib_reaches_the_provider_byte_by_byte(gateway: Gateway, provider: FakeProvider) -> None:
    provider.reset()
    url = "data:image/png;base64," + base64.b64encode(random.Random(7).randbytes(3 * MIB)).decode()
    assert len(url) > 4 * MIB
    parts = [{"type": "text", "text": "what is this?"}, {"type": "image_url", "image_url": {"url": url, "detail": "low"}}]
    with WireClient(gateway.port) as client:
        body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": parts}]}
        assert client.ask("POST", "/v1/chat/completions", key=gateway.key, body=body).status == 200
    (request,) = provider.record()["requests"]
    assert json.loads(request["body"])["messages"][0]["content"] == parts


def test_a_chunked_request_body_reaches_the_provider_with_its_length(gateway: Gateway, provider: FakeProvider) -> None:
    provider.reset()
    text = "x" * 300_000
    body = json.dumps({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": text}]}).encode()
    pieces = [body[start : start + 8192] for start in range(0, len(body), 8192)]
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {gateway.key}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    with WireClient(gateway.port) as client:
        client.send(head + b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n")
        assert client.answer().status == 200
    (request,) = provider.record()["requests"]
    headers = {name.lower(): value for name, value in request["headers"]}
    assert "transfer-encoding" not in headers
    assert int(headers["content-length"]) == len(request["body"])
    assert json.loads(request["body"])["messages"][0]["content"] == text


def test_large_bodies_that_end_together_end_nobody_elses_call(gateway: Gateway) -> None:
    size = 8 * MIB - 1024
    body = json.dumps(chat("gpt-4o-mini") | {"messages": [{"role": "user", "content": "x" * (size - 200)}]}).encode()
    with WireClient(gateway.port) as bystander:
        bystander.send(chat_request(gateway, "fault-trickle-20"))
        bystander.read_until(b"token0")
        clients = [WireClient(gateway.port) for _ in range(12)]
        try:
            for client in clients:
                client.send(request_bytes("POST", "/v1/chat/completions", key=gateway.key, body=body)[:-1])
            for client in clients:
                client.send(body[-1:])
            statuses = {client.answer().status for client in clients}
        finally:
            for client in clients:
                client.socket.close()
        assert statuses <= {200, 503}
        assert events_of(bystander.answer().body)[-1] == "[DONE]"
    assert not [line for line in gateway.audit_lines() if line["event"] == "channel_violation"]


# --- slow readers --------------------------------------------------------------------------------------------------------


def test_a_stream_to_a_reader_that_paused_is_byte_identical(gateway: Gateway) -> None:
    expected = b"".join(long_stream(6144))
    assert len(expected) > 6 * MIB
    with WireClient(gateway.port, receive_buffer=65536) as client:
        client.send(chat_request(gateway, "fault-long-6144"))
        client.read_until(b"\r\n\r\n")
        time.sleep(1.5)  # everything on the way is full long before
        for _ in range(3):
            client.more()
            time.sleep(0.3)
        answer = client.answer()
    assert answer.complete
    body = answer.body.replace(b": keep-alive\n\n", b"")
    assert hashlib.sha256(body).digest() == hashlib.sha256(expected).digest()


def test_readers_that_do_not_read_keep_memory_bounded_and_are_let_go(gateway: Gateway, provider: FakeProvider) -> None:
    children = gateway.children()
    with WireClient(gateway.port) as warm:
        warm.send(chat_request(gateway, "fault-long-6144"))
        warm.answer()
    provider.reset()
    before = {name: resident_bytes(children[name]) for name in ("worker", "egress")}
    clients = [WireClient(gateway.port, receive_buffer=65536) for _ in range(READERS)]
    try:
        for client in clients:
            client.send(chat_request(gateway, "fault-endless"))
        for client in clients:
            assert client.head().status == 200
        highest = dict(before)
        until = time.monotonic() + 3.0
        while time.monotonic() < until:
            for name in highest:
                highest[name] = max(highest[name], resident_bytes(children[name]))
            with WireClient(gateway.port) as other:  # others are served meanwhile
                assert other.ask("POST", "/v1/chat/completions", key=gateway.key, body=chat("echo", stream=False)).status == 200
            time.sleep(0.1)
        # A stream may hold its window of 256 KiB, one read of 256 KiB and 256 KiB of its end, and the allocator as much again. Without credits these readers
        # took 269 MB together.
        assert {name: (highest[name] - before[name]) // MIB for name in before if highest[name] - before[name] > 2 * READERS * MIB} == {}
        wait_for_broken_off(provider, READERS)  # a reader that takes nothing is let go, and the provider with it
    finally:
        for client in clients:
            client.socket.close()


def test_a_client_that_vanishes_midway_closes_the_providers_connection(gateway: Gateway, provider: FakeProvider) -> None:
    provider.reset()
    with WireClient(gateway.port) as client:
        client.send(chat_request(gateway, "fault-endless"))
        client.read_until(b"token0")
    wait_for_broken_off(provider, 1)
    with WireClient(gateway.port) as client:
        client.send(chat_request(gateway, "fault-stall", stream=False))
        until = time.monotonic() + 10
        while len(provider.record()["requests"]) < 2:
            assert time.monotonic() < until
            time.sleep(0.02)
    wait_for_broken_off(provider, 2)
