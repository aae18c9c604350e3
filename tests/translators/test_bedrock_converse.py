"""Bedrock's Converse as a target. What is written is judged by botocore's model of the service; what is read, by vectors after AWS's documentation."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.loaders import Loader
from botocore.model import ListShape, MapShape, ServiceModel, Shape, StringShape, StructureShape
from botocore.validate import ParamValidator
from hypothesis import given
from hypothesis import strategies as st

from cliproxy.bounds import MAX_ANSWER_OBJECTS, MAX_TOOL_ARGUMENTS_BYTES
from cliproxy.dialects import Dialect, Quirks
from cliproxy.errors import ChannelError, SchemaError, UnsupportedFeature, UpstreamError
from cliproxy.metering.bedrock_converse import ConverseStreamMeter, reread, usage_of_answer
from cliproxy.metering.usage import AskedFor, Usage
from cliproxy.translators.bedrock_converse.answer import decode_answer
from cliproxy.translators.bedrock_converse.encode import encode_conversation
from cliproxy.translators.bedrock_converse.read_stream import Reader
from cliproxy.translators.conversation import (
    Audio,
    Choice,
    Citation,
    ConversationAnswer,
    ConversationRequest,
    Document,
    Image,
    Message,
    OutputFormat,
    Reasoning,
    Refusal,
    StopReason,
    StreamEvent,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
)
from translators.hub_strategies import ALL, fold, requests

VECTORS = Path(__file__).parents[1] / "vectors" / "bedrock_converse"
OURS = Dialect.BEDROCK_CONVERSE
USUAL = Usage(25, 12)
SERVICE = ServiceModel(Loader().load_service_model("bedrock-runtime", "service-2"))
INPUT = SERVICE.operation_model("Converse").input_shape


# --- what is written -------------------------------------------------------------------------------------------------


def as_botocore_wants_it(value: Any, shape: Shape | None) -> Any:
    """Return the body with blobs as bytes, and assert what botocore's validator does not look at: members, unions, patterns, enumerations."""
    if getattr(shape, "is_document_type", False):
        return value
    if isinstance(shape, StructureShape):
        assert not set(value) - set(shape.members), (shape.name, set(value) - set(shape.members))
        assert not getattr(shape, "is_tagged_union", False) or len(value) == 1, (shape.name, list(value))
        return {name: as_botocore_wants_it(item, shape.members[name]) for name, item in value.items()}
    if isinstance(shape, ListShape):
        return [as_botocore_wants_it(item, shape.member) for item in value]
    if isinstance(shape, MapShape):
        return {name: as_botocore_wants_it(item, shape.value) for name, item in value.items()}
    if isinstance(shape, StringShape):
        assert not shape.enum or value in shape.enum, (shape.name, value)
        pattern, longest = shape.metadata.get("pattern"), shape.metadata.get("max")
        assert pattern is None or re.fullmatch(pattern, value), (shape.name, value)
        assert longest is None or len(value) <= longest
    if shape is not None and shape.type_name == "blob":
        return base64.b64decode(value, validate=True)
    return value


def written(request: ConversationRequest, quirks: Quirks = Quirks.NONE) -> dict[str, Any]:
    """Return the body that `request` becomes, after botocore has judged it."""
    encoded = encode_conversation(request, quirks)
    assert encoded.suffix == b""
    body = json.loads(encoded.prefix)
    report = ParamValidator().validate({"modelId": "m", **as_botocore_wants_it(body, INPUT)}, INPUT)
    assert not report.has_errors(), report.generate_report()
    assert reread(encoded.prefix) == AskedFor("", request.max_tokens, 1, None)
    result: dict[str, Any] = body
    return result


def asked(*parts: Any, **fields: Any) -> ConversationRequest:
    messages = fields.pop("messages", (Message("user", parts or (Text("Hi"),)),))
    return ConversationRequest(
        dialect=Dialect.OPENAI_CHAT, model="m", stream=fields.pop("stream", False), max_tokens=fields.pop("max_tokens", 100), messages=messages, **fields
    )


def content(*parts: Any) -> list[dict[str, Any]]:
    result: list[dict[str, Any]] = written(asked(*parts))["messages"][0]["content"]
    return result


def test_a_plain_question_is_exactly_this() -> None:
    assert written(asked(system=(Text("Be brief."),))) == {
        "messages": [{"role": "user", "content": [{"text": "Hi"}]}],
        "inferenceConfig": {"maxTokens": 100},
        "system": [{"text": "Be brief."}],
    }


def test_a_stream_is_asked_for_in_the_path_alone() -> None:
    assert encode_conversation(asked(stream=True), Quirks.NONE) == encode_conversation(asked(), Quirks.NONE)


