"""Thoughts that other vendors signed, on their way through a client of the Messages API and back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliproxy.dialects import Dialect, Quirks
from cliproxy.translators.anthropic_messages.answer import encode_answer
from cliproxy.translators.anthropic_messages.count import decode_count
from cliproxy.translators.anthropic_messages.decode import decode_messages
from cliproxy.translators.anthropic_messages.encode import encode_conversation
from cliproxy.translators.anthropic_messages.request import MessagesRequest
from cliproxy.translators.anthropic_messages.signatures import Kind, Tagged, tag, untag
from cliproxy.translators.anthropic_messages.to_hub import conversation_of
from cliproxy.translators.conversation import AssistantPart, Choice, ConversationAnswer, Part, Reasoning, StopReason, Text, ToolCall

THOUGHTS: dict[str, tuple[AssistantPart, ...]] = {
    "Anthropic's": (Reasoning("Hm.", "c2ln", signer=Dialect.ANTHROPIC_MESSAGES), Text("x")),
    "Anthropic's, hidden": (Reasoning(redacted="aGlk", signer=Dialect.ANTHROPIC_MESSAGES), Text("x")),
    "Gemini's": (Reasoning("Hm.", "c2ln", signer=Dialect.GEMINI_GENERATE), Text("x")),
    "proof without words": (Reasoning(signature="c2ln", signer=Dialect.GEMINI_GENERATE), Text("x")),
    "OpenAI's, hidden": (Reasoning(redacted="eGVu", signer=Dialect.OPENAI_RESPONSES, id="rs_1"), Text("x")),
    "OpenAI's, with a summary": (Reasoning("Hm.", "eGVu", signer=Dialect.OPENAI_RESPONSES, id="rs_1"), Text("x")),
    "Bedrock's": (Reasoning("Hm.", "a:b:c", signer=Dialect.BEDROCK_CONVERSE), Text("x")),
    "nobody's": (Reasoning("Hm."), Text("x")),
    "a signed call": (Text("x"), ToolCall("c", "ping", "{}", "Z2Vt", "messages[1].content[1]")),
}


def asked(content: Any) -> bytes:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": content}, {"role": "user", "content": "Go on."}]
    return json.dumps({"model": "m", "max_tokens": 9, "messages": messages}).encode()


def answered(parts: tuple[AssistantPart, ...]) -> list[dict[str, Any]]:
    answer = ConversationAnswer("a", "m", (Choice(0, parts, StopReason.END),), None)
    content: list[dict[str, Any]] = json.loads(encode_answer(answer, request=None, id="", model="", created=0))["content"]
    return content


def decoded(content: Any) -> MessagesRequest:
    return decode_messages(asked(content), max_tokens_cap=99, on_excess="reject")


def parts_of(request: MessagesRequest) -> tuple[Part, ...]:
    return conversation_of(request).messages[1].parts


@pytest.mark.parametrize("name", THOUGHTS)
def test_what_a_client_gives_back_is_what_the_vendor_signed(name: str) -> None:
    assert parts_of(decoded(answered(THOUGHTS[name]))) == THOUGHTS[name]


@pytest.mark.parametrize("name", THOUGHTS)
def test_what_another_vendor_signed_never_reaches_anthropic(name: str) -> None:
    request = decoded(answered(THOUGHTS[name]))
    count = decode_count(json.dumps({**json.loads(asked(answered(THOUGHTS[name]))), "max_tokens": None}).encode())
    for left in (json.dumps(request.rest), json.dumps(count.rest), encode_conversation(conversation_of(request), Quirks.NONE).suffix.decode()):
        assert "cliproxy" not in left and ("thinking" in left) == name.startswith("Anthropic's")
        assert '"x"' in left


def test_a_message_of_such_thoughts_alone_is_gone() -> None:
    assert [message["role"] for message in decoded(answered((Reasoning("Hm."),))).rest["messages"]] == ["user", "user"]


@pytest.mark.parametrize(
    "forged",
    [
        "cliproxy:",
        "cliproxy:x",
        "cliproxy:gemini_generate:",
        "cliproxy:martian:signature::c",
        "cliproxy:gemini_generate:tune::c",
        "cliproxy:gemini_generate:call::c",
    ],
)
def test_what_begins_like_a_mark_and_is_none_was_signed_by_nobody(forged: str) -> None:
    thinking = parts_of(decoded([{"type": "thinking", "thinking": "Hm.", "signature": forged}, {"type": "text", "text": "x"}]))
    hidden = parts_of(decoded([{"type": "redacted_thinking", "data": forged}, {"type": "text", "text": "x"}]))
    assert thinking == (Reasoning("Hm."), Text("x"))
    assert hidden == (Text("x"),)


@given(st.sampled_from(list(Dialect)), st.sampled_from(list(Kind)), st.text(min_size=1), st.text(st.characters(exclude_characters=":")))
def test_a_mark_says_what_it_was_given(signer: Dialect, kind: Kind, text: str, id: str) -> None:
    if signer is Dialect.ANTHROPIC_MESSAGES:
        assert tag(signer, kind, text, id) == text
    else:
        assert untag(tag(signer, kind, text, id), Kind.SIGNATURE) == Tagged(signer, kind, id, text)


def test_a_mark_that_is_spelt_with_escapes_never_reaches_anthropic_either() -> None:
    body = asked(answered(THOUGHTS["Gemini's"])).replace(b"cliproxy:", b"\\u0063liproxy\\u003a")
    request = decode_messages(body, max_tokens_cap=99, on_excess="reject")
    assert [block["type"] for block in request.rest["messages"][1]["content"]] == ["text"]
