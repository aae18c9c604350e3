"""The parts of one choice of a streamed answer, put one after the other.

A provider may tell several tool calls at once, or go on with text before a call is whole; whoever reads the hub's events may rely on one part at a time. So a
part waits until the one before it is over: a text or a thought is over when something else begins, a tool call when its JSON object is closed. What waits is
bounded, keeps its order, and at the end of the answer comes out whatever is missing; a call that is no JSON object by then is the provider's fault.
"""

from __future__ import annotations

import re
from enum import Enum

from cliproxy.bounds import MAX_ANSWER_PARTS, MIB
from cliproxy.dialects import Dialect
from cliproxy.errors import UpstreamError
from cliproxy.translators.conversation import (
    ArgumentsDelta,
    AssistantPart,
    Citation,
    CitationAdded,
    Finished,
    PartEnded,
    PartStarted,
    Reasoning,
    Refusal,
    SignatureDelta,
    StreamEvent,
    Text,
    TextDelta,
    ToolCall,
    verify_arguments,
)
from cliproxy.translators.openai_chat.answer_parts import stop_of

MAX_KEPT_CHARS = 8 * MIB  # OpenAI chat: of one stream's tool calls until they are whole, and of what waits for them; a large source file is 1 MiB
ARGUMENT_PIECES_PER_JOIN = 1024  # pieces of a tool call's JSON are joined in lots of these, as those of events are


class Kind(Enum):
    TEXT = 1
    REFUSAL = 2
    THOUGHT = 3
    CALL = 4
    WHOLE = 5  # comes in one piece


class Part:
    """A part, open or waiting. `index` is -1 until it has begun. `offset`: the characters of the choice's texts before it."""

    __slots__ = ("citations", "ended", "id", "index", "joined", "key", "kind", "name", "offset", "pieces", "scan", "signature", "signer", "size", "whole")

    def __init__(self, kind: Kind, *, key: int | None = None, id: str = "", signer: Dialect | None = None, whole: AssistantPart | None = None) -> None:
        self.kind = kind
        self.key = key  # of a thought: its provider's index
        self.index = -1
        self.id = id
        self.name = ""
        self.signature = ""
        self.signer = signer
        self.whole = whole
        self.citations: list[Citation] = []
        self.offset = 0
        self.pieces: list[str] = []  # of a call all, of others while they wait
        self.joined = 0  # that many of the pieces are joined batches
        self.size = 0  # characters kept
        self.scan: ObjectScan | None = None
        self.ended = False

    def keep(self, text: str) -> None:
        self.pieces.append(text)
        if len(self.pieces) - self.joined >= ARGUMENT_PIECES_PER_JOIN:
            self.pieces[self.joined :] = ["".join(self.pieces[self.joined :])]
            self.joined += 1
        if self.scan is not None:
            self.scan.feed(text)

    @property
    def is_over(self) -> bool:
        """Whether another part may begin."""
        if self.kind is not Kind.CALL:
            return True
        if self.scan is None:
            self.scan = ObjectScan()
            for piece in self.pieces:
                self.scan.feed(piece)
        return self.scan.is_closed

    def first(self) -> AssistantPart:
        """What its beginning says."""
        if self.whole is not None:
            return self.whole
        if self.kind is Kind.CALL:
            return ToolCall(self.id, self.name, "")
        if self.kind is Kind.THOUGHT:
            return Reasoning(signer=self.signer, id=self.id)
        return Text("") if self.kind is Kind.TEXT else Refusal("")


class ObjectScan:
    """Finds where a JSON object ends, in pieces cut anywhere, without judging what is inside."""

    __slots__ = ("_depth", "_escaped", "_in_string", "is_closed")

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self.is_closed = False

    def feed(self, text: str) -> None:
        at = 0
        while at < len(text):
            if self._escaped:
                self._escaped = False
                at += 1
                continue
            match = (_IN_STRING if self._in_string else _OUTSIDE).search(text, at)
            if match is None:
                return
            at = match.end()
            sign = match[0]
            if sign == '"':
                self._in_string = not self._in_string
            elif sign == "\\":
                self._escaped = True
            elif sign in "{[":
                self._depth += 1
            else:
                self._depth -= 1
                self.is_closed = self.is_closed or self._depth <= 0


