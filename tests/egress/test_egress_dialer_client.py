"""Egress believes the dialer exactly as far as the protocol goes."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import struct
from collections.abc import Callable

import pytest

from cliproxy.egress import dialer_client
from cliproxy.egress.dialer_client import DialerClient
from cliproxy.egress.peer import Peer
from cliproxy.ipc.channel import PacketChannel
from cliproxy.ipc.messages import Dial, DialFailed, Dialled, EgressHello, EgressToDialer
from cliproxy.providers.origin import parse_base_url
from fakes.rig import run

ORIGIN = "https://api.example.com:443"
PEER = Peer(parse_base_url(ORIGIN)[0], private=False)


class Edge:
    """A client and the dialer's end of its channel."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.violations: list[str] = []
        self.answers: list[tuple[socket.socket | None, str]] = []
        self.client = DialerClient(asyncio.get_running_loop(), ours, violated=self.violations.append)
        self.dialer: PacketChannel[EgressToDialer] = PacketChannel(theirs, incoming=EgressToDialer, peer="egress", per_second=10_000.0)

    def ask(self, peer: Peer = PEER) -> bool:
        return self.client.dial(peer, lambda sock, reason: self.answers.append((sock, reason)))

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
        edge = Edge()
        with socket.create_server(("127.0.0.1", 0)) as server:
            origin = f"http://127.0.0.1:{server.getsockname()[1]}"
            assert edge.ask(Peer(parse_base_url(origin)[0], private=False))
            question = await edge.asked()
            assert question.origin == origin
            near = socket.create_connection(server.getsockname())
            far, _ = server.accept()
            edge.dialer.send(Dialled(dial=question.dial, address="127.0.0.1"), [near.fileno()])
            near.close()
        await edge.answered()
        sock, reason = edge.answers[0]
        assert sock is not None and reason == ""
        far.send(b"through")
        assert sock.recv(10) == b"through"
        assert not edge.violations

    run(work)


def test_answers_find_their_question_in_any_order() -> None:
    async def work() -> None:
        edge = Edge()
        order: list[int] = []
        for number in range(3):
            assert edge.client.dial(PEER, lambda sock, reason, number=number: order.append(number))  # type: ignore[misc]
        questions = [await edge.asked() for _ in range(3)]
        for index in (2, 0, 1):
            edge.dialer.send(DialFailed(dial=questions[index].dial, reason="refused"))
        while len(order) < 3:
            await asyncio.sleep(0.001)
        assert order == [2, 0, 1]

    run(work)


def spare() -> int:
    return os.open("/dev/null", os.O_RDONLY)


VIOLATIONS: dict[str, Callable[[Edge, int], object]] = {
    "an answer to nothing": lambda edge, dial: edge.dialer.send(DialFailed(dial=dial + 100, reason="refused")),
    "a socket for nothing": lambda edge, dial: edge.dialer.send(Dialled(dial=dial + 100, address="192.0.2.1"), [spare()]),
    "a success without a socket": lambda edge, dial: edge.dialer.send(Dialled(dial=dial, address="192.0.2.1")),
    "a success with two": lambda edge, dial: edge.dialer.send(Dialled(dial=dial, address="192.0.2.1"), [spare(), spare()]),
    "more descriptors than a packet holds": lambda edge, dial: edge.dialer.send(Dialled(dial=dial, address="192.0.2.1"), [spare() for _ in range(6)]),
    "a success with a file": lambda edge, dial: edge.dialer.send(Dialled(dial=dial, address="192.0.2.1"), [spare()]),
    "a failure with a socket": lambda edge, dial: edge.dialer.send(DialFailed(dial=dial, reason="refused"), [spare()]),
    "a message of another edge": lambda edge, dial: edge.dialer.send(EgressHello(build="x")),
    "what only egress may say": lambda edge, dial: edge.dialer.send(Dial(dial=dial, origin=ORIGIN)),
    "a flood": lambda edge, dial: [edge.dialer._sock.send(b"\xc1") for _ in range(3)],
    "garbage": lambda edge, dial: edge.dialer._sock.send(b"\xff\xff\xff"),
}


