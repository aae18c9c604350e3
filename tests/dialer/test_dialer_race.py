"""The first of several addresses that answers."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cliproxy.dialer.race import CONNECT_STAGGER_SECONDS, Race


def settle(race: Race, *, now: float = 0.0, seconds: float = 5.0) -> None:
    """Poll until the race is decided; the clock stands at `now`."""
    race.step(now)
    while race.won is None and not race.lost:
        _, writable, _ = select.select([], race.descriptors(), [], seconds)
        assert writable, "undecided"
        for descriptor in writable:
            if descriptor in race.descriptors():
                race.ready(descriptor, now)


@contextmanager
def listening(host: str = "127.0.0.1") -> Iterator[int]:
    with socket.create_server((host, 0)) as server:
        yield server.getsockname()[1]


@contextmanager
def black_hole() -> Iterator[int]:
    """A port whose backlog is full: connecting to it neither succeeds nor fails."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        port = server.getsockname()[1]
        waiting = []
        for _ in range(4):
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
            waiting.append(one)
        yield port
        for one in waiting:
            one.close()


def test_the_only_address_wins() -> None:
    with listening() as port:
        race = Race(("127.0.0.1",), port=port)
        settle(race)
        assert race.won is not None
        sock, address = race.won
        assert address == "127.0.0.1" and sock.getpeername() == ("127.0.0.1", port)
        sock.close()


def test_a_refusal_goes_on_to_the_next_address_at_once() -> None:
    with listening("127.0.0.2") as port:
        race = Race(("127.0.0.1", "127.0.0.2", "127.0.0.3"), port=port)
        settle(race)
        assert race.won is not None and race.won[1] == "127.0.0.2"
        assert race.descriptors() == ()
        race.won[0].close()


def test_when_all_refuse_the_race_is_lost() -> None:
    with listening() as port:
        pass
    race = Race(("127.0.0.1", "127.0.0.2"), port=port)
    settle(race)
    assert race.won is None and race.lost == "refused"


def test_a_silent_address_gets_a_rival_after_a_quarter_of_a_second() -> None:
    with black_hole() as port, socket.create_server(("127.0.0.2", port)):
        race = Race(("127.0.0.1", "127.0.0.2"), port=port)
        race.step(10.0)
        assert len(race.descriptors()) == 1 and race.won is None and race.next_at() == 10.0 + CONNECT_STAGGER_SECONDS
        race.step(10.0 + CONNECT_STAGGER_SECONDS / 2)
        assert len(race.descriptors()) == 1
        settle(race, now=10.0 + CONNECT_STAGGER_SECONDS)
        assert race.won is not None and race.won[1] == "127.0.0.2" and race.descriptors() == ()
        race.won[0].close()


def test_an_event_for_an_earlier_socket_of_the_same_number_decides_nothing() -> None:
    with black_hole() as port:
        race = Race(("127.0.0.1",), port=port)
        race.step(0.0)
        (descriptor,) = race.descriptors()
        race.ready(descriptor, 0.0)
        assert race.won is None and not race.lost and race.descriptors() == (descriptor,)
        race.close()


def test_closing_leaves_no_socket() -> None:
    with black_hole() as port:
        race = Race(("127.0.0.1", "127.0.0.2"), port=port)
        race.step(0.0)
        (descriptor,) = race.descriptors()
        race.close()
        assert race.descriptors() == ()
        with pytest.raises(OSError):
            socket.socket(fileno=descriptor)


def test_no_more_than_eight_addresses_are_tried() -> None:
    with listening("127.0.0.9") as port:
        race = Race(tuple(f"127.0.0.{number}" for number in range(1, 10)), port=port)
        settle(race)
        assert race.lost == "refused"


def test_an_address_of_a_family_that_is_not_here_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoIPv6(socket.socket):
        def __init__(self, family: int, *rest: int) -> None:
            if family == socket.AF_INET6:
                raise OSError(97, "Address family not supported by protocol")
            super().__init__(family, *rest)

    with listening() as port:
        monkeypatch.setattr("cliproxy.dialer.race.socket.socket", NoIPv6)
        race = Race(("::1", "127.0.0.1"), port=port)
        settle(race)
        assert race.won is not None and race.won[1] == "127.0.0.1"
        race.won[0].close()
    lost = Race(("::1",), port=port)
    lost.step(0.0)
    assert lost.lost == "unreachable"
