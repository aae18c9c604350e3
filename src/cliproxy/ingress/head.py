"""One request head, judged on its raw bytes: what we use of it, or `FramingError`.

What always holds: every line's name is a token and its value holds no control byte; what decides framing or identity stands there once, in the one
spelling that everybody reads the same way (RFC 9110, RFC 9112; where they allow a tolerance, it is not used). Messages never repeat what was sent.
"""

from __future__ import annotations

import re
from typing import Final, NoReturn

import msgspec

from cliproxy.bounds import MAX_CONTENT_LENGTH_DIGITS
from cliproxy.errors import FramingError


class Head(msgspec.Struct, frozen=True, gc=False):
    """What we use of a head. `length` is the number of body bytes that follow, 0 when `chunked`; `host` None only in HTTP/1.0."""

    method: bytes
    path: bytes
    query: bytes | None
    host: bytes | None
    authorization: bytes | None
    api_key: bytes | None
    content_type: bytes | None
    accept: bytes | None
    keep_alive: bool
    http_1_0: bool
    length: int
    chunked: bool
    expects_continue: bool
    goog_api_key: bytes | None = None
    anthropic_version: bytes | None = None
    session: bytes | None = None

    def __repr__(self) -> str:
        return f"Head({self.method!r}, {self.path!r})"

    def __rich_repr__(self) -> list[tuple[str, object]]:  # msgspec's own would show the credentials
        return [("method", self.method), ("path", self.path)]


# Our vocabulary: the methods that some HTTP API uses. CONNECT and PRI change the protocol; the rest is unknown, and unknown means no.
METHODS: Final = (b"GET", b"POST", b"HEAD", b"OPTIONS", b"PUT", b"PATCH", b"DELETE", b"TRACE")

# RFC 9112 §3 with single spaces and origin-form only; RFC 3986 §3.3 and §3.4 characters, percent-encoding well-formed.
REQUEST_LINE: Final = re.compile(
    rb"(" + b"|".join(METHODS) + rb") (/(?:[A-Za-z0-9\-._~!$&'()*+,;=:@/]|%[0-9A-Fa-f]{2})*)"
    rb"(?:\?((?:[A-Za-z0-9\-._~!$&'()*+,;=:@/?]|%[0-9A-Fa-f]{2})*))? HTTP/1\.([01])"
)
_HOST: Final = re.compile(rb"(?:[A-Za-z0-9._~\-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")

_NOT_CONTROL: Final = bytes(byte for byte in range(256) if (byte >= 0x20 and byte != 0x7F) or byte == 0x09)  # RFC 9110 §5.5, obs-text included
# RFC 9110 §5.6.2 without the underscore, which others read as a hyphen (`Transfer_Encoding`).
_NAME_BYTES: Final = b"!#$%&'*+-.^`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

# Places in the list of values that `_read_head` fills.
_HOST_AT, _LENGTH, _CODING, _CONNECTION, _AUTHORIZATION, _API_KEY, _CONTENT_TYPE, _ACCEPT, _EXPECT, _CONTENT_CODING, _REFUSED = range(11)
_GOOG_API_KEY, _ANTHROPIC_VERSION, _SESSION = range(11, 14)
_PLACES: Final = 14
_IGNORED: Final = -1

_USED_NAMES: Final = {
    b"host": _HOST_AT,
    b"content-length": _LENGTH,
    b"transfer-encoding": _CODING,
    b"connection": _CONNECTION,
    b"authorization": _AUTHORIZATION,
    b"x-api-key": _API_KEY,
    b"x-goog-api-key": _GOOG_API_KEY,
    b"anthropic-version": _ANTHROPIC_VERSION,
    b"x-session-id": _SESSION,
    b"content-type": _CONTENT_TYPE,
    b"accept": _ACCEPT,
    b"expect": _EXPECT,
    b"content-encoding": _CONTENT_CODING,
    b"upgrade": _REFUSED,
    b"trailer": _REFUSED,
}
_LISTS: Final = frozenset((_CONNECTION, _ACCEPT))  # may come on several lines (RFC 9110 §5.3); everything else that we use must be single

_USUAL_NAMES: Final = (
    b"user-agent accept-encoding accept-language cache-control pragma origin referer cookie te date via dnt priority x-request-id x-real-ip "
    b"x-forwarded-for x-forwarded-proto x-forwarded-host x-forwarded-port forwarded traceparent tracestate openai-organization openai-project "
    b"x-stainless-lang x-stainless-package-version x-stainless-os x-stainless-arch x-stainless-runtime x-stainless-runtime-version "
    b"x-stainless-async x-stainless-retry-count x-stainless-read-timeout x-stainless-timeout x-stainless-helper-method x-stainless-raw-response "
    b"x-stainless-helper x-goog-api-client x-goog-user-project anthropic-beta idempotency-key sec-fetch-mode sec-fetch-site sec-fetch-dest keep-alive"
).split()


def _spellings(name: bytes) -> tuple[bytes, bytes, bytes]:
    return name, name.title(), b"-".join(part.upper() if part in (b"os", b"api", b"te", b"ip", b"id") else part.title() for part in name.split(b"-"))


# Names as they are usually spelled, so that most lines need one look-up. Fixed: strangers can't make it grow.
_NAMES: Final = {spelling: _USED_NAMES.get(name, _IGNORED) for name in (*_USED_NAMES, *_USUAL_NAMES) for spelling in _spellings(name)}


