"""Checkpoints: what the log signs about itself, as C2SP signed notes (https://c2sp.org/tlog-checkpoint, https://c2sp.org/signed-note).

A checkpoint says: so many entries, this Merkle root. Its extension lines say where the log stood (so that a start reads only what came
after), what it knew of the vault, and the first bytes of the hash of each entry since the previous checkpoint, so that a verifier can name the
first entry that was altered and not only the range. The file `logs/checkpoints` is notes, each followed by an empty line.

This module is text and bytes only; `audit.log` signs and verifies.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterator

import msgspec

from cliproxy.audit.events import MAX_COUNT
from cliproxy.audit.merkle import HASH_BYTES, Frontier
from cliproxy.bounds import MAX_CHECKPOINT_BYTES, MAX_CHECKPOINT_RECORD_BYTES
from cliproxy.errors import AuditError, NewerLog

FORMAT = 1  # of entries, segments and checkpoints together; a newer one is refused
LEAF_PREFIX_BYTES = 8  # an attacker needs 2^64 tries to point a verifier at a wrong entry of the range; the root is wrong all the same
_LEAVES = b"leaves "
_ED25519 = b"\x01"  # C2SP signed-note, signature type
_SIGNATURE_LINE = re.compile(rb"\xe2\x80\x94 ([^ +\x00-\x20\x7f]+) ([A-Za-z0-9+/]+={0,2})")
_NAME = re.compile(r"[!-*,-~]{1,128}\Z")  # no space, no plus
_NUMBER = re.compile(r"(?:0|[1-9][0-9]{0,18})\Z")
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z\Z")


class VaultAnchor(msgspec.Struct, frozen=True):
    """What the log knows of the vault: the last commit, and the intent that came after it, if one did. Epoch 0 and an empty root: none."""

    epoch: int = 0
    root: bytes = b""
    pending_epoch: int = 0
    pending_root: bytes = b""


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """The log at `size` entries. It ends `offset` bytes into segment number `segment`; `previous` is the size of the checkpoint before (0: none);
    `leaves` is the SHA-256 of the entries' `LEAF_PREFIX_BYTES` since then; `frontier` resumes the tree."""

    origin: str
    size: int
    root: bytes
    time: str
    previous: int
    segment: int
    offset: int
    frontier: tuple[bytes, ...]
    leaves: bytes
    anchor: VaultAnchor = msgspec.field(default_factory=VaultAnchor)

    def text(self) -> bytes:
        """Return the signed text, ended by a newline."""
        anchor = self.anchor
        lines = [
            self.origin,
            str(self.size),
            _b64(self.root),
            f"format {FORMAT}",
            f"time {self.time}",
            f"previous {self.previous}",
            f"segment {self.segment} {self.offset}",
            f"frontier {_b64(b''.join(self.frontier))}",
            f"vault {anchor.epoch} {anchor.root.hex() or '-'} {anchor.pending_epoch} {anchor.pending_root.hex() or '-'}",
            f"leaves {_b64(self.leaves)}",
        ]
        return "\n".join(lines).encode() + b"\n"

    def tree(self) -> Frontier:
        """Return the tree at this checkpoint."""
        return Frontier(self.size, self.frontier)


class Signature(msgspec.Struct, frozen=True):
    """One signature line of a note."""

    name: str
    key_id: bytes
    signature: bytes


class Note(msgspec.Struct, frozen=True):
    """A signed note: the text that was signed, and who signed it (nothing is verified yet)."""

    text: bytes
    signatures: tuple[Signature, ...]


def key_id(name: str, public_key: bytes) -> bytes:
    """Return the four bytes by which a signature line names an Ed25519 key."""
    return hashlib.sha256(name.encode() + b"\n" + _ED25519 + public_key).digest()[:4]


def origin_of(public_key: bytes) -> str:
    """Return the log's name, which is also its key's: it hangs on the key, so no two logs share one."""
    return f"cliproxy/{hashlib.sha256(public_key).hexdigest()[:16]}"


def signed_note(text: bytes, *, name: str, public_key: bytes, signature: bytes) -> bytes:
    """Return the note of `text` with one signature."""
    return text + b"\n\xe2\x80\x94 " + name.encode() + b" " + base64.b64encode(key_id(name, public_key) + signature) + b"\n"


def parse_note(data: bytes) -> Note:
    """Return the note in `data`, whole and alone. Raises `AuditError` on anything else."""
    if len(data) > MAX_CHECKPOINT_BYTES:
        raise AuditError(f"a checkpoint is at most {MAX_CHECKPOINT_BYTES} bytes long")
    text, separator, tail = data.rpartition(b"\n\n")
    if not separator or not tail.endswith(b"\n"):
        raise AuditError("this is no signed note")
    signatures = []
    for line in tail[:-1].split(b"\n"):
        found = _SIGNATURE_LINE.fullmatch(line)
        raw = b"" if found is None else _unb64(found[2].decode())
        if found is None or len(raw) <= 4:
            raise AuditError("a signature line of the note is malformed")
        signatures.append(Signature(found[1].decode("utf-8", "replace"), raw[:4], raw[4:]))
    return Note(text + b"\n", tuple(signatures))


