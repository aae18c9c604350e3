"""The keyring: the keys that records are sealed under, by term, and the vault's own identity.

What always holds: new records are sealed under the current term, old ones open under the term that their envelope names, and the keyring itself is
sealed under the master key (term 0, which no record uses). It is a record of the store like any other, so an aged or exchanged keyring is noticed.

Its sealed form: the vault id (16 bytes, plain, authenticated as associated data) and an envelope of a MessagePack struct.
"""

from __future__ import annotations

import os

import msgspec

from cliproxy.errors import EnvelopeError
from cliproxy.secret import Secret
from cliproxy.vault.crypto import (
    KEY_BYTES,
    KeyTerm,
    Random,
    RecordId,
    generate_private_key,
    open_envelope,
    open_sealed,
    public_key_of,
    seal,
    seal_to,
    term_number,
)

KEYRING_ID = "keyring"
MASTER_TERM = 0
_VAULT_ID_BYTES = 16


class _Content(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    terms: dict[int, bytes]
    current: int
    private_key: bytes


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Content)


class Keyring(msgspec.Struct, frozen=True):
    """An opened keyring. `vault` is the vault's id, 32 hexadecimal digits; `terms` holds `current`."""

    vault: str
    terms: dict[int, KeyTerm]
    current: int
    private_key: Secret

    @property
    def public_key(self) -> bytes:
        """The raw X25519 key that commands seal to."""
        return public_key_of(self.private_key)

    def seal(self, plaintext: bytes, *, record: RecordId, random: Random = os.urandom) -> bytes:
        """Return the envelope of `plaintext` under the current term."""
        return seal(self.terms[self.current], plaintext, record=record, random=random)

    def open(self, envelope: bytes, *, record: RecordId) -> Secret:
        """Return what was sealed for `record` under whichever term. Raises `EnvelopeError`."""
        term = self.terms.get(term_number(envelope))
        if term is None:
            raise EnvelopeError(f"the sealed {record.kind} names a key term that the keyring does not have")
        return open_envelope(term, envelope, record=record)

    def with_new_term(self, random: Random = os.urandom) -> Keyring:
        """Return the keyring with a new current term; the older terms still open what they sealed."""
        number = max(self.terms) + 1
        return Keyring(self.vault, {**self.terms, number: KeyTerm(number, Secret(random(KEY_BYTES)))}, number, self.private_key)


def create_keyring(random: Random = os.urandom) -> Keyring:
    """Return the keyring of a new vault: a random id, one term, a private key."""
    vault = random(_VAULT_ID_BYTES).hex()
    return Keyring(vault, {1: KeyTerm(1, Secret(random(KEY_BYTES)))}, 1, generate_private_key(random))


def verify_working(keyring: Keyring) -> None:
    """Seal and open once with each primitive. Raises `EnvelopeError` when what was sealed does not come back."""
    record = RecordId(vault=keyring.vault, id="self-test", kind="self-test", revision=1, origin="https://self-test:443")
    sealed = keyring.open(keyring.seal(b"self-test", record=record), record=record)
    boxed = open_sealed(keyring.private_key, seal_to(keyring.public_key, b"self-test", context=b"self-test"), context=b"self-test")
    if sealed != boxed or sealed.reveal() != b"self-test":
        raise EnvelopeError("what the vault seals does not open again")


def seal_keyring(keyring: Keyring, master: Secret, *, revision: int, random: Random = os.urandom) -> bytes:
    """Return `keyring` sealed under the master key, as revision `revision`."""
    content = _Content({number: term.key.reveal() for number, term in keyring.terms.items()}, keyring.current, keyring.private_key.reveal())
    envelope = seal(KeyTerm(MASTER_TERM, master), _encoder.encode(content), record=_record(keyring.vault, revision), random=random)
    return bytes.fromhex(keyring.vault) + envelope


def open_keyring(sealed: bytes, master: Secret, *, revision: int) -> Keyring:
    """Return the keyring. Raises `EnvelopeError` when the master key is another, the revision is another, or a bit was altered."""
    vault = sealed[:_VAULT_ID_BYTES].hex()
    plain = open_envelope(KeyTerm(MASTER_TERM, master), sealed[_VAULT_ID_BYTES:], record=_record(vault, revision))
    try:
        content = _decoder.decode(plain.reveal())
    except msgspec.DecodeError as error:
        raise EnvelopeError("the keyring holds what this build does not understand") from error
    finally:
        plain.wipe()
    terms = {number: KeyTerm(number, Secret(key)) for number, key in content.terms.items()}
    sound = all(number > MASTER_TERM and len(term.key) == KEY_BYTES for number, term in terms.items())
    if not sound or content.current not in terms or len(content.private_key) != KEY_BYTES:
        raise EnvelopeError("the keyring holds what this build does not understand")
    return Keyring(vault, terms, content.current, Secret(content.private_key))


def _record(vault: str, revision: int) -> RecordId:
    return RecordId(vault=vault, id=KEYRING_ID, kind=KEYRING_ID, revision=revision)
