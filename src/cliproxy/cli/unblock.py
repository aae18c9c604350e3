"""`cliproxy unblock`: let an address or network in again."""

from __future__ import annotations

import click

from cliproxy.cli.home import Home
from cliproxy.cli.options import common_options


@click.command(epilog="Example: cliproxy unblock 203.0.113.0/24")
@click.argument("network", metavar="ADDRESS-OR-CIDR")
@common_options
def command(home: Home, as_json: bool, network: str) -> None:
    """Undo `cliproxy block` of exactly this address or network."""
    from cliproxy.cli.connection import connect
    from cliproxy.cli.output import emit
    from cliproxy.ipc import commands

    with connect(home) as session:
        session.ask(commands.Unblock(network=network))
    emit({"network": network, "blocked": False}, [f"unblocked {network}"], as_json=as_json)
