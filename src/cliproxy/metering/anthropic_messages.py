"""What egress reads of Anthropic's Messages, and nothing more: what a final body asks for, what an answer used, whether a stream is whole.

An answer that is no message is an `UpstreamError`, and so is a stream that stops before its
`message_stop`. Usage that is absent or makes no sense is None, and the call settles at its reservation. A provider may be hostile: whatever it answers, the
work is linear in its length and the memory a small multiple of it.

Anthropic counts what it read from a cache and wrote to one beside `input_tokens`; here both are part of the prompt.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from cliproxy.bounds import MAX_TOKEN_COUNT
from cliproxy.errors import UpstreamError
from cliproxy.formats.json_bounds import answer_as
from cliproxy.formats.sse import data_line
from cliproxy.metering.body import ABSENT, FinalBody, TextMessage
from cliproxy.metering.stream import StreamMeter, Verdict
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
    messages: Any


class _Usual(_AskedFor, gc=False, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    messages: list[TextMessage]
    system: str | None = None
    temperature: msgspec.Raw = ABSENT
    top_p: msgspec.Raw = ABSENT
    top_k: msgspec.Raw = ABSENT
    stop_sequences: msgspec.Raw = ABSENT


_final = FinalBody(_AskedFor, refusal="The body is not a Messages request with a cap on output tokens.", usual=_Usual)
_final_count = FinalBody(_AskedToCount, refusal="The body is not a question for a request's tokens.")


def reread(body: bytes) -> AskedFor:
    """Return what the final bytes of a request ask for; the model is empty where the body does not name it.

    Raises `SchemaError` if they are not what this gateway's encoder writes for a request with these fields, or name no cap on output tokens.
    """
    read = _final.read(body)
    return AskedFor(read.model, read.max_tokens, 1, read.stream is True)


def reread_count(body: bytes) -> AskedFor:
    """Return the same of a final question for tokens: no output, whatever else it says. It names its model on Vertex AI too. Raises `SchemaError`."""
    return AskedFor(_final_count.read(body).model, 0, 1, False)


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
_SIGNS = (b'"error"', b"event: error\n", b'"message_stop"', b'"message_delta"', b'"message_start"')


class MessagesStreamMeter(StreamMeter):
    """A stream of Messages, which ends with `message_stop`. Its usage is what the last `message_delta` tells, and `message_start` where that is silent; the
    latter alone, which counts the prompt, is not enough.
    """

    __slots__ = ("_start",)

    signs = _SIGNS

    def __init__(self) -> None:
        super().__init__()
        self._start: WireUsage | None = None

    def _judge(self, events: bytes, start: int, end: int) -> Verdict:
        if events[start:end] == b"event: error":
            return Verdict.FAILURE
        try:
            event = _event_decoder.decode(data_line(events, start))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return Verdict.GOES_ON
        if event.type == "message_start":
            if self._start is None and event.message is not None:
                self._start = usage_in(event.message.usage) or WireUsage()
        elif event.type == "message_delta":
            read = usage_in(event.usage)
            self._noted = (counted(read, self._start) if read is not None else None) or self._noted
        return _VERDICTS.get(event.type, Verdict.GOES_ON)


_VERDICTS = {"message_stop": Verdict.END, "error": Verdict.FAILURE}
