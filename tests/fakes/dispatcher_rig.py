"""A dispatcher with the real authoriser, router and limits; providers are the test."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import msgspec

from cliproxy.audit.client import AuditClient, packet_decoder
from cliproxy.audit.events import EgressEvent
from cliproxy.auth.client_keys import digest_of
from cliproxy.config.schema import ModelRoute, PoolMember, Provider, Routing, Settings
from cliproxy.dialects import Endpoint
from cliproxy.egress.admission import Admission
from cliproxy.egress.attempt import Attempt
from cliproxy.egress.authorise import Authoriser
from cliproxy.egress.call import State
from cliproxy.egress.dispatcher import Dispatcher
from cliproxy.egress.inject import Injector
from cliproxy.errors import CliproxyError, ProviderRefusal
from cliproxy.ipc.messages import KeyRecord, PolicyBegin, PolicyEnd, PolicyKeys, PolicyRules
from cliproxy.ipc.mux import CallHead, Kind
from cliproxy.ipc.policy_feed import PolicyFeed

PROOF = bytes(range(32))
OTHER_PROOF = bytes(range(1, 33))
BODY = b'{"model":,"max_tokens":10,"messages":[{"role":"user","content":"Hello."}]}'
MODEL_OFFSET = len(b'{"model":')
MESSAGES = b'{"model":,"max_tokens":10,"messages":[{"role":"user","content":"Hello."}]}'
WHOLE = b'{"id":"c","choices":[{"index":0,"message":{"role":"assistant","content":"hi"}}],"usage":{"prompt_tokens":3,"completion_tokens":2}}'
EVENT = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n'


def refusal(status: int, retry_after: float | None = None) -> ProviderRefusal:
    return ProviderRefusal("no", status=429 if status == 429 else 502, code=f"was_{status}", provider_status=status, retry_after=retry_after)


def of(name: str, **more: Any) -> Provider:
    return Provider(kind=more.pop("kind", "openai_compatible"), base_url=f"https://{name}.example/v1", auth="none", **more)


def pool(*names: str, **more: Any) -> ModelRoute:
    return ModelRoute(pool=tuple(PoolMember(provider=name, model=f"at-{name}") for name in names), **more)


ABC = {"providers": {name: of(name) for name in "abc"}, "models": {"m": pool("a", "b", "c", strategy="fill_first")}}


class Case:
    """A dispatcher with one worker. `started` are the attempts that have left, in order; the test says what becomes of them."""

    def __init__(self, settings: dict[str, Any] | None = None, *, routing: Routing | None = None, key: dict[str, Any] | None = None) -> None:
        ours, self.auditor = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.auditor.setblocking(False)
        self.settings = Settings(**(settings or ABC), routing=routing or Routing(retry_rounds=0))
        self.policy = PolicyFeed()
        self.started: list[Attempt] = []
        self.cancelled: list[Attempt] = []
        self.bodies: list[bytes] = []
        self.nothing_leaves: CliproxyError | None = None
        self.authoriser = Authoriser(self.settings, self.policy, Injector(self.settings.providers), Admission(self.settings))
        self.dispatcher = Dispatcher(
            build="b",
            generation=1,
            policy=self.policy,
            authoriser=self.authoriser,
            senders=self,
            audit=AuditClient(ours, deadline_seconds=5.0),
            acknowledge=lambda message: None,
        )
        records = tuple(
            KeyRecord(id=id, digest=digest_of(proof), name=id, models=("*",), **(key or {})) for id, proof in (("k", PROOF), ("other", OTHER_PROOF))
        )
        for message in (PolicyBegin(number=1), PolicyKeys(keys=records), PolicyEnd(number=1, rules=PolicyRules())):
            self.dispatcher.policy(message)
        self.policy.heard(vault_age=0.0, now=time.monotonic())
        self.worker = self.dispatcher.worker(0, max_body_bytes=1 << 20)
        self.worker.introduced = True
        self.frames: list[tuple[Kind, int, bytes]] = []
        self.violations: list[str] = []
        self.worker.channel.queue = lambda kind, stream, payload: self.frames.append((kind, stream, payload))  # type: ignore[method-assign]
        self.worker.channel.fail = lambda error: self.violations.append(str(error))  # type: ignore[method-assign]

    def start(self, call: Attempt) -> Any:
        if self.nothing_leaves is not None:
            raise self.nothing_leaves
        self.started.append(call)
        self.bodies.append(call.request.take_body())
        return SimpleNamespace(cancel=lambda: self.cancelled.append(call), pause_reading=lambda: None, resume_reading=lambda: None)

    def submit(self, number: int = 1, *, body: bytes = BODY, **more: Any) -> None:
        honest = {"request_id": f"req_{number}", "address": "127.0.0.1", "model": "m", "max_tokens": 10, "n": 1, "stream": False, "estimate": 5}
        fields = {
            "endpoint": int(Endpoint.CHAT_COMPLETIONS),
            "proof": PROOF,
            **honest,
            "model_offset": MODEL_OFFSET,
            "body_bytes": len(body),
            "body": body,
            **more,
        }
        self.worker._on_call(number, msgspec.msgpack.encode(CallHead(**fields)))
        self.dispatcher.flush()

    def waits(self) -> bool:
        """Whether a call waits for a cooldown, or for the end of the turn."""
        return bool(self.at(State.COOLING) | self.at(State.RECORDING))

    def at(self, state: State) -> set[int]:
        """The streams of calls in `state`."""
        return {stream for stream, call in self.worker.calls.items() if call.state is state}

    def fail(self, error: CliproxyError) -> None:
        self.started[-1].on_failure(error)
        self.dispatcher.flush()

    def succeed(self) -> None:
        self.started[-1].on_head(200, {})
        self.started[-1].on_data(WHOLE)
        self.started[-1].on_complete()
        self.dispatcher.flush()

    def tried(self) -> str:
        return "".join(call.request.target.provider for call in self.started)

    def told(self, kind: Kind, type_: type[Any]) -> Any:
        (payload,) = [payload for found, _, payload in self.frames if found is kind]
        return msgspec.msgpack.decode(payload, type=type_)

    def logged(self) -> list[Any]:
        decoder = packet_decoder(EgressEvent)
        found: list[Any] = []
        while True:
            try:
                found += decoder.decode(self.auditor.recv(1 << 20))[1]
            except BlockingIOError:
                return found

    def meters(self) -> tuple[dict[str, tuple[int, float]], dict[str, tuple[int, float]]]:
        admission = self.authoriser._admission
        keys, providers = admission._meters, admission._provider_meters
        return tuple({name: (meter.in_flight, meter.debt) for name, meter in meters.items()} for meters in (keys, providers))  # type: ignore[return-value]


def in_a_loop(test: Callable[[], None] | Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        done = test()
        if done is not None:
            await done

    asyncio.run(run())
