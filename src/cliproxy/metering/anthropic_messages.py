"""What egress reads of Anthropic's Messages, and nothing more: what a final body asks for, what an answer used, whether a stream is whole.

An answer that is no message is an `UpstreamError`, and so is a stream that stops before its
`message_stop`. Usage that is absent or makes no sense is None, and the call settles at its reservation. A provider may be hostile: whatever it answers, the
work is linear in its length and the memory a small multiple of it.

Anthropic counts what it read from a cache and wrote to one beside `input_tokens`; here both are part of the prompt.
"""

from __future__ import annotations

from collections import deque
from typing import Annotated

import msgspec
from msgspec import Meta

from cliproxy.bounds import MAX_TOKEN_COUNT
from cliproxy.errors import SchemaError, UpstreamError
from cliproxy.formats.json_bounds import answer_as
from cliproxy.formats.sse import EventSplitter, data_line
from cliproxy.metering.usage import AskedFor, Usage

__all__ = [
    "AskedFor",
    "CountAnswer",
    "MessagesStreamMeter",
    "Usage",
    "WireUsage",
    "counted",
    "reread",
    "reread_count",
    "usage_in",
    "usage_of_answer",
    "verify_count_answer",
]

_LIST = ord("[")

KEPT_PIECES = 4  # of a stream's end; the last count is in the last event but one
KEPT_PIECE_BYTES = 64 * 1024  # of one piece, which may be a whole read of 256 KiB: 1,000 streams would hold a gigabyte


# --- what a final body asks for ----------------------------------------------------------------------------------------


class _AskedFor(msgspec.Struct, gc=False):
    """`None` types are fields that no honest worker sends: imitators' names for other models."""

    max_tokens: Annotated[int, Meta(ge=0)]  # a negative number would make room in a limit; 0 fills a cache
    model: str = ""  # Vertex AI has it in the path
    stream: bool | None = None
    models: None = None
    fallbacks: None = None


class _AskedToCount(msgspec.Struct, gc=False):
    model: str
    messages: msgspec.Raw


_body_decoder = msgspec.json.Decoder(_AskedFor)
_count_body_decoder = msgspec.json.Decoder(_AskedToCount)


def reread(body: bytes) -> AskedFor:
    """Return what the final bytes of a request ask for; the model is empty where the body does not name it. Of duplicate names the last one counts.

    Raises `SchemaError` if they are no JSON object with these fields, or name no cap on output tokens. Everything else in it is skipped, not checked.
    """
    try:
        read = _body_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise SchemaError("The body is not a Messages request with a cap on output tokens.") from None
    return AskedFor(read.model, read.max_tokens, 1, read.stream is True)


def reread_count(body: bytes) -> AskedFor:
    """Return the same of a final question for tokens: no output, whatever else it says. It names its model on Vertex AI too. Raises `SchemaError`."""
    try:
        read = _count_body_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise SchemaError("The body is not a question for a request's tokens.") from None
    return AskedFor(read.model, 0, 1, False)


# --- what an answer used -----------------------------------------------------------------------------------------------

_ABSENT = msgspec.Raw(b"null")
_Count = Annotated[int, Meta(ge=0, le=MAX_TOKEN_COUNT)]


class _OutputDetails(msgspec.Struct, frozen=True, gc=False):
    thinking_tokens: _Count | None = None


class WireUsage(msgspec.Struct, frozen=True, gc=False):
    """`usage` as the vendor spells it. The last event of a stream may tell the output only."""

    input_tokens: _Count | None = None
    output_tokens: _Count | None = None
    cache_creation_input_tokens: _Count | None = None
    cache_read_input_tokens: _Count | None = None
    output_tokens_details: _OutputDetails | None = None


class _Answer(msgspec.Struct, gc=False):
    type: str
    content: msgspec.Raw  # a list; raw, since 8 million `[]` in it would become 500 MB of lists
    usage: msgspec.Raw = _ABSENT


class _StartedMessage(msgspec.Struct, gc=False):
    usage: msgspec.Raw = _ABSENT


class _Event(msgspec.Struct, gc=False):
    """What is read of one event: `message_start` has the prompt's usage in `message`, `message_delta` all of it in `usage`."""

    type: str
    message: _StartedMessage | None = None
    usage: msgspec.Raw = _ABSENT


class CountAnswer(msgspec.Struct, gc=False):
    input_tokens: _Count


_answer_decoder = msgspec.json.Decoder(_Answer)
_usage_decoder = msgspec.json.Decoder(WireUsage)
_event_decoder = msgspec.json.Decoder(_Event)
_count_answer_decoder = msgspec.json.Decoder(CountAnswer)


def usage_of_answer(body: bytes) -> Usage | None:
    """Return the usage in a whole answer, or None if it has none that makes sense.

    Raises `UpstreamError` if `body` is no message: not JSON, not UTF-8, of another type, without a list of content.
    """
    answer = answer_as(_answer_decoder, body)
    if answer is None or answer.type != "message" or memoryview(answer.content)[0] != _LIST:
        raise UpstreamError("The provider's answer is not a message.", code="bad_upstream_answer")
    read = usage_in(answer.usage)
    return counted(read, None) if read is not None else None


def verify_count_answer(body: bytes) -> None:
    """Raise `UpstreamError` if `body` is no count of a request's tokens."""
    if answer_as(_count_answer_decoder, body) is None:
        raise UpstreamError("The provider's answer is not a count of tokens.", code="bad_upstream_answer")


