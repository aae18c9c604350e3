"""A connection recognises a head that it has judged before, but for the length: the verdict must be the one that a fresh connection gives."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cliproxy.errors import FramingError
from cliproxy.ingress.framing import Framer

LIMITS = {"max_head_bytes": 8192, "max_headers": 20, "max_body_bytes": 1000}


def head(length: bytes, *, before: bytes = b"", after: bytes = b"", path: bytes = b"/v1/a") -> bytes:
    return b"POST " + path + b" HTTP/1.1\r\nHost: h\r\n" + before + b"Content-Length: " + length + b"\r\n" + after + b"\r\n"


def verdict(framer: Framer, data: bytes) -> tuple[Any, ...] | None:
    framer.feed(data)
    try:
        request = framer.next_request()
    except FramingError as error:
        return error.status, str(error)
    return None if request is None else (request.path, request.authorization, request.content_type, request.keep_alive, request.body)


def body_of(framer: Framer, data: bytes) -> object:
    found = verdict(framer, data)
    assert found is not None
    return found[-1]


def fresh() -> Framer:
    return Framer(**LIMITS)


@pytest.mark.parametrize(
    "second",
    [
        head(b"5") + b"hello",
        head(b"0"),
        head(b"05") + b"hello",
        head(b"+5") + b"hello",
        head(b"5 ") + b"hello",
        head(b"5, 5") + b"hello",
        head(b"1001") + b"x" * 1001,
        head(b"9" * 40),
        head(b""),
        head(b"3", after=b"Content-Length: 3\r\n") + b"abc",
        head(b"3", after=b"Transfer-Encoding: chunked\r\n") + b"0\r\n\r\n",
        head(b"3", path=b"/v1/b") + b"abc",
        head(b"3", before=b"Authorization: Bearer other\r\n") + b"abc",
        head(b"3", after=b"Connection: close\r\n") + b"abc",
        head(b"3\r\nEvil: x") + b"abc",
        head(b"3").replace(b"POST", b"GET ") + b"abc",
        head(b"3").replace(b"\r\n", b"\n") + b"abc",
        b"POST /v1/a HTTP/1.1\r\nHost: h\r\nX: \r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    ],
)
def test_a_second_head_is_judged_as_the_first_would_be(second: bytes) -> None:
    framer = fresh()
    assert verdict(framer, head(b"3") + b"abc") is not None
    assert verdict(framer, second) == verdict(fresh(), second)


def test_a_head_whose_text_holds_a_second_length_is_not_confused() -> None:
    first = head(b"3", before=b"X-Note: content-length: 7\r\n") + b"abc"
    second = head(b"4", before=b"X-Note: content-length: 7\r\n") + b"abcd"
    framer = fresh()
    assert body_of(framer, first) == b"abc"
    assert body_of(framer, second) == b"abcd"


PIECE = st.sampled_from(
    [b"3", b"4", b"0", b"03", b"\r\n", b"Content-Length: ", b"content-length:", b"Host: h\r\n", b"Authorization: Bearer k\r\n", b"A: b\r\n", b" ", b":", b"9"]
)


@settings(max_examples=300)
@given(st.lists(st.tuples(st.lists(PIECE, max_size=6), st.integers(0, 6)), min_size=1, max_size=5))
def test_any_sequence_of_heads_gets_the_verdicts_of_fresh_connections(sequence: list[tuple[list[bytes], int]]) -> None:
    framer = fresh()
    for pieces, size in sequence:
        data = b"POST /v1/a HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n" % size + b"".join(pieces) + b"\r\n\r\n" + b"x" * size
        expected = verdict(fresh(), data)
        assert verdict(framer, data) == expected
        if expected is None or isinstance(expected[0], int) or framer.buffer:
            return
