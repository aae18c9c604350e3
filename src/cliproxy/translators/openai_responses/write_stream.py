"""Streams on their way to a client: events of the hub as a Responses stream, and a provider's own stream as it is.

What always holds: every event has a `sequence_number`, counted from 0; every item, part and text that begins is ended, and then told whole; the last event
carries the whole response. So the writer keeps what it wrote, `MAX_WRITTEN_RESPONSE_BYTES` at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from cliproxy.bounds import EVENT_PIECES_PER_JOIN, MAX_RESPONSES_EVENT_BYTES, MIB
from cliproxy.errors import UpstreamError
from cliproxy.formats.sse import EventSplitter
from cliproxy.metering.usage import Usage
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
    StopReason,
    StreamEvent,
    Text,
    TextDelta,
    ToolCall,
)
from cliproxy.translators.openai_responses import answer_parts
from cliproxy.translators.openai_responses.answer import Envelope, reasoning_id, status_of
from cliproxy.translators.openai_responses.request import ResponsesRequest
from cliproxy.translators.openai_responses.signatures import Kind, tag

MAX_WRITTEN_RESPONSE_BYTES = 8 * MIB  # OpenAI responses: output that a translated stream keeps for its last event; 128,000 tokens are 0.5 MiB, a picture 4

_encode = msgspec.json.Encoder().encode


class Passthrough:
    """A stream that stays in its dialect: whole events come out as they were. Pieces may be cut anywhere."""

    __slots__ = ("_splitter",)

    def __init__(self, request: ResponsesRequest) -> None:
        self._splitter = EventSplitter(MAX_RESPONSES_EVENT_BYTES)

    @property
    def at_boundary(self) -> bool:
        """Whether a comment or an error event may be written now. Always: only whole events come out of `feed`."""
        return True

    def feed(self, data: bytes) -> bytes:
        """Return the events that `data` completes; may be empty."""
        return self._splitter.feed(data)


def error_event(message: str, *, kind: str, code: str, status: int) -> bytes:
    """Return the event that ends a broken stream. It has the dialect's own form, and beside it `error`, at which OpenAI's SDKs raise."""
    error = {"message": message, "type": kind, "param": None, "code": code}
    event = {"type": "error", "code": code, "message": message, "param": None, "sequence_number": 0, "error": error}
    return b"event: error\ndata: " + _encode(event) + b"\n\n"


class Writer:
    """Events of the hub as a client's stream. Events of one call to `write` come out together, whole."""

    __slots__ = (
        "_annotations",
        "_batches",
        "_call",
        "_content",
        "_created",
        "_encrypted",
        "_envelope",
        "_id",
        "_item_id",
        "_items",
        "_length",
        "_measured",
        "_message_id",
        "_model",
        "_number",
        "_part",
        "_pieces",
        "_prefix",
        "_refused",
        "_request",
        "_size",
        "_stem",
        "_stop",
        "_suffix",
        "_summary_begun",
        "_usage",
    )

    def __init__(self, *, request: ResponsesRequest | None, id: str, model: str, created: int) -> None:
        self._request, self._id, self._model, self._created = request, id, model, created
        self._stem = ""
        self._number = 0  # of the next event
        self._items: list[bytes] = []  # finished ones
        self._size = 0  # bytes of what is kept
        self._message_id = ""  # of the message under way; empty if none is
        self._content: list[dict[str, Any]] = []  # its finished parts
        self._part: AssistantPart | None = None  # the one under way, as it began
        self._item_id = ""
        self._pieces: list[str] = []  # its text or arguments
        self._batches = self._measured = self._length = 0  # pieces that are joined batches; that were measured; their characters
        self._annotations: list[dict[str, Any]] = []
        self._encrypted = ""
        self._summary_begun = False
        self._prefix = self._suffix = b""  # of its deltas
        self._usage: Usage | None = None
        self._stop = StopReason.END
        self._refused = False

    def write(self, events: Sequence[StreamEvent]) -> bytes:
        """Return `events` as server-sent events. Raises `UpstreamError` for an answer larger than the gateway keeps, or that this dialect cannot say."""
        out: list[bytes] = []
        for event in events:
            if isinstance(event, (TextDelta, ArgumentsDelta)):
                piece = event.text if isinstance(event, TextDelta) else event.json
                if not self._summary_begun:
                    self._begin_summary(out)
                encoded = _encode(piece)
                self._size += len(encoded)
                self._pieces.append(piece)
                out.append(b"%b%d%b%b%b" % (self._prefix, self._number, b',"delta":', encoded, self._suffix))
                self._number += 1
            else:
                self._write_other(event, out)
        if self._size > MAX_WRITTEN_RESPONSE_BYTES:
            raise UpstreamError("The provider's answer is larger than the gateway takes.", code="upstream_too_large")
        if len(self._pieces) - self._batches >= EVENT_PIECES_PER_JOIN:
            self._measure()
            self._batches = answer_parts.join_batches(self._pieces, self._batches)
            self._measured = len(self._pieces)
        return b"".join(out)

    def _measure(self) -> int:
        """Return the characters of the part so far. Each piece is looked at once."""
        self._length += sum(map(len, self._pieces[self._measured :]))
        self._measured = len(self._pieces)
        return self._length

    def _write_other(self, event: StreamEvent, out: list[bytes]) -> None:
        if isinstance(event, PartStarted):
            if event.choice:
                raise UpstreamError("The provider's answer has several choices where one was asked for.", code="bad_upstream_answer")
            self._begin(event.part, out)
        elif isinstance(event, PartEnded):
            self._end(out)
        elif isinstance(event, CitationAdded):
            self._annotate(event, out)
        elif isinstance(event, SignatureDelta):
            kind = Kind.CALL if isinstance(self._part, ToolCall) else Kind.SIGNATURE
            self._encrypted = tag(event.signer, kind, event.signature)
        elif isinstance(event, Started):
            self._start(event, out)
        elif isinstance(event, Finished):
            self._stop = event.stop
            self._end_message(out, status_of(event.stop, refused=self._refused)[0])
        elif isinstance(event, Counted):
            self._usage = event.usage
        elif isinstance(event, Ended):
            status, reason = status_of(self._stop, refused=self._refused)
            self._tell(f"response.{status}", out, response=msgspec.Raw(self._envelope.response(status, reason, self._items, self._usage)))

    def _tell(self, kind: str, out: list[bytes], **fields: Any) -> None:
        data = _encode({"type": kind, "sequence_number": self._number, **fields})
        self._number += 1
        out.append(b"event: %b\ndata: %b\n\n" % (kind.encode(), data))

    def _start(self, event: Started, out: list[bytes]) -> None:
        id = event.id or self._id
        self._stem = answer_parts.stem_of(id)
        self._usage = event.usage
        self._envelope = Envelope(self._request, id=id, model=event.model or self._model, created=event.created or self._created)
        response = msgspec.Raw(self._envelope.response("in_progress", None, [], None))
        self._tell("response.created", out, response=response)
        self._tell("response.in_progress", out, response=response)

    # --- the beginning of a part ---

    def _begin(self, part: AssistantPart, out: list[bytes]) -> None:
        self._part = part
        self._pieces = []
        self._batches = self._measured = self._length = 0
        self._annotations = []
        self._encrypted = ""
        self._summary_begun = True
        if isinstance(part, Text | Refusal):
            self._begin_content(part, out)
            return
        self._end_message(out)
        number = len(self._items)
        if isinstance(part, ToolCall):
            self._item_id = f"fc_{self._stem}_{number}"
            self._call = (part.id or f"call_{self._stem}_{number}", part.name)
            self._encrypted = answer_parts.encrypted_of_call(part.signature) if part.signature else ""
            self._add_item(answer_parts.call_item(self._item_id, "in_progress", *self._call, ""), out)
            self._deltas("response.function_call_arguments.delta")
        elif isinstance(part, Reasoning):
            self._item_id = reasoning_id(part, self._stem, number)
            self._encrypted = answer_parts.encrypted_of(part)
            self._add_item(answer_parts.reasoning_item(self._item_id, "", ""), out)
            self._deltas("response.reasoning_summary_text.delta", summary_index=0)
            self._summary_begun = False
        else:
            self._item_id = f"ig_{self._stem}_{number}"
            self._add_item({"id": self._item_id, "type": "image_generation_call", "status": "in_progress", "result": None}, out)

    def _begin_content(self, part: Text | Refusal, out: list[bytes]) -> None:
        if not self._message_id:
            self._message_id = f"msg_{self._stem}_{len(self._items)}"
            self._content = []
            self._add_item(answer_parts.message_item(self._message_id, "in_progress", ()), out)
        self._item_id = self._message_id
        empty = answer_parts.text_part("", []) if isinstance(part, Text) else answer_parts.refusal_part("")
        self._tell("response.content_part.added", out, **self._place(), part=empty)
        if isinstance(part, Text):
            self._deltas("response.output_text.delta", content_index=len(self._content), logprobs=[])
        else:
            self._refused = True
            self._deltas("response.refusal.delta", content_index=len(self._content))

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._item_id, "output_index": len(self._items), "content_index": len(self._content)}

    def _add_item(self, item: dict[str, Any], out: list[bytes]) -> None:
        self._tell("response.output_item.added", out, output_index=len(self._items), item=item)

    def _deltas(self, kind: str, **fields: Any) -> None:
        """Make ready what all deltas of the part have in common."""
        self._prefix = b'event: %b\ndata: {"type":"%b","sequence_number":' % (kind.encode(), kind.encode())
        self._suffix = b"," + _encode({"item_id": self._item_id, "output_index": len(self._items), **fields})[1:] + b"\n\n"

    def _begin_summary(self, out: list[bytes]) -> None:
        self._summary_begun = True
        self._tell("response.reasoning_summary_part.added", out, **self._summary_place(), part={"type": "summary_text", "text": ""})

    def _summary_place(self) -> dict[str, Any]:
        return {"item_id": self._item_id, "output_index": len(self._items), "summary_index": 0}

    def _annotate(self, event: CitationAdded, out: list[bytes]) -> None:
        annotation = answer_parts.annotation_of(event.citation, self._measure())
        place = {**self._place(), "annotation_index": len(self._annotations)}
        self._annotations.append(annotation)
        before = len(out)
        self._tell("response.output_text.annotation.added", out, **place, annotation=annotation)
        self._size += len(out[before])

    # --- its end ---

    def _end(self, out: list[bytes]) -> None:
        part, self._part = self._part, None
        text = "".join(self._pieces)
        self._pieces = []
        if isinstance(part, Text):
            self._tell("response.output_text.done", out, **self._place(), text=text, logprobs=[])
            self._end_content(answer_parts.text_part(text, self._annotations), out)
        elif isinstance(part, Refusal):
            self._tell("response.refusal.done", out, **self._place(), refusal=text)
            self._end_content(answer_parts.refusal_part(text), out)
        elif isinstance(part, ToolCall):
            place = {"item_id": self._item_id, "output_index": len(self._items)}
            self._tell("response.function_call_arguments.done", out, **place, name=self._call[1], arguments=text)
            self._end_item(answer_parts.call_item(self._item_id, "completed", *self._call, text), out)
            if self._encrypted:
                self._add_signature(out)
        elif isinstance(part, Reasoning):
            if text:
                self._tell("response.reasoning_summary_text.done", out, **self._summary_place(), text=text)
                self._tell("response.reasoning_summary_part.done", out, **self._summary_place(), part={"type": "summary_text", "text": text})
            self._end_item(answer_parts.reasoning_item(self._item_id, text, self._encrypted), out)
        elif isinstance(part, Image):
            self._end_item(answer_parts.image_item(self._item_id, part), out)

    def _add_signature(self, out: list[bytes]) -> None:
        """What proves a tool call follows it in an item of its own."""
        item = answer_parts.reasoning_item(f"rs_{self._stem}_{len(self._items)}", "", self._encrypted)
        self._add_item(item, out)
        self._end_item(item, out)

    def _end_content(self, part: dict[str, Any], out: list[bytes]) -> None:
        self._tell("response.content_part.done", out, **self._place(), part=part)
        self._content.append(part)

    def _end_message(self, out: list[bytes], status: str = "completed") -> None:
        if self._message_id:
            self._item_id, self._message_id = self._message_id, ""
            self._end_item(answer_parts.message_item(self._item_id, status, self._content), out)
            self._content = []

    def _end_item(self, item: dict[str, Any], out: list[bytes]) -> None:
        encoded = _encode(item)
        self._tell("response.output_item.done", out, output_index=len(self._items), item=msgspec.Raw(encoded))
        self._items.append(encoded)
        self._size += len(encoded)
