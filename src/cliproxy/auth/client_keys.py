"""Client keys: how one looks, what proves that a caller holds it, and what we keep of it.

    cpk_ + 43 characters of base64url (256 random bits) + 6 characters of base64url (CRC-32 of those 43, big-endian)

The checksum finds typing errors and lets a secret scanner tell a key from a coincidence (1 in 2^32); it is no protection and needs none. The key itself is
never stored or sent between our processes. Its proof P = SHA-256(key) goes from worker to egress with each call; what lies at rest is the digest
SHA-256(P), so that neither the store nor the policy feed lets anyone act as a client.

The same work is done whatever the key: nothing is looked up before the format was checked and the bytes hashed, and at most `KEY_BYTES` bytes are hashed.
"""

from __future__ import annotations

import secrets
from binascii import b2a_base64
from hashlib import sha256
from zlib import crc32

from cliproxy.secret import Secret

PREFIX = b"cpk_"
RANDOM_BYTES = 32
KEY_BYTES = 53  # 4 of prefix, 43 of key, 6 of checksum

_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_TO_URLSAFE = bytes.maketrans(b"+/", b"-_")  # RFC 4648 §5
_CHECKSUM_AT = 47
_DECOY = b"cpk_" + bytes(49)


def _base64url(data: bytes) -> bytes:
    return b2a_base64(data, newline=False).translate(_TO_URLSAFE).rstrip(b"=")


def _checksum(body: bytes) -> bytes:
    return b2a_base64(crc32(body).to_bytes(4, "big"), newline=False).translate(_TO_URLSAFE)[:6]


def generate() -> Secret:
    """Return a new client key of 256 bits from the operating system's generator."""
    body = _base64url(secrets.token_bytes(RANDOM_BYTES))
    return Secret(PREFIX + body + _checksum(body))


def proof_of(key: bytes) -> bytes | None:
    """Return P = SHA-256(key), 32 bytes, or None if `key` is no client key by its length, prefix, alphabet or checksum.

    A malformed key costs as much as a well-formed one: the answer's time does not tell which of the checks failed.
    """
    candidate = key if len(key) == KEY_BYTES else _DECOY
    body = candidate[4:_CHECKSUM_AT]
    # All four are evaluated, always: `&` on purpose, not `and`.
    well_formed = (
        (candidate is not _DECOY)
        & candidate.startswith(PREFIX)
        & (not candidate[4:].translate(None, _ALPHABET))
        & (candidate[_CHECKSUM_AT:] == _checksum(body))
    )
    proof = sha256(candidate).digest()
    return proof if well_formed else None


def digest_of(proof: bytes) -> bytes:
    """Return SHA-256(P), 32 bytes: the only form of a key that is stored."""
    return sha256(proof).digest()
