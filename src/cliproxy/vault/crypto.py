"""The only encryption code. It decides how a record is sealed, and whether sealed bytes may be opened at the place where they were found.

What always holds: a record opens only under the key term that sealed it, in its vault, under its id, kind and revision and for its origin, with not
a bit changed; anything else raises `EnvelopeError` and gives no plaintext. No key is used for two records, no nonce twice under one key.

An envelope (format 1; docs/security/envelope.md), 125 bytes longer than its plaintext:

    offset  bytes  field
         0      1  format, 1
         1      4  key term, big-endian
         5     32  salt
        37     12  nonce of the wrapped data key
        49     48  data key under HKDF-SHA256(key of the term, salt), AES-256-GCM, with tag
        97     12  nonce of the content
       109      n  content under the data key, AES-256-GCM
     109+n     16  tag

The associated data of both layers, and the `info` of the HKDF, is the length-prefixed list: label of the layer, format, vault id, record id, kind,
revision, key term, origin. Length prefixes make it injective: no two places give the same bytes.

A sealed box (`seal_to`, format 1) is for a holder of a private key, with the shape of HPKE's base mode (RFC 9180 §5.1, DHKEM(X25519, HKDF-SHA256),
one message): format (1), ephemeral public key (32), content with tag. Key and nonce come from HKDF-SHA256(shared secret) with both public keys and
the context in `info`, so each is used once. It hides and binds the content; it does not say who sealed it.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cliproxy.bounds import MIB
from cliproxy.errors import EnvelopeError
from cliproxy.secret import Secret

MAX_ENVELOPE_BYTES = MIB  # one sealed record

ENVELOPE_FORMAT = 1
BOX_FORMAT = 1
KEY_BYTES = 32  # AES-256, X25519, and the output of SHA-256
_SALT_BYTES = 32
_NONCE_BYTES = 12  # NIST SP 800-38D §5.2.1.1: 96 bits, the length that GCM uses directly
_TAG_BYTES = 16
_WRAPPED_BYTES = KEY_BYTES + _TAG_BYTES
_HEAD = struct.Struct(f">BI{_SALT_BYTES}s{_NONCE_BYTES}s{_WRAPPED_BYTES}s{_NONCE_BYTES}s")
OVERHEAD_BYTES = _HEAD.size + _TAG_BYTES
BOX_OVERHEAD_BYTES = 1 + KEY_BYTES + _TAG_BYTES
_MAX_TERM = 2**32 - 1
_MAX_REVISION = 2**63 - 1  # what an SQLite integer holds

Random = Callable[[int], bytes]


class KeyTerm(msgspec.Struct, frozen=True):
    """A key-encryption key and the number under which envelopes name it."""

    number: int
    key: Secret


class RecordId(msgspec.Struct, frozen=True, kw_only=True):
    """The place that a record belongs to. `origin` is `scheme://host:port` for a credential, else empty; `revision` counts the record's writes from 1."""

    vault: str
    id: str
    kind: str
    revision: int
    origin: str = ""


def length_prefixed(*parts: bytes) -> bytes:
    """Join `parts` so that different lists give different bytes: each with its length in 4 bytes before it."""
    return b"".join(struct.pack(">I", len(part)) + part for part in parts)


def seal(term: KeyTerm, plaintext: bytes, *, record: RecordId, random: Random = os.urandom) -> bytes:
    """Return the envelope of `plaintext` for `record` under `term`. Two calls never give the same bytes."""
    if not 0 <= term.number <= _MAX_TERM or not 0 <= record.revision <= _MAX_REVISION:
        raise EnvelopeError("the key term or revision is out of range")
    if len(plaintext) > MAX_ENVELOPE_BYTES - OVERHEAD_BYTES:
        raise EnvelopeError(f"a record of {len(plaintext)} bytes is too large to seal")
    salt, wrap_nonce, nonce = random(_SALT_BYTES), random(_NONCE_BYTES), random(_NONCE_BYTES)
    data_key = random(KEY_BYTES)
    wrapped = AESGCM(_wrapping_key(term, salt, record)).encrypt(wrap_nonce, data_key, _associated(b"data key", term.number, record))
    content = AESGCM(data_key).encrypt(nonce, plaintext, _associated(b"content", term.number, record))
    return _HEAD.pack(ENVELOPE_FORMAT, term.number, salt, wrap_nonce, wrapped, nonce) + content


def term_number(envelope: bytes) -> int:
    """Return the number of the key term that `envelope` says it was sealed under. Not authenticated until it was opened with that term.

    Raises `EnvelopeError` when the length or format cannot be right; a newer format says so.
    """
    if not OVERHEAD_BYTES <= len(envelope) <= MAX_ENVELOPE_BYTES:
        raise EnvelopeError("the sealed record has a length that cannot be right")
    format_number, number = struct.unpack_from(">BI", envelope)
    if format_number > ENVELOPE_FORMAT:
        raise EnvelopeError(f"the sealed record has format {format_number}; this build knows {ENVELOPE_FORMAT}")
    if format_number != ENVELOPE_FORMAT:
        raise EnvelopeError("the sealed record has an unknown format")
    return int(number)


