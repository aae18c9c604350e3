"""A worker's real exchange between a client's connection that writes down what it is told and a channel whose other end the test is.

rig = Rig(models={…});  client = rig.post("/v1/messages", {…});  rig.answer(client, b"…");  client.status, client.headers, client.body
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

import msgspec

from cliproxy.auth.client_keys import digest_of, generate, proof_of
from cliproxy.config.schema import ModelRoute, Provider, Requests, Settings
from cliproxy.dataplane.exchange import Exchange
from cliproxy.dataplane.link import EgressLink
from cliproxy.dataplane.rooms import Account
from cliproxy.dataplane.unauthenticated import AuthenticationTally
from cliproxy.ingress.address import parse_address
from cliproxy.ingress.framing import Framer, RawRequest
from cliproxy.ingress.rules.address_rate import AddressRate, Buckets
from cliproxy.ipc.messages import KeyRecord, PolicyBegin, PolicyEnd, PolicyKeys, PolicyRules
from cliproxy.ipc.mux import Abort, Answer, CallHead, Kind, Reroute, cancel_code
from cliproxy.limits.shared import SharedRates, create

_encoder = msgspec.msgpack.Encoder()
_calls = msgspec.msgpack.Decoder(CallHead)


def provider(kind: str = "openai_compatible", **more: Any) -> Provider:
    """Return a provider at an address where nobody is."""
    return msgspec.convert({"kind": kind, "base_url": "http://127.0.0.1:9/v1", **more}, Provider)


class Client:
    """A connection with one request. `chunks` is what was streamed, `ending` how it ended."""

    def __init__(self, rate: AddressRate) -> None:
        client = parse_address("127.0.0.1")
        self.address, self.ip = client.text, client.ip
        self.buckets: Buckets | None = rate.buckets(client.group)
        self.presented: object = None
        self.call: object = None
        self.prepaid = False
        self.paused = False
        self.account = Account("")
        self.crowded = False
        self.held_back = 0
        self.status = 0
        self.raw_headers = b""
        self.body = b""
        self.chunks: list[bytes] = []
        self.ending = ""
        self.number = 0  # of the call's stream

    def authenticated(self, presented: object, account: Account) -> None:
        self.presented, self.account = presented, account

    def has_room_for(self, count: int) -> bool:
        return not self.crowded

    def hold_back(self, change: int) -> None:
        self.held_back += change

    def respond(self, status: int, headers: bytes, body: bytes) -> None:
        assert not self.ending and not self.status, "a second answer"
        self.status, self.raw_headers, self.body, self.ending = status, headers, body, "answered"

    def start_stream(self, status: int, headers: bytes) -> None:
        assert not self.ending and not self.status, "a second answer"
        self.status, self.raw_headers = status, headers

    def write_chunk(self, data: bytes) -> None:
        assert self.status and not self.ending
        if data:
            self.chunks.append(data)
        self.body += data

    def end_stream(self) -> None:
        assert self.status and not self.ending
        self.ending = "ended"

    def abort(self) -> None:
        self.ending = "broken off"

    @property
    def headers(self) -> dict[str, str]:
        lines = [line.split(": ", 1) for line in self.raw_headers.decode("ascii").split("\r\n")[:-1]]
        return {name.lower(): value for name, value in lines}

    @property
    def warnings(self) -> list[str]:
        return [line[9:] for line in self.raw_headers.decode("ascii").split("\r\n") if line.startswith("Warning: ")]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Channel:
    """Egress's side: frames that the worker queued."""

    paused = False
    backlog = 0

    def __init__(self) -> None:
        self.frames: list[tuple[Kind, int, bytes]] = []

    def queue(self, kind: Kind, stream: int, payload: bytes) -> None:
        self.frames.append((kind, stream, payload))


