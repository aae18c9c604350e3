"""The pin (`audit.pin`): the newest checkpoints, kept in a file elsewhere, so that a home that was put back from a copy is told from the true one.

What always holds: only a checkpoint that is durable in the log is pinned, so that no crash leaves a pin that is ahead of its log; the file has a fixed size
and is written in turn, so that one torn place leaves the others; it is mapped before the lockdown and afterwards written without a system call, so that
the auditor's rights stay what they are.

The file is `PLACES` places of `PLACE_BYTES`. A place is empty (zeros) or holds, big-endian:

    8 bytes   number of the pinning, counted from 1; it goes into place `number % PLACES`
    4 bytes   length of the note
    32 bytes  SHA-256 of the two fields before and the note
    the note  a signed checkpoint, then zeros
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
from pathlib import Path
from typing import Final

import msgspec

from cliproxy.audit.checkpoint import Checkpoint, parse_checkpoint, parse_note
from cliproxy.audit.files import lines_from, logs_of, open_file, segment_name, segment_numbers
from cliproxy.audit.merkle import leaf_hash
from cliproxy.audit.recovery import Position
from cliproxy.errors import AuditError, ConfigError, CorruptLog, PinMismatch
from cliproxy.secure_files import create_private_file, open_private_file

PLACES: Final = 16  # one a second: what the kernel has not written back yet (30 s) may be torn by a power cut, never all of them
PLACE_BYTES: Final = 4096  # a page, which is written back whole; our note has 2 KiB at 2^32 entries
_HEAD = struct.Struct(">QI32s")
_DIRECTORIES: Final = ("config", "key", "auths", "logs", "run")


class Pinned(msgspec.Struct, frozen=True):
    """What a pin holds: the newest checkpoint (signature not yet verified) and the number of its pinning; number 0 and an empty note: nothing yet."""

    number: int
    note: bytes

    def checkpoint(self) -> Checkpoint:
        """Return the checkpoint. Raises `AuditError` when it is none."""
        return parse_checkpoint(parse_note(self.note).text)


class PinFile:
    """The open pin. Made by `open_pin`, and kept until the process ends: the lockdown closes the descriptor that Python keeps of a mapping, and giving the
    mapping up would close whatever has its number by then."""

    def __init__(self, memory: mmap.mmap, pinned: Pinned) -> None:
        self._memory = memory
        self.pinned = pinned

    def write(self, note: bytes) -> None:
        """Pin `note`, a checkpoint that is durable in the log. In the file at once; on its disk when the kernel writes it back."""
        number = self.pinned.number + 1
        place = _place(number, note)
        start = number % PLACES * PLACE_BYTES
        self._memory[start : start + PLACE_BYTES] = place
        self.pinned = Pinned(number, note)


def _place(number: int, note: bytes) -> bytes:
    if len(note) > PLACE_BYTES - _HEAD.size:
        raise AuditError(f"a pinned checkpoint has at most {PLACE_BYTES - _HEAD.size} bytes")
    return (_HEAD.pack(number, len(note), _digest(number, note)) + note).ljust(PLACE_BYTES, b"\0")


def _digest(number: int, note: bytes) -> bytes:
    return hashlib.sha256(struct.pack(">QI", number, len(note)) + note).digest()


def parse_pin(data: bytes, *, path: Path) -> Pinned:
    """Return the newest whole checkpoint in the bytes of a pin. Raises `ConfigError` when there is none although something is in it."""
    newest = Pinned(0, b"")
    if len(data) == PLACES * PLACE_BYTES:
        for start in range(0, len(data), PLACE_BYTES):
            number, length, digest = _HEAD.unpack_from(data, start)
            note = data[start + _HEAD.size : start + _HEAD.size + length]
            if length <= PLACE_BYTES - _HEAD.size and number > newest.number and digest == _digest(number, note):
                newest = Pinned(number, note)
    if newest.number == 0 and (data.strip(b"\0") or len(data) != PLACES * PLACE_BYTES):
        raise ConfigError("is no pin of an audit log, or a damaged one", cure="see docs/operations.md, the audit log's pin", file=str(path))
    return newest


def create_pin(path: Path) -> None:
    """Make an empty pin at `path`, its room reserved. Raises `ConfigError`, also when something is there."""
    descriptor = create_private_file(path)
    try:
        os.posix_fallocate(descriptor, 0, PLACES * PLACE_BYTES)  # a mapped page without room on the disk would kill who writes to it
        os.fsync(descriptor)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise ConfigError(f"cannot be made ({error.strerror})", cure="make room on its disk", file=str(path)) from error
    finally:
        os.close(descriptor)


def read_pin(path: Path) -> Pinned:
    """Return what is pinned at `path`. Raises `ConfigError`."""
    descriptor = open_private_file(path, write=False)
    with os.fdopen(descriptor, "rb") as file:
        return parse_pin(file.read(PLACES * PLACE_BYTES + 1), path=path)


def verify_place(path: Path, home: str) -> None:
    """Raise `ConfigError` when the pin would lie in the home: whoever puts the home back would put it back too."""
    place = path.resolve()
    if any(place.is_relative_to(Path(home).resolve() / name) for name in _DIRECTORIES):
        raise ConfigError("lies in the home that it watches", cure="name a file on another disk", key="audit.pin")


def open_pin(path: Path, home: str, *, may_create: bool) -> PinFile:
    """Return the pin at `path`, mapped for writing. Raises `ConfigError` when it is missing (unless it may be made) or no pin."""
    verify_place(path, home)
    if not os.path.lexists(path):
        if not may_create:
            cure = "put its disk back; or, to begin a new one, `cliproxy audit pin` makes it"
            raise ConfigError("the pin of the audit log is missing", cure=cure, file=str(path))
        create_pin(path)
    pinned = read_pin(path)
    descriptor = open_private_file(path, write=True)
    try:
        os.posix_fallocate(descriptor, 0, PLACES * PLACE_BYTES)
        return PinFile(mmap.mmap(descriptor, PLACES * PLACE_BYTES), pinned)
    except OSError as error:
        raise ConfigError(f"cannot be written ({error.strerror})", cure="put it on a local disk with room", file=str(path)) from error
    finally:
        os.close(descriptor)


def verify_pinned(home: str, position: Position, pinned: Pinned) -> None:
    """Raise `PinMismatch` unless the log's last checkpoint continues the pinned one: same name, and the entries between give its root.

    Reads the entries after the pinned checkpoint. The signatures of both are verified when the key is there (`audit.log`).
    """
    if pinned.number == 0:
        return
    try:
        earlier = pinned.checkpoint()
    except AuditError as error:
        raise PinMismatch(f"the pin holds no checkpoint: {error}") from error
    last = position.checkpoint
    if last is None or last.size < earlier.size:
        raise PinMismatch(f"the log ends at entry {0 if last is None else last.size}, and {earlier.size} were pinned: it was put back from a copy")
    if last.origin != earlier.origin:
        raise PinMismatch("the pin is that of another log")
    try:
        root = _root_after(home, earlier, last)
    except AuditError as error:
        raise PinMismatch(f"the log does not hold what was pinned: {error}") from error
    if root != last.root:
        raise PinMismatch(f"the log is another one than the one that was pinned at entry {earlier.size}")


def _root_after(home: str, earlier: Checkpoint, last: Checkpoint) -> bytes:
    """Return the root of `earlier`'s tree with the entries that the log has after it, up to the size of `last`."""
    tree = earlier.tree()
    logs = logs_of(home)
    for number in [one for one in segment_numbers(logs) if earlier.segment <= one <= last.segment]:
        with open_file(logs / segment_name(number)) as file:
            file.seek(earlier.offset if number == earlier.segment else 0)
            for lines, _ in lines_from(file, index=tree.size):
                tree.extend(leaf_hash(line) for line in lines[: last.size - tree.size])
    if tree.size != last.size:
        raise CorruptLog("entries are missing", index=tree.size)
    return tree.root()
