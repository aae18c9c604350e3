"""The worker's link to egress when egress dies and the next one comes: calls end once, and the end of the old channel does not touch the new one."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import msgspec
import pytest

from cliproxy.dataplane.backlog import Backlog
from cliproxy.dataplane.link import EGRESS_SILENT_SECONDS, NO_EGRESS, EgressLink
from cliproxy.dataplane.rooms import Account
from cliproxy.errors import ChannelError, Unavailable
from cliproxy.ipc.mux import HEADER, Abort, Answer, CallHead, Kind, Readiness, Reroute, cancel_of

CALL = CallHead(1, bytes(32), "r", "127.0.0.1", "m", 1, 1, False, 1, 0, 2, b"{}")


class Owner:
    """Who waits for one call."""

    def __init__(self, account: Account | None = None) -> None:
        self.endings: list[Abort] = []
        self.account = account or Account("key-1")

    def on_answer(self, answer: Answer) -> None:
        raise AssertionError("no answer was sent")

    def on_data(self, data: bytes) -> None:
        raise AssertionError("no data was sent")

    def on_end(self) -> None:
        raise AssertionError("no end was sent")

    def on_abort(self, abort: Abort) -> None:
        self.endings.append(abort)

    def on_reroute(self, reroute: Reroute) -> None:
        raise AssertionError("no reroute was sent")


class Case:
    """A link and egress's end of its channel, if it has one."""

    def __init__(self) -> None:
        self.violations: list[ChannelError] = []
        self.turns: list[bool] = []
        self.faults: list[BaseException] = []
        self.link = EgressLink(
            build="b", generation=1, violation=self.violations.append, policy_applied=lambda: None, collect=self.turns.append, fault=self.faults.append
        )

    async def attach(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        theirs.settimeout(5)
        await asyncio.get_running_loop().create_connection(self.link.attach, sock=ours)
        return theirs


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0.005)


def test_the_end_of_a_replaced_channel_leaves_the_next_one_alone() -> None:
    """Both can be known in the same turn of the loop: that egress has died, and that the next one is there."""

    async def scenario() -> None:
        case = Case()
        first = await case.attach()
        waiting, later = Owner(), Owner()
        case.link.send(waiting, CALL, CALL.body)
        await settle()
        first.close()
        case.link.close()
        second = await case.attach()
        case.link.send(later, CALL, CALL.body)
        await settle()
        assert waiting.endings == [NO_EGRESS]
        assert later.endings == []
        assert case.link.lost_at is None
        kinds = []
        data = second.recv(65536)
        while data:
            length, kind, _ = HEADER.unpack_from(data)
            kinds.append(kind)
            data = data[HEADER.size + length :]
        assert kinds == [Kind.HELLO, Kind.CALL]
        second.close()

    asyncio.run(scenario())


def test_a_channel_that_is_replaced_before_it_was_connected_is_closed_when_it_is() -> None:
    async def scenario() -> None:
        case = Case()
        ours, theirs = socket.socketpair()
        theirs.settimeout(5)
        connecting = asyncio.get_running_loop().create_task(asyncio.get_running_loop().create_connection(case.link.attach, sock=ours))
        await asyncio.sleep(0)
        case.link.close()
        second = await case.attach()
        await connecting
        await settle()
        with pytest.raises(BlockingIOError):  # the second is open; the first was closed without a word
            second.setblocking(False)
            while second.recv(65536):
                pass
        while theirs.recv(65536):
            pass
        assert case.link.lost_at is None
        second.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("garbage", [b"", HEADER.pack(0, Kind.CALL, 1)], ids=["egress is gone", "egress broke the protocol"])
def test_without_a_channel_calls_are_refused_and_every_open_one_has_ended_once(garbage: bytes) -> None:
    async def scenario() -> None:
        case = Case()
        theirs = await case.attach()
        owners = [Owner() for _ in range(3)]
        for owner in owners:
            case.link.send(owner, CALL, CALL.body)
        await settle()
        theirs.send(garbage) if garbage else theirs.close()
        await settle()
        assert [owner.endings for owner in owners] == [[NO_EGRESS]] * 3
        assert case.link.open_calls == 0
        assert len(case.violations) == bool(garbage)
        assert case.turns[-1] is False  # what was collected for clients leaves, also when a turn broke off
        assert case.link.lost_at is not None
        with pytest.raises(Unavailable):
            case.link.send(Owner(), CALL, CALL.body)

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", [Kind.ANSWER, Kind.DATA, Kind.END])
def test_a_bug_in_one_calls_code_ends_that_call_and_no_other(kind: Kind) -> None:
    """uvloop closes the transport of a protocol that raises: one call's fault would end every call of the worker."""

    async def scenario() -> None:
        case = Case()
        theirs = await case.attach()
        broken, other = Owner(), Owner()  # `Owner` raises on anything but an abort
        stream = case.link.send(broken, CALL, CALL.body)
        case.link.send(other, CALL, CALL.body)
        await settle()
        theirs.recv(65536)
        payload = msgspec.msgpack.encode(Answer(200, True, False, "", 0.0, b"")) if kind is Kind.ANSWER else b""
        theirs.send(HEADER.pack(len(payload), kind, stream) + payload)
        await settle()
        assert [abort.code for abort in broken.endings] == ["internal_error"]
        assert other.endings == [] and case.link.open_calls == 1
        assert [type(fault) for fault in case.faults] == [AssertionError]
        if kind is not Kind.END:  # egress is told that nobody waits
            assert HEADER.unpack_from(theirs.recv(65536))[1:] == (Kind.CANCEL, stream)
        theirs.close()
        await settle()

    asyncio.run(scenario())


