"""What one connection reads: its framer, what it holds for all connections' room of bodies, and whether it reads at all.

What always holds: what is held is counted once, for one account; who stops reading listens now and then, so that its client's leaving is noticed.
"""

from __future__ import annotations

import asyncio

from cliproxy.bounds import MAX_STRANGERS_BODY_BYTES
from cliproxy.dataplane.rooms import Account, Room
from cliproxy.ingress.framing import Framer


class Intake:
    """The reading side of a connection. `is_paused`: the connection reads nothing for now."""

    __slots__ = ("_account", "_room", "framer", "held", "is_paused")

    def __init__(self, framer: Framer, room: Room, account: Account) -> None:
        self._room = room
        self._account = account
        self.framer = framer
        self.held = 0  # bytes that are counted
        self.is_paused = False

    @property
    def must_be_vetted(self) -> bool:
        """Whether the body under way is more than a stranger may make us hold, or its sender waits for our word."""
        framer = self.framer
        return framer.wants_continue or framer.expected > MAX_STRANGERS_BODY_BYTES

    @property
    def is_within_share(self) -> bool:
        """Whether this account, and all together, hold no more than they may."""
        return self._room.admits(self._account.held, 0)

    def hold(self, count: int) -> bool:
        """Account for `count` bytes of bodies and of what waits behind them. Return False if that is more than this account may hold."""
        change = count - self.held
        fits = change <= 0 or self._room.admits(self._account.held, change)
        self.held = count
        self._room.taken += change
        self._account.held += change
        return fits

    def belong_to(self, account: Account) -> None:
        """What is held counts for `account` from now on."""
        self._account.held -= self.held
        self._account = account
        account.held += self.held

    def pause(self, transport: asyncio.Transport) -> None:
        """Read no more."""
        self.is_paused = True
        transport.pause_reading()

    def resume(self, transport: asyncio.Transport) -> None:
        """Read again."""
        self.is_paused = False
        transport.resume_reading()

    def close(self) -> None:
        """Let go of everything."""
        self.hold(0)
        self.framer.close()