class Rig:
    """One worker with one key that may use `allowed`."""

    def __init__(
        self, models: dict[str, ModelRoute], providers: dict[str, Provider], *, allowed: tuple[str, ...] = ("*",), requests: Requests | None = None
    ) -> None:
        table = create()
        self.rate = AddressRate(SharedRates(table, rate=1e6, burst=1_000_000), None)
        os.close(table)
        self.faults: list[BaseException] = []
        self.link = EgressLink(
            build="b", generation=1, violation=self.faults.append, policy_applied=lambda: None, collect=lambda begins: None, fault=self.faults.append
        )
        self.channel = Channel()
        self.link._channel = self.link._taking = self.channel  # type: ignore[assignment]
        settings = Settings(providers=providers, models=models, requests=requests or Requests())
        self.tally = AuthenticationTally()
        self.exchange = Exchange(settings, self.link, self.tally, address_limit=self.rate, draining=lambda: False)
        self.key = generate().reveal()
        proof = proof_of(self.key)
        assert proof is not None
        record = KeyRecord(id="key-1", digest=digest_of(proof), name="one", models=allowed)
        for message in (PolicyBegin(number=0), PolicyKeys(keys=(record,)), PolicyEnd(number=0, rules=PolicyRules())):
            self.link.policy.apply(message)
        self.link.policy.heard(vault_age=0.0, now=time.monotonic() + 3600)

    def send(self, head: bytes, body: bytes = b"") -> Client:
        """Frame `head` (request line and headers, without the blank line) and let the exchange have it."""
        framer = Framer(max_head_bytes=16384, max_headers=100, max_body_bytes=8 << 20)
        framer.feed(head + b"\r\nHost: gateway\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        request = framer.next_request()
        assert isinstance(request, RawRequest)
        client = Client(self.rate)
        self.exchange.on_request(client, request)
        client.number = self.link._next_stream - 1
        return client

    def post(self, path: str, body: Any, *headers: str) -> Client:
        lines = [f"POST {path} HTTP/1.1", f"Authorization: Bearer {self.key.decode()}", *headers]
        return self.send("\r\n".join(lines).encode(), body if isinstance(body, bytes) else json.dumps(body).encode())

    def get(self, path: str, *headers: str) -> Client:
        return self.send("\r\n".join([f"GET {path} HTTP/1.1", f"Authorization: Bearer {self.key.decode()}", *headers]).encode())

    # --- egress ---

    @property
    def calls(self) -> list[CallHead]:
        """Every call that was sent, with its body whole."""
        return [_calls.decode(payload) for kind, _, payload in self.channel.frames if kind is Kind.CALL]

    def kinds(self, stream: int) -> list[Kind]:
        return [kind for kind, number, _ in self.channel.frames if number == stream]

    def cancelled(self, stream: int) -> list[str]:
        """Why each CANCEL of the stream was sent."""
        return [cancel_code(payload) for kind, number, payload in self.channel.frames if kind is Kind.CANCEL and number == stream]

    def credit(self, stream: int) -> int:
        return sum(int.from_bytes(payload, "little") for kind, number, payload in self.channel.frames if kind is Kind.CREDIT and number == stream)

    def answer(self, client: Client, body: bytes = b"", *, sse: bool = False, final: bool = True, **more: Any) -> None:
        fields: dict[str, Any] = {"status": 200, "upstream_id": "", "retry_after": 0.0} | more
        payload = _encoder.encode(Answer(**fields, sse=sse, final=final, body=body))
        self.link._on_answer(client.number, payload)

    def data(self, client: Client, *pieces: bytes) -> None:
        for piece in pieces:
            self.link._on_data(client.number, piece)

    def end(self, client: Client) -> None:
        self.link._on_end(client.number, b"")

    def abort(self, client: Client, status: int = 502, code: str = "broke", message: str = "It broke.", retry_after: float = 0.0) -> None:
        self.link._on_abort(client.number, _encoder.encode(Abort(status, "upstream_error", code, message, retry_after)))

    def reroute(self, client: Client, endpoint: int, *tried: str, quirks: int = 0) -> None:
        self.link._on_reroute(client.number, _encoder.encode(Reroute(endpoint, quirks, tried)))
        client.number = self.link._next_stream - 1