def test_settings_have_their_places() -> None:
    assert written(asked(temperature=0.5, top_p=0.25, stop=("END", "\n\nHuman:")))["inferenceConfig"] == {
        "maxTokens": 100,
        "temperature": 0.5,
        "topP": 0.25,
        "stopSequences": ["END", "\n\nHuman:"],
    }


PARTS: dict[str, tuple[Any, list[dict[str, Any]]]] = {
    "an image": (Image(media_type="image/jpeg", data="AAAA"), [{"image": {"format": "jpeg", "source": {"bytes": "AAAA"}}}]),
    "a cached text": (Text("long", cache=True), [{"text": "long"}, {"cachePoint": {"type": "default"}}]),
    "sound": (Audio("audio/mpeg", "AAAA"), [{"audio": {"format": "mp3", "source": {"bytes": "AAAA"}}}]),
    "a PDF": (
        Document(media_type="application/pdf", data="AAAA", title="Report 2"),
        [{"document": {"format": "pdf", "name": "Report 2", "source": {"bytes": "AAAA"}}}],
    ),
    "a text file with sources": (
        Document(text="abc", citations=True, cache=True),
        [{"document": {"format": "txt", "name": "document", "source": {"bytes": "YWJj"}, "citations": {"enabled": True}}}, {"cachePoint": {"type": "default"}}],
    ),
    "a result with an image": (
        ToolResult("call_1", "f", (Text("see"), Image(media_type="image/png", data="AAAA")), is_error=True),
        [{"toolResult": {"toolUseId": "call_1", "content": [{"text": "see"}, {"image": {"format": "png", "source": {"bytes": "AAAA"}}}], "status": "error"}}],
    ),
    "a result of nothing": (ToolResult("call_1", "f", ()), [{"toolResult": {"toolUseId": "call_1", "content": []}}]),
    "white space": (Text(" \n"), []),
}


@pytest.mark.parametrize("name", PARTS)
def test_each_part_has_its_block(name: str) -> None:
    part, blocks = PARTS[name]
    results_first = isinstance(part, ToolResult)
    assert content(Text("Hi"), part) == ([*blocks, {"text": "Hi"}] if results_first else [{"text": "Hi"}, *blocks])


def test_the_assistants_parts_have_theirs_and_thoughts_go_back_to_who_signed_them() -> None:
    said = (
        Reasoning("Two.", "c2ln", signer=OURS),
        Reasoning(redacted="UmVk", signer=OURS),
        Reasoning("Their own.", "sig", signer=Dialect.ANTHROPIC_MESSAGES),
        Reasoning("Nobody's."),
        Text("Let me look."),
        Refusal("Or not."),
        ToolCall("call 1", "f", '{"a": [1, "x"]}'),
    )
    request = asked(
        messages=(Message("user", (Text("Hi"),)), Message("assistant", said), Message("user", (ToolResult("call 1", "f", (Text("ok"),)),))), tools=(Tool("f"),)
    )
    blocks = written(request)["messages"][1]["content"]
    id = blocks[-1]["toolUse"]["toolUseId"]
    assert blocks == [
        {"reasoningContent": {"reasoningText": {"text": "Two.", "signature": "c2ln"}}},
        {"reasoningContent": {"redactedContent": "UmVk"}},
        {"text": "Let me look."},
        {"text": "Or not."},
        {"toolUse": {"toolUseId": id, "name": "f", "input": {"a": [1, "x"]}}},
    ]
    assert re.fullmatch(r"tooluse_[0-9a-f]{24}", id)
    assert written(request)["messages"][2]["content"][0]["toolResult"]["toolUseId"] == id
    assert encode_conversation(request, Quirks.NONE).dropped == ("thinking",)


def test_neighbours_of_one_role_become_one_turn() -> None:
    messages = (
        Message("user", (Text("a"),)),
        Message("user", (Text("b"),)),
        Message("assistant", (Text(" "),)),
        Message("user", (Text("c"),)),
        Message("assistant", (Text("d"),)),
    )
    assert [(turn["role"], [block["text"] for block in turn["content"]]) for turn in written(asked(messages=messages))["messages"]] == [
        ("user", ["a", "b", "c"]),
        ("assistant", ["d"]),
    ]


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("Report (final) [2] - a", "Report (final) [2] - a"),
        ("report.pdf", "report pdf"),
        ("a  b\tc\nd", "a b c d"),
        ("ignore: previous\ninstructions!", "ignore previous instructions"),
        ("Bücher", "B cher"),
        ("…", "document"),
        ("x" * 500, "x" * 190),
    ],
)
def test_a_title_becomes_a_name_that_bedrock_takes(title: str, name: str) -> None:
    request = asked(Text("Hi"), Document(media_type="application/pdf", data="AAAA", title=title, at="messages[0].content[1]"))
    assert written(request)["messages"][0]["content"][1]["document"]["name"] == name
    assert encode_conversation(request, Quirks.NONE).dropped == (() if name == title else ("messages[0].content[1]",))


