"""Which target, with which credential, gets the next attempt of a call. Pure: the caller passes the time, the credentials and what is switched off.

The order: tier (a route's own targets, then each fallback's), then priority, then the strategy among those of one priority that can take a call now.

    round_robin, weighted   in turn, by weight: each target gets its share as evenly spread as can be (nginx's smooth weighted round robin)
    fill_first              the first that can
    least_busy              the one with the fewest calls under way; among equals the one that waited longest
    affinity                calls of one session go where its rendezvous hash is highest: when a target leaves, only its own sessions move

Credentials of a provider take turns; a session stays with one of them, since what a provider keeps (prompt caches) is kept for one account.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import Protocol, TypeVar

from cliproxy.bounds import MAX_ADMISSION_ENTRIES
from cliproxy.config.routes import Group, Target
from cliproxy.egress.cooldowns import Cooldown, Cooldowns, Key


class Credential(Protocol):
    """What a provider is called with."""

    id: str


C = TypeVar("C", bound=Credential | None)  # None: the provider answers in the process
Credentials = Callable[[Target], Sequence[C]]


class Tried:
    """What need not be tried again for one call: targets (by id, as a worker names them), pairs of target and credential, providers as a whole."""

    __slots__ = ("pairs", "providers", "targets")

    def __init__(self, targets: Collection[str] = ()) -> None:
        self.targets = set(targets)
        self.pairs: set[tuple[str, str]] = set()
        self.providers: set[str] = set()

    def covers(self, target: Target) -> bool:
        """Whether nothing of `target` is left to try."""
        return target.id in self.targets or target.provider in self.providers


class Router:
    """The choice, and what it remembers: turns taken and calls under way. Both are bounded by the configuration."""

    def __init__(self, cooldowns: Cooldowns) -> None:
        self._cooldowns = cooldowns
        self._shares: dict[str, dict[str, int]] = {}
        self._turns: dict[str, int] = {}
        self._picks = 0
        self._last_pick: dict[str, int] = {}
        self._under_way: dict[str, int] = {}

    def reset(self) -> None:
        """A new configuration: whose turn it was means nothing there. Calls under way stay counted."""
        self._shares.clear()
        self._turns.clear()
        self._last_pick.clear()

    def choose(
        self,
        groups: tuple[Group, ...],
        endpoint: int,
        *,
        credentials: Credentials[C],
        tried: Tried | None,
        disabled: Collection[str],
        session: str,
        now: float,
    ) -> tuple[Target, C] | None:
        """Return the next target and credential for a call of `endpoint`; `None` when none of `groups` can take it now."""
        for group in groups:
            usable: list[tuple[Target, Sequence[C]]] = []
            for target in group.targets:
                if target.provider in disabled or (tried is not None and tried.covers(target)):
                    continue
                allowed = self._allowed(target, endpoint, credentials(target), tried, now)
                if allowed:
                    usable.append((target, allowed))
                    if group.strategy == "fill_first" and not (group.affinity and session):
                        break
            if usable:
                target, allowed = usable[0] if len(usable) == 1 else self._pick(group, usable, session)
                if len(allowed) == 1:
                    return target, allowed[0]
                return target, self._in_turn(target, allowed, session if group.affinity else "")
        return None

    def can(self, groups: tuple[Group, ...], endpoint: int, *, credentials: Credentials[C], tried: Tried | None, disabled: Collection[str], now: float) -> bool:
        """Return whether `choose` would find something. Takes nobody's turn."""
        return any(
            target.provider not in disabled and (tried is None or not tried.covers(target)) and self._allowed(target, endpoint, credentials(target), tried, now)
            for group in groups
            for target in group.targets
        )

    def soonest(
        self, groups: Iterable[tuple[int, tuple[Group, ...]]], *, credentials: Credentials[C], disabled: Collection[str], now: float
    ) -> Cooldown | None:
        """Return the cooldown among all `groups`, each for its endpoint, that ends first; `None` when nothing of them cools."""
        found: Cooldown | None = None
        for cooldown in self._cooling(groups, credentials, disabled, now):
            if found is None or cooldown.wait(now) < found.wait(now):
                found = cooldown
        return found

    def began(self, target: Target) -> None:
        """A call to `target` is under way."""
        self._under_way[target.id] = self._under_way.get(target.id, 0) + 1

    def ended(self, target: Target) -> None:
        """It is over."""
        left = self._under_way[target.id] - 1
        if left:
            self._under_way[target.id] = left
        else:
            del self._under_way[target.id]

    # --- inside ---

    def _allowed(self, target: Target, endpoint: int, credentials: Sequence[C], tried: Tried | None, now: float) -> Sequence[C]:
        table = self._cooldowns.table
        if not table and tried is None:
            return credentials
        allowed = []
        for credential in credentials:
            id = "" if credential is None else credential.id
            if tried is not None and (target.id, id) in tried.pairs:
                continue
            cooldown = table.get(Key(target.provider, id, target.model, endpoint))
            if cooldown is None or cooldown.allows(now):
                allowed.append(credential)
        return allowed

    def _cooling(
        self, groups: Iterable[tuple[int, tuple[Group, ...]]], credentials: Credentials[C], disabled: Collection[str], now: float
    ) -> Iterator[Cooldown]:
        for endpoint, some in groups:
            for target in (target for group in some for target in group.targets if target.provider not in disabled):
                for credential in credentials(target):
                    id = "" if credential is None else credential.id
                    cooldown = self._cooldowns.table.get(Key(target.provider, id, target.model, endpoint))
                    if cooldown is not None and not cooldown.allows(now):
                        yield cooldown

    def _pick(self, group: Group, usable: list[tuple[Target, Sequence[C]]], session: str) -> tuple[Target, Sequence[C]]:
        if group.affinity and session:
            weighted = group.strategy == "weighted"
            return max(usable, key=lambda one: _score(session, one[0].id, one[0].weight if weighted else 1))
        if group.strategy == "least_busy":
            picked = min(usable, key=lambda one: (self._under_way.get(one[0].id, 0), self._last_pick.get(one[0].id, 0)))
            self._picks += 1
            self._remember(self._last_pick, picked[0].id, self._picks)
            return picked
        return self._in_share(group, usable)

    def _in_share(self, group: Group, usable: list[tuple[Target, Sequence[C]]]) -> tuple[Target, Sequence[C]]:
        shares = self._shares.get(group.key)
        if shares is None:
            shares = self._shares[group.key] = {}
        weighted = group.strategy == "weighted"
        total = 0
        best: tuple[Target, Sequence[C]] | None = None
        most = 0
        for one in usable:
            target = one[0]
            weight = target.weight if weighted else 1
            total += weight
            share = shares[target.id] = shares.get(target.id, 0) + weight
            if best is None or share > most:
                best, most = one, share
        assert best is not None  # there is something usable
        shares[best[0].id] -= total
        return best

    def _in_turn(self, target: Target, allowed: Sequence[C], session: str) -> C:
        if session:
            return max(allowed, key=lambda credential: _score(session, "" if credential is None else credential.id, 1))
        turn = self._turns.get(target.provider, 0)
        self._remember(self._turns, target.provider, turn + 1)
        return allowed[turn % len(allowed)]

    def _remember(self, where: dict[str, int], name: str, value: int) -> None:
        if len(where) >= MAX_ADMISSION_ENTRIES:
            where.clear()
        where[name] = value


def _score(session: str, name: str, weight: int) -> float:
    """Weighted rendezvous hashing (Schindelhauer, Schomaker 2005): -weight / ln(u), u being a number between 0 and 1 for the two names."""
    number = int.from_bytes(blake2b(f"{session}\0{name}".encode("utf-8", "surrogatepass"), digest_size=7).digest(), "big")
    return -weight / math.log((number + 1) / (2**56 + 1))
