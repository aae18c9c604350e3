"""What egress reads of Responses, and nothing more: what a final body asks for, what an answer used, whether a stream is whole.

It forwards nothing that it does not recognise: an answer that is no response, failed or is not
finished is an `UpstreamError`, and so is a stream that stops before its last event. Usage that is absent or makes no sense is None, and the call settles at
its reservation. A provider may be hostile: whatever it answers, the work is linear in its length and the memory a small multiple of it.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from cliproxy.bounds import MAX_RESPONSES_EVENT_BYTES, MAX_TOKEN_COUNT
from cliproxy.errors import SchemaError, UpstreamError
from cliproxy.formats.json_bounds import answer_as
from cliproxy.formats.sse import EventSplitter, data_line
from cliproxy.metering.usage import AskedFor, Usage

__all__ = ["AskedFor", "ResponsesStreamMeter", "Usage", "read_usage", "reread", "usage_of_answer"]


# --- what a final body asks for ----------------------------------------------------------------------------------------


class _AskedFor(msgspec.Struct, gc=False):
    """`None` types are fields that no honest worker sends: chat's names, and imitators' for other models."""

    model: str
    max_output_tokens: Annotated[int, Meta(ge=1)]  # a negative number would make room in a limit
    stream: bool | None = None
    models: None = None
    fallbacks: None = None
    max_tokens: None = None
    max_completion_tokens: None = None
    n: None = None


_body_decoder = msgspec.json.Decoder(_AskedFor)


def reread(body: bytes) -> AskedFor:
    """Return what the final bytes of a request ask for. Of duplicate names the last one counts.

    Raises `SchemaError` if they are no JSON object with these fields, or name no cap on output tokens, which every body from `decode` and `encode` has.
    """
    try:
        read = _body_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise SchemaError("The body is not a Responses request with a cap on output tokens.") from None
    return AskedFor(read.model, read.max_output_tokens, 1, read.stream is True)


# --- what an answer used -----------------------------------------------------------------------------------------------

_ABSENT = msgspec.Raw(b"null")
_Count = Annotated[int, Meta(ge=0, le=MAX_TOKEN_COUNT)]
FINISHED = ("completed", "incomplete", None)  # some imitations do not say


class _InputDetails(msgspec.Struct, gc=False):
    cached_tokens: _Count | None = None
    cache_write_tokens: _Count | None = None


class _OutputDetails(msgspec.Struct, gc=False):
    reasoning_tokens: _Count | None = None


class _Usage(msgspec.Struct, gc=False):
    input_tokens: _Count
    output_tokens: _Count
    input_tokens_details: _InputDetails | None = None
    output_tokens_details: _OutputDetails | None = None


class _Item(msgspec.Struct, gc=False):
    type: str


class _Response(msgspec.Struct, gc=False):
    output: list[_Item]
    status: str | None = None
    error: msgspec.Raw = _ABSENT
    usage: msgspec.Raw = _ABSENT


_usage_decoder = msgspec.json.Decoder(_Usage)
_response_decoder = msgspec.json.Decoder(_Response)


def usage_of_answer(body: bytes) -> Usage | None:
    """Return the usage in a whole answer, or None if it has none that makes sense.

    Raises `UpstreamError` if `body` is no response, or one that failed or is still under way.
    """
    response = answer_as(_response_decoder, body)
    if response is None:
        raise UpstreamError("The provider's answer is not a response.", code="bad_upstream_answer")
    verify_finished(response.status, response.error)
    return read_usage(response.usage)


def verify_finished(status: str | None, error: msgspec.Raw) -> None:
    """Raise `UpstreamError` unless a response with this `status` and `error` is at its end."""
    if bytes(error) != b"null" or status == "failed":
        raise UpstreamError("The provider reported that it failed to answer.", code="upstream_failed")
    if status not in FINISHED:
        raise UpstreamError("The provider's answer is not finished.", code="bad_upstream_answer")


def read_usage(raw: msgspec.Raw) -> Usage | None:
    """Return the usage in the JSON text `raw`; None if it makes no sense."""
    try:
        read = _usage_decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    given, made = read.input_tokens_details, read.output_tokens_details
    return Usage(
        read.input_tokens,
        read.output_tokens,
        (given.cached_tokens or 0) if given is not None else 0,
        (made.reasoning_tokens or 0) if made is not None else 0,
        (given.cache_write_tokens or 0) if given is not None else 0,
    )


# --- a stream ----------------------------------------------------------------------------------------------------------


class _FinalResponse(msgspec.Struct, gc=False):
    usage: msgspec.Raw = _ABSENT


class _Event(msgspec.Struct, gc=False):
    """What is read of an event that may be the last."""

    type: str = ""
    error: msgspec.Raw = _ABSENT
    response: _FinalResponse | None = None


_event_decoder = msgspec.json.Decoder(_Event)
_LAST = (b"response.completed", b"response.incomplete", b"response.failed", b'"error"')  # types of last events; texts may hold these words too
_WHOLE = ("response.completed", "response.incomplete")


class ResponsesStreamMeter:
    """Passes a provider's stream on in whole events, and knows how it ended and what it used.

    The stream is whole when `response.completed` or `response.incomplete` was seen: what follows it is dropped. `response.failed` and `error` are the
    provider's failure. Everything else broke off.
    """

    __slots__ = ("_done", "_error", "_splitter", "usage")

    def __init__(self) -> None:
        self._splitter = EventSplitter(MAX_RESPONSES_EVENT_BYTES)
        self._done = False
        self._error: UpstreamError | None = None
        self.usage: Usage | None = None  # what the last event reports; None before it, or if that makes no sense

    @property
    def is_over(self) -> bool:
        """Whether the stream has said its end: what becomes of its connection then is nobody's business."""
        return self._done

    def feed(self, data: bytes) -> bytes:
        """Return the whole events that `data` completes, to be forwarded; empty if none.

        Raises `UpstreamError` for an event that is too large, and for a failure that the provider reports inside its stream. Events before it still come out:
        then the next call raises.
        """
        if self._error is not None:
            raise self._error
        if self._done:
            return b""
        events = self._splitter.feed(data)
        for word in _LAST:
            if events.find(word) >= 0:
                events = self._until_last(events)
                if not events and self._error is not None:
                    raise self._error
                break
        return events

    def finish(self) -> bytes:
        """The provider's body has ended as its framing said. Raises `UpstreamError` if the stream broke off before its end."""
        if self._error is not None:
            raise self._error
        if not self._done:
            raise UpstreamError("The provider broke off in the middle of its answer.", code="upstream_broke_off")
        return b""

    def _until_last(self, events: bytes) -> bytes:
        """Return `events` up to the last one of the stream, if it is among them; a failure ends before it. Each event is parsed once at most."""
        start = 0
        while start < len(events):
            end = events.find(b"\n\n", start) + 2
            if end == 1:  # what is left is one more line end
                return events
            event = events[start:end]
            if any(word in event for word in _LAST):
                read = _parse(event)
                if read.type == "response.failed" or read.type == "error" or bytes(read.error) != b"null":
                    self._error = UpstreamError("The provider reported an error in the middle of its answer.", code="upstream_stream_error")
                    return events[:start]
                if read.type in _WHOLE:
                    self._done = True
                    self.usage = read_usage(read.response.usage) if read.response is not None else None
                    return events[:end]
            start = end
        return events


_NOTHING = _Event()


def _parse(event: bytes) -> _Event:
    at = 0 if event.startswith(b"data:") else event.find(b"\ndata:") + 1
    try:
        return _event_decoder.decode(data_line(event, at))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _NOTHING