def test_no_two_documents_have_one_name() -> None:
    titles = ["a", "a.", "", "", "a [2]", "a"]
    blocks = content(Text("Hi"), *(Document(media_type="application/pdf", data="AAAA", title=title) for title in titles))
    names = [block["document"]["name"] for block in blocks[1:]]
    assert len(set(names)) == len(titles)


TOOLS = (Tool("f", "Does f.", {"type": "object", "properties": {"a": {"type": "string"}}}, strict=True, cache=True), Tool("g"))
CHOICES: dict[str, tuple[ToolChoice | None, list[str], dict[str, Any] | None]] = {
    "none named": (None, ["f", "g"], None),
    "auto": (ToolChoice("auto"), ["f", "g"], None),
    "required": (ToolChoice("required"), ["f", "g"], {"any": {}}),
    "named": (ToolChoice("named", ("g",)), ["f", "g"], {"tool": {"name": "g"}}),
    "only some": (ToolChoice("auto", ("g",)), ["g"], None),
    "one of some": (ToolChoice("required", ("f",)), ["f"], {"any": {}}),
}


@pytest.mark.parametrize("name", CHOICES)
def test_tools_and_their_choice(name: str) -> None:
    choice, names, made = CHOICES[name]
    config = written(asked(tools=TOOLS, tool_choice=choice))["toolConfig"]
    assert [block["toolSpec"]["name"] for block in config["tools"] if "toolSpec" in block] == names
    assert config.get("toolChoice") == made


def test_a_tool_is_exactly_this() -> None:
    assert written(asked(tools=TOOLS))["toolConfig"]["tools"] == [
        {
            "toolSpec": {
                "name": "f",
                "description": "Does f.",
                "inputSchema": {"json": {"type": "object", "properties": {"a": {"type": "string"}}}},
                "strict": True,
            }
        },
        {"cachePoint": {"type": "default"}},
        {"toolSpec": {"name": "g", "inputSchema": {"json": {"type": "object", "properties": {}}}}},
    ]


def test_tools_that_may_not_be_called_are_not_shown() -> None:
    assert "toolConfig" not in written(asked(tools=TOOLS, tool_choice=ToolChoice("none")))


def test_structured_output_is_a_schema_as_text() -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    made = written(asked(output=OutputFormat("schema", "place", "A place.", schema, strict=True)))["outputConfig"]["textFormat"]
    assert made["type"] == "json_schema" and json.loads(made["structure"]["jsonSchema"].pop("schema")) == schema
    assert made["structure"]["jsonSchema"] == {"name": "place", "description": "A place."}


CLAUDE, OLDER, ANY = Quirks.CLAUDE, Quirks.CLAUDE | Quirks.BUDGET_THINKING, Quirks.NONE
THINKING: dict[str, tuple[Thinking, Quirks, Any, Any, bool]] = {  # wish, model: `thinking`, `effort`, whether it is reported as left out
    "an effort": (Thinking(effort="high"), ANY, None, "high", False),
    "an effort of Claude": (Thinking(effort="minimal"), CLAUDE, {"type": "adaptive"}, "low", False),
    "none": (Thinking(effort="none"), ANY, None, None, True),
    "none of Claude": (Thinking(effort="none"), CLAUDE, {"type": "disabled"}, None, False),
    "no budget of Claude": (Thinking(budget=0), CLAUDE, {"type": "disabled"}, None, False),
    "a budget": (Thinking(budget=2000), ANY, None, None, True),
    "a budget of Claude": (Thinking(budget=2000, show=True), CLAUDE, {"type": "adaptive", "display": "summarized"}, "low", False),
    "a budget of an older Claude": (Thinking(budget=2000, show=True), OLDER, {"type": "enabled", "budget_tokens": 2000}, None, False),
    "an effort of an older Claude": (Thinking(effort="low"), OLDER, {"type": "enabled", "budget_tokens": 2000}, None, False),
    "a budget that is too small": (Thinking(budget=5), OLDER, {"type": "enabled", "budget_tokens": 1024}, None, False),
    "a budget that is too large": (Thinking(budget=9999), OLDER, {"type": "enabled", "budget_tokens": 3999}, None, False),
    "shown": (Thinking(show=True), CLAUDE, {"type": "adaptive", "display": "summarized"}, None, False),
    "not shown": (Thinking(show=False), CLAUDE, None, None, False),
}


