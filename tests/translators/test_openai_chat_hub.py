"""Chat completions to the hub and back: requests, whole answers, streams."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hub_strategies import answers, fold, requests, streams, texts
from hypothesis import given, settings
from hypothesis import strategies as st

from cliproxy.dialects import Dialect, Quirks
from cliproxy.errors import SchemaError, UnsupportedFeature
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
from cliproxy.translators.openai_chat.decode import FIELD_NAMES, ChatRequest, conversation_of, decode_chat
from cliproxy.translators.openai_chat.encode import encode_conversation, encode_with_hole
from cliproxy.translators.openai_chat.stream import Pass, Reader, Writer
from cliproxy.translators.openai_chat.usage import StreamUsage, reread, usage_of_answer
from cliproxy.translators.usage import Usage

CAP = 4096
REQUEST_FEATURES = frozenset({"system", "tools", "images_base64", "images_url", "documents_base64", "audio"})
ANSWER_FEATURES = frozenset({"tools", "reasoning", "redacted", "refusal", "cache"})
SIGNERS = [Dialect.ANTHROPIC_MESSAGES, Dialect.GEMINI_GENERATE, Dialect.OPENAI_RESPONSES, Dialect.BEDROCK_CONVERSE]
PLAIN = ConversationRequest(dialect=Dialect.OPENAI_CHAT, model="m", stream=False, max_tokens=9, messages=(Message("user", (Text("Hello."),)),))


def chat(**fields: Any) -> ChatRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hello."}], **fields}
    return decode_chat(json.dumps(body).encode(), max_tokens_cap=CAP, on_excess="reject")


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
    egress = StreamUsage()
    assert egress.feed(data) == data and egress.finish() == b"" and egress.usage == answer.usage
