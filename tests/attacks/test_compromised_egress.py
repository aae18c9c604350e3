"""Egress that fell: code execution where providers' TLS and answers are parsed.

What it cannot do to the kernel is in `tests/processes/test_locked_roles.py`. Here it uses its channels: the dialer gives it no host that is not enrolled, the
vault no secret but the API keys in use and no say over keys and rules, the auditor no line in another's name, and a worker stays what it is.
"""

from __future__ import annotations

import array
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from cliproxy.audit.events import ChannelViolation, ProviderRequest
from cliproxy.bounds import MAX_CONTROL_MESSAGE_BYTES, MAX_DIALS_PER_SECOND
from cliproxy.ipc.mux import HEADER, Kind
from cliproxy.processes.spawn import build_id
from cliproxy.processes.topology import AUDITOR, DIALER, VAULT, AuditorDescriptors, DialerDescriptors, VaultDescriptors, WorkerDescriptors
from cliproxy.processes.vault import EGRESS_MESSAGES_PER_SECOND
from fakes.held import SECONDS, Held, wait_for
from fakes.memory import secrets_of_vault
from fakes.provider import FakeProvider

pytestmark = pytest.mark.held

PROVIDER_KEY = "sk-proj-Held9d2f81c07a64b3e5f0Egress"
MOVED_KEY = "sk-proj-Held2a7c40e9b15d86f3a0MovedAway"


class EgressHeld(Held):
    """Egress is the test's. `moved`: a provider whose credential was sealed to an origin that the configuration no longer has."""

    def __init__(self, provider: FakeProvider, old: FakeProvider) -> None:
        self._provider = provider
        self.old = old
        providers = {"fake": {"base_url": provider.base_url, "models": ["m"]}, "moved": {"base_url": old.base_url, "models": ["n"]}}
        super().__init__({"egress"}, {"providers": providers}, credentials={"fake": PROVIDER_KEY, "moved": MOVED_KEY}, workers=1)

    def prepare(self) -> None:
        self.vault_secrets = secrets_of_vault(self.home)
        providers = {**self.settings["providers"], "moved": {"base_url": self._provider.base_url, "models": ["n"]}}
        self.configure({**self.settings, "providers": providers})


@pytest.fixture(scope="module")
def provider() -> Iterator[FakeProvider]:
    with FakeProvider() as running:
        yield running


@pytest.fixture(scope="module")
def gateway(provider: FakeProvider) -> Iterator[EgressHeld]:
    with FakeProvider() as old, EgressHeld(provider, old) as running:
        running.wait_until_ready(but=("worker-0",))  # which waits for what egress tells it
        yield running


def message(kind: str, **fields: Any) -> bytes:
    return msgspec.msgpack.encode({"type": kind, **fields})


def receive(sock: socket.socket) -> dict[str, Any] | None:
    """Return the next message, None at the channel's end. Secrets are bytes here."""
    try:
        packet = sock.recv(MAX_CONTROL_MESSAGE_BYTES + 1)
    except ConnectionResetError:
        return None
    return dict(msgspec.msgpack.decode(packet)) if packet else None


def until_closed(sock: socket.socket) -> list[dict[str, Any]]:
    """Return what comes before the channel is closed; fails when it is not."""
    found = []
    until = time.monotonic() + SECONDS
    while (one := receive(sock)) is not None:
        found.append(one)
        assert time.monotonic() < until, "the channel was not closed"
    return found


def push(sock: socket.socket, packet: bytes) -> bool:
    """Send; False when the channel is closed."""
    try:
        sock.send(packet)
    except OSError:
        return False
    return True


# --- the dialer: a host that is not enrolled -----------------------------------------------------------------------------


@pytest.fixture
def dialer(gateway: EgressHeld) -> Iterator[socket.socket]:
    with gateway.fresh(DIALER, DialerDescriptors.EGRESS_FD) as sock:
        yield sock
    with gateway.fresh(DIALER, DialerDescriptors.EGRESS_FD) as sock:  # the next egress is served
        answer, connection = dial(sock, 1, gateway.settings["providers"]["fake"]["base_url"].removesuffix("/v1"))
        assert answer["type"] == "Dialled" and connection is not None
        connection.close()


