"""The channel between the supervisor and each child: fixed-size records upward, fixed-size records with descriptors downward.

The supervisor parses nothing that a client or provider sent, and upward nothing of variable length at all: 16 bytes of kind, argument, value.
A record of another size, an unknown kind, a kind with the wrong number of descriptors, or more reports than a child has to make raises `ChannelError`.
"""

from __future__ import annotations

import array
import os
import socket
import struct
import time
from collections.abc import Sequence
from enum import IntEnum
from typing import Final

import msgspec

from cliproxy.bounds import MAX_DESCRIPTORS_PER_MESSAGE
from cliproxy.errors import ChannelError
from cliproxy.ipc.channel import ChannelClosed

_RECORD: Final = struct.Struct("<BxxxIQ")
_MAX_RECORDS_PER_TURN: Final = 64
REPORTS_PER_SECOND: Final = 8.0  # of one child: a sign of life every other second, a new segment of the log, two for a reload
REPORTS_BURST: Final = 1024.0  # a queue holds hundreds, and all wait when the supervisor was stopped
MAX_ARGUMENT: Final = 2**32 - 1  # what the record has room for


class Up(IntEnum):
    """What a child tells the supervisor. `argument` is a generation unless said otherwise."""

    READY = 1  # locked down and serving; argument: generation
    PREPARED = 2  # the settings of PREPARE will do
    REFUSED = 3  # they will not
    COMMITTED = 4
    DRAINED = 5  # nothing under way any more
    RELOAD = 6  # admin only: reload the configuration
    STOP = 7  # admin only: stop the gateway
    SEGMENT = 8  # auditor only: argument: the index of the log segment that it wants
    ALIVE = 9  # a sign of life, every other second


class Down(IntEnum):
    """What the supervisor orders."""

    PREPARE = 1  # argument: generation; one descriptor: sealed memfd with the settings
    COMMIT = 2  # argument: generation
    ABANDON = 3  # argument: generation
    DRAIN = 4  # argument: seconds
    STOP = 5
    REPLACE = 6  # argument: descriptor number; one descriptor: the new channel, already on that number when the body sees the order
    SEGMENT = 7  # argument: index; one descriptor: the new log segment
    RELOADED = 8  # admin only; argument: the generation now in force, 0 if the reload was refused; one descriptor: sealed memfd, one line why it was
    REOPENED = 9  # admin only; argument: how often a listening socket that accepted nobody was made to listen again since the start


_WITH_DESCRIPTOR: Final = frozenset({Down.PREPARE, Down.REPLACE, Down.SEGMENT, Down.RELOADED})


def descriptors_of(kind: Down) -> int:
    """Return how many descriptors come with an order."""
    return 1 if kind in _WITH_DESCRIPTOR else 0


class Order(msgspec.Struct, frozen=True):
    """A record downward. The receiver owns `descriptors`."""

    kind: Down
    argument: int
    descriptors: tuple[int, ...] = ()


class Report(msgspec.Struct, frozen=True):
    """A record upward."""

    kind: Up
    argument: int
    value: int


def close_all(descriptors: Sequence[int]) -> None:
    """Close each of them."""
    for descriptor in descriptors:
        os.close(descriptor)


