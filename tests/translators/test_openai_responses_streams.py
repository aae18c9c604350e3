"""Responses streams: read from a provider, written for a client, counted by egress."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliproxy.bounds import MAX_RESPONSES_EVENT_BYTES
from cliproxy.dialects import Dialect
from cliproxy.errors import UpstreamError
from cliproxy.formats.sse import KEEP_ALIVE
from cliproxy.metering.openai_responses import ResponsesStreamMeter
from cliproxy.metering.usage import Usage
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
from cliproxy.translators.openai_responses.answer import decode_answer
from cliproxy.translators.openai_responses.decode import decode_responses
from cliproxy.translators.openai_responses.read_stream import Reader
from cliproxy.translators.openai_responses.write_stream import MAX_WRITTEN_RESPONSE_BYTES, Passthrough, Writer, error_event
from translators.hub_strategies import answers, fold, streams

VECTORS = Path(__file__).parents[1] / "vectors" / "openai_responses"
STREAMS = {path.stem.removeprefix("stream_"): path.read_bytes() for path in sorted(VECTORS.glob("stream_*.sse"))}
RESPONSES = Dialect.OPENAI_RESPONSES
U = Usage(36, 12)
END = StopReason.END
TOLD: dict[str, tuple[tuple[Any, ...], StopReason, Usage]] = {
    "text": ((Text("The Rhine, größere – 🌊"),), END, U),
    "tool_calls": (
        (Text("I ask."), ToolCall("call_a", "get_weather", '{"place": "Bergen"}'), ToolCall("call_b", "get_weather", "{}")),
        StopReason.TOOL_CALLS,
        U,
    ),
    "cut": ((Text("Once upon a"),), StopReason.LENGTH, U),
    "reasoning": ((Reasoning("Small divisors.\n\nNone.", "gAAAAABthought", signer=RESPONSES, id="rs_1"), Text("Yes.")), END, Usage(20, 90, 8, 64)),
    "redacted": ((Reasoning(redacted="gAAAAABthought", signer=RESPONSES, id="rs_1"), ToolCall("call_a", "get_weather", "{}")), StopReason.TOOL_CALLS, U),
    "refusal": ((Refusal("I won't."),), StopReason.REFUSAL, U),
    "citations": ((Text("It rains there.", (Citation("https://example.com/rain", "Rain", start=0, end=14),)),), END, U),
}


def read(pieces: list[bytes]) -> list[StreamEvent]:
    reader = Reader()
    out: list[StreamEvent] = []
    for piece in pieces:
        out += reader.feed(piece)
    return out + reader.finish()


def passed_on(pieces: list[bytes]) -> tuple[bytes, ResponsesStreamMeter]:
    """What leaves egress for the worker, to the end."""
    stream = ResponsesStreamMeter()
    out = [stream.feed(piece) for piece in pieces]
    out.append(stream.finish())
    return b"".join(out), stream


def written(events: list[StreamEvent], request: Any = None, *, at_once: bool = True) -> bytes:
    writer = Writer(request=request, id="resp_own", model="own-model", created=7)
    return writer.write(events) if at_once else b"".join(writer.write([event]) for event in events)


def event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, 'sequence_number': 0, **fields})}\n\n".encode()


CREATED = event("response.created", response={"id": "resp_1", "model": "m", "status": "in_progress", "output": [], "error": None})
DONE = event("response.completed", response={"id": "resp_1", "model": "m", "status": "completed", "output": [], "error": None, "usage": None})


def text_delta(text: str, **place: int) -> bytes:
    return event("response.output_text.delta", delta=text, **{"output_index": 0, "content_index": 0, **place})


def added(index: int, item: dict[str, Any]) -> bytes:
    return event("response.output_item.added", output_index=index, item=item)


def done(index: int, item: dict[str, Any]) -> bytes:
    return event("response.output_item.done", output_index=index, item=item)


CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": ""}


def events_of(data: bytes) -> list[dict[str, Any]]:
    assert data == b"" or data.endswith(b"\n\n")
    out = []
    for block in data.split(b"\n\n")[:-1]:
        name, value = block.split(b"\n")
        parsed = json.loads(value.removeprefix(b"data: "))
        assert name == b"event: " + parsed["type"].encode()
        out.append(parsed)
    return out


# --- vectors ---


def test_every_vector_is_expected() -> None:
    assert STREAMS.keys() == TOLD.keys()


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_tells_its_answer_whole_and_byte_by_byte(name: str) -> None:
    data = STREAMS[name]
    parts, stop, usage = TOLD[name]
    expected = ConversationAnswer("resp_0a1b", "gpt-test-2026", (Choice(0, parts, stop),), usage, 1764000000)
    assert fold(read([data])) == expected
    assert fold(read([data[n : n + 1] for n in range(len(data))])) == expected
    assert fold(read([data.replace(b"\n", b"\r\n")])) == expected
    for pieces in ([data], [data[n : n + 1] for n in range(len(data))]):
        out, stream = passed_on(pieces)
        assert (out, stream.usage) == (data, usage)


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_cut_anywhere_broke_off(name: str) -> None:
    data = STREAMS[name]
    for cut in range(len(data)):
        with pytest.raises(UpstreamError):
            read([data[:cut]])
        with pytest.raises(UpstreamError):
            passed_on([data[:cut]])


@pytest.mark.parametrize("name", STREAMS)
def test_what_follows_the_last_event_is_dropped(name: str) -> None:
    data = STREAMS[name]
    for tail in (b"data: [DONE]\n\n", b"x", b"\xff\n\n", data, event("error", message="x")):
        for pieces in ([data + tail], [data, tail]):
            assert fold(read(pieces)) == fold(read([data]))
            assert passed_on(pieces)[0] == data


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_written_again_tells_the_same(name: str) -> None:
    events = read([STREAMS[name]])
    assert fold(read([written(events)])) == fold(events)
    assert written(events, at_once=False) == written(events)


@pytest.mark.parametrize("name", STREAMS)
def test_the_same_dialect_passes_as_it_came(name: str) -> None:
    data = STREAMS[name]
    request = decode_responses(b'{"model":"m","input":"x","stream":true}', max_tokens_cap=9, on_excess="reject", allow_provider_state=False)
    whole, cut = Passthrough(request), Passthrough(request)
    assert whole.feed(data) == data
    assert b"".join(cut.feed(data[n : n + 7]) for n in range(0, len(data), 7)) == data


# --- what providers do ---


def test_events_before_a_fault_come_out_first() -> None:
    for fault in (
        event("error", message="your quota"),
        event("response.failed", response={"error": {"message": "your quota"}}),
        b'data: {"error":{"message":"your quota"}}\n\n',
    ):
        reader = Reader()
        assert reader.feed(CREATED + text_delta("a") + fault) == [Started("resp_1", "m"), PartStarted(0, 0, Text("")), TextDelta(0, 0, "a")]
        with pytest.raises(UpstreamError) as caught:
            reader.feed(DONE)
        assert (caught.value.code, "quota" in caught.value.message) == ("upstream_stream_error", False)
        with pytest.raises(UpstreamError):
            reader.finish()
        stream = ResponsesStreamMeter()
        assert stream.feed(CREATED + text_delta("a") + fault + DONE) == CREATED + text_delta("a")
        with pytest.raises(UpstreamError):
            stream.feed(DONE)
        with pytest.raises(UpstreamError):
            stream.finish()


def test_texts_that_speak_of_errors_and_endings_are_texts() -> None:
    words = 'response.completed "error" response.failed {"type":"error","error":{}}'
    data = CREATED + text_delta(words) + DONE
    assert fold(read([data])).choices[0].parts == (Text(words),)
    assert passed_on([data])[0] == data


def test_blank_lines_between_events_change_nothing() -> None:
    data = CREATED + b"\n" + text_delta("a") + b"\n\n\n" + event("error2", error=None) + b"\n" + DONE.removesuffix(b"\n")
    for pieces in ([data, b"\n"], [data + b"\n\n"], [data[:200], data[200:] + b"\n"]):
        assert fold(read(pieces)).choices[0].parts == (Text("a"),)
        assert passed_on(pieces)[0] == data + b"\n"
    assert ResponsesStreamMeter().feed(b'data: {"error":null}\n\n\n') == b'data: {"error":null}\n\n\n'  # looked for its end without end once


def test_json_with_spaces_and_several_data_lines_is_understood() -> None:
    data = CREATED + b'data: {"type" : "response.output_text.delta",\ndata: "delta" : "a"}\n\n: comment\n\nid: 5\n\n' + DONE
    assert fold(read([data])).choices[0].parts == (Text("a"),)


def test_events_of_other_kinds_are_passed_over() -> None:
    data = CREATED + event("response.in_progress", response={}) + event("keepalive") + event("response.new.thing", x=1) + text_delta("a") + DONE
    assert fold(read([data])).choices[0].parts == (Text("a"),)


def test_what_is_told_only_at_an_items_end_is_told_then() -> None:
    items: list[dict[str, Any]] = [
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "t"}], "encrypted_content": "g"},
        {"type": "message", "content": [{"type": "output_text", "text": "a"}, {"type": "refusal", "refusal": "b"}]},
        {**CALL, "arguments": '{"x":1}'},
        {"type": "image_generation_call", "result": "AAAA", "output_format": "png"},
        {"type": "reasoning", "summary": []},
    ]
    parts = (Reasoning("t", "g", signer=RESPONSES, id="rs_1"), Text("a"), Refusal("b"), ToolCall("c", "f", '{"x":1}'), Image("image/png", "AAAA"))
    data = b"".join(done(index, item) for index, item in enumerate(items))
    assert fold(read([CREATED + data + DONE])).choices[0].parts == parts
    both = b"".join(added(index, item if item["type"] != "function_call" else CALL) + done(index, item) for index, item in enumerate(items))
    assert fold(read([CREATED + both + DONE])).choices[0].parts == parts


def test_a_call_without_arguments_has_an_empty_object() -> None:
    assert fold(read([CREATED + added(0, CALL) + done(0, CALL) + DONE])).choices[0].parts == (ToolCall("c", "f", "{}"),)


def test_raw_thoughts_of_open_models_are_read() -> None:
    thought = event("response.reasoning_text.delta", delta="t", output_index=0, content_index=0)
    start = added(0, {"type": "reasoning", "id": "rs_1", "summary": []})
    part = event("response.content_part.added", part={"type": "reasoning_text", "text": ""}, output_index=0, content_index=0)
    assert fold(read([CREATED + start + part + thought + thought + DONE])).choices[0].parts == (Reasoning("tt", id="rs_1"),)


@pytest.mark.parametrize(
    "data",
    [
        text_delta("a"),
        DONE,
        b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n',
        b'event: message_start\ndata: {"type":"message_start","message":{}}\n\n' + text_delta("a"),
        b"data: hello\n\n",
        b"data: []\n\n",
        CREATED + CREATED,
        CREATED + b'data: {"type":"response.output_text.delta","delta":"\xff"}\n\n',
        CREATED + b'data: {"type":"response.output_text.delta","delta":5}\n\n',
        CREATED + b'data: {"type":"response.output_text.delta","delta":"a"\n\n',
        CREATED + b"data: " + b"[" * 100_000 + b"\n\n",
        CREATED + text_delta("a", output_index=1) + text_delta("b"),
        CREATED + text_delta("a", content_index=1) + text_delta("b"),
        CREATED + text_delta("a", output_index=-1),
        CREATED + text_delta("a") + event("response.refusal.delta", delta="x", output_index=0, content_index=0),
        CREATED + event("response.function_call_arguments.delta", delta="{}", output_index=0),
        CREATED + added(0, CALL) + event("response.function_call_arguments.delta", delta="{}", output_index=1),
        CREATED + added(0, CALL) + event("response.function_call_arguments.delta", delta='{"a":', output_index=0) + DONE,
        CREATED + added(0, CALL) + event("response.function_call_arguments.delta", delta="[]", output_index=0) + DONE,
        CREATED + added(0, {"type": "brand_new"}),
        CREATED + done(0, {"type": "custom_tool_call", "call_id": "c", "name": "f", "input": "x"}),
        CREATED + event("response.content_part.added", part={"type": "brand_new"}, output_index=0, content_index=0),
        CREATED + event("response.output_text.annotation.added", annotation={"type": "url_citation", "url": "x"}, output_index=0, content_index=0),
        CREATED + done(0, {"type": "message", "content": [{"type": "output_text", "annotations": [{}] * 70_000}]}),
    ],
)
def test_what_is_no_responses_stream_is_the_providers_fault(data: bytes) -> None:
    for pieces in ([data], [data[n : n + 1] for n in range(min(len(data), 5000))] + [data[5000:]]):
        reader = Reader()
        with pytest.raises(UpstreamError):
            for piece in [*pieces, b": x\n\n"]:
                reader.feed(piece)


def test_an_event_larger_than_the_bound_is_refused() -> None:
    for feed in (Reader().feed, ResponsesStreamMeter().feed, Passthrough(None).feed):  # type: ignore[arg-type]
        with pytest.raises(UpstreamError):
            for _ in range(MAX_RESPONSES_EVENT_BYTES // 2**20 + 1):
                feed(b"data: " + b"a" * 2**20)


pieces_of_streams = st.sampled_from([*STREAMS.values(), CREATED, DONE, text_delta("a"), added(0, CALL), done(0, CALL), b"\n", b"data: {}\n\n"]) | st.binary(
    max_size=20
)


@given(st.lists(pieces_of_streams, max_size=8), st.integers(1, 400))
def test_garbage_is_an_upstream_error_and_nothing_else(parts: list[bytes], size: int) -> None:
    data = b"".join(parts)
    for run in (read, passed_on):
        try:
            run([data[n : n + size] for n in range(0, len(data), size)])
        except UpstreamError:
            continue


@given(st.sampled_from(sorted(STREAMS)), st.data())
def test_a_damaged_stream_tells_an_answer_or_raises(name: str, data: st.DataObject) -> None:
    blocks = STREAMS[name].split(b"\n\n")[:-1]
    order = data.draw(st.lists(st.integers(0, len(blocks) - 1), max_size=2 * len(blocks)))
    try:
        events = read([b"".join(blocks[n] + b"\n\n" for n in order)])
    except UpstreamError:
        return
    fold(events)


# --- for a client ---


@given(streams(answers(frozenset({"tools", "reasoning", "redacted", "refusal", "cache"}), signer=RESPONSES, stops=(END, StopReason.LENGTH), created=True)))
def test_what_the_dialect_can_say_comes_back(told: tuple[ConversationAnswer, list[StreamEvent]]) -> None:
    answer, events = told
    data = written(events, at_once=False)
    assert data == written(events)
    assert without_ids(fold(read([data]))) == answer
    out, stream = passed_on([data])
    assert (out, stream.usage) == (data, answer.usage)
    last = events_of(data)[-1]
    assert without_ids(decode_answer(json.dumps(last["response"]).encode())) == answer


def without_ids(answer: ConversationAnswer) -> ConversationAnswer:
    """`answer` without the ids that thoughts were given."""
    (choice,) = answer.choices
    parts = tuple(Reasoning(p.text, p.signature, p.redacted, p.signer) if isinstance(p, Reasoning) else p for p in choice.parts)
    return ConversationAnswer(answer.id, answer.model, (Choice(0, parts, choice.stop),), answer.usage, answer.created)


@given(streams(answers()))
def test_any_answer_can_be_streamed_and_its_events_are_counted(told: tuple[ConversationAnswer, list[StreamEvent]]) -> None:
    events = events_of(written(told[1]))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    begun = [event["item"]["id"] for event in events if event["type"] == "response.output_item.added"]
    ended = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert begun == [item["id"] for item in ended]
    assert events[-1]["response"]["output"] == ended


def test_signatures_of_other_vendors_travel_marked() -> None:
    events: list[StreamEvent] = [
        Started("a", "m"),
        PartStarted(0, 0, Reasoning()),
        TextDelta(0, 0, "t"),
        SignatureDelta(0, 0, "s", Dialect.ANTHROPIC_MESSAGES),
        PartEnded(0, 0),
        PartStarted(0, 1, ToolCall("c", "f", "")),
        ArgumentsDelta(0, 1, "{}"),
        SignatureDelta(0, 1, "g", Dialect.GEMINI_GENERATE),
        PartEnded(0, 1),
        Finished(0, StopReason.TOOL_CALLS),
        Ended(),
    ]
    items = events_of(written(events))[-1]["response"]["output"]
    assert [(item["type"], item.get("encrypted_content")) for item in items] == [
        ("reasoning", "cliproxy:anthropic_messages:signature:s"),
        ("function_call", None),
        ("reasoning", "cliproxy:gemini_generate:call:g"),
    ]


def test_the_providers_id_model_and_time_come_first() -> None:
    ours = events_of(written([Started("", "")]))[0]["response"]
    assert (ours["id"], ours["model"], ours["created_at"]) == ("resp_own", "own-model", 7)
    theirs = events_of(written([Started("x", "y", created=9)]))[0]["response"]
    assert (theirs["id"], theirs["model"], theirs["created_at"]) == ("x", "y", 9)


def test_several_choices_are_the_providers_fault() -> None:
    with pytest.raises(UpstreamError):
        written([Started("a", "m"), PartStarted(1, 0, Text(""))])


def test_what_a_stream_keeps_is_bounded() -> None:
    writer = Writer(request=None, id="a", model="m", created=1)
    writer.write([Started("a", "m"), PartStarted(0, 0, Text(""))])
    piece = [TextDelta(0, 0, "ä" * 2**15)] * 8
    with pytest.raises(UpstreamError) as caught:
        for _ in range(MAX_WRITTEN_RESPONSE_BYTES // 2**19 + 1):
            writer.write(piece)
    assert caught.value.code == "upstream_too_large"


# --- OpenAI's SDK ---


def client(data: bytes) -> openai.OpenAI:
    transport = httpx2.MockTransport(lambda request: httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=data))
    return openai.OpenAI(api_key="k", base_url="http://gateway.test/v1", http_client=httpx2.Client(transport=transport), max_retries=0)


@pytest.mark.parametrize("name", STREAMS)
def test_the_sdk_accumulates_what_the_writer_wrote(name: str) -> None:
    parts, stop, _ = TOLD[name]
    data = KEEP_ALIVE + written(read([STREAMS[name]]))
    with client(data).responses.stream(model="m", input="x") as stream:
        events = list(stream)
    texts = [event.snapshot for event in events if event.type == "response.output_text.delta"]
    said = "".join(part.text for part in parts if isinstance(part, Text))
    assert (texts[-1] if texts else "") == said
    last = events[-1]
    assert last.type == ("response.completed" if stop is not StopReason.LENGTH else "response.incomplete")
    if last.type == "response.completed":
        assert stream.get_final_response().output_text == said
    assert [item.arguments for item in last.response.output if item.type == "function_call"] == [p.arguments for p in parts if isinstance(p, ToolCall)]


@given(streams(answers(created=True)))
def test_the_sdk_accumulates_any_answer(told: tuple[ConversationAnswer, list[StreamEvent]]) -> None:
    answer, events = told
    with client(written(events)).responses.stream(model="m", input="x") as stream:
        seen = list(stream)
    response: Any = seen[-1].response  # type: ignore[union-attr]
    assert response.output_text == "".join(part.text for part in answer.choices[0].parts if isinstance(part, Text))
    assert response.usage.total_tokens == answer.usage.total if answer.usage is not None else response.usage is None


def test_the_sdk_raises_at_an_error_event() -> None:
    data = written([Started("a", "m"), PartStarted(0, 0, Text("")), TextDelta(0, 0, "half")])
    broken = data + error_event("It broke.", kind="upstream_error", code="upstream_broke_off", status=502)
    with pytest.raises(openai.APIError) as caught:
        list(client(broken).responses.create(model="m", input="x", stream=True))
    assert (caught.value.message, caught.value.code) == ("It broke.", "upstream_broke_off")
    with pytest.raises(openai.APIError), client(broken).responses.stream(model="m", input="x") as stream:
        stream.until_done()


def test_usage_known_at_the_start_is_told_if_none_comes_later() -> None:
    events: list[StreamEvent] = [Started("a", "m", Usage(5, 0)), Finished(0, END), Ended()]
    assert events_of(written(events))[-1]["response"]["usage"]["input_tokens"] == 5
    events.insert(1, Counted(Usage(5, 2)))
    assert events_of(written(events))[-1]["response"]["usage"]["output_tokens"] == 2
