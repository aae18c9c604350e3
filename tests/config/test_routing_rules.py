"""`models`, `routing` and what routes rest on, as the configuration file says them: what is taken, and each fault with its line and key."""

from __future__ import annotations

import pytest

from cliproxy.config.load import parse_config
from cliproxy.config.routes import RouteTable
from cliproxy.errors import ConfigError

PROVIDERS = """\
providers:
  a: {base_url: "https://a.example.com/v1", models: [one, two]}
  b: {base_url: "https://b.example.com/v1", prefix: b, models: ["gpt-*", exact], exclude: ["*-preview"], priority: 3}
"""  # 3 lines


def routes(text: str) -> RouteTable:
    return RouteTable(parse_config((PROVIDERS + text).encode(), file="f").settings)


def test_the_ways_to_say_where_a_model_is() -> None:
    table = routes("""\
models:
  direct: {provider: a, model: x}
  other: {alias: direct}
  many:
    pool:
      - {provider: a, model: x, weight: 3}
      - {provider: b, model: y, priority: 1}
    strategy: weighted
    affinity: true
    fallback: [direct, b/exact]
routing: {max_attempts: 3, retry_rounds: 0, max_wait_seconds: 1.5, cooldown_seconds: 30}
""")
    assert [name for name, _ in table.public()] == ["b/exact", "direct", "many", "one", "other", "two"]
    many = table.find("many")
    assert many is not None
    assert [target.id for target in many.targets] == ["b/y", "a/x", "b/exact"]  # a/x is there once
    assert (many.strategy, many.affinity) == ("weighted", True)
    assert table.find("b/gpt-7") is not None and table.find("exact") is None


FAULTS = {
    "nothing": ("models:\n  x: {}\n", 5, "models.x"),
    "provider and alias": ("models:\n  x:\n    provider: a\n    alias: one\n", 7, "models.x.alias"),
    "provider and pool": ("models:\n  x:\n    provider: a\n    pool: [{provider: a, model: m}]\n", 7, "models.x.pool"),
    "pool and model": ("models:\n  x:\n    pool: [{provider: a, model: m}]\n    model: m\n", 7, "models.x.model"),
    "alias and model": ("models:\n  x:\n    alias: one\n    model: m\n", 7, "models.x.model"),
    "alias and fallback": ("models:\n  x:\n    alias: one\n    fallback: [two]\n", 7, "models.x.fallback"),
    "alias of nothing": ("models:\n  x:\n    alias: three\n", 6, "models.x.alias"),
    "fallback to nothing": ("models:\n  x:\n    provider: a\n    model: m\n    fallback: [one, three]\n", 8, "models.x.fallback[1]"),
    "fallback to no name": ('models:\n  x:\n    provider: a\n    model: m\n    fallback: [""]\n', 8, "models.x.fallback[0]"),
    "fallback twice": ("models:\n  x:\n    provider: a\n    model: m\n    fallback: [one, one]\n", 8, "models.x.fallback"),
    "circle": ("models:\n  x: {provider: a, model: m, fallback: [y]}\n  y: {provider: a, model: n, fallback: [x]}\n", 5, "models.x"),
    "member of nobody": ("models:\n  x:\n    pool:\n      - {provider: c, model: m}\n", 7, "models.x.pool[0].provider"),
    "member without a model": ("models:\n  x:\n    pool:\n      - {provider: a}\n", 7, "models.x.pool[0].model"),
    "member twice": ("models:\n  x:\n    pool:\n      - {provider: a, model: m}\n      - {provider: a, model: m, weight: 2}\n", 8, "models.x.pool[1]"),
    "weight of nothing": ("models:\n  x:\n    pool:\n      - {provider: a, model: m, weight: 0}\n", 7, "models.x.pool[0].weight"),
    "unknown strategy": ("models:\n  x: {provider: a, model: m, strategy: random}\n", 5, "models.x.strategy"),
    "unknown key": ("models:\n  x: {provider: a, model: m, wieght: 1}\n", 5, "models.x.wieght"),
    "excluded": ("models:\n  x: {provider: b, model: new-preview}\n", 5, "models.x"),
    "attempts": ("routing:\n  max_attempts: 0\n", 5, "routing.max_attempts"),
    "wait": ("routing:\n  max_wait_seconds: 301\n", 5, "routing.max_wait_seconds"),
    "rounds": ("routing:\n  retry_rounds: 11\n", 5, "routing.retry_rounds"),
    "cooldown": ("routing:\n  cooldown_seconds: -1\n", 5, "routing.cooldown_seconds"),
}


@pytest.mark.parametrize(("text", "line", "key"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_reported_with_its_line_and_key(text: str, line: int, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config((PROVIDERS + text).encode(), file="f")
    assert (caught.value.line, caught.value.key) == (line, key), str(caught.value)
    assert caught.value.cure and "\n" not in str(caught.value)


PROVIDER_FAULTS = {
    "wildcard without a prefix": ('a: {base_url: "https://a.example.com", models: ["gpt-*"]}', "providers.a.models[0]"),
    "prefix without models": ('a: {base_url: "https://a.example.com", prefix: x}', "providers.a.prefix"),
    "prefix with a slash": ('a: {base_url: "https://a.example.com", prefix: x/y, models: ["*"]}', "providers.a.prefix"),
    "too many wildcards": ('a: {base_url: "https://a.example.com", prefix: x, models: ["*a*b*c*d*"]}', "providers.a.models[0]"),
    "no pattern": ('a: {base_url: "https://a.example.com", exclude: ["a b"]}', "providers.a.exclude[0]"),
    "empty pattern": ('a: {base_url: "https://a.example.com", exclude: [""]}', "providers.a.exclude[0]"),
    "excludes its own model": ('a: {base_url: "https://a.example.com", models: [m-preview], exclude: ["*-preview"]}', "providers.a.models[0]"),
    "priority": ('a: {base_url: "https://a.example.com", priority: 1001}', "providers.a.priority"),
}


@pytest.mark.parametrize(("text", "key"), PROVIDER_FAULTS.values(), ids=PROVIDER_FAULTS)
def test_a_fault_of_a_provider_is_reported_with_its_key(text: str, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(f"providers:\n  {text}\n".encode(), file="f")
    assert caught.value.key == key, str(caught.value)


@pytest.mark.parametrize("second", ["prefix: b, models: [x]", "models: [one]", "prefix: b, models: [exact]"])
def test_two_providers_with_one_prefix_or_one_public_name_are_refused(second: str) -> None:
    with pytest.raises(ConfigError):
        parse_config((PROVIDERS + f'  c: {{base_url: "https://c.example.com", {second}}}\n').encode(), file="f")
