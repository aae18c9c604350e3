"""Whole Responses answers: what is read of a provider's, what a client gets, what egress counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response

from cliproxy.dialects import Dialect
from cliproxy.errors import UpstreamError
from cliproxy.metering.openai_responses import usage_of_answer
from cliproxy.metering.usage import Usage
from cliproxy.translators.conversation import Choice, Citation, ConversationAnswer, Image, Reasoning, Refusal, StopReason, Text, ToolCall
from cliproxy.translators.openai_responses.answer import decode_answer, encode_answer
from cliproxy.translators.openai_responses.decode import decode_responses
from translators.hub_strategies import Feature, answers, texts

VECTORS = Path(__file__).parents[1] / "vectors" / "openai_responses"
ANSWERS = {path.stem.removeprefix("answer_"): json.loads(path.read_text())["body"] for path in sorted(VECTORS.glob("answer_*.json"))}
RESPONSES = Dialect.OPENAI_RESPONSES
U = Usage(36, 12)
END, LENGTH, FILTER, CALLS = StopReason.END, StopReason.LENGTH, StopReason.FILTER, StopReason.TOOL_CALLS
READ: dict[str, tuple[tuple[Any, ...], StopReason, Usage]] = {
    "text": ((Text("The Rhine, the Danube, the Ebro – größere."),), END, U),
    "two_parts": ((Text("One."), Text("Two.")), END, U),
    "tool_calls": (
        (Text("I ask."), ToolCall("call_a", "get_weather", '{"place": "Bergen"}'), ToolCall("call_b", "get_weather", '{"place":"Oslo"}')),
        CALLS,
        U,
    ),
    "tool_call_without_arguments": ((ToolCall("call_a", "now", "{}"),), CALLS, U),
    "cut": ((Text("Once upon a"),), LENGTH, U),
    "filtered": ((Text("Take two"),), FILTER, U),
    "refusal": ((Refusal("I won't."),), StopReason.REFUSAL, U),
    "reasoning": ((Reasoning("Small divisors first.\n\nNone fits.", id="rs_1"), Text("Yes.")), END, U),
    "reasoning_encrypted": (
        (
            Reasoning("I ask the tool.", "gAAAAABthought", signer=RESPONSES, id="rs_1"),
            Reasoning(redacted="gAAAAABmore", signer=RESPONSES, id="rs_2"),
            ToolCall("call_a", "get_weather", "{}"),
        ),
        CALLS,
        U,
    ),
    "usage_details": ((Text("Yes."),), END, Usage(2048, 300, 1024, 256, 512)),
    "citations": ((Text("It rains there.", (Citation("https://example.com/rain", "Rain", start=0, end=14),)),), END, U),
}


def encode(answer: ConversationAnswer, request: Any = None) -> dict[str, Any]:
    body = encode_answer(answer, request=request, id="resp_own", model="own-model", created=7)
    Response.model_validate_json(body)  # OpenAI's own types, strictly
    assert usage_of_answer(body) == answer.usage
    document: dict[str, Any] = json.loads(body)
    return document


def said(*parts: Any, stop: StopReason = END, id: str = "resp_1") -> ConversationAnswer:
    return ConversationAnswer(id, "m", (Choice(0, parts, stop),), U, 5)


def body_with(**fields: Any) -> bytes:
    return json.dumps({**ANSWERS["text"], **fields}).encode()


def test_every_vector_is_expected() -> None:
    assert ANSWERS.keys() == READ.keys()


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_is_read(name: str) -> None:
    parts, stop, usage = READ[name]
    for body in (json.dumps(ANSWERS[name]), json.dumps(ANSWERS[name], ensure_ascii=False, separators=(",", ":"))):
        answer = decode_answer(body.encode())
        assert answer == ConversationAnswer("resp_0a1b", "gpt-test-2026", (Choice(0, parts, stop),), usage, 1764000000)
        assert usage_of_answer(body.encode()) == usage


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_written_again_says_the_same(name: str) -> None:
    answer = decode_answer(json.dumps(ANSWERS[name]).encode())
    assert decode_answer(json.dumps(encode(answer)).encode()) == answer


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_cut_anywhere_or_with_trailing_garbage_is_none(name: str) -> None:
    body = json.dumps(ANSWERS[name], ensure_ascii=False).encode()
    for cut in range(len(body)):
        for read in (decode_answer, usage_of_answer):
            with pytest.raises(UpstreamError):
                read(body[:cut])
    for tail in (b"x", b"{}", body):
        for read in (decode_answer, usage_of_answer):
            with pytest.raises(UpstreamError):
                read(body + tail)


@pytest.mark.parametrize(
    "body",
    [
        b'{"choices":[{"message":{"role":"assistant","content":"x"}}]}',
        b'{"type":"message","role":"assistant","content":[{"type":"text","text":"x"}]}',
        b'{"candidates":[]}',
        b'{"error":{"message":"your quota"}}',
        body_with(status="failed", error={"code": "server_error", "message": "your quota"}),
        body_with(error={"code": "server_error", "message": "your quota"}),
        body_with(status="failed"),
        body_with(status="in_progress"),
        body_with(status="queued"),
        body_with(status="cancelled"),
        body_with(status="new"),
        body_with(output={}),
        body_with(output=[5]),
        body_with(id="a").replace(b'"id": "a"', b'"id": "\xff"'),
        body_with(x="a").replace(b'"x": "a"', b'"x": "\xff"'),
        body_with(output=[{"type": "message", "content": [{}] * 70_000}]),
    ],
)
def test_what_is_no_finished_response_is_the_providers_fault(body: bytes) -> None:
    for read in (decode_answer, usage_of_answer):
        with pytest.raises(UpstreamError) as caught:
            read(body)
        assert "quota" not in caught.value.message


@pytest.mark.parametrize(
    "item",
    [
        {"type": "custom_tool_call", "call_id": "c", "name": "f", "input": "x"},
        {"type": "brand_new", "text": "x"},
        {"type": "message", "content": [{"type": "brand_new", "text": "x"}]},
        {"type": "message", "content": [{"type": "output_text", "text": 5}]},
        {"type": "function_call", "name": "f", "arguments": "{}"},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"a": '},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "[1]"},
        {"text": "x"},
    ],
)
def test_an_item_that_is_not_understood_is_never_passed_over(item: dict[str, Any]) -> None:
    with pytest.raises(UpstreamError):
        decode_answer(body_with(output=[item]))


@pytest.mark.parametrize("usage", [None, {}, {"input_tokens": -1, "output_tokens": 1}, {"input_tokens": "5", "output_tokens": 1}, [], 5])
def test_usage_that_makes_no_sense_is_none(usage: Any) -> None:
    assert usage_of_answer(body_with(usage=usage)) is None
    assert decode_answer(body_with(usage=usage)).usage is None


@given(st.binary(max_size=200))
def test_garbage_is_an_upstream_error_and_nothing_else(body: bytes) -> None:
    for read in (decode_answer, usage_of_answer):
        with pytest.raises(UpstreamError):
            read(body)


# --- for a client ---


@pytest.mark.parametrize(
    ("stop", "parts", "status", "reason"),
    [
        (StopReason.END, (Text("x"),), "completed", None),
        (StopReason.STOP_SEQUENCE, (Text("x"),), "completed", None),
        (StopReason.TOOL_CALLS, (ToolCall("c", "f", "{}"),), "completed", None),
        (StopReason.REFUSAL, (Refusal("x"),), "completed", None),
        (StopReason.REFUSAL, (Text("x"),), "incomplete", "content_filter"),
        (StopReason.REFUSAL, (), "incomplete", "content_filter"),
        (StopReason.FILTER, (Text("x"),), "incomplete", "content_filter"),
        (StopReason.LENGTH, (Text("x"),), "incomplete", "max_output_tokens"),
        (StopReason.PAUSE, (Text("x"),), "incomplete", None),
    ],
)
def test_why_an_answer_ended(stop: StopReason, parts: tuple[Any, ...], status: str, reason: str | None) -> None:
    document = encode(said(*parts, stop=stop))
    assert document["status"] == status
    assert document["incomplete_details"] == ({"reason": reason} if status == "incomplete" else None)
    if parts and document["output"][-1]["type"] == "message":
        assert document["output"][-1]["status"] == status


def test_neighbouring_texts_are_one_message_and_ids_follow_from_the_answers() -> None:
    parts = (Reasoning("t"), Text("a"), Refusal("b"), ToolCall("", "f", "{}"), Text("c"))
    document = encode(said(*parts))
    assert [(item["type"], item["id"]) for item in document["output"]] == [
        ("reasoning", "rs_1_0"),
        ("message", "msg_1_1"),
        ("function_call", "fc_1_2"),
        ("message", "msg_1_3"),
    ]
    assert [part["type"] for part in document["output"][1]["content"]] == ["output_text", "refusal"]
    assert document["output"][2]["call_id"] == "call_1_2"
    assert encode(said(*parts)) == document


def test_the_answers_own_id_model_and_time_come_first() -> None:
    document = encode(ConversationAnswer("", "", (Choice(0, (Text("x"),), END),), None))
    assert (document["id"], document["model"], document["created_at"], document["usage"]) == ("resp_own", "own-model", 7, None)
    document = encode(ConversationAnswer("msg_abc", "theirs", (Choice(0, (Text("x"),), END),), None, 9))
    assert (document["id"], document["model"], document["created_at"]) == ("msg_abc", "theirs", 9)


def test_what_the_client_set_comes_back_but_not_what_it_said() -> None:
    body = {
        "model": "m",
        "input": "secret words",
        "instructions": "secret words",
        "temperature": 0.5,
        "tools": [{"type": "function", "name": "f", "parameters": {}, "strict": True}],
    }
    request = decode_responses(json.dumps(body).encode(), max_tokens_cap=99, on_excess="reject", allow_provider_state=False)
    document = encode(said(Text("x")), request)
    assert (document["temperature"], document["tools"], document["max_output_tokens"], document["store"]) == (0.5, body["tools"], 99, False)
    assert "secret words" not in json.dumps(document)


def test_signatures_of_other_vendors_are_marked_with_their_name() -> None:
    parts = (
        Reasoning("t", "s", signer=Dialect.ANTHROPIC_MESSAGES),
        Reasoning(redacted="r", signer=Dialect.ANTHROPIC_MESSAGES),
        ToolCall("c", "f", "{}", signature="g"),
    )
    output = encode(said(*parts))["output"]
    assert [item.get("encrypted_content") for item in output] == [
        "cliproxy:anthropic_messages:signature:s",
        "cliproxy:anthropic_messages:redacted:r",
        None,
        "cliproxy:gemini_generate:call:g",
    ]


def test_a_picture_is_an_image_generation_call_and_a_link_to_one_is_refused() -> None:
    document = encode(said(Image("image/webp", "AAAA")))
    assert (document["output"][0]["result"], document["output"][0]["output_format"]) == ("AAAA", "webp")
    assert decode_answer(json.dumps(document).encode()).choices[0].parts == (Image("image/webp", "AAAA"),)
    with pytest.raises(UpstreamError):
        encode(said(Image(url="https://x.example")))


def test_several_choices_are_the_providers_fault() -> None:
    choices = (Choice(0, (Text("x"),), END), Choice(1, (Text("x"),), END))
    with pytest.raises(UpstreamError):
        encode(ConversationAnswer("a", "m", choices, U))


def test_a_source_without_a_link_is_a_files() -> None:
    (part,) = encode(said(Text("abc", (Citation(title="Report", document=2), Citation("https://x.example")))))["output"][0]["content"]
    assert part["annotations"] == [
        {"type": "file_citation", "file_id": "", "filename": "Report", "index": 2},
        {"type": "url_citation", "url": "https://x.example", "title": "", "start_index": 0, "end_index": 3},
    ]


FEATURES: frozenset[Feature] = frozenset({"tools", "reasoning", "redacted", "refusal", "cache"})
cited = st.builds(Citation, url=texts(1), title=texts(0), start=st.integers(0, 9), end=st.integers(9, 99))


@given(answers(FEATURES, signer=RESPONSES, stops=(END, LENGTH, FILTER), created=True), st.lists(cited, max_size=2))
def test_what_the_dialect_can_say_comes_back(answer: ConversationAnswer, citations: list[Citation]) -> None:
    (choice,) = answer.choices
    parts = tuple(Text(part.text, tuple(citations)) if isinstance(part, Text) else part for part in choice.parts)
    answer = ConversationAnswer(answer.id, answer.model, (Choice(0, parts, choice.stop),), answer.usage, answer.created)
    assert without_ids(decode_answer(json.dumps(encode(answer)).encode())) == answer


def without_ids(answer: ConversationAnswer) -> ConversationAnswer:
    """`answer` without the ids that thoughts were given."""
    (choice,) = answer.choices
    parts = tuple(Reasoning(p.text, p.signature, p.redacted, p.signer) if isinstance(p, Reasoning) else p for p in choice.parts)
    return ConversationAnswer(answer.id, answer.model, (Choice(0, parts, choice.stop),), answer.usage, answer.created)


@given(answers())
def test_any_answer_is_a_response(answer: ConversationAnswer) -> None:
    encode(answer)
