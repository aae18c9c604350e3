"""A whole chat completion: a provider's, read into the hub, and the hub's, written for a client.

What is read is bounded before it becomes objects, and an answer that says anything in a form that is not known is an `UpstreamError`, never half an answer.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from cliproxy.bounds import MAX_ANSWER_PARTS, MAX_CHOICES
from cliproxy.errors import UpstreamError
from cliproxy.formats.json_bounds import answer_as
from cliproxy.metering.openai_chat import usage_in
from cliproxy.translators.conversation import (
    AssistantPart,
    Choice,
    Citation,
    ConversationAnswer,
    Image,
    Reasoning,
    Refusal,
    Text,
    ToolCall,
    verify_arguments,
)
from cliproxy.translators.openai_chat.answer_parts import (
    annotation_of,
    citations_of,
    details_of,
    finish_reason_of,
    not_a_completion,
    stop_of,
    thoughts_of,
    told_usage,
)
from cliproxy.translators.openai_chat.answer_wire import ANY_FAULT, NULL, Call, LooseSaid, Said, strict_pieces
from cliproxy.translators.openai_chat.media import image_of, url_of
from cliproxy.translators.openai_chat.request import ChatRequest

# --- a provider's ------------------------------------------------------------------------------------------------------


class _Choice(msgspec.Struct, gc=False):
    message: LooseSaid
    index: Annotated[int, Meta(ge=0, lt=MAX_CHOICES)] = 0
    finish_reason: str | None = None


class _Answer(msgspec.Struct, gc=False):
    choices: Annotated[list[_Choice], Meta(min_length=1, max_length=MAX_CHOICES)]
    id: str | None = None
    model: str | None = None
    created: float | None = None
    usage: msgspec.Raw = NULL


_decoder = msgspec.json.Decoder(_Answer)


def decode_answer(body: bytes) -> ConversationAnswer:
    """Return the answer in `body`. Raises `UpstreamError` if it is no chat completion, or not whole."""
    read = answer_as(_decoder, body)
    if read is None:
        raise not_a_completion()
    id = read.id or ""
    try:
        choices = [_choice(choice, id) for choice in read.choices]
    except ANY_FAULT:
        raise not_a_completion() from None
    if len({choice.index for choice in choices}) < len(choices):
        raise not_a_completion()
    created = int(read.created) if read.created is not None and 0 <= read.created < 2**53 else 0
    usage = usage_in(read.usage) if bytes(read.usage) != b"null" else None
    return ConversationAnswer(id, read.model or "", tuple(choices), usage, created)


def _choice(choice: _Choice, answer_id: str) -> Choice:
    parts: list[AssistantPart] = []
    for said in strict_pieces(choice.message):
        thoughts = thoughts_of(said.reasoning_details or ())
        told = said.reasoning_content or said.reasoning
        if told and not any(thought.text for thought in thoughts):
            parts.append(Reasoning(told))
        parts += thoughts
        if said.content:
            parts.append(Text(said.content))
        if said.refusal:
            parts.append(Refusal(said.refusal))
        parts += _pictures(said)
        if said.annotations:
            _cite(parts, citations_of(said.annotations))
        parts += _calls(said, f"call_{answer_id[-24:]}_{choice.index}_")
    if len(parts) > MAX_ANSWER_PARTS:
        raise UpstreamError("The provider's answer has too many parts.", code="upstream_too_large")
    called = any(isinstance(part, ToolCall) for part in parts)
    refused = any(isinstance(part, Refusal) for part in parts)
    return Choice(choice.index, tuple(parts), stop_of(choice.finish_reason, called=called, refused=refused))


def _pictures(said: Said) -> list[Image]:
    pictures = [image_of(picture.image_url.url) for picture in said.images or ()]
    whole = [picture for picture in pictures if picture is not None]
    if len(whole) < len(pictures):
        raise not_a_completion()
    return whole


def _cite(parts: list[AssistantPart], citations: list[Citation]) -> None:
    """Sources go to the last text; where there is none, they stand alone."""
    for index in reversed(range(len(parts))):
        part = parts[index]
        if isinstance(part, Text):
            offset = sum(len(other.text) for other in parts[:index] if isinstance(other, Text))
            parts[index] = Text(part.text, tuple(_moved(citation, offset) for citation in citations))
            return
    if citations:
        parts.append(Text("", tuple(_moved(citation, 0) for citation in citations)))


def _moved(citation: Citation, offset: int) -> Citation:
    inside = citation.start >= offset and citation.end >= citation.start
    start, end = (citation.start - offset, citation.end - offset) if inside else (-1, -1)
    return Citation(url=citation.url, title=citation.title, cited=citation.cited, start=start, end=end)


def _calls(said: Said, id_prefix: str) -> list[ToolCall]:
    calls = list(said.tool_calls or ())
    if said.function_call is not None:
        calls.append(Call(function=said.function_call))
    read = []
    for index, call in enumerate(calls):
        if call.function is None or not call.function.name:
            raise UpstreamError("The provider's tool call names no tool.", code="bad_tool_call")
        google = call.extra_content.google if call.extra_content is not None else None
        signature = (google.thought_signature or "") if google is not None else ""
        read.append(ToolCall(call.id or f"{id_prefix}{index}", call.function.name, verify_arguments(call.function.arguments or ""), signature))
    return read


# --- the hub's ---------------------------------------------------------------------------------------------------------


def encode_answer(answer: ConversationAnswer, *, request: ChatRequest | None, id: str, model: str, created: int) -> bytes:
    """Return `answer` for a client. `id`, `model` and `created` (seconds) stand where the provider names none."""
    body: dict[str, Any] = {
        "id": answer.id or id,
        "object": "chat.completion",
        "created": answer.created or created,
        "model": answer.model or model,
        "choices": [_told(choice) for choice in answer.choices],
    }
    if answer.usage is not None:
        body["usage"] = told_usage(answer.usage)
    return msgspec.json.encode(body)


def _told(choice: Choice) -> dict[str, Any]:
    parts = choice.parts
    message: dict[str, Any]
    if len(parts) == 1 and isinstance(text := parts[0], Text) and not text.citations:  # most answers
        message = {"role": "assistant", "content": text.text, "refusal": None}
    else:
        message = _message_of(parts)
    return {"index": choice.index, "message": message, "logprobs": None, "finish_reason": finish_reason_of(choice.stop, refused=message["refusal"] is not None)}


def _message_of(parts: tuple[AssistantPart, ...]) -> dict[str, Any]:
    texts: list[str] = []
    thoughts: list[str] = []
    refusals: list[str] = []
    details: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    notes: list[dict[str, Any]] = []
    pictures: list[dict[str, Any]] = []
    offset = 0
    for part in parts:
        if isinstance(part, Text):
            told = [annotation_of(citation, offset=offset, length=len(part.text)) for citation in part.citations]
            notes += [note for note in told if note is not None]
            texts.append(part.text)
            offset += len(part.text)
        elif isinstance(part, Reasoning):
            if part.text:
                thoughts.append(part.text)
            details.append(details_of(part, len(details)))
        elif isinstance(part, ToolCall):
            calls.append(_told_call(part))
        elif isinstance(part, Refusal):
            refusals.append(part.text)
        else:
            pictures.append({"type": "image_url", "image_url": {"url": url_of(part)}, "index": len(pictures)})
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts) if texts else None, "refusal": "".join(refusals) if refusals else None}
    for name, value in (("reasoning_content", "".join(thoughts)), ("reasoning_details", details), ("annotations", notes), ("images", pictures)):
        if value:
            message[name] = value
    if calls:
        message["tool_calls"] = calls
    return message


def _told_call(call: ToolCall) -> dict[str, Any]:
    told: dict[str, Any] = {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
    if call.signature:
        told["extra_content"] = {"google": {"thought_signature": call.signature}}
    return told
