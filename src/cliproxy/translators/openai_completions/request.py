"""What a legacy completion request is once it was checked."""

from __future__ import annotations

from typing import Any

import msgspec

from cliproxy.translators.openai_completions.wire import CompletionBody


class CompletionRequest(msgspec.Struct, frozen=True):
    """A checked legacy completion request. `max_tokens` is the most output tokens of one of its `n` choices; `include_usage` says whether the client asked for
    the usage event of a stream. `rest` is what the client sent, without the model."""

    model: str
    stream: bool
    include_usage: bool
    n: int
    max_tokens: int
    estimate: int
    rest: dict[str, Any]
    wire: CompletionBody
