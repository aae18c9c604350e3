"""OpenAI's embeddings to the hub and back, for clients and for providers.

Input in tokens is another vendor's alphabet, so it cannot be translated; `input_type`, which OpenAI does not know, neither.
"""

from __future__ import annotations

from typing import Any

import msgspec

from cliproxy.dialects import Dialect, Quirks
from cliproxy.errors import UnsupportedFeature
from cliproxy.formats.json_bounds import encode_json
from cliproxy.metering.openai_embeddings import usage_of_embeddings
from cliproxy.translators.conversation import Encoded
from cliproxy.translators.embedding import EmbedAnswer, EmbedRequest, no_vectors, packed, vector_of, verify_count
from cliproxy.translators.openai_embeddings.decode import EmbeddingsRequest
from cliproxy.translators.openai_embeddings.encode import PREFIX

__all__ = ["FIELD_NAMES", "decode_embed_answer", "embed_request_of", "encode_embed", "encode_embed_answer"]

# A field of `EmbedRequest` and what a client of this dialect calls it.
FIELD_NAMES: dict[str, str] = {"model": "model", "texts": "input", "dimensions": "dimensions", "user": "user"}
_UNDERSTOOD = frozenset({"input", "dimensions", "user", "encoding_format"})
_DROPPED = ("task", "title")  # hints: OpenAI's vectors are for anything


def embed_request_of(request: EmbeddingsRequest) -> EmbedRequest:
    """Return `request` in the hub's types. Raises `UnsupportedFeature` with the field that has no place there."""
    rest = request.rest
    for name, value in rest.items():
        if name not in _UNDERSTOOD and value is not None:
            raise UnsupportedFeature("The field cannot be translated.", param=name)
    said = rest["input"]
    texts = (said,) if isinstance(said, str) else tuple(said)
    if not all(isinstance(text, str) for text in texts):
        raise UnsupportedFeature("Tokens are numbers of OpenAI's; send texts.", param="input")
    return EmbedRequest(Dialect.OPENAI_EMBEDDINGS, request.model, texts, rest.get("dimensions"), user=rest.get("user") or "")


def encode_embed(request: EmbedRequest, quirks: Quirks) -> Encoded:
    """Return `request` as a body for an upstream of this dialect, with a hole for the model. Raises `UnsupportedFeature`."""
    body: dict[str, Any] = {"input": request.texts[0] if len(request.texts) == 1 else list(request.texts)}
    if request.dimensions is not None:
        body["dimensions"] = request.dimensions
    if request.user:
        body["user"] = request.user
    dropped = tuple(name for name in _DROPPED if getattr(request, name))
    return Encoded(PREFIX, b"," + encode_json(body)[1:], dropped)


class _Item(msgspec.Struct, gc=False):
    embedding: msgspec.Raw
    index: int = 0


class _Answer(msgspec.Struct, gc=False):
    data: list[_Item]
    model: str | None = None


_decoder = msgspec.json.Decoder(_Answer)


def decode_embed_answer(body: bytes) -> EmbedAnswer:
    """Return a provider's whole answer. Raises `UpstreamError` if it is none of this dialect's, or its indices do not count from 0."""
    usage = usage_of_embeddings(body)
    try:
        answer = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise no_vectors() from None
    items = sorted(answer.data, key=lambda item: item.index)
    if [item.index for item in items] != list(range(len(items))):
        raise no_vectors()
    return EmbedAnswer(tuple(vector_of(item.embedding) for item in items), usage, answer.model or "")


def encode_embed_answer(answer: EmbedAnswer, *, request: EmbeddingsRequest | None, id: str, model: str, created: int) -> bytes:
    """Return `answer` for a client of this dialect, in the `encoding_format` that it asked for. Where the provider does not count, the estimate that the call
    settles at stands as its usage. Raises `UpstreamError` if there is not one vector for each text."""
    as_base64 = False
    tokens = answer.usage.prompt if answer.usage is not None else 0
    if request is not None:
        said = request.rest["input"]
        verify_count(answer, 1 if isinstance(said, str) else len(said))
        as_base64 = request.rest.get("encoding_format") == "base64"
        tokens = tokens if answer.usage is not None else request.estimate
    data = [
        {"object": "embedding", "index": index, "embedding": packed(vector) if as_base64 else vector.tolist()} for index, vector in enumerate(answer.vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return msgspec.json.encode({"object": "list", "data": data, "model": answer.model or model, "usage": usage})
