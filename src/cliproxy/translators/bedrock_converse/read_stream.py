"""A stream of Converse, read into the hub's events.

What always holds: what the hub's readers promise (`conversation.py`). Only tool calls have an event that begins them; a text or a thought begins with its first
delta. The stream is over with `metadata`, which follows `messageStop`. Events of a kind that is not known are passed over; kinds of blocks and deltas that are
not known are parts of an answer, so they are faults.
"""

from __future__ import annotations

import base64
import binascii

import msgspec

from cliproxy.bounds import MAX_TOOL_ARGUMENTS_BYTES
from cliproxy.dialects import Dialect
from cliproxy.errors import UpstreamError
from cliproxy.metering.bedrock_converse import usage_in
from cliproxy.translators.bedrock_converse.answer import Cited, citation_of, not_converse, stop_of, verify_kind_of_call
from cliproxy.translators.conversation import (
    CitationAdded,
    Counted,
    Ended,
    Finished,
    Reasoning,
    SignatureDelta,
    Started,
    StreamEvent,
    Text,
    TextDelta,
    ToolCall,
)
from cliproxy.translators.stream_reader import OnePartReader, error_reported

_NULL = msgspec.Raw(b"null")
_EVENT = b"event: "
_DATA = b"data: "


class _MessageStart(msgspec.Struct, gc=False):
    role: str


class _CallStart(msgspec.Struct, gc=False):
    toolUseId: str
    name: str
    type: str | None = None


