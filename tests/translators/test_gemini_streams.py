"""Gemini's streams: read for the hub, written for clients in both forms, passed on, and what egress sees of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliproxy.bounds import MAX_EVENT_BYTES
from cliproxy.dialects import Dialect, Quirks
from cliproxy.errors import UpstreamError
from cliproxy.formats.sse import EventSplitter
from cliproxy.metering.gemini_generate import GenerateStreamMeter
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
    SignatureDelta,
    Started,
    StopReason,
    StreamEvent,
    Text,
    TextDelta,
    ToolCall,
)
from cliproxy.translators.gemini_generate.decode import decode_gemini
from cliproxy.translators.gemini_generate.encode import encode_same
from cliproxy.translators.gemini_generate.read_stream import Reader
from cliproxy.translators.gemini_generate.signatures import tag_of
from cliproxy.translators.gemini_generate.to_hub import conversation_of
from cliproxy.translators.gemini_generate.write_stream import KEEP_ALIVE, MAX_HELD_CHARS, Passthrough, Writer, error_event
from translators.hub_strategies import Feature, answers, fold, streams

VECTORS = Path(__file__).parents[1] / "vectors" / "gemini_generate"
STREAMS = {path.stem: path.read_bytes() for path in sorted(VECTORS.glob("*.sse"))}
CUT_UNSEEN = {"stream_old_models"}  # every event of theirs says that it is the last
G = Dialect.GEMINI_GENERATE
U = Usage(8, 5)


def read(*pieces: bytes) -> list[StreamEvent]:
    reader = Reader()
    events = [event for piece in pieces for event in reader.feed(piece)]
    return events + reader.finish()


def choices(data: bytes) -> tuple[Choice, ...]:
    return fold(read(data)).choices


def event(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def chunk(*parts: Any, **fields: Any) -> bytes:
    return event({"candidates": [{"content": {"parts": list(parts), "role": "model"}, **fields}]})


END = chunk({"text": "."}, finishReason="STOP")


# --- from a provider -------------------------------------------------------------------------------------------------


def test_the_vectors_in_the_hubs_words() -> None:
    call = ToolCall("call_taLmkHPPlz7IPvtfUqQ4_0_0", "get_weather", '{"place": "Oslo"}', "c2lnbmVk")
    unsigned = ToolCall(call.id, call.name, call.arguments)
    assert {name: choices(data) for name, data in STREAMS.items()} == {
        "stream_text": (Choice(0, (Text("The moon pulls the sea – ähnlich 🌊."),), StopReason.END),),
        "stream_old_models": (Choice(0, (Text("One two"),), StopReason.END),),
        "stream_tools": (Choice(0, (call,), StopReason.TOOL_CALLS),),
        "stream_parallel_tool_calls": (Choice(0, (Text("I look."), unsigned, ToolCall("own-id", "set_light", "{}")), StopReason.TOOL_CALLS),),
        "stream_reasoning": (Choice(0, (Reasoning("2, 3, 5.", signer=G), Text("There are 15.")), StopReason.END),),
        "stream_reasoning_signature": (Choice(0, (Reasoning("Hm.", signer=G), Text("Fifteen."), Reasoning(signature="c2lnbmVk", signer=G)), StopReason.END),),
        "stream_max_tokens": (Choice(0, (Text("The moon"),), StopReason.LENGTH),),
        "stream_blocked": (Choice(0, (), StopReason.FILTER),),
        "stream_citations": (Choice(0, (Text("To be, or not to be.", (Citation("https://example.com/hamlet", start=0, end=20),)),), StopReason.END),),
        "stream_choices": (Choice(0, (Text("Nina"),), StopReason.END), Choice(1, (Text("Mia"),), StopReason.END)),
        "stream_image": (Choice(0, (Text("Here:"), Image(media_type="image/png", data="iVBORw0KGgo=")), StopReason.END),),
    }


def test_usage_id_and_model_of_a_stream() -> None:
    whole = fold(read(STREAMS["stream_reasoning"]))
    assert (whole.id, whole.model) == ("mAitaLmkHPPlz7IPvtfUqQ4", "gemini-3-flash-preview")
    assert whole.usage == Usage(prompt=10, completion=45, reasoning=40)


@pytest.mark.parametrize("name", STREAMS)
def test_how_the_bytes_are_cut_makes_no_difference(name: str) -> None:
    data = STREAMS[name]
    whole = fold(read(data))
    assert fold(read(*(data[at : at + 1] for at in range(len(data))))) == whole
    for cut in range(0, len(data), 7):
        assert fold(read(data[:cut], data[cut:])) == whole
    assert fold(read(b"\xef\xbb\xbf" + data.replace(b"\r\n", b"\n"))) == whole
    assert fold(read(b": a comment\n\n" + KEEP_ALIVE + data)) == whole


@pytest.mark.parametrize("name", sorted(STREAMS.keys() - CUT_UNSEEN))
def test_a_stream_that_is_cut_anywhere_is_an_error(name: str) -> None:
    data = STREAMS[name]
    last = data.rstrip(b"\r\n")
    for cut in range(len(last)):
        with pytest.raises(UpstreamError):
            read(data[:cut])
        counter = GenerateStreamMeter()
        with pytest.raises(UpstreamError):
            counter.feed(data[:cut])
            counter.finish()


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("garbage", [b"\x00", b"data: {", b"data: []\n\n", b"nonsense\n\n", b'{"error":{"code":500}}\n\n', event({"error": {"code": 503}})])
def test_what_follows_the_end_is_an_error_or_was_no_end(name: str, garbage: bytes) -> None:
    with pytest.raises(UpstreamError):
        read(STREAMS[name] + garbage)


@pytest.mark.parametrize(
    "data",
    [
        b"data: {}\n\n",
        b"data: [DONE]\n\n",
        b'data: {"choices":[{"delta":{"content":"hi"},"index":0}]}\n\n',
        b'event: message_start\ndata: {"type":"message_start","message":{"id":"a"}}\n\n',
        b'data: {"candidates":[{"content":{"parts":"x"}}]}\n\n',
        event({"error": {"code": 429, "message": "slow down"}}),
        b'{\n"error": {\n"code": 503}\n}\n\n',
        chunk({"functionCall": {"name": "f", "args": [1]}}),
        chunk({"executableCode": {"code": "1"}}),
        chunk({"text": "x"}, index=-1),
        chunk({"text": "x"}, finishReason="MALFORMED_FUNCTION_CALL"),
        b'data: {"candidates":[{"content":{"parts":[{"text":"\xff"}]}}]}\n\n',
        b"data: " + b"[" * 100_000 + b"\n\n",
        b"data: " + b"x" * (MAX_EVENT_BYTES + 1),
        b'data: {"candidates":[' + b"{}," * 70_000 + b"{}]}\n\n",
    ],
)
def test_what_is_no_stream_of_geminis_is_an_error(data: bytes) -> None:
    reader = Reader()
    with pytest.raises(UpstreamError):
        reader.feed(data)  # where something can be told before, the next call raises
        reader.feed(END)
    for _ in range(2):
        with pytest.raises(UpstreamError):
            reader.feed(END)
    with pytest.raises(UpstreamError):
        reader.finish()


def test_events_before_a_fault_come_out_first() -> None:
    reader = Reader()
    assert reader.feed(chunk({"text": "Hi"}) + event({"error": {"code": 500}})) == [
        Started("", ""),
        PartStarted(0, 0, Text("")),
        TextDelta(0, 0, "Hi"),
    ]
    with pytest.raises(UpstreamError):
        reader.feed(END)


def test_a_candidate_that_never_ends_makes_the_stream_an_error() -> None:
    both = chunk({"text": "a"}, index=0, finishReason="STOP") + chunk({"text": "b"}, index=1)
    for late in (b"", chunk({"text": "c"}, index=0, finishReason="STOP")):
        with pytest.raises(UpstreamError):
            read(both + late)
        counter = GenerateStreamMeter()
        counter.feed(both + late)
        with pytest.raises(UpstreamError):
            counter.finish()


@given(st.binary(max_size=200), st.binary(max_size=50))
def test_garbage_is_an_upstream_error(data: bytes, more: bytes) -> None:
    for feed in (Reader, GenerateStreamMeter):
        reader = feed()
        with pytest.raises(UpstreamError):
            reader.feed(data)
            reader.feed(more)
            reader.finish()


# --- to a client -----------------------------------------------------------------------------------------------------


def write(events: Sequence[StreamEvent], *, sse: bool = True, thoughts: bool | None = None) -> bytes:
    """One event at a time; the same comes out at once."""
    request = None
    if thoughts is not None:
        body = {"contents": [{"parts": [{"text": "x"}]}], "generationConfig": {"thinkingConfig": {"includeThoughts": thoughts}}}
        request = decode_gemini(json.dumps(body).encode(), model="m", stream=True, max_tokens_cap=10, on_excess="reject")
    slowly, at_once = (Writer(request=request, id="ours", model="public", created=0, sse=sse) for _ in range(2))
    made = b"".join(slowly.write([event]) for event in events)
    assert at_once.write(events) == made
    return made


def elements(data: bytes) -> list[Any]:
    return [json.loads(line.removeprefix(b"data: ")) for line in data.split(b"\n\n") if line]


PLAIN: list[StreamEvent] = [
    Started("", ""),
    PartStarted(0, 0, Text("")),
    TextDelta(0, 0, "Hi "),
    TextDelta(0, 0, 'the"re\n'),
    PartEnded(0, 0),
    Finished(0, StopReason.END),
    Counted(U),
    Ended(),
]


def test_a_stream_of_another_vendor_for_a_client_of_gemini() -> None:
    said = {"modelVersion": "public", "responseId": "ours"}

    def piece(text: str) -> dict[str, Any]:
        return {"candidates": [{"content": {"parts": [{"text": text}], "role": "model"}, "index": 0}], **said}

    last = {
        "candidates": [{"content": {"parts": [], "role": "model"}, "finishReason": "STOP", "index": 0}],
        "usageMetadata": {"promptTokenCount": 8, "candidatesTokenCount": 5, "totalTokenCount": 13},
        **said,
    }
    assert elements(write(PLAIN)) == [piece("Hi "), piece('the"re\n'), last]
    assert json.loads(write(PLAIN, sse=False)) == [piece("Hi "), piece('the"re\n'), last]
    assert json.loads(b"\n" + write(PLAIN[:3], sse=False) + KEEP_ALIVE + b"]") == [piece("Hi ")]


def test_a_call_is_written_whole_when_it_is_whole() -> None:
    events: list[StreamEvent] = [
        Started("a", "m"),
        PartStarted(0, 0, ToolCall("c", "f", "")),
        ArgumentsDelta(0, 0, '{"x'),
        ArgumentsDelta(0, 0, '": 1}'),
        SignatureDelta(0, 0, "c2ln", G),
    ]
    assert write(events) == b""
    (made,) = elements(write([*events, PartEnded(0, 0)]))
    call = {"functionCall": {"id": "c", "name": "f", "args": {"x": 1}}, "thoughtSignature": "c2ln"}
    assert made["candidates"] == [{"content": {"parts": [call], "role": "model"}, "index": 0}]


def test_a_call_that_never_becomes_json_is_the_providers_fault() -> None:
    writer = Writer(request=None, id="", model="", created=0)
    writer.write([Started("a", "m"), PartStarted(0, 0, ToolCall("c", "f", "")), ArgumentsDelta(0, 0, '{"x')])
    with pytest.raises(UpstreamError):
        writer.write([PartEnded(0, 0)])


def test_a_call_that_never_ends_is_not_held_for_ever() -> None:
    writer = Writer(request=None, id="", model="", created=0)
    writer.write([Started("a", "m"), PartStarted(0, 0, ToolCall("c", "f", ""))])
    writer.write([ArgumentsDelta(0, 0, "x" * MAX_HELD_CHARS)])
    with pytest.raises(UpstreamError):
        writer.write([ArgumentsDelta(0, 0, "x")])


def test_thoughts_are_shown_only_to_who_asked_but_googles_signatures_stay() -> None:
    events: list[StreamEvent] = [Started("a", "m")]
    for index, signer in enumerate((G, Dialect.ANTHROPIC_MESSAGES)):
        events += [PartStarted(0, index, Reasoning(signer=signer)), TextDelta(0, index, "Hm."), SignatureDelta(0, index, "c2ln", signer), PartEnded(0, index)]
    foreign = Reasoning("Hm.", "c2ln", signer=Dialect.ANTHROPIC_MESSAGES)
    thought, proof, mark = {"thought": True, "text": "Hm."}, {"text": "", "thoughtSignature": "c2ln"}, {"text": "", "thoughtSignature": tag_of(foreign)}
    shown = [piece["candidates"][0]["content"]["parts"][0] for piece in elements(write(events, thoughts=True))]
    assert shown == [thought, proof, thought, mark]
    hidden = [piece["candidates"][0]["content"]["parts"][0] for piece in elements(write(events, thoughts=False))]
    assert hidden == [proof, mark]
    # A client gives back all parts as it got them, or not the thoughts.
    for turn in (shown, hidden):
        body = {"contents": [{"role": "model", "parts": turn}]}
        request = decode_gemini(json.dumps(body).encode(), model="m", stream=True, max_tokens_cap=10, on_excess="reject")
        assert foreign in conversation_of(request).messages[0].parts
        assert Reasoning(signature="c2ln", signer=G) in conversation_of(request).messages[0].parts
        assert b"Y2xpcHJveHk6" not in encode_same(request, Quirks.NONE).prefix
    redacted = Reasoning(redacted="cipher", signer=Dialect.ANTHROPIC_MESSAGES)
    (piece,) = elements(write([Started("a", "m"), PartStarted(0, 0, redacted), PartEnded(0, 0)]))
    assert piece["candidates"][0]["content"]["parts"] == [{"text": "", "thoughtSignature": tag_of(redacted)}]


def test_a_signed_thought_that_never_ends_is_not_held_for_ever() -> None:
    writer = Writer(request=None, id="", model="", created=0)
    writer.write([Started("a", "m"), PartStarted(0, 0, Reasoning(signer=Dialect.ANTHROPIC_MESSAGES)), TextDelta(0, 0, "x" * MAX_HELD_CHARS)])
    with pytest.raises(UpstreamError):
        writer.write([TextDelta(0, 0, "x")])


SAID: frozenset[Feature] = frozenset({"tools", "reasoning"})


def meant(answer: ConversationAnswer) -> Any:
    """What meaning is compared by: a signature stands on its own part in Gemini's streams."""
    made = []
    for choice in answer.choices:
        parts: list[Any] = []
        for part in choice.parts:
            if isinstance(part, Reasoning):
                parts += [(part.text, "")] * bool(part.text) + [("", part.signature)] * bool(part.signature)
            else:
                parts.append((part.id, part.name, json.loads(part.arguments), part.signature) if isinstance(part, ToolCall) else part)
        made.append((choice.index, parts, choice.stop))
    return made, answer.usage, answer.id, answer.model


