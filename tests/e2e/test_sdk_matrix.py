"""Every SDK against every vendor, through one gateway: what was asked arrives, what was answered comes back, and errors are the SDK's own.

The clients are the vendors' SDKs, the vendors are `fakes/vendors.py` (proved by `test_sdk_vendors.py`). What a target cannot say must be refused with the
field's name: `expected.REFUSED` is the whole list, and everything that is not in it must work.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from e2e.sdk_matrix.anthropic_client import AnthropicClient
from e2e.sdk_matrix.expected import DROPPED_THOUGHTS, IMPOSSIBLE, REFUSED, TOLD_APART, WITHOUT_TOOL_ERRORS
from e2e.sdk_matrix.gemini_client import GeminiClient
from e2e.sdk_matrix.openai_clients import ChatClient, ResponsesClient
from e2e.sdk_matrix.prompts import WEATHER_TOOL, ask
from e2e.sdk_matrix.scenarios import SCENARIOS
from e2e.sdk_matrix.targets import ELSEWHERE, TARGETS, broken, credentials, settings
from fakes.gateway import Gateway
from fakes.vendor_plan import TAIL, THOUGHT
from fakes.vendors import SECRETS, FakeVendors

CLIENTS = (ChatClient, ResponsesClient, AnthropicClient, GeminiClient)
NATIVE = {"openai_chat": "openai", "openai_responses": "openai", "anthropic_messages": "anthropic", "gemini_generate": "gemini", "bedrock_converse": "bedrock"}


@pytest.fixture(scope="module")
def vendors() -> Iterator[FakeVendors]:
    with FakeVendors() as running:
        yield running


@pytest.fixture(scope="module")
def gateway(vendors: FakeVendors) -> Iterator[Gateway]:
    with Gateway(settings(vendors.origin), credentials=credentials()) as running:
        yield running


@pytest.fixture(scope="module", params=CLIENTS, ids=lambda kind: kind.name)
def client(request: pytest.FixtureRequest, gateway: Gateway) -> Any:
    return request.param(gateway.url, gateway.key)


@pytest.fixture(params=[False, True], ids=["whole", "streamed"])
def stream(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def status_of(error: Exception) -> int:
    """Return the status that an SDK's exception tells."""
    return int(getattr(error, "status_code", None) or getattr(error, "code", None) or 0)


# --- answers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_what_is_asked_arrives_and_what_is_answered_comes_back(client: Any, vendors: FakeVendors, target: str, scenario: str, stream: bool) -> None:
    if scenario in IMPOSSIBLE[client.name]:
        pytest.skip("this SDK has no word for it")
    model = f"{target}-thinking" if scenario in ("reasoning", "thoughts_shown") else target
    vendors.reset()

    def send(prompt: Any) -> Any:
        return client.send(model, prompt, stream=stream)

    param = REFUSED.get((client.name, target), {}).get(scenario)
    if param is not None:
        with pytest.raises(Exception) as caught:
            SCENARIOS[scenario](send, client.name)
        assert status_of(caught.value) == 400, caught.value
        assert param in (getattr(caught.value, "param", None) or str(caught.value))
        assert not any(request["refused"] for request in vendors.requests()), "the vendor refused it, not the gateway"
        return
    result = SCENARIOS[scenario](send, client.name)
    requests = vendors.requests()
    assert {request["dialect"] for request in requests} == {target.removesuffix("_messages").removesuffix("_generate").removesuffix("_converse")}
    written = 3 if target in ("anthropic_messages", "bedrock_converse") else 0
    assert (result.usage["prompt"], result.usage["completion"], result.usage["cached"]) == (31 + written, 17, 12)
    thought = scenario in ("reasoning", "thoughts_shown") and target != "bedrock_converse"  # which counts thoughts, but does not tell how many
    assert result.usage["reasoning"] == (5 if thought else 0)
    assert result.model
    if scenario == "tool_error":
        assert result.text.startswith("The tools said: error") == (target not in WITHOUT_TOOL_ERRORS)


