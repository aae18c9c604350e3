"""`cliproxy status`: how the running gateway is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cliproxy.cli.home import Home
from cliproxy.cli.options import common_options
from cliproxy.errors import EXIT_CHECK_FAILED

if TYPE_CHECKING:
    from http.client import HTTPConnection

    from cliproxy.ipc.commands import Status

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
    status = session.ask(commands.GetStatus())
    data: dict[str, Any] = {
        "running": True,
        "pid": status.supervisor_pid,
        "build": status.build,
        "generation": status.generation,
        "vault": status.vault,
        "auditor": status.auditor,
        "lockdown": status.lockdown,
        "blocked": list(status.blocked),
        "listeners_reopened": status.reopened,
    }
    good = status.vault and status.auditor
    lines = [
        f"running, pid {status.supervisor_pid}, build {status.build}, configuration generation {status.generation}",
        f"vault    {'answers' if status.vault else 'DOES NOT ANSWER'}",
        f"auditor  {'answers' if status.auditor else 'DOES NOT ANSWER'}",
        f"lockdown {'ON: no call is served' if status.lockdown else 'off'}",
        f"blocked  {', '.join(status.blocked) or 'nobody'}",
    ]
    if status.reopened:
        times = "once" if status.reopened == 1 else f"{status.reopened} times"
        lines.append(f"sockets  ACCEPTED NOBODY {times} and were opened again: a worker may have fallen; see the audit log, and restart")
    if ready:
        data["ready"], reason = _ask_ready(status)
        good = good and data["ready"]
        lines.append(f"ready    {'yes' if data['ready'] else f'NO: {reason}'}")
    emit(data, lines, as_json=as_json)
    return 0 if good else EXIT_CHECK_FAILED


def _ask_ready(status: Status) -> tuple[bool, str]:
    """Return whether `/readyz` says so, and what it said. Asked where the gateway says that it listens, whatever the file says by now."""
    import http.client

    host, port = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(status.host, status.host), status.port  # noqa: S104 - a comparison
    connection = _pinned(host, port) if status.cert_file else http.client.HTTPConnection(host, port, timeout=_READY_SECONDS)
    try:
        connection.connect()
        if status.cert_file and not _shows(connection, status.cert_file):
            return False, f"{host}:{port} shows another certificate than {status.cert_file}"
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        return answer.status == http.client.OK, f"/readyz answers {answer.status}"
    except (OSError, http.client.HTTPException) as error:
        return False, f"{host}:{port} does not answer ({type(error).__name__})"
    finally:
        connection.close()


def _pinned(host: str, port: int) -> HTTPConnection:
    """Return a TLS connection whose certificate `_shows` has to compare before anything is sent: no authority and no name vouches for a local address."""
    import http.client
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return http.client.HTTPSConnection(host, port, timeout=_READY_SECONDS, context=context)


def _shows(connection: HTTPConnection, cert_file: str) -> bool:
    """Whether the peer's certificate is the first one in `cert_file`."""
    import ssl

    text = Path(cert_file).read_text(encoding="ascii", errors="replace")
    first = text[: text.find(ssl.PEM_FOOTER) + len(ssl.PEM_FOOTER)]
    sock = connection.sock
    try:
        wanted = ssl.PEM_cert_to_DER_cert(first[first.find(ssl.PEM_HEADER) :])
    except ValueError:  # no certificate is in it any more
        return False
    return isinstance(sock, ssl.SSLSocket) and sock.getpeercert(binary_form=True) == wanted