def parse_head(head: bytes, *, max_headers: int, max_body_bytes: int, known_host: bytes | None) -> Head:
    """Return what `head` (without the blank line that ends it) says. `known_host` was found valid before; it saves a look.

    Raises `FramingError` with 400, 413, 415, 417 or 431.
    """
    lines = head.split(b"\r\n")
    request_line = REQUEST_LINE.fullmatch(lines[0])
    if request_line is None:
        refuse("The request line is not valid HTTP/1.1.")
    # As many pairs as there are CRs and LFs in all: none is bare. No other control byte is left either.
    if head.translate(None, _NOT_CONTROL) != b"\r\n" * (len(lines) - 1):
        refuse("The request head contains control characters.")
    if len(lines) > max_headers + 1:
        refuse(f"The request has more than {max_headers} header lines.", status=431)
    values = _read_lines(lines)
    method, path, query, minor = request_line.groups()
    host = values[_HOST_AT]
    if host is None:
        if minor == b"1":  # RFC 9112 §3.2; HTTP/1.0 knows no Host
            refuse("The Host header is missing.")
    elif host != known_host and not _HOST.fullmatch(host):
        refuse("The Host header is not valid.")
    length, chunked = _judge_length(values[_LENGTH], values[_CODING], minor=minor, most=max_body_bytes)
    expect = values[_EXPECT]
    if expect is not None or values[_REFUSED] is not None or values[_CONTENT_CODING] is not None:
        _judge_rare(values, minor=minor)
    connection = values[_CONNECTION]
    keep_alive = minor == b"1" and (connection is None or not _says_close(connection))
    return Head(
        method,
        path,
        query,
        host,
        values[_AUTHORIZATION],
        values[_API_KEY],
        values[_CONTENT_TYPE],
        values[_ACCEPT],
        keep_alive,
        minor == b"0",
        length,
        chunked,
        expect is not None,
        values[_GOOG_API_KEY],
        values[_ANTHROPIC_VERSION],
        values[_SESSION],
    )


class PartialHead(msgspec.Struct, frozen=True, gc=False):
    """What a request that was refused before it was whole seems to say: in whose words its sender reads errors, and nothing else, hangs on it.

    Named as in `RawRequest`; of a header it knows only whether it is there.
    """

    path: bytes = b""
    anthropic_version: bool = False
    goog_api_key: bool = False


NOTHING: Final = PartialHead()
_PATH: Final = re.compile(rb"[A-Z]{3,7} (/[^ ?\r\n]*)")
_ANTHROPIC_LINE: Final = re.compile(rb"\r\nanthropic-version:", re.IGNORECASE)
_GOOG_LINE: Final = re.compile(rb"\r\nx-goog-api-key:", re.IGNORECASE)


def partial_head_of(head: bytes) -> PartialHead:
    """Return what the beginning of a request seems to say, valid or not."""
    path = _PATH.match(head)
    if path is None:
        return NOTHING
    return PartialHead(path[1], _ANTHROPIC_LINE.search(head) is not None, _GOOG_LINE.search(head) is not None)


def refuse(message: str, *, status: int = 400) -> NoReturn:
    """Raise the error that ends the connection. The message never repeats what was sent."""
    raise FramingError(message, status=status)


def _read_lines(lines: list[bytes]) -> list[bytes | None]:
    """Return the values that we use, by place. Every name is checked; lines that begin with a blank (obs-fold, RFC 9112 §5.2) have none."""
    values: list[bytes | None] = [None] * _PLACES
    fields = iter(lines)
    next(fields)
    for line in fields:
        name, colon, value = line.partition(b":")
        if not colon:
            refuse("A header line has no colon.")
        place = _NAMES.get(name)
        if place is None:
            if not name or name.translate(None, _NAME_BYTES):
                refuse("A header name is not valid.")
            place = _USED_NAMES.get(name.lower(), _IGNORED)
        if place != _IGNORED:
            value = value.strip(b" \t")
            earlier = values[place]
            if earlier is not None:
                if place not in _LISTS:
                    refuse("A header that must be single is repeated.")
                value = earlier + b"," + value
            values[place] = value
    return values


def _judge_length(length: bytes | None, coding: bytes | None, *, minor: bytes, most: int) -> tuple[int, bool]:
    """Return how many bytes follow and whether the body is chunked. RFC 9112 §6.3, without its tolerance for lists and both headers."""
    if coding is not None:
        if length is not None:
            refuse("Content-Length and Transfer-Encoding are both present.")
        if coding != b"chunked" or minor == b"0":
            refuse("The Transfer-Encoding is not 'chunked', or the request is not HTTP/1.1.")
        return 0, True
    if length is None:
        return 0, False
    if not length.isdigit() or (length[0] == 0x30 and len(length) > 1):
        refuse("The Content-Length is not valid.")
    if len(length) > MAX_CONTENT_LENGTH_DIGITS or int(length) > most:
        refuse(f"The request body is longer than {most} bytes.", status=413)
    return int(length), False


def _judge_rare(values: list[bytes | None], *, minor: bytes) -> None:
    if values[_REFUSED] is not None:
        refuse("Upgrade and Trailer are not supported.")
    expect = values[_EXPECT]
    if expect is not None and (minor == b"0" or expect.lower() != b"100-continue"):
        refuse("The expectation is not '100-continue'.", status=417)
    coding = values[_CONTENT_CODING]
    if coding is not None and coding.lower() != b"identity":
        refuse("Compressed request bodies are not supported.", status=415)  # and so no decompression bombs


def _says_close(connection: bytes) -> bool:
    lowered = connection.lower()
    return lowered != b"keep-alive" and b"close" in [option.strip(b" \t") for option in lowered.split(b",")]
