"""Events of the hub as the stream of a legacy completion. What has no place in one is treated as in a whole answer (`answer`)."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from cliproxy.metering.usage import Usage
from cliproxy.translators.conversation import Counted, Ended, Finished, PartStarted, Reasoning, Started, StreamEvent, TextDelta
from cliproxy.translators.openai_chat.answer_parts import told_usage
from cliproxy.translators.openai_completions.answer import finish_reason_of, verify_is_text
from cliproxy.translators.openai_completions.request import CompletionRequest

DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.Encoder().encode


class Writer:
    """`id`, `model` and `created` (seconds) stand where the provider names none. Only whole events come out."""

    __slots__ = ("_after", "_created", "_head", "_id", "_include_usage", "_model", "_thinking", "_usage")

    def __init__(self, *, request: CompletionRequest, id: str, model: str, created: int) -> None:
        self._include_usage = request.include_usage
        self._id, self._model, self._created = id, model, created
        self._head = b""
        self._after: dict[int, bytes] = {}  # what stands behind a choice's text
        self._thinking: set[int] = set()  # choices whose open part is a thought
        self._usage: Usage | None = None

    def write(self, events: Sequence[StreamEvent]) -> bytes:
        """Return what the client gets of `events`. Raises `UpstreamError` for more than text."""
        out: list[bytes] = []
        for event in events:
            if type(event) is TextDelta:
                if event.choice not in self._thinking:
                    out += (self._head, b'{"text":', _encode(event.text), self._after[event.choice])
            else:
                self._write(event, out)
        return b"".join(out)

    def _write(self, event: StreamEvent, out: list[bytes]) -> None:
        if isinstance(event, Started):
            self._head = b'data: {"id":%b,"object":"text_completion","created":%d,"model":%b,"choices":[' % (
                _encode(event.id or self._id),
                event.created or self._created,
                _encode(event.model or self._model),
            )
            self._usage = event.usage
        elif isinstance(event, PartStarted):
            verify_is_text(event.part)
            self._after[event.choice] = b',"index":%d,"logprobs":null,"finish_reason":null}]}\n\n' % event.choice
            (self._thinking.add if isinstance(event.part, Reasoning) else self._thinking.discard)(event.choice)
        elif isinstance(event, Finished):
            reason = finish_reason_of(event.stop).encode()
            out += (self._head, b'{"text":"","index":%d,"logprobs":null,"finish_reason":"%b"}]}\n\n' % (event.choice, reason))
        elif isinstance(event, Counted):
            self._usage = event.usage
        elif isinstance(event, Ended):
            if self._include_usage and self._usage is not None:
                out += (self._head, b'],"usage":', _encode(told_usage(self._usage)), b"}\n\n")
            out.append(DONE)
