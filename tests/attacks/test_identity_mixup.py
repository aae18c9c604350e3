"""Who asks is decided anew for each request, from the whole key, and nothing of one principal is answered to another.

Sources: LiteLLM CVE-2026-35030 (the token's first characters as cache key), Portkey's response cache without tenant, ChatGPT's outage of March 2023
(redis-py: an answer went to the next request on the connection), James Kettle, "HTTP Desync Attacks" (connection-bound trust).
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from cliproxy.auth.client_keys import generate
from fakes.gateway import Gateway
from fakes.load import Caller
from fakes.provider import FakeProvider
from fakes.wire import WireClient, request_bytes

NARROW, WIDE = "gpt-4o-mini", "gpt-4o"


@pytest.fixture(scope="module")
def provider() -> Iterator[FakeProvider]:
    with FakeProvider() as running:
        yield running


@pytest.fixture(scope="module")
def gateway(provider: FakeProvider) -> Iterator[Gateway]:
    models = [NARROW, WIDE, "fault-trickle-100"]
    settings = {"server": {"workers": 2}, "providers": {"fake": {"base_url": provider.base_url, "models": models}}}
    with Gateway(settings, credentials={"fake": "sk-canary-000000000000"}) as running:
        yield running


def create(gateway: Gateway, *options: str) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(gateway.run("keys", "create", "--json", *options))
    return made


@pytest.fixture(scope="module")
def narrow(gateway: Gateway) -> dict[str, Any]:
    return create(gateway, "--name", "narrow", "--model", NARROW, "--model", "echo")


@pytest.fixture(scope="module")
def wide(gateway: Gateway) -> dict[str, Any]:
    return create(gateway, "--name", "wide", "--model", WIDE, "--model", "echo")


def chat(model: str, text: str = "Hello.", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **more}


def call(key: str | None, model: str, text: str = "Hello.", **more: Any) -> bytes:
    return request_bytes("POST", "/v1/chat/completions", key=key, body=chat(model, text, **more))


def test_two_keys_on_one_connection_keep_their_own_rights(gateway: Gateway, narrow: dict[str, Any], wide: dict[str, Any]) -> None:
    """A connection is nobody's: no key on it lends anything to the next request."""
    steps = [
        (narrow["key"], NARROW, 200),
        (wide["key"], WIDE, 200),
        (narrow["key"], WIDE, 403),
        (wide["key"], NARROW, 403),
        (None, NARROW, 401),
        (narrow["key"], NARROW, 200),
        ("cpk_wrong", NARROW, 401),
        (wide["key"], WIDE, 200),
        (None, WIDE, 401),
    ]
    with WireClient(gateway.port) as client:
        for key, model, status in steps:
            client.send(call(key, model))
            assert client.answer().status == status, (key, model)
    with WireClient(gateway.port) as client:  # the same, all of them sent before the first is answered
        client.send(b"".join(call(key, model) for key, model, _ in steps))
        assert [client.answer().status for _ in steps] == [status for _, _, status in steps]


def test_a_long_pipeline_of_mixed_callers_gets_each_its_own_answer(gateway: Gateway, narrow: dict[str, Any], wide: dict[str, Any]) -> None:
    order = random.Random(7)
    sent = []
    for number in range(120):
        key, model, status = order.choice(
            [(narrow["key"], "echo", 200), (wide["key"], "echo", 200), (narrow["key"], WIDE, 403), (None, "echo", 401), ("x", "echo", 401)]
        )
        sent.append((call(key, model, f"marker-{number:04d}", stream=order.random() < 0.3), f"marker-{number:04d}", status))
    with WireClient(gateway.port) as client:
        sender = threading.Thread(target=client.send, args=(b"".join(data for data, _, _ in sent),))
        sender.start()
        ids = set()
        for _, marker, status in sent:
            answer = client.answer()
            assert answer.status == status
            ids.add(answer.headers["x-request-id"])
            if status == 200:
                text = answer.body if not answer.chunked else "".join(_deltas(answer.body)).encode()
                assert marker.encode() in text
                assert text.count(b"marker-") == 1, "of nobody else"
            else:
                assert b"marker-" not in answer.body
        sender.join()
    assert len(ids) == len(sent)


def _deltas(body: bytes) -> Iterator[str]:
    for block in body.decode().split("\n\n"):
        if block.startswith("data: {"):
            for choice in json.loads(block[6:]).get("choices", ()):
                yield choice["delta"].get("content") or ""


def test_the_list_of_models_is_each_key_s_own(gateway: Gateway, narrow: dict[str, Any], wide: dict[str, Any]) -> None:
    with WireClient(gateway.port) as client:
        for _ in range(3):
            for key, models in ((narrow["key"], ["echo", NARROW]), (wide["key"], ["echo", WIDE])):
                assert [item["id"] for item in client.ask("GET", "/v1/models", key=key).json["data"]] == sorted(models)


