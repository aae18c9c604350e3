"""The log's files: `logs/audit-<number>.jsonl`, numbered from 1 without gaps, and `logs/checkpoints`.

Reading only; the auditor appends through descriptors that the supervisor opened, and cuts (`cut`) only before its lockdown.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from cliproxy.bounds import KIB, MIB
from cliproxy.errors import AuditError, CorruptLog

MAX_AUDIT_LINE_BYTES = 64 * KIB  # an event of nine texts of 512 characters, six bytes each where escaped, is 28 KiB

CHECKPOINTS = "checkpoints"
_SEGMENT = re.compile(r"audit-([0-9]{8,10})\.jsonl\Z")
_READ_BYTES = MIB


def logs_of(home: str | os.PathLike[str]) -> Path:
    """Return the directory of the log."""
    return Path(home) / "logs"


def segment_name(number: int) -> str:
    """Return the file name of segment `number`, 1 or more."""
    return f"audit-{number:08d}.jsonl"


def segment_numbers(logs: Path) -> list[int]:
    """Return the numbers of the segments, rising. Raises `AuditError` when the directory cannot be read."""
    try:
        names = os.listdir(logs)  # noqa: PTH208 - only names are needed
    except OSError as error:
        raise AuditError(f"{logs}: {error.strerror}") from error
    return sorted(int(found[1]) for name in names if (found := _SEGMENT.match(name)) and name == segment_name(int(found[1])))


def has_entries(logs: Path) -> bool:
    """Whether anything was ever logged: the supervisor makes the first segment empty."""
    try:
        with os.scandir(logs) as entries:
            return any(entry.stat(follow_symlinks=False).st_size for entry in entries if entry.is_file(follow_symlinks=False))
    except FileNotFoundError:
        return False


def open_file(path: Path) -> BinaryIO:
    """Open a file of the log for reading; no link, no device. Raises `AuditError`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise AuditError(f"{path}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise AuditError(f"{path}: not a regular file")
    return os.fdopen(descriptor, "rb", buffering=0)


def lines_from(file: BinaryIO, *, index: int) -> Iterator[tuple[list[bytes], bytes]]:
    """Yield, until the file ends, its next lines (without newlines, never empty lists) and what follows them of a line not ended yet.

    `index` is that of the first line, for `CorruptLog`, which a line longer than any event raises.
    """
    rest = b""
    while data := file.read(_READ_BYTES):
        *lines, rest = (rest + data).split(b"\n")
        if lines:
            yield lines, rest
            index += len(lines)
        if len(rest) > MAX_AUDIT_LINE_BYTES:
            raise CorruptLog("a line is longer than any event", index=index)
    if rest:
        yield [], rest


def cut(path: Path, length: int) -> None:
    """Cut the file to `length` bytes, durably. Raises `AuditError`."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.ftruncate(descriptor, length)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise AuditError(f"{path}: {error.strerror}") from error
