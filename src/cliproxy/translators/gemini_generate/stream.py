"""Streamed answers: Google's events to the hub's, the hub's to a client's, and those that stay in the dialect.

A client gets server-sent events (`?alt=sse`) or, Google's default, one JSON array that grows. Google sends no closing event: an answer is over when the body
ends and every candidate has a `finishReason`. Earlier models repeat `finishReason` in every event, so nothing is finished before the end of the body. A
function call comes whole, in one part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from cliproxy.bounds import MAX_ANSWER_OBJECTS, MAX_CITATIONS, MAX_HELD_CHARS, SMALL_JSON_BYTES
from cliproxy.dialects import Dialect
from cliproxy.errors import UpstreamError
from cliproxy.translators.conversation import (
    ArgumentsDelta,
    CitationAdded,
    Counted,
    Ended,
    Finished,
    Image,
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
    ABSENT,
    Answer,
    AnswerPart,
    Candidate,
    answer_decoder,
    call_of,
    citations_of,
    finish_reason,
    image_of,
    is_finished,
    not_gemini,
    parts_of,
    shows_thoughts,
    source_of,
    stop_of,
    usage_metadata,
    verify_part,
)
from cliproxy.translators.gemini_generate.decode import GeminiRequest
from cliproxy.translators.gemini_generate.usage import usage_in
from cliproxy.translators.sse import EventSplitter
from cliproxy.translators.usage import Usage

__all__ = ["KEEP_ALIVE", "Pass", "Reader", "Writer", "error_event"]

# White space between the elements of an array, an event without data between events: ignored in both forms. Google's Python SDK takes a comment for JSON and
# raises.
KEEP_ALIVE = b"\n"

_SIGNER = Dialect.GEMINI_GENERATE
_encode = msgspec.json.Encoder().encode


# --- events and their data ---------------------------------------------------------------------------------------------


def _data_of(event: bytes) -> bytes:
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
            if events:
                for event in events.split(b"\n\n"):
                    said = _data_of(event) if event else b""
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


# --- to a client -------------------------------------------------------------------------------------------------------


class _Form:
    """How pieces of JSON become the body of an answer: events, or elements of one array."""

    __slots__ = ("began", "sse")

    def __init__(self, sse: bool) -> None:
        self.sse = sse
        self.began = False

    def frame(self, pieces: list[bytes]) -> bytes:
        if not pieces:
            return b""
        if self.sse:
            return b"data: " + b"\n\ndata: ".join(pieces) + b"\n\n"
        lead = b",\r\n" if self.began else b"["
        self.began = True
        return lead + b",\r\n".join(pieces)

    def end(self) -> bytes:
        if self.sse:
            return b""
        return b"]" if self.began else b"[]"

    def error(self, message: str, *, status: int) -> bytes:
        framed = self.frame([_error(message, status)])
        return framed if self.sse else framed + b"]"


class Writer:
    """The hub's events to a client's bytes: server-sent events, or with `sse=False` an array. An array's last byte comes with `Ended`.

    `write` raises `UpstreamError` for a tool call whose arguments are no JSON object, and for calls and signed thoughts under way that are larger than
    `MAX_HELD_CHARS`.
    """

    __slots__ = ("_affixes", "_calls", "_finished", "_foreign", "_form", "_held", "_id", "_model", "_sources", "_tail", "_thoughts", "_usage")

    def __init__(self, *, request: GeminiRequest | None, id: str, model: str, created: int, sse: bool = True) -> None:
        self._form = _Form(sse)
        self._id = id
        self._model = model
        self._thoughts = shows_thoughts(request)
        self._tail = b""
        self._affixes: dict[int, tuple[bytes, bytes]] = {}  # of the text parts that are open, by choice; a hidden thought has none
        self._calls: dict[int, tuple[ToolCall, list[str], str]] = {}
        self._foreign: dict[int, tuple[Reasoning, list[str]]] = {}
        self._held = 0
        self._sources: dict[int, list[dict[str, Any]]] = {}
        self._finished: list[Finished] = []
        self._usage: Usage | None = None

    def write(self, events: Sequence[StreamEvent]) -> bytes:
        """Return what the client gets for `events`; may be empty."""
        pieces: list[bytes] = []
        ended = False
        for event in events:
            kind = type(event)
            if kind is TextDelta:
                affixes = self._affixes.get(event.choice)  # type: ignore[union-attr]
                if affixes is not None:
                    pieces.append(affixes[0] + _encode(event.text) + affixes[1])  # type: ignore[union-attr]
                if self._foreign:
                    self._keep(event)  # type: ignore[arg-type]
            elif isinstance(event, PartStarted):
                self._start(event, pieces)
            elif isinstance(event, PartEnded):
                self._end_part(event, pieces)
            elif isinstance(event, ArgumentsDelta):
                self._arguments(event)
            elif isinstance(event, SignatureDelta):
                self._signature(event, pieces)
            elif isinstance(event, CitationAdded):
                self._cite(event)
            elif isinstance(event, Started):
                self._begin(event)
            elif isinstance(event, Finished):
                self._finished.append(event)
            elif isinstance(event, Counted):
                self._usage = event.usage
            elif isinstance(event, Ended):
                pieces.append(self._last())
                ended = True
        framed = self._form.frame(pieces)
        return framed + self._form.end() if ended else framed

    def error_event(self, message: str, *, kind: str, code: str, status: int) -> bytes:
        """Return how the stream ends when it is broken, in the form that it has, whatever was written before."""
        return self._form.error(message, status=status)

    def _begin(self, event: Started) -> None:
        self._id = event.id or self._id
        self._model = event.model or self._model
        self._usage = event.usage
        self._tail = b'"modelVersion":' + _encode(self._model) + b',"responseId":' + _encode(self._id) + b"}"

    def _around(self, choice: int, lead: bytes, trail: bytes) -> tuple[bytes, bytes]:
        """Return what stands before and behind the inside of a part."""
        before = b'{"candidates":[{"content":{"parts":[' + lead
        return before, trail + b'],"role":"model"},"index":%d}],' % choice + self._tail

    def _whole(self, choice: int, parts: list[dict[str, Any]], pieces: list[bytes]) -> None:
        for part in parts:
            before, behind = self._around(choice, b"", b"")
            pieces.append(before + _encode(part) + behind)

    def _start(self, event: PartStarted, pieces: list[bytes]) -> None:
        part, choice = event.part, event.choice
        if isinstance(part, ToolCall):
            self._calls[choice] = (part, [part.arguments], part.signature)
        elif isinstance(part, Reasoning):
            if part.redacted:
                self._whole(choice, parts_of(part, False), pieces)
                return
            if part.signer is not _SIGNER:
                self._foreign[choice] = (part, [])
            if self._thoughts:
                self._affixes[choice] = self._around(choice, b'{"thought":true,"text":', b"}")
        elif isinstance(part, Image):
            self._whole(choice, parts_of(part, True), pieces)
        else:
            self._affixes[choice] = self._around(choice, b'{"text":', b"}")

    def _arguments(self, event: ArgumentsDelta) -> None:
        call = self._calls.get(event.choice)
        if call is not None:
            self._hold(event.json)
            call[1].append(event.json)

    def _keep(self, event: TextDelta) -> None:
        """Keep the words of a thought that another vendor may sign at its end."""
        thought = self._foreign.get(event.choice)
        if thought is not None:
            self._hold(event.text)
            thought[1].append(event.text)

    def _hold(self, text: str) -> None:
        self._held += len(text)
        if self._held > MAX_HELD_CHARS:
            raise UpstreamError("The provider sent a part that is larger than the gateway takes.", code="upstream_too_large")

    def _signature(self, event: SignatureDelta, pieces: list[bytes]) -> None:
        if event.signer is not _SIGNER:
            thought = self._foreign.get(event.choice)
            if thought is not None:
                signed = Reasoning("".join(thought[1]), event.signature, signer=event.signer, id=thought[0].id)
                self._whole(event.choice, parts_of(signed, False), pieces)
            return
        call = self._calls.get(event.choice)
        if call is not None:
            self._calls[event.choice] = (call[0], call[1], event.signature)
        else:
            self._whole(event.choice, [{"text": "", "thoughtSignature": event.signature}], pieces)

    def _end_part(self, event: PartEnded, pieces: list[bytes]) -> None:
        self._affixes.pop(event.choice, None)
        thought = self._foreign.pop(event.choice, None)
        if thought is not None:
            self._held -= sum(map(len, thought[1]))
        call = self._calls.pop(event.choice, None)
        if call is not None:
            arguments = "".join(call[1])
            self._held -= len(arguments) - len(call[1][0])
            self._whole(event.choice, parts_of(ToolCall(call[0].id, call[0].name, arguments, call[2]), True), pieces)

    def _cite(self, event: CitationAdded) -> None:
        """Sources are told at the end, without offsets: Google's count bytes of a text that is gone."""
        sources = self._sources.setdefault(event.choice, [])
        if event.citation.url and len(sources) < MAX_CITATIONS:
            sources.append(source_of(event.citation, "", 0))

    def _last(self) -> bytes:
        candidates: list[dict[str, Any]] = []
        for finished in self._finished:
            made: dict[str, Any] = {"content": {"parts": [], "role": "model"}, "finishReason": finish_reason(finished.stop), "index": finished.choice}
            if self._sources.get(finished.choice):
                made["citationMetadata"] = {"citationSources": self._sources[finished.choice]}
            candidates.append(made)
        last: dict[str, Any] = {"candidates": candidates}
        if self._usage is not None:
            last["usageMetadata"] = usage_metadata(self._usage)
        return _encode(last)[:-1] + b"," + self._tail


