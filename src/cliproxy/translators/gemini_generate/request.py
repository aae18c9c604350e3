"""What a `generateContent` request is once it was checked."""

from __future__ import annotations

from typing import Any

import msgspec

from cliproxy.translators.gemini_generate.wire import GenerateBody


class GeminiRequest(msgspec.Struct, frozen=True):
    """A checked request. `model` and `stream` are the path's. `max_tokens` is the most output tokens of one of its `n` candidates, so `estimate + n *
    max_tokens` is what to reserve. `rest` is everything that leaves, `wire` the same as types. `tagged`: its history may have thoughts of other vendors', which
    must not leave (`signatures`)."""

    model: str
    stream: bool
    n: int
    max_tokens: int
    estimate: int
    rest: dict[str, Any]
    wire: GenerateBody
    tagged: bool = False


class CountRequest(msgspec.Struct, frozen=True):
    """A checked request to count. `rest` is the request that is counted, as for `generateContent`, and `wire` the same as types. It generates nothing."""

    model: str
    estimate: int
    rest: dict[str, Any]
    wire: GenerateBody
    stream: bool = False
    n: int = 1
    max_tokens: int = 0
