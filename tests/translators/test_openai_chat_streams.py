"""Providers' streams of chat completions that are odd, broken or hostile."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cliproxy.bounds import MAX_ANSWER_PARTS
from cliproxy.errors import UpstreamError
from cliproxy.translators.conversation import (
    ArgumentsDelta,
    Citation,
    Counted,
    Ended,
    Finished,
    PartEnded,
    PartStarted,
    Reasoning,
    Started,
    StopReason,
    StreamEvent,
    Text,
    TextDelta,
    ToolCall,
)
from cliproxy.translators.openai_chat.answer import decode_answer
from cliproxy.translators.openai_chat.read_stream import Reader
from cliproxy.translators.openai_chat.stream_parts import MAX_KEPT_CHARS, ObjectScan
from translators.hub_strategies import fold

DONE = b"data: [DONE]\n\n"


def chunk(delta: Any, reason: str | None = None, index: int = 0, **more: Any) -> bytes:
    choice = {"index": index, "delta": delta, "finish_reason": reason}
    return b"data: " + json.dumps({"id": "c", "choices": [choice], **more}, separators=(",", ":")).encode() + b"\n\n"


def calls(*entries: dict[str, Any]) -> dict[str, Any]:
    return {"tool_calls": list(entries)}


def call(index: int | None, arguments: Any = None, name: str | None = None, id: str | None = None) -> dict[str, Any]:
    entry: dict[str, Any] = {"function": {}}
    if index is not None:
        entry["index"] = index
    if id is not None:
        entry["id"] = id
    if name is not None:
        entry["function"]["name"] = name
    if arguments is not None:
        entry["function"]["arguments"] = arguments
    return entry


STOP = chunk({}, "stop")


def events_of(*pieces: bytes) -> list[StreamEvent]:
    reader = Reader()
    events = [event for piece in pieces for event in reader.feed(piece)]
    return [*events, *reader.finish()]


def parts_of(*deltas: dict[str, Any]) -> tuple[Any, ...]:
    return fold(events_of(*(chunk(delta) for delta in deltas), STOP, DONE)).choices[0].parts


# --- tool calls --------------------------------------------------------------------------------------------------------

A, B = ToolCall("a", "one", '{"x":"}"}'), ToolCall("b", "two", "{}")
START_A, START_B = call(0, "", "one", "a"), call(1, "", "two", "b")


@pytest.mark.parametrize(
    ("name", "deltas", "parts"),
    [
        ("in one delta", [calls(call(0, A.arguments, "one", "a"), call(1, "{}", "two", "b"))], (A, B)),
        ("cut inside a string", [calls(START_A), calls(call(0, '{"x":"}')), calls(START_B), calls(call(0, '"}')), calls(call(1, "{}"))], (A, B)),
        ("the later one whole before the earlier", [calls(START_A, call(1, "{}", "two", "b")), calls(call(0, A.arguments))], (A, B)),
        ("without arguments", [calls(call(1, None, "two", "b"))], (B,)),
        ("null arguments", [{"tool_calls": [{"index": 1, "id": "b", "function": {"name": "two", "arguments": None}}]}], (B,)),
        ("the first without arguments", [calls(call(0, "", "two", "b")), calls(call(1, A.arguments, "one", "a"))], (B, A)),
        ("white space behind its end", [calls(call(0, A.arguments, "one", "a")), calls(call(1, "{}", "two", "b")), calls(call(0, "\n "))], (A, B)),
        ("the id with each piece", [calls(call(0, "", "one", "a")), calls(call(0, A.arguments, None, "a"))], (A,)),
        ("id and name with each piece", [calls(call(0, "", "one", "a")), calls(call(0, A.arguments, "one", "a"))], (A,)),
        ("empty id and name later", [calls(call(0, "", "one", "a")), calls(call(0, A.arguments, "", ""))], (A,)),
        ("no index, one at a time", [calls(call(None, A.arguments, "one", "a")), calls(call(None, "{}", "two", "b"))], (A, B)),
        ("no index, pieces without an id", [calls(call(None, "", "one", "a")), calls(call(None, A.arguments))], (A,)),
        ("no index, pieces with the id", [calls(call(None, "", "one", "a")), calls(call(None, A.arguments, None, "a"))], (A,)),
        ("the name later", [calls(call(0, '{"x":', None, "a")), calls(call(0, '"}"}', "one"))], (A,)),
        ("the name after another call", [calls(call(0, "{", None, "b")), calls(call(1, A.arguments, "one", "a")), calls(call(0, "}", "two"))], (B, A)),
        ("indices from 1, and backwards", [calls(call(5, A.arguments, "one", "a")), calls(call(1, "{}", "two", "b"))], (A, B)),
        ("an object", [calls(call(0, {"x": "}"}, "one", "a"))], (A,)),
        ("text before it is whole", [calls(call(0, '{"x":', "one", "a")), {"content": "Te"}, {"content": "xt"}, calls(call(0, '"}"}'))], (A, Text("Text"))),
        (
            "thoughts and text before it is whole",
            [calls(call(0, "{", "two", "b")), {"reasoning": "hm"}, {"content": "T"}, {"reasoning": "ah"}, calls(call(0, "}"))],
            (B, Reasoning("hm"), Text("T"), Reasoning("ah")),
        ),
    ],
)
def test_tool_calls_are_told_one_after_the_other_with_nothing_lost(name: str, deltas: list[dict[str, Any]], parts: tuple[Any, ...]) -> None:
    assert parts_of(*deltas) == parts


def test_an_id_that_is_missing_is_made_up_from_the_answers() -> None:
    (first, second) = parts_of(calls(call(0, "{}", "one")), calls(call(1, "{}", "two")))
    assert (first.id, second.id) == ("call_c_0", "call_c_1")


def test_what_can_be_told_is_told_at_once() -> None:
    reader = Reader()
    reader.feed(chunk(calls(START_A)))
    assert reader.feed(chunk(calls(call(0, '{"x":')))) == [ArgumentsDelta(0, 0, '{"x":')]
    assert reader.feed(chunk(calls(START_B, call(1, "{}")))) == []
    assert reader.feed(chunk({"content": "later"})) == []
    assert reader.feed(chunk(calls(call(0, '"}"}')))) == [
        ArgumentsDelta(0, 0, '"}"}'),
        PartEnded(0, 0),
        PartStarted(0, 1, ToolCall("b", "two", "")),
        ArgumentsDelta(0, 1, "{}"),
        PartEnded(0, 1),
        PartStarted(0, 2, Text("")),
        TextDelta(0, 2, "later"),
    ]


@pytest.mark.parametrize(
    ("deltas", "code"),
    [
        ([calls(call(0, "{", "one", "a"))], "bad_tool_arguments"),
        ([calls(call(0, "[]", "one", "a"))], "bad_tool_arguments"),
        ([calls(call(0, '"text"', "one", "a"))], "bad_tool_arguments"),
        ([calls(call(0, "{]}", "one", "a"))], "bad_tool_arguments"),
        ([calls(call(0, "{}{}", "one", "a"))], "bad_tool_arguments"),
        ([calls(call(0, '{"a":"\ud800"}', "one", "a"))], "bad_upstream_answer"),
        ([calls(call(0, "{}", "one", "a")), calls(START_B), calls(call(0, "{}"))], "bad_tool_arguments"),
        ([calls(call(0, "{}", None, "a"))], "bad_tool_call"),
        ([calls(call(0, [], "one", "a"))], "bad_tool_arguments"),
        ([calls(call(0, 5, "one", "a"))], "bad_tool_arguments"),
    ],
)
def test_a_call_that_never_becomes_one_is_the_providers_fault(deltas: list[dict[str, Any]], code: str) -> None:
    with pytest.raises(UpstreamError) as caught:
        events_of(*map(chunk, deltas), chunk({}, "tool_calls"), DONE)
    assert caught.value.code == code


# --- text, thoughts, sources -------------------------------------------------------------------------------------------


def test_empty_pieces_begin_nothing() -> None:
    empty: dict[str, Any] = {"content": "", "reasoning_content": "", "reasoning": None, "refusal": ""}
    empty |= {"tool_calls": [], "reasoning_details": [], "annotations": []}
    assert parts_of(empty, {**empty, "content": "a"}, empty, {}) == (Text("a"),)


@pytest.mark.parametrize(
    ("deltas", "parts"),
    [
        ([{"reasoning_content": "a", "reasoning": "a"}, {"content": "b"}], (Reasoning("a"), Text("b"))),
        ([{"reasoning": "a", "content": "b"}], (Reasoning("a"), Text("b"))),
        ([{"content": "a"}, {"reasoning": "b"}, {"content": "c"}], (Text("a"), Reasoning("b"), Text("c"))),
        (
            [{"reasoning_details": [{"type": "reasoning.text", "text": "a", "index": 0}, {"type": "reasoning.text", "text": "b", "index": 1}]}],
            (Reasoning("a"), Reasoning("b")),
        ),
        ([{"reasoning_details": [{"type": "reasoning.text", "text": "a", "signature": "s", "format": "unheard-of"}]}], (Reasoning("a"),)),
        ([{"reasoning_details": [{"type": "reasoning.encrypted", "data": "d", "format": None}]}, {"content": "a"}], (Text("a"),)),
        ([{"reasoning_details": [{"type": "reasoning.later", "text": "a"}]}, {"content": "a"}], (Text("a"),)),
    ],
)
def test_thoughts_are_told_once(deltas: list[dict[str, Any]], parts: tuple[Any, ...]) -> None:
    assert parts_of(*deltas) == parts


def note(start: int | None, end: int | None) -> dict[str, Any]:
    return {"annotations": [{"type": "url_citation", "url_citation": {"url": "u", "title": None, "start_index": start, "end_index": end}}]}


@pytest.mark.parametrize(
    ("deltas", "parts"),
    [
        ([{"content": "abc"}, note(1, 2)], (Text("abc", (Citation(url="u", start=1, end=2),)),)),
        ([{"content": "abc"}, note(None, None)], (Text("abc", (Citation(url="u"),)),)),
        (
            [{"content": "abc"}, {"reasoning": "x"}, {"content": "def"}, note(3, 6)],
            (Text("abc"), Reasoning("x"), Text("def", (Citation(url="u", start=0, end=3),))),
        ),
        ([{"content": "abc"}, {"reasoning": "x"}, {"content": "def"}, note(1, 2)], (Text("abc"), Reasoning("x"), Text("def", (Citation(url="u"),)))),
        ([{"content": "abc"}, {"reasoning": "x"}, note(1, 2)], (Text("abc"), Reasoning("x"), Text("", (Citation(url="u"),)))),
        ([calls(call(0, "{", "two", "b")), {"content": "abc"}, note(1, 2), calls(call(0, "}"))], (B, Text("abc", (Citation(url="u", start=1, end=2),)))),
    ],
)
def test_sources_count_within_their_own_text(deltas: list[dict[str, Any]], parts: tuple[Any, ...]) -> None:
    assert parts_of(*deltas) == parts


# --- what repeats ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "others",
    [
        [{"content": ""}],
        [{"content": "x", "reasoning": "y"}],
        [{"reasoning": "y"}],
        [{"content": '","content":"'}],
        [{"content": "\\"}, {"content": '"'}, {"content": '\\"'}],
        [{"content": "\u2028 💙\x00\n"}],
        [{"reasoning": '"content":"x"'}],
        [{"content": ',"obfuscation":"abc"'}],
        [{"refusal": '{"content":"x"}'}],
    ],
)
@pytest.mark.parametrize("padding", [None, "p4d"])
def test_an_event_that_looks_like_the_ones_before_is_still_read_for_what_it_says(others: list[dict[str, Any]], padding: str | None) -> None:
    """The second plain text is recognised by what stands around it; whatever is no plain text must not be."""
    more: dict[str, Any] = {} if padding is None else {"obfuscation": padding}
    deltas = [{"content": "a"}, {"content": "b"}, *others, {"content": "c"}, *others, {"content": "d"}]
    quick = [chunk(delta, **more) for delta in deltas]
    slow = [chunk(delta).replace(b'"id":"c"', b'"id":"c","n":%d' % n) for n, delta in enumerate(deltas)]  # no two alike
    assert fold(events_of(*quick, STOP, DONE)) == fold(events_of(*slow, STOP, DONE))


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"a","content":"b"},"finish_reason":null}]}\n\n',
        b'data: {"id":"c","x":{"content":"no"},"choices":[{"index":0,"delta":{"content":"b"},"finish_reason":null}]}\n\n',
        b'data: {"id":"c","choices":[{"index":0,"message":{"content":"no"},"delta":{"content":"b"},"finish_reason":null}]}\n\n',
        b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"no"},"delta":{"content":"b"},"finish_reason":null}]}\n\n',
        b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"b"},"finish_reason":null}],"y":"\\"content\\":\\"no\\""}\n\n',
    ],
)
def test_another_field_of_that_name_is_not_the_text(event: bytes) -> None:
    assert fold(events_of(event, event, event, STOP, DONE)).choices[0].parts == (Text("bbb"),)


@pytest.mark.parametrize("inside", [b'"a\nb"', b'"a" ', b'"a"x', b"null", b'"a","x":"b"', b'"\xff"', b'"\\ud800"', b'"', b""])
def test_between_what_repeats_only_one_string_is_a_text(inside: bytes) -> None:
    event = chunk({"content": "TEXT"})
    reader = Reader()
    reader.feed(event + event)
    other = event.replace(b'"TEXT"', inside)
    try:
        quick: Any = reader.feed(other)
    except UpstreamError as error:
        quick = error.code
    fresh = Reader()
    try:
        slow: Any = [event for event in fresh.feed(other) if isinstance(event, TextDelta)]
    except UpstreamError as error:
        slow = error.code
    assert quick == slow


@settings(max_examples=150)
@given(st.lists(st.tuples(st.integers(0, 1), st.text(st.characters(exclude_categories=["Cs"]), max_size=8)), max_size=12))
def test_texts_of_two_choices_come_out_as_they_went_in(pieces: list[tuple[int, str]]) -> None:
    data = b"".join(chunk({"content": text}, index=index) for index, text in [(0, "."), (1, "."), *pieces])
    answer = fold(events_of(data, chunk({}, "stop", 0), chunk({}, "stop", 1), DONE))
    for index in (0, 1):
        assert answer.choices[index].parts == (Text("." + "".join(text for at, text in pieces if at == index)),)


# --- ends --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "stop"),
    [
        ("stop", StopReason.END),
        ("STOP", StopReason.END),
        ("eos", StopReason.END),
        ("max_tokens", StopReason.LENGTH),
        ("model_length", StopReason.LENGTH),
        ("tool_calls", StopReason.END),
        ("content_filter", StopReason.FILTER),
        ("sensitive", StopReason.FILTER),
        ("refusal", StopReason.REFUSAL),
    ],
)
def test_reasons_to_stop_have_variants(reason: str, stop: StopReason) -> None:
    assert fold(events_of(chunk({"content": "a"}), chunk({}, reason), DONE)).choices[0].stop is stop


@pytest.mark.parametrize("reason", ["error", "abort", "insufficient_system_resource", "who knows"])
def test_an_end_that_nobody_knows_is_the_providers_fault(reason: str) -> None:
    with pytest.raises(UpstreamError) as caught:
        events_of(chunk({"content": "a"}), chunk({}, reason), DONE)
    assert caught.value.code == "bad_stop_reason"
    with pytest.raises(UpstreamError):
        decode_answer(json.dumps({"choices": [{"message": {"content": "a"}, "finish_reason": reason}]}).encode())


def test_what_comes_after_the_reason_still_belongs_to_the_answer() -> None:
    events = events_of(chunk({"content": "a"}), STOP, chunk({"content": "b"}), chunk({"content": ""}), DONE)
    assert events[-3:] == [PartEnded(0, 0), Finished(0, StopReason.END), Ended()]
    assert fold(events).choices[0].parts == (Text("ab"),)


@pytest.mark.parametrize(
    ("pieces", "code"),
    [
        ([], "upstream_broke_off"),
        ([STOP], "upstream_broke_off"),
        ([chunk({"content": "a"}), DONE], "upstream_broke_off"),
        ([chunk({"content": "a"}), STOP, chunk({"content": "b"}, index=1), DONE], "upstream_broke_off"),
        ([DONE], "bad_upstream_answer"),
        ([b'data: {"choices":[]}\n\n', DONE], "bad_upstream_answer"),
        ([b'data: {"error":{"message":"sk-secret"}}\n\n'], "upstream_stream_error"),
        ([b'data: {"choices":[],"error":"sk-secret"}\n\n'], "upstream_stream_error"),
        ([b"data: {\n\n"], "bad_upstream_answer"),
        ([b"data: []\n\n"], "bad_upstream_answer"),
        ([b"data: {}\n\n"], "bad_upstream_answer"),
        ([b'data: {"type":"message_start","message":{}}\n\n'], "bad_upstream_answer"),
        ([b'data: {"candidates":[{"content":{"parts":[{"text":"a"}]}}]}\n\n'], "bad_upstream_answer"),
        ([b'event: response.created\ndata: {"type":"response.created"}\n\n'], "bad_upstream_answer"),
        ([b'data: {"choices":[{"text":"a","index":-1}]}\n\n'], "bad_upstream_answer"),
        ([chunk({"content": "a"}, index=128)], "bad_upstream_answer"),
        ([chunk({"content": 5})], "bad_upstream_answer"),
        ([chunk({"content": [{"type": "later"}]})], "bad_upstream_answer"),
        ([chunk({"images": [{"image_url": {"url": "file:///etc/passwd"}}]})], "bad_upstream_answer"),
        ([b'data: {"choices":[{"delta":{"content":"\xff"}}]}\n\n'], "bad_upstream_answer"),
        ([b'data: {"choices":[{"delta":{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}}]}\n\n"], "bad_upstream_answer"),
        ([b'data: {"choices":[{"delta":{"content":' + b"[" * 100_000 + b"}}]}\n\n"], "bad_upstream_answer"),
        ([b'data: {"choices":[' + b"{}," * 200 + b"{}]}\n\n"], "bad_upstream_answer"),
        ([b"data: " + b"x" * (1 << 21)], "upstream_too_large"),
    ],
)
def test_what_is_no_whole_answer_is_the_providers_fault_in_our_words(pieces: list[bytes], code: str) -> None:
    with pytest.raises(UpstreamError) as caught:
        events_of(*pieces)
    assert (caught.value.code, caught.value.status) == (code, 502)
    assert "secret" not in caught.value.message


def test_events_before_a_fault_come_out_first() -> None:
    reader = Reader()
    events = reader.feed(chunk({"content": "a"}) + b"data: {\n\n" + chunk({"content": "b"}))
    assert events == [Started("c", ""), PartStarted(0, 0, Text("")), TextDelta(0, 0, "a")]
    for again in (lambda: reader.feed(DONE), reader.finish, lambda: reader.feed(b"")):
        with pytest.raises(UpstreamError):
            again()


def test_the_last_usage_counts_and_nonsense_does_not() -> None:
    said = [chunk({"content": "a"}, usage={"prompt_tokens": 1, "completion_tokens": count}) for count in (1, 2)]
    events = events_of(*said, chunk({}, "stop", usage={"prompt_tokens": -1}), DONE)
    assert [event.usage.completion for event in events if isinstance(event, Counted)] == [1, 2]


# --- bounds ------------------------------------------------------------------------------------------------------------


def test_what_waits_is_bounded_over_all_choices() -> None:
    reader = Reader()
    text = "x" * 100_000
    for index in range(4):
        reader.feed(chunk(calls(call(0, "{", "one", "a")), index=index))
    with pytest.raises(UpstreamError) as caught:
        for count in range(2 * MAX_KEPT_CHARS // len(text)):
            reader.feed(chunk({"content": text}, index=count % 4))
    assert caught.value.code == "upstream_too_large"


def test_arguments_are_bounded_while_they_are_kept_and_free_what_they_took() -> None:
    reader = Reader()
    piece = "x" * (MAX_KEPT_CHARS // 12)
    for index in range(4):  # each a third of the bound
        reader.feed(chunk(calls(call(index, '{"a":"', "one", f"id{index}"))))
        for _ in range(4):
            reader.feed(chunk(calls(call(index, piece))))
        reader.feed(chunk(calls(call(index, '"}'))))
    reader.feed(chunk(calls(call(9, '{"a":"', "one", "id9"))))
    with pytest.raises(UpstreamError) as caught:
        for _ in range(13):
            reader.feed(chunk(calls(call(9, piece))))
    assert caught.value.code == "upstream_too_large"


@pytest.mark.parametrize("kind", ["calls", "thoughts"])
def test_the_number_of_parts_is_bounded(kind: str) -> None:
    reader = Reader()
    with pytest.raises(UpstreamError) as caught:
        for index in range(2 * MAX_ANSWER_PARTS):
            if kind == "calls":
                reader.feed(chunk(calls(call(index, "{}", "one", f"id{index}"))))
            else:
                reader.feed(chunk({"content": "a"}) + chunk({"reasoning": "b"}))
    assert caught.value.code == "upstream_too_large"


def test_arguments_in_single_characters_take_little_memory() -> None:
    reader = Reader()
    piece = chunk(calls(call(0, "é")))
    reader.feed(chunk(calls(call(0, '{"a":"', "one", "a"))))
    reader.feed(piece)
    tracemalloc.start()
    for _ in range(50_000):
        reader.feed(piece)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 1_000_000  # a list of 50,000 texts would be 4 MB


@given(st.text(max_size=60), st.data())
def test_the_end_of_an_object_is_found_however_it_is_cut(text: str, data: st.DataObject) -> None:
    written = json.dumps({"a": text, "b": [{text: "}"}]}, ensure_ascii=data.draw(st.booleans()))
    cut = data.draw(st.integers(0, len(written) - 1))
    scan = ObjectScan()
    scan.feed(written[:cut])
    assert not scan.is_closed
    scan.feed(written[cut:])
    assert scan.is_closed


DELTAS = st.one_of(
    st.sampled_from([DONE, STOP, b"\n\n", b"data: ", b": c\n\n", b'data: {"choices":null}\n\n', b'data: {"error":null,"choices":[]}\n\n', b"\xff", b"\r"]),
    st.binary(max_size=30),
    st.builds(lambda text, index: chunk({"content": text}, index=index), st.text(max_size=4).filter(str.isprintable), st.integers(0, 2)),
    st.builds(
        lambda index, arguments, name, id: chunk(calls(call(index, arguments, name, id))),
        st.none() | st.integers(0, 2),
        st.sampled_from(["{", "}", "{}", '{"a":', '"}"', "1}", "", None, {"a": 1}, [1]]),
        st.sampled_from([None, "", "one"]),
        st.sampled_from([None, "", "a", "b"]),
    ),
    st.builds(
        lambda kind, text, index, format, signature: chunk(
            {
                "reasoning_details": [
                    {"type": f"reasoning.{kind}", "text": text, "data": text, "index": index, "format": format, "signature": signature, "id": "x"}
                ]
            }
        ),
        st.sampled_from(["text", "encrypted", "summary", "later"]),
        st.sampled_from(["", "a"]),
        st.sampled_from([None, 0, 1]),
        st.sampled_from([None, "anthropic-claude-v1", "openai-responses-v1", "unknown"]),
        st.sampled_from([None, "s"]),
    ),
    st.builds(note, st.none() | st.integers(-2, 5), st.none() | st.integers(-2, 5)).map(chunk),
)


@settings(max_examples=400)
@given(st.lists(DELTAS, max_size=14), st.booleans())
def test_any_stream_keeps_the_promises_of_a_reader_or_is_an_upstream_error(pieces: list[bytes], ends: bool) -> None:
    if ends:
        pieces = [*pieces, *(chunk({}, "stop", index) for index in range(3)), DONE]
    try:
        events = events_of(*pieces)
    except UpstreamError:
        return
    answer = fold(events)
    for choice in answer.choices:
        for part in choice.parts:
            if isinstance(part, ToolCall):
                assert isinstance(json.loads(part.arguments), dict) and part.name and part.id


# --- whole answers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b"{}",
        b'{"choices":[]}',
        b'{"choices":null}',
        b'{"choices":[{"finish_reason":"stop"}]}',
        b'{"choices":[{"message":null,"finish_reason":"stop"}]}',
        b'{"choices":[{"message":{"content":"a"}}]}',
        b'{"choices":[{"message":{"content":"a"},"finish_reason":null}]}',
        b'{"choices":[{"message":{"content":"a"},"finish_reason":"stop","index":128}]}',
        b'{"choices":[{"message":{"content":"a"},"finish_reason":"stop"},{"message":{"content":"b"},"finish_reason":"stop"}]}',
        b'{"choices":[{"message":{"content":5},"finish_reason":"stop"}]}',
        b'{"choices":[{"message":{"content":[{"type":"later"}]},"finish_reason":"stop"}]}',
        b'{"choices":[{"message":{"tool_calls":[{"id":"a"}]},"finish_reason":"stop"}]}',
        b'{"choices":[{"message":{"tool_calls":[{"id":"a","function":{"name":"b","arguments":"no"}}]},"finish_reason":"stop"}]}',
        b'{"choices":[{"message":{"tool_calls":[{"id":"a","function":{"name":"b","arguments":[]}}]},"finish_reason":"stop"}]}',
        b'{"choices":[{"message":{"images":[{"image_url":{"url":"gs://a"}}]},"finish_reason":"stop"}]}',
        b'{"choices":[{"message":{"content":"\xff"},"finish_reason":"stop"}]}',
        b'{"choices":[{"message":{"content":"a","x":"\xff"},"finish_reason":"stop"}]}',
        b'{"choices":[{"message":{"content":"a"},"finish_reason":"stop"}],"created":1e999}',
        b'{"choices":[{"message":{"content":"a"},"finish_reason":"stop"}],"x":[' + b"{}," * 70_000 + b"{}]}",
        b'{"choices":[{"message":{"content":' + b"[" * 100_000 + b'},"finish_reason":"stop"}]}',
        b'{"id":"msg_1","type":"message","role":"assistant","content":[{"type":"text","text":"a"}],"stop_reason":"end_turn"}',
        b'{"candidates":[{"content":{"parts":[{"text":"a"}]},"finishReason":"STOP"}]}',
        b'{"error":{"message":"sk-secret"}}',
    ],
)
def test_what_is_no_completion_is_the_providers_fault(body: bytes) -> None:
    with pytest.raises(UpstreamError) as caught:
        decode_answer(body)
    assert "secret" not in caught.value.message


@settings(max_examples=200)
@given(
    st.dictionaries(
        st.sampled_from(["content", "tool_calls", "reasoning", "reasoning_details", "annotations", "images", "refusal", "function_call"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "text", "id", "function", "name", "arguments"]), inner, max_size=4)
            ),
            max_leaves=8,
        ),
    )
)
def test_any_message_is_an_answer_or_an_upstream_error(message: dict[str, Any]) -> None:
    for body in ({"choices": [{"message": message, "finish_reason": "stop"}]}, {"choices": [message], "id": message}):
        try:
            decode_answer(json.dumps(body).encode())
        except UpstreamError:
            pass
    try:
        events_of(chunk(message), STOP, DONE)
    except UpstreamError:
        pass
