"""Where a start finds the log: only the tail is read, only what was never acknowledged is cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audit.audit_logs import SEED, Log, build, event, lines, records, segments, signer
from cliproxy.audit import files, recovery
from cliproxy.audit.events import VaultCommit, VaultIntent
from cliproxy.audit.recovery import MAX_RESUMED_ENTRIES, recover
from cliproxy.audit.verify import verify_log
from cliproxy.errors import AuditError, CorruptLog, NewerLog


def snapshot(home: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (home / "logs").iterdir()}


def test_a_home_without_a_log_is_its_beginning(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    position = recover(str(tmp_path))
    assert (position.tree.size, position.segment, position.offset, position.checkpoint) == (0, 1, 0, None)


def test_a_log_goes_on_where_it_stopped(tmp_path: Path) -> None:
    build(tmp_path, [3, 2], rotate_after=0)
    before = snapshot(tmp_path)
    position = recover(str(tmp_path))
    assert snapshot(tmp_path) == before
    assert (position.tree.size, position.covered, position.segment, position.leaves) == (6, 6, 2, [])
    log = Log(tmp_path)
    log.batch(event(7))
    log.checkpoint()
    log.close()
    assert verify_log(tmp_path).entries == 7


def test_only_the_tail_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(tmp_path)
    log.batch(*(event(number) for number in range(5000)))
    log.checkpoint()
    log.batch(event(1), event(2))
    log.close()
    taken: list[int] = []
    real = recovery._take

    def counted(chunk: Any, position: Any) -> Any:
        taken.append(len(chunk))
        return real(chunk, position)

    monkeypatch.setattr(recovery, "_take", counted)
    assert recover(str(tmp_path)).tree.size == 5003
    assert taken == [2]


def test_whole_lines_beyond_the_checkpoint_are_kept_and_covered_by_the_next(tmp_path: Path) -> None:
    build(tmp_path, [3])
    log = Log(tmp_path)
    log.batch(event(8), event(9))
    log.close()  # killed before the checkpoint
    log = Log(tmp_path)
    assert log.position.leaves
    log.batch()
    log.checkpoint()
    log.close()
    report = verify_log(tmp_path)
    assert (report.entries, report.uncovered) == (7, 0)
    assert b'"event":"log_recovered","kept_entries":2' in lines(tmp_path)[-1]


@pytest.mark.parametrize("torn", [b"x", b'{"event":"pro', b"\x00" * 5000, b"\xff\xfe", b'{"event":1}\n', b"\x00\n", b"\n", b'not json\n{"event":"process"}\n'])
def test_what_was_never_acknowledged_is_cut_and_recorded(tmp_path: Path, torn: bytes) -> None:
    build(tmp_path, [3, 4])
    whole = segments(tmp_path)[0].read_bytes()
    segments(tmp_path)[0].write_bytes(whole + torn)
    position = recover(str(tmp_path))
    assert position.cut_bytes == len(torn)
    assert segments(tmp_path)[0].read_bytes() == whole
    segments(tmp_path)[0].write_bytes(whole + torn)
    log = Log(tmp_path)
    log.batch()
    log.checkpoint()
    log.close()
    assert f'"cut_bytes":{len(torn)},"event":"log_recovered"'.encode() in lines(tmp_path)[-1]
    assert verify_log(tmp_path).uncovered == 0


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 3000), st.integers(0, 1500))
def test_a_crash_at_any_byte_leaves_a_log_that_goes_on(tmp_path_factory: pytest.TempPathFactory, entries_kept: int, checkpoints_kept: int) -> None:
    """Files shorter than they were, as far as that is possible: entries are durable before the checkpoint that covers them."""
    home = tmp_path_factory.mktemp("crash")
    build(home, [4, 6, 3])
    segment, checkpoints = segments(home)[0], home / "logs" / "checkpoints"
    whole = segment.read_bytes()
    checkpoints.write_bytes(checkpoints.read_bytes()[:checkpoints_kept])
    covered = 0
    kept = records(home)
    if kept:
        covered = len(b"".join(lines(home)[: [5, 11, 14][len(kept) - 1]]))
    segment.write_bytes(whole[: max(covered, entries_kept)])
    count = segment.read_bytes().count(b"\n")
    log = Log(home)
    log.batch(event(1))
    log.checkpoint()
    log.close()
    report = verify_log(home, public_key=signer(SEED).public_key)
    assert report.uncovered == 0
    assert report.unfinished_bytes == 0
    assert lines(home)[:count] == whole.splitlines(keepends=True)[:count]


def test_a_torn_checkpoint_is_cut(tmp_path: Path) -> None:
    build(tmp_path, [3, 4])
    path = tmp_path / "logs" / "checkpoints"
    whole = path.read_bytes()
    path.write_bytes(whole + records(tmp_path)[0].data()[:-1])
    assert recover(str(tmp_path)).covered == 8
    assert path.read_bytes() == whole


def test_the_last_checkpoint_of_a_long_file_is_found(tmp_path: Path) -> None:
    build(tmp_path, [3])
    path = tmp_path / "logs" / "checkpoints"
    record = records(tmp_path)[0]
    path.write_bytes(record.data() * 4000)  # 1.6 MiB: more than is read
    assert recover(str(tmp_path)).covered == 4


def test_covered_entries_that_are_missing_stop_the_start(tmp_path: Path) -> None:
    build(tmp_path, [3, 4], rotate_after=0)
    path = segments(tmp_path)[1]
    path.write_bytes(b"".join(lines(tmp_path)[4:6]))
    before = snapshot(tmp_path)
    with pytest.raises(CorruptLog) as caught:
        recover(str(tmp_path))
    assert caught.value.index == 6
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("number", [0, 1])
def test_a_missing_segment_stops_the_start(tmp_path: Path, number: int) -> None:
    build(tmp_path, [3, 4], rotate_after=0)
    segments(tmp_path)[number].unlink()
    with pytest.raises(CorruptLog):
        recover(str(tmp_path))


def test_removed_checkpoints_stop_the_start_of_a_long_log(tmp_path: Path) -> None:
    log = Log(tmp_path)
    for _ in range(4):
        log.batch(*(event(number) for number in range(MAX_RESUMED_ENTRIES // 4 + 1)))
        log.checkpoint()
    log.close()
    (tmp_path / "logs" / "checkpoints").write_bytes(b"")
    with pytest.raises(CorruptLog, match="checkpoints are missing"):
        recover(str(tmp_path))


def test_a_newer_format_is_refused_with_nothing_written(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.batch(event(1))
    log.close()
    path = segments(tmp_path)[0]
    path.write_bytes(path.read_bytes().replace(b'"format":1', b'"format":2') + b"torn")
    before = snapshot(tmp_path)
    with pytest.raises(NewerLog):
        recover(str(tmp_path))
    assert snapshot(tmp_path) == before


def test_a_newer_checkpoint_is_refused_with_nothing_written(tmp_path: Path) -> None:
    build(tmp_path, [2])
    path = tmp_path / "logs" / "checkpoints"
    path.write_bytes(path.read_bytes().replace(b"format 1", b"format 2") + b"torn")
    before = snapshot(tmp_path)
    with pytest.raises(NewerLog):
        recover(str(tmp_path))
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("junk", [b"torn", b"{}\n", b"\n", b"cliproxy/0123\n1\n\n\n\n\n\n"], ids=["word", "json", "newline", "record"])
@pytest.mark.parametrize("kept", [0, 1])
def test_checkpoints_that_are_none_stop_the_start_with_nothing_written(tmp_path: Path, junk: bytes, kept: int) -> None:
    build(tmp_path, [2])
    path = tmp_path / "logs" / "checkpoints"
    path.write_bytes(path.read_bytes() * kept + junk)
    before = snapshot(tmp_path)
    with pytest.raises(CorruptLog, match="no checkpoint"):
        recover(str(tmp_path))
    assert snapshot(tmp_path) == before


def test_zeros_after_the_checkpoints_are_what_a_crash_leaves(tmp_path: Path) -> None:
    build(tmp_path, [2])
    path = tmp_path / "logs" / "checkpoints"
    whole = path.read_bytes()
    path.write_bytes(whole + bytes(100))
    assert recover(str(tmp_path)).covered == 3
    assert path.read_bytes() == whole


def test_a_log_that_does_not_begin_with_its_opening_stops_the_start(tmp_path: Path) -> None:
    build(tmp_path, [2])
    (tmp_path / "logs" / "checkpoints").unlink()
    segments(tmp_path)[0].write_bytes(b"".join(lines(tmp_path)[1:]))
    with pytest.raises(CorruptLog):
        recover(str(tmp_path))


class TestKeys:
    def test_a_log_signed_with_another_key_is_refused(self, tmp_path: Path) -> None:
        build(tmp_path, [2, 5])
        with pytest.raises(CorruptLog) as caught:
            Log(tmp_path, seed=bytes(32))
        assert caught.value.index == 3

    def test_a_log_opened_for_another_key_is_refused(self, tmp_path: Path) -> None:
        log = Log(tmp_path)
        log.batch()
        log.close()
        with pytest.raises(CorruptLog):
            Log(tmp_path, seed=bytes(32))

    def test_an_altered_last_checkpoint_is_refused(self, tmp_path: Path) -> None:
        build(tmp_path, [2])
        path = tmp_path / "logs" / "checkpoints"
        path.write_bytes(path.read_bytes().replace(b"vault 0", b"vault 7"))
        with pytest.raises(CorruptLog):
            Log(tmp_path)


def test_the_vaults_anchor_is_found_in_checkpoint_and_tail(tmp_path: Path) -> None:
    one, two = "01" * 32, "02" * 32
    log = Log(tmp_path)
    log.batch(VaultIntent(epoch=1, root=one), VaultCommit(epoch=1, root=one))
    log.checkpoint()
    log.batch(VaultIntent(epoch=2, root=two))
    log.close()
    anchor = recover(str(tmp_path)).anchor
    assert (anchor.epoch, anchor.root.hex(), anchor.pending_epoch, anchor.pending_root.hex()) == (1, one, 2, two)
    log = Log(tmp_path)
    log.add(VaultCommit(epoch=2, root=two))
    assert (log.writer.anchor.epoch, log.writer.anchor.pending_epoch) == (2, 0)
    log.batch()
    log.checkpoint()
    log.close()
    assert recover(str(tmp_path)).anchor.epoch == 2


@settings(max_examples=100)
@given(st.binary(max_size=2000), st.binary(max_size=2000))
def test_garbage_in_the_files_is_an_audit_error_or_a_fresh_start(tmp_path_factory: pytest.TempPathFactory, entries: bytes, checkpoints: bytes) -> None:
    home = tmp_path_factory.mktemp("garbage")
    (home / "logs").mkdir()
    (home / "logs" / files.segment_name(1)).write_bytes(entries)
    (home / "logs" / files.CHECKPOINTS).write_bytes(checkpoints)
    try:
        position = recover(str(home))
    except AuditError:
        return
    assert position.tree.size == 0
