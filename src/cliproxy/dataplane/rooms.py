"""What a worker holds for all its clients together, and how much of it one of them may have.

What always holds: one principal's part of a room is at most half of what the others leave, or `least`; its first piece may be as large as what is free. So no
key fills a room alone, however many connections it has: n of them leave the 2^n-th part. Whose key was not looked at yet are strangers, one account together.
"""

from __future__ import annotations

from weakref import WeakValueDictionary


class Account:
    """What one principal has in each room of a worker, in the room's unit."""

    __slots__ = ("__weakref__", "backlog", "calls", "collected", "held", "kept", "principal", "unread")

    def __init__(self, principal: str) -> None:
        self.principal = principal
        self.held = 0  # bytes of request bodies, and of what waits behind them
        self.unread = 0  # bytes of answers that wait for clients that do not read
        self.kept = 0  # bytes of requests that may be sent again
        self.collected = 0  # bytes of whole answers that wait for their end
        self.calls = 0  # calls that egress has
        self.backlog = 0  # bytes of large bodies that egress has not taken


class Accounts:
    """The accounts that a connection or a call refers to; who has none costs nothing."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: WeakValueDictionary[str, Account] = WeakValueDictionary()

    def of(self, principal: str) -> Account:
        """Return the account of the principal with this id."""
        account = self._known.get(principal)
        if account is None:
            account = self._known[principal] = Account(principal)
        return account


class Room:
    """One thing that is bounded for all clients together. Whoever holds some counts it in `taken` and in its account."""

    __slots__ = ("least", "most", "taken")

    def __init__(self, most: int, *, least: int) -> None:
        """`most` of all together; `least` is what an ordinary call needs, and what anybody may have while there is any."""
        self.most = most
        self.least = least
        self.taken = 0

    def admits(self, own: int, more: int) -> bool:
        """Say whether somebody who has `own` may have `more` on top of it."""
        left = self.most - self.taken
        if more > left:
            return False
        return own == 0 or own + more <= max(self.least, (left + own) // 2)
