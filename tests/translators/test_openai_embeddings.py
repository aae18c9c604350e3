"""Embeddings: requests, final bodies, answers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliproxy.dialects import Quirks
from cliproxy.errors import ChannelError, ClientError, SchemaError, UpstreamError
from cliproxy.metering.openai_embeddings import reread, usage_of_embeddings
from cliproxy.metering.usage import Usage
from cliproxy.translators.openai_embeddings.decode import decode_embeddings
from cliproxy.translators.openai_embeddings.encode import encode_same

ITEM = {"object": "embedding", "index": 0, "embedding": [0.5, -0.5]}


@pytest.mark.parametrize(
    ("fields", "estimate"),
    [
        ({"input": "a text"}, 10),
        ({"input": ["a", "b"], "dimensions": 256, "encoding_format": "base64", "user": "u", "custom": {"kept": [1]}}, None),
        ({"input": [1, 2, 3]}, 3),
        ({"input": [[1, 2], [3]], "encoding_format": None, "dimensions": None}, 3),
    ],
)
def test_what_leaves_is_the_request_with_the_upstreams_model(fields: dict[str, Any], estimate: int | None) -> None:
    body = json.dumps({"model": "public", **fields}).encode()
    request = decode_embeddings(body)
    encoded = encode_same(request, Quirks.NONE)
    prefix, suffix = encoded.prefix, encoded.suffix
    assert request.model == "public"
    assert estimate is None or request.estimate == estimate
    assert json.loads(prefix + b'"theirs"' + suffix) == {"model": "theirs", **fields}
    again = decode_embeddings(prefix + b'"public"' + suffix)
    assert (again.model, again.rest) == (request.model, request.rest)
    for cut in range(len(body)):
        with pytest.raises(SchemaError):
            decode_embeddings(body[:cut])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input"),
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", 1]}, "input"),
        ({"input": [[1], "a"]}, "input"),
        ({"input": [1, [1]]}, "input"),
        ({"input": [[]]}, "input[0]"),
        ({"input": [[1.5]]}, "input[0][0]"),
        ({"input": [True]}, "input[0]"),
        ({"input": [-1]}, "input[0]"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "model": ""}, "model"),
        ({"input": "a", "Input": "b"}, "input"),
        ({"input": "a", "api_base": "http://attacker.example"}, "api_base"),
    ],
)
def test_what_the_schema_does_not_say_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(SchemaError) as caught:
        decode_embeddings(json.dumps({"model": "m", **fields}).encode())
    assert caught.value.param == param


def test_as_many_tokens_as_the_vendor_takes_are_taken() -> None:
    body = json.dumps({"model": "m", "input": [list(range(1000))] * 300}).encode()
    assert decode_embeddings(body).estimate == 300_000


@given(st.binary(max_size=200))
def test_garbage_is_a_client_error_in_a_request_and_an_upstream_error_in_an_answer(body: bytes) -> None:
    with pytest.raises(ClientError):
        decode_embeddings(body)
    with pytest.raises((ClientError, ChannelError)):
        reread(body)
    with pytest.raises(UpstreamError):
        usage_of_embeddings(body)


def test_the_final_body_is_read_again_and_names_one_model() -> None:
    assert reread(b'{"model":"m","input":"x"}') == "m"
    with pytest.raises(ChannelError):
        reread(b'{"model":"m","model":"n"}')


@pytest.mark.parametrize(
    ("usage", "read"),
    [
        ({"prompt_tokens": 7, "total_tokens": 7}, Usage(7, 0)),
        (None, None),
        ({}, None),
        ({"prompt_tokens": -1}, None),
        ("x", None),
        ({"prompt_tokens": "7"}, None),
    ],
)
def test_the_usage_of_an_answer_is_read_or_none(usage: Any, read: Usage | None) -> None:
    for embedding in ([0.5], "AAAAPw=="):
        answer = {"object": "list", "data": [{**ITEM, "embedding": embedding}], "model": "m", "usage": usage}
        assert usage_of_embeddings(json.dumps(answer).encode()) == read
    del answer["usage"]
    assert usage_of_embeddings(json.dumps(answer).encode()) is None


@pytest.mark.parametrize(
    "answer",
    [{"error": {}}, {"data": []}, {"data": [{"index": 0}]}, {"data": [{"embedding": None}]}, {"data": [ITEM, {"embedding": {}}]}, [], None, {"data": "x"}],
)
def test_json_that_is_no_answer_is_the_providers_fault(answer: Any) -> None:
    with pytest.raises(UpstreamError):
        usage_of_embeddings(json.dumps(answer).encode())
