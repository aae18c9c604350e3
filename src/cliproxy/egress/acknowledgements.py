"""When the vault is told that a change of policy is in force: once every worker has it, or after a second with those that have.

Each change is told once, in order, with its own counts: how many workers have it, of how many, and how many streams it ended.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from typing import NamedTuple

from cliproxy.bounds import POLICY_ACK_SECONDS
from cliproxy.egress.worker_channel import WorkerChannel
from cliproxy.ipc.messages import PolicyAck


class _Due(NamedTuple):
    number: int
    streams_ended: int
    deadline: float


class Acknowledgements:
    """Changes that the vault has not been told of. Times are the caller's."""

    def __init__(self, tell: Callable[[PolicyAck], None]) -> None:
        self._tell = tell
        self._due: deque[_Due] = deque()  # in the order of the numbers

    def __bool__(self) -> bool:
        return bool(self._due)

    def expect(self, number: int, *, streams_ended: int, now: float) -> None:
        """Policy `number` is in force here, and on its way to the workers."""
        self._due.append(_Due(number, streams_ended, now + POLICY_ACK_SECONDS))

    def tell_complete(self, workers: Collection[WorkerChannel], *, now: float) -> None:
        """Tell the vault of every change that all of `workers` have, or whose second is over."""
        while self._due:
            due = self._due[0]
            introduced = [worker for worker in workers if worker.introduced]
            done = sum(1 for worker in introduced if worker.policy_number >= due.number)
            if done < len(introduced) and now < due.deadline:
                return
            self._due.popleft()
            self._tell(PolicyAck(number=due.number, workers=done, of_workers=len(introduced), streams_ended=due.streams_ended))