def dial(sock: socket.socket, number: int, origin: str) -> tuple[dict[str, Any], socket.socket | None]:
    """Ask, and return the answer and the socket that came with it."""
    sock.send(message("Dial", dial=number, origin=origin))
    packet, descriptors, _, _ = socket.recv_fds(sock, MAX_CONTROL_MESSAGE_BYTES, 4)
    assert packet, "the dialer closed the channel"
    assert len(descriptors) <= 1
    return dict(msgspec.msgpack.decode(packet)), socket.socket(fileno=descriptors[0]) if descriptors else None


@pytest.fixture(scope="module")
def trap() -> Iterator[tuple[int, list[Any]]]:
    """A server on this machine that is no provider, and who has connected to it."""
    server = socket.create_server(("127.0.0.1", 0))
    caught: list[Any] = []

    def work() -> None:
        while True:
            try:
                connection, address = server.accept()
            except OSError:
                return
            caught.append(address)
            connection.close()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    yield server.getsockname()[1], caught
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join(5)


def test_an_enrolled_origin_is_dialled(gateway: EgressHeld, provider: FakeProvider, dialer: socket.socket) -> None:
    """Or the refusals below would prove nothing."""
    answer, connection = dial(dialer, 7, provider.origin)
    assert answer == {"type": "Dialled", "dial": 7, "address": "127.0.0.1"}
    assert connection is not None and connection.getpeername() == ("127.0.0.1", provider.port)
    connection.close()


NOT_ENROLLED: dict[str, Callable[[int, FakeProvider], str]] = {
    "another port of the same host": lambda port, provider: f"http://127.0.0.1:{port}",
    "the same port with TLS": lambda port, provider: f"https://127.0.0.1:{provider.port}",
    "another name of the same host": lambda port, provider: f"http://localhost:{provider.port}",
    "a mapped address of the same host": lambda port, provider: f"http://[::ffff:127.0.0.1]:{provider.port}",
    "a number for the same host": lambda port, provider: f"http://2130706433:{provider.port}",
    "a path": lambda port, provider: f"{provider.origin}/v1",
    "a slash": lambda port, provider: f"{provider.origin}/",
    "a user": lambda port, provider: f"http://a@127.0.0.1:{provider.port}",
    "upper case": lambda port, provider: provider.origin.upper(),
    "a blank": lambda port, provider: f" {provider.origin}",
    "two of them": lambda port, provider: f"{provider.origin},http://127.0.0.1:{port}",
    "two lines": lambda port, provider: f"{provider.origin}\nhttp://127.0.0.1:{port}",
    "an end in the middle": lambda port, provider: f"{provider.origin}\0",
    "the internet": lambda port, provider: "https://api.openai.com:443",
    "the metadata service": lambda port, provider: "http://169.254.169.254:80",
    "a file": lambda port, provider: "file:///etc/passwd",
    "a UNIX socket": lambda port, provider: "unix:/run/docker.sock",
    "an address": lambda port, provider: f"127.0.0.1:{port}",
    "a provider's name": lambda port, provider: "fake",
    "nothing": lambda port, provider: "",
    "a very long one": lambda port, provider: "https://" + "a" * 250,
}


@pytest.mark.parametrize("origin", NOT_ENROLLED.values(), ids=NOT_ENROLLED.keys())
def test_no_other_host_is_reached_however_it_is_spelled(
    dialer: socket.socket, provider: FakeProvider, trap: tuple[int, list[Any]], origin: Callable[[int, FakeProvider], str]
) -> None:
    port, caught = trap
    assert dial(dialer, 1, origin(port, provider)) == ({"type": "DialFailed", "dial": 1, "reason": "not_enrolled"}, None)
    assert caught == []


