from __future__ import annotations

import msgspec
import pytest

from cliproxy.errors import EnvelopeError
from cliproxy.secret import Secret
from cliproxy.vault import keyring as keyring_module
from cliproxy.vault.crypto import KeyTerm, RecordId, seal
from cliproxy.vault.keyring import KEYRING_ID, Keyring, create_keyring, open_keyring, seal_keyring, verify_working
from vault.vault_fakes import MASTER

RING = create_keyring()
RECORD = RecordId(vault=RING.vault, id="r", kind="k", revision=1)


def test_a_keyring_opens_as_it_was_sealed() -> None:
    ring = RING.with_new_term()
    again = open_keyring(seal_keyring(ring, MASTER, revision=2), MASTER, revision=2)
    assert (again.vault, again.current, set(again.terms)) == (ring.vault, 2, {1, 2})
    assert again.private_key == ring.private_key
    assert all(again.terms[number].key == ring.terms[number].key for number in (1, 2))


@pytest.mark.parametrize(("master", "revision"), [(Secret(bytes(32)), 1), (MASTER, 2), (MASTER, 0)], ids=["other master", "newer", "older"])
def test_it_opens_under_its_master_key_and_revision_only(master: Secret, revision: int) -> None:
    sealed = seal_keyring(RING, MASTER, revision=1)
    with pytest.raises(EnvelopeError):
        open_keyring(sealed, master, revision=revision)


def test_every_flipped_bit_is_noticed_the_vault_id_included() -> None:
    sealed = seal_keyring(RING, MASTER, revision=1)
    for position in range(len(sealed)):
        altered = bytearray(sealed)
        altered[position] ^= 1 << position % 8
        with pytest.raises(EnvelopeError):
            open_keyring(bytes(altered), MASTER, revision=1)


@pytest.mark.parametrize("cut", [0, 15, 16, 17, 100])
def test_a_shortened_keyring_is_noticed(cut: int) -> None:
    with pytest.raises(EnvelopeError):
        open_keyring(seal_keyring(RING, MASTER, revision=1)[:cut], MASTER, revision=1)


@pytest.mark.parametrize(
    "content",
    [
        {"terms": {}, "current": 1, "private_key": bytes(32)},
        {"terms": {1: bytes(32)}, "current": 2, "private_key": bytes(32)},
        {"terms": {1: bytes(31)}, "current": 1, "private_key": bytes(32)},
        {"terms": {0: bytes(32), 1: bytes(32)}, "current": 1, "private_key": bytes(32)},
        {"terms": {1: bytes(32)}, "current": 1, "private_key": b""},
        {"terms": {1: bytes(32)}, "current": 1, "private_key": bytes(32), "more": 1},
        {"terms": {1: bytes(32)}, "current": 1},
        [],
    ],
)
def test_a_keyring_of_another_build_is_refused(content: object) -> None:
    record = RecordId(vault=RING.vault, id=KEYRING_ID, kind=KEYRING_ID, revision=1)
    sealed = bytes.fromhex(RING.vault) + seal(KeyTerm(0, MASTER), msgspec.msgpack.encode(content), record=record)
    with pytest.raises(EnvelopeError, match="does not understand"):
        open_keyring(sealed, MASTER, revision=1)


def test_new_records_use_the_current_term_and_old_ones_still_open() -> None:
    old = RING.seal(b"old", record=RECORD)
    ring = RING.with_new_term()
    new = ring.seal(b"new", record=RECORD)
    assert (ring.open(old, record=RECORD).reveal(), ring.open(new, record=RECORD).reveal()) == (b"old", b"new")
    with pytest.raises(EnvelopeError, match="does not have"):
        RING.open(new, record=RECORD)


def test_no_record_opens_under_the_master_key() -> None:
    with pytest.raises(EnvelopeError, match="does not have"):
        RING.open(seal(KeyTerm(0, MASTER), b"x", record=RECORD), record=RECORD)


def test_two_vaults_share_nothing() -> None:
    other = create_keyring()
    assert other.vault != RING.vault
    assert other.private_key != RING.private_key
    assert other.terms[1].key != RING.terms[1].key


def test_the_self_test_notices_crypto_that_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    verify_working(RING)
    monkeypatch.setattr(keyring_module, "open_sealed", lambda *a, **k: Secret(b"something else"))
    with pytest.raises(EnvelopeError):
        verify_working(RING)
    assert isinstance(RING, Keyring)
