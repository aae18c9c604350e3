"""What bad input gets, line by line: at the socket, in the body, from the provider, at the start."""

from __future__ import annotations

import json
import shutil
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cliproxy.cli.connection import attach
from cliproxy.cli.home import Home
from cliproxy.cli.new_key import new_key
from cliproxy.ipc import commands
from fakes.gateway import Gateway, free_port
from fakes.provider import FakeProvider
from fakes.wire import WireAnswer, WireClient, events_of, request_bytes

SECRET = "sk-canary-7f3a9c1e5b8d2046"
USER = [{"role": "user", "content": "hello there"}]
MAX_BODY_BYTES = 100_000
FAULTS = ("status-500", "stall", "reset", "cut-length", "cut-chunked", "reset-mid", "stall-mid", "redirect", "gzip", "both-lengths", "not-http", "huge-head")


@pytest.fixture(scope="module")
def provider() -> Iterator[FakeProvider]:
    with FakeProvider() as running:
        yield running


@pytest.fixture(scope="module")
def gateway(provider: FakeProvider) -> Iterator[Gateway]:
    settings = {
        "server": {"limits": {"max_body_bytes": MAX_BODY_BYTES, "head_timeout_seconds": 1.0, "body_timeout_seconds": 1.0}},
        "providers": {
            "fake": {
                "base_url": provider.base_url,
                "models": ["gpt-4o-mini", *(f"fault-{name}" for name in FAULTS)],
                "timeouts": {"first_byte": 1.0, "idle": 1.0},
            },
            "gone": {"base_url": f"http://127.0.0.1:{free_port()}/v1", "auth": "none", "models": ["gone"]},
        },
    }
    with Gateway(settings, credentials={"fake": SECRET}) as running:
        yield running


def chat(model: str = "gpt-4o-mini", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": USER, **more}


def ask(gateway: Gateway, method: str = "POST", path: str = "/v1/chat/completions", **more: Any) -> WireAnswer:
    """One request on a connection of its own."""
    with WireClient(gateway.port) as client:
        return client.ask(method, path, **more)


# --- broken or ambiguous HTTP: 400 and close -----------------------------------------------------------------------------

BODY = json.dumps({"model": "gpt-4o-mini", "messages": USER}).encode()
CHUNKED_BODY = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)


def post(*lines: bytes, body: bytes = b"", first: bytes = b"POST /v1/chat/completions HTTP/1.1") -> bytes:
    return b"\r\n".join([first, b"Host: a", b"Authorization: Bearer KEY", b"Content-Type: application/json", *lines]) + b"\r\n\r\n" + body


