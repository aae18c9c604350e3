"""The log as the auditor appends to it: entries, then `fdatasync`, then (once a second, or sooner) a signed checkpoint.

One batch at a time: `add` collects lines, `seal` takes them into the tree, `write` appends them, `synced` says that they are durable, and
only then can `checkpoint` sign for them. Nothing is ever taken back: when the disk is full, `write` says so and goes on where it stopped. Only
this module of the audit log signs and verifies signatures.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cliproxy.audit.checkpoint import (
    FORMAT,
    LEAF_PREFIX_BYTES,
    Checkpoint,
    Record,
    VaultAnchor,
    key_id,
    leaves_digest,
    origin_of,
    parse_note,
    signed_note,
)
from cliproxy.audit.events import AuditorEvent, LogOpened, LogRecovered, VaultCommit, VaultIntent, lines_of
from cliproxy.audit.merkle import leaf_hash
from cliproxy.audit.recovery import Position, anchored
from cliproxy.errors import AuditError, CorruptLog
from cliproxy.secret import Secret

SEED_BYTES = 32
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class LogSigner:
    """The log's Ed25519 key. Raises `AuditError` unless `seed` has 32 bytes."""

    def __init__(self, seed: Secret) -> None:
        if len(seed) != SEED_BYTES:
            raise AuditError(f"the log's signing key has {SEED_BYTES} bytes")
        self._key = Ed25519PrivateKey.from_private_bytes(seed.reveal())
        self.public_key = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.origin = origin_of(self.public_key)

    def sign(self, text: bytes) -> bytes:
        """Return the signed note of `text`."""
        return signed_note(text, name=self.origin, public_key=self.public_key, signature=self._key.sign(text))


def verify_note(data: bytes, *, public_key: bytes) -> bytes:
    """Return the text of the note in `data`. Raises `AuditError` unless `public_key` signed it under the log's name; other signatures are ignored."""
    note = parse_note(data)
    name = origin_of(public_key)
    for one in note.signatures:
        if one.name == name and one.key_id == key_id(name, public_key):
            try:
                Ed25519PublicKey.from_public_bytes(public_key).verify(one.signature, note.text)
            except (InvalidSignature, ValueError) as error:
                raise AuditError("the signature of the checkpoint is wrong") from error
            return note.text
    raise AuditError("the log's key did not sign the checkpoint")