class Control:
    """The child's end. Non-blocking; the body polls `fileno()`."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock

    def fileno(self) -> int:
        """The descriptor, for `poll`."""
        return self._sock.fileno()

    def send(self, kind: Up, argument: int = 0, value: int = 0) -> None:
        """Tell the supervisor. Raises `ChannelClosed` when it is gone or no longer reads (its queue holds hundreds of records).

        A sign of life that finds the queue full is left out: hundreds that nobody has read are there.
        """
        try:
            self._sock.send(_RECORD.pack(kind, argument, value))
        except OSError as error:
            if kind is Up.ALIVE and isinstance(error, BlockingIOError):
                return
            raise ChannelClosed(f"the supervisor is gone ({error.strerror})") from error

    def receive(self) -> list[Order]:
        """Return the orders that wait, oldest first, up to a `REPLACE`. Raises `ChannelClosed` when the supervisor is gone: leave with `os._exit`.

        A replacement is on its number at once, so the body must have dealt with it before the next one, perhaps of the same number, takes its place:
        what the body missed while it slept, a peer may have died twice.
        """
        orders: list[Order] = []
        while len(orders) < _MAX_RECORDS_PER_TURN:
            order = self._receive_one()
            if order is None:
                break
            orders.append(self._on_receipt(order))
            if order.kind is Down.REPLACE:
                break
        return orders

    def _on_receipt(self, order: Order) -> Order:
        """For `processes.child`: what is done with an order before the body sees it."""
        return order

    def _receive_one(self) -> Order | None:
        space = socket.CMSG_SPACE(MAX_DESCRIPTORS_PER_MESSAGE * array.array("i").itemsize)
        try:
            record, messages, flags, _ = self._sock.recvmsg(_RECORD.size + 1, space, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return None
        except OSError as error:
            raise ChannelClosed(f"the supervisor is gone ({error.strerror})") from error
        received = array.array("i")
        for level, kind, data in messages:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                received.frombytes(data[: len(data) - len(data) % received.itemsize])
        try:
            if not record:
                raise ChannelClosed("the supervisor is gone")
            if flags & socket.MSG_CTRUNC:
                raise ChannelError("an order lost its descriptors")
            return decode_order(record, tuple(received))
        except ChannelError:
            close_all(received)
            raise


def decode_order(record: bytes, descriptors: tuple[int, ...]) -> Order:
    """Return the order in `record`; raises `ChannelError` on anything that is none."""
    if len(record) != _RECORD.size:
        raise ChannelError(f"an order has {_RECORD.size} bytes, not {len(record)}")
    number, argument, _ = _RECORD.unpack(record)
    try:
        kind = Down(number)
    except ValueError as error:
        raise ChannelError(f"there is no order {number}") from error
    if len(descriptors) != descriptors_of(kind):
        raise ChannelError(f"{kind.name} comes with {descriptors_of(kind)} descriptors, not {len(descriptors)}")
    return Order(kind, argument, descriptors)


def decode_report(record: bytes) -> Report:
    """Return the report in `record`; raises `ChannelError` on anything that is none."""
    if len(record) != _RECORD.size:
        raise ChannelError(f"a report has {_RECORD.size} bytes, not {len(record)}")
    number, argument, value = _RECORD.unpack(record)
    try:
        return Report(Up(number), argument, value)
    except ValueError as error:
        raise ChannelError(f"there is no report {number}") from error


class SupervisorControl:
    """The supervisor's end of one child's control channel. Descriptors that a child sends along are discarded by the kernel."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._allowance = REPORTS_BURST
        self._received_at = time.monotonic()

    def fileno(self) -> int:
        """The descriptor, for `poll`."""
        return self._sock.fileno()

    def order(self, kind: Down, argument: int = 0, descriptors: Sequence[int] = ()) -> bool:
        """Send an order; the caller keeps (and closes) its own copies of `descriptors`. `False`: the child is gone or does not read."""
        record = _RECORD.pack(kind, argument, 0)
        try:
            if descriptors:
                socket.send_fds(self._sock, [record], list(descriptors))
            else:
                self._sock.send(record)
        except OSError:
            return False
        return True

    def receive(self) -> list[Report] | None:
        """Return the reports that wait, at most 64; `None` when the child's end is closed. Raises `ChannelError` on garbage, or too many."""
        reports: list[Report] = []
        now = time.monotonic()
        self._allowance = min(REPORTS_BURST, self._allowance + (now - self._received_at) * REPORTS_PER_SECOND)
        self._received_at = now
        for _ in range(_MAX_RECORDS_PER_TURN):
            try:
                record = self._sock.recv(_RECORD.size + 1)
            except BlockingIOError:
                break
            except ConnectionResetError:
                continue  # told once, when the child died with orders unread; what it had sent is still there
            except OSError:
                return reports or None
            if not record:
                return reports or None
            self._allowance -= 1.0
            if self._allowance < 0.0:
                raise ChannelError(f"more than {REPORTS_PER_SECOND:g} reports a second")
            reports.append(decode_report(record))
        return reports

    def close(self) -> None:
        """Close our end; the child leaves."""
        self._sock.close()