def test_a_credential_of_another_origin_leads_nowhere(gateway: EgressHeld, dialer: socket.socket) -> None:
    """What was sealed to the old origin is granted for it alone, and the dialer no longer knows it."""
    with gateway.fresh(VAULT, VaultDescriptors.EGRESS_FD) as vault:
        vault.send(message("EgressHello", build=build_id()))
        grants = [one for one in snapshot(vault) if one["type"] == "Grant"]
    (moved,) = [grant for grant in grants if grant["provider"] == "moved"]
    assert (moved["origin"], moved["secret"]) == (gateway.old.origin, MOVED_KEY.encode())
    assert dial(dialer, 1, moved["origin"])[0]["reason"] == "not_enrolled"
    assert gateway.old.record()["connections"] == 0


DIALER_VIOLATIONS: dict[str, list[bytes]] = {
    "an origin longer than any": [message("Dial", dial=1, origin="https://" + "a" * 60_000)],
    "an address beside the origin": [message("Dial", dial=1, origin="http://127.0.0.1:1", address="127.0.0.1")],
    "an address instead of the origin": [message("Dial", dial=1, address="127.0.0.1")],
    "an origin that is no text": [message("Dial", dial=1, origin=["127.0.0.1", 80])],
    "a number that is none": [message("Dial", dial="1", origin="x")],
    "a message of the vault's edge": [message("EgressHello", build=build_id())],
    "an answer": [message("Dialled", dial=1, address="127.0.0.1")],
    "a message that there is not": [message("Resolve", name="localhost")],
    "no message": [b"\xc1"],
    "trailing bytes": [message("Dial", dial=1, origin="x") + b"\0"],
    "a packet above the bound": [b"\x00" * (MAX_CONTROL_MESSAGE_BYTES + 1)],
    "a flood": [message("Dial", dial=1, origin="x")] * int(MAX_DIALS_PER_SECOND * 3),
}


@pytest.mark.parametrize("packets", DIALER_VIOLATIONS.values(), ids=DIALER_VIOLATIONS.keys())
def test_the_dialer_takes_nothing_but_the_question_it_knows(gateway: EgressHeld, dialer: socket.socket, packets: list[bytes]) -> None:
    before = len(gateway.violations("dialer"))
    reader = threading.Thread(target=until_closed, args=(dialer,))
    reader.start()
    for packet in packets:
        if not push(dialer, packet):
            break
    reader.join(SECONDS)
    assert not reader.is_alive()
    (line,) = wait_for(lambda: gateway.violations("dialer")[before:], "an audit event")
    assert line["peer"] == "egress" and line["reason"].isprintable()


def test_one_number_for_two_dials_is_refused(gateway: EgressHeld, provider: FakeProvider) -> None:
    before = len(gateway.violations("dialer"))
    with gateway.fresh(DIALER, DialerDescriptors.EGRESS_FD) as sock:
        for _ in range(200):  # some of them while the first is still resolved
            if not push(sock, message("Dial", dial=1, origin=provider.origin)):
                break
        until_closed(sock)
    assert len(wait_for(lambda: gateway.violations("dialer")[before:], "an audit event")) == 1


def test_descriptors_that_are_sent_along_stay_nowhere(gateway: EgressHeld, provider: FakeProvider, dialer: socket.socket) -> None:
    def open_descriptors() -> int:
        return len(os.listdir(f"/proc/{gateway.pid(DIALER)}/fd"))

    if os.geteuid() != 0:
        pytest.skip("only root sees what a locked process has open")
    before = open_descriptors()
    null = os.open("/dev/null", os.O_RDONLY)
    for number in range(50):
        dialer.sendmsg([message("Dial", dial=number, origin="x")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [null] * 8))])
        assert receive(dialer) == {"type": "DialFailed", "dial": number, "reason": "not_enrolled"}
    os.close(null)
    assert open_descriptors() == before


