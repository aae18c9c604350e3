"""Offline: is the log what its checkpoints say, and what an earlier checkpoint said? Reads everything, in one pass, in bounded memory.

Every signature, every root and every leaf is recomputed. `CorruptLog` names the first bad entry: for entries that a checkpoint covers exactly
that one. Pinning the public key (`init` prints it) shows a log that was written anew with another key; an earlier checkpoint, kept
elsewhere, shows truncation and forks. What no checkpoint covers (at most the last second before a crash) is counted, and proves nothing.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from cliproxy.audit.checkpoint import FORMAT, LEAF_PREFIX_BYTES, Checkpoint, Record, RecordReader, leaves_digest, origin_of, parse_checkpoint
from cliproxy.audit.files import CHECKPOINTS, lines_from, logs_of, open_file, segment_name, segment_numbers
from cliproxy.audit.log import verify_note
from cliproxy.audit.merkle import HASH_BYTES, Frontier, RangeHashes, consistency_ranges, inclusion_ranges, leaf_hash
from cliproxy.bounds import MIB
from cliproxy.errors import AuditError, CorruptLog, NewerLog

_CHUNK_ENTRIES = 8192

Progress = Callable[[int], None]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A log that is what it says. `unfinished_bytes`: of a line or checkpoint being written, or cut off by a crash."""

    log: str
    public_key: bytes
    entries: int
    root: bytes
    checkpoints: int
    covered: int
    last_checkpoint: bytes
    unfinished_bytes: int

    @property
    def uncovered(self) -> int:
        """Entries after the last checkpoint: nothing vouches for them yet."""
        return self.entries - self.covered


class InclusionProof(msgspec.Struct, frozen=True, kw_only=True):
    """Shows that `line` is entry `index` of the log of `size` entries that `checkpoint` signs (RFC 9162 §2.1.3; `merkle.verify_inclusion`)."""

    index: int
    size: int
    line: bytes
    path: tuple[bytes, ...]
    checkpoint: bytes


class ConsistencyProof(msgspec.Struct, frozen=True, kw_only=True):
    """Shows that the log of `new` entries that `checkpoint` signs continues that of `old` entries (`merkle.verify_consistency`)."""

    old: int
    new: int
    path: tuple[bytes, ...]
    checkpoint: bytes


class _Opening(msgspec.Struct):
    event: str
    format: int
    log: str
    public_key: str


def verify_log(
    home: str | os.PathLike[str], *, public_key: bytes | None = None, earlier_checkpoint: bytes | None = None, progress: Progress | None = None
) -> Report:
    """Verify the whole log of `home`.

    `public_key` pins the key (32 bytes); without it the key that the log names itself is used. `earlier_checkpoint` is a signed note taken
    from this log before. `progress` is called with the number of entries seen. Raises `CorruptLog` with the first bad index, `NewerLog`, or
    `AuditError` when there is no log to read.
    """
    return _Walk(logs_of(home), public_key, earlier_checkpoint, progress).run()


def prove_inclusion(home: str | os.PathLike[str], index: int, *, public_key: bytes | None = None, progress: Progress | None = None) -> InclusionProof:
    """Verify the log and return the proof that entry `index` is in it. Raises as `verify_log`, and `AuditError` when no checkpoint covers it."""
    size, note = _last_checkpoint(logs_of(home))
    walk = _Walk(logs_of(home), public_key, None, progress)
    walk.hashes, walk.wanted = RangeHashes(inclusion_ranges(index, size)), index
    walk.run()
    return InclusionProof(index=index, size=size, line=walk.line, path=walk.hashes.proof(), checkpoint=note)


def prove_consistency(
    home: str | os.PathLike[str], earlier_checkpoint: bytes, *, public_key: bytes | None = None, progress: Progress | None = None
) -> ConsistencyProof:
    """Verify the log against `earlier_checkpoint` and return the proof that its last checkpoint continues it. Raises as `verify_log`."""
    size, note = _last_checkpoint(logs_of(home))
    walk = _Walk(logs_of(home), public_key, earlier_checkpoint, progress)
    assert walk.earlier is not None
    old = walk.earlier.size
    if old > size:
        raise CorruptLog(f"entries are missing: an earlier checkpoint covers {old}", index=size)
    walk.hashes = RangeHashes(consistency_ranges(old, size))
    walk.run()
    return ConsistencyProof(old=old, new=size, path=walk.hashes.proof(), checkpoint=note)


def tail(home: str | os.PathLike[str], count: int) -> list[tuple[int, bytes]]:
    """Return the last `count` lines with their indices, oldest first, unverified. Raises `AuditError` when there is no log to read."""
    entries = _Entries(logs_of(home))
    lines: deque[bytes] = deque(maxlen=max(0, count))
    total = 0
    while chunk := entries.take(_CHUNK_ENTRIES):
        lines.extend(chunk)
        total += len(chunk)
    return list(enumerate(lines, start=total - len(lines)))


