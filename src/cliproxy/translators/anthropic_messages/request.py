"""What a Messages request is once it was checked."""

from __future__ import annotations

from typing import Any

import msgspec

from cliproxy.translators.anthropic_messages.wire import CountBody


class MessagesRequest(msgspec.Struct, frozen=True):
    """A checked request, bound for an upstream of any dialect.

    `max_tokens` is the most output tokens of its one choice, so `estimate + max_tokens` is what to reserve. `rest` is everything that leaves but the model;
    `wire` is the same, typed. A question for tokens (`count.decode_count`) is one too: then `wire` is a `CountBody` and `max_tokens` is 0.
    """

    model: str
    stream: bool
    n: int
    max_tokens: int
    estimate: int
    rest: dict[str, Any]
    wire: CountBody
