"""Chat completions to the hub and back: requests, whole answers, streams."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.lib.streaming._deltas import accumulate_delta
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from cliproxy.dialects import Dialect, Quirks
from cliproxy.errors import UnsupportedFeature
from cliproxy.metering.openai_chat import ChatStreamMeter, reread, usage_of_answer
from cliproxy.metering.usage import Usage
from cliproxy.translators.conversation import (
    ArgumentsDelta,
    Audio,
    Choice,
    Citation,
    CitationAdded,
    ConversationAnswer,
    ConversationRequest,
    Counted,
    Document,
    Ended,
    Finished,
    Image,
    Message,
    OutputFormat,
    PartEnded,
    PartStarted,
    Reasoning,
    Refusal,
    SignatureDelta,
    Started,
    StopReason,
    StreamEvent,
    Text,
    TextDelta,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
)
from cliproxy.translators.openai_chat.answer import decode_answer, encode_answer
from cliproxy.translators.openai_chat.decode import decode_chat
from cliproxy.translators.openai_chat.encode import encode_conversation, encode_same
from cliproxy.translators.openai_chat.read_stream import Reader
from cliproxy.translators.openai_chat.request import ChatRequest
from cliproxy.translators.openai_chat.to_hub import FIELD_NAMES, conversation_of
from cliproxy.translators.openai_chat.write_stream import Passthrough, Writer
from translators.hub_strategies import Feature, answers, fold, requests, streams, texts

CAP = 4096
REQUEST_FEATURES: frozenset[Feature] = frozenset({"system", "tools", "images_base64", "images_url", "documents_base64", "audio"})
ANSWER_FEATURES: frozenset[Feature] = frozenset({"tools", "reasoning", "redacted", "refusal", "cache"})
SIGNERS = [Dialect.ANTHROPIC_MESSAGES, Dialect.GEMINI_GENERATE, Dialect.OPENAI_RESPONSES, Dialect.BEDROCK_CONVERSE]
PLAIN = ConversationRequest(dialect=Dialect.OPENAI_CHAT, model="m", stream=False, max_tokens=9, messages=(Message("user", (Text("Hello."),)),))


def chat(**fields: Any) -> ChatRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hello."}], **fields}
    return decode_chat(json.dumps(body).encode(), max_tokens_cap=CAP, on_excess="reject", allow_provider_state=True)


def hub(**fields: Any) -> ConversationRequest:
    return conversation_of(chat(**fields))


def body_of(request: ConversationRequest, quirks: Quirks = Quirks.NONE) -> dict[str, Any]:
    encoded = encode_conversation(request, quirks)
    body: dict[str, Any] = json.loads(encoded.prefix + b'"upstream"' + encoded.suffix)
    assert body.pop("model") == "upstream"
    return body


def changed(**fields: Any) -> ConversationRequest:
    return msgspec.structs.replace(PLAIN, **fields)


def without_places(request: ConversationRequest) -> ConversationRequest:
    """`request` without `at`, which says where in which body a part stood."""

    def plain(part: Any) -> Any:
        return msgspec.structs.replace(part, at="") if hasattr(part, "at") else part

    return msgspec.structs.replace(request, messages=tuple(Message(m.role, tuple(map(plain, m.parts))) for m in request.messages))


# --- requests ----------------------------------------------------------------------------------------------------------

SETTINGS: dict[str, st.SearchStrategy[Any]] = {
    "parallel_tool_calls": st.booleans(),
    "n": st.integers(1, 8),
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0, 1),
    "stop": st.lists(texts(), min_size=1, max_size=4).map(tuple),
    "seed": st.integers(-(2**63), 2**63 - 1),
    "presence_penalty": st.floats(-2, 2),
    "frequency_penalty": st.floats(-2, 2),
    "logit_bias": st.dictionaries(st.from_regex(r"[0-9]{1,5}", fullmatch=True), st.floats(-100, 100), max_size=3),
    "output": st.just(OutputFormat("object"))
    | st.builds(OutputFormat, st.just("schema"), st.just("colours"), texts(), st.just({"type": "object"}), st.booleans()),
    "thinking": st.builds(Thinking, st.sampled_from(["none", "minimal", "low", "medium", "high", "xhigh"])),
    "verbosity": st.sampled_from(["low", "high"]),
    "user": texts(),
    "metadata": st.dictionaries(texts(), texts(), max_size=3),
    "service_tier": st.sampled_from(["auto", "flex"]),
    "store": st.booleans(),
    "cache_key": texts(),
}


@settings(max_examples=150)
@given(requests(Dialect.OPENAI_CHAT, REQUEST_FEATURES, settings=SETTINGS, strict=True))
def test_what_chat_can_say_comes_back_as_it_was(request: ConversationRequest) -> None:
    encoded = encode_conversation(request, Quirks.NEW_TOKEN_CAP)
    assert encoded.dropped == ()
    body = encoded.prefix + json.dumps(request.model).encode() + encoded.suffix
    decoded = decode_chat(body, max_tokens_cap=CAP, on_excess="reject")
    assert without_places(conversation_of(decoded)) == request
    asked = reread(body)
    assert (asked.max_tokens, asked.n, asked.stream) == (request.max_tokens, request.n, request.stream)


# --- answers -----------------------------------------------------------------------------------------------------------


@settings(max_examples=150)
@given(st.sampled_from(SIGNERS).flatmap(lambda signer: answers(ANSWER_FEATURES, signer=signer, choices=3, created=True)))
def test_an_answer_comes_back_as_it_was(answer: ConversationAnswer) -> None:
    body = encode_answer(answer, request=None, id="", model="", created=0)
    assert decode_answer(body) == answer
    assert usage_of_answer(body) == answer.usage
    ChatCompletion.model_validate_json(body, strict=True)


@settings(max_examples=150)
@given(
    streams(st.sampled_from(SIGNERS).flatmap(lambda signer: answers(ANSWER_FEATURES, signer=signer, choices=3, created=True))),
    st.integers(1, 200),
)
def test_a_stream_tells_the_answer_that_it_told_before(told: tuple[ConversationAnswer, list[StreamEvent]], size: int) -> None:
    answer, events = told
    writer = Writer(request=chat(stream=True, stream_options={"include_usage": True}), id="", model="", created=0)
    data = b"".join(writer.write([event]) for event in events)
    reader = Reader()
    read = [event for at in range(0, len(data), size) for event in reader.feed(data[at : at + size])]
    assert reader.finish() == []
    assert fold(read) == answer
    egress = ChatStreamMeter()
    assert egress.feed(data) == data and egress.finish() == b"" and egress.usage == answer.usage
    for block in data.split(b"\n\n")[:-2]:
        ChatCompletionChunk.model_validate_json(block.removeprefix(b"data: "), strict=True)


# --- requests into the hub ---------------------------------------------------------------------------------------------


def test_turns_are_read_with_their_parts_and_the_names_of_the_tools_that_answered() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": [{"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}}]},
        {"role": "user", "content": "Hello."},
        {
            "role": "assistant",
            "content": "",
            "refusal": None,
            "annotations": [],
            "audio": None,
            "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "one", "arguments": ""}, "extra_content": {"google": {"thought_signature": "s"}}},
                {"id": "b", "type": "function", "index": 1, "function": {"name": "two", "arguments": "not JSON"}},
            ],
        },
        {"role": "tool", "tool_call_id": "b", "content": "2"},
        {"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": "1"}, {"type": "text", "text": ""}]},
        {"role": "user", "content": [{"type": "text", "text": "And?"}]},
        {"role": "user", "content": "Well?"},
    ]
    read = hub(messages=messages)
    assert read.system == (Text("Be brief."), Text("Be kind.", cache=True))
    assert read.messages == (
        Message("user", (Text("Hello."),)),
        Message(
            "assistant",
            (ToolCall("a", "one", "{}", "s", at="messages[3].tool_calls[0]"), ToolCall("b", "two", "not JSON", at="messages[3].tool_calls[1]")),
        ),
        Message(
            "user",
            (ToolResult("b", "two", (Text("2"),), at="messages[4]"), ToolResult("a", "one", (Text("1"), Text("")), at="messages[5]"), Text("And?")),
        ),
        Message("user", (Text("Well?"),)),
    )


def test_deprecated_functions_are_tools() -> None:
    call = {"role": "assistant", "content": None, "function_call": {"name": "one", "arguments": "{}"}}
    read = hub(
        messages=[{"role": "user", "content": "Hello."}, call, {"role": "function", "name": "one", "content": "1"}],
        functions=[{"name": "one", "parameters": {"type": "object"}}],
        function_call={"name": "one"},
    )
    assert read.tools == (Tool("one", parameters={"type": "object"}),)
    assert read.tool_choice == ToolChoice("named", ("one",))
    assert read.messages[1:] == (
        Message("assistant", (ToolCall("call_1", "one", "{}", at="messages[1].function_call"),)),
        Message("user", (ToolResult("call_1", "one", (Text("1"),), at="messages[2]"),)),
    )


def detail(**fields: Any) -> dict[str, Any]:
    return {"type": "reasoning.text", "index": 0, **fields}


ANTHROPIC = "anthropic-claude-v1"


@pytest.mark.parametrize(
    ("fields", "thoughts"),
    [
        ({"reasoning_content": "a"}, [Reasoning("a")]),
        ({"reasoning": "a"}, [Reasoning("a")]),
        ({"reasoning_content": "", "reasoning_details": []}, []),
        ({"reasoning_content": "ab", "reasoning_details": [detail(text="a"), detail(text="b")]}, [Reasoning("ab")]),
        (
            {"reasoning_details": [detail(text="a"), detail(signature="s", format=ANTHROPIC), detail(text="b", index=1)]},
            [Reasoning("a", "s", signer=Dialect.ANTHROPIC_MESSAGES), Reasoning("b")],
        ),
        (
            {"reasoning_details": [detail(text="a", signature="s", format=ANTHROPIC), detail(text="b", signature="t", format=ANTHROPIC)]},
            [Reasoning("a", "s", signer=Dialect.ANTHROPIC_MESSAGES), Reasoning("b", "t", signer=Dialect.ANTHROPIC_MESSAGES)],
        ),
        (
            {"reasoning_content": "a", "reasoning_details": [detail(type="reasoning.encrypted", data="d", format="google-gemini-v1")]},
            [Reasoning("a"), Reasoning(redacted="d", signer=Dialect.GEMINI_GENERATE)],
        ),
        (
            {
                "reasoning_details": [
                    detail(type="reasoning.summary", summary="a", id="rs", format="openai-responses-v1"),
                    detail(type="reasoning.encrypted", data="d", id="rs", format="openai-responses-v1", index=1),
                ]
            },
            [Reasoning("a", "d", signer=Dialect.OPENAI_RESPONSES, id="rs")],
        ),
        ({"reasoning_details": [detail(text="a", signature="s", format="xai-responses-v1")]}, [Reasoning("a")]),
        ({"reasoning_details": [detail(type="reasoning.encrypted", data="d", format="unknown")]}, []),
        ({"reasoning_details": [detail(text=None), detail(type="reasoning.later", text="x")]}, []),
    ],
)
def test_thoughts_come_back_with_the_proof_and_its_vendor(fields: dict[str, Any], thoughts: list[Reasoning]) -> None:
    message = {"role": "assistant", "content": "Blue.", **fields}
    read = hub(messages=[{"role": "user", "content": "Hello."}, message])
    assert read.messages[1].parts == (*thoughts, Text("Blue."))
    same = encode_same(chat(messages=[message]), Quirks.NONE)
    assert json.loads(same.prefix + b'"m"' + same.suffix)["messages"] == [message]


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({"type": "image_url", "image_url": {"url": "data:image/PNG;base64,AAAA"}}, Image("image/png", "AAAA")),
        ({"type": "image_url", "image_url": {"url": "https://example.com/a", "detail": "low"}}, Image(url="https://example.com/a", detail="low")),
        ({"type": "image_url", "image_url": {"url": "http://e.com/a"}, "cache_control": {"type": "ephemeral"}}, Image(url="http://e.com/a", cache=True)),
        ({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "mp3"}}, Audio("audio/mpeg", "AAAA")),
        ({"type": "file", "file": {"file_data": "data:application/pdf;base64,AAAA", "filename": "a"}}, Document("application/pdf", "AAAA", title="a")),
        ({"type": "file", "file": {"file_data": "JVBERi0=", "filename": "a"}}, Document("application/pdf", "JVBERi0=", title="a")),
        ({"type": "file", "file": {"file_data": "AAAA", "filename": "A.PDF"}}, Document("application/pdf", "AAAA", title="A.PDF")),
        ({"type": "file", "file": {"file_data": "https://e.com/a.pdf"}}, Document(url="https://e.com/a.pdf")),
    ],
)
def test_user_parts_are_read(part: dict[str, Any], expected: Any) -> None:
    read = hub(messages=[{"role": "user", "content": [part]}])
    assert read.messages[0].parts == (msgspec.structs.replace(expected, at="messages[0].content[0]"),)


def user(*parts: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts), **fields}]}


TEXT = {"type": "text", "text": "x"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 2}, "logprobs"),
        ({"audio": {"format": "wav", "voice": "a"}}, "audio"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"prediction": {"type": "content", "content": "x"}}, "prediction"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"prompt_cache_retention": "24h"}, "prompt_cache_retention"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"stream": True, "stream_options": {"later": 1}}, "stream_options.later"),
        ({"top_k": 5}, "top_k"),
        ({"later": False}, "later"),
        ({"response_format": {"type": "json_object", "later": 1}}, "response_format.later"),
        ({"tools": [{"type": "custom", "custom": {"name": "a"}}]}, "tools[0]"),
        ({"tools": [{"type": "function", "function": {"name": "a", "later": 1}}]}, "tools[0].function.later"),
        ({"tool_choice": {"type": "custom", "custom": {"name": "a"}}}, "tool_choice.custom"),
        ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"type": "custom"}]}}}, "tool_choice.allowed_tools.tools[0]"),
        (user(TEXT, name="ann"), "messages[0].name"),
        (user(TEXT, later=1), "messages[0].later"),
        (user({**TEXT, "later": 1}), "messages[0].content[0].later"),
        (user({**TEXT, "cache_control": {"type": "ephemeral", "ttl": "1h"}}), "messages[0].content[0].cache_control.ttl"),
        (user({"type": "file", "file": {"file_id": "f"}}), "messages[0].content[0].file.file_id"),
        (user({"type": "file", "file": {"filename": "f"}}), "messages[0].content[0].file"),
        (user({"type": "file", "file": {"file_data": "AAAA"}}), "messages[0].content[0].file.file_data"),
        (user({"type": "file", "file": {"file_data": "data:text/plain,hello"}}), "messages[0].content[0].file.file_data"),
        (user({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "pcm16"}}), "messages[0].content[0].input_audio.format"),
        (user({"type": "image_url", "image_url": {"url": "gs://bucket/a"}}), "messages[0].content[0].image_url.url"),
        (user({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}), "messages[0].content[0].image_url.url"),
        (user({"type": "image_url", "image_url": {"url": "data:image/png,AAAA"}}), "messages[0].content[0].image_url.url"),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "system", "content": "y"}]}, "messages[1].role"),
        ({"messages": [{"role": "assistant", "content": "x", "audio": {"id": "a"}}]}, "messages[0].audio"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"id": "a", "type": "custom", "custom": {"name": "b", "input": ""}}]}]},
            "messages[0].tool_calls[0]",
        ),
        ({"messages": [{"role": "function", "name": "a", "content": "x"}]}, "messages[0].name"),
    ],
)
def test_what_has_no_place_in_the_hub_is_refused_with_its_path(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(UnsupportedFeature) as caught:
        hub(**fields)
    assert (caught.value.param, caught.value.code) == (param, "unsupported_feature")


def test_nulls_and_what_means_nothing_are_not_refused() -> None:
    plain = hub()
    for fields in ({"later": None}, {"logprobs": False, "top_logprobs": 0}, {"modalities": ["text"]}, {"response_format": {"type": "text"}}, {"n": 1}):
        assert hub(**fields) == plain
    assert hub(messages=[{"role": "user", "content": "Hello.", "later": None}]) == plain
    assert hub(stream=True, stream_options={"include_usage": True, "include_obfuscation": False}).stream


def test_the_cap_in_the_hub_is_the_one_that_was_reserved() -> None:
    assert hub().max_tokens == CAP
    assert hub(max_tokens=5).max_tokens == hub(max_completion_tokens=5).max_tokens == 5
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": 9999}).encode()
    assert conversation_of(decode_chat(body, max_tokens_cap=CAP, on_excess="clamp")).max_tokens == CAP


def test_every_field_of_the_hub_has_the_clients_own_name() -> None:
    assert set(FIELD_NAMES) >= set(ConversationRequest.__struct_fields__) - {"dialect", "left_out"}


# --- requests out of the hub -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (changed(top_k=3), "top_k"),
        (changed(logprobs=0), "logprobs"),
        (changed(tool_choice=ToolChoice("named", ("a", "b"))), "tool_choice"),
        (changed(tool_choice=ToolChoice("none", ("a",))), "tool_choice"),
        (changed(messages=(Message("user", (Document(text="x", at="somewhere"),)),)), "somewhere"),
        (changed(messages=(Message("user", (Document(url="https://e.com", at="somewhere"),)),)), "somewhere"),
        (changed(messages=(Message("user", (Document("application/pdf", "AAAA", citations=True, at="somewhere"),)),)), "somewhere"),
        (changed(messages=(Message("user", (Audio("audio/flac", "AAAA", at="somewhere"),)),)), "somewhere"),
        (changed(messages=(Message("user", (ToolResult("a", "b", (Image("image/png", "AAAA", at="somewhere"),)),)),)), "somewhere"),
        (changed(messages=(Message("user", (ToolResult("a", "b", (Image("image/png", "AAAA"),), at="there"),)),)), "there"),
        (changed(messages=(Message("assistant", (Image("image/png", "AAAA"),)),)), "messages"),
    ],
)
def test_what_chat_cannot_say_is_refused(request_: ConversationRequest, param: str) -> None:
    with pytest.raises(UnsupportedFeature) as caught:
        encode_conversation(request_, Quirks.NONE)
    assert caught.value.param == param


HINTS = {"metadata": {"a": "b"}, "service_tier": "flex", "store": True, "verbosity": "low", "cache_key": "k"}
SIGNED_CALL = Message("assistant", (ToolCall("a", "b", "{}", "signature"),))


@pytest.mark.parametrize(
    ("request_", "quirks", "dropped", "there", "absent"),
    [
        (changed(**HINTS), Quirks.NEW_TOKEN_CAP, (), {"store": True, "prompt_cache_key": "k", "verbosity": "low", "service_tier": "flex"}, ()),
        (changed(**HINTS), Quirks.NONE, tuple(HINTS), {}, ("metadata", "service_tier", "store", "verbosity", "prompt_cache_key")),
        (changed(dialect=Dialect.ANTHROPIC_MESSAGES, service_tier="auto"), Quirks.NEW_TOKEN_CAP, ("service_tier",), {}, ("service_tier",)),
        (changed(thinking=Thinking("high")), Quirks.NONE, (), {"reasoning_effort": "high"}, ()),
        (changed(thinking=Thinking(budget=1024)), Quirks.NONE, ("thinking",), {"reasoning_effort": "low"}, ()),
        (changed(thinking=Thinking(budget=16384)), Quirks.NONE, ("thinking",), {"reasoning_effort": "medium"}, ()),
        (changed(thinking=Thinking(budget=16385)), Quirks.NONE, ("thinking",), {"reasoning_effort": "high"}, ()),
        (changed(thinking=Thinking(budget=0)), Quirks.NONE, ("thinking",), {}, ("reasoning_effort",)),
        (changed(messages=(Message("assistant", (Reasoning("a", "s"), Text("b"))),)), Quirks.NONE, ("thinking",), {}, ()),
        (changed(messages=(SIGNED_CALL,)), Quirks.NONE, ("thinking",), {}, ()),
        (
            changed(system=(Text("a", cache=True),)),
            Quirks.NONE,
            ("cache",),
            {"messages": [{"role": "system", "content": "a"}, {"role": "user", "content": "Hello."}]},
            (),
        ),
        (changed(tools=(Tool("a", cache=True),)), Quirks.NONE, ("cache",), {"tools": [{"type": "function", "function": {"name": "a"}}]}, ()),
        (changed(messages=(Message("user", (ToolResult("a", "b", (), is_error=True, at="there"),)),)), Quirks.NONE, ("there",), {}, ()),
        (changed(stream=True), Quirks.NONE, (), {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": 9}, ()),
        (changed(stream=True), Quirks.NO_STREAM_OPTIONS | Quirks.OLD_TOKEN_CAP, (), {"stream": True, "max_tokens": 9}, ("stream_options",)),
        (changed(), Quirks.NEW_TOKEN_CAP, (), {"max_completion_tokens": 9}, ("max_tokens", "stream")),
    ],
)
def test_hints_are_left_out_and_reported(
    request_: ConversationRequest, quirks: Quirks, dropped: tuple[str, ...], there: dict[str, Any], absent: tuple[str, ...]
) -> None:
    assert encode_conversation(request_, quirks).dropped == dropped
    body = body_of(request_, quirks)
    assert {name: body.get(name) for name in there} == there
    assert not body.keys() & set(absent)


def test_results_follow_their_calls_whatever_their_place_in_the_turn() -> None:
    turn = Message("user", (Text("See:"), ToolResult("a", "one", (Text("1"),)), ToolResult("b", "two", ())))
    messages = body_of(changed(messages=(turn,)))["messages"]
    assert messages == [
        {"role": "tool", "tool_call_id": "a", "content": "1"},
        {"role": "tool", "tool_call_id": "b", "content": ""},
        {"role": "user", "content": "See:"},
    ]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((), {"content": ""}),
        ((Reasoning("a"),), {"content": ""}),
        ((Text("a"), Text("b")), {"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}),
        ((Refusal("no"),), {"content": None, "refusal": "no"}),
        ((Text("a"), Refusal("no")), {"content": [{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "no"}]}),
        (
            (ToolCall("i", "n", "{}"), Text("a")),
            {"content": "a", "tool_calls": [{"id": "i", "type": "function", "function": {"name": "n", "arguments": "{}"}}]},
        ),
        ((ToolCall("i", "n", "{ }"),), {"content": None, "tool_calls": [{"id": "i", "type": "function", "function": {"name": "n", "arguments": "{ }"}}]}),
    ],
)
def test_what_the_assistant_said_is_told_as_chat_tells_it(parts: tuple[Any, ...], message: dict[str, Any]) -> None:
    encoded = body_of(changed(messages=(Message("assistant", parts),)))["messages"]
    assert encoded == [{"role": "assistant", **message}]


# --- the client's own body for a target with quirks --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "quirks", "there", "absent"),
    [
        ({"max_tokens": 7}, Quirks.NEW_TOKEN_CAP, {"max_completion_tokens": 7}, "max_tokens"),
        ({}, Quirks.NEW_TOKEN_CAP, {"max_completion_tokens": CAP}, "max_tokens"),
        ({"max_completion_tokens": 7}, Quirks.OLD_TOKEN_CAP, {"max_tokens": 7}, "max_completion_tokens"),
        ({"max_completion_tokens": 7, "max_tokens": 9}, Quirks.OLD_TOKEN_CAP, {"max_tokens": 7}, "max_completion_tokens"),
        ({"max_completion_tokens": 7, "max_tokens": 9}, Quirks.NEW_TOKEN_CAP, {"max_completion_tokens": 7}, "max_tokens"),
        ({"max_completion_tokens": None, "max_tokens": 9}, Quirks.NEW_TOKEN_CAP, {"max_completion_tokens": 9}, "max_tokens"),
        ({"stream": True}, Quirks.NO_STREAM_OPTIONS, {"stream": True}, "stream_options"),
        (
            {"messages": [{"role": "developer", "content": "a", "x": 1}, {"role": "user", "content": "b"}]},
            Quirks.NO_DEVELOPER_ROLE,
            {"messages": [{"role": "system", "content": "a", "x": 1}, {"role": "user", "content": "b"}]},
            "",
        ),
    ],
)
def test_quirks_bend_what_leaves_and_nothing_that_is_kept(fields: dict[str, Any], quirks: Quirks, there: dict[str, Any], absent: str) -> None:
    request = chat(**fields)
    before = encode_same(request, Quirks.NONE)
    encoded = encode_same(request, quirks)
    body = json.loads(encoded.prefix + b'"m"' + encoded.suffix)
    assert {name: body[name] for name in there} == there and absent not in body
    assert body.keys() - there.keys() - {"model"} <= request.rest.keys()
    assert reread(encoded.prefix + b'"m"' + encoded.suffix).max_tokens <= request.max_tokens
    assert encode_same(request, Quirks.NONE) == before


# --- what clients get --------------------------------------------------------------------------------------------------


def told_answer(*parts: Any, stop: StopReason = StopReason.END) -> dict[str, Any]:
    answer = ConversationAnswer("", "", (Choice(0, parts, stop),), None)
    body: dict[str, Any] = json.loads(encode_answer(answer, request=None, id="chatcmpl-x", model="public", created=7))
    assert (body["id"], body["object"], body["created"], body["model"]) == ("chatcmpl-x", "chat.completion", 7, "public")
    assert "usage" not in body
    choice: dict[str, Any] = body["choices"][0]
    return choice


def test_an_answer_has_the_shape_that_sdks_expect() -> None:
    choice = told_answer(Text("Blue"), Text("."))
    assert choice == {"index": 0, "message": {"role": "assistant", "content": "Blue.", "refusal": None}, "logprobs": None, "finish_reason": "stop"}


@pytest.mark.parametrize(
    ("stop", "parts", "reason"),
    [
        (StopReason.END, (Text("a"),), "stop"),
        (StopReason.STOP_SEQUENCE, (Text("a"),), "stop"),
        (StopReason.LENGTH, (Text("a"),), "length"),
        (StopReason.PAUSE, (Text("a"),), "length"),
        (StopReason.FILTER, (), "content_filter"),
        (StopReason.REFUSAL, (Text("a"),), "content_filter"),
        (StopReason.REFUSAL, (Refusal("a"),), "stop"),
        (StopReason.TOOL_CALLS, (ToolCall("a", "b", "{}"),), "tool_calls"),
    ],
)
def test_each_reason_to_stop_has_its_word_whole_and_streamed(stop: StopReason, parts: tuple[Any, ...], reason: str) -> None:
    assert told_answer(*parts, stop=stop)["finish_reason"] == reason
    events: list[StreamEvent] = [Started("", "")]
    for index, part in enumerate(parts):
        events += [PartStarted(0, index, part if isinstance(part, ToolCall) else type(part)("")), PartEnded(0, index)]
    assert chunks_of([*events, Finished(0, stop), Ended()])[-1]["choices"][0]["finish_reason"] == reason


def test_sources_count_from_the_beginning_of_the_whole_text_and_those_without_an_address_are_left_out() -> None:
    web = Citation(url="https://e.com", title="E", cited="said", start=1, end=3)
    first, second = Text("Red. ", (Citation(document=0, cited="x"),)), Text("Blue.", (web, Citation(url="https://f.com")))
    notes = told_answer(first, second)["message"]["annotations"]
    assert notes == [
        {"type": "url_citation", "url_citation": {"url": "https://e.com", "title": "E", "content": "said", "start_index": 6, "end_index": 8}},
        {"type": "url_citation", "url_citation": {"url": "https://f.com", "title": "", "start_index": 5, "end_index": 10}},
    ]
    events: list[StreamEvent] = [Started("", ""), PartStarted(0, 0, Text("")), TextDelta(0, 0, "Red. ")]
    events += [CitationAdded(0, 0, first.citations[0]), PartEnded(0, 0)]
    events += [PartStarted(0, 1, Text("")), TextDelta(0, 1, "Blue."), *(CitationAdded(0, 1, c) for c in second.citations), PartEnded(0, 1)]
    streamed = [note for chunk in chunks_of(events) for note in chunk["choices"][0]["delta"].get("annotations", ())]
    assert streamed == [{**note, "index": index} for index, note in enumerate(notes)]


def chunks_of(events: list[StreamEvent], *, include_usage: bool = False) -> list[dict[str, Any]]:
    writer = Writer(request=chat(stream=True, stream_options={"include_usage": include_usage}), id="chatcmpl-x", model="public", created=7)
    data = writer.write(events)
    blocks = data.decode().split("\n\n")
    assert blocks.pop() == ""
    if isinstance(events[-1], Ended):
        assert blocks.pop() == "data: [DONE]"
    read = [json.loads(block.removeprefix("data: ")) for block in blocks]
    assert all((c["id"], c["object"], c["created"], c["model"]) == ("chatcmpl-x", "chat.completion.chunk", 7, "public") for c in read)
    return read


@pytest.mark.parametrize("include_usage", [True, False])
def test_the_first_chunk_says_the_role_and_the_last_the_usage_if_it_was_asked_for(include_usage: bool) -> None:
    events: list[StreamEvent] = [Started("", "", Usage(5, 1)), PartStarted(0, 0, Text("")), TextDelta(0, 0, "a\n\nb")]
    events += [PartEnded(0, 0), Finished(0, StopReason.END), Counted(Usage(5, 2, 1, 1, 1)), Ended()]
    chunks = chunks_of(events, include_usage=include_usage)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    assert deltas == [{"role": "assistant", "content": ""}, {"content": "a\n\nb"}, {}]
    usage = {
        "prompt_tokens": 5,
        "completion_tokens": 2,
        "total_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 1, "cache_write_tokens": 1},
        "completion_tokens_details": {"reasoning_tokens": 1},
    }
    assert [chunk["usage"] for chunk in chunks if not chunk["choices"]] == ([usage] if include_usage else [])


def test_thoughts_and_calls_are_told_in_pieces_that_sdks_put_together() -> None:
    signer = Dialect.ANTHROPIC_MESSAGES
    events: list[StreamEvent] = [
        Started("", ""),
        *(PartStarted(0, 0, Reasoning()), TextDelta(0, 0, "a"), TextDelta(0, 0, "b"), SignatureDelta(0, 0, "s", signer), PartEnded(0, 0)),
        *(PartStarted(0, 1, Reasoning()), PartEnded(0, 1)),
        *(PartStarted(0, 2, Reasoning(redacted="r", signer=signer)), PartEnded(0, 2)),
        *(PartStarted(0, 3, Reasoning(id="rs")), SignatureDelta(0, 3, "t", Dialect.OPENAI_RESPONSES), PartEnded(0, 3)),
        *(PartStarted(0, 4, ToolCall("i", "n", "")), SignatureDelta(0, 4, "g", Dialect.GEMINI_GENERATE), PartEnded(0, 4)),
        *(PartStarted(0, 5, ToolCall("j", "m", "")), ArgumentsDelta(0, 5, '{"a'), ArgumentsDelta(0, 5, '":1}'), PartEnded(0, 5)),
    ]
    whole: dict[Any, Any] = {}
    for chunk in chunks_of(events):
        whole = accumulate_delta(whole, chunk["choices"][0]["delta"])
    assert whole == {
        "role": "assistant",
        "content": "",
        "reasoning_content": "ab",
        "reasoning_details": [
            {"type": "reasoning.text", "text": "ab", "signature": "s", "format": "anthropic-claude-v1", "index": 0},
            {"type": "reasoning.encrypted", "data": "r", "format": "anthropic-claude-v1", "index": 1},
            {"type": "reasoning.text", "signature": "t", "id": "rs", "format": "openai-responses-v1", "index": 2},
        ],
        "tool_calls": [
            {
                "index": 0,
                "id": "i",
                "type": "function",
                "function": {"name": "n", "arguments": "{}"},
                "extra_content": {"google": {"thought_signature": "g"}},
            },
            {"index": 1, "id": "j", "type": "function", "function": {"name": "m", "arguments": '{"a":1}'}},
        ],
    }
    again = hub(messages=[{"role": "user", "content": "x"}, {**whole, "refusal": None}])
    assert again.messages[1].parts == (
        Reasoning("ab", "s", signer=signer),
        Reasoning(redacted="r", signer=signer),
        Reasoning("", "t", signer=Dialect.OPENAI_RESPONSES, id="rs"),
        ToolCall("i", "n", "{}", "g", at="messages[1].tool_calls[0]"),
        ToolCall("j", "m", '{"a":1}', at="messages[1].tool_calls[1]"),
    )


def test_choices_interleave_by_their_index_and_each_says_its_role() -> None:
    events: list[StreamEvent] = [Started("", ""), PartStarted(1, 0, Text("")), TextDelta(1, 0, "b"), PartStarted(0, 0, Text("")), TextDelta(0, 0, "a")]
    said = [(chunk["choices"][0]["index"], chunk["choices"][0]["delta"]) for chunk in chunks_of(events)]
    role = {"role": "assistant", "content": ""}
    assert said == [(0, role), (1, role), (1, {"content": "b"}), (0, {"content": "a"})]


def test_pass_is_the_filter_of_its_request() -> None:
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}\n\n'
    assert Passthrough(chat(stream=True)).feed(usage) == b""
    assert Passthrough(chat(stream=True, stream_options={"include_usage": True})).feed(usage) == usage
