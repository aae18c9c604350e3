"""What all calls share and what is bounded (places, bytes), in shares: nobody fills a room alone.

What always holds: `take` never fills a room above its limit; an owner who has something in it gets more only while that is at most half of what the others
leave free, so one who fills his share leaves as much to the rest. Whoever has nothing in it gets what there is room for.
"""

from __future__ import annotations

from typing import Generic, TypeVar

Owner = TypeVar("Owner", str, bytes)


class Room(Generic[Owner]):
    """A room of `limit` units. State is bounded: an owner who has nothing in it is not remembered."""

    __slots__ = ("_of", "limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._of: dict[Owner, int] = {}

    def take(self, owner: Owner, amount: int) -> bool:
        """Take `amount` for `owner` if it is within the owner's share; else nothing."""
        has = self._of.get(owner, 0)
        free = self.limit - self.used
        if amount > free or (has and 2 * (has + amount) > free + has):
            return False
        self._of[owner] = has + amount
        self.used += amount
        return True

    def add(self, owner: Owner, amount: int) -> bool:
        """Count `amount` for `owner` whether there is room or not; return whether it is within the owner's share."""
        has = self._of.get(owner, 0)
        free = self.limit - self.used
        fits = amount <= free and (not has or 2 * (has + amount) <= free + has)
        self._of[owner] = has + amount
        self.used += amount
        return fits

    def give_back(self, owner: Owner, amount: int) -> None:
        """`owner` has `amount` less in it."""
        self.used -= amount
        left = self._of.get(owner, 0) - amount
        if left:
            self._of[owner] = left
        else:
            self._of.pop(owner, None)
