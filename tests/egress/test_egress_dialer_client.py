"""Egress believes the dialer exactly as far as the protocol goes."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable

import pytest

from cliproxy.egress import dialer_client
from cliproxy.egress.dialer_client import DialerClient
from cliproxy.ipc.channel import PacketChannel
from cliproxy.ipc.messages import Dial, DialFailed, Dialled, EgressHello, EgressToDialer
from fakes.rig import run

ORIGIN = "https://api.example.com:443"


class Desk:
    """A client and the dialer's end of its channel."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.violations: list[str] = []
        self.answers: list[tuple[socket.socket | None, str]] = []
        self.client = DialerClient(asyncio.get_running_loop(), ours, violated=self.violations.append)
        self.dialer: PacketChannel[EgressToDialer] = PacketChannel(theirs, incoming=EgressToDialer, peer="egress", per_second=10_000.0)

    def ask(self, origin: str = ORIGIN) -> bool:
        return self.client.dial(origin, lambda sock, reason: self.answers.append((sock, reason)))

    async def asked(self) -> Dial:
        while (question := self.dialer.receive()) is None:
            await asyncio.sleep(0.001)
        return question

    async def answered(self, count: int = 1) -> None:
        while len(self.answers) < count:
            await asyncio.sleep(0.001)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_question_names_the_origin_and_the_answer_is_a_socket() -> None:
    async def work() -> None:
        desk = Desk()
        assert desk.ask()
        question = await desk.asked()
        assert question.origin == ORIGIN
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        desk.dialer.send(Dialled(dial=question.dial, address="192.0.2.1"), [near.fileno()])
        near.close()
        await desk.answered()
        sock, reason = desk.answers[0]
        assert sock is not None and reason == ""
        far.send(b"through")
        assert sock.recv(10) == b"through"
        assert not desk.violations

    run(work)


def test_answers_find_their_question_in_any_order() -> None:
    async def work() -> None:
        desk = Desk()
        order: list[int] = []
        for number in range(3):
            assert desk.client.dial(ORIGIN, lambda sock, reason, number=number: order.append(number))  # type: ignore[misc]
        questions = [await desk.asked() for _ in range(3)]
        for index in (2, 0, 1):
            desk.dialer.send(DialFailed(dial=questions[index].dial, reason="refused"))
        while len(order) < 3:
            await asyncio.sleep(0.001)
        assert order == [2, 0, 1]

    run(work)


def spare() -> int:
    return os.open("/dev/null", os.O_RDONLY)


VIOLATIONS: dict[str, Callable[[Desk, int], object]] = {
    "an answer to nothing": lambda desk, dial: desk.dialer.send(DialFailed(dial=dial + 100, reason="refused")),
    "a socket for nothing": lambda desk, dial: desk.dialer.send(Dialled(dial=dial + 100, address="192.0.2.1"), [spare()]),
    "a success without a socket": lambda desk, dial: desk.dialer.send(Dialled(dial=dial, address="192.0.2.1")),
    "a success with two": lambda desk, dial: desk.dialer.send(Dialled(dial=dial, address="192.0.2.1"), [spare(), spare()]),
    "more descriptors than a packet holds": lambda desk, dial: desk.dialer.send(Dialled(dial=dial, address="192.0.2.1"), [spare() for _ in range(6)]),
    "a success with a file": lambda desk, dial: desk.dialer.send(Dialled(dial=dial, address="192.0.2.1"), [spare()]),
    "a failure with a socket": lambda desk, dial: desk.dialer.send(DialFailed(dial=dial, reason="refused"), [spare()]),
    "a message of another edge": lambda desk, dial: desk.dialer.send(EgressHello(build="x")),
    "what only egress may say": lambda desk, dial: desk.dialer.send(Dial(dial=dial, origin=ORIGIN)),
    "a flood": lambda desk, dial: [desk.dialer._sock.send(b"\xc1") for _ in range(3)],
    "garbage": lambda desk, dial: desk.dialer._sock.send(b"\xff\xff\xff"),
}


@pytest.mark.parametrize("violate", VIOLATIONS.values(), ids=VIOLATIONS.keys())
def test_a_violation_ends_the_channel_and_every_question(violate: Callable[[Desk, int], object]) -> None:
    async def work() -> None:
        desk = Desk()
        for _ in range(3):
            desk.ask()
        question = await desk.asked()
        before = descriptors()
        violate(desk, question.dial)
        sent = descriptors() - before  # our own copies, which stay open
        await desk.answered(3)
        assert desk.answers == [(None, "dialer_gone")] * 3 and len(desk.violations) == 1
        assert descriptors() == before + sent  # nothing that was received stays open
        assert not desk.ask()

    run(work)


def test_an_answer_twice_is_a_violation() -> None:
    async def work() -> None:
        desk = Desk()
        desk.ask()
        question = await desk.asked()
        for _ in range(2):
            desk.dialer.send(DialFailed(dial=question.dial, reason="refused"))
        while not desk.violations:
            await asyncio.sleep(0.001)
        assert desk.answers == [(None, "refused")]

    run(work)


def test_a_dialer_that_dies_is_no_violation_and_a_new_one_takes_over() -> None:
    async def work() -> None:
        desk = Desk()
        desk.ask()
        number = desk.client._channel.fileno()  # type: ignore[union-attr]
        desk.dialer.close()
        await desk.answered()
        assert desk.answers == [(None, "dialer_gone")] and not desk.violations and not desk.ask()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        os.dup2(ours.fileno(), number)  # as the child library does before it passes REPLACE on
        ours.close()
        desk.client.replace(socket.socket(fileno=number))
        desk.dialer = PacketChannel(theirs, incoming=EgressToDialer, peer="egress", per_second=100.0)
        assert desk.ask()
        question = await desk.asked()
        desk.dialer.send(DialFailed(dial=question.dial, reason="refused"))
        await desk.answered(2)
        assert desk.answers[1] == (None, "refused")

    run(work)


def test_a_replacement_that_comes_before_the_end_of_the_old_channel_is_not_shut_down() -> None:
    async def work() -> None:
        desk = Desk()
        desk.ask()
        number = desk.client._channel.fileno()  # type: ignore[union-attr]
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        os.dup2(ours.fileno(), number)
        ours.close()
        desk.client.replace(socket.socket(fileno=number))
        assert desk.answers == [(None, "dialer_gone")]
        desk.dialer = PacketChannel(theirs, incoming=EgressToDialer, peer="egress", per_second=100.0)
        assert desk.ask()
        question = await desk.asked()
        desk.dialer.send(DialFailed(dial=question.dial, reason="timeout"))
        await desk.answered(2)
        assert desk.answers[1] == (None, "timeout") and not desk.violations

    run(work)


def test_egress_asks_no_faster_than_the_dialer_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialer_client, "_RATE", 5.0)

    async def work() -> None:
        desk = Desk()
        assert [desk.ask() for _ in range(7)].count(True) == 5

    run(work)


def test_the_questions_under_way_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialer_client, "MAX_PENDING_DIALS", 3)

    async def work() -> None:
        desk = Desk()
        assert [desk.ask() for _ in range(5)] == [True, True, True, False, False]
        question = await desk.asked()
        desk.dialer.send(DialFailed(dial=question.dial, reason="refused"))
        await desk.answered()
        assert desk.ask()

    run(work)
