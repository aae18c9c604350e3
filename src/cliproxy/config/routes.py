"""Where a public model name leads: its targets in the order in which they may be tried, worked out once per configuration.

Worker and egress both build this table from the same settings: the worker writes a body for the first profile of a route, egress chooses among the
targets of a call's profile. During a reload the two may be a generation apart, so targets go by `id` and never by their place.

A name is looked up as a public name (of `models`, where an alias is another name for a route), then as `prefix/model` for a provider whose `models`
have a wildcard that fits. What a provider excludes leads nowhere.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple, cast

import msgspec

from cliproxy.bounds import MAX_MODEL_CHARS, MAX_ROUTE_TARGETS
from cliproxy.config.schema import ModelRoute, PoolMember, Provider, Settings, Strategy
from cliproxy.dialects import ENDPOINTS, Dialect, Endpoint, Operation, Quirks
from cliproxy.errors import ConfigError
from cliproxy.providers.facts import Endpoints, ProviderFacts
from cliproxy.providers.origin import Origin, parse_base_url
from cliproxy.providers.table import facts_of

MAX_ROUTING_STEPS = 250_000  # targets and names behind all public names together: about 0.5 KiB and 5 us each, in every worker and in egress
MAX_WILDCARD_ROUTES = 1024  # routes of names that only a wildcard knows, kept ready, about 1 KiB each
MAX_NEAR_NAMES = 3  # names told to a client that asked for one that there is not
MAX_NEAR_NAMES_SEEN = 2048  # names that are looked at for these, 1 us each
MAX_NEAR_NAMES_COMPARED = 32  # and compared letter by letter, some 20 us each

# As it may stand in the configuration, and as a wildcard may be used. Without empty and dotted segments: whoever takes them out finds another model, which a
# wildcard may not have meant and an exclusion may.
MODEL_NAME = re.compile(r"(?!.*/\.{0,2}/)[A-Za-z0-9](?:[A-Za-z0-9._:/@+-]*[A-Za-z0-9])?")
WILDCARD = "*"
_FORMS = frozenset({Endpoint.TRANSCRIPTIONS, Endpoint.TRANSLATIONS})  # bodies that are no JSON


class Profile(NamedTuple):
    """What a body is written for."""

    endpoint: Endpoint
    quirks: Quirks


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """One place that may answer calls of a route. `model_json` is the provider's name of the model as JSON; `fillings` is what goes into the hole of a
    body for each endpoint: that, the bare name in a form, or nothing where the model is in the path. `origin` is empty and `parsed` None for a provider
    that answers in the process. `tier`: 0 for the route's own targets, then one for each fallback.

    `priority` is the member's and its provider's together; higher goes first. `weight` counts within one priority.
    """

    id: str
    provider: str
    settings: Provider
    facts: ProviderFacts
    endpoints: Endpoints
    origin: str
    parsed: Origin | None
    base_path: str
    model: str
    model_json: bytes
    fillings: Mapping[Endpoint, bytes]
    weight: int
    priority: int
    tier: int

    def profile_for(self, operation: Operation, client: Dialect) -> Profile | None:
        """Return what a client of `client` is to write for: the endpoint that speaks its dialect, else the first for that operation; `None`: it has none."""
        found = None
        for endpoint, facts in self.endpoints.items():
            does, dialect = ENDPOINTS[endpoint]
            if does is operation:
                if dialect is client:
                    return Profile(endpoint, facts.quirks)
                found = found or Profile(endpoint, facts.quirks)
        return found

    def takes(self, profile: tuple[int, int]) -> bool:
        """Return whether a body written for `profile` may be sent there."""
        facts = self.endpoints.get(cast(Endpoint, profile[0]))
        return facts is not None and facts.quirks == profile[1]


class Group(msgspec.Struct, frozen=True):
    """Targets of one tier and one priority, among which `strategy` chooses. `key` names it across configurations."""

    key: str
    strategy: Strategy
    affinity: bool
    tier: int
    priority: int
    targets: tuple[Target, ...]


class Route:
    """Where calls for one public name may go. `targets` are in order of tier, then priority, then as configured."""

    __slots__ = ("_by_profile", "_profiles", "affinity", "by_id", "groups", "name", "strategy", "targets")

    def __init__(self, name: str, groups: tuple[Group, ...]) -> None:
        self.name = name
        self.groups = groups
        self.targets = tuple(target for group in groups for target in group.targets)
        self.strategy = groups[0].strategy
        self.affinity = groups[0].affinity
        self.by_id = {target.id: target for target in self.targets}
        self._profiles: dict[tuple[Operation, Dialect], tuple[Profile, ...]] = {}
        self._by_profile: dict[tuple[int, int], tuple[Group, ...]] = {}

    def profiles(self, operation: Operation, client: Dialect) -> tuple[Profile, ...]:
        """Return the distinct profiles of its targets for a client of `client`, in the order in which they would be tried; empty: nobody can do that."""
        known = self._profiles.get((operation, client))
        if known is None:
            found = (target.profile_for(operation, client) for target in self.targets)
            known = self._profiles[operation, client] = tuple(dict.fromkeys(profile for profile in found if profile is not None))
        return known

    def groups_for(self, profile: tuple[int, int]) -> tuple[Group, ...]:
        """Return the groups with only the targets that take `profile` (or the two numbers of one, which need not exist); empty: none does."""
        known = self._by_profile.get(profile)
        if known is None:
            kept = ((group, tuple(target for target in group.targets if target.takes(profile))) for group in self.groups)
            known = tuple(msgspec.structs.replace(group, targets=targets) for group, targets in kept if targets)
            if known:  # or a worker could fill this with profiles that it makes up
                self._by_profile[profile] = known
        return known


class RouteTable:
    """Every route of one configuration. Raises `ConfigError` when one leads nowhere (the receiver checks again)."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._makers = {name: _Maker(name, provider) for name, provider in settings.providers.items()}
        self._steps = 0
        self._routes = {name: self._route(name) for name in settings.models}
        self._prefixes = {maker.provider.prefix: maker for maker in self._makers.values() if maker.provider.prefix}
        self._wild = lru_cache(MAX_WILDCARD_ROUTES)(self._wildcard_route)
        self._public = tuple((name, self._routes[name].targets[0].provider) for name in sorted(self._routes))

    def find(self, model: str) -> Route | None:
        """Return the route of public name `model`; `None`: there is no such model."""
        route = self._routes.get(model)
        if route is None and "/" in model:
            return self._wild(model)
        return route

    def excluded_by(self, model: str) -> str | None:
        """Return the provider that would have public name `model` if it did not exclude it."""
        prefix, _, wanted = model.partition("/")
        maker = self._prefixes.get(prefix)
        return maker.name if maker is not None and maker.excludes(wanted) else None

    def public(self) -> tuple[tuple[str, str], ...]:
        """Return every public name that can be listed with the provider that comes first for it, in order of the names."""
        return self._public

    def near(self, model: str, among: Callable[[str], bool]) -> list[str]:
        """Return the public names that are most like `model` and that `among` allows, the most like first. The work is bounded."""
        wanted = model[:MAX_MODEL_CHARS].lower()
        allowed = [name for name, _ in self._public[:MAX_NEAR_NAMES_SEEN] if among(name)]
        if len(allowed) > MAX_NEAR_NAMES_COMPARED:
            allowed.sort(key=lambda name: (-_shared(name.lower(), wanted), abs(len(name) - len(wanted))))
            del allowed[MAX_NEAR_NAMES_COMPARED:]
        lower = {name.lower(): name for name in reversed(allowed)}
        return [lower[found] for found in difflib.get_close_matches(wanted, lower, n=MAX_NEAR_NAMES, cutoff=0.6)]

    def _wildcard_route(self, model: str) -> Route | None:
        prefix, _, wanted = model.partition("/")
        maker = self._prefixes.get(prefix)
        if maker is None or not maker.takes_by_wildcard(wanted):
            return None
        try:
            target = maker.target(PoolMember(provider=maker.name, model=wanted), key="models", tier=0)
        except ConfigError:  # none of the provider's families knows it
            return None
        return Route(model, (Group(f"{model}/0", "round_robin", False, 0, target.priority, (target,)),))

    def _route(self, name: str) -> Route:
        groups: list[Group] = []
        seen: set[str] = set()
        for tier, (tier_name, route) in enumerate(self._tiers(name)):
            key = f"models.{tier_name}"
            self._step(len(_members(route)), name)
            made = [self._maker(member.provider, key).target(member, key=key, tier=tier) for member in _members(route)]
            fresh = {target.id: target for target in reversed(made) if target.id not in seen}
            seen.update(fresh)
            targets = [target for target in made if fresh.get(target.id) is target]
            for priority in sorted({target.priority for target in targets}, reverse=True):
                same = tuple(target for target in targets if target.priority == priority)
                groups.append(Group(f"{tier_name}/{priority}", route.strategy, route.affinity, tier, priority, same))
        if not groups:
            raise ConfigError("this route leads nowhere", key=f"models.{name}", cure="give it a provider and a model, a pool or an alias")
        if len(seen) > MAX_ROUTE_TARGETS:
            raise ConfigError(f"more than {MAX_ROUTE_TARGETS} targets can be tried for one name", key=f"models.{name}", cure="shorten its pool or its fallback")
        return Route(name, tuple(groups))

    def _tiers(self, public: str) -> Iterator[tuple[str, ModelRoute]]:
        """Yield the route of `public` behind its aliases, then those of its fallbacks, each with its own fallbacks behind it, and each once."""
        told: set[str] = set()

        def walk(name: str, under: tuple[str, ...]) -> Iterator[tuple[str, ModelRoute]]:
            chain = under
            while True:
                self._step(1, public)
                if name in chain:
                    raise ConfigError("aliases and fallbacks lead back to where they began", key=f"models.{name}", cure="take one name out of the circle")
                chain = (*chain, name)
                if len(chain) > MAX_ROUTE_TARGETS:
                    raise ConfigError(f"more than {MAX_ROUTE_TARGETS} names follow each other", key=f"models.{chain[0]}", cure="shorten the chain")
                route = self._settings.models.get(name)
                if route is None:
                    raise ConfigError(f"there is no model {name!r}", key=f"models.{chain[-2] if len(chain) > 1 else name}", cure="name one of `models`")
                if not route.alias:
                    break
                name = route.alias
            if name in told:
                return
            told.add(name)
            if len(told) > MAX_ROUTE_TARGETS:
                raise ConfigError(f"more than {MAX_ROUTE_TARGETS} names are behind this one", key=f"models.{name}", cure="shorten its fallback")
            yield name, route
            for other in route.fallback:
                yield from walk(other, chain)

        return walk(public, ())

    def _step(self, count: int, name: str) -> None:
        self._steps += count
        if self._steps > MAX_ROUTING_STEPS:
            raise ConfigError(
                f"with this one, all models together have more than {MAX_ROUTING_STEPS} targets and names behind them",
                key=f"models.{name}",
                cure="shorten the pools and the fallbacks that many models share",
            )

    def _maker(self, provider: str, key: str) -> _Maker:
        maker = self._makers.get(provider)
        if maker is None:
            raise ConfigError(f"there is no provider {provider!r}", key=key, cure="name one of `providers`")
        return maker