class _Start(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    toolUse: _CallStart | None = None


class _BlockStart(msgspec.Struct, gc=False):
    contentBlockIndex: int
    start: _Start


class _CallDelta(msgspec.Struct, gc=False):
    input: str


class _ReasoningDelta(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    text: str | None = None
    signature: str | None = None
    redactedContent: str | None = None


class _Delta(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """One of these; a delta of another kind does not decode."""

    text: str | None = None
    toolUse: _CallDelta | None = None
    reasoningContent: _ReasoningDelta | None = None
    citation: Cited | None = None


class _BlockDelta(msgspec.Struct, gc=False):
    contentBlockIndex: int
    delta: _Delta


class _BlockStop(msgspec.Struct, gc=False):
    contentBlockIndex: int


class _MessageStop(msgspec.Struct, gc=False):
    stopReason: str


class _Metadata(msgspec.Struct, gc=False):
    usage: msgspec.Raw = _NULL


_decode_delta = msgspec.json.Decoder(_BlockDelta).decode
_DECODERS: dict[bytes, msgspec.json.Decoder[object]] = {
    b"messageStart": msgspec.json.Decoder(_MessageStart),
    b"contentBlockStart": msgspec.json.Decoder(_BlockStart),
    b"contentBlockDelta": msgspec.json.Decoder(_BlockDelta),
    b"contentBlockStop": msgspec.json.Decoder(_BlockStop),
    b"messageStop": msgspec.json.Decoder(_MessageStop),
    b"metadata": msgspec.json.Decoder(_Metadata),
}
_DELTA_LINE = b"event: contentBlockDelta\ndata: "


class Reader(OnePartReader):
    """Reads a stream of one message."""

    __slots__ = ("_finished", "_kind", "_open", "_redacted", "_signature")

    def __init__(self) -> None:
        super().__init__()
        self._finished = False
        self._open = -1  # the provider's, of the open block
        self._kind: type[object] | None = None  # of the open part; None: only redacted thoughts so far
        self._signature = bytearray()
        self._redacted = bytearray()

    def _read(self, event: bytes, out: list[StreamEvent]) -> None:
        try:
            if event.startswith(_DELTA_LINE):
                self._delta(_decode_delta(event[len(_DELTA_LINE) :]), out)
                return
            name, data = _parts_of(event)
            if name == b"error":
                raise error_reported()
            decoder = _DECODERS.get(name)
            if decoder is not None:
                self._other(decoder.decode(data), out)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise not_converse() from None

    # --- deltas ---

    def _delta(self, event: _BlockDelta, out: list[StreamEvent]) -> None:
        delta = event.delta
        text = delta.text
        if text is not None and event.contentBlockIndex == self._open and self._kind is Text:
            if text:
                out.append(TextDelta(0, self._index, text))
            return
        self._open_block(event.contentBlockIndex)
        if text is not None:
            self._be(Text, Text(""), out)
            if text:
                out.append(TextDelta(0, self._index, text))
        elif delta.toolUse is not None:
            if self._kind is not ToolCall:
                raise not_converse()
            self._more_arguments(delta.toolUse.input, out)
        elif delta.reasoningContent is not None:
            self._thought(delta.reasoningContent, out)
        elif delta.citation is not None:
            self._be(Text, Text(""), out)
            out.append(CitationAdded(0, self._index, citation_of(delta.citation)))
        else:
            raise not_converse()

    def _open_block(self, index: int) -> None:
        """A delta of the block `index` is here: it is the open one, or none is."""
        if index == self._open >= 0:
            return
        if self._open >= 0 or self._finished or not self._started or index < 0:
            raise not_converse()
        self._open = index

    def _be(self, kind: type[object], empty: Text | Reasoning, out: list[StreamEvent]) -> None:
        """The open block is a part of `kind`: say so if nothing said it yet. Raises `UpstreamError` if it is of another."""
        if self._kind is None and not self._redacted:
            self._kind = kind
            self._begin_part(empty, out)
        elif self._kind is not kind:
            raise not_converse()

    def _thought(self, delta: _ReasoningDelta, out: list[StreamEvent]) -> None:
        if delta.redactedContent is not None:
            if self._kind is not None:
                raise not_converse()
            self._more_redacted(delta.redactedContent)
            return
        self._be(Reasoning, Reasoning(), out)
        if delta.text:
            out.append(TextDelta(0, self._index, delta.text))
        if delta.signature:
            self._signature += delta.signature.encode()
            if len(self._signature) > MAX_TOOL_ARGUMENTS_BYTES:
                raise _too_large()

    def _more_redacted(self, piece: str) -> None:
        try:
            self._redacted += base64.b64decode(piece, validate=True)
        except (binascii.Error, ValueError):
            raise not_converse() from None
        if len(self._redacted) > MAX_TOOL_ARGUMENTS_BYTES:
            raise _too_large()

    # --- everything else ---

    def _other(self, event: object, out: list[StreamEvent]) -> None:
        if isinstance(event, _MessageStart) is self._started:  # the first is one, and no other
            raise not_converse()
        if isinstance(event, _MessageStart):
            if event.role != "assistant":
                raise not_converse()
            self._started = True
            out.append(Started("", ""))
        elif isinstance(event, _BlockDelta):
            self._delta(event, out)
        elif isinstance(event, _BlockStart):
            self._begin(event, out)
        elif isinstance(event, _BlockStop):
            self._end_block(event, out)
        elif isinstance(event, _MessageStop):
            if self._open >= 0 or self._finished:
                raise not_converse()
            stop = stop_of(event.stopReason)
            self._finished = True
            out.append(Finished(0, stop))
        elif isinstance(event, _Metadata):
            if not self._finished:
                raise not_converse()
            usage = usage_in(event.usage)
            if usage is not None:
                out.append(Counted(usage))
            self._ended = True
            out.append(Ended())

    def _begin(self, event: _BlockStart, out: list[StreamEvent]) -> None:
        call = event.start.toolUse
        if call is None:
            return  # says nothing
        if self._open >= 0:
            raise not_converse()
        verify_kind_of_call(call.type)
        self._open_block(event.contentBlockIndex)
        self._kind = ToolCall
        self._begin_part(ToolCall(call.toolUseId, call.name, ""), out)

    def _end_block(self, event: _BlockStop, out: list[StreamEvent]) -> None:
        if self._open < 0 and not self._finished and event.contentBlockIndex >= 0:
            return  # a block of which nothing was said: an empty text
        if event.contentBlockIndex != self._open:
            raise not_converse()
        kind, self._open, self._kind = self._kind, -1, None
        if kind is Reasoning and self._signature:
            out.append(SignatureDelta(0, self._index, self._signature.decode(), Dialect.BEDROCK_CONVERSE))
            self._signature.clear()
        elif kind is None:
            if not self._redacted:
                return
            redacted = base64.b64encode(self._redacted).decode("ascii")
            self._redacted.clear()
            self._begin_part(Reasoning(redacted=redacted, signer=Dialect.BEDROCK_CONVERSE), out)
        self._end_part(out, called=kind is ToolCall)


def _parts_of(event: bytes) -> tuple[bytes, bytes]:
    """Return the name of `event` and its data; both empty for a comment."""
    name = b""
    lines = []
    for line in event.split(b"\n"):
        if line.startswith(_EVENT):
            name = line[len(_EVENT) :]
        elif line.startswith(_DATA):
            lines.append(line[len(_DATA) :])
    return name, b"\n".join(lines)


def _too_large() -> UpstreamError:
    return UpstreamError("The provider's answer has a part that is larger than the gateway takes.", code="upstream_too_large")
