"""What a review with an attacker's eyes found, each case as it was found: a hostile provider, a fallen worker, a client that is gone at once."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from cliproxy.audit.client import AuditClient, packet_decoder
from cliproxy.audit.events import EgressEvent, ProviderRequest
from cliproxy.auth.client_keys import digest_of
from cliproxy.auth.principals import Principal
from cliproxy.bounds import EVENT_PIECES_PER_JOIN, MAX_ANSWER_OBJECTS, MAX_DATA_FRAME_BYTES, MAX_EVENT_BYTES, MAX_STREAMS_PER_CHANNEL, MAX_TOKEN_COUNT
from cliproxy.cli.connection import attach
from cliproxy.cli.home import Home
from cliproxy.config.schema import ModelRoute, Provider, Settings
from cliproxy.dialects import Endpoint
from cliproxy.egress.admission import MAX_DEBT_MINUTES, Admission
from cliproxy.egress.attempt import ANSWER_PIECES_PER_JOIN, Attempt, Outcome
from cliproxy.egress.authorise import Authoriser
from cliproxy.egress.dispatcher import Dispatcher
from cliproxy.egress.echo import MAX_ECHO_CHARS, answer_chat
from cliproxy.egress.inject import Injector
from cliproxy.egress.rooms import Room
from cliproxy.egress.senders import EchoSending
from cliproxy.errors import CliproxyError, ConfigError, RateLimited, UpstreamError
from cliproxy.formats.sse import EventSplitter
from cliproxy.ipc.messages import KeyRecord, PolicyBegin, PolicyEnd, PolicyKeys, PolicyRules
from cliproxy.ipc.mux import HEADER, Abort, CallHead, Hello, Kind
from cliproxy.ipc.policy_feed import PolicyFeed
from cliproxy.metering import openai_chat as metering
from cliproxy.metering.openai_chat import ChatStreamMeter, Usage, usage_of_answer
from cliproxy.metering.openai_embeddings import usage_of_embeddings
from cliproxy.metering.table import METERS
from cliproxy.processes.lines import fault_reporter
from cliproxy.secret import Secret
from cliproxy.translators.openai_chat.write_stream import StreamFilter
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
    egress, worker = ChatStreamMeter(), StreamFilter(include_usage=True)
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
    parse = metering._parse

    def counted(data: bytes) -> Any:
        parsed.append(len(data))
        return parse(data)

    monkeypatch.setattr(metering, "_parse", counted)
    line = b'data: {"x":[' + (word + b",") * 1000 + b"1]}\n"
    stream = ChatStreamMeter()
    stream.feed(line + b"\n" + line + line + b"\n")
    assert stream.usage is None
    assert len(parsed) == 3


def test_an_error_behind_a_line_that_only_says_the_word_is_still_found() -> None:
    stream = ChatStreamMeter()
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
                    connection.sendall(b'data: {"choices":[],"x":[' + b'"error",' * 100_000 + b"1]}\n\n" + event(100) + DONE)
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


# --- a worker that fell, and a client that is gone at once -------------------------------------------------------------

PROOF = bytes(range(32))
OTHER_PROOF = bytes(range(1, 33))
BODY = b'{"model":,"max_tokens":1,"messages":[{"role":"user","content":"Hello."}]}'
HOLE = len(b'{"model":')


def call_frame(stream: int, **changes: Any) -> bytes:
    """Return the frame of an honest worker's call, but for `changes`."""
    honest = {"request_id": "req_0123456789ab00000001", "address": "127.0.0.1", "model": "m", "max_tokens": 1, "n": 1, "stream": False, "estimate": 10}
    fields = {"endpoint": int(Endpoint.CHAT_COMPLETIONS), "proof": PROOF, **honest, "model_offset": HOLE, "body_bytes": len(BODY), "body": BODY, **changes}
    return frame(Kind.CALL, stream, msgspec.msgpack.encode(CallHead(**fields)))


