"""A process that lives and does not move (stopped, in an endless loop) keeps its channels open, so nobody is told of its end. Workers stop waiting for such an
egress, the supervisor replaces it; and nobody takes a machine that was suspended for one.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cliproxy.dataplane.link import EGRESS_SILENT_SECONDS
from cliproxy.processes.topology import EGRESS, HUNG_SECONDS
from fakes.gateway import Gateway
from fakes.provider import FakeProvider
from fakes.recovery import verify_log
from fakes.wire import WireClient, events_of, request_bytes

SECRET = "sk-fake-0123456789abcdef"
PATIENCE_SECONDS = 90.0
STREAM, WHOLE, ORDINARY = "fault-trickle-1000", "fault-stall", "gpt-4o-mini"
HELLO = {"model": ORDINARY, "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture(scope="module")
def provider() -> Iterator[FakeProvider]:
    with FakeProvider() as running:
        yield running


@pytest.fixture
def gateway(provider: FakeProvider) -> Iterator[Gateway]:
    settings = {"server": {"workers": 1}, "providers": {"fake": {"base_url": provider.base_url, "models": [STREAM, WHOLE, ORDINARY]}}}
    with Gateway(settings, credentials={"fake": SECRET}) as running:
        provider.reset()
        yield running


class Open:
    """A stream that has begun and a whole call whose answer does not come."""

    def __init__(self, gateway: Gateway, provider: FakeProvider) -> None:
        self._clients = {model: WireClient(gateway.port) for model in (STREAM, WHOLE)}
        for model, client in self._clients.items():
            body = {**HELLO, "model": model, "stream": model == STREAM}
            client.send(request_bytes("POST", "/v1/chat/completions", key=gateway.key, body=body))
        self._clients[STREAM].read_until(b"data: ")
        until = time.monotonic() + PATIENCE_SECONDS
        while len(provider.record()["requests"]) < len(self._clients):
            assert time.monotonic() < until
            time.sleep(0.02)

    def verify_given_up(self) -> set[str]:
        """Both ended for the client as its dialect says: the stream with an error event and no `[DONE]`. Return the gateway's ids of them."""
        answers = {model: client.answer() for model, client in self._clients.items()}
        for client in self._clients.values():
            client.socket.close()
        stream, whole = answers[STREAM], answers[WHOLE]
        assert stream.status == 200 and stream.complete and b"[DONE]" not in stream.body
        assert json.loads(events_of(stream.body)[-1])["error"]["code"] == "egress_unavailable"
        assert (whole.status, whole.error["code"]) == (503, "egress_unavailable")
        return {answer.headers["x-request-id"] for answer in answers.values()}


@contextmanager
def stopped(*pids: int) -> Iterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            try:
                os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                pass


def verify_unavailable(answer: tuple[int, dict[str, str], bytes]) -> None:
    status, headers, body = answer
    assert (status, json.loads(body)["error"]["code"]) == (503, "egress_unavailable")
    assert int(headers["retry-after"]) >= 1


def hung(gateway: Gateway) -> list[str]:
    return [line["role"] for line in gateway.audit_lines() if line["event"] == "process" and line["what"] == "hung"]


def test_an_egress_that_hangs_holds_nobody_for_long_and_is_replaced(gateway: Gateway, provider: FakeProvider) -> None:
    before = gateway.children()
    calls = Open(gateway, provider)
    with stopped(before[EGRESS]):
        verify_unavailable(gateway.post("/v1/chat/completions", HELLO, timeout=PATIENCE_SECONDS))  # sent to an egress that nobody knew to be hung
        calls.verify_given_up()
        verify_unavailable(gateway.post("/v1/chat/completions", HELLO, timeout=EGRESS_SILENT_SECONDS / 2))  # and now at once
        assert gateway.get("/v1/models")[0] == 200  # who asks nothing of egress is answered
        until = time.monotonic() + PATIENCE_SECONDS
        while gateway.children().get(EGRESS, before[EGRESS]) == before[EGRESS]:
            assert gateway.post("/v1/chat/completions", HELLO)[0] == 503
            assert time.monotonic() < until, gateway.messages()
            time.sleep(0.1)
    gateway.wait_ready()
    until = time.monotonic() + PATIENCE_SECONDS
    while gateway.post("/v1/chat/completions", HELLO)[0] != 200:  # the successor may still wait for its credentials
        assert time.monotonic() < until, gateway.messages()
        time.sleep(0.1)
    after = gateway.children()
    assert {name for name in before if after[name] != before[name]} == {EGRESS}
    assert f"egress has given no sign of life for {HUNG_SECONDS[EGRESS]:.0f} s" in gateway.messages()
    assert hung(gateway) == [EGRESS]
    verify_log(gateway)


def test_an_egress_that_wakes_up_in_time_goes_on_and_knows_what_was_given_up(gateway: Gateway, provider: FakeProvider) -> None:
    before = gateway.children()
    calls = Open(gateway, provider)
    with stopped(before[EGRESS]):
        requests = calls.verify_given_up()
    gateway.wait_ready()
    assert gateway.post("/v1/chat/completions", HELLO)[0] == 200
    assert gateway.children() == before and hung(gateway) == []
    until = time.monotonic() + PATIENCE_SECONDS
    while len(found := [line for line in gateway.audit_lines() if line["event"] == "provider_outcome" and line["request"] in requests]) < len(requests):
        assert time.monotonic() < until, found
        time.sleep(0.1)
    assert sorted(line["request"] for line in found) == sorted(requests)
    assert {line["error"] for line in found} == {"egress_unavailable"}
    assert "channel_violation" not in {line["event"] for line in gateway.audit_lines()}


def test_a_gateway_that_is_stopped_as_a_whole_and_goes_on_kills_nobody(gateway: Gateway) -> None:
    """As when a machine is suspended: all of it stands still for longer than a hung process is given, and its supervisor may be the first to move."""
    assert gateway.process is not None
    before = gateway.children()
    with stopped(*before.values()):
        with stopped(gateway.process.pid):
            time.sleep(HUNG_SECONDS[EGRESS] + 5.0)
        time.sleep(2.0)
    gateway.wait_ready()
    until = time.monotonic() + PATIENCE_SECONDS
    while (answer := gateway.post("/v1/chat/completions", HELLO))[0] != 200:  # what egress had told the auditor before is old until it is acknowledged
        assert answer[0] == 503 and time.monotonic() < until, answer
        time.sleep(0.1)
    time.sleep(3.0)  # and what was late by then has been looked at
    assert gateway.children() == before
    assert hung(gateway) == [] and "sign of life" not in gateway.messages()
