"""Responses requests in the hub's words and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliproxy.dialects import Dialect, Quirks
from cliproxy.errors import SchemaError, UnsupportedFeature
from cliproxy.translators.conversation import (
    Audio,
    Citation,
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
from cliproxy.translators.openai_responses.decode import decode_responses
from cliproxy.translators.openai_responses.encode import encode_conversation
from cliproxy.translators.openai_responses.request import ResponsesRequest
from cliproxy.translators.openai_responses.to_hub import FIELD_NAMES, conversation_of
from translators.hub_strategies import Feature, arguments, requests, texts, visible_texts

VECTORS = Path(__file__).parents[1] / "vectors" / "openai_responses"
REQUESTS = {path.stem: json.loads(path.read_text())["body"] for path in sorted(VECTORS.glob("request_*.json"))}
RESPONSES = Dialect.OPENAI_RESPONSES
PNG = "data:image/png;base64,AAAA"
GRAPH = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}, "strict": False}


def decode(state: bool = False, **fields: Any) -> ResponsesRequest:
    body = json.dumps({"model": "m", "input": "Hello.", **fields}).encode()
    return decode_responses(body, max_tokens_cap=4096, on_excess="reject", allow_provider_state=state)


def hub(**fields: Any) -> ConversationRequest:
    return conversation_of(decode(**fields))


def sent(request: ConversationRequest, quirks: Quirks = Quirks.NONE) -> dict[str, Any]:
    encoded = encode_conversation(request, quirks)
    body: dict[str, Any] = json.loads(encoded.prefix + b'"up"' + encoded.suffix)
    return body


def again(request: ConversationRequest) -> ConversationRequest:
    """What a provider of this dialect reads of `request`."""
    body = json.dumps({**sent(request), "model": request.model}).encode()
    return conversation_of(decode_responses(body, max_tokens_cap=10**9, on_excess="reject", allow_provider_state=False))


def plain(*messages: Message, **fields: Any) -> ConversationRequest:
    return ConversationRequest(RESPONSES, "m", False, 100, messages or (Message("user", (Text("Hello."),)),), **fields)


# --- from the client ---


def test_items_keep_their_order_and_neighbours_of_one_side_are_one_message() -> None:
    request = hub(
        instructions="be brief",
        input=[
            {"role": "developer", "content": "no lists"},
            {"role": "user", "content": "a"},
            {"role": "user", "content": [{"type": "input_text", "text": "b"}, {"type": "input_image", "image_url": PNG, "detail": "high"}]},
            {
                "type": "reasoning",
                "id": "rs_1",
                "summary": [{"type": "summary_text", "text": "s"}, {"type": "summary_text", "text": "t"}],
                "encrypted_content": "gA",
            },
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "c"}]},
            {"type": "function_call", "call_id": "k", "name": "f", "arguments": '{"x": 1}'},
            {"type": "function_call_output", "call_id": "k", "output": "d"},
            {"role": "user", "content": "e"},
            {"role": "assistant", "content": "g"},
        ],
    )
    assert request.system == (Text("be brief"), Text("no lists"))
    assert request.messages == (
        Message("user", (Text("a"), Text("b"), Image("image/png", "AAAA", detail="high", at="input[2].content[1]"))),
        Message("assistant", (Reasoning("s\n\nt", "gA", signer=RESPONSES, id="rs_1"), Text("c"), ToolCall("k", "f", '{"x": 1}', at="input[5]"))),
        Message("user", (ToolResult("k", "f", (Text("d"),), at="input[6]"), Text("e"))),
        Message("assistant", (Text("g"),)),
    )


def test_settings_have_their_places() -> None:
    request = hub(
        tools=[{**GRAPH, "description": "d", "strict": True}],
        tool_choice={"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "f"}]},
        parallel_tool_calls=False,
        temperature=0.5,
        top_p=0.25,
        max_output_tokens=7,
        text={"format": {"type": "json_schema", "name": "n", "schema": {"a": 1}, "strict": True, "description": "x"}, "verbosity": "low"},
        reasoning={"effort": "high", "summary": "auto"},
        include=["message.output_text.logprobs"],
        top_logprobs=2,
        metadata={"a": "b"},
        user="u",
        safety_identifier="s",
        prompt_cache_key="k",
        service_tier="flex",
        store=True,
        stream=True,
    )
    assert request.tools == (Tool("f", "d", {"type": "object", "properties": {}}, True),)
    assert request.tool_choice == ToolChoice("required", ("f",))
    assert (request.parallel_tool_calls, request.temperature, request.top_p, request.max_tokens, request.stream) == (False, 0.5, 0.25, 7, True)
    assert request.output == OutputFormat("schema", "n", "x", {"a": 1}, True)
    assert (request.verbosity, request.thinking, request.logprobs) == ("low", Thinking(effort="high", show=True), 2)
    assert (request.metadata, request.user, request.cache_key, request.service_tier, request.store) == ({"a": "b"}, "s", "k", "flex", True)


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("tools[0]", {"tools": [{"type": "web_search"}]}),
        ("tools[1]", {"tools": [GRAPH, {"type": "custom", "name": "x"}]}),
        ("tools[0].defer_loading", {"tools": [{**GRAPH, "defer_loading": True}]}),
        ("tools[0].allowed_callers", {"tools": [{**GRAPH, "allowed_callers": ["programmatic"]}]}),
        ("tool_choice", {"tool_choice": {"type": "web_search_preview"}}),
        ("tool_choice.tools[0]", {"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "image_generation"}]}}),
        ("truncation", {"truncation": "auto"}),
        ("include[0]", {"include": ["something.new"]}),
        ("reasoning.mode", {"reasoning": {"mode": "pro"}}),
        ("reasoning.context", {"reasoning": {"context": "all_turns"}}),
        ("prompt_cache_options", {"prompt_cache_options": {"mode": "explicit"}}),
        ("moderation", {"moderation": {"model": "x"}}),
        ("input[0]", {"input": [{"type": "web_search_call", "id": "ws_1"}]}),
        ("input[0]", {"input": [{"type": "compaction", "encrypted_content": "x"}]}),
        ("input[0]", {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}", "namespace": "n"}]}),
        ("input[1]", {"input": [{"role": "user", "content": "x"}, {"role": "system", "content": "x"}]}),
        ("input[0].content[0]", {"input": [{"role": "developer", "content": [{"type": "input_image", "image_url": "https://x.example"}]}]}),
        ("input[0].content[0]", {"input": [{"role": "user", "content": [{"type": "output_text", "text": "x"}]}]}),
        ("input[0].content[0]", {"input": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "", "format": "new"}}]}]}),
        ("input[0].content[0]", {"input": [{"role": "assistant", "content": [{"type": "input_image", "image_url": PNG}]}]}),
        ("input[0].content[0].file_data", {"input": [{"role": "user", "content": [{"type": "input_file", "filename": "a.pdf", "file_data": "AAAA"}]}]}),
        ("input[0].content[0].image_url", {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png,AAAA"}]}]}),
        ("previous_response_id", {"previous_response_id": "resp_1"}),
        ("conversation", {"conversation": "c"}),
        ("input[0]", {"input": [{"type": "item_reference", "id": "x"}]}),
    ],
)
def test_what_the_hub_has_no_place_for_is_refused_with_its_path(param: str, fields: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedFeature) as caught:
        conversation_of(decode(state=True, **fields))
    assert caught.value.param == param


def test_a_signature_of_another_vendor_comes_back_to_its_thought_or_call() -> None:
    call = {"type": "function_call", "call_id": "k", "name": "f", "arguments": "{}"}
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "s"}], "encrypted_content": "cliproxy:anthropic_messages:signature:a:b"}
    hidden = {"type": "reasoning", "summary": [], "encrypted_content": "cliproxy:anthropic_messages:redacted:c"}
    of_call = {"type": "reasoning", "summary": [], "encrypted_content": "cliproxy:gemini_generate:call:d"}
    (message,) = hub(input=[thought, hidden, call, of_call]).messages
    assert message.parts == (
        Reasoning("s", "a:b", signer=Dialect.ANTHROPIC_MESSAGES),
        Reasoning(redacted="c", signer=Dialect.ANTHROPIC_MESSAGES),
        ToolCall("k", "f", "{}", "d", "input[2]"),
    )


@pytest.mark.parametrize(
    "text", ["cliproxy:", "cliproxy:x:signature:a", "cliproxy:anthropic_messages:new:a", "cliproxy:anthropic_messages:signature:", "cliproxy:a"]
)
def test_a_mark_that_is_none_of_ours_is_refused(text: str) -> None:
    with pytest.raises(SchemaError) as caught:
        hub(input=[{"type": "reasoning", "summary": [], "encrypted_content": text}])
    assert caught.value.param == "input[0].encrypted_content"


def test_a_calls_signature_without_its_call_is_refused() -> None:
    with pytest.raises(SchemaError):
        hub(input=[{"role": "user", "content": "x"}, {"type": "reasoning", "summary": [], "encrypted_content": "cliproxy:gemini_generate:call:d"}])


def test_every_field_name_is_one_of_the_clients() -> None:
    fields = set(ConversationRequest.__struct_fields__) | {"cache", "output.kind"}
    assert set(FIELD_NAMES) <= fields


# --- to a provider ---


def test_nothing_is_stored_and_tools_are_strict_only_where_it_was_said() -> None:
    body = sent(plain(tools=(Tool("f"), Tool("g", strict=True)), store=True))
    assert body["store"] is False
    assert [tool["strict"] for tool in body["tools"]] == [False, True]
    assert body["tools"][0]["parameters"] == {"type": "object", "properties": {}}
    assert encode_conversation(plain(store=True), Quirks.NONE).dropped == ("store",)


def test_encrypted_thoughts_are_asked_for_only_where_there_may_be_any() -> None:
    assert "include" not in sent(plain())
    assert "include" not in sent(plain(thinking=Thinking(effort="none")))
    assert sent(plain(thinking=Thinking(effort="low")))["include"] == ["reasoning.encrypted_content"]
    signed = Message("assistant", (Reasoning(redacted="g", signer=RESPONSES, id="rs_1"), Text("x")))
    body = sent(plain(signed))
    assert body["include"] == ["reasoning.encrypted_content"]
    assert body["input"][0] == {"type": "reasoning", "summary": [], "encrypted_content": "g", "id": "rs_1"}


@pytest.mark.parametrize(
    ("budget", "effort"), [(0, None), (1, "low"), (4096, "low"), (4097, "medium"), (16384, "medium"), (16385, "high"), (None, None), (-1, None)]
)
def test_a_budget_becomes_an_effort(budget: int | None, effort: str | None) -> None:
    request = plain(thinking=Thinking(budget=budget))
    assert sent(request).get("reasoning", {}).get("effort") == effort
    assert encode_conversation(request, Quirks.NONE).dropped == (() if budget is None else ("thinking",))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 2),
        ("stop", ("x",)),
        ("top_k", 5),
        ("presence_penalty", 0.5),
        ("frequency_penalty", -0.5),
        ("logit_bias", {"1": 5.0}),
        ("logprobs", 0),
    ],
)
def test_what_changes_answers_and_cannot_be_said_is_refused(field: str, value: Any) -> None:
    with pytest.raises(UnsupportedFeature) as caught:
        encode_conversation(plain(**{field: value}), Quirks.NONE)
    assert caught.value.param == field


@pytest.mark.parametrize(
    ("part", "at"),
    [
        (Audio("audio/wav", "AAAA", at="here"), "here"),
        (Document(text="plain", citations=True, at="here"), "here"),
        (Document(at="here"), "here"),
        (Document("application/pdf", "AAAA", citations=True, at="here"), "here"),
        (Audio("audio/wav", "AAAA"), "messages"),
    ],
)
def test_a_part_that_cannot_be_said_is_refused_with_its_place(part: Any, at: str) -> None:
    with pytest.raises(UnsupportedFeature) as caught:
        encode_conversation(plain(Message("user", (part,))), Quirks.NONE)
    assert caught.value.param == at


@pytest.mark.parametrize(("title", "name"), [("", "document.txt"), ("notes", "notes.txt"), ("notes.txt", "notes.txt")])
def test_a_document_of_text_is_a_text_file(title: str, name: str) -> None:
    back = again(plain(Message("user", (Document("text/plain", text="größer", title=title),))))
    assert back.messages[0].parts == (Document("text/plain", "Z3LDtsOfZXI=", title=name, at="input[0].content[0]"),)


def test_an_assistants_picture_is_refused() -> None:
    with pytest.raises(UnsupportedFeature):
        encode_conversation(plain(Message("assistant", (Image("image/png", "AAAA"),))), Quirks.NONE)


@pytest.mark.parametrize(
    ("request_", "dropped"),
    [
        (plain(seed=5), "seed"),
        (plain(user="u" * 65), "user"),
        (plain(cache_key="u" * 65), "cache_key"),
        (plain(metadata={"k": "v" * 513}), "metadata"),
        (ConversationRequest(Dialect.ANTHROPIC_MESSAGES, "m", False, 1, (Message("user", (Text("x"),)),), service_tier="standard_only"), "service_tier"),
        (plain(Message("user", (Text("x", cache=True),))), "cache"),
        (plain(system=(Text("x", cache=True),)), "cache"),
        (plain(tools=(Tool("f", cache=True),)), "cache"),
        (plain(Message("assistant", (Reasoning("x", "y", signer=Dialect.ANTHROPIC_MESSAGES), Text("a")))), "thinking"),
        (plain(Message("assistant", (Reasoning("x"), Text("a")))), "thinking"),
        (plain(Message("assistant", (ToolCall("c", "f", "{}", "s"),))), "thinking"),
        (plain(Message("assistant", (Text("x", (Citation("https://x.example"),)),))), "messages"),
        (plain(Message("user", (ToolResult("c", "f", (Text("x"),), is_error=True, at="there"),))), "there"),
    ],
)
def test_a_harmless_hint_that_cannot_be_said_is_left_out_and_told(request_: ConversationRequest, dropped: str) -> None:
    encoded = encode_conversation(request_, Quirks.NONE)
    assert encoded.dropped == (dropped,)
    assert json.loads(encoded.prefix + b'"m"' + encoded.suffix)


@pytest.mark.parametrize("name", [name for name in REQUESTS if name != "request_logprobs"])
def test_a_vector_through_the_hub_and_back_keeps_its_meaning(name: str) -> None:
    body = json.dumps(REQUESTS[name]).encode()
    request = conversation_of(decode_responses(body, max_tokens_cap=4096, on_excess="reject", allow_provider_state=False))
    back = again(request)
    assert without_places(back) == without_places(request, store=False)


def without_places(request: ConversationRequest, **changed: Any) -> Any:
    """`request` without the parts' places, which differ between two spellings."""
    fields = {name: getattr(request, name) for name in request.__struct_fields__} | {"store": False} | changed
    fields["messages"] = [(message.role, [_without_place(part) for part in message.parts]) for message in request.messages]
    return fields