class LogWriter:
    """The growing end of the log. `segment` and `checkpoints` are descriptors in append mode; `now` is RFC 3339 text.

    `because` is what the log tells first of this start. Raises `CorruptLog` when `position` was signed with, or opened for, another key.
    """

    def __init__(self, position: Position, signer: LogSigner, *, segment: int, checkpoints: int, now: str, because: Sequence[AuditorEvent] = ()) -> None:
        _verify_key(position, signer)
        self._signer = signer
        self._segment = segment
        self._checkpoints = checkpoints
        self._position = position
        self._note = position.note
        self._previous = position.covered
        self._covered_root = b"" if position.checkpoint is None else position.checkpoint.root
        self._chunks: list[bytes] = []
        self._waiting_bytes = 0
        self._waiting_entries = 0
        self._waiting_anchors: list[VaultIntent | VaultCommit] = []
        self._unwritten = memoryview(b"")
        self._unwritten_note = memoryview(b"")
        self._open(now, because)

    def _open(self, now: str, because: Sequence[AuditorEvent]) -> None:
        position = self._position
        if position.tree.size == 0:
            opening = LogOpened(format=FORMAT, log=self._signer.origin, public_key=self._signer.public_key.hex())
            self.add(lines_of([opening], source="auditor", time=now), 1)
        if position.cut_bytes or position.leaves:
            recovered = LogRecovered(cut_bytes=position.cut_bytes, kept_entries=len(position.leaves), reason=position.cut_reason or "no checkpoint")
            self.add(lines_of([recovered], source="auditor", time=now), 1)
        if because:
            self.add(lines_of(because, source="auditor", time=now), len(because))

    # --- what a batch is made of ---

    def add(self, lines: bytes, entries: int) -> None:
        """Let `lines` (each ended by a newline) wait for the next batch."""
        self._chunks.append(lines)
        self._waiting_bytes += len(lines)
        self._waiting_entries += entries

    def add_anchor(self, event: VaultIntent | VaultCommit) -> None:
        """Note that `event`, from the vault, is among the lines that wait."""
        self._waiting_anchors.append(event)

    @property
    def waiting_bytes(self) -> int:
        """Bytes that wait for the next batch."""
        return self._waiting_bytes

    @property
    def waiting_entries(self) -> int:
        """Lines that wait for the next batch."""
        return self._waiting_entries

    # --- a batch's way to disk ---

    def seal(self) -> None:
        """Take what waits into the tree: the batch that `write` appends. The one before is durable."""
        blob = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        lines = blob.split(b"\n")
        lines.pop()
        leaves = [leaf_hash(line) for line in lines]
        position = self._position
        position.tree.extend(leaves)
        position.leaves += [leaf[:LEAF_PREFIX_BYTES] for leaf in leaves]
        position.offset += len(blob)
        for event in self._waiting_anchors:
            position.anchor = _after(position.anchor, event)
        self._chunks.clear()
        self._waiting_anchors.clear()
        self._waiting_bytes = self._waiting_entries = 0
        self._unwritten = memoryview(blob)

    def write(self) -> bool:
        """Append what is sealed or signed and not written yet. `False`: the disk is full; call again. Raises `AuditError` when it fails otherwise."""
        self._unwritten = _append(self._segment, self._unwritten)
        self._unwritten_note = _append(self._checkpoints, self._unwritten_note)
        return not self._unwritten and not self._unwritten_note

    def checkpoint(self, now: str) -> bytes:
        """Sign for all entries; they are durable, and `write` appends the note. Returns the note, the last one when nothing came since."""
        position = self._position
        if position.tree.size > self._previous:
            leaves = b"".join(position.leaves)
            checkpoint = Checkpoint(
                origin=self._signer.origin,
                size=position.tree.size,
                root=position.tree.root(),
                time=now,
                previous=self._previous,
                segment=position.segment,
                offset=position.offset,
                frontier=position.tree.hashes,
                anchor=position.anchor,
                leaves=leaves_digest(leaves),
            )
            self._note = self._signer.sign(checkpoint.text())
            self._unwritten_note = memoryview(Record(self._note, leaves).data())
            self._previous, self._covered_root = checkpoint.size, checkpoint.root
            position.leaves.clear()
        return self._note

    def begin_segment(self, number: int) -> None:
        """The descriptor is that of segment `number` from now on, which is empty; what the old one holds is durable."""
        if number != self._position.segment + 1:
            raise AuditError(f"segment {number} does not follow {self._position.segment}")
        self._position.segment = number
        self._position.offset = 0

    # --- how it stands ---

    @property
    def public_key(self) -> bytes:
        """The key that verifies checkpoints."""
        return self._signer.public_key

    @property
    def size(self) -> int:
        """Entries in the tree."""
        return self._position.tree.size

    @property
    def root(self) -> bytes:
        """The tree's hash."""
        return self._position.tree.root()

    @property
    def segment(self) -> int:
        """The number of the newest segment."""
        return self._position.segment

    @property
    def segment_bytes(self) -> int:
        """The length of the newest segment."""
        return self._position.offset

    @property
    def covered(self) -> int:
        """Entries that the last checkpoint covers."""
        return self._previous

    @property
    def covered_root(self) -> bytes:
        """The tree's hash at `covered`; empty if there is no checkpoint."""
        return self._covered_root

    @property
    def uncovered(self) -> int:
        """Entries that no checkpoint covers."""
        return len(self._position.leaves)

    @property
    def last_note(self) -> bytes:
        """The last checkpoint, empty if there is none."""
        return self._note

    @property
    def anchor(self) -> VaultAnchor:
        """What the log knows of the vault, lines that wait included."""
        anchor = self._position.anchor
        for event in self._waiting_anchors:
            anchor = _after(anchor, event)
        return anchor


def _after(anchor: VaultAnchor, event: VaultIntent | VaultCommit) -> VaultAnchor:
    return anchored(anchor, "vault_intent" if isinstance(event, VaultIntent) else "vault_commit", event.epoch, bytes.fromhex(event.root))


def _append(descriptor: int, data: memoryview) -> memoryview:
    """Write `data` and return what the disk had no room for."""
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except OSError as error:
            if error.errno in _FULL:
                return data
            raise AuditError(f"the log cannot be written: {error.strerror}") from error
    return data


def _verify_key(position: Position, signer: LogSigner) -> None:
    """Raise `CorruptLog` unless `signer` has the key of this log."""
    if position.checkpoint is not None:
        try:
            verify_note(position.note, public_key=signer.public_key)
        except AuditError as error:
            raise CorruptLog(str(error), index=position.checkpoint.previous) from error
        if position.checkpoint.origin != signer.origin:
            raise CorruptLog("the checkpoint is of another log", index=position.checkpoint.previous)
    elif position.tree.size and position.opened_with != signer.public_key.hex():
        raise CorruptLog("the log was opened for another key", index=0)
