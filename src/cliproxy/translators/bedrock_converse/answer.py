"""A whole answer of Converse, read.

What always holds: an answer with a block or a reason to stop that is not known here is an `UpstreamError`, never a shorter answer. Converse names neither the
answer nor the model, so both are empty in the hub.
"""

from __future__ import annotations

import msgspec

from cliproxy.dialects import Dialect
from cliproxy.errors import UpstreamError
from cliproxy.formats.json_bounds import answer_as
from cliproxy.metering.bedrock_converse import usage_in
from cliproxy.translators.conversation import (
    AssistantPart,
    Choice,
    Citation,
    ConversationAnswer,
    Image,
    Reasoning,
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
    "content_filtered": StopReason.FILTER,
    "guardrail_intervened": StopReason.FILTER,
}
_NULL = msgspec.Raw(b"null")


class _Piece(msgspec.Struct, frozen=True, gc=False):
    text: str = ""


class _Web(msgspec.Struct, frozen=True, gc=False):
    url: str = ""


class _InDocument(msgspec.Struct, frozen=True, gc=False):
    documentIndex: int = -1


class _Location(msgspec.Struct, frozen=True, gc=False):
    web: _Web | None = None
    documentChar: _InDocument | None = None
    documentPage: _InDocument | None = None
    documentChunk: _InDocument | None = None


class Cited(msgspec.Struct, frozen=True, gc=False):
    """One source, in an answer or in a stream."""

    title: str | None = None
    sourceContent: list[_Piece] | None = None
    location: _Location | None = None


class _CitedText(msgspec.Struct, frozen=True, gc=False):
    content: list[_Piece] = []
    citations: list[Cited] = []


class _ReasoningText(msgspec.Struct, frozen=True, gc=False):
    text: str
    signature: str | None = None


class _Reasoning(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    reasoningText: _ReasoningText | None = None
    redactedContent: str | None = None


class _Call(msgspec.Struct, frozen=True, gc=False):
    toolUseId: str
    name: str
    input: msgspec.Raw = _NULL
    type: str | None = None


class _ImageSource(msgspec.Struct, frozen=True, gc=False):
    bytes: str


class _Image(msgspec.Struct, frozen=True, gc=False):
    format: str
    source: _ImageSource


class _Block(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """One of these; a block of another kind does not decode."""

    text: str | None = None
    toolUse: _Call | None = None
    reasoningContent: _Reasoning | None = None
    citationsContent: _CitedText | None = None
    image: _Image | None = None


class _Message(msgspec.Struct, gc=False):
    content: list[_Block]


class _Output(msgspec.Struct, gc=False):
    message: _Message


class _Answer(msgspec.Struct, gc=False):
    output: _Output
    stopReason: str
    usage: msgspec.Raw = _NULL


_decoder = msgspec.json.Decoder(_Answer)


def decode_answer(body: bytes) -> ConversationAnswer:
    """Return the answer in `body`. Raises `UpstreamError` if it is none, holds what is not known here, or a tool call whose input is no object."""
    answer = answer_as(_decoder, body)
    if answer is None:
        raise not_converse()
    parts = [part for block in answer.output.message.content if (part := _part_of(block)) is not None]
    return ConversationAnswer("", "", (Choice(0, tuple(parts), stop_of(answer.stopReason)),), usage_in(answer.usage))


def _part_of(block: _Block) -> AssistantPart | None:
    """Return the block in the hub's words; None for a text that says nothing. Raises `UpstreamError` unless it is of exactly one kind."""
    if sum(value is not None for value in (block.text, block.toolUse, block.reasoningContent, block.citationsContent, block.image)) != 1:
        raise not_converse()
    if block.text is not None:
        return Text(block.text) if block.text else None
    if block.toolUse is not None:
        call = block.toolUse
        verify_kind_of_call(call.type)
        given = bytes(call.input)
        return ToolCall(call.toolUseId, call.name, verify_arguments("" if given == b"null" else given.decode()))
    if block.reasoningContent is not None:
        return _reasoning_of(block.reasoningContent)
    if block.citationsContent is not None:
        cited = block.citationsContent
        return Text("".join(piece.text for piece in cited.content), tuple(map(citation_of, cited.citations)))
    assert block.image is not None  # counted above
    return Image(media_type=f"image/{block.image.format}", data=block.image.source.bytes)


def _reasoning_of(said: _Reasoning) -> Reasoning:
    if said.redactedContent is not None:
        return Reasoning(redacted=said.redactedContent, signer=Dialect.BEDROCK_CONVERSE)
    if said.reasoningText is None:
        raise not_converse()
    signature = said.reasoningText.signature or ""
    return Reasoning(said.reasoningText.text, signature, signer=Dialect.BEDROCK_CONVERSE if signature else None)


def citation_of(cited: Cited) -> Citation:
    """Return a source in the hub's words."""
    url, document = "", -1
    if cited.location is not None:
        if cited.location.web is not None:
            url = cited.location.web.url
        inside = cited.location.documentChar or cited.location.documentPage or cited.location.documentChunk
        document = inside.documentIndex if inside is not None else -1
    return Citation(url=url, title=cited.title or "", cited="".join(piece.text for piece in cited.sourceContent or ()), document=document)


def verify_kind_of_call(kind: str | None) -> None:
    """Raise `UpstreamError` for a call that Bedrock itself runs: no such tool was given."""
    if kind is not None:
        raise not_converse()


def stop_of(reason: str) -> StopReason:
    """Return the reason to stop. Raises `UpstreamError` for one that is not known, and where the model wrote what Bedrock could not read."""
    stop = STOP_REASONS.get(reason)
    if stop is None:
        raise UpstreamError("The provider's answer ended for a reason that the gateway does not know.", code="bad_upstream_answer")
    return stop


def not_converse() -> UpstreamError:
    return UpstreamError("The provider's answer is not one of Converse as AWS documents it.", code="bad_upstream_answer")
