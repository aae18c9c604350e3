"""The master key: where it comes from, and whether it is one that may protect anything.

What always holds: 32 bytes, never the specification's placeholder, never a key that is visibly not random (few distinct bytes, repetitions, sequences,
words), and from one source: two sources that name different keys are an error, not a precedence. After the start it lives in a sealed memfd whose number
the supervisor keeps, and in the vault.

Sources: inline `auth.encryption.key` (the specification's, 32 characters), the environment's `CLIPROXY_MASTER_KEY` (base64 or hexadecimal), a systemd
credential `cliproxy-master-key`, the file `key/master.key` (mode 0600). A file or credential may hold base64, hexadecimal or 32 raw bytes.
"""

from __future__ import annotations

import base64
import binascii
import fcntl
import os
import re
import secrets
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

from cliproxy.bounds import MAX_MASTER_KEY_FILE_BYTES
from cliproxy.errors import ConfigError
from cliproxy.secret import Secret
from cliproxy.secure_files import read_private_file, write_private_file

MASTER_KEY_BYTES = 32  # AES-256

ENVIRONMENT_VARIABLE = "CLIPROXY_MASTER_KEY"  # the caller removes it from the environment as soon as it was read
SYSTEMD_CREDENTIAL = "cliproxy-master-key"  # systemd.exec(5), LoadCredential=
PLACEHOLDER = b"YOUR_32_BYTE_ENCRYPTION_KEY_HERE"  # the specification's own example
_NEW_KEY = "make one with `head -c 32 /dev/urandom | base64` or leave it out and let `cliproxy init` make key/master.key"

# A random 32-character text of 16 symbols (hexadecimal, the poorest we accept) has 14 distinct ones on average and fewer than 9 once in 100,000;
# 32 random bytes have 30, and fewer than 20 once in a billion.
_FEWEST_DISTINCT_IN_TEXT = 9
_FEWEST_DISTINCT_IN_BYTES = 20
_WORDS = (
    "password", "passwd", "passphrase", "secret", "encrypt", "master", "cliproxy", "changeme", "change_me", "change-me", "example", "default",
    "placeholder", "replace", "insert", "letmein", "welcome", "qwerty", "asdfgh", "zxcvbn", "abcdef", "abc123", "012345", "123456", "654321", "fedcba",
    "foobar", "deadbeef", "cafebabe", "badc0ffe", "c0ffee", "32byte", "32_byte", "32-byte", "32char",
)  # fmt: skip
_SENTENCE = re.compile(rb"(?:[a-z]{2,12}|[A-Z]{2,12}|[A-Z][a-z]{1,11})(?:[ _.,-]+(?:[a-z]{1,12}|[A-Z]{1,12}|[A-Z][a-z]{1,11}|\d{1,4})[.!?]?){3,}")
_SEALS = ("F_SEAL_SEAL", "F_SEAL_SHRINK", "F_SEAL_GROW", "F_SEAL_WRITE")


def create_master_key(path: Path) -> None:
    """Write a new random master key to `path` (base64, one line, mode 0600, durable). Raises `ConfigError` if the file is there already."""
    write_private_file(path, base64.b64encode(secrets.token_bytes(MASTER_KEY_BYTES)) + b"\n", replace=False)


def load_master_key(*, path: Path, environment: Mapping[str, str], inline: Secret | None) -> Secret:
    """Return the master key from the one source that has it; the file at `path` counts only when no other source does.

    Raises `ConfigError` when there is none, when sources disagree, or when the key is malformed or weak.
    """
    found: list[tuple[str, Secret]] = []
    if inline is not None:
        found.append(("auth.encryption.key", _checked(inline.reveal(), where="auth.encryption.key")))
    if ENVIRONMENT_VARIABLE in environment:
        found.append((ENVIRONMENT_VARIABLE, parse_master_key(environment[ENVIRONMENT_VARIABLE].encode(errors="replace"), where=ENVIRONMENT_VARIABLE)))
    directory = environment.get("CREDENTIALS_DIRECTORY", "")
    if directory and (credential := Path(directory) / SYSTEMD_CREDENTIAL).exists():
        found.append((str(credential), parse_master_key(_read_credential(credential), where=str(credential))))
    if not found:
        if not os.path.lexists(path):
            raise ConfigError("there is no master key", cure=f"run `cliproxy init`, put the key back, or set {ENVIRONMENT_VARIABLE}", file=str(path))
        return parse_master_key(read_private_file(path, limit=MAX_MASTER_KEY_FILE_BYTES), where=str(path))
    (first, key), *others = found
    for other, value in others:
        if value != key:
            raise ConfigError(f"{first} and {other} give different master keys", cure="keep one of them")
    return key