def test_a_key_that_is_like_another_is_another(gateway: Gateway, narrow: dict[str, Any]) -> None:
    """Same beginning, same end, same length: only the digest of all of it is looked up."""
    from cliproxy.auth import client_keys

    key = narrow["key"].encode()
    other = generate().reveal()
    while other[4] == key[4] or other[46] == key[46]:  # one in 32: then some of them would be the same key
        other = generate().reveal()
    body, rest = key[4:47], other[4:47]
    relatives = [b"cpk_" + body[:cut] + rest[cut:] for cut in (1, 10, 20, 32, 42)] + [b"cpk_" + rest[:cut] + body[cut:] for cut in (1, 10, 20, 32, 42)]
    with WireClient(gateway.port) as client:
        for start in relatives:
            forged = (start + client_keys._checksum(start[4:])).decode()  # well-formed in every way
            assert client_keys.proof_of(forged.encode()) is not None and forged != narrow["key"]
            client.send(call(narrow["key"], NARROW) + call(forged, NARROW) + call(narrow["key"], NARROW))
            assert [client.answer().status for _ in range(3)] == [200, 401, 200]


def test_the_last_character_of_a_key_counts_to_its_last_bit(gateway: Gateway, narrow: dict[str, Any]) -> None:
    """43 and 6 characters of base64url have 258 and 36 bits; nothing is decoded, so the spare bits are no second spelling."""
    key = narrow["key"]
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    with WireClient(gateway.port) as client:
        for place in (46, 52):
            others = [key[:place] + character + key[place + 1 :] for character in alphabet if character != key[place]]
            assert {client.ask("GET", "/v1/models", key=other).status for other in others} == {401}
        assert client.ask("GET", "/v1/models", key=key).status == 200


def test_the_same_question_of_two_keys_is_two_calls(gateway: Gateway, provider: FakeProvider, narrow: dict[str, Any]) -> None:
    """No cache: an answer is never another principal's, not even for the same bytes."""
    twin = create(gateway, "--name", "twin", "--model", NARROW)
    provider.reset()
    with WireClient(gateway.port) as client:
        for _ in range(2):
            for key in (narrow["key"], twin["key"]):
                client.send(call(key, NARROW, "the same"))
                assert client.answer().status == 200
    assert len(provider.record()["requests"]) == 4


def test_each_key_has_its_own_limits_and_their_use_is_booked_to_it(gateway: Gateway) -> None:
    one, two = (create(gateway, "--name", f"limited-{number}", "--model", "echo", "--rpm", "5") for number in (1, 2))
    with WireClient(gateway.port) as client:
        statuses = {one["id"]: [], two["id"]: []}  # type: ignore[var-annotated]
        for _ in range(8):
            for made in (one, two):
                client.send(call(made["key"], "echo"))
                statuses[made["id"]].append(client.answer().status)
    assert list(statuses.values()) == [[200] * 5 + [429] * 3] * 2
    until = time.monotonic() + 10
    while True:
        booked = [line["principal"] for line in gateway.audit_lines() if line["event"] == "provider_request" and line["principal"] in statuses]
        if len(booked) == 10 or time.monotonic() > until:
            break
        time.sleep(0.05)
    assert sorted(booked) == sorted([one["id"]] * 5 + [two["id"]] * 5)


def test_revoking_one_key_ends_none_of_another_s_streams(gateway: Gateway) -> None:
    stays, goes = (create(gateway, "--name", name, "--model", "fault-trickle-100") for name in ("stays", "goes"))
    with WireClient(gateway.port) as staying, WireClient(gateway.port) as going:
        for client, made in ((staying, stays), (going, goes)):
            client.send(call(made["key"], "fault-trickle-100", stream=True))
            client.read_until(b"token0")
        gateway.run("keys", "revoke", goes["id"])
        ended, whole = going.answer(), staying.answer()
    assert b"revoked" in ended.body and b"[DONE]" not in ended.body
    assert whole.body.endswith(b"data: [DONE]\n\n") and b"error" not in whole.body


def test_an_address_is_the_connection_s_whatever_headers_say(gateway: Gateway) -> None:
    far = create(gateway, "--name", "far", "--model", "echo", "--network", "10.0.0.0/8")
    claims = (
        "X-Forwarded-For: 10.1.1.1",
        "X-Real-IP: 10.1.1.1",
        "Forwarded: for=10.1.1.1",
        "True-Client-IP: 10.1.1.1",
        "CF-Connecting-IP: 10.1.1.1",
        "X-Client-IP: 10.1.1.1",
    )
    with WireClient(gateway.port) as client:
        client.send(request_bytes("POST", "/v1/chat/completions", key=far["key"], body=chat("echo"), headers=claims))
        answer = client.answer()
    assert (answer.status, answer.error["code"]) == (403, "address_not_permitted")


def test_who_leaves_gets_no_answer_and_the_next_on_its_worker_gets_its_own(gateway: Gateway, narrow: dict[str, Any], wide: dict[str, Any]) -> None:
    """redis-py's flaw: a cancelled request left its answer on a pooled connection for whoever came next."""
    stop = threading.Event()

    def leave() -> None:
        while not stop.is_set():
            with WireClient(gateway.port) as client:
                client.send(call(wide["key"], WIDE, "of the one who left", stream=True))

    leaver = threading.Thread(target=leave)
    leaver.start()
    try:
        caller = Caller(gateway.port, narrow["key"])
        with WireClient(gateway.port) as client:
            for number in range(150):
                client.send(call(narrow["key"], "echo", f"mine-{number:04d}"))
                answer = client.answer()
                assert answer.status == 200 and f"mine-{number:04d}".encode() in answer.body and b"left" not in answer.body
        for _ in range(50):
            told = caller.call(NARROW, stream=False)
            assert told.ending == "done" and json.loads(told.body)["model"] == NARROW
        caller.close()
    finally:
        stop.set()
        leaver.join()
