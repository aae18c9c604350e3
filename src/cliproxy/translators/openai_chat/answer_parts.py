"""What providers' whole answers and their streams have in common: whose proof a thought carries, why a choice ended, how usage is told.

What always holds: a proof whose vendor is not known is worth nothing to anybody and is left out; a reason to stop that is not known ends the answer as the
provider's fault, since nobody could say whether it is whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from cliproxy.dialects import Dialect
from cliproxy.errors import UpstreamError
from cliproxy.metering.usage import Usage
from cliproxy.translators.conversation import Citation, Reasoning, StopReason
from cliproxy.translators.openai_chat.wire import Annotation, ReasoningDetail

# OpenRouter's names (its documentation, "Reasoning tokens": `format`); it has none for Bedrock's.
FORMATS = {
    Dialect.ANTHROPIC_MESSAGES: "anthropic-claude-v1",
    Dialect.GEMINI_GENERATE: "google-gemini-v1",
    Dialect.OPENAI_RESPONSES: "openai-responses-v1",
    Dialect.BEDROCK_CONVERSE: "bedrock-converse-v1",
}
SIGNERS = {name: dialect for dialect, name in FORMATS.items()}

THOUGHT = "reasoning.text"
SUMMARY = "reasoning.summary"
ENCRYPTED = "reasoning.encrypted"

# OpenAI's own come first; the others are seen from Together, Mistral, Zhipu, and gateways that pass on what stands behind them.
_STOPS = {
    "stop": StopReason.END,
    "length": StopReason.LENGTH,
    "tool_calls": StopReason.TOOL_CALLS,
    "function_call": StopReason.TOOL_CALLS,
    "content_filter": StopReason.FILTER,
    "eos": StopReason.END,
    "end_turn": StopReason.END,
    "complete": StopReason.END,
    "stop_sequence": StopReason.STOP_SEQUENCE,
    "max_tokens": StopReason.LENGTH,
    "model_length": StopReason.LENGTH,
    "tool_use": StopReason.TOOL_CALLS,
    "safety": StopReason.FILTER,
    "sensitive": StopReason.FILTER,
    "refusal": StopReason.REFUSAL,
}

_REASONS = {
    StopReason.END: "stop",
    StopReason.LENGTH: "length",
    StopReason.STOP_SEQUENCE: "stop",
    StopReason.TOOL_CALLS: "tool_calls",
    StopReason.FILTER: "content_filter",
    StopReason.PAUSE: "length",  # there is more to come if the client goes on
}


def not_a_completion() -> UpstreamError:
    return UpstreamError("The provider's answer is not a chat completion.", code="bad_upstream_answer")


# --- why a choice ended ------------------------------------------------------------------------------------------------


def stop_of(reason: str | None, *, called: bool, refused: bool) -> StopReason:
    """Return why a choice ended. `called`, `refused`: it has tool calls, a refusal, which some providers (and OpenAI, for a forced call) end with `stop`.

    Raises `UpstreamError` without a reason, and for one that is not known (`error`, `abort`, `insufficient_system_resource` and whatever comes).
    """
    if not reason:
        raise UpstreamError("The provider broke off in the middle of its answer.", code="upstream_broke_off")
    stop = _STOPS.get(reason.lower())
    if stop is None:
        raise UpstreamError("The provider's answer does not end in a way that is known.", code="bad_stop_reason")
    if stop is StopReason.END:
        return StopReason.TOOL_CALLS if called else StopReason.REFUSAL if refused else stop
    if stop is StopReason.TOOL_CALLS and not called:
        return StopReason.END
    return stop


def finish_reason_of(stop: StopReason, *, refused: bool) -> str:
    """Return OpenAI's word. `refused`: the answer says so itself, in `refusal`."""
    if stop is StopReason.REFUSAL:
        return "stop" if refused else "content_filter"
    return _REASONS[stop]


# --- thoughts ----------------------------------------------------------------------------------------------------------


class _Thought:
    """A thought that is put together of pieces."""

    __slots__ = ("format", "id", "index", "signature", "texts")

    def __init__(self, detail: ReasoningDetail) -> None:
        self.texts: list[str] = []
        self.index = detail.index
        self.id = self.format = self.signature = ""

    def add(self, detail: ReasoningDetail) -> None:
        text = detail.summary if detail.type == SUMMARY else detail.text
        if text:
            self.texts.append(text)
        self.id = detail.id or self.id
        self.format = detail.format or self.format
        self.signature = detail.signature or self.signature

    def whole(self) -> Reasoning:
        signer = SIGNERS.get(self.format)
        return Reasoning("".join(self.texts), self.signature if signer is not None else "", signer=signer, id=self.id)


