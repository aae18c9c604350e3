"""Whole answers: a provider's response read into the hub, and an answer of the hub as a response for a client.

What always holds: a provider's response is finished and all of it is understood, or it is an `UpstreamError`; what a client gets has every field that OpenAI's
SDK asks for. What the client set comes back in it (`tools`, `temperature`, …), but not what it said.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from cliproxy.dialects import Dialect
from cliproxy.errors import UpstreamError
from cliproxy.metering.openai_responses import usage_of_answer
from cliproxy.metering.usage import Usage
from cliproxy.translators.conversation import (
    AssistantPart,
    Choice,
    ConversationAnswer,
    Image,
    Reasoning,
    Refusal,
    StopReason,
    Text,
    ToolCall,
)
from cliproxy.translators.openai_responses import answer_parts
from cliproxy.translators.openai_responses.request import ResponsesRequest

Seconds = Annotated[float, Meta(ge=0, le=2**53)]


class Incomplete(msgspec.Struct, gc=False):
    reason: str | None = None


class _Response(msgspec.Struct, gc=False):
    output: list[msgspec.Raw]
    id: str | None = None
    model: str | None = None
    status: str | None = None
    incomplete_details: Incomplete | None = None
    created_at: Seconds | None = None


_decoder = msgspec.json.Decoder(_Response)
_encode = msgspec.json.Encoder().encode


def decode_answer(body: bytes) -> ConversationAnswer:
    """Return a provider's response. Raises `UpstreamError` if it is none, failed, is not finished, or holds what the hub has no place for."""
    usage = usage_of_answer(body)  # which makes sure that it is a finished response of not too many items, all of them objects
    try:
        response = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise UpstreamError("The provider's answer is not a response.", code="bad_upstream_answer") from None
    parts: list[AssistantPart] = []
    for raw in response.output:
        parts += answer_parts.parts_of(answer_parts.read_item(raw))
    reason = response.incomplete_details.reason if response.incomplete_details is not None else None
    choice = Choice(0, tuple(parts), answer_parts.stop_of(response.status, reason, parts))
    return ConversationAnswer(response.id or "", response.model or "", (choice,), usage, int(response.created_at or 0))


def encode_answer(answer: ConversationAnswer, *, request: ResponsesRequest | None, id: str, model: str, created: int) -> bytes:
    """Return `answer` as a response; `id`, `model` and `created` are used where the answer has none.

    Raises `UpstreamError` for an answer of several choices, which the client cannot have asked for.
    """
    if len(answer.choices) != 1:
        raise UpstreamError("The provider's answer has several choices where one was asked for.", code="bad_upstream_answer")
    choice = answer.choices[0]
    name = answer.id or id
    status, reason = status_of(choice.stop, refused=any(isinstance(part, Refusal) for part in choice.parts))
    made = _items(choice.parts, answer_parts.stem_of(name))
    if made and made[-1]["type"] == "message":
        made[-1]["status"] = status
    output = [_encode(item) for item in made]
    return Envelope(request, id=name, model=answer.model or model, created=answer.created or created).response(status, reason, output, answer.usage)


def _items(parts: tuple[AssistantPart, ...], stem: str) -> list[dict[str, Any]]:
    """Return the items that say `parts`; neighbouring texts and refusals are one message."""
    made: list[dict[str, Any]] = []
    content: list[dict[str, Any]] = []
    for part in parts:
        if isinstance(part, Text | Refusal):
            if not content:
                made.append(answer_parts.message_item(f"msg_{stem}_{len(made)}", "completed", content))
            content.append(_said(part))
            continue
        content = []
        number = len(made)
        if isinstance(part, ToolCall):
            made.append(answer_parts.call_item(f"fc_{stem}_{number}", "completed", part.id or f"call_{stem}_{number}", part.name, part.arguments))
            if part.signature:
                made.append(answer_parts.reasoning_item(f"rs_{stem}_{number + 1}", "", answer_parts.encrypted_of_call(part.signature)))
        elif isinstance(part, Reasoning):
            made.append(answer_parts.reasoning_item(reasoning_id(part, stem, number), part.text, answer_parts.encrypted_of(part)))
        elif isinstance(part, Image):
            made.append(answer_parts.image_item(f"ig_{stem}_{number}", part))
    return made


def reasoning_id(part: Reasoning, stem: str, number: int) -> str:
    """OpenAI's own thoughts keep their id: what is encrypted belongs to it."""
    return part.id if part.id and part.signer in (None, Dialect.OPENAI_RESPONSES) else f"rs_{stem}_{number}"


def _said(part: Text | Refusal) -> dict[str, Any]:
    if isinstance(part, Refusal):
        return answer_parts.refusal_part(part.text)
    return answer_parts.text_part(part.text, [answer_parts.annotation_of(citation, len(part.text)) for citation in part.citations])


def status_of(stop: StopReason, *, refused: bool) -> tuple[str, str | None]:
    """Return status and reason of incompleteness. A refusal without words of its own is the provider's filter's: the dialect has no other name for it."""
    if stop is StopReason.LENGTH:
        return "incomplete", "max_output_tokens"
    if stop is StopReason.FILTER or (stop is StopReason.REFUSAL and not refused):
        return "incomplete", "content_filter"
    return ("incomplete", None) if stop is StopReason.PAUSE else ("completed", None)


# What a response repeats of its request, with what stands for absence. SDKs ask for `tools`, `tool_choice` and `parallel_tool_calls`.
_REPEATED: tuple[tuple[str, Any], ...] = (
    ("background", False),
    ("max_output_tokens", None),
    ("max_tool_calls", None),
    ("metadata", {}),
    ("parallel_tool_calls", True),
    ("reasoning", {"effort": None, "summary": None}),
    ("safety_identifier", None),
    ("service_tier", None),
    ("temperature", None),
    ("text", {"format": {"type": "text"}}),
    ("tool_choice", "auto"),
    ("tools", []),
    ("top_p", None),
    ("truncation", "disabled"),
    ("user", None),
)


class Envelope:
    """A response object around its output, for one request. Its largest part, what it repeats of the request, is encoded once."""

    __slots__ = ("_head", "_tail")

    def __init__(self, request: ResponsesRequest | None, *, id: str, model: str, created: int) -> None:
        rest = request.rest if request is not None else {}
        repeated = {name: absent if (value := rest.get(name)) is None else value for name, absent in _REPEATED}
        head = {"id": id, "object": "response", "created_at": created, "model": model}
        tail = {"instructions": None, "previous_response_id": None, "store": False, **repeated}
        self._head = _encode(head)[:-1]
        self._tail = b"," + _encode(tail)[1:]

    def response(self, status: str, reason: str | None, output: list[bytes], usage: Usage | None) -> bytes:
        """Return the response; `output` are its items as JSON. `reason` is why it is incomplete."""
        state = {
            "status": status,
            "error": None,
            "incomplete_details": {"reason": reason} if status == "incomplete" else None,
            "usage": _usage(usage),
        }
        return b'%b,%b,"output":[%b]%b' % (self._head, _encode(state)[1:-1], b",".join(output), self._tail)


def _usage(usage: Usage | None) -> dict[str, Any] | None:
    if usage is None:
        return None
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": usage.cache_written},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.total,
    }
