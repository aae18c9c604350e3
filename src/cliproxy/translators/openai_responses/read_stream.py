"""A provider's Responses stream, read into events of the hub.

What always holds: items and their parts come in order and one at a time, or the stream is refused; what a provider tells only at the end of an item (some
imitations send no deltas) is told then; a stream without `response.completed` or `response.incomplete` broke off. Events of kinds that
say nothing to the hub are passed over.
"""

from __future__ import annotations

from typing import Any

import msgspec

from cliproxy.bounds import MAX_RESPONSES_EVENT_BYTES
from cliproxy.dialects import Dialect
from cliproxy.errors import UpstreamError
from cliproxy.metering.openai_responses import read_usage
from cliproxy.translators.conversation import (
    AssistantPart,
    CitationAdded,
    Counted,
    Ended,
    Finished,
    Image,
    Reasoning,
    Refusal,
    SignatureDelta,
    Started,
    StreamEvent,
    Text,
    TextDelta,
    ToolCall,
)
from cliproxy.translators.openai_responses import answer_parts
from cliproxy.translators.openai_responses.answer_wire import (
    KNOWN_KINDS,
    AnnotationAdded,
    CallArgumentsDelta,
    Created,
    EndedEarly,
    EndedWell,
    ErrorReported,
    Failed,
    ItemAdded,
    ItemDone,
    OutputTextDelta,
    PartAdded,
    RefusalDelta,
    StreamedResponse,
    SummaryDelta,
    ThoughtDelta,
    decode,
    decode_other,
)
from cliproxy.translators.openai_responses.to_hub import PARAGRAPH, citation_of
from cliproxy.translators.stream_reader import OnePartReader, data_of, error_reported

_THOUGHT = -1  # content index of a thought under way: it has its item for itself
_NOWHERE = (-1, 2**63)  # before the first place there is


