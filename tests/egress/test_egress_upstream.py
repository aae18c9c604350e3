"""What a hostile or broken provider sends: every case ends the call with the declared error, bounded, and the connection is gone."""

from __future__ import annotations

import asyncio
import itertools
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cliproxy.bounds import MAX_DATA_FRAME_BYTES
from cliproxy.dialects import Endpoint
from cliproxy.egress import upstream
from cliproxy.egress.reflection import NO_SECRET, ReflectionGuard
from cliproxy.egress.sent import Sent
from cliproxy.egress.upstream import MAX_ERROR_BODY_BYTES, TRANSITIONS, Connection, Event, IllegalTransition, State
from cliproxy.errors import CliproxyError, ProviderRefusal, UpstreamError
from cliproxy.providers.facts import Framing
from fakes.provider import RAW, FakeProvider
from fakes.rig import Rig, raw_server, run


@pytest.fixture(scope="module")
def provider() -> Iterator[FakeProvider]:
    with FakeProvider() as fake:
        yield fake


# These leave a usable connection behind; everything else in RAW must not.
HARMLESS = {"malformed-json", "redirect", "redirect-307"}


@pytest.mark.parametrize("fault", [name for name in RAW if name not in HARMLESS])
def test_a_broken_answer_fails_the_call_and_closes_the_connection(provider: FakeProvider, fault: str) -> None:
    async def work() -> None:
        rig = Rig(provider.base_url)
        recorder = await rig.call(f"fault-{fault}")
        assert isinstance(recorder.error, UpstreamError) and recorder.error.status == 502
        assert recorder.error.code in {"provider_bad_http", "provider_bad_answer", "provider_content_type"}
        assert not recorder.completed and not recorder.body
        await asyncio.sleep(0.02)
        assert rig.pool.counts() == {"fake": (0, 0, 0)}
        after = await rig.call()
        assert after.completed and b"smuggled" not in after.body

    run(work)


@pytest.mark.parametrize("fault", ["redirect", "redirect-307"])
def test_a_redirect_is_not_followed(provider: FakeProvider, fault: str) -> None:
    async def work() -> None:
        rig = Rig(provider.base_url)
        recorder = await rig.call(f"fault-{fault}")
        assert isinstance(recorder.error, ProviderRefusal) and recorder.error.code == "provider_redirected" and rig.dialer.dials == 1
        assert "169.254" not in str(recorder.error) and "attacker" not in str(recorder.error)

    run(work)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_an_endless_answer_is_cut(provider: FakeProvider, stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "MAX_RESPONSE_BYTES", 1 << 20)

    async def work() -> None:
        recorder = await Rig(provider.base_url).call("fault-endless" if stream else "fault-big", stream=stream)
        assert isinstance(recorder.error, UpstreamError) and recorder.error.code == "provider_answer_too_large"
        assert len(recorder.body) <= 1 << 20

    run(work)


def test_a_large_error_is_not_read_to_its_end(provider: FakeProvider) -> None:
    async def work() -> None:
        rig = Rig(provider.base_url)
        recorder = await rig.call("fault-large-error")
        assert isinstance(recorder.error, ProviderRefusal) and recorder.error.status == 400 and len(recorder.error.message) < 100
        await asyncio.sleep(0.02)
        assert rig.pool.counts() == {"fake": (0, 0, 0)}

    run(work)


def test_an_answer_before_the_request_has_left_does_not_keep_the_connection() -> None:
    early = b"HTTP/1.1 413 Content Too Large\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"

    async def work() -> None:
        with raw_server(early, close=False) as (base_url, _):
            rig = Rig(base_url)
            recorder, _ = rig.send(b"x" * (8 << 20))
            await recorder.ended.wait()
            assert isinstance(recorder.error, ProviderRefusal) and recorder.error.status == 413
            await asyncio.sleep(0.02)
            assert rig.pool.counts() == {"fake": (0, 0, 0)}

    run(work)


# --- without sockets: any bytes, cut anywhere ------------------------------------------------------------------------


