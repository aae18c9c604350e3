"""What egress reads of Gemini's calls, and nothing more: what a final body asks for, what an answer used, whether a stream is whole.

It reads what was checked elsewhere and forwards nothing that it does not recognise: an answer
that is no GenerateContentResponse is an `UpstreamError`, and so is a stream that stops before its end. Usage that is absent or makes no sense is None, and the
call settles at its reservation. A provider may be hostile: whatever it answers, the work is linear in its length and the memory a small multiple of it.
"""

from __future__ import annotations

import re
from collections import deque
from typing import Annotated

import msgspec
from msgspec import Meta

from cliproxy.bounds import MAX_ANSWER_OBJECTS, MAX_CHOICES, MAX_TOKEN_COUNT
from cliproxy.errors import SchemaError, UpstreamError
from cliproxy.formats.json_bounds import answer_as
from cliproxy.formats.sse import EventSplitter, data_line
from cliproxy.metering.usage import AskedFor, Usage

__all__ = ["AskedFor", "GenerateStreamMeter", "Usage", "reread", "reread_count", "usage_in", "usage_of_answer", "verify_count_answer"]

KEPT_PIECES = 4  # of a stream's end; Google counts in every event
KEPT_PIECE_BYTES = 64 * 1024  # of one piece, which may be a whole read of 256 KiB: 1,000 streams would hold a gigabyte

_ABSENT = msgspec.Raw(b"null")


# --- what a final body asks for ----------------------------------------------------------------------------------------

_Positive = Annotated[int, Meta(ge=1, le=2**31 - 1)]  # a negative number would make room in a limit


class _Config(msgspec.Struct, gc=False):
    """`None` types are fields that no honest worker sends: other spellings of what limits count on, and choices of another model."""

    maxOutputTokens: _Positive
    candidateCount: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    max_output_tokens: None = None
    candidate_count: None = None
    routingConfig: None = None
    routing_config: None = None
    modelSelectionConfig: None = None
    model_selection_config: None = None


class _AskedFor(msgspec.Struct, gc=False):
    generationConfig: _Config
    generation_config: None = None
    model: None = None


class _CountAsked(msgspec.Struct, gc=False):
    contents: msgspec.Raw
    generateContentRequest: None = None
    generate_content_request: None = None
    model: None = None


_body_decoder = msgspec.json.Decoder(_AskedFor)
_count_decoder = msgspec.json.Decoder(_CountAsked)


def reread(body: bytes) -> AskedFor:
    """Return what the final bytes of a request ask for; model and streaming are the path's. Of duplicate names the last one counts.

    Raises `SchemaError` if they are no JSON object with a cap on output tokens, which every body from `decode` has, or say one of these things in another
    spelling, or name a model. Everything else in them is skipped, not checked.
    """
    try:
        config = _body_decoder.decode(body).generationConfig
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise SchemaError("The body is not a request for Gemini with a cap on output tokens.", param="generationConfig") from None
    return AskedFor("", config.maxOutputTokens, config.candidateCount or 1, None)


def reread_count(body: bytes) -> AskedFor:
    """The same for a request that only counts: it generates nothing, and names no model either. Raises `SchemaError`."""
    try:
        _count_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise SchemaError("The body is not a request to count tokens.", param="contents") from None
    return AskedFor("", 0, 1, None)


# --- what an answer used -----------------------------------------------------------------------------------------------

_Count = Annotated[int, Meta(ge=0, le=MAX_TOKEN_COUNT)]


class _Usage(msgspec.Struct, gc=False, rename="camel"):
    """Zero is left out, as everywhere in protobuf's JSON."""

    prompt_token_count: _Count | None = None
    candidates_token_count: _Count | None = None
    thoughts_token_count: _Count | None = None
    tool_use_prompt_token_count: _Count | None = None
    cached_content_token_count: _Count | None = None
    total_token_count: _Count | None = None


class _Feedback(msgspec.Struct, gc=False, rename="camel"):
    block_reason: str | None = None


class _Content(msgspec.Struct, gc=False):
    parts: msgspec.Raw = msgspec.Raw(b"[]")
    role: str | None = None


class _Candidate(msgspec.Struct, gc=False, rename="camel"):
    content: _Content | None = None
    index: Annotated[int, Meta(ge=0, lt=MAX_CHOICES)] | None = None
    finish_reason: str | None = None


class _Answer(msgspec.Struct, gc=False, rename="camel"):
    """A whole answer, or one event of a stream. One with `error` is no part of an answer."""

    candidates: list[_Candidate] | None = None
    prompt_feedback: _Feedback | None = None
    usage_metadata: msgspec.Raw = _ABSENT
    error: msgspec.Raw = _ABSENT


class _Total(msgspec.Struct, gc=False, rename="camel"):
    total_tokens: _Count


_answer_decoder = msgspec.json.Decoder(_Answer)
_usage_decoder = msgspec.json.Decoder(_Usage)
_total_decoder = msgspec.json.Decoder(_Total)


def usage_of_answer(body: bytes) -> Usage | None:
    """Return the usage in a whole answer, or None if it has none that makes sense.

    Raises `UpstreamError` if `body` is none: not JSON, not UTF-8, neither candidates nor a blocked prompt.
    """
    answer = answer_as(_answer_decoder, body)
    if answer is None or bytes(answer.error) != b"null":
        raise _no_answer()
    if not answer.candidates and not _is_blocked(answer):
        raise _no_answer()
    for candidate in answer.candidates or ():
        if candidate.content is not None and memoryview(candidate.content.parts)[0] not in b"[n":
            raise _no_answer()
    return usage_in(answer.usage_metadata)


