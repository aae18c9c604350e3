"""`cliproxy version`."""

from __future__ import annotations

import click

from cliproxy.cli.home import Home
from cliproxy.cli.options import common_options


@click.command(epilog="Example: cliproxy version --json")
@common_options
def command(home: Home, as_json: bool) -> None:
    """Print the version and the build that processes tell each other apart by."""
    from cliproxy import __version__
    from cliproxy.cli.output import emit
    from cliproxy.processes.spawn import build_id

    build = build_id()
    emit({"version": __version__, "build": build}, [f"cliproxy {__version__} (build {build})"], as_json=as_json)
