"""Gemini's embeddings: requests, final bodies, answers, and the way between OpenAI's and Gemini's."""

from __future__ import annotations

import base64
import json
import struct
from array import array
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliproxy.dialects import Dialect, Quirks
from cliproxy.errors import ClientError, SchemaError, UnsupportedFeature, UpstreamError
from cliproxy.metering.gemini_embed import reread, usage_of_embeddings
from cliproxy.metering.usage import AskedFor, Usage
from cliproxy.translators.embedding import EmbedAnswer, EmbedRequest
from cliproxy.translators.gemini_embed.answer import decode_embed_answer, encode_embed_answer, same_answer
from cliproxy.translators.gemini_embed.decode import decode_embed
from cliproxy.translators.gemini_embed.encode import encode_embed, encode_same
from cliproxy.translators.gemini_embed.request import GeminiEmbedRequest
from cliproxy.translators.gemini_embed.to_hub import embed_request_of
from cliproxy.translators.openai_embeddings import answer as openai_answer
from cliproxy.translators.openai_embeddings import encode as openai_encode
from cliproxy.translators.openai_embeddings import to_hub as openai_to_hub
from cliproxy.translators.openai_embeddings.decode import decode_embeddings
from cliproxy.translators.openai_embeddings.request import EmbeddingsRequest

VECTORS = Path(__file__).parents[1] / "vectors" / "gemini_embed"
BODIES = {path.stem: json.loads(path.read_text())["body"] for path in sorted(VECTORS.glob("*.json"))}
SINGLE = [name for name in BODIES if name.startswith("request") and "batch" not in name]
G = Dialect.GEMINI_EMBED


def decode(body: dict[str, Any] | bytes, *, batch: bool = False) -> GeminiEmbedRequest:
    given = body if isinstance(body, bytes) else json.dumps(body).encode()
    return decode_embed(given, model="gemini-embedding-001", batch=batch)


def content(*texts: str) -> dict[str, Any]:
    return {"parts": [{"text": text} for text in texts]}


def asked(**fields: Any) -> EmbeddingsRequest:
    return decode_embeddings(json.dumps({"model": "public", **fields}).encode())


def answer(*vectors: list[float], usage: Usage | None = None) -> EmbedAnswer:
    return EmbedAnswer(tuple(array("d", vector) for vector in vectors), usage)


# --- requests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SINGLE)
def test_what_leaves_is_the_request_without_a_model(name: str) -> None:
    body = BODIES[name]
    made = encode_same(decode(body), Quirks.NONE)
    assert json.loads(made.prefix) == {key: value for key, value in body.items() if key != "model"}
    assert made.suffix == b""
    assert reread(made.prefix) == AskedFor("", 0, 1, None)
    given = json.dumps(body).encode()
    for cut in range(len(given)):
        with pytest.raises(SchemaError):
            decode(given[:cut])


def test_one_text_of_a_batch_leaves_as_one_and_its_answer_comes_back_as_a_batch() -> None:
    request = decode({"requests": BODIES["request_batch"]["requests"][:1]}, batch=True)
    assert json.loads(encode_same(request, Quirks.NONE).prefix) == {"content": content("What is the meaning of life?"), "outputDimensionality": 2}
    assert json.loads(same_answer(json.dumps(BODIES["answer_text"]).encode(), request)) == {"embeddings": [BODIES["answer_text"]["embedding"]]}
    single = json.dumps(BODIES["answer_text"]).encode()
    assert same_answer(single, decode(BODIES["request_text"])) is single
    with pytest.raises(UpstreamError):
        same_answer(b"{}", request)


def test_several_texts_are_refused_by_gemini_and_go_elsewhere() -> None:
    request = decode(BODIES["request_batch"], batch=True)
    with pytest.raises(UnsupportedFeature):
        encode_same(request, Quirks.NONE)
    hub = embed_request_of(request)
    assert hub == EmbedRequest(G, "gemini-embedding-001", ("What is the meaning of life?", "And of cats?"), 2)
    with pytest.raises(UnsupportedFeature) as caught:
        encode_embed(hub, Quirks.NONE)
    assert caught.value.param == "texts"
    made = openai_encode.encode_embed(hub, Quirks.NONE)
    assert json.loads(made.prefix + b'"theirs"' + made.suffix) == {"model": "theirs", "input": list(hub.texts), "dimensions": 2}


def test_protobufs_spelling_is_ours_and_unknown_fields_stay() -> None:
    body = {"content": {"parts": {"text": "x"}}, "output_dimensionality": 5, "task_type": "CLUSTERING", "newKnob": 1}
    request = decode(body)
    assert request.rest == [{"content": content("x"), "outputDimensionality": 5, "taskType": "CLUSTERING", "newKnob": 1}]


