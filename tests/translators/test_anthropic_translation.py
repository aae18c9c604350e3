"""Requests of other dialects as Messages requests: what they say there, what is refused, what is left out and reported."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from cliproxy.dialects import Dialect, Quirks
from cliproxy.errors import ClientError, UnsupportedFeature
from cliproxy.metering.anthropic_messages import reread
from cliproxy.metering.usage import AskedFor
from cliproxy.translators.anthropic_messages.count import encode_count
from cliproxy.translators.anthropic_messages.decode import decode_messages
from cliproxy.translators.anthropic_messages.encode import encode_conversation
from cliproxy.translators.anthropic_messages.to_hub import conversation_of
from cliproxy.translators.conversation import (
    Audio,
    Citation,
    ConversationRequest,
    Document,
    Encoded,
    Image,
    Message,
    OutputFormat,
    Part,
    Reasoning,
    Refusal,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
)
from fakes import vendor_anthropic
from translators.hub_strategies import Feature, efforts, requests, schemas, texts

OURS = Dialect.ANTHROPIC_MESSAGES
HI = Message("user", (Text("Hi"),))
PING = Tool("ping", parameters={"type": "object", "properties": {}})
SAYABLE: frozenset[Feature] = frozenset(
    {
        "system",
        "tools",
        "tool_result_images",
        "tool_result_errors",
        "images_base64",
        "images_url",
        "documents_base64",
        "documents_url",
        "documents_text",
        "document_citations",
        "reasoning",
        "redacted",
        "cache",
    }
)


def asked(*messages: Message, **fields: Any) -> ConversationRequest:
    fields = {"max_tokens": 4096, "stream": False, **fields}
    return ConversationRequest(dialect=Dialect.OPENAI_CHAT, model="public", messages=messages or (HI,), **fields)


def final(encoded: Encoded) -> bytes:
    return encoded.prefix + b'"upstream"' + encoded.suffix


def written(request: ConversationRequest, quirks: Quirks = Quirks.NONE) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(final(encode_conversation(request, quirks)))
    return body


def dropped(request: ConversationRequest) -> tuple[str, ...]:
    return encode_conversation(request, Quirks.NONE).dropped


def refused(request: ConversationRequest) -> str | None:
    with pytest.raises(UnsupportedFeature) as caught:
        encode_conversation(request, Quirks.NONE)
    return caught.value.param


# --- properties ------------------------------------------------------------------------------------------------------

SETTINGS: dict[str, st.SearchStrategy[Any]] = {
    "temperature": st.floats(0, 0.99),
    "top_k": st.integers(0, 100),
    "stop": st.lists(texts().map(lambda text: text + "."), min_size=1, max_size=3).map(tuple),
    "user": st.just("u-1"),
    "service_tier": st.sampled_from(["auto", "default"]),
    "output": st.builds(OutputFormat, kind=st.just("schema"), schema=schemas()),
}
EFFORT: dict[str, st.SearchStrategy[Any]] = {"thinking": efforts("low", "medium", "high", "xhigh"), "output": SETTINGS["output"]}


def without_places(request: ConversationRequest) -> ConversationRequest:
    """Return `request` without the parts' places, which each dialect spells for itself."""

    def plain(part: Part) -> Part:
        if isinstance(part, ToolResult):
            return replace(part, at="", content=tuple(replace(inner, at="") if hasattr(inner, "at") else inner for inner in part.content))
        if isinstance(part, ToolCall):
            return replace(part, at="", arguments=json.dumps(json.loads(part.arguments)))
        return replace(part, at="") if hasattr(part, "at") else part

    messages = tuple(Message(message.role, tuple(map(plain, message.parts))) for message in request.messages)
    return replace(request, messages=messages, model="", dialect=OURS)


@given(requests(Dialect.OPENAI_CHAT, SAYABLE, settings=SETTINGS, strict=True) | requests(Dialect.OPENAI_CHAT, SAYABLE, settings=EFFORT))
@settings(max_examples=150)
def test_what_the_dialect_can_say_comes_back_as_it_was(request: ConversationRequest) -> None:
    encoded = encode_conversation(request, Quirks.NONE)
    again = conversation_of(decode_messages(final(encoded), max_tokens_cap=request.max_tokens, on_excess="reject"))
    expected = without_places(request)
    if "thinking" in encoded.dropped:
        assert request.tool_choice is not None and request.tool_choice.mode in ("required", "named")
    if not request.tools:  # a history that calls tools brings their names along
        again = replace(again, tools=(), tool_choice=None)
    assert without_places(again) == expected
    assert reread(final(encoded)) == AskedFor("upstream", request.max_tokens, 1, request.stream)


