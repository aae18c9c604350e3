"""The policy feed: snapshots replace at their end, changes follow by number, and what is stale or missing is 503, never 401."""

from __future__ import annotations

import pytest

from cliproxy.errors import ChannelError, Unavailable
from cliproxy.ipc.messages import KeyRecord, PolicyBegin, PolicyChange, PolicyEnd, PolicyKeys, PolicyRules
from cliproxy.ipc.policy_feed import POLICY_GRACE_SECONDS, PolicyFeed


def key(number, **more):
    return KeyRecord(id=f"k{number}", digest=bytes([number]) * 32, name=f"key {number}", models=("*",), **more)


def fed(*keys, number=4):
    feed = PolicyFeed()
    feed.apply(PolicyBegin(number=number))
    feed.apply(PolicyKeys(keys=keys))
    feed.apply(PolicyEnd(number=number, rules=PolicyRules()))
    return feed


def test_a_snapshot_is_in_force_only_when_it_is_whole():
    feed = PolicyFeed()
    assert feed.apply(PolicyBegin(number=4)) is None
    assert feed.apply(PolicyKeys(keys=(key(1),))) is None
    assert feed.principals.find(bytes([1]) * 32, 0) is None
    assert feed.apply(PolicyEnd(number=4, rules=PolicyRules(lockdown=True))) == ()
    assert feed.principals.find(bytes([1]) * 32, 0) is not None
    assert feed.rules.lockdown and feed.number == 4


def test_a_new_snapshot_names_the_keys_that_it_ends():
    feed = fed(key(1), key(2))
    feed.apply(PolicyBegin(number=9))
    feed.apply(PolicyKeys(keys=(key(2),)))
    assert feed.apply(PolicyEnd(number=9, rules=PolicyRules())) == ("k1",)


def test_a_change_adds_revokes_and_sets_rules():
    feed = fed(key(1))
    assert feed.apply(PolicyChange(number=5, keys=(key(2),))) == ()
    assert feed.apply(PolicyChange(number=6, revoked=("k1",), rules=PolicyRules(blocked=("192.0.2.0/24",)))) == ("k1",)
    assert feed.principals.find(bytes([1]) * 32, 0) is None
    assert feed.principals.find(bytes([2]) * 32, 0) is not None
    assert feed.rules.blocked == ("192.0.2.0/24",)


@pytest.mark.parametrize(
    "messages",
    [
        [PolicyKeys(keys=())],
        [PolicyEnd(number=1, rules=PolicyRules())],
        [PolicyBegin(number=1), PolicyEnd(number=2, rules=PolicyRules())],
        [PolicyChange(number=1)],
    ],
    ids=["keys without a beginning", "an end without a beginning", "an end of another snapshot", "a change before a snapshot"],
)
def test_messages_out_of_order_are_a_channel_error(messages):
    feed = PolicyFeed()
    with pytest.raises(ChannelError):
        for message in messages:
            feed.apply(message)


@pytest.mark.parametrize("number", [4, 6, 3])
def test_a_change_that_skips_or_repeats_a_number_is_a_channel_error(number):
    with pytest.raises(ChannelError):
        fed(key(1)).apply(PolicyChange(number=number))


def test_what_one_passes_on_is_what_it_holds():
    feed = fed(*(key(number) for number in range(1, 200)))
    feed.apply(PolicyChange(number=5, revoked=("k7",), rules=PolicyRules(lockdown=True)))
    following = PolicyFeed()
    for message in feed.snapshot():
        following.apply(message)
    assert following.principals.ids() == feed.principals.ids() and "k7" not in following.principals.ids()
    assert (following.number, following.rules) == (5, PolicyRules(lockdown=True))


def test_known_keys_go_on_for_the_grace_period_and_then_it_is_503():
    feed = fed(key(1))
    with pytest.raises(Unavailable):
        feed.require_fresh(100.0)
    feed.heard(vault_age=2.0, now=100.0)
    feed.require_fresh(98.0 + POLICY_GRACE_SECONDS)
    with pytest.raises(Unavailable):
        feed.require_fresh(98.5 + POLICY_GRACE_SECONDS)


def test_without_a_snapshot_nothing_is_fresh():
    feed = PolicyFeed()
    feed.heard(vault_age=0.0, now=100.0)
    assert not feed.is_fresh(100.0)
