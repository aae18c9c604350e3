"""No unaudited calls: while the auditor hangs, or its disk is full, calls are refused before anything leaves; when it goes on, so do they."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes.gateway import Gateway
from fakes.load import Caller, Load, Told
from fakes.provider import FakeProvider
from fakes.recovery import KeyWriter, Ledger, settled_ledger, verify_log, verify_nothing_is_sent_twice, verify_settled
from fakes.wire import WireClient, events_of, request_bytes

SECRET = "sk-fake-0123456789abcdef"
DEADLINE_SECONDS = 0.5
PATIENCE_SECONDS = 30.0


@pytest.fixture(scope="module")
def provider() -> Iterator[FakeProvider]:
    with FakeProvider() as running:
        yield running


def settings(provider: FakeProvider, *, deadline: float = DEADLINE_SECONDS) -> dict[str, Any]:
    return {
        "server": {"workers": 2},
        "audit": {"deadline_seconds": deadline},
        "providers": {"fake": {"base_url": provider.base_url, "models": ["gpt-4o-mini", "fault-trickle-200", "fault-trickle-20"]}},
    }


@pytest.fixture(scope="module")
def gateway(provider: FakeProvider) -> Iterator[Gateway]:
    with Gateway(settings(provider), credentials={"fake": SECRET}) as running:
        yield running


def call_until(gateway: Gateway, ending: str, *, first: str = "done") -> list[Told]:
    """Make calls until one ends as `ending`; every one before must end as `first`."""
    caller = Caller(gateway.port, gateway.key)
    told = [caller.call("gpt-4o-mini", stream=False)]
    until = time.monotonic() + PATIENCE_SECONDS
    while told[-1].ending != ending:
        assert told[-1].ending == first, (told[-1], gateway.messages())
        assert time.monotonic() < until, "the calls do not change"
        time.sleep(0.01)
        told.append(caller.call("gpt-4o-mini", stream=False))
    caller.close()
    return told


def verify_refused(gateway: Gateway, provider: FakeProvider) -> None:
    """Fail unless calls of every kind are refused for the log's sake and the provider sees none of them."""
    provider.reset()
    caller = Caller(gateway.port, gateway.key)
    for number in range(20):
        told = caller.call("gpt-4o-mini", stream=number % 2 == 1)
        assert told.status == 503
        assert json.loads(told.body)["error"]["code"] == "audit_unavailable"
    caller.close()
    assert provider.record()["requests"] == []
    until = time.monotonic() + PATIENCE_SECONDS
    while gateway.get("/readyz", key="")[0] == 200:  # told once a second
        assert time.monotonic() < until
        time.sleep(0.05)
    assert gateway.get("/healthz", key="")[0] == 200
    assert gateway.post("/v1/chat/completions", {}, key="cpk_wrong")[0] == 401  # a stranger is told the same as ever


@pytest.fixture
def stopped_auditor(gateway: Gateway) -> Iterator[int]:
    """The auditor's pid, stopped; it goes on after the test whatever happened."""
    pid = gateway.children()["auditor"]
    os.kill(pid, signal.SIGSTOP)
    yield pid
    os.kill(pid, signal.SIGCONT)
    gateway.wait_ready()


def test_a_hung_auditor_stops_calls_at_the_deadline_and_they_go_on_by_themselves(gateway: Gateway, provider: FakeProvider, stopped_auditor: int) -> None:
    provider.reset()
    began = time.monotonic()
    told = call_until(gateway, "status 503")
    assert time.monotonic() - began >= DEADLINE_SECONDS - 0.05  # short hangs are nobody's business
    verify_nothing_is_sent_twice(told, provider.record())
    verify_refused(gateway, provider)
    os.kill(stopped_auditor, signal.SIGCONT)
    told += call_until(gateway, "done", first="status 503")
    gateway.wait_ready()
    assert gateway.children()["auditor"] == stopped_auditor
    verify_settled(told, settled_ledger(gateway, told))
    verify_log(gateway)


