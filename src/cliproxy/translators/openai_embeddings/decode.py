"""An embeddings request from its bytes. What leaves is our own encoding of the value that was checked."""

from __future__ import annotations

from cliproxy.bounds import MAX_EMBEDDING_INPUTS, MAX_EMBEDDINGS_VALUES
from cliproxy.errors import SchemaError
from cliproxy.formats.json_bounds import decode_json
from cliproxy.translators.estimate import tokens_of_text
from cliproxy.translators.openai_embeddings.request import EmbeddingsRequest
from cliproxy.translators.openai_embeddings.wire import KNOWN_FIELDS, EmbeddingsBody
from cliproxy.translators.schema import convert, verify_unknown_fields


def decode_embeddings(body: bytes) -> EmbeddingsRequest:
    """Return the request in `body`. Raises `SchemaError` with the path of the field; its message never quotes the client."""
    document = decode_json(body, max_values=MAX_EMBEDDINGS_VALUES)
    wire = convert(document, EmbeddingsBody)
    if not KNOWN_FIELDS.issuperset(document):
        verify_unknown_fields(document, KNOWN_FIELDS)
    estimate = _estimate(wire.input, len(body))
    del document["model"]
    return EmbeddingsRequest(model=wire.model, estimate=estimate, rest=document)


def _estimate(texts: str | list[str | int | list[int]], length: int) -> int:
    """Return the tokens of the input: a guess for texts, the count for tokens. Raises `SchemaError` if a list mixes kinds or has too many inputs."""
    if isinstance(texts, str):
        return tokens_of_text(length)
    kinds = set(map(type, texts))
    if len(kinds) != 1:
        raise SchemaError("The input mixes texts and tokens.", param="input", code="invalid_type")
    if kinds == {int}:
        return len(texts)
    if len(texts) > MAX_EMBEDDING_INPUTS:
        raise SchemaError(f"The input has more than {MAX_EMBEDDING_INPUTS} entries.", param="input", code="invalid_value")
    if kinds == {list}:
        return sum(len(tokens) for tokens in texts if isinstance(tokens, list))
    return tokens_of_text(length)
