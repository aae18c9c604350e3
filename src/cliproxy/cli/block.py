"""`cliproxy block`: turn an address or network away from now on."""

from __future__ import annotations

import click

from cliproxy.cli.home import Home
from cliproxy.cli.options import common_options


@click.command(epilog="Example: cliproxy block 203.0.113.0/24")
@click.argument("network", metavar="ADDRESS-OR-CIDR")
@common_options
def command(home: Home, as_json: bool, network: str) -> None:
    """Block an address or network, durably: it stays blocked over restarts until `cliproxy unblock`."""
    from cliproxy.cli.connection import connect
    from cliproxy.cli.output import emit
    from cliproxy.ipc import commands

    with connect(home) as session:
        session.ask(commands.Block(network=network))
    emit({"network": network, "blocked": True}, [f"blocked {network}"], as_json=as_json)
