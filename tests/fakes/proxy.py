"""An HTTP proxy of ours for tests, in threads."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

OK = b"HTTP/1.1 200 Connection established\r\n\r\n"


class Proxy:
    """An HTTP proxy in a thread: answers CONNECT with `answer` in single bytes and, if that is `OK`, carries bytes to wherever it was asked."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self.heads: list[bytes] = []
        self.carried = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def _start(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        thread.start()
        self._threads.append(thread)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        with client:
            client.settimeout(10)
            head = b""
            while b"\r\n\r\n" not in head:
                head += client.recv(1024)
            self.heads.append(head)
            for byte in self._answer:
                try:
                    client.sendall(bytes([byte]))
                except OSError:
                    return
            if self._answer != OK:
                client.close()
                return
            host, port = head.split(b" ")[1].rsplit(b":", 1)
            with socket.create_connection((host.decode(), int(port))) as server:
                server.settimeout(10)
                self._start(self._carry, server, client, False)
                self._carry(client, server, True)

    def _carry(self, source: socket.socket, sink: socket.socket, outward: bool) -> None:
        try:
            while data := source.recv(65536):
                if outward:
                    self.carried += data
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@contextmanager
def running_proxy(answer: bytes = OK) -> Iterator[Proxy]:
    one = Proxy(answer)
    try:
        yield one
    finally:
        one.close()