def frame(kind: Kind, stream: int, payload: bytes = b"") -> bytes:
    return HEADER.pack(len(payload), kind, stream) + payload


class Egress:
    """A real dispatcher with the real authoriser, one worker's channel, an auditor's socket, and senders that only note what was started."""

    def __init__(self, *, networks: tuple[str, ...] = (), broken: frozenset[int] = frozenset()) -> None:
        ours, self.auditor = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.auditor.setblocking(False)
        settings = Settings(
            providers={"p": Provider(base_url="http://127.0.0.1:1/v1", auth="none", concurrency=10_000)}, models={"m": ModelRoute(provider="p", model="up")}
        )
        policy = PolicyFeed()
        self.started: list[Attempt] = []
        self._broken = broken
        self.dispatcher = Dispatcher(
            build="b",
            generation=1,
            policy=policy,
            authoriser=Authoriser(settings, policy, Injector(settings.providers), Admission(settings)),
            senders=self,
            audit=AuditClient(ours, deadline_seconds=5.0),
            acknowledge=lambda message: None,
        )
        keys = tuple(
            KeyRecord(id=f"k{number}", digest=digest_of(proof), name="k", models=("*",), networks=networks, concurrency=10_000)
            for number, proof in enumerate((PROOF, OTHER_PROOF))
        )
        for message in (PolicyBegin(number=1), PolicyKeys(keys=keys), PolicyEnd(number=1, rules=PolicyRules())):
            self.dispatcher.policy(message)
        policy.heard(vault_age=0.0, now=time.monotonic())
        self.worker = self.dispatcher.worker(0, max_body_bytes=1 << 20)
        self.frames: list[tuple[Kind, int, bytes]] = []
        self.errors: list[str] = []
        self.worker.channel.queue = lambda kind, stream, payload: self.frames.append((kind, stream, payload))  # type: ignore[method-assign]
        self.worker.channel.fail = lambda error: self.errors.append(str(error))  # type: ignore[method-assign]
        self.receive(frame(Kind.HELLO, 0, msgspec.msgpack.encode(Hello("b", 1))))
        self.frames.clear()

    def start(self, call: Attempt) -> Any:
        if call.stream in self._broken:
            raise KeyError("a bug")
        self.started.append(call)
        return SimpleNamespace(cancel=lambda: None, pause_reading=lambda: None, resume_reading=lambda: None)

    def receive(self, data: bytes) -> None:
        """Let the worker's bytes arrive, in one turn."""
        self.worker.channel.data_received(data)

    def aborts(self) -> dict[int, str]:
        return {stream: msgspec.msgpack.decode(payload, type=Abort).code for kind, stream, payload in self.frames if kind is Kind.ABORT}

    def intents(self) -> list[ProviderRequest]:
        """Return the intents that the auditor has got, decoded as strictly as it does."""
        decoder = packet_decoder(EgressEvent)
        found: list[ProviderRequest] = []
        while True:
            try:
                _, events = decoder.decode(self.auditor.recv(1 << 20))
            except BlockingIOError:
                return found
            found += [event for event in events if isinstance(event, ProviderRequest)]


async def turn() -> None:
    await asyncio.sleep(0)
    await asyncio.sleep(0)


@pytest.mark.parametrize(
    "changes",
    [
        {"request_id": "r" * 513},
        {"request_id": ""},
        {"request_id": 'x\n{"event":"process"}'},
        {"address": "1" * 513},
        {"address": ""},
        {"address": "\u2028"},
        {"estimate": MAX_TOKEN_COUNT + 1},
        {"estimate": 2**64 - 1},
    ],
    ids=["id too long", "no id", "id of two lines", "address too long", "no address", "address not ASCII", "estimate", "largest estimate"],
)
def test_what_the_log_would_not_take_ends_the_workers_channel_and_not_egresss_own(changes: dict[str, Any]) -> None:
    """The auditor closes the channel that brings a longer text or a larger number: egress's, and with it every call of every worker."""

    async def scenario() -> None:
        egress = Egress()
        egress.receive(call_frame(1, **changes))
        await turn()
        assert egress.errors and not egress.started and egress.intents() == []

    asyncio.run(scenario())


