"""What one connection has to send: the bytes of answers, framed, collected until the end of the loop turn.

What always holds: a stream's bytes of one turn are one chunk; nothing is lost or reordered between answers; `size` counts what waits
(without the few bytes of chunk framing).
"""

from __future__ import annotations

import http
from typing import Final

_STATUS_LINES: Final = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in http.HTTPStatus}
_LAST_CHUNK: Final = b"0\r\n\r\n"
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
CLOSE: Final = b"Connection: close\r\n"
CHUNKED: Final = b"Transfer-Encoding: chunked\r\n"


class Outbox:
    """Bytes that wait. Of the answer under way `chunked` says how a stream is framed, `omits_body` that only its head is asked for, `keep_alive` whether
    another one may follow it. `is_scheduled`: somebody will `take` before the loop turn ends."""

    __slots__ = ("_out", "_pieces", "chunked", "is_scheduled", "keep_alive", "omits_body", "size")

    def __init__(self) -> None:
        self._out: list[bytes] = []
        self._pieces: list[bytes] = []  # of a stream: what the next chunk will hold
        self.chunked = True
        self.is_scheduled = False
        self.keep_alive = True
        self.omits_body = False
        self.size = 0

    def open(self, status: int, common: bytes, headers: bytes, framing: bytes) -> None:
        """Begin an answer. Each part is whole header lines; `status` need not be a registered one."""
        if not self.keep_alive:
            framing += CLOSE
        head = (_STATUS_LINES.get(status) or status_line(status)) + common + headers + framing + b"\r\n"
        self._out.append(head)
        self.size += len(head)

    def append(self, data: bytes) -> None:
        """Add bytes that are framed already."""
        self._out.append(data)
        self.size += len(data)

    def stream(self, data: bytes) -> None:
        """Add to the stream's next chunk."""
        self._pieces.append(data)
        self.size += len(data)

    def end_stream(self) -> None:
        """The stream is complete."""
        self._seal()
        if self.chunked and not self.omits_body:
            self._out.append(_LAST_CHUNK)

    def take(self) -> bytes:
        """Return everything that waits, which may be nothing, and forget it."""
        out, pieces = self._out, self._pieces
        if len(pieces) == 1 and not out and self.chunked:  # nearly always, of a stream
            piece = pieces.pop()
            self.size = 0
            return b"%x\r\n%b\r\n" % (len(piece), piece)
        if pieces:
            self._seal()
        data = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        self.size = 0
        return data

    def clear(self) -> None:
        """Forget everything."""
        self._out.clear()
        self._pieces.clear()
        self.size = 0

    def __bool__(self) -> bool:
        return bool(self._out or self._pieces)

    def _seal(self) -> None:
        """Make the stream's pieces one chunk."""
        pieces = self._pieces
        if not pieces:
            return
        if self.chunked:
            self._out.append(b"%x\r\n" % sum(map(len, pieces)))
            pieces.append(b"\r\n")
        self._out += pieces
        pieces.clear()


def status_line(status: int) -> bytes:
    """Return the line that begins an answer; the phrase may be empty (RFC 9112 §4)."""
    return _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
