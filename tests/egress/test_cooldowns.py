"""The table of cooldowns, row by row, and what always holds of them. Time is passed in."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cliproxy.bounds import MAX_COOLDOWNS
from cliproxy.egress.cooldowns import PROBE_AGAIN_SECONDS, Cooldowns, Fault, Key, Rule, fault_of
from cliproxy.errors import (
    CliproxyError,
    ForbiddenAddress,
    ForeignOrigin,
    ProviderRefusal,
    RateLimited,
    SchemaError,
    Unavailable,
    UpstreamError,
)
from cliproxy.ipc.messages import CooldownRecord

MINUTE, HOUR = 60.0, 3600.0
KEY = Key("p", "cred_1", "m", 1)


def refusal(status: int, retry_after: float | None = None) -> ProviderRefusal:
    return ProviderRefusal("no", status=502, code="c", provider_status=status, retry_after=retry_after)


def fault(status: int, retry_after: float | None = None) -> Fault:
    return fault_of(refusal(status, retry_after))


# status, Retry-After -> seconds of cooldown, tried elsewhere
TABLE = {
    (400, None): (0, False),
    (401, None): (30 * MINUTE, True),
    (402, None): (30 * MINUTE, True),
    (403, None): (30 * MINUTE, True),
    (404, None): (12 * HOUR, True),
    (405, None): (0, False),
    (408, None): (60, True),
    (409, None): (0, True),
    (413, None): (0, False),
    (422, None): (0, False),
    (425, None): (0, True),
    (429, None): (1, True),
    (429, 7.0): (7, True),
    (429, 0.0): (1, True),
    (429, 10.0**9): (12 * HOUR, True),
    (451, None): (0, False),
    (302, None): (60, True),
    (500, None): (60, True),
    (502, None): (60, True),
    (503, None): (60, True),
    (503, 5.0): (60, True),
    (503, 300.0): (300, True),
    (529, None): (60, True),
}


@pytest.mark.parametrize(("given_", "expected"), TABLE.items(), ids=str)
def test_a_status_cools_and_goes_elsewhere_as_the_table_says(given_: tuple[int, float | None], expected: tuple[float, bool]) -> None:
    told = fault(*given_)
    cooldowns = Cooldowns(transient_seconds=60.0)
    cooldowns.failed(KEY, told, started=0.0, now=100.0)
    found = cooldowns.table.get(KEY)
    assert (0.0 if found is None else found.until - 100.0, told.elsewhere) == (expected[0], expected[1])


ERRORS: dict[str, tuple[CliproxyError, tuple[bool, Rule, bool]]] = {
    "no connection": (UpstreamError("x", code="provider_refused_connection"), (True, Rule.TRANSIENT, True)),
    "name does not resolve": (UpstreamError("x", code="provider_resolve"), (True, Rule.TRANSIENT, True)),
    "forbidden address": (ForbiddenAddress("10.0.0.1", reason="private"), (True, Rule.TRANSIENT, True)),
    "no first byte": (UpstreamError("x", status=504, code="provider_timeout"), (True, Rule.TRANSIENT, False)),
    "reset": (UpstreamError("x", code="provider_broke_off"), (True, Rule.TRANSIENT, False)),
    "no answer of its dialect": (UpstreamError("x", code="bad_upstream_answer"), (True, Rule.TRANSIENT, False)),
    "too large": (UpstreamError("x", code="provider_answer_too_large"), (False, Rule.NOTHING, False)),
    "a bug of ours": (UpstreamError("x", status=500, code="internal_error"), (False, Rule.NOTHING, False)),
    "no room": (Unavailable("x", code="provider_busy"), (True, Rule.NOTHING, False)),
    "another origin": (ForeignOrigin("cred_1"), (True, Rule.NOTHING, False)),
    "the client's fault": (SchemaError("x"), (False, Rule.NOTHING, False)),
}


@pytest.mark.parametrize(("error", "expected"), ERRORS.values(), ids=ERRORS)
def test_an_error_without_a_status_is_judged_by_whose_fault_it_is(error: CliproxyError, expected: tuple[bool, Rule, bool]) -> None:
    told = fault_of(error)
    assert (told.elsewhere, told.rule, told.everywhere) == expected


def test_rate_limits_without_a_time_double_to_half_an_hour() -> None:
    cooldowns = Cooldowns(transient_seconds=60.0)
    now, seconds = 0.0, []
    for _ in range(14):
        cooldowns.failed(KEY, fault(429), started=now, now=now)
        seconds.append(cooldowns.table[KEY].until - now)
        now = cooldowns.table[KEY].until
    assert seconds == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 1800, 1800, 1800]


def test_calls_that_were_under_way_together_are_one_strike() -> None:
    cooldowns = Cooldowns(transient_seconds=60.0)
    for number in range(5):
        cooldowns.failed(KEY, fault(429), started=0.0, now=10.0 + number / 10)
    assert cooldowns.table[KEY].until == pytest.approx(11.4)
    cooldowns.failed(KEY, fault(429, 90.0), started=0.0, now=11.0)  # but a longer time is heard
    assert cooldowns.table[KEY].until == 101.0
    cooldowns.failed(KEY, fault(429), started=101.0, now=101.0)
    assert cooldowns.table[KEY].until == 103.0


def test_a_success_ends_a_cooldown_and_its_strikes() -> None:
    cooldowns = Cooldowns(transient_seconds=60.0)
    for now in (0.0, 1.0, 3.0):
        cooldowns.failed(KEY, fault(429), started=now, now=now)
    cooldowns.succeeded(KEY, started=7.0)
    assert not cooldowns.table
    cooldowns.failed(KEY, fault(429), started=8.0, now=8.0)
    assert cooldowns.table[KEY].until == 9.0


def test_a_call_that_began_before_the_cooldown_does_not_end_it() -> None:
    cooldowns = Cooldowns(transient_seconds=60.0)
    cooldowns.failed(KEY, fault(500), started=5.0, now=10.0)
    cooldowns.succeeded(KEY, started=9.9)
    assert KEY in cooldowns.table


def test_after_its_time_one_call_probes_and_others_wait_for_its_verdict() -> None:
    cooldowns = Cooldowns(transient_seconds=60.0)
    cooldowns.failed(KEY, fault(500), started=0.0, now=0.0)
    found = cooldowns.table[KEY]
    assert not found.allows(59.9) and found.wait(0.0) == 60.0
    assert found.allows(60.0)
    assert cooldowns.begin(KEY, 60.0)
    assert not found.allows(61.0) and found.wait(61.0) == PROBE_AGAIN_SECONDS
    cooldowns.failed(KEY, fault(500), started=60.0, now=62.0)
    again = cooldowns.table[KEY]
    assert again.until == 122.0 and not again.probing
    assert cooldowns.begin(KEY, 122.0)
    cooldowns.succeeded(KEY, started=122.0)
    assert KEY not in cooldowns.table


@pytest.mark.parametrize("verdict", ["released", "client's fault"])
def test_a_probe_without_a_verdict_lets_the_next_call_probe(verdict: str) -> None:
    cooldowns = Cooldowns(transient_seconds=60.0)
    cooldowns.failed(KEY, fault(500), started=0.0, now=0.0)
    cooldowns.begin(KEY, 60.0)
    if verdict == "released":
        cooldowns.released(KEY, started=60.0)
    else:
        cooldowns.failed(KEY, fault(400), started=60.0, now=61.0)
    assert cooldowns.table[KEY].allows(61.0)


def test_the_late_end_of_an_earlier_probe_does_not_let_a_second_call_probe_beside_the_present_one() -> None:
    cooldowns = Cooldowns(transient_seconds=60.0)
    cooldowns.failed(KEY, fault(500), started=0.0, now=0.0)
    cooldowns.begin(KEY, 60.0)
    cooldowns.succeeded(KEY, started=60.0)  # its answer began: a stream, which goes on
    cooldowns.failed(KEY, fault(500), started=61.0, now=62.0)
    cooldowns.begin(KEY, 122.0)
    cooldowns.released(KEY, started=60.0)
    assert not cooldowns.table[KEY].allows(123.0)
    cooldowns.released(KEY, started=122.0)
    assert cooldowns.table[KEY].allows(123.0)


def test_a_call_without_a_cooldown_is_no_probe() -> None:
    assert not Cooldowns(transient_seconds=60.0).begin(KEY, 0.0)


def test_a_cooldown_of_nothing_switches_transient_ones_off_and_no_others() -> None:
    cooldowns = Cooldowns(transient_seconds=0.0)
    cooldowns.failed(KEY, fault(500), started=0.0, now=0.0)
    assert not cooldowns.table
    cooldowns.failed(KEY, fault(401), started=0.0, now=0.0)
    assert cooldowns.table


@pytest.mark.parametrize(("status", "kind", "seconds"), [(429, RateLimited, 1.0), (500, Unavailable, 60.0), (401, Unavailable, 1800.0)])
def test_a_client_that_finds_nothing_else_is_told_when_and_in_our_words(status: int, kind: type[CliproxyError], seconds: float) -> None:
    cooldowns = Cooldowns(transient_seconds=60.0)
    error = ProviderRefusal("model gpt-secret of org-other-client", status=404, code="c", provider_status=status, retry_after=None)
    cooldowns.failed(KEY, fault_of(error), started=0.0, now=0.0)
    told = cooldowns.table[KEY].error(0.0)
    assert isinstance(told, kind)
    assert isinstance(told, RateLimited | Unavailable) and told.retry_after == seconds
    assert "secret" not in str(told)


def test_the_table_is_bounded_and_what_cools_longest_makes_room() -> None:
    cooldowns = Cooldowns(transient_seconds=60.0)
    for number in range(MAX_COOLDOWNS - 1):
        cooldowns.failed(Key("p", "c", f"made-up-{number}", 1), fault(404), started=0.0, now=float(number))
    cooldowns.failed(KEY, fault(500), started=0.0, now=5000.0)
    for number in range(3 * MAX_COOLDOWNS):
        cooldowns.failed(Key("p", "c", f"more-{number}", 1), fault(404), started=0.0, now=5000.0 + number / 1000)
    assert len(cooldowns.table) == MAX_COOLDOWNS
    assert KEY in cooldowns.table
    told = 0
    while changes := cooldowns.take_changes(now=0.0, wall=0.0, most=1000):
        told += len(changes)
    assert told <= 2 * MAX_COOLDOWNS


def test_what_is_over_makes_room_before_what_still_cools() -> None:
    cooldowns = Cooldowns(transient_seconds=60.0)
    for number in range(MAX_COOLDOWNS):
        cooldowns.failed(Key("p", "c", f"made-up-{number}", 1), fault(429), started=0.0, now=0.0)
    cooldowns.failed(KEY, fault(401), started=100.0, now=100.0)
    for number in range(MAX_COOLDOWNS - 1):
        cooldowns.failed(Key("p", "c", f"more-{number}", 1), fault(500), started=100.0, now=100.0)
    assert len(cooldowns.table) == MAX_COOLDOWNS and KEY in cooldowns.table
    assert not any(key.model.startswith("made-up") for key in cooldowns.table)


def test_the_vault_keeps_nothing_that_has_made_room() -> None:
    cooldowns = Cooldowns(transient_seconds=60.0)
    kept: dict[tuple[str, str], float] = {}

    def tell() -> None:
        while records := cooldowns.take_changes(now=0.0, wall=1_700_000_000.0, most=64):
            for record in records:
                if record.until:
                    kept[record.credential, record.model] = record.until
                else:
                    kept.pop((record.credential, record.model), None)

    cooldowns.failed(KEY, fault(404), started=0.0, now=0.0)
    tell()
    cooldowns.failed(KEY, fault(404), started=1.0, now=1.0)  # changed, and not told yet
    for number in range(2 * MAX_COOLDOWNS):
        cooldowns.failed(Key("p", "c", f"made-up-{number}", 1), fault(500), started=0.0, now=0.0)
    assert KEY not in cooldowns.table
    tell()
    assert set(kept) == {(key.credential, key.model) for key in cooldowns.table}


@pytest.mark.parametrize("status", [409, 425])
def test_a_record_of_what_cools_nothing_is_not_believed(status: int) -> None:
    cooldowns = Cooldowns(transient_seconds=60.0)
    record = CooldownRecord(provider="p", credential="cred_1", model="m", endpoint="chat_completions", until=1100.0, status=status, code="c", strikes=0)
    cooldowns.load([record], now=0.0, wall=1000.0)
    assert not cooldowns.table


def test_what_the_vault_is_told_survives_a_restart() -> None:
    before = Cooldowns(transient_seconds=60.0)
    limited, ended = Key("p", "cred_2", "m", 2), Key("q", "", "n", 1)
    before.failed(KEY, fault(401), started=0.0, now=1000.0)
    for now in (1000.0, 1001.0, 1003.0):
        before.failed(limited, fault(429), started=now, now=now)
    before.failed(ended, fault(500), started=0.0, now=940.0)
    records = before.take_changes(now=1005.0, wall=1_700_000_005.0, most=64)
    assert before.take_changes(now=1005.0, wall=1_700_000_005.0, most=64) == ()
    after = Cooldowns(transient_seconds=60.0)
    after.load(records, now=3.0, wall=1_700_000_010.0)
    assert after.table[KEY].until == pytest.approx(3.0 + 1800 - 10)
    assert after.table[limited].allows(3.0) and after.begin(limited, 3.0)
    after.failed(limited, fault(429), started=3.0, now=3.0)
    assert after.table[limited].until == 3.0 + 8  # the fourth in a row
    assert after.take_changes(now=3.0, wall=0.0, most=64)[0].credential == "cred_2"


def test_what_is_told_after_a_step_of_the_clock_is_something_that_the_vault_takes() -> None:
    cooldowns = Cooldowns(transient_seconds=60.0)
    cooldowns.failed(KEY, fault(500), started=0.0, now=0.0)
    (told,) = cooldowns.take_changes(now=5000.0, wall=100.0, most=64)  # over for long, and the clock was set to 1970
    assert told.until > 0.0 and told.status == 500


def test_an_end_is_told_too_and_everything_anew_to_a_vault_that_lost_it() -> None:
    cooldowns = Cooldowns(transient_seconds=60.0)
    cooldowns.failed(KEY, fault(401), started=0.0, now=0.0)
    cooldowns.take_changes(now=0.0, wall=0.0, most=64)
    cooldowns.forget_told()
    (again,) = cooldowns.take_changes(now=0.0, wall=100.0, most=64)
    assert again.until == 1900.0
    cooldowns.succeeded(KEY, started=1800.0)
    (gone,) = cooldowns.take_changes(now=0.0, wall=0.0, most=64)
    assert (gone.provider, gone.credential, gone.model, gone.endpoint, gone.until) == (*KEY[:3], "chat_completions", 0.0)


def test_what_is_forgotten_is_one_providers_and_told() -> None:
    cooldowns = Cooldowns(transient_seconds=60.0)
    other = KEY._replace(provider="q")
    for key in (KEY, KEY._replace(model="n"), other):
        cooldowns.failed(key, fault(404), started=0.0, now=0.0)
    cooldowns.take_changes(now=0.0, wall=0.0, most=64)
    cooldowns.forget("p", now=50.0)
    assert list(cooldowns.table) == [other]
    assert {(told.provider, told.model, told.until) for told in cooldowns.take_changes(now=0.0, wall=0.0, most=64)} == {("p", "m", 0.0), ("p", "n", 0.0)}


def test_a_call_that_left_before_its_provider_was_another_says_nothing_about_it() -> None:
    cooldowns = Cooldowns(transient_seconds=60.0)
    cooldowns.forget("p", now=50.0)
    cooldowns.failed(KEY, fault(404), started=49.0, now=51.0)
    assert not cooldowns.table
    cooldowns.failed(KEY._replace(provider="q"), fault(404), started=49.0, now=51.0)
    cooldowns.failed(KEY, fault(404), started=50.0, now=51.0)
    assert {key.provider for key in cooldowns.table} == {"p", "q"}


def test_what_was_found_out_since_the_start_is_not_overwritten() -> None:
    cooldowns = Cooldowns(transient_seconds=60.0)
    cooldowns.failed(KEY, fault(401), started=0.0, now=0.0)
    (record,) = cooldowns.take_changes(now=0.0, wall=1000.0, most=1)
    fresh = Cooldowns(transient_seconds=60.0)
    fresh.failed(KEY, fault(429), started=0.0, now=0.0)
    fresh.load([record], now=0.0, wall=1000.0)
    assert fresh.table[KEY].until == 1.0


STEP = st.tuples(st.sampled_from(["fail", "succeed", "begin", "release"]), st.sampled_from([400, 401, 404, 409, 429, 500]), st.floats(0.0, 5000.0))


@given(st.lists(STEP, max_size=40))
@settings(max_examples=200)
def test_at_most_one_probe_is_under_way_and_no_cooldown_is_longer_than_the_longest(steps: list[tuple[str, int, float]]) -> None:
    cooldowns = Cooldowns(transient_seconds=60.0)
    now, started, probing = 0.0, 0.0, False
    for what, status, passed in steps:
        now += passed
        found = cooldowns.table.get(KEY)
        if what == "begin":
            if found is None or found.allows(now):
                assert not probing
                probing = cooldowns.begin(KEY, now)
                started = now
        elif what == "fail" and (probing or found is None):
            cooldowns.failed(KEY, fault(status), started=started if probing else now, now=now)
            probing = False
        elif what == "succeed" and probing:
            cooldowns.succeeded(KEY, started=started)
            probing = False
            assert KEY not in cooldowns.table
        elif what == "release" and probing:
            cooldowns.released(KEY, started=started)
            probing = False
        found = cooldowns.table.get(KEY)
        if found is not None:
            assert found.until <= now + 12 * HOUR
            assert found.probing == probing


def test_a_reset_of_a_millisecond_is_believed_once_and_then_waits_longer_until_it_answers() -> None:
    """A provider that says `retry-after-ms: 1` with each refusal was called again each time: as often as it liked, with the credential on it."""
    cooldowns = Cooldowns(transient_seconds=60.0)
    now, seconds = 0.0, []
    for _ in range(13):
        cooldowns.failed(KEY, fault(429, 0.001), started=now, now=now)
        seconds.append(round(cooldowns.table[KEY].until - now, 3))
        now = cooldowns.table[KEY].until
    assert seconds == [0.001, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2, 60.0, 60.0]
    cooldowns.failed(KEY, fault(429, 90.0), started=now, now=now)
    assert cooldowns.table[KEY].until - now == pytest.approx(90.0)  # what is longer is believed
    cooldowns.succeeded(KEY, started=now + 90.0)
    cooldowns.failed(KEY, fault(429, 0.001), started=now + 91.0, now=now + 91.0)
    assert cooldowns.table[KEY].until - now - 91.0 == pytest.approx(0.001)


def test_calls_that_were_refused_together_do_not_make_a_short_reset_longer() -> None:
    cooldowns = Cooldowns(transient_seconds=60.0)
    for number in range(5):
        cooldowns.failed(KEY, fault(429, 0.5), started=0.0, now=1.0 + number / 1000)
    assert cooldowns.table[KEY].until == pytest.approx(1.504)
