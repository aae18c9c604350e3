"""Server-sent events: whole events come out however the bytes were cut."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliproxy.bounds import MAX_EVENT_BYTES
from cliproxy.errors import UpstreamError
from cliproxy.formats.sse import EventSplitter, data_line


def split(pieces: list[bytes]) -> tuple[list[bytes], EventSplitter]:
    splitter = EventSplitter()
    return [splitter.feed(piece) for piece in pieces], splitter


def reference(data: bytes) -> list[bytes]:
    """The events of `data` by the standard's own words: lines end in CR LF, LF or CR; an empty line ends an event."""
    lines = re.split(rb"\r\n|\n|\r", data.removeprefix(b"\xef\xbb\xbf"))[:-1]
    events: list[bytes] = []
    event: list[bytes] = []
    for line in lines:
        if line:
            event.append(line)
        elif event:
            events.append(b"\n".join(event))
            event = []
    return events


def events_of(data: bytes) -> list[bytes]:
    assert data == b"" or data.endswith(b"\n\n")
    return [event.strip(b"\n") for event in data.split(b"\n\n") if event.strip(b"\n")]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("nothing", b""),
        ("one", b"data: 1\n\n"),
        ("two", b"data: 1\n\ndata: 2\n\n"),
        ("unfinished", b"data: 1\n\ndata: 2\n"),
        ("crlf", b"data: 1\r\n\r\ndata: 2\r\n\r\n"),
        ("cr", b"data: 1\r\rdata: 2\r\r"),
        ("lf cr", b"data: 1\n\rdata: 2\n\r"),
        ("cr then crlf", b"data: 1\r\r\ndata: 2\r\r\n"),
        ("lf then crlf", b"data: 1\n\r\ndata: 2\n\r\n"),
        ("mark", b"\xef\xbb\xbfdata: 1\n\n"),
        ("half a mark", b"\xef\xbbdata: 1\n\n"),
        ("mark inside", b"data: \xef\xbb\xbf\n\n"),
        ("blank lines", b"\n\n\ndata: 1\n\n\n\n\ndata: 2\n\n\n"),
        ("multi-byte", "data: Grüße 世界 🦉\n\n".encode()),
        ("several lines", b"event: x\nid: 1\ndata: 1\ndata: 2\n\n"),
        ("only a mark", b"\xef\xbb\xbf"),
    ],
)
def test_every_cut_into_two_and_into_single_bytes_gives_the_same_events(name: str, data: bytes) -> None:
    expected = reference(data)
    for cut in range(len(data) + 1):
        pieces, _ = split([data[:cut], data[cut:]])
        assert events_of(b"".join(pieces)) == expected
    pieces, _ = split([data[at : at + 1] for at in range(len(data))])
    assert events_of(b"".join(pieces)) == expected
    assert all(piece == b"" or piece.endswith(b"\n\n") for piece in pieces)


@given(st.lists(st.sampled_from([b"a", b"data: x", b"\n", b"\r", b"\r\n", b"\n\n", b"\xef\xbb\xbf", b":", b" "]), max_size=12))
def test_any_cut_of_anything_agrees_with_the_standard(pieces: list[bytes]) -> None:
    out, _ = split(pieces)
    assert events_of(b"".join(out)) == reference(b"".join(pieces))
    assert all(piece == b"" or piece.endswith(b"\n\n") for piece in out)


def test_each_piece_that_comes_out_is_whole_events() -> None:
    out, splitter = split([b"data: 1", b"\n", b"\nda", b"ta: 2\n\ndata: 3"])
    assert out == [b"", b"", b"data: 1\n\n", b"data: 2\n\n"]
    assert not splitter.at_boundary


def test_whole_events_in_one_piece_come_out_as_the_same_object() -> None:
    data = b"data: 1\n\ndata: 2\n\n"
    assert EventSplitter().feed(data) is data


@pytest.mark.parametrize("piece", [MAX_EVENT_BYTES + 1, 64 * 1024])
def test_an_event_without_end_is_refused_before_it_fills_the_memory(piece: int) -> None:
    splitter = EventSplitter()
    with pytest.raises(UpstreamError) as caught:
        for _ in range(MAX_EVENT_BYTES // piece + 2):
            splitter.feed(b"x" * piece)
    assert caught.value.code == "upstream_too_large"


@pytest.mark.parametrize(
    ("events", "needle", "value"),
    [
        (b"data: abc\n\n", b"b", b"abc"),
        (b"data:abc\n\n", b"b", b"abc"),
        (b"id: 1\ndata:  abc\n\n", b"b", b" abc"),
        (b": abc\n\n", b"b", b""),
        (b"event: abc\ndata: d\n\n", b"b", b""),
        (b"data: abc", b"b", b"abc"),
    ],
)
def test_the_value_of_a_data_line_is_found_from_any_index_in_it(events: bytes, needle: bytes, value: bytes) -> None:
    assert data_line(events, events.index(needle)) == value
