"""`cliproxy credentials`: our secrets towards providers. A secret comes from a prompt or stdin, never from the command line, and is sealed to
the vault's public key before it leaves this process."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from cliproxy.cli.home import Home
from cliproxy.cli.options import common_options, complete_providers
from cliproxy.errors import ConfigError
from cliproxy.secret import Secret

if TYPE_CHECKING:
    from cliproxy.ipc.commands import CredentialInfo


@click.group()
def group() -> None:
    """Provider credentials: add, list, remove."""


@group.command(epilog="Example: pass show openai | cliproxy credentials add openai --stdin")
@click.argument("provider", shell_complete=complete_providers)
@click.option("--label", default="default", help="Tells several credentials of one provider apart.", show_default=True)
@click.option("--stdin", "from_stdin", is_flag=True, help="Read the secret from stdin (also done when stdin is no terminal).")
@common_options
def add(home: Home, as_json: bool, provider: str, label: str, from_stdin: bool) -> None:
    """Add a credential for PROVIDER, a name under `providers` in the configuration.

    It is bound to that provider's origin (scheme, host, port): after a change of base_url it has to be added again. An AWS access key is one text,
    ACCESS_KEY_ID:SECRET_ACCESS_KEY or ACCESS_KEY_ID:SECRET_ACCESS_KEY:SESSION_TOKEN.
    """
    from cliproxy.cli.connection import connect
    from cliproxy.cli.output import emit
    from cliproxy.ipc import commands
    from cliproxy.vault.crypto import credential_context, seal_to
    from cliproxy.vault.identity import FILE_NAME, read_identity

    secret = _read_secret(provider, from_stdin=from_stdin)
    try:
        _verify_form(home, provider, secret)
        with connect(home) as session:
            # From the vault's own file, never over the socket: whoever took over admin could name a key of his own.
            vault = read_identity(home.path / "auths" / FILE_NAME)
            context = credential_context(vault=vault.vault, provider=provider, label=label)
            sealed = seal_to(vault.public_key, secret.reveal(), context=context)
            made = session.ask(commands.AddCredential(provider=provider, label=label, sealed=sealed)).credential
    finally:
        secret.wipe()
    emit(_described(made), [f"added {made.id} for {made.provider} at {made.origin}"], as_json=as_json)


@group.command("list", epilog="Example: cliproxy credentials list")
@common_options
def list_(home: Home, as_json: bool) -> None:
    """List the credentials: never any part of a secret."""
    from cliproxy.cli.connection import connect
    from cliproxy.cli.output import emit, table, when
    from cliproxy.ipc import commands

    found: list[CredentialInfo] = []
    with connect(home) as session:
        more = True
        while more:
            page = session.ask(commands.ListCredentials(after=found[-1].id if found else ""))
            found += page.credentials
            more = page.more and bool(page.credentials)
    if as_json:
        emit([_described(item) for item in found], [], as_json=True)
        return
    table(("id", "provider", "label", "origin", "created"), [(item.id, item.provider, item.label, item.origin, when(item.created_at)) for item in found])


@group.command(epilog="Example: cliproxy credentials remove cred_3f9c0a1b")
@click.argument("id")
@common_options
def remove(home: Home, as_json: bool, id: str) -> None:
    """Remove a credential by its id. Egress forgets it at once."""
    from cliproxy.cli.connection import connect
    from cliproxy.cli.output import emit
    from cliproxy.ipc import commands

    with connect(home) as session:
        session.ask(commands.RemoveCredential(id=id))
    emit({"id": id, "removed": True}, [f"removed {id}"], as_json=as_json)


def _read_secret(provider: str, *, from_stdin: bool) -> Secret:
    """Return the secret without the line's end. Raises `ConfigError` unless it is one line of visible ASCII of a sensible length."""
    from cliproxy.bounds import MAX_CREDENTIAL_SECRET_BYTES, MIN_GUARDED_SECRET_BYTES

    if from_stdin or not sys.stdin.isatty():
        data = bytearray(sys.stdin.buffer.read(MAX_CREDENTIAL_SECRET_BYTES + 2))
    else:
        import getpass

        data = bytearray(getpass.getpass(f"Secret of {provider} (not shown): ").encode("utf-8", "surrogateescape"))
    while data and data[-1] in b"\r\n":
        data.pop()
    secret = Secret(data)
    good = MIN_GUARDED_SECRET_BYTES <= len(data) <= MAX_CREDENTIAL_SECRET_BYTES and all(0x21 <= byte <= 0x7E for byte in data)
    data[:] = bytes(len(data))
    if not good:
        secret.wipe()
        raise ConfigError(
            f"the secret is not one line of {MIN_GUARDED_SECRET_BYTES} to {MAX_CREDENTIAL_SECRET_BYTES} visible ASCII characters",
            cure="give exactly the provider's key",
        )
    return secret


def _verify_form(home: Home, provider: str, secret: Secret) -> None:
    """Raise `ConfigError` if the configuration says that `provider` signs with an AWS key, and the secret is none. Egress would refuse it, but later.

    A configuration that cannot be read here is the gateway's business.
    """
    from cliproxy.config.load import load_settings
    from cliproxy.providers.credentials import AWS_FORM, parse_aws_credential

    try:
        found = load_settings(home.config_file, allow_no_sandbox=True).settings.providers.get(provider)
    except ConfigError:
        return
    if found is not None and found.auth == "sigv4" and parse_aws_credential(secret.reveal().decode("ascii")) is None:
        raise ConfigError(f"the secret is no {AWS_FORM}", cure="give all parts in one line, or set auth: bearer for a Bedrock API key")


def _described(item: CredentialInfo) -> dict[str, Any]:
    return {name: getattr(item, name) for name in item.__struct_fields__}
