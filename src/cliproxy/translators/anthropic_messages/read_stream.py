"""A provider's stream of a message, read into the hub's events.

What always holds: what the hub's readers promise (`conversation.py`). Blocks come one after the other and deltas belong to the open one; anything else is an
`UpstreamError`, raised when the events before it have been returned. Kinds of events that are not known are passed over, as the vendor asks its clients to do;
kinds of blocks and deltas that are not known are parts of an answer, so they are faults.
"""

from __future__ import annotations

import msgspec

from cliproxy.dialects import Dialect
from cliproxy.metering.anthropic_messages import WireUsage, counted, usage_in
from cliproxy.translators.anthropic_messages.answer import (
    Said,
    SaidCall,
    SaidRedacted,
    SaidText,
    SaidThinking,
    StopDetails,
    explanation_of,
    not_a_message,
    stop_of,
)
from cliproxy.translators.anthropic_messages.to_hub import citation_of
from cliproxy.translators.anthropic_messages.wire import TextCitation
from cliproxy.translators.conversation import (
    CitationAdded,
    Counted,
    Ended,
    Finished,
    Reasoning,
    Refusal,
    SignatureDelta,
    Started,
    StreamEvent,
    Text,
    TextDelta,
    ToolCall,
)
from cliproxy.translators.stream_reader import OnePartReader, data_of, error_reported

_NULL = msgspec.Raw(b"null")
_DATA = b"\ndata: "
_NEWLINE = 10


class _TextDelta(msgspec.Struct, gc=False, tag_field="type", tag="text_delta"):
    text: str


class _JsonDelta(msgspec.Struct, gc=False, tag_field="type", tag="input_json_delta"):
    partial_json: str


class _ThinkingDelta(msgspec.Struct, gc=False, tag_field="type", tag="thinking_delta"):
    thinking: str


class _SignatureDelta(msgspec.Struct, gc=False, tag_field="type", tag="signature_delta"):
    signature: str


class _CitationsDelta(msgspec.Struct, gc=False, tag_field="type", tag="citations_delta"):
    citation: TextCitation


class _Message(msgspec.Struct, gc=False):
    id: str = ""
    model: str = ""
    usage: msgspec.Raw = _NULL


class _Final(msgspec.Struct, gc=False):
    stop_reason: str | None = None
    stop_sequence: str | None = None
    stop_details: StopDetails | None = None


class _MessageStart(msgspec.Struct, gc=False, tag_field="type", tag="message_start"):
    message: _Message


class _BlockStart(msgspec.Struct, gc=False, tag_field="type", tag="content_block_start"):
    index: int
    content_block: Said


class _BlockDelta(msgspec.Struct, gc=False, tag_field="type", tag="content_block_delta"):
    index: int
    delta: _TextDelta | _JsonDelta | _ThinkingDelta | _SignatureDelta | _CitationsDelta


class _BlockStop(msgspec.Struct, gc=False, tag_field="type", tag="content_block_stop"):
    index: int


class _MessageDelta(msgspec.Struct, gc=False, tag_field="type", tag="message_delta"):
    delta: _Final
    usage: msgspec.Raw = _NULL


class _MessageStop(msgspec.Struct, gc=False, tag_field="type", tag="message_stop"):
    pass


class _Ping(msgspec.Struct, gc=False, tag_field="type", tag="ping"):
    pass


class _Error(msgspec.Struct, gc=False, tag_field="type", tag="error"):
    pass


class _Typed(msgspec.Struct, gc=False):
    type: str


_Event = _MessageStart | _BlockStart | _BlockDelta | _BlockStop | _MessageDelta | _MessageStop | _Ping | _Error
_KNOWN = frozenset(("message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta", "message_stop", "ping", "error"))
_decode = msgspec.json.Decoder(_Event).decode
_type_decoder = msgspec.json.Decoder(_Typed)


