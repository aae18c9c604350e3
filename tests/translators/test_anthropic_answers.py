"""Whole answers of the Messages API: read from a provider, written for a client, counted by egress."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from anthropic.types import Message as SdkMessage
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from cliproxy.dialects import Dialect, Quirks
from cliproxy.errors import ClientError, SchemaError, UpstreamError
from cliproxy.metering.anthropic_messages import reread_count, usage_of_answer, verify_count_answer
from cliproxy.metering.usage import AskedFor, Usage
from cliproxy.translators.anthropic_messages.answer import decode_answer, encode_answer
from cliproxy.translators.anthropic_messages.count import decode_count, decode_count_answer, encode_count_answer, encode_count_same
from cliproxy.translators.anthropic_messages.decode import decode_messages
from cliproxy.translators.anthropic_messages.request import MessagesRequest
from cliproxy.translators.anthropic_messages.to_hub import conversation_of
from cliproxy.translators.conversation import (
    Choice,
    Citation,
    ConversationAnswer,
    Image,
    Reasoning,
    Refusal,
    StopReason,
    Text,
    ToolCall,
)
from translators.hub_strategies import answers

VECTORS = Path(__file__).parents[1] / "vectors" / "anthropic_messages"
ANSWERS = {path.stem: json.loads(path.read_text())["body"] for path in sorted(VECTORS.glob("answer_*.json"))}
OURS = Dialect.ANTHROPIC_MESSAGES
HUASCARAN = Text("Huascarán.")


def read(body: Any) -> ConversationAnswer:
    return decode_answer(json.dumps(body, ensure_ascii=False).encode())


def write(answer: ConversationAnswer, request: MessagesRequest | None = None) -> dict[str, Any]:
    body = encode_answer(answer, request=request, id="call-1", model="public", created=1)
    SdkMessage.model_validate(json.loads(body))
    written: dict[str, Any] = json.loads(body)
    return written


def client(**fields: Any) -> MessagesRequest:
    body = {"model": "public", "max_tokens": 2000, "messages": [{"role": "user", "content": "Hi"}], **fields}
    return decode_messages(json.dumps(body).encode(), max_tokens_cap=4096, on_excess="reject")


def said(*parts: Any, stop: StopReason = StopReason.END, usage: Usage | None = None) -> ConversationAnswer:
    return ConversationAnswer("", "", (Choice(0, parts, stop),), usage)


# --- reading ---------------------------------------------------------------------------------------------------------

READ: dict[str, Choice] = {
    "answer_text": Choice(0, (HUASCARAN,), StopReason.END),
    "answer_tool_calls": Choice(
        0,
        (
            Text("Let me look."),
            ToolCall("toolu_01A", "get_weather", '{"place": "Cusco"}'),
            ToolCall("toolu_01B", "get_time", '{"place": "Cusco"}'),
        ),
        StopReason.TOOL_CALLS,
    ),
    "answer_tool_without_input": Choice(0, (ToolCall("toolu_01C", "ping", "{}"),), StopReason.TOOL_CALLS),
    "answer_thinking": Choice(
        0,
        (Reasoning("Peru's peaks: Huascarán leads.", "c2lnbmVk", signer=OURS), Reasoning(redacted="aGlkZGVu", signer=OURS), HUASCARAN),
        StopReason.END,
    ),
    "answer_usage": Choice(0, (HUASCARAN,), StopReason.END),
    "answer_max_tokens": Choice(0, (HUASCARAN,), StopReason.LENGTH),
    "answer_model_context_window_exceeded": Choice(0, (HUASCARAN,), StopReason.LENGTH),
    "answer_stop_sequence": Choice(0, (HUASCARAN,), StopReason.STOP_SEQUENCE, "END"),
    "answer_pause_turn": Choice(0, (HUASCARAN,), StopReason.PAUSE),
    "answer_refusal": Choice(0, (Refusal("This touches on dangerous biology."),), StopReason.REFUSAL),
    "answer_cited": Choice(
        0,
        (
            Text("Huascarán is "),
            Text(
                "6,768 m high",
                (
                    Citation(title="peaks.txt", cited="Huascarán is 6,768 m high.", document=0),
                    Citation(cited="p", document=1),
                    Citation(cited="c", document=2),
                    Citation(url="https://example.com/peaks", title="Peaks", cited="w"),
                    Citation(url="https://example.com/kb", cited="s"),
                ),
            ),
        ),
        StopReason.END,
    ),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_vector_is_read_and_is_what_the_sdk_takes(name: str) -> None:
    SdkMessage.model_validate(ANSWERS[name])
    answer = read(ANSWERS[name])
    usage = Usage(2105, 40, 2000, 25, 100) if name == "answer_usage" else Usage(12, 6)
    assert answer == ConversationAnswer("msg_01XFDUDYJgAACzvnptvVoYEL", "claude-sonnet-4-5-20250929", (READ[name],), usage)
    assert usage_of_answer(json.dumps(ANSWERS[name]).encode()) == usage


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_with_something_behind_it_or_cut_anywhere_is_none(name: str) -> None:
    body = json.dumps(ANSWERS[name]).encode()
    for bad in [body + b"{}", body + b"\x00", *(body[:cut] for cut in range(0, len(body), 7))]:
        for reader in (decode_answer, usage_of_answer):
            with pytest.raises(UpstreamError):
                reader(bad)


TEXT = {"type": "text", "text": "Hi."}


def message(**fields: Any) -> dict[str, Any]:
    return {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": [TEXT], "stop_reason": "end_turn", **fields}


def call(arguments: str) -> bytes:
    body = json.dumps(message(content=[{"type": "tool_use", "id": "a", "name": "b", "input": "INPUT"}]))
    return body.replace('"INPUT"', arguments).encode()


BAD: dict[str, bytes] = {
    "null": b"null",
    "a list": b"[]",
    "not UTF-8": json.dumps(message(new="x")).encode().replace(b'"x"', b'"\xff"'),
    "another dialect": json.dumps({"id": "c", "object": "chat.completion", "choices": [{"message": {"content": "Hi."}}]}).encode(),
    "an error": json.dumps({"type": "error", "error": {"type": "api_error", "message": "secret words"}}).encode(),
    "another type": json.dumps(message(type="completion")).encode(),
    "content that is a text": json.dumps(message(content="Hi.")).encode(),
    "deep nesting": b'{"type":"message","content":' + b"[" * 100_000,
    "a million objects": b'{"type":"message","content":[],"x":[' + b"{}," * 10**6 + b"{}]}",
}
BAD_CONTENT: dict[str, bytes] = {
    "an unknown block": json.dumps(message(content=[{"type": "server_tool_use", "id": "a", "name": "web_search", "input": {}}])).encode(),
    "an unknown reason": json.dumps(message(stop_reason="tired")).encode(),
    "no reason": json.dumps(message(stop_reason=None)).encode(),
    "a text that is a number": json.dumps(message(content=[{"type": "text", "text": 5}])).encode(),
    "input that is a list": call("[1]"),
    "input that is a text": call('"{}"'),
    "input that is nothing": call("null"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_message_is_the_providers_fault(name: str) -> None:
    for reader in (decode_answer, usage_of_answer):
        with pytest.raises(UpstreamError) as caught:
            reader(BAD[name])
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", BAD_CONTENT)
def test_what_is_not_known_is_no_shorter_answer(name: str) -> None:
    with pytest.raises(UpstreamError):
        decode_answer(BAD_CONTENT[name])


@given(st.binary(max_size=300))
def test_garbage_is_the_providers_fault_and_nothing_else(body: bytes) -> None:
    for reader in (decode_answer, usage_of_answer, verify_count_answer):
        with pytest.raises(UpstreamError):
            reader(body)


@pytest.mark.parametrize(
    "usage", [None, {}, {"input_tokens": -1, "output_tokens": 1}, {"input_tokens": 1}, {"input_tokens": 2**60, "output_tokens": 0}, "12", [1]]
)
def test_usage_that_makes_no_sense_is_none(usage: Any) -> None:
    body = json.dumps(message(usage=usage)).encode()
    assert usage_of_answer(body) is None
    assert decode_answer(body).usage is None


def test_empty_texts_are_left_out() -> None:
    assert read(message(content=[{"type": "text", "text": ""}, TEXT])).choices[0].parts == (Text("Hi."),)


# --- writing ---------------------------------------------------------------------------------------------------------


@given(answers(frozenset({"tools", "reasoning", "redacted", "citations", "cache"}), stops=(StopReason.END, StopReason.LENGTH, StopReason.PAUSE)))
@settings(max_examples=150)
def test_what_a_message_can_say_comes_back_as_it_was(answer: ConversationAnswer) -> None:
    body = encode_answer(answer, request=None, id="", model="", created=0)
    SdkMessage.model_validate(json.loads(body))
    assert decode_answer(body) == answer
    assert usage_of_answer(body) == answer.usage


@given(answers())
@settings(max_examples=100)
def test_any_answer_is_a_message_to_the_sdk(answer: ConversationAnswer) -> None:
    SdkMessage.model_validate(json.loads(encode_answer(answer, request=client(), id="", model="", created=0)))


def test_an_answer_without_a_name_gets_ours() -> None:
    assert write(said(Text("Hi."))) == {
        "id": "call-1",
        "type": "message",
        "role": "assistant",
        "model": "public",
        "content": [{"type": "text", "text": "Hi.", "citations": None}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 0, "output_tokens": 0},
    }


STOPS = [
    (StopReason.END, "end_turn"),
    (StopReason.LENGTH, "max_tokens"),
    (StopReason.STOP_SEQUENCE, "stop_sequence"),
    (StopReason.TOOL_CALLS, "tool_use"),
    (StopReason.FILTER, "refusal"),
    (StopReason.REFUSAL, "refusal"),
    (StopReason.PAUSE, "pause_turn"),
]


@pytest.mark.parametrize(("stop", "word"), STOPS)
def test_every_reason_to_stop_has_a_word(stop: StopReason, word: str) -> None:
    assert write(said(Text("x"), stop=stop))["stop_reason"] == word


def test_clients_learn_from_the_reason_that_tools_are_to_be_run_or_that_the_model_declined() -> None:
    assert write(said(ToolCall("", "ping", "")))["stop_reason"] == "tool_use"
    declined = write(said(Refusal("No.")))
    assert declined["stop_reason"] == "refusal" and declined["content"][0]["text"] == "No."
    assert write(said(ToolCall("a", "ping", "{}"), stop=StopReason.LENGTH))["stop_reason"] == "max_tokens"


def test_a_call_without_an_id_gets_one_and_keeps_its_json_as_it_is() -> None:
    content = encode_answer(said(ToolCall("", "ping", '{"b": 1,  "a": 1.0}')), request=None, id="x", model="", created=0)
    assert b'"input":{"b": 1,  "a": 1.0}' in content and b'"id":"toolu_x_0"' in content


def test_thoughts_are_for_clients_that_asked_and_signatures_for_their_vendor() -> None:
    answer = said(
        Reasoning("Hm.", "c2ln", signer=Dialect.GEMINI_GENERATE),
        Reasoning(redacted="eGVu", signer=Dialect.OPENAI_RESPONSES),
        Reasoning(redacted="aGlk", signer=OURS),
        Text("x"),
    )
    shown = write(answer, client(thinking={"type": "adaptive"}))["content"]
    assert shown[:3] == [
        {"type": "thinking", "thinking": "Hm.", "signature": "cliproxy:gemini_generate:signature::c2ln"},
        {"type": "redacted_thinking", "data": "cliproxy:openai_responses:redacted::eGVu"},
        {"type": "redacted_thinking", "data": "aGlk"},
    ]
    for request in (client(), client(thinking={"type": "disabled"}), client(thinking={"type": "adaptive", "display": "omitted"})):
        assert [block["type"] for block in write(answer, request)["content"]] == ["text"]


def test_usage_is_counted_as_the_vendor_does() -> None:
    assert write(said(Text("x"), usage=Usage(2105, 40, 2000, 25, 100)))["usage"] == {
        "input_tokens": 5,
        "cache_creation_input_tokens": 100,
        "cache_read_input_tokens": 2000,
        "output_tokens": 40,
        "output_tokens_details": {"thinking_tokens": 25},
    }


def test_what_a_message_cannot_hold_is_a_fault() -> None:
    several = ConversationAnswer("", "", (Choice(0, (Text("a"),), StopReason.END), Choice(1, (Text("b"),), StopReason.END)), None)
    for answer in (said(Image(media_type="image/png", data="AAAA")), ConversationAnswer("", "", (), None), several, said(ToolCall("a", "b", "nonsense"))):
        with pytest.raises(UpstreamError):
            write(answer)


def test_a_source_on_the_web_and_one_without_a_name() -> None:
    found = write(said(Text("x", (Citation(url="https://example.com", cited="c"), Citation(title="only a title")))))
    assert found["content"][0]["citations"] == [
        {"type": "web_search_result_location", "url": "https://example.com", "title": None, "encrypted_index": "", "cited_text": "c"}
    ]


# --- counting --------------------------------------------------------------------------------------------------------

QUESTION = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "system": "S", "thinking": {"type": "enabled", "budget_tokens": 2000}}


def test_a_question_for_tokens_passes_and_is_read_again() -> None:
    request = decode_count(json.dumps(QUESTION).encode())
    assert (request.max_tokens, request.n, request.stream) == (0, 1, False)
    for quirks, extra in ((Quirks.NONE, {}), (Quirks.VERTEX, {"anthropic_version": "vertex-2023-10-16"})):
        encoded = encode_count_same(request, quirks)
        body = encoded.prefix + b'"upstream"' + encoded.suffix
        assert json.loads(body) == {**QUESTION, **extra, "model": "upstream"}
        assert reread_count(body) == AskedFor("upstream", 0, 1, False)
    asked = conversation_of(request)
    assert asked.system == (Text("S"),) and asked.max_tokens >= 1 and replace(asked, messages=()) != asked


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"container": "c"}, "container"),
        ({"mcp_servers": []}, "mcp_servers"),
        ({"tools": [{"name": "a"}]}, "tools[0].input_schema"),
    ],
)
def test_a_question_is_checked_as_a_request_is(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(SchemaError) as caught:
        decode_count(json.dumps({**QUESTION, **fields}).encode())
    assert caught.value.param == param


@pytest.mark.parametrize("body", [b"{}", b"[]", b'{"model":"m"}', b'{"model":5,"messages":[]}', b"\xff"])
def test_final_bytes_that_ask_nothing_are_not_sent(body: bytes) -> None:
    with pytest.raises(ClientError):
        reread_count(body)


def test_a_count_is_read_and_written() -> None:
    assert decode_count_answer(encode_count_answer(2095)) == 2095
    assert json.loads(encode_count_answer(0)) == {"input_tokens": 0}


@pytest.mark.parametrize(
    "body", [b"{}", b'{"input_tokens":-1}', b'{"input_tokens":"5"}', b'{"input_tokens":1.5}', b"[5]", b'{"input_tokens":1}x', b'{"x":"\xff","input_tokens":1}']
)
def test_what_is_no_count_is_the_providers_fault(body: bytes) -> None:
    for reader in (verify_count_answer, decode_count_answer):
        with pytest.raises(UpstreamError):
            reader(body)