def test_answers_that_nobody_takes_are_bounded(gateway: EgressHeld, provider: FakeProvider, dialer: socket.socket) -> None:
    provider.reset()
    dialer.settimeout(0.5)
    sent = 0
    try:
        for number in range(900):
            dialer.send(message("Dial", dial=number, origin=provider.origin))
            sent += 1
    except TimeoutError:
        pass  # the dialer reads no more
    assert gateway.is_running(DIALER)
    if os.geteuid() == 0:
        assert len(os.listdir(f"/proc/{gateway.pid(DIALER)}/fd")) < 700  # MAX_PENDING_DIALS, what waits in its queue, and its own


# --- the vault: no secret but the API keys in use ------------------------------------------------------------------------


def snapshot(vault: socket.socket) -> list[dict[str, Any]]:
    """Return all that follows a hello, up to the last grant."""
    found: list[dict[str, Any]] = []
    while not found or found[-1]["type"] != "GrantsEnd":
        one = receive(vault)
        assert one is not None, "the vault closed the channel"
        found.append(one)
    return found


@pytest.fixture
def vault(gateway: EgressHeld) -> Iterator[socket.socket]:
    """A channel on which nothing was said yet. Afterwards the vault serves admin, and the next egress."""
    with gateway.fresh(VAULT, VaultDescriptors.EGRESS_FD) as sock:
        yield sock
    with gateway.fresh(VAULT, VaultDescriptors.EGRESS_FD) as sock:
        sock.send(message("EgressHello", build=build_id()))
        assert len([one for one in snapshot(sock) if one["type"] == "Grant"]) == 2
    assert gateway.is_running(VAULT)


def test_the_vault_tells_egress_what_it_needs_and_no_more(gateway: EgressHeld, vault: socket.socket) -> None:
    vault.send(message("EgressHello", build=build_id()))
    told = snapshot(vault)
    assert {one["type"] for one in told} == {"PolicyBegin", "PolicyKeys", "PolicyEnd", "Grant", "GrantsEnd"}
    grants = [one for one in told if one["type"] == "Grant"]
    assert sorted(set(one) for one in map(tuple, map(sorted, grants))) == [{"id", "origin", "provider", "secret", "type"}] * 2
    assert {one["secret"] for one in grants} == {PROVIDER_KEY.encode(), MOVED_KEY.encode()}
    everything = msgspec.msgpack.encode(told)
    assert [name for name, secret in gateway.vault_secrets.items() if secret in everything or secret.hex().encode() in everything] == []
    assert gateway.key.encode() not in everything


def test_each_grant_is_in_the_log(gateway: EgressHeld, vault: socket.socket) -> None:
    def accesses() -> int:
        return len([line for line in gateway.audit_lines() if line["event"] == "credential_access"])

    before = accesses()
    vault.send(message("EgressHello", build=build_id()))
    snapshot(vault)
    wait_for(lambda: accesses() >= before + 2, "the log's lines")


