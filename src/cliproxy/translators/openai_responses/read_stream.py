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
from cliproxy.formats.sse import EventSplitter
from cliproxy.metering.openai_responses import read_usage
from cliproxy.translators.conversation import (
    ArgumentsDelta,
    AssistantPart,
    CitationAdded,
    Counted,
    Ended,
    Finished,
    Image,
    PartEnded,
    PartStarted,
    Reasoning,
    Refusal,
    SignatureDelta,
    Started,
    StreamEvent,
    Text,
    TextDelta,
    ToolCall,
    verify_arguments,
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

_THOUGHT = -1  # content index of a thought under way: it has its item for itself
_NOWHERE = (-1, 2**63)  # before the first place there is


class Reader:
    """Reads a stream in any pieces."""

    __slots__ = ("_at", "_begun", "_ended", "_error", "_index", "_lots", "_open", "_parts", "_pieces", "_section", "_splitter", "_started", "_thought_id")

    def __init__(self) -> None:
        self._splitter = EventSplitter(MAX_RESPONSES_EVENT_BYTES)
        self._started = self._ended = False
        self._error: UpstreamError | None = None
        self._open: AssistantPart | None = None  # the part under way, as it began
        self._at = _NOWHERE  # output and content index of it, or of the one before; they only grow
        self._index = -1  # the hub's, of the same
        self._begun = -1  # the last output index of which something was told
        self._pieces: list[str] = []  # arguments of the call under way
        self._lots = 0  # that many of the pieces are joined lots
        self._thought_id = ""  # of the last item of thoughts that was announced
        self._section: tuple[type[Any], int] | None = None  # which part of a summary was told last
        self._parts: list[AssistantPart] = []  # one of each kind that was told

    def feed(self, data: bytes) -> list[StreamEvent]:
        """Return the hub's events in what `data` completes.

        Raises `UpstreamError` for whatever is no Responses stream and for what the provider reports as its failure, after the events before it were returned.
        """
        if self._error is not None:
            raise self._error
        out: list[StreamEvent] = []
        try:
            events = b"" if self._ended else self._splitter.feed(data)
            if events:
                self._read_all(events, out)
        except UpstreamError as error:
            self._error = error
            if not out:
                raise
        return out

    def finish(self) -> list[StreamEvent]:
        """The provider's body has ended. Raises `UpstreamError` if the stream broke off before its end."""
        if self._error is not None:
            raise self._error
        if not self._ended:
            raise UpstreamError("The provider broke off in the middle of its answer.", code="upstream_broke_off")
        return []

    def _read_all(self, events: bytes, out: list[StreamEvent]) -> None:
        if events.count(b"\n\n") > 1:
            for event in events.split(b"\n\n"):
                self._read(event, out)
                if self._ended:
                    return
        else:
            self._read(events, out)

    def _read(self, event: bytes, out: list[StreamEvent]) -> None:
        data = _data_of(event)
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
            self._arguments(read.delta, read.output_index, out)
        else:
            self._read_rare(read, data, out)

    def _read_rare(self, read: Any, data: bytes, out: list[StreamEvent]) -> None:
        if not self._started and not isinstance(read, Created):
            if isinstance(read, Failed | ErrorReported):
                raise _reported()
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
            raise _reported()

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
        self._index += 1
        self._open = part
        self._section = None
        self._pieces, self._lots = [], 0
        if all(type(part) is not type(known) for known in self._parts):
            self._parts.append(part)
        out.append(PartStarted(0, self._index, part))

    def _close(self, out: list[StreamEvent]) -> None:
        if self._open is None:
            return
        if isinstance(self._open, ToolCall):
            arguments = "".join(self._pieces)
            verify_arguments(arguments)
            if not arguments:
                out.append(ArgumentsDelta(0, self._index, "{}"))
            self._pieces = []
        self._open = None
        out.append(PartEnded(0, self._index))

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

    def _arguments(self, delta: str, output_index: int, out: list[StreamEvent]) -> None:
        if not isinstance(self._open, ToolCall) or self._at[0] != output_index:
            raise _mixed_up()
        if delta:
            self._pieces.append(delta)
            self._lots = answer_parts.join_lots(self._pieces, self._lots)
            out.append(ArgumentsDelta(0, self._index, delta))

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
            if isinstance(item, answer_parts.FunctionCallItem) and isinstance(self._open, ToolCall) and not self._pieces:
                self._arguments(item.arguments, output_index, out)
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
            self._arguments(part.arguments, at[0], out)
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


def _data_of(event: bytes) -> bytes:
    """Return the data of one event, its lines joined; empty if it has none."""
    at = 0 if event.startswith(b"data:") else event.find(b"\ndata:") + 1
    if at == 0 and not event.startswith(b"data:"):
        return b""
    end = event.find(b"\n", at)
    if end < 0:
        return event[at + 5 :].lstrip(b" ")
    if event.find(b"\ndata:", end) >= 0:
        return b"\n".join(line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:"))
    return event[at + 5 : end].lstrip(b" ")


def _verify_other(data: bytes) -> None:
    """Raise `UpstreamError` unless `data` is an event of another kind, which says nothing to the hub."""
    try:
        other = decode_other(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise _another_dialect() from None
    if bytes(other.error) != b"null":
        raise _reported()
    if not other.type or other.type in KNOWN_KINDS:
        raise _another_dialect()


def _reported() -> UpstreamError:
    return UpstreamError("The provider reported an error in the middle of its answer.", code="upstream_stream_error")


def _another_dialect() -> UpstreamError:
    return UpstreamError("The provider's stream is not one of the Responses API.", code="bad_upstream_answer")


def _mixed_up() -> UpstreamError:
    return UpstreamError("The parts of the provider's answer are mixed up.", code="bad_upstream_answer")
