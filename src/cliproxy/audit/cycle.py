"""When the auditor writes: seal, write, `fdatasync`, acknowledge; and a checkpoint when one is due. One batch at a time.

A batch begins `AUDIT_SYNC_SECONDS` after the one before, at once when somebody waits for it. When the disk is full the batch under way stays
under way, and nothing new is taken until it is through. When a segment is full the next batch waits for the new one.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from typing import Protocol

from cliproxy.audit.events import timestamp
from cliproxy.audit.log import LogWriter
from cliproxy.bounds import MAX_PENDING_AUDIT_BYTES

MAX_BATCH_ENTRIES = 4096  # lines that wait, likewise; one packet more may come on top
MAX_UNCOVERED_ENTRIES = 4096  # entries without a checkpoint before one is due at once
AUDIT_SYNC_SECONDS = 0.02  # docs/architecture.md: between two fdatasyncs when nobody waits for one
AUDIT_CHECKPOINT_SECONDS = 1.0  # entries are durable before that; a checkpoint costs a signature and 400 bytes
AUDIT_RETRY_SECONDS = 0.25  # between two tries to write when the disk is full

_ASK_AGAIN_SECONDS = 1.0


class Sync(Protocol):
    """What makes written data durable: `audit.sync.Syncer`."""

    busy: bool

    def request(self, descriptors: Sequence[int]) -> None: ...


class Owner(Protocol):
    """Who is told how the log comes along."""

    def sealed(self) -> None:
        """What waited is now a batch."""

    def durable(self) -> None:
        """Everything sealed is durable."""

    def trouble(self, failing: bool) -> None:
        """The disk is full; or no longer."""

    def covered(self, size: int, note: bytes) -> None:
        """A checkpoint for `size` entries was written."""

    def noted(self) -> None:
        """The last checkpoint is durable."""

    def want_segment(self, number: int) -> None:
        """The segment is full."""


class _Stage(Enum):
    IDLE = auto()
    WRITING = auto()
    SYNCING = auto()
    NOTING = auto()
    WAITING_FOR_SEGMENT = auto()


class Cycle:
    """The log's clockwork. `sync_notes`: each checkpoint is made durable at once, with no batch to wait for. `now` is any steady clock in seconds, `wall`
    seconds since the epoch."""

    def __init__(
        self, log: LogWriter, sync: Sync, owner: Owner, *, segment: int, checkpoints: int, segment_bytes: int, now: float, sync_notes: bool = False
    ) -> None:
        self._log = log
        self._sync = sync
        self._owner = owner
        self._segment = segment
        self._checkpoints = checkpoints
        self.segment_bytes = segment_bytes
        self._stage = _Stage.IDLE
        self._sealed_at = now - AUDIT_SYNC_SECONDS
        self._checkpoint_at = now
        self._again_at = now
        self._unsynced_note = False
        self._is_syncing_note = False
        self._sync_notes = sync_notes
        self._demanded = 0
        self.failing = False
        self.urgent = False

    def demand(self) -> int:
        """Ask for a checkpoint of everything received so far, as soon as possible; return its least size."""
        self._demanded = self._log.size + self._log.waiting_entries
        return self._demanded

    def is_backed_up(self) -> bool:
        """Whether nothing more should be read from senders."""
        return self.failing or self._log.waiting_bytes >= MAX_PENDING_AUDIT_BYTES or self._log.waiting_entries >= MAX_BATCH_ENTRIES

    def is_at_rest(self) -> bool:
        """Whether everything received is durable and covered."""
        return self._stage is _Stage.IDLE and not self._log.waiting_entries and not self._log.uncovered and not self._unsynced_note

    def next_time(self, now: float) -> float:
        """Return when `advance` has something to do by itself."""
        if self._stage is _Stage.SYNCING:
            return now + AUDIT_CHECKPOINT_SECONDS
        if self._stage is not _Stage.IDLE:
            return self._again_at
        due = now + AUDIT_CHECKPOINT_SECONDS
        if self._log.waiting_entries:
            due = min(due, now if self._is_awaited() else self._sealed_at + AUDIT_SYNC_SECONDS)
        if self._log.uncovered:
            due = min(due, self._checkpoint_at)
        return due

    def advance(self, now: float, wall: float) -> None:
        """Do what can be done without waiting."""
        while self._step(now, wall):
            pass

    def synced(self) -> None:
        """The sync that was asked for is done."""
        self._stage = _Stage.IDLE
        self._owner.durable()
        if self._is_syncing_note:
            self._is_syncing_note = False
            self._owner.noted()

    def segment_begun(self, number: int) -> bool:
        """The new segment is there. `False`: it is the present one, asked for twice. Raises `AuditError` when it is not the next one or nobody asked for it."""
        if number == self._log.segment:
            return False
        self._log.begin_segment(number if self._stage is _Stage.WAITING_FOR_SEGMENT else -1)
        self._stage = _Stage.IDLE
        return True

    def stop_rotating(self) -> None:
        """The end is near: what waits goes into the present segment, however full."""
        self.segment_bytes = 1 << 62
        if self._stage is _Stage.WAITING_FOR_SEGMENT:
            self._stage = _Stage.IDLE

    def _step(self, now: float, wall: float) -> bool:
        """Take one step; `False` when there is none to take now."""
        if self._stage is _Stage.IDLE:
            return self._begin(now, wall)
        if self._stage is _Stage.WAITING_FOR_SEGMENT:
            if now >= self._again_at:
                self._again_at = now + _ASK_AGAIN_SECONDS
                self._owner.want_segment(self._log.segment + 1)
            return False
        if self._stage is _Stage.SYNCING or not self._write(now):
            return False
        if self._stage is _Stage.NOTING:
            self._unsynced_note = True
            self._stage = _Stage.IDLE
            self._owner.covered(self._log.covered, self._log.last_note)
            return True
        self._request_sync()
        return False

    def _begin(self, now: float, wall: float) -> bool:
        log = self._log
        if log.uncovered and (now >= self._checkpoint_at or log.uncovered >= MAX_UNCOVERED_ENTRIES or log.covered < self._demanded <= log.size):
            log.checkpoint(timestamp(wall))
            self._checkpoint_at = now + AUDIT_CHECKPOINT_SECONDS
            self._stage = _Stage.NOTING
            return True
        if not log.waiting_entries:
            self._owner.sealed()  # packets that left no lines
            self._owner.durable()
            if self._unsynced_note and (self._demanded or self._sync_notes):
                self._demanded = 0
                self._request_sync()  # whoever demanded the checkpoint, or pins it, relies on it: do not wait for the next batch
            return False
        if not self._is_awaited() and now < self._sealed_at + AUDIT_SYNC_SECONDS:
            return False
        if log.segment_bytes >= self.segment_bytes:
            self._stage = _Stage.WAITING_FOR_SEGMENT
            self._again_at = now
            return True
        self._owner.sealed()
        log.seal()
        self._sealed_at = now
        self.urgent = False
        self._stage = _Stage.WRITING
        return True

    def _is_awaited(self) -> bool:
        return self.urgent or self._log.covered < self._demanded

    def _request_sync(self) -> None:
        self._sync.request((self._segment, self._checkpoints) if self._unsynced_note else (self._segment,))
        self._is_syncing_note, self._unsynced_note = self._unsynced_note, False
        self._stage = _Stage.SYNCING

    def _write(self, now: float) -> bool:
        if self.failing and now < self._again_at:
            return False
        written = self._log.write()
        if written == self.failing:
            self.failing = not written
            self._owner.trouble(self.failing)
        self._again_at = now + AUDIT_RETRY_SECONDS
        return written