@pytest.mark.parametrize("target", TARGETS)
def test_thoughts_are_shown_where_both_sides_have_them(client: Any, target: str, stream: bool) -> None:
    result = client.send(f"{target}-thinking", ask("why?", effort="medium", max_tokens=4000), stream=stream)
    assert result.text == f"You said: why?{TAIL}"
    if (client.name, target) in DROPPED_THOUGHTS:
        assert result.thoughts == ""
    else:
        assert result.thoughts == THOUGHT


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("scenario", ["[[refuse]]", "[[filter]]", "[[stop]]", "[[long]]"])
def test_why_it_ended_is_told(client: Any, target: str, scenario: str, stream: bool) -> None:
    stop = ("ENDE",) if scenario == "[[stop]]" else ()
    if stop and ("stop_sequence" in IMPOSSIBLE[client.name] or "stop_sequence" in REFUSED.get((client.name, target), {})):
        pytest.skip("there are no stop sequences here")
    result = client.send(target, ask(scenario, stop=stop), stream=stream)
    assert (result.stop, result.stop_sequence) == TOLD_APART[client.name][target][scenario]
    assert not (scenario == "[[refuse]]" and target in ("openai_chat", "openai_responses")) or f"I can't help with that{TAIL}" in (result.refusal, result.text)


@pytest.mark.parametrize("place", ELSEWHERE)
def test_a_vendors_models_at_other_places(client: Any, vendors: FakeVendors, place: str, stream: bool) -> None:
    vendors.reset()
    result = client.send(place, ask("hello"), stream=stream)
    assert result.text == f"You said: hello{TAIL}"
    (request,) = vendors.requests()
    assert request["vendor"] == place.partition("_")[0]


@pytest.mark.parametrize("target", TARGETS)
def test_a_stream_in_the_smallest_pieces(client: Any, target: str) -> None:
    tools = (WEATHER_TOOL,)
    good = client.send(target, ask("[[parallel]]", tools=tools), stream=True)
    small = client.send(broken(target, "in-pieces", f"{client.name}"), ask("[[parallel]]", tools=tools), stream=True)
    assert (small.arguments(), small.usage, small.stop) == (good.arguments(), good.usage, good.stop)


@pytest.mark.parametrize("target", TARGETS)
def test_the_same_call_whole_and_streamed_is_the_same_answer(client: Any, target: str) -> None:
    prompt = ask("[[call]]", tools=(WEATHER_TOOL,))
    whole, streamed = (client.send(target, prompt, stream=stream) for stream in (False, True))
    assert (whole.text, whole.arguments(), whole.stop, whole.usage) == (streamed.text, streamed.arguments(), streamed.stop, streamed.usage)


# --- errors -------------------------------------------------------------------------------------------------------------


def test_a_wrong_key_is_an_authentication_error(client: Any, gateway: Gateway, stream: bool) -> None:
    wrong = type(client)(gateway.url, "cpk_wrong")
    with pytest.raises(client.errors.ClientError if client.name == "gemini_generate" else client.errors.AuthenticationError) as caught:
        wrong.send("openai_chat", ask("hello"), stream=stream)
    assert status_of(caught.value) == 401


def test_an_unknown_model_is_not_found_and_near_names_are_told(client: Any, stream: bool) -> None:
    with pytest.raises(client.errors.ClientError if client.name == "gemini_generate" else client.errors.NotFoundError) as caught:
        client.send("openai_chta", ask("hello"), stream=stream)
    assert status_of(caught.value) == 404
    assert "openai_chat" in str(caught.value)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "openai_chat": ({"extra_body": {"temperature": "hot"}}, "temperature"),
    "openai_responses": ({"extra_body": {"input": [{"role": "user", "content": [{"type": "input_text", "text": 7}]}]}}, "input[0].content[0].text"),
    "anthropic_messages": ({"metadata": {"user_id": 7}}, "metadata.user_id"),
}


@pytest.mark.parametrize("target", TARGETS)
def test_a_field_of_the_wrong_type_is_named(client: Any, vendors: FakeVendors, target: str, stream: bool) -> None:
    vendors.reset()
    if client.name == "gemini_generate":  # whose SDK checks types itself, so it is asked by hand
        status, _, body = gateway_post(client, f"/v1beta/models/{target}:generateContent", {"contents": [{"role": "user", "parts": [{"text": 7}]}]})
        assert (status, json.loads(body)["error"]["status"]) == (400, "INVALID_ARGUMENT")
        assert "contents[0].parts[0].text" in body.decode()
    else:
        extra, path = WRONG[client.name]
        with pytest.raises(client.errors.BadRequestError) as caught:
            client.send(target, ask("hello", extra=extra), stream=stream)
        assert path in str(caught.value)
    assert vendors.requests() == []


