"""How many connections a worker keeps: in all, and for each client address (IPv6: each /64).

What always holds: the counts are exact, a released address leaves no trace, and memory is bounded by the total.
"""

from __future__ import annotations

from cliproxy.ingress.address import Address


class ConnectionCaps:
    """Counts of open connections. Every `admits` that said yes is followed by one `release`."""

    __slots__ = ("_counts", "_per_address", "_total", "open")

    name = "connection_caps"

    def __init__(self, *, total: int, per_address: int) -> None:
        self._total = total
        self._per_address = per_address
        self._counts: dict[bytes, int] = {}
        self.open = 0

    def admits(self, address: Address) -> bool:
        """Count one more connection of `address`, if there may be one."""
        count = self._counts.get(address.group, 0)
        if self.open >= self._total or count >= self._per_address:
            return False
        self._counts[address.group] = count + 1
        self.open += 1
        return True

    def release(self, address: Address) -> None:
        """One connection of `address` is gone."""
        count = self._counts[address.group] - 1
        self.open -= 1
        if count:
            self._counts[address.group] = count
        else:
            del self._counts[address.group]
