"""How a room is shared, and when memory is given back."""

from __future__ import annotations

import gc

import pytest

from cliproxy.dataplane.rooms import Accounts, Room
from cliproxy.memory import EBB_BYTES, Ebb


def filled(room: Room, *, pieces: int) -> int:
    """Take pieces for one account until there is no more; return how much it got."""
    own = 0
    while room.admits(own, pieces):
        own += pieces
        room.taken += pieces
    return own


def test_nobody_gets_more_than_half_of_what_the_others_leave() -> None:
    room = Room(1024, least=0)
    assert [filled(room, pieces=8) for _ in range(5)] == [512, 256, 128, 64, 32]


def test_an_ordinary_call_is_admitted_as_long_as_there_is_room_at_all() -> None:
    room = Room(1024, least=64)
    assert [filled(room, pieces=8) for _ in range(7)] == [512, 256, 128, 64, 64, 0, 0]
    assert room.taken == room.most


def test_the_first_piece_may_be_as_large_as_what_is_free() -> None:
    room = Room(1024, least=0)
    assert room.admits(0, 1024) and not room.admits(0, 1025) and not room.admits(1, 1023)
    room.taken = 1000
    assert room.admits(0, 24) and not room.admits(0, 25)


@pytest.mark.parametrize("own", [0, 10])
def test_a_room_that_holds_too_much_admits_nothing(own: int) -> None:
    room = Room(1024, least=64)
    room.taken = 1025
    assert not room.admits(own, 0)


def test_an_account_is_one_as_long_as_somebody_has_it() -> None:
    accounts = Accounts()
    account = accounts.of("key-1")
    account.unread = 7
    assert accounts.of("key-1") is account and accounts.of("key-2") is not account
    del account
    gc.collect()
    assert accounts.of("key-1").unread == 0


def test_memory_is_given_back_after_an_ebb_and_once() -> None:
    given: list[None] = []
    ebb = Ebb(lambda: given.append(None))
    for held, times in (
        (0, 0),
        (100 * EBB_BYTES, 0),
        (99 * EBB_BYTES + 1, 0),
        (99 * EBB_BYTES, 1),
        (99 * EBB_BYTES, 1),
        (0, 2),
        (0, 2),
        (EBB_BYTES - 1, 2),
        (0, 2),
    ):
        ebb.look(held)
        assert len(given) == times, held


def test_a_crowd_that_came_and_went_between_two_looks_is_an_ebb_too() -> None:
    given: list[None] = []
    ebb = Ebb(lambda: given.append(None))
    ebb.look(0)
    ebb.rise(EBB_BYTES)
    ebb.look(0)
    ebb.look(0)
    assert len(given) == 1
