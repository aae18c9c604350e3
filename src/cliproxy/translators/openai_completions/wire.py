"""The body of a legacy completion request as OpenAI documents it (API reference, "Completions").

Types and ranges are the vendor's. What can only be said in the older protocol (prompts of tokens, several prompts, `suffix`, `echo`, `best_of`, `logprobs`) is
known here by its type, and refused by `conversation_of`.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from cliproxy.bounds import MAX_CHOICES, MAX_LOGIT_BIASES, MAX_STOP_SEQUENCES
from cliproxy.translators.openai_chat.wire import Identifier, ModelName, Penalty, Positive, StreamOptions

Tokens = list[int]


class CompletionBody(msgspec.Struct, frozen=True, gc=False):
    """The whole body."""

    model: ModelName
    prompt: str | list[str | int | Tokens]
    max_tokens: Positive | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: str | Annotated[list[str], Meta(max_length=MAX_STOP_SEQUENCES)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[dict[str, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=MAX_LOGIT_BIASES)] | None = None
    user: Identifier | None = None
    suffix: str | None = None
    echo: bool | None = None
    best_of: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None


KNOWN_FIELDS = frozenset(CompletionBody.__struct_fields__)
