"""A turn of calls against an auditor that takes some of it: what leaves is what the log has, and each ends in the log once."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from cliproxy.audit.client import AuditClient, packet_decoder
from cliproxy.audit.events import ChannelViolation, EgressEvent, ProviderOutcome, ProviderRequest
from cliproxy.bounds import MAX_CONTROL_MESSAGE_BYTES
from cliproxy.dialects import Endpoint
from cliproxy.egress.attempt import Attempt
from cliproxy.egress.audit_gate import MAX_BYTES_AWAITING_AUDIT
from cliproxy.egress.call import AuthorizedRequest, Call, State
from cliproxy.egress.dispatcher import Dispatcher
from cliproxy.errors import Unavailable
from cliproxy.ipc.mux import CANCEL_CODES, HEADER, Abort, Kind, cancel_of
from cliproxy.ipc.policy_feed import PolicyFeed

KEYS = 3
CALLS = 900  # their intents do not fit one packet
DECODER: msgspec.msgpack.Decoder[Any] = packet_decoder(EgressEvent)


class Case:
    """A dispatcher with one worker; calls are allowed and start at once. The auditor's end is read when the test says so."""

    def __init__(self, *, queue_bytes: int, deadline: float = 5.0) -> None:
        ours, self.auditor = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, queue_bytes // 2)  # the kernel doubles it
        self.auditor.setblocking(False)
        self.started: list[Attempt] = []
        self.body = b"{}"
        self.released: list[int | None] = []
        self.dispatcher = Dispatcher(
            build="b",
            generation=1,
            policy=PolicyFeed(),
            authoriser=self,  # type: ignore[arg-type]
            senders=self,
            audit=AuditClient(ours, deadline_seconds=deadline),
            acknowledge=lambda message: None,
        )
        self.worker = self.dispatcher.worker(0, max_body_bytes=1 << 20)
        self.frames: list[tuple[int, int, bytes]] = []
        self.worker.channel.queue = lambda kind, stream, payload: self.frames.append((kind, stream, payload))  # type: ignore[method-assign]

    def admit(self, head: Any, *, now: float, wall: float) -> Any:
        principal = SimpleNamespace(id=getattr(head, "principal", "k"))
        return SimpleNamespace(request_id=head.request_id, address=head.address, principal=principal, endpoint=Endpoint.CHAT_COMPLETIONS)

    def authorise(self, call: Any, *, now: float, wall: float) -> Any:
        if call.progress.error is not None:
            raise call.progress.error
        reservation = call.progress.reservation = SimpleNamespace(tokens=7, settle=self.released.append, leave=lambda used: None)
        target = SimpleNamespace(model="m" * 100, provider="p", id="p/m", fillings={})
        return AuthorizedRequest(call, target, None, reservation, False, 1, now, self.body)  # type: ignore[arg-type]

    def ended(self, request: Any, fault: Any, *, now: float) -> None:
        pass

    def tried(self, request: Any, error: Any, fault: Any) -> None:
        request.call.progress.error = error

    def start(self, call: Attempt) -> Any:
        self.started.append(call)
        return SimpleNamespace(cancel=lambda: None)

    def submit(self, count: int) -> None:
        for stream in range(1, count + 1):
            call = Call(self.worker, stream, State.DECIDING, b"%d" % (stream % KEYS))
            assert self.worker.places.take(call.owner, 1)
            self.worker.calls[stream] = call
            head = SimpleNamespace(request_id=f"r{stream}", address="127.0.0.1", principal=f"k{stream % KEYS}", tried=())
            self.dispatcher.submit(call, head, b"")  # type: ignore[arg-type]
        self.dispatcher.flush()

    def logged(self, kind: type[Any]) -> Counter[str]:
        """Take what the auditor's queue holds; return how often each request is in an event of `kind`."""
        found = Counter[str]()
        while True:
            try:
                _, events = DECODER.decode(self.auditor.recv(MAX_CONTROL_MESSAGE_BYTES + 1))
            except BlockingIOError:
                return found
            found.update(event.request for event in events if isinstance(event, kind))


def in_a_loop(test: Callable[[], None]) -> None:
    async def run() -> None:
        test()

    asyncio.run(run())


def test_of_a_large_turn_just_the_calls_leave_whose_intents_were_taken_within_the_deadline() -> None:
    def test() -> None:
        case = Case(queue_bytes=100_000, deadline=0.0)
        case.dispatcher.gate._audit.healthy = lambda now: True  # type: ignore[method-assign]  # a deadline of nothing would fail the auditor itself
        case.submit(CALLS)
        left = [call.request.call.asked.request_id for call in case.started]
        assert 0 < len(left) < CALLS
        refused = [msgspec.msgpack.decode(payload, type=Abort) for kind, _, payload in case.frames if kind is Kind.ABORT]
        assert len(refused) == CALLS - len(left)
        assert {(abort.status, abort.code) for abort in refused} == {(503, "audit_unavailable")}
        assert case.logged(ProviderRequest) == Counter(left)
        assert case.released == [0] * len(refused)  # their reservations are given back

    in_a_loop(test)


