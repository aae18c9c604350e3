"""When the auditor seals, syncs, acknowledges, signs and asks for segments; time and disk in the test's hands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from audit.audit_logs import Log, event, records
from cliproxy.audit.cycle import AUDIT_RETRY_SECONDS, AUDIT_SYNC_SECONDS, MAX_BATCH_ENTRIES, MAX_UNCOVERED_ENTRIES, Cycle
from cliproxy.errors import AuditError


class Desk:
    """The auditor and its disk: notes what it is told."""

    def __init__(self, home: Path) -> None:
        self.log = Log(home)
        self.told: list[object] = []
        self.durable_notes = 0
        self.busy = False
        self.synced_descriptors: list[Sequence[int]] = []
        self.now = 100.0
        self.full = False
        self.real_write = self.log.writer.write
        self.log.writer.write = lambda: not self.full and self.real_write()  # type: ignore[method-assign]
        self.cycle = Cycle(self.log.writer, self, self, segment=self.log.segment, checkpoints=self.log.checkpoints, segment_bytes=1 << 20, now=self.now)

    def request(self, descriptors: Sequence[int]) -> None:
        self.synced_descriptors.append(tuple(descriptors))
        self.told.append("sync")

    def sealed(self) -> None: ...

    def durable(self) -> None:
        if self.log.writer.waiting_entries or self.told[-1:] != ["durable"]:
            self.told.append("durable")

    def trouble(self, failing: bool) -> None:
        self.told.append("full" if failing else "writes again")

    def covered(self, size: int, note: bytes) -> None:
        self.told.append(("covered", size))

    def noted(self) -> None:
        self.durable_notes += 1

    def want_segment(self, number: int) -> None:
        self.told.append(("segment", number))

    def turn(self, *, after: float = 0.0) -> list[object]:
        self.now += after
        self.told.clear()
        self.cycle.advance(self.now, 1_700_000_000.0 + self.now)
        return list(self.told)

    def sync(self) -> list[object]:
        self.told.clear()
        self.cycle.synced()
        self.cycle.advance(self.now, 1_700_000_000.0 + self.now)
        return list(self.told)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    one = Desk(tmp_path)
    assert one.turn() == ["sync"]  # the opening
    assert one.sync() == ["durable", ("covered", 1)] or one.told
    return one


def test_the_first_event_after_quiet_is_written_at_once_and_the_next_lingers(desk: Desk) -> None:
    desk.log.add(event(1))
    assert "sync" in desk.turn(after=1.0)
    desk.sync()
    desk.log.add(event(2))
    assert "sync" not in desk.turn(after=AUDIT_SYNC_SECONDS / 2)
    assert desk.cycle.next_time(desk.now) - desk.now <= AUDIT_SYNC_SECONDS
    assert "sync" in desk.turn(after=AUDIT_SYNC_SECONDS)


def test_an_urgent_event_does_not_linger(desk: Desk) -> None:
    desk.log.add(event(1))
    desk.turn(after=1.0)
    desk.sync()
    desk.log.add(event(2))
    desk.cycle.urgent = True
    assert "sync" in desk.turn()


def test_nothing_is_acknowledged_before_it_is_durable(desk: Desk) -> None:
    desk.log.add(event(1))
    assert "durable" not in desk.turn(after=1.0)
    desk.log.add(event(2))
    assert desk.turn(after=1.0) == []  # a sync is under way
    assert desk.sync()[0] == "durable"


def test_a_checkpoint_comes_after_a_second_or_many_entries(desk: Desk) -> None:
    desk.log.add(event(1))
    desk.turn(after=0.1)
    assert ("covered", 2) not in desk.sync()
    assert ("covered", 2) in desk.turn(after=1.0)
    desk.log.add(*(event(number) for number in range(MAX_UNCOVERED_ENTRIES)))
    desk.turn(after=0.05)
    assert ("covered", 2 + MAX_UNCOVERED_ENTRIES) in desk.sync()


def test_a_demanded_checkpoint_covers_what_waited_and_is_durable_itself(desk: Desk) -> None:
    desk.log.add(event(1))
    assert desk.cycle.demand() == 2
    assert desk.turn() == ["sync"]
    assert desk.sync() == ["durable", ("covered", 2), "durable", "sync"]
    assert not desk.cycle.is_at_rest()
    desk.sync()
    assert desk.cycle.is_at_rest()
    assert desk.synced_descriptors[-1] == (desk.log.segment, desk.log.checkpoints)


def test_checkpoints_are_synced_with_the_next_batch(desk: Desk) -> None:
    desk.log.add(event(1))
    desk.turn(after=1.0)
    assert desk.synced_descriptors[-1] == (desk.log.segment, desk.log.checkpoints)


def test_a_full_disk_is_told_once_and_so_is_its_end(desk: Desk) -> None:
    desk.log.add(event(1))
    desk.full = True
    assert desk.turn(after=1.0) == ["full"]
    assert desk.cycle.failing
    assert desk.cycle.is_backed_up()
    assert desk.turn(after=AUDIT_RETRY_SECONDS) == []
    desk.full = False
    assert desk.turn(after=AUDIT_RETRY_SECONDS / 4) == []  # it is not asked all the time
    assert desk.turn(after=AUDIT_RETRY_SECONDS) == ["writes again", "sync"]
    assert "durable" in desk.sync()
    assert not desk.cycle.is_backed_up()


def test_a_full_segment_waits_for_the_next_and_asks_again(desk: Desk) -> None:
    desk.cycle.segment_bytes = 10
    desk.log.add(event(1))
    assert desk.turn(after=1.0) == [("segment", 2)]
    assert desk.turn(after=0.5) == []
    assert desk.turn(after=1.0) == [("segment", 2)]
    with pytest.raises(AuditError):
        desk.cycle.segment_begun(3)
    assert desk.cycle.segment_begun(2)
    assert desk.turn() == ["sync"]
    assert desk.log.writer.segment == 2
    assert not desk.cycle.segment_begun(2)  # the answer to having asked twice


def test_at_the_end_a_full_segment_takes_the_rest(desk: Desk) -> None:
    desk.cycle.segment_bytes = 10
    desk.log.add(event(1))
    assert desk.turn(after=1.0) == [("segment", 2)]
    desk.cycle.stop_rotating()
    assert desk.turn() == ["sync"]
    assert desk.log.writer.segment == 1


def test_a_segment_that_nobody_asked_for_is_an_error(desk: Desk) -> None:
    with pytest.raises(AuditError):
        desk.cycle.segment_begun(2)


def test_senders_are_not_read_when_much_waits(desk: Desk) -> None:
    assert not desk.cycle.is_backed_up()
    desk.log.add(*(event(number) for number in range(MAX_BATCH_ENTRIES)))
    assert desk.cycle.is_backed_up()


def test_packets_without_lines_are_acknowledged_too(desk: Desk) -> None:
    assert "durable" in desk.turn(after=1.0)


def test_every_entry_ends_up_covered(desk: Desk, tmp_path: Path) -> None:
    for number in range(20):
        desk.log.add(event(number))
        if "sync" in desk.turn(after=0.3):
            desk.sync()
    desk.turn(after=1.0)
    assert desk.log.writer.uncovered == 0
    assert len(records(tmp_path)) == pytest.approx(7, abs=2)


def test_a_checkpoint_that_is_pinned_does_not_wait_for_a_batch_and_is_told_once_it_is_durable(desk: Desk) -> None:
    desk.cycle._sync_notes = True
    desk.log.add(event(1))
    desk.turn(after=2.0)
    desk.sync()
    desk.turn(after=2.0)
    before = desk.durable_notes
    assert desk.busy or desk.synced_descriptors[-1] == (desk.log.segment, desk.log.checkpoints)
    desk.sync()
    assert desk.durable_notes == before + 1
    assert desk.turn(after=2.0) in ([], ["durable"])  # and then there is quiet
    assert desk.durable_notes == before + 1
