"""What a request for embeddings is once it was checked."""

from __future__ import annotations

from typing import Any

import msgspec

from cliproxy.translators.gemini_embed.wire import EmbedBody


class GeminiEmbedRequest(msgspec.Struct, frozen=True):
    """A checked request for a vector of each of `wire`. `batch`: the client called `batchEmbedContents`, whose answer has another spelling. `rest` are the same
    as dictionaries, without the model."""

    model: str
    batch: bool
    estimate: int
    rest: list[dict[str, Any]]
    wire: list[EmbedBody]
