"""A policy change and the calls of its moment: what is under way ends, what waits never leaves, each change is acknowledged with its own counts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from cliproxy.dialects import Endpoint
from cliproxy.egress.attempt import Attempt
from cliproxy.egress.call import AuthorizedRequest, Call, State
from cliproxy.egress.dispatcher import Dispatcher
from cliproxy.ipc.messages import KeyRecord, PolicyAck, PolicyBegin, PolicyChange, PolicyEnd, PolicyKeys, PolicyRules
from cliproxy.ipc.mux import Abort, Kind
from cliproxy.ipc.policy_feed import PolicyFeed

KEYS = tuple(KeyRecord(id=f"k{number}", digest=bytes([number]) * 32, name=f"key {number}", models=("*",)) for number in (1, 2))


class Auditor:
    """Takes everything."""

    def healthy(self, now: float) -> bool:
        return True

    def offer_part(self, events: Sequence[Any]) -> int:
        return len(events)


class Case:
    """A dispatcher with two introduced workers that have policy 4 and acknowledge what the test says."""

    def __init__(self) -> None:
        self.started: list[Attempt] = []
        self.cancelled: list[str] = []
        self.released: list[int | None] = []
        self.acknowledged: list[PolicyAck] = []
        self.dispatcher = Dispatcher(
            build="b",
            generation=1,
            policy=PolicyFeed(),
            authoriser=self,  # type: ignore[arg-type]
            senders=self,
            audit=Auditor(),  # type: ignore[arg-type]
            acknowledge=self.acknowledged.append,
        )
        self.frames: list[tuple[int, int, bytes]] = []
        self.workers = [self.dispatcher.worker(index, max_body_bytes=1 << 20) for index in range(2)]
        for worker in self.workers:
            worker.introduced = True
            worker.channel.queue = lambda kind, stream, payload: self.frames.append((kind, stream, payload))  # type: ignore[method-assign]
        for message in (PolicyBegin(number=4), PolicyKeys(keys=KEYS), PolicyEnd(number=4, rules=PolicyRules())):
            self.dispatcher.policy(message)
        self.acknowledge(0, 4)
        self.acknowledge(1, 4)
        self.acknowledged.clear()

    def admit(self, head: Any, *, now: float, wall: float) -> Any:
        principal = SimpleNamespace(id=getattr(head, "principal", "k"))
        return SimpleNamespace(request_id=head.request_id, address=head.address, principal=principal, endpoint=Endpoint.CHAT_COMPLETIONS)

    def authorise(self, call: Any, *, now: float, wall: float) -> Any:
        reservation = call.progress.reservation = SimpleNamespace(tokens=7, settle=self.released.append, leave=lambda used: None)
        target = SimpleNamespace(model="m", provider="p", id="p/m")
        return AuthorizedRequest(call, target, None, reservation, False, 1, now, b"{}")  # type: ignore[arg-type]

    def ended(self, request: Any, fault: Any, *, now: float) -> None:
        pass

    def start(self, call: Attempt) -> Any:
        self.started.append(call)
        return SimpleNamespace(cancel=lambda: self.cancelled.append(call.request.call.asked.principal.id))

    def submit(self, stream: int, principal: str) -> None:
        call = Call(self.workers[0], stream, State.DECIDING, b"")
        assert self.workers[0].places.take(call.owner, 1)
        self.workers[0].calls[stream] = call
        self.dispatcher.submit(call, SimpleNamespace(request_id=f"r{stream}", address="127.0.0.1", principal=principal, tried=()), b"")  # type: ignore[arg-type]

    def acknowledge(self, worker: int, number: int) -> None:
        self.workers[worker].policy_number = number
        self.dispatcher.acknowledged(self.workers[worker], number)

    def aborts(self) -> dict[int, str]:
        return {stream: msgspec.msgpack.decode(payload, type=Abort).code for kind, stream, payload in self.frames if kind is Kind.ABORT}


CHANGES = {
    "its key revoked": PolicyChange(number=5, revoked=("k1",)),
    "its provider switched off": PolicyChange(number=5, rules=PolicyRules(disabled_providers=("p",))),
    "lockdown": PolicyChange(number=5, rules=PolicyRules(lockdown=True)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_call_that_waits_for_the_end_of_its_turn_never_leaves(change: PolicyChange) -> None:
    async def test() -> None:
        case = Case()
        case.submit(1, "k1")
        case.dispatcher.policy(change)
        case.dispatcher.flush()
        assert case.started == []
        assert case.aborts() == {1: "revoked"}
        assert case.released == [0]  # what it had reserved is given back

    asyncio.run(test())


def test_a_call_of_another_key_in_the_same_turn_leaves() -> None:
    async def test() -> None:
        case = Case()
        case.submit(1, "k1")
        case.submit(2, "k2")
        case.dispatcher.policy(PolicyChange(number=5, revoked=("k1",)))
        case.dispatcher.flush()
        assert [call.request.call.asked.principal.id for call in case.started] == ["k2"]

    asyncio.run(test())


def test_a_call_under_way_is_cancelled_at_the_provider() -> None:
    async def test() -> None:
        case = Case()
        case.submit(1, "k1")
        case.submit(2, "k2")
        case.dispatcher.flush()
        case.dispatcher.policy(PolicyChange(number=5, revoked=("k1",)))
        assert case.cancelled == ["k1"]
        assert case.aborts() == {1: "revoked"}

    asyncio.run(test())


def test_changes_that_overtake_each_other_are_acknowledged_each_with_its_own_counts() -> None:
    async def test() -> None:
        case = Case()
        for stream, principal in enumerate(("k1", "k1", "k2"), 1):
            case.submit(stream, principal)
        case.dispatcher.flush()
        case.dispatcher.policy(PolicyChange(number=5, revoked=("k1",)))
        case.dispatcher.policy(PolicyChange(number=6, revoked=("k2",)))
        case.acknowledge(0, 6)
        assert case.acknowledged == []
        case.acknowledge(1, 5)
        assert case.acknowledged == [PolicyAck(number=5, workers=2, of_workers=2, streams_ended=2)]
        case.acknowledge(1, 6)
        assert case.acknowledged[1:] == [PolicyAck(number=6, workers=2, of_workers=2, streams_ended=1)]

    asyncio.run(test())


def test_after_a_second_a_change_is_acknowledged_with_the_workers_that_have_it() -> None:
    async def test() -> None:
        case = Case()
        case.dispatcher.policy(PolicyChange(number=5, revoked=("k1",)))
        case.acknowledge(0, 5)
        for _ in range(500):
            await asyncio.sleep(0.01)
            if case.acknowledged:
                break
        assert case.acknowledged == [PolicyAck(number=5, workers=1, of_workers=2, streams_ended=0)]

    asyncio.run(test())
