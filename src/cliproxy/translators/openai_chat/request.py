"""What a chat completion request is once it was checked."""

from __future__ import annotations

from typing import Any

import msgspec

from cliproxy.translators.openai_chat.wire import ChatBody


class ChatRequest(msgspec.Struct, frozen=True):
    """A checked chat completion request.

    `max_tokens` is the most output tokens of one of its `n` choices, so `estimate + n * max_tokens` is what to reserve. `include_usage` says whether the client
    asked for the usage event of a stream. `rest` is everything that leaves for an upstream of the same dialect but the model; `wire` the same as types,
    before caps and the request for usage were put in: what `conversation_of` translates.
    """

    model: str
    stream: bool
    include_usage: bool
    n: int
    max_tokens: int
    estimate: int
    rest: dict[str, Any]
    wire: ChatBody
