"""What a provider's refusal becomes for a client: an error in our own words (which headers come back is `head.py`'s business).

A provider's error body is parsed, never forwarded. Its message reaches the client only where the client can act on it (400, 404, 413, 422),
without control characters, cut, and without our credential. 401 and 403 say that OUR credential is bad: that is a 502 to the client, who
may otherwise throw its own key away. Some vendors say such things under another status; a table tells which (`_MEANT`), and `provider_status`
is then the status that was meant, so that the same thing has the same consequences at every vendor.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from cliproxy.dialects import Endpoint
from cliproxy.egress.reflection import ReflectionGuard
from cliproxy.egress.retry_after import retry_after_of
from cliproxy.errors import ProviderRefusal, UpstreamError
from cliproxy.providers.facts import AWS_EVENT_STREAM, EVENT_STREAM, JSON, Framing

MAX_ERROR_MESSAGE_CHARS = 512
MAX_ERROR_DETAILS = 8  # of a provider's error that are looked at; Gemini sends two or three

_AUDIO = re.compile(rb"audio/[a-z0-9][a-z0-9.+-]{0,63}|application/octet-stream")
_TRANSCRIPT = re.compile(rb"application/json|text/(?:plain|vtt|srt|x-subrip)|application/(?:x-subrip|srt)")
_MEDIA_TYPES = {Endpoint.SPEECH: _AUDIO, Endpoint.TRANSCRIPTIONS: _TRANSCRIPT, Endpoint.TRANSLATIONS: _TRANSCRIPT}


class _Refusal:
    """A row of the table: what a provider's status becomes."""

    __slots__ = ("code", "message", "status", "theirs")

    def __init__(self, status: int, code: str, message: str, *, theirs: bool = False) -> None:
        self.status = status
        self.code = code
        self.message = message
        self.theirs = theirs  # the provider's own message is for the client


_OVERLOADED = _Refusal(502, "provider_overloaded", "The provider is overloaded; try again later.")
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
    503: _OVERLOADED,
    504: _Refusal(504, "provider_timeout", "The provider did not answer in time."),
    529: _OVERLOADED,  # Anthropic's overloaded_error
}
_REDIRECT = _Refusal(502, "provider_redirected", "The provider answered with a redirect, which is never followed.")
_OTHER_4XX = _Refusal(502, "provider_refused", "The provider refused the request.")
_OTHER = _Refusal(502, "provider_error", "The provider had an internal error.")
_WAITS = frozenset({429, 503, 529})

# Words in an error's `code`, `type`, `status` or `reason` (or in x-amzn-errortype) that say more than its 4xx status does.
_MEANT = {
    "insufficient_quota": 402,  # OpenAI, as 429: no credit left
    "billing_error": 402,  # Anthropic
    "API_KEY_INVALID": 401,  # Gemini, as 400
    "ThrottlingException": 429,  # Bedrock
    "ServiceQuotaExceededException": 429,  # Bedrock, as 400
    "flagged_input": 400,  # OpenRouter's moderation, as 403: the request's own fault, which must cool nothing for others
}
# How a message begins that says more than its status does, where there is no word for it.
_MEANT_BY_MESSAGE = (
    (400, "Your credit balance is too low", 402),  # Anthropic
    (400, "Incorrect API key provided", 401),  # xAI
    (403, "Content violates usage guidelines", 400),  # xAI
    (404, "No endpoints found that support", 400),  # OpenRouter: the model is there, but not with tools, pictures, ...
    (403, "CachedContent not found", 400),  # Gemini
    (403, "You do not have permission to access the File", 400),  # Gemini
)


class _Said(msgspec.Struct, frozen=True):
    """What can be read in an error's body: its message, the words that tell its kind, and how long to wait."""

    message: str = ""
    words: tuple[str, ...] = ()
    delay: str = ""


_decoder = msgspec.json.Decoder()


def verify_media_type(headers: dict[bytes, bytes], *, endpoint: Endpoint, stream: bool, framing: Framing = Framing.SSE) -> bytes:
    """Return the media type of a successful answer, without its parameters. Raises `UpstreamError` unless it is a stream of events where one was asked for,
    sound for speech, JSON or plain text for a transcript, and JSON for everything else."""
    value = headers.get(b"content-type", b"")
    wanted = (EVENT_STREAM if framing is Framing.SSE else AWS_EVENT_STREAM) if stream else JSON
    other = None if stream else _MEDIA_TYPES.get(endpoint)
    if value == wanted and other is None:
        return value
    value = value.partition(b";")[0].strip().lower()
    if value != wanted if other is None else other.fullmatch(value) is None:
        raise UpstreamError("The provider answered with an unexpected content type.", code="provider_content_type")
    return value