@given(requests(Dialect.GEMINI_GENERATE, SAYABLE - {"reasoning"}, settings={**SETTINGS, "thinking": st.builds(Thinking, budget=st.integers(-1, 9000))}))
@settings(max_examples=150)
def test_what_is_not_refused_is_what_the_vendor_takes(request: ConversationRequest) -> None:
    try:
        body = written(request)
    except UnsupportedFeature:
        return
    vendor_anthropic.read(body)
    vertex = encode_conversation(request, Quirks.VERTEX)
    assert vertex.suffix == b""
    vendor_anthropic.read(json.loads(vertex.prefix), model="upstream")


@given(requests(Dialect.OPENAI_RESPONSES))
@settings(max_examples=100)
def test_anything_is_encoded_or_refused(request: ConversationRequest) -> None:
    try:
        decode_messages(final(encode_conversation(request, Quirks.NONE)), max_tokens_cap=10**6, on_excess="reject")
    except ClientError:
        pass


# --- messages --------------------------------------------------------------------------------------------------------


def test_turns_alternate_and_results_come_first() -> None:
    messages = (
        HI,
        Message("user", (Text("there"),)),
        Message("assistant", (ToolCall("a", "ping", "{}"),)),
        Message("assistant", (ToolCall("b", "ping", '{ "x": 1 }'),)),
        Message("user", (Text("So?"), ToolResult("a", "ping", (Text("1"),)))),
        Message("user", (ToolResult("b", "ping", ()),)),
    )
    body = written(asked(*messages, tools=(PING,)))
    assert body["messages"] == [
        {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "there"}]},
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": "a", "name": "ping", "input": {}}, {"type": "tool_use", "id": "b", "name": "ping", "input": {"x": 1}}],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "1"}]},
                {"type": "tool_result", "tool_use_id": "b"},
                {"type": "text", "text": "So?"},
            ],
        },
    ]
    vendor_anthropic.read(body)


def test_texts_of_nothing_are_left_out() -> None:
    messages = (HI, Message("assistant", (Text(" \n"),)), Message("user", (Text(""), Text("?"))))
    body = written(asked(*messages, system=(Text(""), Text("S"))))
    assert body["messages"] == [{"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "?"}]}]
    assert body["system"] == [{"type": "text", "text": "S"}]


def test_ids_of_other_vendors_fit_and_still_agree() -> None:
    messages = (HI, Message("assistant", (ToolCall("functions.ping:0", "ping", "{}"),)), Message("user", (ToolResult("functions.ping:0", "ping", ()),)))
    body = written(asked(*messages, tools=(PING,)))
    call, result = body["messages"][1]["content"][0], body["messages"][2]["content"][0]
    assert call["id"] == result["tool_use_id"] == written(asked(*messages, tools=(PING,)))["messages"][1]["content"][0]["id"]
    assert call["id"].startswith("toolu_") and call["id"].removeprefix("toolu_").isalnum()
    vendor_anthropic.read(body)


def test_thoughts_go_back_to_their_signer_only() -> None:
    thoughts = (
        Reasoning("mine", "c2ln", signer=OURS),
        Reasoning(redacted="aGlk", signer=OURS),
        Reasoning("other", "c2ln", signer=Dialect.GEMINI_GENERATE),
        Reasoning("nobody's"),
        Reasoning(redacted="eGVu", signer=Dialect.OPENAI_RESPONSES),
    )
    request = asked(HI, Message("assistant", (*thoughts, Text("x"))), HI)
    assert written(request)["messages"][1]["content"] == [
        {"type": "thinking", "thinking": "mine", "signature": "c2ln"},
        {"type": "redacted_thinking", "data": "aGlk"},
        {"type": "text", "text": "x"},
    ]
    assert dropped(request) == ("thinking",)


def test_a_history_that_calls_tools_names_them_even_if_none_may_be_called() -> None:
    messages = (HI, Message("assistant", (ToolCall("a", "ping", "{}"),)), Message("user", (ToolResult("a", "ping", (Text("1"),)),)))
    body = written(asked(*messages))
    assert body["tools"] == [{"name": "ping", "input_schema": {"type": "object", "properties": {}}}] and body["tool_choice"] == {"type": "none"}
    vendor_anthropic.read(body)


def test_sources_in_the_history_and_an_images_detail_are_left_out_and_reported() -> None:
    said = Message("assistant", (Text("x", (Citation(url="https://example.com"),)),))
    image = Image(url="https://example.com/a.png", detail="low", at="messages[2].content[0]")
    assert dropped(asked(HI, said, Message("user", (image,)))) == ("messages", "messages[2].content[0]")


def test_a_file_of_plain_text_is_read() -> None:
    body = written(asked(Message("user", (Document(media_type="text/plain", data="R3LDvMOfZQ==", title="a.txt"),))))
    assert body["messages"][0]["content"] == [
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "Grüße"}, "title": "a.txt"},
    ]


