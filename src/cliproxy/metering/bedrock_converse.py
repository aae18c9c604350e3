"""What egress reads of Bedrock's Converse, and nothing more: what a final body asks for, what an answer used, whether a stream is whole.

The model is in the path, and so is whether the answer is streamed. A body is only ever made by
`encode.py`, so a field that this does not write is refused: `additionalModelRequestFields` could name another cap on output tokens. Usage that is absent or
makes no sense is None, and the call settles at its reservation. A provider may be hostile: the work is linear in what it answers.

Bedrock counts what it read from a cache and wrote to one beside `inputTokens`; here both are part of the prompt.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from cliproxy.bounds import MAX_TOKEN_COUNT
from cliproxy.errors import SchemaError, UpstreamError
from cliproxy.formats.json_bounds import answer_as
from cliproxy.formats.sse import EventSplitter
from cliproxy.metering.usage import AskedFor, Usage

__all__ = ["AskedFor", "ConverseStreamMeter", "Usage", "reread", "usage_in", "usage_of_answer"]

_ABSENT = msgspec.Raw(b"null")
_LIST = ord("[")


# --- what a final body asks for ----------------------------------------------------------------------------------------


class _Inference(msgspec.Struct, gc=False):
    maxTokens: Annotated[int, Meta(ge=1)]


class _More(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    thinking: msgspec.Raw = _ABSENT
    top_k: msgspec.Raw = _ABSENT


class _AskedFor(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """Every field that `encode.py` writes."""

    messages: msgspec.Raw
    inferenceConfig: _Inference
    system: msgspec.Raw = _ABSENT
    toolConfig: msgspec.Raw = _ABSENT
    outputConfig: msgspec.Raw = _ABSENT
    serviceTier: msgspec.Raw = _ABSENT
    additionalModelRequestFields: _More | None = None


_body_decoder = msgspec.json.Decoder(_AskedFor)


def reread(body: bytes) -> AskedFor:
    """Return what the final bytes of a request ask for; the path says the rest. Of duplicate names the last one counts, here as there.

    Raises `SchemaError` if they are no Converse request with a cap on output tokens, or hold a field that this gateway never writes.
    """
    try:
        read = _body_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise SchemaError("The body is not a Converse request with a cap on output tokens.") from None
    return AskedFor("", read.inferenceConfig.maxTokens, 1, None)


# --- what an answer used -----------------------------------------------------------------------------------------------

_Count = Annotated[int, Meta(ge=0, le=MAX_TOKEN_COUNT)]


class _Usage(msgspec.Struct, gc=False):
    inputTokens: _Count
    outputTokens: _Count
    cacheReadInputTokens: _Count | None = None
    cacheWriteInputTokens: _Count | None = None


class _Message(msgspec.Struct, gc=False):
    content: msgspec.Raw  # raw: 8 million `[]` in it would become 500 MB of lists


class _Output(msgspec.Struct, gc=False):
    message: _Message


class _Answer(msgspec.Struct, gc=False):
    output: _Output
    stopReason: str
    usage: msgspec.Raw = _ABSENT


class _Metadata(msgspec.Struct, gc=False):
    usage: msgspec.Raw = _ABSENT


_answer_decoder = msgspec.json.Decoder(_Answer)
_usage_decoder = msgspec.json.Decoder(_Usage)
_metadata_decoder = msgspec.json.Decoder(_Metadata)


def usage_of_answer(body: bytes) -> Usage | None:
    """Return the usage in a whole answer, or None if it has none that makes sense.

    Raises `UpstreamError` if `body` is no answer of Converse: not JSON, not UTF-8, without a message.
    """
    answer = answer_as(_answer_decoder, body)
    if answer is None or memoryview(answer.output.message.content)[0] != _LIST:
        raise UpstreamError("The provider's answer is not one of Converse.", code="bad_upstream_answer")
    return usage_in(answer.usage)


def usage_in(raw: msgspec.Raw) -> Usage | None:
    """Return the usage that `raw` reports, or None if it makes no sense."""
    try:
        read = _usage_decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    cached, written = read.cacheReadInputTokens or 0, read.cacheWriteInputTokens or 0
    return Usage(read.inputTokens + cached + written, read.outputTokens, cached, 0, written)


# --- a stream ----------------------------------------------------------------------------------------------------------

_ERROR = b"event: error\n"
_STOP = b"event: messageStop\n"
_METADATA = b"event: metadata\n"
_DATA = b"data: "


class ConverseStreamMeter:
    """Passes a stream on in whole events, and knows how it ended and what it used.

    The stream is whole when `messageStop` and, after it, `metadata` were seen: what follows is dropped. Everything else broke off. Each event is a name's line
    and a line of JSON (`formats/event_stream.py` writes them so), in which no line can begin but where an event does.
    """

    __slots__ = ("_done", "_error", "_splitter", "_stopped", "usage")

    def __init__(self) -> None:
        self._splitter = EventSplitter()
        self._stopped = False
        self._done = False
        self._error: UpstreamError | None = None
        self.usage: Usage | None = None

    @property
    def is_over(self) -> bool:
        """Whether the stream has said its end: what becomes of its connection then is nobody's business."""
        return self._done

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
        at = _first(events, _ERROR)
        if at >= 0:
            self._error = UpstreamError("The provider reported an error in the middle of its answer.", code="upstream_stream_error")
            events = events[:at]
        if not self._stopped and _first(events, _STOP) >= 0:
            self._stopped = True
        if self._stopped:
            events = self._until_metadata(events)
        if not events and self._error is not None:
            raise self._error
        return events

    def finish(self) -> bytes:
        """The provider's body has ended as its framing said: return what the client is still owed, which is nothing.

        Raises `UpstreamError` if the stream broke off before its end.
        """
        if self._error is not None:
            raise self._error
        if not self._done:
            raise UpstreamError("The provider broke off in the middle of its answer.", code="upstream_broke_off")
        return b""

    def _until_metadata(self, events: bytes) -> bytes:
        at = _first(events, _METADATA)
        if at < 0:
            return events
        end = events.find(b"\n\n", at) + 2
        line = events[at + len(_METADATA) : end - 2]
        try:
            self.usage = usage_in(_metadata_decoder.decode(line.removeprefix(_DATA)).usage)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self.usage = None
        self._done = True
        self._error = None  # what comes after the end is not looked at
        return events[:end]


def _first(events: bytes, line: bytes) -> int:
    """Return where the first event begins whose first line is `line`; -1 if there is none."""
    if events.startswith(line):
        return 0
    at = events.find(b"\n\n" + line)
    return at + 2 if at >= 0 else -1