def test_calls_under_way_end_well_while_the_auditor_hangs_and_are_settled_after_it(gateway: Gateway, provider: FakeProvider) -> None:
    before = Ledger.of(gateway.audit_lines())
    body = {"model": "fault-trickle-200", "stream": True, "messages": [{"role": "user", "content": "hello"}]}
    clients = [WireClient(gateway.port) for _ in range(6)]
    for client in clients:
        client.send(request_bytes("POST", "/v1/chat/completions", key=gateway.key, body=body))
    for client in clients:
        client.read_until(b"token0")
    pid = gateway.children()["auditor"]
    os.kill(pid, signal.SIGSTOP)
    try:
        for client in clients:
            assert events_of(client.answer().body)[-1] == "[DONE]"
            client.socket.close()
        call_until(gateway, "status 503")
    finally:
        os.kill(pid, signal.SIGCONT)
    gateway.wait_ready()
    ledger = settled_ledger(gateway, but=before.unsettled)
    assert len(set(ledger.outcomes) - set(before.outcomes)) >= len(clients)
    assert max(ledger.outcomes.values()) == 1


def test_a_killed_hung_auditor_loses_nothing_that_was_taken(gateway: Gateway, provider: FakeProvider) -> None:
    """What waited in the dead one's queue is sent to the next one again."""
    provider.reset()
    pid = gateway.children()["auditor"]
    os.kill(pid, signal.SIGSTOP)
    try:
        told = call_until(gateway, "status 503")
    finally:
        os.kill(pid, signal.SIGKILL)
    told += call_until(gateway, "done", first="status 503")
    gateway.wait_ready()
    verify_settled(told, settled_ledger(gateway, told), may_repeat=True)
    verify_log(gateway)


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of its own, of 1 MiB."""
    directory = Path(tempfile.mkdtemp(prefix="cliproxy-disk-"))
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs", str(directory)], capture_output=True, check=False).returncode
    ):
        directory.rmdir()
        pytest.skip("only root (with the right to mount) can make a small disk")
    yield directory
    subprocess.run(["umount", "-l", str(directory)], check=True)
    directory.rmdir()


def test_a_full_disk_refuses_calls_and_keys_and_they_go_on_when_there_is_space(provider: FakeProvider, small_disk: Path) -> None:
    gateway = Gateway(settings(provider), credentials={"fake": SECRET})
    with gateway:
        gateway.stop()
        logs = gateway.home / "logs"
        shutil.copytree(logs, small_disk, dirs_exist_ok=True)
        subprocess.run(["mount", "--bind", str(small_disk), str(logs)], check=True)
        try:
            gateway.start()
            provider.reset()
            told: list[Told] = []
            with Load(gateway.port, gateway.key, whole=2, streams=1) as load:
                load.wait_for(2)
                filler = logs / "filler"
                filler.write_bytes(b"")
                with filler.open("ab", buffering=0) as file:
                    try:
                        while file.write(b"x" * 512):
                            pass
                    except OSError:
                        pass
                until = time.monotonic() + PATIENCE_SECONDS
                while load.endings()["status 503"] < 20:
                    assert time.monotonic() < until, load.endings()
                    time.sleep(0.02)
            told += load.told
            assert set(load.endings()) == {"done", "status 503"}, load.endings()
            verify_refused(gateway, provider)
            writer = KeyWriter(gateway)
            writer.step()
            assert writer.created == {}  # a key that the log does not know is not made
            assert "the disk of the log is full" in gateway.messages()
            filler.unlink()
            call_until(gateway, "done", first="status 503")
            gateway.wait_ready()
            verify_settled(told, settled_ledger(gateway, told))
            until = time.monotonic() + PATIENCE_SECONDS
            while not (writer.created and writer.revoked) and time.monotonic() < until:  # the vault hears of the space when it next asks
                writer.step()
            writer.verify()
            verify_log(gateway)
            assert "auditor killed" not in gateway.messages() and "auditor exited" not in gateway.messages()
        finally:
            gateway.stop()
            subprocess.run(["umount", "-l", str(logs)], check=True)
