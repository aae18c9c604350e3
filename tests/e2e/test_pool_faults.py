"""A pool of three real providers with injected faults behind a whole gateway: the answer arrives where any member can give it, nothing is sent again
after the first byte of its answer, cooldowns are those of the table, and a restart does not forget them.

Each case has providers of its own (by name; there are three processes), so that no case's cooldowns are another's.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from fakes.gateway import Gateway
from fakes.provider import EVENTS, FakeProvider
from fakes.wire import WireClient, request_bytes

FIRST_BYTE_SECONDS = 1.0
SLACK_SECONDS = 20.0  # for a busy machine between the failure and the look at it
# fault -> seconds of cooldown
FAULTS = {"status-429": 7.0, "status-500": 60.0, "status-401": 1800.0, "status-404": 43200.0, "stall": 60.0, "reset": 60.0}
MODES = {"whole": False, "streamed": True}
MIDDLE = ("stall-mid", "reset-mid")
GOOD = "gpt-4o-mini"


def members(case: str, *models: str) -> list[dict[str, str]]:
    return [{"provider": f"{case}-{place}", "model": model} for place, model in zip(("one", "two", "three"), models, strict=True)]


def settings(fakes: list[FakeProvider]) -> dict[str, Any]:
    pools = {}
    for fault in FAULTS:
        for mode in MODES:
            pools[f"{fault}-{mode}"] = members(f"{fault}-{mode}", f"fault-{fault}", f"fault-{fault}", GOOD)
    for fault in MIDDLE:
        pools[fault] = members(fault, f"fault-{fault}", GOOD, GOOD)
    pools["all"] = members("all", "fault-status-500", "fault-status-429", "fault-status-401")
    pools["kept"] = members("kept", "fault-status-500", "fault-status-404", GOOD)
    timeouts = {"first_byte": FIRST_BYTE_SECONDS, "idle": 2.0}
    providers = {
        member["provider"]: {"base_url": fake.base_url, "auth": "none", "timeouts": timeouts}
        for pool in pools.values()
        for member, fake in zip(pool, fakes, strict=True)
    }
    models: dict[str, Any] = {name: {"pool": pool, "strategy": "fill_first"} for name, pool in pools.items()}
    # The same name at two dialects: the chat body of the first member is written anew for the second.
    providers["mixed-one"] = {"base_url": fakes[0].base_url, "auth": "none", "kind": "anthropic"}
    providers["mixed-two"] = {"base_url": fakes[1].base_url, "auth": "none"}
    models["mixed"] = {"provider": "mixed-one", "model": "claude-x", "fallback": ["mixed-last"]}
    models["mixed-last"] = {"provider": "mixed-two", "model": GOOD}
    return {"providers": providers, "models": models, "routing": {"cooldown_seconds": 60, "retry_rounds": 1, "max_wait_seconds": 3}}


@pytest.fixture(scope="module")
def fakes() -> Iterator[list[FakeProvider]]:
    with ExitStack() as stack:
        yield [stack.enter_context(FakeProvider()) for _ in range(3)]


@pytest.fixture(scope="module")
def gateway(fakes: list[FakeProvider]) -> Iterator[Gateway]:
    with Gateway(settings(fakes)) as running:
        yield running


def ask(gateway: Gateway, model: str, *, stream: bool = False) -> tuple[int, dict[str, str], bytes]:
    return gateway.post("/v1/chat/completions", {"model": model, "stream": stream, "messages": [{"role": "user", "content": "hello"}]})


def received(fakes: list[FakeProvider]) -> list[int]:
    """Return how many requests each member has got since the last look."""
    counts = []
    for fake in fakes:
        counts.append(len(fake.record()["requests"]))
        fake.reset()
    return counts


def routes(gateway: Gateway, model: str) -> list[dict[str, Any]]:
    """Return what `cliproxy routes` says, once the vault knows what egress does."""
    until = time.monotonic() + 20
    while True:
        steps: list[dict[str, Any]] = json.loads(gateway.run("routes", model, "--json"))
        if any(step["cooldowns"] for step in steps) or time.monotonic() > until:
            return steps
        time.sleep(0.2)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fault", FAULTS)
def test_the_answer_arrives_where_a_member_can_give_it_and_the_others_cool_as_the_table_says(
    gateway: Gateway, fakes: list[FakeProvider], fault: str, mode: str
) -> None:
    model, stream = f"{fault}-{mode}", MODES[mode]
    received(fakes)
    began = time.time()
    status, headers, body = ask(gateway, model, stream=stream)
    assert status == 200, body
    assert body.count(b" token") == EVENTS if stream else json.loads(body)["choices"]
    assert received(fakes) == [1, 1, 1]
    assert headers["x-cliproxy-attempts"] == "3" and headers["x-cliproxy-provider"] == f"{model}-three"
    steps = routes(gateway, model)
    for step in steps[:2]:
        (cooldown,) = step["cooldowns"]
        assert FAULTS[fault] - 1 <= cooldown["until"] - began <= FAULTS[fault] + SLACK_SECONDS, cooldown
        assert step["state"].startswith("cooling")
    assert steps[2]["state"] == "ready"
    assert ask(gateway, model, stream=stream)[0] == 200
    assert received(fakes) == [0, 0, 1]


@pytest.mark.parametrize("fault", MIDDLE)
def test_after_the_first_byte_the_call_fails_honestly_is_sent_to_nobody_else_and_the_next_one_goes_elsewhere(
    gateway: Gateway, fakes: list[FakeProvider], fault: str
) -> None:
    received(fakes)
    status, _, body = ask(gateway, fault, stream=True)
    assert status == 200 and body.count(b" token") == 1
    assert b'"error"' in body and b"[DONE]" not in body
    assert received(fakes) == [1, 0, 0]
    status, _, body = ask(gateway, fault, stream=True)
    assert status == 200 and body.endswith(b"data: [DONE]\n\n")
    assert received(fakes) == [0, 1, 0]
    first, second, _ = routes(gateway, fault)
    assert first["cooldowns"] and not second["cooldowns"]


def test_when_no_member_can_the_soonest_is_named_and_nobody_is_asked(gateway: Gateway, fakes: list[FakeProvider]) -> None:
    received(fakes)
    status, _, body = ask(gateway, "all")
    assert (status, json.loads(body)["error"]["code"]) == (502, "provider_credential_rejected")
    assert received(fakes) == [1, 1, 1]
    status, headers, body = ask(gateway, "all")
    assert status == 429 and 1 <= int(headers["retry-after"]) <= 7, body
    assert received(fakes) == [0, 0, 0]


def test_a_member_of_another_dialect_gets_the_call_written_anew(gateway: Gateway, fakes: list[FakeProvider]) -> None:
    received(fakes)
    status, headers, body = ask(gateway, "mixed")  # the first fake knows no /messages and answers 404
    assert status == 200, body
    assert headers["x-cliproxy-provider"] == "mixed-two" and headers["x-cliproxy-attempts"] == "2"
    assert received(fakes)[:2] == [1, 1]


def test_each_attempt_is_in_the_log_with_its_number(gateway: Gateway) -> None:
    ask(gateway, "kept")
    until = time.monotonic() + 20
    while True:
        lines = [line for line in gateway.audit_lines() if line["event"] in ("provider_request", "provider_outcome")]
        request = next((line["request"] for line in lines if line.get("provider") == "kept-one"), "")
        attempts = sorted((line["attempt"], line["event"]) for line in lines if line["request"] == request)
        if len(attempts) == 6 or time.monotonic() > until:
            break
        time.sleep(0.1)
    assert attempts == sorted((number, event) for number in (1, 2, 3) for event in ("provider_request", "provider_outcome"))


@pytest.mark.parametrize("how", ["egress killed", "gateway restarted"])
def test_a_restart_does_not_forget_what_is_cooling(gateway: Gateway, fakes: list[FakeProvider], how: str) -> None:
    ask(gateway, "kept")
    before = [step["cooldowns"] for step in routes(gateway, "kept")]
    assert before[0] and before[1]
    received(fakes)
    if how == "egress killed":
        old = gateway.children()["egress"]
        os.kill(old, signal.SIGKILL)
        until = time.monotonic() + 20
        while gateway.children().get("egress") in (None, old) or not gateway.is_ready():
            assert time.monotonic() < until
            time.sleep(0.05)
    else:
        gateway.stop()
        gateway.start()
    with WireClient(gateway.port) as client:
        client.send(request_bytes("POST", "/v1/chat/completions", key=gateway.key, body={"model": "kept", "messages": [{"role": "user", "content": "hi"}]}))
        assert client.answer().status == 200
    assert received(fakes) == [0, 0, 1]
    after = [step["cooldowns"] for step in routes(gateway, "kept")]
    for one, other in zip(before, after, strict=True):
        assert [item["until"] for item in other] == pytest.approx([item["until"] for item in one], abs=1.5)
