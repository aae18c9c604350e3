"""AWS's event stream, turned into server-sent events, so that nothing behind this knows of it.

A message is (https://docs.aws.amazon.com/AmazonS3/latest/API/RESTSelectObjectAppendix.html, application/vnd.amazon.eventstream; numbers big-endian)

    total length (u32), length of the headers (u32), CRC-32 of these 8 bytes, headers, payload, CRC-32 of everything before

An event becomes `event: NAME` with its payload, an exception `event: error` with `{"type", "message"}`. What always holds: lengths are judged before
anything is kept for them; both checksums are checked; whatever is not understood breaks the stream; what came whole before the fault comes out first.
"""

from __future__ import annotations

import re
import struct
import zlib

import msgspec

from cliproxy.bounds import KIB, MAX_EVENT_BYTES
from cliproxy.errors import UpstreamError

MAX_EVENT_KINDS = 16  # kinds of event of AWS's event stream whose headers are recognised; Bedrock has six
MAX_EVENT_HEADER_BYTES = 4 * KIB  # headers of one message of AWS's event stream, which allows 128 KiB; Bedrock sends three of 80 bytes together

_PRELUDE = struct.Struct(">III")
_CRC = struct.Struct(">I")
_LEAST_BYTES = _PRELUDE.size + _CRC.size
_LENGTH = struct.Struct(">H")
_SIZES = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}  # bytes of a header's value by its type; 6 (bytes) and 7 (text) have a length before them
_TEXT = 7
_NAME = re.compile(r"[A-Za-z]{1,64}")
_LINE_ENDS = bytes.maketrans(b"\r\n", b"  ")  # in JSON they only stand between its parts; in an event they would end the line
_BROKEN = "The provider's event stream is damaged."
_NO_JSON = "The provider's event stream has an event that is no JSON."


class _Exception(msgspec.Struct):
    message: str = ""


_exceptions = msgspec.json.Decoder(_Exception)
_encode = msgspec.json.encode


class EventStreamDecoder:
    """One answer's bytes, in any pieces. After a fault `broken` is set, and nothing more comes out."""

    __slots__ = ("_heads", "_held", "broken")

    def __init__(self) -> None:
        self._held = bytearray()
        self._heads: dict[bytes, bytes] = {}  # the headers of events that came, and what their events begin with
        self.broken: UpstreamError | None = None

    @property
    def held_bytes(self) -> int:
        """Bytes of a message that is not whole yet."""
        return len(self._held)

    def feed(self, data: bytes) -> bytes:
        """Return the server-sent events that are complete now."""
        if self.broken is not None:
            return b""
        held = self._held
        held += data
        events: list[bytes] = []
        start = 0
        try:
            while len(held) - start >= _PRELUDE.size:
                total, headers, crc = _PRELUDE.unpack_from(held, start)
                if zlib.crc32(held[start : start + 8]) != crc or total < _LEAST_BYTES + headers or headers > MAX_EVENT_HEADER_BYTES:
                    raise UpstreamError(_BROKEN, code="provider_bad_stream")
                if total > MAX_EVENT_BYTES:
                    raise UpstreamError("The provider sent an event that is larger than the gateway takes.", code="upstream_too_large")
                if len(held) - start < total:
                    break
                events.append(self._event_of(bytes(held[start : start + total]), headers))
                start += total
        except UpstreamError as error:
            self.broken = error
            held.clear()
            return b"".join(events)
        del held[:start]
        return b"".join(events)

    def finish(self) -> None:
        """The answer is over. Sets `broken` if it ended inside a message."""
        if self.broken is None and self._held:
            self.broken = UpstreamError("The provider broke off its answer.", code="provider_broke_off")

    def _event_of(self, message: bytes, header_bytes: int) -> bytes:
        """Return a whole message as an event. Raises `UpstreamError`."""
        if zlib.crc32(message[: -_CRC.size]) != _CRC.unpack_from(message, len(message) - _CRC.size)[0]:
            raise UpstreamError(_BROKEN, code="provider_bad_stream")
        end = _PRELUDE.size + header_bytes
        headers = message[_PRELUDE.size : end]
        payload = message[end : -_CRC.size]
        head = self._heads.get(headers)
        if head is None:
            read = _headers_of(headers)
            if read.get(":message-type") != "event":
                return _other(read, payload)
            head = _head_of(read)
            if len(self._heads) < MAX_EVENT_KINDS:
                self._heads[headers] = head
        if not payload:
            raise UpstreamError(_NO_JSON, code="provider_bad_stream")
        return head + payload.translate(_LINE_ENDS) + b"\n\n"


def _head_of(headers: dict[str, str]) -> bytes:
    """Return what an event with these headers begins with. Raises `UpstreamError` unless it has a name and holds JSON."""
    name = headers.get(":event-type", "")
    if _NAME.fullmatch(name) is None or headers.get(":content-type") != "application/json":
        raise UpstreamError(_NO_JSON, code="provider_bad_stream")
    return b"event: " + name.encode("ascii") + b"\ndata: "


def _other(headers: dict[str, str], payload: bytes) -> bytes:
    """Return an exception or an error as an event. Raises `UpstreamError` for a message of another kind."""
    kind = headers.get(":message-type")
    if kind == "exception":
        return _error(headers.get(":exception-type", ""), _message_in(payload))
    if kind == "error":
        return _error(headers.get(":error-code", ""), headers.get(":error-message", ""))
    raise UpstreamError("The provider's event stream has a message of an unknown kind.", code="provider_bad_stream")


def _error(kind: str, message: str) -> bytes:
    return b"event: error\ndata: " + _encode({"type": kind, "message": message}) + b"\n\n"


def _message_in(payload: bytes) -> str:
    try:
        return _exceptions.decode(payload).message
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return ""


def _headers_of(data: bytes) -> dict[str, str]:
    """Return the headers whose values are text. Raises `UpstreamError` for a name that stands twice, and for what runs over its end."""
    headers: dict[str, str] = {}
    names: set[bytes] = set()
    at = 0
    try:
        while at < len(data):
            end = at + 1 + data[at]
            name, kind = data[at + 1 : end], data[end]
            if name in names:
                raise UpstreamError(_BROKEN, code="provider_bad_stream")
            names.add(name)
            at = end + 1
            if kind in _SIZES:
                at += _SIZES[kind]
            elif kind in (6, _TEXT):
                size = _LENGTH.unpack_from(data, at)[0]
                at += _LENGTH.size
                if kind == _TEXT:
                    headers[name.decode("ascii")] = data[at : at + size].decode("utf-8")
                at += size
            else:
                raise UpstreamError(_BROKEN, code="provider_bad_stream")
    except (IndexError, struct.error, UnicodeDecodeError):
        raise UpstreamError(_BROKEN, code="provider_bad_stream") from None
    if at != len(data):
        raise UpstreamError(_BROKEN, code="provider_bad_stream")
    return headers
