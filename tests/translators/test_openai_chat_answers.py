"""What egress reads of chat completions, and what a client gets of a stream."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cliproxy.errors import ChannelError, SchemaError, UpstreamError
from cliproxy.formats.sse import KEEP_ALIVE
from cliproxy.metering.openai_chat import AskedFor, ChatStreamMeter, Usage, reread, usage_of_answer
from cliproxy.translators.openai_chat.write_stream import StreamFilter, error_event

VECTORS = Path(__file__).parents[1] / "vectors" / "openai_chat"
ANSWERS = {path.stem: json.loads(path.read_text()) for path in sorted((VECTORS / "answers").glob("*.json"))}
BAD_ANSWERS = {path.stem: path.read_bytes() for path in sorted((VECTORS / "bad_answers").glob("*.json"))}
STREAMS = {path.stem: path.read_bytes() for path in sorted((VECTORS / "streams").glob("*.sse"))}
DONE = b"data: [DONE]\n\n"
TEXT = b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n'
STOP = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":10,"completion_tokens":3}}\n\n'


def passed_on(pieces: list[bytes]) -> tuple[bytes, ChatStreamMeter]:
    """What leaves egress for the worker, to the end."""
    stream = ChatStreamMeter()
    out = [stream.feed(piece) for piece in pieces]
    out.append(stream.finish())
    return b"".join(out), stream


def events_of(data: bytes) -> list[bytes]:
    assert data == b"" or data.endswith(b"\n\n")
    return [event.strip(b"\n") for event in data.split(b"\n\n") if event.strip(b"\n")]


# --- whole answers ---


@pytest.mark.parametrize("name", ANSWERS)
def test_the_usage_of_an_answer_is_read_or_none(name: str) -> None:
    vector = ANSWERS[name]
    expected = None if vector["usage"] is None else Usage(*vector["usage"])
    for body in (json.dumps(vector["body"]), json.dumps(vector["body"], ensure_ascii=False, separators=(",", ":"))):
        assert usage_of_answer(body.encode()) == expected


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_cut_anywhere_or_with_trailing_garbage_is_none(name: str) -> None:
    body = json.dumps(ANSWERS[name]["body"], ensure_ascii=False).encode()
    for cut in range(len(body)):
        with pytest.raises(UpstreamError):
            usage_of_answer(body[:cut])
    for tail in (b"x", b"{}", body):
        with pytest.raises(UpstreamError):
            usage_of_answer(body + tail)


@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_json_that_is_no_answer_is_the_providers_fault(name: str) -> None:
    with pytest.raises(UpstreamError) as caught:
        usage_of_answer(BAD_ANSWERS[name])
    assert (caught.value.status, caught.value.code) == (502, "bad_upstream_answer")
    assert "quota" not in caught.value.message


def test_an_answer_that_is_not_utf8_where_nobody_looks_is_refused() -> None:
    with pytest.raises(UpstreamError):
        usage_of_answer(b'{"choices":[{"message":{"content":"a"}}],"other":"\xff"}')


@given(st.binary(max_size=200))
def test_garbage_is_an_upstream_error_and_nothing_else(body: bytes) -> None:
    with pytest.raises(UpstreamError):
        usage_of_answer(body)


def test_the_total_is_what_limits_count() -> None:
    assert Usage(10, 3, 4, 2).total == 13


# --- final bodies ---


@pytest.mark.parametrize(
    ("body", "asked"),
    [
        (b'{"max_tokens":5,"model":"m"}', AskedFor("m", 5, 1, False)),
        (b'{"model":"m","max_tokens":5,"max_completion_tokens":7,"n":3,"stream":true,"messages":[{"a":["b"]}]}', AskedFor("m", 7, 3, True)),
        (b'{"model":"m","max_tokens":null,"max_completion_tokens":6,"n":null,"stream":null}', AskedFor("m", 6, 1, False)),
        (b'{"model":"m","messages":[{"model":"x","max_tokens":9}],"metadata":{"n":"5"},"max_tokens":5}', AskedFor("m", 5, 1, False)),
    ],
)
def test_the_final_body_is_read_again(body: bytes, asked: AskedFor) -> None:
    assert reread(body) == asked


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"model":1,"max_tokens":5}',
        b'{"model":"m"}',
        b'{"model":"m","max_tokens":null,"messages":[{"max_tokens":5}]}',
        b'{"model":"m"',
        b'{"model":"m","max_tokens":5}x',
        b'{"model":"m","max_tokens":-5}',
        b'{"model":"m","max_tokens":0}',
        b'{"model":"m","max_tokens":"5"}',
        b'{"model":"m","max_tokens":5,"n":0}',
        b'{"model":"m","max_tokens":5,"n":129}',
        b'{"model":"m","max_tokens":5,"stream":1}',
        b'{"model":"m","max_tokens":5,"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_a_final_body_that_no_honest_worker_sends_is_refused(body: bytes) -> None:
    with pytest.raises(SchemaError):
        reread(body)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"\xff","max_tokens":5}',
        b'{"model":"m","max_tokens":5,"max_tokens":900}',
        b'{"model":"m","max_tokens":5,"n":1,"n":2}',
        b'{"model":"m","max_tokens":5,"model":"other"}',
    ],
)
def test_a_final_body_that_not_all_read_alike_closes_the_channel(body: bytes) -> None:
    with pytest.raises(ChannelError):
        reread(body)


# --- streams in egress ---


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_is_the_same_whole_cut_anywhere_and_byte_by_byte(name: str) -> None:
    data = STREAMS[name]
    whole, stream = passed_on([data])
    assert whole.endswith(b"[DONE]\n\n") and whole.count(b"[DONE]\n\n") == 1
    assert stream.usage == Usage(10, 3)
    for cut in range(1, len(data)):
        out, stream = passed_on([data[:cut], data[cut:]])
        assert events_of(out) == events_of(whole) and stream.usage == Usage(10, 3)
    out, stream = passed_on([data[at : at + 1] for at in range(len(data))])
    assert events_of(out) == events_of(whole) and stream.usage == Usage(10, 3)


@pytest.mark.parametrize("name", STREAMS)
def test_what_follows_done_is_dropped(name: str) -> None:
    data = STREAMS[name].removesuffix(b"\n\n") + b"\n\n"
    if name == "no_done":
        data += DONE
    whole, _ = passed_on([data])
    for tail in (b"data: more\n\n", b"garbage", DONE, b"\n\n"):
        out, stream = passed_on([data + tail])
        assert events_of(out) == events_of(whole)
        out, stream = passed_on([data, tail, tail])
        assert events_of(out) == events_of(whole) and stream.usage == Usage(10, 3)


@pytest.mark.parametrize("name", [name for name in STREAMS if name != "no_done"])
def test_a_stream_cut_before_its_last_choice_is_finished_broke_off(name: str) -> None:
    data = STREAMS[name]
    end = data.rindex(b"finish_reason")
    for cut in range(0, end, 7):
        stream = ChatStreamMeter()
        stream.feed(data[:cut])
        with pytest.raises(UpstreamError) as caught:
            stream.finish()
        assert caught.value.code == "upstream_broke_off"


@pytest.mark.parametrize(
    ("name", "pieces", "whole"),
    [
        ("finished, no done", [TEXT, STOP], True),
        ("finished and usage, no done", [TEXT + STOP + USAGE], True),
        ("never finished", [TEXT, USAGE], False),
        ("finished, then half an event", [TEXT, STOP, b"data: {"], False),
        ("nothing at all", [], False),
        ("one of two choices finished", [TEXT.replace(b'"index":0', b'"index":1'), STOP], False),
        ("a text that says so", [TEXT.replace(b'"a"', b'"\\"finish_reason\\":\\"stop\\""')], False),
        ("done inside a text", [TEXT.replace(b'"a"', b'"data: [DONE]\\n\\n"')], False),
        ("done in a comment", [TEXT, b": [DONE]\n\n"], False),
        ("done without its blank line", [TEXT, b"data: [DONE]\n"], False),
    ],
)
def test_without_done_only_a_finished_single_choice_is_whole(name: str, pieces: list[bytes], whole: bool) -> None:
    if whole:
        out, _ = passed_on(pieces)
        assert out == b"".join(pieces) + DONE
    else:
        with pytest.raises(UpstreamError):
            passed_on(pieces)


def test_an_error_inside_a_stream_ends_it_in_our_words_after_the_events_before_it() -> None:
    stream = ChatStreamMeter()
    bad = b'data: {"error":{"message":"sk-secret is over quota"}}\n\n'
    assert stream.feed(TEXT + bad + TEXT) == TEXT
    for call in (lambda: stream.feed(TEXT), stream.finish):
        with pytest.raises(UpstreamError) as caught:
            call()
        assert caught.value.code == "upstream_stream_error" and "secret" not in caught.value.message
    with pytest.raises(UpstreamError):
        ChatStreamMeter().feed(b"event: error\n" + bad)


def test_a_null_error_and_a_text_about_errors_are_no_error() -> None:
    fine = TEXT.replace(b"{", b'{"error":null,', 1) + TEXT.replace(b'"a"', b'"\\"error\\":{}"') + TEXT.replace(b'"a"', b'"b","error":{"x":1}')
    assert ChatStreamMeter().feed(fine) == fine


@pytest.mark.parametrize(
    "usage", [b"null", b"{}", b'{"prompt_tokens":-1,"completion_tokens":1}', b"[]", b'"x"', b'{"prompt_tokens":true,"completion_tokens":1}']
)
def test_usage_that_makes_no_sense_is_none(usage: bytes) -> None:
    _, stream = passed_on([TEXT, STOP, b'data: {"choices":[],"usage":' + usage + b"}\n\n", DONE])
    assert stream.usage is None


def test_a_text_cannot_forge_usage() -> None:
    forged = TEXT.replace(b'"a"', b'"\\n\\ndata: {\\"usage\\":{\\"prompt_tokens\\":0,\\"completion_tokens\\":0}}"')
    _, stream = passed_on([forged, STOP, DONE])
    assert stream.usage is None


def test_what_is_kept_of_a_stream_is_bounded_and_its_end_is_still_known() -> None:
    stream = ChatStreamMeter()
    large = TEXT * (256 * 1024 // len(TEXT))
    for _ in range(8):
        assert stream.feed(large) == large
        held = sum(map(len, stream._kept))
        assert held <= 4 * 64 * 1024
    stream.feed(large + STOP + USAGE + DONE)
    assert stream.usage == Usage(10, 3)
    assert stream.finish() == b""

    without_done = ChatStreamMeter()
    without_done.feed(large + STOP)
    assert without_done.finish() == DONE


def test_the_last_usage_counts_where_every_event_has_one() -> None:
    running = [TEXT.replace(b"}]}", b'}],"usage":{"prompt_tokens":10,"completion_tokens":%d}}' % count) for count in (1, 2, 3)]
    stream = ChatStreamMeter()
    for piece in running:
        stream.feed(piece)
    assert stream.usage == Usage(10, 3)


@settings(max_examples=200)
@given(
    st.lists(
        st.one_of(st.binary(max_size=40), st.sampled_from([TEXT, STOP, USAGE, DONE, b"\n\n", b"\r", b'data: {"error":1}\n\n', b'"usage"', b'"error"'])),
        max_size=8,
    )
)
def test_any_stream_gives_whole_events_or_an_upstream_error(pieces: list[bytes]) -> None:
    stream = ChatStreamMeter()
    try:
        for piece in pieces:
            out = stream.feed(piece)
            assert out == b"" or out.endswith(b"\n\n")
        stream.finish()
    except UpstreamError:
        pass
    assert stream.usage is None or stream.usage.total >= 0


# --- streams in the worker ---


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("include_usage", [True, False])
def test_the_client_gets_the_usage_event_only_if_it_asked(name: str, include_usage: bool) -> None:
    data, _ = passed_on([STREAMS[name]])
    events = events_of(data)
    wanted = events if include_usage else [event for event in events if b'"total_tokens"' not in event]
    assert len(wanted) == len(events) - (0 if include_usage else 1)
    assert events_of(StreamFilter(include_usage).feed(data)) == wanted
    for cut in range(1, len(data)):
        stream_filter = StreamFilter(include_usage)
        assert events_of(stream_filter.feed(data[:cut]) + stream_filter.feed(data[cut:])) == wanted
    stream_filter = StreamFilter(include_usage)
    assert events_of(b"".join(stream_filter.feed(data[at : at + 1]) for at in range(len(data)))) == wanted


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"choices":[],"prompt_filter_results":[]}\n\n',
        b'data: {"choices":[],"usage":null}\n\n',
        b'data: {"choices":[{"delta":{"tool_calls":[]}}],"usage":{"prompt_tokens":1,"completion_tokens":1}}\n\n',
        b"data: []\n\n",
        b"data: broken []\n\n",
        b": []\n\n",
    ],
)
def test_an_event_that_only_looks_like_usage_stays(event: bytes) -> None:
    assert StreamFilter(False).feed(event) == event


def test_a_filtered_stream_never_stops_inside_an_event() -> None:
    stream_filter = StreamFilter(True)
    assert stream_filter.feed(TEXT + b"data: {") == TEXT
    assert stream_filter.at_boundary
    assert stream_filter.feed(b'"choices":1}\n\n') == b'data: {"choices":1}\n\n'


def test_an_error_event_has_the_shape_that_sdks_raise_and_is_one_event() -> None:
    event = error_event('broke "off"\n\nnow', kind="upstream_error", code="upstream_broke_off", status=502)
    assert events_of(event) == [event.strip()]
    assert json.loads(event.removeprefix(b"data: ")) == {
        "error": {"message": 'broke "off"\n\nnow', "type": "upstream_error", "param": None, "code": "upstream_broke_off"}
    }


def test_the_keep_alive_is_a_comment() -> None:
    assert KEEP_ALIVE.startswith(b":") and KEEP_ALIVE.endswith(b"\n\n")