def after_hi(*parts: Part) -> ConversationRequest:
    return asked(HI, Message("assistant", parts), HI)


def of_user(part: Part) -> ConversationRequest:
    return asked(Message("user", (part,)))


REFUSED: dict[str, tuple[ConversationRequest, str]] = {
    "no user at the beginning": (asked(Message("assistant", (Text("Hi"),)), HI), "messages"),
    "nothing said": (asked(Message("user", (Text(" "),))), "messages"),
    "sound": (of_user(Audio("audio/wav", "AAAA", at="here")), "here"),
    "an image of another kind": (of_user(Image(media_type="image/tiff", data="AAAA", at="here")), "here"),
    "an image that is no link": (of_user(Image(url="gs://bucket/a.png", at="here")), "here"),
    "an image by the model": (after_hi(Image(media_type="image/png", data="AAAA", at="here")), "here"),
    "a document of another kind": (of_user(Document(media_type="application/msword", data="AAAA", at="here")), "here"),
    "text that is none": (of_user(Document(media_type="text/plain", data="/w==", at="here")), "here"),
    "text that is no base64": (of_user(Document(media_type="text/plain", data="?", at="here")), "here"),
    "arguments that are no JSON": (after_hi(ToolCall("a", "ping", '{"x":', at="here")), "here"),
    "arguments that are a list": (after_hi(ToolCall("a", "ping", "[]", at="here")), "here"),
    "arguments of a million lists": (after_hi(ToolCall("a", "ping", '{"x":[' + "[]," * 10**5 + "[]]}", at="here")), "here"),
    "arguments nested too deeply": (after_hi(ToolCall("a", "ping", '{"x":' * 5000 + "1" + "}" * 5000, at="here")), "here"),
    "a call of an odd name": (after_hi(ToolCall("a", "my tool", "{}", at="here")), "here"),
    "a tool of an odd name": (asked(tools=(Tool("my.tool"),)), "tools"),
    "a tool that takes a list": (asked(tools=(Tool("ping", parameters={"type": "array"}),)), "tools"),
    "a forced tool without tools": (asked(tool_choice=ToolChoice("required")), "tool_choice"),
    "a named tool that is none": (asked(tools=(PING,), tool_choice=ToolChoice("named", ("pong",))), "tool_choice"),
    "allowed tools that are none": (asked(tools=(PING,), tool_choice=ToolChoice("auto", ("pong",))), "tool_choice"),
    "two choices": (asked(n=2), "n"),
    "biased tokens": (asked(logit_bias={"5": 1.0}), "logit_bias"),
    "probabilities": (asked(logprobs=0), "logprobs"),
    "presence": (asked(presence_penalty=0.5), "presence_penalty"),
    "frequency": (asked(frequency_penalty=-0.5), "frequency_penalty"),
    "a high temperature": (asked(temperature=1.2), "temperature"),
    "a temperature while thinking": (asked(temperature=0.5, thinking=Thinking("low")), "temperature"),
    "top_k while thinking": (asked(top_k=5, thinking=Thinking(budget=2000)), "top_k"),
    "top_p while thinking": (asked(top_p=0.5, thinking=Thinking("low")), "top_p"),
    "white space as a stop": (asked(stop=("\n",)), "stop"),
    "any JSON object": (asked(output=OutputFormat("object")), "output.kind"),
    "an unknown effort": (asked(thinking=Thinking("gigantic")), "thinking"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_anthropic_cannot_say_is_refused_with_its_field(name: str) -> None:
    request, param = REFUSED[name]
    assert refused(request) == param


# --- settings --------------------------------------------------------------------------------------------------------

LEFT_OUT: dict[str, ConversationRequest] = {
    "seed": asked(seed=7),
    "verbosity": asked(verbosity="low"),
    "store": asked(store=True),
    "cache_key": asked(cache_key="k"),
    "metadata": asked(metadata={"a": "b"}),
    "service_tier": asked(service_tier="flex"),
    "user": asked(user="u" * 257),
    "output": asked(output=OutputFormat("schema", description="An answer.", schema={"type": "object"})),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_a_hint_that_changes_no_meaning_is_left_out_and_reported(name: str) -> None:
    assert dropped(LEFT_OUT[name]) == (name,)


def test_what_says_nothing_is_not_reported() -> None:
    request = asked(
        store=False, presence_penalty=0.0, frequency_penalty=0.0, logit_bias={}, metadata=None, temperature=1.0, top_p=1.0, tool_choice=ToolChoice("auto")
    )
    assert dropped(request) == ()
    assert written(request) == {"model": "upstream", "max_tokens": 4096, "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]}


CHOICES: dict[str, tuple[dict[str, Any], Any]] = {
    "auto": ({"tool_choice": ToolChoice("auto")}, {"type": "auto"}),
    "none": ({"tool_choice": ToolChoice("none"), "parallel_tool_calls": False}, {"type": "none"}),
    "required": ({"tool_choice": ToolChoice("required")}, {"type": "any"}),
    "named": ({"tool_choice": ToolChoice("named", ("ping",))}, {"type": "tool", "name": "ping"}),
    "one at a time": ({"parallel_tool_calls": False}, {"type": "auto", "disable_parallel_tool_use": True}),
    "one of them": (
        {"tool_choice": ToolChoice("required"), "parallel_tool_calls": False},
        {"type": "any", "disable_parallel_tool_use": True},
    ),
}


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_of_tools(name: str) -> None:
    fields, expected = CHOICES[name]
    assert written(asked(tools=(PING,), **fields))["tool_choice"] == expected


def test_of_tools_that_may_not_be_called_none_is_shown() -> None:
    body = written(asked(tools=(PING, Tool("pong", "Answers.")), tool_choice=ToolChoice("auto", ("pong",))))
    assert body["tools"] == [{"name": "pong", "description": "Answers.", "input_schema": {"type": "object", "properties": {}}}]
    assert body["tool_choice"] == {"type": "auto"}


def older(budget: int) -> dict[str, Any]:
    return {"type": "enabled", "budget_tokens": budget}


# wish; `thinking` and `output_config`; `thinking` of a model before 4.6, whose budgets are below the 4,096 tokens of the cap
EFFORTS: dict[str, tuple[Thinking, Any, Any, Any]] = {
    "none": (Thinking("none"), {"type": "disabled"}, None, {"type": "disabled"}),
    "minimal": (Thinking("minimal"), {"type": "adaptive"}, {"effort": "low"}, older(1024)),
    "low": (Thinking("low"), {"type": "adaptive"}, {"effort": "low"}, older(2048)),
    "medium": (Thinking("medium"), {"type": "adaptive"}, {"effort": "medium"}, older(2048)),
    "xhigh": (Thinking("xhigh", show=True), {"type": "adaptive", "display": "summarized"}, {"effort": "xhigh"}, older(2048)),
    "budget": (Thinking(budget=2000), {"type": "adaptive"}, {"effort": "low"}, older(2000)),
    "a small budget": (Thinking(budget=1, show=False), {"type": "adaptive", "display": "omitted"}, {"effort": "low"}, older(1024)),
    "a middling budget": (Thinking(budget=8192), {"type": "adaptive"}, {"effort": "medium"}, older(4095)),
    "a large budget": (Thinking(budget=10**6), {"type": "adaptive"}, {"effort": "high"}, older(4095)),
    "no budget": (Thinking(budget=0), {"type": "disabled"}, None, {"type": "disabled"}),
    "as it likes": (Thinking(budget=-1), {"type": "adaptive"}, None, older(2048)),
    "only to see": (Thinking(show=True), {"type": "adaptive", "display": "summarized"}, None, older(2048)),
    "not to see": (Thinking(show=False), None, None, None),
}


@pytest.mark.parametrize("name", EFFORTS)
def test_how_much_to_think(name: str) -> None:
    wanted, thinking, config, by_budget = EFFORTS[name]
    for quirks, expected in ((Quirks.NONE, (thinking, config)), (Quirks.BUDGET_THINKING, (by_budget, None))):
        encoded = encode_conversation(asked(thinking=wanted), quirks)
        body = json.loads(encoded.prefix + b'"m"' + encoded.suffix)
        assert (body.get("thinking"), body.get("output_config")) == expected
        assert encoded.dropped == ()
        vendor_anthropic.read(body)


def test_an_effort_leaves_half_of_the_tokens_to_the_answer_and_a_budget_is_taken_at_its_word() -> None:
    def budget_of(max_tokens: int, wanted: Thinking) -> int:
        encoded = encode_conversation(asked(max_tokens=max_tokens, thinking=wanted), Quirks.BUDGET_THINKING)
        return int(json.loads(encoded.prefix + b'"m"' + encoded.suffix)["thinking"]["budget_tokens"])

    assert budget_of(64000, Thinking("high")) == 16384
    assert budget_of(10000, Thinking("high")) == 5000
    assert budget_of(1500, Thinking("high")) == 1024  # the least there is
    assert budget_of(1025, Thinking("high")) == 1024
    assert budget_of(1500, Thinking(budget=1400)) == 1400


CALLED = (HI, Message("assistant", (ToolCall("a", "ping", "{}"),)), Message("user", (ToolResult("a", "ping", (Text("1"),)),)))
BUDGET = Thinking(budget=2000)
THOUGHTLESS: dict[str, ConversationRequest] = {
    "a tool is forced": asked(tools=(PING,), tool_choice=ToolChoice("required"), thinking=Thinking("high")),
    "a tool is named": asked(tools=(PING,), tool_choice=ToolChoice("named", ("ping",)), thinking=BUDGET),
    "no room": asked(max_tokens=1024, thinking=BUDGET),
    "calls without thoughts": asked(*CALLED, tools=(PING,), thinking=BUDGET),
    "a beginning without thoughts": asked(HI, Message("assistant", (Text("{"),)), thinking=BUDGET),
}


@pytest.mark.parametrize("name", THOUGHTLESS)
def test_thinking_that_would_be_refused_is_left_out_and_reported(name: str) -> None:
    encoded = encode_conversation(THOUGHTLESS[name], Quirks.BUDGET_THINKING)
    body = json.loads(encoded.prefix + b'"m"' + encoded.suffix)
    assert "thinking" not in body and encoded.dropped == ("thinking",)
    vendor_anthropic.read(body)


def test_thinking_goes_on_where_the_calls_have_their_thoughts() -> None:
    signed = Reasoning("Hm.", "c2ln", signer=OURS)
    messages = (HI, Message("assistant", (signed, ToolCall("a", "ping", "{}"))), CALLED[2])
    encoded = encode_conversation(asked(*messages, tools=(PING,), thinking=BUDGET), Quirks.BUDGET_THINKING)
    assert json.loads(encoded.prefix + b'"m"' + encoded.suffix)["thinking"] == {"type": "enabled", "budget_tokens": 2000}
    assert written(asked(*CALLED, tools=(PING,), thinking=Thinking("low")))["thinking"] == {"type": "adaptive"}


def test_an_earlier_refusal_is_text() -> None:
    assert written(after_hi(Refusal("No.")))["messages"][1]["content"] == [{"type": "text", "text": "No."}]


def test_a_question_for_tokens_has_the_prompt_only() -> None:
    request = asked(HI, system=(Text("S"),), tools=(PING,), temperature=0.5, seed=4, stop=("x",), stream=True)
    encoded = encode_count(request, Quirks.NONE)
    body = json.loads(final(encoded))
    assert set(body) == {"model", "messages", "system", "tools"} and encoded.dropped == ()
    vendor_anthropic.count(body)
    vertex = json.loads(final(encode_count(request, Quirks.VERTEX)))
    assert vertex.pop("anthropic_version") == "vertex-2023-10-16" and vertex == body
