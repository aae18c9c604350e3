"""Store trouble turned valid keys into 401 elsewhere (LiteLLM #38121). Here trouble of ours is 503 (502 where the provider side broke), and ends by itself."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from fakes.gateway import Gateway
from fakes.load import Load
from fakes.provider import FakeProvider
from fakes.recovery import KeyWriter, list_keys, verify_log, verify_nothing_is_sent_twice

SECRET = "sk-fake-0123456789abcdef"
PATIENCE_SECONDS = 60.0
KEYS = 80  # more than one packet of the policy feed: a snapshot is under way for a moment
ROUNDS = 4
ALLOWED = {"done", "status 502", "status 503", "error event", "closed", "unterminated"}


@pytest.fixture(scope="module")
def provider() -> Iterator[FakeProvider]:
    with FakeProvider() as running:
        yield running


@pytest.fixture
def gateway(provider: FakeProvider) -> Iterator[Gateway]:
    settings = {"server": {"workers": 2}, "providers": {"fake": {"base_url": provider.base_url, "models": ["gpt-4o-mini", "fault-trickle-20"]}}}
    with Gateway(settings, credentials={"fake": SECRET}) as running:
        yield running


def test_a_valid_key_is_never_refused_while_vault_and_egress_die_again_and_again(gateway: Gateway, provider: FakeProvider) -> None:
    writer = KeyWriter(gateway)
    for _ in range(KEYS):
        writer.step()
    key = next(iter(reversed(writer.created.values())))
    provider.reset()
    with Load(gateway.port, gateway.key, whole=2, streams=1) as one, Load(gateway.port, key, whole=2, streams=1) as another:
        for number in range(ROUNDS):
            one.wait_for(1)
            another.wait_for(1)
            children = gateway.children()
            for role in (("vault", "egress"), ("egress",), ("vault", "auditor"), ("egress", "vault", "worker"))[number % 4]:
                if role in children:  # else it is dead already and waits for its restart
                    os.kill(children[role], signal.SIGKILL)
        one.wait_for(2)
        another.wait_for(2)
    for load in (one, another):
        endings = load.endings()
        assert set(endings) <= ALLOWED, endings
        assert endings["done"]
    told = one.told + another.told
    assert {item.status for item in told} <= {0, 200, 502, 503}
    verify_nothing_is_sent_twice(told, provider.record())
    until = time.monotonic() + PATIENCE_SECONDS
    while list_keys(gateway) is None or not gateway.is_ready():
        assert time.monotonic() < until, gateway.messages()
        time.sleep(0.05)
    writer.verify()
    verify_log(gateway)


def test_a_start_without_a_policy_yet_is_not_a_401(gateway: Gateway) -> None:
    """From the first moment that a connection is taken, a valid key gets 503 or its answer."""
    gateway.stop()
    with Load(gateway.port, gateway.key, whole=4, streams=0, model="echo") as load:
        gateway.start()
        load.wait_for(2)
    assert set(load.endings()) <= {"done", "closed", "status 503"}, load.endings()
