"""Options that every command has: `--home` and `--json`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from cliproxy.cli.home import Home

F = TypeVar("F", bound=Callable[..., Any])


def common_options(function: F) -> F:
    """Add `--home DIR` and `--json`; the command gets `home: Home` and `as_json: bool`."""
    function = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")(function)
    return click.option(
        "--home", "home", metavar="DIR", callback=_home, help="Where cliproxy keeps its files [default: $CLIPROXY_HOME, else ~/.cliproxy].", is_eager=True
    )(function)


def _home(ctx: click.Context, parameter: click.Parameter, value: str | None) -> Home:
    if value is None:
        root = ctx.find_root()
        value = root.obj["home"] if isinstance(root.obj, dict) else None
    return Home.at(value)
