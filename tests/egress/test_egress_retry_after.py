"""How long to leave a provider alone, in every vendor's own way of saying so."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliproxy.egress.answers import refusal_of
from cliproxy.egress.reflection import NO_SECRET
from cliproxy.egress.retry_after import MAX_RETRY_AFTER_SECONDS, RESET_HEADERS, parse_duration, retry_after_of

WALL = 1_761_000_000.0  # 2025-10-20T22:40:00Z


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1.0),
        ("6m0s", 360.0),
        ("1m3.5s", 63.5),
        ("20ms", 0.02),
        ("8.64s", 8.64),
        ("1h2m3s", 3723.0),
        ("1d", 86400.0),
        ("2m", 120.0),
        ("34.074824224s", 34.074824224),
        ("12", 12.0),
        ("0.5", 0.5),
        ("0s", 0.0),
        ("", None),
        ("s", None),
        ("-1s", None),
        ("1 s", None),
        ("1s1m", None),
        ("1e3s", None),
        ("inf", None),
        ("nan", None),
        ("9" * 40 + "s", None),
        ("١s", None),
    ],
)
def test_durations(text: str, seconds: float | None) -> None:
    assert parse_duration(text) == (None if seconds is None else pytest.approx(seconds))


CASES = {
    "nothing": ({}, None),
    "seconds": ({"retry-after": "7"}, 7.0),
    "a date": ({"retry-after": "Mon, 20 Oct 2025 22:41:30 GMT"}, 90.0),
    "a date that has passed": ({"retry-after": "Mon, 20 Oct 2025 22:00:00 GMT"}, 0.0),
    "a date of no zone": ({"retry-after": "Mon, 20 Oct 2025 22:41:30"}, None),
    "no date": ({"retry-after": "Sometime"}, None),
    "milliseconds win, being finer": ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5),
    "bad milliseconds do not": ({"retry-after-ms": "soon", "retry-after": "2"}, 2.0),
    "OpenAI's requests are used up": (
        {
            "x-ratelimit-remaining-requests": "0",
            "x-ratelimit-reset-requests": "8.64s",
            "x-ratelimit-remaining-tokens": "1000",
            "x-ratelimit-reset-tokens": "6m0s",
        },
        8.64,
    ),
    "OpenAI's both are used up": (
        {
            "x-ratelimit-remaining-requests": "0",
            "x-ratelimit-reset-requests": "8.64s",
            "x-ratelimit-remaining-tokens": "0",
            "x-ratelimit-reset-tokens": "6m0s",
        },
        360.0,
    ),
    "too large a request for what is left": (
        {
            "x-ratelimit-remaining-requests": "10",
            "x-ratelimit-reset-requests": "1h",
            "x-ratelimit-remaining-tokens": "5",
            "x-ratelimit-reset-tokens": "20ms",
        },
        0.02,
    ),
    "a reset without what remains": ({"x-ratelimit-reset-tokens": "1m3.5s"}, 63.5),
    "a word for a reset": ({"x-ratelimit-reset-tokens": "tomorrow"}, None),
    "Anthropic's output tokens are used up": (
        {
            "anthropic-ratelimit-requests-remaining": "49",
            "anthropic-ratelimit-requests-reset": "2025-10-20T22:40:01Z",
            "anthropic-ratelimit-output-tokens-remaining": "0",
            "anthropic-ratelimit-output-tokens-reset": "2025-10-20T22:40:45Z",
        },
        45.0,
    ),
    "Anthropic's time with another zone": ({"anthropic-ratelimit-tokens-reset": "2025-10-21T00:41:00+02:00"}, 60.0),
    "a time of no zone": ({"anthropic-ratelimit-tokens-reset": "2025-10-20T22:41:00"}, None),
    "a time far away": ({"anthropic-ratelimit-tokens-reset": "9999-12-31T23:59:59Z"}, float(MAX_RETRY_AFTER_SECONDS)),
    "Retry-After wins": ({"retry-after": "3", "anthropic-ratelimit-tokens-reset": "2025-10-20T22:41:00Z"}, 3.0),
    "too long": ({"retry-after": "999999999"}, float(MAX_RETRY_AFTER_SECONDS)),
    "not ASCII": ({"retry-after": "７"}, None),
}


@pytest.mark.parametrize("name", CASES)
def test_what_headers_say(name: str) -> None:
    headers, seconds = CASES[name]
    found = retry_after_of({key.encode(): value.encode() for key, value in headers.items()}, delay="", wall=WALL)
    assert found == (None if seconds is None else pytest.approx(seconds))


GEMINI = (
    b'{"error":{"code":429,"message":"You exceeded your current quota","status":"RESOURCE_EXHAUSTED","details":['
    b'{"@type":"type.googleapis.com/google.rpc.QuotaFailure","violations":[]},'
    b'{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"34.07s"}]}}'
)


def test_gemini_says_it_in_the_body() -> None:
    for body in (GEMINI, b"[" + GEMINI + b"]"):
        assert refusal_of(429, {}, body, guard=NO_SECRET, wall=WALL).retry_after == pytest.approx(34.07)
    assert refusal_of(429, {b"retry-after": b"2"}, GEMINI, guard=NO_SECRET, wall=WALL).retry_after == 2.0
    assert refusal_of(400, {}, GEMINI, guard=NO_SECRET, wall=WALL).retry_after is None


@pytest.mark.parametrize("status", [429, 503, 529])
def test_it_counts_where_waiting_helps(status: int) -> None:
    assert refusal_of(status, {b"retry-after": b"9"}, b"", guard=NO_SECRET, wall=WALL).retry_after == 9.0


@given(st.dictionaries(st.sampled_from(sorted(RESET_HEADERS)), st.binary(max_size=40)), st.text(max_size=40))
def test_anything_gives_a_bounded_time_or_none(headers: dict[bytes, bytes], delay: str) -> None:
    found = retry_after_of(headers, delay=delay, wall=WALL)
    assert found is None or 0.0 <= found <= MAX_RETRY_AFTER_SECONDS
