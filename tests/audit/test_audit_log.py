"""The growing end: what is signed is durable, and a full disk loses nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from audit.audit_logs import NOW, SEED, Log, event, lines, records, signer
from cliproxy.audit.checkpoint import parse_checkpoint
from cliproxy.audit.log import LogSigner, LogWriter, verify_note
from cliproxy.audit.recovery import Position
from cliproxy.audit.verify import verify_log
from cliproxy.errors import AuditError
from cliproxy.secret import Secret


def test_a_checkpoint_covers_what_was_sealed_and_not_what_waits(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.batch(event(1))
    log.add(event(2), event(3))
    note = log.checkpoint()
    assert parse_checkpoint(verify_note(note, public_key=signer().public_key)).size == 2
    assert (log.writer.size, log.writer.waiting_entries, log.writer.uncovered) == (2, 2, 0)
    log.batch()
    assert (log.writer.size, log.writer.waiting_entries, log.writer.uncovered) == (4, 0, 2)


def test_a_checkpoint_of_nothing_new_is_the_last_one_again(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.batch(event(1))
    assert log.checkpoint() == log.checkpoint() == log.writer.last_note
    assert len(records(tmp_path)) == 1


def test_what_a_full_disk_did_not_take_is_written_when_it_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(tmp_path)
    real, room = os.write, 100

    def write(descriptor: int, data: memoryview) -> int:
        nonlocal room
        if room == 0:
            raise OSError(28, "No space left on device")
        taken = real(descriptor, data[:room])
        room -= taken
        return taken

    monkeypatch.setattr(os, "write", write)
    log.add(event(1), event(2))
    log.writer.seal()
    assert not log.writer.write()
    assert not log.writer.write()
    assert (log.logs / "audit-00000001.jsonl").stat().st_size == 100
    room = 1 << 20
    assert log.writer.write()
    room = 50
    log.writer.checkpoint(NOW)
    assert not log.writer.write()
    room = 1 << 20
    assert log.writer.write()
    monkeypatch.undo()
    log.close()
    assert verify_log(tmp_path).covered == len(lines(tmp_path)) == 3


def test_an_error_of_the_disk_is_no_full_disk(tmp_path: Path) -> None:
    (tmp_path / "readonly").touch()
    descriptor = os.open(tmp_path / "readonly", os.O_RDONLY)
    writer = LogWriter(Position(), signer(), segment=descriptor, checkpoints=descriptor, now=NOW)
    writer.seal()
    with pytest.raises(AuditError):
        writer.write()
    os.close(descriptor)


def test_segments_follow_each_other(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.batch(event(1))
    for number in (1, 3, 0):
        with pytest.raises(AuditError):
            log.writer.begin_segment(number)
    log.rotate()
    assert (log.writer.segment, log.writer.segment_bytes) == (2, 0)


@pytest.mark.parametrize("seed", [b"", b"short", bytes(33)])
def test_a_key_of_another_length_is_refused(seed: bytes) -> None:
    with pytest.raises(AuditError):
        LogSigner(Secret(seed))


def test_the_same_seed_is_the_same_log() -> None:
    assert signer(SEED).origin == signer(SEED).origin != signer(bytes(32)).origin