def test_large_bodies_of_one_turn_are_refused_before_they_fill_the_channel() -> None:
    """Twenty of eight MiB, whose last bytes came together, closed the channel and ended every call on it."""

    async def scenario() -> None:
        case = Case()
        theirs = await case.attach()
        body = bytes(8 << 20)
        call = CallHead(1, bytes(32), "r", "127.0.0.1", "m", 1, 1, False, 1, 0, len(body), b"")
        account = Account("key-1")
        owners = [Owner(account) for _ in range(20)]
        refused = []
        for owner in owners:
            try:
                case.link.send(owner, call, body)
            except Unavailable as error:
                refused.append(error.code)
        assert refused == ["overloaded"] * 18
        other = Owner(Account("key-2"))
        case.link.send(other, call, body)  # one key fills no room: another one's call goes on
        case.link.cancel(case.link._next_stream - 1, "client_gone")
        assert (account.calls, other.account.calls) == (2, 0)
        await settle()
        assert case.violations == [] and case.link.open_calls == 2 and [owner.endings for owner in owners if owner.endings] == []
        theirs.close()

    asyncio.run(scenario())


def test_one_key_takes_half_of_the_streams_and_another_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cliproxy.dataplane.link.MAX_STREAMS_PER_CHANNEL", 20)
    monkeypatch.setattr("cliproxy.dataplane.link.ORDINARY_CALLS", 2)

    async def scenario() -> None:
        case = Case()
        theirs = await case.attach()
        greedy = Account("key-1")
        sent = []
        for _ in range(20):
            with contextlib.suppress(Unavailable):
                sent.append(case.link.send(Owner(greedy), CALL, b"{}"))
        assert len(sent) == greedy.calls == 10
        others = [Account(f"key-{number}") for number in range(2, 5)]
        for other in others:
            case.link.send(Owner(other), CALL, b"{}")
        for stream in sent:
            case.link.cancel(stream, "client_gone")
        assert greedy.calls == 0 and case.link.open_calls == 3
        theirs.close()
        await settle()
        assert case.link.open_calls == 0 and [other.calls for other in others] == [0, 0, 0]

    asyncio.run(scenario())


def test_what_has_left_counts_for_nobody() -> None:
    backlog, first, second = Backlog(), Account("key-1"), Account("key-2")
    backlog.add(first, 10 << 20)
    backlog.add(first, 6 << 20)
    assert not backlog.admits(first, 1 << 20, 16 << 20) and backlog.admits(second, 1 << 20, 16 << 20)
    assert backlog.admits(first, 1 << 20, 6 << 20) and first.backlog == 6 << 20  # the first body is gone: what waits is no more than the second
    backlog.clear()
    assert first.backlog == 0 and not backlog.waiting


READINESS = msgspec.msgpack.encode(Readiness(policy_number=0, vault_age=0.0, auditor=True))


def frames(data: bytes) -> list[tuple[Kind, bytes]]:
    found = []
    while data:
        length, kind, _ = HEADER.unpack_from(data)
        found.append((Kind(kind), data[HEADER.size : HEADER.size + length]))
        data = data[HEADER.size + length :]
    return found


def watch(link: EgressLink, *, seconds: float, began: float = 1000.0) -> None:
    for second in range(int(seconds) + 1):
        link.watch(began + second)


def test_an_egress_that_says_nothing_any_more_ends_what_waits_and_gets_no_new_call_until_it_speaks() -> None:
    async def scenario() -> None:
        case = Case()
        theirs = await case.attach()
        waiting, later = Owner(), Owner()
        case.link.send(waiting, CALL, CALL.body)
        watch(case.link, seconds=EGRESS_SILENT_SECONDS)
        assert waiting.endings == []
        case.link.watch(1001.0 + EGRESS_SILENT_SECONDS)
        assert (waiting.endings, case.link.open_calls, case.turns[-2:]) == ([NO_EGRESS], 0, [True, False])
        with pytest.raises(Unavailable) as refused:
            case.link.send(later, CALL, CALL.body)
        assert refused.value.code == "egress_unavailable"
        case.link.watch(1002.0 + EGRESS_SILENT_SECONDS)
        await settle()
        assert frames(theirs.recv(65536))[2:] == [(Kind.CANCEL, cancel_of("egress_unavailable"))]  # after HELLO and CALL, and once
        theirs.send(HEADER.pack(len(READINESS), Kind.READINESS, 0) + READINESS)
        await settle()
        case.link.send(later, CALL, CALL.body)
        watch(case.link, seconds=EGRESS_SILENT_SECONDS, began=2000.0)
        assert (later.endings, len(waiting.endings), case.link.lost_at, case.violations) == ([], 1, None, [])
        theirs.close()

    asyncio.run(scenario())


def test_a_worker_that_was_stopped_itself_takes_no_egress_for_hung() -> None:
    async def scenario() -> None:
        case = Case()
        theirs = await case.attach()
        waiting = Owner()
        case.link.send(waiting, CALL, CALL.body)
        for wake in (1000.0, 1001.0, 9000.0):
            case.link.watch(wake)
        assert waiting.endings == []
        theirs.close()

    asyncio.run(scenario())


def test_a_new_channel_is_given_as_much_time_as_the_first() -> None:
    async def scenario() -> None:
        case = Case()
        first = await case.attach()
        watch(case.link, seconds=EGRESS_SILENT_SECONDS + 1)
        case.link.close()
        watch(case.link, seconds=EGRESS_SILENT_SECONDS + 1, began=2000.0)
        second = await case.attach()
        owner = Owner()
        case.link.send(owner, CALL, CALL.body)
        watch(case.link, seconds=EGRESS_SILENT_SECONDS, began=3000.0)
        assert owner.endings == []
        first.close()
        second.close()

    asyncio.run(scenario())