class Reader(OnePartReader):
    """Reads a stream of one response."""

    __slots__ = ("_at", "_begun", "_open", "_parts", "_section", "_thought_id")

    def __init__(self) -> None:
        super().__init__(max_event_bytes=MAX_RESPONSES_EVENT_BYTES)
        self._open: AssistantPart | None = None  # the part under way, as it began
        self._at = _NOWHERE  # output and content index of it, or of the one before; they only grow
        self._begun = -1  # the last output index of which something was told
        self._thought_id = ""  # of the last item of thoughts that was announced
        self._section: tuple[type[Any], int] | None = None  # which part of a summary was told last
        self._parts: list[AssistantPart] = []  # one of each kind that was told

    def _read(self, event: bytes, out: list[StreamEvent]) -> None:
        data = data_of(event)
        if not data or data == b"[DONE]":
            return
        try:
            read = decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            _verify_other(data)
            return
        kind = type(read)
        if kind is OutputTextDelta:
            at = (read.output_index, read.content_index)
            if at != self._at or type(self._open) is not Text:
                self._begin(at, Text(""), out)
            out.append(TextDelta(0, self._index, read.delta))
        elif kind is CallArgumentsDelta:
            if type(self._open) is not ToolCall or self._at[0] != read.output_index:
                raise _mixed_up()
            self._more_arguments(read.delta, out)
        else:
            self._read_rare(read, data, out)

    def _read_rare(self, read: Any, data: bytes, out: list[StreamEvent]) -> None:
        if not self._started and not isinstance(read, Created):
            if isinstance(read, Failed | ErrorReported):
                raise error_reported()
            raise _another_dialect()
        if isinstance(read, SummaryDelta):
            self._think(read.delta, read.output_index, (SummaryDelta, read.summary_index), out)
        elif isinstance(read, ThoughtDelta):
            self._think(read.delta, read.output_index, (ThoughtDelta, read.content_index), out)
        elif isinstance(read, RefusalDelta):
            at = (read.output_index, read.content_index)
            if at != self._at or not isinstance(self._open, Refusal):
                self._begin(at, Refusal(""), out)
            out.append(TextDelta(0, self._index, read.delta))
        elif isinstance(read, PartAdded):
            self._part_added(read, out)
        elif isinstance(read, ItemAdded):
            answer_parts.verify_object_count(data)
            self._item_added(read, out)
        elif isinstance(read, ItemDone):
            answer_parts.verify_object_count(data)
            self._item_done(answer_parts.read_item(read.item), read.output_index, out)
        elif isinstance(read, AnnotationAdded):
            citation = citation_of(read.annotation)
            if (read.output_index, read.content_index) != self._at or not isinstance(self._open, Text):
                raise _mixed_up()
            if citation is not None:
                out.append(CitationAdded(0, self._index, citation))
        elif isinstance(read, Created):
            self._start(read.response, out)
        elif isinstance(read, EndedWell | EndedEarly):
            self._end(read, out)
        else:
            raise error_reported()

    # --- the whole ---

    def _start(self, response: StreamedResponse, out: list[StreamEvent]) -> None:
        if self._started:
            raise _mixed_up()
        self._started = True
        out.append(Started(response.id or "", response.model or "", created=int(response.created_at or 0)))

    def _end(self, read: EndedWell | EndedEarly, out: list[StreamEvent]) -> None:
        self._close(out)
        response = read.response
        reason = response.incomplete_details.reason if response.incomplete_details is not None else None
        out.append(Finished(0, answer_parts.stop_of("incomplete" if isinstance(read, EndedEarly) else "completed", reason, self._parts)))
        usage = read_usage(response.usage)
        if usage is not None:
            out.append(Counted(usage))
        out.append(Ended())
        self._ended = True

    # --- parts ---

    def _begin(self, at: tuple[int, int], part: AssistantPart, out: list[StreamEvent]) -> None:
        """End the part under way and begin the one at `at`, which must be a later one."""
        if not self._started:
            raise _another_dialect()
        if at <= self._at:
            raise _mixed_up()
        self._close(out)
        self._at = at
        self._begun = at[0]
        self._open = part
        self._section = None
        if all(type(part) is not type(known) for known in self._parts):
            self._parts.append(part)
        self._begin_part(part, out)

    def _close(self, out: list[StreamEvent]) -> None:
        if self._open is None:
            return
        self._end_part(out, called=isinstance(self._open, ToolCall))
        self._open = None

    def _part_added(self, read: PartAdded, out: list[StreamEvent]) -> None:
        try:
            kind = decode_other(read.part).type
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise _another_dialect() from None
        if kind == "output_text":
            self._begin((read.output_index, read.content_index), Text(""), out)
        elif kind == "refusal":
            self._begin((read.output_index, read.content_index), Refusal(""), out)
        elif kind != "reasoning_text":  # a thought begins with its first words
            raise UpstreamError("The provider's answer holds a part that this gateway cannot translate.", code="bad_upstream_answer")

    def _item_added(self, read: ItemAdded, out: list[StreamEvent]) -> None:
        item = answer_parts.read_item(read.item)
        if isinstance(item, answer_parts.FunctionCallItem):
            self._begin((read.output_index, 0), ToolCall(item.call_id, item.name, ""), out)
        elif isinstance(item, answer_parts.ReasoningItem):
            self._thought_id = item.id or ""

    def _think(self, delta: str, output_index: int, section: tuple[type[Any], int], out: list[StreamEvent]) -> None:
        at = (output_index, _THOUGHT)
        if at != self._at or not isinstance(self._open, Reasoning):
            self._begin(at, Reasoning(id=self._thought_id), out)
        elif self._section != section:
            out.append(TextDelta(0, self._index, PARAGRAPH))
        self._section = section
        out.append(TextDelta(0, self._index, delta))

    def _item_done(self, item: answer_parts.OutputItem | None, output_index: int, out: list[StreamEvent]) -> None:
        if self._open is not None and self._at[0] == output_index:
            if isinstance(item, answer_parts.FunctionCallItem) and isinstance(self._open, ToolCall) and not self._arguments:
                self._more_arguments(item.arguments, out)
            if isinstance(item, answer_parts.ReasoningItem) and isinstance(self._open, Reasoning) and item.encrypted_content:
                out.append(SignatureDelta(0, self._index, item.encrypted_content, Dialect.OPENAI_RESPONSES))
            self._close(out)
        elif output_index > self._begun:
            for index, part in enumerate(answer_parts.parts_of(item)):
                self._whole((output_index, _THOUGHT if isinstance(part, Reasoning) else index), part, out)
        self._begun = max(self._begun, output_index)

    def _whole(self, at: tuple[int, int], part: AssistantPart, out: list[StreamEvent]) -> None:
        """Tell a part of which no deltas came."""
        if isinstance(part, ToolCall):
            self._begin(at, ToolCall(part.id, part.name, ""), out)
            self._more_arguments(part.arguments, out)
        elif isinstance(part, Text):
            self._begin(at, Text(""), out)
            out.append(TextDelta(0, self._index, part.text))
            out.extend(CitationAdded(0, self._index, citation) for citation in part.citations)
        elif isinstance(part, Refusal):
            self._begin(at, Refusal(""), out)
            out.append(TextDelta(0, self._index, part.text))
        elif isinstance(part, Image) or part.redacted:
            self._begin(at, part, out)
        else:
            self._begin(at, Reasoning(id=part.id), out)
            out.append(TextDelta(0, self._index, part.text))
            if part.signature:
                out.append(SignatureDelta(0, self._index, part.signature, Dialect.OPENAI_RESPONSES))
        self._close(out)


def _verify_other(data: bytes) -> None:
    """Raise `UpstreamError` unless `data` is an event of another kind, which says nothing to the hub."""
    try:
        other = decode_other(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise _another_dialect() from None
    if bytes(other.error) != b"null":
        raise error_reported()
    if not other.type or other.type in KNOWN_KINDS:
        raise _another_dialect()


def _another_dialect() -> UpstreamError:
    return UpstreamError("The provider's stream is not one of the Responses API.", code="bad_upstream_answer")


def _mixed_up() -> UpstreamError:
    return UpstreamError("The parts of the provider's answer are mixed up.", code="bad_upstream_answer")
