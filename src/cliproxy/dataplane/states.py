"""What a client's connection is doing, and what may come next: one table, as h11 has.

The table is the whole truth: what is not in it raises. Orthogonal to it are two flows that either side may stop at any time: whether the client reads
(`Connection.paused`) and whether we do (`Intake.is_paused`).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NoReturn


class State(IntEnum):
    """What the connection is doing. Up to `VETTED` it reads a request; every one of these has a deadline."""

    IDLE = 0  # no byte of the next request was looked at
    HEAD = 1  # a part of its head is there
    BODY = 2  # a part of its body is there; whose it is was not looked at
    VETTED = 3  # the same, and the exchange let its sender go on
    ASKED = 4  # the exchange owes an answer
    STREAMING = 5  # a part of the answer is out; its end is still to come
    LINGERING = 6  # the last answer is out; what the client sends is discarded, so that a reset does not overtake it (RFC 9112 §9.6)
    CLOSED = 7  # nothing is sent or delivered any more; the transport gets rid of what it has


class Event(IntEnum):
    """What moves a connection from state to state."""

    PART_OF_HEAD = 0
    PART_OF_BODY = 1
    SENDER_VETTED = 2
    REQUEST = 3  # one is whole
    STREAM = 4  # its answer begins, and is of unknown length
    ANSWERED = 5  # its answer is whole, and another request may come
    LAST_ANSWERED = 6  # nothing is answered after what was
    GONE = 7  # the client left, or we break off


class Row(dict[Event, State]):
    """Where a state leads. What it does not say raises."""

    def __missing__(self, event: Event) -> NoReturn:
        raise RuntimeError(f"a connection in a state that knows no {event.name}")


_READING: Final = {Event.LAST_ANSWERED: State.LINGERING, Event.GONE: State.CLOSED}
_ANSWERING: Final = {Event.ANSWERED: State.IDLE, Event.LAST_ANSWERED: State.LINGERING, Event.GONE: State.CLOSED}

TRANSITIONS: Final[dict[State, Row]] = {
    State.IDLE: Row(_READING | {Event.PART_OF_HEAD: State.HEAD, Event.PART_OF_BODY: State.BODY, Event.REQUEST: State.ASKED}),
    State.HEAD: Row(_READING | {Event.PART_OF_BODY: State.BODY, Event.REQUEST: State.ASKED}),
    State.BODY: Row(_READING | {Event.SENDER_VETTED: State.VETTED, Event.REQUEST: State.ASKED}),
    State.VETTED: Row(_READING | {Event.REQUEST: State.ASKED}),
    State.ASKED: Row(_ANSWERING | {Event.STREAM: State.STREAMING}),
    State.STREAMING: Row(_ANSWERING),
    State.LINGERING: Row({Event.GONE: State.CLOSED}),
    State.CLOSED: Row({Event.GONE: State.CLOSED}),
}
