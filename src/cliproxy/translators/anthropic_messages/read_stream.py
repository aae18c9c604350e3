"""A provider's stream of a message, read into the hub's events.

What always holds: what the hub's readers promise (`conversation.py`). Blocks come one after the other and deltas belong to the open one; anything else is an
`UpstreamError`, raised when the events before it have been returned. Kinds of events that are not known are passed over, as the vendor asks its clients to do;
kinds of blocks and deltas that are not known are parts of an answer, so they are faults.
"""

from __future__ import annotations

import msgspec

from cliproxy.bounds import MAX_TOOL_ARGUMENTS_BYTES
from cliproxy.dialects import Dialect
from cliproxy.errors import UpstreamError
from cliproxy.formats.sse import EventSplitter
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
    ArgumentsDelta,
    CitationAdded,
    Counted,
    Ended,
    Finished,
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


class Reader:
    """Reads one stream. `feed` and `finish` raise `UpstreamError` as soon as there is nothing before the fault left to return, and from then on."""

    __slots__ = ("_ended", "_error", "_finished", "_index", "_input", "_kind", "_open", "_signature", "_splitter", "_start", "_started")

    def __init__(self) -> None:
        self._splitter = EventSplitter()
        self._error: UpstreamError | None = None
        self._started = self._finished = self._ended = False
        self._start: WireUsage | None = None  # what the first event said of the prompt
        self._index = -1  # the hub's, of the last part
        self._open = -1  # the provider's, of the open block
        self._kind: type[object] | None = None  # of the open block
        self._signature = ""
        self._input = bytearray()  # the open call's

    def feed(self, data: bytes) -> list[StreamEvent]:
        """Return the events that `data` completes; may be empty."""
        if self._error is not None:
            raise self._error
        out: list[StreamEvent] = []
        if self._ended:
            return out
        try:
            events = self._splitter.feed(data)
            if events:
                for event in events.split(b"\n\n"):
                    if event:
                        self._read(event, out)
        except UpstreamError as error:
            self._error = error
            if not out:
                raise
        return out

    def finish(self) -> list[StreamEvent]:
        """The provider's body has ended as its framing said. Raises `UpstreamError` if the stream broke off before its end."""
        if self._error is not None:
            raise self._error
        if not self._ended:
            raise UpstreamError("The provider broke off in the middle of its answer.", code="upstream_broke_off")
        return []

    def _read(self, event: bytes, out: list[StreamEvent]) -> None:
        at = event.find(b"data:")
        data = event[at + 6 :]
        if at <= 0 or event[at - 1 : at + 6] != _DATA or _NEWLINE in data:  # not a name and one line of data, as the vendor writes
            data = _data_of(event)
            if not data:
                return  # a comment, or an event without data
        if self._ended:
            return
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
                self._more_input(delta.partial_json, out)
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
            raise UpstreamError("The provider reported an error in the middle of its answer.", code="upstream_stream_error")
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
        self._index += 1
        self._kind = type(block)
        if isinstance(block, SaidText):
            out.append(PartStarted(0, self._index, Text("")))
            if block.text:
                out.append(TextDelta(0, self._index, block.text))
            out += [CitationAdded(0, self._index, citation_of(citation)) for citation in block.citations or ()]
        elif isinstance(block, SaidThinking):
            out.append(PartStarted(0, self._index, Reasoning()))
            if block.thinking:
                out.append(TextDelta(0, self._index, block.thinking))
            self._signature = block.signature
        elif isinstance(block, SaidRedacted):
            out.append(PartStarted(0, self._index, Reasoning(redacted=block.data, signer=Dialect.ANTHROPIC_MESSAGES)))
        else:
            self._input.clear()
            out.append(PartStarted(0, self._index, ToolCall(block.id, block.name, "")))
            given = bytes(block.input)
            if given not in (b"{}", b"null", b'""'):  # imitations that send the whole call at once
                self._more_input(_text(given), out)

    def _more_input(self, piece: str, out: list[StreamEvent]) -> None:
        if not piece:
            return
        self._input += piece.encode()
        if len(self._input) > MAX_TOOL_ARGUMENTS_BYTES:
            raise UpstreamError("The provider's tool call is larger than the gateway takes.", code="upstream_too_large")
        out.append(ArgumentsDelta(0, self._index, piece))

    def _end_block(self, out: list[StreamEvent]) -> None:
        if self._kind is SaidCall:
            if self._input:
                verify_arguments(self._input.decode())
            else:
                out.append(ArgumentsDelta(0, self._index, "{}"))
        elif self._kind is SaidThinking and self._signature:
            out.append(SignatureDelta(0, self._index, self._signature, Dialect.ANTHROPIC_MESSAGES))
        self._open = -1
        self._kind = None
        out.append(PartEnded(0, self._index))

    def _final(self, event: _MessageDelta, out: list[StreamEvent]) -> None:
        if self._open >= 0:
            raise not_a_message()
        if event.delta.stop_reason is not None and not self._finished:
            stop = stop_of(event.delta.stop_reason)
            for part in explanation_of(event.delta.stop_details):
                self._index += 1
                out += (PartStarted(0, self._index, Refusal("")), TextDelta(0, self._index, part.text), PartEnded(0, self._index))
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


def _data_of(event: bytes) -> bytes:
    """Return the `data` lines of `event`, joined as server-sent events are."""
    lines = [line[6:] if line[5:6] == b" " else line[5:] for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines)
