"""The hub of translated embeddings: what is asked for and what comes back, in no vendor's words. The rules are those of `conversation`.

Vectors are arrays of doubles: 8 bytes a number, where a list of Python's floats has 32, and an answer may hold six million of them.
"""

from __future__ import annotations

import base64
import binascii
import sys
from array import array

import msgspec

from cliproxy.bounds import MAX_EMBEDDING_DIMENSIONS
from cliproxy.dialects import Dialect
from cliproxy.errors import UpstreamError
from cliproxy.metering.usage import Usage


class EmbedRequest(msgspec.Struct, frozen=True, gc=False):
    """`texts`, in order, are to become a vector each, of `dimensions` numbers if that is said. `task` and `title` are Gemini's hints at what the vectors are
    for; without them they are for anything. `left_out`: see `ConversationRequest`."""

    dialect: Dialect
    model: str
    texts: tuple[str, ...]
    dimensions: int | None = None
    task: str = ""
    title: str = ""
    user: str = ""
    left_out: dict[str, None] = {}


class EmbedAnswer(msgspec.Struct, frozen=True, gc=False):
    """One vector for each text, in order. `usage` is None where the provider does not count."""

    vectors: tuple[array[float], ...]
    usage: Usage | None
    model: str = ""


_floats = msgspec.json.Decoder(list[float])


def vector_of(raw: msgspec.Raw) -> array[float]:
    """Return the vector in `raw`: a JSON list of numbers, or base64 of 32-bit floats in little-endian order (OpenAI's `encoding_format`).

    Raises `UpstreamError` if it is neither, empty, or has more than `MAX_EMBEDDING_DIMENSIONS` numbers.
    """
    said = bytes(raw)
    if said[:1] == b'"':
        return _unpacked(said)
    if said.count(b",") >= MAX_EMBEDDING_DIMENSIONS:
        raise no_vectors()
    try:
        vector = array("d", _floats.decode(said))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise no_vectors() from None
    if not vector:
        raise no_vectors()
    return vector


def _unpacked(said: bytes) -> array[float]:
    try:
        packed = base64.b64decode(msgspec.json.decode(said, type=str), validate=True)
        floats = array("f", packed)
    except (msgspec.DecodeError, UnicodeDecodeError, binascii.Error, ValueError):
        raise no_vectors() from None
    if not 0 < len(floats) <= MAX_EMBEDDING_DIMENSIONS:
        raise no_vectors()
    if sys.byteorder == "big":
        floats.byteswap()
    if any(number - number != 0 for number in floats):  # infinities and NaN, which JSON cannot say
        raise no_vectors()
    return array("d", floats)


def packed(vector: array[float]) -> str:
    """Return `vector` as base64 of 32-bit floats. Raises `UpstreamError` if one of its numbers is too large for that."""
    floats = array("f", vector)
    if any(number - number != 0 for number in floats):
        raise no_vectors()
    if sys.byteorder == "big":
        floats.byteswap()
    return base64.b64encode(floats.tobytes()).decode()


def verify_count(answer: EmbedAnswer, texts: int) -> None:
    """Raise `UpstreamError` unless there is a vector for each of `texts`."""
    if len(answer.vectors) != texts:
        raise UpstreamError("The provider's answer has not one vector for each text.", code="bad_upstream_answer")


def no_vectors() -> UpstreamError:
    """The error for an answer that is none."""
    return UpstreamError("The provider's answer is not a list of embeddings.", code="bad_upstream_answer")
