"""`cliproxy status`: how the running gateway is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cliproxy.cli.home import Home
from cliproxy.cli.options import common_options
from cliproxy.errors import EXIT_CHECK_FAILED

if TYPE_CHECKING:
    from cliproxy.config.schema import Settings

_READY_SECONDS = 5.0


@click.command(epilog="Example: cliproxy status --ready && echo serving")
@click.option("--ready", is_flag=True, help="Ask the gateway's /readyz too; exit 1 unless it is ready to serve.")
@common_options
def command(home: Home, as_json: bool, ready: bool) -> int:
    """Say whether the gateway runs and how it is. Exit code 1 when it does not run, or a part of it does not answer."""
    from cliproxy.cli.connection import attach
    from cliproxy.cli.output import emit
    from cliproxy.ipc import commands

    session = attach(home)
    if session is None or not session.serving:
        emit({"running": False}, [f"no gateway runs on {home.path}"], as_json=as_json)
        return EXIT_CHECK_FAILED
    status = session.ask(commands.GetStatus(), commands.Status)
    data: dict[str, Any] = {
        "running": True,
        "pid": status.supervisor_pid,
        "build": status.build,
        "generation": status.generation,
        "vault": status.vault,
        "auditor": status.auditor,
        "lockdown": status.lockdown,
        "blocked": list(status.blocked),
    }
    good = status.vault and status.auditor
    lines = [
        f"running, pid {status.supervisor_pid}, build {status.build}, configuration generation {status.generation}",
        f"vault    {'answers' if status.vault else 'DOES NOT ANSWER'}",
        f"auditor  {'answers' if status.auditor else 'DOES NOT ANSWER'}",
        f"lockdown {'ON: no call is served' if status.lockdown else 'off'}",
        f"blocked  {', '.join(status.blocked) or 'nobody'}",
    ]
    if ready:
        data["ready"], reason = _ask_ready(home)
        good = good and data["ready"]
        lines.append(f"ready    {'yes' if data['ready'] else f'NO: {reason}'}")
    emit(data, lines, as_json=as_json)
    return 0 if good else EXIT_CHECK_FAILED


def _ask_ready(home: Home) -> tuple[bool, str]:
    """Return whether `/readyz` says so, and what it said. Asked where the configuration file says that the gateway listens."""
    import http.client
    import ssl

    from cliproxy.config.load import load_settings

    settings = load_settings(home.config_file, allow_no_sandbox=True).settings
    host, port = _address(settings)
    connection: http.client.HTTPConnection
    if settings.server.tls.enabled:
        context = ssl.create_default_context(cafile=settings.server.tls.cert_file)
        context.check_hostname = False  # the gateway's own address, and only its own certificate is trusted
        connection = http.client.HTTPSConnection(host, port, timeout=_READY_SECONDS, context=context)
    else:
        connection = http.client.HTTPConnection(host, port, timeout=_READY_SECONDS)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        return answer.status == http.client.OK, f"/readyz answers {answer.status}"
    except (OSError, http.client.HTTPException) as error:
        return False, f"{host}:{port} does not answer ({type(error).__name__})"
    finally:
        connection.close()


def _address(settings: Settings) -> tuple[str, int]:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.server.listen[0], settings.server.listen[0])  # noqa: S104 - a comparison
    return host, settings.server.port
