"""The auditor as a process of its own: locked down, killed, flooded, lied to."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from audit.audit_logs import entries, event, intent, outcome, signer
from audit.auditor_rig import SEED, Rig
from cliproxy.audit.events import AddressDenied, Authentication, Event, KeyChange, Process, VaultCommit, VaultIntent
from cliproxy.audit.verify import verify_log
from cliproxy.config.schema import AuditSettings
from cliproxy.ipc.control import Up

PUBLIC_KEY = signer(SEED).public_key


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    one = Rig(tmp_path)
    yield one
    one.close()


def test_events_of_every_source_are_in_the_log_with_their_source_and_time(rig: Rig) -> None:
    rig.start()
    sent: dict[str, Event] = {
        "egress": intent(1),
        "vault": KeyChange(action="created", key="k_1", name="n", operator="uid:0"),
        "supervisor": Process(code=0, role="egress", what="ready"),
        "worker-3": Authentication(address="192.0.2.1", count=1, principal="k_1", reason="", result="accepted", second=1),
        "dialer": AddressDenied(address="10.0.0.1", count=1, reason="forbidden_address", second=1),
    }
    for source, one in sent.items():
        rig.record(source, [one])
    assert rig.stop() == 0
    report = verify_log(rig.home, public_key=PUBLIC_KEY)
    assert report.uncovered == 0
    found = entries(rig.home)
    assert found[0]["event"] == "log_opened"
    assert [(one["source"], one["event"]) for one in found[1:]] == [(source, one.__struct_config__.tag) for source, one in sent.items()]
    assert found[1]["request"] == "req_1"
    assert all(one["time"].endswith("Z") for one in found)


def test_nothing_acknowledged_is_lost_when_it_is_killed_again_and_again(rig: Rig) -> None:
    """Senders go on as they do in the gateway; what was not acknowledged they send to the next auditor."""
    rng = random.Random(7)
    number = 0
    acknowledged: set[int] = set()
    for _ in range(6):
        rig.start()
        client = rig.client("egress")
        sent: list[tuple[int, int]] = []  # batch, event
        until = time.monotonic() + rng.uniform(0.05, 0.25)
        while time.monotonic() < until:
            count = rng.randint(1, 5)
            if client.offer([intent(number + one) for one in range(count)]):
                sent += [(client.offered_through(), number + one) for one in range(count)]
                number += count
            client.poll(time.monotonic())
            time.sleep(0.0002)
        rig.kill()
        client.poll(time.monotonic())
        acknowledged |= {one for batch, one in sent if batch <= client.durable_through()}
        assert not client.offer([intent(-1)])
        on_disk = {one.get("request") for one in entries_of_whole_lines(rig.home)}
        assert not {f"req_{one}" for one in acknowledged} - on_disk
    rig.start()
    rig.record("egress", [outcome(0)])
    assert rig.stop() == 0
    report = verify_log(rig.home, public_key=PUBLIC_KEY)
    assert report.uncovered == 0
    assert acknowledged
    assert {f"req_{one}" for one in range(number)} <= {one.get("request") for one in entries(rig.home)}


def entries_of_whole_lines(home: Path) -> list[dict[str, Any]]:
    data = b"".join(path.read_bytes() for path in sorted((home / "logs").glob("audit-*.jsonl")))
    return [json.loads(line) for line in data.split(b"\n")[:-1]]


def test_an_unterminated_tail_is_cut_and_recorded(rig: Rig) -> None:
    rig.start()
    rig.record("egress", [intent(1)])
    rig.kill()
    segment = rig.home / "logs" / "audit-00000001.jsonl"
    with segment.open("ab") as file:
        file.write(b'{"event":"torn')
    with (rig.home / "logs" / "checkpoints").open("ab") as file:
        file.write(b"cliproxy/torn\n12")
    rig.start()
    rig.record("egress", [intent(2)])
    assert rig.stop() == 0
    verify_log(rig.home, public_key=PUBLIC_KEY)
    found = entries(rig.home)
    assert [one["event"] for one in found] == ["log_opened", "provider_request", "log_recovered", "provider_request"]
    assert found[2]["cut_bytes"] == 14
    assert b"torn" not in segment.read_bytes()


def test_the_vault_hears_what_the_log_knows_of_it(rig: Rig) -> None:
    rig.start()
    assert rig.anchor is not None
    assert (rig.anchor.epoch, rig.anchor.root, rig.anchor.pending_epoch, rig.anchor.pending_root) == (0, b"", 0, b"")
    first, second = b"\x01" * 32, b"\x02" * 32
    rig.record("vault", [VaultIntent(epoch=1, root=first.hex())])
    rig.record("vault", [VaultCommit(epoch=1, root=first.hex()), VaultIntent(epoch=2, root=second.hex())])
    rig.kill()
    rig.start()
    assert (rig.anchor.epoch, rig.anchor.root, rig.anchor.pending_epoch, rig.anchor.pending_root) == (1, first, 2, second)
    rig.record("vault", [VaultCommit(epoch=2, root=second.hex())])
    assert rig.stop() == 0
    rig.start()
    assert (rig.anchor.epoch, rig.anchor.root, rig.anchor.pending_epoch) == (2, second, 0)


def test_a_restarted_vault_shakes_hands_again_with_the_same_key_only(rig: Rig) -> None:
    rig.start()
    rig.replace("vault")
    rig.hand_over(SEED)
    rig.record("vault", [VaultIntent(epoch=1, root="")])
    rig.replace("vault")
    with pytest.raises(Exception, match="closed"):
        rig.hand_over(bytes(32))
    rig.record("supervisor", [event(1)])
    assert next(one for one in entries(rig.home) if one["event"] == "channel_violation")["peer"] == "vault"


def test_what_came_before_the_key_waits_for_it(rig: Rig) -> None:
    rig.start(seed=None)
    client = rig.client("egress")
    assert client.offer([intent(1)])
    rig.hand_over(SEED)
    rig.wait_for(Up.READY)
    client.wait_durable([intent(2)], 10.0)
    assert [one.get("request") for one in entries(rig.home)] == [None, "req_1", "req_2"]


def test_another_key_than_the_logs_ends_the_start_with_78_and_changes_nothing(rig: Rig) -> None:
    rig.start()
    rig.record("egress", [intent(1)])
    assert rig.stop() == 0
    before = {path.name: path.read_bytes() for path in (rig.home / "logs").iterdir()}
    rig.start(seed=None)
    with pytest.raises(Exception, match="closed"):
        rig.hand_over(bytes(32))
    assert rig.wait() == 78
    assert {path.name: path.read_bytes() for path in (rig.home / "logs").iterdir()} == before


@pytest.mark.parametrize(
    ("case", "packet"),
    [
        ("garbage", b"\xc1\xff"),
        ("nothing but a number", msgspec.msgpack.encode(7)),
        ("another's event", msgspec.msgpack.encode((1, [VaultCommit(epoch=9, root="")]))),
        ("an event of the auditor's own", msgspec.msgpack.encode((1, [["log_recovered", 0, 0, ""]]))),
        ("batch 0", msgspec.msgpack.encode((0, []))),
        ("text too long", msgspec.msgpack.encode((1, [Process(code=0, role="x" * 600, what="")]))),
        ("a packet too long", bytes(70_000)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_violation_closes_the_channel_and_is_logged(rig: Rig, case: str, packet: bytes) -> None:
    rig.start()
    rig.ends["egress"].send(packet)
    rig.record("supervisor", [event(1)])  # everybody else goes on
    assert rig.ends["egress"].recv(100) == b""
    found = entries(rig.home)
    assert [(one["source"], one["peer"]) for one in found if one["event"] == "channel_violation"] == [("auditor", "egress")]
    assert "vault_commit" not in {one["event"] for one in found}
    rig.replace("egress")
    rig.record("egress", [intent(1)])  # and so does its successor


def test_batches_that_skip_a_number_are_a_violation(rig: Rig) -> None:
    rig.start()
    for batch in (5, 6, 8):
        rig.ends["egress"].send(msgspec.msgpack.encode((batch, [intent(batch)])))
    rig.record("supervisor", [event(1)])
    found = entries(rig.home)
    assert [one["request"] for one in found if one["event"] == "provider_request"] == ["req_5", "req_6"]
    assert [one["peer"] for one in found if one["event"] == "channel_violation"] == ["egress"]


def test_what_a_dead_sender_had_sent_is_read_before_its_slot_is_given_away(rig: Rig) -> None:
    rig.start()
    client = rig.client("egress")
    client.wait_durable([intent(0)], 10.0)
    for number in range(1, 120):
        assert client.offer([intent(number)])
    rig.replace("egress")  # acknowledgements are unread: the auditor sees a reset first
    rig.record("egress", [outcome(1)])
    assert rig.stop() == 0
    assert [one["request"] for one in entries(rig.home) if one["event"] == "provider_request"] == [f"req_{number}" for number in range(120)]


def test_strangers_fill_no_more_than_their_quota_and_calls_go_on(tmp_path: Path) -> None:
    rig = Rig(tmp_path, settings=AuditSettings(unauthenticated_bytes_per_hour=20_000))
    try:
        rig.start()
        worker, egress = rig.client("worker-0"), rig.client("egress")
        for second in range(60):
            flood = [
                Authentication(address=f"198.51.100.{one}", count=3, principal="", reason="unknown", result="refused", second=second) for one in range(100)
            ]
            worker.wait_durable(flood, 10.0)
            egress.wait_durable([intent(second)], 10.0)
        assert rig.stop() == 0
        sizes = {"worker-0": 0, "egress": 0}
        for line in (rig.home / "logs" / "audit-00000001.jsonl").read_bytes().splitlines(keepends=True):
            source = json.loads(line)["source"]
            sizes[source] = sizes.get(source, 0) + len(line)
        assert 5_000 < sizes["worker-0"] <= 20_000
        assert len([one for one in entries(rig.home) if one["event"] == "provider_request"]) == 60
        verify_log(tmp_path, public_key=PUBLIC_KEY)
    finally:
        rig.close()


def test_full_segments_are_followed_by_new_ones_also_over_a_restart(tmp_path: Path) -> None:
    rig = Rig(tmp_path, settings=AuditSettings(segment_bytes=64 * 1024))
    try:
        for turn in range(2):
            rig.start()
            client = rig.client("egress")
            for number in range(8):
                assert client.offer([intent(1000 * turn + 100 * number + one) for one in range(100)])
                until = time.monotonic() + 10
                while client.durable_through() < client.offered_through() and time.monotonic() < until:
                    rig._serve_control(0.005)
                    client.poll(time.monotonic())
                assert client.durable_through() == client.offered_through()
            assert rig.stop() == 0
        segments = sorted((tmp_path / "logs").glob("audit-*.jsonl"))
        assert len(segments) >= 5
        assert all(path.stat().st_size >= 64 * 1024 for path in segments[:-1])
        assert all(path.stat().st_mode & 0o777 == 0o600 for path in segments)
        assert verify_log(tmp_path, public_key=PUBLIC_KEY).entries == 1 + 1600
    finally:
        rig.close()


def test_its_filter_lets_it_overwrite_nothing(tmp_path: Path) -> None:
    """The descriptors it has are in append mode, and it is under a filter."""
    rig = Rig(tmp_path)
    try:
        rig.start()
        status = Path(f"/proc/{rig.pid}/status").read_text()
        assert "Seccomp:\t2" in status
        assert "NoNewPrivs:\t1" in status
        for slot in (9, 10):
            flags = next(line for line in Path(f"/proc/{rig.pid}/fdinfo/{slot}").read_text().splitlines() if line.startswith("flags:"))
            assert int(flags.split()[1], 8) & os.O_APPEND
            assert int(flags.split()[1], 8) & os.O_ACCMODE == os.O_WRONLY
    finally:
        rig.close()
