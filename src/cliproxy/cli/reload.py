"""`cliproxy reload`: take the configuration file as it is now, everywhere or nowhere."""

from __future__ import annotations

import click

from cliproxy.cli.home import Home
from cliproxy.cli.options import common_options
from cliproxy.errors import ConfigError


@click.command(epilog="Example: cliproxy check && cliproxy reload")
@common_options
def command(home: Home, as_json: bool) -> None:
    """Reload the configuration of the running gateway.

    A faulty file changes nothing. Connections and streams go on; workers are replaced and the old ones finish what they have.
    """
    from cliproxy.cli.connection import attach
    from cliproxy.cli.output import emit
    from cliproxy.ipc import commands

    session = attach(home)
    if session is None:
        raise ConfigError("no gateway runs here", cure="start it with `cliproxy serve`", file=str(home.path))
    reloaded = session.ask(commands.Reload())
    emit({"generation": reloaded.generation}, [f"configuration generation {reloaded.generation} is in force"], as_json=as_json)
