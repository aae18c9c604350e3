"""The supervisor's watch over the listening sockets: whether each still accepts, and how often one had to be made to listen again.

All workers share one open file description for each address, so what a fallen one does to it stops all of them. What was found is said in the log, on the
terminal, and to admin, for `cliproxy status`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cliproxy.audit.events import ListenerReopened
from cliproxy.ipc.control import MAX_ARGUMENT, Down
from cliproxy.processes.fleet import Child, Fleet
from cliproxy.processes.journal import Journal
from cliproxy.processes.listeners import Listeners
from cliproxy.processes.topology import ADMIN

CHECK_SECONDS: Final = 5.0  # how long a socket that a fallen worker shut down stays so: two questions to the kernel for each address


class ListenerWatch:
    """`reopened`: how often a socket was made to listen again since the start."""

    def __init__(self, fleet: Fleet, journal: Journal, *, say: Callable[[str], None]) -> None:
        self._fleet = fleet
        self._journal = journal
        self._say = say
        self._check_at = 0.0
        self.reopened = 0

    def next_time(self) -> float:
        """Return when `tick` has something to do; infinity if never."""
        return self._check_at

    def tick(self, now: float, listeners: Listeners | None) -> None:
        """Look now and then. `listeners`: those in force, `None` when there is no gateway or it ends: then it is over."""
        if now < self._check_at:
            return
        if listeners is None:
            self._check_at = float("inf")
            return
        self._check_at = now + CHECK_SECONDS
        reopened = listeners.reopen()
        for address, fault in reopened:
            self._journal.record(ListenerReopened(address=address, reason=fault))
            self._say(f"cliproxy: {address} accepted nobody ({fault}); listening again, but a worker may have fallen: see the audit log, and restart")
        if reopened:
            self.reopened = min(self.reopened + len(reopened), MAX_ARGUMENT)
            for child in self._fleet.of_role(ADMIN):
                self._tell(child)

    def admin_ready(self, child: Child) -> None:
        """This admin serves, perhaps after a restart: it knows of none."""
        if self.reopened:
            self._tell(child)

    def _tell(self, child: Child) -> None:
        self._fleet.order(child, Down.REOPENED, self.reopened)
