"""Calls in any weather: providers that fail in every way, clients and workers that go, keys revoked, reloads, an auditor that is full.

Whatever happened, in the end nothing is held or counted, no probe is under way, each call had one ending, and each intent in the log has one outcome.
"""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections import Counter
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import uvloop

from cliproxy.audit.client import AuditClient, packet_decoder
from cliproxy.audit.events import EgressEvent, ProviderOutcome, ProviderRequest
from cliproxy.auth.client_keys import digest_of
from cliproxy.config.schema import ModelRoute, PoolMember, Provider, ProviderRate, Routing, Settings
from cliproxy.dialects import Endpoint
from cliproxy.egress.admission import Admission
from cliproxy.egress.attempt import Attempt
from cliproxy.egress.authorise import Authoriser
from cliproxy.egress.dispatcher import Dispatcher
from cliproxy.egress.inject import Injector
from cliproxy.egress.worker_channel import WorkerChannel
from cliproxy.errors import CliproxyError, ProviderRefusal, Unavailable, UpstreamError
from cliproxy.ipc.messages import KeyRecord, PolicyBegin, PolicyChange, PolicyEnd, PolicyKeys, PolicyRules
from cliproxy.ipc.mux import Answer, CallHead, Kind, Reroute
from cliproxy.ipc.policy_feed import PolicyFeed
from cliproxy.secret import Secret

KEYS = 4
BODY = b'{"model":,"max_tokens":10,"messages":[{"role":"user","content":"Hello."}]}'
STREAMED = BODY[:-1] + b',"stream":true}'
MODEL_OFFSET = len(b'{"model":')
CHAT_ANSWER = b'{"id":"c","choices":[{"index":0,"message":{"role":"assistant","content":"hi"}}],"usage":{"prompt_tokens":3,"completion_tokens":2}}'
MESSAGE_ANSWER = b'{"id":"m","type":"message","role":"assistant","content":[],"usage":{"input_tokens":3,"output_tokens":2}}'
EVENT = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n'
LAST_EVENTS = b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\ndata: [DONE]\n\n'
STATUSES = (400, 401, 403, 404, 408, 409, 413, 425, 429, 500, 503, 529)
CODES = ("provider_timeout", "provider_broke_off", "provider_refused_connection", "bad_upstream_answer", "provider_answer_too_large")
MODELS = ("chat", "mixed", "single", "echo-last", "keys")


def proof(number: int) -> bytes:
    return bytes([number]) * 32


def settings(*, less: bool = False, other: bool = False) -> Settings:
    """`less`: without the echo provider; `other`: one provider is reached in another way."""
    rate = ProviderRate(tokens_per_minute=5000)
    providers = {
        "a": Provider(kind="openai_compatible", base_url=f"https://a.example/{'v2' if other else 'v1'}", auth="none", concurrency=20),
        "b": Provider(kind="openai_compatible", base_url="https://b.example/v1", auth="none", rate_limit=rate),
        "c": Provider(kind="openai_compatible", base_url="https://c.example/v1", auth="none"),
        "d": Provider(kind="anthropic", base_url="https://d.example", auth="none"),
        "k": Provider(kind="openai_compatible", base_url="https://k.example/v1"),
    }
    members = tuple(PoolMember(provider=name, model=f"at-{name}") for name in "abc")
    models = {
        "chat": ModelRoute(pool=members, strategy="least_busy"),
        "mixed": ModelRoute(pool=(members[0], PoolMember(provider="d", model="at-d")), fallback=("single",)),
        "single": ModelRoute(provider="c", model="at-c"),
        "keys": ModelRoute(provider="k", model="at-k"),
        "echo-last": ModelRoute(provider="b", model="at-b"),
    }
    if not less:
        providers["echo"] = Provider(kind="echo")
        models["echo"] = ModelRoute(provider="echo", model="echo")
        models["echo-last"] = ModelRoute(provider="b", model="at-b", fallback=("echo",))
    return Settings(providers=providers, models=models, routing=Routing(retry_rounds=1, cooldown_seconds=0.01, max_wait_seconds=0.1))


