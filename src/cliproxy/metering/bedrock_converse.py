"""What egress reads of Bedrock's Converse, and nothing more: what a final body asks for, what an answer used, whether a stream is whole.

The model is in the path, and so is whether the answer is streamed. A body is only ever made by
`encode.py`, so a field that this does not write is refused: `additionalModelRequestFields` could name another cap on output tokens. Usage that is absent or
makes no sense is None, and the call settles at its reservation. A provider may be hostile: the work is linear in what it answers.

Bedrock counts what it read from a cache and wrote to one beside `inputTokens`; here both are part of the prompt.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from cliproxy.bounds import MAX_TOKEN_COUNT
from cliproxy.errors import UpstreamError
from cliproxy.formats.json_bounds import answer_as
from cliproxy.formats.sse import data_line
from cliproxy.metering.body import FinalBody, NestedObject
from cliproxy.metering.stream import StreamMeter, Verdict
from cliproxy.metering.usage import AskedFor, Usage

__all__ = ["AskedFor", "ConverseStreamMeter", "Usage", "reread", "usage_in", "usage_of_answer"]

_ABSENT = msgspec.Raw(b"null")
_LIST = ord("[")


# --- what a final body asks for ----------------------------------------------------------------------------------------


class _Inference(msgspec.Struct, gc=False):
    maxTokens: Annotated[int, Meta(ge=1)]


class _More(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    thinking: Any = None
    top_k: Any = None


class _AskedFor(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """Every field that `encode.py` writes."""

    messages: Any
    inferenceConfig: _Inference
    system: Any = None
    toolConfig: Any = None
    outputConfig: Any = None
    serviceTier: Any = None
    additionalModelRequestFields: _More | None = None


_final = FinalBody(
    _AskedFor,
    refusal="The body is not a Converse request with a cap on output tokens.",
    nested={"inferenceConfig": NestedObject("maxTokens"), "additionalModelRequestFields": NestedObject("thinking", "top_k")},
)


def reread(body: bytes) -> AskedFor:
    """Return what the final bytes of a request ask for; the path says the rest.

    Raises `SchemaError` if they are no Converse request with a cap on output tokens, or hold a field that this gateway never writes.
    """
    return AskedFor("", _final.read(body).inferenceConfig.maxTokens, 1, None)


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


class ConverseStreamMeter(StreamMeter):
    """A stream of Converse, which ends with `messageStop` and, after it, `metadata`.

    Each event is a name's line and a line of JSON (`formats/event_stream.py` writes them so), in which no line can begin but where an event does.
    """

    __slots__ = ("_stopped",)

    signs = (b"event: error\n", b"event: messageStop\n", b"event: metadata\n")

    def __init__(self) -> None:
        super().__init__()
        self._stopped = False

    def _judge(self, events: bytes, start: int, end: int) -> Verdict:
        name = events[start:end]
        if name == b"event: error":
            return Verdict.FAILURE
        if name == b"event: messageStop":
            self._stopped = True
        elif name == b"event: metadata" and self._stopped:
            try:
                self._noted = usage_in(_metadata_decoder.decode(data_line(events, end + 1)).usage)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                self._noted = None
            return Verdict.END
        return Verdict.GOES_ON
