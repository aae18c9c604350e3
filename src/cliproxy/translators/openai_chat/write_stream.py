"""A chat completion's stream on its way to the client: events of the hub as chunks (`Writer`), or a provider's own events (`Passthrough`).

Streams always ask the provider for usage (`decode`), so that limits settle on real numbers. A client that did not ask must not get the extra event: its
`choices` is empty, and programs that read `choices[0]` of every event break on it.

Thoughts go out twice, as `reasoning_content` (DeepSeek's field, which most programs show) and piece by piece as `reasoning_details` (OpenRouter's), which a
client gives back so that a proof finds its way to the vendor that made it. Which calls, thoughts and sources belong to which choice is counted here, from 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from cliproxy.formats.sse import EventSplitter, data_line
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
    Refusal,
    SignatureDelta,
    Started,
    StreamEvent,
    Text,
    TextDelta,
    ToolCall,
)
from cliproxy.translators.openai_chat.answer_parts import FORMATS, THOUGHT, annotation_of, details_of, finish_reason_of, told_usage
from cliproxy.translators.openai_chat.media import url_of
from cliproxy.translators.openai_chat.request import ChatRequest

DONE = b"data: [DONE]\n\n"
_END = b'},"logprobs":null,"finish_reason":null}]}\n\n'
_encode = msgspec.json.Encoder().encode


class _Choice:
    """What was written of one choice. `before`, `between` and `after` stand around a piece of the open part's text; with `between` it is written twice."""

    __slots__ = ("after", "before", "between", "calls", "chars", "details", "head", "notes", "part", "pictures", "refused", "said", "start")

    def __init__(self, head: bytes) -> None:
        self.head = head  # up to the delta's first field
        self.before = self.between = self.after = b""
        self.part: Any = None
        self.calls = self.details = self.notes = self.pictures = 0  # entries of those lists; OpenAI's SDK puts pieces together by their `index`
        self.said = False  # the open call has arguments, the open thought text or a signature
        self.refused = False
        self.chars = self.start = 0  # of all texts so far, of those before the open one


class Writer:
    """`id`, `model` and `created` (seconds) stand where the provider names none. Only whole events come out."""

    __slots__ = ("_choices", "_created", "_head", "_id", "_include_usage", "_model", "_usage", "_write")

    def __init__(self, *, request: ChatRequest, id: str, model: str, created: int) -> None:
        self._include_usage = request.include_usage
        self._id, self._model, self._created = id, model, created
        self._head = b""
        self._choices: dict[int, _Choice] = {}
        self._usage: msgspec.Struct | None = None
        self._write: dict[type, Callable[[Any, list[bytes]], None]] = {
            Started: self._started,
            PartStarted: self._part_started,
            ArgumentsDelta: self._arguments,
            SignatureDelta: self._signature,
            CitationAdded: self._citation,
            PartEnded: self._part_ended,
            Finished: self._finished,
            Counted: self._counted,
            Ended: self._ended,
        }

    def write(self, events: Sequence[StreamEvent]) -> bytes:
        """Return what the client gets of `events`."""
        out: list[bytes] = []
        choices = self._choices
        for event in events:
            if type(event) is TextDelta:
                choice = choices[event.choice]
                text = _encode(event.text)
                if choice.between:
                    choice.said = True
                    out += (choice.before, text, choice.between, text, choice.after)
                else:
                    choice.chars += len(event.text)
                    out += (choice.before, text, choice.after)
            else:
                self._write[type(event)](event, out)
        return b"".join(out)

    def _started(self, event: Started, out: list[bytes]) -> None:
        self._head = b'data: {"id":%b,"object":"chat.completion.chunk","created":%d,"model":%b,"choices":[' % (
            _encode(event.id or self._id),
            event.created or self._created,
            _encode(event.model or self._model),
        )
        if event.usage is not None:
            self._usage = told_usage(event.usage)
        self._choice(0, out)

    def _choice(self, index: int, out: list[bytes]) -> _Choice:
        """Return the state of a choice, whose first chunk says the role."""
        choice = self._choices.get(index)
        if choice is None:
            choice = self._choices[index] = _Choice(self._head + b'{"index":%d,"delta":{' % index)
            out += (choice.head, b'"role":"assistant","content":""', _END)
        return choice

    def _part_started(self, event: PartStarted, out: list[bytes]) -> None:
        choice = self._choice(event.choice, out)
        part = choice.part = event.part
        choice.before, choice.between, choice.after, choice.said = choice.head, b"", _END, False
        if isinstance(part, Text):
            choice.start = choice.chars
            choice.before += b'"content":'
        elif isinstance(part, Refusal):
            choice.refused = True
            choice.before += b'"refusal":'
        elif isinstance(part, Reasoning):
            self._thought_started(choice, part, out)
        elif isinstance(part, ToolCall):
            call = {"index": choice.calls, "id": part.id, "type": "function", "function": {"name": part.name, "arguments": ""}}
            out += (choice.head, b'"tool_calls":[', _encode(call), b"]", _END)
            choice.before += b'"tool_calls":[{"index":%d,"function":{"arguments":' % choice.calls
            choice.after = b"}}]" + _END
            choice.calls += 1
        elif isinstance(part, Image):
            picture = {"type": "image_url", "image_url": {"url": url_of(part)}, "index": choice.pictures}
            out += (choice.head, b'"images":[', _encode(picture), b"]", _END)
            choice.pictures += 1

    def _thought_started(self, choice: _Choice, part: Reasoning, out: list[bytes]) -> None:
        if part.redacted:
            choice.said = True
            out += (choice.head, b'"reasoning_details":[', _encode(details_of(part, choice.details)), b"]", _END)
        else:
            choice.before += b'"reasoning_content":'
            choice.between = b',"reasoning_details":[{"type":"%b","text":' % THOUGHT.encode()
            choice.after = b',"index":%d}]' % choice.details + _END

    def _arguments(self, event: ArgumentsDelta, out: list[bytes]) -> None:
        choice = self._choices[event.choice]
        choice.said = True
        out += (choice.before, _encode(event.json), choice.after)

    def _signature(self, event: SignatureDelta, out: list[bytes]) -> None:
        choice = self._choices[event.choice]
        if isinstance(choice.part, ToolCall):
            # Clients that gather a call read `function.arguments` of each of its pieces.
            signed = {"google": {"thought_signature": event.signature}}
            call = {"index": choice.calls - 1, "function": {"arguments": ""}, "extra_content": signed}
            out += (choice.head, b'"tool_calls":[', _encode(call), b"]", _END)
        elif event.signer in FORMATS:
            choice.said = True
            detail = details_of(Reasoning(signature=event.signature, signer=event.signer, id=choice.part.id), choice.details)
            del detail["text"]
            out += (choice.head, b'"reasoning_details":[', _encode(detail), b"]", _END)

    def _citation(self, event: CitationAdded, out: list[bytes]) -> None:
        choice = self._choices[event.choice]
        note = annotation_of(event.citation, offset=choice.start, length=choice.chars - choice.start)
        if note is not None:
            note["index"] = choice.notes
            choice.notes += 1
            out += (choice.head, b'"annotations":[', _encode(note), b"]", _END)

    def _part_ended(self, event: PartEnded, out: list[bytes]) -> None:
        choice = self._choices[event.choice]
        if isinstance(choice.part, ToolCall) and not choice.said:
            out += (choice.before, b'"{}"', choice.after)
        elif isinstance(choice.part, Reasoning) and choice.said:
            choice.details += 1
        choice.part = None

    def _finished(self, event: Finished, out: list[bytes]) -> None:
        choice = self._choice(event.choice, out)
        reason = finish_reason_of(event.stop, refused=choice.refused)
        out += (choice.head, b'},"logprobs":null,"finish_reason":"%b"}]}\n\n' % reason.encode())

    def _counted(self, event: Counted, out: list[bytes]) -> None:
        self._usage = told_usage(event.usage)

    def _ended(self, event: Ended, out: list[bytes]) -> None:
        if self._include_usage and self._usage is not None:
            out += (self._head, b'],"usage":', _encode(self._usage), b"}\n\n")
        out.append(DONE)


