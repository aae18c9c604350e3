"""Gemini's whole answers: read for the hub, written for clients, and what egress reads of them."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliproxy.dialects import Dialect, Quirks
from cliproxy.errors import SchemaError, UpstreamError
from cliproxy.metering.gemini_generate import usage_of_answer, verify_count_answer
from cliproxy.metering.usage import Usage
from cliproxy.translators.conversation import Choice, Citation, ConversationAnswer, Image, Reasoning, Refusal, StopReason, Text, ToolCall
from cliproxy.translators.gemini_generate.answer import decode_answer, encode_answer
from cliproxy.translators.gemini_generate.count import decode_count, decode_count_answer, encode_count_same
from cliproxy.translators.gemini_generate.decode import decode_gemini
from cliproxy.translators.gemini_generate.encode import FOREIGN_SIGNATURE, encode_same
from cliproxy.translators.gemini_generate.signatures import TAG
from cliproxy.translators.gemini_generate.to_hub import conversation_of
from translators.hub_strategies import Feature, answers

VECTORS = Path(__file__).parents[1] / "vectors" / "gemini_generate"
ANSWERS = {path.stem: json.loads(path.read_text())["body"] for path in sorted(VECTORS.glob("answer_*.json"))}
G = Dialect.GEMINI_GENERATE


def read(body: Any) -> ConversationAnswer:
    return decode_answer(json.dumps(body).encode())


def only(body: Any) -> Choice:
    (choice,) = read(body).choices
    return choice


def candidate(*parts: Any, reason: str | None = "STOP", **fields: Any) -> dict[str, Any]:
    return {"candidates": [{"content": {"parts": list(parts), "role": "model"}, "finishReason": reason, **fields}]}


# --- from a provider -------------------------------------------------------------------------------------------------


def test_a_plain_answer_in_the_hubs_words() -> None:
    assert read(ANSWERS["answer_text"]) == ConversationAnswer(
        "mAitaLmkHPPlz7IPvtfUqQ4", "gemini-3-flash-preview", (Choice(0, (Text("The moon pulls the sea."),), StopReason.END),), Usage(8, 5)
    )


def test_calls_have_ids_that_other_answers_do_not_repeat() -> None:
    choice = only(ANSWERS["answer_parallel_tool_calls"])
    assert choice == Choice(
        0,
        (
            Text("I look."),
            ToolCall("call_taLmkHPPlz7IPvtfUqQ4_0_0", "get_weather", '{"place": "Oslo"}', "c2lnbmVk"),
            ToolCall("own-id", "set_light", "{}"),
        ),
        StopReason.TOOL_CALLS,
    )
    assert only(ANSWERS["answer_tools"]) == only(ANSWERS["answer_tools"])
    nameless = candidate({"functionCall": {"name": "f", "args": {"x": 1}}})
    (call,) = only(nameless).parts
    assert isinstance(call, ToolCall) and len(call.id) <= 40
    strange = {**nameless, "responseId": 'evil"\n{}' * 100}
    (call,) = only(strange).parts
    assert isinstance(call, ToolCall) and len(call.id) <= 40 and call.id.replace("_", "").isalnum()


def test_thoughts_and_signatures_in_the_hubs_words() -> None:
    assert only(ANSWERS["answer_reasoning"]).parts == (Reasoning("2, 3, 5 and so on.", signer=G), Text("There are 15."))
    assert only(ANSWERS["answer_reasoning_signature"]).parts == (Reasoning("Hm.", signer=G), Text("Fifteen."), Reasoning(signature="c2lnbmVk", signer=G))


def test_thoughts_and_tools_prompts_are_part_of_what_is_counted() -> None:
    expected = Usage(prompt=1030, completion=12, cached=900, reasoning=7)
    assert read(ANSWERS["answer_usage_details"]).usage == expected
    assert usage_of_answer(json.dumps(ANSWERS["answer_usage_details"]).encode()) == expected


def test_citations_are_counted_in_characters() -> None:
    (cited,) = only(ANSWERS["answer_citations"]).parts
    assert cited == Text("To be, or not to be.", (Citation("https://example.com/hamlet", start=0, end=20),))
    (cited,) = only(ANSWERS["answer_grounding"]).parts
    assert isinstance(cited, Text)
    assert [(citation.url, citation.title) for citation in cited.citations] == [
        ("https://example.com/a", "a.example"),
        ("https://example.com/b", "b.example"),
    ]
    assert {cited.text[citation.start : citation.end] for citation in cited.citations} == {"Spain won."}


@pytest.mark.parametrize(
    ("reason", "stop"),
    [
        ("STOP", StopReason.END),
        ("MAX_TOKENS", StopReason.LENGTH),
        ("SAFETY", StopReason.FILTER),
        ("RECITATION", StopReason.FILTER),
        ("PROHIBITED_CONTENT", StopReason.FILTER),
        ("SPII", StopReason.FILTER),
        ("OTHER", StopReason.FILTER),
        ("A_REASON_OF_TOMORROW", StopReason.FILTER),
    ],
)
def test_reasons_to_stop(reason: str, stop: StopReason) -> None:
    assert only(candidate({"text": "x"}, reason=reason)).stop is stop


def test_a_blocked_prompt_is_a_choice_that_was_filtered() -> None:
    assert read(ANSWERS["answer_blocked"]).choices == (Choice(0, (), StopReason.FILTER),)
    assert only(ANSWERS["answer_safety"]) == Choice(0, (), StopReason.FILTER)
    assert usage_of_answer(json.dumps(ANSWERS["answer_blocked"]).encode()) == Usage(8, 0)


def test_pictures_and_several_choices() -> None:
    assert only(ANSWERS["answer_image"]).parts == (Text("Here:"), Image(media_type="image/png", data="iVBORw0KGgo="))
    assert [(choice.index, choice.stop) for choice in read(ANSWERS["answer_choices"]).choices] == [
        (0, StopReason.END),
        (1, StopReason.END),
        (2, StopReason.LENGTH),
    ]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"candidates": []},
        {"candidates": None, "promptFeedback": {}},
        {"candidates": {}},
        {"error": {"code": 500, "message": "x"}},
        {"candidates": [{"finishReason": "STOP"}], "error": {"code": 500}},
        candidate({"text": 1}),
        {"candidates": [{"content": {"parts": "x"}, "finishReason": "STOP"}]},
        {"candidates": [{"content": {"parts": {}}, "finishReason": "STOP"}]},
        {"choices": [{"message": {"content": "hi"}, "index": 0, "finish_reason": "stop"}]},
        {"type": "message", "content": [{"type": "text", "text": "hi"}]},
        [],
        "text",
        None,
    ],
)
def test_an_answer_of_another_dialect_is_the_providers_fault(body: Any) -> None:
    with pytest.raises(UpstreamError):
        read(body)
    with pytest.raises(UpstreamError):
        if body != candidate({"text": 1}):  # egress looks at no parts
            usage_of_answer(json.dumps(body).encode())
        else:
            raise UpstreamError("")


@pytest.mark.parametrize(
    "body",
    [
        candidate({"text": "x"}, reason=None),
        candidate({"text": "x"}, reason="FINISH_REASON_UNSPECIFIED"),
        candidate({"functionCall": {"name": "f", "args": [1]}}),
        candidate({"functionCall": {"name": "f", "args": "{}"}}),
        candidate({"functionCall": {"name": "f", "partialArgs": [{}]}}),
        candidate(reason="MALFORMED_FUNCTION_CALL"),
        candidate(reason="UNEXPECTED_TOOL_CALL"),
        candidate({"executableCode": {"code": "1"}}),
        candidate({"codeExecutionResult": {}}),
        candidate({"inlineData": {"mimeType": "audio/wav", "data": "AAAA"}}),
        candidate({"text": "x"}, index=-1),
        candidate({"text": "x"}, index=1000),
        {"candidates": [{"finishReason": "STOP"}, {"finishReason": "STOP"}]},
    ],
)
def test_an_answer_whose_meaning_cannot_be_told_is_an_error(body: Any) -> None:
    with pytest.raises(UpstreamError):
        read(body)


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_that_is_cut_anywhere_is_an_error(name: str) -> None:
    body = json.dumps(ANSWERS[name], ensure_ascii=False).encode()
    for cut in range(len(body)):
        for reader in (decode_answer, usage_of_answer):
            with pytest.raises(UpstreamError):
                reader(body[:cut])
    for reader in (decode_answer, usage_of_answer):
        with pytest.raises(UpstreamError):
            reader(body + b"{}")


@given(st.binary(max_size=200))
def test_garbage_is_an_upstream_error(body: bytes) -> None:
    for reader in (decode_answer, usage_of_answer, decode_count_answer, verify_count_answer):
        with pytest.raises(UpstreamError):
            reader(body)


@pytest.mark.parametrize(
    "body",
    [
        b'{"candidates":[' + b"{}," * 70_000 + b"{}]}",
        b'{"candidates":[{"finishReason":"STOP","content":{"parts":[' + b"{}," * 70_000 + b"{}]}}]}",
        b'{"candidates":[{"finishReason":"STOP","content":' + b"[" * 100_000,
        b'{"candidates":[{"finishReason":"STOP","x":"\xff"}]}',
    ],
)
def test_a_hostile_answer_is_an_upstream_error(body: bytes) -> None:
    for reader in (decode_answer, usage_of_answer):
        with pytest.raises(UpstreamError):
            reader(body)


@pytest.mark.parametrize(
    ("metadata", "usage"),
    [
        (None, None),
        ({}, None),
        ({"trafficType": "ON_DEMAND"}, None),
        ({"promptTokenCount": -1}, None),
        ({"promptTokenCount": 2**60}, None),
        ({"promptTokenCount": "8"}, None),
        ({"promptTokenCount": 8}, Usage(8, 0)),
        ({"totalTokenCount": 0}, Usage(0, 0)),
        ({"promptTokenCount": 8, "cachedContentTokenCount": 100}, Usage(8, 0, cached=8)),
    ],
)
def test_usage_that_makes_no_sense_is_none(metadata: Any, usage: Usage | None) -> None:
    body = {**ANSWERS["answer_text"], "usageMetadata": metadata}
    assert usage_of_answer(json.dumps(body).encode()) == usage
    assert read(body).usage == usage


# --- to a client -----------------------------------------------------------------------------------------------------


def written(answer: ConversationAnswer, *, thoughts: bool = True) -> dict[str, Any]:
    body = b'{"contents":[{"parts":[{"text":"x"}]}],"generationConfig":{"thinkingConfig":{"includeThoughts":%s}}}' % (b"true" if thoughts else b"false")
    request = decode_gemini(body, model="public", stream=False, max_tokens_cap=10, on_excess="reject")
    made: dict[str, Any] = json.loads(encode_answer(answer, request=request, id="ours", model="public", created=0))
    return made


def test_an_answer_of_another_vendor_for_a_client_of_gemini() -> None:
    parts = (
        Reasoning("Hm.", signer=Dialect.ANTHROPIC_MESSAGES),
        Text("é text", (Citation("https://a.example", "A", start=2, end=6),)),
        ToolCall("a", "f", '{"x": 1}'),
    )
    answer = ConversationAnswer("", "", (Choice(0, parts, StopReason.TOOL_CALLS), Choice(1, (Refusal("No."),), StopReason.REFUSAL)), Usage(10, 9, 4, 3))
    assert written(answer) == {
        "candidates": [
            {
                "content": {
                    "parts": [
                        {"text": "Hm.", "thought": True},
                        {"text": "é text"},
                        {"functionCall": {"id": "a", "name": "f", "args": {"x": 1}}},
                    ],
                    "role": "model",
                },
                "finishReason": "STOP",
                "index": 0,
                "citationMetadata": {"citationSources": [{"uri": "https://a.example", "title": "A", "startIndex": 3, "endIndex": 7}]},
            },
            {"content": {"parts": [{"text": "No."}], "role": "model"}, "finishReason": "SAFETY", "index": 1},
        ],
        "usageMetadata": {"promptTokenCount": 10, "candidatesTokenCount": 6, "totalTokenCount": 19, "thoughtsTokenCount": 3, "cachedContentTokenCount": 4},
        "modelVersion": "public",
        "responseId": "ours",
    }


def test_thoughts_are_shown_only_to_who_asked_but_googles_signatures_stay() -> None:
    parts = (Reasoning("Hm.", "c2ln", signer=G), Reasoning("Hm."), Text("Yes."))
    made = written(ConversationAnswer("i", "m", (Choice(0, parts, StopReason.END),), None), thoughts=False)
    assert made["candidates"][0]["content"]["parts"] == [{"text": "", "thoughtSignature": "c2ln"}, {"text": "Yes."}]
    assert "usageMetadata" not in made


FOREIGN = (
    Reasoning("Hm.", "sig", signer=Dialect.ANTHROPIC_MESSAGES),
    Reasoning(redacted="cipher", signer=Dialect.ANTHROPIC_MESSAGES),
    Reasoning("é\n", redacted="cipher", signer=Dialect.OPENAI_RESPONSES, id="rs_1"),
)


@pytest.mark.parametrize("thoughts", [True, False])
@pytest.mark.parametrize("thought", FOREIGN)
def test_what_another_vendor_signed_comes_back_to_that_vendor_and_never_to_google(thought: Reasoning, thoughts: bool) -> None:
    call = ToolCall("a", "f", "{}")
    made = written(ConversationAnswer("i", "m", (Choice(0, (thought, call), StopReason.TOOL_CALLS),), None), thoughts=thoughts)
    turn = made["candidates"][0]["content"]
    assert ("thought" in turn["parts"][0]) is (thoughts and bool(thought.text))
    response = {"functionResponse": {"name": "f", "response": {"output": "x"}}}
    body = {"contents": [{"parts": [{"text": "?"}]}, turn, {"role": "user", "parts": [response]}]}
    request = decode_gemini(json.dumps(body).encode(), model="m", stream=False, max_tokens_cap=10, on_excess="reject")
    came, called = conversation_of(request).messages[1].parts
    assert came == thought
    assert isinstance(called, ToolCall) and called.signature == ""
    same = encode_same(request, Quirks.NONE)
    assert same.dropped == ("thinking",)
    assert json.loads(same.prefix)["contents"][1]["parts"] == [{"functionCall": {"id": "a", "name": "f", "args": {}}, "thoughtSignature": FOREIGN_SIGNATURE}]
    count = encode_count_same(decode_count(json.dumps({"contents": body["contents"]}).encode(), model="m"), Quirks.NONE)
    assert b"cliproxy" not in count.prefix and TAG.encode() not in count.prefix


@pytest.mark.parametrize(
    "said",
    [
        "",
        "AAAA",
        base64.b64encode(b"[]").decode(),
        base64.b64encode(b'["gemini_generate","","x","",""]').decode(),
        base64.b64encode(b'["no","","x","",""]').decode(),
        "é",
    ],
)
def test_a_mark_that_was_altered_is_refused(said: str) -> None:
    body = {"contents": [{"role": "model", "parts": [{"text": "", "thoughtSignature": TAG + said}]}]}
    request = decode_gemini(json.dumps(body, ensure_ascii=False).encode(), model="m", stream=False, max_tokens_cap=10, on_excess="reject")
    with pytest.raises(SchemaError) as caught:
        conversation_of(request)
    assert caught.value.param == "contents[0].parts[0].thoughtSignature"
    with pytest.raises(SchemaError):  # nothing is left for Google
        encode_same(request, Quirks.NONE)


def test_arguments_that_are_no_object_are_the_providers_fault() -> None:
    answer = ConversationAnswer("i", "m", (Choice(0, (ToolCall("a", "f", '{"x":'),), StopReason.TOOL_CALLS),), None)
    with pytest.raises(UpstreamError):
        written(answer)


SAID: frozenset[Feature] = frozenset({"tools", "reasoning"})


def by_value(answer: ConversationAnswer) -> Any:
    def plain(part: Any) -> Any:
        return (part.id, part.name, json.loads(part.arguments), part.signature) if isinstance(part, ToolCall) else part

    return [(choice.index, [plain(part) for part in choice.parts], choice.stop) for choice in answer.choices], answer.usage, answer.id, answer.model


@given(answers(SAID, signer=G, choices=3))
def test_what_is_written_reads_as_the_same(answer: ConversationAnswer) -> None:
    body = encode_answer(answer, request=None, id="", model="", created=0)
    assert by_value(decode_answer(body)) == by_value(answer)
    assert usage_of_answer(body) == answer.usage
