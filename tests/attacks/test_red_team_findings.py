"""What a review with an attacker's eyes found, each case as it was found: a hostile provider, a fallen worker, a client that is gone at once."""

from __future__ import annotations

import json
import socket
import threading
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from cliproxy.bounds import EVENT_PIECES_PER_JOIN, MAX_ANSWER_OBJECTS, MAX_DATA_FRAME_BYTES, MAX_EVENT_BYTES
from cliproxy.errors import UpstreamError
from cliproxy.translators.openai_chat import usage
from cliproxy.translators.openai_chat.stream import StreamFilter
from cliproxy.translators.openai_chat.usage import StreamUsage, usage_of_answer
from cliproxy.translators.openai_embeddings.usage import usage_of_embeddings
from cliproxy.translators.sse import EventSplitter
from fakes.gateway import Gateway

READ_BYTES = 256 * 1024  # what one read of egress brings
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
DONE = b"data: [DONE]\n\n"


def event(size: int) -> bytes:
    """Return a chat event of exactly `size` bytes."""
    before, after = b'data: {"choices":[{"index":0,"delta":{"content":"', b'"},"finish_reason":null}]}\n\n'
    return before + b"x" * (size - len(before) - len(after)) + after


# --- a hostile provider ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("over", [1, READ_BYTES - 1])
@pytest.mark.parametrize("reads", [READ_BYTES, 1000, 10 * MAX_EVENT_BYTES])
def test_an_event_that_is_too_long_is_refused_also_when_its_end_comes_in_the_same_read(over: int, reads: int) -> None:
    """Only what was held was counted: an event could pass egress whose pieces the worker then refused, by ending every call on its channel."""
    data = event(100) + event(MAX_EVENT_BYTES + over)
    splitter = EventSplitter()
    with pytest.raises(UpstreamError):
        for start in range(0, len(data), reads):
            splitter.feed(data[start : start + reads])


@pytest.mark.parametrize("reads", [READ_BYTES, 4096, 10 * MAX_EVENT_BYTES])
def test_the_longest_event_passes_egress_and_worker_alike(reads: int) -> None:
    data = event(MAX_EVENT_BYTES) + event(MAX_EVENT_BYTES) + event(100) + DONE
    egress, worker = StreamUsage(), StreamFilter(include_usage=True)
    out = b""
    for start in range(0, len(data), reads):
        passed = egress.feed(data[start : start + reads])
        for at in range(0, len(passed), MAX_DATA_FRAME_BYTES):
            out += worker.feed(passed[at : at + MAX_DATA_FRAME_BYTES])
    assert out == data


def test_an_event_that_comes_in_single_bytes_does_not_cost_an_object_for_each() -> None:
    splitter = EventSplitter()
    for _ in range(5 * EVENT_PIECES_PER_JOIN):
        splitter.feed(b"xy")
    assert len(splitter._held) <= EVENT_PIECES_PER_JOIN + 6
    assert splitter.feed(b"\n\n") == b"xy" * 5 * EVENT_PIECES_PER_JOIN + b"\n\n"


@pytest.mark.parametrize("word", [b'"error"', b'"usage"'])
def test_a_line_is_parsed_once_however_often_it_says_the_word(monkeypatch: pytest.MonkeyPatch, word: bytes) -> None:
    """800 KiB of `"error",` kept egress busy for a hundred seconds: the line was parsed for each of them."""
    parsed: list[int] = []
    parse = usage._parse
    monkeypatch.setattr(usage, "_parse", lambda data: (parsed.append(len(data)), parse(data))[1])
    line = b'data: {"x":[' + (word + b",") * 1000 + b"1]}\n"
    stream = StreamUsage()
    stream.feed(line + b"\n" + line + line + b"\n")
    assert stream.usage is None
    assert len(parsed) == 3


def test_an_error_behind_a_line_that_only_says_the_word_is_still_found() -> None:
    stream = StreamUsage()
    good = b'data: {"x":["error","error"]}\n\n'
    assert stream.feed(good + b'data: {"error":{"message":"no"}}\n\n') == good
    with pytest.raises(UpstreamError):
        stream.finish()


