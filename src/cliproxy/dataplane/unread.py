"""What one client does not read: how much of it waits, whose it is, and how long the client may go on reading nothing.

What always holds: what waits is counted once, in the room of all connections and for one account; a client that takes less than `MIN_READER_BYTES` in its time
has stalled.
"""

from __future__ import annotations

import asyncio
import math

from cliproxy.bounds import KIB
from cliproxy.dataplane.rooms import Account, Room

MIN_READER_BYTES = 4 * KIB  # a paused client that takes less than this in `stalled_reader_seconds` is aborted


class Unread:
    """The bytes that wait for one client. `deadline`: when to ask `is_stalled`."""

    __slots__ = ("_account", "_count", "_kept", "_mark", "_room", "deadline")

    def __init__(self, room: Room, account: Account) -> None:
        self._room = room
        self._account = account
        self._count = 0
        self._kept = 0  # that many of them by the exchange
        self._mark = 0  # what the transport had when the client's time began
        self.deadline = math.inf

    def has_room_for(self, count: int) -> bool:
        """Whether `count` bytes more may wait for this account."""
        return self._room.admits(self._account.unread, count)

    def count(self, waiting: int) -> bool:
        """`waiting` bytes that were answered wait. Return False if that is more than this account may have."""
        return self._add(waiting + self._kept - self._count)

    def keep(self, change: int) -> bool:
        """The exchange keeps `change` bytes more (or less); False as above."""
        self._kept += change
        return self._add(change)

    def belong_to(self, account: Account) -> None:
        """What waits counts for `account` from now on."""
        self._account.unread -= self._count
        self._account = account
        account.unread += self._count

    def watch(self, transport: asyncio.Transport, deadline: float) -> None:
        """Start over with the time in which the client must read something; `math.inf`: nothing waits for it."""
        self._mark = transport.get_write_buffer_size()
        self.deadline = deadline

    def is_stalled(self, transport: asyncio.Transport) -> bool:
        """Whether the client read next to nothing since `watch`."""
        return transport.get_write_buffer_size() > self._mark - MIN_READER_BYTES

    def close(self) -> None:
        """Nothing waits any more."""
        self._kept = 0
        self._add(-self._count)

    def _add(self, change: int) -> bool:
        fits = change <= 0 or self._room.admits(self._account.unread, change)
        self._count += change
        self._room.taken += change
        self._account.unread += change
        return fits
