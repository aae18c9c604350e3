"""The verifier names the first bad index, whatever was done to the files."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audit.audit_logs import Log, build, event, lines, records, segments, signer
from cliproxy.audit.checkpoint import parse_checkpoint, parse_note
from cliproxy.audit.merkle import leaf_hash, verify_consistency, verify_inclusion
from cliproxy.audit.verify import prove_consistency, prove_inclusion, tail, verify_log
from cliproxy.errors import AuditError, CorruptLog, NewerLog

BATCHES = [3, 1, 9, 40, 2]  # 56 entries with the opening
TOTAL = 56


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("log")
    build(home, BATCHES, rotate_after=2)
    return home


@pytest.fixture
def home(original: Path, tmp_path: Path) -> Path:
    shutil.copytree(original / "logs", tmp_path / "logs")
    return tmp_path


def rewrite(home: Path, change: Callable[[list[bytes]], object]) -> None:
    """Change the list of all lines and write it back, each segment with as many lines as before, the rest in the last."""
    sizes = [len(path.read_bytes().splitlines()) for path in segments(home)]
    all_lines = lines(home)
    change(all_lines)
    for number, path in enumerate(segments(home)):
        count = sizes[number] if number < len(sizes) - 1 else len(all_lines)
        path.write_bytes(b"".join(all_lines[:count]))
        del all_lines[:count]


def index_of(home: Path, **arguments: object) -> int:
    with pytest.raises(CorruptLog) as caught:
        verify_log(home, **arguments)  # type: ignore[arg-type]
    return caught.value.index


def test_an_untouched_log_verifies_and_the_report_says_what_it_is(home: Path) -> None:
    seen: list[int] = []
    report = verify_log(home, public_key=signer().public_key, progress=seen.append)
    assert (report.entries, report.covered, report.uncovered, report.checkpoints) == (TOTAL, TOTAL, 0, len(BATCHES))
    assert report.log == signer().origin
    assert report.unfinished_bytes == 0
    assert seen == sorted(seen)
    assert seen[-1] == TOTAL
    assert report.last_checkpoint == records(home)[-1].note
    assert parse_checkpoint(parse_note(report.last_checkpoint).text).root == report.root


@pytest.mark.parametrize("index", [0, 1, 3, 4, 12, 13, 14, 30, 55])
class TestEntries:
    def test_an_edit_is_named(self, home: Path, index: int) -> None:
        def edit(all_lines: list[bytes]) -> None:
            all_lines[index] = all_lines[index].replace(b'"time":"2026', b'"time":"2027')

        rewrite(home, edit)
        assert index_of(home) == index

    def test_a_deletion_is_named(self, home: Path, index: int) -> None:
        rewrite(home, lambda all_lines: all_lines.pop(index))
        assert index_of(home) == index

    def test_an_insertion_is_named(self, home: Path, index: int) -> None:
        rewrite(home, lambda all_lines: all_lines.insert(index, b'{"event":"process"}\n'))
        assert index_of(home) == (index if index < TOTAL else 0)

    def test_a_truncation_is_named(self, home: Path, index: int) -> None:
        def truncate(all_lines: list[bytes]) -> None:
            del all_lines[index:]

        rewrite(home, truncate)
        if index == 0:
            with pytest.raises(AuditError, match="there is no log"):
                verify_log(home)
        else:
            assert index_of(home) == index

    def test_exchanged_entries_are_named_by_the_first(self, home: Path, index: int) -> None:
        def exchange(all_lines: list[bytes]) -> None:
            other = (index + 7) % TOTAL
            all_lines[index], all_lines[other] = all_lines[other], all_lines[index]

        rewrite(home, exchange)
        assert index_of(home) == min(index, (index + 7) % TOTAL)

    def test_a_proof_shows_the_entry(self, home: Path, index: int) -> None:
        proof = prove_inclusion(home, index)
        checkpoint = parse_checkpoint(parse_note(proof.checkpoint).text)
        assert proof.line + b"\n" == lines(home)[index]
        verify_inclusion(leaf_hash(proof.line), index, proof.size, proof.path, checkpoint.root)


def test_any_byte_of_an_entry_counts(original: Path, tmp_path: Path) -> None:
    shutil.copytree(original / "logs", tmp_path / "logs")
    starts: list[tuple[Path, int, int]] = []  # segment, offset of the line's first byte, index
    index = 0
    for path in segments(original):
        offset = 0
        for line in path.read_bytes().splitlines(keepends=True):
            starts.append((path, offset, index))
            offset += len(line)
            index += 1

    @settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.data())
    def check(data: st.DataObject) -> None:
        path, offset, index = data.draw(st.sampled_from(starts))
        whole = bytearray(path.read_bytes())
        length = whole.index(b"\n", offset) - offset + 1
        at = offset + data.draw(st.integers(0, length - 1))
        whole[at] ^= data.draw(st.integers(1, 255))
        target = tmp_path / "logs" / path.name
        target.write_bytes(whole)
        try:
            assert index_of(tmp_path) == index
        finally:
            target.write_bytes(path.read_bytes())

    check()


def test_any_byte_of_the_checkpoints_counts(original: Path, tmp_path: Path) -> None:
    """An altered last checkpoint may look like one that was being written: then its entries are told of as uncovered."""
    shutil.copytree(original / "logs", tmp_path / "logs")
    target = tmp_path / "logs" / "checkpoints"
    whole = target.read_bytes()
    ends = [0]
    for record in records(original):
        ends.append(ends[-1] + len(record.data()))
    sizes = [0, *(parse_checkpoint(parse_note(record.note).text).size for record in records(original))]

    @settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.integers(0, len(whole) - 1), st.integers(1, 255))
    def check(at: int, flip: int) -> None:
        altered = bytearray(whole)
        altered[at] ^= flip
        target.write_bytes(altered)
        number = next(number for number, end in enumerate(ends) if at < end) - 1
        try:
            report = verify_log(tmp_path)
        except CorruptLog as error:
            assert error.index == sizes[number]
        except NewerLog:
            pass
        else:
            assert number == len(BATCHES) - 1
            assert report.uncovered > 0
            assert report.unfinished_bytes > 0

    check()


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(["audit-00000001.jsonl", "audit-00000002.jsonl", "checkpoints"]), garbage=st.binary(max_size=600), keep=st.integers(0, 2000))
def test_garbage_gives_an_audit_error_and_nothing_else(original: Path, tmp_path_factory: pytest.TempPathFactory, name: str, garbage: bytes, keep: int) -> None:
    home = tmp_path_factory.mktemp("garbage")
    shutil.copytree(original / "logs", home / "logs")
    path = home / "logs" / name
    path.write_bytes(path.read_bytes()[:keep] + garbage)
    try:
        report = verify_log(home)
    except AuditError:
        return
    assert report.uncovered > 0 or report.unfinished_bytes > 0 or report.checkpoints == len(BATCHES)


class TestCheckpoints:
    def drop(self, home: Path, number: int) -> None:
        kept = records(home)
        del kept[number]
        (home / "logs" / "checkpoints").write_bytes(b"".join(record.data() for record in kept))

    def test_one_that_is_missing_in_the_middle_is_named(self, home: Path) -> None:
        self.drop(home, 2)
        assert index_of(home) == 5

    def test_the_last_one_missing_leaves_its_entries_uncovered(self, home: Path) -> None:
        self.drop(home, 4)
        assert verify_log(home).uncovered == 2

    def test_leaves_bent_with_the_entry_are_named_by_the_range(self, home: Path) -> None:
        kept = records(home)
        all_lines = lines(home)
        all_lines[20] = all_lines[20].replace(b"tested", b"Tested")
        bent = bytearray(kept[3].leaves)
        bent[(20 - 14) * 8 : (20 - 13) * 8] = leaf_hash(all_lines[20][:-1])[:8]
        kept[3] = type(kept[3])(kept[3].note, bytes(bent))
        (home / "logs" / "checkpoints").write_bytes(b"".join(record.data() for record in kept))
        segments(home)[1].write_bytes(b"".join(all_lines[14:]))
        assert index_of(home) == 14

    def test_a_missing_segment_is_named(self, home: Path) -> None:
        segments(home)[0].rename(home / "logs" / "elsewhere")
        assert index_of(home) == 0

    def test_segments_joined_to_one_are_not_the_log(self, home: Path) -> None:
        first, second = segments(home)
        first.write_bytes(first.read_bytes() + second.read_bytes())
        second.unlink()
        assert index_of(home) == 14


class TestEarlierCheckpoint:
    @pytest.mark.parametrize("number", range(5))
    def test_each_earlier_one_is_continued_and_the_proof_shows_it(self, home: Path, number: int) -> None:
        note = records(home)[number].note
        verify_log(home, earlier_checkpoint=note)
        proof = prove_consistency(home, note)
        old, new = (parse_checkpoint(parse_note(one).text) for one in (note, proof.checkpoint))
        verify_consistency(old.size, old.root, new.size, new.root, proof.path)

    def test_a_log_truncated_with_its_checkpoints_is_named(self, home: Path) -> None:
        kept = records(home)
        (home / "logs" / "checkpoints").write_bytes(b"".join(record.data() for record in kept[:2]))
        segments(home)[0].write_bytes(b"".join(lines(home)[:5]))
        segments(home)[1].unlink()
        assert verify_log(home).entries == 5
        assert index_of(home, earlier_checkpoint=kept[4].note) == 5
        with pytest.raises(CorruptLog) as caught:
            prove_consistency(home, kept[4].note)
        assert caught.value.index == 5

    @pytest.mark.parametrize(("count", "named"), [(4, 8), (9, 0)])
    def test_a_fork_is_named_by_the_complete_subtree_that_holds_it(self, tmp_path: Path, count: int, named: int) -> None:
        """The same key signs two histories, as an auditor that fell could; both are the same up to entry 7."""
        ours, theirs = tmp_path / "ours", tmp_path / "theirs"
        for home, odd in ((ours, 0), (theirs, 1000)):
            home.mkdir()
            log = Log(home)
            log.batch(*(event(number) for number in range(7)))  # entries 0..7
            log.checkpoint()
            log.batch(*(event(number + odd) for number in range(count)))
            log.checkpoint()
            log.close()
        verify_log(ours)
        verify_log(ours, earlier_checkpoint=records(theirs)[0].note)
        assert index_of(ours, earlier_checkpoint=records(theirs)[1].note) == named

    def test_a_note_of_another_log_is_refused(self, home: Path, tmp_path: Path) -> None:
        other = tmp_path / "other"
        other.mkdir()
        log = Log(other, seed=bytes(32))
        log.batch()
        note = log.checkpoint()
        log.close()
        assert index_of(home, earlier_checkpoint=note) == 0

    @pytest.mark.parametrize("note", [b"", b"\n\n", b"cliproxy/x\n1\n\n", b"\xff" * 40, b"a\n\n\xe2\x80\x94 b YQ==\n"])
    def test_garbage_is_refused(self, home: Path, note: bytes) -> None:
        with pytest.raises(AuditError):
            verify_log(home, earlier_checkpoint=note)

    def test_signatures_of_witnesses_do_not_disturb(self, home: Path) -> None:
        note = records(home)[1].note + "— witness.example AAAAAAECAwQ=\n".encode()
        verify_log(home, earlier_checkpoint=note)


def test_a_log_signed_anew_fails_with_the_pinned_key_only(tmp_path: Path) -> None:
    log = Log(tmp_path, seed=bytes(32))
    log.batch(event(1))
    log.checkpoint()
    log.close()
    verify_log(tmp_path)
    assert index_of(tmp_path, public_key=signer().public_key) == 0


def test_a_newer_log_is_refused_by_name(home: Path) -> None:
    path = segments(home)[0]
    path.write_bytes(path.read_bytes().replace(b'"format":1', b'"format":2', 1))
    with pytest.raises(NewerLog, match="format 2"):
        verify_log(home)


def test_a_link_in_the_place_of_a_segment_is_not_followed(home: Path) -> None:
    path = segments(home)[0]
    path.rename(home / "real")
    path.symlink_to(home / "real")
    with pytest.raises(AuditError):
        verify_log(home)


def test_no_log_is_an_audit_error(tmp_path: Path) -> None:
    for arrange in (lambda: None, (tmp_path / "logs").mkdir, (tmp_path / "logs" / "audit-00000001.jsonl").touch):
        arrange()
        with pytest.raises(AuditError):
            verify_log(tmp_path)
        with pytest.raises(AuditError):
            prove_inclusion(tmp_path, 0)


def test_an_unfinished_line_is_no_entry_and_told_of(home: Path) -> None:
    path = segments(home)[1]
    path.write_bytes(path.read_bytes() + b'{"event":')
    report = verify_log(home)
    assert (report.entries, report.unfinished_bytes) == (TOTAL, 9)


def test_the_tail_comes_with_its_indices(home: Path) -> None:
    assert tail(home, 3) == [(index, lines(home)[index].rstrip(b"\n")) for index in (53, 54, 55)]
    assert tail(home, 0) == []
    assert [index for index, _ in tail(home, 1000)] == list(range(TOTAL))


def test_there_is_no_proof_for_what_no_checkpoint_covers(home: Path) -> None:
    with pytest.raises(AuditError):
        prove_inclusion(home, TOTAL)
