"""Reload and graceful stop while clients are served: nothing is lost, a faulty file changes nothing, the port is free afterwards."""

from __future__ import annotations

import copy
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from fakes.gateway import Gateway
from fakes.provider import EVENTS, FakeProvider, chat_events
from fakes.wire import WireAnswer, WireClient, events_of, request_bytes

SECRET = "sk-fake-0123456789abcdef"
USER = [{"role": "user", "content": "hello there"}]
WHOLE = [event.decode().removeprefix("data: ").strip() for event in chat_events("fault", [f" token{number}" for number in range(EVENTS)])]


@pytest.fixture(scope="module")
def provider() -> Iterator[FakeProvider]:
    with FakeProvider() as running:
        yield running


def settings_for(provider: FakeProvider, **server: Any) -> dict[str, Any]:
    models = ["gpt-4o-mini", "fault-trickle-200", "fault-trickle-400", "fault-endless"]
    return {"server": server, "providers": {"fake": {"base_url": provider.base_url, "models": models}}}


@pytest.fixture(scope="module")
def shared(provider: FakeProvider) -> Iterator[Gateway]:
    with Gateway(settings_for(provider), credentials={"fake": SECRET}) as running:
        yield running


@pytest.fixture
def gateway(shared: Gateway) -> Iterator[Gateway]:
    """The shared gateway; a test's changes of the configuration are undone."""
    before = copy.deepcopy(shared.settings)
    yield shared
    shared.configure(before)
    shared.run("reload")


