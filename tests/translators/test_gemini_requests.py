"""`generateContent` and `countTokens` requests: what is taken, what is refused, what leaves for the same dialect, and what they say in the hub's words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliproxy.dialects import Dialect, Quirks
from cliproxy.errors import ClientError, SchemaError, UnsupportedFeature
from cliproxy.metering.gemini_generate import reread, reread_count, verify_count_answer
from cliproxy.metering.usage import AskedFor
from cliproxy.translators.conversation import (
    Audio,
    ConversationRequest,
    Document,
    Image,
    Message,
    OutputFormat,
    Reasoning,
    Refusal,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
)
from cliproxy.translators.gemini_generate.count import conversation_of as counted_of
from cliproxy.translators.gemini_generate.count import decode_count, decode_count_answer, encode_count, encode_count_answer, encode_count_same
from cliproxy.translators.gemini_generate.decode import decode_gemini
from cliproxy.translators.gemini_generate.encode import FOREIGN_SIGNATURE, encode_conversation, encode_same
from cliproxy.translators.gemini_generate.request import GeminiRequest
from cliproxy.translators.gemini_generate.signatures import tag_of
from cliproxy.translators.gemini_generate.to_hub import FIELD_NAMES, conversation_of
from translators.hub_strategies import Feature, requests

VECTORS = Path(__file__).parents[1] / "vectors" / "gemini_generate"
LOADED = {path.stem: json.loads(path.read_text()) for path in sorted(VECTORS.glob("*.json"))}
REQUESTS = {name: vector["body"] for name, vector in LOADED.items() if vector["kind"] == "request"}
CANARY = "a prompt nobody may quote"
CAP = 4096
G = Dialect.GEMINI_GENERATE


def decode(body: dict[str, Any] | bytes, *, cap: int = CAP, on_excess: Any = "reject", stream: bool = False) -> GeminiRequest:
    given = body if isinstance(body, bytes) else json.dumps(body).encode()
    return decode_gemini(given, model="public", stream=stream, max_tokens_cap=cap, on_excess=on_excess, allow_provider_state=True)


def said(*parts: Any, role: str = "user") -> dict[str, Any]:
    return {"role": role, "parts": list(parts)}


def body_of(*parts: Any, **fields: Any) -> dict[str, Any]:
    return {"contents": [said(*(parts or ({"text": "Hello."},)))], **fields}


def final(request: GeminiRequest) -> dict[str, Any]:
    encoded = encode_same(request, Quirks.NONE)
    assert (encoded.suffix, encoded.dropped) == (b"", ())
    made: dict[str, Any] = json.loads(encoded.prefix)
    return made


def hub(body: dict[str, Any]) -> ConversationRequest:
    return conversation_of(decode(body))


def snake(name: str) -> str:
    return "".join("_" + letter.lower() if letter.isupper() else letter for letter in name)


# What clients make up: names in there mean nothing to Google, and nothing to us.
THEIRS = {"args", "response", "parameters", "parametersJsonSchema", "responseSchema", "responseJsonSchema", "labels"}


def snaked(value: Any) -> Any:
    if isinstance(value, list):
        return [snaked(item) for item in value]
    if isinstance(value, dict):
        return {snake(name): inner if name in THEIRS else snaked(inner) for name, inner in value.items()}
    return value


# --- the same dialect ------------------------------------------------------------------------------------------------


def test_every_feature_that_the_dialect_has_is_in_a_request_vector() -> None:
    features = {vector["feature"] for vector in LOADED.values() if vector["kind"] == "request"}
    assert features == {
        "text",
        "system",
        "multi_turn",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "tool_results",
        "images_base64",
        "images_url",
        "documents",
        "audio_input",
        "reasoning",
        "reasoning_signature",
        "structured_output",
        "stop_sequences",
        "choices",
        "sampling",
        "logprobs",
    }


@pytest.mark.parametrize("name", REQUESTS)
def test_what_leaves_is_the_request_with_a_cap_and_without_a_model(name: str) -> None:
    asked = REQUESTS[name]
    request = decode(asked)
    expected = {**asked, "generationConfig": {**asked.get("generationConfig", {}), "maxOutputTokens": request.max_tokens}}
    assert final(request) == expected
    n = asked.get("generationConfig", {}).get("candidateCount", 1)
    assert reread(encode_same(request, Quirks.NONE).prefix) == AskedFor("", request.max_tokens, n, None)


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_in_protobufs_spelling_leaves_in_ours(name: str) -> None:
    asked = snaked(REQUESTS[name])
    assert final(decode(asked)) == final(decode(REQUESTS[name]))
    assert conversation_of(decode(asked)) == conversation_of(decode(REQUESTS[name]))


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_that_is_cut_anywhere_is_refused(name: str) -> None:
    body = json.dumps(REQUESTS[name]).encode()
    for cut in range(len(body)):
        with pytest.raises(SchemaError):
            decode(body[:cut])
    with pytest.raises(SchemaError):
        decode(body + b"}")


def test_unknown_fields_stay_and_so_do_tools_and_parts_that_google_runs() -> None:
    asked = body_of(
        {"text": "x", "partMetadata": {"a": 1}},
        {"executableCode": {"language": "PYTHON", "code": "1"}},
        {"codeExecutionResult": {"outcome": "OUTCOME_OK"}},
        tools=[{"googleSearch": {}}, {"codeExecution": {}}, {"urlContext": {}}],
        cachedContent="cachedContents/1",
        safetySettings=[{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_ONLY_HIGH"}],
        labels={"team": "a"},
        somethingNew={"x": [1]},
        generationConfig={"maxOutputTokens": 5, "newKnob": 3, "speechConfig": {"voice_config": 1}},
    )
    assert final(decode(asked)) == asked


def test_what_clients_make_up_keeps_its_names() -> None:
    data = {"max_output_tokens": 1, "maxOutputTokens": 2, "inline_data": 3}
    asked = {
        "contents": [said({"function_call": {"name": "f", "args": data}}, role="model"), said({"function_response": {"name": "f", "response": data}})],
        "tools": [{"function_declarations": [{"name": "f", "parameters_json_schema": {"properties": data}}]}],
    }
    left = final(decode(asked))
    assert left["contents"][0]["parts"][0] == {"functionCall": {"name": "f", "args": data}}
    assert left["contents"][1]["parts"][0] == {"functionResponse": {"name": "f", "response": data}}
    assert left["tools"] == [{"functionDeclarations": [{"name": "f", "parametersJsonSchema": {"properties": data}}]}]


@pytest.mark.parametrize(
    "spelling", [{"contents": {"parts": {"text": "Hello"}}}, {"contents": [{"parts": {"text": "Hello"}}], "system_instruction": {"parts": {"text": "s"}}}]
)
def test_an_object_where_a_list_belongs_is_a_list_of_one(spelling: dict[str, Any]) -> None:
    left = final(decode(spelling))
    assert left["contents"] == [{"parts": [{"text": "Hello"}]}]
    assert left.get("systemInstruction") in (None, {"parts": [{"text": "s"}]})


@pytest.mark.parametrize(
    ("config", "on_excess", "max_tokens"),
    [
        (None, "reject", CAP),
        ({}, "reject", CAP),
        ({"maxOutputTokens": None}, "reject", CAP),
        ({"maxOutputTokens": 10}, "reject", 10),
        ({"max_output_tokens": 10}, "reject", 10),
        ({"maxOutputTokens": CAP}, "reject", CAP),
        ({"maxOutputTokens": CAP + 1}, "clamp", CAP),
        ({"max_output_tokens": 2**31 - 1}, "clamp", CAP),
    ],
)
def test_what_leaves_has_a_cap_on_output_tokens(config: Any, on_excess: str, max_tokens: int) -> None:
    request = decode(body_of(generationConfig=config), on_excess=on_excess)
    assert request.max_tokens == max_tokens
    assert final(request)["generationConfig"] == {"maxOutputTokens": max_tokens}


@pytest.mark.parametrize("model", ["public", "models/public"])
def test_a_body_may_repeat_the_model_of_the_path(model: str) -> None:
    assert "model" not in final(decode(body_of(model=model)))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"generationConfig": {"maxOutputTokens": CAP + 1}}, "generationConfig.maxOutputTokens"),
        ({"generation_config": {"max_output_tokens": CAP + 1}}, "generationConfig.maxOutputTokens"),
        ({"generationConfig": {"maxOutputTokens": 1, "max_output_tokens": 10**6}}, "generationConfig.maxOutputTokens"),
        ({"generationConfig": {"maxOutputTokens": 1}, "generation_config": {"maxOutputTokens": 10**6}}, "generationConfig"),
        ({"generationConfig": {"MaxOutputTokens": 10**6}}, "generationConfig.maxOutputTokens"),
        ({"generationConfig": {"maxoutputtokens": 10**6}}, "generationConfig.maxOutputTokens"),
        ({"generationConfig": {"max-output-tokens": 10**6}}, "generationConfig.maxOutputTokens"),
        ({"generationConfig": {"max_tokens": 10**6}}, "generationConfig.maxtokens"),
        ({"generationConfig": {"maxOutputTokens": "100"}}, "generationConfig.maxOutputTokens"),
        ({"generationConfig": {"maxOutputTokens": 0}}, "generationConfig.maxOutputTokens"),
        ({"generationConfig": {"maxOutputTokens": -5}}, "generationConfig.maxOutputTokens"),
        ({"generationConfig": {"maxOutputTokens": True}}, "generationConfig.maxOutputTokens"),
        ({"generationConfig": {"candidateCount": 0}}, "generationConfig.candidateCount"),
        ({"generationConfig": {"candidateCount": 1000}}, "generationConfig.candidateCount"),
        ({"generationConfig": {"candidate_count": "2"}}, "generationConfig.candidateCount"),
        ({"generationConfig": {"temperature": 3}}, "generationConfig.temperature"),
        ({"generationConfig": {"stopSequences": ["a"] * 6}}, "generationConfig.stopSequences"),
        ({"generationConfig": {"routingConfig": {"manualMode": {"modelName": "other"}}}}, "generationConfig.routingConfig"),
        ({"generationConfig": {"routing_config": {}}}, "generationConfig.routingConfig"),
        ({"generationConfig": {"modelSelectionConfig": {}}}, "generationConfig.modelSelectionConfig"),
        ({"generationConfig": []}, "generationConfig"),
        ({"max_tokens": 5}, "maxtokens"),
        ({"maxOutputTokens": 5}, "maxoutputtokens"),
        ({"Contents": []}, "contents"),
        ({"model": "other"}, "model"),
        ({"model": 1}, "model"),
        ({"api_base": "http://attacker.example"}, "api_base"),
        ({"headers": {}}, "headers"),
        ({"contents": None}, "contents"),
        ({"contents": []}, "contents"),
        ({"contents": "Hello"}, "contents"),
        ({"contents": [{"role": "user"}]}, "contents[0].parts"),
        ({"contents": [said({"text": "x"}, role="system")]}, "contents[0].role"),
        ({"contents": [said({})]}, "contents[0].parts[0]"),
        ({"contents": [said({"text": 1})]}, "contents[0].parts[0].text"),
        ({"contents": [said({"text": "x", "inlineData": {"mimeType": "image/png", "data": ""}})]}, "contents[0].parts[0]"),
        ({"contents": [said({"hologram": {}})]}, "contents[0].parts[0]"),
        ({"contents": [said({"inlineData": {"data": "AAAA"}})]}, "contents[0].parts[0].inlineData.mimeType"),
        ({"contents": [said({"functionCall": {"args": {}}})]}, "contents[0].parts[0].functionCall.name"),
        ({"contents": [said({"functionCall": {"name": "f", "args": "{}"}})]}, "contents[0].parts[0].functionCall.args"),
        ({"systemInstruction": "Be nice"}, "systemInstruction"),
        ({"systemInstruction": {"parts": [{"hologram": 1}]}}, "systemInstruction.parts[0]"),
        ({"tools": [{"mcpServers": [{"url": "https://attacker.example"}]}]}, "tools[0]"),
        ({"tools": [{"retrieval": {}}]}, "tools[0]"),
        ({"tools": [{"functionDeclarations": [{"name": ""}]}]}, "tools[0].functionDeclarations[0].name"),
        ({"toolConfig": {"functionCallingConfig": {"mode": 1}}}, "toolConfig.functionCallingConfig.mode"),
        ({"safetySettings": [{"category": "x"}]}, "safetySettings[0].threshold"),
    ],
)
def test_what_the_schema_does_not_say_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(SchemaError) as caught:
        decode({**body_of(), **fields})
    assert caught.value.param == param


def test_an_underscore_that_is_escaped_is_an_underscore() -> None:
    body = b'{"contents":[{"parts":[{"text":"x"}]}],"generationConfig":{"max\\u005Foutput\\u005ftokens":1000000}}'
    with pytest.raises(SchemaError) as caught:
        decode(body)
    assert caught.value.param == "generationConfig.maxOutputTokens"


@pytest.mark.parametrize("model", ["", "m" * 257])
def test_a_path_without_a_model_is_refused(model: str) -> None:
    with pytest.raises(SchemaError):
        decode_gemini(json.dumps(body_of()).encode(), model=model, stream=False, max_tokens_cap=CAP, on_excess="reject")


def test_no_error_quotes_the_client() -> None:
    for fields in ({"contents": CANARY}, {CANARY: 1, "Contents": CANARY}, {"generationConfig": {"temperature": CANARY}}, {"model": CANARY}):
        with pytest.raises(SchemaError) as caught:
            decode({**body_of(), **fields})
        assert CANARY not in caught.value.message


def test_pictures_count_by_the_piece_and_not_by_their_bytes() -> None:
    picture = {"inlineData": {"mimeType": "image/png", "data": "A" * 400_000}}
    assert 1000 < decode(body_of(picture, {"text": "x"})).estimate < 1100
    assert decode(body_of({"text": "word " * 4000})).estimate > 5000


@given(st.binary(max_size=300))
def test_garbage_is_a_client_error(body: bytes) -> None:
    for read in (decode, reread, reread_count, lambda body: decode_count(body, model="m")):
        with pytest.raises(ClientError):
            read(body)


@pytest.mark.parametrize("depth", [500, 5000])
def test_a_body_that_is_nested_deeply_is_refused_or_leaves(depth: int) -> None:
    deep = b'{"a":' * depth + b"1" + b"}" * depth
    body = b'{"contents":[{"parts":[{"text":"_"}]}],"tools":[{"function_declarations":[{"name":"f","parameters":' + deep + b"}]}]}"
    try:
        request = decode(body)
        encode_same(request, Quirks.NONE)
        conversation_of(request)
    except ClientError:
        pass


# --- what egress reads again -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"maxOutputTokens": None},
        {"maxOutputTokens": 0},
        {"maxOutputTokens": -1},
        {"maxOutputTokens": "5"},
        {"maxOutputTokens": 5, "max_output_tokens": 10**6},
        {"maxOutputTokens": 5, "candidate_count": 100},
        {"maxOutputTokens": 5, "candidateCount": -1},
        {"maxOutputTokens": 5, "candidateCount": 1000},
        {"maxOutputTokens": 5, "routingConfig": {}},
        {"maxOutputTokens": 5, "model_selection_config": {}},
    ],
)
def test_egress_takes_no_body_that_a_worker_would_not_write(config: dict[str, Any]) -> None:
    with pytest.raises(SchemaError):
        reread(msgspec.json.encode(body_of(generationConfig=config)))


@pytest.mark.parametrize("fields", [{"model": "models/other"}, {"generation_config": {"maxOutputTokens": 10**6}}])
def test_egress_takes_no_second_spelling_and_no_model(fields: dict[str, Any]) -> None:
    with pytest.raises(SchemaError):
        reread(msgspec.json.encode(body_of(generationConfig={"maxOutputTokens": 5}, **fields)))
    with pytest.raises(SchemaError):
        reread_count(msgspec.json.encode(body_of(generateContentRequest={"model": "models/other"})))


# --- to the hub ------------------------------------------------------------------------------------------------------


def test_a_plain_request_in_the_hubs_words() -> None:
    read = conversation_of(decode(REQUESTS["request_multi_turn"], stream=True))
    messages = (
        Message("user", (Text("I have two dogs."),)),
        Message("assistant", (Text("Nice."),)),
        Message("user", (Text("How many paws?"), Text("Count twice."))),
    )
    assert read == ConversationRequest(G, "public", True, 64, messages)
    assert hub(REQUESTS["request_system"]).system == (Text("You are a cat."), Text("Answer in rhyme."))


def test_calls_without_ids_get_them_and_results_find_their_calls_by_name_and_order() -> None:
    read = hub(REQUESTS["request_parallel_tool_calls"])
    calls, results = read.messages[1].parts, read.messages[2].parts
    assert calls == (
        ToolCall("call_1_0", "get_weather", '{"place":"Oslo"}', "c2lnbmVk", "contents[1].parts[0]"),
        ToolCall("call_1_1", "get_weather", '{"place":"Rome"}', "", "contents[1].parts[1]"),
    )
    assert results == (
        ToolResult("call_1_0", "get_weather", (Text("4 degrees"),), at="contents[2].parts[0]"),
        ToolResult("call_1_1", "get_weather", (Text("19 degrees"),), at="contents[2].parts[1]"),
    )


def test_errors_objects_and_pictures_of_tool_results() -> None:
    read = hub(REQUESTS["request_tool_results"])
    (failed,) = read.messages[2].parts
    assert failed == ToolResult("fc1", "set_light", (Text("no such lamp"),), is_error=True, at="contents[2].parts[0]")
    (result,) = read.messages[4].parts
    assert isinstance(result, ToolResult)
    assert result.call_id == "fc2"
    picture = Image(media_type="image/png", data="iVBORw0KGgo=", at="contents[4].parts[0].functionResponse.parts[0]")
    assert result.content == (Text('{"degrees":4,"wind":{"from":"NW"}}'), picture)


def test_a_signature_of_a_text_is_a_thought_of_its_own() -> None:
    read = hub(REQUESTS["request_reasoning_signature"])
    thought, call = read.messages[1].parts
    assert thought == Reasoning("The user asks for weather.", signer=G)
    assert isinstance(call, ToolCall) and call.signature == "c2lnbmVk"
    assert read.messages[3].parts == (Text("Take an umbrella."), Reasoning(signature="b25lIG1vcmU=", signer=G))


def test_media_in_the_hubs_words() -> None:
    at = "contents[0].parts[{}]".format
    assert hub(REQUESTS["request_images_base64"]).messages[0].parts[1:] == (
        Image(media_type="image/png", data="iVBORw0KGgo=", at=at(1)),
        Image(media_type="image/jpeg", data="/+8=", at=at(2)),  # the URL-safe alphabet became the standard one
    )
    assert hub(REQUESTS["request_images_url"]).messages[0].parts[:2] == (
        Image(media_type="image/jpeg", url="https://example.com/cat.jpg", at=at(0)),
        Image(media_type="image/png", url="https://example.com/dog.png?size=2", at=at(1)),
    )
    assert hub(REQUESTS["request_documents"]).messages[0].parts[:3] == (
        Document(media_type="application/pdf", data="JVBERi0xLjQK", at=at(0)),
        Document(media_type="application/pdf", url="https://example.com/paper.pdf", at=at(1)),
        Document(media_type="text/plain", data="aGVsbG8=", at=at(2)),
    )
    assert hub(REQUESTS["request_audio_input"]).messages[0].parts[0] == Audio("audio/wav", "UklGRg==", at(0))


def test_a_schema_of_openapi_becomes_json_schema() -> None:
    weather, light = hub(REQUESTS["request_tools"]).tools
    assert weather.parameters == {
        "type": "object",
        "properties": {
            "place": {"type": "string", "description": "A town"},
            "unit": {"type": ["string", "null"], "enum": ["C", "F", None]},
            "days": {"type": "array", "items": {"type": "integer"}, "maxItems": 7},
        },
        "required": ["place"],
    }
    assert light.parameters == REQUESTS["request_tools"]["tools"][0]["functionDeclarations"][1]["parametersJsonSchema"]


@pytest.mark.parametrize(
    ("calling", "choice"),
    [
        ({"mode": "AUTO"}, ToolChoice("auto")),
        ({"mode": "none"}, ToolChoice("none")),
        ({"mode": "ANY"}, ToolChoice("required")),
        ({"mode": "any", "allowedFunctionNames": ["f"]}, ToolChoice("named", ("f",))),
        ({"mode": "ANY", "allowedFunctionNames": ["f", "g"]}, ToolChoice("required", ("f", "g"))),
        ({"mode": "VALIDATED", "allowedFunctionNames": ["f"]}, ToolChoice("auto", ("f",))),
        ({"mode": "MODE_UNSPECIFIED"}, None),
        ({}, None),
    ],
)
def test_tool_choice_in_the_hubs_words(calling: dict[str, Any], choice: ToolChoice | None) -> None:
    assert hub(body_of(toolConfig={"functionCallingConfig": calling})).tool_choice == choice


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        ({"thinkingConfig": {"thinkingBudget": 0}}, "thinking", Thinking(budget=0)),
        ({"thinkingConfig": {"thinkingBudget": -1, "includeThoughts": True}}, "thinking", Thinking(show=True)),
        ({"thinkingConfig": {"thinkingBudget": -1}}, "thinking", None),
        ({"thinkingConfig": {"thinkingLevel": "HIGH"}}, "thinking", Thinking("high")),
        ({"responseMimeType": "application/json"}, "output", OutputFormat("object")),
        ({"responseMimeType": "text/plain"}, "output", None),
        ({"topK": 40.0}, "top_k", 40),
        ({"candidateCount": 3}, "n", 3),
        ({"responseLogprobs": True}, "logprobs", 0),
        ({"responseLogprobs": True, "logprobs": 3}, "logprobs", 3),
        ({"responseModalities": ["TEXT"]}, "output", None),
    ],
)
def test_settings_in_the_hubs_words(config: dict[str, Any], field: str, value: Any) -> None:
    assert getattr(hub(body_of(generationConfig=config)), field) == value


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (body_of(cachedContent="cachedContents/1"), "cachedContent"),
        (body_of(somethingNew=1), "somethingNew"),
        (body_of(safetySettings=[{"category": "a", "threshold": "OFF"}, {"category": "b", "threshold": "BLOCK_ONLY_HIGH"}]), "safetySettings[1]"),
        (body_of(tools=[{"googleSearch": {}}]), "tools[0].googleSearch"),
        (body_of(tools=[{"codeExecution": {}}]), "tools[0].codeExecution"),
        (body_of(tools=[{"functionDeclarations": [{"name": "f", "response": {}}]}]), "tools[0].functionDeclarations[0].response"),
        (body_of(toolConfig={"retrievalConfig": {}}), "toolConfig.retrievalConfig"),
        (body_of(toolConfig={"functionCallingConfig": {"mode": "WHATEVER"}}), "toolConfig.functionCallingConfig.mode"),
        (body_of(generationConfig={"newKnob": 3}), "generationConfig.newKnob"),
        (body_of(generationConfig={"mediaResolution": "MEDIA_RESOLUTION_LOW"}), "generationConfig.mediaResolution"),
        (body_of(generationConfig={"responseModalities": ["IMAGE"]}), "generationConfig.responseModalities"),
        (body_of(generationConfig={"responseMimeType": "text/x.enum"}), "generationConfig.responseMimeType"),
        (body_of({"text": "x", "partMetadata": {}}), "contents[0].parts[0].partMetadata"),
        (body_of({"executableCode": {}}), "contents[0].parts[0].executableCode"),
        (body_of({"toolCall": {}}), "contents[0].parts[0].toolCall"),
        (body_of({"inlineData": {"mimeType": "video/mp4", "data": "AAAA"}}), "contents[0].parts[0]"),
        (body_of({"fileData": {"mimeType": "video/mp4", "fileUri": "https://www.youtube.com/watch?v=1"}}), "contents[0].parts[0]"),
        (body_of({"fileData": {"mimeType": "image/png", "fileUri": "https://generativelanguage.googleapis.com/v1beta/files/a"}}), "contents[0].parts[0]"),
        (body_of({"fileData": {"mimeType": "image/png", "fileUri": "gs://bucket/a.png"}}), "contents[0].parts[0]"),
        (body_of({"fileData": {"fileUri": "https://[broken"}}), "contents[0].parts[0]"),
        (body_of({"fileData": {"fileUri": "https://example.com/unknown"}}), "contents[0].parts[0]"),
        (body_of(systemInstruction={"parts": [{"inlineData": {"mimeType": "image/png", "data": "AAAA"}}]}), "systemInstruction.parts[0]"),
        (
            {"contents": [said({"functionCall": {"name": "f", "willContinue": True}}, role="model")]},
            "contents[0].parts[0].functionCall.willContinue",
        ),
    ],
)
def test_what_the_hub_has_no_place_for_is_refused_by_its_path(body: dict[str, Any], param: str) -> None:
    request = decode(body)
    with pytest.raises(UnsupportedFeature) as caught:
        conversation_of(request)
    assert caught.value.param == param


@pytest.mark.parametrize(
    "contents",
    [
        [said({"functionResponse": {"name": "f", "response": {}}})],
        [said({"functionCall": {"name": "f"}}, role="model"), said({"functionResponse": {"name": "g", "response": {}}})],
        [said({"functionCall": {"name": "f"}}, role="user")],
        [said({"text": "x", "thought": True}, role="user")],
        [said({"functionResponse": {"name": "f"}}, role="model")],
    ],
)
def test_a_history_that_makes_no_sense_is_refused(contents: list[Any]) -> None:
    with pytest.raises(SchemaError):
        hub({"contents": contents})


def test_filters_that_are_off_ask_other_vendors_for_nothing() -> None:
    settings = [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}, {"category": "HARM_CATEGORY_HATE_SPEECH", "threshold": "off"}]
    assert hub(body_of(safetySettings=settings)) == hub(body_of())


def test_every_field_of_the_hub_that_this_dialect_can_say_has_a_name_in_it() -> None:
    unsaid = {"dialect", "left_out", "logit_bias", "verbosity", "user", "cache_key"}
    assert FIELD_NAMES.keys() == set(ConversationRequest.__struct_fields__) - unsaid | {"output.kind"}


# --- from the hub ----------------------------------------------------------------------------------------------------


def ask(*messages: Message, **fields: Any) -> ConversationRequest:
    return ConversationRequest(Dialect.OPENAI_CHAT, "public", False, 100, messages or (Message("user", (Text("Hello"),)),), **fields)


def encoded(request: ConversationRequest) -> tuple[dict[str, Any], tuple[str, ...]]:
    made = encode_conversation(request, Quirks.NONE)
    assert made.suffix == b""
    n = request.n
    assert reread(made.prefix) == AskedFor("", request.max_tokens, n, None)
    return json.loads(made.prefix), made.dropped


def test_a_plain_request_of_another_dialect() -> None:
    body, dropped = encoded(ask(system=(Text("Be brief."),), temperature=0.5, n=2, stop=("x",), seed=7))
    assert body == {
        "contents": [{"role": "user", "parts": [{"text": "Hello"}]}],
        "systemInstruction": {"parts": [{"text": "Be brief."}]},
        "generationConfig": {"maxOutputTokens": 100, "candidateCount": 2, "temperature": 0.5, "stopSequences": ["x"], "seed": 7},
    }
    assert dropped == ()


def test_the_first_call_of_a_turn_from_another_vendor_gets_the_signature_that_google_documents() -> None:
    calls = (ToolCall("a", "f", '{"x": 1}'), ToolCall("b", "f", "{}"))
    results = (ToolResult("b", "", (Text("two"),)), ToolResult("a", "f", (Text("one"), Text("more")), is_error=True))
    body, dropped = encoded(ask(Message("user", (Text("?"),)), Message("assistant", (Text("I look."), *calls)), Message("user", results)))
    assert body["contents"][1]["parts"] == [
        {"text": "I look."},
        {"functionCall": {"id": "a", "name": "f", "args": {"x": 1}}, "thoughtSignature": FOREIGN_SIGNATURE},
        {"functionCall": {"id": "b", "name": "f", "args": {}}},
    ]
    assert body["contents"][2]["parts"] == [
        {"functionResponse": {"id": "b", "name": "f", "response": {"output": "two"}}},
        {"functionResponse": {"id": "a", "name": "f", "response": {"error": ["one", "more"]}}},
    ]
    assert dropped == ()


def test_googles_own_signatures_go_back_and_others_do_not() -> None:
    mine = (Reasoning("Hm.", "c2ln", signer=G), Reasoning(signature="b25l", signer=G), ToolCall("a", "f", "{}", "Y2FsbA=="))
    body, dropped = encoded(ask(Message("user", (Text("?"),)), Message("assistant", (*mine, Reasoning("Hm.", "x", signer=Dialect.ANTHROPIC_MESSAGES)))))
    assert body["contents"][1]["parts"] == [
        {"text": "Hm.", "thought": True, "thoughtSignature": "c2ln"},
        {"text": "", "thoughtSignature": "b25l"},
        {"functionCall": {"id": "a", "name": "f", "args": {}}, "thoughtSignature": "Y2FsbA=="},
    ]
    assert dropped == ("thinking",)


def test_neighbours_of_one_role_are_one_turn_and_a_turn_of_foreign_thoughts_is_none() -> None:
    thought = Message("assistant", (Reasoning("Hm."),))
    body, dropped = encoded(ask(Message("user", (Text("a"),)), thought, Message("user", (Text("b"),)), Message("assistant", (Refusal("No."),))))
    assert body["contents"] == [said({"text": "a"}, {"text": "b"}), said({"text": "No."}, role="model")]
    assert dropped == ("thinking",)


def test_media_leave_as_data_or_as_addresses_that_google_fetches() -> None:
    parts = (
        Image(media_type="image/png", data="AAAA", detail="high"),
        Image(url="https://example.com/a.JPG"),
        Image(url="https://example.com/what"),
        Document(media_type="application/pdf", data="AAAA", title="t"),
        Document(media_type="text/plain", text="hé"),
        Audio("audio/wav", "AAAA"),
    )
    body, dropped = encoded(ask(Message("user", parts)))
    assert body["contents"][0]["parts"] == [
        {"inlineData": {"mimeType": "image/png", "data": "AAAA"}},
        {"fileData": {"fileUri": "https://example.com/a.JPG", "mimeType": "image/jpeg"}},
        {"fileData": {"fileUri": "https://example.com/what"}},
        {"inlineData": {"mimeType": "application/pdf", "data": "AAAA"}},
        {"inlineData": {"mimeType": "text/plain", "data": "aMOp"}},
        {"inlineData": {"mimeType": "audio/wav", "data": "AAAA"}},
    ]
    assert dropped == ("detail", "title")


@pytest.mark.parametrize(
    ("choice", "calling"),
    [
        (ToolChoice("auto"), {"mode": "AUTO"}),
        (ToolChoice("none"), {"mode": "NONE"}),
        (ToolChoice("required"), {"mode": "ANY"}),
        (ToolChoice("named", ("f",)), {"mode": "ANY", "allowedFunctionNames": ["f"]}),
        (ToolChoice("auto", ("f",)), {"mode": "VALIDATED", "allowedFunctionNames": ["f"]}),
    ],
)
def test_tool_choice_in_geminis_words(choice: ToolChoice, calling: dict[str, Any]) -> None:
    body, dropped = encoded(ask(tools=(Tool("f", "d", {"type": "object"}, strict=True),), tool_choice=choice))
    assert body["toolConfig"] == {"functionCallingConfig": calling}
    assert body["tools"] == [{"functionDeclarations": [{"name": "f", "description": "d", "parametersJsonSchema": {"type": "object"}}]}]
    assert dropped == ("strict",)


@pytest.mark.parametrize(
    ("thinking", "config"),
    [
        (Thinking("none"), {"thinkingBudget": 0}),
        (Thinking("minimal"), {"thinkingBudget": 1024}),
        (Thinking("medium"), {"thinkingBudget": 8192}),
        (Thinking("xhigh"), {"thinkingBudget": 24576}),
        (Thinking(budget=5000, show=True), {"thinkingBudget": 5000, "includeThoughts": True}),
        (Thinking(show=False), {"includeThoughts": False}),
        (Thinking(), None),
    ],
)
def test_thinking_in_geminis_words(thinking: Thinking, config: dict[str, Any] | None) -> None:
    assert encoded(ask(thinking=thinking))[0]["generationConfig"].get("thinkingConfig") == config


def test_structured_output_in_geminis_words() -> None:
    schema = {"type": "object", "$defs": {"a": {"type": "string"}}, "properties": {"x": {"$ref": "#/$defs/a"}}}
    body, dropped = encoded(ask(output=OutputFormat("schema", "n", "d", schema, True)))
    assert body["generationConfig"] == {"maxOutputTokens": 100, "responseMimeType": "application/json", "responseJsonSchema": schema}
    assert dropped == ("output.description",)
    assert encoded(ask(output=OutputFormat("object")))[0]["generationConfig"] == {"maxOutputTokens": 100, "responseMimeType": "application/json"}


def test_hints_are_left_out_and_reported() -> None:
    hints: dict[str, Any] = {"user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "flex", "cache_key": "k", "verbosity": "low", "seed": 2**40}
    body, dropped = encoded(ask(**hints, system=(Text("s", cache=True),)))
    assert set(dropped) == {*hints, "cache"}
    assert body["generationConfig"] == {"maxOutputTokens": 100}


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (ask(logit_bias={"1": 1.0}), "logit_bias"),
        (ask(logprobs=0), "logprobs"),
        (ask(parallel_tool_calls=False, tools=(Tool("f"),)), "parallel_tool_calls"),
        (ask(stop=("a",) * 6), "stop"),
        (ask(thinking=Thinking("extreme")), "thinking"),
        (ask(Message("user", (Image(url="http://example.com/a.png", at="here"),))), "here"),
        (ask(Message("user", (Image(url="file:///etc/passwd"),))), "messages"),
        (ask(Message("user", (Document(media_type="application/pdf", data="AAAA", citations=True, at="there"),))), "there"),
        (ask(Message("user", (ToolResult("a", "", (Text("x"),), at="lost"),))), "lost"),
        (ask(Message("assistant", (ToolCall("a", "f", "[1]", at="list"),))), "list"),
        (ask(Message("assistant", (ToolCall("a", "f", '{"x":', at="cut"),))), "cut"),
        (ask(Message("assistant", (Reasoning("Hm."),))), "messages"),
    ],
)
def test_what_gemini_cannot_be_asked_is_refused(request_: ConversationRequest, param: str) -> None:
    with pytest.raises(UnsupportedFeature) as caught:
        encode_conversation(request_, Quirks.NONE)
    assert caught.value.param == param


SAID: frozenset[Feature] = frozenset(
    {"system", "tools", "tool_result_errors", "images_base64", "images_url", "documents_base64", "documents_url", "audio", "reasoning"}
)
SETTINGS: dict[str, st.SearchStrategy[Any]] = {
    "n": st.integers(1, 8),
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0, 1),
    "top_k": st.integers(1, 100),
    "stop": st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=5).map(tuple),
    "seed": st.integers(-(2**31), 2**31 - 1),
    "presence_penalty": st.floats(-2, 1.9),
    "frequency_penalty": st.floats(-2, 1.9),
    "thinking": st.builds(Thinking, budget=st.integers(0, 10000), show=st.none() | st.booleans()),
    "output": st.sampled_from([OutputFormat("object"), OutputFormat("schema", schema={"type": "object"})]),
}


def comparable(request: ConversationRequest) -> Any:
    """What meaning is compared by: JSON by its value, without paths, and what one dialect says in two ways."""

    def plain(part: Any) -> Any:
        if isinstance(part, ToolCall):
            signature = "" if part.signature == FOREIGN_SIGNATURE else part.signature
            return ("call", part.id, part.name, json.dumps(json.loads(part.arguments), sort_keys=True), signature)
        if isinstance(part, ToolResult):
            texts = [text.text for text in part.content if isinstance(text, Text)]
            key = "error" if part.is_error else "output"
            said = texts[0] if len(texts) == 1 else json.dumps({key: texts})
            return ("result", part.call_id, part.name, json.loads(said) if len(texts) > 1 or said.startswith('{"' + key) else said, part.is_error)
        if isinstance(part, Document):
            return Document(media_type=part.media_type, data=part.data, url=part.url)
        if isinstance(part, Image):
            return Image(media_type=part.media_type or "image/" + ("png" if ".png" in part.url else "jpeg"), data=part.data, url=part.url)
        return Audio(part.media_type, part.data) if isinstance(part, Audio) else part

    choice = request.tool_choice
    return (
        [(message.role, [plain(part) for part in message.parts]) for message in request.messages],
        request.system,
        request.tools,
        choice,
        request.max_tokens,
        *(getattr(request, name) for name in SETTINGS),
    )


@given(requests(G, SAID, signer=G, settings=SETTINGS))
def test_what_is_encoded_decodes_to_the_same(request: ConversationRequest) -> None:
    made = encode_conversation(request, Quirks.NONE)
    assert not set(made.dropped) - {"title"}
    read = conversation_of(decode(made.prefix))
    assert comparable(read) == comparable(request)


# --- counting --------------------------------------------------------------------------------------------------------


def count(body: dict[str, Any]) -> dict[str, Any]:
    request = decode_count(json.dumps(body).encode(), model="public")
    assert (request.max_tokens, request.n, request.stream) == (0, 1, False)
    assert request.estimate > 0
    made = encode_count_same(request, Quirks.NONE)
    assert made.suffix == b""
    assert reread_count(made.prefix) == AskedFor("", 0, 1, None)
    left: dict[str, Any] = json.loads(made.prefix)
    return left


def test_contents_are_counted_as_they_are() -> None:
    assert count(body_of()) == body_of()


def test_a_whole_request_is_counted_without_naming_its_model() -> None:
    whole = body_of(systemInstruction={"parts": [{"text": "Be brief."}]}, tools=[{"functionDeclarations": [{"name": "f"}]}])
    expected = {
        "contents": [said({"text": "Be brief."}, {"text": '{"functionDeclarations":[{"name":"f"}]}'}), *whole["contents"]],
    }
    assert count({"generateContentRequest": {"model": "models/public", **whole}}) == expected
    assert count({"generate_content_request": {"model": "public", **whole}}) == expected
    assert count({"model": "models/public", **whole}) == expected
    read = counted_of(decode_count(json.dumps({"generateContentRequest": whole}).encode(), model="public"))
    assert (read.system, read.tools, read.messages) == ((Text("Be brief."),), (Tool("f"),), (Message("user", (Text("Hello."),)),))
    assert json.loads(encode_count(read, Quirks.NONE).prefix)["contents"][0]["parts"][0] == {"text": "Be brief."}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "contents"),
        ({"contents": body_of()["contents"], "generateContentRequest": body_of()}, "contents"),
        ({"generateContentRequest": body_of(model="models/other")}, "generateContentRequest.model"),
        ({"generateContentRequest": {"model": "models/public"}}, "generateContentRequest.contents"),
        ({"generateContentRequest": {}, "generate_content_request": {}}, "generateContentRequest"),
        (body_of(model="other"), "model"),
    ],
)
def test_a_count_that_makes_no_sense_is_refused(body: dict[str, Any], param: str) -> None:
    with pytest.raises(SchemaError) as caught:
        count(body)
    assert caught.value.param == param


def test_a_count_is_read_and_written() -> None:
    assert decode_count_answer(b'{"totalTokens": 31, "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 31}]}') == 31
    assert decode_count_answer(encode_count_answer(12)) == 12
    verify_count_answer(encode_count_answer(12))


def test_a_mark_that_is_spelt_with_escapes_never_reaches_google_either() -> None:
    mark = tag_of(Reasoning("Hm.", "c2ln", signer=Dialect.ANTHROPIC_MESSAGES))
    parts = [{"text": "Hm.", "thought": True}, {"text": "", "thoughtSignature": mark}, {"text": "Yes."}]
    turns = [{"role": "user", "parts": [{"text": "Hi"}]}, {"role": "model", "parts": parts}, {"role": "user", "parts": [{"text": "Go on."}]}]
    body = json.dumps({"contents": turns}).encode().replace(mark[:4].encode(), "".join(f"\\u{ord(letter):04x}" for letter in mark[:4]).encode())
    assert mark.encode() not in body and json.loads(body)["contents"] == turns
    request = decode_gemini(body, model="m", stream=False, max_tokens_cap=100, on_excess="reject")
    left = json.loads(encode_same(request, Quirks.NONE).prefix)["contents"][1]["parts"]
    assert left == [{"text": "Yes."}]
