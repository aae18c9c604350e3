"""Bad keys from thousands of addresses: the log grows by the strangers' quota and no more, what had no room is counted, authenticated calls go on."""

from __future__ import annotations

import json
import socket
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from fakes.gateway import Gateway
from fakes.load import Load
from fakes.provider import FakeProvider
from fakes.recovery import Ledger, settled_ledger, verify_log, verify_nothing_is_sent_twice, verify_settled
from fakes.wire import request_bytes

SECRET = "sk-fake-0123456789abcdef"
QUOTA_BYTES = 16 * 1024
STRANGERS = 3000
SUMMARY_LINES = 8  # one a minute for each kind of event
# Missing, malformed, well-formed and unknown: all the same to us.
KEYS = (None, "x", "cpk_" + "A" * 49, "cpk_DbT7GoGnNb0oCQoJZ4rvFvU1e0JxCVFQnW7V1UP1jrcAAAAAA", "Bearer Bearer", "sk-" + "0" * 2000)


@pytest.fixture(scope="module")
def provider() -> Iterator[FakeProvider]:
    with FakeProvider() as running:
        yield running


@pytest.fixture
def gateway(provider: FakeProvider) -> Iterator[Gateway]:
    settings = {
        "server": {"workers": 2},
        "audit": {"unauthenticated_bytes_per_hour": QUOTA_BYTES},
        "providers": {"fake": {"base_url": provider.base_url, "models": ["gpt-4o-mini", "fault-trickle-20"]}},
    }
    with Gateway(settings, credentials={"fake": SECRET}) as running:
        yield running


def address_of(number: int) -> str:
    """Return one of 16 million addresses of this machine."""
    return f"127.{number >> 16 & 0xFF}.{number >> 8 & 0xFF}.{number & 0xFF}"


def ask_from(address: str, port: int, request: bytes) -> int:
    """Send a request from `address` and return the status."""
    with socket.socket() as client:
        client.settimeout(30)
        client.bind((address, 0))
        client.connect(("127.0.0.1", port))
        client.sendall(request)
        return int(client.recv(65536).split(b" ", 2)[1])


def quiet(gateway: Gateway) -> int:
    """Wait until what has happened is in the log, which has it once a second; return the number of lines."""
    before = -1
    while (now := len(gateway.audit_lines())) != before:
        before = now
        time.sleep(2.0)
    return now


def is_of_a_stranger(line: dict[str, Any]) -> bool:
    return bool(line["event"] == "address_denied" or (line["event"] == "authentication" and line["result"] == "refused"))


def size_of(line: dict[str, Any]) -> int:
    """Return the bytes that an event takes in the log."""
    return len(json.dumps(line, separators=(",", ":"), ensure_ascii=False).encode()) + 1


def test_strangers_fill_their_quota_and_nothing_more_and_everything_is_counted(gateway: Gateway, provider: FakeProvider) -> None:
    probe = socket.socket()
    try:
        probe.bind((address_of(0x020304), 0))
    except OSError:
        pytest.skip("127.0.0.0/8 is not this machine's here")
    finally:
        probe.close()
    provider.reset()
    before = len(gateway.audit_lines())
    requests = [request_bytes("POST", "/v1/chat/completions", key=key, body={"model": "gpt-4o-mini", "messages": []}) for key in KEYS]
    with Load(gateway.port, gateway.key, whole=1, streams=1) as load:
        statuses = Counter(ask_from(address_of(0x010000 + number), gateway.port, requests[number % len(requests)]) for number in range(STRANGERS))
        load.wait_for(2)
    assert statuses == {401: STRANGERS}
    assert set(load.endings()) == {"done"}, load.endings()
    verify_nothing_is_sent_twice(load.told, provider.record())
    verify_settled(load.told, settled_ledger(gateway, load.told))
    gateway.stop()
    lines = gateway.audit_lines()[before:]
    strangers = [line for line in lines if is_of_a_stranger(line)]
    suppressed = [line for line in lines if line["event"] == "events_suppressed"]
    assert 0 < sum(map(size_of, strangers)) <= QUOTA_BYTES
    assert 0 < len(suppressed) <= SUMMARY_LINES
    assert sum(line["count"] for line in (*strangers, *suppressed)) == STRANGERS
    assert {line["kind"] for line in suppressed} == {"authentication refused"}
    calls = Ledger.of(lines)
    assert len(calls.intents) == len(load.told)
    verify_log(gateway)


def test_refusals_by_address_share_the_quota(provider: FakeProvider) -> None:
    """A deny list that is hit without pause is no way to fill the log either."""
    settings = {
        "server": {"rate_limit": {"requests_per_second": 1, "burst": 1}},
        "audit": {"unauthenticated_bytes_per_hour": QUOTA_BYTES},
    }
    request = request_bytes("POST", "/v1/chat/completions", key="x", body={})
    with Gateway(settings) as gateway:
        before = quiet(gateway)  # who asked whether it is ready was turned away, too
        statuses = Counter(ask_from(address_of(0x010000 + number // 3), gateway.port, request) for number in range(900))
        gateway.stop()
        lines = gateway.audit_lines()[before:]
    strangers = [line for line in lines if is_of_a_stranger(line)]
    counted = Counter[str]()
    for line in lines:
        if is_of_a_stranger(line):
            counted[line["event"]] += line["count"]
        elif line["event"] == "events_suppressed":
            counted[line["kind"].partition(" ")[0]] += line["count"]
    assert set(statuses) == {401, 429}
    assert counted == {"authentication": statuses[401], "address_denied": statuses[429]}
    assert sum(map(size_of, strangers)) <= QUOTA_BYTES
