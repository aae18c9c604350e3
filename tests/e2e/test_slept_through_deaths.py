"""A process that was held up (a debugger, a starved machine) while a peer died more than once: it finds the peer's latest successor, and nothing is lost.

Each of the deaths brings it a new channel; it learns of all of them at once when it wakes up.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from fakes.gateway import Gateway
from fakes.load import Caller, Told
from fakes.provider import FakeProvider
from fakes.recovery import DIALLED_MODEL, list_keys, settled_ledger, verify_log, verify_settled

SECRET = "sk-fake-0123456789abcdef"
PATIENCE_SECONDS = 20.0
DEATHS = 2


@pytest.fixture(scope="module")
def provider() -> Iterator[FakeProvider]:
    with FakeProvider() as running:
        yield running


@pytest.fixture(scope="module")
def gateway(provider: FakeProvider) -> Iterator[Gateway]:
    with Gateway({"providers": {"fake": {"base_url": provider.base_url, "models": [DIALLED_MODEL]}}}, credentials={"fake": SECRET}) as running:
        yield running


def wait_for_successor(gateway: Gateway, role: str, pid: int) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while gateway.children().get(role, pid) == pid:
        assert time.monotonic() < until, gateway.messages()
        time.sleep(0.01)


def answered(gateway: Gateway, *, seconds: float) -> Told | None:
    """Return the first good answer within `seconds`."""
    caller = Caller(gateway.port, gateway.key)
    until = time.monotonic() + seconds
    try:
        while time.monotonic() < until:
            told = caller.call(DIALLED_MODEL, stream=False)
            if told.ending == "done":
                return told
            time.sleep(0.02)
    finally:
        caller.close()
    return None


@pytest.mark.parametrize(
    ("sleeper", "victim"),
    [("egress", "auditor"), ("egress", "vault"), ("worker", "egress"), ("auditor", "egress"), ("vault", "auditor"), ("admin", "vault")],
)
def test_a_process_that_slept_through_two_deaths_of_a_peer_goes_on_with_its_successor(gateway: Gateway, sleeper: str, victim: str) -> None:
    told: list[Told] = []
    pid = gateway.children()[sleeper]
    os.kill(pid, signal.SIGSTOP)
    try:
        for _ in range(DEATHS):
            before = gateway.children()[victim]
            os.kill(before, signal.SIGKILL)
            wait_for_successor(gateway, victim, before)
            if sleeper in ("auditor", "admin") and (one := answered(gateway, seconds=PATIENCE_SECONDS)) is not None:
                told.append(one)  # what an egress that dies again told the sleeping auditor is not lost either
            else:
                time.sleep(0.5)
    finally:
        os.kill(pid, signal.SIGCONT)
    last = answered(gateway, seconds=PATIENCE_SECONDS)
    assert last is not None, (gateway.messages(), [line for line in gateway.audit_lines() if line["event"] == "channel_violation"])
    gateway.wait_ready()
    until = time.monotonic() + PATIENCE_SECONDS
    while list_keys(gateway) is None:
        assert time.monotonic() < until, gateway.messages()
        time.sleep(0.02)
    assert gateway.children()[sleeper] == pid
    assert [line for line in gateway.audit_lines() if line["event"] == "channel_violation"] == []
    told.append(last)
    verify_settled(told, settled_ledger(gateway, told, but=[]), may_repeat=True)
    verify_log(gateway)
