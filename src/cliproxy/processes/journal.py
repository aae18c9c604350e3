"""The supervisor's own audit events: kept, bounded, until the auditor is there to take them.

Deaths are most worth telling when the auditor is among the dead, so an event waits for the next one; only the newest `MAX_PENDING_EVENTS` do.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections import deque

from cliproxy.audit.client import AuditClient
from cliproxy.audit.events import SupervisorEvent
from cliproxy.processes.spawn import lift

MAX_PENDING_EVENTS = 1024  # of the supervisor, while the auditor is away

_CLOSED = select.POLLHUP | select.POLLERR | select.POLLNVAL


class Journal:
    """The channel to the auditor, registered with `poll` while it has a far end, and the events that wait."""

    def __init__(self, poll: select.poll, *, deadline_seconds: float) -> None:
        self._poll = poll
        self._deadline_seconds = deadline_seconds
        self._client: AuditClient | None = None
        self._events: deque[SupervisorEvent] = deque(maxlen=MAX_PENDING_EVENTS)
        self.descriptor = -1

    @property
    def waits(self) -> bool:
        """Whether events wait for the auditor."""
        return bool(self._events)

    def take_channel(self, _number: int, descriptor: int) -> None:
        """The auditor was started (again): this is our end of the channel to it. The descriptor stays the caller's."""
        if self._client is None:
            sock = socket.socket(fileno=lift(os.dup(descriptor)))
            self.descriptor = sock.fileno()
            self._client = AuditClient(sock, deadline_seconds=self._deadline_seconds)
        else:
            os.dup2(descriptor, self.descriptor, inheritable=False)
            self._client.replaced()
        self._poll.register(self.descriptor, select.POLLIN)

    def heard(self, what: int) -> None:
        """The descriptor is ready: acknowledgements, or the auditor's end."""
        assert self._client is not None
        self._client.poll(time.monotonic())
        if what & _CLOSED:
            self._poll.unregister(self.descriptor)  # until the next auditor: its end would be reported without pause

    def record(self, event: SupervisorEvent) -> None:
        """Keep `event` for `flush`."""
        self._events.append(event)

    def flush(self) -> None:
        """Hand over what the auditor takes."""
        if not self._events or self._client is None:
            return
        self._client.poll(time.monotonic())  # what a new auditor has to get again comes first
        while self._events and self._client.offer([self._events[0]]):
            self._events.popleft()