@pytest.mark.parametrize(
    "bomb",
    [
        b'{"choices":[{"message":{"content":[' + b"[]," * 500_000 + b"1]}}]}",
        b'{"choices":[{"message":{"tool_calls":[' + b"[]," * 500_000 + b"1]}}]}",
        b'{"choices":[' + b'{"message":{}},' * 100_000 + b'{"message":{}}]}',
        b'{"data":[' + b'{"embedding":[]},' * 100_000 + b'{"embedding":[]}]}',
    ],
    ids=["content", "tool calls", "choices", "embeddings"],
)
def test_an_answer_of_many_small_values_costs_no_multiple_of_its_length(bomb: bytes) -> None:
    """25 MB of `[],` became 577 MB of lists in egress."""
    read = usage_of_embeddings if bomb.startswith(b'{"data"') else usage_of_answer
    tracemalloc.start()
    try:
        try:
            read(bomb)
        except UpstreamError:
            assert bomb.count(b"{") > MAX_ANSWER_OBJECTS
        assert tracemalloc.get_traced_memory()[1] < 2 * len(bomb)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("content", [b"1", b"{}", b"true", b"1.5"])
@pytest.mark.parametrize("field", [b"content", b"tool_calls"])
def test_a_message_whose_parts_are_of_the_wrong_type_is_no_answer(field: bytes, content: bytes) -> None:
    with pytest.raises(UpstreamError):
        usage_of_answer(b'{"choices":[{"message":{"%s":%s}}]}' % (field, content))


class HostileProvider:
    """Answers each chat request as its model's name says."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.base_url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        self.released = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self.released.set()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(30)
            try:
                received = b""
                while b"\r\n\r\n" not in received:
                    received += connection.recv(65536)
                head, _, body = received.partition(b"\r\n\r\n")
                length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
                while len(body) < length:
                    body += connection.recv(65536)
                model = json.loads(body)["model"]
                connection.sendall(STREAM_HEAD)
                if model == "long-event":
                    data = event(MAX_EVENT_BYTES + 200_000)
                    connection.sendall(data[:MAX_EVENT_BYTES])
                    time.sleep(0.2)  # so that what is held is read alone
                    connection.sendall(data[MAX_EVENT_BYTES:] + DONE)
                elif model == "one-word":
                    connection.sendall(b'data: {"x":[' + b'"error",' * 100_000 + b"1]}\n\n" + event(100) + DONE)
                else:
                    connection.sendall(event(100))
                    self.released.wait(30)
                    connection.sendall(event(100) + DONE)
            except OSError:
                pass  # cancelled


@pytest.fixture(scope="module")
def provider() -> Iterator[HostileProvider]:
    running = HostileProvider()
    yield running
    running.close()


@pytest.fixture(scope="module")
def gateway(provider: HostileProvider) -> Iterator[Gateway]:
    models = ["long-event", "one-word", "waits"]
    settings = {"server": {"workers": 1}, "providers": {"bad": {"base_url": provider.base_url, "models": models}}}
    with Gateway(settings, credentials={"bad": "sk-canary-000000000000"}) as running:
        yield running


def ask(gateway: Gateway, model: str, *, stream: bool = True) -> bytes:
    status, _, body = gateway.post("/v1/chat/completions", {"model": model, "stream": stream, "messages": [{"role": "user", "content": "Hello."}]})
    assert status == 200, body
    return body


def test_a_hostile_stream_costs_its_own_call_and_no_other(gateway: Gateway, provider: HostileProvider) -> None:
    """Every call of the worker ended, and it answered 503 for the next 45 seconds."""
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(ask, gateway, "waits")
        broken = ask(gateway, "long-event")
        assert b'"upstream_too_large"' in broken and b"[DONE]" not in broken
        assert ask(gateway, "one-word").endswith(DONE)
        assert b'"Hello."' in ask(gateway, "echo", stream=False)
        provider.released.set()
        assert other.result(30) == event(100) * 2 + DONE
    assert gateway.messages().count("\n") == 1, gateway.messages()