LENGTH = b"Content-Length: %d" % len(BODY)
BROKEN = {
    "no HTTP at all": b"hello\r\n\r\n",
    "TLS to a plain port": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 40 + b"\r\n\r\n",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/0.9": b"GET /healthz\r\n\r\n",
    "HTTP/1.2": post(LENGTH, body=BODY, first=b"POST /v1/chat/completions HTTP/1.2"),
    "CONNECT": b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
    "absolute target": post(LENGTH, body=BODY, first=b"POST http://a/v1/chat/completions HTTP/1.1"),
    "two spaces": post(LENGTH, body=BODY, first=b"POST  /v1/chat/completions HTTP/1.1"),
    "bare LF": post(LENGTH, body=BODY).replace(b"\r\n", b"\n"),
    "no host": b"GET /healthz HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "two credentials": post(b"Authorization: Bearer other", LENGTH, body=BODY),
    "length and chunked": post(LENGTH, b"Transfer-Encoding: chunked", body=CHUNKED_BODY),
    "chunked and length": post(b"Transfer-Encoding: chunked", LENGTH, body=CHUNKED_BODY),
    "two lengths": post(LENGTH, LENGTH, body=BODY),
    "a list of lengths": post(LENGTH + b", %d" % len(BODY), body=BODY),
    "a signed length": post(b"Content-Length: +%d" % len(BODY), body=BODY),
    "a negative length": post(b"Content-Length: -1", body=BODY),
    "gzip, chunked": post(b"Transfer-Encoding: gzip, chunked", body=CHUNKED_BODY),
    "chunked twice": post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", body=CHUNKED_BODY),
    "Transfer_Encoding": post(b"Transfer_Encoding: chunked", LENGTH, body=BODY),
    "space before the colon": post(b"Content-Length : %d" % len(BODY), body=BODY),
    "a folded line": post(b"X-Folded: a\r\n b", LENGTH, body=BODY),
    "a control byte": post(b"X-Control: a\x01b", LENGTH, body=BODY),
    "a NUL": post(b"X-Nul: a\x00b", LENGTH, body=BODY),
    "a bad chunk size": post(b"Transfer-Encoding: chunked", body=b"+5\r\nhello\r\n0\r\n\r\n"),
    "a chunk extension": post(b"Transfer-Encoding: chunked", body=b"5;a=b\r\nhello\r\n0\r\n\r\n"),
    "a trailer": post(b"Transfer-Encoding: chunked", body=CHUNKED_BODY[:-2] + b"Authorization: Bearer x\r\n\r\n"),
    "chunked in HTTP/1.0": post(b"Transfer-Encoding: chunked", body=CHUNKED_BODY, first=b"POST /v1/chat/completions HTTP/1.0"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_or_ambiguous_http_is_400_and_the_end_of_the_connection(gateway: Gateway, provider: FakeProvider, name: str) -> None:
    provider.reset()
    with WireClient(gateway.port) as client:
        client.send(BROKEN[name].replace(b"KEY", gateway.key.encode()) + request_bytes("POST", "/v1/chat/completions", key=gateway.key, body=chat()))
        answer = client.answer()
        assert answer.status == 400
        assert answer.headers["connection"] == "close"
        assert answer.error["code"] == "bad_http"
        assert client.is_closed()  # what was sent behind it is answered by nobody
    assert provider.record()["requests"] == []


def test_a_head_that_is_too_large_is_431_and_close(gateway: Gateway) -> None:
    for lines in (("X-Pad: " + "a" * 20_000,), tuple(f"X-{number}: a" for number in range(200))):
        with WireClient(gateway.port) as client:
            client.send(request_bytes("GET", "/healthz", headers=lines))
            assert client.answer().status == 431
            assert client.is_closed()


def test_an_unknown_route_is_404(gateway: Gateway) -> None:
    for path in (
        "/",
        "/v1",
        "/v1/",
        "/v1/chat",
        "/v1/chat/completions/",
        "//v1/chat/completions",
        "/v1/../v1/models",
        "/V1/models",
        "/v1/model/echo",
        "/metrics",
    ):
        answer = ask(gateway, "GET", path, key=gateway.key)
        assert answer.status == 404
        assert answer.error["code"] == "unknown_route"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/chat/completions", "POST"),
        ("DELETE", "/v1/chat/completions", "POST"),
        ("OPTIONS", "/v1/chat/completions", "POST"),
        ("TRACE", "/v1/embeddings", "POST"),
        ("PUT", "/v1/embeddings", "POST"),
        ("POST", "/v1/models", "GET"),
        ("POST", "/healthz", "GET"),
        ("PATCH", "/readyz", "GET"),
    ],
)
def test_a_wrong_method_is_405_and_says_which_is_right(gateway: Gateway, method: str, path: str, allowed: str) -> None:
    answer = ask(gateway, method, path, key=gateway.key, body=None if method in ("GET", "TRACE") else {})
    assert (answer.status, answer.headers["allow"]) == (405, allowed)
    assert answer.error["code"] == "method_not_allowed"
    assert "access-control-allow-origin" not in answer.headers


