"""Streamed answers on their way to a client: the hub's events, and those that stay in the dialect. `Reader` reads a provider's.

A client gets server-sent events (`?alt=sse`) or, Google's default, one JSON array that grows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from cliproxy.bounds import MAX_CITATIONS, MIB
from cliproxy.dialects import Dialect
from cliproxy.errors import UpstreamError
from cliproxy.metering.usage import Usage
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
    TextDelta,
    ToolCall,
)
from cliproxy.translators.gemini_generate.answer import (
    finish_reason,
    not_gemini,
    parts_of,
    shows_thoughts,
    source_of,
    usage_metadata,
)
from cliproxy.translators.gemini_generate.errors import rpc_name
from cliproxy.translators.gemini_generate.read_stream import data_of
from cliproxy.translators.gemini_generate.request import GeminiRequest

MAX_HELD_CHARS = 4 * MIB  # of tool calls and signed thoughts under way in one stream, for a client whose dialect tells them whole

# White space between the elements of an array, an event without data between events: ignored in both forms. Google's Python SDK takes a comment for JSON and
# raises.
KEEP_ALIVE = b"\n"

_SIGNER = Dialect.GEMINI_GENERATE
_encode = msgspec.json.Encoder().encode


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
            if isinstance(event, TextDelta):
                affixes = self._affixes.get(event.choice)
                if affixes is not None:
                    pieces.append(affixes[0] + _encode(event.text) + affixes[1])
                if self._foreign:
                    self._keep(event)
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


class Passthrough:
    """A stream that stays in the dialect: whole events from egress. Unchanged for server-sent events, else the elements of an array, whose end `finish`
    gives."""

    __slots__ = ("_form",)

    def __init__(self, request: GeminiRequest | None = None, *, sse: bool = True) -> None:
        self._form = _Form(sse)

    def feed(self, data: bytes) -> bytes:
        """Return what the client gets for the whole events in `data`. Raises `UpstreamError` if an element of the array would be no JSON."""
        if self._form.sse:
            return _without_comments(data) if data.startswith(b":") or data.find(b"\n:") >= 0 else data
        pieces = [said for event in data.split(b"\n\n") if (said := data_of(event))]
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


def _without_comments(events: bytes) -> bytes:
    """Return whole `events` without comments, which Google's servers never send and its Python SDK takes for JSON."""
    kept = (b"\n".join(line for line in event.split(b"\n") if not line.startswith(b":")) for event in events.split(b"\n\n"))
    return b"".join(event + b"\n\n" for event in kept if event)


# --- errors ------------------------------------------------------------------------------------------------------------


def _error(message: str, status: int) -> bytes:
    return _encode({"error": {"code": status, "message": message, "status": rpc_name(status)}})


def error_event(message: str, *, kind: str, code: str, status: int) -> bytes:
    """Return the server-sent event that ends a broken stream: Google's SDKs raise it by its code. Arrays need to know what was written: `Writer.error_event`
    and `Passthrough.error_event`."""
    return b"data: " + _error(message, status) + b"\n\n"