class Pass:
    """A stream that stays in the dialect: whole events from egress. Unchanged for server-sent events, else the elements of an array, whose end `finish`
    gives."""

    __slots__ = ("_form",)

    def __init__(self, request: GeminiRequest | None = None, *, sse: bool = True) -> None:
        self._form = _Form(sse)

    def feed(self, data: bytes) -> bytes:
        """Return what the client gets for the whole events in `data`. Raises `UpstreamError` if an element of the array would be no JSON."""
        if self._form.sse:
            return data
        pieces = [said for event in data.split(b"\n\n") if (said := _data_of(event))]
        for piece in pieces:
            try:
                _json.decode(piece)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                raise not_gemini() from None
        return self._form.frame(pieces)

    def finish(self) -> bytes:
        """Return what the client is owed when the stream is whole."""
        return self._form.end()

    def error_event(self, message: str, *, kind: str, code: str, status: int) -> bytes:
        """Return how the stream ends when it is broken, in the form that it has, whatever was written before."""
        return self._form.error(message, status=status)


_json = msgspec.json.Decoder(msgspec.Raw)


# --- errors ------------------------------------------------------------------------------------------------------------

# google.rpc.Code by HTTP status, as Google's servers answer.
_STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    409: "ABORTED",
    413: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


def _error(message: str, status: int) -> bytes:
    return _encode({"error": {"code": status, "message": message, "status": _STATUSES.get(status, "UNKNOWN")}})


def error_event(message: str, *, kind: str, code: str, status: int) -> bytes:
    """Return the server-sent event that ends a broken stream: Google's SDKs raise it by its code. Arrays need to know what was written: `Writer.error_event`
    and `Pass.error_event`."""
    return b"data: " + _error(message, status) + b"\n\n"