def parse_checkpoint(text: bytes) -> Checkpoint:
    """Return the checkpoint that `text` says. Raises `AuditError` on anything that `Checkpoint.text` does not write, a newer format by name."""
    try:
        lines = text.decode("ascii").split("\n")
    except UnicodeDecodeError as error:
        raise AuditError("this is no checkpoint") from error
    if len(lines) < 5 or not lines[3].startswith("format "):
        raise AuditError("this is no checkpoint of a cliproxy log")
    version = _number(lines[3].removeprefix("format "))
    if version > FORMAT:
        raise NewerLog(f"the log has format {version}, this version knows {FORMAT}: use the newer version, nothing was written")
    fields = dict(zip(("time", "previous", "segment", "frontier", "vault", "leaves"), (line.partition(" ")[2] for line in lines[4:10]), strict=False))
    segment, vault = fields.get("segment", "").split(" "), fields.get("vault", "").split(" ")
    if len(segment) != 2 or len(vault) != 4 or not _NAME.match(lines[0]) or not _TIME.match(fields["time"]):
        raise AuditError("the checkpoint is malformed")
    frontier = _unb64(fields["frontier"])
    checkpoint = Checkpoint(
        origin=lines[0],
        size=_number(lines[1]),
        root=_unb64(lines[2]),
        time=fields["time"],
        previous=_number(fields["previous"]),
        segment=_number(segment[0]),
        offset=_number(segment[1]),
        frontier=tuple(frontier[start : start + HASH_BYTES] for start in range(0, len(frontier), HASH_BYTES)),
        anchor=VaultAnchor(_number(vault[0]), _unhex(vault[1]), _number(vault[2]), _unhex(vault[3])),
        leaves=_unb64(fields.get("leaves", "")),
    )
    if checkpoint.text() != text:
        raise AuditError("the checkpoint is malformed")
    _verify_sense(checkpoint)
    return checkpoint


def _verify_sense(checkpoint: Checkpoint) -> None:
    """Raise `AuditError` when the parts of a checkpoint contradict each other."""
    if checkpoint.size <= checkpoint.previous or len(checkpoint.leaves) != HASH_BYTES:
        raise AuditError("the checkpoint does not name the entries that it covers")
    if checkpoint.tree().root() != checkpoint.root:
        raise AuditError("the checkpoint's frontier is not that of its root")


class Record(msgspec.Struct, frozen=True):
    """What `logs/checkpoints` holds for one checkpoint: the signed note and the leaves whose digest it signs."""

    note: bytes
    leaves: bytes

    def data(self) -> bytes:
        """Return the record as it is in the file."""
        return self.note + b"\n" + _LEAVES + base64.b64encode(self.leaves) + b"\n\n"


def leaves_digest(leaves: bytes) -> bytes:
    """Return what a checkpoint signs of its leaves."""
    return hashlib.sha256(leaves).digest()


class RecordReader:
    """Splits the bytes of `logs/checkpoints` into records, however they are cut into pieces. Bounded. Raises `AuditError` on what is no record."""

    def __init__(self) -> None:
        self._buffer = b""
        self.consumed = 0  # bytes of the whole records returned so far

    def feed(self, data: bytes) -> Iterator[Record]:
        """Yield the records that `data` completes."""
        buffer = self._buffer + data
        start = 0
        while (end := _end_of_record(buffer, start)) > 0:
            record = _parse_record(buffer[start:end])
            self.consumed += end - start
            start = end
            yield record
        self._buffer = buffer[start:]
        if len(self._buffer) > MAX_CHECKPOINT_RECORD_BYTES:
            raise AuditError("the checkpoints file holds something that is no checkpoint")

    @property
    def rest(self) -> bytes:
        """What has been fed of a record that is not whole."""
        return self._buffer


def _end_of_record(data: bytes, start: int) -> int:
    """Return where the record that begins at `start` ends, 0 when it is not whole: three paragraphs (text, signatures, leaves) and their empty lines."""
    for _ in range(3):
        found = data.find(b"\n\n", start)
        if found < 0:
            return 0
        start = found + 2
    return start


def _parse_record(data: bytes) -> Record:
    note, separator, leaves = data[:-2].rpartition(b"\n" + _LEAVES)
    if not separator or b"\n" in leaves:
        raise AuditError("the checkpoints file holds something that is no checkpoint")
    record = Record(note, _unb64(leaves.decode("ascii", "replace")))
    if record.data() != data:
        raise AuditError("the checkpoints file holds something that is no checkpoint")
    return record


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _unb64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise AuditError("the checkpoint is malformed") from error


def _unhex(text: str) -> bytes:
    if text == "-":
        return b""
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise AuditError("the checkpoint is malformed") from error


def _number(text: str) -> int:
    if not _NUMBER.match(text) or int(text) > MAX_COUNT:
        raise AuditError("the checkpoint is malformed")
    return int(text)
