"""The vectors of chat completions: each whole, byte by byte, cut at every byte, and with trailing garbage."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cliproxy.dialects import Dialect, Quirks
from cliproxy.errors import SchemaError, UnsupportedFeature, UpstreamError
from cliproxy.metering.openai_chat import ChatStreamMeter
from cliproxy.metering.usage import Usage
from cliproxy.translators.conversation import (
    Choice,
    Citation,
    ConversationAnswer,
    Image,
    Reasoning,
    Refusal,
    StopReason,
    StreamEvent,
    Text,
    ToolCall,
)
from cliproxy.translators.openai_chat.answer import decode_answer, encode_answer
from cliproxy.translators.openai_chat.decode import decode_chat
from cliproxy.translators.openai_chat.encode import encode_conversation
from cliproxy.translators.openai_chat.read_stream import Reader
from cliproxy.translators.openai_chat.to_hub import conversation_of
from cliproxy.translators.openai_chat.write_stream import Writer
from translators.hub_strategies import fold

VECTORS = Path(__file__).parents[1] / "vectors" / "openai_chat"
ALL: dict[str, dict[str, Any]] = {path.stem: json.loads(path.read_text()) for path in sorted(VECTORS.glob("*.json"))}
REQUESTS = {name: json.dumps(vector["body"]).encode() for name, vector in ALL.items() if vector["kind"] == "request"}
ANSWERS = {name: json.dumps(vector["body"], ensure_ascii=False).encode() for name, vector in ALL.items() if vector["kind"] == "answer"}
STREAMS = {name: (VECTORS / f"{name}.sse").read_bytes() for name, vector in ALL.items() if vector["kind"] == "stream"}
CANNOT_GO_THROUGH = {"request_logprobs": "logprobs"}

END, LENGTH, CALLS, FILTER, REFUSED = StopReason.END, StopReason.LENGTH, StopReason.TOOL_CALLS, StopReason.FILTER, StopReason.REFUSAL
ANTHROPIC, OPENAI = Dialect.ANTHROPIC_MESSAGES, Dialect.OPENAI_RESPONSES
PLAIN_USAGE = Usage(10, 3)
BLUE = Text("Blue.")
THOUGHT = Reasoning("They want a colour.")
SIGNED = Reasoning("They want a colour.", "c2lnbmVk", signer=ANTHROPIC)
SEALED = Reasoning(redacted="c2VhbGVk", signer=ANTHROPIC)
CITED = Text("Much is new.", (Citation(url="https://example.com/news", title="News", start=0, end=12),))
WEATHER = ToolCall("call_1", "get_weather", '{"city":"Bern"}')
TIME = ToolCall("call_2", "get_time", '{"city":"Bern"}')
PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="

TOLD: dict[str, tuple[Sequence[Any], StopReason, Usage]] = {
    "answer_text": ([BLUE], END, PLAIN_USAGE),
    "answer_tools": ([ToolCall("call_1", "get_weather", '{"city": "Bern"}')], CALLS, PLAIN_USAGE),
    "answer_forced_tool": ([WEATHER], CALLS, PLAIN_USAGE),
    "answer_parallel_tool_calls": ([Text("Both at once."), WEATHER, TIME], CALLS, PLAIN_USAGE),
    "answer_arguments_as_object": ([ToolCall("call_chatcmpl-1_0_0", "get_weather", '{"city": "Bern"}')], CALLS, PLAIN_USAGE),
    "answer_function_call": ([ToolCall("call_chatcmpl-1_0_0", "get_weather", '{"city":"Bern"}')], CALLS, PLAIN_USAGE),
    "answer_reasoning_deepseek": ([THOUGHT, BLUE], END, Usage(10, 8, 4, 5)),
    "answer_reasoning_ollama": ([THOUGHT, BLUE], END, PLAIN_USAGE),
    "answer_reasoning_mistral": ([THOUGHT, BLUE], END, PLAIN_USAGE),
    "answer_reasoning_signature": ([SIGNED, SEALED, BLUE], END, PLAIN_USAGE),
    "answer_reasoning_of_openai": ([Reasoning("They want a colour.", "c2VhbGVk", signer=OPENAI, id="rs_1"), BLUE], END, PLAIN_USAGE),
    "answer_call_signature": ([ToolCall("call_1", "get_weather", '{"city":"Bern"}', "c2lnbmVk")], CALLS, PLAIN_USAGE),
    "answer_structured_output": ([Text('{"name":"blue"}')], END, PLAIN_USAGE),
    "answer_length": ([Text("Blu")], LENGTH, PLAIN_USAGE),
    "answer_filter": ([], FILTER, PLAIN_USAGE),
    "answer_usage_details": ([BLUE], END, Usage(2000, 50, 1024, 40, 512)),
    "answer_usage_of_xai": ([BLUE], END, Usage(10, 103, 0, 100)),
    "answer_refusal": ([Refusal("I will not.")], REFUSED, PLAIN_USAGE),
    "answer_citations": ([CITED], END, PLAIN_USAGE),
    "answer_images": ([Text("Here it is."), Image("image/png", PICTURE)], END, PLAIN_USAGE),
    "stream_text": ([Text("A clear blue, “azure” 💙.")], END, PLAIN_USAGE),
    "stream_padded": ([Text('Blue is a "colour", they say: ,"obfuscation":"no".')], END, PLAIN_USAGE),
    "stream_azure": ([BLUE], END, PLAIN_USAGE),
    "stream_tools": ([WEATHER], CALLS, PLAIN_USAGE),
    "stream_tools_without_index": ([WEATHER, TIME], CALLS, PLAIN_USAGE),
    "stream_tools_all_index_0": (
        [ToolCall("call_1", "get_weather", '{"city":"Bern"}', "c2lnbmVk"), ToolCall("call_2", "get_time", "{}")],
        CALLS,
        PLAIN_USAGE,
    ),
    "stream_tools_one_after_the_other": ([Text("Both."), WEATHER, TIME], CALLS, PLAIN_USAGE),
    "stream_tools_at_once": ([WEATHER, ToolCall("call_2", "get_time", '{"city":"B}ern"}'), Text("Done.")], CALLS, PLAIN_USAGE),
    "stream_function_call": ([ToolCall("call_chatcmpl-1_0", "get_weather", '{"city":"Bern"}')], CALLS, PLAIN_USAGE),
    "stream_reasoning_deepseek": ([THOUGHT, BLUE], END, Usage(10, 8, 4, 5)),
    "stream_reasoning_mistral": ([THOUGHT, BLUE], END, PLAIN_USAGE),
    "stream_reasoning_signature": ([SIGNED, SEALED, BLUE], END, PLAIN_USAGE),
    "stream_stop_length": ([Text("Blu")], LENGTH, PLAIN_USAGE),
    "stream_refusal": ([Refusal("I will not.")], REFUSED, PLAIN_USAGE),
    "stream_citations": ([CITED], END, PLAIN_USAGE),
    "stream_usage_details": ([BLUE], END, Usage(2000, 50, 1024, 40)),
}
TWO_CHOICES = {
    "answer_choices": ConversationAnswer(
        "chatcmpl-1", "provider-model", (Choice(1, (Text("Red."),), LENGTH), Choice(0, (BLUE,), END)), PLAIN_USAGE, 1_700_000_000
    ),
    "stream_choices": ConversationAnswer(
        "chatcmpl-1", "provider-model", (Choice(0, (BLUE,), END), Choice(1, (Text("Red."),), LENGTH)), PLAIN_USAGE, 1_700_000_000
    ),
}


def told(name: str) -> ConversationAnswer:
    if name in TWO_CHOICES:
        return TWO_CHOICES[name]
    parts, stop, usage = TOLD[name]
    return ConversationAnswer("chatcmpl-1", "provider-model", (Choice(0, tuple(parts), stop),), usage, 1_700_000_000)


def read(pieces: Sequence[bytes]) -> ConversationAnswer:
    reader = Reader()
    events = [event for piece in pieces for event in reader.feed(piece)]
    return fold([*events, *reader.finish()])


def test_every_vector_is_used_and_says_what_it_is() -> None:
    assert set(REQUESTS) | set(TOLD) | set(TWO_CHOICES) == set(ALL)
    assert {path.stem for path in VECTORS.glob("*.sse")} == set(STREAMS)
    assert all(vector["name"] == name and vector["feature"] for name, vector in ALL.items())


# --- requests ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_survives_the_hub_or_is_refused_by_name(name: str) -> None:
    request = decode_chat(REQUESTS[name], max_tokens_cap=4096, on_excess="reject")
    if name in CANNOT_GO_THROUGH:
        with pytest.raises(UnsupportedFeature) as caught:
            conversation_of(request)
        assert caught.value.param == CANNOT_GO_THROUGH[name]
        return
    hub = conversation_of(request)
    encoded = encode_conversation(hub, Quirks.NONE)
    again = decode_chat(encoded.prefix + b'"public-model"' + encoded.suffix, max_tokens_cap=4096, on_excess="reject")
    once_more = encode_conversation(conversation_of(again), Quirks.NONE)
    assert (once_more.prefix, once_more.suffix) == (encoded.prefix, encoded.suffix)


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_cut_anywhere_or_with_trailing_garbage_is_refused(name: str) -> None:
    body = REQUESTS[name]
    for cut in range(len(body)):
        with pytest.raises(SchemaError):
            decode_chat(body[:cut], max_tokens_cap=4096, on_excess="reject")
    for tail in (b"x", b"{}", body):
        with pytest.raises(SchemaError):
            decode_chat(body + tail, max_tokens_cap=4096, on_excess="reject")


# --- answers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_is_read_as_what_it_says(name: str) -> None:
    assert decode_answer(ANSWERS[name]) == told(name)


@pytest.mark.parametrize("name", ANSWERS)
def test_what_a_client_gets_of_an_answer_says_the_same(name: str) -> None:
    answer = told(name)
    body = encode_answer(answer, request=None, id="unused", model="unused", created=1)
    assert decode_answer(body) == answer


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_cut_anywhere_or_with_trailing_garbage_is_the_providers_fault(name: str) -> None:
    body = ANSWERS[name]
    for cut in range(len(body)):
        with pytest.raises(UpstreamError):
            decode_answer(body[:cut])
    for tail in (b"x", b"{}", body):
        with pytest.raises(UpstreamError):
            decode_answer(body + tail)


# --- streams -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_is_read_as_what_it_says_whole_byte_by_byte_and_cut_in_two(name: str) -> None:
    data = STREAMS[name]
    assert read([data]) == told(name)
    assert read([data[at : at + 1] for at in range(len(data))]) == told(name)
    for cut in range(len(data)):
        assert read([data[:cut], data[cut:]]) == told(name)


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_is_the_same_after_egress(name: str) -> None:
    egress = ChatStreamMeter()
    assert read([egress.feed(STREAMS[name]), egress.finish()]) == told(name)
    assert egress.usage == told(name).usage


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_that_ends_anywhere_before_its_end_broke_off(name: str) -> None:
    data = STREAMS[name]
    for cut in range(len(data)):
        reader = Reader()
        reader.feed(data[:cut])
        with pytest.raises(UpstreamError) as caught:
            reader.finish()
        assert caught.value.code == "upstream_broke_off"


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("tail", [b"data: more\n\n", b"garbage", b"data: [DONE]\n\n", b'data: {"error":{}}\n\n'])
def test_what_follows_the_end_of_a_stream_is_not_looked_at(name: str, tail: bytes) -> None:
    assert read([STREAMS[name] + tail]) == read([STREAMS[name], tail, tail]) == told(name)


@pytest.mark.parametrize("name", STREAMS)
def test_what_a_client_gets_of_a_stream_says_the_same(name: str) -> None:
    events: list[StreamEvent] = []
    reader = Reader()
    events += reader.feed(STREAMS[name])
    body = b'{"model":"m","messages":[{"role":"user","content":"x"}],"stream":true,"stream_options":{"include_usage":true}}'
    request = decode_chat(body, max_tokens_cap=9, on_excess="reject")
    writer = Writer(request=request, id="unused", model="unused", created=1)
    assert read([writer.write([event]) for event in events]) == told(name)
