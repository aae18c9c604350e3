"""Output items: a provider's, read into parts of an answer, and a client's, made from such parts.

What always holds: text, refusals and calls of an item are all read, or the answer is refused; only records of what the provider's own tools did
(`web_search_call`) are passed over, since no request from the hub has such tools. Items are told apart by ids that follow from the response's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from cliproxy.bounds import EVENT_PIECES_PER_JOIN, MAX_ANSWER_OBJECTS
from cliproxy.dialects import Dialect
from cliproxy.errors import UpstreamError
from cliproxy.translators.conversation import (
    AssistantPart,
    Citation,
    Image,
    Reasoning,
    Refusal,
    StopReason,
    Text,
    ToolCall,
    verify_arguments,
)
from cliproxy.translators.openai_responses.signatures import Kind, tag
from cliproxy.translators.openai_responses.to_hub import PARAGRAPH, citation_of
from cliproxy.translators.openai_responses.wire import Annotation

RECORDS = frozenset({"web_search_call", "file_search_call", "code_interpreter_call"})
MANY_BYTES = 64 * 1024  # JSON shorter than this may hold as many objects as it likes


# --- a provider's ------------------------------------------------------------------------------------------------------


class _Typed(msgspec.Struct, gc=False, tag_field="type"):
    pass


class OutputText(_Typed, gc=False, tag="output_text"):
    text: str = ""
    annotations: list[Annotation] | None = None


class OutputRefusal(_Typed, gc=False, tag="refusal"):
    refusal: str = ""


class MessageItem(_Typed, gc=False, tag="message"):
    content: list[OutputText | OutputRefusal] = []


class FunctionCallItem(_Typed, gc=False, tag="function_call"):
    call_id: str
    name: str
    arguments: str = ""


class Thought(msgspec.Struct, gc=False):
    text: str


class ReasoningItem(_Typed, gc=False, tag="reasoning"):
    id: str | None = None
    summary: list[Thought] | None = None
    content: list[Thought] | None = None
    encrypted_content: str | None = None


class ImageItem(_Typed, gc=False, tag="image_generation_call"):
    result: str | None = None
    output_format: str | None = None


class _Kind(msgspec.Struct, gc=False):
    type: str


OutputItem = MessageItem | FunctionCallItem | ReasoningItem | ImageItem
_item_decoder = msgspec.json.Decoder(OutputItem)
_kind_decoder = msgspec.json.Decoder(_Kind)


def join_batches(pieces: list[str], joined: int) -> int:
    """Join the pieces behind the first `joined` ones, which are batches, into one more batch if they are many. Return how many batches there are."""
    if len(pieces) - joined < EVENT_PIECES_PER_JOIN:
        return joined
    pieces[joined:] = ["".join(pieces[joined:])]
    return joined + 1


def verify_object_count(data: bytes) -> None:
    """Raise `UpstreamError` if `data` holds more objects than an answer may."""
    if len(data) > MANY_BYTES and data.count(b"{") > MAX_ANSWER_OBJECTS:
        raise UpstreamError("The provider's answer holds too many objects.", code="provider_answer_too_large")


def read_item(raw: msgspec.Raw) -> OutputItem | None:
    """Return the item in the JSON text `raw`, whose objects were counted; `None` for a record of a tool. Raises `UpstreamError` for everything else."""
    try:
        item: OutputItem = _item_decoder.decode(raw)
        return item
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        if _kind_decoder.decode(raw).type in RECORDS:
            return None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    raise UpstreamError("The provider's answer holds an item that this gateway cannot translate.", code="bad_upstream_answer")


def parts_of(item: OutputItem | None) -> list[AssistantPart]:
    """Return what `item` says. Raises `UpstreamError` for a call whose arguments are no JSON object."""
    if isinstance(item, MessageItem):
        return [_part_of(part) for part in item.content]
    if isinstance(item, FunctionCallItem):
        return [ToolCall(item.call_id, item.name, verify_arguments(item.arguments))]
    if isinstance(item, ReasoningItem):
        thought = thought_of(item)
        return [thought] if thought is not None else []
    if isinstance(item, ImageItem) and item.result:
        return [Image(f"image/{item.output_format or 'png'}", item.result)]
    return []


def _part_of(part: OutputText | OutputRefusal) -> AssistantPart:
    if isinstance(part, OutputRefusal):
        return Refusal(part.refusal)
    return Text(part.text, tuple(citation for raw in part.annotations or () if (citation := citation_of(raw)) is not None))


def thought_of(item: ReasoningItem) -> Reasoning | None:
    """Return the thought, `None` for one that says nothing and proves nothing. What is encrypted is `redacted` if there is no text beside it."""
    text = PARAGRAPH.join(part.text for parts in (item.summary, item.content) for part in parts or ())
    encrypted = item.encrypted_content or ""
    if not text and not encrypted:
        return None
    signer = Dialect.OPENAI_RESPONSES if encrypted else None
    return Reasoning(text, encrypted if text else "", "" if text else encrypted, signer, item.id or "")


def stop_of(status: str | None, reason: str | None, parts: Iterable[AssistantPart]) -> StopReason:
    """Return why a finished response with this `status` and reason of incompleteness ended."""
    if status == "incomplete":
        return {"max_output_tokens": StopReason.LENGTH, "content_filter": StopReason.FILTER}.get(reason or "", StopReason.PAUSE)
    kinds = {type(part) for part in parts}
    if ToolCall in kinds:
        return StopReason.TOOL_CALLS
    return StopReason.REFUSAL if Refusal in kinds and Text not in kinds else StopReason.END


# --- a client's --------------------------------------------------------------------------------------------------------


def stem_of(id: str) -> str:
    """Return what the ids of a response's items have in common with its `id`."""
    return id.removeprefix("resp_")


