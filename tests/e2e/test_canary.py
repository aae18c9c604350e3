"""A provider key is planted, a thousand mixed requests go by, and then it is looked for: in the memory of every process, in everything that was answered, in
every file (issue 2, "a canary provider key").

Where it must be (egress) it is found, so that the search is one. The memory is searched as root, with the tests' own tool; the rest runs as anybody.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import itertools
import json
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fakes.gateway import Gateway
from fakes.memory import found_in, secrets_of_vault, size_of
from fakes.provider import FakeProvider

PROVIDER_KEY = "sk-proj-canary-N7wq2ZtV9bLx4RkE8yUc3MfH6sJpA1dG"
REQUESTS = 1000
THREADS = 8
FAULTS = (
    *("fault-reflect-body", "fault-reflect-header", "fault-reflect-stream", "fault-reflect-base64", "fault-reflect-cut-13"),
    *("fault-status-400", "fault-status-401", "fault-status-429", "fault-status-500", "fault-malformed-json", "fault-wrong-type", "fault-redirect"),
    *("fault-reset-mid", "fault-cut-chunked", "fault-both-lengths", "fault-large-error"),
)
ONLY_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root reads the memory of a locked process")


class CanaryGateway(Gateway):
    """What its vault holds is read before it starts for good."""

    def start(self, *options: str) -> None:
        if not hasattr(self, "vault_secrets"):
            self.run("keys", "list")  # the vault is made by the first command that needs it
            self.vault_secrets = secrets_of_vault(self.home)
        super().start(*options)


@dataclass
class Traffic:
    """What was answered. `said`: every byte that a client got, head and body."""

    statuses: Counter[str] = field(default_factory=Counter)
    said: list[bytes] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def provider() -> Iterator[FakeProvider]:
    with FakeProvider() as running:
        yield running


@pytest.fixture(scope="module")
def gateway(provider: FakeProvider) -> Iterator[CanaryGateway]:
    providers = {"fake": {"base_url": provider.base_url, "models": ["gpt-4o-mini", "fault-trickle-20", *FAULTS]}}
    with CanaryGateway({"providers": providers, "server": {"workers": 2}}, credentials={"fake": PROVIDER_KEY}) as running:
        yield running


def chat(model: str, *, stream: bool = False, **more: Any) -> bytes:
    return json.dumps({"model": model, "messages": [{"role": "user", "content": "hello"}], "stream": stream, **more}).encode()


def mixed(key: str) -> Iterator[tuple[str, str, bytes, str, bool]]:
    """Yield kind, path, body, client key, and whether the client leaves in the middle, for ever."""
    wrong = key[:-1] + ("a" if key[-1] != "a" else "b")
    chats, embeddings = "/v1/chat/completions", "/v1/embeddings"
    faults = itertools.cycle((fault, stream) for fault in FAULTS for stream in (False, True))
    while True:
        yield "good", chats, chat("gpt-4o-mini"), key, False
        yield "streamed", chats, chat("gpt-4o-mini", stream=True), key, False
        yield "embeddings", embeddings, b'{"model":"gpt-4o-mini","input":["a","b"]}', key, False
        yield "cancelled", chats, chat("fault-trickle-20", stream=True), key, True
        yield "wrong key", chats, chat("gpt-4o-mini"), wrong, False
        yield "no JSON", chats, b'{"model":"gpt-4o-mini",', key, False
        yield "wrong type", chats, chat("gpt-4o-mini", temperature="hot"), key, False
        yield "no such model", chats, chat("gpt-17"), key, False
        yield "no such path", "/v1/files", b"{}", key, False
        for _ in range(7):
            fault, stream = next(faults)
            yield "fault", chats, chat(fault, stream=stream), key, False


def drive(gateway: CanaryGateway) -> Traffic:
    """Send `REQUESTS` requests over `THREADS` connections at once."""
    traffic, lock, work = Traffic(), threading.Lock(), itertools.islice(mixed(gateway.key), REQUESTS)

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=30)
        while True:
            with lock:
                one = next(work, None)
            if one is None:
                connection.close()
                return
            kind, path, body, key, leaves = one
            try:
                connection.request("POST", path, body, {"Authorization": f"Bearer {key}", "Content-Type": "application/json"})
                answer = connection.getresponse()
                head = repr(answer.getheaders()).encode()
                try:
                    rest = answer.read(100) if leaves else answer.read()
                except http.client.IncompleteRead as error:  # the provider broke off
                    rest = error.partial
                if leaves:
                    connection.close()
                    answer.close()
                with lock:
                    traffic.statuses[f"{kind} {answer.status}"] += 1
                    traffic.said += [head, rest]
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                with lock:
                    traffic.errors.append(f"{kind}: {error!r}")

    threads = [threading.Thread(target=client) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return traffic


@pytest.fixture(scope="module")
def traffic(gateway: CanaryGateway) -> Traffic:
    done = drive(gateway)
    until = time.monotonic() + 20  # for the log to have every call's end
    while True:
        lines = gateway.audit_lines()
        intents = {line["request"] for line in lines if line["event"] == "provider_request"}
        if intents and intents == {line["request"] for line in lines if line["event"] == "provider_outcome"}:
            return done
        assert time.monotonic() < until
        time.sleep(0.05)


def spellings(secret: str) -> dict[str, bytes]:
    """Return what a text may look like in memory and in files; by its end, since freed memory loses its beginning first."""
    end = secret[-24:].encode()
    found = {"in clear": end, "in hex": end.hex().encode(), "in wide characters": end.decode().encode("utf-32-le")}
    for shift in range(3):
        encoded = base64.b64encode(b"\0" * shift + end)
        found[f"in base64, shifted by {shift}"] = encoded[(shift * 4 + 2) // 3 : len(encoded) - 4]
    return found


def processes(gateway: CanaryGateway) -> dict[str, int]:
    assert gateway.process is not None
    return {"supervisor": gateway.process.pid, **gateway.children()}


def test_the_requests_were_mixed(gateway: CanaryGateway, provider: FakeProvider, traffic: Traffic) -> None:
    assert traffic.statuses.total() + len(traffic.errors) == REQUESTS
    assert [error for error in traffic.errors if not error.startswith("fault")] == []
    for kind in ("good 200", "streamed 200", "embeddings 200", "cancelled 200", "wrong key 401", "no JSON 400", "wrong type 400", "no such model 404"):
        assert traffic.statuses[kind] >= 60, traffic.statuses
    assert sum(count for kind, count in traffic.statuses.items() if kind.startswith("fault 5")) > 100, traffic.statuses
    # and the key did leave, for where it belongs, in each call: what is looked for was in use
    sent = provider.record()["requests"]
    assert len(sent) > 600
    assert {dict(request["headers"])["Authorization"] for request in sent} == {f"Bearer {PROVIDER_KEY}"}
    reflecting = [body for body in traffic.said if b"you sent" in body]
    assert len(reflecting) > 40  # the provider's echo came through, without what it echoed


def test_no_client_is_told_the_key(traffic: Traffic) -> None:
    everything = b"\n".join(traffic.said)
    assert [name for name, form in spellings(PROVIDER_KEY).items() if form in everything] == []


@ONLY_ROOT
def test_the_key_is_in_the_memory_of_egress_and_of_nobody_else(gateway: CanaryGateway, traffic: Traffic) -> None:
    everybody = processes(gateway)
    assert sorted(everybody) == ["admin", "auditor", "dialer", "egress", "supervisor", "vault", "worker", "worker-1"]
    assert all(size_of(pid) > 1 << 20 for pid in everybody.values())
    found = {name: found_in(pid, spellings(PROVIDER_KEY)) for name, pid in everybody.items()}
    assert found["egress"].get("in clear"), "the search finds nothing where there is something"
    assert {name: where for name, where in found.items() if where and name not in ("egress", "vault")} == {}


@ONLY_ROOT
def test_what_the_vault_keeps_for_itself_is_in_no_other_memory(gateway: CanaryGateway, traffic: Traffic) -> None:
    """No master key, no key term, no private key; the log's key is the auditor's, too."""
    found = {name: set(found_in(pid, gateway.vault_secrets)) for name, pid in processes(gateway).items()}
    assert {name for name in gateway.vault_secrets if name.startswith("key term")} <= found.pop("vault")
    assert found.pop("auditor") == {"log key"}
    assert {name: names for name, names in found.items() if names} == {}


@ONLY_ROOT
def test_a_client_s_key_is_in_no_memory_but_a_worker_s(gateway: CanaryGateway, traffic: Traffic) -> None:
    """Egress has the proof of a call, which is no key; the vault not even that."""
    key = gateway.key
    secrets = {"key": key[-24:].encode(), "proof": hashlib.sha256(key.encode()).digest()}
    found = {name: set(found_in(pid, secrets)) for name, pid in processes(gateway).items()}
    assert any("key" in names for name, names in found.items() if name.startswith("worker"))
    assert found.pop("egress") <= {"proof"}
    assert {name: names for name, names in found.items() if names and not name.startswith("worker")} == {}


def test_no_file_holds_a_key(gateway: CanaryGateway, traffic: Traffic) -> None:
    """Neither stderr, nor the log, nor the database; of a client's key not even the proof."""
    proof = hashlib.sha256(gateway.key.encode()).digest()
    looked_for = {
        **{f"provider key {name}": form for name, form in spellings(PROVIDER_KEY).items()},
        **{f"client key {name}": form for name, form in spellings(gateway.key).items()},
        "client key's proof": proof,
        "client key's proof in hex": proof.hex().encode(),
    }
    files = [file for file in gateway.home.rglob("*") if file.is_file()]
    assert {"stderr", "vault.db", "master.key"} <= {file.name for file in files} and sum(file.suffix == ".jsonl" for file in files) >= 1
    found = {(file.name, name) for file in files for name, form in looked_for.items() if form in file.read_bytes()}
    assert found == set()
    assert gateway.messages().count("Traceback") == 0