class _Entries:
    """The lines of all segments in order. Follows a log that grows meanwhile. Raises `CorruptLog` when a segment is missing or ends within a line."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._known = segment_numbers(logs)
        self._waiting: list[bytes] = []
        self._at = 0  # position in `_waiting`
        self._chunks: Iterator[tuple[list[bytes], bytes]] = iter(())
        self.taken = 0
        self.segment = 0
        self.offset = 0
        self.rest = b""  # of a line that is not ended, at the end of the last segment
        self.covered = True  # a checkpoint covers the lines that are asked for

    def take(self, most: int) -> list[bytes]:
        """Return up to `most` next lines, all of one segment; none when the log has no more."""
        while self._at == len(self._waiting):
            chunk = next(self._chunks, None)
            if chunk is not None:
                self._waiting, self.rest = chunk
                self._at = 0
            elif not self._open_next():
                return []
        lines = self._waiting[self._at : self._at + most]
        self._at += len(lines)
        self.taken += len(lines)
        self.offset += sum(map(len, lines)) + len(lines)
        return lines

    def _open_next(self) -> bool:
        if not self._known or self.segment >= self._known[-1]:
            self._known = segment_numbers(self._logs)
            if not self._known or self.segment >= self._known[-1]:
                return False
        if self.rest and not self.covered:
            return False  # it was being written when we read it
        if self.rest:
            raise CorruptLog(f"segment {self.segment} ends within a line", index=self.taken)
        if self.segment + 1 not in self._known:
            raise CorruptLog(f"segment {self.segment + 1} is missing", index=self.taken)
        self.segment += 1
        self.offset = 0
        self._chunks = self._read(self.segment)
        return True

    def _read(self, segment: int) -> Iterator[tuple[list[bytes], bytes]]:
        with open_file(self._logs / segment_name(segment)) as file:
            yield from lines_from(file, index=self.taken)


class _Records:
    """The records of `logs/checkpoints` in order. Raises `AuditError` on what is no record."""

    def __init__(self, logs: Path) -> None:
        self._path = logs / CHECKPOINTS
        self.unfinished_bytes = 0

    def __iter__(self) -> Iterator[Record]:
        if not self._path.exists():
            return
        reader = RecordReader()
        with open_file(self._path) as file:
            while data := file.read(MIB):
                yield from reader.feed(data)
        self.unfinished_bytes = len(reader.rest)


class _Walk:
    """One pass over log and checkpoints together."""

    def __init__(self, logs: Path, public_key: bytes | None, earlier_checkpoint: bytes | None, progress: Progress | None) -> None:
        self._logs = logs
        self._progress = progress
        self._entries = _Entries(logs)
        self._tree = Frontier()
        self._public_key = _key_of(logs, public_key)
        self.earlier = None if earlier_checkpoint is None else self._read_earlier(earlier_checkpoint)
        self.hashes: RangeHashes | None = None
        self.wanted = -1
        self.line = b""

    def run(self) -> Report:
        """Read it all."""
        count, previous, note = 0, 0, b""
        records = _Records(self._logs)
        iterator = iter(records)
        while True:
            try:
                record = next(iterator, None)
            except AuditError as error:
                raise CorruptLog(str(error), index=previous) from error
            if record is None:
                break
            checkpoint = self._open_record(record, previous)
            self._cover(checkpoint, record.leaves)
            count, previous, note = count + 1, checkpoint.size, record.note
        self._entries.covered = False
        while lines := self._entries.take(_CHUNK_ENTRIES):
            self._grow([leaf_hash(line) for line in lines], lines)
        if self.earlier is not None and self.earlier.size > self._tree.size:
            raise CorruptLog(f"entries are missing: an earlier checkpoint covers {self.earlier.size}", index=self._tree.size)
        return Report(
            log=origin_of(self._public_key),
            public_key=self._public_key,
            entries=self._tree.size,
            root=self._tree.root(),
            checkpoints=count,
            covered=previous,
            last_checkpoint=note,
            unfinished_bytes=len(self._entries.rest) + records.unfinished_bytes,
        )

    def _open_record(self, record: Record, previous: int) -> Checkpoint:
        """Return the checkpoint of a record, genuine and next in the row."""
        try:
            checkpoint = parse_checkpoint(verify_note(record.note, public_key=self._public_key))
        except NewerLog:
            raise
        except AuditError as error:
            raise CorruptLog(str(error), index=previous) from error
        if checkpoint.origin != origin_of(self._public_key):
            raise CorruptLog("a checkpoint is of another log", index=previous)
        if checkpoint.previous != previous:
            raise CorruptLog(
                f"a checkpoint is missing, or one too many: this one follows {checkpoint.previous} entries", index=min(previous, checkpoint.previous)
            )
        if leaves_digest(record.leaves) != checkpoint.leaves or len(record.leaves) != (checkpoint.size - previous) * LEAF_PREFIX_BYTES:
            raise CorruptLog("the leaves beside a checkpoint are not those that it signs", index=previous)
        return checkpoint

    def _cover(self, checkpoint: Checkpoint, prefixes: bytes) -> None:
        """Read the entries that `checkpoint` covers and compare them."""
        start = checkpoint.previous
        while self._tree.size < checkpoint.size:
            lines = self._entries.take(min(_CHUNK_ENTRIES, checkpoint.size - self._tree.size))
            if not lines:
                raise CorruptLog(f"entries are missing: a checkpoint covers {checkpoint.size}", index=self._tree.size)
            leaves = [leaf_hash(line) for line in lines]
            begin = (self._tree.size - start) * LEAF_PREFIX_BYTES
            expected = prefixes[begin : begin + len(leaves) * LEAF_PREFIX_BYTES]
            if b"".join([leaf[:LEAF_PREFIX_BYTES] for leaf in leaves]) != expected:
                raise CorruptLog("the entry is not the one that was logged", index=self._tree.size + _first_difference(leaves, expected))
            self._grow(leaves, lines)
        if self._tree.root() != checkpoint.root:
            raise CorruptLog("entries are not those that were logged", index=start)
        if (self._entries.segment, self._entries.offset) != (checkpoint.segment, checkpoint.offset):
            raise CorruptLog("the segments are not cut where they were", index=start)

    def _grow(self, leaves: list[bytes], lines: list[bytes]) -> None:
        start = self._tree.size
        if self.earlier is not None and start < self.earlier.size <= start + len(leaves):
            split = self.earlier.size - start
            self._tree.extend(leaves[:split])
            self._compare_earlier(self.earlier)
            self._tree.extend(leaves[split:])
        else:
            self._tree.extend(leaves)
        if self.hashes is not None:
            for index, leaf in enumerate(leaves, start=start):
                self.hashes.add(index, leaf)
        if start <= self.wanted < start + len(lines):
            self.line = lines[self.wanted - start]
        if self._progress is not None:
            self._progress(self._tree.size)

    def _read_earlier(self, note: bytes) -> Checkpoint:
        try:
            return parse_checkpoint(verify_note(note, public_key=self._public_key))
        except NewerLog:
            raise
        except AuditError as error:
            raise CorruptLog(f"the earlier checkpoint is not of this log, or this log was written anew: {error}", index=0) from error

    def _compare_earlier(self, earlier: Checkpoint) -> None:
        """Raise at the first entry of the first complete subtree that differs: the fork is there or after it."""
        start = 0
        for ours, theirs, bit in zip(self._tree.hashes, earlier.frontier, _subtrees(earlier.size), strict=True):
            if ours != theirs:
                raise CorruptLog(f"the log is not the one that the earlier checkpoint of {earlier.size} entries signs, from here on or later", index=start)
            start += bit


def _subtrees(size: int) -> list[int]:
    """Return the sizes of the complete subtrees of a tree of `size` leaves, largest first."""
    return [1 << bit for bit in reversed(range(size.bit_length())) if size >> bit & 1]


def _first_difference(leaves: list[bytes], expected: bytes) -> int:
    for number, leaf in enumerate(leaves):
        if leaf[:LEAF_PREFIX_BYTES] != expected[number * LEAF_PREFIX_BYTES : (number + 1) * LEAF_PREFIX_BYTES]:
            return number
    return 0


def _key_of(logs: Path, pinned: bytes | None) -> bytes:
    """Return the key to verify with: the one that the first line names, which must be the pinned one."""
    first = _Entries(logs).take(1)
    if not first:
        raise AuditError(f"{logs}: there is no log")
    try:
        opening = msgspec.json.decode(first[0], type=_Opening)
        key = bytes.fromhex(opening.public_key)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise CorruptLog("the log does not begin with its opening", index=0) from error
    if opening.event != "log_opened" or len(key) != HASH_BYTES or opening.log != origin_of(key):
        raise CorruptLog("the log does not begin with its opening", index=0)
    if opening.format > FORMAT:
        raise NewerLog(f"the log has format {opening.format}, this version knows {FORMAT}: use the newer version")
    if pinned is not None and pinned != key:
        raise CorruptLog(f"the log is signed with another key than the pinned one: {key.hex()}", index=0)
    return key


def _last_checkpoint(logs: Path) -> tuple[int, bytes]:
    """Return size and note of the last checkpoint, unverified."""
    note = b""
    for record in _Records(logs):
        note = record.note
    if not note:
        raise AuditError(f"{logs}: there is no checkpoint yet")
    return parse_checkpoint(note[: note.rfind(b"\n\n") + 1]).size, note
