"""The head of a provider's answer: where its body ends, and which of its fields come back to a client.

Where two readers could disagree on the end of the body the answer is refused (RFC 9112 §6.3 and §11.2); llhttp refuses most of these before us,
and this holds without it. Fields come back by allow-list.
"""

from __future__ import annotations

from cliproxy.egress.reflection import ReflectionGuard
from cliproxy.egress.retry_after import RESET_HEADERS

MAX_KEPT_HEADER_BYTES = 512  # one response header that we pass on

# What comes back, by its name in lower case. Everything else ends here: cookies, CORS, caching, the provider's account and edge details.
KEPT_HEADERS = RESET_HEADERS | {
    b"content-type",
    b"x-request-id",
    b"openai-processing-ms",
    b"openai-model",
    b"x-ratelimit-limit-requests",
    b"x-ratelimit-limit-tokens",
    b"x-amzn-errortype",
}
REQUEST_ID = b"x-request-id"
# The vendors' other names for it, each kept as `x-request-id` where the answer has no such field itself.
_REQUEST_IDS = frozenset({b"request-id", b"x-amzn-requestid", b"apim-request-id", b"mistral-correlation-id"})
_FRAMING_HEADERS = frozenset({b"content-length", b"transfer-encoding", b"content-encoding", b"upgrade"})
# Spellings that some readers take for the real ones.
_CONFUSABLE = frozenset({b"content_length", b"transfer_encoding"})


class BrokenAnswer(Exception):
    """The answer breaks a rule of ours; the text says which, and is fit for a client."""


def read_head(fields: list[tuple[bytes, bytes]], *, status: int, version: str, guard: ReflectionGuard) -> tuple[dict[bytes, bytes], bool]:
    """Return the fields that come back, and whether the body ends only with the connection. Raises `BrokenAnswer`.

    Names are in lower case; a value that is too long or not printable ASCII is left out; of several with one name the first counts.
    """
    kept: dict[bytes, bytes] = {}
    other_id = b""
    framing: dict[bytes, bytes] = {}
    for name, value in fields:
        name = name.lower()
        if name in KEPT_HEADERS:
            if name not in kept and _fit(value):
                kept[name] = guard.clean(value)
        elif name in _REQUEST_IDS:
            if not other_id and _fit(value):
                other_id = guard.clean(value)
        elif name in _FRAMING_HEADERS:
            if name in framing:
                raise BrokenAnswer(f"The provider's answer has {name.decode()} twice.")
            framing[name] = value
        elif name in _CONFUSABLE:
            raise BrokenAnswer("The provider's answer has a misspelt framing header.")
    if other_id and REQUEST_ID not in kept:
        kept[REQUEST_ID] = other_id
    if b"upgrade" in framing:
        raise BrokenAnswer("The provider wants to switch protocols.")
    if framing.get(b"content-encoding", b"identity").lower() != b"identity":
        raise BrokenAnswer("The provider sent a compressed answer, which was not asked for.")
    length = framing.get(b"content-length")
    coding = framing.get(b"transfer-encoding")
    if version not in ("1.1", "1.0"):
        raise BrokenAnswer("The provider does not answer in HTTP/1.1.")
    if coding is not None:
        if coding.lower() != b"chunked" or length is not None or version != "1.1":
            raise BrokenAnswer("The length of the provider's answer is ambiguous.")
        return kept, False
    if length is not None:
        if not length.isdigit() or len(length) > 12:
            raise BrokenAnswer("The length of the provider's answer is no number.")
        return kept, False
    return kept, status not in (204, 304)


def _fit(value: bytes) -> bool:
    return len(value) <= MAX_KEPT_HEADER_BYTES and value.isascii() and value.decode("ascii").isprintable()
