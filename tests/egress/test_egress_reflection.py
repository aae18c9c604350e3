"""The secret is found in its encodings, wherever a read cuts it."""

from __future__ import annotations

import base64
import itertools
import json
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliproxy.egress.reflection import NO_SECRET, REPLACEMENT, ReflectionGuard

PLAIN = b"sk-proj-Zx9QvT4mW7kLp2Rb8Ny5Jc3Hf6Gd1As0"
ODD = b"a\"b\\c/d<e>&f+g%h=i'j{k}l~m"

ENCODINGS = {
    "as it is": lambda secret: secret,
    "in JSON": lambda secret: json.dumps(secret.decode())[1:-1].encode(),
    "in JSON with escaped slashes": lambda secret: json.dumps(secret.decode())[1:-1].replace("/", "\\/").encode(),
    "in JSON as Go writes it": lambda secret: (
        json.dumps(secret.decode())[1:-1].replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026").encode()
    ),
    "percent-encoded": lambda secret: quote(secret, safe="").encode(),
    "as a header": lambda secret: b"Authorization: Bearer " + secret,
}


def fed(guard: ReflectionGuard, *pieces: bytes) -> bytes:
    """Return what is passed on of `pieces`, one read each."""
    out, held = b"", b""
    for piece in pieces:
        passed, held = guard.feed(held, piece)
        out += passed
    return out + guard.last(held)


@pytest.mark.parametrize("secret", [PLAIN, ODD], ids=["plain", "odd"])
@pytest.mark.parametrize("encode", ENCODINGS.values(), ids=ENCODINGS.keys())
def test_a_reflected_secret_is_replaced(secret: bytes, encode: object) -> None:
    encoded = encode(secret)  # type: ignore[operator]
    guard = ReflectionGuard(secret)
    cleaned = guard.clean(b'{"message":"you sent ' + encoded + b" twice: " + encoded + b'"}')
    assert encoded not in cleaned and cleaned.count(REPLACEMENT) == 2
    assert cleaned.startswith(b'{"message":"you sent ') and cleaned.endswith(b'"}')


@pytest.mark.parametrize("alphabet", [base64.b64encode, base64.urlsafe_b64encode], ids=["standard", "URL-safe"])
@pytest.mark.parametrize("before", [b"", b"x", b"xy", b"Bearer ", b"user:", b"Authorization: Bearer "])
@pytest.mark.parametrize("after", [b"", b"\n", b"zz"])
@pytest.mark.parametrize("secret", [PLAIN, ODD], ids=["plain", "odd"])
def test_base64_hides_nothing_at_any_alignment(alphabet: object, before: bytes, after: bytes, secret: bytes) -> None:
    encoded = alphabet(before + secret + after)  # type: ignore[operator]
    cleaned = ReflectionGuard(secret).clean(b'"' + encoded + b'"')
    assert REPLACEMENT in cleaned
    left = cleaned.replace(REPLACEMENT, b"").strip(b'"')
    assert len(left) <= len(encoded) - len(secret)  # what is left over is of the text around it


@pytest.mark.parametrize("secret", [PLAIN, ODD], ids=["plain", "odd"])
@pytest.mark.parametrize("cut", range(len(PLAIN) + 40))
def test_a_cut_at_any_byte_hides_nothing(secret: bytes, cut: int) -> None:
    whole = b'{"a":"' + secret + b'","b":"' + base64.b64encode(b"k:" + secret) + b'"}'
    guard = ReflectionGuard(secret)
    assert fed(guard, whole[:cut], whole[cut:]) == guard.clean(whole)
    assert secret not in fed(guard, whole[:cut], whole[cut:])


def test_one_byte_at_a_time_hides_nothing() -> None:
    whole = b"x" + PLAIN + PLAIN[:20] + PLAIN + b"y"
    assert fed(ReflectionGuard(PLAIN), *(bytes([byte]) for byte in whole)) == b"x" + REPLACEMENT + PLAIN[:20] + REPLACEMENT + b"y"


def test_what_is_held_back_is_passed_on_when_it_turns_out_harmless() -> None:
    guard = ReflectionGuard(PLAIN)
    passed, held = guard.feed(b"", b"the prefix is " + PLAIN[:8])
    assert (passed, held) == (b"the prefix is ", PLAIN[:8])
    assert guard.feed(held, b" you see\n") == (PLAIN[:8] + b" you see\n", b"")


def test_nothing_is_held_back_at_the_end_of_an_event() -> None:
    assert ReflectionGuard(PLAIN).feed(b"", b"data: {}\n\n") == (b"data: {}\n\n", b"")


@pytest.mark.parametrize(("length", "shown"), [(8, True), (19, True), (20, False), (39, False)])
def test_an_answer_that_ends_within_the_secret_shows_less_than_half_of_it(length: int, shown: bool) -> None:
    out = fed(ReflectionGuard(PLAIN), b"key: " + PLAIN[:length])
    assert out == b"key: " + (PLAIN[:length] if shown else REPLACEMENT)


def test_what_is_held_back_is_shorter_than_a_form() -> None:
    guard = ReflectionGuard(b"aaaaaaaaaaaaaaaa")
    held = b""
    for _ in range(1000):
        _, held = guard.feed(held, b"aaaaaaa")
        assert len(held) < 32


def test_without_a_secret_everything_passes() -> None:
    assert NO_SECRET.clean(PLAIN) == PLAIN and NO_SECRET.feed(b"", PLAIN) == (PLAIN, b"") and NO_SECRET.last(b"x") == b"x"


def test_a_guard_does_not_print_its_secret() -> None:
    guard = ReflectionGuard(PLAIN)
    assert PLAIN.decode() not in repr(guard) + str(guard) + f"{guard}"


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=4), st.integers(0, 300))
def test_text_without_the_secret_is_unchanged_and_with_it_is_cleaned_however_it_is_cut(text: bytes, cuts: list[int], at: int) -> None:
    guard = ReflectionGuard(PLAIN)
    for whole in (text, text[:at] + PLAIN + text[at:]):
        edges = sorted({0, len(whole), *(cut for cut in cuts if cut < len(whole))})
        out = fed(guard, *(whole[start:end] for start, end in itertools.pairwise(edges)))
        assert PLAIN not in out
        if whole is text:
            assert out == text


@given(st.text(alphabet=st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=8, max_size=60), st.integers(0, 80))
def test_any_secret_is_found(secret: str, cut: int) -> None:
    whole = b"\x01\x01" + secret.encode() + b"\x01\x01"
    out = fed(ReflectionGuard(secret.encode()), whole[:cut], whole[cut:])
    assert out == b"\x01\x01" + REPLACEMENT + b"\x01\x01" or secret.encode() in REPLACEMENT
