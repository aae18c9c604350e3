"""What is told without a call: models, health, readiness; and which headers every answer has."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator

import pytest

import cliproxy
from fakes.gateway import Gateway
from fakes.wire import WireClient


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    settings = {
        "audit": {"deadline_seconds": 2.0},
        "providers": {
            "fake": {"base_url": "https://provider.invalid/v1", "models": ["b-model", "a-model"]},
            "unused": {"rate_limit": {"requests_per_minute": 1}},
        },
        "models": {"alias": {"provider": "fake", "model": "their-secret-name"}},
    }
    with Gateway(settings) as running:
        yield running


def test_models_are_listed_in_openais_shape_and_name_no_upstream_model(gateway: Gateway) -> None:
    status, headers, body = gateway.get("/v1/models")
    assert (status, headers["content-type"]) == (200, "application/json")
    document = json.loads(body)
    assert document["object"] == "list"
    assert [entry["id"] for entry in document["data"]] == ["a-model", "alias", "b-model", "echo"]
    assert all(set(entry) == {"id", "object", "created", "owned_by"} and entry["object"] == "model" for entry in document["data"])
    assert b"their-secret-name" not in body


def test_models_need_a_key_and_are_those_of_the_key(gateway: Gateway) -> None:
    assert gateway.get("/v1/models", key="")[0] == 401
    key = json.loads(gateway.run("keys", "create", "--json", "--model", "alias"))["key"]
    assert [entry["id"] for entry in json.loads(gateway.get("/v1/models", key=key)[2])["data"]] == ["alias"]


def test_health_and_readiness_need_no_key_and_tell_little(gateway: Gateway) -> None:
    assert json.loads(gateway.get("/healthz", key="")[2]) == {"status": "ok", "version": cliproxy.__version__}
    assert json.loads(gateway.get("/readyz", key="")[2]) == {"status": "ready"}


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/v1/models", "/v1/chat/completions", "/nowhere"])
def test_every_answer_has_the_security_headers_and_none_that_tells_of_us(gateway: Gateway, path: str) -> None:
    with WireClient(gateway.port) as client:
        answer = client.ask("GET", path)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert "date" in answer.headers
    assert not {"server", "x-powered-by", "access-control-allow-origin", "set-cookie"} & set(answer.headers)


def test_every_answer_to_a_client_has_a_request_id_of_its_own(gateway: Gateway) -> None:
    body = {"model": "echo", "messages": [{"role": "user", "content": "x"}]}
    headers = [gateway.get("/v1/models")[1], gateway.get("/v1/models", key="")[1], gateway.get("/nowhere")[1], gateway.post("/v1/chat/completions", body)[1]]
    headers += [gateway.post("/v1/chat/completions", {})[1], gateway.post("/v1/chat/completions", body | {"stream": True})[1]]
    ids = [answer["x-request-id"] for answer in headers]
    assert all(id.startswith("req_") for id in ids)
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("role", ["vault", "egress", "auditor"])
def test_readiness_follows_what_the_others_say_and_health_does_not(gateway: Gateway, role: str) -> None:
    pid = gateway.children()[role]
    assert gateway.is_ready()
    os.kill(pid, signal.SIGSTOP)
    try:
        if role == "auditor":  # its silence is only noticed by who waits for it
            gateway.post("/v1/chat/completions", {"model": "echo", "messages": [{"role": "user", "content": "x"}]})
        until = time.monotonic() + 20
        while gateway.is_ready():
            assert time.monotonic() < until, f"ready although {role} hangs"
            time.sleep(0.1)
        assert gateway.get("/healthz", key="")[0] == 200
        status, _, body = gateway.get("/readyz", key="")
        assert (status, json.loads(body)["error"]["code"]) == (503, "not_ready")
    finally:
        os.kill(pid, signal.SIGCONT)
    gateway.wait_ready()
    assert gateway.get("/v1/models")[0] == 200
