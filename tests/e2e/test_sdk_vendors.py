"""The real SDKs against the fake vendors, without a gateway: what proves that the fakes are right."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import anthropic
import botocore.exceptions
import botocore.session
import openai
import pytest
from botocore.config import Config
from google import genai
from google.genai import errors as genai_errors
from google.genai import types

from e2e.sdk_matrix.anthropic_client import AnthropicClient
from e2e.sdk_matrix.gemini_client import GeminiClient
from e2e.sdk_matrix.openai_clients import ChatClient, ResponsesClient
from e2e.sdk_matrix.prompts import PDF, PNG, ask
from e2e.sdk_matrix.scenarios import SCENARIOS
from fakes import vendor_bedrock
from fakes.vendor_plan import TAIL, THOUGHT, WEATHER, Item, signature_of
from fakes.vendors import API_VERSION, FAULTS, LOCATION, PROJECT, SECRETS, FakeVendors

MODELS = {"openai_chat": "gpt-4o-mini", "openai_responses": "gpt-4o-mini", "anthropic_messages": "claude-opus-5", "gemini_generate": "gemini-2.5-flash"}
REASONING_MODELS = {**MODELS, "openai_chat": "gpt-5-mini", "openai_responses": "gpt-5-mini"}
KEYS = {"openai_chat": "openai", "openai_responses": "openai", "anthropic_messages": "anthropic", "gemini_generate": "gemini"}
# What a vendor's own SDK cannot say to it.
IMPOSSIBLE = {
    "openai_chat": {"tool_error", "tool_result_image", "top_k", "thoughts_shown"},
    "openai_responses": {"stop_sequence", "top_k", "choices", "tool_error", "audio"},
    "anthropic_messages": {"choices", "json_object", "audio"},
    "gemini_generate": {"tool_result_image"},
}


@pytest.fixture(scope="module")
def vendors() -> Iterator[FakeVendors]:
    with FakeVendors() as running:
        yield running


@pytest.fixture(scope="module", params=[ChatClient, ResponsesClient, AnthropicClient, GeminiClient], ids=lambda kind: kind.name)
def client(request: pytest.FixtureRequest, vendors: FakeVendors) -> Any:
    return request.param(vendors.origin, SECRETS[KEYS[request.param.name]])


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_vendors_own_sdk_understands_the_fake(client: Any, scenario: str, stream: bool) -> None:
    if scenario in IMPOSSIBLE[client.name]:
        pytest.skip("this SDK has no word for it")
    models = REASONING_MODELS if scenario in ("reasoning", "thoughts_shown") else MODELS
    result = SCENARIOS[scenario](lambda prompt: client.send(models[client.name], prompt, stream=stream), client.name)
    written = 3 if client.name == "anthropic_messages" else 0
    assert result.usage["prompt"] == 31 + written
    assert result.usage["completion"] == 17
    assert result.usage["cached"] == 12
    assert result.usage["reasoning"] == (5 if scenario in ("reasoning", "thoughts_shown") else 0)


def test_thoughts_that_were_altered_are_refused(vendors: FakeVendors) -> None:
    client = AnthropicClient(vendors.origin, SECRETS["anthropic"])
    first = ask("why?", effort="low")
    answer = client.send("claude-opus-5", first, stream=False)
    for good, old, new in (
        (True, "", ""),
        (False, "Let me think", "Let me drink"),
        (False, signature_of("anthropic", THOUGHT), signature_of("anthropic", "x")),
    ):
        items = tuple(Item(item.kind, text=item.text, signature=item.signature.replace(old, new) if old else item.signature) for item in answer.items)
        prompt = first.then(type(answer)(items, "", {}), Item("text", text="go on"))
        if good:
            assert client.send("claude-opus-5", prompt, stream=False).text.startswith("You said: go on")
        else:
            with pytest.raises(anthropic.BadRequestError, match="Invalid `signature`"):
                client.send("claude-opus-5", prompt, stream=False)


# --- requests that the vendors refuse -----------------------------------------------------------------------------------


def post(vendors: FakeVendors, path: str, body: Any, **headers: str) -> tuple[int, Any]:
    """POST as it is, and return status and body."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(vendors.origin + path, data=json.dumps(body).encode(), headers={"Content-Type": "application/json", **named})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


OPENAI = {"authorization": f"Bearer {SECRETS['openai']}"}
ANTHROPIC = {"x_api_key": SECRETS["anthropic"], "anthropic_version": "2023-06-01"}
GEMINI = {"x_goog_api_key": SECRETS["gemini"]}
HELLO: list[Any] = [{"role": "user", "content": "hello"}]
CALLED = {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}
USED = {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "f", "input": {}}]}
TOOL = {"name": "f", "input_schema": {"type": "object"}}
CONTENT: list[Any] = [{"role": "user", "parts": [{"text": "hello"}]}]


