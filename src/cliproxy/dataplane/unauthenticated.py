"""Counts of who presented a key, who failed to, and who was turned away before, so that strangers can't fill the log.

One event a second for each address and result. Bounded: above `MAX_TALLY_ENTRIES` addresses in one second the rest is counted under one
entry without an address.
"""

from __future__ import annotations

from cliproxy.audit.events import AddressDenied, Authentication

MAX_TALLY_ENTRIES = 256  # addresses that a worker's authentication tally tells apart in one second

ELSEWHERE = "(others)"


class AuthenticationTally:
    """What happened since the last `take`."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], int] = {}
        self._denied: dict[tuple[str, str], int] = {}

    def refused(self, address: str) -> None:
        """A request from `address` had no valid key."""
        _count(self._counts, (address, ""), (ELSEWHERE, ""), 1)

    def admitted(self, address: str, principal: str) -> None:
        """`principal` used its key for something that is no provider call (those are events of their own)."""
        _count(self._counts, (address, principal), (ELSEWHERE, ""), 1)

    def denied(self, address: str, rule: str) -> None:
        """`rule` turned `address` away."""
        _count(self._denied, (address, rule), (ELSEWHERE, rule), 1)

    def take(self, second: int) -> list[Authentication | AddressDenied]:
        """Return the events of the second that ends at `second` (since the epoch) and begin anew."""
        counts, self._counts = self._counts, {}
        denied, self._denied = self._denied, {}
        events: list[Authentication | AddressDenied] = [
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
        events += [AddressDenied(address=address, count=count, reason=rule, second=second) for (address, rule), count in denied.items()]
        return events

    def put_back(self, events: list[Authentication | AddressDenied]) -> None:
        """The auditor did not take them: count them on."""
        for event in events:
            if isinstance(event, AddressDenied):
                _count(self._denied, (event.address, event.reason), (ELSEWHERE, event.reason), event.count)
            else:
                _count(self._counts, (event.address, event.principal), (ELSEWHERE, ""), event.count)


def _count(counts: dict[tuple[str, str], int], entry: tuple[str, str], overflow: tuple[str, str], count: int) -> None:
    if entry not in counts and len(counts) >= MAX_TALLY_ENTRIES:
        entry = overflow
    counts[entry] = counts.get(entry, 0) + count
