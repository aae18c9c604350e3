"""A credential goes to its enrolled origin or nowhere, whatever the client, the provider or the edited file says: the whole gateway.

The egress half alone is in test_credential_redirection_egress.py. Sources: LiteLLM CVE-2024-6587 (`api_base` in the body), Portkey CVE-2025-66405
(`x-portkey-custom-host`), Bifrost #7323, CVE-2018-18074 and CVE-2023-32681 (a redirect with its Authorization), CVE-2022-27774 (another port).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest

from fakes.gateway import Gateway
from fakes.provider import FakeProvider
from fakes.wire import WireAnswer, WireClient, request_bytes

SECRET = "sk-canary-redirect-5d1c7e9a"
MESSAGES = [{"role": "user", "content": "Hello."}]
STATUSES = (301, 302, 303, 307, 308)


@pytest.fixture(scope="module")
def attacker() -> Iterator[FakeProvider]:
    with FakeProvider() as running:
        yield running


@pytest.fixture(scope="module")
def provider() -> Iterator[FakeProvider]:
    with FakeProvider() as running:
        yield running


@pytest.fixture(scope="module")
def settings(provider: FakeProvider, attacker: FakeProvider) -> dict[str, Any]:
    models = ["gpt-4o-mini", *(f"fault-moved-{status}-{attacker.port}" for status in STATUSES)]
    return {"providers": {"fake": {"base_url": provider.base_url, "models": models}, "other": {"base_url": attacker.base_url, "models": ["other"]}}}


@pytest.fixture(scope="module")
def gateway(settings: dict[str, Any]) -> Iterator[Gateway]:
    with Gateway(settings, credentials={"fake": SECRET}) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_reaches_the_attacker(attacker: FakeProvider, provider: FakeProvider) -> Iterator[None]:
    """What holds in every test of this file."""
    attacker.reset()
    provider.reset()
    yield
    assert attacker.record() == {"requests": [], "connections": 0, "broken_off": 0}


def ask(gateway: Gateway, *headers: str, path: str = "/v1/chat/completions", **fields: Any) -> WireAnswer:
    body = {"model": "gpt-4o-mini", "messages": MESSAGES, **fields}
    if path.startswith("/v1/embeddings"):
        body = {"model": "gpt-4o-mini", "input": "x", **fields}
    with WireClient(gateway.port) as client:
        client.send(request_bytes("POST", path, key=gateway.key, body=body, headers=headers))
        return client.answer()


BODY_FIELDS = """
api_base base_url api_url api_host endpoint custom_host custom_endpoint custom_llm_provider host url proxy api_key key token authorization credentials
organization project headers extra_headers default_headers extra_body extra_query api_version deployment_id model_list fallbacks litellm_params provider
providers webhook_url callbacks success_callback guardrails mock_response aws_bedrock_runtime_endpoint vertex_credentials azure_endpoint portkey_config
"""


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings"])
def test_a_body_that_says_where_to_or_as_whom_is_refused_by_name(gateway: Gateway, provider: FakeProvider, attacker: FakeProvider, path: str) -> None:
    for field in BODY_FIELDS.split():
        for spelling in (field, field.upper(), field.replace("_", "-")):
            answer = ask(gateway, path=path, **{spelling: attacker.base_url})
            assert (answer.status, answer.error["param"], answer.error["code"]) == (400, field, "forbidden_field"), spelling
            assert str(attacker.port) not in answer.body.decode()
    assert provider.record()["requests"] == []


HEADERS = """
X-Portkey-Custom-Host X-Portkey-Config X-Portkey-Provider X-Portkey-Api-Key Custom-Host X-Custom-Host X-Litellm-Api-Base X-Api-Base Api-Base Base-Url
X-Base-Url X-Upstream-Url X-Upstream-Host X-Target-Url X-Target-Host X-Destination X-Forwarded-Host X-Forwarded-Server X-Forwarded-For X-Forwarded-Proto
X-Forwarded-Port Forwarded X-Host X-Original-Host X-Original-Url X-Rewrite-Url X-Real-Ip X-Proxy-Url Proxy-Authorization X-Http-Host-Override Via
X-Openai-Base-Url OpenAI-Organization OpenAI-Project OpenAI-Beta Api-Key Ocp-Apim-Subscription-Key Anthropic-Version Anthropic-Beta X-Goog-User-Project
X-Amz-Security-Token Cookie Referer Origin X-Cliproxy-Provider X-Envoy-Original-Dst-Host X-Bf-Target Cf-Connecting-Ip True-Client-Ip
"""


def test_a_header_changes_neither_target_nor_head(gateway: Gateway, provider: FakeProvider, attacker: FakeProvider) -> None:
    assert ask(gateway).status == 200
    ((plain,), value) = provider.record()["requests"], f"127.0.0.1:{attacker.port}"
    provider.reset()
    names = HEADERS.split()
    for start in range(0, len(names), 25):
        assert ask(gateway, *(f"{name}: {value}" for name in names[start : start + 25])).status == 200
    for request in provider.record()["requests"]:
        assert (request["line"], request["headers"], request["body"]) == (plain["line"], plain["headers"], plain["body"])
    assert dict(plain["headers"])["Host"] == provider.origin.removeprefix("http://")
    assert [value for name, value in plain["headers"] if name.lower() == "authorization"] == [f"Bearer {SECRET}"]
    assert gateway.key not in json.dumps(plain)


@pytest.mark.parametrize("host", ["attacker.example", "127.0.0.1:1", "api.openai.com:443"])
def test_the_client_s_host_is_not_the_provider_s(gateway: Gateway, provider: FakeProvider, host: str) -> None:
    body = json.dumps({"model": "gpt-4o-mini", "messages": MESSAGES}).encode()
    with WireClient(gateway.port) as client:
        client.send(request_bytes("POST", "/v1/chat/completions", key=gateway.key, body=body).replace(b"Host: 127.0.0.1", f"Host: {host}".encode()))
        assert client.answer().status == 200
    (request,) = provider.record()["requests"]
    assert dict(request["headers"])["Host"] == provider.origin.removeprefix("http://")


def test_a_query_stays_here(gateway: Gateway, provider: FakeProvider, attacker: FakeProvider) -> None:
    assert ask(gateway, path=f"/v1/chat/completions?api_base={attacker.base_url}&api-version=x&key=y").status == 200
    (request,) = provider.record()["requests"]
    assert request["line"] == "POST /v1/chat/completions HTTP/1.1"


def test_a_model_s_name_is_a_name(gateway: Gateway, provider: FakeProvider, attacker: FakeProvider) -> None:
    names = [
        attacker.base_url,
        f"{attacker.base_url}/gpt-4o-mini",
        f"gpt-4o-mini@127.0.0.1:{attacker.port}",
        f"other/{SECRET}",
        "other/gpt-4o-mini",
        "fake/gpt-4o-mini",
        "openai/gpt-4o-mini",
        "../../admin",
        "gpt-4o-mini?x=y",
        "gpt-4o-mini#",
        "gpt-4o-mini\r\nHost: attacker.example",
        "gpt-4o-mini\u0000",
        " gpt-4o-mini",
        "gpt-4o-mini ",
        "GPT-4o-mini",
        "gpt\u20114o\u2011mini",
        "*",
        "",
    ]
    for name in names:
        answer = ask(gateway, model=name)
        assert answer.status == (404 if name else 400), name
        assert answer.error["param"] == "model"
    assert provider.record()["requests"] == []


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("stream", [False, True])
def test_a_redirect_is_an_error_and_is_not_followed(gateway: Gateway, provider: FakeProvider, attacker: FakeProvider, status: int, stream: bool) -> None:
    answer = ask(gateway, model=f"fault-moved-{status}-{attacker.port}", stream=stream)
    assert (answer.status, answer.error["code"]) == (502, "provider_redirected")
    assert "location" not in answer.headers and str(attacker.port) not in answer.body.decode()
    assert len(provider.record()["requests"]) == 1


def test_a_provider_without_a_credential_does_not_get_another_s(gateway: Gateway) -> None:
    answer = ask(gateway, model="other")
    assert (answer.status, answer.error["code"]) == (503, "no_credential")


def test_no_edit_of_base_url_takes_the_credential_along(gateway: Gateway, provider: FakeProvider, attacker: FakeProvider) -> None:
    """An edit that leads elsewhere is refused by the loader, or leaves the provider without its credential until the operator enrols one."""
    original = gateway.settings
    port = provider.port
    elsewhere = [  # what is refused first: the original stays in force
        (f"http://127.0.0.1:{port}@127.0.0.1:{attacker.port}/v1", True),
        (f"http://127.0.0.1:{attacker.port}#@127.0.0.1:{port}/v1", True),
        (f"http://127.0.0.1:{attacker.port}?@127.0.0.1:{port}/v1", True),
        (f"http://127.0.0.1:{attacker.port}\\@127.0.0.1:{port}/v1", True),
        (attacker.base_url, False),
        (f"http://localhost:{port}/v1", False),
        (f"https://127.0.0.1:{port}/v1", False),
    ]
    try:
        for base_url, is_refused in elsewhere:
            edited = copy.deepcopy(original)
            edited["providers"]["fake"]["base_url"] = base_url
            gateway.configure(edited)
            done = gateway.result("reload")
            assert (done.returncode != 0) == is_refused, (base_url, done.stderr)
            answer = ask(gateway)
            assert (answer.status == 200) if is_refused else ((answer.status, answer.error["code"]) == (503, "no_credential")), base_url
        # the enrolled provider's name on the attacker's entry, and the two swapped
        swapped = copy.deepcopy(original)
        swapped["providers"]["fake"], swapped["providers"]["other"] = original["providers"]["other"], original["providers"]["fake"]
        gateway.configure(swapped)
        gateway.run("reload")
        assert ask(gateway, model="other").error["code"] == "no_credential"
        assert ask(gateway).error["code"] == "no_credential"
    finally:
        gateway.configure(original)
        gateway.run("reload")
    assert ask(gateway).status == 200
    assert {dict(request["headers"])["Authorization"] for request in provider.record()["requests"]} == {f"Bearer {SECRET}"}


def test_nobody_was_told_the_credential(gateway: Gateway) -> None:
    assert SECRET not in gateway.messages()
    assert SECRET not in json.dumps(gateway.audit_lines())
