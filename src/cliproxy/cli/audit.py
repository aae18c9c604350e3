"""`cliproxy audit`: the log, read offline; only `status` and `checkpoint` ask the auditor."""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from typing import BinaryIO

import click

from cliproxy.cli.home import Home
from cliproxy.cli.options import common_options
from cliproxy.errors import AuditError

_FOLLOW_SECONDS = 0.25
_FIRST_LINE_BYTES = 65536


@click.group()
def group() -> None:
    """The audit log: status, tail, checkpoint."""


@group.command(epilog="Example: cliproxy audit tail --follow")
@click.option("-n", "--lines", "count", type=click.IntRange(0, 100_000), default=20, show_default=True, help="How many of the last entries.")
@click.option("-f", "--follow", is_flag=True, help="Go on with new entries until interrupted.")
@common_options
def tail(home: Home, as_json: bool, count: int, follow: bool) -> None:
    """Print the last entries as they are: one JSON object a line, with --json too. It verifies nothing."""
    from cliproxy.audit.files import logs_of, open_file, segment_name, segment_numbers

    logs = logs_of(home.path)
    numbers = segment_numbers(logs)
    if not numbers:
        raise AuditError(f"{logs}: there is no log yet; run `cliproxy init`")
    last: deque[bytes] = deque(maxlen=count)
    wanted = numbers[-1:]
    with open_file(logs / segment_name(numbers[-1])) as newest:
        if len(numbers) > 1 and newest.read(_FIRST_LINE_BYTES).count(b"\n") < count:
            wanted = numbers[-2:]
    for number in wanted[:-1]:
        with open_file(logs / segment_name(number)) as file:
            last.extend(_whole_lines(file)[0])
    number = wanted[-1]
    file = open_file(logs / segment_name(number))
    try:
        lines, rest = _whole_lines(file)
        last.extend(lines)
        _print(last)
        while follow:
            time.sleep(_FOLLOW_SECONDS)
            lines, rest = _whole_lines(file, rest)
            _print(lines)
            if not lines and segment_numbers(logs)[-1] > number:
                number += 1
                file.close()
                file = open_file(logs / segment_name(number))
    finally:
        file.close()


@group.command(epilog="Example: cliproxy audit status --json")
@common_options
def status(home: Home, as_json: bool) -> None:
    """Show how long the log is, its root, its name and its public key."""
    from cliproxy.audit.checkpoint import origin_of
    from cliproxy.cli.connection import connect
    from cliproxy.cli.output import emit
    from cliproxy.ipc import commands

    with connect(home) as session:
        found = session.ask(commands.GetAuditStatus(), commands.AuditStatus)
    name = origin_of(found.public_key)
    emit(
        {
            "log": name,
            "public_key": found.public_key.hex(),
            "size": found.size,
            "root": found.root.hex(),
            "segment": found.segment,
            "healthy": found.healthy,
        },
        [
            f"log        {name}",
            f"public key {found.public_key.hex()} (Ed25519)",
            f"entries    {found.size}, root {found.root.hex()}",
            f"segment    {found.segment}",
            f"state      {'takes entries' if found.healthy else 'TAKES NOTHING: calls are refused; look at the disk'}",
        ],
        as_json=as_json,
    )


@group.command(epilog="Example: cliproxy audit checkpoint > witness-$(date +%F).note")
@common_options
def checkpoint(home: Home, as_json: bool) -> None:
    """Sign the log as it is now and print the signed note. Keep it elsewhere: it proves any later change of what it covers."""
    from cliproxy.cli.connection import connect
    from cliproxy.ipc import commands

    with connect(home) as session:
        note = session.ask(commands.TakeCheckpoint(), commands.Checkpoint).note
    sys.stdout.write(json.dumps({"note": note}) + "\n" if as_json else note)


def _whole_lines(file: BinaryIO, rest: bytes = b"") -> tuple[list[bytes], bytes]:
    """Return the lines that are whole from here on, and what follows them."""
    *lines, rest = (rest + file.read()).split(b"\n")
    return lines, rest


def _print(lines: list[bytes] | deque[bytes]) -> None:
    sys.stdout.buffer.write(b"".join(line + b"\n" for line in lines))
    sys.stdout.buffer.flush()
