"""A child's view of its descriptor numbers: is there a channel, give it up, move it away.

A number stays occupied from the first moment to the last: `/dev/null` sits where there is no channel.
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from collections.abc import Iterable

from cliproxy.errors import SandboxError
from cliproxy.processes.topology import FIRST_FREE_FD, NULL_FD


def is_open(number: int) -> bool:
    """Whether `number` is a descriptor of this process at all."""
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def is_socket(number: int) -> bool:
    """Whether a socket is on `number` (and not the placeholder)."""
    try:
        return stat.S_ISSOCK(os.fstat(number).st_mode)
    except OSError:
        return False


def verify_no_device(numbers: Iterable[int]) -> None:
    """Raise `SandboxError` when one of the open descriptors `numbers` is a device other than /dev/null, a terminal above all, or cannot be judged."""
    null = os.stat(os.devnull).st_rdev  # noqa: PTH116 - a number, not a path
    for number in numbers:
        try:
            status = os.fstat(number)
        except OSError as error:
            raise SandboxError(f"descriptor {number} cannot be judged", cure="report this") from error
        device = stat.S_ISBLK(status.st_mode) or (stat.S_ISCHR(status.st_mode) and status.st_rdev != null)
        if device or os.isatty(number):
            raise SandboxError(f"descriptor {number} is a terminal or another device", cure="report this")


def vacate(number: int) -> None:
    """Close what is on `number` and keep the number occupied. Works in a locked process on replaceable numbers."""
    os.dup2(NULL_FD, number, inheritable=False)


def take(number: int) -> socket.socket:
    """Return the channel on `number` at a number of its own and vacate it: for transports that close their descriptor themselves.

    Not for channels that carry descriptors: those work on their fixed number only.
    """
    moved = fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, FIRST_FREE_FD)
    vacate(number)
    return socket.socket(fileno=moved)


def channel(number: int) -> socket.socket:
    """Return the channel on `number`, which stays there. Let go of it with `detach()` and `vacate(number)`, never with `close()`."""
    return socket.socket(fileno=number)
