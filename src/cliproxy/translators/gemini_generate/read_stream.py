"""A provider's streamed answer: Google's events to the hub's.

Google sends no closing event: an answer is over when the body ends and every candidate has a `finishReason`. Earlier models repeat `finishReason` in every
event, so nothing is finished before the end of the body. A function call comes whole, in one part.
"""

from __future__ import annotations

import msgspec

from cliproxy.bounds import MAX_ANSWER_OBJECTS, SMALL_JSON_BYTES
from cliproxy.dialects import Dialect
from cliproxy.errors import UpstreamError
from cliproxy.formats.sse import EventSplitter
from cliproxy.metering.gemini_generate import usage_in
from cliproxy.translators.conversation import (
    ArgumentsDelta,
    CitationAdded,
    Counted,
    Ended,
    Finished,
    PartEnded,
    PartStarted,
    Reasoning,
    SignatureDelta,
    Started,
    StreamEvent,
    Text,
    TextDelta,
    ToolCall,
)
from cliproxy.translators.gemini_generate.answer import (
    call_of,
    citations_of,
    image_of,
    is_finished,
    not_gemini,
    stop_of,
    verify_part,
)
from cliproxy.translators.gemini_generate.answer_wire import ABSENT, Answer, AnswerPart, Candidate, answer_decoder

_SIGNER = Dialect.GEMINI_GENERATE

# --- events and their data ---------------------------------------------------------------------------------------------


def data_of(event: bytes) -> bytes:
    """Return the data of one event without its blank line; empty for comments. Raises `UpstreamError` for a line that is no field: Google's servers report
    errors as bare JSON inside a stream."""
    if event.startswith(b"data: ") and event.find(b"\n") < 0:
        return event[6:]
    data = []
    for line in event.split(b"\n"):
        if line.startswith(b"data:"):
            data.append(line[6:] if line[5:6] == b" " else line[5:])
        elif line and not line.startswith((b":", b"event:", b"id:", b"retry:")):
            raise UpstreamError("The provider reported an error in the middle of its answer.", code="upstream_stream_error")
    return b"\n".join(data)


def _answer_in(data: bytes) -> Answer:
    """Return the data of one event as an answer. Raises `UpstreamError` if it is none or reports an error."""
    try:
        if len(data) > SMALL_JSON_BYTES and data.count(b"{") > MAX_ANSWER_OBJECTS:
            raise not_gemini()
        answer = answer_decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise not_gemini() from None
    if answer.error is not ABSENT and bytes(answer.error) != b"null":
        raise UpstreamError("The provider reported an error in the middle of its answer.", code="upstream_stream_error")
    return answer


class _Choice:
    """What is known of one candidate: the part that is open, if any, and how it will end."""

    __slots__ = ("calls", "index", "is_ascii", "kind", "number", "reason", "said")

    def __init__(self, index: int) -> None:
        self.index = index
        self.kind: type | None = None  # of the open part: `Text`, `Reasoning` or none
        self.number = -1  # of the last part
        self.calls = 0
        self.reason = ""
        self.said = 0  # characters of all texts
        self.is_ascii = True  # then characters are bytes, and Google's offsets are ours


