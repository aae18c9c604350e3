"""A legacy completion request from its bytes, and in the words of the hub: its prompt is what a user says.

What always holds: a completion is bounded by the operator's cap like any other answer (OpenAI's own default of 16 tokens is not imitated), and what the hub has
no place for is refused with its name, fields that are not known here too.
"""

from __future__ import annotations

from typing import Any, Literal, NoReturn

import msgspec

from cliproxy.bounds import MAX_CHAT_VALUES
from cliproxy.dialects import Dialect
from cliproxy.errors import SchemaError, UnsupportedFeature
from cliproxy.formats.json_bounds import decode_json
from cliproxy.translators.conversation import ConversationRequest, Message, Text
from cliproxy.translators.estimate import tokens_of_text
from cliproxy.translators.openai_completions.wire import KNOWN_FIELDS, CompletionBody
from cliproxy.translators.schema import convert, refuse_excess, verify_unknown_fields

FIELD_NAMES = {
    name: name
    for name in (
        *("model", "stream", "max_tokens", "n", "temperature", "top_p", "stop", "seed"),
        *("presence_penalty", "frequency_penalty", "logit_bias", "logprobs", "user"),
    )
} | {"messages": "prompt"}


class CompletionRequest(msgspec.Struct, frozen=True):
    """A checked legacy completion request. `max_tokens` is the most output tokens of one of its `n` choices; `include_usage` says whether the client asked for
    the usage event of a stream. `rest` is what the client sent, without the model."""

    model: str
    stream: bool
    include_usage: bool
    n: int
    max_tokens: int
    estimate: int
    rest: dict[str, Any]
    wire: CompletionBody


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


def conversation_of(request: CompletionRequest) -> ConversationRequest:
    """Return what `request` asks for. Raises `UnsupportedFeature` naming the first thing that has no place in the hub."""
    body = request.wire
    for name, value in request.rest.items():
        if name not in KNOWN_FIELDS and value is not None:
            _refuse(name)
    if body.suffix:
        _refuse("suffix")
    if body.echo:
        _refuse("echo")
    if body.best_of is not None and body.best_of > 1:
        _refuse("best_of")
    if body.logprobs is not None:
        _refuse("logprobs")
    if body.stream_options is not None and body.stream_options.include_obfuscation:
        _refuse("stream_options.include_obfuscation")
    options = request.rest.get("stream_options") or {}
    for name in options.keys() - {"include_usage", "include_obfuscation"}:
        _refuse(f"stream_options.{name}")
    return ConversationRequest(
        dialect=Dialect.OPENAI_COMPLETIONS,
        model=request.model,
        stream=request.stream,
        max_tokens=request.max_tokens,
        messages=(Message("user", (Text(_prompt(body.prompt)),)),),
        n=request.n,
        temperature=body.temperature,
        top_p=body.top_p,
        stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
        seed=body.seed,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        logit_bias=body.logit_bias,
        user=body.user or "",
    )


def _prompt(prompt: str | list[str | int | list[int]]) -> str:
    """A list of one text is that text."""
    if isinstance(prompt, str):
        return prompt
    only = prompt[0] if len(prompt) == 1 else None
    return only if isinstance(only, str) else _refuse("prompt")


def _refuse(param: str) -> NoReturn:
    raise UnsupportedFeature(f"{param} cannot be translated for the provider of this model.", param=param)
