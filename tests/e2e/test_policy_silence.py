"""A vault that hangs: known keys go on, the gateway says that it is not ready, strangers stay strangers, and nobody with a valid key is told 401.

That known keys get 503 after `POLICY_GRACE_SECONDS` is proven on the clock in `tests/ipc/test_policy_feed.py`.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from cliproxy.cli.new_key import new_key
from fakes.gateway import Gateway
from fakes.load import Load
from fakes.provider import FakeProvider
from fakes.recovery import KeyWriter, list_keys, verify_nothing_is_sent_twice

SECRET = "sk-fake-0123456789abcdef"
PATIENCE_SECONDS = 30.0
AGE_TOLD_SECONDS = 3.0  # a vault not heard of for longer than this makes /readyz 503


@pytest.fixture(scope="module")
def provider() -> Iterator[FakeProvider]:
    with FakeProvider() as running:
        yield running


@pytest.fixture(scope="module")
def gateway(provider: FakeProvider) -> Iterator[Gateway]:
    settings = {"server": {"workers": 2}, "providers": {"fake": {"base_url": provider.base_url, "models": ["gpt-4o-mini", "fault-trickle-20"]}}}
    with Gateway(settings, credentials={"fake": SECRET}) as running:
        yield running


def test_known_keys_go_on_while_the_vault_hangs_and_readiness_says_so(gateway: Gateway, provider: FakeProvider) -> None:
    stranger = new_key()[0].reveal().decode()
    vault = gateway.children()["vault"]
    provider.reset()
    with Load(gateway.port, gateway.key) as load:
        load.wait_for(2)
        os.kill(vault, signal.SIGSTOP)
        stopped = time.monotonic()
        try:
            while gateway.is_ready():
                assert time.monotonic() < stopped + PATIENCE_SECONDS, "/readyz does not notice"
                time.sleep(0.05)
            assert time.monotonic() - stopped > AGE_TOLD_SECONDS - 1.5  # a second between two signs of life, one more until workers hear of it
            load.wait_for(5)
            assert gateway.get("/v1/models")[0] == 200
            assert gateway.get("/v1/models", key=stranger)[0] == 401
            assert gateway.get("/healthz", key="")[0] == 200
        finally:
            os.kill(vault, signal.SIGCONT)
        gateway.wait_ready()
        load.wait_for(2)
    assert set(load.endings()) == {"done"}, load.endings()
    verify_nothing_is_sent_twice(load.told, provider.record())
    assert gateway.children()["vault"] == vault
    assert "channel_violation" not in {line["event"] for line in gateway.audit_lines()}
    writer = KeyWriter(gateway)
    writer.step()
    writer.step()
    writer.verify()  # it takes and spreads changes as before


def test_commands_wait_for_a_hung_vault_and_are_carried_out_once(gateway: Gateway) -> None:
    vault = gateway.children()["vault"]
    writer = KeyWriter(gateway)

    def two_steps() -> None:
        writer.step()
        writer.step()

    thread = threading.Thread(target=two_steps)
    os.kill(vault, signal.SIGSTOP)
    try:
        thread.start()
        time.sleep(0.5)
        assert not writer.created
    finally:
        os.kill(vault, signal.SIGCONT)
    thread.join(PATIENCE_SECONDS)
    assert len(writer.created) == len(writer.revoked) == 1
    writer.verify()


def test_a_killed_hung_vault_is_replaced_and_nobody_notices(gateway: Gateway, provider: FakeProvider) -> None:
    provider.reset()
    vault = gateway.children()["vault"]
    with Load(gateway.port, gateway.key) as load:
        load.wait_for(2)
        os.kill(vault, signal.SIGSTOP)
        load.wait_for(2)
        os.kill(vault, signal.SIGKILL)
        until = time.monotonic() + PATIENCE_SECONDS
        while gateway.children().get("vault", vault) == vault or list_keys(gateway) is None:
            assert time.monotonic() < until, gateway.messages()
            time.sleep(0.02)
        load.wait_for(2)
    assert set(load.endings()) == {"done"}, load.endings()
