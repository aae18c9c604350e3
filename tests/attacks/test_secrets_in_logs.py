"""Canaries: no secret and no prompt is found in what the gateway says, writes, shows in /proc or answers to the wrong one.

Sources: LiteLLM #31620 (keys in error messages) and #30670 (keys in debug logs), CWE-532, CVE-2024-3772-like echoes of input in validation errors, keys in
access logs because they stood in the URL (OWASP API8), secrets in `ps` and /proc/<pid>/environ.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cliproxy.vault.master_key import ENVIRONMENT_VARIABLE
from fakes.gateway import Gateway
from fakes.provider import FakeProvider
from fakes.wire import WireAnswer, WireClient, request_bytes

MASTER = hashlib.sha256(b"a canary of a master key").digest()
PROVIDER_KEY = "sk-proj-Canary7f3a9c1e5b8d2046Provider"
PROMPT = "the-canary-prompt-Zx81Qk"
FOREIGN = "sk-live-Canary51c0ffee77f00dForeign"  # a key of another vendor, pasted where it does not belong
FAULTS = """
status-400 status-401 status-429 status-500 reflect-body reflect-header reflect-stream reflect-base64 malformed-json wrong-type redirect reset-mid cut-chunked
both-lengths bad-chunk-size large-error
"""


def forms(secret: bytes) -> list[bytes]:
    """Return what `secret` looks like in clear, in hex, in a URL and inside base64, wherever it begins."""
    found = [secret, secret.hex().encode(), secret.hex().upper().encode(), urllib.parse.quote_from_bytes(secret).encode(), repr(secret).encode()[2:-1]]
    for shift in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            found.append(encode(b"\0" * shift + secret)[(shift * 4 + 2) // 3 : len(encode(b"\0" * shift + secret)) - 4])
    return found


def leaks(data: bytes, secrets: dict[str, bytes]) -> list[str]:
    """Return the names of the secrets that are in `data`."""
    return [name for name, secret in secrets.items() if any(form in data for form in forms(secret))]


def test_the_search_finds_every_form() -> None:
    secrets = {"x": FOREIGN.encode()}
    for form in (
        FOREIGN,
        FOREIGN.encode().hex(),
        base64.b64encode(f"a{FOREIGN}".encode()).decode(),
        base64.urlsafe_b64encode(f"ab{FOREIGN}c".encode()).decode(),
    ):
        assert leaks(f"<{form}>".encode(), secrets) == ["x"]
    assert leaks(FOREIGN[1:].encode(), secrets) == []


@pytest.fixture(scope="module")
def provider() -> Iterator[FakeProvider]:
    with FakeProvider() as running:
        yield running


@pytest.fixture(scope="module")
def gateway(provider: FakeProvider) -> Iterator[Gateway]:
    """A gateway that was talked to in all the ways below, its log written."""
    models = ["gpt-4o-mini", "fault-trickle-50", *(f"fault-{name}" for name in FAULTS.split())]
    settings = {"providers": {"fake": {"base_url": provider.base_url, "models": models}}}
    with Gateway(settings, credentials={"fake": PROVIDER_KEY}, environment={ENVIRONMENT_VARIABLE: MASTER.hex()}) as running:
        assert not (running.home / "key" / "master.key").exists(), "the master key is from the environment"
        yield running


@pytest.fixture(scope="module")
def secrets(gateway: Gateway) -> dict[str, bytes]:
    key = gateway.key.encode()
    proof = hashlib.sha256(key).digest()
    return {
        "client key": key[4:47],
        "its proof": proof,
        "provider key": PROVIDER_KEY.encode(),
        "master key": MASTER,
        "prompt": PROMPT.encode(),
        "foreign": FOREIGN.encode(),
    }


def chat(model: str = "gpt-4o-mini", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": PROMPT}], "user": PROMPT, "metadata": {"a": PROMPT}, **more}


@pytest.fixture(scope="module")
def answers(gateway: Gateway) -> list[tuple[str, WireAnswer]]:
    """Say every secret in every place where a client could."""
    done: list[tuple[str, WireAnswer]] = []
    good = gateway.key

    def ask(name: str, method: str, path: str, **more: Any) -> None:
        with WireClient(gateway.port) as client:
            done.append((name, client.ask(method, path, **more)))

    def raw(name: str, data: bytes) -> None:
        with WireClient(gateway.port) as client:
            client.send(data)
            done.append((name, client.answer()))

    for secret in (good, FOREIGN):
        # in the URL
        ask("query", "POST", f"/v1/chat/completions?api_key={secret}&prompt={PROMPT}", body=chat())
        ask("query of a good call", "POST", f"/v1/chat/completions?key={secret}", key=good, body=chat("echo", messages=[]))
        ask("path", "GET", f"/v1/models/{secret}/{PROMPT}")
        ask("path with a key", "GET", f"/{secret}", key=good)
        raw("userinfo", f"GET http://{secret}@127.0.0.1/v1/models HTTP/1.1\r\nHost: {secret}@127.0.0.1\r\n\r\n".encode())
        # in headers that are none of ours, or broken
        for header in (
            "X-Api-Key",
            "Api-Key",
            "Cookie",
            "Proxy-Authorization",
            "X-Debug",
            "Referer",
            "User-Agent",
            "X-Request-Id",
            "Traceparent",
            "Content-Type",
            "Accept",
        ):
            ask(header, "POST", "/v1/chat/completions", body=b"{}", headers=(f"{header}: {secret}",) if header != "Content-Type" else ())
            ask(header, "GET", "/v1/models", key=good, headers=(f"{header}: {secret}",))
        raw("scheme", request_bytes("GET", "/v1/models", headers=(f"Authorization: Basic {secret}",)))
        raw("twice", request_bytes("GET", "/v1/models", key=good, headers=(f"Authorization: Bearer {secret}",)))
        raw("control byte", request_bytes("GET", "/v1/models", headers=(f"Authorization: Bearer {secret}\x00",)))
        raw("method", f"{secret} / HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        raw("version", f"GET / {secret}\r\nHost: a\r\n\r\n".encode())
        raw("header name", f"GET / HTTP/1.1\r\nHost: a\r\n{secret}\r\n\r\n".encode())
        raw("host", f"GET / HTTP/1.1\r\nHost: {secret} {PROMPT}\r\n\r\n".encode())
        raw("length", f"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {secret}\r\n\r\n".encode())
        raw("coding", f"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: {secret}\r\n\r\n".encode())
        raw("expectation", f"POST / HTTP/1.1\r\nHost: a\r\nExpect: {secret}\r\nContent-Length: 1\r\n\r\n".encode())
        raw("chunk size", f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{secret}\r\n".encode())
        # in bodies
        ask("no JSON", "POST", "/v1/chat/completions", key=good, body=f'{{"model":"{secret}'.encode())
        ask("not UTF-8", "POST", "/v1/chat/completions", key=good, body=f'{{"model":"{secret}{PROMPT}\xff"}}'.encode("latin-1"))
        for fields in (
            {"model": secret},
            {"messages": secret},
            {"messages": [{"role": secret, "content": PROMPT}]},
            {"messages": [{"role": "user", "content": {secret: PROMPT}}]},
            {"messages": [{"role": "user", "content": [{"type": secret, "text": PROMPT}]}]},
            {"messages": [{secret: PROMPT}]},
            {"temperature": secret},
            {"stream": secret},
            {"max_tokens": secret},
            {"tools": [{"type": secret}]},
            {"tool_choice": secret},
            {"response_format": {"type": secret}},
            {"stop": [secret] * 5},
            {"logit_bias": {secret: secret}},
            {"metadata": {secret: 1}},
            {"api_key": secret},
            {"headers": {"Authorization": secret}},
            {"stream_options": {"include_usage": secret}},
        ):
            ask(f"body {json.dumps(fields)[:20]}", "POST", "/v1/chat/completions", key=good, body=chat(**fields))
        ask("embeddings", "POST", "/v1/embeddings", key=good, body={"model": secret, "input": PROMPT})
        ask("embeddings input", "POST", "/v1/embeddings", key=good, body={"model": "gpt-4o-mini", "input": {secret: PROMPT}})
    # near misses of the key itself: what is logged of a wrong key would be most of a right one
    for wrong in (good[:-1], good[:-1] + "x", good + "x", good.upper(), good[4:]):
        ask("wrong key", "GET", "/v1/models", key=wrong)
    # and providers that say it
    for fault in FAULTS.split():
        for stream in (False, True):
            ask(f"fault-{fault}", "POST", "/v1/chat/completions", key=good, body=chat(f"fault-{fault}", stream=stream))
    return done


def test_an_answer_repeats_nothing_of_a_refused_request(answers: list[tuple[str, WireAnswer]], secrets: dict[str, bytes]) -> None:
    """Not even to who said it: error texts are pasted into tickets and chats."""
    refused = [(name, answer) for name, answer in answers if answer.status >= 400]
    assert len(refused) > 100
    for name, answer in refused:
        assert leaks(answer.body + json.dumps(answer.headers).encode(), secrets) == [], name


def test_no_client_ever_gets_the_provider_s_key_or_a_proof(answers: list[tuple[str, WireAnswer]], secrets: dict[str, bytes]) -> None:
    ours = {name: secrets[name] for name in ("provider key", "its proof", "master key")}
    for name, answer in answers:
        assert leaks(answer.body + json.dumps(answer.headers).encode(), ours) == [], name


def test_nothing_of_it_is_in_messages_log_or_any_file(gateway: Gateway, answers: list[tuple[str, WireAnswer]], secrets: dict[str, bytes]) -> None:
    with WireClient(gateway.port) as client:  # who leaves in the middle of a stream
        client.send(request_bytes("POST", "/v1/chat/completions", key=gateway.key, body=chat("fault-trickle-50", stream=True)))
        client.read_until(b"token1")
    gateway.run("reload")
    pid = gateway.children()["egress"]
    os.kill(pid, 9)  # what a dying process and the others' complaints about it say
    until = time.monotonic() + 20
    while gateway.children().get("egress", pid) == pid or not gateway.is_ready():
        assert time.monotonic() < until
        time.sleep(0.05)
    assert gateway.post("/v1/chat/completions", chat("echo"))[0] == 200
    until = time.monotonic() + 20
    while not any(line["event"] == "authentication" and line["result"] == "refused" for line in gateway.audit_lines()):
        assert time.monotonic() < until
        time.sleep(0.05)
    time.sleep(1.2)  # the last second's tally, a checkpoint
    files = [file for file in gateway.home.rglob("*") if file.is_file()]
    assert {"stderr", "cliproxy.yaml"} <= {file.name for file in files} and any(file.suffix == ".jsonl" for file in files)
    assert [(str(file), found) for file in files if (found := leaks(file.read_bytes(), secrets))] == []
    for words in (("status", "--json"), ("keys", "list", "--json"), ("credentials", "list", "--json"), ("vault", "status", "--json"), ("audit", "tail")):
        done = gateway.result(*words)
        assert leaks((done.stdout + done.stderr).encode(), secrets) == [], words


def test_the_log_has_what_is_needed_all_the_same(gateway: Gateway, answers: list[tuple[str, WireAnswer]]) -> None:
    """The sister: a log that says nothing would leak nothing."""
    until = time.monotonic() + 20
    while True:
        lines = gateway.audit_lines()
        models = {line["model"] for line in lines if line["event"] == "provider_request"}
        if models >= {f"fault-{name}" for name in FAULTS.split()} and any(
            line["event"] == "authentication" and line["reason"] == "no_valid_key" for line in lines
        ):
            break
        assert time.monotonic() < until
        time.sleep(0.05)
    assert all(line["principal"] and line["address"] == "127.0.0.1" for line in lines if line["event"] == "provider_request")


def test_no_process_shows_a_secret_in_its_command_line_or_environment(
    gateway: Gateway, answers: list[tuple[str, WireAnswer]], secrets: dict[str, bytes]
) -> None:
    assert gateway.process is not None
    for name, pid in {"supervisor": gateway.process.pid, **gateway.children()}.items():
        assert leaks(Path(f"/proc/{pid}/cmdline").read_bytes(), secrets) == [], name
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except PermissionError:
            continue  # a locked process shows it to root alone
        assert leaks(environment, secrets) == [], name
        assert ENVIRONMENT_VARIABLE.encode() not in environment, name


def test_no_process_leaves_a_core(gateway: Gateway) -> None:
    for name, pid in gateway.children().items():
        limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
        (core,) = [line.split()[4:6] for line in limits if line.startswith("Max core file size")]
        assert core == ["0", "0"], name
