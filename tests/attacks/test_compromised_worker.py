"""A worker that fell: code execution in the process that parses clients.

What it cannot do to the kernel is in `tests/processes/test_locked_roles.py`. Here it uses what it has: its channels to egress and to the auditor, with
frames of its own making. It gets no further than what its clients' keys allow, chooses no path and no header, reaches no log line that egress writes, and the
other workers go on.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cliproxy.audit.events import Authentication, ProviderOutcome
from cliproxy.bounds import MAX_DATA_FRAME_BYTES, MAX_STREAMS_PER_CHANNEL, STREAM_WINDOW_BYTES
from cliproxy.egress.worker_channel import MAX_REQUEST_BYTES_PER_WORKER
from cliproxy.ipc.mux import HEADER, MAX_FRAME_BYTES, Kind
from cliproxy.processes.topology import AUDITOR, FIRST_WORKER_FD
from fakes.held import CREDIT, POLICY_ACK, FallenWorker, Held, wait_for
from fakes.provider import FakeProvider

pytestmark = pytest.mark.held

MODEL = "gpt-4o-mini"
PROVIDER_KEY = "sk-proj-Held5c0ffee2b8d7a916403Worker"
HEAD = b'{"model":'
REST = b',"messages":[{"role":"user","content":"hello"}],"max_tokens":16,"n":1,"stream":false}'
CAP = 1000


class WorkerHeld(Held):
    """Worker 0 is the test's, worker 1 is real."""

    def prepare(self) -> None:
        self.echo_key = json.loads(self.run("keys", "create", "--name", "echo-only", "--model", "echo", "--json"))["key"]
        self.far_key = json.loads(self.run("keys", "create", "--name", "far", "--network", "192.0.2.0/24", "--json"))["key"]


@pytest.fixture(scope="module")
def provider() -> Iterator[FakeProvider]:
    with FakeProvider() as running:
        yield running


@pytest.fixture(scope="module")
def gateway(provider: FakeProvider) -> Iterator[WorkerHeld]:
    settings = {
        "providers": {"fake": {"base_url": provider.base_url, "models": [MODEL, "fault-endless", "fault-trickle-50"]}, "echo": {"models": ["echo"]}},
        "requests": {"max_tokens": CAP},
    }
    with WorkerHeld({"worker-0"}, settings, credentials={"fake": PROVIDER_KEY}) as running:
        running.wait_until_ready()
        yield running


@pytest.fixture
def worker(gateway: WorkerHeld, provider: FakeProvider) -> Iterator[FallenWorker]:
    """A worker that has said hello. Afterwards the other worker serves as if nothing were."""
    provider.reset()
    fallen = FallenWorker(gateway)
    fallen.hello()
    yield fallen
    fallen.close()
    assert_others_are_served(gateway)


def assert_others_are_served(gateway: WorkerHeld) -> None:
    status, _, body = gateway.post("/v1/chat/completions", {"model": MODEL, "messages": [{"role": "user", "content": "others"}]})
    assert (status, b"fake provider" in body) == (200, True)
    assert gateway.is_running("egress") and gateway.is_running(AUDITOR) and gateway.is_running("vault")


