"""An HTTP/1.1 client that shows the bytes: what a careless, slow or hostile client sends, and exactly what comes back."""

from __future__ import annotations

import json
import socket
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

DEADLINE_SECONDS = 30.0


@dataclass
class WireAnswer:
    """One answer: names of headers in lower case; `chunked` and `complete` say how and whether its end came."""

    version: str
    status: int
    headers: dict[str, str]
    body: bytes = b""
    chunked: bool = False
    complete: bool = False
    chunks: list[bytes] = field(default_factory=list)

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error object in OpenAI's shape; fails unless there is one and nothing else."""
        document = json.loads(self.body)
        assert list(document) == ["error"], document
        assert set(document["error"]) == {"message", "type", "param", "code"}, document
        value: dict[str, Any] = document["error"]
        return value


def request_bytes(method: str, path: str, *, key: str | None = None, body: Any = None, version: str = "1.1", headers: tuple[str, ...] = ()) -> bytes:
    """Return a well-formed request. `body` is bytes as they are, or JSON."""
    data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/{version}", "Host: 127.0.0.1", *headers]
    if key is not None:
        lines.append(f"Authorization: Bearer {key}")
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(data)}"]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + data


class WireClient:
    """One connection. Reads end with an `AssertionError` after `DEADLINE_SECONDS`, never hang."""

    def __init__(self, port: int, *, receive_buffer: int | None = None) -> None:
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(DEADLINE_SECONDS)
        self.socket.connect(("127.0.0.1", port))
        self.rest = b""

    def __enter__(self) -> WireClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.socket.sendall(data)

    def ask(self, method: str, path: str, **more: Any) -> WireAnswer:
        """Send a well-formed request and return its answer."""
        self.send(request_bytes(method, path, **more))
        return self.answer()

    def more(self) -> bool:
        """Read some more into `rest`; False at the end of the connection."""
        try:
            data = self.socket.recv(262144)
        except ConnectionResetError:
            return False
        except TimeoutError:
            raise AssertionError(f"nothing came for {DEADLINE_SECONDS} s; so far: {self.rest[:2000]!r}") from None
        self.rest += data
        return bool(data)

    def read_until(self, mark: bytes, *, seconds: float = DEADLINE_SECONDS) -> bytes:
        """Read until `mark` is in what came; return everything so far and keep it."""
        until = time.monotonic() + seconds
        while mark not in self.rest:
            assert time.monotonic() < until, f"no {mark!r} in {self.rest[-2000:]!r}"
            assert self.more(), f"the connection ended without {mark!r}: {self.rest[-2000:]!r}"
        return self.rest

    def head(self) -> WireAnswer:
        """Read the next answer's head."""
        self.read_until(b"\r\n\r\n")
        head, _, self.rest = self.rest.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        version, status, _ = first.split(" ", 2)
        headers: dict[str, str] = {}
        for line in lines:
            name, _, value = line.partition(":")
            assert name.lower() not in headers, f"{name} twice"
            headers[name.lower()] = value.strip()
        return WireAnswer(version, int(status), headers)

    def answer(self, *, without_body: bool = False) -> WireAnswer:
        """Read a whole answer, up to where its framing or the connection ends it."""
        answer = self.head()
        if without_body or answer.status in (204, 304):
            answer.complete = True
        elif "content-length" in answer.headers:
            length = int(answer.headers["content-length"])
            while len(self.rest) < length and self.more():
                pass
            answer.body, self.rest = self.rest[:length], self.rest[length:]
            answer.complete = len(answer.body) == length
        elif answer.headers.get("transfer-encoding") == "chunked":
            answer.chunked = True
            self._read_chunks(answer)
        else:
            pieces = [self.rest]
            while data := self.socket.recv(262144):
                pieces.append(data)
            answer.body, self.rest, answer.complete = b"".join(pieces), b"", True
        return answer

    def is_closed(self) -> bool:
        """Wait for the server to close; False if more bytes come instead."""
        return not self.rest and not self.more()

    def _read_chunks(self, answer: WireAnswer) -> None:
        buffer = bytearray(self.rest)
        self.rest = b""

        def fill() -> bool:
            try:
                data = self.socket.recv(262144)
            except ConnectionResetError:
                return False
            buffer.extend(data)
            return bool(data)

        while True:
            while (end := buffer.find(b"\r\n")) < 0:
                if not fill():
                    answer.body = b"".join(answer.chunks)
                    return
            size = int(bytes(buffer[:end]), 16)
            while len(buffer) < end + 2 + size + 2:
                if not fill():
                    answer.body = b"".join(answer.chunks)
                    return
            data = bytes(buffer[end + 2 : end + 2 + size])
            assert buffer[end + 2 + size : end + 4 + size] == b"\r\n"
            del buffer[: end + 4 + size]
            if not size:
                answer.complete, answer.body, self.rest = True, b"".join(answer.chunks), bytes(buffer)
                return
            answer.chunks.append(data)


def events_of(body: bytes) -> list[str]:
    """Return the data of the events in a stream, comments left out; fails unless every event is whole."""
    assert body.endswith(b"\n\n"), body[-200:]
    blocks = body.decode().split("\n\n")[:-1]
    return [block.removeprefix("data: ") for block in blocks if not block.startswith(":")]