@pytest.mark.parametrize("changes", [{}, {"estimate": MAX_TOKEN_COUNT}, {"request_id": "r" * 64}, {"address": "ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255"}])
def test_what_passes_is_taken_by_the_auditor(changes: dict[str, Any]) -> None:
    async def scenario() -> None:
        egress = Egress()
        egress.receive(call_frame(1, **changes))
        await turn()
        assert not egress.errors and len(egress.started) == len(egress.intents()) == 1

    asyncio.run(scenario())


def test_a_call_whose_client_is_gone_in_the_same_turn_never_leaves() -> None:
    """The CANCEL found no call yet and was forgotten: the call left, and held its key's place until the provider had said everything."""

    async def scenario() -> None:
        egress = Egress()
        egress.receive(call_frame(1) + call_frame(2) + frame(Kind.CANCEL, 1))
        await turn()
        assert [call.stream for call in egress.started] == [2]
        assert len(egress.intents()) == 1 and set(egress.worker.calls) == {2}
        egress.receive(call_frame(1))  # the number is free again
        await turn()
        assert [call.stream for call in egress.started] == [2, 1] and not egress.errors

    asyncio.run(scenario())


def test_one_number_for_two_calls_of_a_turn_is_a_violation() -> None:
    """The second took the first one's place, and the first was out of reach: no cancel, no credit, no end with its worker."""

    async def scenario() -> None:
        egress = Egress()
        egress.receive(call_frame(1) + call_frame(1))
        assert egress.errors
        await turn()

    asyncio.run(scenario())