def open_envelope(term: KeyTerm, envelope: bytes, *, record: RecordId) -> Secret:
    """Return the secret sealed for `record`.

    Raises `EnvelopeError` if a byte was altered, or it was sealed under another key or for another record. Format: docs/security/envelope.md.
    """
    if term_number(envelope) != term.number:
        raise EnvelopeError("the sealed record was sealed under another key term")
    _, _, salt, wrap_nonce, wrapped, nonce = _HEAD.unpack_from(envelope)
    try:
        data_key = AESGCM(_wrapping_key(term, salt, record)).decrypt(wrap_nonce, wrapped, _associated(b"data key", term.number, record))
        return Secret(AESGCM(data_key).decrypt(nonce, envelope[_HEAD.size :], _associated(b"content", term.number, record)))
    except InvalidTag:
        raise EnvelopeError(f"the sealed {record.kind} does not open: altered, or sealed under another key or for another place") from None


def _associated(label: bytes, term: int, record: RecordId) -> bytes:
    return length_prefixed(
        b"cliproxy envelope " + label,
        bytes([ENVELOPE_FORMAT]),
        record.vault.encode(),
        record.id.encode(),
        record.kind.encode(),
        struct.pack(">Q", record.revision),
        struct.pack(">I", term),
        record.origin.encode(),
    )


def _wrapping_key(term: KeyTerm, salt: bytes, record: RecordId) -> bytes:
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=salt, info=_associated(b"wrapping key", term.number, record)).derive(term.key.reveal())


# --- sealed boxes ----------------------------------------------------------------------------------------------------


def generate_private_key(random: Random = os.urandom) -> Secret:
    """Return a new X25519 private key (raw, 32 bytes)."""
    return Secret(random(KEY_BYTES))


def public_key_of(private_key: Secret) -> bytes:
    """Return the raw X25519 public key (32 bytes) of `private_key`."""
    return X25519PrivateKey.from_private_bytes(private_key.reveal()).public_key().public_bytes_raw()


def credential_context(*, vault: str, provider: str, label: str) -> bytes:
    """Return the context that a credential is sealed in on its way to the vault: a box made for one provider does not open for another."""
    return length_prefixed(b"cliproxy add credential", vault.encode(), provider.encode(), label.encode())


def seal_to(public_key: bytes, plaintext: bytes, *, context: bytes, random: Random = os.urandom) -> bytes:
    """Return a box that only the holder of `public_key`'s private key opens, and only with the same `context`.

    Raises `EnvelopeError` when `public_key` is no X25519 key or of low order.
    """
    if len(plaintext) > MAX_ENVELOPE_BYTES - BOX_OVERHEAD_BYTES:
        raise EnvelopeError(f"{len(plaintext)} bytes are too many to seal")
    ephemeral = X25519PrivateKey.from_private_bytes(random(KEY_BYTES))
    encapsulated = ephemeral.public_key().public_bytes_raw()
    key, nonce = _box_key(ephemeral, public_key, encapsulated=encapsulated, recipient=public_key, context=context)
    return bytes([BOX_FORMAT]) + encapsulated + AESGCM(key).encrypt(nonce, plaintext, context)


def open_sealed(private_key: Secret, box: bytes, *, context: bytes) -> Secret:
    """Return what was sealed in `box` to the public key of `private_key` in `context`. Raises `EnvelopeError` for anything else."""
    if not BOX_OVERHEAD_BYTES <= len(box) <= MAX_ENVELOPE_BYTES:
        raise EnvelopeError("the sealed box has a length that cannot be right")
    if box[0] != BOX_FORMAT:
        raise EnvelopeError(f"the sealed box has format {box[0]}; this build knows {BOX_FORMAT}")
    encapsulated, content = box[1 : 1 + KEY_BYTES], box[1 + KEY_BYTES :]
    key, nonce = _box_key(
        X25519PrivateKey.from_private_bytes(private_key.reveal()),
        encapsulated,
        encapsulated=encapsulated,
        recipient=public_key_of(private_key),
        context=context,
    )
    try:
        return Secret(AESGCM(key).decrypt(nonce, content, context))
    except InvalidTag:
        raise EnvelopeError("the sealed box does not open: altered, or sealed to another key or for another purpose") from None


def _box_key(private: X25519PrivateKey, public: bytes, *, encapsulated: bytes, recipient: bytes, context: bytes) -> tuple[bytes, bytes]:
    try:
        shared = private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:  # not 32 bytes, or a point of low order, which gives an all-zero secret (RFC 7748 §6.1)
        raise EnvelopeError("the public key is no usable X25519 key") from error
    # Both public keys go into the derivation (RFC 9180 §4.1, kem_context).
    info = length_prefixed(b"cliproxy sealed box", bytes([BOX_FORMAT]), encapsulated, recipient, context)
    derived = HKDF(algorithm=SHA256(), length=KEY_BYTES + _NONCE_BYTES, salt=None, info=info).derive(shared)
    return derived[:KEY_BYTES], derived[KEY_BYTES:]