@pytest.mark.parametrize("name", THINKING)
def test_how_much_to_think(name: str) -> None:
    wish, quirks, thinking, effort, left_out = THINKING[name]
    request = asked(thinking=wish, max_tokens=4000)
    body = written(request, quirks)
    assert body.get("additionalModelRequestFields", {}).get("thinking") == thinking
    assert body.get("outputConfig", {}).get("effort") == effort
    assert encode_conversation(request, quirks).dropped == (("thinking",) if left_out else ())


def test_no_thoughts_are_asked_for_where_claude_would_refuse_the_request() -> None:
    loop = (
        Message("user", (Text("Hi"),)),
        Message("assistant", (ToolCall("c", "f", "{}"),)),
        Message("user", (ToolResult("c", "f", (Text("ok"),)),)),
    )
    for request in (
        asked(thinking=Thinking(budget=2000), max_tokens=1024),
        asked(thinking=Thinking(budget=2000), max_tokens=4000, messages=loop, tools=(Tool("f"),)),
        asked(thinking=Thinking(budget=2000), max_tokens=4000, tools=(Tool("f"),), tool_choice=ToolChoice("required")),
    ):
        assert "additionalModelRequestFields" not in written(request, OLDER)
        assert "thinking" in encode_conversation(request, OLDER).dropped
    signed = (loop[0], Message("assistant", (Reasoning("x", "c2ln", signer=OURS), *loop[1].parts)), loop[2])
    assert (
        "thinking"
        in written(asked(thinking=Thinking(budget=2000), max_tokens=4000, messages=signed, tools=(Tool("f"),)), CLAUDE)["additionalModelRequestFields"]
    )


def test_top_k_is_claudes_alone() -> None:
    assert written(asked(top_k=5), CLAUDE)["additionalModelRequestFields"] == {"top_k": 5}
    with pytest.raises(UnsupportedFeature) as caught:
        encode_conversation(asked(top_k=5), ANY)
    assert caught.value.param == "top_k"


def test_claudes_own_defaults_are_left_out() -> None:
    assert written(asked(temperature=1.0, top_p=1.0), CLAUDE)["inferenceConfig"] == {"maxTokens": 100}
    assert written(asked(temperature=1.0, top_p=1.0), ANY)["inferenceConfig"] == {"maxTokens": 100, "temperature": 1.0, "topP": 1.0}


@pytest.mark.parametrize(
    ("fields", "dropped"),
    [
        ({"seed": 1}, "seed"),
        ({"user": "u"}, "user"),
        ({"metadata": {"a": "b"}}, "metadata"),
        ({"verbosity": "low"}, "verbosity"),
        ({"cache_key": "k"}, "cache_key"),
        ({"store": True}, "store"),
        ({"service_tier": "auto"}, "service_tier"),
    ],
)
def test_hints_are_left_out_and_said_so(fields: dict[str, Any], dropped: str) -> None:
    assert encode_conversation(asked(**fields), ANY).dropped == (dropped,)
    written(asked(**fields))


def test_a_tier_that_bedrock_has_is_asked_for() -> None:
    assert written(asked(service_tier="flex"))["serviceTier"] == {"type": "flex"}