def _without_place(part: Any) -> Any:
    fields = {name: getattr(part, name) for name in part.__struct_fields__ if name != "at"}
    if isinstance(part, Document) and part.url:
        fields["media_type"] = ""  # the dialect does not tell what a link leads to
    if isinstance(part, ToolResult):
        fields["content"] = [_without_place(inner) for inner in part.content]
    return type(part), fields


FEATURES: frozenset[Feature] = frozenset(
    {"system", "tools", "tool_result_images", "images_base64", "images_url", "documents_base64", "documents_url", "reasoning", "redacted"}
)
SETTINGS: dict[str, st.SearchStrategy[Any]] = {
    "parallel_tool_calls": st.booleans(),
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0, 1),
    "output": st.just(OutputFormat("object"))
    | st.builds(OutputFormat, kind=st.just("schema"), name=st.just("n"), description=texts(0), schema=st.just({"type": "object"}), strict=st.booleans()),
    "thinking": st.builds(Thinking, effort=st.sampled_from(["minimal", "low", "high"]), show=st.just(True) | st.none()),
    "verbosity": st.sampled_from(["low", "high"]),
    "user": texts(1),
    "metadata": st.dictionaries(texts(1), texts(0), min_size=1, max_size=3),
    "service_tier": st.just("flex"),
    "cache_key": texts(1),
}


