"""What an embeddings request is once it was checked."""

from __future__ import annotations

from typing import Any

import msgspec


class EmbeddingsRequest(msgspec.Struct, frozen=True):
    """A checked embeddings request. `estimate` is the tokens to reserve; `rest` is everything that leaves but the model."""

    model: str
    estimate: int
    rest: dict[str, Any]
