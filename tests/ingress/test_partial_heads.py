"""What is kept of a request that is refused, so that its error is told in the right words; and the headers that say who asks and for which session."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliproxy.errors import FramingError
from cliproxy.ingress.framing import Framer
from cliproxy.ingress.head import NOTHING, PartialHead, partial_head_of


def framer() -> Framer:
    return Framer(max_head_bytes=1024, max_headers=10, max_body_bytes=100)


def refused(data: bytes) -> PartialHead:
    made = framer()
    made.feed(data)
    with pytest.raises(FramingError):
        while made.next_request() is not None:
            pass
    return made.partial_head


HEAD = b"POST /v1/messages?x=1 HTTP/1.1\r\nHost: h\r\n"
REFUSED = {
    "a length that is too long": (HEAD + b"Content-Length: 101\r\n\r\n", PartialHead(b"/v1/messages")),
    "a repeated header": (HEAD + b"Host: h\r\n\r\n", PartialHead(b"/v1/messages")),
    "a bare line feed": (HEAD + b"X: a\nb", PartialHead(b"/v1/messages")),
    "a chunk that is none": (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", PartialHead(b"/v1/messages")),
    "too many headers": (HEAD + b"anthropic-version: x\r\n" + b"X: a\r\n" * 20 + b"\r\n", PartialHead(b"/v1/messages", anthropic_version=True)),
    "a body that is too long, in chunks": (
        HEAD + b"X-Goog-Api-Key: k\r\nTransfer-Encoding: chunked\r\n\r\n65\r\n",
        PartialHead(b"/v1/messages", goog_api_key=True),
    ),
    "after a request that was fine": (b"GET /a HTTP/1.1\r\nHost: h\r\nAnthropic-Version: x\r\n\r\nGET /b HTTP/1.1\r\n\r\n", PartialHead(b"/b")),
    "no HTTP at all": (b"\x16\x03\x01\r\n\r\n", NOTHING),
    "no path": (b"GET x HTTP/1.1\r\n\r\n", NOTHING),
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_path_and_the_vendors_headers_of_a_refused_request_are_kept(name: str) -> None:
    data, seen = REFUSED[name]
    assert refused(data) == seen


def test_a_request_that_is_not_whole_can_be_seen_too() -> None:
    made = framer()
    made.feed(HEAD + b"anthropic-version: x\r\nContent-Length: 9\r\n\r\n{")
    assert made.next_request() is None
    assert made.partial_head == PartialHead(b"/v1/messages", anthropic_version=True)
    made = framer()
    made.feed(HEAD[:25])
    assert made.next_request() is None
    assert made.partial_head.path.startswith(b"/v1/mess")


def test_a_partial_head_shows_no_query_and_no_key() -> None:
    seen = refused(b"GET /v1beta/models?key=very-secret HTTP/1.1\r\nx-goog-api-key: very-secret\r\n\r\n")
    assert seen == PartialHead(b"/v1beta/models", goog_api_key=True) and "secret" not in repr(seen)


@given(st.binary(max_size=200))
def test_any_bytes_give_a_partial_head(data: bytes) -> None:
    seen = partial_head_of(data)
    assert seen == NOTHING or seen.path.startswith(b"/")


def test_the_headers_of_vendors_and_sessions_are_read_in_any_spelling() -> None:
    made = framer()
    made.feed(b"GET / HTTP/1.1\r\nHOST: h\r\nX-GOOG-API-KEY: k\r\nAnthropic-Version: v \r\nx-Session-ID:\ts\r\n\r\n")
    request = made.next_request()
    assert request is not None
    assert (request.goog_api_key, request.anthropic_version, request.session) == (b"k", b"v", b"s")
    made.feed(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    request = made.next_request()
    assert request is not None
    assert (request.goog_api_key, request.anthropic_version, request.session) == (None, None, None)


def test_a_head_that_is_repeated_keeps_its_new_headers() -> None:
    made = framer()
    for length in (1, 22):
        made.feed(b"POST / HTTP/1.1\r\nHost: h\r\nx-goog-api-key: k\r\nanthropic-version: v\r\nContent-Length: %d\r\n\r\n" % length + b"x" * length)
        request = made.next_request()
        assert request is not None and request.body == b"x" * length
        assert (request.goog_api_key, request.anthropic_version) == (b"k", b"v")