CALLED = (Message("user", (Text("Hi"),)), Message("assistant", (ToolCall("c", "f", "{}"),)), Message("user", (ToolResult("c", "f", ()),)))
REFUSED: dict[str, tuple[ConversationRequest, str]] = {
    "two choices": (asked(n=2), "n"),
    "biases": (asked(logit_bias={"1": 5.0}), "logit_bias"),
    "probabilities": (asked(logprobs=0), "logprobs"),
    "a presence penalty": (asked(presence_penalty=0.5), "presence_penalty"),
    "a frequency penalty": (asked(frequency_penalty=0.5), "frequency_penalty"),
    "heat above 1": (asked(temperature=1.5), "temperature"),
    "any JSON": (asked(output=OutputFormat("object")), "output.kind"),
    "one call at a time": (asked(tools=TOOLS, parallel_tool_calls=False), "parallel_tool_calls"),
    "a call without tools": (asked(tool_choice=ToolChoice("required")), "tool_choice"),
    "a tool that is not there": (asked(tools=TOOLS, tool_choice=ToolChoice("named", ("x",))), "tool_choice"),
    "some that are not there": (asked(tools=TOOLS, tool_choice=ToolChoice("auto", ("f", "x"))), "tool_choice"),
    "calls in the history, and no tools": (asked(messages=CALLED), "tools"),
    "calls in the history, and none may be called": (asked(messages=CALLED, tools=(Tool("f"),), tool_choice=ToolChoice("none")), "tool_choice"),
    "a tool's name that is too long": (asked(tools=(Tool("f" * 65),)), "tools"),
    "a tool's name with a dot": (asked(tools=(Tool("a.b"),)), "tools"),
    "a tool that takes no object": (asked(tools=(Tool("f", parameters={"type": "string"}),)), "tools"),
    "a stop of white space": (asked(stop=("\n",)), "stop"),
    "an unknown effort": (asked(thinking=Thinking(effort="heroic")), "thinking"),
    "the assistant begins": (asked(messages=(Message("assistant", (Text("Hi"),)),)), "messages"),
    "nothing said": (asked(Text(" ")), "messages"),
    "a document alone": (asked(Document(media_type="application/pdf", data="AAAA")), "messages"),
    "an image by its URL": (asked(Text("Hi"), Image(url="https://example.com/a.png", at="messages[0].content[1]")), "messages[0].content[1]"),
    "an image of another type": (asked(Image(media_type="image/tiff", data="AAAA", at="here")), "here"),
    "a document by its URL": (asked(Document(media_type="application/pdf", url="https://example.com/a.pdf", at="here")), "here"),
    "a document of another type": (asked(Document(media_type="application/zip", data="AAAA", at="here")), "here"),
    "sound of another type": (asked(Audio("audio/midi", "AAAA", at="here")), "here"),
    "an image that the assistant made": (asked(messages=(CALLED[0], Message("assistant", (Image(media_type="image/png", data="AAAA", at="here"),)))), "here"),
    "arguments that are no object": (asked(messages=(CALLED[0], Message("assistant", (ToolCall("c", "f", "[1]", at="here"),)))), "here"),
    "arguments that are no JSON": (asked(messages=(CALLED[0], Message("assistant", (ToolCall("c", "f", "{", at="here"),)))), "here"),
    "a called name with a dot": (asked(messages=(CALLED[0], Message("assistant", (ToolCall("c", "a.b", "{}", at="here"),)))), "here"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_converse_cannot_be_asked_for_is_refused_with_its_field(name: str) -> None:
    request, param = REFUSED[name]
    with pytest.raises(UnsupportedFeature) as caught:
        encode_conversation(request, ANY)
    assert caught.value.param == param


def test_a_thinking_claude_takes_no_other_temperature() -> None:
    for fields in ({"temperature": 0.5}, {"top_p": 0.5}, {"top_k": 5}):
        with pytest.raises(UnsupportedFeature) as caught:
            encode_conversation(asked(thinking=Thinking(budget=2000), max_tokens=4000, **fields), CLAUDE)
        assert caught.value.param in fields


def test_a_schema_that_is_too_deep_is_refused() -> None:
    schema: dict[str, Any] = {"type": "object"}
    for _ in range(20_000):
        schema = {"type": "object", "properties": {"a": schema}}
    for request in (asked(tools=(Tool("f", parameters=schema),)), asked(output=OutputFormat("schema", schema=schema))):
        with pytest.raises(UnsupportedFeature):
            encode_conversation(request, ANY)


SAID = ALL - {"images_url", "documents_url"}


@given(
    requests(Dialect.OPENAI_CHAT, SAID, signer=OURS, settings={"temperature": st.floats(0, 1), "top_p": st.floats(0, 1), "seed": st.integers()}),
    st.sampled_from([ANY, CLAUDE]),
)
def test_any_request_is_one_that_botocore_takes_or_is_refused_by_name(request: ConversationRequest, quirks: Quirks) -> None:
    try:
        body = written(request, quirks)
    except UnsupportedFeature as error:
        assert error.param
        return
    assert [turn["role"] for turn in body["messages"]] == ["user", "assistant"] * (len(body["messages"]) // 2) + ["user"] * (len(body["messages"]) % 2)


# --- what egress reads again -----------------------------------------------------------------------------------------

GOOD = b'{"messages":[],"inferenceConfig":{"maxTokens":5}}'


def test_a_final_body_says_its_cap() -> None:
    assert reread(GOOD) == AskedFor("", 5, 1, None)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"messages":[]}',
        b'{"messages":[],"inferenceConfig":{}}',
        b'{"messages":[],"inferenceConfig":{"maxTokens":0}}',
        b'{"messages":[],"inferenceConfig":{"maxTokens":-5}}',
        b'{"messages":[],"inferenceConfig":{"maxTokens":"5"}}',
        b'{"messages":[],"inferenceConfig":{"maxTokens":5},"inferenceConfig":{}}',
        b'{"messages":[],"inferenceConfig":{"maxTokens":5},"additionalModelRequestFields":{"max_tokens":99999}}',
        b'{"messages":[],"inferenceConfig":{"maxTokens":5},"additionalModelRequestFields":[]}',
        b'{"messages":[],"inferenceConfig":{"maxTokens":5},"promptVariables":{}}',
        b'{"messages":[],"inferenceConfig":{"maxTokens":5},"modelId":"other"}',
        b'{"messages":[],"inferenceConfig":{"maxTokens":5},"guardrailConfig":{}}',
        b"\xff" + GOOD,
        b"[" * 100_000,
    ],
)
def test_a_body_that_this_gateway_would_not_write_is_refused(body: bytes) -> None:
    with pytest.raises((SchemaError, ChannelError)):
        reread(body)