class Reader(OnePartReader):
    """Reads a stream of one message."""

    __slots__ = ("_finished", "_kind", "_open", "_signature", "_start")

    def __init__(self) -> None:
        super().__init__()
        self._finished = False
        self._start: WireUsage | None = None  # what the first event said of the prompt
        self._open = -1  # the provider's, of the open block
        self._kind: type[object] | None = None  # of the open block
        self._signature = ""

    def _read(self, event: bytes, out: list[StreamEvent]) -> None:
        at = event.find(b"data:")
        data = event[at + 6 :]
        if at <= 0 or event[at - 1 : at + 6] != _DATA or _NEWLINE in data:  # not a name and one line of data, as the vendor writes
            data = data_of(event)
            if not data:
                return  # a comment, or an event without data
        try:
            parsed = _decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self._odd(data)
            return
        if type(parsed) is _BlockDelta:
            if parsed.index != self._open:
                raise not_a_message()
            delta = parsed.delta
            if isinstance(delta, _TextDelta) and self._kind is SaidText:
                if delta.text:
                    out.append(TextDelta(0, self._index, delta.text))
            elif isinstance(delta, _JsonDelta) and self._kind is SaidCall:
                self._more_arguments(delta.partial_json, out)
            else:
                self._other_delta(delta, out)
        else:
            self._other(parsed, out)

    def _odd(self, data: bytes) -> None:
        """Pass over an event of an unknown kind. Raises `UpstreamError` for one of a known kind that is not as it should be, and for what is no event."""
        try:
            kind = _type_decoder.decode(data).type
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise not_a_message() from None
        if kind in _KNOWN or not self._started:
            raise not_a_message()

    def _other_delta(self, delta: object, out: list[StreamEvent]) -> None:
        if isinstance(delta, _ThinkingDelta) and self._kind is SaidThinking:
            if delta.thinking:
                out.append(TextDelta(0, self._index, delta.thinking))
        elif isinstance(delta, _SignatureDelta) and self._kind is SaidThinking:
            self._signature = delta.signature
        elif isinstance(delta, _CitationsDelta) and self._kind is SaidText:
            out.append(CitationAdded(0, self._index, citation_of(delta.citation)))
        else:
            raise not_a_message()

    def _other(self, event: object, out: list[StreamEvent]) -> None:
        if isinstance(event, _Error):
            raise error_reported()
        if isinstance(event, _Ping):
            return
        if isinstance(event, _MessageStart) is self._started:  # the first is one, and no other
            raise not_a_message()
        if isinstance(event, _MessageStart):
            self._started = True
            self._start = usage_in(event.message.usage)
            usage = counted(self._start, None) if self._start is not None else None
            out.append(Started(event.message.id, event.message.model, usage))
        elif isinstance(event, _BlockStart):
            self._begin(event, out)
        elif isinstance(event, _BlockStop):
            if event.index != self._open:
                raise not_a_message()
            self._end_block(out)
        elif isinstance(event, _MessageDelta):
            self._final(event, out)
        elif isinstance(event, _MessageStop):
            if not self._finished:
                raise not_a_message()
            self._ended = True
            out.append(Ended())

    def _begin(self, event: _BlockStart, out: list[StreamEvent]) -> None:
        if self._open >= 0 or self._finished or event.index < 0:
            raise not_a_message()
        block = event.content_block
        self._open = event.index
        self._kind = type(block)
        if isinstance(block, SaidText):
            self._begin_part(Text(""), out)
            if block.text:
                out.append(TextDelta(0, self._index, block.text))
            out += [CitationAdded(0, self._index, citation_of(citation)) for citation in block.citations or ()]
        elif isinstance(block, SaidThinking):
            self._begin_part(Reasoning(), out)
            if block.thinking:
                out.append(TextDelta(0, self._index, block.thinking))
            self._signature = block.signature
        elif isinstance(block, SaidRedacted):
            self._begin_part(Reasoning(redacted=block.data, signer=Dialect.ANTHROPIC_MESSAGES), out)
        else:
            self._begin_part(ToolCall(block.id, block.name, ""), out)
            given = bytes(block.input)
            if given not in (b"{}", b"null", b'""'):  # imitations that send the whole call at once
                self._more_arguments(_text(given), out)

    def _end_block(self, out: list[StreamEvent]) -> None:
        if self._kind is SaidThinking and self._signature:
            out.append(SignatureDelta(0, self._index, self._signature, Dialect.ANTHROPIC_MESSAGES))
        self._end_part(out, called=self._kind is SaidCall)
        self._open = -1
        self._kind = None

    def _final(self, event: _MessageDelta, out: list[StreamEvent]) -> None:
        if self._open >= 0:
            raise not_a_message()
        if event.delta.stop_reason is not None and not self._finished:
            stop = stop_of(event.delta.stop_reason)
            for part in explanation_of(event.delta.stop_details):
                self._begin_part(Refusal(""), out)
                out.append(TextDelta(0, self._index, part.text))
                self._end_part(out, called=False)
            self._finished = True
            out.append(Finished(0, stop, event.delta.stop_sequence or ""))
        read = usage_in(event.usage)
        usage = counted(read, self._start) if read is not None else None
        if usage is not None:
            out.append(Counted(usage))


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise not_a_message() from None
