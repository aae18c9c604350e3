"""Bodies on their way to an egress that is behind: whose they are, until it has taken them.

What always holds: what is counted as taken has left; a body may count for longer than it waits, never for less.
"""

from __future__ import annotations

from collections import deque

from cliproxy.bounds import MAX_DATA_FRAME_BYTES, MIB
from cliproxy.dataplane.rooms import Account, Room

MAX_WORKER_BACKLOG_BYTES = 32 * MIB  # unsent bytes towards egress above which a worker answers 503 instead of queueing


class Backlog:
    """The bodies that were queued while the channel was paused, in their order."""

    __slots__ = ("_room", "waiting")

    def __init__(self) -> None:
        self._room = Room(MAX_WORKER_BACKLOG_BYTES, least=MAX_DATA_FRAME_BYTES)
        self.waiting: deque[tuple[Account, int]] = deque()

    def admits(self, account: Account, size: int, unsent: int) -> bool:
        """Whether a body of `size` bytes may be queued for `account`. `unsent`: bytes that the channel has not written."""
        waiting = self.waiting
        while waiting and self._room.taken - waiting[0][1] >= unsent:  # the later ones are all that there is: this one has left
            self._drop_first()
        return self._room.admits(account.backlog, size)

    def add(self, account: Account, size: int) -> None:
        """A body was queued."""
        self.waiting.append((account, size))
        self._room.taken += size
        account.backlog += size

    def clear(self) -> None:
        """Everything has left, or the channel is gone."""
        while self.waiting:
            self._drop_first()

    def _drop_first(self) -> None:
        account, size = self.waiting.popleft()
        self._room.taken -= size
        account.backlog -= size