class _Maker:
    """Makes the targets of one provider."""

    def __init__(self, name: str, provider: Provider) -> None:
        self.name = name
        self.provider = provider
        self._facts = facts_of(name, kind=provider.kind)
        self._wildcards = [pattern_of(model) for model in provider.models if WILDCARD in model]
        self._excluded = [pattern_of(text) for text in provider.exclude]
        self._parsed: Origin | None = None
        self._base_path = ""
        if self._facts.remote and provider.base_url:
            self._parsed, self._base_path = parse_base_url(provider.base_url)

    def takes_by_wildcard(self, model: str) -> bool:
        if len(model) > MAX_MODEL_CHARS or MODEL_NAME.fullmatch(model) is None or self.excludes(model):
            return False
        return any(pattern.fullmatch(model) for pattern in self._wildcards)

    def excludes(self, model: str) -> bool:
        return any(pattern.fullmatch(model) for pattern in self._excluded)

    def target(self, member: PoolMember, *, key: str, tier: int) -> Target:
        """Raises `ConfigError` when the provider cannot or must not be called for that model."""
        if self._facts.remote and self._parsed is None:
            raise ConfigError(f"provider {self.name!r} has no base_url", key=key, cure=f"add providers.{self.name}.base_url")
        if self.excludes(member.model):
            raise ConfigError(f"provider {self.name!r} excludes model {member.model!r}", key=key, cure="name another model, or take the exclusion out")
        endpoints = self._facts.endpoints_for(member.model)
        if not endpoints:
            raise ConfigError(f"providers of kind {self._facts.kind} have no model {member.model!r}", key=key, cure="correct the model's name")
        model_json = msgspec.json.encode(member.model)
        return Target(
            id=f"{self.name}/{member.model}",
            provider=self.name,
            settings=self.provider,
            facts=self._facts,
            endpoints=endpoints,
            origin="" if self._parsed is None else str(self._parsed),
            parsed=self._parsed,
            base_path=self._base_path,
            model=member.model,
            model_json=model_json,
            fillings={
                endpoint: b"" if not self._facts.model_in_body(endpoint) else member.model.encode() if endpoint in _FORMS else model_json
                for endpoint in endpoints
            },
            weight=member.weight,
            priority=member.priority + self.provider.priority,
            tier=tier,
        )


def pattern_of(text: str) -> re.Pattern[str]:
    """Return `text` as a pattern in which `*` stands for anything and everything else for itself. To match takes time in proportion to the name's length:
    what stands between two stars is sought once, from the left, and never again (atomic groups), since an earlier place is as good as any later one."""
    parts = [re.escape(part) for part in re.split(r"\*+", text)]
    if len(parts) == 1:
        return re.compile(parts[0])
    return re.compile(parts[0] + "".join(f"(?>.*?{part})" for part in parts[1:-1]) + ".*" + parts[-1])


def _shared(one: str, other: str) -> int:
    """Return how many characters both begin with."""
    for index, (mine, yours) in enumerate(zip(one, other, strict=False)):
        if mine != yours:
            return index
    return min(len(one), len(other))


def _members(route: ModelRoute) -> tuple[PoolMember, ...]:
    return route.pool or ((PoolMember(provider=route.provider, model=route.model),) if route.provider else ())