HELLO = message("EgressHello", build=build_id())
REQUEST = {"request": 1, "operator": "uid:0"}
DIGEST = bytes(32)
VAULT_VIOLATIONS: dict[str, list[bytes]] = {
    "a key of its own": [HELLO, message("CreateKey", **REQUEST, digest=DIGEST, name="mine", models=["*"])],
    "another's key revoked": [HELLO, message("RevokeKey", **REQUEST, key="first")],
    "the keys listed": [HELLO, message("ListKeys", **REQUEST)],
    "the rules": [HELLO, message("SetRules", **REQUEST, rules={"lockdown": False})],
    "a credential of its own": [HELLO, message("AddCredential", **REQUEST, provider="fake", label="x", sealed=b"x" * 80)],
    "a credential removed": [HELLO, message("RemoveCredential", **REQUEST, id="x")],
    "the vault's state": [HELLO, message("GetVaultStatus", **REQUEST)],
    "the key of the log": [HELLO, message("LogKey", secret=b"x" * 32)],
    "an anchor of the log": [HELLO, message("Anchor", epoch=0, root=b"", pending_epoch=0, pending_root=b"")],
    "a grant asked for": [HELLO, message("Grant", id="x", provider="fake", origin="https://evil.example:443", secret=b"")],
    "a hello with an origin": [message("EgressHello", build=build_id(), origin="https://evil.example:443")],
    "a hello of another build": [message("EgressHello", build="0.0.1+0000000000000000")],
    "a second hello": [HELLO, HELLO],
    "a use of a key with a name longer than any": [HELLO, message("LastUse", keys={"x" * 1000: 1})],
    "an acknowledgement before the hello": [message("PolicyAck", number=0, workers=1, of_workers=1, streams_ended=0)],
    "last use before the hello": [message("LastUse", keys={})],
    "an acknowledgement of what is to come": [HELLO, message("PolicyAck", number=1 << 40, workers=1, of_workers=1, streams_ended=0)],
    "last use that is no time": [HELLO, message("LastUse", keys={"a": "b"})],
    "no message": [HELLO, b"\xc1"],
    "nested beyond reason": [HELLO, b"\x91" * 50_000],
    "a packet above the bound": [HELLO, b"\x00" * (MAX_CONTROL_MESSAGE_BYTES + 1)],
    "a flood": [HELLO, *[message("LastUse", keys={})] * int(EGRESS_MESSAGES_PER_SECOND * 3)],
}


@pytest.mark.parametrize("packets", VAULT_VIOLATIONS.values(), ids=VAULT_VIOLATIONS.keys())
def test_what_is_not_egress_s_to_say_closes_its_channel_to_the_vault(gateway: EgressHeld, vault: socket.socket, packets: list[bytes]) -> None:
    before = len(gateway.violations("vault"))
    answers: list[dict[str, Any]] = []
    reader = threading.Thread(target=lambda: answers.extend(until_closed(vault)))
    reader.start()
    for packet in packets:
        if not push(vault, packet):
            break
    reader.join(SECONDS)
    assert not reader.is_alive()
    (line,) = wait_for(lambda: gateway.violations("vault")[before:], "an audit event")
    assert line["peer"] == "egress" and line["reason"].isprintable()
    assert {one["type"] for one in answers} <= {"PolicyBegin", "PolicyKeys", "PolicyEnd", "Grant", "GrantsEnd", "VaultAlive"}


def test_after_all_that_keys_and_rules_are_what_the_operator_made(gateway: EgressHeld) -> None:
    (key,) = json.loads(gateway.run("keys", "list", "--json"))
    assert not key["revoked_at"]
    assert {one["provider"] for one in json.loads(gateway.run("credentials", "list", "--json"))} == {"fake", "moved"}


def test_last_use_says_what_can_be_and_nothing_else(gateway: EgressHeld, vault: socket.socket) -> None:
    (key,) = json.loads(gateway.run("keys", "list", "--json"))
    vault.send(HELLO)
    snapshot(vault)
    vault.send(message("LastUse", keys={key["id"]: int(time.time()) + 10_000, "key_0000000000000000": 1, "x" * 64: -1}))
    vault.send(message("LastUse", keys={key["id"]: -5}))
    assert receive(vault) is not None  # VaultAlive: it has read them
    (again,) = json.loads(gateway.run("keys", "list", "--json"))
    assert again["last_used_at"] == key["last_used_at"]


# --- the auditor: no line in another's name ------------------------------------------------------------------------------


def intent(**changes: Any) -> ProviderRequest:
    fields = {"address": "192.0.2.1", "attempt": 1, "credential": "", "endpoint": "e", "model": "m", "principal": "k", "provider": "p", "request": "r"}
    return ProviderRequest(**{**fields, "reserved_tokens": 1, "stream": False, **changes})


AUDIT_PACKETS: dict[str, Any] = {
    "a key that nobody made": (1, [{"type": "key_change", "action": "created", "key": "k", "name": "n", "operator": "uid:0"}]),
    "a credential that nobody removed": (1, [{"type": "credential_change", "action": "removed"}]),
    "the supervisor's": (1, [{"type": "process", "code": 0, "role": "egress", "what": "ready"}]),
    "a text above the bound": (1, [intent(model="m" * 513)]),
    "a count above the bound": (1, [intent(reserved_tokens=1 << 63)]),
    "a batch out of turn": [(1, [intent()]), (3, [intent()])],
}


