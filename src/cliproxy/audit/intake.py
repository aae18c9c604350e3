"""What the auditor makes of a packet: lines, an acknowledgement to come, or a violation.

The receiver enforces: a source sends the kinds of its own row in `events.SOURCES`, in batches numbered without gaps. What workers and the
dialer tell of strangers goes through the strangers' quota, and what workers tell of recognised clients through a larger one, so that neither a
stranger nor a worker that fell can fill the log; the calls themselves come from egress and pass no quota.
"""

from __future__ import annotations

import msgspec

from cliproxy.audit.client import packet_decoder
from cliproxy.audit.events import (
    SOURCES,
    AddressDenied,
    Authentication,
    Event,
    VaultCommit,
    VaultIntent,
    lines_of,
    timestamp,
)
from cliproxy.audit.log import LogWriter
from cliproxy.audit.quota import HourlyQuota, Suppressed
from cliproxy.bounds import MAX_CONTROL_MESSAGE_BYTES
from cliproxy.errors import ChannelError

AUDIT_SUMMARY_SECONDS = 60.0  # between two lines about what the strangers' quota had no room for
AUDIT_WORKER_QUOTA_FACTOR = 16  # what workers report of recognised clients may fill this many strangers' quotas; the calls themselves come from egress

_QUOTED = frozenset({"worker", "dialer"})
_DECODERS = {role: packet_decoder(events) for role, events in SOURCES.items()}


class Source:
    """One sender: `role` decides what it may send, `name` is what its lines say (`worker-0`). Counts its batches: received, sealed, acknowledged."""

    def __init__(self, role: str, name: str) -> None:
        self.role = role
        self.name = name
        self.received = 0
        self.sealed = 0
        self.acknowledged = 0
        self._decoder = _DECODERS[role]

    def decode(self, packet: bytes) -> list[Event]:
        """Return the events in `packet`. Raises `ChannelError` when the sender may not send that."""
        if len(packet) > MAX_CONTROL_MESSAGE_BYTES:
            raise ChannelError(f"a packet of more than {MAX_CONTROL_MESSAGE_BYTES} bytes")
        try:
            batch, events = self._decoder.decode(packet)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise ChannelError(f"no events that {self.role} may send ({type(error).__name__})") from error
        if batch != self.received + 1 and (self.received or batch < 1):
            raise ChannelError(f"batch {batch} does not follow {self.received}")
        self.received = batch
        return events


class Intake:
    """Turns events into lines that wait in `log`. `now` is any steady clock in seconds, `wall` seconds since the epoch, `time` the text that the lines get."""

    def __init__(self, log: LogWriter, *, unauthenticated_bytes_per_hour: int, now: float) -> None:
        self._log = log
        self._strangers = HourlyQuota(unauthenticated_bytes_per_hour, now=now)
        self._recognised = HourlyQuota(unauthenticated_bytes_per_hour * AUDIT_WORKER_QUOTA_FACTOR, now=now)
        self._suppressed = Suppressed()
        self._summary_at = now + AUDIT_SUMMARY_SECONDS

    def resize(self, unauthenticated_bytes_per_hour: int) -> None:
        """Take the quota of a new configuration."""
        self._strangers.resize(unauthenticated_bytes_per_hour)
        self._recognised.resize(unauthenticated_bytes_per_hour * AUDIT_WORKER_QUOTA_FACTOR)

    def take(self, source: Source, packet: bytes, *, now: float, time: str) -> None:
        """Let the events of `packet` wait for the next batch. Raises `ChannelError` when `source` may not send that."""
        events = source.decode(packet)
        if source.role in _QUOTED:
            self._take_quoted(source, events, now=now, time=time)
            return
        if not events:
            return
        self._log.add(lines_of(events, source=source.name, time=time), len(events))
        if source.role == "vault":
            for event in events:
                if isinstance(event, VaultIntent | VaultCommit):
                    self._log.add_anchor(event)

    def own(self, event: Event, *, time: str) -> None:
        """Let an event of the auditor itself wait for the next batch."""
        self._log.add(lines_of([event], source="auditor", time=time), 1)

    def summarise(self, *, now: float, wall: float, at_once: bool = False) -> None:
        """Once a minute, or `at_once` before the end, write what the quotas had no room for."""
        if now < self._summary_at and not at_once:
            return
        self._summary_at = now + AUDIT_SUMMARY_SECONDS
        for event in self._suppressed.summary():
            self.own(event, time=timestamp(wall))

    def _take_quoted(self, source: Source, events: list[Event], *, now: float, time: str) -> None:
        for event in events:
            line = lines_of([event], source=source.name, time=time)
            kind, count, quota = self._judge(event)
            if quota.take(len(line), now=now):
                self._log.add(line, 1)
            else:
                self._suppressed.add(kind, count)

    def _judge(self, event: Event) -> tuple[str, int, HourlyQuota]:
        if isinstance(event, AddressDenied):
            return "address_denied", event.count, self._strangers
        if isinstance(event, Authentication):
            recognised = event.result == "accepted"
            return f"authentication {event.result}", event.count, self._recognised if recognised else self._strangers
        return "other", 1, self._recognised
