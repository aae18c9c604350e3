"""What a Responses request is once it was checked."""

from __future__ import annotations

from typing import Any

import msgspec

from cliproxy.translators.openai_responses.wire import ResponsesBody


class ResponsesRequest(msgspec.Struct, frozen=True):
    """A checked Responses request.

    `max_tokens` is the most output tokens, thoughts included, so `estimate + max_tokens` is what to reserve. `rest` is everything that leaves but the model,
    if the upstream is of the same dialect; `wire` is the typed view of what the client sent. `state` is the path of the first field that needs a provider which
    keeps things. `dropped` is what `rest` leaves out, as `Encoded.dropped` tells it.
    """

    model: str
    stream: bool
    n: int
    max_tokens: int
    estimate: int
    rest: dict[str, Any]
    wire: ResponsesBody
    state: str
    dropped: tuple[str, ...]