class Transport:
    def __init__(self) -> None:
        self.closed = False

    def abort(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 0


class Shelf:
    """What a connection needs of its pool."""

    def __init__(self) -> None:
        self.usable: list[Connection] = []

    def now(self) -> float:
        return 1.0

    def ready(self, connection: Connection) -> None:
        self.usable.append(connection)

    def gone(self, connection: Connection) -> None:
        pass


class Notes:
    def __init__(self) -> None:
        self.body = b""
        self.unfinished: list[int] = []
        self.ends = 0
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.error: CliproxyError | None = None

    def on_head(self, status: int, headers: dict[bytes, bytes]) -> None:
        assert not self.ends and not self.status
        self.status = status
        self.headers = headers

    def on_data(self, data: bytes) -> None:
        assert not self.ends and self.status
        self.body += data

    def on_unfinished(self, size: int) -> None:
        self.unfinished.append(size)

    def on_complete(self) -> None:
        self.ends += 1

    def on_failure(self, error: CliproxyError) -> None:
        self.error = error
        self.ends += 1


def feed(
    *pieces: bytes,
    guard: ReflectionGuard = NO_SECRET,
    stream: bool = False,
    eof: bool = True,
    endpoint: Endpoint = Endpoint.CHAT_COMPLETIONS,
    framing: Framing = Framing.SSE,
) -> tuple[Notes, Transport, Shelf]:
    """Give `pieces` to a connection as the answer to one call, then end the connection."""
    shelf: Any = Shelf()
    transport: Any = Transport()
    connection = Connection(shelf)
    connection.connection_made(transport)
    shelf.usable.clear()
    notes: Any = Notes()
    connection.begin(Sent(notes, shelf, guard, stream, b"", b"", 0.0, endpoint, framing), 0.0)
    for piece in pieces:
        if transport.closed:
            break
        connection.data_received(piece)
    if eof:
        connection.connection_lost(None)
    return notes, transport, shelf


GOOD = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\nX-Empty:\r\n\r\n7\r\n{"a":1}\r\n1;ext=1\r\n\n\r\n0\r\n\r\n'


@given(st.lists(st.integers(1, len(GOOD) - 1), max_size=12))
def test_a_good_answer_is_taken_however_it_is_cut(cuts: list[int]) -> None:
    edges = sorted({0, len(GOOD), *cuts})
    notes, transport, shelf = feed(*(GOOD[start:end] for start, end in itertools.pairwise(edges)))
    assert (notes.status, notes.body, notes.ends, notes.error) == (200, b'{"a":1}\n', 1, None)
    assert not transport.closed and len(shelf.usable) == 1


@given(st.binary(max_size=400), st.integers(0, 400))
def test_any_bytes_end_the_call_once(data: bytes, cut: int) -> None:
    notes, _, _ = feed(data[:cut], data[cut:])
    assert notes.ends == 1


@settings(max_examples=300)
@given(st.integers(0, len(GOOD) - 1), st.binary(min_size=1, max_size=3), st.booleans(), st.integers(0, len(GOOD)))
def test_a_mutated_answer_ends_the_call_once(at: int, noise: bytes, replace: bool, cut: int) -> None:
    data = GOOD[:at] + noise + GOOD[at + len(noise) * replace :]
    notes, _, _ = feed(data[:cut], data[cut:])
    assert notes.ends == 1
    assert notes.error is None or isinstance(notes.error, UpstreamError)


@pytest.mark.parametrize("end", range(1, len(GOOD) - 1))
def test_an_answer_that_stops_short_fails(end: int) -> None:
    notes, _, shelf = feed(GOOD[:end])
    assert isinstance(notes.error, UpstreamError) and notes.error.code == "provider_broke_off" and not shelf.usable


def test_a_second_answer_in_a_later_read_closes_the_connection_and_is_nobodys() -> None:
    notes, transport, _ = feed(GOOD, GOOD, eof=False)
    assert notes.body == b'{"a":1}\n' and notes.ends == 1 and transport.closed


def test_an_error_body_of_exactly_the_bound_is_read_and_one_byte_more_is_not() -> None:
    for extra, kept in ((0, True), (1, False)):
        body = b'{"error":{"message":"m"}}'.ljust(MAX_ERROR_BODY_BYTES + extra)
        notes, _, shelf = feed(b"HTTP/1.1 400 Bad\r\nContent-Length: %d\r\n\r\n" % len(body) + body, eof=False)
        assert isinstance(notes.error, ProviderRefusal) and notes.ends == 1
        assert ("m" in notes.error.message.removeprefix("The provider rejected the request")) is kept and bool(shelf.usable) is kept


def test_a_body_until_close_is_complete_at_a_clean_end_only() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"
    assert feed(head, b"{}")[0].error is None
    shelf: Any = Shelf()
    connection = Connection(shelf)
    transport: Any = Transport()
    connection.connection_made(transport)
    notes: Any = Notes()
    connection.begin(Sent(notes, shelf, NO_SECRET, False, b"", b"", 0.0), 0.0)
    connection.data_received(head + b"{}")
    connection.connection_lost(ConnectionResetError())
    assert isinstance(notes.error, UpstreamError) and notes.error.code == "provider_broke_off"


def test_an_answer_that_ends_with_its_connection_leaves_no_connection_to_be_used_again() -> None:
    """The answer before had said keep-alive, which was taken for its own: a closed connection counted as open for ever, until the provider had no room."""
    shelf: Any = Shelf()
    transport: Any = Transport()
    connection = Connection(shelf)
    connection.connection_made(transport)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
    for answer in (head + b"Content-Length: 2\r\n\r\n{}", head + b"\r\n{}"):
        shelf.usable.clear()
        notes: Any = Notes()
        connection.begin(Sent(notes, shelf, NO_SECRET, False, b"", b"", 0.0), 0.0)
        connection.data_received(answer)
        assert (connection.state, len(shelf.usable)) in ((State.IDLE, 1), (State.IN_BODY, 0))
    connection.connection_lost(None)
    assert notes.error is None and notes.ends == 1
    assert connection.state is State.CLOSED and not shelf.usable


LEGAL = {
    (State.IDLE, Event.REQUEST): State.AWAITING_HEAD,
    (State.AWAITING_HEAD, Event.HEAD): State.IN_BODY,
    (State.IN_BODY, Event.END): State.COMPLETE,
    (State.COMPLETE, Event.REUSED): State.IDLE,
    **{(state, Event.CLOSED): State.CLOSED for state in State},
}


@pytest.mark.parametrize("event", Event, ids=lambda event: event.name)
@pytest.mark.parametrize("state", State, ids=lambda state: state.name)
def test_every_pair_of_state_and_event_is_in_the_table_or_an_error(state: State, event: Event) -> None:
    if (state, event) in LEGAL:
        assert TRANSITIONS[event][state] is LEGAL[state, event]
    else:
        with pytest.raises(IllegalTransition, match=state.name):
            TRANSITIONS[event][state]


# --- a stream in AWS's framing ---------------------------------------------------------------------------------------


def aws(name: str, payload: bytes) -> bytes:
    headers = b"".join(
        bytes([len(key)]) + key + b"\x07" + struct.pack(">H", len(value)) + value
        for key, value in ((b":event-type", name.encode()), (b":content-type", b"application/json"), (b":message-type", b"event"))
    )
    prelude = struct.pack(">II", 16 + len(headers) + len(payload), len(headers))
    whole = prelude + struct.pack(">I", zlib.crc32(prelude)) + headers + payload
    return whole + struct.pack(">I", zlib.crc32(whole))


AWS_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.amazon.eventstream\r\nContent-Length: %d\r\n\r\n"


def feed_aws(wire: bytes, *, step: int = 1 << 20, guard: ReflectionGuard = NO_SECRET, length: int | None = None) -> Notes:
    data = AWS_HEAD % (len(wire) if length is None else length) + wire
    return feed(
        *(data[at : at + step] for at in range(0, len(data), step)), guard=guard, stream=True, endpoint=Endpoint.CONVERSE, framing=Framing.AWS_EVENT_STREAM
    )[0]


def test_a_large_message_that_is_not_whole_yet_is_told() -> None:
    wire = aws("contentBlockDelta", b'{"x":"' + b"x" * 3 * MAX_DATA_FRAME_BYTES + b'"}')
    notes = feed_aws(wire, step=MAX_DATA_FRAME_BYTES)
    told = notes.unfinished
    assert told == [*sorted(told[:-1]), 0] and MAX_DATA_FRAME_BYTES < told[0] < told[-2] <= 3 * MAX_DATA_FRAME_BYTES
    assert feed_aws(AWS_WIRE, step=1).unfinished == []


AWS_WIRE = aws("messageStart", b'{"role":"assistant"}') + aws("messageStop", b'{"stopReason":"end_turn"}')
AWS_EVENTS = b'event: messageStart\ndata: {"role":"assistant"}\n\nevent: messageStop\ndata: {"stopReason":"end_turn"}\n\n'


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_a_stream_in_awss_framing_is_passed_on_as_server_sent_events(step: int) -> None:
    notes = feed_aws(AWS_WIRE, step=step)
    assert (notes.body, notes.ends, notes.error) == (AWS_EVENTS, 1, None)
    assert notes.headers[b"content-type"] == b"text/event-stream"


def test_a_damaged_message_ends_the_call_after_the_good_ones() -> None:
    damaged = bytearray(AWS_WIRE)
    damaged[-1] ^= 1
    notes = feed_aws(bytes(damaged))
    assert notes.body == AWS_EVENTS[: AWS_EVENTS.index(b"\n\n") + 2] and notes.ends == 1
    assert isinstance(notes.error, UpstreamError) and notes.error.code == "provider_bad_stream"


@pytest.mark.parametrize("length", [len(AWS_WIRE) - 5, len(AWS_WIRE)])
def test_a_body_that_ends_inside_a_message_is_no_end(length: int) -> None:
    notes = feed_aws(AWS_WIRE[:-5], length=length)
    assert notes.ends == 1 and isinstance(notes.error, UpstreamError) and notes.error.code == "provider_broke_off"


def test_a_secret_in_awss_framing_is_replaced_wherever_its_message_is_cut() -> None:
    secret = b"wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
    for step in (1, 5, 1 << 20):
        notes = feed_aws(aws("contentBlockDelta", b'{"delta":{"text":"' + secret + b'"}}'), step=step, guard=ReflectionGuard(secret))
        assert notes.body == b'event: contentBlockDelta\ndata: {"delta":{"text":"[redacted]"}}\n\n' and notes.error is None


def test_events_are_refused_where_awss_framing_was_asked_for_and_the_other_way_round() -> None:
    sse = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 2\r\n\r\n\n\n"
    for data, framing in ((sse, Framing.AWS_EVENT_STREAM), (AWS_HEAD % len(AWS_WIRE) + AWS_WIRE, Framing.SSE)):
        notes, _, _ = feed(data, stream=True, endpoint=Endpoint.CONVERSE, framing=framing)
        assert isinstance(notes.error, UpstreamError) and notes.error.code == "provider_content_type" and not notes.body


def test_a_whole_answer_of_such_a_provider_is_json() -> None:
    data = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    notes, _, _ = feed(data, endpoint=Endpoint.CONVERSE, framing=Framing.AWS_EVENT_STREAM)
    assert (notes.body, notes.error) == (b"{}", None)


def test_speech_is_passed_on_as_sound() -> None:
    data = b"HTTP/1.1 200 OK\r\nContent-Type: audio/mpeg\r\nContent-Length: 4\r\n\r\n\xff\xfb\x00\x00"
    assert feed(data, endpoint=Endpoint.SPEECH)[0].body == b"\xff\xfb\x00\x00"
    refused = feed(data)[0].error
    assert isinstance(refused, UpstreamError) and refused.code == "provider_content_type"
