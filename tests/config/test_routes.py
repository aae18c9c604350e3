"""Where public names lead: pools, aliases, prefixes, fallbacks, profiles; and that looking for what is not there is bounded work."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliproxy.bounds import MAX_MODEL_CHARS, MAX_ROUTE_TARGETS
from cliproxy.config.routes import MAX_NEAR_NAMES, Profile, RouteTable, pattern_of
from cliproxy.config.schema import ModelRoute, PoolMember, Provider, Settings
from cliproxy.dialects import Dialect, Endpoint, Operation, Quirks
from cliproxy.errors import ConfigError

OPENAI = Provider(kind="openai", base_url="https://api.openai.com/v1")
ANTHROPIC = Provider(kind="anthropic", base_url="https://api.anthropic.com")
PLAIN = Provider(kind="openai_compatible", base_url="https://plain.example/v1")
WILD = Provider(kind="openai_compatible", base_url="https://wild.example/v1", prefix="w", models=("gpt-*", "*-chat"), exclude=("*-preview", "gpt-3*"))
PROVIDERS = {"openai": OPENAI, "anthropic": ANTHROPIC, "plain": PLAIN, "wild": WILD, "echo": Provider(kind="echo")}
CHAT = Profile(Endpoint.CHAT_COMPLETIONS, Quirks.NONE)
MESSAGES = Profile(Endpoint.MESSAGES, Quirks.NONE)


def at(provider: str, model: str = "m", **more: Any) -> ModelRoute:
    return ModelRoute(provider=provider, model=model, **more)


def table(**models: ModelRoute) -> RouteTable:
    return RouteTable(Settings(providers=PROVIDERS, models=models))


def ids(routes: RouteTable, name: str) -> list[str]:
    route = routes.find(name)
    assert route is not None
    return [target.id for target in route.targets]


def test_a_name_leads_to_its_provider() -> None:
    route = table(x=at("plain", "their/model")).find("x")
    assert route is not None
    (target,) = route.targets
    assert (target.id, target.provider, target.model, target.model_json) == ("plain/their/model", "plain", "their/model", b'"their/model"')
    assert (target.origin, target.base_path, target.tier, target.priority, target.weight) == ("https://plain.example:443", "/v1", 0, 0, 1)


def test_an_alias_is_another_name_for_the_same_route() -> None:
    routes = table(x=at("plain"), y=ModelRoute(alias="x"), z=ModelRoute(alias="y"))
    assert ids(routes, "z") == ids(routes, "y") == ids(routes, "x")
    assert routes.public() == (("x", "plain"), ("y", "plain"), ("z", "plain"))


def test_targets_are_in_order_of_tier_and_priority_and_each_is_there_once() -> None:
    members = (PoolMember(provider="plain", model="a"), PoolMember(provider="openai", model="b", priority=2), PoolMember(provider="wild", model="c"))
    routes = table(
        x=ModelRoute(pool=members, fallback=("y", "w")), y=at("plain", "d", fallback=("v",)), v=at("plain", "a"), w=ModelRoute(alias="z"), z=at("anthropic")
    )
    assert ids(routes, "x") == ["openai/b", "plain/a", "wild/c", "plain/d", "anthropic/m"]
    route = routes.find("x")
    assert route is not None and [target.tier for target in route.targets] == [0, 0, 0, 1, 3]


def test_a_members_priority_counts_on_top_of_its_providers() -> None:
    providers = {**PROVIDERS, "openai": Provider(kind="openai", base_url="https://api.openai.com/v1", priority=-5)}
    members = (PoolMember(provider="plain", model="a"), PoolMember(provider="openai", model="b", priority=4))
    routes = RouteTable(Settings(providers=providers, models={"x": ModelRoute(pool=members)}))
    assert ids(routes, "x") == ["plain/a", "openai/b"]


LEADS_NOWHERE = {
    "no such provider": {"x": at("nobody")},
    "no such alias": {"x": ModelRoute(alias="y")},
    "no such fallback": {"x": at("plain", fallback=("y",))},
    "alias of itself": {"x": ModelRoute(alias="x")},
    "aliases in a circle": {"x": ModelRoute(alias="y"), "y": ModelRoute(alias="x")},
    "fallbacks in a circle": {"x": at("plain", fallback=("y",)), "y": at("openai", fallback=("z",)), "z": at("anthropic", fallback=("x",))},
    "a fallback through an alias": {"x": at("plain", fallback=("y",)), "y": ModelRoute(alias="x")},
    "excluded": {"x": at("wild", "new-preview")},
    "nothing said": {"x": ModelRoute()},
    "a chain that is too long": {f"m{n}": at("plain", f"m{n}", fallback=(f"m{n + 1}",)) for n in range(5000)} | {"m5000": at("plain")},
    "too many targets": {"x": ModelRoute(pool=tuple(PoolMember(provider="plain", model=f"m{n}") for n in range(MAX_ROUTE_TARGETS + 1)))},
}


@pytest.mark.parametrize("models", LEADS_NOWHERE.values(), ids=LEADS_NOWHERE)
def test_a_route_that_leads_nowhere_is_refused_with_its_key(models: dict[str, ModelRoute]) -> None:
    with pytest.raises(ConfigError) as caught:
        table(**models)
    assert caught.value.key is not None and caught.value.key.startswith("models") and caught.value.cure


WILDCARDS = {
    "w/gpt-4o": "wild/gpt-4o",
    "w/any-chat": "wild/any-chat",
    "w/gpt-4o-preview": None,
    "w/gpt-3.5": None,
    "w/other": None,
    "w/": None,
    "w/gpt-4o/../../x": None,  # into a path it would go as one segment, but whoever decodes and normalises that finds another model
    "v/gpt-4o": None,
    "gpt-4o": None,
    "w/gpt-4o\n": None,
    "w/gpt-ü": None,
    "w/gpt- 4": None,
    "w/gpt-" + "a" * MAX_MODEL_CHARS: None,
}


@pytest.mark.parametrize(("name", "expected"), WILDCARDS.items(), ids=lambda value: str(value)[:20])
def test_a_prefix_leads_to_what_its_wildcards_take_and_nothing_that_is_excluded(name: str, expected: str | None) -> None:
    route = table(x=at("plain")).find(name)
    assert (None if route is None else [target.id for target in route.targets]) == (None if expected is None else [expected])


def test_an_exact_name_comes_before_a_wildcard() -> None:
    assert ids(table(**{"w/gpt-4o": at("plain", "mine")}), "w/gpt-4o") == ["plain/mine"]


def test_who_excludes_a_name_can_be_told() -> None:
    routes = table(x=at("plain"))
    assert routes.excluded_by("w/gpt-4o-preview") == "wild"
    assert routes.excluded_by("w/gpt-4o") is None and routes.excluded_by("x") is None


# --- profiles --------------------------------------------------------------------------------------------------------------


def test_the_clients_own_dialect_is_preferred_where_a_target_has_it() -> None:
    route = table(x=at("openai")).find("x")
    assert route is not None
    assert [profile.endpoint for profile in route.profiles(Operation.GENERATE, Dialect.OPENAI_RESPONSES)] == [Endpoint.RESPONSES]
    assert [profile.endpoint for profile in route.profiles(Operation.GENERATE, Dialect.OPENAI_CHAT)] == [Endpoint.CHAT_COMPLETIONS]


def test_profiles_are_distinct_and_in_the_order_of_the_targets() -> None:
    members = tuple(PoolMember(provider=name, model="m") for name in ("plain", "anthropic", "wild"))
    route = table(x=ModelRoute(pool=members)).find("x")
    assert route is not None
    assert route.profiles(Operation.GENERATE, Dialect.ANTHROPIC_MESSAGES) == (CHAT, MESSAGES)
    assert [[target.provider for target in group.targets] for group in route.groups_for(CHAT)] == [["plain", "wild"]]
    assert [[target.provider for target in group.targets] for group in route.groups_for(MESSAGES)] == [["anthropic"]]


def test_an_operation_that_no_target_has_has_no_profile() -> None:
    route = table(x=at("anthropic")).find("x")
    assert route is not None and route.profiles(Operation.IMAGES, Dialect.OPENAI_MEDIA) == ()


@given(st.integers(-5, 300), st.integers(-5, 300))
def test_numbers_that_are_no_profile_lead_to_no_target_and_are_not_kept(endpoint: int, quirks: int) -> None:
    route = table(x=at("plain")).find("x")
    assert route is not None
    found = route.groups_for((endpoint, quirks))
    assert bool(found) == (endpoint in (Endpoint.CHAT_COMPLETIONS, Endpoint.EMBEDDINGS) and quirks == 0)
    assert len(route._by_profile) <= 1


def test_what_fills_the_hole_is_the_model_as_json_the_bare_name_in_a_form_and_nothing_where_the_path_says_it() -> None:
    providers = {**PROVIDERS, "google": Provider(kind="gemini", base_url="https://generativelanguage.googleapis.com/v1beta")}
    routes = RouteTable(Settings(providers=providers, models={"x": at("openai", "o"), "g": at("google", "gemini-x")}))
    openai, google = (routes.find(name) for name in ("x", "g"))
    assert openai is not None and google is not None
    assert openai.targets[0].fillings[Endpoint.CHAT_COMPLETIONS] == b'"o"'
    assert openai.targets[0].fillings[Endpoint.TRANSCRIPTIONS] == b"o"
    assert google.targets[0].fillings[Endpoint.GENERATE_CONTENT] == b""


# --- near names ------------------------------------------------------------------------------------------------------------


def test_near_names_are_those_that_the_caller_may_know() -> None:
    routes = table(**{name: at("plain") for name in ("gpt-4o", "gpt-4o-mini", "claude-sonnet", "GPT-5")})
    assert routes.near("gpt-4", lambda _: True)[0] == "gpt-4o"
    assert "gpt-4o" not in routes.near("gpt-4", lambda name: name != "gpt-4o")
    assert routes.near("gpt-4", lambda _: False) == []
    assert routes.near("xyzzy", lambda _: True) == []


def test_near_names_of_many_models_are_found_with_bounded_work(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(7)
    names = {f"{rng.choice(('gpt', 'claude', 'gemini'))}-{number:04d}" for number in range(1500)}
    routes = table(**{name: at("plain") for name in names}, needle=at("plain"))
    seen: list[int] = []
    import difflib

    real = difflib.get_close_matches

    def counted(word: str, names: list[str], **more: Any) -> list[str]:
        seen.append(len(names))
        return real(word, names, **more)

    monkeypatch.setattr(difflib, "get_close_matches", counted)
    assert routes.near("needel", lambda _: True) == ["needle"]
    assert len(routes.near("gpt-" + "0" * 100_000, lambda _: True)) <= MAX_NEAR_NAMES
    assert max(seen) <= 32


# --- patterns --------------------------------------------------------------------------------------------------------------


@given(st.text("ab*.", max_size=8), st.text("ab.", max_size=12))
def test_a_pattern_matches_what_its_stars_stand_for(pattern: str, text: str) -> None:
    def matches(pattern: str, text: str) -> bool:
        if not pattern:
            return not text
        if pattern[0] == "*":
            return any(matches(pattern[1:], text[at:]) for at in range(len(text) + 1))
        return bool(text) and text[0] == pattern[0] and matches(pattern[1:], text[1:])

    assert bool(pattern_of(pattern).fullmatch(text)) == matches(pattern, text)