@given(streams(answers(SAID, signer=G, choices=3)), st.booleans())
def test_what_is_written_reads_as_the_same(told: tuple[ConversationAnswer, list[StreamEvent]], sse: bool) -> None:
    answer, events = told
    written = write(events, sse=sse)
    if not sse:
        written = b"".join(event(element) for element in json.loads(written))
    again = fold(read(written))
    assert meant(again) == meant(answer)
    counter = GenerateStreamMeter()
    assert counter.feed(written) + counter.finish() == written
    assert counter.usage == answer.usage


# --- passed on -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_passes_through_egress_and_worker_unchanged(name: str) -> None:
    data = STREAMS[name]
    whole = data.replace(b"\r\n", b"\n")
    for pieces in ([data], [data[at : at + 1] for at in range(len(data))]):
        counter, passthrough, array = GenerateStreamMeter(), Passthrough(), Passthrough(sse=False)
        passed = listed = b""
        for piece in pieces:
            events = counter.feed(piece)
            passed += passthrough.feed(events)
            listed += array.feed(events)
        assert counter.finish() == b""
        assert passed + passthrough.finish() == whole
        assert json.loads(listed + array.finish()) == elements(whole)
    splitter = EventSplitter()
    assert splitter.feed(data) == whole


def test_what_egress_counts_is_what_the_last_event_says() -> None:
    counter = GenerateStreamMeter()
    assert counter.usage is None
    counter.feed(STREAMS["stream_reasoning"])
    assert counter.usage == Usage(prompt=10, completion=45, reasoning=40)
    for broken in ({"promptTokenCount": -1}, {"promptTokenCount": 2**60}, "x"):
        counter.feed(event({"usageMetadata": broken}))
    assert counter.usage == Usage(prompt=10, completion=45, reasoning=40)


