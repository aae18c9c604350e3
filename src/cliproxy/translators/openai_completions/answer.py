"""A whole answer of the hub as a legacy completion.

Thoughts and sources have no place in it and are left out; an answer that is more than text (a tool call, a picture) is refused, since what is left of it would
be another answer.
"""

from __future__ import annotations

from typing import Any

import msgspec

from cliproxy.errors import UpstreamError
from cliproxy.translators.conversation import AssistantPart, Choice, ConversationAnswer, Reasoning, Refusal, StopReason, Text
from cliproxy.translators.openai_chat.answer_parts import told_usage
from cliproxy.translators.openai_completions.request import CompletionRequest

_REASONS = {
    StopReason.END: "stop",
    StopReason.STOP_SEQUENCE: "stop",
    StopReason.LENGTH: "length",
    StopReason.PAUSE: "length",
    StopReason.FILTER: "content_filter",
    StopReason.REFUSAL: "content_filter",
}


def encode_answer(answer: ConversationAnswer, *, request: CompletionRequest | None, id: str, model: str, created: int) -> bytes:
    """Return `answer` for a client. `id`, `model` and `created` (seconds) stand where the provider names none. Raises `UpstreamError` for more than text."""
    body: dict[str, Any] = {
        "id": answer.id or id,
        "object": "text_completion",
        "created": answer.created or created,
        "model": answer.model or model,
        "choices": [_told(choice) for choice in answer.choices],
    }
    if answer.usage is not None:
        body["usage"] = told_usage(answer.usage)
    return msgspec.json.encode(body)


def _told(choice: Choice) -> dict[str, Any]:
    for part in choice.parts:
        verify_is_text(part)
    text = "".join(part.text for part in choice.parts if isinstance(part, Text | Refusal))
    return {"text": text, "index": choice.index, "logprobs": None, "finish_reason": finish_reason_of(choice.stop)}


def verify_is_text(part: AssistantPart) -> None:
    """Raise `UpstreamError` for a part that no completion can hold."""
    if not isinstance(part, Text | Refusal | Reasoning):
        raise UpstreamError("The provider's answer is more than a text, which is all that a completion can be.", code="bad_upstream_answer")


def finish_reason_of(stop: StopReason) -> str:
    """Return OpenAI's word. Raises `UpstreamError` for an answer that calls tools."""
    reason = _REASONS.get(stop)
    if reason is None:
        raise UpstreamError("The provider's answer calls a tool, which no completion can.", code="bad_upstream_answer")
    return reason
