"""Client keys and provider credentials, driven by the commands and judged by what the gateway and the provider then do."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cliproxy.cli.connection import CommandRefused, attach
from cliproxy.cli.home import Home
from cliproxy.cli.new_key import new_key
from cliproxy.ipc import commands
from fakes.gateway import Gateway
from fakes.provider import FakeProvider
from fakes.wire import WireAnswer, WireClient, events_of, request_bytes

SECRET = "sk-canary-7f3a9c1e5b8d2046"
USER = [{"role": "user", "content": "hello there"}]
WORKERS = 2
CONNECTIONS = 24  # both workers have some: 2 ** -23 that one has none


@pytest.fixture(scope="module")
def provider() -> Iterator[FakeProvider]:
    with FakeProvider() as running:
        yield running


@pytest.fixture(scope="module")
def gateway(provider: FakeProvider) -> Iterator[Gateway]:
    settings = {
        "server": {"workers": WORKERS},
        "providers": {"fake": {"base_url": provider.base_url, "models": ["gpt-4o-mini", "fault-trickle-500", "fault-status-400"]}},
    }
    with Gateway(settings, credentials={"fake": SECRET}) as running:
        yield running


def create(gateway: Gateway, *options: str) -> dict[str, Any]:
    """Make a client key; returns what the command says."""
    value: dict[str, Any] = json.loads(gateway.run("keys", "create", "--json", *options))
    return value


def chat(model: str = "gpt-4o-mini", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": USER, **more}


def files_with(home: Path, *needles: bytes) -> list[str]:
    """Return the files under `home` that hold one of `needles`, in clear, in hex or in base64."""
    forms = {form for needle in needles for form in (needle, needle.hex().encode(), *base64_forms(needle))}
    found = []
    for file in home.rglob("*"):
        if file.is_file() and any(form in data for data in [file.read_bytes()] for form in forms):
            found.append(str(file.relative_to(home)))
    return found


def base64_forms(needle: bytes) -> list[bytes]:
    """Return what `needle` looks like inside base64, wherever it begins."""
    forms = []
    for shift in range(3):
        encoded = base64.b64encode(b"\0" * shift + needle)
        forms.append(encoded[(shift * 4 + 2) // 3 : len(encoded) - 4])
    return forms


# --- keys ----------------------------------------------------------------------------------------------------------------


def test_a_key_is_shown_once_and_is_nowhere_on_disk(gateway: Gateway) -> None:
    made = create(gateway, "--name", "shown-once")
    key = made["key"].encode()
    assert gateway.post("/v1/chat/completions", chat("echo"), key=made["key"])[0] == 200
    listed = gateway.run("keys", "list", "--json")
    assert made["id"] in listed
    assert made["key"] not in listed
    assert made["key"] not in gateway.run("keys", "list")
    time.sleep(1.2)  # a second's tally and a checkpoint are written
    proof = hashlib.sha256(key).digest()  # whoever has this can act as the key towards egress
    assert files_with(gateway.home, key, key.removeprefix(b"cpk_")[:43], proof) == []
    assert files_with(gateway.home, gateway.key.encode()) == []


def test_the_search_for_secrets_finds_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" + SECRET.encode())
    (tmp_path / "b").write_bytes(base64.b64encode(b"xy" + SECRET.encode() + b"z"))
    (tmp_path / "c").write_bytes(SECRET.encode().hex().encode())
    (tmp_path / "d").write_bytes(SECRET[1:].encode())
    assert sorted(files_with(tmp_path, SECRET.encode())) == ["a", "b", "c"]


def test_keys_without_a_name_can_be_made_several_a_second(gateway: Gateway) -> None:
    assert len({create(gateway)["name"] for _ in range(3)}) == 3


def test_a_listed_key_says_what_it_may(gateway: Gateway) -> None:
    made = create(
        gateway, "--name", "limited", "--model", "echo", "--network", "10.0.0.0/8", "--expires", "30d", "--rpm", "7", "--tpm", "9", "--concurrency", "3"
    )
    (entry,) = [entry for entry in json.loads(gateway.run("keys", "list", "--json")) if entry["id"] == made["id"]]
    assert "key" not in entry
    assert (entry["models"], entry["networks"], entry["state"]) == (["echo"], ["10.0.0.0/8"], "valid")
    assert (entry["requests_per_minute"], entry["tokens_per_minute"], entry["concurrency"]) == (7, 9, 3)
    assert 29 * 86400 < entry["expires_at"] - time.time() <= 30 * 86400


def test_revocation_is_in_force_on_every_worker_and_on_open_streams_when_the_command_returns(gateway: Gateway, provider: FakeProvider) -> None:
    made = create(gateway, "--name", "to-revoke")
    other = create(gateway, "--name", "to-stay")
    provider.reset()
    clients = [WireClient(gateway.port) for _ in range(CONNECTIONS)]
    streams = [WireClient(gateway.port) for _ in range(4)]
    try:
        for client in clients:
            assert client.ask("POST", "/v1/chat/completions", key=made["key"], body=chat("echo")).status == 200
        for number, stream in enumerate(streams):
            key = other["key"] if number == 3 else made["key"]
            stream.send(request_bytes("POST", "/v1/chat/completions", key=key, body=chat("fault-trickle-500", stream=True)))
        for stream in streams:
            stream.read_until(b"token0")
        done = json.loads(gateway.run("keys", "revoke", "to-revoke", "--json"))
        assert (done["id"], done["serving"], done["egress"]) == (made["id"], True, True)
        assert (done["workers"], done["of_workers"], done["streams_ended"]) == (WORKERS, WORKERS, 3)
        for client in clients:
            assert client.ask("POST", "/v1/chat/completions", key=made["key"], body=chat("echo")).status == 401
        for stream in streams[:3]:
            answer = stream.answer()
            assert answer.complete
            assert json.loads(events_of(answer.body)[-1])["error"]["code"] == "revoked"
            assert b"[DONE]" not in answer.body
        assert provider.record()["broken_off"] == 3
        seen = len(streams[3].rest)
        assert streams[3].more()  # the other key's stream goes on
        assert b'"delta"' in streams[3].rest[seen:]
    finally:
        for client in clients + streams:
            client.socket.close()


def test_a_revoked_key_gets_no_answer_a_second_after_the_change(gateway: Gateway) -> None:
    """As seen by clients of both workers that never stop asking, from the moment at which the vault had the change."""
    made = create(gateway, "--name", "hammered")
    answered: list[tuple[float, int]] = []
    stop = threading.Event()

    def hammer() -> None:
        while not stop.is_set():
            with WireClient(gateway.port) as client:
                began = time.monotonic()
                answered.append((began, client.ask("POST", "/v1/chat/completions", key=made["key"], body=chat("echo")).status))

    threads = [threading.Thread(target=hammer) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(0.3)
        session = attach(Home(gateway.home))
        assert session is not None
        revoked_at = time.monotonic()
        session.ask(commands.RevokeKey(key="hammered"))
        session.close()
        time.sleep(1.0)
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    assert any(status == 200 for began, status in answered if began < revoked_at)
    assert {status for began, status in answered if began > revoked_at + 1.0} <= {401}
    assert answered[-1][1] == 401


def test_a_worker_that_hangs_is_told_apart_and_every_command_gets_its_own_numbers(gateway: Gateway) -> None:
    made = [create(gateway, "--name", f"beside-a-hanging-worker-{number}") for number in range(2)]
    names = ("worker", "worker-1")
    hanging = gateway.children()[names[0]]
    streams = [WireClient(gateway.port) for _ in made]
    try:
        for stream, key in zip(streams, made, strict=True):
            stream.send(request_bytes("POST", "/v1/chat/completions", key=key["key"], body=chat("fault-trickle-500", stream=True)))
            stream.read_until(b"token0")
        os.kill(hanging, signal.SIGSTOP)
        with ThreadPoolExecutor() as threads:
            running = [threads.submit(gateway.run, "keys", "revoke", key["id"], "--json") for key in made]
            said = [json.loads(one.result()) for one in running]
    finally:
        os.kill(hanging, signal.SIGCONT)
    assert [(one["egress"], one["workers"], one["of_workers"], one["streams_ended"]) for one in said] == [(True, WORKERS - 1, WORKERS, 1)] * 2
    for stream in streams:
        assert json.loads(events_of(stream.answer().body)[-1])["error"]["code"] == "revoked"
        stream.socket.close()
    until = time.monotonic() + 10
    while {gateway.post("/v1/models", {}, key=key["key"])[0] for key in made for _ in range(8)} != {405}:  # whatever it was: it is served again
        assert time.monotonic() < until
    assert {gateway.get("/v1/models", key=key["key"])[0] for key in made for _ in range(8)} == {401}


def test_a_key_can_be_revoked_once_and_the_name_is_free_again(gateway: Gateway) -> None:
    create(gateway, "--name", "once")
    gateway.run("keys", "revoke", "once")
    again = gateway.result("keys", "revoke", "once")
    assert again.returncode == 1
    assert again.stderr.count("\n") == 1
    create(gateway, "--name", "once")


def test_the_key_itself_is_no_name_for_a_command_line(gateway: Gateway) -> None:
    made = create(gateway)
    done = gateway.result("keys", "revoke", made["key"])
    assert done.returncode == 2
    assert made["key"] not in done.stderr + done.stdout


def test_an_expired_key_is_refused_everywhere_like_an_unknown_one(gateway: Gateway) -> None:
    session = attach(Home(gateway.home))
    assert session is not None
    secret, digest = new_key()
    key = secret.reveal().decode()
    try:
        made = session.ask(commands.CreateKey(digest=digest, name="short-lived", models=("*",), expires_at=int(time.time()) + 3)).key
        clients = [WireClient(gateway.port) for _ in range(CONNECTIONS)]
        assert {client.ask("GET", "/v1/models", key=key).status for client in clients} == {200}
        time.sleep(max(0.0, made.expires_at - time.time()) + 0.05)
        answers = [client.ask("POST", "/v1/chat/completions", key=key, body=chat("echo")) for client in clients]
        assert {answer.status for answer in answers} == {401}
        assert {answer.error["code"] for answer in answers} == {"invalid_api_key"}
        for client in clients:
            client.socket.close()
        assert [entry["state"] for entry in json.loads(gateway.run("keys", "list", "--json")) if entry["id"] == made.id] == ["expired"]
    finally:
        session.close()


def test_an_expiry_in_the_past_is_refused_by_the_command_and_by_the_vault(gateway: Gateway) -> None:
    done = gateway.result("keys", "create", "--expires", "2020-01-01")
    assert done.returncode == 2
    assert "past" in done.stderr
    session = attach(Home(gateway.home))
    assert session is not None
    try:
        with pytest.raises(CommandRefused):
            session.ask(commands.CreateKey(digest=new_key()[1], name="too-late", models=("*",), expires_at=int(time.time()) - 10))
    finally:
        session.close()
    assert "too-late" not in gateway.run("keys", "list")


def test_a_key_of_another_network_is_denied(gateway: Gateway) -> None:
    elsewhere = create(gateway, "--network", "10.0.0.0/8", "--network", "2001:db8::/32")
    status, _, body = gateway.post("/v1/chat/completions", chat("echo"), key=elsewhere["key"])
    assert (status, json.loads(body)["error"]["code"]) == (403, "address_not_permitted")
    here = create(gateway, "--network", "10.0.0.0/8", "--network", "127.0.0.0/8")
    assert gateway.post("/v1/chat/completions", chat("echo"), key=here["key"])[0] == 200


def test_a_key_above_its_requests_a_minute_waits_as_long_as_it_is_told(gateway: Gateway) -> None:
    made = create(gateway, "--rpm", "60")  # one a second, whichever worker
    statuses: list[int] = []
    wait = 0
    for _ in range(200):
        status, headers, _ = gateway.post("/v1/chat/completions", chat("echo"), key=made["key"])
        statuses.append(status)
        if status != 200:
            wait = int(headers["retry-after"])
            break
    assert statuses[-1] == 429
    assert wait == 1
    time.sleep(wait)
    assert gateway.post("/v1/chat/completions", chat("echo"), key=made["key"])[0] == 200


def test_a_key_above_its_tokens_a_minute_is_refused_before_anything_leaves(gateway: Gateway, provider: FakeProvider) -> None:
    made = create(gateway, "--tpm", "1000")
    provider.reset()
    status, headers, body = gateway.post("/v1/chat/completions", chat(max_tokens=2000), key=made["key"])
    assert (status, json.loads(body)["error"]["code"]) == (429, "rate_limit_exceeded")
    assert "retry-after" not in headers  # it would never fit
    assert provider.record()["requests"] == []
    for _ in range(5):  # the real usage (43) takes the place of what was reserved (some 720)
        assert gateway.post("/v1/chat/completions", chat(max_tokens=700), key=made["key"])[0] == 200
        wait_until_settled(gateway)
    assert len(provider.record()["requests"]) == 5


def wait_until_settled(gateway: Gateway) -> None:
    """Wait until nothing is under way."""
    until = time.monotonic() + 10
    while True:
        lines = gateway.audit_lines()
        begun = {line["request"] for line in lines if line["event"] == "provider_request"}
        if begun == {line["request"] for line in lines if line["event"] == "provider_outcome"}:
            return
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_key_has_at_most_its_calls_at_once_whichever_worker(gateway: Gateway) -> None:
    made = create(gateway, "--concurrency", "2")
    clients = [WireClient(gateway.port) for _ in range(8)]
    try:
        for client in clients:
            client.send(request_bytes("POST", "/v1/chat/completions", key=made["key"], body=chat("fault-trickle-500", stream=True)))
        heads: list[WireAnswer] = [client.head() for client in clients]
        assert sorted(head.status for head in heads) == [200] * 2 + [429] * 6
        assert all(head.headers["retry-after"] == "1" for head in heads if head.status == 429)
    finally:
        for client in clients:
            client.socket.close()


# --- credentials ---------------------------------------------------------------------------------------------------------


def credential_ids(gateway: Gateway, provider: str) -> list[str]:
    return [entry["id"] for entry in json.loads(gateway.run("credentials", "list", "--json")) if entry["provider"] == provider]


def test_a_credential_is_used_until_it_is_removed_and_is_nowhere_in_clear() -> None:
    with FakeProvider() as provider:
        settings = {"providers": {"fake": {"base_url": provider.base_url, "models": ["gpt-4o-mini", "fault-status-400", "fault-reflect-body"]}}}
        with Gateway(settings) as gateway:
            assert_refused(gateway, "no_credential")
            assert provider.record()["requests"] == []
            added = json.loads(gateway.run("credentials", "add", "fake", "--stdin", "--json", stdin=SECRET + "\n"))
            assert added["origin"] == provider.origin
            assert SECRET not in json.dumps(added)
            assert gateway.post("/v1/chat/completions", chat())[0] == 200
            assert gateway.post("/v1/chat/completions", chat("fault-status-400"))[0] == 400
            status, _, body = gateway.post("/v1/chat/completions", chat("fault-reflect-body"))
            assert status == 200
            assert SECRET.encode() not in body
            sent = [dict(request["headers"])["Authorization"] for request in provider.record()["requests"]]
            assert sent == [f"Bearer {SECRET}"] * 3
            assert SECRET not in gateway.run("credentials", "list") + gateway.run("credentials", "list", "--json") + gateway.run("vault", "status")

            gateway.run("credentials", "remove", added["id"])
            assert_refused(gateway, "no_credential")
            assert len(provider.record()["requests"]) == 3
            assert credential_ids(gateway, "fake") == []

            time.sleep(1.2)
            assert files_with(gateway.home, SECRET.encode()) == []
            assert SECRET not in gateway.messages()
            gateway.stop()
            assert files_with(gateway.home, SECRET.encode()) == []
            assert gateway.audit_lines()


def assert_refused(gateway: Gateway, code: str) -> None:
    status, headers, body = gateway.post("/v1/chat/completions", chat())
    assert (status, json.loads(body)["error"]["code"]) == (503, code)
    assert int(headers["retry-after"]) >= 1


def test_a_credential_is_not_sent_to_another_origin_after_base_url_was_edited() -> None:
    with FakeProvider() as provider, FakeProvider() as attacker:
        settings: dict[str, Any] = {"providers": {"fake": {"base_url": provider.base_url, "models": ["gpt-4o-mini"]}}}
        with Gateway(settings, credentials={"fake": SECRET}) as gateway:
            assert gateway.post("/v1/chat/completions", chat())[0] == 200
            original = gateway.settings

            edited = json.loads(json.dumps(original))
            edited["providers"]["fake"]["base_url"] = attacker.base_url
            gateway.configure(edited)
            gateway.run("reload")
            assert_refused(gateway, "no_credential")
            assert attacker.record() == {"requests": [], "connections": 0, "broken_off": 0}
            assert SECRET not in gateway.messages()

            gateway.stop()  # nor after a restart
            gateway.start()
            assert_refused(gateway, "no_credential")
            assert attacker.record()["connections"] == 0

            gateway.run("credentials", "add", "fake", "--label", "new", "--stdin", stdin="sk-for-the-new-origin")
            assert gateway.post("/v1/chat/completions", chat())[0] == 200
            (request,) = attacker.record()["requests"]
            assert dict(request["headers"])["Authorization"] == "Bearer sk-for-the-new-origin"

            gateway.configure(original)
            gateway.run("reload")
            assert gateway.post("/v1/chat/completions", chat())[0] == 200
            assert {dict(request["headers"])["Authorization"] for request in provider.record()["requests"]} == {f"Bearer {SECRET}"}


def test_a_secret_on_the_command_line_is_refused(gateway: Gateway) -> None:
    done = gateway.result("credentials", "add", "fake", SECRET)
    assert done.returncode == 2
    assert credential_ids(gateway, "fake") != []


def test_the_commands_show_no_secret_to_other_users(gateway: Gateway) -> None:
    """What is on a command line or in an environment is in /proc, and the sealing process must leave nothing behind."""
    assert gateway.process is not None
    for pid in (gateway.process.pid, *gateway.children().values()):
        for name in ("cmdline", "environ"):
            try:
                data = Path(f"/proc/{pid}/{name}").read_bytes()
            except PermissionError:
                continue  # not dumpable: others see nothing either
            assert SECRET.encode() not in data
            assert gateway.key.encode() not in data
    assert oct(os.stat(gateway.home / "auths").st_mode)[-3:] == "700"