@pytest.mark.parametrize("violate", VIOLATIONS.values(), ids=VIOLATIONS.keys())
def test_a_violation_ends_the_channel_and_every_question(violate: Callable[[Edge, int], object]) -> None:
    async def work() -> None:
        edge = Edge()
        for _ in range(3):
            edge.ask()
        question = await edge.asked()
        before = descriptors()
        violate(edge, question.dial)
        sent = descriptors() - before  # our own copies, which stay open
        await edge.answered(3)
        assert edge.answers == [(None, "dialer_gone")] * 3 and len(edge.violations) == 1
        assert descriptors() == before + sent  # nothing that was received stays open
        assert not edge.ask()

    run(work)


def test_an_answer_twice_is_a_violation() -> None:
    async def work() -> None:
        edge = Edge()
        edge.ask()
        question = await edge.asked()
        for _ in range(2):
            edge.dialer.send(DialFailed(dial=question.dial, reason="refused"))
        while not edge.violations:
            await asyncio.sleep(0.001)
        assert edge.answers == [(None, "refused")]

    run(work)


def test_a_dialer_that_dies_is_no_violation_and_a_new_one_takes_over() -> None:
    async def work() -> None:
        edge = Edge()
        edge.ask()
        number = edge.client._channel.fileno()  # type: ignore[union-attr]
        edge.dialer.close()
        await edge.answered()
        assert edge.answers == [(None, "dialer_gone")] and not edge.violations and not edge.ask()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        os.dup2(ours.fileno(), number)  # as the child library does before it passes REPLACE on
        ours.close()
        edge.client.replace(socket.socket(fileno=number))
        edge.dialer = PacketChannel(theirs, incoming=EgressToDialer, peer="egress", per_second=100.0)
        assert edge.ask()
        question = await edge.asked()
        edge.dialer.send(DialFailed(dial=question.dial, reason="refused"))
        await edge.answered(2)
        assert edge.answers[1] == (None, "refused")

    run(work)


def test_a_replacement_that_comes_before_the_end_of_the_old_channel_is_not_shut_down() -> None:
    async def work() -> None:
        edge = Edge()
        edge.ask()
        number = edge.client._channel.fileno()  # type: ignore[union-attr]
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        os.dup2(ours.fileno(), number)
        ours.close()
        edge.client.replace(socket.socket(fileno=number))
        assert edge.answers == [(None, "dialer_gone")]
        edge.dialer = PacketChannel(theirs, incoming=EgressToDialer, peer="egress", per_second=100.0)
        assert edge.ask()
        question = await edge.asked()
        edge.dialer.send(DialFailed(dial=question.dial, reason="timeout"))
        await edge.answered(2)
        assert edge.answers[1] == (None, "timeout") and not edge.violations

    run(work)


def test_egress_asks_no_faster_than_the_dialer_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialer_client, "_RATE", 5.0)

    async def work() -> None:
        edge = Edge()
        assert [edge.ask() for _ in range(7)].count(True) == 5

    run(work)


def test_the_questions_under_way_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialer_client, "MAX_PENDING_DIALS", 3)

    async def work() -> None:
        edge = Edge()
        assert [edge.ask() for _ in range(5)] == [True, True, True, False, False]
        question = await edge.asked()
        edge.dialer.send(DialFailed(dial=question.dial, reason="refused"))
        await edge.answered()
        assert edge.ask()

    run(work)


def test_a_connection_that_the_provider_has_closed_already_is_no_violation() -> None:
    async def work() -> None:
        edge = Edge()
        with socket.create_server(("127.0.0.1", 0)) as server:
            edge.ask(Peer(parse_base_url(f"http://127.0.0.1:{server.getsockname()[1]}")[0], private=False))
            question = await edge.asked()
            near = socket.create_connection(server.getsockname())
            far, _ = server.accept()
            far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            far.close()  # a reset
            select.select([near], [], [], 5.0)
            edge.dialer.send(Dialled(dial=question.dial, address="127.0.0.1"), [near.fileno()])
            near.close()
        await edge.answered()
        assert edge.answers == [(None, "unreachable")] and not edge.violations and edge.ask()

    run(work)