# --- answers ---------------------------------------------------------------------------------------------------------


def vectors(kind: str) -> Iterator[str]:
    return (path.stem for path in sorted(VECTORS.glob(f"{kind}_*.json")))


def body_of(name: str) -> bytes:
    return json.dumps(json.loads((VECTORS / f"{name}.json").read_text())["body"], ensure_ascii=False).encode()


def sse_of(name: str) -> bytes:
    return (VECTORS / f"{name}.sse").read_bytes()


def told(*parts: Any, stop: StopReason = StopReason.END, usage: Usage = USUAL) -> ConversationAnswer:
    return ConversationAnswer("", "", (Choice(0, parts, stop),), usage)


GRASS = (Citation(title="Facts", cited="grass: green", document=1), Citation(title="More", document=0), Citation(url="https://example.com/grass"))
SONG = ToolCall("tooluse_hbTgdi0CSLq_hM4P8csZJA", "top_song", '{"sign": "WZPZ"}')
CACHED = Usage(2268, 266, 1200, 0, 1064)
ANSWERS = {
    "answer_text": told(Text("The capital of France is Paris. 🗼")),
    "answer_tool_calls": told(Text("Let me look."), SONG, ToolCall("tooluse_2", "clock", "{}"), stop=StopReason.TOOL_CALLS),
    "answer_tool_without_input": told(ToolCall("tooluse_1", "clock", "{}"), stop=StopReason.TOOL_CALLS),
    "answer_reasoning": told(Reasoning("Two and two.", "EqoBCkgIARABGAIiQL8=", signer=OURS), Reasoning(redacted="UmVkYWN0ZWQ=", signer=OURS), Text("Four.")),
    "answer_unsigned_reasoning": told(Reasoning("Two and two."), Text("Four.")),
    "answer_citations": told(Text("The grass is green.", GRASS), Text(" That is all.")),
    "answer_cached": told(Text("Yes."), usage=CACHED),
    "answer_max_tokens": told(Text("Once upon"), stop=StopReason.LENGTH),
    "answer_context_window": told(Text("Once upon"), stop=StopReason.LENGTH),
    "answer_stop_sequence": told(Text("One, two, "), stop=StopReason.STOP_SEQUENCE),
    "answer_guardrail": told(Text("Sorry, the model cannot answer this question."), stop=StopReason.FILTER),
    "answer_filtered": told(stop=StopReason.FILTER),
    "answer_image": told(Image(media_type="image/png", data="iVBORw0KGgo=")),
    "answer_json": told(Text('{"city":"Paris"}')),
}
STREAMS = {
    "stream_text": told(Text("The capital is Paris. 🗼")),
    "stream_tools": told(
        Text("Let me look."), ToolCall("tooluse_1", "top_song", '{"sign": "WZPZ"}'), ToolCall("tooluse_2", "clock", "{}"), stop=StopReason.TOOL_CALLS
    ),
    "stream_reasoning": ANSWERS["answer_reasoning"],
    "stream_citations": told(Text("The grass is green.", GRASS[:1]), Text(" That is all.")),
    "stream_cached": told(Text("Yes."), usage=CACHED),
    "stream_max_tokens": told(Text("Once upon"), stop=StopReason.LENGTH),
    "stream_guardrail": told(Text("Sorry."), stop=StopReason.FILTER),
    "stream_nothing_said": told(),
    "stream_new_kinds": told(Text("Hi")),
}


def test_every_vector_is_used() -> None:
    assert set(vectors("answer")) == set(ANSWERS) and set(vectors("stream")) == set(STREAMS)


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_is_read(name: str) -> None:
    assert decode_answer(body_of(name)) == ANSWERS[name]
    assert usage_of_answer(body_of(name)) == ANSWERS[name].usage


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_cut_anywhere_or_with_something_behind_it_is_an_error(name: str) -> None:
    body = body_of(name)
    for broken in [*(body[:at] for at in range(len(body))), body + b"x", body + b"{}"]:
        for read in (decode_answer, usage_of_answer):
            with pytest.raises(UpstreamError):
                read(broken)


@pytest.mark.parametrize("usage", [None, {}, {"inputTokens": 5}, {"inputTokens": -1, "outputTokens": 5}, {"inputTokens": 2**60, "outputTokens": 5}, [], "many"])
def test_usage_that_makes_no_sense_is_none(usage: Any) -> None:
    body = json.dumps({"output": {"message": {"role": "assistant", "content": [{"text": "x"}]}}, "stopReason": "end_turn", "usage": usage}).encode()
    assert usage_of_answer(body) is None and decode_answer(body).usage is None


