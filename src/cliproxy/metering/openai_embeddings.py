"""What egress reads of embeddings, and nothing more: the model of a final body, what an answer used."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from cliproxy.bounds import MAX_TOKEN_COUNT
from cliproxy.errors import UpstreamError
from cliproxy.formats.json_bounds import answer_as
from cliproxy.metering.body import FinalBody
from cliproxy.metering.usage import Usage

__all__ = ["Usage", "reread", "usage_of_embeddings"]


class _AskedFor(msgspec.Struct, gc=False):
    model: str


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: Annotated[int, Meta(ge=0, le=MAX_TOKEN_COUNT)]


class _Item(msgspec.Struct, gc=False):
    """`embedding` is a list of numbers or base64: large, and skipped."""

    embedding: msgspec.Raw
    index: int = 0


class _Answer(msgspec.Struct, gc=False):
    data: Annotated[list[_Item], Meta(min_length=1)]
    usage: msgspec.Raw = msgspec.Raw(b"null")


_final = FinalBody(_AskedFor, refusal="The body is not an embeddings request.")
_answer_decoder = msgspec.json.Decoder(_Answer)
_usage_decoder = msgspec.json.Decoder(_Usage)


def reread(body: bytes) -> str:
    """Return the model that the final bytes of a request name. Raises `SchemaError` if they are not what this gateway's encoder writes."""
    return _final.read(body).model


def usage_of_embeddings(body: bytes) -> Usage | None:
    """Return the usage in a whole answer, or None if it has none that makes sense. Raises `UpstreamError` if `body` is no embeddings answer."""
    answer = answer_as(_answer_decoder, body)
    if answer is None or any(memoryview(item.embedding)[0] not in b'["' for item in answer.data):
        raise UpstreamError("The provider's answer is not a list of embeddings.", code="bad_upstream_answer")
    try:
        return Usage(_usage_decoder.decode(answer.usage).prompt_tokens, 0)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
