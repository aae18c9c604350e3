"""A checked embeddings request as bytes, with a hole where egress puts the upstream's name of the model."""

from __future__ import annotations

from cliproxy.formats.json_bounds import encode_json
from cliproxy.translators.openai_embeddings.decode import EmbeddingsRequest

PREFIX = b'{"model":'


def encode_with_hole(request: EmbeddingsRequest) -> tuple[bytes, bytes]:
    """Return what stands before and behind the model: `prefix + json(model) + suffix` is the body. Changes nothing, so it can be called again."""
    return PREFIX, b"," + encode_json(request.rest)[1:]  # `rest` is never empty: it holds the input