def said(*content: Any, stop: Any = "end_turn") -> bytes:
    return json.dumps({"output": {"message": {"role": "assistant", "content": list(content)}}, "stopReason": stop}).encode()


BAD_ANSWERS = {
    "an unknown block": said({"video": {}}),
    "two kinds at once": said({"text": "x", "toolUse": {"toolUseId": "a", "name": "f", "input": {}}}),
    "a block of nothing": said({}),
    "an unknown stop": said(stop="bored"),
    "what the model wrote was no call": said(stop="malformed_tool_use"),
    "no stop": said(stop=None),
    "arguments that are a list": said({"toolUse": {"toolUseId": "a", "name": "f", "input": [1]}}),
    "arguments that are a text": said({"toolUse": {"toolUseId": "a", "name": "f", "input": "{}"}}),
    "a call that Bedrock runs": said({"toolUse": {"toolUseId": "a", "name": "f", "input": {}, "type": "server_tool_use"}}),
    "reasoning of nothing": said({"reasoningContent": {}}),
    "another dialect": b'{"id":"x","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"hi"}}]}',
    "an error": b'{"message":"no"}',
    "a list": b"[]",
    "deep": b'{"output":{"message":{"content":' + b"[" * 100_000,
    "too many objects": said(*({"text": ""} for _ in range(MAX_ANSWER_OBJECTS))),
    "no UTF-8": said({"text": "x"}).replace(b'"x"', b'"\xff"'),
}


@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_an_answer_that_is_not_as_documented_is_an_error(name: str) -> None:
    with pytest.raises(UpstreamError):
        decode_answer(BAD_ANSWERS[name])


# --- streams ---------------------------------------------------------------------------------------------------------


def read(*pieces: bytes) -> list[StreamEvent]:
    reader = Reader()
    events = [event for piece in pieces for event in reader.feed(piece)]
    return [*events, *reader.finish()]


def passed(*pieces: bytes) -> tuple[bytes, Usage | None]:
    usage = ConverseStreamMeter()
    out = b"".join(usage.feed(piece) for piece in pieces) + usage.finish()
    return out, usage.usage


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_is_read_however_its_bytes_come(name: str) -> None:
    data = sse_of(name)
    assert fold(read(data)) == STREAMS[name]
    assert fold(read(*(data[at : at + 1] for at in range(len(data))))) == STREAMS[name]
    assert passed(data) == (data, STREAMS[name].usage)
    assert passed(*(data[at : at + 1] for at in range(len(data)))) == (data, STREAMS[name].usage)


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_cut_anywhere_is_an_error(name: str) -> None:
    data = sse_of(name)
    for cut in range(len(data)):
        assert fold(read(data[:cut], data[cut:])) == STREAMS[name]
        assert passed(data[:cut], data[cut:]) == (data, STREAMS[name].usage)
        with pytest.raises(UpstreamError):
            read(data[:cut])
        with pytest.raises(UpstreamError):
            passed(data[:cut])


@pytest.mark.parametrize("name", STREAMS)
def test_what_follows_the_end_is_dropped(name: str) -> None:
    data = sse_of(name)
    for more in (b"garbage", b"event: error\ndata: {}\n\n", data):
        assert fold(read(data + more)) == STREAMS[name] == fold(read(data, more))
        assert passed(data + more) == (data, STREAMS[name].usage) == passed(data, more)