def chat(model: str = "gpt-4o-mini", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": USER, **more}


def open_stream(gateway: Gateway, model: str) -> WireClient:
    """Begin a stream and return when its first text is there."""
    client = WireClient(gateway.port)
    client.send(request_bytes("POST", "/v1/chat/completions", key=gateway.key, body=chat(model, stream=True)))
    client.read_until(b"token0")
    return client


def with_model(gateway: Gateway, name: str) -> dict[str, Any]:
    """Return the configuration with one model more."""
    changed = copy.deepcopy(gateway.settings)
    changed["models"] = {name: {"provider": "fake", "model": "gpt-4o-mini"}}
    return changed


def reload_by_command(gateway: Gateway) -> None:
    gateway.run("reload")


def reload_by_signal(gateway: Gateway) -> None:
    said = gateway.messages().count("configuration reloaded")
    assert gateway.process is not None
    os.kill(gateway.process.pid, signal.SIGHUP)
    until = time.monotonic() + 30
    while gateway.messages().count("configuration reloaded") == said:
        assert time.monotonic() < until, gateway.messages()
        time.sleep(0.02)


@pytest.mark.parametrize("reload", [reload_by_command, reload_by_signal])
def test_a_reload_takes_a_new_model_and_an_open_stream_survives_it(gateway: Gateway, reload: Any) -> None:
    name = f"new-by-{reload.__name__}".replace("_", "-")
    assert gateway.post("/v1/chat/completions", chat(name))[0] == 404
    stream = open_stream(gateway, "fault-trickle-200")
    with WireClient(gateway.port) as idle, stream:
        idle.ask("GET", "/healthz")
        workers = {name: pid for name, pid in gateway.children().items() if name.startswith("worker")}
        others = {name: pid for name, pid in gateway.children().items() if not name.startswith("worker")}
        gateway.configure(with_model(gateway, name))
        reload(gateway)
        assert gateway.post("/v1/chat/completions", chat(name))[0] == 200
        assert name in gateway.get("/v1/models")[2].decode()
        answer = stream.answer()
        assert answer.complete
        assert events_of(answer.body) == WHOLE
        assert idle.is_closed()  # by the old worker, soon
    now = gateway.children()
    assert {name: now[name] for name in others} == others  # only workers are replaced
    until = time.monotonic() + 15
    while set(workers.values()) & set(gateway.children().values()):
        assert time.monotonic() < until, "the old worker stays"
        time.sleep(0.05)


def test_requests_on_every_kind_of_connection_are_all_answered_during_reloads(gateway: Gateway) -> None:
    stop = threading.Event()
    statuses: list[int] = []
    lost: list[str] = []

    def note(answer: WireAnswer) -> None:
        statuses.append(answer.status)
        if answer.status != 200:
            lost.append(answer.body.decode())

    def each_on_its_own() -> None:
        while not stop.is_set():
            try:
                with WireClient(gateway.port) as client:
                    note(client.ask("POST", "/v1/chat/completions", key=gateway.key, body=chat()))
            except (AssertionError, OSError) as error:
                lost.append(f"own connection: {error}")

    def one_after_the_other() -> None:
        client = WireClient(gateway.port)
        while not stop.is_set():
            try:
                answer = client.ask("POST", "/v1/chat/completions", key=gateway.key, body=chat("echo"))
                note(answer)
                if answer.headers.get("connection") == "close":
                    client.socket.close()
                    client = WireClient(gateway.port)
            except (AssertionError, OSError) as error:
                lost.append(f"kept connection: {error}")
                client.socket.close()
                client = WireClient(gateway.port)
        client.socket.close()

    threads = [threading.Thread(target=target) for target in (each_on_its_own, each_on_its_own, one_after_the_other)]
    for thread in threads:
        thread.start()
    try:
        for number in range(2):
            gateway.configure(with_model(gateway, f"round-{number}"))
            gateway.run("reload")
    finally:
        stop.set()
        for thread in threads:
            thread.join(40)
    assert lost == []
    assert set(statuses) == {200}


def test_limits_survive_a_reload(gateway: Gateway) -> None:
    key = json.loads(gateway.run("keys", "create", "--json", "--rpm", "1"))["key"]
    assert gateway.post("/v1/chat/completions", chat("echo"), key=key)[0] == 200
    gateway.configure(with_model(gateway, "another"))
    gateway.run("reload")
    assert gateway.post("/v1/chat/completions", chat("echo"), key=key)[0] == 429


def test_a_reload_puts_request_rules_in_force(gateway: Gateway) -> None:
    assert gateway.post("/v1/chat/completions", chat("echo", max_tokens=100))[0] == 200
    changed = copy.deepcopy(gateway.settings)
    changed["requests"] = {"max_tokens": 50}
    gateway.configure(changed)
    gateway.run("reload")
    status, _, body = gateway.post("/v1/chat/completions", chat("echo", max_tokens=100))
    assert (status, json.loads(body)["error"]["param"]) == (400, "max_tokens")


def test_a_faulty_file_changes_nothing_and_says_where_it_is_wrong(gateway: Gateway) -> None:
    stream = open_stream(gateway, "fault-trickle-200")
    before = gateway.children()
    config = gateway.home / "config" / "cliproxy.yaml"
    good = config.read_text()
    line = good.count("\n") + 2
    config.write_text(good + "requests:\n  max_tokens: many\n")
    done = gateway.result("reload")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"{config}:{line}: requests.max_tokens" in done.stderr

    said = gateway.messages().count("reload refused")
    assert gateway.process is not None
    os.kill(gateway.process.pid, signal.SIGHUP)
    until = time.monotonic() + 30
    while gateway.messages().count("reload refused") == said:
        assert time.monotonic() < until, gateway.messages()
        time.sleep(0.02)
    assert f"{config}:{line}: requests.max_tokens" in gateway.messages().splitlines()[-1]

    assert gateway.children() == before
    assert gateway.post("/v1/chat/completions", chat())[0] == 200
    assert events_of(stream.answer().body) == WHOLE
    stream.socket.close()
    config.write_text(good)


# --- the end -------------------------------------------------------------------------------------------------------------


def test_a_graceful_stop_finishes_streams_refuses_new_clients_and_frees_the_port(provider: FakeProvider) -> None:
    with Gateway(settings_for(provider), credentials={"fake": SECRET}) as gateway:
        process = gateway.process
        assert process is not None
        children = gateway.children()
        stream = open_stream(gateway, "fault-trickle-400")
        kept = WireClient(gateway.port)
        kept.ask("GET", "/readyz")
        process.send_signal(signal.SIGTERM)
        until = time.monotonic() + 20
        while True:  # who is connected already is told; new clients are not let in
            answer = kept.ask("GET", "/readyz")
            if answer.headers.get("connection") == "close":
                break
            assert time.monotonic() < until
        assert (answer.status, answer.error["code"]) == (503, "draining")
        assert kept.is_closed()
        while True:
            try:
                WireClient(gateway.port).socket.close()
            except ConnectionRefusedError:
                break
            assert time.monotonic() < until
        assert process.poll() is None
        whole = stream.answer()
        assert whole.complete
        assert whole.headers["connection"] == "close" if "connection" in whole.headers else True
        assert events_of(whole.body) == WHOLE
        stream.socket.close()
        kept.socket.close()
        assert process.wait(20) == 0
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind(("127.0.0.1", gateway.port))
        assert [pid for pid in children.values() if is_running(pid)] == []
        gateway.run("audit", "verify")


def test_a_stream_that_does_not_end_is_ended_by_the_drain_timeout(provider: FakeProvider) -> None:
    with Gateway(settings_for(provider, limits={"drain_timeout_seconds": 1.0}), credentials={"fake": SECRET}) as gateway:
        provider.reset()
        process = gateway.process
        assert process is not None
        stream = WireClient(gateway.port)
        stream.send(request_bytes("POST", "/v1/chat/completions", key=gateway.key, body=chat("fault-endless", stream=True)))
        stream.read_until(b"token0")
        process.send_signal(signal.SIGTERM)
        last = b""
        try:
            while data := stream.socket.recv(1 << 20):
                last = last[-1000:] + data
        except ConnectionResetError:
            pass
        assert b"[DONE]" not in last
        assert not last.endswith(b"0\r\n\r\n") or b'"error"' in last[-1000:]  # cut, or ended with an error event: never a silent end
        assert process.wait(20) == 0
        assert provider.record()["broken_off"] == 1
        ended = [line for line in gateway.audit_lines() if line["event"] == "provider_outcome" and line["error"]]
        assert len(ended) == 1
        gateway.run("audit", "verify")


def is_running(pid: int) -> bool:
    """Say whether a process of that id is there and no zombie."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
