"""`cliproxy keys`: client keys. A key is made here and shown once; the gateway gets its digest."""

from __future__ import annotations

import re
import secrets
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from cliproxy.cli.home import Home
from cliproxy.cli.options import common_options

if TYPE_CHECKING:
    from cliproxy.ipc.commands import KeyInfo

_UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_LONGEST_SECONDS = 100 * 366 * 86400


class Expiry(click.ParamType[int]):
    """`30d`, `12h`, `90m`, `2w`, or a date `2027-01-31` (end of that day, UTC): seconds since the epoch."""

    name = "WHEN"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        now = int(time.time())
        if span := re.fullmatch(r"([1-9][0-9]{0,5})([mhdw])", value):
            seconds = int(span[1]) * _UNITS[span[2]]
        elif re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", value):
            try:
                seconds = int(datetime.fromisoformat(value).replace(tzinfo=UTC).timestamp()) + _UNITS["d"] - now
            except ValueError:
                self.fail(f"{value} is no date", param, ctx)
        else:
            self.fail("write it as 30d, 12h, 90m, 2w or 2027-01-31", param, ctx)
        if not 0 < seconds <= _LONGEST_SECONDS:
            self.fail(f"{value} is in the past or more than a hundred years ahead", param, ctx)
        return now + seconds


@click.group()
def group() -> None:
    """Client keys: create, list, revoke."""


@group.command(epilog="Example: cliproxy keys create --name ci --model gpt-4o-mini --network 10.0.0.0/8 --expires 30d --rpm 60")
@click.option("--name", default="", help="A name to list and revoke it by [default: key-DATE-TIME-RANDOM].")
@click.option("--model", "models", multiple=True, metavar="NAME", help="A model that it may use; repeat for more [default: all].")
@click.option("--network", "networks", multiple=True, metavar="CIDR", help="Where it may be used from; repeat for more [default: anywhere].")
@click.option("--expires", type=Expiry(), default=0, help="30d, 12h, 90m, 2w or a date [default: never].")
@click.option("--rpm", type=click.IntRange(min=0), default=0, help="Requests per minute [default: auth.key_limits].")
@click.option("--tpm", type=click.IntRange(min=0), default=0, help="Tokens per minute [default: auth.key_limits].")
@click.option("--concurrency", type=click.IntRange(min=0), default=0, help="Calls at once [default: auth.key_limits].")
@common_options
def create(
    home: Home, as_json: bool, name: str, models: tuple[str, ...], networks: tuple[str, ...], expires: int, rpm: int, tpm: int, concurrency: int
) -> None:
    """Make a client key and show it, once. It is stored nowhere, only the digest of its digest is."""
    from cliproxy.cli.connection import connect
    from cliproxy.cli.new_key import new_key
    from cliproxy.cli.output import emit, when
    from cliproxy.config.addresses import complaint_about_network
    from cliproxy.ipc import commands

    for network in networks:
        complaint = complaint_about_network(network)
        if complaint is not None:
            raise click.UsageError(f"--network {network}: {complaint[0]}; {complaint[1]}")
    secret, digest = new_key()
    wanted = commands.CreateKey(
        digest=digest,
        name=name or time.strftime("key-%Y%m%d-%H%M%S-", time.gmtime()) + secrets.token_hex(3),  # several a second must differ
        models=models or ("*",),
        networks=networks,
        expires_at=expires,
        requests_per_minute=rpm,
        tokens_per_minute=tpm,
        concurrency=concurrency,
    )
    with connect(home) as session:
        made = session.ask(wanted).key
    text = secret.reveal().decode("ascii")
    secret.wipe()
    emit(
        {**_described(made), "key": text},
        [text, f"id {made.id}, name {made.name}, models {', '.join(made.models)}, expires {when(made.expires_at)}. It is not shown again."],
        as_json=as_json,
    )


@group.command("list", epilog="Example: cliproxy keys list --json")
@common_options
def list_(home: Home, as_json: bool) -> None:
    """List the client keys: never the keys themselves."""
    from cliproxy.cli.connection import connect
    from cliproxy.cli.output import emit, table, when
    from cliproxy.ipc import commands

    keys: list[KeyInfo] = []
    with connect(home) as session:
        more = True
        while more:
            page = session.ask(commands.ListKeys(after=keys[-1].id if keys else ""))
            keys += page.keys
            more = page.more and bool(page.keys)
    if as_json:
        emit([_described(key) for key in keys], [], as_json=True)
        return
    table(
        ("id", "name", "state", "models", "networks", "expires", "last used"),
        [(key.id, key.name, _state(key), ",".join(key.models), ",".join(key.networks) or "any", when(key.expires_at), when(key.last_used_at)) for key in keys],
    )


@group.command(epilog="Example: cliproxy keys revoke ci")
@click.argument("key", metavar="ID-OR-NAME")
@common_options
def revoke(home: Home, as_json: bool, key: str) -> None:
    """Revoke a client key, now: its open streams end, and the answer says who has enforced it."""
    from cliproxy.cli.connection import connect
    from cliproxy.cli.output import emit
    from cliproxy.ipc import commands

    if key.startswith("cpk_"):
        raise click.UsageError("name the key by its id or name (cliproxy keys list), not by the key itself")
    with connect(home) as session:
        done = session.ask(commands.RevokeKey(key=key))
    if not done.serving:
        said = "no gateway is running"
    elif done.egress:
        said = f"egress, {done.workers} of {done.of_workers} workers, {done.streams_ended} streams ended"
    else:
        said = "NOT acknowledged by egress yet: it refuses all calls until it has the change"
    emit(
        {
            "id": done.id,
            "serving": done.serving,
            "egress": done.egress,
            "workers": done.workers,
            "of_workers": done.of_workers,
            "streams_ended": done.streams_ended,
        },
        [f"revoked {done.id}: {said}"],
        as_json=as_json,
    )


def _state(key: KeyInfo) -> str:
    if key.revoked_at:
        return "revoked"
    return "expired" if key.expires_at and key.expires_at <= time.time() else "valid"


def _described(key: KeyInfo) -> dict[str, Any]:
    return {name: getattr(key, name) for name in key.__struct_fields__} | {"state": _state(key)}
