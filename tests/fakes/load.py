"""Clients that keep calling a gateway while something is done to it, and what each of their calls came to.

Each call carries a marker of its own in its message, so that what reached the provider can be compared with what the client was told.
"""

from __future__ import annotations

import itertools
import json
import re
import threading
import time
from collections import Counter
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from fakes.wire import WireAnswer, WireClient, request_bytes

_MARKER = re.compile(r"marker-(\d+-\d+)\b")
PATIENCE_SECONDS = 30.0
_names = itertools.count(1)


@dataclass(frozen=True)
class Told:
    """What a client was told about one call. `status` 0: the connection was closed before an answer began. `request` is the gateway's id of the call,
    `body` what came of the answer; `whole`: its framing ended."""

    marker: str
    request: str
    stream: bool
    status: int
    body: bytes
    whole: bool
    began: float
    ended: float

    @property
    def ending(self) -> str:
        """How it ended for a client: `done` (a complete answer), `unterminated` (a complete stream up to `[DONE]`, then the connection closed or an error
        event came in place of the end of the framing), `error event`, `status NNN`, `closed`, or `broken` (it looks like what it is not)."""
        complete, done, after = self.body.partition(b"data: [DONE]\n\n") if self.stream else (b"", b"", b"")
        if done and (b'"finish_reason":"stop"' not in complete.replace(b": ", b":") or b'"error"' in complete):
            return "broken"
        if done:
            return "done" if self.whole and not after else "unterminated"
        if self.status == 0 or not self.whole:
            return "closed"
        if self.status != 200:
            return f"status {self.status}"
        if not self.stream:
            return "done" if json.loads(self.body)["choices"] else "broken"
        last = self.body.rstrip().rsplit(b"\n\n", 1)[-1]
        return "error event" if last.startswith(b"data: ") and "error" in json.loads(last[6:]) else "broken"


class Caller:
    """One client with one connection at a time."""

    def __init__(self, port: int, key: str) -> None:
        self._port = port
        self._key = key
        self._name = next(_names)
        self._count = 0
        self._client: WireClient | None = None

    def call(self, model: str, *, stream: bool) -> Told:
        """Make one call."""
        self._count += 1
        marker = f"{self._name}-{self._count}"
        content = f"marker-{marker} hello"
        body = {"model": model, "stream": stream, "messages": [{"role": "user", "content": content}]}
        began = time.monotonic()
        answer = self._ask(body)
        return Told(marker, answer.headers.get("x-request-id", ""), stream, answer.status, answer.body, answer.complete, began, time.monotonic())

    def close(self) -> None:
        """End the connection."""
        if self._client is not None:
            self._client.socket.close()
        self._client = None

    def _ask(self, body: dict[str, Any]) -> WireAnswer:
        nothing = WireAnswer("", 0, {})
        try:
            if self._client is None:
                self._client = WireClient(self._port)
            self._client.send(request_bytes("POST", "/v1/chat/completions", key=self._key, body=body))
            while b"\r\n\r\n" not in self._client.rest:
                if not self._client.more():
                    self.close()
                    return nothing
            answer = self._client.answer()
        except OSError:
            self.close()
            return nothing
        if not answer.complete or answer.headers.get("connection") == "close":
            self.close()
        return answer


class Load:
    """`whole` clients that make whole calls and `streams` that stream, each in a thread, for as long as the `with` block lasts."""

    def __init__(self, port: int, key: str, *, whole: int = 3, streams: int = 3, model: str = "gpt-4o-mini", stream_model: str = "fault-trickle-20") -> None:
        self._over = threading.Event()
        self._told: list[list[Told]] = []
        self._failures: list[BaseException] = []
        self._threads = []
        for number in range(whole + streams):
            told: list[Told] = []
            self._told.append(told)
            caller = Caller(port, key)
            arguments = (caller, stream_model if number >= whole else model, number >= whole, told)
            self._threads.append(threading.Thread(target=self._run, args=arguments))

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS * 2)
        assert not self._failures, self._failures

    @property
    def told(self) -> list[Told]:
        """Everything so far."""
        return [one for told in self._told for one in told]

    def endings(self) -> Counter[str]:
        """How the calls ended."""
        return Counter(one.ending for one in self.told)

    def wait_for(self, count: int) -> None:
        """Wait until every client has `count` more good answers."""
        before = [self._done(told) for told in self._told]
        until = time.monotonic() + PATIENCE_SECONDS
        while any(self._done(told) - old < count for told, old in zip(self._told, before, strict=True)):
            assert time.monotonic() < until, f"the clients do not get on: {self.endings()}"
            time.sleep(0.02)

    @staticmethod
    def _done(told: list[Told]) -> int:
        return sum(one.status == 200 and one.whole for one in told)

    def _run(self, caller: Caller, model: str, stream: bool, told: list[Told]) -> None:
        try:
            while not self._over.is_set():
                one = caller.call(model, stream=stream)
                told.append(one)
                time.sleep(0.005 if one.status == 200 else 0.02)
        except BaseException as error:
            self._failures.append(error)
        finally:
            caller.close()


def markers_of(record: dict[str, Any]) -> Counter[str]:
    """Return how often each marker was in a request that the provider got; `record` is `FakeProvider.record()`."""
    return Counter(marker for request in record["requests"] for marker in _MARKER.findall(request["body"]))
