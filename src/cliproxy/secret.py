"""A secret has a type: it prints as a placeholder, refuses to be copied into text, and is revealed in few, greppable places.

What Python can't do: wipe copies that the interpreter or a library made. `wipe()` clears our own buffer; the rest ends with the process.
"""

from __future__ import annotations

import hmac
from typing import NoReturn


class Secret:
    """Bytes that must not leak by accident.

    `repr` and `str` show `Secret(***)`; formatting with a spec, pickling, copying and hashing raise `TypeError`.
    Equality is constant-time and only with another `Secret`.
    """

    __slots__ = ("_buffer",)

    def __init__(self, value: bytes | bytearray) -> None:
        self._buffer = bytearray(value)

    def reveal(self) -> bytes:
        """Return the bytes. Every call of this is a place for a reviewer to look at."""
        return bytes(self._buffer)

    def wipe(self) -> None:
        """Overwrite the buffer with zeros and empty it."""
        self._buffer[:] = bytes(len(self._buffer))
        self._buffer.clear()

    def __len__(self) -> int:
        return len(self._buffer)

    def __bool__(self) -> bool:
        return bool(self._buffer)

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        raise TypeError("a Secret is not formatted into text")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._buffer, other._buffer)

    __hash__ = None  # type: ignore[assignment]  # a secret is no dictionary key

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a Secret is not pickled or copied")