@pytest.mark.parametrize(
    ("body", "batch", "param"),
    [
        ({}, False, "content"),
        ({"content": "x"}, False, "content"),
        ({"content": {"parts": []}}, False, "content.parts"),
        ({"content": {"parts": [{"x": 1}]}}, False, "content.parts[0]"),
        ({"content": content("x"), "model": "models/other"}, False, "model"),
        ({"content": content("x"), "outputDimensionality": 0}, False, "outputDimensionality"),
        ({"content": content("x"), "outputDimensionality": 5, "output_dimensionality": 6}, False, "outputDimensionality"),
        ({"content": content("x"), "OutputDimensionality": 5}, False, "outputDimensionality"),
        ({"content": content("x"), "base_url": "http://attacker.example"}, False, "base_url"),
        ({"requests": []}, True, "requests"),
        ({"requests": [{}]}, True, "requests[0].content"),
        ({"requests": [{"content": content("x"), "model": "models/other"}]}, True, "requests[0].model"),
        ({"requests": [{"content": content("x")}] * 2049}, True, "requests"),
        ({"requests": [{"content": content("x")}], "headers": {}}, True, "headers"),
    ],
)
def test_what_the_schema_does_not_say_is_refused_by_name(body: dict[str, Any], batch: bool, param: str) -> None:
    with pytest.raises(SchemaError) as caught:
        decode(body, batch=batch)
    assert caught.value.param == param


@pytest.mark.parametrize("body", [{}, {"content": content("x"), "model": "models/other"}, {"content": content("x"), "requests": []}])
def test_egress_takes_no_body_that_a_worker_would_not_write(body: dict[str, Any]) -> None:
    with pytest.raises(SchemaError):
        reread(msgspec.json.encode(body))


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"content": content("a", "b")}, "content.parts"),
        ({"content": {"parts": [{"inlineData": {"mimeType": "image/png", "data": "AAAA"}}]}}, "content.parts"),
        ({"content": content("a"), "newKnob": 1}, "newKnob"),
    ],
)
def test_what_the_hub_has_no_place_for_is_refused(body: dict[str, Any], param: str) -> None:
    with pytest.raises(UnsupportedFeature) as caught:
        embed_request_of(decode(body))
    assert caught.value.param == param


def test_settings_that_differ_between_vectors_are_refused() -> None:
    requests = [{"content": content("a"), "taskType": "CLUSTERING"}, {"content": content("b")}]
    with pytest.raises(UnsupportedFeature):
        embed_request_of(decode({"requests": requests}, batch=True))


def test_a_request_of_openais_in_geminis_words() -> None:
    made = encode_embed(openai_to_hub.embed_request_of(asked(input=["a text"], dimensions=5, user="u", encoding_format="base64")), Quirks.NONE)
    assert json.loads(made.prefix) == {"content": content("a text"), "outputDimensionality": 5}
    assert made.dropped == ("user",)


@pytest.mark.parametrize(
    ("fields", "param"), [({"input": [1, 2]}, "input"), ({"input": [[1], [2]]}, "input"), ({"input": "x", "input_type": "query"}, "input_type")]
)
def test_what_cannot_be_said_of_openais_requests_is_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(UnsupportedFeature) as caught:
        openai_to_hub.embed_request_of(asked(**fields))
    assert caught.value.param == param


def test_geminis_hints_are_left_out_and_reported() -> None:
    made = openai_encode.encode_embed(embed_request_of(decode(BODIES["request_settings"])), Quirks.NONE)
    assert json.loads(made.prefix + b'"m"' + made.suffix) == {"model": "m", "input": "What is the meaning of life?", "dimensions": 768}
    assert made.dropped == ("task", "title")


@given(
    st.builds(
        EmbedRequest,
        st.just(G),
        st.just("gemini-embedding-001"),
        st.tuples(st.text(st.characters(exclude_categories=["Cs"]))),
        st.none() | st.integers(1, 3072),
        st.sampled_from(["", "CLUSTERING"]),
        st.sampled_from(["", "a title"]),
    )
)
def test_what_is_encoded_decodes_to_the_same(request: EmbedRequest) -> None:
    assert embed_request_of(decode(encode_embed(request, Quirks.NONE).prefix)) == request


# --- answers ---------------------------------------------------------------------------------------------------------


def test_answers_in_the_hubs_words() -> None:
    assert decode_embed_answer(json.dumps(BODIES["answer_text"]).encode()) == answer([-0.0153, 0.25, 1, 0])
    body = json.dumps(BODIES["answer_batch"]).encode()
    assert decode_embed_answer(body) == answer([0.5, -0.5], [0.25, 1], usage=Usage(12, 0))
    assert usage_of_embeddings(body) == Usage(12, 0)
    assert usage_of_embeddings(json.dumps(BODIES["answer_text"]).encode()) is None


