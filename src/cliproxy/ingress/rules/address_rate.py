"""How often one address may ask: token buckets for each address, shared by the workers of a machine.

What always holds:
- Who shows a key that is good here pays from the bucket of the key holders of his address, everybody else from that of its strangers: what strangers ask takes
  nothing from a key holder behind the same address. Without a limit for key holders they have no bucket.
- A request pays once. A stranger's whose body has not come yet pays when its head is accepted; `prepaid` remembers that.
"""

from __future__ import annotations

from typing import Protocol

from cliproxy.limits.shared import Bucket, SharedRates

Buckets = tuple[Bucket, Bucket | None]  # the strangers', the key holders'


class Payer(Protocol):
    """A connection, as far as its address's buckets go."""

    buckets: Buckets | None
    prepaid: bool


class AddressRate:
    """The rule. Ask it once a request, for the side that the request is on."""

    __slots__ = ("_holders", "_strangers", "limits_holders")

    name = "address_rate"

    def __init__(self, strangers: SharedRates, holders: SharedRates | None) -> None:
        self._strangers = strangers
        self._holders = holders
        self.limits_holders = holders is not None

    def buckets(self, group: bytes) -> Buckets:
        """Return where the buckets of an address are; worth keeping as long as its connection."""
        return self._strangers.bucket(group), None if self._holders is None else self._holders.bucket(group)

    def stranger(self, payer: Payer, now: float) -> float | None:
        """Take a stranger's token: None, or the seconds until there is one. `now` is the monotonic clock's, in seconds."""
        if payer.prepaid:
            payer.prepaid = False
            return None
        if payer.buckets is None:
            raise RuntimeError("a connection without an address bucket")
        return self._strangers.admit(payer.buckets[0], int(now * 1e9))

    def holder(self, payer: Payer, now: float) -> float | None:
        """The same for who showed a good key."""
        if payer.prepaid:
            payer.prepaid = False
            return None
        if self._holders is None:
            return None
        if payer.buckets is None or payer.buckets[1] is None:
            raise RuntimeError("a connection without an address bucket")
        return self._holders.admit(payer.buckets[1], int(now * 1e9))
