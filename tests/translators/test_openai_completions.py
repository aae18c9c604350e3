"""Legacy completions: what is taken, what is refused, and what their clients get of answers in other dialects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import Completion

from cliproxy.dialects import Dialect
from cliproxy.errors import ClientError, SchemaError, UnsupportedFeature, UpstreamError
from cliproxy.formats.sse import KEEP_ALIVE
from cliproxy.metering.usage import Usage
from cliproxy.translators.conversation import (
    Choice,
    ConversationAnswer,
    ConversationRequest,
    Counted,
    Ended,
    Finished,
    Image,
    Message,
    PartEnded,
    PartStarted,
    Reasoning,
    Refusal,
    Started,
    StopReason,
    StreamEvent,
    Text,
    TextDelta,
    ToolCall,
)
from cliproxy.translators.openai_chat.write_stream import error_event
from cliproxy.translators.openai_completions.answer import encode_answer
from cliproxy.translators.openai_completions.decode import decode_completion
from cliproxy.translators.openai_completions.request import CompletionRequest
from cliproxy.translators.openai_completions.to_hub import FIELD_NAMES, conversation_of
from cliproxy.translators.openai_completions.wire import CompletionBody
from cliproxy.translators.openai_completions.write_stream import Writer
from translators.hub_strategies import answers, requests, streams, texts

VECTORS = Path(__file__).parents[1] / "vectors" / "openai_completions"
REQUESTS = {path.stem: json.loads(path.read_text()) for path in sorted(VECTORS.glob("*.json"))}
CAP = 4096
CANARY = "a prompt nobody may quote"


def decode(body: bytes, on_excess: Any = "reject") -> CompletionRequest:
    return decode_completion(body, max_tokens_cap=CAP, on_excess=on_excess)


def completion(**fields: Any) -> CompletionRequest:
    return decode(json.dumps({"model": "m", "prompt": "Once upon", **fields}).encode())


# --- requests ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REQUESTS)
def test_a_prompt_is_what_a_user_says(name: str) -> None:
    body = REQUESTS[name]["body"]
    request = decode(json.dumps(body).encode())
    assert (request.model, request.n, request.max_tokens, request.stream) == ("public-model", body.get("n", 1), 64, body.get("stream", False))
    if name == "request_logprobs":
        with pytest.raises(UnsupportedFeature):
            conversation_of(request)
        return
    stop = body.get("stop", ())
    assert conversation_of(request) == ConversationRequest(
        dialect=Dialect.OPENAI_COMPLETIONS,
        model="public-model",
        stream=body.get("stream", False),
        max_tokens=64,
        messages=(Message("user", (Text("Once upon a time"),)),),
        stop=tuple(stop),
        **{name: body[name] for name in body.keys() - {"model", "prompt", "stream", "stream_options", "max_tokens", "stop"}},
    )


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_cut_anywhere_or_with_trailing_garbage_is_refused(name: str) -> None:
    body = json.dumps(REQUESTS[name]["body"]).encode()
    for cut in range(len(body)):
        with pytest.raises(SchemaError):
            decode(body[:cut])
    for tail in (b"x", b"{}", body):
        with pytest.raises(SchemaError):
            decode(body + tail)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": [7]}, "prompt"),
        ({"prompt": [[1, 2]]}, "prompt"),
        ({"suffix": "the end"}, "suffix"),
        ({"echo": True}, "echo"),
        ({"best_of": 2}, "best_of"),
        ({"logprobs": 0}, "logprobs"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"stream": True, "stream_options": {"later": 1}}, "stream_options.later"),
        ({"later": 1}, "later"),
        ({"top_k": 1}, "top_k"),
    ],
)
def test_what_only_the_older_protocol_can_say_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(UnsupportedFeature) as caught:
        conversation_of(completion(**fields))
    assert caught.value.param == param


@pytest.mark.parametrize("fields", [{"suffix": ""}, {"suffix": None}, {"echo": False}, {"best_of": 1}, {"logprobs": None}, {"later": None}, {"n": 1}])
def test_what_changes_nothing_is_taken(fields: dict[str, Any]) -> None:
    assert conversation_of(completion(**fields)) == conversation_of(completion())


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": {"text": CANARY}}, "prompt"),
        ({"model": ""}, "model"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": CAP + 1}, "max_tokens"),
        ({"max_completion_tokens": 5, "n_predict": 5}, "n_predict"),
        ({"n": 129}, "n"),
        ({"best_of": 0}, "best_of"),
        ({"logprobs": 6}, "logprobs"),
        ({"temperature": 3}, "temperature"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"api_base": "https://attacker.example"}, "api_base"),
        ({"Prompt": CANARY}, "prompt"),
    ],
)
def test_a_violation_names_the_field_and_never_quotes_the_client(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(SchemaError) as caught:
        completion(**fields)
    assert caught.value.param == param
    assert CANARY not in caught.value.message and "attacker" not in caught.value.message


def test_a_prompt_must_be_there() -> None:
    with pytest.raises(SchemaError) as caught:
        decode(b'{"model":"m"}')
    assert (caught.value.param, caught.value.code) == ("prompt", "missing_field")


def test_the_operators_cap_holds() -> None:
    assert completion().max_tokens == CAP
    assert decode(b'{"model":"m","prompt":"x","max_tokens":9999}', "clamp").max_tokens == CAP
    assert conversation_of(decode(b'{"model":"m","prompt":"x","max_tokens":9999}', "clamp")).max_tokens == CAP


def test_the_prompts_tokens_are_guessed_from_its_size() -> None:
    assert 250 <= completion(prompt="x" * 1000).estimate <= 270


SETTINGS: dict[str, st.SearchStrategy[Any]] = {
    "n": st.integers(1, 8),
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0, 1),
    "stop": st.lists(texts(), min_size=1, max_size=4).map(tuple),
    "seed": st.integers(-(2**63), 2**63 - 1),
    "presence_penalty": st.floats(-2, 2),
    "frequency_penalty": st.floats(-2, 2),
    "logit_bias": st.dictionaries(st.from_regex(r"[0-9]{1,5}", fullmatch=True), st.floats(-100, 100), max_size=3),
    "user": texts(),
}


@settings(max_examples=100)
@given(requests(Dialect.OPENAI_COMPLETIONS, frozenset(), settings=SETTINGS), texts(0))
def test_what_a_completion_can_say_is_read_as_it_was_said(wanted: ConversationRequest, prompt: str) -> None:
    body: dict[str, Any] = {name: getattr(wanted, name) for name in ("model", "stream", "max_tokens", *SETTINGS)}
    read = conversation_of(decode(json.dumps({**body, "prompt": prompt, "stop": wanted.stop or None}).encode()))
    assert read.messages == (Message("user", (Text(prompt),)),)
    for name in body:
        assert getattr(read, name) == getattr(wanted, name)


@given(st.binary(max_size=200))
def test_garbage_gives_a_client_error_and_nothing_else(body: bytes) -> None:
    with pytest.raises(ClientError):
        decode(body)


def test_errors_of_other_dialects_are_told_in_the_clients_names() -> None:
    assert FIELD_NAMES["messages"] == "prompt"
    assert set(FIELD_NAMES) - {"messages"} <= set(CompletionBody.__struct_fields__)


# --- answers -----------------------------------------------------------------------------------------------------------

STOPS = {
    StopReason.END: "stop",
    StopReason.STOP_SEQUENCE: "stop",
    StopReason.LENGTH: "length",
    StopReason.PAUSE: "length",
    StopReason.FILTER: "content_filter",
    StopReason.REFUSAL: "content_filter",
}


def events_of(*parts: Any, stop: StopReason = StopReason.END) -> list[StreamEvent]:
    events: list[StreamEvent] = [Started("", "")]
    for index, part in enumerate(parts):
        whole = isinstance(part, ToolCall | Image)
        events.append(PartStarted(0, index, part if whole else type(part)("")))
        if not whole:
            events.append(TextDelta(0, index, part.text))
        events.append(PartEnded(0, index))
    return [*events, Finished(0, stop), Counted(Usage(10, 3)), Ended()]


def written(events: list[StreamEvent], **options: Any) -> list[dict[str, Any]]:
    writer = Writer(request=completion(stream=True, stream_options=options), id="cmpl-x", model="public", created=7)
    blocks = b"".join(writer.write([event]) for event in events).decode().split("\n\n")
    assert blocks.pop() == "" and blocks.pop() == "data: [DONE]"
    return [json.loads(block.removeprefix("data: ")) for block in blocks]


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize(
    ("parts", "text"),
    [((Text("a"),), "a"), ((Reasoning("hm"), Text("a\n"), Text("b")), "a\nb"), ((Refusal("no"),), "no"), ((), "")],
)
def test_an_answer_is_its_text_whole_and_streamed(parts: tuple[Any, ...], text: str, stop: StopReason) -> None:
    answer = ConversationAnswer("", "", (Choice(0, parts, stop),), Usage(10, 3))
    body = json.loads(encode_answer(answer, request=None, id="cmpl-x", model="public", created=7))
    assert body["choices"] == [{"text": text, "index": 0, "logprobs": None, "finish_reason": STOPS[stop]}]
    assert {name: body[name] for name in ("id", "object", "created", "model")} == {"id": "cmpl-x", "object": "text_completion", "created": 7, "model": "public"}
    assert body["usage"]["total_tokens"] == 13

    chunks = written(events_of(*parts, stop=stop))
    assert all(chunk["object"] == "text_completion" and (chunk["id"], chunk["created"], chunk["model"]) == ("cmpl-x", 7, "public") for chunk in chunks)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == text
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-1] == STOPS[stop]


@pytest.mark.parametrize("part", [ToolCall("a", "b", "{}"), Image("image/png", "AAAA")])
def test_an_answer_that_is_more_than_text_is_no_completion(part: Any) -> None:
    with pytest.raises(UpstreamError):
        encode_answer(ConversationAnswer("", "", (Choice(0, (Text("a"), part), StopReason.END),), None), request=None, id="", model="", created=0)
    with pytest.raises(UpstreamError):
        written(events_of(Text("a"), part))
    with pytest.raises(UpstreamError):
        written(events_of(Text("a"), stop=StopReason.TOOL_CALLS))


def test_usage_comes_last_and_only_if_it_was_asked_for() -> None:
    assert written(events_of(Text("a")))[-1]["choices"] != []
    last = written(events_of(Text("a")), include_usage=True)[-1]
    assert last["choices"] == [] and (last["usage"]["prompt_tokens"], last["usage"]["completion_tokens"]) == (10, 3)


@settings(max_examples=60)
@given(streams(answers(frozenset({"reasoning", "redacted", "refusal", "citations"}), choices=3, created=True)))
def test_a_stream_and_a_whole_answer_say_the_same_and_sdks_read_both(told: tuple[ConversationAnswer, list[StreamEvent]]) -> None:
    answer, events = told
    whole = Completion.model_validate_json(encode_answer(answer, request=None, id="", model="", created=0))
    chunks = [Completion.construct(**chunk) for chunk in written(events, include_usage=True)]
    assert chunks[-1].usage == whole.usage
    for choice in whole.choices:
        mine = [piece for chunk in chunks for piece in chunk.choices if piece.index == choice.index]
        assert "".join(piece.text for piece in mine) == choice.text
        assert mine[-1].finish_reason == choice.finish_reason


def test_a_broken_stream_ends_as_chats_do() -> None:
    event = error_event("broke", kind="upstream_error", code="upstream_broke_off", status=502)
    assert json.loads(event.removeprefix(b"data: "))["error"]["message"] == "broke"
    assert KEEP_ALIVE.startswith(b":")