def test_calls_of_one_turn_count_for_the_bound_of_the_channel_and_no_key_fills_it() -> None:
    async def scenario() -> None:
        egress = Egress()
        egress.receive(b"".join(call_frame(stream) for stream in range(1, MAX_STREAMS_PER_CHANNEL + 11)))
        egress.receive(b"".join(call_frame(MAX_STREAMS_PER_CHANNEL + stream, proof=OTHER_PROOF) for stream in range(11, 15)))
        await turn()
        assert len(egress.worker.calls) == MAX_STREAMS_PER_CHANNEL // 2 + 4  # those that the auditor's queue had no room for wait
        assert list(egress.aborts()) == list(range(MAX_STREAMS_PER_CHANNEL // 2 + 1, MAX_STREAMS_PER_CHANNEL + 11))
        assert set(egress.aborts().values()) == {"overloaded"}
        one_key = len(egress.worker.calls)
        proofs = (b"%032d" % number for number in range(MAX_STREAMS_PER_CHANNEL))
        egress.receive(b"".join(call_frame(10_000 + number, proof=proof, body=b"") for number, proof in enumerate(proofs)))
        assert len(egress.worker.calls) == MAX_STREAMS_PER_CHANNEL and one_key < MAX_STREAMS_PER_CHANNEL  # whoever they say they are

    asyncio.run(scenario())


def test_a_bug_in_sending_one_call_leaves_no_other_without_an_ending() -> None:
    async def scenario() -> None:
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
        egress = Egress(broken=frozenset({2}))
        egress.receive(call_frame(1) + call_frame(2) + call_frame(3))
        await turn()
        assert [call.stream for call in egress.started] == [1, 3]
        assert egress.aborts() == {2: "internal_error"}
        assert set(egress.worker.calls) == {1, 3}
        assert len(told) == 1

    asyncio.run(scenario())


@pytest.mark.parametrize(("address", "allowed"), [("10.1.2.3", True), ("192.0.2.1", False), ("nowhere", False)])
def test_egress_holds_a_key_to_its_networks_too(address: str, allowed: bool) -> None:
    async def scenario() -> None:
        egress = Egress(networks=("10.0.0.0/8",))
        egress.receive(call_frame(1, address=address))
        await turn()
        assert len(egress.started) == allowed
        assert egress.aborts() == ({} if allowed else {1: "address_not_permitted"})

    asyncio.run(scenario())


def test_usage_that_a_provider_made_up_does_not_lock_a_key_out_for_good() -> None:
    """2^53 tokens were 17 million years of a limit of a thousand a minute."""
    who = Principal(id="k", digest=bytes(32), name="k", models=("*",), tokens_per_minute=1000)
    limits = Admission(Settings(providers={"p": Provider()}))
    limits.reserve(who, "p", tokens=10, now=0.0, wall=0.0).settle(MAX_TOKEN_COUNT)
    with pytest.raises(RateLimited) as refused:
        limits.reserve(who, "p", tokens=10, now=1.0, wall=1.0)
    assert refused.value.retry_after <= MAX_DEBT_MINUTES * 60
    limits.reserve(who, "p", tokens=10, now=1.0 + MAX_DEBT_MINUTES * 60, wall=0.0).settle(10)


# --- an operator who is tired, and somebody who waits for one ----------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("keys", "create", "--name", "n" * 129), "name"),
        (("keys", "create", "--rpm", str(10**16)), "requests per minute"),
        (("keys", "create", "--rpm", str(2**70)), ""),
        (("keys", "create", "--model", "m" * 201), "models"),
        (("keys", "create", *("--model", "m") * 65), "models"),
        (("keys", "revoke", ""), "key"),
        (("keys", "revoke", "k" * 129), "key"),
        (("credentials", "remove", "c" * 129), "id"),
    ],
    ids=["name", "limit", "a limit that no integer of the wire holds", "model", "models", "no key", "key", "credential"],
)
def test_a_value_that_no_gateway_takes_is_wrong_usage_and_named(gateway: Gateway, arguments: tuple[str, ...], said: str) -> None:
    """It was sent all the same, and the answer was that the gateway were of another build."""
    done = gateway.result(*arguments, "--json")
    assert done.returncode == 2, done
    assert json.loads(done.stderr)["error"].startswith(said) and done.stderr.count("\n") == 1


def test_a_command_does_not_speak_to_a_gateway_of_somebody_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whoever made the home first, in a directory where everybody may, would be told whose key a credential is sealed to."""
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with socket.socket(socket.AF_UNIX) as waiting:
        waiting.bind(str(tmp_path / "run" / "control.sock"))
        waiting.listen()
        with pytest.raises(ConfigError, match="belongs to uid"):
            attach(Home(tmp_path))
        waiting.setblocking(False)
        with pytest.raises(BlockingIOError):
            waiting.accept()


def test_a_fault_in_the_event_loop_is_told_without_its_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """asyncio's own handler writes a traceback that ends with the error's text: a `KeyError` of what a client sent stood in the gateway's messages."""
    said: list[bytes] = []
    monkeypatch.setattr(os, "write", lambda descriptor, data: said.append(data))

    def broken() -> None:
        raise KeyError("sk-canary-000000000000")

    async def scenario() -> None:
        asyncio.get_running_loop().set_exception_handler(fault_reporter("worker-0"))
        asyncio.get_running_loop().call_soon(broken)
        await turn()

    asyncio.run(scenario())
    (line,) = (data for data in said if data.startswith(b"cliproxy"))
    assert line.startswith(b"cliproxy: worker-0: KeyError at ") and line.count(b"\n") == 1 and b"canary" not in line


@pytest.mark.parametrize("stream", [False, True])
def test_many_choices_of_a_long_text_are_no_burden_for_egress(stream: bool) -> None:
    """128 choices of four megabytes kept egress for three seconds and half a gigabyte."""
    body = {"model": "echo", "n": 128, "max_tokens": 10**6, "stream": stream, "messages": [{"role": "user", "content": "x" * 4_000_000}]}
    answer = b"".join(answer_chat(json.dumps(body).encode(), id="1", created=1))
    assert MAX_ECHO_CHARS * 0.99 < answer.count(b"x") < MAX_ECHO_CHARS * 1.1
    assert answer.count(b'"finish_reason":"length"') == 128