def proof_of(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def call(gateway: WorkerHeld, **changes: Any) -> list[Any]:
    """The fields of an honest CALL, but for `changes`."""
    fields: dict[str, Any] = {
        "endpoint": 1,
        "proof": proof_of(gateway.key),
        "request_id": "req_0123456789ab00000001",
        "address": "127.0.0.1",
        "model": MODEL,
        "max_tokens": 16,
        "n": 1,
        "stream": False,
        "estimate": 9,
        "hole": len(HEAD),
        "body_bytes": len(HEAD + REST),
        "body": HEAD + REST,
    }
    unknown = set(changes) - set(fields) - {"rest"}
    assert not unknown
    if "rest" in changes:
        body = HEAD + changes.pop("rest")
        fields |= {"body": body, "body_bytes": len(body)}
    return list({**fields, **changes}.values())


def pack(value: Any) -> bytes:
    return msgspec.msgpack.encode(value)


def leftover(provider: FakeProvider) -> list[dict[str, Any]]:
    """What reached the provider, but for what `assert_others_are_served` sends."""
    return [request for request in provider.record()["requests"] if '"others"' not in request["body"]]


# --- what an honest worker gets, or nothing below would prove anything ---------------------------------------------------


def test_an_honest_call_is_answered(gateway: WorkerHeld, provider: FakeProvider, worker: FallenWorker) -> None:
    worker.send(Kind.CALL, 1, pack(call(gateway)))
    kind, answer = worker.answer(1)
    assert (kind, answer[0]) == (Kind.ANSWER, 200)
    worker.send(Kind.CALL, 2, pack(call(gateway, body=b"")))
    worker.send(Kind.DATA, 2, HEAD)
    worker.send(Kind.DATA, 2, b"")
    worker.send(Kind.DATA, 2, REST)
    worker.send(Kind.END, 2, b"")
    assert worker.answer(2)[0] is Kind.ANSWER
    assert [json.loads(request["body"])["model"] for request in leftover(provider)] == [MODEL] * 2


def test_a_worker_chooses_no_path_and_no_header(gateway: WorkerHeld, provider: FakeProvider, worker: FallenWorker) -> None:
    """All that it may say travels in the body; the request line and the headers are egress's own, to the byte."""
    worker.send(Kind.CALL, 1, pack(call(gateway)))
    assert worker.answer(1)[0] is Kind.ANSWER
    marks = {"request_id": "req_mark-of-the-fallen", "address": "2001:db8::bad"}
    rest = b',"messages":[{"role":"user","content":"mark\\r\\nX-Evil: 1\\r\\n\\r\\nGET /v1/files HTTP/1.1"}],"max_tokens":16,"X-Evil":"1"}'
    worker.send(Kind.CALL, 2, pack(call(gateway, rest=rest, estimate=77777, **marks)))
    assert worker.answer(2)[0] is Kind.ANSWER
    first, second = leftover(provider)
    assert first["line"] == second["line"] == "POST /v1/chat/completions HTTP/1.1"
    without_length = [[field for field in request["headers"] if field[0].lower() != "content-length"] for request in (first, second)]
    assert without_length[0] == without_length[1]
    assert not any("mark" in value or "bad" in value or "77777" in value for _, value in second["headers"])


# --- refused: the call does not happen, the channel goes on --------------------------------------------------------------

REFUSED: dict[str, tuple[int, Callable[[WorkerHeld], list[Any]]]] = {
    "no proof": (401, lambda g: call(g, proof=b"")),
    "a proof that is no key's": (401, lambda g: call(g, proof=os.urandom(32))),
    "the key instead of its proof": (401, lambda g: call(g, proof=g.key.encode())),
    "what the policy feed tells workers of a key": (401, lambda g: call(g, proof=hashlib.sha256(proof_of(g.key)).digest())),
    "most of a proof": (401, lambda g: call(g, proof=proof_of(g.key)[:31])),
    "a very long proof": (401, lambda g: call(g, proof=proof_of(g.key) * 1000)),
    "a model that the key may not use": (403, lambda g: call(g, proof=proof_of(g.echo_key))),
    "an address that the key may not come from": (403, lambda g: call(g, proof=proof_of(g.far_key))),
    "a model that there is not": (404, lambda g: call(g, model="gpt-5")),
    "no model": (404, lambda g: call(g, model="")),
    "a model with a header": (404, lambda g: call(g, model=f"{MODEL}\r\nX-Evil: 1")),
    "a model with a path": (404, lambda g: call(g, model=f"../files?{MODEL}")),
    "a model that is a provider": (404, lambda g: call(g, model=f"fake/{MODEL}")),
    "a long model": (404, lambda g: call(g, model="m" * 100_000)),
    "more tokens than the cap": (400, lambda g: call(g, rest=REST.replace(b"16", b"1001"), max_tokens=1001)),
    "no cap on tokens": (400, lambda g: call(g, rest=b',"messages":[]}')),
    "tokens below nothing": (400, lambda g: call(g, rest=REST.replace(b"16", b"-1"))),
    "two caps on tokens": (400, lambda g: call(g, rest=REST[:-1] + b',"max_completion_tokens":5000}', max_tokens=5000)),
    "too many choices": (400, lambda g: call(g, rest=REST.replace(b'"n":1', b'"n":129'), n=129)),
    "no JSON": (400, lambda g: call(g, rest=b',"messages":[')),
    "two documents": (400, lambda g: call(g, rest=REST + b"{}")),
    "a hole at the beginning": (400, lambda g: call(g, hole=0)),
    "a hole at the end": (400, lambda g: call(g, hole=len(HEAD + REST))),
    "a hole in a name": (400, lambda g: call(g, hole=4)),
    "an endpoint that the provider has not": (400, lambda g: call(g, model="fault-trickle-50", endpoint=2, rest=b',"input":1')),
}


@pytest.mark.parametrize(("status", "made"), REFUSED.values(), ids=REFUSED.keys())
def test_a_call_that_may_not_be_is_refused_and_never_leaves(
    gateway: WorkerHeld, provider: FakeProvider, worker: FallenWorker, status: int, made: Callable[[WorkerHeld], list[Any]]
) -> None:
    worker.send(Kind.CALL, 1, pack(made(gateway)))
    kind, abort = worker.answer(1)
    assert (kind, abort[0]) == (Kind.ABORT, status)
    assert leftover(provider) == []
    worker.send(Kind.CALL, 2, pack(call(gateway)))  # the channel goes on
    assert worker.answer(2)[0] is Kind.ANSWER


def opened(gateway: WorkerHeld, worker: FallenWorker, proofs: list[bytes], *, refused: int) -> list[int]:
    """Open a stream with each of `proofs`, whose body never comes, and return the first `refused` streams that are refused."""
    calls = [pack(call(gateway, body=b"", proof=proof)) for proof in proofs]
    worker.raw(b"".join(HEADER.pack(len(waiting), Kind.CALL, stream) + waiting for stream, waiting in enumerate(calls, 1)))
    found: list[int] = []
    for kind, stream, payload in worker.frames():
        if kind is Kind.ABORT:
            assert msgspec.msgpack.decode(payload)[0] == 503
            found.append(stream)
            if len(found) == refused:
                break
    return found


def test_calls_above_the_bound_are_refused_while_the_others_wait(gateway: WorkerHeld, provider: FakeProvider, worker: FallenWorker) -> None:
    """Each says that it is of another key: together they fill the room, and no more."""
    refused = opened(gateway, worker, [os.urandom(32) for _ in range(5000)], refused=5000 - MAX_STREAMS_PER_CHANNEL)
    assert refused == list(range(MAX_STREAMS_PER_CHANNEL + 1, 5001))
    assert_others_are_served(gateway)
    assert leftover(provider) == []


def test_one_key_has_half_of_the_calls_and_the_next_half_of_the_rest(gateway: WorkerHeld, provider: FakeProvider, worker: FallenWorker) -> None:
    """ADR 0127."""
    half = MAX_STREAMS_PER_CHANNEL // 2
    refused = opened(gateway, worker, [os.urandom(32)] * (half + 10) + [os.urandom(32)] * half, refused=10 + half // 2)
    assert refused == [*range(half + 1, half + 11), *range(half + half // 2 + 11, 2 * half + 11)]
    assert_others_are_served(gateway)
    assert leftover(provider) == []


def test_a_worker_holds_no_more_of_egress_s_memory_than_its_share(gateway: WorkerHeld, worker: FallenWorker) -> None:
    """Bodies that are announced and never come, pieces of nothing, pieces of two bytes."""

    def resident() -> int:
        status = Path(f"/proc/{gateway.pid('egress')}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0])

    most = 1 << 20
    worker.send(Kind.CALL, 1, pack(call(gateway, body=b"", body_bytes=most)))
    before = resident()
    worker.raw(HEADER.pack(0, Kind.DATA, 1) * 1_000_000)
    worker.raw((HEADER.pack(2, Kind.DATA, 1) + b"xy") * 500_000)
    half = MAX_REQUEST_BYTES_PER_WORKER // most // 2  # of one key (ADR 0127)
    for stream in range(2, half + 2):
        worker.send(Kind.CALL, stream, pack(call(gateway, body=b"", body_bytes=most)))
    for stream in range(half + 2, 400):  # each says that it is of another key
        worker.send(Kind.CALL, stream, pack(call(gateway, body=b"", body_bytes=most, proof=os.urandom(32))))
    refused = (stream for kind, stream, _ in worker.frames() if kind is Kind.ABORT)
    assert [next(refused), next(refused)] == [half + 1, 2 * half + 2]  # the first key is above its share; then all is announced that there is room for
    assert resident() - before < 16 * 1024


# --- a violation: the channel is closed, the log says so -----------------------------------------------------------------

Deed = Callable[[WorkerHeld, FallenWorker], object]


def asks(**changes: Any) -> Deed:
    return lambda gateway, worker: worker.send(Kind.CALL, 1, pack(call(gateway, **changes)))


def sends(kind: int, stream: int, payload: bytes) -> Deed:
    return lambda gateway, worker: worker.send(kind, stream, payload)


def with_body(announced: int, *frames: tuple[Kind, bytes]) -> Deed:
    def do(gateway: WorkerHeld, worker: FallenWorker) -> None:
        worker.send(Kind.CALL, 1, pack(call(gateway, body=b"", body_bytes=announced)))
        for kind, payload in frames:
            worker.send(kind, 1, payload)

    return do


def same_stream_twice(gateway: WorkerHeld, worker: FallenWorker) -> None:
    for _ in range(2):
        worker.send(Kind.CALL, 7, pack(call(gateway, body=b"")))


def credit_for_nothing(gateway: WorkerHeld, worker: FallenWorker) -> None:
    worker.send(Kind.CALL, 1, pack(call(gateway, model="fault-trickle-50", rest=REST.replace(b"false", b"true"), stream=True)))
    assert worker.answer(1)[0] is Kind.ANSWER
    worker.send(Kind.CREDIT, 1, CREDIT.pack(0xFFFF_FFFF))


VIOLATIONS: dict[str, Deed] = {
    "an endpoint that does not exist": asks(endpoint=99),
    "endpoint nought": asks(endpoint=0),
    "a path instead of an endpoint": asks(endpoint="/v1/files"),
    "a body with more tokens": asks(rest=REST.replace(b"16", b"900")),
    "a body with more choices": asks(rest=REST.replace(b'"n":1', b'"n":9')),
    "a body that streams": asks(rest=REST.replace(b"false", b"true")),
    "a body that does not stream": asks(stream=True),
    "a second model": asks(rest=REST[:-1] + b',"model":"gpt-4-turbo"}'),
    "second tokens": asks(rest=REST[:-1] + b',"max_tokens":999}'),
    "an embeddings body for another model": asks(model="echo", endpoint=2, rest=b',"input":"a","model":"other"}'),
    "a second model in capitals": asks(rest=REST[:-1] + b',"MODEL":"gpt-4-turbo"}'),
    "second tokens in capitals": asks(rest=REST[:-1] + b',"MAX_TOKENS":999}'),
    "second tokens with a Kelvin sign": asks(rest=REST[:-1] + ',"max_to\u212aens":999}'.encode()),
    "the same field twice, which does not count": asks(rest=REST[:-1] + b',"user":"a","user":"b"}'),
    "a field of another gateway's": asks(rest=REST[:-1] + b',"extra_body":{"max_tokens":999}}'),
    "a number that no double holds": asks(rest=REST[:-1] + b',"temperature":1e99999}'),
    "an integer that no double holds": asks(rest=REST[:-1] + b',"seed":' + b"9" * 309 + b"}"),
    "bytes that are no text": asks(rest=REST[:-1] + b',"user":"\xff"}'),
    "a body that our encoder does not write": asks(rest=REST[:-1] + b" }"),
    "a hole outside": asks(hole=len(HEAD + REST) + 1),
    "a hole before": asks(hole=-1),
    "a hole elsewhere, and a model of its own": asks(hole=5, body=b'{"a":,"model":"gpt-4-turbo","max_tokens":16}', body_bytes=44),
    "more body than announced, at once": asks(body_bytes=10),
    "less body than announced, at once": asks(body_bytes=500),
    "a body larger than any": asks(body=b"", body_bytes=1 << 40),
    "a body smaller than none": asks(body=b"", body_bytes=-1, hole=-1),
    "choices below nothing": asks(n=-1),
    "tokens below nothing": asks(max_tokens=-(1 << 40)),
    "an estimate below nothing": asks(estimate=-1),
    "an estimate that the log has no room for": asks(estimate=(1 << 64) - 1),
    "an estimate past all limits": asks(estimate=1 << 62),
    "a request id with a line of its own": asks(request_id='req_1\r\n{"event":"key_change"}'),
    "no request id": asks(request_id=""),
    "a request id of 10 KB": asks(request_id="r" * 10_000),
    "a request id above the log's bound": asks(request_id="r" * 513),
    "a request id beyond ASCII": asks(request_id="req_\u202e1"),
    "an address of 10 KB": asks(address="1" * 10_000),
    "an address with a line of its own": asks(address="127.0.0.1\n"),
    "an address beyond ASCII": asks(address="１２７.0.0.1"),
    "no address": asks(address=""),
    "text that is no UTF-8": lambda gateway, worker: worker.send(Kind.CALL, 1, pack(call(gateway)).replace(b"req_", b"\xff\xfe\xfd\xfc")),
    "a field too many": lambda gateway, worker: worker.send(Kind.CALL, 1, pack([*call(gateway), "https://evil.example"])),
    "a field too few": lambda gateway, worker: worker.send(Kind.CALL, 1, pack(call(gateway)[:-1])),
    "fields by name": lambda gateway, worker: worker.send(Kind.CALL, 1, pack({"endpoint": 1, "origin": "https://evil.example"})),
    "a payload that is none": sends(Kind.CALL, 1, b"\xc1" * 20),
    "an empty call": sends(Kind.CALL, 1, b""),
    "trailing bytes": lambda gateway, worker: worker.send(Kind.CALL, 1, pack(call(gateway)) + b"\x00"),
    "stream nought": lambda gateway, worker: worker.send(Kind.CALL, 0, pack(call(gateway))),
    "a stream twice": same_stream_twice,
    "a second hello": lambda gateway, worker: worker.hello(),
    "a hello in the middle, of another build": lambda gateway, worker: worker.hello("0.0.1+0000000000000000"),
    "more body than announced": with_body(20, (Kind.DATA, b"x" * 21)),
    "more body than announced, in pieces": with_body(20, *[(Kind.DATA, b"x" * 7)] * 3),
    "less body than announced": with_body(20, (Kind.DATA, b"x" * 19), (Kind.END, b"")),
    "a piece too large": with_body(1 << 20, (Kind.DATA, b"x" * (MAX_DATA_FRAME_BYTES + 1))),
    "an announced frame above the bound": lambda gateway, worker: worker.raw(HEADER.pack(MAX_FRAME_BYTES + 1, Kind.CALL, 1)),
    "an announced frame of 4 GiB": lambda gateway, worker: worker.raw(HEADER.pack(0xFFFF_FFFF, Kind.DATA, 1)),
    "an answer": sends(Kind.ANSWER, 1, pack([200, False, True, "", 0.0, b"{}"])),
    "a policy": sends(Kind.POLICY, 0, pack({"type": "PolicyBegin", "number": 0})),
    "readiness": sends(Kind.READINESS, 0, pack([1, 0.0, True])),
    "an abort": sends(Kind.ABORT, 1, b""),
    "a kind that there is not": sends(200, 1, b""),
    "credit for nothing": credit_for_nothing,
    "a cancellation for a reason that there is not": sends(Kind.CANCEL, 1, b"\xff"),
    "a cancellation with words": sends(Kind.CANCEL, 1, b"client_gone"),
    "half a credit": sends(Kind.CREDIT, 1, b"\x01"),
    "half an acknowledgement": sends(Kind.POLICY_ACK, 0, b"\x01"),
    "an acknowledgement of what is to come": sends(Kind.POLICY_ACK, 0, POLICY_ACK.pack(1 << 40)),
    "an acknowledgement of less than nothing": sends(Kind.POLICY_ACK, 0, POLICY_ACK.pack(-(1 << 40))),
}
BEFORE_HELLO: dict[str, Deed] = {
    "a call before the hello": asks(),
    "a hello of another build": lambda gateway, worker: worker.hello("0.0.1+0000000000000000"),
    "a hello that is none": sends(Kind.HELLO, 0, b"\xff"),
    "an acknowledgement before the hello": sends(Kind.POLICY_ACK, 0, POLICY_ACK.pack(0)),
    "another protocol": lambda gateway, worker: worker.raw(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
}


def violates(gateway: WorkerHeld, provider: FakeProvider, worker: FallenWorker, deed: Deed) -> None:
    before = len(gateway.violations("egress"))
    deed(gateway, worker)
    assert worker.is_closed()
    (line,) = wait_for(lambda: gateway.violations("egress")[before:], "an audit event")
    assert line["peer"] == "worker 0" and line["reason"].isprintable() and len(line["reason"]) < 100
    # `credit for nothing` made an honest call first
    assert [request for request in leftover(provider) if "fault-trickle" not in request["body"]] == []


@pytest.mark.parametrize("deed", VIOLATIONS.values(), ids=VIOLATIONS.keys())
def test_what_no_honest_worker_sends_closes_the_channel_and_is_told_to_the_log(
    gateway: WorkerHeld, provider: FakeProvider, worker: FallenWorker, deed: Deed
) -> None:
    violates(gateway, provider, worker, deed)


@pytest.mark.parametrize("deed", BEFORE_HELLO.values(), ids=BEFORE_HELLO.keys())
def test_what_comes_before_the_hello_closes_the_channel(gateway: WorkerHeld, provider: FakeProvider, deed: Deed) -> None:
    provider.reset()
    worker = FallenWorker(gateway)
    violates(gateway, provider, worker, deed)
    worker.close()
    assert_others_are_served(gateway)


# --- holding on ----------------------------------------------------------------------------------------------------------


def test_a_worker_that_gives_no_credit_gets_a_window_and_no_more(gateway: WorkerHeld, provider: FakeProvider, worker: FallenWorker) -> None:
    rest = REST.replace(b"false", b"true")
    worker.send(Kind.CALL, 1, pack(call(gateway, model="fault-endless", rest=rest, stream=True)))
    got, turns = 0, 0
    for kind, stream, payload in worker.frames():
        if stream == 1:
            assert kind in (Kind.ANSWER, Kind.DATA)
            got += len(msgspec.msgpack.decode(payload)[5]) if kind is Kind.ANSWER else len(payload)
        elif kind is Kind.READINESS:
            turns += 1
            if turns == 1:
                assert_others_are_served(gateway)
            if turns == 3:
                break
    assert got == STREAM_WINDOW_BYTES
    worker.send(Kind.CANCEL, 1, b"")
    wait_for(lambda: provider.record()["broken_off"], "the cancellation")


def test_the_calls_of_a_worker_that_is_gone_are_cancelled_and_settled(gateway: WorkerHeld, provider: FakeProvider, worker: FallenWorker) -> None:
    request_id = "req_gone-0001"
    rest = REST.replace(b"false", b"true")
    worker.send(Kind.CALL, 1, pack(call(gateway, model="fault-trickle-50", rest=rest, stream=True, request_id=request_id)))
    assert worker.answer(1)[0] is Kind.ANSWER
    worker.send(200, 1, b"")
    assert worker.is_closed()
    lines = wait_for(lambda: [line for line in gateway.audit_lines() if line["event"] == "provider_outcome" and line["request"] == request_id], "an outcome")
    assert lines[0]["error"] == "worker_gone"
    wait_for(lambda: provider.record()["broken_off"], "the cancellation")


# --- its channel to the auditor ------------------------------------------------------------------------------------------


def outcome(**changes: Any) -> ProviderOutcome:
    fields = {"attempt": 1, "bytes": 1, "duration_ms": 1, "error": "", "input_tokens": 1, "output_tokens": 1, "request": "r", "status": 200}
    return ProviderOutcome(**{**fields, **changes})


def told(**changes: Any) -> Authentication:
    fields = {"address": "192.0.2.1", "count": 1, "principal": "", "reason": "no_valid_key", "result": "refused", "second": 1}
    return Authentication(**{**fields, **changes})


AUDIT_PACKETS: dict[str, Any] = {
    "an event that is egress's to tell": (1, [outcome()]),
    "an event that is the vault's to tell": (1, [{"event": "vault_commit", "epoch": 1 << 40, "root": "00" * 32}]),
    "a text longer than an event holds": (1, [told(reason="x" * 513)]),
    "a count below nothing": (1, [told(count=-1)]),
    "no batch number": (0, [told()]),
    "no packet of ours": "cliproxy",
    "a field too many": (1, [{"type": "authentication", "line": "x"}]),
}


@pytest.mark.parametrize("packet", AUDIT_PACKETS.values(), ids=AUDIT_PACKETS.keys())
def test_a_worker_tells_the_log_nothing_but_what_workers_see(gateway: WorkerHeld, packet: Any) -> None:
    before = len(gateway.violations("auditor"))
    channel = gateway.fresh(AUDITOR, FIRST_WORKER_FD)
    channel.send(msgspec.msgpack.encode(packet))
    assert channel.recv(100) == b""
    channel.close()
    wait_for(lambda: len(gateway.violations("auditor")) > before, "an audit event")
    assert not any(line["source"] == "worker-0" for line in gateway.audit_lines())
    assert_others_are_served(gateway)


def test_a_line_of_a_worker_stays_one_line_and_carries_its_name(gateway: WorkerHeld) -> None:
    """What it may tell, it may tell falsely; but never as somebody else, and never as two lines."""
    channel = gateway.fresh(AUDITOR, FIRST_WORKER_FD)
    reason = 'x"}\n{"event":"vault_commit","source":"vault","time":"2020-01-01T00:00:00.000000Z"}\n\x00\x1b[2J'
    channel.send(msgspec.msgpack.encode((1, [told(reason=reason)])))
    state, batch = struct.unpack("<BxxxxxxxQ", channel.recv(100))
    assert (state, batch) == (1, 1)
    lines = [line for line in gateway.audit_lines() if line.get("reason") == reason]
    assert [line["source"] for line in lines] == ["worker-0"]
    assert not any(line["time"].startswith("2020") for line in gateway.audit_lines())
    channel.close()
    gateway.run("audit", "verify")


# --- and after all that --------------------------------------------------------------------------------------------------


def test_what_egress_wrote_holds_nothing_that_the_worker_smuggled(gateway: WorkerHeld) -> None:
    assert_others_are_served(gateway)
    until = time.monotonic() + 10
    requests: set[str] = set()
    while not requests and time.monotonic() < until:  # the auditor writes a moment later
        requests = {line["request"] for line in gateway.audit_lines() if line["source"] == "egress" and line["event"] == "provider_request"}
        time.sleep(0.02)
    assert requests
    assert all(request.startswith("req_") and request.isalnum() is False and len(request) <= 64 for request in requests)
    assert "Traceback" not in gateway.messages() and "after the lockdown" not in gateway.messages()
    assert PROVIDER_KEY not in gateway.messages()
