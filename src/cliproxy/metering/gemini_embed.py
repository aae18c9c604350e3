"""What egress reads of Gemini's embeddings, and nothing more: that a final body is a request for one vector, what an answer used (most tell nothing)."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from cliproxy.bounds import MAX_TOKEN_COUNT
from cliproxy.errors import UpstreamError
from cliproxy.formats.json_bounds import answer_as
from cliproxy.metering.body import FinalBody
from cliproxy.metering.usage import AskedFor, Usage

__all__ = ["AskedFor", "Usage", "read_answer", "reread", "usage_of_embeddings"]


class _AskedFor(msgspec.Struct, gc=False):
    """`None` types are fields that no honest worker sends: the path names the model, and that of one vector."""

    content: Any
    model: None = None
    requests: None = None


class _Values(msgspec.Struct, gc=False):
    """Large, and skipped."""

    values: msgspec.Raw


class _Usage(msgspec.Struct, gc=False, rename="camel"):
    prompt_token_count: Annotated[int, Meta(ge=0, le=MAX_TOKEN_COUNT)]


class _Answer(msgspec.Struct, gc=False, rename="camel"):
    embedding: _Values | None = None
    embeddings: list[_Values] | None = None
    usage_metadata: msgspec.Raw = msgspec.Raw(b"null")


_final = FinalBody(_AskedFor, refusal="The body is not a request to embed.", param="content")
_answer_decoder = msgspec.json.Decoder(_Answer)
_usage_decoder = msgspec.json.Decoder(_Usage)


def reread(body: bytes) -> AskedFor:
    """Return what the final bytes of a request ask for, which is no output. Raises `SchemaError` if they are no request for one vector, or name a model."""
    _final.read(body)
    return AskedFor("", 0, 1, None)


def usage_of_embeddings(body: bytes) -> Usage | None:
    """Return the usage in a whole answer, or None if it has none that makes sense. Raises `UpstreamError` if `body` is no answer with embeddings."""
    try:
        return Usage(_usage_decoder.decode(_read(body).usage_metadata).prompt_token_count, 0)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def read_answer(body: bytes) -> list[msgspec.Raw]:
    """Return the vectors' JSON, a list each. Raises `UpstreamError` if `body` is no answer with embeddings."""
    answer = _read(body)
    return [answer.embedding.values] if answer.embedding is not None else [vector.values for vector in answer.embeddings or ()]


def _read(body: bytes) -> _Answer:
    answer = answer_as(_answer_decoder, body)
    if answer is None:
        raise _no_embeddings()
    vectors = answer.embeddings if answer.embedding is None else [answer.embedding]
    if not vectors or any(memoryview(vector.values)[0] != 91 for vector in vectors):  # 91: `[`
        raise _no_embeddings()
    return answer


def _no_embeddings() -> UpstreamError:
    return UpstreamError("The provider's answer is not a list of embeddings.", code="bad_upstream_answer")