def counted(read: WireUsage, start: WireUsage | None) -> Usage | None:
    """Return what `read` tells, and `start` of the same stream where `read` is silent; None if the two are not all of it."""
    fresh, output, written, cached = read.input_tokens, read.output_tokens, read.cache_creation_input_tokens, read.cache_read_input_tokens
    if start is not None:
        fresh = start.input_tokens if fresh is None else fresh
        written = start.cache_creation_input_tokens if written is None else written
        cached = start.cache_read_input_tokens if cached is None else cached
    if fresh is None or output is None:
        return None
    written, cached = written or 0, cached or 0
    details = read.output_tokens_details
    return Usage(fresh + written + cached, output, cached, (details.thinking_tokens or 0) if details is not None else 0, written)


def usage_in(raw: msgspec.Raw) -> WireUsage | None:
    """Return the `usage` in `raw`, or None if it makes no sense."""
    try:
        return _usage_decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


# --- a stream ----------------------------------------------------------------------------------------------------------

# Inside a JSON string a quotation mark has a backslash before it: these are found in names and whole values only, never in the model's words.
_STOP = b'"message_stop"'
_ERROR = b'"error"'
_DELTA = b'"message_delta"'
_START = b'"message_start"'


class MessagesStreamMeter:
    """Passes a provider's stream on in whole events, and knows how it ended and what it used.

    The stream is whole when `message_stop` was seen: what follows it is dropped. Everything else broke off.
    """

    __slots__ = ("_done", "_error", "_kept", "_splitter", "_start")

    def __init__(self) -> None:
        self._splitter = EventSplitter()
        self._kept: deque[bytes] = deque(maxlen=KEPT_PIECES)
        self._start: WireUsage | None = None
        self._done = False
        self._error: UpstreamError | None = None

    def feed(self, data: bytes) -> bytes:
        """Return the whole events that `data` completes, to be forwarded; empty if none.

        Raises `UpstreamError` for an event that is too large, and for an error that the provider reports inside its stream. Events before it still come out:
        then the next call raises.
        """
        if self._error is not None:
            raise self._error
        if self._done:
            return b""
        events = self._splitter.feed(data)
        if not events:
            return b""
        if events.find(_ERROR) >= 0 or events.find(b"event: error") >= 0:
            events = self._until_error(events)
            if not events and self._error is not None:
                raise self._error
        if events.find(_STOP) >= 0:
            events = self._until_stop(events)
        if self._start is None and events.find(_START) >= 0:
            self._start = _started(events)
        if len(events) > KEPT_PIECE_BYTES:
            self._kept.append(events[events.find(b"\n\n", len(events) - KEPT_PIECE_BYTES) + 2 :])  # a copy, from an event's beginning
        else:
            self._kept.append(events)
        return events

    def finish(self) -> bytes:
        """The provider's body has ended as its framing said: return what the client is still owed, which is nothing.

        Raises `UpstreamError` if the stream broke off before its end.
        """
        if self._error is not None:
            raise self._error
        if self._done:
            return b""
        raise UpstreamError("The provider broke off in the middle of its answer.", code="upstream_broke_off")

    @property
    def is_over(self) -> bool:
        """Whether the stream has said its end: what becomes of its connection then is nobody's business."""
        return self._done

    @property
    def usage(self) -> Usage | None:
        """The usage that the last events report; None if they have none that makes sense. The first event alone, which counts the prompt, is not enough."""
        for events in reversed(self._kept):
            for event in _typed(events, _DELTA, backwards=True):
                if event.type == "message_delta":
                    read = usage_in(event.usage)
                    usage = counted(read, self._start) if read is not None else None
                    if usage is not None:
                        return usage
        return None

    def _until_stop(self, events: bytes) -> bytes:
        at = events.find(_STOP)
        while at >= 0:
            event = _parse(data_line(events, at))
            if event is not None and event.type == "message_stop":
                self._done = True
                self._error = None  # what comes after the end is not looked at
                return events[: events.find(b"\n\n", at) + 2]
            at = _next_line(events, _STOP, at)
        return events

    def _until_error(self, events: bytes) -> bytes:
        """Return `events` up to the first that reports an error; the provider's words end here."""
        first = -1
        if events.startswith(b"event: error\n"):
            first = 0
        else:
            named = events.find(b"\nevent: error\n")
            if named >= 0:
                first = named + 1
        at = events.find(_ERROR)
        while at >= 0 and (first < 0 or at < first):
            event = _parse(data_line(events, at))
            if event is not None and event.type == "error":
                first = at
                break
            at = _next_line(events, _ERROR, at)
        if first < 0:
            return events
        self._error = UpstreamError("The provider reported an error in the middle of its answer.", code="upstream_stream_error")
        before = events.rfind(b"\n\n", 0, first)
        return events[: before + 2] if before >= 0 else b""


def _next_line(events: bytes, word: bytes, at: int) -> int:
    """Return where the next line that holds `word` has it, or -1: each line is parsed once, however often it says the word."""
    end = events.find(b"\n", at)
    return events.find(word, end) if end >= 0 else -1


def _typed(events: bytes, word: bytes, *, backwards: bool = False) -> list[_Event]:
    """Return the events of the lines that hold `word`, each line once."""
    found = []
    at = events.find(word)
    while at >= 0:
        event = _parse(data_line(events, at))
        if event is not None:
            found.append(event)
        at = _next_line(events, word, at)
    return found[::-1] if backwards else found


def _started(events: bytes) -> WireUsage | None:
    """Return what the first event says of the prompt."""
    for event in _typed(events, _START):
        if event.type == "message_start" and event.message is not None:
            return usage_in(event.message.usage) or WireUsage()
    return None


def _parse(data: bytes) -> _Event | None:
    try:
        return _event_decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
