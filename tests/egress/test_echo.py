"""The embedded provider answers as an OpenAI upstream would."""

from __future__ import annotations

import base64
import json
import math
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliproxy.egress.echo import MAX_ECHO_EVENTS, MAX_ECHO_FLOATS, answer_chat, answer_embeddings
from cliproxy.errors import SchemaError
from cliproxy.metering.openai_chat import ChatStreamMeter, Usage, usage_of_answer
from cliproxy.metering.openai_embeddings import usage_of_embeddings


def chat(text: str = "Say it again, please.", **fields: Any) -> list[bytes]:
    body = {"model": "echo", "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}], **fields}
    return list(answer_chat(json.dumps(body).encode(), id="abc", created=7))


def streamed(pieces: list[bytes]) -> list[Any]:
    assert pieces[-1] == b"data: [DONE]\n\n"
    return [json.loads(piece.removeprefix(b"data: ")) for piece in pieces[:-1]]


def test_a_whole_answer_is_one_chat_completion_with_usage() -> None:
    (answer,) = chat()
    parsed = json.loads(answer)
    assert (parsed["id"], parsed["object"], parsed["created"], parsed["model"]) == ("chatcmpl-abc", "chat.completion", 7, "echo")
    assert parsed["choices"] == [
        {"index": 0, "message": {"role": "assistant", "content": "Say it again, please.", "refusal": None}, "finish_reason": "stop", "logprobs": None}
    ]
    assert usage_of_answer(answer) == Usage(3 + 6, 6)


@pytest.mark.parametrize("text", ["", "one", "two words", "Grüße 世界 🦉", " spaces  and\nlines ", "w " * 5000])
@pytest.mark.parametrize("n", [1, 3])
def test_a_stream_says_the_same_as_the_whole_answer(text: str, n: int) -> None:
    (whole,) = chat(text, n=n, max_tokens=3000)
    events = streamed(chat(text, n=n, max_tokens=3000, stream=True))
    for choice in json.loads(whole)["choices"]:
        mine = [event["choices"][0] for event in events if event["choices"][0]["index"] == choice["index"]]
        assert mine[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(part["delta"].get("content", "") for part in mine) == choice["message"]["content"] == text
        assert [part["finish_reason"] for part in mine if part["finish_reason"]] == ["stop"]


def test_a_stream_passes_egress_as_a_whole_one_and_reports_usage_only_if_asked() -> None:
    for options, usage in (({"include_usage": True}, Usage(9, 12)), ({"include_usage": False}, None), (None, None)):
        stream = ChatStreamMeter()
        pieces = chat(n=2, stream=True, stream_options=options)
        assert b"".join(map(stream.feed, pieces)) == b"".join(pieces)
        assert stream.finish() == b"" and stream.usage == usage
        assert sum(not event["choices"] for event in streamed(pieces)) == (usage is not None)


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_the_cap_cuts_the_answer_and_says_so(field: str) -> None:
    parsed = json.loads(chat("a" * 100, **{field: 5})[0])
    assert parsed["choices"][0]["message"]["content"] == "a" * 20
    assert parsed["choices"][0]["finish_reason"] == "length"
    assert parsed["usage"]["completion_tokens"] == 5


@pytest.mark.parametrize(
    ("messages", "echoed"),
    [
        (
            [
                {"role": "user", "content": "first"},
                {"role": "assistant", "content": "x"},
                {"role": "user", "content": "last"},
                {"role": "tool", "content": "y"},
            ],
            "last",
        ),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "u"}}, {"type": "text", "text": "b"}]}],
            "a\nb",
        ),
        ([{"role": "system", "content": "only this"}], "only this"),
        ([{"role": "assistant", "content": None}], ""),
        ([], ""),
    ],
)
def test_the_last_user_message_is_what_is_echoed(messages: list[Any], echoed: str) -> None:
    assert json.loads(chat(messages=messages)[0])["choices"][0]["message"]["content"] == echoed


def test_the_events_of_a_stream_are_bounded_whatever_is_asked() -> None:
    for n in (1, 128):
        pieces = chat("w " * 200_000, n=n, max_tokens=100_000, stream=True)
        assert len(pieces) <= MAX_ECHO_EVENTS + 2 * n + 1


@pytest.mark.parametrize(("text", "dimensions"), [("one", None), (["one", "two"], 8), ([5, 6], 3), ([[5, 6], [7]], 3), ("", 1)])
def test_vectors_have_length_one_and_hang_on_their_input_alone(text: Any, dimensions: int | None) -> None:
    fields = {"model": "e", "input": text} | ({} if dimensions is None else {"dimensions": dimensions})
    body = json.dumps(fields).encode()
    parsed = json.loads(answer_embeddings(body))
    assert answer_embeddings(body) == answer_embeddings(body)
    assert usage_of_embeddings(answer_embeddings(body)) is not None
    assert [item["index"] for item in parsed["data"]] == list(range(len(parsed["data"])))
    for item in parsed["data"]:
        assert len(item["embedding"]) == (dimensions or 64)
        assert math.isclose(sum(number * number for number in item["embedding"]), 1)
    packed = json.loads(answer_embeddings(json.dumps({**fields, "encoding_format": "base64"}).encode()))
    unpacked = struct.unpack(f"<{dimensions or 64}f", base64.b64decode(packed["data"][0]["embedding"]))
    assert unpacked == pytest.approx(parsed["data"][0]["embedding"], abs=1e-6)
    if isinstance(text, list) and isinstance(text[0], str):
        alone = json.loads(answer_embeddings(json.dumps({**fields, "input": text[1]}).encode()))
        assert alone["data"][0]["embedding"] == parsed["data"][1]["embedding"] != parsed["data"][0]["embedding"]


@pytest.mark.parametrize(
    "fields",
    [{"input": []}, {"input": ["a", 1]}, {"input": [1, [1]]}, {"input": [[-1]]}, {"input": [2**40]}, {"input": "a", "dimensions": MAX_ECHO_FLOATS + 1}],
)
def test_vectors_that_it_cannot_or_will_not_make_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(SchemaError):
        answer_embeddings(json.dumps({"model": "e", **fields}).encode())


@given(st.binary(max_size=100))
def test_garbage_is_refused_at_once(body: bytes) -> None:
    with pytest.raises(SchemaError):
        answer_chat(body, id="x", created=0)
    with pytest.raises(SchemaError):
        answer_embeddings(body)