# --- the same dialect on both sides --------------------------------------------------------------------------------------


class _Event(msgspec.Struct, gc=False):
    choices: list[object]
    usage: msgspec.Raw = msgspec.Raw(b"null")


class _Error(msgspec.Struct, gc=False):
    message: str
    type: str
    param: None
    code: str


class _ErrorEvent(msgspec.Struct, gc=False):
    error: _Error


_decoder = msgspec.json.Decoder(_Event)


class StreamFilter:
    """Drops the usage event unless the client asked for it. Pieces may be cut anywhere; what comes out is whole events."""

    __slots__ = ("_include_usage", "_splitter")

    def __init__(self, include_usage: bool) -> None:
        self._include_usage = include_usage
        self._splitter = EventSplitter()

    @property
    def at_boundary(self) -> bool:
        """Whether a comment or an error event may be written now. Always: only whole events come out of `feed`."""
        return True

    def feed(self, data: bytes) -> bytes:
        """Return the events that `data` completes and the client is to have; may be empty."""
        events = self._splitter.feed(data)
        if self._include_usage or events.find(b"[]") < 0:  # a usage event has `"choices":[]`
            return events
        return _without_usage_events(events)


class Passthrough(StreamFilter):
    """What the client of `request` gets of a stream in its own dialect."""

    __slots__ = ()

    def __init__(self, request: ChatRequest) -> None:
        super().__init__(request.include_usage)


def _without_usage_events(events: bytes) -> bytes:
    kept = []
    for event in events.split(b"\n\n")[:-1]:
        if b"[]" not in event or not _is_usage_event(event):
            kept.append(event)
    return b"\n\n".join([*kept, b""])


def _is_usage_event(event: bytes) -> bool:
    """Say whether `event` has usage and no choices. An empty `choices` without usage is something else (Azure's content filter results)."""
    try:
        parsed = _decoder.decode(data_line(event, event.find(b"[]")))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return not parsed.choices and bytes(parsed.usage) != b"null"


def error_event(message: str, *, kind: str, code: str, status: int) -> bytes:
    """Return the event that ends a broken stream: OpenAI's SDKs raise its message. No `[DONE]` follows it, and it has no place for `status`."""
    return b"data: " + _encode(_ErrorEvent(_Error(message, kind, None, code))) + b"\n\n"