def gateway_post(client: Any, path: str, body: Any) -> tuple[int, dict[str, str], bytes]:
    """POST with the key of a Gemini client."""
    import urllib.error
    import urllib.request

    options = client.sdk._api_client._http_options
    request = urllib.request.Request(options.base_url.rstrip("/") + path, data=json.dumps(body).encode(), headers={"Content-Type": "application/json"})
    request.add_header("x-goog-api-key", client.sdk._api_client.api_key)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("fault", "status", "kind"),
    [
        ("status-400", 400, "BadRequestError"),
        ("status-401", 502, "InternalServerError"),  # OUR key is bad, not the client's
        ("status-404", 404, "NotFoundError"),
        ("status-429", 429, "RateLimitError"),
        ("status-500", 502, "InternalServerError"),
        ("html", 502, "InternalServerError"),
    ],
)
def test_a_vendors_trouble_is_the_sdks_exception(client: Any, target: str, fault: str, status: int, kind: str, stream: bool) -> None:
    expected = getattr(client.errors, kind, None) or (client.errors.ServerError if status >= 500 else client.errors.ClientError)
    with pytest.raises(expected) as caught:
        client.send(broken(target, fault, f"{client.name}-{stream}"), ask("hello"), stream=stream)
    assert status_of(caught.value) == status
    for secret in SECRETS.values():
        assert secret not in str(caught.value)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("fault", ["cut-event", "cut-utf8", "cut-number", "cut-ending", "error-event", "not-json", "other-dialect"])
def test_a_stream_that_goes_wrong_raises_and_is_settled(client: Any, gateway: Gateway, target: str, fault: str) -> None:
    model = broken(target, fault, f"{client.name}-stream")
    with pytest.raises(client.errors.APIError):
        client.send(model, ask("grüße"), stream=True)
    assert outcome_of(gateway, model)["error"]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("fault", ["cut-event", "cut-utf8", "cut-number", "not-json", "other-dialect"])
def test_a_whole_answer_that_is_wrong_raises(client: Any, target: str, fault: str) -> None:
    with pytest.raises(client.errors.APIError) as caught:
        client.send(broken(target, fault, f"{client.name}-whole"), ask("grüße"), stream=False)
    assert status_of(caught.value) == 502


@pytest.mark.parametrize("target", TARGETS)
def test_arguments_that_never_become_json_raise_and_what_was_used_is_settled(client: Any, gateway: Gateway, target: str, stream: bool) -> None:
    if client.name == target:
        pytest.skip("the model's own text, which stays what it is in its own dialect")
    model = broken(target, "bad-arguments", f"{client.name}-{stream}")
    with pytest.raises(client.errors.APIError) as caught:
        client.send(model, ask("[[call]]", tools=(WEATHER_TOOL,)), stream=stream)
    assert stream or status_of(caught.value) == 502
    outcome = outcome_of(gateway, model)
    assert outcome["output_tokens"] == 17 or (stream and outcome["error"])  # a stream may be cancelled before the counts at its end have come


def outcome_of(gateway: Gateway, model: str) -> dict[str, Any]:
    """Return how the only call of `model` (a public name) ended, once the log has it."""
    provider, _, name = model.partition("/")
    until = time.monotonic() + 10
    while time.monotonic() < until:
        lines = gateway.audit_lines()
        intents = [line["request"] for line in lines if line["event"] == "provider_request" and (line["provider"], line["model"]) == (provider, name)]
        found = [line for line in lines if line["event"] == "provider_outcome" and line["request"] in intents]
        if found:
            assert len(found) == len(intents) == 1
            return found[0]
        time.sleep(0.02)
    raise AssertionError("the call has no end in the log")


