"""A whole answer: a provider's message read, and any answer written as a message for a client of this dialect.

What always holds: an answer with a block or a reason to stop that is not known here is an `UpstreamError`, never a shorter answer. A client that did not ask
to see thoughts gets none. What another vendor signed carries that vendor's name (`signatures.py`): given back by the client it would else count as Anthropic's.

Anthropic has no refusal of the model's own words: they are text, with the reason to stop that says so. What a provider's filter stopped is `refusal` too.
"""

from __future__ import annotations

from typing import Any

import msgspec

from cliproxy.dialects import Dialect
from cliproxy.errors import UpstreamError
from cliproxy.formats.json_bounds import answer_as
from cliproxy.metering.anthropic_messages import counted, usage_in
from cliproxy.metering.usage import Usage
from cliproxy.translators.anthropic_messages.request import MessagesRequest
from cliproxy.translators.anthropic_messages.signatures import Kind, signature_of, tag
from cliproxy.translators.anthropic_messages.to_hub import citation_of
from cliproxy.translators.anthropic_messages.wire import TextCitation
from cliproxy.translators.conversation import (
    AssistantPart,
    Choice,
    Citation,
    ConversationAnswer,
    Reasoning,
    Refusal,
    StopReason,
    Text,
    ToolCall,
    verify_arguments,
)

STOP_REASONS = {
    "end_turn": StopReason.END,
    "max_tokens": StopReason.LENGTH,
    "model_context_window_exceeded": StopReason.LENGTH,
    "stop_sequence": StopReason.STOP_SEQUENCE,
    "tool_use": StopReason.TOOL_CALLS,
    "pause_turn": StopReason.PAUSE,
    "refusal": StopReason.REFUSAL,
}
STOP_WORDS = {
    StopReason.END: "end_turn",
    StopReason.LENGTH: "max_tokens",
    StopReason.STOP_SEQUENCE: "stop_sequence",
    StopReason.TOOL_CALLS: "tool_use",
    StopReason.PAUSE: "pause_turn",
    StopReason.REFUSAL: "refusal",
    StopReason.FILTER: "refusal",
}
_NULL = msgspec.Raw(b"null")
_encoder = msgspec.json.Encoder()


# --- reading ---------------------------------------------------------------------------------------------------------


class SaidText(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="text"):
    text: str
    citations: list[TextCitation] | None = None


class SaidThinking(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="thinking"):
    thinking: str
    signature: str = ""


class SaidRedacted(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="redacted_thinking"):
    data: str


class SaidCall(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="tool_use"):
    id: str
    name: str
    input: msgspec.Raw


Said = SaidText | SaidThinking | SaidRedacted | SaidCall


class StopDetails(msgspec.Struct, frozen=True, gc=False):
    explanation: str | None = None


class _Answer(msgspec.Struct, gc=False):
    type: str
    content: list[Said]
    id: str = ""
    model: str = ""
    stop_reason: str | None = None
    stop_sequence: str | None = None
    stop_details: StopDetails | None = None
    usage: msgspec.Raw = _NULL


_decoder = msgspec.json.Decoder(_Answer)


def decode_answer(body: bytes) -> ConversationAnswer:
    """Return the message in `body`. Raises `UpstreamError` if it is none, holds what is not known here, or a tool call whose input is no object."""
    answer = answer_as(_decoder, body)
    if answer is None or answer.type != "message":
        raise not_a_message()
    parts: list[AssistantPart] = [part_of(block) for block in answer.content if not isinstance(block, SaidText) or block.text]
    parts += explanation_of(answer.stop_details)
    choice = Choice(0, tuple(parts), stop_of(answer.stop_reason), answer.stop_sequence or "")
    read = usage_in(answer.usage)
    return ConversationAnswer(answer.id, answer.model, (choice,), counted(read, None) if read is not None else None)


def part_of(block: Said) -> AssistantPart:
    """Return `block` in the hub's words. Raises `UpstreamError` for a call whose input is no object."""
    if isinstance(block, SaidText):
        return Text(block.text, tuple(map(citation_of, block.citations or ())))
    if isinstance(block, SaidThinking):
        return Reasoning(block.thinking, block.signature, signer=Dialect.ANTHROPIC_MESSAGES if block.signature else None)
    if isinstance(block, SaidRedacted):
        return Reasoning(redacted=block.data, signer=Dialect.ANTHROPIC_MESSAGES)
    return ToolCall(block.id, block.name, verify_arguments(bytes(block.input).decode()))


def explanation_of(details: StopDetails | None) -> list[Refusal]:
    """Return why the vendor stopped the model, if it says so in words."""
    return [Refusal(details.explanation)] if details is not None and details.explanation else []


def stop_of(reason: str | None) -> StopReason:
    """Return the reason to stop. Raises `UpstreamError` for none and for one that is not known."""
    stop = STOP_REASONS.get(reason or "")
    if stop is None:
        raise UpstreamError("The provider's answer ended for a reason that the gateway does not know.", code="bad_upstream_answer")
    return stop