def event(name: str, data: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


START = event("messageStart", {"role": "assistant"})
CALL = event("contentBlockStart", {"contentBlockIndex": 0, "start": {"toolUse": {"toolUseId": "a", "name": "f"}}})


def delta(index: int, **what: Any) -> bytes:
    return event("contentBlockDelta", {"contentBlockIndex": index, "delta": what})


def stopped(index: int) -> bytes:
    return event("contentBlockStop", {"contentBlockIndex": index})


END = event("messageStop", {"stopReason": "end_turn"}) + event("metadata", {"usage": {"inputTokens": 1, "outputTokens": 1, "totalTokens": 2}})
BAD_STREAMS = {
    "no beginning": delta(0, text="x"),
    "two beginnings": START + START,
    "the user speaks": event("messageStart", {"role": "user"}),
    "a block in a block": START + delta(0, text="x") + delta(1, text="y"),
    "a call in a text": START + delta(0, text="x") + CALL,
    "a text in a call": START + CALL + delta(0, text="x"),
    "a thought in a text": START + delta(0, text="x") + delta(0, reasoningContent={"text": "y"}),
    "input without a call": START + delta(0, toolUse={"input": "{}"}),
    "redacted thoughts in open ones": START + delta(0, reasoningContent={"text": "x"}) + delta(0, reasoningContent={"redactedContent": "AAAA"}),
    "open thoughts in redacted ones": START + delta(0, reasoningContent={"redactedContent": "AAAA"}) + delta(0, reasoningContent={"text": "x"}),
    "redacted thoughts that are no base64": START + delta(0, reasoningContent={"redactedContent": "?"}),
    "a delta of nothing": START + delta(0),
    "an unknown delta": START + delta(0, video={}),
    "an unknown block": START + event("contentBlockStart", {"contentBlockIndex": 0, "start": {"image": {"format": "png"}}}),
    "a call that Bedrock runs": START
    + event("contentBlockStart", {"contentBlockIndex": 0, "start": {"toolUse": {"toolUseId": "a", "name": "f", "type": "server_tool_use"}}}),
    "a negative index": START + delta(-1, text="x"),
    "another block ends": START + delta(0, text="x") + stopped(1),
    "the end in a block": START + delta(0, text="x") + END,
    "metadata before the end": START + event("metadata", {}),
    "two ends": START + event("messageStop", {"stopReason": "end_turn"}) * 2,
    "more after the end": START + event("messageStop", {"stopReason": "end_turn"}) + delta(0, text="x"),
    "an unknown stop": START + event("messageStop", {"stopReason": "bored"}),
    "input that is no object": START + CALL + delta(0, toolUse={"input": "[1]"}) + stopped(0),
    "input that is cut": START + CALL + delta(0, toolUse={"input": '{"a":'}) + stopped(0),
    "no JSON": START + b"event: contentBlockDelta\ndata: {\n\n",
    "no UTF-8": START + b'event: contentBlockDelta\ndata: {"contentBlockIndex":0,"delta":{"text":"\xff"}}\n\n',
    "deep": START + b"event: contentBlockDelta\ndata: " + b"[" * 100_000 + b"\n\n",
    "an error": START + event("error", {"type": "throttlingException", "message": "Too many"}),
    "nothing": b"",
    "another dialect": b'data: {"id":"x","choices":[]}\n\ndata: [DONE]\n\n',
}


@pytest.mark.parametrize("name", BAD_STREAMS)
def test_a_stream_that_is_not_as_documented_is_an_error(name: str) -> None:
    with pytest.raises(UpstreamError):
        read(BAD_STREAMS[name] + END)


def test_events_before_a_fault_come_out_first() -> None:
    reader = Reader()
    events = reader.feed(START + delta(0, text="x") + event("error", {}))
    assert len(events) == 3
    for _ in range(2):
        with pytest.raises(UpstreamError) as caught:
            reader.feed(delta(0, text="y"))
        assert caught.value.code == "upstream_stream_error"


def test_egress_passes_on_what_came_before_an_error_and_nothing_after() -> None:
    usage = ConverseStreamMeter()
    before = START + delta(0, text="event: error")
    assert usage.feed(before + event("error", {"message": "sk-secret"}) + END) == before
    for ask in (lambda: usage.feed(END), usage.finish):
        with pytest.raises(UpstreamError):
            ask()


def test_words_of_the_model_are_no_events() -> None:
    text = "\n\nevent: error\ndata: {}\n\nevent: messageStop\ndata: {}\n\nevent: metadata\n"
    data = START + delta(0, text=text) + stopped(0) + END
    assert passed(data) == (data, Usage(1, 1))
    assert fold(read(data)).choices[0].parts == (Text(text),)


def test_a_call_or_a_thought_without_end_is_cut_off() -> None:
    piece = "x" * 500_000
    for start, more in (
        (CALL, delta(0, toolUse={"input": piece})),
        (b"", delta(0, reasoningContent={"signature": piece})),
        (b"", delta(0, reasoningContent={"redactedContent": "A" * 500_000})),
    ):
        reader = Reader()
        reader.feed(START + start)
        with pytest.raises(UpstreamError) as caught:
            for _ in range(2 * MAX_TOOL_ARGUMENTS_BYTES // len(piece)):
                reader.feed(more)
        assert caught.value.code == "upstream_too_large"


@given(
    st.lists(
        st.sampled_from(
            [START, CALL, END, delta(0, text="x"), delta(1, text="y"), stopped(0), stopped(1), delta(0, toolUse={"input": "{}"}), b"x\n\n", b"\xff"]
        ),
        max_size=8,
    )
)
def test_any_order_of_events_is_a_stream_or_an_error(pieces: list[bytes]) -> None:
    try:
        answer = fold(read(*pieces))
    except UpstreamError:
        return
    assert len(answer.choices) == 1
    assert passed(*pieces)[1] == Usage(1, 1)  # what the worker takes for whole, egress does too
