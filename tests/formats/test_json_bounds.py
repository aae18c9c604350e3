"""How much JSON is decoded, and that decoding fails in one way only."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliproxy.bounds import MAX_ANSWER_OBJECTS, SMALL_JSON_BYTES
from cliproxy.errors import SchemaError, UpstreamError
from cliproxy.formats.json_bounds import MAX_JSON_CONTAINERS, answer_as, decode_json, encode_json, verify_bounds

VALUES = 50_000


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("arrays", b"[" + b"[]," * MAX_JSON_CONTAINERS + b"[]]"),
        ("objects", b"[" + b"{}," * MAX_JSON_CONTAINERS + b"{}]"),
        ("numbers", b"[" + b"1," * VALUES + b"1,1]"),
        ("strings", b"[" + b'"",' * VALUES + b'"",""]'),
        ("pairs", b"{" + b",".join(b'"%d":1' % count for count in range(VALUES + 2)) + b"}"),
        ("eight megabytes of arrays", b"[]," * 2_700_000),
        ("eight megabytes of quotes and too many arrays", b'"' * 8_000_000 + b"[]," * MAX_JSON_CONTAINERS + b"[]"),
        ("eight megabytes of commas", b"," * 8_000_000),
        ("arrays behind an escaped quote", b'["\\"",' + b"[]," * MAX_JSON_CONTAINERS + b"[]]"),
        ("arrays behind an escaped backslash", b'["\\\\",' + b"[]," * MAX_JSON_CONTAINERS + b'"\\\\"]'),
    ],
)
def test_too_many_values_are_refused_before_decoding(name: str, body: bytes) -> None:
    with pytest.raises(SchemaError) as caught:
        decode_json(body, max_values=VALUES)
    assert caught.value.code == "too_many_values"


@pytest.mark.parametrize(
    "text",
    ["[]," * 40_000, "{[,\\" * 40_000, '\\"[],' * 40_000, "\\\\" * 40_000 + ",[" * 40_000, '"' * 40_000 + "[" * 40_000],
    ids=["arrays", "backslashes", "escaped quotes", "double backslashes", "quotes"],
)
def test_brackets_and_commas_in_a_text_are_no_values(text: str) -> None:
    body = json.dumps({"text": text, "more": [text, text]}).encode()
    assert len(body) > SMALL_JSON_BYTES
    assert decode_json(body, max_values=VALUES) == {"text": text, "more": [text, text]}


def test_just_as_many_as_the_bounds_say_are_taken() -> None:
    arrays: list[list[object]] = [[]] * (MAX_JSON_CONTAINERS - 1)
    assert decode_json(encode_json(arrays), max_values=VALUES) == arrays
    numbers = [1] * (VALUES + 1)
    assert decode_json(encode_json(numbers), max_values=VALUES) == numbers


@given(st.lists(st.sampled_from([b'"', b"\\", b"[", b",", b"{", b"a", b'\\"', b"\\\\"]), max_size=30))
def test_bounds_are_judged_on_any_bytes_without_trouble(parts: list[bytes]) -> None:
    try:
        verify_bounds(b"".join(parts) * 1000, max_values=100)
    except SchemaError as error:
        assert error.code == "too_many_values"


@given(st.recursive(st.none() | st.text() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_valid_json_of_any_text_is_never_refused_for_its_strings(value: object) -> None:
    body = json.dumps([value, "," * SMALL_JSON_BYTES, "[{" * MAX_JSON_CONTAINERS]).encode()
    assert decode_json(body, max_values=2000) == json.loads(body)


@pytest.mark.parametrize("depth", [2_000, 100_000])
@pytest.mark.parametrize("unit", [b"[", b'{"a":'])
def test_nesting_too_deep_is_a_schema_error(unit: bytes, depth: int) -> None:
    with pytest.raises(SchemaError) as caught:
        decode_json(unit * depth, max_values=VALUES)
    assert caught.value.code in ("nested_too_deeply", "too_many_values")


def test_what_is_nested_too_deeply_for_the_encoder_is_a_schema_error() -> None:
    value: list[object] = []
    for _ in range(5000):
        value = [value]
    with pytest.raises(SchemaError) as caught:
        encode_json(value)
    assert caught.value.code == "nested_too_deeply"


@given(st.binary())
def test_any_bytes_give_a_value_or_a_schema_error(body: bytes) -> None:
    try:
        decode_json(body, max_values=VALUES)
    except SchemaError as error:
        assert error.code in ("invalid_json", "nested_too_deeply")


# --- a provider's answers ----------------------------------------------------------------------------------------------


class Told(msgspec.Struct):
    text: str
    more: msgspec.Raw = msgspec.Raw(b"null")


TOLD = msgspec.json.Decoder(Told)


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"text":1}', b'{"text":"a"} x', b'{"text":"a","more":"\xff"}', b'{"text":"a","skipped":"\xff"}', b'{"text":' + b"[" * 5000]
)
def test_what_is_no_answer_of_the_type_is_none(body: bytes) -> None:
    assert answer_as(TOLD, body) is None


def test_an_answer_of_too_many_objects_is_refused_before_it_is_decoded_and_cools_nothing() -> None:
    assert answer_as(TOLD, b'{"text":"a","more":[%s1]}' % (b"{}," * (MAX_ANSWER_OBJECTS - 1))) is not None
    with pytest.raises(UpstreamError) as caught:
        answer_as(TOLD, b'{"text":"a","more":[%s1]}' % (b"{}," * MAX_ANSWER_OBJECTS))
    assert caught.value.code == "provider_answer_too_large"
