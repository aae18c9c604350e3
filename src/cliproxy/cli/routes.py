"""`cliproxy routes`: where a call for a model would go, from the configuration."""

from __future__ import annotations

import click

from cliproxy.cli.home import Home
from cliproxy.cli.options import common_options
from cliproxy.errors import EXIT_CHECK_FAILED


@click.command(epilog="Example: cliproxy routes gpt-4o-mini")
@click.argument("model", required=False)
@common_options
def command(home: Home, as_json: bool, model: str | None) -> int:
    """Show what would be tried for MODEL, or for every model. Reads the configuration file; asks no gateway and calls no provider."""
    from cliproxy.cli.output import emit, table
    from cliproxy.config.load import load_settings

    settings = load_settings(home.config_file, allow_no_sandbox=True).settings
    names = sorted(settings.models) if model is None else [model]
    targets: list[dict[str, str]] = []
    for name in names:
        route = settings.models.get(name)
        if route is None:
            emit([], [f"there is no model {name}: a call is answered 404"], as_json=as_json)
            return EXIT_CHECK_FAILED
        provider = settings.providers[route.provider]
        targets.append({"model": name, "provider": route.provider, "kind": provider.kind, "base_url": provider.base_url, "provider_model": route.model})
    if as_json:
        emit(targets, [], as_json=True)
    else:
        rows = [(target["model"], target["provider"], target["base_url"] or "(answers by itself)", target["provider_model"]) for target in targets]
        table(("model", "provider", "at", "its name there"), rows)
    return 0
