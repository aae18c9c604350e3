"""Making the socketpairs of the topology as processes come, go and come back.

When a process starts, every edge to a member gets a fresh socketpair. The far end goes to the peer at once where it lives (`REPLACE`), else
it waits for the peer's own start. So whatever order they die and return in, both ends of an edge are always of the same pair.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Iterator

import msgspec

from cliproxy.processes.spawn import lift
from cliproxy.processes.topology import EDGES, WORKER


class Member(msgspec.Struct, frozen=True):
    """A place in the topology: a role and, for a worker, its index."""

    role: str
    number: int = 0

    @property
    def name(self) -> str:
        """`egress`, `worker-3`."""
        return f"{self.role}-{self.number}" if self.role == WORKER else self.role


def edges_between(mine: Member, other: Member) -> Iterator[tuple[int, int, socket.SocketKind]]:
    """Yield my descriptor number, the other's and the socket type of each edge between the two."""
    for edge in EDGES:
        for near, far in ((edge.a, edge.b), (edge.b, edge.a)):
            if near.role == mine.role and far.role == other.role:
                yield near.number + (other.number if near.workers else 0), far.number + (mine.number if far.workers else 0), edge.kind


class Wiring:
    """The ends that wait for the start of their process. `deliver(member, number, descriptor)` hands a new end to a process that lives, and
    returns False when it does not live (yet); it keeps no copy."""

    def __init__(self, deliver: Callable[[Member, int, int], bool]) -> None:
        self._deliver = deliver
        self._waiting: dict[tuple[Member, int], int] = {}

    def ends_for(self, me: Member, members: Iterable[Member]) -> dict[int, int]:
        """Return number to descriptor for a start of `me`, one for each edge to `members`. The caller owns (and closes) them."""
        ends: dict[int, int] = {}
        for other in members:
            if other == me:
                continue
            for mine, theirs, kind in edges_between(me, other):
                if (me, mine) in self._waiting:
                    ends[mine] = self._waiting.pop((me, mine))
                    continue
                near, far = socket.socketpair(socket.AF_UNIX, kind)
                ends[mine] = lift(near.detach())
                self._hand_over(other, theirs, lift(far.detach()))
        return ends

    def forget(self, me: Member, members: Iterable[Member]) -> None:
        """`me` has died: close the ends that wait for a peer of it, and its own; they lead to nobody."""
        for other in members:
            for mine, theirs, _ in edges_between(me, other):
                for key in ((other, theirs), (me, mine)):
                    if key in self._waiting:
                        os.close(self._waiting.pop(key))

    def _hand_over(self, other: Member, number: int, descriptor: int) -> None:
        if self._deliver(other, number, descriptor):
            os.close(descriptor)
            return
        former = self._waiting.pop((other, number), None)
        if former is not None:
            os.close(former)
        self._waiting[(other, number)] = descriptor
