"""A legacy completion request from its bytes: checked and capped.

What always holds: a completion is bounded by the operator's cap like any other answer (OpenAI's own default of 16 tokens is not imitated).
"""

from __future__ import annotations

from typing import Literal

from cliproxy.bounds import MAX_CHAT_VALUES
from cliproxy.errors import SchemaError
from cliproxy.formats.json_bounds import decode_json
from cliproxy.translators.estimate import tokens_of_text
from cliproxy.translators.openai_completions.request import CompletionRequest
from cliproxy.translators.openai_completions.wire import KNOWN_FIELDS, CompletionBody
from cliproxy.translators.schema import convert, refuse_excess, verify_unknown_fields


def decode_completion(body: bytes, *, max_tokens_cap: int, on_excess: Literal["reject", "clamp"]) -> CompletionRequest:
    """Return the request in `body`. `max_tokens_cap` is the most output tokens of a choice; a request for more is refused or lowered as `on_excess` says.

    Raises `SchemaError` with the path of the field; its message never quotes the client.
    """
    document = decode_json(body, max_values=MAX_CHAT_VALUES)
    wire = convert(document, CompletionBody)
    verify_unknown_fields(document, KNOWN_FIELDS)
    max_tokens = wire.max_tokens or max_tokens_cap
    if max_tokens > max_tokens_cap:
        if on_excess != "clamp":
            refuse_excess("max_tokens", max_tokens_cap)
        max_tokens = max_tokens_cap
    stream = wire.stream is True
    if not stream and wire.stream_options is not None:
        raise SchemaError("stream_options is only for streams.", param="stream_options", code="invalid_value")
    del document["model"]
    return CompletionRequest(
        model=wire.model,
        stream=stream,
        include_usage=wire.stream_options is not None and wire.stream_options.include_usage is True,
        n=wire.n or 1,
        max_tokens=max_tokens,
        estimate=tokens_of_text(len(body)),
        rest=document,
        wire=wire,
    )
