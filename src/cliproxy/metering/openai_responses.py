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
from cliproxy.errors import UpstreamError
from cliproxy.formats.json_bounds import answer_as
from cliproxy.formats.sse import data_line
from cliproxy.metering.body import ABSENT, FinalBody, TextMessage
from cliproxy.metering.stream import StreamMeter, Verdict
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


class _Usual(_AskedFor, gc=False, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    input: str | list[TextMessage]
    instructions: str | None = None
    store: bool | None = None
    user: str | None = None
    temperature: msgspec.Raw = ABSENT
    top_p: msgspec.Raw = ABSENT
    reasoning: msgspec.Raw = ABSENT
    text: msgspec.Raw = ABSENT


_final = FinalBody(_AskedFor, refusal="The body is not a Responses request with a cap on output tokens.", usual=_Usual)


def reread(body: bytes) -> AskedFor:
    """Return what the final bytes of a request ask for.

    Raises `SchemaError` if they are not what this gateway's encoder writes for a request with these fields, or name no cap on output tokens, which every body
    from `decode` and `encode` has.
    """
    read = _final.read(body)
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
_WHOLE = ("response.completed", "response.incomplete")


class ResponsesStreamMeter(StreamMeter):
    """A stream of Responses, which ends with `response.completed` or `response.incomplete`. `response.failed` and `error` are the provider's failure."""

    __slots__ = ()

    signs = (b"response.completed", b"response.incomplete", b"response.failed", b'"error"')  # types of last events; texts may hold these words too
    max_event_bytes = MAX_RESPONSES_EVENT_BYTES

    def _judge(self, events: bytes, start: int, end: int) -> Verdict:
        try:
            event = _event_decoder.decode(data_line(events, start))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return Verdict.GOES_ON
        if event.type == "response.failed" or event.type == "error" or bytes(event.error) != b"null":
            return Verdict.FAILURE
        if event.type not in _WHOLE:
            return Verdict.GOES_ON
        self._noted = read_usage(event.response.usage) if event.response is not None else None
        return Verdict.END
