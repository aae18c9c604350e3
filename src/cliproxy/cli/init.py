"""`cliproxy init`: a home with configuration, master key, vault and first client key. Refuses to overwrite anything."""

from __future__ import annotations

import os

import click

from cliproxy.cli.home import Home
from cliproxy.cli.options import common_options
from cliproxy.errors import ConfigError
from cliproxy.secret import Secret

DEFAULT_CONFIG = """\
# cliproxy: every key with its default is in docs/configuration.md. After a change: cliproxy check, then cliproxy reload.
server:
  listen: ["127.0.0.1", "::1"]
  port: 8317

providers:
  # Answers by itself, with token counts and streams: for trying out.
  echo:
    models: [echo]

  # A vendor by its kind (docs/providers.md has them all); its key is added with: cliproxy credentials add anthropic
  # anthropic:
  #   kind: anthropic
  #   models: [claude-sonnet-4-5]

  # Any OpenAI-compatible provider; its key is added with: cliproxy credentials add example
  # example:
  #   base_url: https://api.example.com/v1
  #   models: [gpt-4o-mini]
"""
_FIRST_KEY_NAME = "first"


@click.command(epilog="Example: CLIPROXY_HOME=/srv/cliproxy cliproxy init")
@click.option("--if-missing", is_flag=True, help="Say nothing and succeed when the home is there already.")
@click.option(
    "--new-vault", is_flag=True, help="Begin with an empty vault and log although the home has a master key: keys and credentials of before are gone."
)
@common_options
def command(home: Home, as_json: bool, if_missing: bool, new_vault: bool) -> int:
    """Make a home: configuration, master key, vault, and the first client key, which is shown once.

    What exists is never overwritten.
    """
    from cliproxy.audit.checkpoint import origin_of
    from cliproxy.cli.output import emit

    if _is_made(home):
        home.unfinished_init.unlink(missing_ok=True)
        if not if_missing:
            emit(
                {"home": str(home.path), "created": False},
                [f"{home.path} is initialised; nothing was changed. A new key: cliproxy keys create"],
                as_json=as_json,
            )
        return 0
    had_vault = _holds_vault(home)
    if not had_vault and not new_vault:
        _verify_new(home)
    _make_files(home)
    if had_vault:
        home.unfinished_init.unlink(missing_ok=True)
        emit({"home": str(home.path), "created": False}, [f"made what was missing in {home.path}; the vault and its client keys were kept"], as_json=as_json)
        return 0
    secret, log_key = _first_key(home)
    home.unfinished_init.unlink(missing_ok=True)
    key = secret.reveal().decode("ascii")
    secret.wipe()
    log = origin_of(log_key)
    emit(
        {"home": str(home.path), "created": True, "key": key, "config": str(home.config_file), "log": log, "log_public_key": log_key.hex()},
        [
            f"made {home.path}",
            f"  configuration    {home.config_file}",
            f"  master key       {_where_the_key_is(home)}  (keep a copy elsewhere: without it the vault cannot be opened)",
            f"  audit log's key  {log} {log_key.hex()}  (keep it elsewhere; `cliproxy audit verify --public-key` takes it)",
            f"  client key       {key}  (shown once)",
            "",
            "Start it with `cliproxy serve`, then:",
            "",
            *curl_lines(home, key),
        ],
        as_json=as_json,
    )
    return 0


def curl_lines(home: Home, key: str, url: str = "http://127.0.0.1:8317") -> list[str]:
    """Return the command to paste."""
    body = '{"model": "echo", "messages": [{"role": "user", "content": "Hello"}]}'
    return [f"  curl {url}/v1/chat/completions -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' \\", f"    -d '{body}'"]


def _is_made(home: Home) -> bool:
    return os.path.lexists(home.config_file) and _holds_vault(home) and (os.path.lexists(home.master_key_file) or _is_key_given())


def _is_key_given() -> bool:
    """Whether the master key comes from elsewhere, so that no file is to be made."""
    from cliproxy.vault.master_key import ENVIRONMENT_VARIABLE, SYSTEMD_CREDENTIAL

    directory = os.environ.get("CREDENTIALS_DIRECTORY", "")
    return ENVIRONMENT_VARIABLE in os.environ or (bool(directory) and os.path.lexists(os.path.join(directory, SYSTEMD_CREDENTIAL)))  # noqa: PTH118


def _where_the_key_is(home: Home) -> str:
    return str(home.master_key_file) if os.path.lexists(home.master_key_file) else "the one that was given; no file was made"


def _holds_vault(home: Home) -> bool:
    from cliproxy.processes.boot import VAULT_FILE

    return os.path.lexists(home.path / VAULT_FILE)


def _verify_new(home: Home) -> None:
    """Raise `ConfigError` when the home has a master key but no vault, and no `init` was interrupted: it was emptied, and a new vault would hide that.

    With a master key that comes from elsewhere an emptied home looks like a new one; `audit.pin` tells them apart.
    """
    from cliproxy.processes.boot import VAULT_FILE

    if os.path.lexists(home.master_key_file) and not os.path.lexists(home.unfinished_init):
        raise ConfigError(
            "there is a master key but no vault",
            cure="put auths/ and logs/ back from the same backup, or begin with an empty vault: cliproxy init --new-vault",
            file=str(home.path / VAULT_FILE),
        )


def _make_files(home: Home) -> None:
    """Create what is missing. A new master key only where no vault is: it would not open the old one."""
    from cliproxy.secure_files import create_private_directory, write_private_file
    from cliproxy.vault.master_key import create_master_key

    needs_key = not os.path.lexists(home.master_key_file) and not _is_key_given()
    if needs_key and _holds_vault(home):
        raise ConfigError("the vault in auths/ has lost its master key", cure="put the key back, from your copy", file=str(home.master_key_file))
    if not home.path.parent.is_dir():
        raise ConfigError("there is no such directory", cure="create it", file=str(home.path.parent))
    for directory in home.directories:
        create_private_directory(directory)
    if needs_key:
        write_private_file(home.unfinished_init, b"", replace=True)
        create_master_key(home.master_key_file)
    if not os.path.lexists(home.config_file):
        write_private_file(home.config_file, DEFAULT_CONFIG.encode(), replace=False)


def _first_key(home: Home) -> tuple[Secret, bytes]:
    """Start the vault and the log of this home; return its first client key and the log's public key."""
    from cliproxy.cli.connection import connect
    from cliproxy.cli.new_key import new_key
    from cliproxy.ipc import commands

    secret, digest = new_key()
    with connect(home, may_create=True) as session:
        session.ask(commands.CreateKey(digest=digest, name=_FIRST_KEY_NAME, models=("*",)))
        return secret, session.ask(commands.GetAuditStatus()).public_key
