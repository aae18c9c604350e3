"""An answer's events on their way to the client, in the vendor's own (`Writer`) or as they came (`Passthrough`). The other direction is `read_stream.py`.

The order is the vendor's: `message_start`, then for each block its start, deltas and stop, then `message_delta` with the reason to stop and all usage,
`message_stop`. Usage in `message_start` is what is known then, often nothing: the count at the end replaces it, as the vendor's SDKs do. A text block begins
with its first text, so that there are no empty ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from cliproxy.dialects import Dialect
from cliproxy.metering.usage import Usage
from cliproxy.translators.anthropic_messages.answer import (
    call_proof,
    cannot_hold,
    citation_fields,
    redacted_block,
    several_choices,
    shows_thoughts,
    stop_word,
    usage_fields,
)
from cliproxy.translators.anthropic_messages.errors import error_type
from cliproxy.translators.anthropic_messages.request import MessagesRequest
from cliproxy.translators.anthropic_messages.signatures import signature_of
from cliproxy.translators.conversation import (
    ArgumentsDelta,
    AssistantPart,
    CitationAdded,
    Counted,
    Ended,
    Finished,
    PartEnded,
    PartStarted,
    Reasoning,
    Refusal,
    SignatureDelta,
    Started,
    StopReason,
    StreamEvent,
    Text,
    TextDelta,
    ToolCall,
)

KEEP_ALIVE = b'event: ping\ndata: {"type":"ping"}\n\n'
_END = b"}}\n\n"
_STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
_encoder = msgspec.json.Encoder()
_encode = _encoder.encode


class Writer:
    """Writes a translated stream for a client of this dialect, who asked for one choice: another's event is the provider's fault."""

    __slots__ = (
        "_calls",
        "_id",
        "_in_call",
        "_index",
        "_model",
        "_open",
        "_pending",
        "_prefix",
        "_proof",
        "_refuses",
        "_shows",
        "_stop",
        "_stop_sequence",
        "_thought",
        "_usage",
    )

    def __init__(self, *, request: MessagesRequest | None, id: str, model: str, created: int) -> None:
        self._shows = shows_thoughts(request)
        self._id = id
        self._model = model
        self._index = -1  # of the block that is written, counted here: some parts are not
        self._open = False
        self._pending = False  # a text that has not begun
        self._prefix = b""  # of the open block's next delta; empty for a part that is not written
        self._calls = self._refuses = self._in_call = False
        self._thought: Reasoning | None = None  # that is open and not signed
        self._proof: dict[str, Any] | None = None  # of the open call
        self._stop = StopReason.END
        self._stop_sequence = ""
        self._usage: Usage | None = None

    def write(self, events: Sequence[StreamEvent]) -> bytes:
        """Return whole events; may be empty. Raises `UpstreamError` for what a message cannot hold (an image, another choice)."""
        out: list[bytes] = []
        for event in events:
            if isinstance(event, TextDelta):
                if event.choice:
                    raise several_choices()
                if self._pending:
                    self._begin_text(out)
                if self._prefix:
                    out += (self._prefix, _encode(event.text), _END)
            elif isinstance(event, ArgumentsDelta):
                if event.choice:
                    raise several_choices()
                out += (self._prefix, _encode(event.json), _END)
            else:
                self._other(event, out)
        return b"".join(out)

    def _other(self, event: StreamEvent, out: list[bytes]) -> None:
        if isinstance(event, Started):
            self._start(event, out)
        elif isinstance(event, Counted):
            self._usage = event.usage
        elif isinstance(event, Ended):
            self._end(out)
        elif event.choice:
            raise several_choices()
        elif isinstance(event, PartStarted):
            self._begin(event.part, out)
        elif isinstance(event, PartEnded):
            self._finish_block(out)
        elif isinstance(event, SignatureDelta):
            self._sign(event, out)
        elif isinstance(event, CitationAdded):
            citation = citation_fields(event.citation)
            if citation is not None:
                if self._pending:
                    self._begin_text(out)
                out.append(self._delta({"type": "citations_delta", "citation": citation}))
        elif isinstance(event, Finished):
            self._stop, self._stop_sequence = event.stop, event.stop_sequence

    def _start(self, event: Started, out: list[bytes]) -> None:
        self._id = event.id or self._id
        self._usage = event.usage
        message: dict[str, Any] = {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": event.model or self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage_fields(event.usage),
        }
        out.append(_event("message_start", {"type": "message_start", "message": message}))

    def _begin(self, part: AssistantPart, out: list[bytes]) -> None:
        if isinstance(part, Text | Refusal):
            self._pending = True
            self._refuses = self._refuses or isinstance(part, Refusal)
        elif isinstance(part, ToolCall):
            self._calls = self._in_call = True
            if part.signature and self._shows:
                self._proof = call_proof(Dialect.GEMINI_GENERATE, part.signature)
            self._begin_block({"type": "tool_use", "id": part.id or f"toolu_{self._id}_{self._index + 1}", "name": part.name, "input": {}}, out)
            self._prefix = self._prefix_of("input_json_delta", "partial_json")
        elif isinstance(part, Reasoning):
            self._begin_thoughts(part, out)
        else:
            raise cannot_hold()

    def _begin_text(self, out: list[bytes]) -> None:
        self._pending = False
        self._begin_block({"type": "text", "text": "", "citations": None}, out)
        self._prefix = self._prefix_of("text_delta", "text")

    def _begin_thoughts(self, part: Reasoning, out: list[bytes]) -> None:
        if not self._shows:
            return
        if part.redacted:
            self._begin_block(redacted_block(part), out)
            return
        self._begin_block({"type": "thinking", "thinking": "", "signature": ""}, out)
        self._prefix = self._prefix_of("thinking_delta", "thinking")
        self._thought = part

    def _sign(self, event: SignatureDelta, out: list[bytes]) -> None:
        """A thought's signature goes with it; a call's follows the call, for clients that see thoughts."""
        if self._thought is not None:
            signed = signature_of(Reasoning(signature=event.signature, signer=event.signer, id=self._thought.id))
            self._thought = None
            out.append(self._delta({"type": "signature_delta", "signature": signed}))
        elif self._in_call and self._shows:
            self._proof = call_proof(event.signer, event.signature)

    def _begin_block(self, block: dict[str, Any], out: list[bytes]) -> None:
        self._index += 1
        self._open = True
        out.append(_event("content_block_start", {"type": "content_block_start", "index": self._index, "content_block": block}))

    def _finish_block(self, out: list[bytes]) -> None:
        self._pending = False
        self._prefix = b""
        if not self._open:
            return
        if self._thought is not None:  # nobody signed it
            out.append(self._delta({"type": "signature_delta", "signature": signature_of(Reasoning(id=self._thought.id))}))
            self._thought = None
        self._open = self._in_call = False
        out.append(b'event: content_block_stop\ndata: {"type":"content_block_stop","index":%d}\n\n' % self._index)
        if self._proof is not None:
            proof, self._proof = self._proof, None
            self._begin_block(proof, out)
            self._finish_block(out)

    def _end(self, out: list[bytes]) -> None:
        reason = stop_word(self._stop, calls=self._calls, refuses=self._refuses)
        delta = {"stop_reason": reason, "stop_sequence": self._stop_sequence or None}
        out.append(_event("message_delta", {"type": "message_delta", "delta": delta, "usage": usage_fields(self._usage)}))
        out.append(_STOP)

    def _prefix_of(self, kind: str, field: str) -> bytes:
        return f'event: content_block_delta\ndata: {{"type":"content_block_delta","index":{self._index},"delta":{{"type":"{kind}","{field}":'.encode()

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _event("content_block_delta", {"type": "content_block_delta", "index": self._index, "delta": delta})


class Passthrough:
    """The same dialect on both sides: whole events from egress go on as they are."""

    __slots__ = ()

    def __init__(self, request: MessagesRequest) -> None:
        pass

    def feed(self, data: bytes) -> bytes:
        """Return what the client is to have of `data`: all of it."""
        return data


def error_event(message: str, *, kind: str, code: str, status: int) -> bytes:
    """Return the event that ends a broken stream: Anthropic's SDKs raise its message. No `message_stop` follows it."""
    return _event("error", {"type": "error", "error": {"type": error_type(status), "message": message}})


def _event(name: str, value: dict[str, Any]) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + _encode(value) + b"\n\n"
