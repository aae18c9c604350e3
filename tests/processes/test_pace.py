"""How often the auditor looks at the queues of those who send much: rarely, and never so rarely that one fills."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliproxy.processes.senders import Pace

QUEUE = 160  # packets: what a socket pair's default buffer of 212,992 bytes takes of an egress turn's


def looks(arrivals: list[float]) -> tuple[list[float], int]:
    """Return when a queue is looked at that packets reach at `arrivals`, and the most that ever waited. The auditor sleeps while it naps or it is quiet."""
    pace = Pace()
    now, taken, most, times = 0.0, 0, 0, []
    while taken < len(arrivals):
        now = max(now, pace.until)
        waiting = sum(1 for at in arrivals[taken:] if at <= now)
        if not waiting:
            pace.looked(now, 0)
            now = arrivals[taken]
            continue
        if pace.begin(now):
            most = max(most, waiting)
            taken += waiting
            times.append(now)
            pace.looked(now, waiting)
    return times, most


def test_a_lone_call_is_one_look() -> None:
    intent_and_outcome = [1.0, 1.002]
    assert looks(intent_and_outcome)[0] == [pytest.approx(1.004)]


def test_a_thousand_packets_a_second_are_looked_at_fifty_times() -> None:
    times, _ = looks([n / 1000 for n in range(1000)])
    assert 40 <= len(times) <= 60


@pytest.mark.parametrize("per_second", [10, 100, 1_000, 5_000, 10_000, 20_000, 35_000])
def test_a_steady_stream_never_fills_a_queue(per_second: int) -> None:
    _, most = looks([n / per_second for n in range(min(per_second, 4_000))])
    assert most < QUEUE


@given(st.lists(st.integers(1, 140), min_size=1, max_size=8))
def test_bursts_out_of_a_quiet_time_never_fill_a_queue(bursts: list[int]) -> None:
    arrivals = [second + n / 40_000 for second, burst in enumerate(bursts) for n in range(burst)]
    assert looks(arrivals)[1] <= 140 < QUEUE


def test_what_is_quiet_wakes_at_once_and_is_read_a_moment_later() -> None:
    pace = Pace()
    pace.looked(5.0, 0)
    assert pace.quiet and pace.until == 5.0
    assert not pace.begin(9.0)
    assert pace.until == pytest.approx(9.004) and not pace.quiet
    assert pace.begin(9.004)
