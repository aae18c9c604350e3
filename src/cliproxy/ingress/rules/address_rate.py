"""How often one address may ask (DESIGN §3, step 3): one token bucket per address, shared by the workers of a machine.

What always holds: a request pays once. One whose body has not come yet pays when its head is accepted, before we read megabytes for it;
`Connection.prepaid` remembers that.
"""

from __future__ import annotations

from typing import Protocol

from cliproxy.limits.shared import SharedRates, Slot


class Payer(Protocol):
    """A connection, as far as its address's bucket goes."""

    slot: Slot | None
    prepaid: bool


class AddressRate:
    """The rule. Call it once a request."""

    __slots__ = ("_rates",)

    name = "address_rate"

    def __init__(self, rates: SharedRates) -> None:
        self._rates = rates

    def slot(self, group: bytes) -> Slot:
        """Return where the bucket of an address is; worth keeping as long as its connection."""
        return self._rates.slot(group)

    def __call__(self, connection: Payer, now: float) -> float | None:
        """Take one token: None, or the seconds until there is one. `now` is the monotonic clock's, in seconds."""
        if connection.prepaid:
            connection.prepaid = False
            return None
        if connection.slot is None:
            raise RuntimeError("a connection without an address bucket")
        return self._rates.admit(connection.slot, int(now * 1e9))
