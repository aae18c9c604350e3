"""The bodies of `embedContent` and `batchEmbedContents` as Google documents them. Spelling is what `gemini_generate.spelling` makes of it; `null` stands for an
absent field."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from cliproxy.bounds import MAX_EMBEDDING_DIMENSIONS, MAX_EMBEDDING_INPUTS
from cliproxy.translators.gemini_generate.wire import Identifier, Instruction, Keyword


class EmbedBody(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """What one vector is made of. The model is the path's; a body may repeat it."""

    content: Instruction
    task_type: Keyword | None = None
    title: str | None = None
    output_dimensionality: Annotated[int, Meta(ge=1, le=MAX_EMBEDDING_DIMENSIONS)] | None = None
    model: Identifier | None = None


class BatchBody(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    requests: Annotated[list[EmbedBody], Meta(min_length=1, max_length=MAX_EMBEDDING_INPUTS)]
    model: Identifier | None = None