def refusal_of(status: int, headers: dict[bytes, bytes], body: bytes, *, guard: ReflectionGuard, wall: float) -> ProviderRefusal:
    """Return the error that a client gets for a provider's answer `status` (300 or above). `body` may be cut or empty; nothing in it is trusted.

    `wall` is the time in seconds since 1970, for providers that name the moment from which they take calls again.
    """
    said = _read(body)
    if 400 <= status < 500:
        status = _meant(status, headers, said)
    row = _REFUSALS.get(status)
    if row is None:
        row = _REDIRECT if status < 400 else _OTHER_4XX if status < 500 else _OTHER
    message = row.message
    if row.theirs:
        theirs = _clean(said.message, guard=guard)
        if theirs:
            message = f"{message[:-1]}: {theirs}"
    retry_after = retry_after_of(headers, delay=said.delay, wall=wall) if status in _WAITS else None
    return ProviderRefusal(message, status=row.status, code=row.code, provider_status=status, retry_after=retry_after)


def _meant(status: int, headers: dict[bytes, bytes], said: _Said) -> int:
    aws = headers.get(b"x-amzn-errortype", b"").partition(b":")[0].decode("ascii", "replace")
    for word in (aws, *said.words):
        if word in _MEANT:
            return _MEANT[word]
    for stated, start, meant in _MEANT_BY_MESSAGE:
        if status == stated and said.message.startswith(start):
            return meant
    return status


def _read(body: bytes) -> _Said:
    """Read `{"error": {"message": …}}` (OpenAI, Anthropic, Gemini, which may put it into a list), `{"error": "…"}` (Ollama, xAI), `{"message": …}` (Bedrock,
    Mistral), `{"detail": …}` (FastAPI: vLLM, Mistral)."""
    try:
        value = _decoder.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return _Said()
    if isinstance(value, list) and value:
        value = value[0]
    if not isinstance(value, dict):
        return _Said()
    error = value.get("error")
    inner = error if isinstance(error, dict) else {}
    message = _first_text(inner.get("message"), error, value.get("message"), value.get("Message"), value.get("detail"))
    details = inner.get("details")
    rows = [row for row in details[:MAX_ERROR_DETAILS] if isinstance(row, dict)] if isinstance(details, list) else []
    words = (*(inner.get(key) for key in ("code", "type", "status")), value.get("code"), value.get("type"), *(row.get("reason") for row in rows))
    metadata = inner.get("metadata")
    if isinstance(metadata, dict) and "flagged_input" in metadata:
        words = (*words, "flagged_input")
    delays = [delay for row in rows if isinstance(delay := row.get("retryDelay"), str)]
    return _Said(message, tuple(word for word in words if isinstance(word, str)), delays[0] if delays else "")


def _first_text(*candidates: Any) -> str:
    for candidate in candidates:
        if isinstance(candidate, dict):  # Mistral: {"message": {"detail": [...]}}
            candidate = candidate.get("detail")
        if isinstance(candidate, list):
            candidate = "; ".join(filter(None, (_detail(row) for row in candidate[:MAX_ERROR_DETAILS] if isinstance(row, dict))))
        if isinstance(candidate, str) and candidate:
            return candidate
    return ""


def _detail(row: dict[Any, Any]) -> str:
    """FastAPI's `{"loc": ["body", "messages", 0], "msg": "…"}`."""
    where, what = row.get("loc"), row.get("msg")
    path = ".".join(str(part) for part in where[:MAX_ERROR_DETAILS] if isinstance(part, str | int)) if isinstance(where, list) else ""
    return f"{path}: {what}" if path and isinstance(what, str) else what if isinstance(what, str) else ""


def _clean(text: str, *, guard: ReflectionGuard) -> str:
    # Clean before cutting, or half a secret would be left at the cut; and once more, since taking characters out may have joined one.
    text = guard.clean(text.encode("utf-8", "replace")).decode("utf-8", "replace")
    text = "".join(character if character.isprintable() else " " for character in text)
    text = guard.clean(" ".join(text.split()).encode()).decode("utf-8", "replace")
    return text if len(text) <= MAX_ERROR_MESSAGE_CHARS else text[: MAX_ERROR_MESSAGE_CHARS - 1] + "…"