def not_a_message() -> UpstreamError:
    return UpstreamError("The provider's answer is not a message as Anthropic documents it.", code="bad_upstream_answer")


# --- writing ---------------------------------------------------------------------------------------------------------


def encode_answer(answer: ConversationAnswer, *, request: MessagesRequest | None, id: str, model: str, created: int) -> bytes:
    """Return `answer` as a message for a client of this dialect, who asked for one choice. `id` and `model` stand where the answer has none.

    Raises `UpstreamError` for what a message cannot hold (an image, no choice at all, or several).
    """
    if not answer.choices:
        raise UpstreamError("The provider's answer is empty.", code="bad_upstream_answer")
    if len(answer.choices) > 1:
        raise several_choices()
    choice = answer.choices[0]
    shows = shows_thoughts(request)
    given = answer.id or id
    content: list[dict[str, Any]] = []
    for place, part in enumerate(choice.parts):
        block = _block(part, shows, f"toolu_{given}_{place}")
        if block is not None:
            content.append(block)
        if isinstance(part, ToolCall) and part.signature and shows:
            content.append(call_proof(Dialect.GEMINI_GENERATE, part.signature))
    message = {
        "id": given,
        "type": "message",
        "role": "assistant",
        "model": answer.model or model,
        "content": content,
        "stop_reason": stop_word(
            choice.stop,
            calls=any(isinstance(part, ToolCall) for part in choice.parts),
            refuses=any(isinstance(part, Refusal) for part in choice.parts),
        ),
        "stop_sequence": choice.stop_sequence or None,
        "usage": usage_fields(answer.usage),
    }
    return _encoder.encode(message)


def shows_thoughts(request: MessagesRequest | None) -> bool:
    """Whether a client wants to see thoughts. One that said nothing does not expect them before its text."""
    if request is None:
        return True
    thinking = request.wire.thinking
    return thinking is not None and thinking.type != "disabled" and thinking.display != "omitted"


def stop_word(stop: StopReason, *, calls: bool, refuses: bool) -> str:
    """Return the reason in the vendor's words, which clients go by: tools are to be run, the model declined."""
    if stop is StopReason.END:
        if calls:
            return "tool_use"
        if refuses:
            return "refusal"
    return STOP_WORDS[stop]


def usage_fields(usage: Usage | None) -> dict[str, Any]:
    """Return `usage` as the vendor counts it; zeros if it is not known, since its SDKs want numbers."""
    if usage is None:
        return {"input_tokens": 0, "output_tokens": 0}
    fields: dict[str, Any] = {
        "input_tokens": max(usage.prompt - usage.cached - usage.cache_written, 0),
        "cache_creation_input_tokens": usage.cache_written,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": usage.completion,
    }
    if usage.reasoning:
        fields["output_tokens_details"] = {"thinking_tokens": usage.reasoning}
    return fields


def citation_fields(citation: Citation) -> dict[str, Any] | None:
    """Return `citation` as one of the vendor's; None if it names no source. The hub does not know places within a source: they are given as 0."""
    if citation.url:
        return {
            "type": "web_search_result_location",
            "url": citation.url,
            "title": citation.title or None,
            "encrypted_index": "",
            "cited_text": citation.cited,
        }
    if citation.document < 0:
        return None
    return {
        "type": "char_location",
        "cited_text": citation.cited,
        "document_index": citation.document,
        "document_title": citation.title or None,
        "start_char_index": 0,
        "end_char_index": 0,
    }


def redacted_block(part: Reasoning) -> dict[str, Any]:
    return {"type": "redacted_thinking", "data": tag(part.signer, Kind.REDACTED, part.redacted, part.id)}


def call_proof(signer: Dialect, signature: str) -> dict[str, Any]:
    """Return the block that stands behind a call whose vendor signed it (Gemini does)."""
    return {"type": "redacted_thinking", "data": tag(signer, Kind.CALL, signature)}


def several_choices() -> UpstreamError:
    return UpstreamError("The provider's answer has several choices where one was asked for.", code="bad_upstream_answer")


def cannot_hold() -> UpstreamError:
    return UpstreamError("The provider's answer holds what a message of Anthropic's cannot.", code="bad_upstream_answer")


def _block(part: AssistantPart, shows: bool, spare_id: str) -> dict[str, Any] | None:
    if isinstance(part, Text):
        if not part.text:
            return None
        citations = [fields for citation in part.citations if (fields := citation_fields(citation)) is not None]
        return {"type": "text", "text": part.text, "citations": citations or None}
    if isinstance(part, Refusal):
        return {"type": "text", "text": part.text, "citations": None} if part.text else None
    if isinstance(part, ToolCall):
        arguments = msgspec.Raw(verify_arguments(part.arguments).encode())
        return {"type": "tool_use", "id": part.id or spare_id, "name": part.name, "input": arguments}
    if isinstance(part, Reasoning):
        if not shows:
            return None
        if part.redacted:
            return redacted_block(part)
        return {"type": "thinking", "thinking": part.text, "signature": signature_of(part)} if part.text or part.signature else None
    raise cannot_hold()