# --- what leaves --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_of_the_clients_headers_or_key_leaves(client: Any, gateway: Gateway, vendors: FakeVendors, target: str) -> None:
    vendors.reset()
    client.send(target, ask("hello"), stream=False)
    (request,) = vendors.requests()
    names = {name.lower() for name, _ in request["headers"]}
    allowed = {"host", "content-type", "accept", "accept-encoding", "user-agent", "content-length"}
    names.discard("x-amz-content-sha256")  # which a signature may cover, or not
    own = {
        "openai": {"authorization"},
        "anthropic": {"x-api-key", "anthropic-version"},
        "gemini": {"x-goog-api-key"},
        "bedrock": {"authorization", "x-amz-date"},
    }[NATIVE[target]]
    assert names == allowed | own
    assert gateway.key not in json.dumps(request)


@pytest.mark.parametrize(
    ("target", "fields", "field"),
    [
        ("gemini_generate", {"user": "u-1"}, "user"),
        ("bedrock_converse", {"seed": 7}, "seed"),
        ("openai_responses", {"seed": 7}, "seed"),
        ("anthropic_messages", {"verbosity": "low"}, "verbosity"),
        ("openai_chat", {"verbosity": "low"}, None),
    ],
)
def test_what_is_left_out_is_told_in_a_header(gateway: Gateway, target: str, fields: dict[str, Any], field: str | None) -> None:
    body = {"model": target, "messages": [{"role": "user", "content": "hello"}], **fields}
    status, headers, _ = gateway.post("/v1/chat/completions", body)
    assert status == 200
    if field is None:
        assert "warning" not in headers
    else:
        assert headers["warning"] == f'299 cliproxy "field {field} is not supported by the provider and was left out"'


def test_tokens_are_counted_by_the_vendor_where_it_can(gateway: Gateway, vendors: FakeVendors) -> None:
    messages: list[Any] = [{"role": "user", "content": "How many tokens are this?"}]
    claude, gemini = AnthropicClient(gateway.url, gateway.key).sdk, GeminiClient(gateway.url, gateway.key).sdk
    vendors.reset()
    assert claude.messages.count_tokens(model="anthropic_messages", messages=messages).input_tokens == len(json.dumps(messages))
    native = gemini.models.count_tokens(model="gemini_generate", contents="How many tokens are this?").total_tokens
    translated = claude.messages.count_tokens(model="gemini_generate", messages=messages).input_tokens
    assert native == translated
    crossed = gemini.models.count_tokens(model="anthropic_messages", contents="How many tokens are this?").total_tokens or 0
    assert crossed > len("How many tokens are this?")  # the fake counts characters of the messages as it got them
    assert [request["dialect"] for request in vendors.requests()] == ["anthropic", "gemini", "gemini", "anthropic"]


def test_embeddings_of_every_sdk(gateway: Gateway) -> None:
    text = "hello"
    chat, gemini = ChatClient(gateway.url, gateway.key).sdk, GeminiClient(gateway.url, gateway.key).sdk
    native = gemini.models.embed_content(model="gemini_generate", contents=text)
    assert native.embeddings
    assert native.embeddings[0].values == [0.25, -0.5, 5.0]
    assert chat.embeddings.create(model="gemini_generate", input=text).data[0].embedding == [0.25, -0.5, 5.0]


def test_what_a_vendor_keeps_cannot_be_named_where_it_keeps_nothing(gateway: Gateway, vendors: FakeVendors) -> None:
    client = ResponsesClient(gateway.url, gateway.key)
    vendors.reset()
    with pytest.raises(openai.BadRequestError) as caught:
        client.sdk.responses.create(model="anthropic_messages", input="hello", previous_response_id="resp_123")
    assert caught.value.param == "previous_response_id"
    assert vendors.requests() == []


def test_googles_sdk_as_it_is_set_up_by_itself_finds_its_paths(gateway: Gateway, stream: bool) -> None:
    newest = GeminiClient(gateway.url, gateway.key, version=None)  # since 3.0 its paths begin with /v1 and not with /v1beta
    assert newest.send("gemini_generate", ask("hello"), stream=stream).text == f"You said: hello{TAIL}"
    assert "models/gemini_generate" in {model.name for model in newest.sdk.models.list()}
    assert newest.sdk.models.get(model="gemini_generate").name == "models/gemini_generate"


def test_the_log_of_all_this_verifies(gateway: Gateway) -> None:
    gateway.run("audit", "verify")
    log = json.dumps(gateway.audit_lines())
    for secret in (*SECRETS.values(), gateway.key):
        assert secret not in log
