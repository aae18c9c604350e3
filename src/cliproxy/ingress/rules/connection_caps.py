"""How many connections a worker keeps, in all and for each client address (IPv6: each /64), and who gives way when there is no more room.

What always holds:
- The counts are exact, an address that has left leaves no trace here, and memory is bounded by the total.
- A connection on which no key was good yet is a stranger's. When an address has all its connections, its oldest stranger gives way to the newcomer, then one of
  the principal who has the most there: its oldest that is idle (HTTP allows to close those), else its oldest that waits for its client (for the rest of a
  request, or to read). One whose answer is under way never does. So neither strangers nor one key lock another key holder of their address out.
- When the worker is full, its oldest stranger gives way, then one of the principal who has the most in it, but only to somebody from an address where a key was
  good lately: the reserve of those who have one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Protocol

from cliproxy.ingress.address import Address


class Member(Protocol):
    """A connection, as far as room goes. Its object is its identity."""

    client: Address

    @property
    def account(self) -> object:
        """Whose it is, once a key was good on it. Compared by identity."""

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way on it."""

    @property
    def is_answering(self) -> bool:
        """Whether a request is whole and its answer is not."""

    def give_way(self) -> None:
        """End now. It has been released when this returns."""


class _Crowd:
    """The connections of one address, oldest first."""

    __slots__ = ("holders", "strangers")

    def __init__(self) -> None:
        self.strangers: dict[Member, None] = {}
        self.holders: dict[Member, object] = {}  # a key was good on them: whose it was

    @property
    def count(self) -> int:
        return len(self.strangers) + len(self.holders)

    def by_account(self) -> Iterable[Collection[Member]]:
        """Return the key holders' connections, together those of one account."""
        found: dict[object, list[Member]] = {}
        for holder, account in self.holders.items():
            found.setdefault(account, []).append(holder)
        return found.values()


def _of_the_largest(accounts: Iterable[Collection[Member]]) -> Member | None:
    """Return the connection that gives way: of the account with the most that has one at all, each account's oldest first."""
    for members in sorted(accounts, key=len, reverse=True):
        giving = next((each for each in members if each.is_idle), None) or next((each for each in members if not each.is_answering), None)
        if giving is not None:
            return giving
    return None


class ConnectionCaps:
    """The open connections. Who was admitted enters, and is released once.

    `was_good_lately` says of an address (its group) whether a key was good there in the last time; `good` is told when one is.
    """

    __slots__ = ("_crowds", "_good", "_holders", "_per_address", "_strangers", "_total", "_was_good_lately", "open")

    name = "connection_caps"

    def __init__(self, *, total: int, per_address: int, was_good_lately: Callable[[bytes], bool], good: Callable[[bytes], None]) -> None:
        self._total = total
        self._per_address = per_address
        self._was_good_lately = was_good_lately
        self._good = good
        self._crowds: dict[bytes, _Crowd] = {}
        self._strangers: dict[Member, None] = {}  # of all addresses, oldest first
        self._holders: dict[object, dict[Member, None]] = {}  # likewise, by account
        self.open = 0

    def admits(self, address: Address) -> bool:
        """Say whether one more connection of `address` may enter, after somebody gave way for it if that was needed."""
        crowd = self._crowds.get(address.group)
        if crowd is not None and crowd.count >= self._per_address:
            giving = next(iter(crowd.strangers), None) or _of_the_largest(crowd.by_account())
        elif self.open < self._total:
            return True
        elif (crowd is not None and crowd.holders) or self._was_good_lately(address.group):
            giving = next(iter(self._strangers), None) or _of_the_largest(self._holders.values())
        else:
            return False
        if giving is None:
            return False
        giving.give_way()
        return True

    def enter(self, connection: Member) -> None:
        """Count `connection`, a stranger's until `authenticated`."""
        crowd = self._crowds.get(connection.client.group)
        if crowd is None:
            crowd = self._crowds[connection.client.group] = _Crowd()
        crowd.strangers[connection] = None
        self._strangers[connection] = None
        self.open += 1

    def authenticated(self, connection: Member) -> None:
        """A key was good on `connection`, whose `account` says whose it was. Told again when it is another one's."""
        group = connection.client.group
        crowd = self._crowds[group]
        if connection in crowd.strangers:
            del crowd.strangers[connection], self._strangers[connection]
        else:
            self._disown(connection, crowd)
        crowd.holders[connection] = connection.account
        self._holders.setdefault(connection.account, {})[connection] = None
        self._good(group)

    def release(self, connection: Member) -> None:
        """`connection`, which entered, is gone."""
        group = connection.client.group
        crowd = self._crowds[group]
        if connection in crowd.holders:
            self._disown(connection, crowd)
            self._good(group)  # it was, until now
        else:
            del crowd.strangers[connection], self._strangers[connection]
        self.open -= 1
        if not crowd.count:
            del self._crowds[group]

    def _disown(self, connection: Member, crowd: _Crowd) -> None:
        """`connection` is its holder's no more."""
        account = crowd.holders.pop(connection)
        members = self._holders[account]
        del members[connection]
        if not members:
            del self._holders[account]