@pytest.mark.parametrize(
    ("path", "headers", "body"),
    [
        ("/v1/chat/completions", OPENAI, {"model": "m", "messages": HELLO, "brand_new": 1}),
        ("/v1/chat/completions", OPENAI, {"model": "m", "messages": HELLO, "temperature": "hot"}),
        ("/v1/chat/completions", OPENAI, {"model": "gpt-5", "messages": HELLO, "max_tokens": 5}),
        ("/v1/chat/completions", OPENAI, {"model": "m", "messages": [*HELLO, CALLED, *HELLO]}),
        ("/v1/chat/completions", OPENAI, {"model": "m", "messages": [*HELLO, {"role": "tool", "tool_call_id": "c1", "content": "x"}]}),
        ("/v1/chat/completions", OPENAI, {"model": "m", "messages": HELLO, "stream_options": {"include_usage": True}}),
        ("/v1/chat/completions", {**OPENAI, "x_api_key": "x"}, {"model": "m", "messages": HELLO}),
        ("/v1/chat/completions", ANTHROPIC, {"model": "m", "messages": HELLO}),
        ("/v1/messages", {**ANTHROPIC, "authorization": f"Bearer {SECRETS['anthropic']}"}, {"model": "m", "messages": HELLO, "max_tokens": 5}),
        ("/v1/chat/completions?a=b", OPENAI, {"model": "m", "messages": HELLO}),
        ("/v1/responses", OPENAI, {"model": "m", "messages": HELLO}),
        ("/v1/responses", OPENAI, {"model": "m", "input": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}),
        ("/v1/responses", OPENAI, {"model": "m", "input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}),
        ("/v1/responses", OPENAI, {"model": "m", "input": "x", "max_output_tokens": 15}),
        ("/v1/messages", ANTHROPIC, {"model": "m", "messages": HELLO}),
        ("/v1/messages", {"x_api_key": SECRETS["anthropic"]}, {"model": "m", "messages": HELLO, "max_tokens": 5}),
        ("/v1/messages", OPENAI, {"model": "m", "messages": HELLO, "max_tokens": 5}),
        ("/v1/messages", ANTHROPIC, {"model": "m", "messages": HELLO, "max_tokens": 5, "temperature": 1.5}),
        ("/v1/messages", ANTHROPIC, {"model": "m", "messages": [{"role": "system", "content": "x"}, *HELLO], "max_tokens": 5}),
        ("/v1/messages", ANTHROPIC, {"model": "m", "messages": [{"role": "assistant", "content": "x"}], "max_tokens": 5}),
        ("/v1/messages", ANTHROPIC, {"model": "m", "messages": [*HELLO, USED, *HELLO], "max_tokens": 5, "tools": [TOOL]}),
        ("/v1/messages", ANTHROPIC, {"model": "m", "messages": HELLO, "max_tokens": 1024, "thinking": {"type": "enabled", "budget_tokens": 1024}}),
        ("/v1/messages", ANTHROPIC, {"model": "m", "messages": [{"role": "user", "content": ""}], "max_tokens": 5}),
        ("/v1beta/models/m:generateContent", GEMINI, {"contents": CONTENT, "brandNew": 1}),
        ("/v1beta/models/m:generateContent", GEMINI, {"contents": [{"role": "assistant", "parts": [{"text": "x"}]}]}),
        ("/v1beta/models/m:generateContent", GEMINI, {"contents": [{"role": "model", "parts": [{"functionCall": {"name": "f"}}]}]}),
        ("/v1beta/models/m:generateContent", GEMINI, {"contents": CONTENT, "generationConfig": {"responseSchema": {"type": "object"}}}),
        ("/v1beta/models/m:streamGenerateContent", GEMINI, {"contents": CONTENT}),
        ("/v1beta/models/m:generateContent", {"authorization": "Bearer x"}, {"contents": CONTENT}),
        ("/model/m/converse", {"authorization": "Bearer x"}, {"messages": [{"role": "user", "content": [{"text": "x"}]}]}),
        ("/v1/nowhere", OPENAI, {}),
    ],
)
def test_what_a_vendor_would_refuse_is_refused(vendors: FakeVendors, path: str, headers: dict[str, str], body: Any) -> None:
    status, answer = post(vendors, path, body, **headers)
    assert 400 <= status < 500, answer
    assert "error" in answer or "message" in answer


def test_errors_are_the_ones_that_the_sdks_know(vendors: FakeVendors) -> None:
    chat = ChatClient(vendors.origin, "wrong")
    with pytest.raises(openai.AuthenticationError):
        chat.send("gpt-4o-mini", ask("x"), stream=False)
    messages = AnthropicClient(vendors.origin, SECRETS["anthropic"])
    with pytest.raises(anthropic.RateLimitError):
        messages.send("fault-status-429", ask("x"), stream=True)
    with pytest.raises(anthropic.APIStatusError, match="Overloaded"):
        messages.send("fault-error-event", ask("x"), stream=True)
    with pytest.raises(openai.APIError, match="Overloaded"):
        ResponsesClient(vendors.origin, SECRETS["openai"]).send("fault-error-event", ask("x"), stream=True)
    gemini = GeminiClient(vendors.origin, SECRETS["gemini"])
    with pytest.raises(genai_errors.ClientError) as caught:
        gemini.send("no-such-model", ask("x"), stream=False)
    assert caught.value.code == 404


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_no_good_answer(client: Any, fault: str, stream: bool) -> None:
    if fault == "in-pieces" or (not stream and fault in ("error-event", "cut-ending")):
        assert client.send("fault-in-pieces", ask("hello"), stream=stream).text == f"You said: hello{TAIL}"
        return
    tools = ({"name": "get_weather", "description": "x", "schema": {"type": "object", "properties": {}}},) if fault == "bad-arguments" else ()
    prompt = ask("[[call]] grüße" if tools else "grüße", tools=tools)
    try:
        result = client.send(f"fault-{fault}", prompt, stream=stream)
    except Exception:
        return
    good = client.send(MODELS[client.name], prompt, stream=stream)
    assert result != good


# --- the other places where a vendor's models are -----------------------------------------------------------------------


def test_vertex_speaks_gemini_and_anthropic_on_its_own_paths(vendors: FakeVendors) -> None:
    from google.oauth2.credentials import Credentials

    options = types.HttpOptions(base_url=vendors.origin, api_version="v1")
    google = genai.Client(vertexai=True, project=PROJECT, location=LOCATION, credentials=Credentials(SECRETS["vertex"]), http_options=options)
    config = types.GenerateContentConfig(max_output_tokens=50)
    assert google.models.generate_content(model="gemini-2.5-flash", contents="hello", config=config).text == f"You said: hello{TAIL}"
    streamed = google.models.generate_content_stream(model="gemini-2.5-flash", contents="hello", config=config)
    assert "".join(part.text or "" for part in streamed) == f"You said: hello{TAIL}"
    claude = anthropic.AnthropicVertex(base_url=vendors.origin + "/v1", project_id=PROJECT, region=LOCATION, access_token=SECRETS["vertex"], max_retries=0)
    asked: dict[str, Any] = {"model": "claude-opus-5", "max_tokens": 100, "messages": HELLO}
    assert claude.messages.create(**asked).content[0].text == f"You said: hello{TAIL}"
    with claude.messages.stream(**asked) as stream:
        assert stream.get_final_text() == f"You said: hello{TAIL}"


def test_azure_speaks_openai_on_its_own_paths(vendors: FakeVendors) -> None:
    azure = openai.AzureOpenAI(azure_endpoint=vendors.origin, api_key=SECRETS["azure"], api_version=API_VERSION, max_retries=0)
    assert azure.chat.completions.create(model="gpt-4o-mini", messages=HELLO).choices[0].message.content == f"You said: hello{TAIL}"
    assert vendors.requests()[-1]["target"] == f"/openai/deployments/gpt-4o-mini/chat/completions?api-version={API_VERSION}"
    assert azure.responses.create(model="gpt-4o-mini", input="hello").output_text == f"You said: hello{TAIL}"


def test_counts_and_embeddings(vendors: FakeVendors) -> None:
    messages = anthropic.Anthropic(base_url=vendors.origin, api_key=SECRETS["anthropic"], max_retries=0)
    assert messages.messages.count_tokens(model="claude-opus-5", messages=HELLO).input_tokens == len(json.dumps(HELLO))
    google = GeminiClient(vendors.origin, SECRETS["gemini"]).sdk
    assert (google.models.count_tokens(model="gemini-2.5-flash", contents="hello").total_tokens or 0) > 10
    embedded = google.models.embed_content(model="gemini-embedding-001", contents="hello")
    assert embedded.embeddings
    assert embedded.embeddings[0].values == [0.25, -0.5, 5.0]


# --- Bedrock -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bedrock(vendors: FakeVendors) -> Any:
    session = botocore.session.Session()
    session.set_credentials(vendor_bedrock.ACCESS_KEY, vendor_bedrock.SECRET_KEY)
    config = Config(retries={"max_attempts": 0, "mode": "standard"})
    return session.create_client("bedrock-runtime", region_name=vendor_bedrock.REGION, endpoint_url=vendors.origin, config=config)


MODEL = "anthropic.claude-sonnet-4-5-20250929-v1:0"
SPEC = {"toolSpec": {"name": "get_weather", "description": "x", "inputSchema": {"json": {"type": "object", "properties": {}}}}}


def converse(bedrock: Any, messages: list[Any], *, stream: bool, model: str = MODEL, **fields: Any) -> Any:
    """Ask, and return the message, why it ended, and the counts."""
    asked = {"modelId": model, "messages": messages, "inferenceConfig": {"maxTokens": 4000}, **fields}
    if not stream:
        answer = bedrock.converse(**asked)
        return answer["output"]["message"], answer["stopReason"], answer["usage"]
    blocks: dict[int, Any] = {}
    stop, usage = "", None
    for event in bedrock.converse_stream(**asked)["stream"]:
        if "contentBlockStart" in event:
            blocks[event["contentBlockStart"]["contentBlockIndex"]] = {"toolUse": {**event["contentBlockStart"]["start"]["toolUse"], "input": ""}}
        elif "contentBlockDelta" in event:
            index, delta = event["contentBlockDelta"]["contentBlockIndex"], event["contentBlockDelta"]["delta"]
            block = blocks.setdefault(index, {})
            if "text" in delta:
                block["text"] = block.get("text", "") + delta["text"]
            elif "toolUse" in delta:
                block["toolUse"]["input"] += delta["toolUse"]["input"]
            else:
                inner = block.setdefault("reasoningContent", {"reasoningText": {"text": "", "signature": ""}})["reasoningText"]
                for name, value in delta["reasoningContent"].items():
                    inner[name] += value
        elif "messageStop" in event:
            stop = event["messageStop"]["stopReason"]
        elif "metadata" in event:
            usage = event["metadata"]["usage"]
    content = [blocks[index] for index in sorted(blocks)]
    for block in content:
        if "toolUse" in block:
            block["toolUse"]["input"] = json.loads(block["toolUse"]["input"] or "{}")
    return {"role": "assistant", "content": content}, stop, usage


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_botocore_understands_the_fake(bedrock: Any, stream: bool) -> None:
    user = {"role": "user", "content": [{"text": "[[call]]"}]}
    fields: dict[str, Any] = {"toolConfig": {"tools": [SPEC]}, "additionalModelRequestFields": {"thinking": {"type": "enabled", "budget_tokens": 2000}}}
    message, stop, usage = converse(bedrock, [user], stream=stream, **fields)
    assert stop == "tool_use"
    assert [next(iter(block)) for block in message["content"]] == ["reasoningContent", "text", "toolUse"]
    use = message["content"][2]["toolUse"]
    assert use["input"] == WEATHER
    assert {name: usage[name] for name in ("inputTokens", "outputTokens", "totalTokens", "cacheReadInputTokens", "cacheWriteInputTokens")} == {
        "inputTokens": 19,
        "outputTokens": 17,
        "totalTokens": 51,
        "cacheReadInputTokens": 12,
        "cacheWriteInputTokens": 3,
    }
    result = {"role": "user", "content": [{"toolResult": {"toolUseId": use["toolUseId"], "content": [{"text": "12 °C"}]}}]}
    answer, stop, _ = converse(bedrock, [user, message, result], stream=stream, **fields)
    assert answer["content"][-1]["text"] == f"The tools said: 12 °C and 1 thoughts came back{TAIL}"
    media = [{"image": {"format": "png", "source": {"bytes": PNG}}}, {"document": {"format": "pdf", "name": "report", "source": {"bytes": PDF}}}]
    answer, _, _ = converse(bedrock, [{"role": "user", "content": [*media, {"text": "[[media]]"}]}], stream=stream)
    assert answer["content"][0]["text"] == f"image image/png {len(PNG)} bytes; document application/pdf {len(PDF)} bytes report{TAIL}"


def test_botocore_raises_what_the_fake_refuses(bedrock: Any, vendors: FakeVendors) -> None:
    user = {"role": "user", "content": [{"text": "hello"}]}
    with pytest.raises(botocore.exceptions.ClientError, match="ThrottlingException"):
        converse(bedrock, [user], stream=False, model="fault-status-429")
    with pytest.raises(botocore.exceptions.ClientError, match="alternate"):
        converse(bedrock, [user, user], stream=False)
    with pytest.raises(botocore.exceptions.EventStreamError, match="Overloaded"):
        converse(bedrock, [user], stream=True, model="fault-error-event")
    session = botocore.session.Session()
    session.set_credentials(vendor_bedrock.ACCESS_KEY, "another")
    wrong = session.create_client("bedrock-runtime", region_name=vendor_bedrock.REGION, endpoint_url=vendors.origin)
    with pytest.raises(botocore.exceptions.ClientError, match="signature"):
        converse(wrong, [user], stream=False)
