"""Every client endpoint at the running gateway, over plain HTTP: keys in all their places, errors in every dialect, counts, embeddings, models, reroutes."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from fakes import vendor_bedrock
from fakes.gateway import Gateway
from fakes.provider import FakeProvider
from fakes.vendors import SECRETS, FakeVendors
from fakes.wire import WireAnswer, WireClient

USER = [{"role": "user", "content": "hello"}]
CONTENTS = [{"role": "user", "parts": [{"text": "hello"}]}]
SAID = "You said: hello"
OPENAI, ANTHROPIC, GEMINI = "openai", "anthropic", "gemini"
CALLS: dict[str, tuple[str, dict[str, Any], str]] = {
    "/v1/chat/completions": ("/v1/chat/completions", {"model": "MODEL", "messages": USER}, OPENAI),
    "/v1/responses": ("/v1/responses", {"model": "MODEL", "input": "hello"}, OPENAI),
    "/v1/completions": ("/v1/completions", {"model": "MODEL", "prompt": "hello"}, OPENAI),
    "/v1/embeddings": ("/v1/embeddings", {"model": "MODEL", "input": "hello"}, OPENAI),
    "/v1/messages": ("/v1/messages", {"model": "MODEL", "max_tokens": 50, "messages": USER}, ANTHROPIC),
    "/v1/messages/count_tokens": ("/v1/messages/count_tokens", {"model": "MODEL", "messages": USER}, ANTHROPIC),
    "generateContent": ("/v1beta/models/MODEL:generateContent", {"contents": CONTENTS}, GEMINI),
    "streamGenerateContent": ("/v1beta/models/MODEL:streamGenerateContent", {"contents": CONTENTS}, GEMINI),
    "countTokens": ("/v1beta/models/MODEL:countTokens", {"contents": CONTENTS}, GEMINI),
    "embedContent": ("/v1beta/models/MODEL:embedContent", {"content": {"parts": [{"text": "hello"}]}}, GEMINI),
    "batchEmbedContents": ("/v1beta/models/MODEL:batchEmbedContents", {"requests": [{"content": {"parts": [{"text": "hello"}]}}]}, GEMINI),
}
PAGES = {"/v1/models": OPENAI, "/v1/models/echo": OPENAI, "/v1beta/models": GEMINI, "/v1beta/models/echo": GEMINI}


@pytest.fixture(scope="module")
def vendors() -> Iterator[FakeVendors]:
    with FakeVendors() as running:
        yield running


@pytest.fixture(scope="module")
def plain() -> Iterator[FakeProvider]:
    with FakeProvider() as running:
        yield running


@pytest.fixture(scope="module")
def gateway(vendors: FakeVendors, plain: FakeProvider) -> Iterator[Gateway]:
    providers: dict[str, Any] = {
        "openai": {"kind": "openai", "base_url": f"{vendors.origin}/v1"},
        "anthropic": {"kind": "anthropic", "base_url": f"{vendors.origin}/v1"},
        "gemini": {"kind": "gemini", "base_url": f"{vendors.origin}/v1beta"},
        "bedrock": {"kind": "bedrock", "base_url": vendors.origin, "region": vendor_bedrock.REGION},
        "plain": {"base_url": plain.base_url},
    }
    for name, provider in providers.items():
        provider |= {"prefix": name, "models": ["*"]}
    models = {
        "openai_chat": {"provider": "openai", "model": "gpt-4o-mini"},
        "openai_responses": {"provider": "openai", "model": "computer-use-preview"},
        "anthropic_messages": {"provider": "anthropic", "model": "claude-opus-5"},
        "gemini_generate": {"provider": "gemini", "model": "gemini-2.5-flash"},
        "bedrock_converse": {"provider": "bedrock", "model": "anthropic.claude-sonnet-4-5-20250929-v1:0"},
        "embed-openai": {"provider": "plain", "model": "text-embedding-3-small"},
        "embed-gemini": {"provider": "gemini", "model": "gemini-embedding-001"},
        "two-dialects": {
            "pool": [{"provider": "anthropic", "model": "claude-fault-status-500--reroute"}, {"provider": "openai", "model": "gpt-4o-mini"}],
            "strategy": "fill_first",
        },
    }
    settings = {
        "providers": providers,
        "models": models,
        "routing": {"max_attempts": 3, "retry_rounds": 0},
        "server": {"limits": {"max_body_bytes": 65536}},
    }
    with Gateway(
        settings, credentials={name: SECRETS[name] for name in ("openai", "anthropic", "gemini", "bedrock")} | {"plain": "sk-fake-0123456789abcdef"}
    ) as running:
        yield running


def ask(gateway: Gateway, method: str, target: str, body: Any = None, *headers: str, key: str | None = "") -> WireAnswer:
    """Send one request on a connection of its own. `key` None: in no header of ours."""
    with WireClient(gateway.port) as client:
        return client.ask(method, target, body=body, headers=headers, key=gateway.key if key == "" else key)


def call(gateway: Gateway, name: str, model: str, *headers: str, key: str | None = "", **more: Any) -> WireAnswer:
    path, body, _ = CALLS[name]
    return ask(gateway, "POST", path.replace("MODEL", model), ({**body, "model": model} if "model" in body else body) | more, *headers, key=key)


def told(answer: WireAnswer, shape: str) -> tuple[str, str]:
    """Return the error's kind and message, and check that it has its dialect's shape and nothing else."""
    assert answer.headers["content-type"] == "application/json"
    document = answer.json
    if shape == OPENAI:
        error = answer.error
        return error["type"], error["message"]
    if shape == ANTHROPIC:
        assert set(document) == {"type", "error", "request_id"} and document["type"] == "error" and set(document["error"]) == {"type", "message"}
        assert document["request_id"] == answer.headers["request-id"] == answer.headers["x-request-id"]
        return document["error"]["type"], document["error"]["message"]
    assert set(document) == {"error"} and set(document["error"]) == {"code", "message", "status", "details"}
    assert document["error"]["code"] == answer.status
    return document["error"]["status"], document["error"]["message"]


UNAUTHENTICATED = {OPENAI: "authentication_error", ANTHROPIC: "authentication_error", GEMINI: "UNAUTHENTICATED"}
NOT_FOUND = {OPENAI: "not_found_error", ANTHROPIC: "not_found_error", GEMINI: "NOT_FOUND"}
INVALID = {OPENAI: "invalid_request_error", ANTHROPIC: "invalid_request_error", GEMINI: "INVALID_ARGUMENT"}


# --- keys --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", ["Authorization: Bearer KEY", "x-api-key: KEY", "x-goog-api-key: KEY"])
@pytest.mark.parametrize("name", ["/v1/chat/completions", "/v1/messages", "generateContent"])
def test_a_key_may_stand_in_any_header_of_any_vendor(gateway: Gateway, name: str, header: str) -> None:
    answer = call(gateway, name, "openai_chat", header.replace("KEY", gateway.key), key=None)
    assert answer.status == 200 and SAID in answer.body.decode()


@pytest.mark.parametrize("name", CALLS)
def test_without_a_key_every_call_is_the_same_401_in_its_dialect(gateway: Gateway, name: str) -> None:
    wrong = "cpk_" + "A" * 49
    path, body, shape = CALLS[name]
    cases: list[tuple[str, ...]] = [(), ("x-api-key:",), (f"x-api-key: {wrong}",), (f"Authorization: Bearer {gateway.key}", f"x-api-key: {wrong}")]
    cases += [(f"x-goog-api-key: {gateway.key}", "Authorization: Basic Zm9v"), ("Authorization: Bearer \xfc",)]
    answers = [ask(gateway, "POST", path.replace("MODEL", "echo"), body, *headers, key=None) for headers in cases]
    answers.append(ask(gateway, "POST", path.replace("MODEL", "echo") + f"?key={wrong}", body, key=None))
    if shape != GEMINI:
        answers.append(ask(gateway, "POST", path + f"?key={gateway.key}", body, key=None))
    bodies = set()
    for answer in answers:
        assert answer.status == 401 and answer.headers["www-authenticate"] == "Bearer"
        assert told(answer, shape)[0] == UNAUTHENTICATED[shape]
        bodies.add(re.sub(r"req_[0-9a-f]+", "", answer.body.decode()))
    assert len(bodies) == 1


def test_a_key_in_the_query_of_a_gemini_path_works_and_is_written_nowhere(gateway: Gateway, vendors: FakeVendors) -> None:
    secret = gateway.key
    answers = [
        ask(gateway, "GET", f"/v1beta/models?key={secret}", key=None),
        ask(gateway, "POST", f"/v1beta/models/gemini_generate:streamGenerateContent?alt=sse&key={secret}", {"contents": CONTENTS}, key=None),
    ]
    assert [answer.status for answer in answers] == [200, 200]
    refused = [
        ask(gateway, "GET", f"/v1beta/models/nobody?key={secret}", key=None),
        ask(gateway, "GET", f"/v1beta/nowhere?key={secret}", key=None),
        ask(gateway, "POST", f"/v1beta/models?key={secret}", {}, key=None),
        ask(gateway, "POST", f"/v1beta/models/echo:streamGenerateContent?key={secret}&alt=x", {}, key=None),
        ask(gateway, "POST", f"/v1beta/models/echo:generateContent?key={secret}", b"{", key=None),
        ask(gateway, "POST", f"/v1beta/models/echo:generateContent?key={secret}&key={secret[:-1]}", {}, key=None),
        ask(gateway, "GET", f"/v1beta/models?key={secret} HTTP/1.1\r\nX", key=None),
    ]
    assert {answer.status for answer in refused} == {400, 401, 404, 405}
    for answer in (*answers, *refused):
        assert secret.encode() not in answer.body and secret not in str(answer.headers)
    time.sleep(1.5)  # tallies are written once a second
    hidden = secret.encode()
    files = [file for file in gateway.home.rglob("*") if file.is_file()]
    assert any(file.name.startswith("audit-") for file in files)
    assert [file for file in files if hidden in file.read_bytes()] == []
    assert hidden not in gateway.messages().encode()
    assert secret not in json.dumps(vendors.requests())


# --- paths, methods, framing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CALLS)
def test_another_method_is_405_in_the_dialect_of_the_path(gateway: Gateway, name: str) -> None:
    path, _, shape = CALLS[name]
    answer = ask(gateway, "GET", path.replace("MODEL", "echo"))
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    assert told(answer, shape)[0] == INVALID[shape]


@pytest.mark.parametrize("path", PAGES)
def test_a_page_takes_get_only(gateway: Gateway, path: str) -> None:
    answer = ask(gateway, "POST", path, {})
    assert (answer.status, answer.headers["allow"]) == (405, "GET")
    told(answer, PAGES[path])


@pytest.mark.parametrize(
    ("path", "headers", "shape"),
    [
        ("/nowhere", (), OPENAI),
        ("/v1/messages/batches", (), ANTHROPIC),
        ("/v1beta/files", (), GEMINI),
        ("/nowhere", ("anthropic-version: 2023-06-01",), ANTHROPIC),
        ("/nowhere", ("x-goog-api-key: x",), GEMINI),
    ],
)
def test_a_path_that_is_none_is_404_in_the_most_likely_dialect(gateway: Gateway, path: str, headers: tuple[str, ...], shape: str) -> None:
    answer = ask(gateway, "POST", path, {}, *headers, key=None)
    assert answer.status == 404 and told(answer, shape)[0] == NOT_FOUND[shape]


@pytest.mark.parametrize("name", ["/v1/chat/completions", "/v1/messages", "generateContent"])
def test_broken_framing_and_a_body_that_is_too_long_are_told_in_the_dialect(gateway: Gateway, name: str) -> None:
    path, _, shape = CALLS[name]
    heads = {
        413: f"POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: 70000\r\n\r\n",
        400: f"POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
        431: f"POST {path} HTTP/1.1\r\nHost: h\r\n" + "X-Pad: a\r\n" * 200 + "\r\n",
    }
    for status, head in heads.items():
        with WireClient(gateway.port) as client:
            client.send(head.encode())
            answer = client.answer()
        assert answer.status == status
        kind, _ = told(answer, shape)
        assert kind == ("request_too_large" if (shape, status) == (ANTHROPIC, 413) else INVALID[shape])
    with WireClient(gateway.port) as client:
        client.send(f"POST {path} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        client.send(b"zz\r\n")
        answer = client.answer()
    assert answer.status == 400
    told(answer, shape)


# --- bodies ------------------------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "/v1/chat/completions": ({"messages": "hello"}, "messages"),
    "/v1/responses": ({"input": 7}, "input"),
    "/v1/completions": ({"prompt": {"a": 1}}, "prompt"),
    "/v1/embeddings": ({"input": {"a": 1}}, "input"),
    "/v1/messages": ({"messages": [{"role": "user", "content": [{"type": "text", "text": 7}]}]}, "messages[0].content[0].text"),
    "/v1/messages/count_tokens": ({"messages": "hello"}, "messages"),
    "generateContent": ({"contents": [{"role": "user", "parts": [{"text": 7}]}]}, "contents[0].parts[0].text"),
    "streamGenerateContent": ({"generationConfig": {"topK": "x"}}, "generationConfig.topK"),
    "countTokens": ({"contents": "hello"}, "contents"),
    "embedContent": ({"content": 7}, "content"),
    "batchEmbedContents": ({"requests": 7}, "requests"),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_field_of_the_wrong_type_is_400_naming_its_path(gateway: Gateway, name: str) -> None:
    wrong, path = WRONG[name]
    answer = call(gateway, name, "openai_chat", **wrong)
    kind, message = told(answer, CALLS[name][2])
    assert answer.status == 400 and kind == INVALID[CALLS[name][2]]
    assert path in message


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b'"x"', b"[" * 2000])
def test_a_body_that_is_no_request_is_400_in_the_dialect(gateway: Gateway, name: str, body: bytes) -> None:
    path, _, shape = CALLS[name]
    answer = ask(gateway, "POST", path.replace("MODEL", "openai_chat"), body)
    assert answer.status == 400 and told(answer, shape)[0] == INVALID[shape]


@pytest.mark.parametrize("name", CALLS)
def test_an_unknown_model_is_404_with_names_like_it(gateway: Gateway, name: str) -> None:
    answer = call(gateway, name, "openai_chta")
    kind, message = told(answer, CALLS[name][2])
    assert answer.status == 404 and kind == NOT_FOUND[CALLS[name][2]]
    assert "openai_chat" in message and "chta" not in message


@pytest.mark.parametrize("name", ["/v1/embeddings", "embedContent"])
def test_a_model_that_cannot_do_it_is_400(gateway: Gateway, name: str) -> None:
    answer = call(gateway, name, "anthropic_messages")
    assert answer.status == 400 and "endpoint" in told(answer, CALLS[name][2])[1]


# --- counting, embeddings, models --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "field"), [("/v1/messages/count_tokens", "input_tokens"), ("countTokens", "totalTokens")])
@pytest.mark.parametrize("model", ["anthropic_messages", "gemini_generate", "openai_chat", "echo"])
def test_tokens_are_counted_by_the_provider_and_else_guessed(gateway: Gateway, vendors: FakeVendors, name: str, field: str, model: str) -> None:
    vendors.reset()
    answer = call(gateway, name, model)
    assert answer.status == 200, answer.body
    assert answer.json[field] > 0
    guessed = model in ("openai_chat", "echo")
    assert answer.headers.get("x-cliproxy-token-count") == ("estimate" if guessed else None)
    assert len(vendors.requests()) == (0 if guessed else 1)


@pytest.mark.parametrize("model", ["embed-openai", "embed-gemini"])
def test_embeddings_are_made_by_either_vendor_for_clients_of_either(gateway: Gateway, model: str) -> None:
    openai = call(gateway, "/v1/embeddings", model)
    one = call(gateway, "embedContent", model)
    batch = call(gateway, "batchEmbedContents", model)
    vectors = [openai.json["data"][0]["embedding"], one.json["embedding"]["values"], batch.json["embeddings"][0]["values"]]
    assert [len(vector) for vector in vectors] == [3, 3, 3] and vectors[0] == vectors[1] == vectors[2]


def test_models_are_listed_in_three_shapes(gateway: Gateway) -> None:
    names = [item["id"] for item in ask(gateway, "GET", "/v1/models").json["data"]]
    anthropic = ask(gateway, "GET", "/v1/models?limit=1000", None, "anthropic-version: 2023-06-01")
    assert [item["id"] for item in anthropic.json["data"]] == names and anthropic.json["has_more"] is False
    assert {item["type"] for item in anthropic.json["data"]} == {"model"} and "request-id" in anthropic.headers
    gemini = ask(gateway, "GET", "/v1beta/models?pageSize=1000")
    assert [item["name"] for item in gemini.json["models"]] == [f"models/{name}" for name in names]
    methods = {item["baseModelId"]: set(item["supportedGenerationMethods"]) for item in gemini.json["models"]}
    assert "generateContent" in methods["openai_chat"] and methods["embed-gemini"] >= {"embedContent"}


@pytest.mark.parametrize("encoded", ["openai/gpt-4o", "openai%2Fgpt-4o"])
def test_a_model_with_a_slash_is_found_behind_a_prefix(gateway: Gateway, encoded: str) -> None:
    assert ask(gateway, "GET", f"/v1/models/{encoded}").json["id"] == "openai/gpt-4o"
    assert ask(gateway, "GET", f"/v1beta/models/{encoded}").json["name"] == "models/openai/gpt-4o"
    answer = ask(gateway, "POST", f"/v1beta/models/{encoded}:generateContent", {"contents": CONTENTS})
    assert answer.status == 200 and answer.headers["x-cliproxy-model"] == "gpt-4o"


# --- answers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["/v1/chat/completions", "/v1/responses", "/v1/completions", "/v1/messages", "generateContent"])
@pytest.mark.parametrize("model", ["openai_chat", "openai_responses", "anthropic_messages", "gemini_generate", "bedrock_converse", "echo"])
def test_who_answered_is_told_in_headers(gateway: Gateway, name: str, model: str) -> None:
    answer = call(gateway, name, model)
    assert answer.status == 200, answer.body
    assert answer.headers["x-cliproxy-provider"] == {"openai_chat": "openai", "openai_responses": "openai"}.get(model, model.partition("_")[0])
    assert answer.headers["x-cliproxy-model"] and answer.headers["x-cliproxy-attempts"] == "1"
    assert answer.headers["x-request-id"].startswith("req_")
    assert ("request-id" in answer.headers) is (CALLS[name][2] == ANTHROPIC)


def test_a_gemini_stream_is_an_array_or_events(gateway: Gateway) -> None:
    for model in ("gemini_generate", "anthropic_messages"):
        path = f"/v1beta/models/{model}:streamGenerateContent"
        array = ask(gateway, "POST", path, {"contents": CONTENTS})
        events = ask(gateway, "POST", path + "?alt=sse", {"contents": CONTENTS})
        assert array.headers["content-type"].startswith("application/json") and events.headers["content-type"].startswith("text/event-stream")
        elements = [json.loads(event.removeprefix("data: ")) for event in events.body.decode().split("\n\n") if event]
        assert json.loads(array.body) == [element | {"responseId": item["responseId"]} for element, item in zip(elements, json.loads(array.body), strict=True)]


@pytest.mark.parametrize("name", ["/v1/chat/completions", "/v1/responses", "/v1/messages", "streamGenerateContent"])
@pytest.mark.parametrize("target", ["openai", "anthropic", "gemini"])
@pytest.mark.parametrize("fault", ["cut-event", "cut-utf8", "cut-number", "error-event", "other-dialect"])
def test_a_stream_that_breaks_is_an_error_of_the_dialect_settled_and_audited(gateway: Gateway, name: str, target: str, fault: str) -> None:
    model = f"{target}/fault-{fault}--{name.rpartition('/')[2]}"
    more: dict[str, Any] = {} if name == "streamGenerateContent" else {"stream": True}
    answer = call(gateway, name, model, **more)
    document: Any
    if answer.status == 200:
        assert answer.complete
        text = answer.body.decode()
        assert "[DONE]" not in text and "message_stop" not in text and "response.completed" not in text
        if name == "streamGenerateContent":
            document = json.loads(text)[-1]
        else:
            document = json.loads(text.rstrip().split("\n\n")[-1].split("data: ", 1)[1])
        assert "error" in document or document["type"] in ("error", "response.failed")
    else:
        assert answer.status == 502
        told(answer, CALLS[name][2])
    until = time.monotonic() + 10
    while not (ended := outcomes(gateway, answer.headers["x-request-id"])):
        assert time.monotonic() < until
        time.sleep(0.1)
    assert all(line["error"] for line in ended)


def outcomes(gateway: Gateway, request: str) -> list[dict[str, Any]]:
    return [line for line in gateway.audit_lines() if line["event"] == "provider_outcome" and line["request"] == request]


def test_what_was_left_out_is_told_in_a_warning(gateway: Gateway) -> None:
    answer = call(gateway, "/v1/chat/completions", "anthropic_messages", seed=7)
    assert answer.status == 200
    assert answer.headers["warning"] == '299 cliproxy "field seed is not supported by the provider and was left out"'


def test_what_cannot_be_said_is_refused_before_anything_leaves(gateway: Gateway, vendors: FakeVendors) -> None:
    vendors.reset()
    answer = call(gateway, "/v1/chat/completions", "anthropic_messages", logit_bias={"1": 5})
    assert (answer.status, answer.error["param"], answer.error["code"]) == (400, "logit_bias", "unsupported_feature")
    assert vendors.requests() == []


@pytest.mark.parametrize("name", ["/v1/chat/completions", "/v1/messages", "generateContent"])
def test_a_call_goes_on_in_another_dialect_when_its_first_provider_fails(gateway: Gateway, vendors: FakeVendors, name: str) -> None:
    vendors.reset()
    answer = call(gateway, name, "two-dialects")
    assert answer.status == 200 and SAID in answer.body.decode(), answer.body
    assert (answer.headers["x-cliproxy-provider"], answer.headers["x-cliproxy-model"]) == ("openai", "gpt-4o-mini")
    dialects = [request["dialect"] for request in vendors.requests()]
    assert dialects in (["anthropic", "openai_chat"], ["openai_chat"])  # the first cools down
    assert int(answer.headers["x-cliproxy-attempts"]) == len(dialects)