def test_the_log_has_every_call_and_no_key(gateway: CanaryGateway, provider: FakeProvider, traffic: Traffic) -> None:
    lines = gateway.audit_lines()
    sent = len(provider.record()["requests"])
    assert len([line for line in lines if line["event"] == "provider_request"]) >= sent > 600
    assert {line["credential"] for line in lines if line["event"] == "provider_request"} == {json.loads(gateway.run("credentials", "list", "--json"))[0]["id"]}
    text = json.dumps(lines)
    assert PROVIDER_KEY not in text and gateway.key not in text and "sk-proj" not in text
    gateway.run("audit", "verify")


def test_a_process_that_crashes_leaves_nothing_behind(gateway: CanaryGateway, traffic: Traffic) -> None:
    """Each may dump no core, and the kernel takes it for not dumpable, which alone stops a core_pattern that is a pipe."""
    for name, pid in gateway.children().items():
        (core,) = [line.split()[4:6] for line in Path(f"/proc/{pid}/limits").read_text().splitlines() if line.startswith("Max core file size")]
        assert core == ["0", "0"], name
        assert Path(f"/proc/{pid}/mem").stat().st_uid == 0 == Path(f"/proc/{pid}/mem").stat().st_gid, name
    before = {file for directory in (gateway.home, Path.cwd(), Path("/tmp")) for file in directory.glob("core*")}
    egress = gateway.children()["egress"]
    os.kill(egress, 6)
    until = time.monotonic() + 20
    while gateway.children().get("egress", egress) == egress or not gateway.is_ready():
        assert time.monotonic() < until
        time.sleep(0.05)
    with socket.create_connection(("127.0.0.1", gateway.port)):
        pass
    assert {file for directory in (gateway.home, Path.cwd(), Path("/tmp")) for file in directory.glob("core*")} == before
    assert any(line["event"] == "process" and line["role"] == "egress" and line["code"] == 6 for line in gateway.audit_lines())
