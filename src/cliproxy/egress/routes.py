"""Which provider a public model name leads to, worked out once per configuration so that a call costs one look-up."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from cliproxy.config.schema import Provider, Settings
from cliproxy.errors import ConfigError
from cliproxy.providers.facts import ProviderFacts
from cliproxy.providers.origin import Origin, parse_base_url
from cliproxy.providers.table import facts_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where calls for one public model go. `model_json` is the upstream's model name as JSON, for the hole in the body; `origin` is empty
    and `parsed` None for a provider that answers in the process."""

    provider: str
    settings: Provider
    facts: ProviderFacts
    origin: str
    parsed: Origin | None
    base_path: str
    model: str
    model_json: bytes


def targets_of(settings: Settings) -> dict[str, Target]:
    """Return the target of every public model. Raises `ConfigError` for a route that leads nowhere (the receiver checks again)."""
    targets: dict[str, Target] = {}
    for name, route in settings.models.items():
        provider = settings.providers.get(route.provider)
        if provider is None:
            raise ConfigError(f"there is no provider {route.provider!r}", key=f"models.{name}.provider", cure="name one of `providers`")
        facts = facts_of(route.provider, kind=provider.kind)
        parsed, base_path = parse_base_url(provider.base_url) if facts.remote else (None, "")
        targets[name] = Target(
            provider=route.provider,
            settings=provider,
            facts=facts,
            origin="" if parsed is None else str(parsed),
            parsed=parsed,
            base_path=base_path,
            model=route.model,
            model_json=msgspec.json.encode(route.model),
        )
    return targets