class Ledger:
    """Who is told how a call ended."""

    paused = False

    def __init__(self) -> None:
        self.endings: list[str] = []
        self.frames: list[Kind] = []
        self.held: Room[str] = Room(1 << 30)
        self.unfinished: Room[str] = Room(1 << 30)

    def answered(self, call: Attempt) -> None:
        pass

    def settled(self, call: Attempt, outcome: Outcome, error: CliproxyError | None) -> bool:
        self.endings.append(outcome.error)
        return False

    def queue(self, kind: Kind, stream: int, payload: bytes) -> None:
        self.frames.append(kind)


def asked_of_chat(*, stream: bool, used: Callable[[bytes], Usage | None] = usage_of_answer) -> Any:
    asked = SimpleNamespace(meter=METERS[Endpoint.CHAT_COMPLETIONS]._replace(usage_of=used), principal=SimpleNamespace(id="k"))
    call = SimpleNamespace(asked=asked, stream=1)
    target = SimpleNamespace(provider="p", model="m")
    return SimpleNamespace(stream=stream, endpoint=Endpoint.CHAT_COMPLETIONS, call=call, target=target, attempt=1)


@pytest.mark.parametrize("where", ["data", "whole", "end of stream", "echo"])
def test_a_bug_in_reading_an_answer_does_not_leave_the_call_without_an_ending(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """The pool lets go of a call before it says `on_complete`: what was raised there left the client waiting and the key's place taken."""

    def broken(*_: object, **__: object) -> bytes:
        raise KeyError("a bug")

    async def scenario() -> None:
        told: list[dict[str, Any]] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: told.append(context))
        ledger = Ledger()
        request = asked_of_chat(stream=where in ("data", "end of stream"), used=broken)  # type: ignore[arg-type]
        call = Attempt(request, channel=ledger, ledger=ledger)
        monkeypatch.setattr(ChatStreamMeter, "feed" if where == "data" else "finish", broken)
        monkeypatch.setattr("cliproxy.egress.senders.answer_chat", broken)
        if where == "echo":
            call.sent(EchoSending(call, b"{}"))
        else:
            call.on_head(200, {})
            loop.call_soon(call.on_data, event(100))
            loop.call_soon(call.on_complete)
        await turn()
        await turn()
        assert ledger.endings == ["internal_error"] and ledger.frames[-1] is Kind.ABORT
        assert len(told) == 1

    asyncio.run(scenario())


def test_a_credential_that_fits_no_header_does_not_stop_a_reload_in_its_middle() -> None:
    settings = Settings(providers={"p": Provider(base_url="https://api.example.com/v1")})
    injector = Injector(settings.providers)
    with pytest.raises(UpstreamError):
        injector.grant("c", provider="p", origin="https://api.example.com:443", secret=Secret(b"two\r\nlines: of it"))
    assert injector.retable(settings.providers) == ["c"]
    assert injector.for_provider("p") is None


def test_a_whole_answer_in_reads_of_two_bytes_does_not_cost_an_object_for_each() -> None:
    ledger = Ledger()
    call = Attempt(asked_of_chat(stream=False), channel=ledger, ledger=ledger)
    call.on_head(200, {})
    answer = b'{"choices":[{"message":{"content":"' + b"x" * 5 * 2 * ANSWER_PIECES_PER_JOIN + b'"}}]}'
    for at in range(0, len(answer), 2):
        call.on_data(answer[at : at + 2])
    assert len(call._parts) <= ANSWER_PIECES_PER_JOIN + 6
    call.on_complete()
    assert ledger.endings == [""] and ledger.frames == [Kind.ANSWER]
