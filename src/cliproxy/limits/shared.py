"""The token buckets of client addresses, shared by the workers of a machine in one memory file.

What always holds:
- The table has a fixed size: `SHARED_RATE_SETS` sets of `SHARED_RATE_WAYS` buckets of 16 bytes (tag, theoretical arrival time). A million addresses
  cost no more memory than one, and no more time.
- Where an address lands and its tag are a keyed hash, the key made afresh at each start: a stranger can't choose addresses that meet in one set.
- When a set is full the bucket that refills soonest is given up, at worst an address gets a fresh burst; nobody is denied for another's requests.
- A word that no bucket can hold (a fallen worker may write anything here) is denied for one interval at most.

Whoever changes a set holds its lock (`limits/locks.py`), so that together the workers admit what one bucket admits, and not one request more. While another
worker is inside, which takes it a microsecond, a request is denied rather than counted wrongly. A lock that its holder took into death is passed over;
docs/adr/0136 says what that costs.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import time

from cliproxy.errors import ChannelError
from cliproxy.limits.gcra import in_nanoseconds
from cliproxy.limits.locks import LOCKS_BYTES, Held, Locks

SHARED_RATE_SETS = 65_536  # address buckets of a machine: 65,536 sets of 4 ways of 16 bytes are 4 MiB
SHARED_RATE_WAYS = 4

KEY_BYTES = 32
_PAGE = 4096
_MAGIC = b"cliproxy-rates-1"
_BUCKETS_AT = _PAGE + LOCKS_BYTES  # after a header page with the key, and the locks
TABLE_BYTES = _BUCKETS_AT + SHARED_RATE_SETS * SHARED_RATE_WAYS * 16
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW  # nobody can truncate it under the others (SIGBUS)

_TRIES = 8
RECENT_SECONDS = 3600  # an hour: a key that was good before lunch is good for a connection after it
_SET_WORDS = SHARED_RATE_WAYS * 2
Bucket = tuple[int, int]  # index of the first word of a set, tag


def create() -> int:
    """Return the descriptor of a new, empty table. The caller (the supervisor) closes it, and gives it to every worker."""
    descriptor = os.memfd_create("address-rates", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, TABLE_BYTES)
    os.pwrite(descriptor, _MAGIC + os.urandom(KEY_BYTES), 0)
    Locks(mmap.mmap(descriptor, TABLE_BYTES), _PAGE).make()
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    return descriptor


class _Table:
    """One process's view of the table. Make it before the lockdown: it maps the file."""

    __slots__ = ("_key", "_locks", "_map", "_whose", "_words")

    def __init__(self, descriptor: int, whose: bytes) -> None:
        if os.fstat(descriptor).st_size != TABLE_BYTES:
            raise ChannelError(f"descriptor {descriptor} is no table of address rates")
        self._map = mmap.mmap(descriptor, TABLE_BYTES, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        if self._map[: len(_MAGIC)] != _MAGIC:
            raise ChannelError(f"descriptor {descriptor} is no table of address rates")
        self._key = self._map[len(_MAGIC) : len(_MAGIC) + KEY_BYTES]
        self._words = memoryview(self._map)[_BUCKETS_AT:].cast("q")
        self._locks = Locks(self._map, _PAGE)
        self._whose = whose

    def bucket(self, group: bytes) -> Bucket:
        """Return where the bucket of the address, or group of addresses, `group` is. Compute it once a connection."""
        digest = hashlib.blake2b(group, digest_size=16, key=self._key, person=self._whose).digest()
        return (int.from_bytes(digest[:8], "little") % SHARED_RATE_SETS) * _SET_WORDS, int.from_bytes(digest[8:], "little", signed=True) or 1

    def _find(self, first: int, tag: int) -> int:
        """Return the place of `tag`; a new one, of time 0, in place of the one with the earliest time if there is none."""
        words = self._words
        oldest = first
        for place in range(first, first + _SET_WORDS, 2):
            if words[place] == tag:
                return place
            if words[place + 1] < words[oldest + 1]:
                oldest = place
        words[oldest + 1] = 0  # first the time, then the tag: whoever reads in between sees a full bucket, never another's debt
        words[oldest] = tag
        return oldest


class RecentAddresses(_Table):
    """Where a client key was good lately, known to all workers. In the same table, under a mark of its own: the time is when it was."""

    __slots__ = ()

    def __init__(self, descriptor: int) -> None:
        """Raises `ChannelError` if the descriptor is no table of this build; it stays open."""
        super().__init__(descriptor, b"recent")

    def note(self, group: bytes) -> None:
        """A key is good at the address `group`, now."""
        first, tag = self.bucket(group)
        now = time.monotonic_ns()
        held = self._locks.take(first // _SET_WORDS, now)
        if held is not Held.OTHERS:  # it would be remembered a moment later, or is already
            self._words[self._find(first, tag) + 1] = now
        if held is Held.OURS:
            self._locks.release(first // _SET_WORDS)

    def has(self, group: bytes) -> bool:
        """Say whether a key was good there within `RECENT_SECONDS`. A time that is still to come, which nobody here wrote, says no."""
        first, tag = self.bucket(group)
        words = self._words
        for place in range(first, first + _SET_WORDS, 2):
            if words[place] == tag:
                return 0 <= time.monotonic_ns() - words[place + 1] < RECENT_SECONDS * 10**9
        return False


class SharedRates(_Table):
    """The token buckets."""

    __slots__ = ("_gcra",)

    def __init__(self, descriptor: int, *, rate: float, burst: int, whose: bytes = b"strangers") -> None:
        """`rate` requests a second, `burst` at once; every `whose` (16 bytes at most) has buckets of its own in the same table.

        Raises `ChannelError` if the descriptor is no table of this build; it stays open.
        """
        super().__init__(descriptor, whose)
        self._gcra = in_nanoseconds(rate, burst=burst)

    def admit(self, bucket: Bucket, now: int) -> float | None:
        """Take one token at `now` (nanoseconds of the monotonic clock, which all processes share): None, or the seconds until there is one."""
        locks, which = self._locks, bucket[0] // _SET_WORDS
        held = locks.take(which, now)
        if held is Held.OURS:
            try:
                return self._take(bucket, now)
            finally:
                locks.release(which)
        if held is Held.LOST:
            return self._take(bucket, now)
        return self._gcra.interval / 1e9

    def _take(self, bucket: Bucket, now: int) -> float | None:
        words = self._words
        first, tag = bucket
        if words[first] == tag:
            place = first  # nearly always
        else:
            place = self._find(first, tag)
        time_at = place + 1
        for _ in range(_TRIES):
            seen = words[time_at]
            tat, wait = self._gcra.judge(seen, now)
            if words[time_at] == seen:  # without the lock somebody may have been here meanwhile: what is left of the race is the next line
                words[time_at] = int(tat)
                return None if wait <= 0 else wait / 1e9
        return self._gcra.interval / 1e9  # so contended that it is above any rate
