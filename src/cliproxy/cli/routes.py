"""`cliproxy routes`: where a call for a model would go, in which order, and why.

The order comes from the configuration file, by the same table that the gateway uses; what is cooling and which credentials there are is asked of the
running gateway. Without one the command says so, and shows the file's part alone.

On a terminal a model is a heading with its steps below; other programs get a step on a line, tab-separated, or JSON.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from cliproxy.cli.home import Home
from cliproxy.cli.options import common_options, complete_models
from cliproxy.errors import EXIT_CHECK_FAILED

if TYPE_CHECKING:
    from cliproxy.cli.connection import Session
    from cliproxy.config.routes import Route, RouteTable, Target
    from cliproxy.ipc.messages import CooldownRecord


class _Live(NamedTuple):
    """What the running gateway says: credential ids by provider and the origin that they were added for, cooldowns by what cools, providers switched off."""

    credentials: dict[tuple[str, str], list[str]]
    cooldowns: dict[tuple[str, str, str], list[CooldownRecord]]
    disabled: frozenset[str]


@click.command(epilog="Example: cliproxy routes gpt-4o-mini")
@click.argument("model", required=False, shell_complete=complete_models)
@common_options
def command(home: Home, as_json: bool, model: str | None) -> int:
    """Show what would be tried for MODEL, or for every model, in which order, and what is cooling.

    Calls no provider; without a running gateway it shows the configuration file alone.

    Members of one number share the calls as the strategy says; the next number is for when none of them can take the call, and a fallback for when none of
    the model's own can. The state is one of:

    \b
    ready            it would be called
    cooling for …    it failed, and is left alone for so long; the line below says why
    partly cooling   one of its credentials or endpoints is; the others would be called
    no credential    none that was added for this address: cliproxy credentials add PROVIDER
    switched off     no call goes to this provider
    """
    from cliproxy.cli.connection import attach
    from cliproxy.cli.output import emit
    from cliproxy.config.load import load_settings
    from cliproxy.config.routes import RouteTable

    settings = load_settings(home.config_file, allow_no_sandbox=True).settings
    routes = RouteTable(settings)
    names = [name for name, _ in routes.public()] if model is None else [model]
    session = attach(home)
    live: _Live | None = None
    if session is not None:
        try:
            live = _ask(session) if session.serving else None
        finally:
            session.close()
    found: list[dict[str, Any]] = []
    for name in names:
        route = routes.find(name)
        if route is None:
            emit([], [f"there is no model {name}: a call is answered 404; {_why_not(name, routes)}"], as_json=as_json)
            return EXIT_CHECK_FAILED
        found += _steps(name, route, live)
    if as_json:
        emit(found, [], as_json=True)
        return 0
    emit(None, _lines(found) if sys.stdout.isatty() else ["\t".join(_row(step)) for step in found], as_json=False)
    if model is None:
        patterns = sorted(f"{each.prefix}/{pattern}" for each in settings.providers.values() for pattern in each.models if each.prefix and "*" in pattern)
        if patterns:
            click.echo(f"and every name like {', '.join(patterns)}: ask for one by its name", err=True)
    if live is None:
        click.echo("no gateway runs here: credentials and cooldowns are not known", err=True)
    return 0


def _why_not(name: str, routes: RouteTable) -> str:
    excluding = routes.excluded_by(name)
    if excluding is not None:
        return f"provider {excluding} excludes it"
    near = ", ".join(routes.near(name, lambda _: True))
    return f"near it: {near}" if near else "`cliproxy routes` lists those that there are"


def _ask(session: Session) -> _Live:
    from cliproxy.ipc import commands

    credentials: dict[tuple[str, str], list[str]] = {}
    last, more = "", True
    while more:
        page = session.ask(commands.ListCredentials(after=last))
        for item in page.credentials:
            credentials.setdefault((item.provider, item.origin), []).append(item.id)
            last = item.id
        more = page.more and bool(page.credentials)
    cooldowns: dict[tuple[str, str, str], list[CooldownRecord]] = {}
    told, more = 0, True
    while more:
        cooling = session.ask(commands.ListCooldowns(after=told))
        told += len(cooling.cooldowns)
        for found in cooling.cooldowns:
            cooldowns.setdefault((found.provider, found.credential, found.model), []).append(found)
        more = cooling.more and bool(cooling.cooldowns)
    rules = session.ask(commands.GetRules()).rules
    return _Live(credentials, cooldowns, frozenset(rules.disabled_providers))


def _steps(name: str, route: Route, live: _Live | None) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = []
    for group in route.groups:
        for target in group.targets:
            strategy = f"{group.strategy} by session" if group.affinity else group.strategy
            steps.append(
                {
                    "model": name,
                    "order": len(steps) + 1,
                    "provider": target.provider,
                    "kind": target.facts.kind,
                    "base_url": target.settings.base_url,
                    "provider_model": target.model,
                    "endpoints": _conversations(target),
                    "tier": target.tier,
                    "priority": target.priority,
                    "weight": target.weight,
                    "strategy": strategy,
                    **_state(target, live),
                }
            )
    return steps


def _conversations(target: Target) -> list[str]:
    """The endpoints for conversations there, in the order of preference; all that it has, where it has none for conversations."""
    from cliproxy.dialects import ENDPOINT_NAMES, ENDPOINTS, Operation

    names = [ENDPOINT_NAMES[endpoint] for endpoint in target.endpoints if ENDPOINTS[endpoint][0] is Operation.GENERATE]
    return names or [ENDPOINT_NAMES[endpoint] for endpoint in target.endpoints]


def _state(target: Target, live: _Live | None) -> dict[str, Any]:
    """Whether it would be tried now, as far as is known: `state` in words, `credentials` and `cooldowns` beneath."""
    wants_none = not target.facts.remote or (target.settings.auth or target.facts.auth) == "none"
    if live is None:
        return {"state": "not known", "credentials": [], "cooldowns": []}
    ids = [""] if wants_none else live.credentials.get((target.provider, target.origin), [])
    now = time.time()
    cooling = [item for id in ids for item in live.cooldowns.get((target.provider, id, target.model), []) if item.until > now]
    pairs = {(item.credential, item.endpoint) for item in cooling}
    if target.provider in live.disabled:
        state = "switched off"
    elif not ids:
        state = "no credential"
    elif cooling and pairs >= {(id, endpoint) for id in ids for endpoint in _conversations(target)}:
        state = f"cooling for {_seconds(min(item.until for item in cooling) - now)}"
    elif cooling:
        state = "partly cooling"
    else:
        state = "ready"
    told = [
        {"credential": item.credential, "endpoint": item.endpoint, "until": round(item.until, 1), "status": item.status, "code": item.code} for item in cooling
    ]
    return {"state": state, "credentials": [id for id in ids if id], "cooldowns": told}


def _reasons(step: dict[str, Any]) -> list[str]:
    now = time.time()
    reasons = []
    for item in step["cooldowns"]:
        whose = f"{item['credential']} " if item["credential"] else ""
        status = f" ({item['status']})" if item["status"] else ""
        reasons.append(f"{whose}{item['endpoint']}: {item['code']}{status} for {_seconds(item['until'] - now)}")
    return reasons


def _lines(steps: list[dict[str, Any]]) -> list[str]:
    """Return the steps as people read them. Steps of one number are equals, of whom the strategy chooses."""
    lines: list[str] = []
    of: dict[str, list[dict[str, Any]]] = {}
    for step in steps:
        of.setdefault(step["model"], []).append(step)
    for model, those in of.items():
        lines.append(model)
        ranks = [(step["tier"], step["priority"]) for step in those]
        numbers = {rank: place for place, rank in enumerate(dict.fromkeys(ranks), 1)}
        wide = max(len(f"{step['provider']}/{step['provider_model']}") for step in those)
        for step, rank in zip(those, ranks, strict=True):
            said = ["fallback"] if step["tier"] else []
            if ranks.count(rank) > 1:
                said.append(f"{step['strategy']}, weight {step['weight']}" if step["strategy"].startswith("weighted") else step["strategy"])
            name = f"{step['provider']}/{step['provider_model']}".ljust(wide)
            about = f" ({', '.join(said)})" if said else ""
            lines.append(f"  {numbers[rank]}  {name}  {step['state']}{about}")
            lines += [f"       {reason}" for reason in _reasons(step)]
    return lines


def _row(step: dict[str, Any]) -> tuple[str, ...]:
    state = "; ".join([step["state"], *_reasons(step)])
    return (
        step["model"],
        str(step["order"]),
        step["provider"],
        step["provider_model"],
        ",".join(step["endpoints"]),
        str(step["tier"]),
        str(step["priority"]),
        str(step["weight"]),
        step["strategy"],
        ",".join(step["credentials"]) or "-",
        state,
    )


def _seconds(seconds: float) -> str:
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{max(seconds, 0):.0f} s"
