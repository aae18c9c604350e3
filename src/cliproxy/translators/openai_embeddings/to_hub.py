"""A checked embeddings request in the words of the hub.

Input in tokens is another vendor's alphabet, so it cannot be translated; `input_type`, which OpenAI does not know, neither.
"""

from __future__ import annotations

from cliproxy.dialects import Dialect
from cliproxy.translators.embedding import EmbedRequest
from cliproxy.translators.openai_embeddings.request import EmbeddingsRequest
from cliproxy.translators.policy_clients import EmbedField, FromOpenAIEmbeddings

# A field of `EmbedRequest` and what a client of this dialect calls it.
FIELD_NAMES: dict[str, str] = {"model": "model", "texts": "input", "dimensions": "dimensions", "user": "user"}
_UNDERSTOOD = frozenset({"input", "dimensions", "user", "encoding_format"})


def embed_request_of(request: EmbeddingsRequest) -> EmbedRequest:
    """Return `request` in the hub's types. Raises `UnsupportedFeature` with the field that has no place there."""
    rest = request.rest
    losses = FromOpenAIEmbeddings()
    for name, value in rest.items():
        if name not in _UNDERSTOOD and value is not None:
            losses.lose(EmbedField.UNKNOWN, name)
    said = rest["input"]
    texts = (said,) if isinstance(said, str) else tuple(said)
    if not all(isinstance(text, str) for text in texts):
        raise losses.refusal(EmbedField.TOKENS)
    return EmbedRequest(Dialect.OPENAI_EMBEDDINGS, request.model, texts, rest.get("dimensions"), user=rest.get("user") or "", left_out=losses)
