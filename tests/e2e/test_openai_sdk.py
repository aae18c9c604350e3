"""The real OpenAI SDK against a running gateway: our scripted provider, a provider that we did not write (`fakellm`), and the echo model."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml

from fakes.gateway import Gateway, free_port
from fakes.provider import EVENTS, TEXT, FakeProvider

SECRET = "sk-fake-0123456789abcdef"
USER: list[Any] = [{"role": "user", "content": "hello there"}]
TOOLS: list[Any] = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}]
FAULTS = ("status-400", "status-401", "status-404", "status-422", "status-429", "status-500", "status-503", "stall", "trickle-200", "trickle-20", "slow")
MORE = ("usage-event", "unknown-fields", "wide-1024", "reset", "cut-length", "malformed-json", "wrong-type", "reset-mid", "cut-chunked", "ends-early")


@pytest.fixture(scope="module")
def provider() -> Iterator[FakeProvider]:
    with FakeProvider() as running:
        yield running


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`fakellm` as its own process; yields its origin."""
    config = tmp_path_factory.mktemp("fakellm") / "fakellm.yaml"
    weather = {"name": "get_weather", "arguments": {"city": "Wien"}}
    rules = [
        {"name": "tool", "when": {"tools_include": "get_weather"}, "respond": {"tool_calls": [weather]}},
        {"name": "limited", "when": {"messages_contain": "too fast"}, "respond": {"status": 429, "error": "slow down"}},
        {"name": "greeting", "when": {"messages_contain": "hello"}, "respond": {"content": "Hi there, how are you?"}},
    ]
    config.write_text(yaml.safe_dump({"version": 1, "rules": rules}))
    port = free_port()
    command = [sys.executable, "-m", "fakellm.cli", "serve", "--port", str(port), "--config", str(config)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    origin = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(origin + "/_fakellm/stats", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, "fakellm did not start"
                assert time.monotonic() < until, "fakellm did not answer"
                time.sleep(0.05)
        yield origin
    finally:
        process.kill()
        process.wait(10)


@pytest.fixture(scope="module")
def gateway(provider: FakeProvider, foreign: str) -> Iterator[Gateway]:
    settings = {
        "providers": {
            "fake": {"base_url": provider.base_url, "models": ["gpt-4o-mini", *(f"fault-{name}" for name in FAULTS + MORE)]},
            "impatient": {"base_url": provider.base_url, "timeouts": {"first_byte": 1.0}},
            "bare": {"base_url": provider.base_url, "models": ["no-credential"]},
            "gone": {"base_url": f"http://127.0.0.1:{free_port()}/v1", "auth": "none", "models": ["gone"]},
            "fakellm": {"base_url": foreign + "/v1", "auth": "none", "models": ["gpt-4o"]},
        },
        "models": {
            "impatient": {"provider": "impatient", "model": "fault-stall"},
            "public-name": {"provider": "fake", "model": "gpt-4o-mini"},
        },
    }
    with Gateway(settings, credentials={"fake": SECRET, "impatient": SECRET}) as running:
        yield running


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=gateway.url + "/v1", api_key=gateway.key, max_retries=0, timeout=30) as made:
        yield made


def another(gateway: Gateway, *options: str) -> openai.OpenAI:
    """Return a client with a key of its own."""
    key = json.loads(gateway.run("keys", "create", "--json", *options))["key"]
    return openai.OpenAI(base_url=gateway.url + "/v1", api_key=key, max_retries=0, timeout=30)


def content_of(stream: Any) -> str:
    """Return the text of a streamed answer."""
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def wait_for(provider: FakeProvider, what: str, count: int, *, seconds: float = 10.0) -> None:
    """Wait until the provider has seen `count` of something."""
    until = time.monotonic() + seconds
    while (seen := provider.record()[what] if what != "requests" else len(provider.record()["requests"])) != count:
        assert time.monotonic() < until, f"{what} is {seen}, not {count}"
        time.sleep(0.02)


# --- answers -------------------------------------------------------------------------------------------------------------


def test_a_whole_answer_is_the_providers(client: openai.OpenAI, provider: FakeProvider) -> None:
    provider.reset()
    answer = client.chat.completions.create(model="gpt-4o-mini", messages=USER, temperature=0.25, seed=7)
    assert answer.choices[0].message.content == TEXT
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (19, 24)
    assert answer._request_id is not None
    assert answer._request_id.startswith("req_")
    (request,) = provider.record()["requests"]
    assert request["line"] == "POST /v1/chat/completions HTTP/1.1"
    body = json.loads(request["body"])
    assert body.pop("max_tokens") == 4096  # absent means no limit at the provider
    assert body == {"model": "gpt-4o-mini", "messages": USER, "temperature": 0.25, "seed": 7}


def test_nothing_of_the_clients_headers_reaches_the_provider(client: openai.OpenAI, gateway: Gateway, provider: FakeProvider) -> None:
    provider.reset()
    hostile = {"X-Custom-Host": "attacker.example", "OpenAI-Organization": "org-1", "Cookie": "a=b", "X-Forwarded-For": "10.0.0.1"}
    client.chat.completions.create(model="gpt-4o-mini", messages=USER, extra_headers=hostile)
    (request,) = provider.record()["requests"]
    names = sorted(name for name, _ in request["headers"])
    assert names == ["Accept", "Accept-Encoding", "Authorization", "Content-Length", "Content-Type", "Host", "User-Agent"]
    assert dict(request["headers"])["Authorization"] == f"Bearer {SECRET}"
    assert gateway.key not in json.dumps(request)


def test_a_public_name_leaves_as_the_upstreams_model(client: openai.OpenAI, provider: FakeProvider) -> None:
    provider.reset()
    assert client.chat.completions.create(model="public-name", messages=USER).choices[0].message.content == TEXT
    assert json.loads(provider.record()["requests"][0]["body"])["model"] == "gpt-4o-mini"


def test_a_streamed_answer_is_the_providers(client: openai.OpenAI) -> None:
    with client.chat.completions.create(model="gpt-4o-mini", messages=USER, stream=True) as stream:
        chunks = list(stream)
    assert content_of(chunks) == "".join(f" token{number}" for number in range(EVENTS))
    assert chunks[-1].choices[0].finish_reason == "stop"


@pytest.mark.parametrize("asked", [None, False, True])
def test_the_usage_event_comes_only_to_who_asked_for_it(client: openai.OpenAI, provider: FakeProvider, asked: bool | None) -> None:
    provider.reset()
    options: dict[str, Any] = {} if asked is None else {"stream_options": {"include_usage": asked}}
    chunks = list(client.chat.completions.create(model="fault-usage-event", messages=USER, stream=True, **options))
    assert content_of(chunks) == "".join(f" token{number}" for number in range(EVENTS))
    usages = [chunk.usage for chunk in chunks if chunk.usage is not None]
    assert [usage.total_tokens for usage in usages] == ([29] if asked else [])
    assert all(chunk.choices for chunk in chunks[: None if not asked else -1])
    assert json.loads(provider.record()["requests"][0]["body"])["stream_options"] == {"include_usage": True}  # settlement needs it


def test_the_usage_that_nobody_asked_for_still_settles(client: openai.OpenAI, gateway: Gateway) -> None:
    raw = client.chat.completions.with_raw_response.create(model="fault-usage-event", messages=USER, stream=True)
    for _ in raw.parse():
        pass
    outcome = outcome_of(gateway, raw.headers["x-request-id"])
    assert (outcome["input_tokens"], outcome["output_tokens"], outcome["error"]) == (19, 10, "")


def outcome_of(gateway: Gateway, request_id: str) -> dict[str, Any]:
    """Return the audit event of a call's end."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        for line in gateway.audit_lines():
            if line["event"] == "provider_outcome" and line["request"] == request_id:
                return line
        time.sleep(0.05)
    raise AssertionError(f"no outcome of {request_id} in the log")


def test_tools_and_fields_that_the_gateway_does_not_know_are_kept(client: openai.OpenAI, provider: FakeProvider) -> None:
    provider.reset()
    new = {"brand_new_parameter": {"deep": [1, 2.5, "ü", None, True]}, "verbosity": "low"}
    messages = [*USER, {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}]
    messages += [{"role": "tool", "tool_call_id": "c1", "content": "12 °C"}]
    client.chat.completions.create(model="gpt-4o-mini", messages=messages, tools=TOOLS, tool_choice="auto", parallel_tool_calls=False, extra_body=new)
    body = json.loads(provider.record()["requests"][0]["body"].encode("latin-1"))
    assert body["messages"] == messages
    assert (body["tools"], body["tool_choice"], body["parallel_tool_calls"]) == (TOOLS, "auto", False)
    assert {name: body[name] for name in new} == new


def test_fields_of_an_answer_that_the_gateway_does_not_know_are_kept(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="fault-unknown-fields", messages=USER)
    assert answer.model_extra == {"brand_new": {"deep": [1, 2.5, "ü"]}}


def test_embeddings_come_back_number_by_number(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="gpt-4o-mini", input=["a", "b"])
    assert [item.embedding for item in answer.data] == [[0.25, -0.5, 1.0]] * 2
    wide = client.embeddings.create(model="fault-wide-1024", input=["a"] * 100)  # some 1.5 MiB
    assert len(wide.data) == 100
    assert wide.data[99].embedding == [number / 65536 for number in range(1024)]


def test_models_are_those_of_the_key(client: openai.OpenAI, gateway: Gateway) -> None:
    everything = {model.id for model in client.models.list()}
    assert {"gpt-4o-mini", "gpt-4o", "echo", "public-name"} <= everything
    with another(gateway, "--model", "echo", "--model", "gpt-4o") as restricted:
        assert {model.id for model in restricted.models.list()} == {"echo", "gpt-4o"}


def test_a_connection_is_reused_towards_the_provider(client: openai.OpenAI, provider: FakeProvider) -> None:
    client.chat.completions.create(model="gpt-4o-mini", messages=USER)
    provider.reset()
    for _ in range(5):
        client.chat.completions.create(model="gpt-4o-mini", messages=USER)
    assert provider.record()["connections"] <= 1


# --- the echo model and a provider that we did not write -----------------------------------------------------------------


def test_the_echo_model_answers_whole_and_streamed_with_usage(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="echo", messages=USER)
    assert "hello there" in (whole.choices[0].message.content or "")
    assert whole.usage is not None
    assert whole.usage.completion_tokens > 0
    chunks = list(client.chat.completions.create(model="echo", messages=USER, stream=True, stream_options={"include_usage": True}))
    assert content_of(chunks) == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert len(client.embeddings.create(model="echo", input="abc").data[0].embedding) == 64


def test_fakellm_answers_whole_and_streamed(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="gpt-4o", messages=USER)
    assert whole.choices[0].message.content == "Hi there, how are you?"
    assert content_of(client.chat.completions.create(model="gpt-4o", messages=USER, stream=True)) == "Hi there, how are you?"


def test_fakellm_calls_tools_whole_and_streamed(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="gpt-4o", messages=USER, tools=TOOLS)
    (call,) = whole.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Wien"})
    arguments = ""
    for chunk in client.chat.completions.create(model="gpt-4o", messages=USER, tools=TOOLS, stream=True):
        for part in chunk.choices[0].delta.tool_calls or []:
            arguments += (part.function.arguments or "") if part.function else ""
    assert json.loads(arguments) == {"city": "Wien"}


def test_fakellms_errors_are_the_sdks(client: openai.OpenAI) -> None:
    with pytest.raises(openai.RateLimitError):
        client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "you are too fast"}])
    with pytest.raises(openai.NotFoundError):  # it has no embeddings
        client.embeddings.create(model="gpt-4o", input="a")


# --- many at once, and gone ones -----------------------------------------------------------------------------------------


def test_fifty_calls_at_once_are_all_answered(gateway: Gateway, provider: FakeProvider) -> None:
    provider.reset()

    async def everything() -> tuple[list[str], list[str]]:
        async with openai.AsyncOpenAI(base_url=gateway.url + "/v1", api_key=gateway.key, max_retries=0, timeout=60) as client:

            async def whole(number: int) -> str:
                answer = await client.chat.completions.create(model="echo", messages=[{"role": "user", "content": f"number {number}"}])
                return answer.choices[0].message.content or ""

            async def streamed(number: int) -> str:
                stream = await client.chat.completions.create(model="fault-trickle-20", messages=USER, stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return await asyncio.gather(*map(whole, range(50))), await asyncio.gather(*map(streamed, range(50)))

    whole, streamed = asyncio.run(everything())
    assert all(f"number {number}" in text for number, text in enumerate(whole))
    assert streamed == ["".join(f" token{number}" for number in range(EVENTS))] * 50
    assert provider.record()["broken_off"] == 0


def test_more_at_once_than_the_key_may_have_are_refused_and_the_others_are_answered(gateway: Gateway) -> None:
    key = json.loads(gateway.run("keys", "create", "--json", "--concurrency", "5"))["key"]

    async def everything() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=gateway.url + "/v1", api_key=key, max_retries=0, timeout=60) as client:

            async def one() -> Any:
                stream = await client.chat.completions.create(model="fault-trickle-200", messages=USER, stream=True)
                await anext(aiter(stream))
                return stream

            results = await asyncio.gather(*(one() for _ in range(12)), return_exceptions=True)
            for result in results:
                if not isinstance(result, BaseException):
                    await result.close()
            return results

    results = asyncio.run(everything())
    refused = [result for result in results if isinstance(result, openai.RateLimitError)]
    assert len(refused) == 7
    assert len([result for result in results if isinstance(result, openai.AsyncStream)]) == 5


def test_a_client_that_leaves_a_stream_closes_the_providers_connection(client: openai.OpenAI, gateway: Gateway, provider: FakeProvider) -> None:
    wait_idle(gateway, provider)
    raw = client.chat.completions.with_raw_response.create(model="fault-trickle-200", messages=USER, stream=True)
    stream = raw.parse()
    next(iter(stream))
    stream.close()
    wait_for(provider, "broken_off", 1)
    assert outcome_of(gateway, raw.headers["x-request-id"])["error"] == "client_gone"


def test_a_client_that_gives_up_waiting_closes_the_providers_connection(gateway: Gateway, provider: FakeProvider) -> None:
    wait_idle(gateway, provider)
    with openai.OpenAI(base_url=gateway.url + "/v1", api_key=gateway.key, max_retries=0, timeout=0.5) as client, pytest.raises(openai.APITimeoutError):
        client.chat.completions.create(model="fault-stall", messages=USER)
    wait_for(provider, "broken_off", 1)


def wait_idle(gateway: Gateway, provider: FakeProvider) -> None:
    """Forget what the provider saw, once nothing of earlier tests is under way."""
    until = time.monotonic() + 10
    while True:
        ids = {line["request"] for line in gateway.audit_lines() if line["event"] == "provider_request"}
        done = {line["request"] for line in gateway.audit_lines() if line["event"] == "provider_outcome"}
        if ids == done:
            break
        assert time.monotonic() < until, f"calls without an end: {ids - done}"
        time.sleep(0.05)
    provider.reset()


# --- errors --------------------------------------------------------------------------------------------------------------


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(**{"model": "gpt-4o-mini", "messages": USER, **fields})


def test_a_wrong_key_is_an_authentication_error(gateway: Gateway) -> None:
    with openai.OpenAI(base_url=gateway.url + "/v1", api_key="sk-wrong", max_retries=0) as client, pytest.raises(openai.AuthenticationError) as caught:
        ask(client)
    assert caught.value.code == "invalid_api_key"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [*USER, {"role": "user", "content": 7}]}, "messages[1].content"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": 4097}, "max_tokens"),
        ({"max_completion_tokens": 1_000_000}, "max_completion_tokens"),
        ({"n": 0}, "n"),
        ({"extra_body": {"api_base": "http://attacker.example"}}, "api_base"),
        ({"extra_body": {"Model": "gpt-4o"}}, "model"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_body_that_is_not_what_the_schema_says_is_a_bad_request_that_names_the_field(
    client: openai.OpenAI, provider: FakeProvider, fields: dict[str, Any], param: str
) -> None:
    provider.reset()
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **fields)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"
    assert provider.record()["requests"] == []


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        ask(client, model="gpt-99")
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")


def test_a_model_that_the_key_may_not_use_is_denied(gateway: Gateway) -> None:
    with another(gateway, "--model", "echo") as client:
        assert ask(client, model="echo").choices
        with pytest.raises(openai.PermissionDeniedError) as caught:
            ask(client)
    assert (caught.value.param, caught.value.code) == ("model", "model_not_permitted")


def test_a_key_above_its_rate_is_told_how_long_to_wait(gateway: Gateway) -> None:
    with another(gateway, "--rpm", "1") as client:
        assert ask(client, model="echo").choices
        with pytest.raises(openai.RateLimitError) as caught:
            ask(client, model="echo")
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60


@pytest.mark.parametrize(
    ("model", "status", "code", "kind"),
    [
        ("fault-status-400", 400, "provider_rejected_request", openai.BadRequestError),
        ("fault-status-401", 502, "provider_credential_rejected", openai.InternalServerError),  # OUR key is bad, not the client's
        ("fault-status-404", 404, "provider_not_found", openai.NotFoundError),
        ("fault-status-422", 400, "provider_rejected_request", openai.BadRequestError),
        ("fault-status-429", 429, "rate_limit_exceeded", openai.RateLimitError),
        ("fault-status-500", 502, "provider_error", openai.InternalServerError),
        ("fault-status-503", 502, "provider_overloaded", openai.InternalServerError),
        ("fault-reset", 502, "provider_broke_off", openai.InternalServerError),
        ("fault-cut-length", 502, "provider_broke_off", openai.InternalServerError),
        ("fault-malformed-json", 502, "bad_upstream_answer", openai.InternalServerError),
        ("fault-wrong-type", 502, "provider_content_type", openai.InternalServerError),
        ("gone", 502, "provider_refused_connection", openai.InternalServerError),
        ("impatient", 504, "provider_timeout", openai.InternalServerError),
        ("no-credential", 503, "no_credential", openai.InternalServerError),
    ],
)
def test_a_providers_trouble_is_the_right_error(client: openai.OpenAI, model: str, status: int, code: str, kind: type[openai.APIStatusError]) -> None:
    with pytest.raises(kind) as caught:
        ask(client, model=model)
    error = caught.value
    assert (error.status_code, error.code) == (status, code)
    assert SECRET not in error.response.text
    assert SECRET not in str(error.response.headers)
    assert error.request_id is not None


def test_a_providers_wait_is_passed_on(client: openai.OpenAI) -> None:
    with pytest.raises(openai.RateLimitError) as caught:
        ask(client, model="fault-status-429")
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 7  # what is left of it, if another test was told before


def test_the_sdk_retries_by_itself_and_every_attempt_is_a_call_of_its_own(gateway: Gateway, provider: FakeProvider) -> None:
    provider.reset()
    with openai.OpenAI(base_url=gateway.url + "/v1", api_key=gateway.key, max_retries=1, timeout=30) as client, pytest.raises(openai.InternalServerError):
        ask(client, model="fault-status-500")
    assert len(provider.record()["requests"]) == 2  # the gateway itself repeats nothing


@pytest.mark.parametrize("fault", ["reset-mid", "cut-chunked", "ends-early"])
def test_a_stream_that_broke_off_raises(client: openai.OpenAI, fault: str) -> None:
    with pytest.raises(openai.APIError, match="broke off"):
        list(ask(client, model=f"fault-{fault}", stream=True))


def test_a_stream_that_is_refused_before_it_begins_is_an_ordinary_error(client: openai.OpenAI) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        ask(client, model="fault-status-500", stream=True)
    assert caught.value.status_code == 502


def test_the_log_of_all_this_verifies(gateway: Gateway, tmp_path: Path) -> None:
    gateway.run("audit", "verify")
    assert SECRET not in json.dumps(gateway.audit_lines())
