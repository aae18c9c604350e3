"""What every other process holds of the audit log: events go out, acknowledgements come back.

A packet is taken by the kernel at once or not at all, and the caller knows which before it does what the event tells of: refused means
the work is refused. What was taken and is not durable yet is kept, bounded, and sent again when the auditor was replaced; so the log may
hold an event twice (the same request id), and never lacks one that was acknowledged.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from cliproxy.audit.events import Event
from cliproxy.bounds import MAX_CONTROL_MESSAGE_BYTES, MIB
from cliproxy.errors import Unavailable

MAX_UNACKNOWLEDGED_BYTES = 4 * MIB  # what a sender keeps of what the auditor has not made durable yet, to send it again to the next auditor

ACKNOWLEDGEMENT = struct.Struct("<BxxxxxxxQ")  # state, number of the last durable batch of this sender (0: as before)
DURABLE = 1  # everything up to this batch is on disk and in the tree
NOTED = struct.Struct("<QQ32s")  # to the vault alone: zero, entries and root of the newest checkpoint that is durable
FAILED = 2  # the log takes nothing (disk full, I/O error); DURABLE follows when it does again


class AuditClient:
    """One sender's end of its channel to the auditor.

    `sock` is a SOCK_SEQPACKET socket; it is never waited for, except in `wait_durable`. `deadline_seconds` is how long an event may be under
    way before the auditor counts as unavailable. `on_noted(size, root)` is told of durable checkpoints; who has none is not told, and an auditor that tells
    him all the same is not itself. Times are `time.monotonic()` seconds. Not thread-safe.
    """

    def __init__(self, sock: socket.socket, *, deadline_seconds: float, on_noted: Callable[[int, bytes], None] | None = None) -> None:
        self._sock = sock
        self._on_noted = on_noted
        self.deadline_seconds = deadline_seconds
        self._encoder = msgspec.msgpack.Encoder()
        self._offered = 0
        self._durable = 0
        self._unacknowledged: deque[tuple[int, float, bytes]] = deque()
        self._unacknowledged_bytes = 0
        self._again: deque[bytes] = deque()
        self._failed = False
        self.lost_at: float | None = None  # since when the channel is closed

    def fileno(self) -> int:
        """The descriptor: readable when `poll` has something to do."""
        return self._sock.fileno()

    def offer(self, events: Sequence[Event]) -> bool:
        """Hand `events` to the kernel, in order. `False`: not all were taken, and what they tell of must not happen.

        Then some of them may be in the log all the same: it tells of work that was refused, never the reverse.
        """
        return self.offer_part(events) == len(events)

    def offer_part(self, events: Sequence[Event]) -> int:
        """Hand over as many of `events`, from the front, as are taken now; return how many. What the others tell of must not happen."""
        if self._failed or self._again:
            return 0
        return self._offer(events)

    def offered_through(self) -> int:
        """The number of the last batch that was taken."""
        return self._offered

    def durable_through(self) -> int:
        """The number of the last batch that is durable; `poll` brings it up to date."""
        return self._durable

    def poll(self, now: float) -> None:
        """Take in acknowledgements, and send on what a replaced auditor has to get again. Call it when the descriptor is readable and every second."""
        while True:
            try:
                packet = self._sock.recv(NOTED.size + 1, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError:
                packet = b""
            if len(packet) == NOTED.size and self._on_noted is not None:
                _, size, root = NOTED.unpack(packet)
                self._on_noted(size, root)
                continue
            if len(packet) != ACKNOWLEDGEMENT.size:
                self._lose()  # the auditor is gone, or not itself: `replaced` brings the next one
                return
            state, batch = ACKNOWLEDGEMENT.unpack(packet)
            if state not in (DURABLE, FAILED) or (batch and not self._durable <= batch <= self._offered):
                self._lose()
                return
            self._failed = state == FAILED
            if not batch:
                continue
            self._durable = batch
            while self._unacknowledged and self._unacknowledged[0][0] <= batch:
                self._unacknowledged_bytes -= len(self._unacknowledged.popleft()[2])
        while self._again and self._send(self._again[0]):
            self._again.popleft()

    def healthy(self, now: float) -> bool:
        """Whether the auditor can be relied on: it has not failed, and nothing has been under way for longer than the deadline."""
        if self._failed:
            return False
        return not self._unacknowledged or now - self._unacknowledged[0][1] <= self.deadline_seconds

    def replaced(self) -> None:
        """The auditor was restarted, and the descriptor is now the channel to the new one: send again what the old one did not acknowledge."""
        self._failed = False
        self.lost_at = None
        self._again = deque(packet for _, _, packet in self._unacknowledged)
        self.poll(time.monotonic())

    def wait_durable(self, events: Sequence[Event], timeout: float) -> None:
        """Offer `events` and return when they are durable; blocks for up to `timeout` seconds, then raises `Unavailable`.

        They may become durable afterwards all the same.
        """
        until = time.monotonic() + timeout
        poller = select.poll()
        taken = False
        while True:
            now = time.monotonic()
            self.poll(now)
            if not taken and self.offer(events):
                taken, target = True, self._offered
            if taken and self._durable >= target:
                return
            if now >= until or self._failed:
                raise Unavailable("the audit log is not available", code="audit_unavailable")
            poller.register(self._sock.fileno(), select.POLLIN if taken else select.POLLIN | select.POLLOUT)
            poller.poll(max(1, int(min(until - now, 0.05) * 1000)))

    def _offer(self, events: Sequence[Event]) -> int:
        batch = self._offered + 1
        packet = self._encoder.encode((batch, events))
        if len(packet) > MAX_CONTROL_MESSAGE_BYTES:
            if len(events) < 2:
                return 0
            half = len(events) // 2
            taken = self._offer(events[:half])
            return taken if taken < half else half + self._offer(events[half:])
        if self._unacknowledged_bytes + len(packet) > MAX_UNACKNOWLEDGED_BYTES or not self._send(packet):
            return 0
        self._offered = batch
        self._unacknowledged.append((batch, time.monotonic(), packet))
        self._unacknowledged_bytes += len(packet)
        return len(events)

    def _send(self, packet: bytes) -> bool:
        try:
            self._sock.send(packet, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            self._lose()
            return False
        return True

    def _lose(self) -> None:
        self._failed = True
        if self.lost_at is None:
            self.lost_at = time.monotonic()


def packet_decoder(events: Any) -> msgspec.msgpack.Decoder[tuple[int, list[Event]]]:
    """Return the decoder of what `AuditClient` sends, for a source that may send the union `events`. The batch number is 1 or more."""
    return msgspec.msgpack.Decoder(tuple[int, list[events]])
