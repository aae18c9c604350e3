"""Where a client key may stand, and what a request presents that has several."""

from __future__ import annotations

import pytest

from cliproxy.dataplane.keys import present, token_of
from cliproxy.ingress.framing import Framer, RawRequest

CHAT, GEMINI = "/v1/chat/completions", "/v1beta/models/m:generateContent"


def raw(target: str, *lines: str) -> RawRequest:
    framer = Framer(max_head_bytes=16384, max_headers=100, max_body_bytes=1024)
    framer.feed("\r\n".join([f"GET {target} HTTP/1.1", "Host: h", *lines, "", ""]).encode("latin-1"))
    request = framer.next_request()
    assert request is not None
    return request


PRESENTED = {
    "bearer": (CHAT, ("Authorization: Bearer k1",), b"k1"),
    "bearer, in capitals": (CHAT, ("Authorization: BEARER k1",), b"k1"),
    "x-api-key": (CHAT, ("x-api-key: k1",), b"k1"),
    "X-Api-Key": (CHAT, ("X-Api-Key: k1",), b"k1"),
    "x-goog-api-key": (CHAT, ("x-goog-api-key: k1",), b"k1"),
    "query of Gemini's": (GEMINI + "?key=k1", (), b"k1"),
    "query of Gemini's, encoded": (GEMINI + "?alt=sse&key=%6b1", (), b"k1"),
    "query of Gemini's list": ("/v1beta/models?key=k1", (), b"k1"),
    "query of Gemini's with /v1": ("/v1/models/m:countTokens?key=k1", (), b"k1"),
    "all four the same": (GEMINI + "?key=k1", ("Authorization: Bearer k1", "x-api-key: k1", "x-goog-api-key: k1"), b"k1"),
    "the same twice in the query": (GEMINI + "?key=k1&key=k1", (), b"k1"),
}


@pytest.mark.parametrize("name", PRESENTED)
def test_a_key_is_found_where_it_may_stand(name: str) -> None:
    target, lines, token = PRESENTED[name]
    assert token_of(raw(target, *lines)) == token


NOTHING = {
    "nothing": (CHAT, ()),
    "another scheme": (CHAT, ("Authorization: Basic k1",)),
    "another scheme beside a key": (CHAT, ("Authorization: Basic k1", "x-api-key: k1")),
    "empty": (CHAT, ("Authorization:",)),
    "empty beside a key": (CHAT, ("Authorization:", "x-api-key: k1")),
    "empty x-api-key beside a key": (CHAT, ("Authorization: Bearer k1", "x-api-key:")),
    "two different": (CHAT, ("Authorization: Bearer k1", "x-api-key: k2")),
    "two different, and the first again": (CHAT, ("Authorization: Bearer k1", "x-api-key: k2", "x-goog-api-key: k1")),
    "Google's differs": (CHAT, ("x-api-key: k1", "x-goog-api-key: k2")),
    "in the query of another path": (CHAT + "?key=k1", ()),
    "in the query of OpenAI's models": ("/v1/models?key=k1", ()),
    "two different in the query": (GEMINI + "?key=k1&key=k2", ()),
    "query and header differ": (GEMINI + "?key=k1", ("x-goog-api-key: k2",)),
    "empty in the query beside a key": (GEMINI + "?key=", ("x-goog-api-key: k1",)),
    "a bare name in the query": (GEMINI + "?key", ("x-goog-api-key: k1",)),
    "another spelling": (GEMINI + "?Key=k1", ()),
    "an encoded name": (GEMINI + "?%6bey=k1", ()),
}


@pytest.mark.parametrize("name", NOTHING)
def test_whatever_is_ambiguous_presents_nothing(name: str) -> None:
    target, lines = NOTHING[name]
    assert token_of(raw(target, *lines)) is None


@pytest.mark.parametrize("name", ["authorization", "x-api-key", "x-goog-api-key", "anthropic-version", "x-session-id"])
def test_a_header_that_says_who_asks_must_be_single(name: str) -> None:
    from cliproxy.errors import FramingError

    with pytest.raises(FramingError):
        raw(CHAT, f"{name}: a", f"{name}: a")


def test_what_is_presented_shows_itself_nowhere() -> None:
    shown = present(b"cpk_very-secret")
    assert "very-secret" not in repr(shown) + str(shown.__rich_repr__())
    request = raw(GEMINI + "?key=very-secret", "x-goog-api-key: very-secret", "x-session-id: very-secret")
    assert "very-secret" not in repr(request) + str(request.__rich_repr__())