_IN_STRING = re.compile(r'["\\]')
_OUTSIDE = re.compile(r'["{}\[\]]')


class Kept:
    """How much is kept of a stream, all choices together."""

    __slots__ = ("_chars",)

    def __init__(self) -> None:
        self._chars = 0

    def add(self, part: Part, chars: int) -> None:
        """Raises `UpstreamError` above `MAX_KEPT_CHARS`."""
        part.size += chars
        self._chars += chars
        if self._chars > MAX_KEPT_CHARS:
            raise UpstreamError("The provider's tool calls are larger than the gateway takes.", code="upstream_too_large")

    def release(self, part: Part) -> None:
        self._chars -= part.size
        part.size = 0


class Parts:
    """The parts of the choice `index`. What they give goes to the `out` that each method takes."""

    __slots__ = ("_begun", "_called", "_calls", "_id_prefix", "_ids", "_kept", "_last_call", "_refused", "_waiting", "chars", "index", "open")

    def __init__(self, index: int, *, id_prefix: str, kept: Kept) -> None:
        self.index = index
        self.open: Part | None = None
        self.chars = 0  # of all texts that have come
        self._begun = 0
        self._waiting: list[Part] = []
        self._kept = kept
        self._calls: dict[int, Part] = {}  # by the provider's index
        self._ids: dict[str, Part] = {}
        self._last_call: Part | None = None
        self._called = self._refused = False
        self._id_prefix = id_prefix

    @property
    def plain_text(self) -> Part | None:
        """The open text, if nothing waits."""
        part = self.open
        return part if part is not None and part.kind is Kind.TEXT and not self._waiting else None

    # --- what comes in ---

    def say(self, kind: Kind, text: str, out: list[StreamEvent], *, key: int | None = None, id: str = "", signer: Dialect | None = None) -> None:
        """More of a text, a refusal, or a thought: with another `key`, or after its signature, a new one."""
        part = self._last()
        if part is None or part.kind is not kind or (kind is Kind.THOUGHT and not _continues(part, key)):
            part = self._add(Part(kind, key=key, id=id, signer=signer), out)
        if kind is Kind.TEXT:
            self.chars += len(text)
        self._refused = self._refused or kind is Kind.REFUSAL
        if part.index >= 0:
            out.append(TextDelta(self.index, part.index, text))
        else:
            part.keep(text)
            self._kept.add(part, len(text))

    def sign(self, signature: str, signer: Dialect, out: list[StreamEvent], *, key: int | None = None, id: str = "") -> None:
        """The signature of the thought that is told, or of one without a text."""
        part = self._last()
        if part is None or part.kind is not Kind.THOUGHT or not _continues(part, key):
            part = self._add(Part(Kind.THOUGHT, key=key, id=id, signer=signer), out)
        self._sign(part, signature, signer, out)

    def last_thought(self) -> Part | None:
        """The thought that is being told, unsigned."""
        part = self._last()
        return part if part is not None and part.kind is Kind.THOUGHT and not part.signature else None

    def put(self, whole: AssistantPart, out: list[StreamEvent]) -> None:
        """A part in one piece."""
        self._add(Part(Kind.WHOLE, whole=whole), out)

    def cite(self, citation: Citation, out: list[StreamEvent]) -> None:
        """A source of the text that is told; `citation` counts from the beginning of all texts."""
        part = self._last()
        if part is None or part.kind is not Kind.TEXT:
            part = self._add(Part(Kind.TEXT), out)
        inside = citation.start >= part.offset and citation.end >= 0
        start, end = (citation.start - part.offset, citation.end - part.offset) if inside else (-1, -1)
        citation = Citation(url=citation.url, title=citation.title, cited=citation.cited, start=start, end=end)
        if part.index >= 0:
            out.append(CitationAdded(self.index, part.index, citation))
        else:
            part.citations.append(citation)
            self._kept.add(part, len(citation.url) + len(citation.title) + len(citation.cited))

    def call(self, key: int | None, id: str, name: str, arguments: str, signature: str, out: list[StreamEvent]) -> None:
        """A tool call, or more of one. `key` is the provider's index."""
        part = self._find(key, id, name)
        if part is None:
            part = Part(Kind.CALL)
            part.id, part.name = id, name
            self._remember(part, key, id)
            self._add(part, out)
        elif part.index < 0:
            part.name = part.name or name
            part.id = part.id or id
            self._ids.setdefault(part.id, part)
        if arguments:
            self._argue(part, arguments, out)
        if signature and not part.signature and not part.ended:
            self._sign(part, signature, Dialect.GEMINI_GENERATE, out)
        self._advance(out)

    def finish(self, reason: str | None, out: list[StreamEvent]) -> None:
        """The answer is over, for `reason`: all that waits comes out."""
        while self._waiting:
            self._end(out)
            self._begin(out)
        self._end(out)
        out.append(Finished(self.index, stop_of(reason, called=self._called, refused=self._refused)))

    # --- how it goes on ---

    def _last(self) -> Part | None:
        return self._waiting[-1] if self._waiting else self.open

    def _find(self, key: int | None, id: str, name: str) -> Part | None:
        """Some imitations give all calls the index 0, or none, and tell them apart by their ids; some repeat the id with each piece."""
        if key is None:
            return self._ids.get(id) if id else None if name else self._last_call
        part = self._calls.get(key)
        return None if part is not None and name and id and part.id and part.id != id else part

    def _remember(self, part: Part, key: int | None, id: str) -> None:
        if key is not None:
            self._calls[key] = part
        if id:
            self._ids[id] = part
        self._last_call = part
        self._called = True

    def _argue(self, part: Part, arguments: str, out: list[StreamEvent]) -> None:
        if part.ended:
            if not arguments.isspace():
                raise UpstreamError("The provider's tool call goes on after its end.", code="bad_tool_arguments")
            return
        part.keep(arguments)
        self._kept.add(part, len(arguments))
        if part.index >= 0:
            out.append(ArgumentsDelta(self.index, part.index, arguments))

    def _sign(self, part: Part, signature: str, signer: Dialect, out: list[StreamEvent]) -> None:
        part.signature, part.signer = signature, signer
        if part.index >= 0:
            out.append(SignatureDelta(self.index, part.index, signature, signer))
        else:
            self._kept.add(part, len(signature))

    def _add(self, part: Part, out: list[StreamEvent]) -> Part:
        if self._begun + len(self._waiting) >= MAX_ANSWER_PARTS:
            raise UpstreamError("The provider's answer has too many parts.", code="upstream_too_large")
        part.offset = self.chars
        self._waiting.append(part)
        self._advance(out)
        return part

    def _advance(self, out: list[StreamEvent]) -> None:
        while self._waiting and (self.open is None or self.open.is_over) and (self._waiting[0].kind is not Kind.CALL or self._waiting[0].name):
            self._end(out)
            self._begin(out)

    def _begin(self, out: list[StreamEvent]) -> None:
        part = self.open = self._waiting.pop(0)
        if part.kind is Kind.CALL:
            if not part.name:
                raise UpstreamError("The provider's tool call names no tool.", code="bad_tool_call")
            part.id = part.id or f"{self._id_prefix}{self._begun}"
        index = part.index = self._begun
        self._begun += 1
        out.append(PartStarted(self.index, index, part.first()))
        text = "".join(part.pieces)
        if text:
            out.append(ArgumentsDelta(self.index, index, text) if part.kind is Kind.CALL else TextDelta(self.index, index, text))
        if part.kind is not Kind.CALL:
            part.pieces = []
            self._kept.release(part)
        out += [CitationAdded(self.index, index, citation) for citation in part.citations]
        if part.signature and part.signer is not None:
            out.append(SignatureDelta(self.index, index, part.signature, part.signer))

    def _end(self, out: list[StreamEvent]) -> None:
        part = self.open
        if part is None:
            return
        if part.kind is Kind.CALL:
            arguments = "".join(part.pieces)
            if not arguments:
                out.append(ArgumentsDelta(self.index, part.index, "{}"))
            verify_arguments(arguments)
        part.ended = True
        part.pieces = []
        self._kept.release(part)
        out.append(PartEnded(self.index, part.index))
        self.open = None


def _continues(thought: Part, key: int | None) -> bool:
    return not thought.signature and (key is None or thought.key is None or thought.key == key)
