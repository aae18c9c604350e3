"""Locks in memory that processes share, for critical sections of a microsecond. No system call unless somebody breaks the rules.

What always holds:
- Nobody waits: a lock that is not free after a few tries is not taken, and the caller is told whether its holder may still be at work or is lost.
- A process that dies inside, or holds a lock on purpose, costs the others exclusion and never progress: after `LOST_NANOSECONDS` the lock counts as lost.
- What lies in the shared memory are counters of the C library's semaphores and times: no pointer, so a fallen process can write nothing there that another one
  follows. (A robust mutex would free itself when its holder dies, but keeps a list of pointers in that memory.)

`sem_trywait` and `sem_post` are the only atomic operations on shared memory that the standard library reaches (through `ctypes`) everywhere on Linux.
"""

from __future__ import annotations

import ctypes
import mmap
from enum import Enum
from typing import Final

STRIPES: Final = 64  # of what is locked each has one of these: two workers meet in one by chance once in 64 times
_STRIDE: Final = 64  # bytes; a cache line, so that stripes do not slow each other
LOCKS_BYTES: Final = STRIPES * _STRIDE
LOST_NANOSECONDS: Final = 10**9  # a holder needs a microsecond, or, descheduled, some milliseconds
_TRIES: Final = 16
_SINCE: Final = 5  # the word of a stripe that says since when it is held, behind `sem_t` (32 bytes at most in glibc and musl)

_libc: Final = ctypes.PyDLL(None)  # keeps the interpreter's lock: these calls never block
_try_wait = _libc.sem_trywait
_try_wait.argtypes, _try_wait.restype = (ctypes.c_void_p,), ctypes.c_int
_post = _libc.sem_post
_post.argtypes, _post.restype = (ctypes.c_void_p,), ctypes.c_int
_init = _libc.sem_init
_init.argtypes, _init.restype = (ctypes.c_void_p, ctypes.c_int, ctypes.c_uint), ctypes.c_int


class Held(Enum):
    """What became of trying to take a lock."""

    OURS = "ours"  # `release` it
    OTHERS = "others"  # somebody is inside, or was a moment ago
    LOST = "lost"  # whoever took it does not come back


class Locks:
    """The locks at `offset` of `shared`, which must stay mapped. One process makes them, with `make`, before any other looks."""

    __slots__ = ("_addresses", "_keep", "_words")

    def __init__(self, shared: mmap.mmap, offset: int) -> None:
        self._keep = (ctypes.c_char * LOCKS_BYTES).from_buffer(shared, offset)
        base = ctypes.addressof(self._keep)
        self._addresses = tuple(range(base, base + LOCKS_BYTES, _STRIDE))
        self._words = memoryview(shared)[offset : offset + LOCKS_BYTES].cast("q")

    def make(self) -> None:
        """Make all of them, free. Raises `OSError` if the C library has no semaphores between processes."""
        for address in self._addresses:
            if _init(address, 1, 1):
                raise OSError("the C library has no semaphores that processes share")

    def take(self, what: int, now: int) -> Held:
        """Try to take the lock of `what`, any number that is not negative. `now` in nanoseconds of the clock that all processes share."""
        stripe = what % STRIPES
        address = self._addresses[stripe]
        since = stripe * (_STRIDE // 8) + _SINCE
        for _ in range(_TRIES):
            if not _try_wait(address):
                self._words[since] = now
                return Held.OURS
        return Held.OTHERS if 0 <= now - self._words[since] < LOST_NANOSECONDS else Held.LOST

    def release(self, what: int) -> None:
        """Give back what `take` said is ours."""
        _post(self._addresses[what % STRIPES])