def annotation_of(citation: Citation, length: int) -> dict[str, Any]:
    """Return what a client is told of a source. One that names no stretch of the text stands for all `length` characters so far."""
    if citation.url:
        start, end = (citation.start, citation.end) if citation.start >= 0 and citation.end >= 0 else (0, length)
        return {"type": "url_citation", "url": citation.url, "title": citation.title, "start_index": start, "end_index": end}
    return {"type": "file_citation", "file_id": "", "filename": citation.title, "index": max(citation.document, 0)}


def text_part(text: str, annotations: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": annotations, "logprobs": []}


def refusal_part(text: str) -> dict[str, Any]:
    return {"type": "refusal", "refusal": text}


def message_item(id: str, status: str, content: Sequence[Any]) -> dict[str, Any]:
    return {"id": id, "type": "message", "status": status, "role": "assistant", "content": content}


def call_item(id: str, status: str, call_id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": id, "type": "function_call", "status": status, "call_id": call_id, "name": name, "arguments": arguments}


def reasoning_item(id: str, text: str, encrypted: str) -> dict[str, Any]:
    item: dict[str, Any] = {"id": id, "type": "reasoning", "summary": [{"type": "summary_text", "text": text}] if text else []}
    if encrypted:
        item["encrypted_content"] = encrypted
    return item


def image_item(id: str, part: Image) -> dict[str, Any]:
    """Raises `UpstreamError` for a picture that is not in the answer: the dialect has no place for its URL."""
    if not part.data:
        raise UpstreamError("The provider's answer links to a picture, which this dialect cannot say.", code="bad_upstream_answer")
    form = part.media_type.removeprefix("image/")
    return {"id": id, "type": "image_generation_call", "status": "completed", "result": part.data, "output_format": form or "png"}


def encrypted_of(part: Reasoning) -> str:
    """Return what proves `part` to whoever made it; empty if nothing does."""
    if part.signer is None:
        return ""
    if part.redacted:
        return tag(part.signer, Kind.REDACTED, part.redacted)
    return tag(part.signer, Kind.SIGNATURE, part.signature) if part.signature else ""


def encrypted_of_call(signature: str, signer: Dialect = Dialect.GEMINI_GENERATE) -> str:
    """Return what proves the tool call before the item."""
    return tag(signer, Kind.CALL, signature)
