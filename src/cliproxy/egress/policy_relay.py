"""The vault's policy on its way through egress to the workers, and their acknowledgements on the way back.

What always holds: what the vault says is in force here before it is passed on; a call that it no longer allows is ended at once; the acknowledgement goes back
when every worker has acknowledged, or after a second with those that had, for each change with its own counts.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection

from cliproxy.bounds import POLICY_ACK_SECONDS, TIMER_EARLY_SECONDS
from cliproxy.egress.acknowledgements import Acknowledgements
from cliproxy.egress.worker_channel import WorkerChannel
from cliproxy.errors import ChannelError
from cliproxy.ipc.messages import PolicyAck, PolicyBegin, PolicyEnd, PolicyKeys
from cliproxy.ipc.mux import Hello, Kind, Readiness
from cliproxy.ipc.policy_feed import PolicyFeed, PolicyFrame


class PolicyRelay:
    """`workers` are the channels that there are at the moment; `end_calls` cancels the calls that the policy no longer allows, given the keys that were
    revoked, and returns how many had left; `auditor_healthy`: of the time, whether the auditor takes events."""

    def __init__(
        self,
        feed: PolicyFeed,
        workers: Collection[WorkerChannel],
        *,
        loop: asyncio.AbstractEventLoop,
        acknowledge: Callable[[PolicyAck], None],
        end_calls: Callable[[frozenset[str]], int],
        auditor_healthy: Callable[[float], bool],
    ) -> None:
        self._feed = feed
        self._workers = workers
        self._loop = loop
        self._acknowledgements = Acknowledgements(acknowledge)
        self._end_calls = end_calls
        self._auditor_healthy = auditor_healthy

    def introduce(self, worker: WorkerChannel, *, build: str, generation: int) -> None:
        """`worker` said hello: tell it who we are and what is in force."""
        worker.send(Kind.HELLO, Hello(build=build, generation=generation))
        if self._feed.number >= 0:
            for message in self._feed.snapshot():
                worker.policy(message)
        self._tell_readiness(worker, time.monotonic())

    def take(self, message: PolicyFrame) -> None:
        """Put a message of the vault's feed in force and pass it on. Raises `ChannelError` when it does not follow."""
        ended = self._feed.apply(message)
        for worker in self._workers:
            if worker.introduced and not isinstance(message, PolicyBegin | PolicyKeys | PolicyEnd):
                worker.policy(message)
        if ended is None:
            return
        if isinstance(message, PolicyEnd):
            now = time.monotonic()
            for worker in self._workers:
                if worker.introduced:
                    for part in self._feed.snapshot():
                        worker.policy(part)
                    self._tell_readiness(worker, now)
        streams = self._end_calls(frozenset(ended))
        self._acknowledgements.expect(self._feed.number, streams_ended=streams, now=self._loop.time())
        self.acknowledge_if_complete()
        if self._acknowledgements:
            self._loop.call_later(POLICY_ACK_SECONDS + TIMER_EARLY_SECONDS, self.acknowledge_if_complete)

    def acknowledged(self, worker: WorkerChannel, number: int) -> None:
        """`worker` says that policy `number` is in force in it. Raises `ChannelError` when there is none of that number."""
        if number > self._feed.number:
            raise ChannelError(f"worker {worker.index} acknowledged a policy that there is not")
        worker.policy_number = number
        self.acknowledge_if_complete()

    def acknowledge_if_complete(self) -> None:
        """Tell the vault of the changes that all workers have, or whose second is over."""
        self._acknowledgements.tell_complete(self._workers, now=self._loop.time())

    def sweep(self, now: float) -> None:
        """Once a second: tell the workers how things stand."""
        for worker in self._workers:
            if worker.introduced:
                self._tell_readiness(worker, now)
        self.acknowledge_if_complete()

    def _tell_readiness(self, worker: WorkerChannel, now: float) -> None:
        worker.send(Kind.READINESS, Readiness(policy_number=self._feed.number, vault_age=self._feed.age(now), auditor=self._auditor_healthy(now)))