@pytest.mark.parametrize("packets", AUDIT_PACKETS.values(), ids=AUDIT_PACKETS.keys())
def test_egress_tells_the_log_of_its_calls_and_of_nothing_else(gateway: EgressHeld, packets: Any) -> None:
    before = len(gateway.violations(AUDITOR))
    with gateway.fresh(AUDITOR, AuditorDescriptors.EGRESS_FD) as sock:
        for packet in packets if isinstance(packets, list) else [packets]:
            sock.send(msgspec.msgpack.encode(packet))
        while sock.recv(100):
            pass
    (line,) = wait_for(lambda: gateway.violations(AUDITOR)[before:], "an audit event")
    assert line["peer"] == "egress"
    with gateway.fresh(AUDITOR, AuditorDescriptors.EGRESS_FD) as sock:  # the next egress is heard
        sock.send(msgspec.msgpack.encode((1, [ChannelViolation(peer="nobody", reason="still heard")])))
        assert sock.recv(100)


# --- a worker ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def served(gateway: EgressHeld) -> Iterator[ToWorker]:
    """Egress's end of the worker's channel, after what makes the worker serve: hello, the vault's policy, readiness."""
    end = ToWorker(gateway)
    end.make_ready()
    yield end
    end.sock.close()


class ToWorker:
    """A fallen egress towards worker 0."""

    def __init__(self, gateway: EgressHeld) -> None:
        self.gateway = gateway
        self.sock = gateway.fresh("worker-0", WorkerDescriptors.EGRESS_FD, kind=socket.SOCK_STREAM)
        self.rest = b""

    def make_ready(self) -> None:
        self.send(Kind.HELLO, 0, msgspec.msgpack.encode([build_id(), 1]))
        with self.gateway.fresh(VAULT, VaultDescriptors.EGRESS_FD) as vault:
            vault.send(HELLO)
            for one in snapshot(vault):
                if one["type"].startswith("Policy"):
                    self.send(Kind.POLICY, 0, msgspec.msgpack.encode(one))
                    number = one.get("number", 0)
        self.number = number
        self.readiness()

    def readiness(self) -> None:
        self.send(Kind.READINESS, 0, msgspec.msgpack.encode([self.number, 0.0, True]))

    def send(self, kind: int, stream: int, payload: bytes) -> None:
        try:
            self.sock.sendall(HEADER.pack(len(payload), kind, stream) + payload)
        except OSError:
            pass  # closed by the worker: the test looks for that

    def call(self) -> tuple[int, list[Any]]:
        """Return stream and fields of the next call."""
        while True:
            while len(self.rest) < HEADER.size or len(self.rest) < HEADER.size + HEADER.unpack_from(self.rest)[0]:
                data = self.sock.recv(65536)
                assert data, "the worker closed the channel"
                self.rest += data
            length, kind, stream = HEADER.unpack_from(self.rest)
            payload, self.rest = self.rest[HEADER.size : HEADER.size + length], self.rest[HEADER.size + length :]
            if kind == Kind.CALL:
                return stream, msgspec.msgpack.decode(payload)

    def is_closed(self) -> bool:
        while True:
            try:
                if not self.sock.recv(65536):
                    return True
            except ConnectionResetError:
                return True


def answer(status: int = 200, *, sse: bool = False, final: bool = True, upstream_id: str = "", body: bytes = b"{}") -> bytes:
    return msgspec.msgpack.encode([status, sse, final, upstream_id, 0.0, body])


def abort(status: int, kind: str = "server_error", code: str = "x", message: str = "m", retry_after: float = 0.0) -> bytes:
    return msgspec.msgpack.encode([status, kind, code, message, retry_after])