def test_a_body_that_is_too_large_is_413_before_it_is_sent_and_while_it_comes(gateway: Gateway, provider: FakeProvider) -> None:
    provider.reset()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {gateway.key}\r\n".encode()
    with WireClient(gateway.port) as client:
        client.send(head + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % (MAX_BODY_BYTES + 1))
        answer = client.answer()
        assert answer.status == 413  # and no 100 before it
        assert client.is_closed()
    with WireClient(gateway.port) as client:
        client.send(head + b"Transfer-Encoding: chunked\r\n\r\n" + (b"1000\r\n" + b"x" * 0x1000 + b"\r\n") * (MAX_BODY_BYTES // 0x1000 + 1))
        assert client.answer().status == 413
    at_most = chat(user="")
    at_most["messages"] = [{"role": "user", "content": "x" * (MAX_BODY_BYTES - len(json.dumps({**at_most, "messages": [{"role": "user", "content": ""}]})))}]
    assert len(json.dumps(at_most)) == MAX_BODY_BYTES
    assert ask(gateway, key=gateway.key, body=at_most).status == 200
    assert len(provider.record()["requests"]) == 1


def test_a_slow_head_or_body_is_408_and_a_silent_connection_is_closed(gateway: Gateway) -> None:
    with WireClient(gateway.port) as head, WireClient(gateway.port) as body, WireClient(gateway.port) as silent:
        head.send(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n")
        body.send(f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {gateway.key}\r\nContent-Length: 100\r\n\r\n{{".encode())
        for client in (head, body):
            answer = client.answer()
            assert answer.status == 408
            assert answer.headers["connection"] == "close"
            assert answer.error["type"] == "invalid_request_error"
            assert client.is_closed()
        assert silent.is_closed()


def test_bytes_that_trickle_do_not_put_the_deadline_off(gateway: Gateway) -> None:
    with WireClient(gateway.port) as client:
        client.send(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nX-Slow: ")
        client.socket.settimeout(0.1)
        until = time.monotonic() + 20
        while not client.rest:
            assert time.monotonic() < until
            try:
                client.send(b"a")
                client.rest += client.socket.recv(65536)
            except TimeoutError:
                continue
        client.socket.settimeout(30)
        assert client.answer().status == 408


# --- one uniform 401 -----------------------------------------------------------------------------------------------------


def test_every_reason_for_a_401_gets_the_same_answer(gateway: Gateway) -> None:
    unknown = new_key()[0].reveal().decode()
    revoked = json.loads(gateway.run("keys", "create", "--json", "--name", "revoked"))["key"]
    assert ask(gateway, key=revoked, body=chat()).status == 200
    gateway.run("keys", "revoke", "revoked")
    session = attach(Home(gateway.home))
    assert session is not None
    expiring, digest = new_key()
    session.ask(commands.CreateKey(digest=digest, name="expired", models=("*",), expires_at=int(time.time()) + 1))
    session.close()
    time.sleep(1.1)
    checksum = gateway.key[:-1] + ("A" if gateway.key[-1] != "A" else "B")
    headers = {
        "missing": (),
        "empty": ("Authorization:",),
        "no token": ("Authorization: Bearer",),
        "another scheme": (f"Authorization: Basic {gateway.key}",),
        "no scheme": (f"Authorization: {gateway.key}",),
        "malformed": ("Authorization: Bearer sk-1234",),
        "wrong checksum": (f"Authorization: Bearer {checksum}",),
        "one character more": (f"Authorization: Bearer {gateway.key}A",),
        "two keys": (f"Authorization: Bearer {gateway.key} {gateway.key}",),
        "SQL": ("Authorization: Bearer ' OR 1=1 --",),
        "very long": ("Authorization: Bearer cpk_" + "A" * 8000,),
        "unknown": (f"Authorization: Bearer {unknown}",),
        "revoked": (f"Authorization: Bearer {revoked}",),
        "expired": (f"Authorization: Bearer {expiring.reveal().decode()}",),
    }
    for path, body in (("/v1/chat/completions", chat()), ("/v1/embeddings", {"model": "echo", "input": "a"}), ("/v1/models", None)):
        answers = {name: ask(gateway, "GET" if body is None else "POST", path, body=body, headers=lines) for name, lines in headers.items()}
        assert {name: answer.status for name, answer in answers.items() if answer.status != 401} == {}
        assert len({answer.body for answer in answers.values()}) == 1
        shared = [{key: value for key, value in answer.headers.items() if key not in ("x-request-id", "date")} for answer in answers.values()]
        assert all(one == shared[0] for one in shared)
        assert shared[0]["www-authenticate"] == "Bearer"
        assert "retry-after" not in shared[0]
    # Nor does a request that is wrong in another way as well tell more.
    assert ask(gateway, body=b"{", headers=headers["unknown"]).body == answers["missing"].body
    assert ask(gateway, body=chat("no-such-model"), headers=headers["unknown"]).body == answers["missing"].body


# --- JSON that is not what the schema says -------------------------------------------------------------------------------

WRONG: dict[str, tuple[Any, str | None]] = {
    "nothing": (b"", None),
    "half": (b'{"model":"gpt-4o-mini",', None),
    "two": (BODY + BODY, None),
    "not UTF-8": (BODY.replace(b"hello", b"h\xffllo"), None),
    "a list": ([], None),
    "NaN": (BODY[:-1] + b',"temperature":NaN}', None),
    "deep": (BODY[:-1] + b',"x":' + b"[" * 20_000 + b"]" * 20_000 + b"}", None),
    "no model": ({"messages": USER}, "model"),
    "a number as model": ({"model": 4, "messages": USER}, "model"),
    "no messages": ({"model": "gpt-4o-mini"}, "messages"),
    "messages as text": (chat() | {"messages": "hello"}, "messages"),
    "an unknown role": (chat() | {"messages": [{"role": "god", "content": "x"}]}, "messages[0].role"),
    "a message without a role": (chat() | {"messages": [*USER, {"content": "x"}]}, "messages[1].role"),
    "an unknown part": (chat() | {"messages": [{"role": "user", "content": [{"type": "smell", "smell": "x"}]}]}, "messages[0].content[0].type"),
    "a hot temperature": (chat(temperature=3), "temperature"),
    "a fraction of a choice": (chat(n=1.5), "n"),
    "a stream of words": (chat(stream="yes"), "stream"),
    "too many tokens": (chat(max_tokens=1_000_000), "max_tokens"),
    "tools as an object": (chat(tools={}), "tools"),
    "a tool without a name": (chat(tools=[{"type": "function", "function": {}}]), "tools[0].function.name"),
    "stream_options without a stream": (chat(stream_options={"include_usage": True}), "stream_options"),
    "routing": (chat(base_url="http://attacker.example"), "base_url"),
    "another spelling": (BODY[:-1] + b',"MAX_TOKENS":9}', "max_tokens"),
}


@pytest.mark.parametrize("name", WRONG)
def test_json_that_is_not_what_the_schema_says_is_400_and_names_the_field(gateway: Gateway, provider: FakeProvider, name: str) -> None:
    body, param = WRONG[name]
    provider.reset()
    with WireClient(gateway.port) as client:
        answer = client.ask("POST", "/v1/chat/completions", key=gateway.key, body=body)
        assert answer.status == 400
        assert answer.error["type"] == "invalid_request_error"
        assert answer.error["param"] == param
        assert "attacker" not in answer.error["message"]
        assert client.ask("GET", "/healthz").status == 200  # the framing was fine: the connection goes on
    assert provider.record()["requests"] == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"model": "echo"}, "input"),
        ({"input": "a"}, "model"),
        ({"model": "echo", "input": []}, "input"),
        ({"model": "echo", "input": {"a": 1}}, "input"),
        ({"model": "echo", "input": "a", "dimensions": -1}, "dimensions"),
        ({"model": "echo", "input": "a", "encoding_format": "morse"}, "encoding_format"),
        ({"model": "echo", "input": "a", "api_key": "x"}, "api_key"),
    ],
)
def test_an_embeddings_body_that_is_not_what_the_schema_says_is_400_and_names_the_field(gateway: Gateway, body: dict[str, Any], param: str) -> None:
    answer = ask(gateway, path="/v1/embeddings", key=gateway.key, body=body)
    assert (answer.status, answer.error["param"]) == (400, param)


# --- the provider --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "status", "code"),
    [
        ("gone", 502, "provider_refused_connection"),
        ("fault-stall", 504, "provider_timeout"),
        ("fault-reset", 502, "provider_broke_off"),
        ("fault-cut-length", 502, "provider_broke_off"),
        ("fault-status-500", 502, "provider_error"),
        ("fault-redirect", 502, "provider_redirected"),
        ("fault-gzip", 502, "provider_bad_answer"),
        ("fault-both-lengths", 502, None),
        ("fault-not-http", 502, "provider_bad_http"),
        ("fault-huge-head", 502, None),
    ],
)
def test_a_provider_that_refuses_stalls_or_breaks_off_is_502_or_504_in_openais_shape(gateway: Gateway, model: str, status: int, code: str | None) -> None:
    for stream in (False,) if model in ("fault-stall", "fault-cut-length") else (False, True):
        with WireClient(gateway.port) as client:
            answer = client.ask("POST", "/v1/chat/completions", key=gateway.key, body=chat(model, stream=stream))
            assert answer.status == status
            assert answer.error["type"] == "upstream_error"
            if code is not None:
                # the fake breaks a whole answer off whatever was asked for: to a stream, that is the wrong type first
                assert answer.error["code"] == ("provider_content_type" if stream and model == "fault-cut-length" else code)
            assert SECRET.encode() not in answer.body
            assert client.ask("GET", "/healthz").status == 200


@pytest.mark.parametrize("fault", ["reset-mid", "cut-chunked", "stall-mid"])
def test_a_stream_that_breaks_ends_with_an_error_event_and_never_with_done(gateway: Gateway, fault: str) -> None:
    answer = ask(gateway, key=gateway.key, body=chat(f"fault-{fault}", stream=True))
    assert answer.complete
    assert json.loads(events_of(answer.body)[-1])["error"]["type"] == "upstream_error"
    assert b"[DONE]" not in answer.body


# --- the start -----------------------------------------------------------------------------------------------------------


def state_of(home: Path) -> dict[str, tuple[int, int, bytes]]:
    """Return what is on disk: mode, time of change and content of every file; a directory's time too, since making and removing a file changes it."""
    state = {}
    for file in sorted(home.rglob("*")):
        about = file.lstat()
        state[str(file.relative_to(home))] = (about.st_mode, about.st_mtime_ns, file.read_bytes() if file.is_file() else b"")
    return state


@pytest.fixture
def stopped() -> Iterator[Gateway]:
    """A home that worked, whose gateway has ended."""
    gateway = Gateway()
    try:
        gateway.__enter__()
        assert gateway.stop() == 0
        (gateway.home / "stderr").unlink()
        yield gateway
    finally:
        gateway.__exit__()


def contents_of(home: Path) -> dict[str, tuple[int, bytes]]:
    """Return mode and content of every file but those of `run/`, the run's own: what a start that only a child can refuse must leave alone."""
    return {name: (mode, content) for name, (mode, _, content) in state_of(home).items() if not name.startswith("run") and content}


def assert_start_fails(gateway: Gateway, *words: str, state: Callable[[Path], dict[str, Any]] = state_of) -> None:
    """`serve` ends with 78, one line that holds `words`, and nothing changed on disk as `state` sees it."""
    before = state(gateway.home)
    done = gateway.result("serve")
    assert done.returncode == 78, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr
    assert ";" in done.stderr  # what is wrong; how to mend it
    after = state(gateway.home)
    assert {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)} == set()


def test_a_start_that_cannot_be_is_one_line_78_and_nothing_changed(stopped: Gateway) -> None:
    config = stopped.home / "config" / "cliproxy.yaml"
    key = stopped.home / "key" / "master.key"
    good = config.read_text()

    config.write_text(good.replace("port:", "prot:"))
    assert_start_fails(stopped, f"{config}:", "prot")
    config.write_text(good + "requests:\n  max_tokens: many\n")
    assert_start_fails(stopped, f"{config}:{good.count(chr(10)) + 2}: ", "requests.max_tokens")
    config.write_text(good)

    key.chmod(0o644)
    assert_start_fails(stopped, str(key), "chmod 600")
    key.chmod(0o600)

    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of the gateway before may linger
        other.bind(("127.0.0.1", stopped.port))
        other.listen()
        assert_start_fails(stopped, str(stopped.port))

    stopped.start()  # and mended it starts
    stopped.stop()


def test_a_corrupt_vault_record_is_one_line_78_and_nothing_changed(stopped: Gateway) -> None:
    vault = next(file for file in (stopped.home / "auths").iterdir() if file.read_bytes()[:15] == b"SQLite format 3")
    kept = vault.with_name("kept")
    shutil.copy2(vault, kept)
    with sqlite3.connect(vault) as database:
        (table, column) = next(
            (table, name)
            for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
            for _, name, kind, *_ in database.execute(f"PRAGMA table_info({table})").fetchall()
            if kind == "BLOB" and database.execute(f"SELECT max(length({name})) > 100 FROM {table}").fetchone()[0]
        )
        (number, value) = database.execute(f"SELECT rowid, {column} FROM {table} ORDER BY length({column}) DESC").fetchone()
        database.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (value[:-1] + bytes([value[-1] ^ 1]), number))
    database.close()
    mode = kept.stat().st_mode
    kept.unlink()
    assert vault.stat().st_mode == mode
    for leftover in ("-wal", "-shm", "-journal"):
        vault.with_name(vault.name + leftover).unlink(missing_ok=True)
    assert_start_fails(stopped, "vault", state=contents_of)
