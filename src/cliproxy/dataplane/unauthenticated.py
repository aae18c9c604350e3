"""Counts of who presented a key and who failed to, so that strangers can't fill the log: one event a second for each address and result.

Bounded: above `MAX_TALLY_ENTRIES` addresses in one second the rest is counted under one entry without an address.
"""

from __future__ import annotations

from cliproxy.audit.events import Authentication
from cliproxy.bounds import MAX_TALLY_ENTRIES

ELSEWHERE = "(others)"


class AuthenticationTally:
    """What happened since the last `take`."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], int] = {}
        self.refusals = 0

    def refused(self, address: str) -> None:
        """A request from `address` had no valid key."""
        self.refusals += 1
        self._count(address, "")

    def admitted(self, address: str, principal: str) -> None:
        """`principal` used its key for something that is no provider call (those are events of their own)."""
        self._count(address, principal)

    def take(self, second: int) -> list[Authentication]:
        """Return the events of the second that ends at `second` (since the epoch) and begin anew."""
        counts, self._counts = self._counts, {}
        return [
            Authentication(
                address=address,
                count=count,
                principal=principal,
                reason="" if principal else "no_valid_key",
                result="accepted" if principal else "refused",
                second=second,
            )
            for (address, principal), count in counts.items()
        ]

    def put_back(self, events: list[Authentication]) -> None:
        """The auditor did not take them: count them on."""
        for event in events:
            self._count(event.address, event.principal, event.count)

    def _count(self, address: str, principal: str, count: int = 1) -> None:
        entry = (address, principal)
        if entry not in self._counts and len(self._counts) >= MAX_TALLY_ENTRIES:
            entry = (ELSEWHERE, "")
        self._counts[entry] = self._counts.get(entry, 0) + count
