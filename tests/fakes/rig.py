"""A pool on uvloop in front of real sockets, and a call that writes down what it is told."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from cliproxy.config.schema import Provider, ProviderTimeouts
from cliproxy.dialects import Endpoint
from cliproxy.egress.inject import Injector
from cliproxy.egress.peer import Peer
from cliproxy.egress.pool import Pool
from cliproxy.egress.sent import Sent
from cliproxy.egress.tls import client_context
from cliproxy.errors import CliproxyError
from cliproxy.providers.origin import parse_base_url
from cliproxy.secret import Secret

SECRET = b"sk-proj-Zx9QvT4mW7kLp2Rb8Ny5Jc3Hf6Gd1As0"
LIMIT = 20.0  # seconds that any test may take
T = TypeVar("T")


class Recorder:
    """A call: what happened to it, in order."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.pieces: list[bytes] = []
        self.error: CliproxyError | None = None
        self.completed = False
        self.unfinished = 0
        self.told = 0
        self.ended = asyncio.Event()
        self.began = asyncio.Event()
        self.then: Callable[[], None] = lambda: None

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    def on_head(self, status: int, headers: dict[bytes, bytes]) -> None:
        assert not self.ended.is_set() and not self.status
        self.status, self.headers = status, headers
        self.told += 1
        self.began.set()

    def on_data(self, data: bytes) -> None:
        assert self.status and not self.ended.is_set() and data
        self.pieces.append(data)
        self.told += 1

    def on_unfinished(self, size: int) -> None:
        self.unfinished = size

    def on_complete(self) -> None:
        assert self.status and not self.ended.is_set()
        self.completed = True
        self.told += 1
        self.ended.set()
        self.then()

    def on_failure(self, error: CliproxyError) -> None:
        assert not self.ended.is_set()
        self.error = error
        self.told += 1
        self.ended.set()
        self.then()


class DirectDialer:
    """Connects to the origin itself, or answers with `reason`; `held` dials wait for `release`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.reason = ""
        self.hold = False
        self.held: list[Callable[[], None]] = []
        self.dials = 0
        self.busy = 0  # so many questions are not taken

    @property
    def is_there(self) -> bool:
        return self.reason != "dialer_gone"

    def dial(self, peer: Peer, done: Callable[[socket.socket | None, str], None]) -> bool:
        if self.busy:
            self.busy -= 1
            return False
        self.dials += 1

        def answer() -> None:
            if self.reason:
                done(None, self.reason)
                return
            try:
                done(socket.create_connection((peer.origin.host, peer.origin.port)), "")
            except ConnectionRefusedError:
                done(None, "refused")

        if self.hold:
            self.held.append(answer)
        else:
            self._loop.call_soon(answer)
        return True

    def release(self) -> None:
        self.hold = False
        held, self.held = self.held, []
        for answer in held:
            answer()


class Rig:
    """A pool with one provider `fake`. Times in seconds; sweeps every 20 ms."""

    def __init__(self, base_url: str, *, connections: int = 64, ca_file: Path | None = None, secret: bytes = SECRET, **timeouts: float) -> None:
        self.loop = asyncio.get_running_loop()
        limits = {"connect": 5.0, "first_byte": 10.0, "idle": 10.0, "total": 20.0} | timeouts
        self.providers = {
            "fake": Provider(base_url=base_url, ca_file=str(ca_file) if ca_file else "", timeouts=ProviderTimeouts(**limits)),
        }
        self.contexts = {"fake": client_context(ca_file=str(ca_file))} if ca_file else {}
        self.origin = str(parse_base_url(base_url)[0])
        self.injector = Injector(self.providers)
        self.injector.grant("cred-1", provider="fake", origin=self.origin, secret=Secret(secret))
        self.dialer = DirectDialer(self.loop)
        self.pool = Pool(
            self.loop, dialer=self.dialer, providers=self.providers, contexts=self.contexts, connections_per_provider=connections, sweep_seconds=0.02
        )

    def send(self, body: bytes, *, stream: bool = False, endpoint: Endpoint = Endpoint.CHAT_COMPLETIONS) -> tuple[Recorder, Sent]:
        bound = self.injector.for_provider("fake")
        assert bound is not None
        recorder = Recorder()
        return recorder, self.pool.send(recorder, bound, endpoint, body, stream=stream)

    async def call(self, model: str = "m", *, stream: bool = False, endpoint: Endpoint = Endpoint.CHAT_COMPLETIONS) -> Recorder:
        """Send a chat request for `model` and wait until its call has ended."""
        recorder, _ = self.send(request(model, stream=stream), stream=stream, endpoint=endpoint)
        await asyncio.wait_for(recorder.ended.wait(), LIMIT)
        return recorder


def request(model: str = "m", *, stream: bool = False) -> bytes:
    """Return a request body for `model`."""
    return b'{"model":"%s","stream":%s,"input":"a","messages":[{"role":"user","content":"hi"}]}' % (model.encode(), b"true" if stream else b"false")


def run(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run `work` on a fresh uvloop, bounded in time."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(asyncio.wait_for(work(), LIMIT * 2))


@contextmanager
def raw_server(*pieces: bytes, close: bool = True) -> Iterator[tuple[str, list[bytes]]]:
    """Serve one connection at a time in a thread: read a request, send `pieces` in separate writes. Yields base URL and what was read."""
    import threading
    import time

    listener = socket.create_server(("127.0.0.1", 0))
    received: list[bytes] = []
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.settimeout(5)
                try:
                    received.append(connection.recv(65536))
                    for piece in pieces:
                        connection.sendall(piece)
                        time.sleep(0.002)
                    if not close:
                        connection.recv(65536)
                except OSError:
                    pass

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1", received
    finally:
        stop.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(6)
