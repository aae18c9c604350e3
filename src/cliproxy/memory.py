"""Memory that a crowd needed, given back to the system when the crowd is gone.

Python's large buffers live in the heap of the C library, which keeps what is freed below whatever still lives: after 100 clients that did not read a worker
kept three times what it held at the most. `malloc_trim` gives the pages back; it reads the whole heap, so it is called only after an ebb.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Final

from cliproxy.bounds import MIB

EBB_BYTES: Final = 4 * MIB  # so much less held than before is worth a look through the heap, some milliseconds; it leaves about twice as much unreturned

_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl returns memory by itself


def give_back() -> None:
    """Return the free pages of the heap to the system."""
    if _trim is not None:
        _trim(0)


class Ebb:
    """Notices that much less is held than was."""

    __slots__ = ("_give_back", "_most")

    def __init__(self, give_back: Callable[[], None]) -> None:
        self._give_back = give_back
        self._most = 0

    def rise(self, held: int) -> None:
        """`held` bytes are held now: a crowd may come and go between two looks."""
        if held > self._most:
            self._most = held

    def look(self, held: int) -> None:
        """`held` bytes are held now. Gives back once it is `EBB_BYTES` less than the most since the last time."""
        if held > self._most:
            self._most = held
        elif self._most - held >= EBB_BYTES:
            self._most = held
            self._give_back()
