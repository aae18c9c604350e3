"""What egress reads of chat completions, and nothing more: what a final body asks for, what an answer used, whether a stream is whole.

It reads what was checked elsewhere and forwards nothing that it does not recognise: an answer
that is no chat completion is an `UpstreamError`, and so is a stream that stops before its end. Usage that is absent or makes no sense is None, and the call
settles at its reservation. A provider may be hostile: whatever it answers, the work is linear in its length and the memory a small multiple of it.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from cliproxy.bounds import MAX_CHOICES, MAX_TOKEN_COUNT
from cliproxy.errors import SchemaError, UpstreamError
from cliproxy.formats.json_bounds import answer_as
from cliproxy.formats.sse import data_line
from cliproxy.metering.body import ABSENT, FinalBody, NestedObject, TextMessage
from cliproxy.metering.stream import StreamMeter, Verdict
from cliproxy.metering.usage import AskedFor, Usage

__all__ = ["AskedFor", "ChatStreamMeter", "Usage", "reread", "usage_in", "usage_of_answer"]


# --- what a final body asks for ----------------------------------------------------------------------------------------


_Positive = Annotated[int, Meta(ge=1)]  # a negative number would make room in a limit


class _AskedFor(msgspec.Struct, gc=False):
    """`None` types are fields that no honest worker sends: imitators' names for other models, another cap, more choices."""

    model: str
    max_tokens: _Positive | None = None
    max_completion_tokens: _Positive | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    stream: bool | None = None
    models: None = None
    fallbacks: None = None
    max_output_tokens: None = None
    best_of: None = None


