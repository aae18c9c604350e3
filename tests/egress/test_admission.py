"""Limits of keys and providers: taken before, settled after, nothing taken by a refusal, never above the limit plus what is in flight."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliproxy.auth.principals import Principal
from cliproxy.config.schema import Auth, KeyDefaults, Provider, ProviderRate, Settings
from cliproxy.egress.admission import Admission
from cliproxy.errors import RateLimited


def principal(name="k1", **limits):
    return Principal(id=name, digest=name.encode().ljust(32, b"."), name=name, models=("*",), **limits)


def admission(*, key=None, provider=None, concurrency=0):
    settings = Settings(
        auth=Auth(key_limits=key or KeyDefaults(concurrency=0)), providers={"p": Provider(rate_limit=provider or ProviderRate(), concurrency=concurrency)}
    )
    return Admission(settings)


def take(limits, who, now=1000.0, tokens=10):
    return limits.reserve(who, "p", tokens=tokens, now=now, wall=now)


def admitted(limits, who, count, now=1000.0, tokens=10):
    done = 0
    for _ in range(count):
        try:
            take(limits, who, now, tokens)
        except RateLimited:
            continue
        done += 1
    return done


def test_requests_a_minute_are_counted_for_each_key():
    limits = admission()
    assert admitted(limits, principal("k1", requests_per_minute=5), 9) == 5
    assert admitted(limits, principal("k2", requests_per_minute=5), 9) == 5


def test_the_provider_s_limit_holds_over_all_keys_and_is_the_specification_s_block():
    limits = admission(provider=ProviderRate(requests_per_minute=3))
    assert admitted(limits, principal("k1"), 2) + admitted(limits, principal("k2"), 9) == 3


def test_a_refusal_takes_nothing():
    limits = admission(provider=ProviderRate(requests_per_minute=1))
    who = principal("k1", requests_per_minute=2)
    take(limits, who)
    for _ in range(5):
        with pytest.raises(RateLimited):
            take(limits, who)
    # the provider recovers in a minute; the key still has its second request and was never charged for the refused ones
    take(limits, who, now=1061.0)


def test_concurrency_is_given_back_by_settling_and_only_once():
    limits = admission()
    who = principal(concurrency=2)
    first, _second = take(limits, who), take(limits, who)
    with pytest.raises(RateLimited):
        take(limits, who)
    first.settle(1)
    first.settle(1)
    take(limits, who)
    with pytest.raises(RateLimited):
        take(limits, who)


def test_tokens_are_reserved_first_and_settled_with_the_real_usage():
    limits = admission()
    who = principal(tokens_per_minute=100)
    first = take(limits, who, tokens=80)
    with pytest.raises(RateLimited):
        take(limits, who, tokens=30)
    first.settle(20)
    take(limits, who, tokens=80)
    with pytest.raises(RateLimited):
        take(limits, who, tokens=1)


def test_unknown_usage_settles_at_the_reservation():
    limits = admission()
    who = principal(tokens_per_minute=100)
    take(limits, who, tokens=80).settle(None)
    with pytest.raises(RateLimited):
        take(limits, who, tokens=30)
    take(limits, who, tokens=30, now=1010.0)


def test_usage_above_the_reservation_is_a_debt():
    limits = admission()
    who = principal(tokens_per_minute=60)
    take(limits, who, tokens=10).settle(120)
    with pytest.raises(RateLimited) as refused:
        take(limits, who, tokens=10)
    assert refused.value.retry_after == pytest.approx(70.0)
    take(limits, who, tokens=10, now=1070.1)


def test_a_call_that_can_never_fit_says_so():
    with pytest.raises(RateLimited, match="lower max_tokens"):
        take(admission(), principal(tokens_per_minute=100), tokens=101)


def test_retry_after_is_when_it_fits():
    limits = admission()
    who = principal(requests_per_minute=60)
    assert admitted(limits, who, 60) == 60
    with pytest.raises(RateLimited) as refused:
        take(limits, who)
    take(limits, who, now=1000.0 + refused.value.retry_after + 1e-6)


def test_limits_survive_a_reload():
    limits = admission(provider=ProviderRate(requests_per_minute=2))
    who = principal()
    assert admitted(limits, who, 2) == 2
    limits.reconfigure(Settings(providers={"p": Provider(rate_limit=ProviderRate(requests_per_minute=2))}))
    assert admitted(limits, who, 2) == 0


def test_a_key_s_own_limit_stands_before_the_default():
    limits = admission(key=KeyDefaults(requests_per_minute=2, concurrency=0))
    assert admitted(limits, principal("k1"), 5) == 2
    assert admitted(limits, principal("k2", requests_per_minute=4), 5) == 4


def test_a_limit_that_a_reload_brings_does_not_begin_with_all_that_was_ever_used():
    limits = admission()
    who = principal()
    for _ in range(100):
        take(limits, who, tokens=1000).settle(1000)
    limits.reconfigure(
        Settings(auth=Auth(key_limits=KeyDefaults(tokens_per_minute=5000)), providers={"p": Provider(rate_limit=ProviderRate(tokens_per_minute=5000))})
    )
    take(limits, who, tokens=1000)


def test_last_use_is_told_once():
    limits = admission()
    take(limits, principal("k1"), now=1000.0)
    assert limits.take_last_use() == {"k1": 1000}
    assert limits.take_last_use() == {}


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(0, 90), st.booleans()), max_size=60))
def test_never_more_tokens_than_the_limit_are_reserved_at_once(steps):
    limits = admission()
    who = principal(tokens_per_minute=100)
    reserved = []
    for tokens, used, settles in steps:
        try:
            reserved.append((take(limits, who, tokens=tokens), tokens))
        except RateLimited:
            pass
        assert sum(tokens for _, tokens in reserved) <= 100
        if settles and reserved:
            reservation, tokens = reserved.pop()
            reservation.settle(min(used, tokens))
