"""What egress reads of Gemini's calls, and nothing more: what a final body asks for, what an answer used, whether a stream is whole.

It reads what was checked elsewhere and forwards nothing that it does not recognise: an answer
that is no GenerateContentResponse is an `UpstreamError`, and so is a stream that stops before its end. Usage that is absent or makes no sense is None, and the
call settles at its reservation. A provider may be hostile: whatever it answers, the work is linear in its length and the memory a small multiple of it.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from cliproxy.bounds import MAX_ANSWER_OBJECTS, MAX_CHOICES, MAX_TOKEN_COUNT
from cliproxy.errors import UpstreamError
from cliproxy.formats.json_bounds import answer_as
from cliproxy.metering.body import ABSENT, FinalBody, NestedObject
from cliproxy.metering.stream import KEPT_PIECE_BYTES, StreamMeter, Verdict
from cliproxy.metering.usage import AskedFor, Usage

__all__ = ["AskedFor", "GenerateStreamMeter", "Usage", "reread", "reread_count", "usage_in", "usage_of_answer", "verify_count_answer"]

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
    contents: Any
    generateContentRequest: None = None
    generate_content_request: None = None
    model: None = None


class _Text(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    text: str


class _Turn(msgspec.Struct, gc=False, forbid_unknown_fields=True, omit_defaults=True):
    parts: list[_Text]
    role: str | None = None


class _UsualConfig(_Config, gc=False, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    temperature: msgspec.Raw = ABSENT
    topP: msgspec.Raw = ABSENT
    topK: msgspec.Raw = ABSENT


class _Usual(_AskedFor, gc=False, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    contents: list[_Turn]
    generationConfig: _UsualConfig
    systemInstruction: _Turn | None = None
    safetySettings: msgspec.Raw = ABSENT
    store: bool | None = None


_final = FinalBody(
    _AskedFor,
    usual=_Usual,
    refusal="The body is not a request for Gemini with a cap on output tokens.",
    param="generationConfig",
    nested={"generationConfig": NestedObject(*(field.encode_name for field in msgspec.structs.fields(_Config)))},
)
_final_count = FinalBody(_CountAsked, refusal="The body is not a request to count tokens.", param="contents")


def reread(body: bytes) -> AskedFor:
    """Return what the final bytes of a request ask for; model and streaming are the path's.

    Raises `SchemaError` if they are not what this gateway's encoder writes for a request with a cap on output tokens, which every body from `decode` has, or
    say one of these things in another spelling, or name a model.
    """
    config = _final.read(body).generationConfig
    return AskedFor("", config.maxOutputTokens, config.candidateCount or 1, None)


def reread_count(body: bytes) -> AskedFor:
    """The same for a request that only counts: it generates nothing, and names no model either. Raises `SchemaError`."""
    _final_count.read(body)
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


class GenerateStreamMeter(StreamMeter):
    """A stream of GenerateContentResponses, which has no closing event: it is whole when the body ends behind a whole event and every candidate that began
    has named its `finishReason`, or when the prompt was blocked.
    """

    __slots__ = ("_began", "_blocked", "_finished")

    signs = (b'"error"', b'"finishReason"', b'"blockReason"')
    pattern = re.compile(rb'"index"\s*:\s*[1-9]')  # of a candidate beside the first
    usage_sign = b'"usageMetadata"'

    def __init__(self) -> None:
        super().__init__()
        self._began = {0}
        self._finished: set[int] = set()
        self._blocked = False

    def _judge(self, events: bytes, start: int, end: int) -> Verdict:
        line = events[start:end]
        if not line.startswith(b"data:"):  # Google's servers report errors as bare JSON too
            return Verdict.FAILURE if b'"error"' in line and not line.startswith(b":") else Verdict.GOES_ON
        event = _parse(line[5:])
        if event is None:
            return Verdict.GOES_ON
        if bytes(event.error) != b"null":
            return Verdict.FAILURE
        self._blocked = self._blocked or _is_blocked(event)
        for candidate in event.candidates or ():
            index = candidate.index or 0
            self._began.add(index)
            if candidate.finish_reason and candidate.finish_reason != "FINISH_REASON_UNSPECIFIED":
                self._finished.add(index)
        return Verdict.GOES_ON

    def _usage_of(self, data: bytes) -> Usage | None:
        event = _parse(data)
        return usage_in(event.usage_metadata) if event is not None else None

    def _is_whole(self) -> bool:
        return self._blocked or (bool(self._finished) and self._began <= self._finished)


def _parse(data: bytes) -> _Answer | None:
    if len(data) > KEPT_PIECE_BYTES and data.count(b"{") > MAX_ANSWER_OBJECTS:
        return None
    try:
        return _answer_decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
