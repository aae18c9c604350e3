"""`cliproxy audit`: the log, read offline; only `status` and `checkpoint` ask the auditor."""

from __future__ import annotations

import json
import re
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any, BinaryIO

import click

from cliproxy.bounds import MAX_CHECKPOINT_BYTES
from cliproxy.cli.home import Home
from cliproxy.cli.options import common_options
from cliproxy.errors import EXIT_CHECK_FAILED, AuditError, ConfigError, CorruptLog

_FOLLOW_SECONDS = 0.25
_FIRST_LINE_BYTES = 65536


class PublicKey(click.ParamType[bytes]):
    """64 hexadecimal digits."""

    name = "HEX"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bytes:
        if isinstance(value, bytes):
            return value
        if not re.fullmatch(r"[0-9a-fA-F]{64}", value):
            self.fail("a public key has 64 hexadecimal digits", param, ctx)
        return bytes.fromhex(value)


@click.group()
def group() -> None:
    """The audit log: verify, tail, prove, checkpoint, status."""


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
        found = session.ask(commands.GetAuditStatus())
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


@group.command(epilog="Example: cliproxy audit verify --public-key 5f0c…e1 --checkpoint witness-2026-01-31.note")
@click.option("--public-key", type=PublicKey(), metavar="HEX", help="The log's key, as `init` printed it: a log written anew with another key is found out.")
@click.option("--checkpoint", "earlier", type=click.File("rb"), help="A checkpoint kept from before: truncation and forks are found out.")
@click.option("--pin", type=click.Path(path_type=Path), metavar="FILE", help="The file of audit.pin: the log must continue the newest checkpoint in it.")
@common_options
def verify(home: Home, as_json: bool, public_key: bytes | None, earlier: BinaryIO | None, pin: Path | None) -> int:
    """Verify the whole log offline. Exit code 1, and the first bad index, when it is not what it was."""
    from cliproxy.audit.verify import verify_log
    from cliproxy.cli.output import emit

    if earlier is not None and pin is not None:
        raise click.UsageError("give --checkpoint or --pin")
    note = None if earlier is None else earlier.read(MAX_CHECKPOINT_BYTES + 1)
    if pin is not None:
        note = _pinned_in(pin)
    try:
        report = verify_log(home.path, public_key=public_key, earlier_checkpoint=note)
    except CorruptLog as error:
        emit({"good": False, "index": error.index, "problem": error.problem}, [f"BAD  {error}"], as_json=as_json)
        return EXIT_CHECK_FAILED
    emit(
        {
            "good": True,
            "log": report.log,
            "public_key": report.public_key.hex(),
            "pinned": public_key is not None,
            "entries": report.entries,
            "root": report.root.hex(),
            "checkpoints": report.checkpoints,
            "uncovered": report.uncovered,
            "unfinished_bytes": report.unfinished_bytes,
        },
        [
            f"good: {report.entries} entries, {report.checkpoints} checkpoints, root {report.root.hex()}",
            f"log {report.log}, key {report.public_key.hex()}" + ("" if public_key else " (as the log itself says; pin it with --public-key)"),
            *([f"the last {report.uncovered} entries have no checkpoint yet: nothing vouches for them"] if report.uncovered else []),
            *([f"{report.unfinished_bytes} bytes at the end are not finished: being written, or cut off by a crash"] if report.unfinished_bytes else []),
        ],
        as_json=as_json,
    )
    return 0


@group.command(epilog="Example: cliproxy audit prove 4711 --json")
@click.argument("index", type=click.IntRange(min=0), required=False)
@click.option("--since", type=click.File("rb"), help="Instead: prove that the log continues the one that this earlier checkpoint signs.")
@click.option("--public-key", type=PublicKey(), metavar="HEX", help="The log's key, as `init` printed it.")
@common_options
def prove(home: Home, as_json: bool, index: int | None, since: BinaryIO | None, public_key: bytes | None) -> None:
    """Print the proof (RFC 9162) that entry INDEX is in the log that its last checkpoint signs. Hashes are hexadecimal."""
    from cliproxy.audit.verify import prove_consistency, prove_inclusion
    from cliproxy.cli.output import emit

    if (index is None) == (since is None):
        raise click.UsageError("give an INDEX, or --since FILE")
    data: dict[str, Any]
    if index is not None:
        inclusion = prove_inclusion(home.path, index, public_key=public_key)
        data = {"index": inclusion.index, "size": inclusion.size, "entry": inclusion.line.decode("utf-8"), "path": [node.hex() for node in inclusion.path]}
        note = inclusion.checkpoint
    else:
        assert since is not None
        consistency = prove_consistency(home.path, since.read(MAX_CHECKPOINT_BYTES + 1), public_key=public_key)
        data = {"old": consistency.old, "new": consistency.new, "path": [node.hex() for node in consistency.path]}
        note = consistency.checkpoint
    data["checkpoint"] = note.decode("utf-8")
    lines = [f"{name}: {value}" for name, value in data.items() if name not in ("path", "checkpoint")]
    emit(data, [*lines, *(f"path: {node}" for node in data["path"]), "checkpoint:", *data["checkpoint"].rstrip("\n").split("\n")], as_json=as_json)


@group.command(epilog="Example: cliproxy audit checkpoint > witness-$(date +%F).note")
@common_options
def checkpoint(home: Home, as_json: bool) -> None:
    """Sign the log as it is now and print the signed note. Keep it elsewhere: it proves any later change of what it covers."""
    from cliproxy.cli.connection import connect
    from cliproxy.ipc import commands

    with connect(home) as session:
        note = session.ask(commands.TakeCheckpoint()).note
    sys.stdout.write(json.dumps({"note": note}) + "\n" if as_json else note)


@group.command(epilog="Example: cliproxy audit pin")
@common_options
def pin(home: Home, as_json: bool) -> None:
    """Make the file that audit.pin of the configuration names, empty: the next start begins to keep the newest checkpoints in it."""
    from cliproxy.audit.pin import create_pin, verify_place
    from cliproxy.cli.output import emit
    from cliproxy.config.load import load_settings

    named = load_settings(home.config_file, allow_no_sandbox=True).settings.audit.pin
    if not named:
        raise ConfigError("is not set", cure="name a file on another disk, then run the command again", file=str(home.config_file), key="audit.pin")
    verify_place(Path(named), str(home.path))
    create_pin(Path(named))
    emit({"pin": named, "created": True}, [f"made {named}; the next `cliproxy serve` begins to use it"], as_json=as_json)


def _pinned_in(path: Path) -> bytes:
    from cliproxy.audit.pin import read_pin

    pinned = read_pin(path)
    if not pinned.number:
        raise ConfigError("nothing is pinned yet", cure="start the gateway with it as audit.pin", file=str(path))
    return pinned.note


def _whole_lines(file: BinaryIO, rest: bytes = b"") -> tuple[list[bytes], bytes]:
    """Return the lines that are whole from here on, and what follows them."""
    *lines, rest = (rest + file.read()).split(b"\n")
    return lines, rest


def _print(lines: list[bytes] | deque[bytes]) -> None:
    sys.stdout.buffer.write(b"".join(line + b"\n" for line in lines))
    sys.stdout.buffer.flush()