class _StreamOptions(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    include_usage: bool


class _Usual(_AskedFor, gc=False, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    messages: list[TextMessage]
    stream_options: _StreamOptions | None = None
    user: str | None = None
    temperature: msgspec.Raw = ABSENT
    top_p: msgspec.Raw = ABSENT
    seed: msgspec.Raw = ABSENT
    stop: msgspec.Raw = ABSENT


_final = FinalBody(
    _AskedFor,
    refusal="The body is not a chat completion request.",
    nested={"stream_options": NestedObject("include_usage")},
    usual=_Usual,
)


def reread(body: bytes) -> AskedFor:
    """Return what the final bytes of a request ask for.

    Raises `SchemaError` if they are no request with these fields, or name no cap on output tokens, which every body from `decode` has (ADR 0051), and
    `ChannelError` if somebody could read them otherwise (ADR 0138).
    """
    read = _final.read(body)
    max_tokens = max(read.max_tokens or 0, read.max_completion_tokens or 0)
    if not max_tokens:
        raise SchemaError("The body has no cap on output tokens.", param="max_tokens")
    return AskedFor(read.model, max_tokens, read.n or 1, read.stream is True)


# --- what an answer used -----------------------------------------------------------------------------------------------

_ABSENT = msgspec.Raw(b"null")
_Count = Annotated[int, Meta(ge=0, le=MAX_TOKEN_COUNT)]


class _PromptDetails(msgspec.Struct, gc=False):
    cached_tokens: _Count | None = None
    cache_write_tokens: _Count | None = None


class _CompletionDetails(msgspec.Struct, gc=False):
    reasoning_tokens: _Count | None = None


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: _Count
    completion_tokens: _Count
    total_tokens: _Count | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None
    prompt_cache_hit_tokens: _Count | None = None  # DeepSeek


class _Message(msgspec.Struct, gc=False):
    role: str | None = None
    content: msgspec.Raw = _ABSENT  # a text, a list or null; raw, since 8 million `[]` in it would become 500 MB of lists
    tool_calls: msgspec.Raw = _ABSENT  # a list or null


class _Choice(msgspec.Struct, gc=False):
    message: _Message
    index: int = 0
    finish_reason: str | None = None


class _Answer(msgspec.Struct, gc=False):
    choices: Annotated[list[_Choice], Meta(min_length=1)]
    usage: msgspec.Raw = _ABSENT


class _Event(msgspec.Struct, gc=False):
    """What is read of one event. An event with `error` is no part of an answer."""

    usage: msgspec.Raw = _ABSENT
    error: msgspec.Raw = _ABSENT


_answer_decoder = msgspec.json.Decoder(_Answer)
_usage_decoder = msgspec.json.Decoder(_Usage)
_event_decoder = msgspec.json.Decoder(_Event)


def usage_of_answer(body: bytes) -> Usage | None:
    """Return the usage in a whole answer, or None if it has none that makes sense.

    Raises `UpstreamError` if `body` is no chat completion: not JSON, not UTF-8, no choices, a message that is none.
    """
    answer = answer_as(_answer_decoder, body)
    if answer is None:
        raise _not_a_completion()
    for choice in answer.choices:
        if memoryview(choice.message.content)[0] not in b'"[n' or memoryview(choice.message.tool_calls)[0] not in b"[n":
            raise _not_a_completion()
    return usage_in(answer.usage)


def _not_a_completion() -> UpstreamError:
    return UpstreamError("The provider's answer is not a chat completion.", code="bad_upstream_answer")


def usage_in(raw: msgspec.Raw | bytes) -> Usage | None:
    """Return the usage that the JSON value `raw` reports, or None if it makes no sense."""
    try:
        read = _usage_decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    prompt, completion = read.prompt_tokens_details, read.completion_tokens_details
    cached = written = thought = 0
    if prompt is not None:
        cached, written = prompt.cached_tokens or 0, prompt.cache_write_tokens or 0
    if completion is not None:
        thought = completion.reasoning_tokens or 0
    said = read.completion_tokens
    # xAI and Google's imitation count thoughts in the total only, Google without telling how many they are.
    beyond = (read.total_tokens or 0) - read.prompt_tokens - said
    if beyond > 0 and thought in (0, beyond):
        said, thought = said + beyond, beyond
    return Usage(read.prompt_tokens, said, cached or read.prompt_cache_hit_tokens or 0, thought, written)


# --- a stream ----------------------------------------------------------------------------------------------------------


class ChatStreamMeter(StreamMeter):
    """A stream of chat completions, which ends with `[DONE]`.

    Some imitations never send it: then a stream of one choice whose last events name a `finish_reason` is whole too, and `finish` returns the `[DONE]` that
    clients wait for.
    """

    __slots__ = ()

    signs = (b"[DONE]\n", b'"error"')
    usage_sign = b'"usage"'
    closing = b"data: [DONE]\n\n"

    def _judge(self, events: bytes, start: int, end: int) -> Verdict:
        data = data_line(events, start)
        if data == b"[DONE]":
            return Verdict.END
        event = _parse(data)
        return Verdict.GOES_ON if event is None or bytes(event.error) == b"null" else Verdict.FAILURE

    def _usage_of(self, data: bytes) -> Usage | None:
        event = _parse(data)
        return usage_in(event.usage) if event is not None else None

    def _is_whole(self) -> bool:
        choices = set()
        finished = set()
        for events in self._kept:
            for line in events.split(b"\n"):
                for choice in _choices_of(line):
                    choices.add(choice.index)
                    if choice.finish_reason:
                        finished.add(choice.index)
        return finished == {0} == choices


class _StreamChoice(msgspec.Struct, gc=False):
    index: int = 0
    finish_reason: str | None = None


class _Choices(msgspec.Struct, gc=False):
    choices: list[_StreamChoice]


_choices_decoder = msgspec.json.Decoder(_Choices)


def _choices_of(line: bytes) -> list[_StreamChoice]:
    if not line.startswith(b"data:"):
        return []
    try:
        return _choices_decoder.decode(line[5:]).choices
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []


def _parse(data: bytes) -> _Event | None:
    try:
        return _event_decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
