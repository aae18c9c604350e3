"""`cliproxy serve`: check everything, then become the supervisor (same process id, a fresh program image)."""

from __future__ import annotations

import os
from pathlib import Path

import click

from cliproxy.cli.home import Home
from cliproxy.cli.options import common_options
from cliproxy.errors import ConfigError


@click.command(epilog="Example: cliproxy serve --home /srv/cliproxy")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="Another configuration file than config/cliproxy.yaml of the home.")
@click.option("--unsafe-no-sandbox", is_flag=True, help="Allow `sandbox.mode: off`: a bug in what reads clients then gives everything away.")
@click.option("--accept-rollback", is_flag=True, help="Start although the audit log is older than the vault or audit.pin has seen it; the log tells of it.")
@common_options
def command(home: Home, as_json: bool, config_file: Path | None, unsafe_no_sandbox: bool, accept_rollback: bool) -> None:
    """Run the gateway in the foreground.

    SIGTERM ends it gracefully (streams finish), a second one at once; SIGHUP reloads the configuration. The first line on stdout says when it is ready.
    """
    from cliproxy.cli.starting import make_plan
    from cliproxy.processes.plan import become_supervisor

    file = home.config_file if config_file is None else Path(os.path.abspath(config_file))  # noqa: PTH100 - links are judged where they are used
    plan = make_plan(home, file, serving=True, unsafe_no_sandbox=unsafe_no_sandbox, accept_rollback=accept_rollback)
    if not as_json:
        _show_example(home, plan.settings)
    try:
        become_supervisor(plan)
    except OSError as error:
        raise ConfigError(f"the supervisor cannot be started ({error.strerror})", cure="check the installation with `cliproxy doctor`") from error


def _show_example(home: Home, blob: bytes) -> None:
    """Say what to paste, where the echo model is there to answer it."""
    import sys

    from cliproxy.cli.init import curl_lines
    from cliproxy.config.schema import decode_settings

    settings = decode_settings(blob)
    if "echo" not in settings.models or not sys.stdout.isatty():
        return
    scheme = "https" if settings.server.tls.enabled else "http"
    host = settings.server.listen[0]
    url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{settings.server.port}"
    lines = [
        "Try it (a new key: cliproxy keys create):",
        *(line.replace("'Authorization: Bearer $CLIPROXY_KEY'", '"Authorization: Bearer $CLIPROXY_KEY"') for line in curl_lines(home, "$CLIPROXY_KEY", url)),
    ]
    sys.stdout.write("".join(f"{line}\n" for line in lines))
