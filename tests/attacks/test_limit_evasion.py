"""Reserve first, settle after: never above a limit plus what is in flight, however a client asks, hurries or leaves.

Sources: LiteLLM #34732 (budgets overspent under concurrency), LiteLLM's unbilled aborted streams, "max_completion_tokens" past a cap on `max_tokens`,
OWASP LLM10:2025 (unbounded consumption).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from fakes.gateway import Gateway
from fakes.provider import FakeProvider
from fakes.wire import WireAnswer, WireClient, request_bytes

MESSAGES = [{"role": "user", "content": "Hello."}]
MODELS = ["gpt-4o-mini", "fault-slow", "fault-stall", "fault-trickle-50", "fault-status-500", "fault-cut-chunked"]
USED = 43  # tokens that the fake provider reports of a whole answer
AT_ONCE = 200
CAP = 4096


@pytest.fixture(scope="module")
def provider() -> Iterator[FakeProvider]:
    with FakeProvider() as running:
        yield running


def settings(provider: FakeProvider, **requests: Any) -> dict[str, Any]:
    return {
        "server": {"workers": 2, "limits": {"max_connections_per_address": 1000}},
        "auth": {"key_limits": {"concurrency": 1000}},
        "requests": requests,
        "providers": {"fake": {"base_url": provider.base_url, "models": MODELS}},
    }


@pytest.fixture(scope="module")
def gateway(provider: FakeProvider) -> Iterator[Gateway]:
    with Gateway(settings(provider), credentials={"fake": "sk-canary-000000000000"}) as running:
        yield running


@pytest.fixture(scope="module")
def clamping(provider: FakeProvider) -> Iterator[Gateway]:
    with Gateway(settings(provider, max_tokens=500, on_excess="clamp"), credentials={"fake": "sk-canary-000000000000"}) as running:
        yield running


def create(gateway: Gateway, *options: str) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(gateway.run("keys", "create", "--json", *options))
    return made


def call(key: str, model: str = "gpt-4o-mini", **more: Any) -> bytes:
    return request_bytes("POST", "/v1/chat/completions", key=key, body={"model": model, "messages": MESSAGES, **more})


def ask(gateway: Gateway, key: str, model: str = "gpt-4o-mini", **more: Any) -> WireAnswer:
    with WireClient(gateway.port) as client:
        client.send(call(key, model, **more))
        return client.answer()


def all_at_once(gateway: Gateway, request: bytes) -> list[WireAnswer]:
    """Send the same request over `AT_ONCE` connections before any answer is read."""
    clients = [WireClient(gateway.port) for _ in range(AT_ONCE)]
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda client: client.send(request), clients))
            return list(pool.map(lambda client: client.answer(), clients))
    finally:
        for client in clients:
            client.socket.close()


def booked(gateway: Gateway, principal: str, count: int) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """Return the intents of a principal and their outcomes by request, once there are `count` and each has its own."""
    until = time.monotonic() + 15
    while True:
        lines = gateway.audit_lines()
        intents = [line for line in lines if line["event"] == "provider_request" and line["principal"] == principal]
        outcomes = {line["request"]: line for line in lines if line["event"] == "provider_outcome"}
        if len(intents) >= count and all(intent["request"] in outcomes for intent in intents):
            return intents, {intent["request"]: outcomes[intent["request"]] for intent in intents}
        assert time.monotonic() < until
        time.sleep(0.05)


# --- at once -------------------------------------------------------------------------------------------------------------


def test_calls_at_once_never_use_more_tokens_than_the_limit(gateway: Gateway, provider: FakeProvider) -> None:
    """200 at once, each reserving more than it will use: in any order of admission and settlement the sum stays below limit and drain."""
    limit = 1200
    made = create(gateway, "--tpm", str(limit))
    began = time.monotonic()
    answers = all_at_once(gateway, call(made["key"], "fault-slow", max_tokens=100))
    intents, outcomes = booked(gateway, made["id"], sum(answer.status == 200 for answer in answers))
    used = sum(line["input_tokens"] + line["output_tokens"] for line in outcomes.values())
    assert {answer.status for answer in answers} == {200, 429}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers if answer.status == 429)
    assert len(intents) == sum(answer.status == 200 for answer in answers), "what is refused is no call"
    assert all(intent["reserved_tokens"] >= 100 + USED - 24 for intent in intents)
    assert used == USED * len(intents) <= limit + limit * (time.monotonic() - began) / 60


def test_a_provider_that_uses_more_than_was_reserved_runs_at_most_what_is_in_flight_over(gateway: Gateway) -> None:
    limit = 300
    made = create(gateway, "--tpm", str(limit))
    began = time.monotonic()
    answers = all_at_once(gateway, call(made["key"], "fault-slow", max_tokens=1))
    intents, outcomes = booked(gateway, made["id"], sum(answer.status == 200 for answer in answers))
    reserved = intents[0]["reserved_tokens"]
    assert reserved < USED
    used = sum(line["input_tokens"] + line["output_tokens"] for line in outcomes.values())
    in_flight = limit // reserved  # as many as may be under way at once
    assert used <= limit + in_flight * (USED - reserved) + limit * (time.monotonic() - began) / 60
    assert ask(gateway, made["key"], max_tokens=1).status == 429 or used < limit, "and what ran over is a debt"
    assert {answer.status for answer in answers} == {200, 429}


def test_calls_at_once_never_are_more_than_the_requests_a_minute(gateway: Gateway) -> None:
    made = create(gateway, "--rpm", "20")
    began = time.monotonic()
    answers = all_at_once(gateway, call(made["key"], "echo"))
    admitted = sum(answer.status == 200 for answer in answers)
    assert 20 <= admitted <= 20 + 20 * (time.monotonic() - began) / 60 + 1
    assert len(booked(gateway, made["id"], admitted)[0]) == admitted


def test_calls_at_once_never_are_more_than_the_concurrency_over_all_workers(gateway: Gateway, provider: FakeProvider) -> None:
    made = create(gateway, "--concurrency", "7")
    clients = [WireClient(gateway.port) for _ in range(60)]
    provider.reset()
    try:
        for client in clients:
            client.send(call(made["key"], "fault-stall"))
        refused = 0
        until = time.monotonic() + 15
        while refused < len(clients) - 7 and time.monotonic() < until:
            refused = sum(_has_answer(client) for client in clients)
        assert refused == len(clients) - 7
        assert len(provider.record()["requests"]) == 7
    finally:
        for client in clients:
            client.socket.close()
    booked(gateway, made["id"], 7)
    assert ask(gateway, made["key"]).status == 200, "places are given back"


def _has_answer(client: WireClient) -> bool:
    client.socket.setblocking(False)
    try:
        client.rest += client.socket.recv(65536)
    except BlockingIOError:
        pass
    finally:
        client.socket.settimeout(30)
    return b"429" in client.rest[:20]


# --- leaving -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "stream", "mark"),
    [("fault-trickle-50", True, b"token1"), ("fault-trickle-50", True, b"HTTP/1.1 200"), ("fault-stall", False, b""), ("fault-stall", True, b"")],
    ids=["after some tokens", "after the head", "while it waits", "a stream that waits"],
)
def test_who_leaves_before_the_end_has_paid(gateway: Gateway, provider: FakeProvider, model: str, stream: bool, mark: bytes) -> None:
    """The provider computes and bills what nobody heard: an aborted call costs its reservation."""
    made = create(gateway, "--tpm", "1000")
    provider.reset()
    sent = 0
    for _ in range(5):
        with WireClient(gateway.port) as client:
            client.send(call(made["key"], model, stream=stream, max_tokens=400))
            if mark:
                client.read_until(b"\r\n\r\n")
                if client.rest.startswith(b"HTTP/1.1 429"):
                    break
                client.read_until(mark)
            else:
                until = time.monotonic() + 10
                while len(provider.record()["requests"]) == sent and not _has_answer(client) and time.monotonic() < until:
                    time.sleep(0.01)
                if client.rest:
                    break
        sent += 1
    assert client.rest.startswith(b"HTTP/1.1 429")
    intents, outcomes = booked(gateway, made["id"], sent)
    assert (len(intents), sent, len(provider.record()["requests"])) == (2, 2, 2)
    assert {line["error"] for line in outcomes.values()} == {"client_gone"}
    assert ask(gateway, made["key"], max_tokens=400).status == 429


@pytest.mark.parametrize("model", ["fault-status-500", "fault-cut-chunked"])
def test_a_provider_that_fails_without_a_word_of_usage_has_been_paid(gateway: Gateway, model: str) -> None:
    """Nobody knows what it cost, so it costs what was set aside: a client cannot make calls free by making them fail."""
    made = create(gateway, "--tpm", "1000")
    statuses = [ask(gateway, made["key"], model, stream=True, max_tokens=400).status for _ in range(4)]
    assert statuses[2:] == [429, 429] and 429 not in statuses[:2]


def test_a_refusal_costs_nothing(gateway: Gateway) -> None:
    """Nor can anyone who does not have the key spend it."""
    made = create(gateway, "--tpm", "1000", "--rpm", "2", "--model", "gpt-4o-mini")
    for _ in range(5):
        assert ask(gateway, made["key"], max_tokens=990).status == 429  # more than fits, whatever was used
        assert ask(gateway, made["key"], max_tokens=CAP + 1).status == 400
        assert ask(gateway, made["key"], "echo").status == 403
        assert ask(gateway, made["key"][:-1] + "x", max_tokens=100).status == 401
    assert [ask(gateway, made["key"], max_tokens=100).status for _ in range(3)] == [200, 200, 429]
    assert len(booked(gateway, made["id"], 2)[0]) == 2


# --- asking for more than it looks like ----------------------------------------------------------------------------------


def test_every_choice_is_reserved(gateway: Gateway, provider: FakeProvider) -> None:
    made = create(gateway, "--tpm", "1000")
    provider.reset()
    answer = ask(gateway, made["key"], n=4, max_tokens=300)
    assert answer.status == 429 and "reserves" in answer.error["message"]
    assert ask(gateway, made["key"], n=128, max_completion_tokens=10).status == 429
    assert ask(gateway, made["key"], n=129).status == 400
    assert provider.record()["requests"] == []
    assert ask(gateway, made["key"], n=3, max_tokens=300).status == 200
    (intent,), _ = booked(gateway, made["id"], 1)
    assert 900 < intent["reserved_tokens"] < 1000


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": CAP + 1},
        {"max_completion_tokens": CAP + 1},
        {"max_tokens": 1, "max_completion_tokens": CAP + 1},
        {"max_tokens": CAP + 1, "max_completion_tokens": 1},
        {"max_tokens": 10**18},
        {"max_tokens": 10**30},
        {"max_tokens": 1e9},
        {"max_tokens": "1"},
        {"max_tokens": True},
        {"max_tokens": -1},
        {"max_tokens": 0},
        {"max_tokens": [1]},
        {"Max_Tokens": 10**6},
        {"max-tokens": 10**6},
        {"maxTokens": 10**6, "max_output_tokens": 10**6},
        {"max_new_tokens": 10**6},
        {"num_predict": -1},
        {"best_of": 100},
    ],
    ids=json.dumps,
)
def test_no_spelling_leads_around_the_cap(gateway: Gateway, provider: FakeProvider, fields: dict[str, Any]) -> None:
    provider.reset()
    assert ask(gateway, gateway.key, **fields).status == 400
    assert provider.record()["requests"] == []


@pytest.mark.parametrize(
    "fields", [{}, {"max_tokens": None}, {"max_completion_tokens": None}, {"max_tokens": None, "max_completion_tokens": None}], ids=json.dumps
)
def test_who_names_no_cap_gets_the_gateway_s_and_pays_for_it(gateway: Gateway, provider: FakeProvider, fields: dict[str, Any]) -> None:
    made = create(gateway, "--tpm", "100000")
    provider.reset()
    assert ask(gateway, made["key"], **fields).status == 200
    (request,) = provider.record()["requests"]
    assert json.loads(request["body"])["max_tokens"] == CAP
    (intent,), _ = booked(gateway, made["id"], 1)
    assert intent["reserved_tokens"] > CAP


@pytest.mark.parametrize(
    ("fields", "leaves", "reserved"),
    [
        ({"max_tokens": 10**9}, {"max_tokens": 500}, 500),
        ({"max_completion_tokens": 501}, {"max_completion_tokens": 500}, 500),
        ({"max_tokens": 10, "max_completion_tokens": 9999}, {"max_tokens": 10, "max_completion_tokens": 10}, 10),
        ({"max_tokens": 9999, "n": 3}, {"max_tokens": 500}, 1500),
        ({}, {"max_tokens": 500}, 500),
        ({"max_tokens": 20}, {"max_tokens": 20}, 20),
    ],
    ids=json.dumps,
)
def test_what_is_clamped_leaves_and_is_reserved_as_clamped(
    clamping: Gateway, provider: FakeProvider, fields: dict[str, Any], leaves: dict[str, int], reserved: int
) -> None:
    made = create(clamping, "--tpm", "100000")
    provider.reset()
    assert ask(clamping, made["key"], **fields).status == 200
    (request,) = provider.record()["requests"]
    assert {name: value for name, value in json.loads(request["body"]).items() if name.startswith("max_")} == leaves
    (intent,), _ = booked(clamping, made["id"], 1)
    assert reserved < intent["reserved_tokens"] < reserved + 100


def test_a_long_prompt_is_reserved_before_it_is_known_what_it_costs(gateway: Gateway, provider: FakeProvider) -> None:
    made = create(gateway, "--tpm", "1000")
    provider.reset()
    for path, body in (
        ("/v1/chat/completions", {"model": "gpt-4o-mini", "max_tokens": 1, "messages": [{"role": "user", "content": "word " * 1000}]}),
        ("/v1/embeddings", {"model": "gpt-4o-mini", "input": ["word " * 1000]}),
        ("/v1/embeddings", {"model": "gpt-4o-mini", "input": [[1] * 2000]}),
    ):
        with WireClient(gateway.port) as client:
            assert client.ask("POST", path, key=made["key"], body=body).status == 429, path
    assert provider.record()["requests"] == []


# --- making it forget ----------------------------------------------------------------------------------------------------


def test_neither_a_reload_nor_another_connection_or_worker_begins_anew(gateway: Gateway) -> None:
    made = create(gateway, "--rpm", "3")
    assert [ask(gateway, made["key"], "echo").status for _ in range(4)] == [200] * 3 + [429]
    gateway.run("reload")
    assert {ask(gateway, made["key"], "echo").status for _ in range(12)} == {429}