class Weather:
    """A dispatcher with two workers, and dice."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        ours, self.auditor = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        self.auditor.setblocking(False)
        self.policy = PolicyFeed()
        start = settings()
        self.injector = Injector(start.providers)
        for id in ("cred_1", "cred_2"):
            self.grant(id)
        self.authoriser = Authoriser(start, self.policy, self.injector, Admission(start))
        self.audit = AuditClient(ours, deadline_seconds=5.0)
        self.dispatcher = Dispatcher(
            build="b", generation=1, policy=self.policy, authoriser=self.authoriser, senders=self, audit=self.audit, acknowledge=lambda message: None
        )
        limits: tuple[dict[str, Any], ...] = ({}, {"concurrency": 3}, {"tokens_per_minute": 4000}, {"requests_per_minute": 400})
        self.records = tuple(KeyRecord(id=f"k{number}", digest=digest_of(proof(number)), name="k", models=("*",), **limits[number]) for number in range(KEYS))
        self.snapshot(1)
        self.workers = [self.fresh_worker(index) for index in (0, 1)]
        self.live: list[Attempt] = []
        self.open: dict[tuple[int, int], CallHead] = {}  # by worker's index and stream
        self.endings: Counter[tuple[int, int, int]] = Counter()
        self.lives = [0, 0]
        self.streams = 0
        self.log: list[Any] = []

    # --- who is around ---

    def grant(self, id: str) -> None:
        self.injector.grant(id, provider="k", origin="https://k.example:443", secret=Secret(f"sk-of-{id}-0000".encode()))

    def snapshot(self, number: int) -> None:
        for message in (PolicyBegin(number=number), PolicyKeys(keys=self.records), PolicyEnd(number=number, rules=PolicyRules())):
            self.dispatcher.policy(message)
        self.policy.heard(vault_age=0.0, now=time.monotonic())

    def fresh_worker(self, index: int) -> WorkerChannel:
        worker = self.dispatcher.worker(index, max_body_bytes=1 << 20)
        worker.introduced = True
        worker.channel.queue = lambda kind, stream, payload: self.on_frame(index, kind, stream, payload)  # type: ignore[method-assign]
        worker.channel.fail = lambda error: pytest.fail(str(error))  # type: ignore[method-assign]
        return worker

    def start(self, call: Attempt) -> Any:
        if self.dice.random() < 0.05:
            raise Unavailable("x", code="provider_busy")
        call.request.take_body()
        self.live.append(call)
        return SimpleNamespace(cancel=lambda: None, pause_reading=lambda: None, resume_reading=lambda: None)

    def on_frame(self, index: int, kind: Kind, stream: int, payload: bytes) -> None:
        if not stream:
            return
        final = kind in (Kind.END, Kind.ABORT, Kind.REROUTE) or (kind is Kind.ANSWER and msgspec.msgpack.decode(payload, type=Answer).final)
        if not final:
            return
        call = self.open.pop((index, stream), None)
        assert call is not None, f"a second ending, or one that nobody waits for: {kind.name}"
        self.endings[index, self.lives[index], stream] += 1
        if kind is Kind.REROUTE and self.dice.random() < 0.8:
            asyncio.get_running_loop().call_soon(self.again, index, call, msgspec.msgpack.decode(payload, type=Reroute), self.lives[index])

    # --- calls ---

    def submit(self) -> None:
        self.streams += 1
        stream = self.dice.random() < 0.5
        body = STREAMED if stream else BODY
        call = CallHead(
            endpoint=int(Endpoint.CHAT_COMPLETIONS),
            proof=proof(self.dice.randrange(KEYS)),
            request_id=f"req_{self.streams}",
            address="127.0.0.1",
            model=self.dice.choice(MODELS),
            max_tokens=10,
            n=1,
            stream=stream,
            estimate=5,
            model_offset=MODEL_OFFSET,
            body_bytes=len(body),
            body=body,
        )
        self.send(self.dice.randrange(2), call)

    def again(self, index: int, call: CallHead, reroute: Reroute, life: int) -> None:
        if self.lives[index] == life:
            self.streams += 1
            self.send(index, msgspec.structs.replace(call, endpoint=reroute.endpoint, quirks=reroute.quirks, tried=reroute.tried))

    def send(self, index: int, call: CallHead) -> None:
        self.open[index, self.streams] = call
        self.workers[index]._on_call(self.streams, msgspec.msgpack.encode(call))

    def any_live(self) -> Attempt | None:
        self.live = [call for call in self.live if not call._over]
        return self.dice.choice(self.live) if self.live else None

    # --- what may happen ---

    def fail(self) -> None:
        call = self.any_live()
        if call is not None:
            call.on_failure(self.trouble())

    def trouble(self) -> CliproxyError:
        if self.dice.random() < 0.5:
            status = self.dice.choice(STATUSES)
            retry = self.dice.choice((None, 0.0, 0.005, 0.02, 86400.0)) if status in (429, 503, 529) else None
            return ProviderRefusal("no", status=429 if status == 429 else 502, code="was", provider_status=status, retry_after=retry)
        return UpstreamError("x", status=504, code=self.dice.choice(CODES))

    def succeed(self) -> None:
        call = self.any_live()
        if call is not None:
            self.finish(call)

    def finish(self, call: Attempt) -> None:
        if not call.request.stream:
            call.on_head(200, {})
            call.on_data(MESSAGE_ANSWER if call.request.endpoint is Endpoint.MESSAGES else CHAT_ANSWER)
            call.on_complete()
        elif call.request.endpoint is Endpoint.MESSAGES:
            call.on_failure(self.trouble())
        else:
            if call._sse is None:
                call.on_head(200, {})
            call.on_data(EVENT)
            call.on_data(LAST_EVENTS)
            call.on_complete()

    def begin(self) -> None:
        call = self.any_live()
        if call is not None and call.request.stream and call._sse is None:
            call.on_head(200, {})
            if self.dice.random() < 0.7 and call.request.endpoint is Endpoint.CHAT_COMPLETIONS:
                call.on_data(EVENT)

    def client_goes(self) -> None:
        if self.open:
            index, stream = self.dice.choice(list(self.open))
            del self.open[index, stream]
            self.workers[index]._on_cancel(stream, b"")

    def worker_goes(self) -> None:
        index = self.dice.randrange(2)
        for key in [key for key in self.open if key[0] == index]:
            del self.open[key]
        self.workers[index].channel_lost(None)
        self.lives[index] += 1
        self.workers[index] = self.fresh_worker(index)

    def policy_changes(self) -> None:
        number = self.policy.number + 1
        what = self.dice.randrange(5)
        if what == 0:
            self.dispatcher.policy(PolicyChange(number=number, revoked=(f"k{self.dice.randrange(KEYS)}",)))
        elif what == 1:
            self.dispatcher.policy(PolicyChange(number=number, rules=PolicyRules(lockdown=True)))
        elif what == 2:
            self.dispatcher.policy(PolicyChange(number=number, rules=PolicyRules(disabled_providers=(self.dice.choice("abcdk"),))))
        else:
            self.snapshot(number)

    def credential_changes(self) -> None:
        id = self.dice.choice(("cred_1", "cred_2", "cred_3"))
        self.injector.withdraw(id) if self.dice.random() < 0.5 else self.grant(id)

    def hours_pass(self) -> None:
        for cooldown in self.authoriser.cooldowns.table.values():
            cooldown.until = min(cooldown.until, time.monotonic())

    def reload(self) -> None:
        fresh = settings(less=self.dice.random() < 0.5, other=self.dice.random() < 0.3)
        self.authoriser.reconfigure(fresh, now=time.monotonic())
        self.injector.retable(fresh.providers)

    def auditor_reads(self) -> None:
        decoder = packet_decoder(EgressEvent)
        while True:
            try:
                self.log += decoder.decode(self.auditor.recv(1 << 20))[1]
            except BlockingIOError:
                return

    async def blow(self, steps: int) -> None:
        usual = [self.submit] * 12 + [self.fail] * 6 + [self.succeed] * 4 + [self.begin] * 2 + [self.client_goes] * 2 + [self.auditor_reads]
        for step in range(steps):
            self.dice.choice(usual)()
            if step % 20 == 0:
                self.hours_pass()
            if step % 100 == 50:
                self.snapshot(self.policy.number + 1)
            if step % 50 == 0:
                self.dice.choice((self.worker_goes, self.policy_changes, self.credential_changes, self.reload))()
            if step % 10 == 0:
                await asyncio.sleep(self.dice.choice((0.0, 0.0, 0.003)))

    async def calm_down(self) -> None:
        """All that is under way ends; who waits goes on."""
        self.snapshot(self.policy.number + 1)
        while self.live or self.open or self.dispatcher.calls_under_way or self.dispatcher.gate.outcomes or self.dispatcher.gate._intents:
            self.auditor_reads()
            self.any_live()
            for call in list(self.live):
                self.finish(call)
            self.dispatcher.sweep(time.monotonic())
            await asyncio.sleep(0.002)
        self.auditor_reads()


@pytest.mark.parametrize("seed", range(6))
def test_whatever_happened_nothing_is_held_and_everything_is_in_the_log_once(seed: int) -> None:
    async def test() -> Weather:
        weather = Weather(seed)
        await weather.blow(3000)
        await weather.calm_down()
        return weather

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        weather = runner.run(test())
    dispatcher, authoriser = weather.dispatcher, weather.authoriser
    assert dispatcher.kept.used == dispatcher.held.used == 0 and dispatcher.gate._intents == [] and not dispatcher.gate.outcomes
    assert dispatcher.kept._of == dispatcher.held._of == {}
    assert all(worker.calls == {} and worker._arriving.used == 0 and worker.places._of == {} for worker in weather.workers)
    admission = authoriser._admission
    for meters in (admission._meters, admission._provider_meters):
        assert {name: meter.in_flight for name, meter in meters.items() if meter.in_flight} == {}
        assert all(meter.debt >= 0.0 for meter in meters.values())
    assert authoriser._router._under_way == {}
    assert [key for key, cooldown in authoriser.cooldowns.table.items() if cooldown.probing] == []
    assert all(call.body == b"" and call.kept == 0 for call, _ in dispatcher._rerouted.calls.values())
    assert set(weather.endings.values()) <= {1}
    intents = Counter((event.request, event.attempt) for event in weather.log if isinstance(event, ProviderRequest))
    outcomes = Counter((event.request, event.attempt) for event in weather.log if isinstance(event, ProviderOutcome))
    assert intents == outcomes and set(intents.values()) == {1} and len(intents) > 500
