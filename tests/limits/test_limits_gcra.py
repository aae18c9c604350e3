"""The bucket in one number."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliproxy.limits.gcra import Gcra, in_nanoseconds, per_minute, per_second


def admitted(gcra: Gcra, times: list[float]) -> list[float]:
    tat, through = 0.0, []
    for now in times:
        tat, wait = gcra.judge(tat, now)
        if wait == 0:
            through.append(now)
    return through


def test_a_burst_then_the_rate() -> None:
    gcra = per_second(10, burst=3)
    assert admitted(gcra, [100.0] * 5) == [100.0] * 3
    assert admitted(gcra, [100.0] * 3 + [100.05, 100.1001, 100.15, 100.2002]) == [100.0] * 3 + [100.1001, 100.2002]


def test_a_full_bucket_holds_no_more_than_the_burst() -> None:
    assert len(admitted(per_second(10, burst=3), [100.0] * 3 + [1000.0] * 9)) == 6


def test_the_wait_that_is_told_is_enough_and_not_too_long() -> None:
    gcra = in_nanoseconds(10, burst=2)
    tat, now = 0.0, 10**12
    for _ in range(2):
        tat, wait = gcra.judge(tat, now)
        assert wait == 0
    tat, wait = gcra.judge(tat, now)
    assert 0 < wait <= 10**8
    assert gcra.judge(tat, now + wait - 1)[1] > 0
    assert gcra.judge(tat, now + wait)[1] == 0


def test_a_refusal_costs_nothing() -> None:
    gcra = per_second(1, burst=1)
    tat, _ = gcra.judge(0.0, 100.0)
    for _ in range(1000):
        tat, wait = gcra.judge(tat, 100.5)
        assert wait == pytest.approx(0.5)
    assert gcra.judge(tat, 101.0)[1] == 0


def test_nonsense_from_another_process_denies_for_an_interval_at_most() -> None:
    gcra = in_nanoseconds(10, burst=20)
    now = 10**12
    tat, wait = gcra.judge(2**63 - 1, now)
    assert 0 < wait <= gcra.interval
    assert gcra.judge(tat, now + gcra.interval)[1] == 0
    assert gcra.judge(-(2**63), now)[1] == 0


def test_a_minute_of_a_limit_is_the_limit_at_once() -> None:
    assert len(admitted(per_minute(60), [1000.0] * 100)) == 60
    assert len(admitted(per_minute(60), [1000.0 + n / 100 for n in range(6001)])) <= 120


@pytest.mark.parametrize(("rate", "burst"), [(0, 1), (-1, 1), (1, 0)])
def test_an_empty_bucket_is_no_limit_that_we_know(rate: float, burst: int) -> None:
    for make in (per_second, in_nanoseconds):
        with pytest.raises(ValueError, match="positive"):
            make(rate, burst=burst)


@given(st.lists(st.integers(0, 3 * 10**8), min_size=1, max_size=60), st.integers(1, 50), st.integers(1, 10))
def test_no_span_of_time_admits_more_than_burst_and_rate(gaps: list[int], rate: int, burst: int) -> None:
    gcra = in_nanoseconds(rate, burst=burst)
    now, times = 10**15, []
    for gap in gaps:
        now += gap
        times.append(float(now))
    through = admitted(gcra, times)
    assert through[:1] == times[:1]
    for first in range(len(through)):
        for last in range(first, len(through)):
            assert last - first + 1 <= burst + (through[last] - through[first]) / gcra.interval + 1e-6
