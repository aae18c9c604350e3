"""What a provider's refusal becomes for a client: an error in our own words (which headers come back is `head.py`'s business).

A provider's error body is parsed, never forwarded. Its message reaches the client only where the client can act on it (400, 404, 413, 422),
without control characters, cut, and without our credential. 401 and 403 say that OUR credential is bad: that is a 502 to the client, who
may otherwise throw its own key away.
"""

from __future__ import annotations

import msgspec

from cliproxy.bounds import MAX_ERROR_MESSAGE_CHARS, MAX_RETRY_AFTER_SECONDS
from cliproxy.egress.reflection import ReflectionGuard
from cliproxy.errors import ProviderRefusal, UpstreamError

JSON = b"application/json"
EVENT_STREAM = b"text/event-stream"


class _Refusal:
    """A row of the table: what a provider's status becomes."""

    __slots__ = ("code", "message", "status", "theirs")

    def __init__(self, status: int, code: str, message: str, *, theirs: bool = False) -> None:
        self.status = status
        self.code = code
        self.message = message
        self.theirs = theirs  # the provider's own message is for the client


_REFUSALS = {
    400: _Refusal(400, "provider_rejected_request", "The provider rejected the request.", theirs=True),
    401: _Refusal(502, "provider_credential_rejected", "The provider did not accept the gateway's credential."),
    402: _Refusal(502, "provider_account", "The gateway's account at the provider has no credit left."),
    403: _Refusal(502, "provider_credential_rejected", "The provider did not accept the gateway's credential for this."),
    404: _Refusal(404, "provider_not_found", "The provider does not know the model or resource.", theirs=True),
    408: _Refusal(504, "provider_timeout", "The provider did not answer in time."),
    413: _Refusal(413, "provider_request_too_large", "The provider finds the request too large.", theirs=True),
    422: _Refusal(400, "provider_rejected_request", "The provider rejected the request.", theirs=True),
    429: _Refusal(429, "provider_rate_limited", "The provider is limiting the rate of calls; try again later."),
    504: _Refusal(504, "provider_timeout", "The provider did not answer in time."),
}
_REDIRECT = _Refusal(502, "provider_redirected", "The provider answered with a redirect, which is never followed.")
_OTHER_4XX = _Refusal(502, "provider_refused", "The provider refused the request.")
_OTHER = _Refusal(502, "provider_error", "The provider had an internal error.")


class _ErrorBody(msgspec.Struct):
    message: str = ""


class _OpenAIError(msgspec.Struct):
    """`{"error": {"message": …}}`, or the `{"error": "…"}`, `{"message": …}`, `{"detail": …}` of servers that imitate it."""

    error: _ErrorBody | str | None = None
    message: str = ""
    detail: msgspec.Raw = msgspec.Raw(b"")


_decoder = msgspec.json.Decoder(_OpenAIError)


def verify_media_type(headers: dict[bytes, bytes], *, stream: bool) -> None:
    """Raise `UpstreamError` unless a successful answer is JSON, or a stream of events where one was asked for."""
    value = headers.get(b"content-type", b"")
    wanted = EVENT_STREAM if stream else JSON
    if value != wanted and value.partition(b";")[0].strip().lower() != wanted:
        raise UpstreamError("The provider answered with an unexpected content type.", code="provider_content_type")


def refusal_of(status: int, headers: dict[bytes, bytes], body: bytes, *, guard: ReflectionGuard) -> ProviderRefusal:
    """Return the error that a client gets for a provider's answer `status` (300 or above). `body` may be cut or empty; nothing in it is trusted."""
    row = _REFUSALS.get(status)
    if row is None:
        row = _REDIRECT if status < 400 else _OTHER_4XX if status < 500 else _OTHER
    message = row.message
    if row.theirs:
        theirs = _message_in(body, guard=guard)
        if theirs:
            message = f"{message[:-1]}: {theirs}"
    return ProviderRefusal(
        message, status=row.status, code=row.code, provider_status=status, retry_after=_retry_after(headers) if status in (429, 503, 529) else None
    )


def _message_in(body: bytes, *, guard: ReflectionGuard) -> str:
    try:
        parsed = _decoder.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return ""
    if isinstance(parsed.error, str):
        text = parsed.error
    else:
        text = parsed.error.message if parsed.error is not None else ""
    if not text:
        text = parsed.message
    if not text and bytes(parsed.detail)[:1] == b'"':
        text = msgspec.json.decode(bytes(parsed.detail), type=str)
    # Clean before cutting, or half a secret would be left at the cut; and once more, since taking characters out may have joined one.
    text = guard.clean(text.encode("utf-8", "replace")).decode("utf-8", "replace")
    text = "".join(character if character.isprintable() else " " for character in text)
    text = guard.clean(" ".join(text.split()).encode()).decode("utf-8", "replace")
    return text if len(text) <= MAX_ERROR_MESSAGE_CHARS else text[: MAX_ERROR_MESSAGE_CHARS - 1] + "…"


def _retry_after(headers: dict[bytes, bytes]) -> float | None:
    """Return the seconds of `Retry-After` (RFC 9110 §10.2.3). A date is not understood: clocks differ, and OpenAI sends seconds."""
    value = headers.get(b"retry-after", b"")
    if not value.isdigit() or len(value) > 8:
        return None
    return float(min(int(value), MAX_RETRY_AFTER_SECONDS))
