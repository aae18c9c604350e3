"""Where one request ends and the next begins: bytes of a connection to `RawRequest`, or `FramingError`.

What always holds:
- Whatever is ambiguous is refused, never repaired: an accepted request reads the same for every implementation of RFC 9112 (smuggling needs two
  readings). llhttp decides where a body ends; the policy here judges the raw bytes first and checks that llhttp saw the same target and end.
- The verdict depends on the bytes alone, not on how they were cut into packets. After an error nothing more is read.
- Head bytes, header count, body bytes, chunk count and held bytes are bounded. No clock and no socket in here: deadlines are the server's.

llhttp 9 (httptools 0.9) on its own accepts, and this refuses: HTTP/0.9, RTSP and ICE lines, blank lines before a request, more than one space in
the request line, absolute-form and `*` targets, fragments, padded lengths, `gzip, chunked`, chunked in HTTP/1.0, chunk extensions, zero-padded
chunk sizes of any length, trailers, missing and repeated Host, repeated credentials.
"""

from __future__ import annotations

import re
from enum import IntEnum
from typing import Any, Final

import httptools
import msgspec

from cliproxy.bounds import KIB, MAX_CONTENT_LENGTH_DIGITS
from cliproxy.errors import FramingError
from cliproxy.ingress.head import METHODS, REQUEST_LINE, Head, PartialHead, parse_head, partial_head_of, refuse

MAX_CHUNK_LINE_BYTES = 10  # eight hexadecimal digits and CRLF; a longer size is an overflow attempt (CVE-2013-2028)
MAX_CHUNKS_PER_BODY = 16 * KIB  # a Python turn per chunk: 16 ms of CPU; real clients send 8 KiB or more a chunk
MAX_REPEATED_HEAD_BYTES = 4 * KIB  # of a head that a connection keeps to recognise its repetition; SDKs send below 1.5 KiB
BODY_PIECES_PER_JOIN = 1024  # pieces of a body are joined in lots of these, so that single bytes don't cost 40 each


class RawRequest(msgspec.Struct, frozen=True, gc=False):
    """One framed request: nothing is authenticated or decoded yet.

    `path` is the raw path without query, `query` the raw bytes after `?`, or None. Header values are stripped of blanks, None when absent.
    `keep_alive` says whether the connection may carry another request, `http_1_0` that the client knows no chunked answers.
    Its representation shows no header, query or body.
    """

    method: bytes
    path: bytes
    query: bytes | None
    authorization: bytes | None
    api_key: bytes | None
    content_type: bytes | None
    accept: bytes | None
    body: bytes
    keep_alive: bool
    http_1_0: bool = False
    goog_api_key: bytes | None = None
    anthropic_version: bytes | None = None
    session: bytes | None = None

    def __repr__(self) -> str:
        return f"RawRequest({self.method!r}, {self.path!r}, {len(self.body)} bytes)"

    def __rich_repr__(self) -> list[tuple[str, object]]:  # msgspec's own would show the credentials
        return [("method", self.method), ("path", self.path)]


class Phase(IntEnum):
    """What the next byte belongs to. BETWEEN: no byte of a request has come yet."""

    BETWEEN = 0
    HEAD = 1
    BODY = 2
    BROKEN = 3


_CHUNK_SIZE: Final = re.compile(rb"[0-9A-Fa-f]{1,8}")
_LENGTH_LINE: Final = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]+)(?=\r\n|\Z)", re.IGNORECASE)
_BROKEN_LINE: Final = re.compile(rb"(?:^|[^\r])\n|\r[^\n]|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")  # a bare LF or CR, a control byte
_FIRST_BYTES: Final = frozenset(method[0] for method in METHODS)

# What the next byte of a chunked body belongs to.
_CHUNK_LINE, _CHUNK_DATA, _CHUNK_END, _CHUNK_LAST = range(4)


