"""A provider's streamed answer: Google's events to the hub's.

Google sends no closing event: an answer is over when the body ends and every candidate has a `finishReason`. Earlier models repeat `finishReason` in every
event, so nothing is finished before the end of the body. A function call comes whole, in one part.
"""

from __future__ import annotations

import msgspec

from cliproxy.bounds import MAX_ANSWER_OBJECTS, SMALL_JSON_BYTES
from cliproxy.dialects import Dialect
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
from cliproxy.translators.stream_reader import StreamReader, broke_off, error_reported

_SIGNER = Dialect.GEMINI_GENERATE

# --- events and their data ---------------------------------------------------------------------------------------------


def data_of(event: bytes) -> bytes:
    """Return the data of one event without its blank line; empty for comments. Raises `UpstreamError` for a line that is no field: Google's servers report
    errors as bare JSON inside a stream."""
    data = []
    for line in event.split(b"\n"):
        if line.startswith(b"data:"):
            data.append(line[6:] if line[5:6] == b" " else line[5:])
        elif line and not line.startswith((b":", b"event:", b"id:", b"retry:")):
            raise error_reported()
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
        raise error_reported()
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


class Reader(StreamReader):
    """Reads a stream of as many candidates as were asked for."""

    __slots__ = ("_blocked", "_choices", "_id", "_usage")

    def __init__(self) -> None:
        super().__init__()
        self._choices: dict[int, _Choice] = {}
        self._blocked = False
        self._id = ""
        self._usage: msgspec.Raw = ABSENT

    def _end_of_body(self, out: list[StreamEvent]) -> None:
        """Google says in no event that the answer is over: it is when every candidate has its reason to stop."""
        whole = all(choice.reason for choice in self._choices.values()) and (self._choices or self._blocked)
        if not self._splitter.at_boundary or not whole:
            raise broke_off()
        for choice in self._choices.values():
            self._end_part(choice, out)
        if not self._choices:
            out.append(Finished(0, stop_of("SAFETY", called=False)))
        out += [Finished(choice.index, stop_of(choice.reason, called=choice.calls > 0)) for choice in self._choices.values()]
        usage = usage_in(self._usage)
        if usage is not None:
            out.append(Counted(usage))
        out.append(Ended())
        self._ended = True

    def _read(self, event: bytes, out: list[StreamEvent]) -> None:
        data = event[6:] if event.startswith(b"data: ") and event.find(b"\n") < 0 else data_of(event)  # most events are one line
        if not data:
            return
        answer = _answer_in(data)
        candidates = answer.candidates
        if not self._started:
            if not candidates and answer.prompt_feedback is None and answer.usage_metadata is ABSENT and answer.response_id is None:
                raise not_gemini()
            self._started = True
            self._id = answer.response_id or ""
            out.append(Started(self._id, answer.model_version or ""))
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
                        out.append(TextDelta(index, choice.number, text))  # the common case: more of an open text
                        choice.said += len(text)
                        choice.is_ascii = choice.is_ascii and text.isascii()
                    else:
                        self._part(choice, part, out)
            if candidate.citation_metadata is not ABSENT or candidate.grounding_metadata is not ABSENT:
                self._cite(choice, candidate, out)
            reason = candidate.finish_reason
            if reason and is_finished(reason):
                stop_of(reason, called=False)  # raises if the turn failed
                choice.reason = reason

    def _part(self, choice: _Choice, part: AnswerPart, out: list[StreamEvent]) -> None:
        text, signature = part.text, part.thought_signature
        if text is not None and part.function_call is None:
            kind = Reasoning if part.thought else Text
            if text:
                if choice.kind is not kind:
                    self._start_part(choice, kind, out)
                out.append(TextDelta(choice.index, choice.number, text))
                if kind is Text:
                    choice.said += len(text)
                    choice.is_ascii = choice.is_ascii and text.isascii()
            if signature:
                if choice.kind is not Reasoning or kind is Text:  # texts have no signature in the hub: a thought of its own carries it
                    self._start_part(choice, Reasoning, out)
                out.append(SignatureDelta(choice.index, choice.number, signature, _SIGNER))
                self._end_part(choice, out)
            return
        verify_part(part)
        if part.function_call is not None:
            self._end_part(choice, out)
            choice.number += 1
            call = call_of(part.function_call, answer_id=self._id, choice=choice.index, number=choice.calls, signature="")
            choice.calls += 1
            out.append(PartStarted(choice.index, choice.number, ToolCall(call.id, call.name, "")))
            out.append(ArgumentsDelta(choice.index, choice.number, call.arguments))
            if signature:
                out.append(SignatureDelta(choice.index, choice.number, signature, _SIGNER))
            out.append(PartEnded(choice.index, choice.number))
            return
        if part.inline_data is not None:
            self._end_part(choice, out)
            choice.number += 1
            out.append(PartStarted(choice.index, choice.number, image_of(part.inline_data)))
            out.append(PartEnded(choice.index, choice.number))
        if signature:
            self._start_part(choice, Reasoning, out)
            out.append(SignatureDelta(choice.index, choice.number, signature, _SIGNER))
            self._end_part(choice, out)

    def _start_part(self, choice: _Choice, kind: type, out: list[StreamEvent]) -> None:
        self._end_part(choice, out)
        choice.kind = kind
        choice.number += 1
        out.append(PartStarted(choice.index, choice.number, Reasoning(signer=_SIGNER) if kind is Reasoning else Text("")))

    def _end_part(self, choice: _Choice, out: list[StreamEvent]) -> None:
        if choice.kind is not None:
            choice.kind = None
            out.append(PartEnded(choice.index, choice.number))

    def _cite(self, choice: _Choice, candidate: Candidate, out: list[StreamEvent]) -> None:
        """Add the sources to the open text; those that come when none is open belong to nothing and are left out. Offsets are told only where bytes are
        characters, since the text is gone."""
        if choice.kind is not Text:
            return
        known = choice.said if choice.is_ascii and choice.number == 0 else 0
        out += [CitationAdded(choice.index, choice.number, citation) for citation in citations_of(candidate, known)]
