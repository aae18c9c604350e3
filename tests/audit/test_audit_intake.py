"""Who may send what, and how much of it strangers get into the log."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.audit_logs import KEY_CHANGE, NOW, Log, event
from cliproxy.audit.events import AddressDenied, Authentication, ChannelViolation, Event, ProviderOutcome, VaultIntent
from cliproxy.audit.intake import Intake, Source
from cliproxy.audit.quota import HourlyQuota, Suppressed
from cliproxy.errors import ChannelError

REFUSED = Authentication(address="192.0.2.1", count=5, principal="", reason="unknown", result="refused", second=1)
ACCEPTED = Authentication(address="192.0.2.1", count=2, principal="k_1", reason="", result="accepted", second=1)
DENIED = AddressDenied(address="192.0.2.2", count=7, reason="denylist", second=1)
OUTCOME = ProviderOutcome(attempt=1, bytes=1, duration_ms=2, error="", input_tokens=3, output_tokens=4, request="req_1", status=200)


class Desk:
    def __init__(self, home: Path, *, quota: int) -> None:
        self.log = Log(home)
        self.log.batch()
        self.intake = Intake(self.log.writer, unauthenticated_bytes_per_hour=quota, now=0.0)
        self.sources: dict[str, Source] = {}

    def send(self, role: str, events: list[Event], *, now: float = 0.0) -> None:
        source = self.sources.setdefault(role, Source(role, f"{role}-0"))
        self.intake.take(source, msgspec.msgpack.encode((source.received + 1, events)), now=now, time=NOW)

    def written(self) -> list[dict[str, object]]:
        self.log.batch()
        return [json.loads(line) for line in (self.log.logs / "audit-00000001.jsonl").read_bytes().splitlines()[1:]]


def test_strangers_have_a_quota_and_the_rest_is_counted(tmp_path: Path) -> None:
    desk = Desk(tmp_path, quota=2000)
    for _ in range(50):
        desk.send("worker", [REFUSED, DENIED])
    for _ in range(30):
        desk.send("dialer", [DENIED])
    told = desk.written()
    assert 3 < len(told) < 10
    desk.intake.summarise(now=59.0, wall=0.0)
    assert len(desk.written()) == len(told)
    desk.intake.summarise(now=61.0, wall=0.0)
    summary = desk.written()[len(told) :]
    assert {(one["event"], one["kind"], one["source"]) for one in summary} == {
        ("events_suppressed", "authentication refused", "auditor"),
        ("events_suppressed", "address_denied", "auditor"),
    }
    counted = {one["kind"]: one for one in summary}
    refused = [one for one in told if one["event"] == "authentication"]
    assert counted["authentication refused"]["events"] == 50 - len(refused)
    assert counted["authentication refused"]["count"] == 5 * (50 - len(refused))
    desk.intake.summarise(now=122.0, wall=0.0)
    assert len(desk.written()) == len(told) + len(summary)  # nothing new to tell


def test_recognised_clients_do_not_suffer_from_strangers(tmp_path: Path) -> None:
    desk = Desk(tmp_path, quota=2000)
    for _ in range(100):
        desk.send("worker", [REFUSED])
    desk.send("worker", [ACCEPTED])
    assert desk.written()[-1]["result"] == "accepted"


def test_a_worker_that_fell_cannot_fill_the_log_with_recognised_clients(tmp_path: Path) -> None:
    desk = Desk(tmp_path, quota=2000)
    for _ in range(500):
        desk.send("worker", [ACCEPTED, ChannelViolation(peer="egress", reason="x")])
    assert sum(len(json.dumps(one)) for one in desk.written()) < 2000 * 16 * 1.2


def test_calls_and_changes_pass_no_quota(tmp_path: Path) -> None:
    desk = Desk(tmp_path, quota=0)
    desk.send("worker", [REFUSED, DENIED, ACCEPTED])
    desk.send("egress", [OUTCOME] * 100)
    desk.send("vault", [KEY_CHANGE] * 10)
    desk.send("supervisor", [event(1)])
    assert [one["event"] for one in desk.written()] == ["provider_outcome"] * 100 + ["key_change"] * 10 + ["process"]


def test_the_lines_of_a_source_carry_its_name(tmp_path: Path) -> None:
    desk = Desk(tmp_path, quota=10_000)
    desk.send("worker", [ACCEPTED])
    desk.send("egress", [OUTCOME])
    assert [one["source"] for one in desk.written()] == ["worker-0", "egress-0"]


def test_only_the_vaults_own_events_move_its_anchor(tmp_path: Path) -> None:
    desk = Desk(tmp_path, quota=0)
    for role in ("worker", "egress", "dialer", "supervisor", "admin"):
        with pytest.raises(ChannelError):
            desk.send(role, [VaultIntent(epoch=9, root="")])
    desk.send("vault", [VaultIntent(epoch=1, root="aa")])
    assert desk.log.writer.anchor.pending_epoch == 1


def test_batches_follow_each_other_from_wherever_they_begin() -> None:
    source = Source("egress", "egress")
    for batch in (17, 18, 19):
        assert source.decode(msgspec.msgpack.encode((batch, [OUTCOME]))) == [OUTCOME]
    for batch in (19, 21, 0, -1):
        with pytest.raises(ChannelError):
            source.decode(msgspec.msgpack.encode((batch, [OUTCOME])))


@given(st.binary(max_size=200))
def test_garbage_is_a_channel_error(packet: bytes) -> None:
    try:
        Source("egress", "egress").decode(packet)
    except ChannelError:
        pass


@given(st.lists(st.tuples(st.floats(0, 2000), st.integers(1, 400)), max_size=200))
def test_no_hour_has_more_than_the_quota(takes: list[tuple[float, int]]) -> None:
    quota = HourlyQuota(1000, now=0.0)
    now, taken = 0.0, []
    for wait, size in takes:
        now += wait
        if quota.take(size, now=now):
            taken.append((now, size))
    for start, _ in taken:
        assert sum(size for at, size in taken if start <= at < start + 3600.0) <= 1000 + 1e-6


def test_a_quota_comes_back_with_time_and_follows_its_new_size() -> None:
    quota = HourlyQuota(1000, now=0.0)
    assert quota.take(500, now=0.0)
    assert not quota.take(100, now=60.0)
    assert quota.take(500, now=3600.0)
    assert not quota.take(1, now=1000.0)  # a clock that went backwards gives nothing
    quota.resize(20_000)
    assert not quota.take(5_000, now=3600.0)
    assert quota.take(5_000, now=7200.0)
    quota.resize(0)
    assert not quota.take(1, now=99_999.0)


def test_the_summary_adds_up_by_kind_and_begins_again() -> None:
    suppressed = Suppressed()
    suppressed.add("b", 2)
    suppressed.add("a", 1)
    suppressed.add("b", 2**63)
    assert [(one.kind, one.events, one.count) for one in suppressed.summary()] == [("a", 1, 1), ("b", 2, 2**63 - 1)]
    assert suppressed.summary() == []