class Reader:
    """A provider's server-sent events, in any pieces, to the hub's events."""

    __slots__ = ("_blocked", "_choices", "_error", "_id", "_splitter", "_started", "_usage")

    def __init__(self) -> None:
        self._splitter = EventSplitter()
        self._choices: dict[int, _Choice] = {}
        self._started = False
        self._blocked = False
        self._id = ""
        self._usage: msgspec.Raw = ABSENT
        self._error: UpstreamError | None = None

    def feed(self, data: bytes) -> list[StreamEvent]:
        """Return the events that `data` completes. Raises `UpstreamError` for what is no stream of Google's; if there are events before it, the next call
        does."""
        if self._error is not None:
            raise self._error
        made: list[StreamEvent] = []
        try:
            events = self._splitter.feed(data)
            if events.startswith(b"data: ") and events.find(b"\n") == len(events) - 2:  # the common case: one event of one line
                self._read(_answer_in(events[6:-2]), made)
            elif events:
                for event in events.split(b"\n\n"):
                    said = data_of(event) if event else b""
                    if said:
                        self._read(_answer_in(said), made)
        except UpstreamError as error:
            self._error = error
            if not made:
                raise
        return made

    def finish(self) -> list[StreamEvent]:
        """The provider's body has ended: return what ends the answer. Raises `UpstreamError` if it broke off."""
        if self._error is not None:
            raise self._error
        made: list[StreamEvent] = []
        whole = all(choice.reason for choice in self._choices.values()) and (self._choices or self._blocked)
        if not self._splitter.at_boundary or not whole:
            raise UpstreamError("The provider broke off in the middle of its answer.", code="upstream_broke_off")
        for choice in self._choices.values():
            self._end_part(choice, made)
        if not self._choices:
            made.append(Finished(0, stop_of("SAFETY", called=False)))
        made += [Finished(choice.index, stop_of(choice.reason, called=choice.calls > 0)) for choice in self._choices.values()]
        usage = usage_in(self._usage)
        if usage is not None:
            made.append(Counted(usage))
        made.append(Ended())
        return made

    def _read(self, answer: Answer, made: list[StreamEvent]) -> None:
        candidates = answer.candidates
        if not self._started:
            if not candidates and answer.prompt_feedback is None and answer.usage_metadata is ABSENT and answer.response_id is None:
                raise not_gemini()
            self._started = True
            self._id = answer.response_id or ""
            made.append(Started(self._id, answer.model_version or ""))
        if answer.usage_metadata is not ABSENT:
            self._usage = answer.usage_metadata
        if answer.prompt_feedback is not None and answer.prompt_feedback.block_reason:
            self._blocked = True
        for candidate in candidates or ():
            index = candidate.index or 0
            choice = self._choices.get(index)
            if choice is None:
                choice = self._choices[index] = _Choice(index)
            content = candidate.content
            if content is not None and content.parts:
                for part in content.parts:
                    text = part.text
                    if text and choice.kind is Text and part.thought is None and part.thought_signature is None and part.function_call is None:
                        made.append(TextDelta(index, choice.number, text))  # the common case: more of an open text
                        choice.said += len(text)
                        choice.is_ascii = choice.is_ascii and text.isascii()
                    else:
                        self._part(choice, part, made)
            if candidate.citation_metadata is not ABSENT or candidate.grounding_metadata is not ABSENT:
                self._cite(choice, candidate, made)
            reason = candidate.finish_reason
            if reason and is_finished(reason):
                stop_of(reason, called=False)  # raises if the turn failed
                choice.reason = reason

    def _part(self, choice: _Choice, part: AnswerPart, made: list[StreamEvent]) -> None:
        text, signature = part.text, part.thought_signature
        if text is not None and part.function_call is None:
            kind = Reasoning if part.thought else Text
            if text:
                if choice.kind is not kind:
                    self._start_part(choice, kind, made)
                made.append(TextDelta(choice.index, choice.number, text))
                if kind is Text:
                    choice.said += len(text)
                    choice.is_ascii = choice.is_ascii and text.isascii()
            if signature:
                if choice.kind is not Reasoning or kind is Text:  # texts have no signature in the hub: a thought of its own carries it
                    self._start_part(choice, Reasoning, made)
                made.append(SignatureDelta(choice.index, choice.number, signature, _SIGNER))
                self._end_part(choice, made)
            return
        verify_part(part)
        if part.function_call is not None:
            self._end_part(choice, made)
            choice.number += 1
            call = call_of(part.function_call, answer_id=self._id, choice=choice.index, number=choice.calls, signature="")
            choice.calls += 1
            made.append(PartStarted(choice.index, choice.number, ToolCall(call.id, call.name, "")))
            made.append(ArgumentsDelta(choice.index, choice.number, call.arguments))
            if signature:
                made.append(SignatureDelta(choice.index, choice.number, signature, _SIGNER))
            made.append(PartEnded(choice.index, choice.number))
            return
        if part.inline_data is not None:
            self._end_part(choice, made)
            choice.number += 1
            made.append(PartStarted(choice.index, choice.number, image_of(part.inline_data)))
            made.append(PartEnded(choice.index, choice.number))
        if signature:
            self._start_part(choice, Reasoning, made)
            made.append(SignatureDelta(choice.index, choice.number, signature, _SIGNER))
            self._end_part(choice, made)

    def _start_part(self, choice: _Choice, kind: type, made: list[StreamEvent]) -> None:
        self._end_part(choice, made)
        choice.kind = kind
        choice.number += 1
        made.append(PartStarted(choice.index, choice.number, Reasoning(signer=_SIGNER) if kind is Reasoning else Text("")))

    def _end_part(self, choice: _Choice, made: list[StreamEvent]) -> None:
        if choice.kind is not None:
            choice.kind = None
            made.append(PartEnded(choice.index, choice.number))

    def _cite(self, choice: _Choice, candidate: Candidate, made: list[StreamEvent]) -> None:
        """Add the sources to the open text; those that come when none is open belong to nothing and are left out. Offsets are told only where bytes are
        characters, since the text is gone."""
        if choice.kind is not Text:
            return
        known = choice.said if choice.is_ascii and choice.number == 0 else 0
        made += [CitationAdded(choice.index, choice.number, citation) for citation in citations_of(candidate, known)]
