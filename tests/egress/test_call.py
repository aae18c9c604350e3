"""The states of a call and what may follow what: every pair of state and event is either a row here or an error."""

from __future__ import annotations

from typing import Any

import pytest

from cliproxy.egress.call import TRANSITIONS, Event, IllegalTransition, State

LEGAL = {
    (State.ARRIVING, Event.BODY_WHOLE): State.DECIDING,
    (State.ARRIVING, Event.ENDED): State.OVER,
    (State.DECIDING, Event.AUTHORISED): State.RECORDING,
    (State.DECIDING, Event.MUST_COOL): State.COOLING,
    (State.DECIDING, Event.SENT_BACK): State.REROUTED,
    (State.DECIDING, Event.ENDED): State.OVER,
    (State.RECORDING, Event.SENT): State.UNDER_WAY,
    (State.RECORDING, Event.ENDED): State.OVER,
    (State.UNDER_WAY, Event.ANSWERED): State.ANSWERING,
    (State.UNDER_WAY, Event.FAILED): State.DECIDING,
    (State.UNDER_WAY, Event.ENDED): State.OVER,
    (State.ANSWERING, Event.ENDED): State.OVER,
    (State.COOLING, Event.COOLED): State.DECIDING,
    (State.COOLING, Event.ENDED): State.OVER,
}


@pytest.mark.parametrize("event", Event, ids=lambda event: event.name)
@pytest.mark.parametrize("state", State, ids=lambda state: state.name)
def test_every_pair_of_state_and_event_is_in_the_table_or_an_error(state: State, event: Event) -> None:
    if (state, event) in LEGAL:
        assert TRANSITIONS[event][state] is LEGAL[state, event]
    else:
        with pytest.raises(IllegalTransition, match=state.name):
            TRANSITIONS[event][state]


def reachable(start: State) -> set[State]:
    found, new = {start}, {start}
    while new:
        new = {after for state in new for event in Event if (after := TRANSITIONS[event].get(state)) is not None} - found
        found |= new
    return found


def test_every_state_is_reached_and_every_call_can_end() -> None:
    assert reachable(State.ARRIVING) == set(State)
    assert all(State.OVER in reachable(state) for state in set(State) - {State.REROUTED})
    assert reachable(State.OVER) == {State.OVER} and reachable(State.REROUTED) == {State.REROUTED}


def test_nothing_is_tried_again_once_its_answer_has_begun() -> None:
    assert reachable(State.ANSWERING) == {State.ANSWERING, State.OVER}


def test_nothing_leaves_that_the_auditor_has_not_taken() -> None:
    before: dict[Any, set[State]] = {State.UNDER_WAY: {state for rows in TRANSITIONS.values() for state, after in rows.items() if after is State.UNDER_WAY}}
    assert before[State.UNDER_WAY] == {State.RECORDING}
