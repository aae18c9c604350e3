from __future__ import annotations

import itertools

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from cliproxy.errors import EnvelopeError
from cliproxy.secret import Secret
from cliproxy.vault import crypto
from cliproxy.vault.crypto import MAX_ENVELOPE_BYTES, KeyTerm, RecordId

TERM = KeyTerm(7, Secret(bytes(range(32))))
RECORD = RecordId(vault="a" * 32, id="cred-1", kind="credential", revision=3, origin="https://api.example.com:443")
CONTEXT = crypto.credential_context(vault="a" * 32, provider="openai", label="main")
PRIVATE = Secret(bytes(range(1, 33)))


@given(plaintext=st.binary(max_size=300))
def test_what_was_sealed_opens_at_its_place(plaintext: bytes) -> None:
    envelope = crypto.seal(TERM, plaintext, record=RECORD)
    assert crypto.open_envelope(TERM, envelope, record=RECORD).reveal() == plaintext
    assert len(envelope) == len(plaintext) + crypto.OVERHEAD_BYTES == len(plaintext) + 125
    assert crypto.term_number(envelope) == 7


@pytest.mark.parametrize("plaintext", [b"", b"sk-live-0123456789"], ids=["empty", "a key"])
def test_every_flipped_bit_of_an_envelope_is_noticed(plaintext: bytes) -> None:
    envelope = crypto.seal(TERM, plaintext, record=RECORD)
    for bit in range(len(envelope) * 8):
        altered = bytearray(envelope)
        altered[bit // 8] ^= 1 << bit % 8
        with pytest.raises(EnvelopeError):
            crypto.open_envelope(TERM, bytes(altered), record=RECORD)


@pytest.mark.parametrize("cut", range(0, 140, 3))
def test_a_shortened_or_lengthened_envelope_is_noticed(cut: int) -> None:
    envelope = crypto.seal(TERM, b"x" * 20, record=RECORD)
    for altered in (envelope[:cut], envelope[cut + 1 :], envelope + bytes(cut + 1)):
        with pytest.raises(EnvelopeError):
            crypto.open_envelope(TERM, altered, record=RECORD)


@pytest.mark.parametrize(
    "elsewhere",
    [
        replace(RECORD, vault="b" * 32),
        replace(RECORD, id="cred-2"),
        replace(RECORD, kind="client_key"),
        replace(RECORD, revision=2),
        replace(RECORD, revision=4),
        replace(RECORD, origin="https://evil.example.com:443"),
        replace(RECORD, origin=""),
        replace(RECORD, id="cred-1credential", kind=""),
    ],
    ids=["vault", "id", "kind", "older revision", "newer revision", "origin", "no origin", "shifted fields"],
)
def test_an_envelope_opens_nowhere_else(elsewhere: RecordId) -> None:
    envelope = crypto.seal(TERM, b"secret", record=RECORD)
    with pytest.raises(EnvelopeError, match="does not open"):
        crypto.open_envelope(TERM, envelope, record=elsewhere)


@pytest.mark.parametrize(
    "term", [KeyTerm(7, Secret(bytes(32))), KeyTerm(8, TERM.key), KeyTerm(0, TERM.key)], ids=["other key", "other number", "master's number"]
)
def test_an_envelope_opens_under_its_own_term_only(term: KeyTerm) -> None:
    with pytest.raises(EnvelopeError):
        crypto.open_envelope(term, crypto.seal(TERM, b"secret", record=RECORD), record=RECORD)


def test_a_renumbered_envelope_does_not_open_under_the_same_key() -> None:
    envelope = crypto.seal(TERM, b"secret", record=RECORD)
    with pytest.raises(EnvelopeError, match="does not open"):
        crypto.open_envelope(KeyTerm(8, TERM.key), envelope[:1] + (8).to_bytes(4, "big") + envelope[5:], record=RECORD)


@settings(max_examples=300)
@given(junk=st.one_of(st.binary(max_size=300), st.binary(min_size=125, max_size=200).map(lambda tail: b"\x01\x00\x00\x00\x07" + tail)))
def test_any_bytes_give_the_declared_error(junk: bytes) -> None:
    with pytest.raises(EnvelopeError):
        crypto.open_envelope(TERM, junk, record=RECORD)
    with pytest.raises(EnvelopeError):
        crypto.open_sealed(PRIVATE, junk, context=CONTEXT)


def test_a_newer_format_is_named_as_such() -> None:
    envelope = crypto.seal(TERM, b"secret", record=RECORD)
    with pytest.raises(EnvelopeError, match="format 2; this build knows 1"):
        crypto.open_envelope(TERM, b"\x02" + envelope[1:], record=RECORD)
    box = crypto.seal_to(crypto.public_key_of(PRIVATE), b"secret", context=CONTEXT)
    with pytest.raises(EnvelopeError, match="format 2; this build knows 1"):
        crypto.open_sealed(PRIVATE, b"\x02" + box[1:], context=CONTEXT)


def test_no_two_envelopes_share_salt_nonce_or_data_key() -> None:
    drawn: list[bytes] = []

    def random(length: int) -> bytes:
        drawn.append(len(drawn).to_bytes(length, "big"))
        return drawn[-1]

    first = crypto.seal(TERM, b"same", record=RECORD, random=random)
    second = crypto.seal(TERM, b"same", record=RECORD, random=random)
    assert [len(value) for value in drawn] == [32, 12, 12, 32] * 2  # salt, two nonces, data key: each drawn anew for each record
    assert not {first[5:37], first[37:49], first[97:109]} & {second[5:37], second[37:49], second[97:109]}
    assert crypto.seal(TERM, b"same", record=RECORD) != crypto.seal(TERM, b"same", record=RECORD)


@given(left=st.lists(st.binary(max_size=6), max_size=4), right=st.lists(st.binary(max_size=6), max_size=4))
def test_length_prefixes_are_injective(left: list[bytes], right: list[bytes]) -> None:
    assert (crypto.length_prefixed(*left) == crypto.length_prefixed(*right)) == (left == right)


@pytest.mark.parametrize("bad", [replace(RECORD, revision=-1), replace(RECORD, revision=2**63)], ids=["negative", "too large"])
def test_a_revision_out_of_range_is_refused(bad: RecordId) -> None:
    with pytest.raises(EnvelopeError):
        crypto.seal(TERM, b"", record=bad)


def test_what_is_too_large_is_refused_before_sealing() -> None:
    with pytest.raises(EnvelopeError, match="too large"):
        crypto.seal(TERM, bytes(MAX_ENVELOPE_BYTES), record=RECORD)
    with pytest.raises(EnvelopeError, match="too many"):
        crypto.seal_to(crypto.public_key_of(PRIVATE), bytes(MAX_ENVELOPE_BYTES), context=CONTEXT)


# --- sealed boxes


@given(plaintext=st.binary(max_size=300))
def test_a_box_opens_for_its_recipient(plaintext: bytes) -> None:
    box = crypto.seal_to(crypto.public_key_of(PRIVATE), plaintext, context=CONTEXT)
    assert crypto.open_sealed(PRIVATE, box, context=CONTEXT).reveal() == plaintext


def test_every_flipped_bit_of_a_box_is_noticed() -> None:
    # The top bit of the ephemeral key too, which X25519 ignores (RFC 7748 §5): the key's bytes are part of the derivation.
    box = crypto.seal_to(crypto.public_key_of(PRIVATE), b"sk-live-0123456789", context=CONTEXT)
    for bit in range(len(box) * 8):
        altered = bytearray(box)
        altered[bit // 8] ^= 1 << bit % 8
        with pytest.raises(EnvelopeError):
            crypto.open_sealed(PRIVATE, bytes(altered), context=CONTEXT)


@pytest.mark.parametrize(
    "context",
    [
        crypto.credential_context(vault="b" * 32, provider="openai", label="main"),
        crypto.credential_context(vault="a" * 32, provider="other", label="main"),
        crypto.credential_context(vault="a" * 32, provider="openai", label="mai"),
        crypto.credential_context(vault="a" * 32, provider="openaim", label="ain"),
    ],
    ids=["vault", "provider", "label", "shifted"],
)
def test_a_box_cannot_be_passed_off_for_another_purpose(context: bytes) -> None:
    box = crypto.seal_to(crypto.public_key_of(PRIVATE), b"secret", context=CONTEXT)
    with pytest.raises(EnvelopeError):
        crypto.open_sealed(PRIVATE, box, context=context)


def test_a_box_does_not_open_for_another_key() -> None:
    box = crypto.seal_to(crypto.public_key_of(PRIVATE), b"secret", context=CONTEXT)
    with pytest.raises(EnvelopeError):
        crypto.open_sealed(Secret(bytes(32)), box, context=CONTEXT)


@pytest.mark.parametrize("public", [b"", bytes(31), bytes(33), bytes(32), b"\x01" + bytes(31)], ids=["empty", "short", "long", "zero point", "order 1"])
def test_an_unusable_public_key_is_refused(public: bytes) -> None:
    with pytest.raises(EnvelopeError, match="no usable X25519 key"):
        crypto.seal_to(public, b"secret", context=CONTEXT)


def test_an_ephemeral_key_of_low_order_is_refused() -> None:
    box = crypto.seal_to(crypto.public_key_of(PRIVATE), b"secret", context=CONTEXT)
    with pytest.raises(EnvelopeError, match="no usable X25519 key"):
        crypto.open_sealed(PRIVATE, box[:1] + bytes(32) + box[33:], context=CONTEXT)


def test_two_boxes_share_no_ephemeral_key() -> None:
    boxes = [crypto.seal_to(crypto.public_key_of(PRIVATE), b"same", context=CONTEXT) for _ in range(8)]
    assert all(a[1:33] != b[1:33] for a, b in itertools.combinations(boxes, 2))


def test_private_keys_are_x25519_keys() -> None:
    private = crypto.generate_private_key()
    assert crypto.public_key_of(private) == X25519PrivateKey.from_private_bytes(private.reveal()).public_key().public_bytes_raw()
