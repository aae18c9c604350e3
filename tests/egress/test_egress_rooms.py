"""Rooms that all share: bounded, and nobody fills one alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cliproxy.egress.rooms import Room


def fill(room: Room[str], owner: str, piece: int) -> int:
    """Take pieces until there are no more; return how much the owner has."""
    has = 0
    while room.take(owner, piece):
        has += piece
    return has


def test_one_who_takes_all_he_can_leaves_as_much_to_the_others() -> None:
    room: Room[str] = Room(1024)
    assert fill(room, "greedy", 1) == 512
    assert fill(room, "next", 1) == 256
    assert room.take("ordinary", 200)


def test_whoever_has_nothing_gets_what_there_is_room_for() -> None:
    room: Room[str] = Room(100)
    assert room.take("large", 90) and not room.take("large", 1)
    assert not room.take("other", 11) and room.take("other", 10)


def test_what_is_given_back_is_there_again_and_its_owner_forgotten() -> None:
    room: Room[str] = Room(8)
    for _ in range(100):
        assert fill(room, "a", 1) == 4
        room.give_back("a", 4)
    assert room.used == 0 and room._of == {}


def test_what_is_counted_without_room_is_over_the_share_and_still_counted() -> None:
    room: Room[str] = Room(100)
    assert room.add("a", 50) and not room.add("a", 50) and not room.add("b", 1)
    room.give_back("a", 100)
    assert room.used == 1 and room.add("b", 30)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 40), st.booleans())))
def test_whoever_takes_and_gives_the_sum_is_right_and_within_the_limit(steps: list[tuple[str, int, bool]]) -> None:
    room: Room[str] = Room(100)
    held = dict.fromkeys("abc", 0)
    for owner, amount, gives in steps:
        if gives:
            amount = min(amount, held[owner])
            room.give_back(owner, amount)
            held[owner] -= amount
        elif room.take(owner, amount):
            others = sum(held.values()) - held[owner]
            assert not held[owner] or 2 * (held[owner] + amount) <= 100 - others
            held[owner] += amount
        assert room.used == sum(held.values()) <= 100
        assert {name: has for name, has in room._of.items() if has} == {name: has for name, has in held.items() if has}
