"""When a stream is over: the same rule for every dialect, over its own events."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliproxy.dialects import Endpoint
from cliproxy.errors import UpstreamError
from cliproxy.formats.sse import EventSplitter
from cliproxy.metering.stream import KEPT_PIECE_BYTES, KEPT_PIECES, StreamMeter, Verdict
from cliproxy.metering.table import METERS
from cliproxy.metering.usage import Usage

# An event, what ends a stream well, what ends it badly; of each dialect.
EVENTS: dict[Endpoint, tuple[bytes, bytes, bytes]] = {
    Endpoint.CHAT_COMPLETIONS: (
        b'data: {"choices":[{"index":0,"delta":{"content":"a \\"error\\" b"}}],"usage":{"prompt_tokens":3,"completion_tokens":4}}\n\n',
        b"data: [DONE]\n\n",
        b'data: {"error":{"message":"m"}}\n\n',
    ),
    Endpoint.MESSAGES: (
        b'event: message_delta\ndata: {"type":"message_delta","usage":{"input_tokens":3,"output_tokens":4}}\n\n',
        b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
        b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error"}}\n\n',
    ),
    Endpoint.RESPONSES: (
        b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"response.completed"}\n\n',
        b'event: response.completed\ndata: {"type":"response.completed","response":{"usage":{"input_tokens":3,"output_tokens":4}}}\n\n',
        b'event: response.failed\ndata: {"type":"response.failed","response":{}}\n\n',
    ),
    Endpoint.CONVERSE: (
        b'event: messageStop\ndata: {"stopReason":"end_turn"}\n\n',
        b'event: metadata\ndata: {"usage":{"inputTokens":3,"outputTokens":4}}\n\n',
        b'event: error\ndata: {"type":"throttlingException"}\n\n',
    ),
    Endpoint.GENERATE_CONTENT: (
        b'data: {"candidates":[{"index":0,"finishReason":"STOP"}],"usageMetadata":{"promptTokenCount":3,"candidatesTokenCount":4}}\n\n',
        b"",  # only the end of the body says so
        b'data: {"error":{"code":500}}\n\n',
    ),
}
STREAMS = sorted(EVENTS)


def meter_of(endpoint: Endpoint) -> StreamMeter:
    stream = METERS[endpoint].stream
    assert stream is not None
    return stream()


def fed(meter: StreamMeter, pieces: list[bytes]) -> tuple[bytes, bool]:
    """What comes out, and whether the stream failed."""
    out = b""
    try:
        for piece in pieces:
            out += meter.feed(piece)
        return out + meter.finish(), False
    except UpstreamError:
        return out, True


def test_every_dialect_with_streams_is_here() -> None:
    assert sorted(endpoint for endpoint, meter in METERS.items() if meter.stream is not None) == STREAMS


@pytest.mark.parametrize("endpoint", STREAMS)
def test_a_stream_that_told_its_end_is_over_and_its_usage_is_known(endpoint: Endpoint) -> None:
    event, end, _ = EVENTS[endpoint]
    meter = meter_of(endpoint)
    assert fed(meter, [event, end]) == (event + end, False)
    assert meter.is_over
    assert meter.usage == Usage(3, 4)


@pytest.mark.parametrize("endpoint", STREAMS)
@pytest.mark.parametrize("apart", [True, False])
def test_nothing_comes_out_behind_the_end_not_even_a_failure(endpoint: Endpoint, apart: bool) -> None:
    event, end, failure = EVENTS[endpoint]
    if not end:
        return
    pieces = [event, end, failure, event]
    meter = meter_of(endpoint)
    assert fed(meter, pieces if apart else [b"".join(pieces)]) == (event + end, False)


@pytest.mark.parametrize("endpoint", STREAMS)
@pytest.mark.parametrize("apart", [True, False])
def test_a_failure_ends_a_stream_whatever_comes_behind_it(endpoint: Endpoint, apart: bool) -> None:
    event, end, failure = EVENTS[endpoint]
    pieces = [event, failure, event, end]
    meter = meter_of(endpoint)
    assert fed(meter, pieces if apart else [b"".join(pieces)]) == (event, True)
    assert not meter.is_over
    with pytest.raises(UpstreamError):
        meter.feed(end)
    with pytest.raises(UpstreamError):
        meter.finish()


@pytest.mark.parametrize("endpoint", STREAMS)
def test_a_failure_with_nothing_before_it_is_raised_at_once(endpoint: Endpoint) -> None:
    with pytest.raises(UpstreamError) as caught:
        meter_of(endpoint).feed(EVENTS[endpoint][2])
    assert caught.value.code == "upstream_stream_error"


@pytest.mark.parametrize("endpoint", STREAMS)
def test_a_body_that_ends_inside_an_event_broke_off(endpoint: Endpoint) -> None:
    event, _, _ = EVENTS[endpoint]
    meter = meter_of(endpoint)
    meter.feed(event + b"data: {")
    with pytest.raises(UpstreamError) as caught:
        meter.finish()
    assert caught.value.code == "upstream_broke_off"


@pytest.mark.parametrize("endpoint", STREAMS)
@given(data=st.data())
def test_how_the_bytes_are_cut_makes_no_difference(endpoint: Endpoint, data: Any) -> None:
    parts = data.draw(st.lists(st.sampled_from([*filter(None, EVENTS[endpoint]), b": comment\n\n", b"\n", b"data: x\r\n\r\n"]), max_size=6))
    whole = b"".join(parts)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(whole)), max_size=8)))
    one, many = meter_of(endpoint), meter_of(endpoint)
    first, failed = fed(one, [whole])
    second, failed_too = fed(many, [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)])
    assert (first.split(), failed, one.is_over) == (second.split(), failed_too, many.is_over)  # more or fewer blank lines say nothing


class Counting(StreamMeter):
    __slots__ = ("judged",)
    signs = (b"never", b"aa", b"b\n")

    def __init__(self) -> None:
        super().__init__()
        self.judged: list[bytes] = []

    def _judge(self, events: bytes, start: int, end: int) -> Verdict:
        self.judged.append(events[start:end])
        return Verdict.GOES_ON


def test_each_line_with_a_sign_is_judged_once_and_in_order_however_many_signs_it_holds() -> None:
    meter = Counting()
    events = b"data: 1 b\ndata: aaaa aa b\n\ndata: no sign\n\nb\n\ndata: aa\n\n"
    assert meter.feed(events) == events
    assert meter.judged == [b"data: 1 b", b"data: aaaa aa b", b"b", b"data: aa"]


def test_of_a_stream_only_a_bounded_end_is_kept() -> None:
    meter = meter_of(Endpoint.CHAT_COMPLETIONS)
    for _ in range(10):
        meter.feed(b"data: " + b"x" * 1000 + b"\n\n" + b"data: " + b"y" * (KEPT_PIECE_BYTES - 100) + b"\n\n")
    assert len(meter._kept) == KEPT_PIECES
    assert all(piece.startswith(b"data: y") and len(piece) <= KEPT_PIECE_BYTES for piece in meter._kept)


@given(st.lists(st.sampled_from([b"a", b"\n", b"\r", b"\r\n", b"\n\n", b"data: x\n\n", b"\xef\xbb\xbf", b"\xef", b"\xbb\xbf"]), max_size=12))
def test_what_a_clear_splitter_would_return_for_whole_events_is_these_events(pieces: list[bytes]) -> None:
    """`StreamMeter.feed` passes them by it."""
    splitter = EventSplitter()
    for piece in pieces:
        passes = splitter.clear and piece.endswith(b"\n\n") and b"\r" not in piece and len(piece) <= splitter.max_bytes
        out = splitter.feed(piece)
        assert out == piece or not passes
        assert splitter.clear or not passes
