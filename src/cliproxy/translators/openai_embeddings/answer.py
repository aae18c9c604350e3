"""Answers with embeddings, both ways."""

from __future__ import annotations

import msgspec

from cliproxy.metering.openai_embeddings import usage_of_embeddings
from cliproxy.translators.embedding import EmbedAnswer, no_vectors, packed, vector_of, verify_count
from cliproxy.translators.openai_embeddings.request import EmbeddingsRequest


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