CRLF = "a\r\nX-Evil: 1\r\nSet-Cookie: a=b\r\n\r\n<script>"
ANSWERS: dict[str, tuple[Kind, bytes]] = {
    "a header in the provider's id": (Kind.ANSWER, answer(upstream_id=CRLF)),
    "a header in a kind": (Kind.ABORT, abort(502, kind=CRLF)),
    "a header in a code": (Kind.ABORT, abort(502, code=CRLF)),
    "a header in a message": (Kind.ABORT, abort(429, message=CRLF, retry_after=1e308)),
    "a wait without end": (Kind.ABORT, abort(503, retry_after=float("inf"))),
    "a wait that is no number": (Kind.ABORT, abort(429, retry_after=float("nan"))),
    "a status of five digits": (Kind.ABORT, abort(99999)),
    "a status below nothing": (Kind.ABORT, abort(-1)),
    "status nought": (Kind.ABORT, abort(0)),
    "an interim status": (Kind.ABORT, abort(101)),
    "an answer of five digits": (Kind.ANSWER, answer(99999)),
    "an answer below nothing": (Kind.ANSWER, answer(-7)),
    "an interim answer": (Kind.ANSWER, answer(101)),
    "a stream that nobody asked for": (Kind.ANSWER, answer(sse=True)),
}


@pytest.mark.parametrize(("kind", "payload"), ANSWERS.values(), ids=ANSWERS.keys())
def test_a_client_gets_an_answer_of_ours_whatever_egress_says(gateway: EgressHeld, served: ToWorker, kind: Kind, payload: bytes) -> None:
    got: list[tuple[int, dict[str, str], bytes]] = []

    def ask() -> None:
        try:
            got.append(gateway.post("/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": "hi"}]}, timeout=SECONDS))
        except OSError as error:
            got.append((-1, {}, repr(error).encode()))

    served.readiness()
    client = threading.Thread(target=ask)
    client.start()
    stream, _ = served.call()
    served.send(kind, stream, payload)
    client.join(SECONDS)
    ((status, headers, _),) = got
    assert status == 200 or 400 <= status <= 599
    assert not {"x-evil", "set-cookie"} & set(headers)
    assert headers["content-type"] == "application/json" and headers["x-request-id"].startswith("req_")
    assert gateway.is_running("worker-0") and "Traceback" not in gateway.messages()


WORKER_VIOLATIONS: dict[str, tuple[int, bytes]] = {
    "a call": (Kind.CALL, b""),
    "credit": (Kind.CREDIT, bytes(4)),
    "a cancellation": (Kind.CANCEL, b""),
    "a policy that does not follow": (Kind.POLICY, message("PolicyChange", number=1 << 40)),
    "a policy that is none": (Kind.POLICY, message("Grant", id="x", provider="p", origin="o", secret=b"s")),
    "keys from nowhere": (Kind.POLICY, message("PolicyKeys", keys=[])),
    "readiness that is none": (Kind.READINESS, b"\xff"),
    "text that is no UTF-8": (Kind.HELLO, b"\x92\xa2\xff\xfe\x01"),
    "a kind that there is not": (77, b""),
}


@pytest.mark.parametrize(("kind", "payload"), WORKER_VIOLATIONS.values(), ids=WORKER_VIOLATIONS.keys())
def test_what_is_not_egress_s_to_say_closes_its_channel_to_a_worker(gateway: EgressHeld, served: ToWorker, kind: int, payload: bytes) -> None:
    before = len(gateway.violations("worker-0"))
    fallen = ToWorker(gateway)
    fallen.make_ready()
    fallen.send(kind, 0, payload)
    assert fallen.is_closed()
    (line,) = wait_for(lambda: gateway.violations("worker-0")[before:], "an audit event")
    assert line["peer"] == "egress" and line["reason"].isprintable()
    fallen.sock.close()
    assert gateway.get("/healthz", key="")[0] == 200
    assert gateway.post("/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": "hi"}]})[0] == 503
