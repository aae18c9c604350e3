"""Options that every command has, `--home` and `--json`, and what a shell is told of names in the configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cliproxy.cli.home import Home
from cliproxy.errors import CliproxyError

if TYPE_CHECKING:
    from cliproxy.config.schema import Settings

F = TypeVar("F", bound=Callable[..., Any])


def common_options(function: F) -> F:
    """Add `--home DIR` and `--json`; the command gets `home: Home` and `as_json: bool`."""
    function = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")(function)
    return click.option(
        "--home", "home", metavar="DIR", callback=_home, help="Where cliproxy keeps its files [default: $CLIPROXY_HOME, else ~/.cliproxy].", is_eager=True
    )(function)


def _home(ctx: click.Context, parameter: click.Parameter, value: str | None) -> Home:
    if value is None:
        root = ctx.find_root()
        value = root.obj["home"] if isinstance(root.obj, dict) else None
    return Home.at(value)


# --- completion ------------------------------------------------------------------------------------------------------


def complete_models(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the public model names that begin with `incomplete`; none where the configuration cannot be used."""
    from cliproxy.config.routes import RouteTable

    settings = _settings(ctx)
    return [] if settings is None else [name for name, _ in RouteTable(settings).public() if name.startswith(incomplete)]


def complete_providers(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of providers that begin with `incomplete`."""
    settings = _settings(ctx)
    return [] if settings is None else sorted(name for name in settings.providers if name.startswith(incomplete))


def _settings(ctx: click.Context) -> Settings | None:
    from cliproxy.config.load import load_settings

    home_option = ctx.params.get("home") or ctx.find_root().params.get("home")
    try:
        home = home_option if isinstance(home_option, Home) else Home.at(home_option)
        return load_settings(home.config_file, allow_no_sandbox=True).settings
    except (CliproxyError, OSError):  # a shell waits: no place for an error
        return None
