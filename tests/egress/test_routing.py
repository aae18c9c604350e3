"""Who gets the next attempt: tiers, priorities, strategies, sessions, credentials. Nothing here has a clock."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliproxy.config.routes import Route, RouteTable
from cliproxy.config.schema import ModelRoute, PoolMember, Provider, Settings
from cliproxy.dialects import Endpoint
from cliproxy.egress.cooldowns import Cooldowns, Fault, Key, Rule
from cliproxy.egress.routing import Router, Tried

PROVIDERS = {name: Provider(kind="openai_compatible", base_url=f"https://{name}.example/v1") for name in "abcde"}
CHAT = (Endpoint.CHAT_COMPLETIONS, 0)
LIMITED = Fault(True, Rule.RATE, 429, "c")


def pool(*members: tuple[Any, ...], **more: Any) -> ModelRoute:
    """Members are (provider, weight, priority)."""
    made = tuple(PoolMember(provider=name, model="m", **dict(zip(("weight", "priority"), rest, strict=False))) for name, *rest in members)
    return ModelRoute(pool=made, **more)


class Case:
    def __init__(self, route: ModelRoute, *, credentials: dict[str, tuple[str, ...]] | None = None, **others: ModelRoute) -> None:
        table = RouteTable(Settings(providers=PROVIDERS, models={"x": route, **others}))
        found = table.find("x")
        assert found is not None
        self.route: Route = found
        self.groups = found.groups_for(CHAT)
        self.cooldowns = Cooldowns(transient_seconds=60.0)
        self.router = Router(self.cooldowns)
        self._credentials = {name: tuple(SimpleNamespace(id=id) for id in (credentials or {}).get(name, (f"cred_{name}",))) for name in PROVIDERS}
        self.disabled: tuple[str, ...] = ()

    def credentials(self, target: Any) -> Any:
        return self._credentials[target.provider]

    def choose(self, *, tried: Tried | None = None, session: str = "", now: float = 0.0) -> tuple[str, str] | None:
        found = self.router.choose(self.groups, CHAT[0], credentials=self.credentials, tried=tried, disabled=self.disabled, session=session, now=now)
        return None if found is None else (found[0].provider, found[1].id)

    def providers(self, count: int, **more: Any) -> str:
        return "".join(found[0] for _ in range(count) if (found := self.choose(**more)) is not None)

    def cool(self, *providers: str, now: float = 0.0, credential: str = "") -> None:
        for name in providers:
            self.cooldowns.failed(Key(name, credential or f"cred_{name}", "m", CHAT[0]), LIMITED, started=now, now=now)


STRATEGIES = {
    "round robin": (pool(("a",), ("b",), ("c",)), "abcabc"),
    "weights do not count in it": (pool(("a", 9), ("b", 1)), "abab"),
    "weighted, as evenly spread as can be": (pool(("a", 5), ("b", 1), ("c", 1), strategy="weighted"), "aabacaa"),
    "fill first": (pool(("a",), ("b",), strategy="fill_first"), "aaaa"),
    "priority before strategy": (pool(("a",), ("b", 1, 7), ("c", 1, 7)), "bcbc"),
    "least busy, nothing under way": (pool(("a",), ("b",), ("c",), strategy="least_busy"), "abcabc"),
}


@pytest.mark.parametrize(("route", "expected"), STRATEGIES.values(), ids=STRATEGIES)
def test_members_are_chosen_by_the_strategy(route: ModelRoute, expected: str) -> None:
    assert Case(route).providers(len(expected)) == expected


@pytest.mark.parametrize("strategy", ["round_robin", "weighted", "fill_first", "least_busy"])
def test_what_cools_is_passed_over_and_comes_back(strategy: str) -> None:
    case = Case(pool(("a",), ("b",), strategy=strategy))
    case.cool("a")
    assert case.providers(4) == "bbbb"
    assert "a" in case.providers(2, now=1.0)


def test_a_lower_priority_is_used_when_no_higher_one_can_and_a_fallback_after_that() -> None:
    case = Case(pool(("a", 1, 5), ("b", 1, 5), ("c",), fallback=("y",)), y=pool(("d", 1, 99)))
    case.cool("a")
    assert case.providers(2) == "bb"
    case.cool("b")
    assert case.providers(2) == "cc"
    case.cool("c")
    assert case.providers(2) == "dd"
    case.cool("d")
    assert case.choose() is None


def test_a_fallback_goes_by_its_own_strategy() -> None:
    case = Case(pool(("a",), fallback=("y",)), y=pool(("b",), ("c",), strategy="fill_first"))
    case.cool("a")
    assert case.providers(3) == "bbb"


def test_a_provider_that_is_switched_off_or_has_no_credential_is_passed_over() -> None:
    case = Case(pool(("a",), ("b",), ("c",)), credentials={"b": ()})
    case.disabled = ("a",)
    assert case.providers(3) == "ccc"


def test_the_least_busy_is_the_one_with_the_fewest_calls_under_way() -> None:
    case = Case(pool(("a",), ("b",), ("c",), strategy="least_busy"))
    a, b, c = case.route.targets
    for target in (a, a, b):
        case.router.began(target)
    assert case.providers(2) == "cc"
    case.router.began(c)
    case.router.ended(a)
    case.router.ended(a)
    assert case.providers(1) == "a"


def test_what_was_tried_is_not_tried_again() -> None:
    case = Case(pool(("a",), ("b",), ("c",)), credentials={"a": ("one", "two")})
    tried = Tried(["b/m"])
    seen = []
    while (found := case.choose(tried=tried)) is not None:
        seen.append(found)
        tried.pairs.add((f"{found[0]}/m", found[1]))
    assert sorted(seen) == [("a", "one"), ("a", "two"), ("c", "cred_c")]
    tried = Tried()
    tried.providers.update("ac")
    assert case.choose(tried=tried) == ("b", "cred_b")


def test_credentials_take_turns_and_cool_each_by_itself() -> None:
    case = Case(pool(("a",)), credentials={"a": ("one", "two", "three")})
    assert [case.choose()[1] for _ in range(4)] == ["one", "two", "three", "one"]  # type: ignore[index]
    case.cool("a", credential="two")
    assert {case.choose()[1] for _ in range(4)} == {"one", "three"}  # type: ignore[index]


def test_a_session_stays_with_its_target_and_its_credential_and_moves_only_when_that_cools() -> None:
    case = Case(pool(("a",), ("b",), ("c",), ("d",), affinity=True), credentials={"a": ("one", "two")})
    sessions = [f"s{number}" for number in range(200)]
    before = {session: case.choose(session=session) for session in sessions}
    assert before == {session: case.choose(session=session) for session in sessions}
    shares = Counter(found[0] for found in before.values() if found is not None)
    assert set(shares) == set("abcd") and min(shares.values()) > 20
    assert {found for found in before.values() if found is not None and found[0] == "a"} == {("a", "one"), ("a", "two")}
    case.cool("c")
    after = {session: case.choose(session=session) for session in sessions}
    assert all(after[session] == was for session, was in before.items() if was is not None and was[0] != "c")
    assert not any(found is not None and found[0] == "c" for found in after.values())


def test_weights_count_for_sessions_too() -> None:
    case = Case(pool(("a", 9), ("b", 1), strategy="weighted", affinity=True))
    shares = Counter(case.choose(session=f"s{number}")[0] for number in range(1000))  # type: ignore[index]
    assert 850 < shares["a"] < 950


def test_without_a_session_or_without_affinity_the_strategy_decides() -> None:
    assert Case(pool(("a",), ("b",), affinity=True)).providers(4) == "abab"
    assert Case(pool(("a",), ("b",))).providers(4, session="s") == "abab"


def test_asking_whether_somebody_can_takes_nobodys_turn() -> None:
    case = Case(pool(("a",), ("b",)))
    for _ in range(3):
        assert case.router.can(case.groups, CHAT[0], credentials=case.credentials, tried=None, disabled=(), now=0.0)
    assert case.providers(4) == "abab"
    case.cool("a", "b")
    assert not case.router.can(case.groups, CHAT[0], credentials=case.credentials, tried=None, disabled=(), now=0.0)


def test_the_cooldown_that_ends_first_is_found() -> None:
    case = Case(pool(("a",), ("b",)))
    case.cool("a", now=5.0)
    case.cool("b", now=3.0)
    found = case.router.soonest([(CHAT[0], case.groups)], credentials=case.credentials, disabled=(), now=0.0)
    assert found is not None and found.until == 4.0
    assert case.router.soonest([(CHAT[0], case.groups)], credentials=case.credentials, disabled=("a", "b"), now=0.0) is None


@given(st.lists(st.integers(1, 20), min_size=1, max_size=5))
def test_weighted_members_get_exactly_their_share_in_each_cycle(weights: list[int]) -> None:
    case = Case(pool(*((name, weight) for name, weight in zip("abcde", weights, strict=False)), strategy="weighted"))
    shares = Counter(case.providers(sum(weights)))
    assert shares == dict(zip("abcde", weights, strict=False))


@given(st.sets(st.sampled_from("abcde"), min_size=1), st.sampled_from(["round_robin", "weighted", "fill_first", "least_busy"]), st.text(max_size=5))
def test_whoever_can_take_it_gets_it_and_nobody_else(able: set[str], strategy: str, session: str) -> None:
    case = Case(pool(*((name, 3) for name in "abcde"), strategy=strategy, affinity=True))
    case.cool(*(set("abcde") - able))
    assert set(case.providers(6, session=session)) <= able
    assert case.choose(session=session) is not None


def test_what_cools_at_one_endpoint_is_used_at_another() -> None:
    case = Case(pool(("a",)))
    case.cool("a")
    assert case.choose() is None
    case.groups = case.route.groups_for((Endpoint.EMBEDDINGS, 0))
    found = case.router.choose(case.groups, Endpoint.EMBEDDINGS, credentials=case.credentials, tried=None, disabled=(), session="", now=0.0)
    assert found is not None
