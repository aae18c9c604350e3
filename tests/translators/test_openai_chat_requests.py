"""Chat completion requests: what is taken, what is refused, what leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cliproxy.dialects import Quirks
from cliproxy.errors import ClientError, SchemaError
from cliproxy.translators.openai_chat.decode import decode_chat
from cliproxy.translators.openai_chat.encode import encode_same
from cliproxy.translators.openai_chat.request import ChatRequest

VECTORS = Path(__file__).parents[1] / "vectors" / "openai_chat"
REQUESTS = {path.stem: path.read_bytes() for path in sorted((VECTORS / "requests").glob("*.json"))}
REFUSED = {path.stem: json.loads(path.read_text()) for path in sorted((VECTORS / "refused").glob("*.json"))}
CANARY = "a prompt nobody may quote"
CAP = 4096


def decode(body: bytes, *, cap: int = CAP, on_excess: Any = "reject") -> ChatRequest:
    return decode_chat(body, max_tokens_cap=cap, on_excess=on_excess, allow_provider_state=True)


def final(request: ChatRequest, model: str = "upstream-model", quirks: Quirks = Quirks.NONE) -> bytes:
    encoded = encode_same(request, quirks)
    assert encoded.dropped == ()
    return encoded.prefix + json.dumps(model).encode() + encoded.suffix


def body_of(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": "Hello."}], **fields}).encode()


def test_there_are_vectors() -> None:
    assert len(REQUESTS) >= 13 and len(REFUSED) >= 60


@pytest.mark.parametrize("name", REQUESTS)
def test_what_leaves_is_the_request_with_the_upstreams_model_a_cap_and_a_wish_for_usage(name: str) -> None:
    sent = json.loads(REQUESTS[name])
    left = json.loads(final(decode(REQUESTS[name])))
    expected = {**sent, "model": "upstream-model"}
    if sent.get("max_tokens") is None and sent.get("max_completion_tokens") is None:
        expected["max_tokens"] = CAP
    elif sent.get("max_tokens") is not None and sent.get("max_completion_tokens") is not None:
        expected["max_tokens"] = expected["max_completion_tokens"] = min(sent["max_tokens"], sent["max_completion_tokens"])
    if sent.get("stream"):
        expected["stream_options"] = {**(sent.get("stream_options") or {}), "include_usage": True}
    assert left == expected


@pytest.mark.parametrize("name", REQUESTS)
def test_decoding_what_was_encoded_gives_the_same_request(name: str) -> None:
    request = decode(REQUESTS[name])
    again = decode(final(request, request.model))
    assert (again.model, again.stream, again.n, again.max_tokens, again.rest) == (request.model, request.stream, request.n, request.max_tokens, request.rest)
    assert final(decode(final(again, "m")), "m") == final(again, "m")


@pytest.mark.parametrize("name", REQUESTS)
def test_encoding_changes_nothing_so_a_fallback_can_encode_again(name: str) -> None:
    request = decode(REQUESTS[name])
    assert encode_same(request, Quirks.NONE) == encode_same(request, Quirks.NONE)


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_cut_anywhere_or_with_trailing_garbage_is_refused(name: str) -> None:
    body = REQUESTS[name].rstrip()
    for cut in range(len(body)):
        with pytest.raises(SchemaError):
            decode(body[:cut])
    for tail in (b"x", b"{}", b",", b"\x00", body):
        with pytest.raises(SchemaError):
            decode(body + tail)
    assert decode(b"\n" + body + b"\n").rest == decode(body).rest


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_names_the_field_and_never_quotes_the_client(name: str) -> None:
    vector = REFUSED[name]
    with pytest.raises(SchemaError) as caught:
        decode(json.dumps(vector["body"]).encode())
    assert (caught.value.param, caught.value.code) == (vector["param"], vector["code"])
    assert caught.value.status == 400
    assert CANARY not in caught.value.message and "attacker" not in caught.value.message and "\n" not in caught.value.message


@pytest.mark.parametrize("body", [b"[]", b"null", b"1", b'"text"', b"true"])
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(SchemaError) as caught:
        decode(body)
    assert caught.value.param is None


@pytest.mark.parametrize(
    ("asked", "on_excess", "reserved", "leaves"),
    [
        ({}, "reject", 100, {"max_tokens": 100}),
        ({"max_tokens": None, "max_completion_tokens": None}, "reject", 100, {"max_tokens": 100}),
        ({"max_tokens": 100}, "reject", 100, {"max_tokens": 100}),
        ({"max_tokens": 7}, "reject", 7, {"max_tokens": 7}),
        ({"max_completion_tokens": 7}, "reject", 7, {"max_completion_tokens": 7}),
        ({"max_completion_tokens": 7, "max_tokens": None}, "reject", 7, {"max_completion_tokens": 7, "max_tokens": None}),
        ({"max_completion_tokens": 7, "max_tokens": 9}, "reject", 7, {"max_completion_tokens": 7, "max_tokens": 7}),
        ({"max_tokens": 101}, "clamp", 100, {"max_tokens": 100}),
        ({"max_tokens": 10**30}, "clamp", 100, {"max_tokens": 100}),
        ({"max_completion_tokens": 5000, "max_tokens": 9}, "clamp", 9, {"max_completion_tokens": 9, "max_tokens": 9}),
    ],
)
def test_output_tokens_are_capped_whatever_the_field(asked: dict[str, Any], on_excess: str, reserved: int, leaves: dict[str, Any]) -> None:
    request = decode(body_of(**asked), cap=100, on_excess=on_excess)
    left = json.loads(final(request))
    assert request.max_tokens == reserved
    assert {name: left[name] for name in ("max_tokens", "max_completion_tokens") if name in left} == leaves


def test_an_excess_is_refused_with_the_limit_in_the_message() -> None:
    with pytest.raises(SchemaError, match="100"):
        decode(body_of(max_tokens=101), cap=100)


@pytest.mark.parametrize(
    ("fields", "stream", "include_usage"),
    [
        ({}, False, False),
        ({"stream": False}, False, False),
        ({"stream": True}, True, False),
        ({"stream": True, "stream_options": None}, True, False),
        ({"stream": True, "stream_options": {}}, True, False),
        ({"stream": True, "stream_options": {"include_usage": False}}, True, False),
        ({"stream": True, "stream_options": {"include_usage": True}}, True, True),
    ],
)
def test_a_stream_always_asks_for_usage_and_what_the_client_wished_is_remembered(fields: dict[str, Any], stream: bool, include_usage: bool) -> None:
    request = decode(body_of(**fields))
    assert (request.stream, request.include_usage) == (stream, include_usage)
    options = json.loads(final(request)).get("stream_options")
    assert options == ({"include_usage": True} if stream else None)


def test_a_stream_asks_for_usage_and_no_other_spelling_says_otherwise() -> None:
    request = decode(body_of(stream=True, stream_options={"include_usage": False, "include_obfuscation": False}))
    assert b'"stream_options":{"include_usage":true,"include_obfuscation":false}' in final(request)
    with pytest.raises(SchemaError) as raised:
        decode(body_of(stream=True, stream_options={"include_usage": False, "Include_Usage": False}))
    assert (raised.value.param, raised.value.code) == ("include_usage", "ambiguous_field")


def test_the_models_name_is_spliced_in_and_nowhere_else() -> None:
    encoded = encode_same(decode(body_of(model="public-name")), Quirks.NONE)
    assert b"public-name" not in encoded.prefix + encoded.suffix
    assert encoded.prefix == b'{"model":'


def test_pictures_and_sound_count_by_kind_and_text_by_length() -> None:
    def estimate(content: Any) -> int:
        return decode(body_of(messages=[{"role": "user", "content": content}])).estimate

    picture = [{"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 400_000}}]
    assert 1000 <= estimate(picture) < 1100
    assert 1000 <= estimate([{"type": "image_url", "image_url": {"url": "https://pictures.example/1.png"}}]) < 1100
    assert 10_000 <= estimate("word " * 8000) < 10_100
    assert 100 <= estimate([{"type": "input_audio", "input_audio": {"data": "A" * 100_000, "format": "mp3"}}]) < 200
    assert 1000 <= estimate([{"type": "file", "file": {"file_data": "A" * 16_000}}]) < 1100


@settings(max_examples=300)
@given(st.binary(max_size=300))
def test_garbage_gives_a_client_error_and_nothing_else(body: bytes) -> None:
    with pytest.raises(ClientError):
        decode(body)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


@settings(max_examples=300)
@given(st.dictionaries(st.sampled_from(["model", "messages", "n", "stream", "stream_options", "tools", "stop", "max_tokens", "metadata", "x"]), json_values))
def test_any_json_gives_a_request_or_a_client_error(fields: dict[str, Any]) -> None:
    try:
        request = decode(json.dumps(fields).encode())
    except ClientError:
        return
    assert json.loads(final(request))["messages"] == fields["messages"]


@settings(max_examples=300)
@given(st.dictionaries(st.text(min_size=1).filter(lambda name: name[0] in "xyzXYZ é"), json_values), st.lists(st.text(), min_size=1))
def test_what_the_gateway_does_not_know_leaves_as_it_came(unknown: dict[str, Any], texts: list[str]) -> None:
    sent = {
        **{f"x-{name}": value for name, value in unknown.items()},
        "model": "m",
        "messages": [{"role": "user", "content": text} for text in texts],
        "max_tokens": 1,
    }
    left = json.loads(final(decode(json.dumps(sent).encode()), "m"))
    assert left == sent
