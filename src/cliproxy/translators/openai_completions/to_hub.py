"""A checked legacy completion request in the words of the hub: its prompt is what a user says.

What always holds: what the hub has no place for is refused with its name, fields that are not known here too.
"""

from __future__ import annotations

from cliproxy.dialects import Dialect
from cliproxy.translators.conversation import ConversationRequest, Message, Text
from cliproxy.translators.openai_completions.request import CompletionRequest
from cliproxy.translators.openai_completions.wire import KNOWN_FIELDS
from cliproxy.translators.policy_clients import CompletionField, FromCompletions

FIELD_NAMES = {
    name: name
    for name in (
        *("model", "stream", "max_tokens", "n", "temperature", "top_p", "stop", "seed"),
        *("presence_penalty", "frequency_penalty", "logit_bias", "logprobs", "user"),
    )
} | {"messages": "prompt"}


def conversation_of(request: CompletionRequest) -> ConversationRequest:
    """Return what `request` asks for. Raises `UnsupportedFeature` naming the first thing that has no place in the hub."""
    body = request.wire
    losses = FromCompletions()
    for name, value in request.rest.items():
        if name not in KNOWN_FIELDS and value is not None:
            losses.lose(CompletionField.UNKNOWN, name)
    if body.suffix:
        losses.lose(CompletionField.SUFFIX)
    if body.echo:
        losses.lose(CompletionField.ECHO)
    if body.best_of is not None and body.best_of > 1:
        losses.lose(CompletionField.BEST_OF)
    if body.logprobs is not None:
        losses.lose(CompletionField.LOGPROBS)
    if body.stream_options is not None and body.stream_options.include_obfuscation:
        losses.lose(CompletionField.OBFUSCATION)
    options = request.rest.get("stream_options") or {}
    for name in options.keys() - {"include_usage", "include_obfuscation"}:
        losses.lose(CompletionField.UNKNOWN, f"stream_options.{name}")
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
        left_out=losses,
    )


def _prompt(prompt: str | list[str | int | list[int]]) -> str:
    """A list of one text is that text."""
    if isinstance(prompt, str):
        return prompt
    only = prompt[0] if len(prompt) == 1 else None
    if not isinstance(only, str):
        raise FromCompletions.refusal(CompletionField.PROMPT)
    return only
