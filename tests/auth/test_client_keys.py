"""Client keys: their form, their proof, their digest."""

from __future__ import annotations

import hashlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliproxy.auth import client_keys
from cliproxy.secret import Secret

KEY = b"cpk_Zm9yLXRlc3RzLW9ubHktYW5kLW5vLXNlY3JldC1hdC1SIE7Uw"  # fixed, so that test ids are the same in every worker


def test_a_new_key_has_the_documented_form_and_is_a_secret() -> None:
    key = client_keys.generate()
    assert isinstance(key, Secret)
    assert re.fullmatch(rb"cpk_[A-Za-z0-9_-]{43}[A-Za-z0-9_-]{6}", key.reveal())
    assert len(key) == client_keys.KEY_BYTES


def test_no_two_keys_are_alike() -> None:
    assert len({client_keys.generate().reveal() for _ in range(200)}) == 200


def test_the_proof_is_the_digest_of_the_whole_key_and_the_digest_is_one_step_further() -> None:
    proof = client_keys.proof_of(KEY)
    assert proof == hashlib.sha256(KEY).digest()
    assert client_keys.digest_of(proof) == hashlib.sha256(hashlib.sha256(KEY).digest()).digest()


def test_the_documented_checksum_is_the_crc_of_the_random_part() -> None:
    # The CRC of 43 times `A` as gzip computes it: keys of an older release must stay valid.
    key = b"cpk_" + b"A" * 43 + b"DCtZhg"
    assert client_keys.proof_of(key) == hashlib.sha256(key).digest()


@pytest.mark.parametrize("at", range(client_keys.KEY_BYTES))
def test_one_altered_character_makes_it_malformed(at: int) -> None:
    other = b"A" if KEY[at : at + 1] != b"A" else b"B"
    assert client_keys.proof_of(KEY[:at] + other + KEY[at + 1 :]) is None


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("empty", b""),
        ("short", KEY[:-1]),
        ("long", KEY + b"A"),
        ("megabyte", KEY + b"A" * 1_000_000),
        ("other prefix", b"sk-_" + KEY[4:]),
        ("upper-case prefix", b"CPK_" + KEY[4:]),
        ("trailing newline", KEY[:-1] + b"\n"),
        ("leading space", b" " + KEY[:-1]),
        ("the decoy itself", b"cpk_" + bytes(49)),
        ("a quote for a database", b"cpk_' OR 1=1 --" + b"A" * 38),
    ],
)
def test_a_malformed_key_has_no_proof(name: str, key: bytes) -> None:
    assert client_keys.proof_of(key) is None


def test_a_correct_checksum_does_not_excuse_a_foreign_alphabet() -> None:
    body = b"\xff" * 43
    assert client_keys.proof_of(b"cpk_" + body + client_keys._checksum(body)) is None


@given(st.binary(max_size=200))
def test_any_bytes_give_a_proof_or_none(key: bytes) -> None:
    assert client_keys.proof_of(key) is None
