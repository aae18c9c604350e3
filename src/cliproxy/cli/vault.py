"""`cliproxy vault`: the sealed store."""

from __future__ import annotations

import click

from cliproxy.cli.home import Home
from cliproxy.cli.options import common_options


@click.group()
def group() -> None:
    """The sealed store."""


@group.command(epilog="Example: cliproxy vault status --json")
@common_options
def status(home: Home, as_json: bool) -> None:
    """Show the vault's id, epoch, root and public key. That it answers means: the store opened and is the one that the log knows."""
    from cliproxy.cli.connection import connect
    from cliproxy.cli.output import emit
    from cliproxy.ipc import commands

    with connect(home) as session:
        found = session.ask(commands.GetVaultStatus())
    emit(
        {
            "vault_id": found.vault_id,
            "epoch": found.epoch,
            "root": found.root.hex(),
            "records": found.records,
            "key_term": found.key_term,
            "policy_number": found.policy_number,
            "public_key": found.public_key.hex(),
        },
        [
            f"vault      {found.vault_id}",
            f"epoch      {found.epoch}, root {found.root.hex()}",
            f"records    {found.records}, sealed under key term {found.key_term}",
            f"policy     number {found.policy_number}",
            f"public key {found.public_key.hex()} (X25519)",
        ],
        as_json=as_json,
    )