@pytest.mark.parametrize("error", [event({"error": {"code": 503, "message": "the provider's own words"}}), b'{\n  "error": {\n    "code": 503,\n\n  }\n}\n\n'])
def test_an_error_inside_a_stream_is_not_passed_on(error: bytes) -> None:
    counter = GenerateStreamMeter()
    first = chunk({"text": "Hi"})
    assert counter.feed(first + error + END) == first
    for _ in range(2):
        with pytest.raises(UpstreamError):
            counter.feed(END)
    with pytest.raises(UpstreamError):
        counter.finish()


def test_a_text_about_errors_and_reasons_is_a_text() -> None:
    counter = GenerateStreamMeter()
    text = chunk({"text": 'the "error" was "finishReason": "STOP", "index": 7'}, index=0) + chunk(
        {"functionCall": {"name": "f", "args": {"index": 7, "error": 1}}}
    )
    assert counter.feed(text) == text
    with pytest.raises(UpstreamError):
        counter.finish()
    counter = GenerateStreamMeter()
    assert counter.feed(text + END) + counter.finish() == text + END


def test_an_element_that_is_no_json_breaks_no_array() -> None:
    with pytest.raises(UpstreamError):
        Passthrough(sse=False).feed(b"data: 1],[2\n\n")


# --- errors ----------------------------------------------------------------------------------------------------------


def test_a_broken_stream_ends_with_googles_error_in_its_form() -> None:
    error = {"error": {"code": 504, "message": "Too slow.", "status": "DEADLINE_EXCEEDED"}}
    given: dict[str, Any] = {"kind": "upstream_error", "code": "timeout", "status": 504}
    assert error_event("Too slow.", **given) == event(error).replace(b'": ', b'":').replace(b", ", b",")
    first = chunk({"text": "Hi"})
    for sse in (True, False):
        for written in (0, 3):
            writer, passthrough = Writer(request=None, id="", model="", created=0, sse=sse), Passthrough(sse=sse)
            for body in (
                writer.write(PLAIN[:written]) + writer.error_event("Too slow.", **given),
                passthrough.feed(first if written else b"") + passthrough.error_event("Too slow.", **given),
            ):
                told = elements(body) if sse else json.loads(body)
                assert told[-1] == error
                assert len(told) == (2 if written else 1)
    assert json.loads(Passthrough(sse=False).finish()) == []
