"""What the auditor does with the log's files at its start, before its lockdown: where does the log stand?

Only what came after the last checkpoint is read. A line that was not ended, or is no JSON object, was never acknowledged: it and what
follows is cut. Whole lines beyond the last checkpoint are kept. A newer format is refused before anything is cut. Whether the checkpoint is
genuine is decided when the signing key is there (`audit.log`): until then nothing but such a tail has been touched.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from cliproxy.audit.checkpoint import FORMAT, LEAF_PREFIX_BYTES, Checkpoint, RecordReader, VaultAnchor, parse_checkpoint, parse_note
from cliproxy.audit.files import CHECKPOINTS, cut, lines_from, logs_of, open_file, segment_name, segment_numbers
from cliproxy.audit.merkle import Frontier, leaf_hash
from cliproxy.bounds import KIB, MAX_CHECKPOINT_RECORD_BYTES
from cliproxy.errors import AuditError, CorruptLog, NewerLog, PinMismatch

MAX_RESUMED_ENTRIES = 32 * KIB  # entries without a checkpoint at a start: two batches of the smallest events; more means that checkpoints are missing

_BEGINNING = b"cliproxy/"  # of every record: the log's name (`checkpoint.origin_of`)


class Position(msgspec.Struct):
    """Where the log stands: the tree, the segment and the length of it, the vault's anchor, and what no checkpoint covers."""

    tree: Frontier = msgspec.field(default_factory=Frontier)
    segment: int = 1
    offset: int = 0
    anchor: VaultAnchor = msgspec.field(default_factory=VaultAnchor)
    checkpoint: Checkpoint | None = None  # the last one
    note: bytes = b""  # the checkpoint as it is in the file: signature not yet verified
    leaves: list[bytes] = msgspec.field(default_factory=list)  # prefixes of the hashes of the entries since the checkpoint
    opened_with: str = ""  # the public key that the first line names, when no checkpoint covers that line
    cut_bytes: int = 0
    cut_reason: str = ""

    @property
    def covered(self) -> int:
        """The size of the last checkpoint."""
        return 0 if self.checkpoint is None else self.checkpoint.size


class _Line(msgspec.Struct):
    """What a start wants to know of a line."""

    event: str
    epoch: int = 0
    root: str = ""
    format: int = 0
    public_key: str = ""


_decoder = msgspec.json.Decoder(_Line)


def anchored(anchor: VaultAnchor, event: str, epoch: int, root: bytes) -> VaultAnchor:
    """Return the vault's anchor after one more event."""
    if event == "vault_intent":
        return VaultAnchor(anchor.epoch, anchor.root, epoch, root)
    if event == "vault_commit":
        return VaultAnchor(epoch, root)
    return anchor


def recover(home: str) -> Position:
    """Find out where the log stands; cut what a crash left unfinished. Raises `CorruptLog` or `AuditError`."""
    logs = logs_of(home)
    position = Position()
    loose = _read_last_checkpoint(logs, position)
    numbers = segment_numbers(logs)
    if position.checkpoint is None and not numbers:
        return position
    if numbers != list(range(1, len(numbers) + 1)) or position.segment > len(numbers):
        raise CorruptLog("a segment of the log is missing", index=position.covered)
    loose += _read_tail(logs, numbers, position)
    for path, length in loose:
        cut(path, length)
    return position


def verify_seen(position: Position, *, size: int, root: bytes) -> None:
    """Raise `PinMismatch` unless the log's checkpoints cover the `size` entries, with `root`, that the vault has heard of.

    Whoever can write `logs/` but has no key can take checkpoints away; without this the entries that they covered could be edited, and would be signed anew.
    """
    if position.covered < size:
        raise PinMismatch(f"its checkpoints cover {position.covered} entries, and the vault has seen {size}: checkpoints or entries were taken away")
    if position.checkpoint is not None and position.covered == size and position.checkpoint.root != root:
        raise PinMismatch(f"its checkpoint of {size} entries is not the one that the vault has seen")


