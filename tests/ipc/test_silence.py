"""How long something has been missing: what passed while nobody could look does not count."""

from hypothesis import given
from hypothesis import strategies as st

from cliproxy.ipc.silence import MAX_COUNTED_SECONDS, Silence


def looked(*times: float) -> float:
    silence = Silence()
    return [silence.look(time) for time in times][-1]


def test_the_first_look_begins_the_wait() -> None:
    assert looked(1000.0) == 0.0
    assert looked(1000.0, 1001.0, 1002.5) == 2.5


def test_an_end_begins_a_new_wait() -> None:
    silence = Silence()
    silence.look(1000.0)
    silence.look(1001.0)
    silence.end()
    assert [silence.look(time) for time in (1001.5, 1002.0)] == [0.0, 0.5]


@given(st.lists(st.floats(min_value=0.0, max_value=1e9), min_size=1, max_size=20))
def test_no_gap_counts_more_than_its_share_and_no_clock_makes_less(times: list[float]) -> None:
    assert 0.0 <= looked(*times) <= (len(times) - 1) * MAX_COUNTED_SECONDS
