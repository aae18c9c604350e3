"""What the supervisor orders and what admin asks, at the real process."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from audit.audit_logs import entries, event, intent, signer
from audit.auditor_rig import SEED, Rig
from cliproxy.audit.checkpoint import parse_checkpoint
from cliproxy.audit.log import verify_note
from cliproxy.audit.verify import verify_log
from cliproxy.config.schema import AuditSettings, Settings, encode_settings
from cliproxy.ipc.commands import AuditStatus, CheckpointTaken, GetAuditStatus, Refused, TakeCheckpoint
from cliproxy.ipc.control import Down, Up
from cliproxy.processes.boot import seal

PUBLIC_KEY = signer(SEED).public_key


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    one = Rig(tmp_path)
    yield one
    one.close()


def prepare(rig: Rig, generation: int, blob: bytes) -> None:
    descriptor = seal(blob, name="settings")
    assert rig.control.order(Down.PREPARE, generation, (descriptor,))
    os.close(descriptor)


def test_a_checkpoint_on_demand_covers_everything_until_then(rig: Rig) -> None:
    rig.start()
    for number in range(5):
        rig.record("egress", [intent(number)])
        answer = rig.ask(TakeCheckpoint())
        assert isinstance(answer, CheckpointTaken)
        checkpoint = parse_checkpoint(verify_note(answer.note.encode(), public_key=PUBLIC_KEY))
        assert checkpoint.size == number + 2
        verify_log(rig.home, public_key=PUBLIC_KEY, earlier_checkpoint=answer.note.encode())
    again = rig.ask(TakeCheckpoint())
    assert again.note == answer.note  # nothing came since


def test_the_status_says_how_the_log_stands(rig: Rig) -> None:
    rig.start()
    rig.record("egress", [intent(1)])
    rig.ask(TakeCheckpoint())
    status = rig.ask(GetAuditStatus())
    assert isinstance(status, AuditStatus)
    assert (status.size, status.segment, status.public_key, status.healthy) == (2, 1, PUBLIC_KEY, True)
    assert status.root == verify_log(rig.home).root


def test_before_the_key_admin_is_told_so(rig: Rig) -> None:
    rig.start(seed=None)
    assert isinstance(rig.ask(GetAuditStatus()), Refused)
    assert isinstance(rig.ask(TakeCheckpoint()), Refused)


def test_an_admin_that_talks_nonsense_is_cut_off_and_its_successor_is_answered(rig: Rig) -> None:
    rig.start()
    rig.ends["query"].send(msgspec.msgpack.encode({"type": "LogKey", "secret": b"x" * 32}))
    rig.record("supervisor", [event(1)])
    assert rig.ends["query"].recv(10) == b""
    assert [one["peer"] for one in entries(rig.home) if one["event"] == "channel_violation"] == ["admin"]
    rig.replace("query")
    assert rig.ask(GetAuditStatus()).healthy


def test_new_settings_are_prepared_and_committed(rig: Rig) -> None:
    rig.start()
    prepare(rig, 2, encode_settings(Settings(audit=AuditSettings(segment_bytes=1))))
    assert rig.wait_for(Up.PREPARED).argument == 2
    rig.record("egress", [intent(1)])
    assert rig.segment_number == 1  # not in force yet
    assert rig.control.order(Down.COMMIT, 2)
    assert rig.wait_for(Up.COMMITTED).argument == 2
    client = rig.client("egress")
    assert client.offer([intent(2)])
    until = time.monotonic() + 10
    while rig.segment_number == 1 and time.monotonic() < until:
        rig._serve_control(0.01)
    assert rig.segment_number == 2
    assert rig.stop() == 0
    assert verify_log(rig.home).entries == 3


@pytest.mark.parametrize("blob", [b"", b"\xc1", b"\x81\xa5audit\x01"])
def test_settings_that_are_none_are_refused(rig: Rig, blob: bytes) -> None:
    rig.start()
    prepare(rig, 2, blob)
    assert rig.wait_for(Up.REFUSED).argument == 2


def test_abandoned_settings_cannot_be_committed(rig: Rig) -> None:
    rig.start()
    prepare(rig, 2, encode_settings(Settings()))
    rig.wait_for(Up.PREPARED)
    assert rig.control.order(Down.ABANDON, 2)
    assert rig.control.order(Down.COMMIT, 2)
    assert rig.wait() == 70


def test_drained_means_that_everything_is_covered(rig: Rig) -> None:
    rig.start()
    client = rig.client("egress")
    assert client.offer([intent(1)])
    client.wait_durable([intent(2)], 10.0)
    assert rig.control.order(Down.DRAIN, 5)
    rig.wait_for(Up.DRAINED)
    assert verify_log(rig.home).uncovered == 0
    assert rig.control.order(Down.DRAIN, 5)
    rig.wait_for(Up.DRAINED)  # nothing new: at once
    client.wait_durable([intent(3)], 10.0)  # it goes on until STOP
    assert rig.stop() == 0
    assert verify_log(rig.home).covered == 4


def test_stop_takes_what_was_sent_before_it(rig: Rig) -> None:
    rig.start()
    for number in range(100):
        assert rig.client("egress").offer([intent(number)])
    assert rig.client("supervisor").offer([event(7)])
    assert rig.stop() == 0
    assert verify_log(rig.home).covered == 1 + 100 + 1


def test_stop_does_not_wait_for_a_segment_and_the_next_start_uses_it(tmp_path: Path) -> None:
    rig = Rig(tmp_path, settings=AuditSettings(segment_bytes=1))
    try:
        rig.start()
        assert rig.client("egress").offer([intent(1)])
        assert rig.control.order(Down.STOP)
        until = time.monotonic() + 10
        while time.monotonic() < until and not os.waitpid(rig.pid, os.WNOHANG)[0]:
            time.sleep(0.01)  # its question, if it came to that, is not answered
        assert time.monotonic() < until
        assert verify_log(tmp_path).covered == 2
        rig.segment_number, rig.segment = 2, rig.workspace.create_segment(2)
        rig.start()
        client = rig.client("egress")
        assert client.offer([intent(2)])
        while client.durable_through() < client.offered_through() and time.monotonic() < until:
            rig._serve_control(0.01)
            client.poll(time.monotonic())
        assert rig.stop() == 0
        assert verify_log(tmp_path).covered >= 3
    finally:
        rig.close()


def test_a_flood_before_the_key_does_not_keep_the_key_out(rig: Rig) -> None:
    rig.start(seed=None)
    egress = rig.client("egress")
    sent = 0
    until = time.monotonic() + 1.5
    while sent * 60_000 < 3 * 1024 * 1024 and time.monotonic() < until:
        if egress.offer([intent(0)] * 500):
            sent += 1
        else:
            time.sleep(0.001)
    rig.hand_over(SEED)
    rig.wait_for(Up.READY)
    rig.record("supervisor", [event(1)])


def test_without_its_supervisor_it_leaves(rig: Rig) -> None:
    rig.start()
    rig.record("egress", [intent(1)])
    rig.control.close()
    until = time.monotonic() + 10
    while time.monotonic() < until:
        pid, status = os.waitpid(rig.pid, os.WNOHANG)
        if pid:
            rig.pid = 0
            assert os.waitstatus_to_exitcode(status) == 0
            break
        time.sleep(0.01)
    assert rig.pid == 0


def test_a_full_disk_refuses_calls_and_loses_nothing(rig: Rig) -> None:
    rig.start()
    egress = rig.client("egress")
    rig.record("egress", [intent(0)])
    resource.prlimit(rig.pid, resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    assert egress.offer([intent(number) for number in range(1, 8)])
    until = time.monotonic() + 10
    while egress.healthy(time.monotonic()) and time.monotonic() < until:
        egress.poll(time.monotonic())
        time.sleep(0.01)
    assert not egress.healthy(time.monotonic())
    assert not egress.offer([intent(8)])
    assert egress.durable_through() == 1
    assert not rig.ask(GetAuditStatus()).healthy
    assert isinstance(rig.ask(TakeCheckpoint()), Refused)
    resource.prlimit(rig.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    while egress.durable_through() < 2 and time.monotonic() < until:
        egress.poll(time.monotonic())
        time.sleep(0.01)
    assert egress.healthy(time.monotonic())
    rig.record("egress", [intent(8)])
    assert rig.stop() == 0
    assert verify_log(rig.home).covered == 10
    assert [one["request"] for one in entries(rig.home)[1:]] == [f"req_{number}" for number in range(9)]
