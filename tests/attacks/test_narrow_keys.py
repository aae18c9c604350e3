"""What a valid key with few rights can reach through a request that looks permitted.

Found by attacking: a tool that the provider runs may name a model of its own (OpenAI's `image_generation`, Anthropic's adviser), which neither the key nor any
route was asked about; a name with `/../` in it fitted a wildcard, and passed an exclusion, that the name which it comes to does not; and a call that can
never fit its key's limit was told to come again in a minute.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from cliproxy.config.routes import RouteTable
from cliproxy.config.schema import Settings
from fakes.gateway import Gateway
from fakes.wire import WireAnswer, WireClient

USER = [{"role": "user", "content": "hello"}]
MODEL = "echo"


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with Gateway() as running:
        yield running


@pytest.fixture(scope="module")
def narrow(gateway: Gateway) -> str:
    key: str = json.loads(gateway.run("keys", "create", "--json", "--name", "narrow", "--model", MODEL, "--tpm", "100"))["key"]
    return key


def ask(gateway: Gateway, key: str, path: str, body: dict[str, Any]) -> WireAnswer:
    with WireClient(gateway.port) as client:
        return client.ask("POST", path, body=body, key=key)


# --- a second model ------------------------------------------------------------------------------------------------------

OTHER_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "a tool for pictures": ("/v1/responses", {"input": "hi", "tools": [{"type": "image_generation", "model": "gpt-image-1"}]}),
    "the choice of it": (
        "/v1/responses",
        {"input": "hi", "tools": [{"type": "image_generation"}], "tool_choice": {"type": "image_generation", "model": "gpt-image-1"}},
    ),
    "an adviser": ("/v1/messages", {"max_tokens": 9, "messages": USER, "tools": [{"type": "advisor_20260301", "name": "advisor", "model": "claude-opus-4-6"}]}),
    "an adviser in capitals": ("/v1/messages", {"max_tokens": 9, "messages": USER, "tools": [{"type": "advisor_20260301", "name": "a", "Model": "m"}]}),
    "an adviser that is only counted": ("/v1/messages/count_tokens", {"messages": USER, "tools": [{"type": "advisor_20260301", "name": "a", "model": "m"}]}),
    "one for when the first fails": ("/v1/messages", {"max_tokens": 9, "messages": USER, "fallback_model": "m"}),
    "another word for it": ("/v1/chat/completions", {"messages": USER, "engine": "m"}),
    "its id": ("/v1/chat/completions", {"messages": USER, "Model-ID": "m"}),
}


@pytest.mark.parametrize("name", OTHER_MODELS)
def test_a_request_brings_no_second_model(gateway: Gateway, narrow: str, name: str) -> None:
    path, body = OTHER_MODELS[name]
    answer = ask(gateway, narrow, path, {"model": MODEL, **body})
    assert answer.status == 400
    message = answer.json["error"]["message"]
    assert "another" in message or "may not" in message


def test_a_function_of_the_clients_may_speak_of_models(gateway: Gateway, narrow: str) -> None:
    """The valid sister: what a schema says is the client's own."""
    tool = {"type": "function", "function": {"name": "cars", "parameters": {"type": "object", "properties": {"model": {"type": "string"}}}}}
    assert ask(gateway, narrow, "/v1/chat/completions", {"model": MODEL, "messages": USER, "max_tokens": 5, "tools": [tool]}).status == 200
    custom = {"name": "cars", "input_schema": {"type": "object", "properties": {"model": {"type": "string"}}}}
    assert ask(gateway, narrow, "/v1/messages/count_tokens", {"model": MODEL, "messages": USER, "tools": [custom]}).status == 200


# --- a name that comes to another ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table() -> RouteTable:
    provider = {"base_url": "http://127.0.0.1:1/v1", "prefix": "p", "models": ["small/*", "free*"], "exclude": ["large*"]}
    return RouteTable(msgspec.convert({"providers": {"p": provider}}, Settings))


@pytest.mark.parametrize("name", ["p/small/../large-1", "p/small/./x", "p/small//x", "p/free/../large-1", "p/free/../../files"])
def test_a_name_with_dotted_segments_fits_no_wildcard(table: RouteTable, name: str) -> None:
    assert table.find(name) is None


@pytest.mark.parametrize("name", ["p/small/x", "p/small/x..y", "p/free.1", "p/small/x/y:8b"])
def test_its_valid_sisters_fit(table: RouteTable, name: str) -> None:
    assert table.find(name) is not None


# --- a limit that waiting does not lift ----------------------------------------------------------------------------------

TOO_MUCH: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": MODEL, "messages": USER, "max_tokens": 500},
    "/v1/messages": {"model": MODEL, "messages": USER, "max_tokens": 500},
    "/v1beta/models/echo:generateContent": {"contents": [{"parts": [{"text": "hello"}]}], "generationConfig": {"maxOutputTokens": 500}},
}


@pytest.mark.parametrize("path", TOO_MUCH)
def test_a_call_that_never_fits_its_keys_limit_is_not_told_to_wait(gateway: Gateway, narrow: str, path: str) -> None:
    answer = ask(gateway, narrow, path, TOO_MUCH[path])
    assert answer.status == 429 and b"lower max_tokens" in answer.body
    assert "retry-after" not in answer.headers and b"retryDelay" not in answer.body