def _read_credential(path: Path) -> bytes:
    # systemd owns the directory, its mode and its mount; our own rules for parents and owners do not apply to it.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})", cure="check LoadCredential= in the unit", file=str(path)) from error
    with os.fdopen(descriptor, "rb") as file:
        return file.read(MAX_MASTER_KEY_FILE_BYTES + 1)


def parse_master_key(text: bytes, *, where: str) -> Secret:
    """Return the key that `text` holds: 64 hexadecimal digits, base64 (also URL-safe) of 32 bytes, or 32 bytes as they are.

    Raises `ConfigError` (naming `where`, never the text) for anything else and for a weak key.
    """
    if len(text) == MASTER_KEY_BYTES:
        return _checked(text, where=where)
    stripped = text.strip()
    if re.fullmatch(rb"[0-9A-Fa-f]{64}", stripped):
        return _checked(bytes.fromhex(stripped.decode()), where=where)
    if re.fullmatch(rb"[0-9A-Za-z+/_-]{43}=?", stripped):
        try:
            key = base64.b64decode(stripped.rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/")) + b"=", validate=True)
        except binascii.Error:
            key = b""
        if len(key) == MASTER_KEY_BYTES:
            return _checked(key, where=where)
    if len(stripped) == MASTER_KEY_BYTES:
        return _checked(stripped, where=where)
    raise ConfigError("is not a key of 32 bytes (64 hexadecimal digits or 44 characters of base64)", cure=_NEW_KEY, key=where)


def _checked(key: bytes, *, where: str) -> Secret:
    if len(key) != MASTER_KEY_BYTES:
        raise ConfigError(f"has {len(key)} bytes; a master key has {MASTER_KEY_BYTES}", cure=_NEW_KEY, key=where)
    weakness = weakness_of(key)
    if weakness is not None:
        raise ConfigError(weakness, cure=_NEW_KEY, key=where)
    return Secret(key)


def weakness_of(key: bytes) -> str | None:
    """Say what is visibly wrong with `key`, or `None`. It finds what a person would type, not every key that is not random."""
    if key == PLACEHOLDER:
        return "is still the specification's placeholder"
    text = all(0x20 <= byte < 0x7F for byte in key)
    if len(set(key)) < (_FEWEST_DISTINCT_IN_TEXT if text else _FEWEST_DISTINCT_IN_BYTES):
        return f"has only {len(set(key))} distinct {'characters' if text else 'bytes'}"
    if text and key.isdigit():
        return "has digits only"
    if any(key[period:] == key[:-period] for period in range(1, len(key) // 2 + 1)):
        return "is a repetition"
    for step in (-1, 0, 1):
        if sum((right - left) % 256 == step % 256 for left, right in pairwise(key)) >= len(key) // 3:
            return "is mostly a sequence or a repetition"
    if text:
        folded = key.decode("ascii").lower()
        if any(word in folded for word in _WORDS):
            return "contains a word or pattern that is in every attacker's list"
        if _SENTENCE.fullmatch(key):
            return "is made of words"
    return None


# --- in memory, between processes ------------------------------------------------------------------------------------


def into_memfd(key: Secret) -> int:
    """Return a descriptor of a sealed, nameless memory file that holds `key`. It is not inherited unless the caller passes it on."""
    descriptor = os.memfd_create("master-key", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.write(descriptor, key.reveal())
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _all_seals())
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def from_memfd(descriptor: int) -> Secret:
    """Return the key that `into_memfd` put there, and close `descriptor`. Raises `ConfigError` unless it is sealed and holds a sound key.

    Reads by position: the descriptor shares its offset with the supervisor's, which hands it out again when the vault is restarted.
    """
    try:
        if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _all_seals() != _all_seals():
            raise ConfigError("the master key's memory file is not sealed", cure="start the gateway with `cliproxy serve`")
        return _checked(os.pread(descriptor, MASTER_KEY_BYTES + 1, 0), where="the master key")
    except OSError as error:
        raise ConfigError(f"the master key's memory file cannot be read ({error.strerror})", cure="start the gateway with `cliproxy serve`") from error
    finally:
        os.close(descriptor)


def _all_seals() -> int:
    return sum(int(getattr(fcntl, name)) for name in _SEALS)