def thoughts_of(details: Sequence[ReasoningDetail]) -> list[Reasoning]:
    """Return the thoughts that `details` tell, whole or in the pieces of a stream; what carries neither text nor a proof is left out."""
    thoughts: list[_Thought | Reasoning] = []
    open_thought: _Thought | None = None
    for detail in details:
        if detail.type == ENCRYPTED:
            signer = SIGNERS.get(detail.format or "")
            if signer is None or not detail.data:
                continue
            if open_thought is not None and is_proof_of(detail, open_thought.id, signed=bool(open_thought.signature)):
                open_thought.format, open_thought.signature = detail.format or "", detail.data
            else:
                thoughts.append(Reasoning(redacted=detail.data, signer=signer, id=detail.id or ""))
            open_thought = None
        elif detail.type in (THOUGHT, SUMMARY):
            if open_thought is None or open_thought.signature or open_thought.index != detail.index:
                open_thought = _Thought(detail)
                thoughts.append(open_thought)
            open_thought.add(detail)
    whole = [thought if isinstance(thought, Reasoning) else thought.whole() for thought in thoughts]
    return [thought for thought in whole if thought.text or thought.signature or thought.redacted]


def is_proof_of(detail: ReasoningDetail, id: str, *, signed: bool) -> bool:
    """Say whether the encrypted `detail` belongs to the summary of the same `id`: OpenAI's item has both."""
    return bool(id) and detail.id == id and not signed and detail.format == FORMATS[Dialect.OPENAI_RESPONSES]


def details_of(thought: Reasoning, index: int) -> dict[str, Any]:
    """Return `thought` as OpenRouter tells it."""
    detail: dict[str, Any] = {"type": THOUGHT, "text": thought.text}
    if thought.redacted:
        detail = {"type": ENCRYPTED, "data": thought.redacted}
    elif thought.signature:
        detail["signature"] = thought.signature
    if thought.id:
        detail["id"] = thought.id
    if thought.signer in FORMATS:
        detail["format"] = FORMATS[thought.signer]
    detail["index"] = index
    return detail


# --- sources -----------------------------------------------------------------------------------------------------------


def citations_of(annotations: Sequence[Annotation] | None, *, offset: int = 0) -> list[Citation]:
    """Return the sources that are addresses. `offset`: where the text that they belong to begins within the message's."""
    return [
        Citation(
            url=note.url_citation.url,
            title=note.url_citation.title or "",
            cited=note.url_citation.content or "",
            start=_place(note.url_citation.start_index, offset),
            end=_place(note.url_citation.end_index, offset),
        )
        for note in annotations or ()
        if note.type == "url_citation" and note.url_citation is not None
    ]


def _place(index: int | None, offset: int) -> int:
    return index - offset if index is not None and index >= offset else -1


def annotation_of(citation: Citation, *, offset: int, length: int) -> dict[str, Any] | None:
    """Return `citation` of a text of `length` characters that begins at `offset` of its message; None for one that is no address, which chat cannot say."""
    if not citation.url:
        return None
    start = citation.start if citation.start >= 0 else 0
    end = citation.end if citation.end >= 0 else length
    told: dict[str, Any] = {"url": citation.url, "title": citation.title, "start_index": offset + start, "end_index": offset + end}
    if citation.cited:
        told["content"] = citation.cited
    return {"type": "url_citation", "url_citation": told}


# --- usage -------------------------------------------------------------------------------------------------------------


class _PromptDetails(msgspec.Struct, gc=False, omit_defaults=True):
    cached_tokens: int
    cache_write_tokens: int = 0


class _CompletionDetails(msgspec.Struct, gc=False):
    reasoning_tokens: int


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: _PromptDetails
    completion_tokens_details: _CompletionDetails


def told_usage(usage: Usage) -> msgspec.Struct:
    """Return `usage` as OpenAI tells it."""
    return _Usage(
        usage.prompt,
        usage.completion,
        usage.total,
        _PromptDetails(usage.cached, usage.cache_written),
        _CompletionDetails(usage.reasoning),
    )