@given(requests(RESPONSES, FEATURES, signer=RESPONSES, settings=SETTINGS, strict=True))
def test_what_the_dialect_can_say_comes_back(request: ConversationRequest) -> None:
    request = _strictness_said(request)
    assert without_places(again(request)) == without_places(request)


def _strictness_said(request: ConversationRequest) -> ConversationRequest:
    fields = {name: getattr(request, name) for name in request.__struct_fields__}
    fields["tools"] = tuple(Tool(tool.name, tool.description, tool.parameters, tool.strict is True) for tool in request.tools)
    return ConversationRequest(**fields)


@given(requests(Dialect.ANTHROPIC_MESSAGES))
def test_any_request_is_encoded_or_unsupported(request: ConversationRequest) -> None:
    try:
        encoded = encode_conversation(request, Quirks.STATELESS)
    except UnsupportedFeature:
        return
    json.loads(encoded.prefix + b'"m"' + encoded.suffix)


@given(
    st.lists(
        visible_texts().map(Refusal) | visible_texts().map(Text) | st.builds(ToolCall, id=st.just("c"), name=st.just("f"), arguments=arguments()), min_size=1
    )
)
def test_an_assistants_parts_come_back_in_any_order(parts: list[Any]) -> None:
    request = plain(Message("user", (Text("x"),)), Message("assistant", tuple(parts)))
    assert without_places(again(request)) == without_places(request)
