"""The body of an embeddings request as OpenAI documents it. `null` stands for an absent field."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from cliproxy.bounds import MAX_EMBEDDING_DIMENSIONS, MAX_IDENTIFIER_CHARS, MAX_KEYWORD_CHARS, MAX_MODEL_NAME_CHARS

Token = Annotated[int, Meta(ge=0, le=2**31 - 1)]


class EmbeddingsBody(msgspec.Struct, frozen=True, gc=False):
    """`input` is a text, a list of texts, a list of tokens or a list of such lists; that a list is of one kind is `decode`'s to check."""

    model: Annotated[str, Meta(min_length=1, max_length=MAX_MODEL_NAME_CHARS)]
    input: str | Annotated[list[str | Token | Annotated[list[Token], Meta(min_length=1)]], Meta(min_length=1)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=MAX_EMBEDDING_DIMENSIONS)] | None = None
    user: Annotated[str, Meta(max_length=MAX_IDENTIFIER_CHARS)] | None = None
    input_type: Annotated[str, Meta(max_length=MAX_KEYWORD_CHARS)] | None = None


KNOWN_FIELDS = frozenset(EmbeddingsBody.__struct_fields__)