def verify_count_answer(body: bytes) -> None:
    """Raise `UpstreamError` if `body` is no count of tokens."""
    try:
        _total_decoder.decode(body)
        body.decode()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise UpstreamError("The provider's answer is not a count of tokens.", code="bad_upstream_answer") from None


def _is_blocked(answer: _Answer) -> bool:
    return answer.prompt_feedback is not None and bool(answer.prompt_feedback.block_reason)


def _no_answer() -> UpstreamError:
    return UpstreamError("The provider's answer is not one of Gemini's.", code="bad_upstream_answer")


def usage_in(raw: msgspec.Raw) -> Usage | None:
    """Return what a `usageMetadata` says, None if it makes no sense or counts nothing. Google counts thoughts beside the candidates, and what its own tools
    fetched beside the prompt; here they are part of them."""
    try:
        read = _usage_decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if read.prompt_token_count is None and read.total_token_count is None:
        return None
    prompt = (read.prompt_token_count or 0) + (read.tool_use_prompt_token_count or 0)
    reasoning = read.thoughts_token_count or 0
    completion = (read.candidates_token_count or 0) + reasoning
    return Usage(prompt, completion, min(read.cached_content_token_count or 0, prompt), reasoning)


# --- a stream ----------------------------------------------------------------------------------------------------------

_OTHER_CANDIDATE = re.compile(rb'"index"\s*:\s*[1-9]')


class GenerateStreamMeter:
    """Passes a provider's stream on in whole events, and knows how it ended and what it used.

    Google sends no closing event. The stream is whole when the body ends behind a whole event and every candidate that began has named its `finishReason`, or
    when the prompt was blocked. Everything else broke off.
    """

    __slots__ = ("_began", "_blocked", "_error", "_finished", "_kept", "_splitter")

    def __init__(self) -> None:
        self._splitter = EventSplitter()
        self._kept: deque[bytes] = deque(maxlen=KEPT_PIECES)
        self._began = {0}
        self._finished: set[int] = set()
        self._blocked = False
        self._error: UpstreamError | None = None

    def feed(self, data: bytes) -> bytes:
        """Return the whole events that `data` completes, to be forwarded; empty if none.

        Raises `UpstreamError` for an event that is too large, and for an error that the provider reports inside its stream. Events before it still come out:
        then the next call raises.
        """
        if self._error is not None:
            raise self._error
        events = self._splitter.feed(data)
        if not events:
            return b""
        if events.find(b'"error"') >= 0:
            events = self._until_error(events)
            if not events and self._error is not None:
                raise self._error
        if events.find(b'"finishReason"') >= 0 or events.find(b'"blockReason"') >= 0 or _OTHER_CANDIDATE.search(events) is not None:
            self._note_candidates(events)
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
        if self._splitter.at_boundary and (self._blocked or (self._finished and self._began <= self._finished)):
            return b""
        raise UpstreamError("The provider broke off in the middle of its answer.", code="upstream_broke_off")

    @property
    def is_over(self) -> bool:
        """Never: only the end of the body says so."""
        return False

    @property
    def usage(self) -> Usage | None:
        """The usage that the last events report, so far; None if they have none that makes sense."""
        for events in reversed(self._kept):
            at = events.rfind(b'"usageMetadata"')
            while at >= 0:
                event = _parse(data_line(events, at))
                usage = usage_in(event.usage_metadata) if event is not None else None
                if usage is not None:
                    return usage
                at = events.rfind(b'"usageMetadata"', 0, max(0, events.rfind(b"\n", 0, at)))  # each line is parsed once, however often it says the word
        return None

    def _note_candidates(self, events: bytes) -> None:
        for line in events.split(b"\n"):
            event = _parse(line[5:]) if line.startswith(b"data:") else None
            if event is None:
                continue
            self._blocked = self._blocked or _is_blocked(event)
            for candidate in event.candidates or ():
                index = candidate.index or 0
                self._began.add(index)
                if candidate.finish_reason and candidate.finish_reason != "FINISH_REASON_UNSPECIFIED":
                    self._finished.add(index)

    def _until_error(self, events: bytes) -> bytes:
        """Return `events` up to the first that reports an error, as an event or, as Google's servers do, as bare JSON; the provider's words end here."""
        at = events.find(b'"error"')
        while at >= 0:
            line = events[events.rfind(b"\n", 0, at) + 1 : at + 1]
            event = _parse(data_line(events, at)) if line.startswith(b"data:") else None
            if (event is not None and bytes(event.error) != b"null") or not line.startswith((b"data:", b":")):
                self._error = UpstreamError("The provider reported an error in the middle of its answer.", code="upstream_stream_error")
                before = events.rfind(b"\n\n", 0, at)
                return events[: before + 2] if before >= 0 else b""
            line_end = events.find(b"\n", at)
            at = events.find(b'"error"', line_end) if line_end >= 0 else -1  # each line is parsed once, however often it says the word
        return events


def _parse(data: bytes) -> _Answer | None:
    if len(data) > KEPT_PIECE_BYTES and data.count(b"{") > MAX_ANSWER_OBJECTS:
        return None
    try:
        return _answer_decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