@pytest.mark.parametrize("encoding", ["float", "base64", None])
def test_an_answer_of_geminis_for_a_client_of_openai(encoding: str | None) -> None:
    request = asked(input="some text", encoding_format=encoding)
    vector = [0.5, -0.25, 3.0]
    made = json.loads(openai_answer.encode_embed_answer(answer(vector), request=request, id="i", model="public", created=0))
    packed = base64.b64encode(struct.pack("<3f", *vector)).decode()
    assert made == {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": packed if encoding == "base64" else vector}],
        "model": "public",
        "usage": {"prompt_tokens": request.estimate, "total_tokens": request.estimate},
    }


def test_an_answer_of_openais_for_a_client_of_gemini() -> None:
    packed = base64.b64encode(struct.pack("<2f", 0.25, 1.0)).decode()
    body = {
        "data": [{"index": 1, "embedding": packed}, {"index": 0, "embedding": [0.5, -0.5]}],
        "model": "text-embedding-3-small",
        "usage": {"prompt_tokens": 12, "total_tokens": 12},
    }
    read = openai_answer.decode_embed_answer(json.dumps(body).encode())
    assert read == EmbedAnswer((array("d", [0.5, -0.5]), array("d", [0.25, 1])), Usage(12, 0), "text-embedding-3-small")
    request = decode(BODIES["request_batch"], batch=True)
    assert json.loads(encode_embed_answer(read, request=request, id="", model="", created=0)) == BODIES["answer_batch"]
    one = encode_embed_answer(answer([1.0]), request=decode(BODIES["request_text"]), id="", model="", created=0)
    assert json.loads(one) == {"embedding": {"values": [1.0]}}


def test_not_one_vector_for_each_text_is_the_providers_fault() -> None:
    with pytest.raises(UpstreamError):
        encode_embed_answer(answer([1.0]), request=decode(BODIES["request_batch"], batch=True), id="", model="", created=0)
    with pytest.raises(UpstreamError):
        openai_answer.encode_embed_answer(answer([1.0], [2.0]), request=asked(input=["a"]), id="", model="", created=0)


def test_a_number_that_is_too_large_for_32_bits_is_the_providers_fault() -> None:
    with pytest.raises(UpstreamError):
        openai_answer.encode_embed_answer(answer([1e300]), request=asked(input="a", encoding_format="base64"), id="", model="", created=0)


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b"[]",
        b'{"embedding":{}}',
        b'{"embedding":{"values":[]}}',
        b'{"embedding":{"values":"AAAA"}}',
        b'{"embedding":{"values":[1,"x"]}}',
        b'{"embedding":{"values":[1e999]}}',
        b'{"embeddings":[]}',
        b'{"data":[{"embedding":[1],"index":0}]}',
        b'{"embedding":{"values":[' + b"0," * 70_000 + b"0]}}",
        b'{"embeddings":[' + b'{"values":[]},' * 70_000 + b"{}]}",
        b'{"embedding":{"values":[1]},"x":"\xff"}',
    ],
)
def test_what_is_no_answer_of_geminis_is_the_providers_fault(body: bytes) -> None:
    with pytest.raises(UpstreamError):
        decode_embed_answer(body)


@pytest.mark.parametrize(
    "embedding",
    ['"AAA"', '"AAAAAAA="', '"AADAfw=="', '"AACAfw=="', '""', '"é"', "[]", "[null]", '"' + "AAAA" * 100_000 + '"'],
)
def test_what_is_no_vector_of_openais_is_the_providers_fault(embedding: str) -> None:
    with pytest.raises(UpstreamError):
        openai_answer.decode_embed_answer(f'{{"data":[{{"embedding":{embedding},"index":0}}]}}'.encode())


@pytest.mark.parametrize("indices", [(0, 0), (1, 2), (0, 2)])
def test_vectors_that_do_not_count_from_zero_are_the_providers_fault(indices: tuple[int, int]) -> None:
    body = {"data": [{"embedding": [1], "index": index} for index in indices]}
    with pytest.raises(UpstreamError):
        openai_answer.decode_embed_answer(json.dumps(body).encode())


@given(st.binary(max_size=200))
def test_garbage_is_the_senders_fault(body: bytes) -> None:
    for read in (decode, lambda body: decode(body, batch=True), reread):
        with pytest.raises(ClientError):
            read(body)
    for reader in (decode_embed_answer, usage_of_embeddings, openai_answer.decode_embed_answer):
        with pytest.raises(UpstreamError):
            reader(body)


@given(st.lists(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=8), min_size=1, max_size=3), st.sampled_from(["float", "base64"]))
def test_vectors_survive_both_dialects(vectors: list[list[float]], encoding: str) -> None:
    made = answer(*vectors, usage=Usage(3, 0))
    request = asked(input=["x"] * len(vectors), encoding_format=encoding)
    read = openai_answer.decode_embed_answer(openai_answer.encode_embed_answer(made, request=request, id="", model="m", created=0))
    assert read.vectors == made.vectors and read.usage == made.usage
    assert decode_embed_answer(encode_embed_answer(made, request=None, id="", model="", created=0)) == made
