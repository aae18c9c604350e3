"""`auths/vault.pub`: the vault's id and public key, where commands read them.

What always holds: the vault writes it at its start, before the lockdown, from its own keyring; commands read it as a private file of ours. A secret is never
sealed to a key that came over the control socket, or whoever took over admin could name a key of his own.

One line: `cliproxy-vault 1 <vault id, 32 hexadecimal digits> <X25519 public key, base64>`.
"""

from __future__ import annotations

import base64
import re
from pathlib import Path

import msgspec

from cliproxy.errors import ConfigError
from cliproxy.secure_files import read_private_file, write_private_file
from cliproxy.vault.keyring import Keyring

MAX_VAULT_IDENTITY_BYTES = 512  # auths/vault.pub: one line

FILE_NAME = "vault.pub"
_LINE = re.compile(rb"cliproxy-vault 1 ([0-9a-f]{32}) ([A-Za-z0-9+/]{43}=)\n")


class Identity(msgspec.Struct, frozen=True):
    """The vault's id and its raw X25519 public key."""

    vault: str
    public_key: bytes


def publish_identity(path: Path, keyring: Keyring) -> None:
    """Write the identity of `keyring` to `path`, unless it is there already. Raises `ConfigError`."""
    line = b"cliproxy-vault 1 %s %s\n" % (keyring.vault.encode(), base64.b64encode(keyring.public_key))
    if not path.exists() or read_private_file(path, limit=MAX_VAULT_IDENTITY_BYTES) != line:
        write_private_file(path, line, replace=True)


def read_identity(path: Path) -> Identity:
    """Return what the vault published at `path`. Raises `ConfigError` when it is missing, not private or not its form."""
    match = _LINE.fullmatch(read_private_file(path, limit=MAX_VAULT_IDENTITY_BYTES))
    if match is None:
        raise ConfigError("is not the vault's public key", cure="restart the gateway: the vault writes it anew", file=str(path))
    return Identity(match[1].decode(), base64.b64decode(match[2]))
