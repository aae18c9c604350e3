"""One event of a provider's stream as types: strict first, which is fast, and then in the ways in which imitations depart from OpenAI.

Departures: content as a list of parts (Mistral's thinking models), arguments as an object instead of its JSON. What comes out is the strict form.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from cliproxy.bounds import MAX_ANSWER_PARTS, MAX_CHOICES
from cliproxy.translators.openai_chat.answer_parts import not_a_completion
from cliproxy.translators.openai_chat.wire import Annotation, ReasoningDetail

NULL = msgspec.Raw(b"null")
_Few = Meta(max_length=MAX_ANSWER_PARTS)
ANY_FAULT = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Function(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class Google(msgspec.Struct, gc=False):
    thought_signature: str | None = None


class Extra(msgspec.Struct, gc=False):
    google: Google | None = None


class Call(msgspec.Struct, gc=False):
    """A tool call, or more of one: all but the first may have only `index` and arguments."""

    index: int | None = None
    id: str | None = None
    function: Function | None = None
    extra_content: Extra | None = None


class ImageUrl(msgspec.Struct, gc=False):
    url: str


class Picture(msgspec.Struct, gc=False):
    image_url: ImageUrl


class Said(msgspec.Struct, gc=False):
    """A delta, or a whole message."""

    content: str | None = None
    tool_calls: Annotated[list[Call], _Few] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    reasoning_details: Annotated[list[ReasoningDetail], _Few] | None = None
    refusal: str | None = None
    annotations: Annotated[list[Annotation], _Few] | None = None
    images: Annotated[list[Picture], _Few] | None = None
    function_call: Function | None = None


class Choice(msgspec.Struct, gc=False):
    delta: Said | None = None
    index: int = 0
    finish_reason: str | None = None


class Event(msgspec.Struct, gc=False):
    choices: Annotated[list[Choice], Meta(max_length=MAX_CHOICES)] | None = None
    id: str | None = None
    model: str | None = None
    created: float | None = None
    usage: msgspec.Raw = NULL
    error: msgspec.Raw = NULL


_decoder = msgspec.json.Decoder(Event)


def parse_event(data: bytes) -> Event:
    """Return the event in `data`. Raises `UpstreamError` if it is none of this dialect."""
    try:
        return _decoder.decode(data)
    except msgspec.ValidationError:
        pass
    except ANY_FAULT:
        raise not_a_completion() from None
    try:
        event = _loose_decoder.decode(data)
        choices = [
            Choice(said, choice.index, choice.finish_reason if said is pieces[-1] else None)
            for choice in event.choices or ()
            for pieces in [strict_pieces(choice.delta) if choice.delta is not None else [Said()]]
            for said in pieces
        ]
    except ANY_FAULT:
        raise not_a_completion() from None
    return Event(choices if event.choices is not None else None, event.id, event.model, event.created, event.usage, event.error)


# --- departures --------------------------------------------------------------------------------------------------------


class _LooseFunction(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: msgspec.Raw = NULL


class _LooseCall(msgspec.Struct, gc=False):
    index: int | None = None
    id: str | None = None
    function: _LooseFunction | None = None
    extra_content: Extra | None = None


class LooseSaid(msgspec.Struct, gc=False):
    content: msgspec.Raw = NULL
    tool_calls: Annotated[list[_LooseCall], _Few] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    reasoning_details: Annotated[list[ReasoningDetail], _Few] | None = None
    refusal: str | None = None
    annotations: Annotated[list[Annotation], _Few] | None = None
    images: Annotated[list[Picture], _Few] | None = None
    function_call: _LooseFunction | None = None


class _LooseChoice(msgspec.Struct, gc=False):
    delta: LooseSaid | None = None
    index: int = 0
    finish_reason: str | None = None


class _LooseEvent(msgspec.Struct, gc=False):
    choices: Annotated[list[_LooseChoice], Meta(max_length=MAX_CHOICES)] | None = None
    id: str | None = None
    model: str | None = None
    created: float | None = None
    usage: msgspec.Raw = NULL
    error: msgspec.Raw = NULL


class _TextPart(msgspec.Struct, gc=False, tag_field="type", tag="text"):
    text: str


class _ThinkingPart(msgspec.Struct, gc=False, tag_field="type", tag="thinking"):
    thinking: str | list[_TextPart]


class _ReferencePart(msgspec.Struct, gc=False, tag_field="type", tag="reference"):
    """Numbers of documents that the client cannot know."""


_loose_decoder = msgspec.json.Decoder(_LooseEvent)
_text_decoder = msgspec.json.Decoder(str)
_content_decoder = msgspec.json.Decoder(str | Annotated[list[_TextPart | _ThinkingPart | _ReferencePart], _Few] | None)


def strict_pieces(loose: LooseSaid) -> list[Said]:
    """Return `loose` in the strict form, in as many pieces as its content has. Raises what msgspec raises."""
    content = _content_decoder.decode(loose.content)
    rest = Said(
        tool_calls=[Call(call.index, call.id, _strict(call.function), call.extra_content) for call in loose.tool_calls or ()],
        reasoning_content=loose.reasoning_content,
        reasoning=loose.reasoning,
        reasoning_details=loose.reasoning_details,
        refusal=loose.refusal,
        annotations=loose.annotations,
        images=loose.images,
        function_call=_strict(loose.function_call),
    )
    if not isinstance(content, list):
        rest.content = content
        return [rest]
    pieces = []
    for part in content:
        if isinstance(part, _TextPart):
            pieces.append(Said(content=part.text))
        elif isinstance(part, _ThinkingPart):
            thought = part.thinking if isinstance(part.thinking, str) else "".join(piece.text for piece in part.thinking)
            pieces.append(Said(reasoning_content=thought))
    return [*pieces, rest]


def _strict(function: _LooseFunction | None) -> Function | None:
    if function is None:
        return None
    raw = bytes(function.arguments)
    if raw == b"null":
        return Function(function.name)
    return Function(function.name, _text_decoder.decode(raw) if raw[:1] == b'"' else raw.decode())