def _read_last_checkpoint(logs: Path, position: Position) -> list[tuple[Path, int]]:
    """Put the last whole checkpoint into `position`; return what must be cut."""
    path = logs / CHECKPOINTS
    if not path.exists():
        return []
    with open_file(path) as file:
        length = file.seek(0, os.SEEK_END)
        start = max(0, length - 3 * MAX_CHECKPOINT_RECORD_BYTES)
        file.seek(start)
        data = file.read(length - start)
    if start:
        first = data.find(b"\n\n" + _BEGINNING)  # the end of some record: what follows are whole ones
        if first < 0:
            raise CorruptLog("the checkpoints file holds something that is no checkpoint", index=0)
        start, data = start + first + 2, data[first + 2 :]
    reader = RecordReader()
    try:
        records = list(reader.feed(data))
        checkpoint = parse_checkpoint(parse_note(records[-1].note).text) if records else None
        rest = reader.rest.lstrip(b"\0")  # a crash leaves the beginning of a record, or (some file systems) zeros
        if not rest.startswith(_BEGINNING[: len(rest)]):
            raise AuditError("the checkpoints file holds something that is no checkpoint")
    except (CorruptLog, NewerLog):
        raise
    except AuditError as error:
        raise CorruptLog(str(error), index=0) from error
    if checkpoint is not None:
        position.note = records[-1].note
        position.checkpoint = checkpoint
        position.tree = checkpoint.tree()
        position.segment, position.offset, position.anchor = checkpoint.segment, checkpoint.offset, checkpoint.anchor
    return [(path, start + reader.consumed)] if reader.rest else []


def _read_tail(logs: Path, numbers: list[int], position: Position) -> list[tuple[Path, int]]:
    """Take in the entries after the checkpoint; return what must be cut."""
    for number in range(position.segment, len(numbers) + 1):
        begin = position.offset if number == position.segment else 0
        position.segment, position.offset = number, begin
        path = logs / segment_name(number)
        with open_file(path) as file:
            length = file.seek(0, os.SEEK_END)
            if length < begin:
                raise CorruptLog("entries that a checkpoint covers are missing", index=_count_entries(logs, numbers))
            file.seek(begin)
            for lines, _ in lines_from(file, index=position.tree.size):
                if not _take(lines, position):
                    break
        position.cut_bytes = length - position.offset
        if position.cut_bytes:
            if number != len(numbers):
                raise CorruptLog("a line is no event", index=position.tree.size)
            position.cut_reason = position.cut_reason or "a line was not ended"
            return [(path, position.offset)]
    return []


def _count_entries(logs: Path, numbers: list[int]) -> int:
    """Return how many whole lines there are: the index of the first that is missing at the end."""
    count = 0
    for number in numbers:
        with open_file(logs / segment_name(number)) as file:
            count += sum(len(lines) for lines, _ in lines_from(file, index=count))
    return count


def _take(lines: list[bytes], position: Position) -> bool:
    """Take in whole lines up to the first that is no event; `False` if there is one."""
    for line in lines:
        try:
            event = _decoder.decode(line)
            root = bytes.fromhex(event.root)
        except (msgspec.DecodeError, ValueError, RecursionError):
            position.cut_reason = "a line was no event"
            return False
        if position.tree.size == 0:
            _verify_opening(event)
            position.opened_with = event.public_key
        if len(position.leaves) == MAX_RESUMED_ENTRIES:
            raise CorruptLog("no checkpoint covers this entry and those after it: checkpoints are missing", index=position.covered)
        leaf = leaf_hash(line)
        position.tree.append(leaf)
        position.leaves.append(leaf[:LEAF_PREFIX_BYTES])
        position.anchor = anchored(position.anchor, event.event, event.epoch, root)
        position.offset += len(line) + 1
    return True


def _verify_opening(event: _Line) -> None:
    """Raise unless this is the first line of a log that this version knows."""
    if event.event != "log_opened":
        raise CorruptLog("the log does not begin with its opening", index=0)
    if event.format > FORMAT:
        raise NewerLog(f"the log has format {event.format}, this version knows {FORMAT}: use the newer version, nothing was written")
