"""A provider's refusal in our words, and the head of its answer."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliproxy.dialects import Endpoint
from cliproxy.egress.answers import MAX_ERROR_MESSAGE_CHARS, refusal_of, verify_media_type
from cliproxy.egress.head import BrokenAnswer, read_head
from cliproxy.egress.reflection import NO_SECRET, ReflectionGuard
from cliproxy.errors import ProviderRefusal, UpstreamError
from cliproxy.providers.facts import Framing

SECRET = b"sk-proj-Zx9QvT4mW7kLp2Rb8Ny5Jc3Hf6Gd1As0"
GUARD = ReflectionGuard(SECRET)
WALL = 1_761_000_000.0  # 2025-10-20T22:40:00Z


def refused(status: int, headers: dict[bytes, bytes], body: bytes, *, guard: ReflectionGuard = NO_SECRET) -> ProviderRefusal:
    return refusal_of(status, headers, body, guard=guard, wall=WALL)


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
    503: (502, "provider_overloaded", False),
    504: (504, "provider_timeout", False),
    529: (502, "provider_overloaded", False),
    599: (502, "provider_error", False),
}


@pytest.mark.parametrize("status", MAPPED)
def test_every_status_has_its_meaning_for_the_client(status: int) -> None:
    ours, code, theirs = MAPPED[status]
    error = refused(status, {}, b'{"error":{"message":"the provider says so"}}', guard=GUARD)
    assert (error.status, error.code, error.provider_status) == (ours, code, status)
    assert ("the provider says so" in error.message) is theirs


def test_a_provider_that_rejects_our_credential_never_makes_a_401() -> None:
    assert {refused(status, {}, b"", guard=GUARD).status for status in range(300, 600)} == {400, 404, 413, 429, 502, 504}


@pytest.mark.parametrize(
    ("value", "seconds"), [(b"7", 7.0), (b"0", 0.0), (b"99999999", 86400.0), (b"1.5", 1.5), (b"-1", None), (b"", None), (b"9" * 400, None)]
)
def test_retry_after_is_a_number_of_seconds_and_bounded(value: bytes, seconds: float | None) -> None:
    assert refused(429, {b"retry-after": value}, b"", guard=GUARD).retry_after == seconds
    assert refused(400, {b"retry-after": value}, b"", guard=GUARD).retry_after is None


BODIES = {
    "OpenAI's": b'{"error":{"message":"no such model","type":"x","param":null,"code":null}}',
    "a plain string": b'{"error":"no such model"}',
    "at the top": b'{"message":"no such model"}',
    "FastAPI's": b'{"detail":"no such model"}',
    "Anthropic's": b'{"type":"error","error":{"type":"not_found_error","message":"no such model"},"request_id":"req_1"}',
    "Gemini's": b'{"error":{"code":404,"message":"no such model","status":"NOT_FOUND","details":[{"@type":"x"}]}}',
    "Gemini's in a list": b'[{"error":{"code":404,"message":"no such model","status":"NOT_FOUND"}}]',
    "Bedrock's": b'{"message":"no such model"}',
    "Bedrock's before it knows who calls": b'{"Message":"no such model"}',
    "Mistral's": b'{"object":"error","message":"no such model","type":"invalid_request_error","param":null,"code":"1500"}',
    "Mistral's with details": b'{"object":"error","message":{"detail":[{"type":"missing","msg":"no such model"}]}}',
    "FastAPI's with details": b'{"detail":[{"msg":"no such model"}]}',
    "xAI's": b'{"code":"not-found","error":"no such model"}',
    "OpenRouter's": b'{"error":{"message":"no such model","code":404,"metadata":{"provider_name":"x"}},"user_id":"u"}',
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_the_message_is_found(body: bytes) -> None:
    assert refused(400, {}, body, guard=GUARD).message == "The provider rejected the request: no such model"


NO_MESSAGE = {
    "nothing": b"",
    "no JSON": b"<html>no such model</html>",
    "cut": b'{"error":{"message":"no such',
    "a list": b'["no such model"]',
    "a number for a message": b'{"error":{"message":5}}',
    "a list of numbers for details": b'{"detail":[5,{"msg":5},{"loc":["a"]}]}',
    "an empty list": b"[]",
    "a list in a list": b'[[{"error":"no such model"}]]',
    "deep": b"[" * 100_000,
    "not UTF-8": b'{"error":{"message":"\xff\xfe"}}',
    "only control characters": b'{"error":{"message":"\\u0000\\u001b"}}',
}


@pytest.mark.parametrize("body", NO_MESSAGE.values(), ids=NO_MESSAGE.keys())
def test_without_a_usable_message_ours_stands_alone(body: bytes) -> None:
    assert refused(400, {}, body, guard=GUARD).message == "The provider rejected the request."


def test_a_message_loses_control_characters_and_length() -> None:
    message = refused(400, {}, json.dumps({"error": {"message": "a\x1b[31m\r\n\x00b\u202ec\u2028d" + "x" * 5000}}).encode(), guard=GUARD).message
    assert message.isprintable() and "a [31m b c d" in message
    assert len(message) == len("The provider rejected the request: ") + MAX_ERROR_MESSAGE_CHARS


@pytest.mark.parametrize("at", [0, 400, MAX_ERROR_MESSAGE_CHARS - 45, MAX_ERROR_MESSAGE_CHARS - 20, MAX_ERROR_MESSAGE_CHARS - 1])
def test_a_secret_in_a_message_is_replaced_wherever_the_message_is_cut(at: int) -> None:
    text = "y" * at + SECRET.decode() + "z" * 600
    message = refused(400, {}, json.dumps({"error": {"message": text}}).encode(), guard=GUARD).message
    assert SECRET[:12].decode() not in message


def test_escapes_do_not_hide_a_secret_from_the_guard() -> None:
    escaped = "".join(f"\\u{byte:04x}" for byte in SECRET)
    message = refused(422, {}, f'{{"error":{{"message":"key {escaped} is bad"}}}}'.encode(), guard=GUARD).message
    assert message == "The provider rejected the request: key [redacted] is bad"


@given(st.integers(300, 599), st.binary(max_size=200), st.binary(max_size=30))
def test_any_body_gives_a_bounded_refusal(status: int, body: bytes, value: bytes) -> None:
    error = refused(status, {b"retry-after": value}, body, guard=GUARD)
    assert len(error.message) < 600 and error.message.isprintable()


def test_details_say_where_and_what() -> None:
    body = b'{"detail":[{"type":"extra_forbidden","loc":["body","messages",0,"name"],"msg":"Extra inputs are not permitted","input":"secret prompt"}]}'
    assert refused(422, {}, body).message == "The provider rejected the request: body.messages.0.name: Extra inputs are not permitted"


def test_of_many_details_a_few_are_told() -> None:
    body = json.dumps({"detail": [{"msg": f"fault {number}"} for number in range(1000)]}).encode()
    assert refused(422, {}, body).message.endswith("fault 7")


# What vendors say under a status of another meaning: status, headers, body, and the status that was meant.
MEANT = {
    "OpenAI without credit": (429, {}, b'{"error":{"message":"quota","type":"insufficient_quota","code":"insufficient_quota"}}', 402),
    "Gemini with a bad key": (
        400,
        {},
        b'{"error":{"code":400,"message":"API key not valid.","status":"INVALID_ARGUMENT",'
        b'"details":[{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"API_KEY_INVALID"}]}}',
        401,
    ),
    "Anthropic without credit": (
        400,
        {},
        b'{"type":"error","error":{"type":"invalid_request_error","message":"Your credit balance is too low to access the Anthropic API."}}',
        402,
    ),
    "xAI with a bad key": (400, {}, b'{"code":"invalid-argument","error":"Incorrect API key provided: xa***. Get one at"}', 401),
    "Bedrock above its quota": (400, {b"x-amzn-errortype": b"ServiceQuotaExceededException:http://internal.amazon.com/"}, b'{"message":"quota"}', 429),
    "Bedrock throttling": (429, {b"x-amzn-errortype": b"ThrottlingException"}, b"", 429),
    "an ordinary mistake": (400, {}, b'{"error":{"message":"the text says: Incorrect API key provided","code":"invalid_value"}}', 400),
    "an error of the server": (500, {}, b'{"error":{"message":"x","code":"insufficient_quota"}}', 500),
}


@pytest.mark.parametrize("name", MEANT)
def test_what_a_vendor_says_under_another_status_has_the_meaning_of_the_right_one(name: str) -> None:
    status, headers, body, meant = MEANT[name]
    error = refused(status, headers, body)
    assert (error.provider_status, error.status) == (meant, MAPPED[meant][0])
    assert MAPPED[meant][2] or (error.message.startswith("The ") and "key" not in error.message.replace("credential", ""))


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=20) | st.floats(allow_nan=False),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(["error", "message", "detail", "details", "loc", "msg", "code", "type", "reason", "retryDelay", "Message"]), inner
            )
        ),
        max_leaves=30,
    )
)
def test_any_json_gives_a_refusal(value: object) -> None:
    for status in (400, 429, 503):
        error = refused(status, {}, json.dumps(value).encode())
        assert error.message.isprintable() and len(error.message) < 600


# --- media types -----------------------------------------------------------------------------------------------------

TYPES = [
    (Endpoint.CHAT_COMPLETIONS, False, b"application/json", True),
    (Endpoint.CHAT_COMPLETIONS, False, b"application/json; charset=utf-8", True),
    (Endpoint.CHAT_COMPLETIONS, False, b"Application/JSON", True),
    (Endpoint.CHAT_COMPLETIONS, False, b"text/event-stream", False),
    (Endpoint.CHAT_COMPLETIONS, False, b"audio/mpeg", False),
    (Endpoint.CHAT_COMPLETIONS, False, b"text/plain", False),
    (Endpoint.CHAT_COMPLETIONS, True, b"text/event-stream", True),
    (Endpoint.CHAT_COMPLETIONS, True, b"application/vnd.amazon.eventstream", False),
    (Endpoint.SPEECH, False, b"audio/mpeg", True),
    (Endpoint.SPEECH, False, b"audio/x-wav", True),
    (Endpoint.SPEECH, False, b"application/octet-stream", True),
    (Endpoint.SPEECH, False, b"application/json", False),
    (Endpoint.SPEECH, False, b"text/html", False),
    (Endpoint.SPEECH, False, b"audio/mpeg\r\nx", False),
    (Endpoint.SPEECH, False, b"audio/", False),
    (Endpoint.SPEECH, True, b"text/event-stream", True),
    (Endpoint.SPEECH, True, b"audio/mpeg", False),
    (Endpoint.TRANSCRIPTIONS, False, b"application/json", True),
    (Endpoint.TRANSCRIPTIONS, False, b"text/plain; charset=utf-8", True),
    (Endpoint.TRANSCRIPTIONS, False, b"text/vtt", True),
    (Endpoint.TRANSCRIPTIONS, False, b"text/html", False),
    (Endpoint.TRANSLATIONS, False, b"application/x-subrip", True),
    (Endpoint.TRANSLATIONS, True, b"text/event-stream", True),
    (Endpoint.IMAGES, False, b"image/png", False),
]


@pytest.mark.parametrize(("endpoint", "stream", "value", "good"), TYPES)
def test_each_endpoint_has_its_media_types(endpoint: Endpoint, stream: bool, value: bytes, good: bool) -> None:
    if good:
        assert verify_media_type({b"content-type": value}, endpoint=endpoint, stream=stream) == value.partition(b";")[0].lower()
    else:
        with pytest.raises(UpstreamError):
            verify_media_type({b"content-type": value}, endpoint=endpoint, stream=stream)


def test_a_stream_in_awss_framing_has_awss_media_type() -> None:
    headers = {b"content-type": b"application/vnd.amazon.eventstream"}
    assert verify_media_type(headers, endpoint=Endpoint.CONVERSE, stream=True, framing=Framing.AWS_EVENT_STREAM) == headers[b"content-type"]
    for value, stream in ((b"text/event-stream", True), (headers[b"content-type"], False)):
        with pytest.raises(UpstreamError):
            verify_media_type({b"content-type": value}, endpoint=Endpoint.CONVERSE, stream=stream, framing=Framing.AWS_EVENT_STREAM)


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


@pytest.mark.parametrize("name", ["request-id", "x-amzn-RequestId", "apim-request-id", "mistral-correlation-id"])
def test_every_vendors_request_id_has_one_name(name: str) -> None:
    assert head((name, "req-1"), ("Content-Length", "2"))[0] == {b"x-request-id": b"req-1"}
    assert head((name, "theirs"), ("X-Request-Id", "ours"), ("Content-Length", "2"))[0] == {b"x-request-id": b"ours"}
    assert head((name, "a" * 513), ("Content-Length", "2"))[0] == {}
    assert head((name, SECRET.decode()), guard=GUARD)[0] == {b"x-request-id": b"[redacted]"}


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
    verify_media_type({b"content-type": value}, endpoint=Endpoint.CHAT_COMPLETIONS, stream=stream)
    with pytest.raises(UpstreamError):
        verify_media_type({b"content-type": value}, endpoint=Endpoint.CHAT_COMPLETIONS, stream=not stream)


@pytest.mark.parametrize("headers", [{}, {b"content-type": b""}, {b"content-type": b"text/html"}, {b"content-type": b"application/jsonp"}])
def test_another_media_type_is_the_providers_fault(headers: dict[bytes, bytes]) -> None:
    with pytest.raises(UpstreamError) as caught:
        verify_media_type(headers, endpoint=Endpoint.CHAT_COMPLETIONS, stream=False)
    assert (caught.value.status, caught.value.code) == (502, "provider_content_type")
