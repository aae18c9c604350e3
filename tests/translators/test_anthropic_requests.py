"""Messages requests: what is taken, what is refused, what leaves for the same dialect, and what they say in the hub's words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliproxy.dialects import Dialect, Quirks
from cliproxy.errors import ClientError, SchemaError, UnsupportedFeature
from cliproxy.metering.anthropic_messages import reread
from cliproxy.metering.usage import AskedFor
from cliproxy.translators.anthropic_messages.decode import decode_messages
from cliproxy.translators.anthropic_messages.encode import encode_same
from cliproxy.translators.anthropic_messages.request import MessagesRequest
from cliproxy.translators.anthropic_messages.to_hub import FIELD_NAMES, conversation_of
from cliproxy.translators.conversation import (
    Citation,
    ConversationRequest,
    Document,
    Image,
    Message,
    OutputFormat,
    Reasoning,
    Text,
    Thinking,
    ToolCall,
    ToolChoice,
    ToolResult,
)

VECTORS = Path(__file__).parents[1] / "vectors" / "anthropic_messages"
LOADED = {path.stem: json.loads(path.read_text()) for path in sorted(VECTORS.glob("*.json"))}
REQUESTS = {name: vector["body"] for name, vector in LOADED.items() if vector["kind"] == "request"}
CANARY = "a prompt nobody may quote"
CAP = 4096


def decode(body: dict[str, Any] | bytes, *, cap: int = CAP, on_excess: Any = "reject") -> MessagesRequest:
    given = body if isinstance(body, bytes) else json.dumps(body).encode()
    return decode_messages(given, max_tokens_cap=cap, on_excess=on_excess, allow_provider_state=True)


def body_of(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "max_tokens": 100, "messages": [{"role": "user", "content": "Hello."}], **fields}


def final(request: MessagesRequest, model: str = "upstream-model") -> bytes:
    encoded = encode_same(request, Quirks.NONE)
    assert encoded.dropped == ()
    return encoded.prefix + json.dumps(model).encode() + encoded.suffix


def of(content: Any, role: str = "user") -> list[dict[str, Any]]:
    return [{"role": role, "content": content}]


# --- the same dialect ------------------------------------------------------------------------------------------------


def test_every_feature_that_the_dialect_has_is_in_a_request_vector() -> None:
    features = {vector["feature"] for vector in LOADED.values() if vector["kind"] == "request"}
    assert features >= {
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
        "reasoning",
        "reasoning_signature",
        "structured_output",
        "stop_sequences",
        "citations",
        "sampling",
    }
    assert {vector["name"] for vector in LOADED.values()} == set(LOADED)


@pytest.mark.parametrize("name", REQUESTS)
def test_what_leaves_is_the_request_with_the_upstreams_model(name: str) -> None:
    sent = REQUESTS[name]
    request = decode(sent)
    assert json.loads(final(request)) == {**sent, "model": "upstream-model"}
    assert reread(final(request)) == AskedFor("upstream-model", sent["max_tokens"], 1, sent.get("stream") is True)
    again = decode(final(request, request.model))
    assert (again.model, again.stream, again.max_tokens, again.rest) == (request.model, request.stream, request.max_tokens, request.rest)


@pytest.mark.parametrize("name", REQUESTS)
def test_on_vertex_the_path_has_the_model_and_the_body_the_version(name: str) -> None:
    encoded = encode_same(decode(REQUESTS[name]), Quirks.VERTEX)
    assert encoded.suffix == b"" and encoded.prefix.startswith(b'{"anthropic_version":"vertex-2023-10-16",')
    left = json.loads(encoded.prefix)
    assert left.pop("anthropic_version") == "vertex-2023-10-16"
    assert {**left, "model": REQUESTS[name]["model"]} == REQUESTS[name]
    assert reread(encoded.prefix).model == ""


def test_unknown_fields_and_the_vendors_own_tools_and_blocks_stay() -> None:
    search = {"type": "web_search_20250305", "name": "web_search", "max_uses": 3, "user_location": {"type": "approximate", "city": "Lima"}}
    toolset = {"type": "browser_toolset_20260801", "configs": {"click": {"enabled": False}}}
    said = [
        {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "peaks"}},
        {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": [{"type": "web_search_result", "url": "https://example.com"}]},
        {"type": "code_execution_tool_result", "tool_use_id": "srvtoolu_2", "content": {"type": "code_execution_result", "stdout": ""}},
        {"type": "text", "text": "Huascarán.", "brand_new": True},
    ]
    messages = [*of("Hello."), *of(said, "assistant"), *of("Go on.")]
    body = body_of(tools=[search, toolset], messages=messages, brand_new_field={"x": [1]}, speed="standard", output_config={"new": 1})
    assert json.loads(final(decode(body), "m")) == body


def test_a_request_may_only_fill_the_cache() -> None:
    request = decode(body_of(max_tokens=0))
    assert request.max_tokens == 0 and reread(final(request)).max_tokens == 0


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "no cap": ({"model": "m", "messages": of("Hi")}, "max_tokens", "missing_field"),
    "a cap above the operator's": (body_of(max_tokens=CAP + 1), "max_tokens", "max_tokens_exceeded"),
    "a negative cap": (body_of(max_tokens=-1), "max_tokens", "invalid_type"),
    "a cap that is a text": (body_of(max_tokens="100"), "max_tokens", "invalid_type"),
    "no model": ({"max_tokens": 1, "messages": of("Hi")}, "model", "missing_field"),
    "an empty model": (body_of(model=""), "model", "invalid_type"),
    "no messages": (body_of(messages=[]), "messages", "invalid_type"),
    "an unknown role": (body_of(messages=of("Hi", "tool")), "messages[0].role", "invalid_type"),
    "an unknown block": (body_of(messages=of([{"type": "hologram"}])), "messages[0].content[0].type", "invalid_type"),
    "a block of the other role": (
        body_of(messages=of([{"type": "image", "source": {"type": "url", "url": "x"}}], "assistant")),
        "messages[0].content[0].type",
        "",
    ),
    "a call by the user": (body_of(messages=of([{"type": "tool_use", "id": "a", "name": "b", "input": {}}])), "messages[0].content[0].type", ""),
    "input that is a text": (
        body_of(messages=of([{"type": "tool_use", "id": "a", "name": "b", "input": "{}"}], "assistant")),
        "messages[0].content[0].input",
        "",
    ),
    "an image of an unknown source": (body_of(messages=of([{"type": "image", "source": {"type": "ftp"}}])), "messages[0].content[0].source.type", ""),
    "thoughts without a signature": (body_of(messages=of([{"type": "thinking", "thinking": CANARY}], "assistant")), "messages[0].content[0].signature", ""),
    "a temperature above 1": (body_of(temperature=1.5), "temperature", ""),
    "a temperature that is a text": (body_of(temperature=CANARY), "temperature", ""),
    "an unknown choice": (body_of(tool_choice={"type": "some"}), "tool_choice.type", ""),
    "a choice as a word": (body_of(tool_choice="auto"), "tool_choice", ""),
    "a tool without a name": (body_of(tools=[{"input_schema": {}}]), "tools[0].name", "missing_field"),
    "a tool without a schema": (body_of(tools=[{"name": "a"}]), "tools[0].input_schema", "missing_field"),
    "a tool of a kind with spaces": (body_of(tools=[{"type": "web search", "name": "a"}]), "tools[0].type", ""),
    "too many tools": (body_of(tools=[{"name": "a", "input_schema": {}}] * 1025), "tools", ""),
    "an unknown format": (body_of(output_config={"format": {"type": "xml"}}), "output_config.format.type", ""),
    "stop sequences as a text": (body_of(stop_sequences="END"), "stop_sequences", ""),
    "metadata that is a text": (body_of(metadata=CANARY), "metadata", ""),
    "a container": (body_of(container="container_1"), "container", "forbidden_field"),
    "tool servers": (body_of(mcp_servers=[{"url": "https://evil.example", "authorization_token": "t"}]), "mcp_servers", "forbidden_field"),
    "a tool server's tools": (body_of(tools=[{"type": "mcp_toolset", "mcp_server_name": "x"}]), "tools[0].type", "forbidden_field"),
    "a tool with its own key": (body_of(tools=[{"type": "web_search_20250305", "name": "web_search", "API-Key": "x"}]), "tools[0]", "forbidden_field"),
    "a region": (body_of(inference_geo="us"), "inference_geo", "forbidden_field"),
    "somebody else's account": (body_of(user_profile_id="u"), "user_profile_id", "forbidden_field"),
    "betas": (body_of(betas=["x"]), "betas", "forbidden_field"),
    "a version in the body": (body_of(anthropic_version="bedrock-2023-05-31"), "anthropic_version", "forbidden_field"),
    "a version in other letters": (body_of(**{"Anthropic-Version": "x"}), "anthropic_version", "forbidden_field"),
    "another host": (body_of(base_url="https://evil.example"), "base_url", "forbidden_field"),
    "fallbacks": (body_of(fallbacks=[{"model": "x"}]), "fallbacks", "forbidden_field"),
    "a second spelling": (body_of(**{"Max-Tokens": 10**6}), "max_tokens", "ambiguous_field"),
    "another server's cap": (body_of(max_output_tokens=10**6), "max_output_tokens", "forbidden_field"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_names_its_field_and_never_the_prompt(name: str) -> None:
    body, param, code = REFUSED[name]
    with pytest.raises(SchemaError) as caught:
        decode(body)
    assert (caught.value.param or "").removesuffix(".type") == param.removesuffix(".type"), str(caught.value)
    assert not code or caught.value.code == code
    assert CANARY not in str(caught.value)


def test_a_cap_above_the_operators_is_lowered_and_the_budget_with_it() -> None:
    request = decode(body_of(max_tokens=9000, thinking={"type": "enabled", "budget_tokens": 8000}), on_excess="clamp")
    assert (request.max_tokens, request.rest["max_tokens"], request.rest["thinking"]["budget_tokens"]) == (CAP, CAP, CAP - 1)
    kept = decode(body_of(max_tokens=9000, thinking={"type": "enabled", "budget_tokens": 2000}), on_excess="clamp")
    assert kept.rest["thinking"]["budget_tokens"] == 2000
    with pytest.raises(SchemaError, match="Thinking needs more") as caught:
        decode(body_of(max_tokens=9000, thinking={"type": "enabled", "budget_tokens": 8000}), cap=1024, on_excess="clamp")
    assert caught.value.param == "thinking.budget_tokens"


def test_a_picture_counts_as_a_picture_and_not_as_its_bytes() -> None:
    data = "A" * 400_000
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}
    plain = decode(body_of(messages=of([image])))
    within = decode(body_of(messages=of([{"type": "tool_result", "tool_use_id": "a", "content": [image]}])))
    paper = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": data}}
    assert 1000 < plain.estimate < 1200 and 1000 < within.estimate < 1200
    assert 25_000 < decode(body_of(messages=of([paper]))).estimate < 25_200


@given(st.binary(max_size=200) | st.sampled_from([b"null", b"[]", b'{"a":NaN}', b'{"model":"\\ud800"}', b"[" * 5000, b'{"a":' * 5000]))
def test_garbage_is_the_clients_fault_and_nothing_else(body: bytes) -> None:
    with pytest.raises(ClientError):
        decode(body)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(sorted(FIELD_NAMES.values())), inner),
    )
)
def test_any_value_in_any_field_is_taken_or_refused(value: Any) -> None:
    for field in ("messages", "tools", "system", "thinking", "output_config", "tool_choice", "cache_control"):
        try:
            conversation_of(decode(body_of(**{field: value})))
        except ClientError:
            pass


@pytest.mark.parametrize(
    "body",
    [b"{}", b'{"max_tokens":-1}', b'{"max_tokens":null}', b"[]", b"", b"\xff", b'{"max_tokens":1,"model":3}', b'{"model":"m"}', b"[" * 9999],
)
def test_final_bytes_without_a_cap_are_not_sent(body: bytes) -> None:
    with pytest.raises(SchemaError):
        reread(body)


# --- in the hub's words ----------------------------------------------------------------------------------------------


def hub(name: str) -> ConversationRequest:
    return conversation_of(decode(REQUESTS[name]))


def user(*parts: Any) -> tuple[Message, ...]:
    return (Message("user", parts),)


CALL = ToolCall("toolu_01A", "get_weather", '{"place":"Cusco"}', at="messages[1].content[0]")
AT = "messages[0].content[0]"
HUB: dict[str, tuple[str, Any]] = {
    "text_blocks": ("messages", user(Text("Grüße: «naïve» 日本 🏔️"), Text("Translate that."))),
    "system": ("system", (Text("Answer in one sentence."),)),
    "system_blocks": ("system", (Text("You know mountains."), Text("Answer in one sentence.", cache=True))),
    "prefill": ("messages", (*user(Text("Give me a JSON object with a name.")), Message("assistant", (Text("{"),)))),
    "tool_choice_auto": ("tool_choice", ToolChoice("auto")),
    "tool_choice_any": ("tool_choice", ToolChoice("required")),
    "tool_choice_tool": ("tool_choice", ToolChoice("named", ("get_weather",))),
    "tool_choice_none": ("tool_choice", ToolChoice("none")),
    "one_call_at_a_time": ("parallel_tool_calls", False),
    "document_pdf": (
        "messages",
        user(Document(media_type="application/pdf", data="JVBERi0xLjQKJSVFT0YK", title="report.pdf", at=AT), Text("Sum this up.")),
    ),
    "document_url": ("messages", user(Document(media_type="application/pdf", url="https://example.com/report.pdf", at=AT), Text("Sum this up."))),
    "document_cited": (
        "messages",
        user(Document(media_type="text/plain", text="Huascarán is 6,768 m high.", title="peaks.txt", citations=True, at=AT), Text("Sum this up.")),
    ),
    "image_url": ("messages", user(Image(url="https://example.com/ant.jpg", at=AT), Text("What is this?"))),
    "thinking_budget": ("thinking", Thinking(budget=2048, show=True)),
    "thinking_adaptive": ("thinking", Thinking("medium", show=True)),
    "thinking_disabled": ("thinking", Thinking(budget=0)),
    "effort_max": ("thinking", Thinking("xhigh")),
    "stop_sequences": ("stop", ("\n\nUser:", "END")),
    "user_and_tier": ("service_tier", "default"),
    "cache": ("messages", user(Text("What is the tallest mountain of Peru?", cache=True))),
    "json_schema": ("output", OutputFormat("schema", schema=REQUESTS["json_schema"]["output_config"]["format"]["schema"])),
}


@pytest.mark.parametrize("name", HUB)
def test_a_vector_in_the_hubs_words(name: str) -> None:
    field, expected = HUB[name]
    assert getattr(hub(name), field) == expected


def test_every_vector_has_hub_words_and_its_settings_stay() -> None:
    for name, body in REQUESTS.items():
        request = hub(name)
        assert request.dialect is Dialect.ANTHROPIC_MESSAGES
        assert (request.model, request.max_tokens, request.stream) == (body["model"], body["max_tokens"], body.get("stream", False))
        assert (request.temperature, request.top_p, request.top_k) == (body.get("temperature"), body.get("top_p"), body.get("top_k"))
        assert [tool.name for tool in request.tools] == [tool["name"] for tool in body.get("tools", ())]
    assert hub("user_and_tier").user == "u-5f2a"
    assert hub("tools_strict").tools[0].strict is True


def test_a_result_knows_the_name_of_its_call_and_thoughts_their_signer() -> None:
    messages = hub("thinking_in_a_tool_loop").messages
    assert messages[1].parts == (
        Reasoning("I need the weather.", "c2lnbmVk", signer=Dialect.ANTHROPIC_MESSAGES),
        Reasoning(redacted="aGlkZGVu", signer=Dialect.ANTHROPIC_MESSAGES),
        ToolCall("toolu_01A", "get_weather", '{"place":"Cusco"}', at="messages[1].content[2]"),
    )
    assert messages[2].parts == (ToolResult("toolu_01A", "get_weather", (Text("11 degrees"),), at="messages[2].content[0]"),)
    failed = hub("tool_result_error").messages[2].parts
    assert failed[0] == ToolResult("toolu_01A", "get_weather", (Text("The station does not answer."),), is_error=True, at="messages[2].content[0]")
    assert hub("tool_result_error").messages[1].parts == (CALL,)


def test_thoughts_that_nobody_signed_have_no_signer() -> None:
    block = {"type": "thinking", "thinking": "Hm.", "signature": ""}
    parts = conversation_of(decode(body_of(messages=[*of("Hi"), *of([block, {"type": "text", "text": "x"}], "assistant")]))).messages[1].parts
    assert parts == (Reasoning("Hm."), Text("x"))


def test_the_sources_of_a_text_in_the_history_are_kept() -> None:
    said = hub("citations_in_history").messages[1].parts[0]
    assert said == Text("It is 6,768 m high.", (Citation(cited="Huascarán is 6,768 m high.", document=0),))


def test_instructions_may_stand_before_the_first_turn_only() -> None:
    first = conversation_of(decode(body_of(system="A.", messages=[*of("B.", "system"), *of("Hi")])))
    assert first.system == (Text("A."), Text("B.")) and first.messages == user(Text("Hi"))
    with pytest.raises(UnsupportedFeature) as caught:
        conversation_of(decode(body_of(messages=[*of("Hi"), *of("B.", "system")])))
    assert caught.value.param == "messages[1].role"


def block(**fields: Any) -> dict[str, Any]:
    return body_of(messages=of([fields]))


TOOL = {"name": "a", "input_schema": {"type": "object"}}
UNTRANSLATED: dict[str, tuple[dict[str, Any], str]] = {
    "a tool of the vendor's": (body_of(tools=[TOOL, {"type": "web_search_20250305", "name": "web_search"}]), "tools[1]"),
    "a tool to be found later": (body_of(tools=[{**TOOL, "defer_loading": True}]), "tools[0].defer_loading"),
    "a tool with examples": (body_of(tools=[{**TOOL, "input_examples": [{"x": 1}]}]), "tools[0].input_examples"),
    "a tool for code": (body_of(tools=[{**TOOL, "allowed_callers": ["code_execution_20260120"]}]), "tools[0].allowed_callers"),
    "a search result": (block(type="search_result", source="s", title="t", content=[{"type": "text", "text": "x"}]), AT),
    "a file sent before": (block(type="image", source={"type": "file", "file_id": "file_1"}), f"{AT}.source"),
    "a document sent before": (block(type="document", source={"type": "file", "file_id": "file_1"}), f"{AT}.source"),
    "a document in pieces": (block(type="document", source={"type": "content", "content": [{"type": "text", "text": "x"}]}), f"{AT}.source"),
    "a document's context": (block(type="document", context="old", source={"type": "url", "url": "https://example.com"}), f"{AT}.context"),
    "an upload for code": (block(type="container_upload", file_id="file_1"), AT),
    "a reference in a result": (block(type="tool_result", tool_use_id="a", content=[{"type": "tool_reference", "tool_name": "x"}]), f"{AT}.content[0]"),
    "a call of the vendor's": (
        body_of(messages=[*of("Hi"), *of([{"type": "server_tool_use", "id": "a", "name": "web_search", "input": {}}], "assistant")]),
        "messages[1].content[0]",
    ),
    "a call by code": (
        body_of(
            messages=[*of("Hi"), *of([{"type": "tool_use", "id": "a", "name": "b", "input": {}, "caller": {"type": "code_execution_20260120"}}], "assistant")]
        ),
        "messages[1].content[0]",
    ),
    "a new way of thinking": (body_of(thinking={"type": "between_tools"}), "thinking.type"),
    "speed": (body_of(speed="fast"), "speed"),
    "a field of tomorrow": (body_of(context_management={"edits": []}), "context_management"),
    "filling the cache": (body_of(max_tokens=0), "max_tokens"),
}


@pytest.mark.parametrize("name", UNTRANSLATED)
def test_what_the_hub_has_no_place_for_is_refused_with_its_path_and_kept_for_the_same_dialect(name: str) -> None:
    body, param = UNTRANSLATED[name]
    request = decode(body)
    with pytest.raises(UnsupportedFeature) as caught:
        conversation_of(request)
    assert caught.value.param == param
    assert json.loads(final(request, "m")) == body


def test_every_field_that_a_client_can_set_has_its_own_name_for_it() -> None:
    assert set(FIELD_NAMES) <= set(ConversationRequest.__struct_fields__)
    assert FIELD_NAMES["stop"] == "stop_sequences" and FIELD_NAMES["output"] == "output_config.format"