class Framer:
    """The framing of one connection. Feed it bytes, then ask `next_request` until it says None.

    `phase` tells which deadline applies. `wants_continue` is true after a head with `Expect: 100-continue` was accepted and none of its body has
    come; the server answers 100 and clears it. `held` is the number of body bytes held for the request that is not whole yet; `buffer` is what was fed and
    belongs to no request yet.
    """

    __slots__ = (
        "_at",
        "_chunk_step",
        "_chunked",
        "_chunks",
        "_complete",
        "_head",
        "_host",
        "_joined",
        "_known_after",
        "_known_before",
        "_known_head",
        "_max_body_bytes",
        "_max_head_bytes",
        "_max_headers",
        "_missing",
        "_parser",
        "_parser_keeps",
        "_partial",
        "_parts",
        "_targets",
        "buffer",
        "held",
        "on_body",
        "on_url",
        "phase",
        "wants_continue",
    )

    def __init__(self, *, max_head_bytes: int, max_headers: int, max_body_bytes: int) -> None:
        self._max_head_bytes = max_head_bytes
        self._max_headers = max_headers
        self._max_body_bytes = max_body_bytes
        self.buffer = b""
        self._at = 0  # of a head that is not whole: how far the search for its end went
        self._parts: list[bytes] = []
        self._joined = 0  # that many of the parts are joined batches
        self._targets: list[bytes] = []
        # Read by httptools when the parser is made: appending in C spares a Python frame per call.
        self.on_body = self._parts.append
        self.on_url = self._targets.append
        self._complete = False
        self._parser_keeps = False
        self._parser: Any = httptools.HttpRequestParser(self)
        self._host: bytes | None = None  # the last valid one: clients repeat it
        # The last head that was judged, without the digits of its Content-Length: clients repeat it byte for byte, and the same bytes get the same verdict.
        self._known_head: Head | None = None
        self._known_before = b""
        self._known_after = b""
        self._head: Head | None = None
        self._chunked = False
        self._chunk_step = _CHUNK_LINE
        self._chunks = 0
        self._missing = 0  # bytes of the body, or of the chunk, still to come
        self._partial: PartialHead | None = None
        self.phase = Phase.BETWEEN
        self.wants_continue = False
        self.held = 0

    @property
    def announced(self) -> RawRequest | None:
        """The request whose body is still to come, without it; None while there is none."""
        head = self._head
        return None if head is None else _request(head, b"", keep_alive=False)

    @property
    def expected(self) -> int:
        """How many body bytes the request under way will have at least, as far as it has said."""
        return self.held + self._missing

    @property
    def partial_head(self) -> PartialHead:
        """What the request that is not whole, or was refused, seems to say."""
        head = self._head
        if self._partial is not None:
            return self._partial
        if head is not None:
            return PartialHead(head.path, head.anthropic_version is not None, head.goog_api_key is not None)
        return partial_head_of(self.buffer[: self._max_head_bytes])

    def feed(self, data: bytes) -> None:
        """Take bytes of the connection. After an error they are dropped."""
        if self.phase is Phase.BROKEN:
            return
        self.buffer = self.buffer + data if self.buffer else data

    def close(self) -> None:
        """Let go of everything; parser and framer refer to each other."""
        self.phase = Phase.BROKEN
        self.buffer = b""
        self._parts.clear()
        self._head = self._known_head = None
        self._known_before = self._known_after = b""
        self._parser = None

    def on_message_complete(self) -> None:
        """Called by llhttp at the end of a body; only in here does `should_keep_alive` tell the truth."""
        self._complete = True
        self._parser_keeps = self._parser.should_keep_alive()

    def next_request(self) -> RawRequest | None:
        """Return the next whole request, or None when more bytes are needed.

        Raises `FramingError` with 400, 413, 415, 417 or 431; from then on the connection is BROKEN and this returns None.
        """
        if not self.buffer or self.phase is Phase.BROKEN:
            return None
        try:
            if self.phase is not Phase.BODY:
                end = self.buffer.find(b"\r\n\r\n", self._at, self._max_head_bytes)
                if end < 0:
                    self._judge_prefix()
                    return None
                self._at = 0
                self._open(end)
            if self._chunked:
                whole = self._read_chunks()
            else:
                whole = self._read_length()
            return self._finish() if whole else None
        except httptools.HttpParserError as error:  # HttpParserUpgrade is one too
            self._break_off()
            raise FramingError("The request is not valid HTTP/1.1.") from error
        except FramingError:
            self._break_off()
            raise

    def _break_off(self) -> None:
        """Let go of everything but what the error answer's dialect hangs on."""
        self._partial = self.partial_head
        self.close()

    # --- the head ---

    def _judge_prefix(self) -> None:
        """Refuse what cannot become a head, so that nobody waits for the deadline to learn it. Same verdict as on the whole head."""
        self.phase = Phase.HEAD
        prefix = self.buffer[: self._max_head_bytes]
        if prefix[0] not in _FIRST_BYTES or _BROKEN_LINE.search(prefix, max(0, self._at - 1)):
            refuse("The request line or a header line is not valid HTTP/1.1.")
        line_end = prefix.find(b"\r\n")
        if line_end >= 0 and not REQUEST_LINE.fullmatch(prefix, 0, line_end):
            refuse("The request line is not valid HTTP/1.1.")
        if len(prefix) >= self._max_head_bytes:
            refuse(f"The request head is longer than {self._max_head_bytes} bytes.", status=431)
        self._at = max(0, len(prefix) - 3)

    def _open(self, end: int) -> None:
        """Judge the head that ends at `end`, then show it to llhttp."""
        buffer = self.buffer
        raw = buffer[:end]
        known = self._known_head
        length = -1 if known is None else self._repeated_length(raw)
        if known is not None and length >= 0:
            head = known
        else:
            head = parse_head(raw, max_headers=self._max_headers, max_body_bytes=self._max_body_bytes, known_host=self._host)
            self._host = head.host
            length = head.length
            self._remember(raw, head)
        self._head = head
        self._missing = length
        self._chunked = chunked = head.chunked
        self._complete = False
        end += 4
        if len(buffer) == end + length and not chunked:
            # Nearly always: the packet is the request. One call, no copy.
            self._parser.feed_data(buffer)
            self.held = length
            self._missing = 0
            self.buffer = b""
        else:
            self._parser.feed_data(buffer[:end])
            self.buffer = buffer[end:]
            self._chunk_step = _CHUNK_LINE
            self._chunks = 0
            self.wants_continue = head.expects_continue and not self.buffer
        target = head.path if head.query is None else head.path + b"?" + head.query
        if self._targets != [target] or (self._complete and (self._missing or chunked)):
            refuse("The request is ambiguous.")
        self._targets.clear()
        self.phase = Phase.BODY

    def _repeated_length(self, raw: bytes) -> int:
        """Return the Content-Length of a head that is the last one but for its digits; -1: it is another head, and is judged anew."""
        before, after = self._known_before, self._known_after
        digits = raw[len(before) : len(raw) - len(after)]
        if not (0 < len(digits) <= MAX_CONTENT_LENGTH_DIGITS and digits.isdigit() and raw.startswith(before) and raw.endswith(after)):
            return -1
        length = int(digits)
        return length if length <= self._max_body_bytes and (digits[0] != 0x30 or len(digits) == 1) else -1

    def _remember(self, raw: bytes, head: Head) -> None:
        """Keep an ordinary head for `_repeated_length`: of bounded size, with a length, expecting nothing."""
        found = _LENGTH_LINE.search(raw) if len(raw) <= MAX_REPEATED_HEAD_BYTES and not head.chunked and not head.expects_continue else None
        if found is None:
            self._known_head = None
        else:
            self._known_head, self._known_before, self._known_after = head, raw[: found.start(1)], raw[found.end(1) :]

    # --- the body ---

    def _read_length(self) -> bool:
        """Give llhttp what belongs to a body of known length; True when it is whole."""
        if self._missing:
            buffer = self.buffer
            if len(buffer) <= self._missing:
                piece, self.buffer = buffer, b""
            else:
                piece, self.buffer = buffer[: self._missing], buffer[self._missing :]
            self._missing -= len(piece)
            self.held += len(piece)
            self._parser.feed_data(piece)
            self._join()
        if self._complete is not (self._missing == 0):
            refuse("The request is ambiguous.")
        return self._complete

    def _read_chunks(self) -> bool:
        """Judge the chunk lines, then give llhttp what was judged; True when the last chunk came."""
        buffer = self.buffer
        at = 0
        whole = False
        available = len(buffer)
        while at < available:
            if self._chunk_step is _CHUNK_DATA:
                taken = min(self._missing, available - at)
                at += taken
                self.held += taken
                self._missing -= taken
                if self._missing == 0:
                    self._chunk_step = _CHUNK_END
            elif self._chunk_step is _CHUNK_LINE:
                line_end = buffer.find(b"\r\n", at, at + MAX_CHUNK_LINE_BYTES)
                if line_end < 0:
                    if available - at >= MAX_CHUNK_LINE_BYTES:
                        refuse("A chunk size is not valid.")
                    break
                if not _CHUNK_SIZE.fullmatch(buffer, at, line_end):
                    refuse("A chunk size is not valid.")  # signs, prefixes, blanks, extensions
                self._missing = int(buffer[at:line_end], 16)
                self._chunks += 1
                if self.held + self._missing > self._max_body_bytes:
                    refuse(f"The request body is longer than {self._max_body_bytes} bytes.", status=413)
                if self._chunks > MAX_CHUNKS_PER_BODY:
                    refuse(f"The request body has more than {MAX_CHUNKS_PER_BODY} chunks.", status=413)
                at = line_end + 2
                self._chunk_step = _CHUNK_DATA if self._missing else _CHUNK_LAST
            else:
                if not b"\r\n".startswith(buffer[at : at + 2]):
                    refuse("A chunk does not end where its size says, or trailers follow the body.")
                if available - at < 2:
                    break
                at += 2
                if self._chunk_step is _CHUNK_LAST:
                    whole = True
                    break
                self._chunk_step = _CHUNK_LINE
        if at:
            self._parser.feed_data(buffer[:at])
            self.buffer = buffer[at:]
            self._join()
        if self._complete is not whole:
            refuse("The request is ambiguous.")
        return whole

    def _join(self) -> None:
        """Keep the number of pieces of a body small: an object per byte would cost forty."""
        parts = self._parts
        if len(parts) - self._joined >= BODY_PIECES_PER_JOIN:
            parts[self._joined :] = [b"".join(parts[self._joined :])]
            self._joined += 1

    def _finish(self) -> RawRequest:
        parts = self._parts
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        head = self._head
        if head is None or len(body) != self.held:
            refuse("The request is ambiguous.")
        parts.clear()
        self._head = None
        self._joined = 0
        self.held = 0
        self._missing = 0
        self.wants_continue = False
        self.phase = Phase.HEAD if self.buffer else Phase.BETWEEN
        return _request(head, body, keep_alive=head.keep_alive and self._parser_keeps)


def _request(head: Head, body: bytes, *, keep_alive: bool) -> RawRequest:
    return RawRequest(
        head.method,
        head.path,
        head.query,
        head.authorization,
        head.api_key,
        head.content_type,
        head.accept,
        body,
        keep_alive,
        head.http_1_0,
        head.goog_api_key,
        head.anthropic_version,
        head.session,
    )
