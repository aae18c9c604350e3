"""Answers with embeddings, both ways: one vector (`embedContent`) or several (`batchEmbedContents`)."""

from __future__ import annotations

from typing import Any

import msgspec

from cliproxy.metering.gemini_embed import read_answer, usage_of_embeddings
from cliproxy.translators.embedding import EmbedAnswer, no_vectors, vector_of, verify_count
from cliproxy.translators.gemini_embed.request import GeminiEmbedRequest


def decode_embed_answer(body: bytes) -> EmbedAnswer:
    """Return a provider's whole answer. Raises `UpstreamError` if it is none of this dialect's."""
    return EmbedAnswer(tuple(vector_of(values) for values in read_answer(body)), usage_of_embeddings(body))


def encode_embed_answer(answer: EmbedAnswer, *, request: GeminiEmbedRequest | None, id: str, model: str, created: int) -> bytes:
    """Return `answer` in the spelling of the call that the client made. Raises `UpstreamError` if there is not one vector for each text."""
    batch = len(answer.vectors) != 1
    if request is not None:
        verify_count(answer, len(request.wire))
        batch = request.batch
    vectors = [{"values": vector.tolist()} for vector in answer.vectors]
    body: dict[str, Any] = {"embeddings": vectors} if batch else {"embedding": vectors[0]}
    if answer.usage is not None:
        body["usageMetadata"] = {"promptTokenCount": answer.usage.prompt}
    return msgspec.json.encode(body)


def same_answer(body: bytes, request: GeminiEmbedRequest) -> bytes:
    """Return what the client gets for the answer of an upstream of the same dialect: the same, but for a client that called `batchEmbedContents` a list of the
    one vector. Raises `UpstreamError`."""
    if not request.batch:
        return body
    try:
        answer = _one_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise no_vectors() from None
    made: dict[str, Any] = {"embeddings": [answer.embedding]}
    if answer.usageMetadata is not msgspec.UNSET:
        made["usageMetadata"] = answer.usageMetadata
    return msgspec.json.encode(made)


class _One(msgspec.Struct, gc=False):
    embedding: msgspec.Raw
    usageMetadata: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_one_decoder = msgspec.json.Decoder(_One)
