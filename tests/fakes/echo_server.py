"""The worker's real server on a real socket of this process, with an exchange that echoes. For tests of what clients can do to it.

with EchoServer(limits=…) as server:  server.port, server.exchange.seen, server.call(lambda: …)
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import uvloop

from cliproxy.config.schema import ServerLimits, ServerSecurity
from cliproxy.dataplane.connection import Connection
from cliproxy.dataplane.server import MAX_UNREAD_BYTES, Server
from cliproxy.errors import NotFound
from cliproxy.ingress.framing import RawRequest
from cliproxy.ingress.rules.address_rate import AddressRate
from cliproxy.ingress.rules.table import AcceptRules

T = TypeVar("T")
SECONDS = 20.0


class EchoExchange:
    """Answers by path: `/echo` method, path and body; `/stream` what the body says in chunks; `/later` after `release`; `/flood` without end."""

    def __init__(self) -> None:
        self.seen: list[RawRequest] = []
        self.waiting: list[Connection] = []
        self.gone: list[Connection] = []
        self.paused: list[Connection] = []
        self.writable: list[Connection] = []
        self.flooded = 0

    def on_body(self, connection: Any, request: RawRequest) -> None:
        pass

    on_head = on_body

    def on_request(self, connection: Any, request: RawRequest) -> None:
        self.seen.append(request)
        path = request.path
        if path == b"/stream":
            connection.start_stream(200, b"Content-Type: text/plain\r\n")
            for piece in request.body.split(b","):
                connection.write_chunk(piece)
            connection.end_stream()
        elif path == b"/later":
            self.waiting.append(connection)
        elif path == b"/flood":
            connection.start_stream(200, b"")
            self.waiting.append(connection)
        elif path == b"/large":
            connection.respond(200, b"", bytes(int(request.query or b"1")))
        elif path == b"/bug":
            raise ValueError("a bug of ours")
        elif path == b"/error":
            raise NotFound("There is no such thing.", param="thing")
        elif path == b"/twice":
            connection.respond(200, b"", b"one")
            connection.respond(200, b"", b"two")
        elif path == b"/empty":
            connection.respond(204, b"", b"")
        else:
            connection.respond(200, b"Content-Type: text/plain\r\n", request.method + b" " + path + b" " + request.body)

    def on_client_gone(self, connection: Any) -> None:
        self.gone.append(connection)

    def on_paused(self, connection: Any) -> None:
        self.paused.append(connection)

    def on_writable(self, connection: Any) -> None:
        self.writable.append(connection)


class EchoServer:
    """Runs the server's loop in a thread between `__enter__` and `__exit__`; deadlines are swept every 20 ms."""

    def __init__(
        self,
        *,
        limits: ServerLimits | None = None,
        security: ServerSecurity | None = None,
        rate: AddressRate | None = None,
        tls: ssl.SSLContext | None = None,
        exchange: Any = None,
        host: str = "127.0.0.1",
        max_held_bytes: int = 256 * 1024 * 1024,
        max_unread_bytes: int = MAX_UNREAD_BYTES,
        rules: Any = None,
    ) -> None:
        self.limits = limits or ServerLimits()
        self.rules = rules or AcceptRules(security or ServerSecurity(), self.limits)
        self.exchange = exchange or EchoExchange()
        self.faults: list[BaseException] = []
        self.denied: list[tuple[str, str]] = []
        self.host = host
        self._rate = rate
        self._tls = tls
        self._max_held_bytes = max_held_bytes
        self._max_unread_bytes = max_unread_bytes
        self._listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind((host, 0))
        self._listener.listen(512)
        self.port: int = self._listener.getsockname()[1]
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> EchoServer:
        self.server = Server(
            self.exchange,
            loop=self._loop,
            limits=self.limits,
            rules=self.rules,
            address_rate=self._rate,
            tls=self._tls,
            fault=self.faults.append,
            denied=lambda address, rule: self.denied.append((address, rule)),
            sweep_seconds=0.02,
            max_held_bytes=self._max_held_bytes,
            max_unread_bytes=self._max_unread_bytes,
        )
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self.server.start([self._listener]), self._loop).result(SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        self.call(self.server.abort_all)
        self.call(self.server.drain)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()

    def call(self, what: Callable[[], T]) -> T:
        """Run `what` in the server's loop."""

        async def inside() -> T:
            return what()

        return asyncio.run_coroutine_threadsafe(inside(), self._loop).result(SECONDS)

    def wait_until(self, what: Callable[[], object], seconds: float = SECONDS) -> None:
        """Wait until `what`, asked in the server's loop, is true."""

        async def inside() -> None:
            while not what():
                await asyncio.sleep(0.005)

        asyncio.run_coroutine_threadsafe(asyncio.wait_for(inside(), seconds), self._loop).result(seconds + 5)

    def connect(self, *, receive_buffer: int | None = None) -> socket.socket:
        """A client's socket."""
        sock = socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(SECONDS)
        sock.connect((self.host, self.port))
        return sock

    def ask(self, data: bytes) -> bytes:
        """Send `data` on a connection of its own and return everything until the server closes it."""
        with self.connect() as sock:
            sock.sendall(data)
            return read_all(sock)


def read_all(sock: socket.socket) -> bytes:
    """Everything until the other side closes (or resets, after which nothing can come)."""
    parts = []
    while True:
        try:
            data = sock.recv(65536)
        except ConnectionResetError:
            break
        if not data:
            break
        parts.append(data)
    return b"".join(parts)


def read_answer(sock: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Read one answer with a Content-Length, or chunked, and no byte more."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = sock.recv(1)
        assert byte, f"closed after {head!r}"
        head += byte
    lines = head[:-4].decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
    status = int(lines[0].split()[1])
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while True:
            size = b""
            while not size.endswith(b"\r\n"):
                size += _exactly(sock, 1)
            count = int(size, 16)
            piece = _exactly(sock, count + 2)
            if not count:
                return status, headers, body
            body += piece[:-2]
    return status, headers, _exactly(sock, int(headers.get("content-length", "0")))


def _exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = sock.recv(count - len(data))
        assert more, "closed in the middle of an answer"
        data += more
    return data
