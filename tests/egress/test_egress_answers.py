"""A provider's refusal in our words, and the head of its answer."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliproxy.bounds import MAX_ERROR_MESSAGE_CHARS
from cliproxy.egress.answers import refusal_of, verify_media_type
from cliproxy.egress.head import BrokenAnswer, read_head
from cliproxy.egress.reflection import NO_SECRET, ReflectionGuard
from cliproxy.errors import UpstreamError

SECRET = b"sk-proj-Zx9QvT4mW7kLp2Rb8Ny5Jc3Hf6Gd1As0"
GUARD = ReflectionGuard(SECRET)

# provider's status: what the client gets, under which code, and whether the provider's message may come along
MAPPED = {
    300: (502, "provider_redirected", False),
    302: (502, "provider_redirected", False),
    304: (502, "provider_redirected", False),
    307: (502, "provider_redirected", False),
    400: (400, "provider_rejected_request", True),
    401: (502, "provider_credential_rejected", False),
    402: (502, "provider_account", False),
    403: (502, "provider_credential_rejected", False),
    404: (404, "provider_not_found", True),
    405: (502, "provider_refused", False),
    408: (504, "provider_timeout", False),
    409: (502, "provider_refused", False),
    413: (413, "provider_request_too_large", True),
    422: (400, "provider_rejected_request", True),
    429: (429, "provider_rate_limited", False),
    451: (502, "provider_refused", False),
    500: (502, "provider_error", False),
    502: (502, "provider_error", False),
    503: (502, "provider_error", False),
    504: (504, "provider_timeout", False),
    529: (502, "provider_error", False),
    599: (502, "provider_error", False),
}


@pytest.mark.parametrize("status", MAPPED)
def test_every_status_has_its_meaning_for_the_client(status: int) -> None:
    ours, code, theirs = MAPPED[status]
    error = refusal_of(status, {}, b'{"error":{"message":"the provider says so"}}', guard=GUARD)
    assert (error.status, error.code, error.provider_status) == (ours, code, status)
    assert ("the provider says so" in error.message) is theirs


def test_a_provider_that_rejects_our_credential_never_makes_a_401() -> None:
    assert {refusal_of(status, {}, b"", guard=GUARD).status for status in range(300, 600)} == {400, 404, 413, 429, 502, 504}


@pytest.mark.parametrize(
    ("value", "seconds"), [(b"7", 7.0), (b"0", 0.0), (b"99999999", 86400.0), (b"1.5", None), (b"-1", None), (b"", None), (b"9" * 400, None)]
)
def test_retry_after_is_whole_seconds_and_bounded(value: bytes, seconds: float | None) -> None:
    assert refusal_of(429, {b"retry-after": value}, b"", guard=GUARD).retry_after == seconds
    assert refusal_of(400, {b"retry-after": value}, b"", guard=GUARD).retry_after is None


BODIES = {
    "OpenAI's": b'{"error":{"message":"no such model","type":"x","param":null,"code":null}}',
    "a plain string": b'{"error":"no such model"}',
    "at the top": b'{"message":"no such model"}',
    "FastAPI's": b'{"detail":"no such model"}',
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_the_message_is_found(body: bytes) -> None:
    assert refusal_of(400, {}, body, guard=GUARD).message == "The provider rejected the request: no such model"


NO_MESSAGE = {
    "nothing": b"",
    "no JSON": b"<html>no such model</html>",
    "cut": b'{"error":{"message":"no such',
    "a list": b'["no such model"]',
    "a number for a message": b'{"error":{"message":5}}',
    "a list of details": b'{"detail":[{"msg":"no such model"}]}',
    "deep": b"[" * 100_000,
    "not UTF-8": b'{"error":{"message":"\xff\xfe"}}',
    "only control characters": b'{"error":{"message":"\\u0000\\u001b"}}',
}


@pytest.mark.parametrize("body", NO_MESSAGE.values(), ids=NO_MESSAGE.keys())
def test_without_a_usable_message_ours_stands_alone(body: bytes) -> None:
    assert refusal_of(400, {}, body, guard=GUARD).message == "The provider rejected the request."


def test_a_message_loses_control_characters_and_length() -> None:
    message = refusal_of(400, {}, json.dumps({"error": {"message": "a\x1b[31m\r\n\x00b\u202ec\u2028d" + "x" * 5000}}).encode(), guard=GUARD).message
    assert message.isprintable() and "a [31m b c d" in message
    assert len(message) == len("The provider rejected the request: ") + MAX_ERROR_MESSAGE_CHARS


@pytest.mark.parametrize("at", [0, 400, MAX_ERROR_MESSAGE_CHARS - 45, MAX_ERROR_MESSAGE_CHARS - 20, MAX_ERROR_MESSAGE_CHARS - 1])
def test_a_secret_in_a_message_is_replaced_wherever_the_message_is_cut(at: int) -> None:
    text = "y" * at + SECRET.decode() + "z" * 600
    message = refusal_of(400, {}, json.dumps({"error": {"message": text}}).encode(), guard=GUARD).message
    assert SECRET[:12].decode() not in message


def test_escapes_do_not_hide_a_secret_from_the_guard() -> None:
    escaped = "".join(f"\\u{byte:04x}" for byte in SECRET)
    message = refusal_of(422, {}, f'{{"error":{{"message":"key {escaped} is bad"}}}}'.encode(), guard=GUARD).message
    assert message == "The provider rejected the request: key [redacted] is bad"


@given(st.integers(300, 599), st.binary(max_size=200), st.binary(max_size=30))
def test_any_body_gives_a_bounded_refusal(status: int, body: bytes, value: bytes) -> None:
    error = refusal_of(status, {b"retry-after": value}, body, guard=GUARD)
    assert len(error.message) < 600 and error.message.isprintable()


# --- head ------------------------------------------------------------------------------------------------------------


def head(*fields: tuple[str, str], status: int = 200, version: str = "1.1", guard: ReflectionGuard = NO_SECRET) -> tuple[dict[bytes, bytes], bool]:
    return read_head([(name.encode(), value.encode("latin-1")) for name, value in fields], status=status, version=version, guard=guard)


def test_only_listed_fields_come_back() -> None:
    kept, _ = head(
        ("Content-Type", "application/json"),
        ("X-Request-ID", "req-1"),
        ("Retry-After", "3"),
        ("OpenAI-Processing-MS", "12"),
        ("x-ratelimit-remaining-tokens", "5"),
        ("Set-Cookie", "session=1"),
        ("Access-Control-Allow-Origin", "*"),
        ("OpenAI-Organization", "acme"),
        ("Server", "cloudflare"),
        ("Location", "https://attacker.example"),
        ("Content-Length", "2"),
    )
    assert kept == {
        b"content-type": b"application/json",
        b"x-request-id": b"req-1",
        b"retry-after": b"3",
        b"openai-processing-ms": b"12",
        b"x-ratelimit-remaining-tokens": b"5",
    }


@pytest.mark.parametrize("value", ["a" * 513, "caf\xe9", "a\x01b", "a\tb", "a\x7fb"], ids=["long", "not ASCII", "control", "tab", "delete"])
def test_a_value_that_could_not_be_written_back_is_left_out(value: str) -> None:
    assert head(("X-Request-Id", value), ("Content-Length", "2"))[0] == {}


def test_the_first_of_two_counts() -> None:
    assert head(("X-Request-Id", "first"), ("x-request-id", "second"))[0] == {b"x-request-id": b"first"}


def test_a_secret_in_a_field_is_replaced() -> None:
    assert head(("X-Request-Id", f"Bearer {SECRET.decode()}"), guard=GUARD)[0] == {b"x-request-id": b"Bearer [redacted]"}


def test_how_the_body_ends() -> None:
    assert head(("Content-Length", "12"))[1] is False
    assert head(("Transfer-Encoding", "Chunked"))[1] is False
    assert head(("Content-Encoding", "identity"), ("Content-Length", "0"))[1] is False
    assert head()[1] is True
    assert head(version="1.0")[1] is True
    assert head(status=204)[1] is False


BROKEN = {
    "both": (("Content-Length", "2"), ("Transfer-Encoding", "chunked")),
    "two lengths": (("Content-Length", "2"), ("content-length", "2")),
    "two codings": (("Transfer-Encoding", "chunked"), ("Transfer-Encoding", "chunked")),
    "a list of lengths": (("Content-Length", "2, 2"),),
    "a signed length": (("Content-Length", "+2"),),
    "a hexadecimal length": (("Content-Length", "0x2"),),
    "an empty length": (("Content-Length", ""),),
    "a length in another script": (("Content-Length", "\xb2"),),
    "a length beyond counting": (("Content-Length", "9" * 20),),
    "an unknown coding": (("Transfer-Encoding", "gzip"),),
    "gzip, chunked": (("Transfer-Encoding", "gzip, chunked"),),
    "chunked, chunked": (("Transfer-Encoding", "chunked, chunked"),),
    "identity": (("Transfer-Encoding", "identity"),),
    "a misspelt coding": (("Transfer_Encoding", "chunked"), ("Content-Length", "2")),
    "compressed": (("Content-Encoding", "gzip"), ("Content-Length", "2")),
    "compressed twice": (("Content-Encoding", "identity"), ("Content-Encoding", "br")),
    "an upgrade": (("Upgrade", "h2c"), ("Content-Length", "2")),
}


@pytest.mark.parametrize("fields", BROKEN.values(), ids=BROKEN.keys())
def test_an_ambiguous_head_is_refused(fields: tuple[tuple[str, str], ...]) -> None:
    with pytest.raises(BrokenAnswer):
        head(*fields)


@pytest.mark.parametrize("version", ["0.9", "2.0", "1.2", ""])
def test_another_version_is_refused(version: str) -> None:
    with pytest.raises(BrokenAnswer):
        head(("Content-Length", "2"), version=version)


def test_chunks_in_http_1_0_are_refused() -> None:
    with pytest.raises(BrokenAnswer):
        head(("Transfer-Encoding", "chunked"), version="1.0")


# --- media type ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "stream"),
    [(b"application/json", False), (b"Application/JSON ; charset=utf-8", False), (b"text/event-stream", True), (b"text/event-stream;charset=UTF-8", True)],
)
def test_the_expected_media_type_passes(value: bytes, stream: bool) -> None:
    verify_media_type({b"content-type": value}, stream=stream)
    with pytest.raises(UpstreamError):
        verify_media_type({b"content-type": value}, stream=not stream)


@pytest.mark.parametrize("headers", [{}, {b"content-type": b""}, {b"content-type": b"text/html"}, {b"content-type": b"application/jsonp"}])
def test_another_media_type_is_the_providers_fault(headers: dict[bytes, bytes]) -> None:
    with pytest.raises(UpstreamError) as caught:
        verify_media_type(headers, stream=False)
    assert (caught.value.status, caught.value.code) == (502, "provider_content_type")
