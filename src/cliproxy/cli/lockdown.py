"""`cliproxy lockdown`: no calls at all, until it is switched off."""

from __future__ import annotations

import click

from cliproxy.cli.home import Home
from cliproxy.cli.options import common_options


@click.command(epilog="Example: cliproxy lockdown on")
@click.argument("state", type=click.Choice(["on", "off"]))
@common_options
def command(home: Home, as_json: bool, state: str) -> None:
    """Refuse every call (503) and end open streams, or serve again. Durable over restarts."""
    from cliproxy.cli.connection import connect
    from cliproxy.cli.output import emit
    from cliproxy.ipc import commands

    with connect(home) as session:
        session.ask(commands.Lockdown(on=state == "on"))
    emit({"lockdown": state == "on"}, [f"lockdown is {state}"], as_json=as_json)
