"""Streams of the Messages API: read from a provider, written for a client (as its SDK accumulates them), passed and counted by egress."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import pytest
from anthropic.lib.streaming._messages import accumulate_event
from hypothesis import given, settings
from hypothesis import strategies as st

from cliproxy.bounds import MAX_EVENT_BYTES, MAX_TOOL_ARGUMENTS_BYTES
from cliproxy.dialects import Dialect
from cliproxy.errors import UpstreamError
from cliproxy.metering.anthropic_messages import MessagesStreamMeter
from cliproxy.metering.usage import Usage
from cliproxy.translators.anthropic_messages.answer import decode_answer
from cliproxy.translators.anthropic_messages.decode import decode_messages
from cliproxy.translators.anthropic_messages.read_stream import Reader
from cliproxy.translators.anthropic_messages.request import MessagesRequest
from cliproxy.translators.anthropic_messages.write_stream import KEEP_ALIVE, Passthrough, Writer, error_event
from cliproxy.translators.conversation import (
    ArgumentsDelta,
    Choice,
    Citation,
    ConversationAnswer,
    Counted,
    Ended,
    Finished,
    Image,
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
    ToolCall,
)
from translators.hub_strategies import Feature, answers, fold, streams

VECTORS = Path(__file__).parents[1] / "vectors" / "anthropic_messages"
STREAMS = {path.stem: path.read_bytes() for path in sorted(VECTORS.glob("*.sse"))}
OURS = Dialect.ANTHROPIC_MESSAGES
SAID: frozenset[Feature] = frozenset({"tools", "reasoning", "redacted", "citations", "cache"})


def read(pieces: Iterable[bytes]) -> list[StreamEvent]:
    reader = Reader()
    events = [event for piece in pieces for event in reader.feed(piece)]
    return events + reader.finish()


def count(pieces: Iterable[bytes]) -> tuple[bytes, Usage | None]:
    stream = MessagesStreamMeter()
    passed = b"".join(map(stream.feed, pieces)) + stream.finish()
    return passed, stream.usage


def write(events: Iterable[StreamEvent], request: MessagesRequest | None = None) -> bytes:
    writer = Writer(request=request, id="call-1", model="public", created=1)
    return b"".join(writer.write([event]) for event in events)


def event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


def client(**fields: Any) -> MessagesRequest:
    body = {"model": "public", "max_tokens": 2000, "messages": [{"role": "user", "content": "Hi"}], **fields}
    return decode_messages(json.dumps(body).encode(), max_tokens_cap=4096, on_excess="reject")


START = event(
    "message_start",
    message={"id": "msg_1", "type": "message", "role": "assistant", "content": [], "model": "m", "usage": {"input_tokens": 3, "output_tokens": 1}},
)
TEXT = event("content_block_start", index=0, content_block={"type": "text", "text": ""})
CALL = event("content_block_start", index=0, content_block={"type": "tool_use", "id": "a", "name": "b", "input": {}})
DELTA = event("content_block_delta", index=0, delta={"type": "text_delta", "text": "Hi"})
STOP = event("content_block_stop", index=0)
END = event("message_delta", delta={"stop_reason": "end_turn", "stop_sequence": None}, usage={"output_tokens": 5})
OVER = event("message_stop")
WHOLE = START + TEXT + DELTA + STOP + END + OVER


def more(json_text: str) -> bytes:
    return event("content_block_delta", index=0, delta={"type": "input_json_delta", "partial_json": json_text})


# --- reading ---------------------------------------------------------------------------------------------------------

H = Text("Huascarán 🏔️ is high!")
READ: dict[str, tuple[Choice, Usage]] = {
    "stream_text": (Choice(0, (H,), StopReason.END), Usage(25, 15)),
    "stream_tools": (
        Choice(
            0, (Text("Let me look."), ToolCall("toolu_01A", "get_weather", '{"place": "Cusco"}'), ToolCall("toolu_01B", "ping", "{}")), StopReason.TOOL_CALLS
        ),
        Usage(25, 40),
    ),
    "stream_thinking": (
        Choice(0, (Reasoning("Peaks of Peru.", "c2lnbmVk", signer=OURS), Reasoning(redacted="aGlkZGVu", signer=OURS), Text("Huascarán.")), StopReason.END),
        Usage(25, 30, 0, 20),
    ),
    "stream_usage": (Choice(0, (Text("Hi."),), StopReason.END), Usage(135, 9, 101, 0, 8)),
    "stream_stop_sequence": (Choice(0, (Text("One, two"),), StopReason.STOP_SEQUENCE, "three"), Usage(25, 15)),
    "stream_refusal": (Choice(0, (Text("I "), Refusal("This touches on dangerous biology.")), StopReason.REFUSAL), Usage(25, 15)),
    "stream_cited": (
        Choice(
            0, (Text("Huascarán is "), Text("6,768 m high.", (Citation(title="peaks.txt", cited="Huascarán is 6,768 m high.", document=0),))), StopReason.END
        ),
        Usage(25, 15),
    ),
    "stream_new_kinds": (Choice(0, (Text("Hi."),), StopReason.END), Usage(25, 15)),
}


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_tells_its_answer_however_it_is_cut(name: str) -> None:
    data = STREAMS[name]
    choice, usage = READ[name]
    expected = ConversationAnswer("msg_01ABC", "claude-sonnet-4-5-20250929", (choice,), usage)
    single = [data[at : at + 1] for at in range(len(data))]
    for pieces in ([data], single, [data.replace(b"\n", b"\r\n")], [b"\xef\xbb\xbf" + data], [data + b"trailing garbage\n\n" + data]):
        assert fold(read(pieces)) == expected
        passed, counted = count(pieces)
        assert (passed, counted) == (data, usage)


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_cut_at_any_byte_is_a_fault(name: str) -> None:
    data = STREAMS[name]
    for cut in range(len(data)):
        reader = Reader()
        events = reader.feed(data[:cut])
        assert not any(isinstance(one, Ended) for one in events)
        with pytest.raises(UpstreamError):
            reader.finish()
        stream = MessagesStreamMeter()
        assert data.startswith(stream.feed(data[:cut]))
        with pytest.raises(UpstreamError):
            stream.finish()


@given(st.data())
@settings(max_examples=60)
def test_what_is_written_is_read_as_it_was_however_it_is_cut(data: st.DataObject) -> None:
    answer, events = data.draw(streams(answers(SAID, stops=(StopReason.END, StopReason.LENGTH, StopReason.PAUSE))))
    wire = write(events)
    assert Writer(request=None, id="call-1", model="public", created=1).write(events) == wire
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=5)))
    pieces = [wire[a:b] for a, b in zip([0, *cuts], [*cuts, len(wire)], strict=True)]
    assert fold(read(pieces)) == answer
    assert count(pieces) == (wire, answer.usage)


FAULTS: dict[str, tuple[bytes, int]] = {
    "a delta before the message": (TEXT, 0),
    "an unknown event before the message": (event("response.created"), 0),
    "two messages": (START + START, 1),
    "two blocks at once": (START + TEXT + event("content_block_start", index=1, content_block={"type": "text", "text": ""}), 2),
    "a delta without a block": (START + DELTA, 1),
    "a delta of another block": (START + TEXT + event("content_block_delta", index=1, delta={"type": "text_delta", "text": "x"}), 2),
    "a delta of another kind": (START + TEXT + more("{}"), 2),
    "an unknown delta": (START + TEXT + event("content_block_delta", index=0, delta={"type": "smell_delta"}), 2),
    "an unknown block": (START + event("content_block_start", index=0, content_block={"type": "server_tool_use", "id": "a", "name": "b", "input": {}}), 1),
    "a stop without a block": (START + STOP, 1),
    "an end within a block": (START + TEXT + END, 2),
    "an end without a reason": (START + TEXT + STOP + OVER, 3),
    "a block after the end": (START + END + TEXT, 3),
    "an unknown reason": (START + event("message_delta", delta={"stop_reason": "tired"}, usage={}), 1),
    "arguments that are no JSON": (START + CALL + more('{"x":') + STOP, 3),
    "arguments that are a list": (START + CALL + more("[1]") + STOP, 3),
    "a negative index": (START + event("content_block_start", index=-1, content_block={"type": "text", "text": ""}), 1),
    "no JSON": (START + b"data: {\n\n", 1),
    "no object": (START + b"data: [1]\n\n", 1),
    "not UTF-8": (START + TEXT + DELTA.replace(b"Hi", b"\xff"), 2),
    "deep nesting": (START + b'data: {"type":"content_block_delta","index":0,"delta":' + b"[" * 100_000 + b"\n\n", 1),
    "another dialect": (b'data: {"id":"c","object":"chat.completion.chunk","choices":[]}\n\n', 0),
    "the provider's error": (START + event("error", error={"type": "overloaded_error", "message": "secret words"}), 1),
    "too large an event": (START + b"data: " + b"x" * MAX_EVENT_BYTES + b"\n\n", 0),  # the splitter gives all events of a piece or none
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_raised_once_what_came_before_it_is_out(name: str) -> None:
    data, before = FAULTS[name]
    for pieces in ([data, b"", WHOLE], [data[at : at + 1000] for at in range(0, len(data), 1000)] + [WHOLE]):
        reader = Reader()
        events: list[StreamEvent] = []
        with pytest.raises(UpstreamError) as caught:
            for piece in pieces:
                events += reader.feed(piece)
        assert "secret" not in str(caught.value)
        assert len(events) >= before and not any(isinstance(one, Ended) for one in events)
        with pytest.raises(UpstreamError):
            reader.finish()
        with pytest.raises(UpstreamError):
            reader.feed(WHOLE)


def test_arguments_larger_than_the_bound_are_a_fault() -> None:
    reader = Reader()
    reader.feed(START + CALL + more('{"x":"'))
    with pytest.raises(UpstreamError) as caught:
        for _ in range(MAX_TOOL_ARGUMENTS_BYTES // 100_000 + 1):
            reader.feed(more("y" * 100_000))
    assert caught.value.code == "upstream_too_large"


@given(st.lists(st.sampled_from([START, TEXT, CALL, DELTA, STOP, END, OVER, more("{}"), more("{"), KEEP_ALIVE, b": note\n\n", b"\n\n"]), max_size=12))
def test_events_in_any_order_are_an_answer_or_a_fault(pieces: list[bytes]) -> None:
    try:
        events = read(pieces)
    except UpstreamError:
        return
    fold(events)


@given(st.lists(st.binary(max_size=60) | st.sampled_from([b"data: ", b"\n\n", b"event: message_stop\n", START]), max_size=10))
def test_garbage_is_the_providers_fault_and_nothing_else(pieces: list[bytes]) -> None:
    for reader in (read, count):
        with pytest.raises(UpstreamError):
            reader(pieces)


def test_a_call_that_comes_at_once_is_read() -> None:
    start = event("content_block_start", index=0, content_block={"type": "tool_use", "id": "a", "name": "b", "input": {"x": [1]}})
    events = read([START + start + STOP + END + OVER])
    assert fold(events).choices[0].parts == (ToolCall("a", "b", '{"x": [1]}'),)


def test_data_over_several_lines_and_without_names_is_read() -> None:
    spread = b"".join(b"data:" + part.split(b"\ndata: ")[1].replace(b', "', b',\ndata: "') + b"\n\n" for part in WHOLE.split(b"\n\n")[:-1])
    assert fold(read([spread])).choices[0].parts == (Text("Hi"),)


# --- counting --------------------------------------------------------------------------------------------------------


def test_words_of_the_model_are_no_events() -> None:
    words = 'event: error "error" "message_stop" {"type":"message_stop"} {"type":"error"}'
    delta = event("content_block_delta", index=0, delta={"type": "text_delta", "text": words})
    stream = START + TEXT + delta + STOP + END + OVER
    assert count([stream]) == (stream, Usage(3, 5))
    assert fold(read([stream])).choices[0].parts == (Text(words),)


ERRORS = {
    "named": b"event: error\ndata: {}\n\n",
    "typed": b'data: {"type": "error", "error": {"type": "overloaded_error"}}\n\n',
    "both": event("error", error={"type": "overloaded_error", "message": "x"}),
}


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_in_a_stream_ends_it_after_the_events_before_it(name: str) -> None:
    stream = MessagesStreamMeter()
    assert stream.feed(START + TEXT + ERRORS[name] + DELTA + STOP + END + OVER) == START + TEXT
    for ending in (stream.finish, lambda: stream.feed(OVER)):
        with pytest.raises(UpstreamError) as caught:
            ending()
        assert caught.value.code == "upstream_stream_error"
    alone = MessagesStreamMeter()
    alone.feed(START)
    with pytest.raises(UpstreamError):
        alone.feed(ERRORS[name])


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_behind_the_end_is_not_looked_at(name: str) -> None:
    whole = START + TEXT + DELTA + STOP + END + OVER
    assert count([whole + ERRORS[name]]) == (whole, Usage(3, 5))
    assert count([whole, ERRORS[name]]) == (whole, Usage(3, 5))


def test_the_prompts_count_alone_is_no_usage() -> None:
    stream = MessagesStreamMeter()
    stream.feed(START + TEXT + DELTA)
    assert stream.usage is None
    stream.feed(STOP + END)
    assert stream.usage == Usage(3, 5)


@pytest.mark.parametrize("usage", [{}, None, {"output_tokens": -1}, {"output_tokens": "5"}, {"output_tokens": 2**60}])
def test_usage_that_makes_no_sense_is_none(usage: Any) -> None:
    last = event("message_delta", delta={"stop_reason": "end_turn"}, usage=usage)
    stream = START + TEXT + DELTA + STOP + last + OVER
    assert count([stream]) == (stream, None)
    assert not any(isinstance(one, Counted) for one in read([stream]))


def test_nothing_passes_after_the_end() -> None:
    assert count([WHOLE + DELTA, DELTA]) == (WHOLE, Usage(3, 5))


# --- writing ---------------------------------------------------------------------------------------------------------


def accumulated(wire: bytes) -> Any:
    """Return the message that the SDK makes of a stream."""
    snapshot: Any = None
    buffers: dict[int, bytes] = {}
    for part in wire.split(b"\n\n")[:-1]:
        name, data = part.split(b"\ndata: ")
        parsed = json.loads(data)
        assert name == b"event: " + parsed["type"].encode()
        if parsed["type"] != "ping":
            snapshot = accumulate_event(event=parsed, current_snapshot=snapshot, json_bufs=buffers)
    return snapshot


@given(streams(answers(SAID, stops=(StopReason.END, StopReason.LENGTH))))
@settings(max_examples=60)
def test_the_sdk_accumulates_what_was_said(told: tuple[ConversationAnswer, list[StreamEvent]]) -> None:
    answer, events = told
    message = accumulated(write(events)).to_dict()
    calls = [part for part in answer.choices[0].parts if isinstance(part, ToolCall)]
    read_back = decode_answer(json.dumps(message).encode())
    assert [json.loads(part.arguments) for part in read_back.choices[0].parts if isinstance(part, ToolCall)] == [json.loads(call.arguments) for call in calls]
    kept = [part for part in read_back.choices[0].parts if not isinstance(part, ToolCall)]
    assert kept == [part for part in answer.choices[0].parts if not isinstance(part, ToolCall)]
    assert (read_back.usage, read_back.choices[0].stop, read_back.id) == (answer.usage, answer.choices[0].stop, answer.id)


def test_the_parsed_end_has_all_usage_even_if_nothing_was_known_at_the_beginning() -> None:
    events: list[StreamEvent] = [
        Started("", ""),
        PartStarted(0, 0, Text("")),
        TextDelta(0, 0, "Hi"),
        PartEnded(0, 0),
        Finished(0, StopReason.END),
        Counted(Usage(50, 7, 20, 3, 5)),
        Ended(),
    ]
    wire = write(events)
    assert wire.startswith(b'event: message_start\ndata: {"type":"message_start","message":{"id":"call-1","type":"message","role":"assistant","model":"public"')
    usage = accumulated(wire).usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.cache_creation_input_tokens, usage.output_tokens) == (25, 20, 5, 7)
    assert usage.output_tokens_details.thinking_tokens == 3


def test_empty_texts_and_thoughts_nobody_asked_for_are_not_written() -> None:
    events: list[StreamEvent] = [
        Started("a", "m"),
        PartStarted(0, 0, Reasoning()),
        TextDelta(0, 0, "Hm."),
        SignatureDelta(0, 0, "c2ln", OURS),
        PartEnded(0, 0),
        PartStarted(0, 1, Text("")),
        PartEnded(0, 1),
        PartStarted(0, 2, ToolCall("", "ping", "")),
        ArgumentsDelta(0, 2, "{}"),
        SignatureDelta(0, 2, "eGVu", Dialect.GEMINI_GENERATE),
        PartEnded(0, 2),
        Finished(0, StopReason.END),
        Ended(),
    ]
    message = accumulated(write(events, client()))
    assert [block.type for block in message.content] == ["tool_use"] and message.content[0].id == "toolu_a_0"
    assert message.stop_reason == "tool_use"
    shown = accumulated(write(events, client(thinking={"type": "adaptive"})))
    assert [block.type for block in shown.content] == ["thinking", "tool_use", "redacted_thinking"] and shown.content[0].signature == "c2ln"


@pytest.mark.parametrize(
    "event", [PartStarted(1, 0, Text("")), TextDelta(1, 0, "other"), ArgumentsDelta(1, 0, "{}"), PartEnded(1, 0), Finished(1, StopReason.END)]
)
def test_another_choice_is_the_providers_fault_and_not_lost(event: StreamEvent) -> None:
    """A client of this dialect cannot ask for several, and a message has no place for them."""
    writer = Writer(request=client(), id="call-1", model="public", created=1)
    writer.write([Started("a", "m"), PartStarted(0, 0, Text("")), TextDelta(0, 0, "Hi")])
    with pytest.raises(UpstreamError, match="several choices"):
        writer.write([event])


def test_thoughts_of_other_vendors_and_proof_of_calls_carry_the_vendors_name() -> None:
    events: list[StreamEvent] = [
        Started("a", "m"),
        PartStarted(0, 0, Reasoning(redacted="eGVu", signer=Dialect.OPENAI_RESPONSES, id="rs_1")),
        PartEnded(0, 0),
        PartStarted(0, 1, Reasoning()),
        TextDelta(0, 1, "Hm."),
        SignatureDelta(0, 1, "c2ln", Dialect.BEDROCK_CONVERSE),
        PartEnded(0, 1),
        PartStarted(0, 2, Reasoning()),
        TextDelta(0, 2, "So."),
        PartEnded(0, 2),
        PartStarted(0, 3, ToolCall("c", "ping", "")),
        ArgumentsDelta(0, 3, "{}"),
        SignatureDelta(0, 3, "Z2Vt", Dialect.GEMINI_GENERATE),
        PartEnded(0, 3),
        PartStarted(0, 4, Text("")),
        TextDelta(0, 4, "x"),
        PartEnded(0, 4),
        Finished(0, StopReason.TOOL_CALLS),
        Ended(),
    ]
    content = json.loads(accumulated(write(events)).to_json())["content"]
    assert [(block["type"], block.get("signature") or block.get("data")) for block in content] == [
        ("redacted_thinking", "cliproxy:openai_responses:redacted:rs_1:eGVu"),
        ("thinking", "cliproxy:bedrock_converse:signature::c2ln"),
        ("thinking", "cliproxy::signature::"),
        ("tool_use", None),
        ("redacted_thinking", "cliproxy:gemini_generate:call::Z2Vt"),
        ("text", None),
    ]


def test_a_refusal_is_text_and_the_reason_says_so() -> None:
    events: list[StreamEvent] = [
        Started("a", "m"),
        PartStarted(0, 0, Refusal("")),
        TextDelta(0, 0, "No."),
        PartEnded(0, 0),
        Finished(0, StopReason.END),
        Ended(),
    ]
    message = accumulated(write(events))
    assert (message.content[0].text, message.stop_reason) == ("No.", "refusal")


def test_an_image_is_more_than_a_message_can_hold() -> None:
    with pytest.raises(UpstreamError):
        write([Started("a", "m"), PartStarted(0, 0, Image(media_type="image/png", data="AAAA"))])


def test_the_same_dialect_passes_as_it_is() -> None:
    assert Passthrough(client()).feed(WHOLE) == WHOLE


# --- endings, as the SDK sees them -----------------------------------------------------------------------------------


def sdk(answer: Callable[[], bytes]) -> anthropic.Anthropic:
    def respond(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=answer())

    return anthropic.Anthropic(api_key="k", base_url="http://gateway", max_retries=0, http_client=httpx2.Client(transport=httpx2.MockTransport(respond)))


def test_the_sdk_reads_a_written_stream_to_its_end() -> None:
    wire = KEEP_ALIVE + write(read([STREAMS["stream_tools"]]))
    with sdk(lambda: wire).messages.stream(model="m", max_tokens=9, messages=[{"role": "user", "content": "Hi"}]) as stream:
        message = stream.get_final_message()
    assert message.stop_reason == "tool_use" and message.usage.input_tokens == 25
    assert [getattr(block, "input", None) for block in message.content] == [None, {"place": "Cusco"}, {}]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (502, "api_error"),
        (503, "overloaded_error"),
        (504, "timeout_error"),
        (418, "invalid_request_error"),
    ],
)
def test_the_sdk_raises_what_broke_a_stream(status: int, kind: str) -> None:
    ending = error_event("It broke off.", kind="upstream_error", code="upstream_broke_off", status=status)
    assert json.loads(ending.split(b"data: ")[1]) == {"type": "error", "error": {"type": kind, "message": "It broke off."}}
    wire = START + TEXT + DELTA + ending
    answered = sdk(lambda: wire).messages.create(model="m", max_tokens=9, stream=True, messages=[{"role": "user", "content": "Hi"}])
    with pytest.raises(anthropic.APIStatusError, match=r"It broke off\."):
        list(answered)
    with pytest.raises(UpstreamError):
        read([wire])