def test_calls_that_a_full_queue_did_not_take_wait_and_leave_in_order_when_it_does() -> None:
    """The auditor was held up for half a second on a busy machine, and calls were refused that the deadline had time for."""

    def test() -> None:
        case = Case(queue_bytes=100_000)
        case.submit(CALLS)
        first = len(case.started)
        assert 0 < first < CALLS and case.frames == []
        logged = Counter[str]()
        while len(case.started) < CALLS:
            logged += case.logged(ProviderRequest)
            before = len(case.started)
            case.dispatcher.flush()
            assert len(case.started) > before
        logged += case.logged(ProviderRequest)
        assert logged == Counter(f"r{stream}" for stream in range(1, CALLS + 1))
        assert [call.stream for call in case.started] == list(range(1, CALLS + 1))
        assert case.frames == [] and case.released == []

    in_a_loop(test)


def test_bodies_that_wait_for_the_auditor_are_bounded_and_no_key_fills_the_room() -> None:
    def test() -> None:
        case = Case(queue_bytes=4096)
        while case.dispatcher.gate._audit.offer([ChannelViolation(peer="p", reason="r")]):
            pass
        case.body = b"x" * (MAX_BYTES_AWAITING_AUDIT // 4)
        case.submit(6)  # two of each key
        assert case.started == []
        assert [stream for kind, stream, _ in case.frames if kind is Kind.ABORT] == [4, 5, 6]  # the second of each is more than half of what the others leave

    in_a_loop(test)


def test_each_outcome_is_told_once_however_often_the_queue_was_full() -> None:
    def test() -> None:
        case = Case(queue_bytes=1_000_000)
        case.submit(CALLS)
        assert len(case.started) == CALLS
        assert len(case.logged(ProviderRequest)) == CALLS
        case.dispatcher.gate._audit._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 40_000)
        for call in case.started:
            call.on_failure(Unavailable("The provider is gone.", code="gone"))
        told = Counter[str]()
        for second in range(100):
            case.dispatcher.sweep(float(second))
            told += case.logged(ProviderOutcome)
            if not case.dispatcher.gate.outcomes:
                break
        assert told == Counter(f"r{stream}" for stream in range(1, CALLS + 1))

    in_a_loop(test)


@pytest.mark.parametrize("gone", [True, False])
def test_nothing_leaves_when_nothing_is_taken(gone: bool) -> None:
    def test() -> None:
        case = Case(queue_bytes=4096, deadline=5.0 if gone else 0.0)
        if gone:
            case.auditor.close()
        else:
            while case.dispatcher.gate._audit.offer([ChannelViolation(peer="p", reason="r")]):
                pass
        case.submit(3)
        assert case.started == []
        assert len(case.frames) == 3

    in_a_loop(test)


@pytest.mark.parametrize("code", CANCEL_CODES)
def test_why_a_worker_cancels_is_in_the_log_and_cools_nothing(code: str) -> None:
    def test() -> None:
        case = Case(queue_bytes=100_000)
        faults: list[Any] = []
        case.ended = lambda request, fault, *, now: faults.append(fault)  # type: ignore[method-assign]
        case.submit(1)
        payload = cancel_of(code)
        case.worker.channel.data_received(HEADER.pack(len(payload), Kind.CANCEL, 1) + payload)
        case.dispatcher.flush()
        _, events = DECODER.decode(case.auditor.recv(MAX_CONTROL_MESSAGE_BYTES + 1))
        _, outcomes = DECODER.decode(case.auditor.recv(MAX_CONTROL_MESSAGE_BYTES + 1))
        assert [event.error for event in (*events, *outcomes) if isinstance(event, ProviderOutcome)] == [code]
        assert faults == [None]

    in_a_loop(test)


def test_the_log_has_an_outcome_before_anybody_has_the_answer() -> None:
    """An egress that dies just after a client has its answer has told the auditor before."""

    def test() -> None:
        case = Case(queue_bytes=100_000)
        case.submit(1)
        del case.worker.channel.queue  # the real one
        written: list[tuple[bytes, Counter[str]]] = []
        transport = SimpleNamespace(
            write=lambda data: written.append((data, case.logged(ProviderOutcome))), set_write_buffer_limits=lambda high: None, is_closing=lambda: False
        )
        case.worker.channel.connection_made(transport)  # type: ignore[arg-type]
        case.logged(ProviderRequest)
        case.started[0].cancel("client_gone")
        case.worker.channel.queue(Kind.ANSWER, 1, b"answer")
        case.worker.channel.flush()
        ((data, logged),) = written
        assert data.endswith(b"answer") and logged == {"r1": 1}

    in_a_loop(test)
