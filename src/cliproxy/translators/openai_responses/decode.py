"""A Responses request from its bytes: checked, capped, and what leaves decided.

What always holds: what leaves is our own encoding of the value that was checked (ADR 0050); it always carries `max_output_tokens`, no higher than the
operator's; and it names and stores nothing at the provider unless the operator allows it (`provider_state`).
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from cliproxy.bounds import MAX_CHAT_VALUES
from cliproxy.errors import SchemaError
from cliproxy.formats.json_bounds import decode_json
from cliproxy.metering.names import plain_name
from cliproxy.translators.estimate import AUDIO_CHARS_PER_TOKEN, FILE_CHARS_PER_TOKEN, IMAGE_TOKENS, tokens_of_text
from cliproxy.translators.openai_responses.provider_state import HOW_TO, forget, leave_out_thoughts, state_field, verify_credentials
from cliproxy.translators.openai_responses.request import ResponsesRequest
from cliproxy.translators.openai_responses.wire import (
    KNOWN_FIELDS,
    CustomCallOutputItem,
    FunctionCallOutputItem,
    ImageGenerationCallItem,
    InputAudio,
    InputFile,
    InputImage,
    MessageItem,
    ResponsesBody,
)
from cliproxy.translators.policy_targets import HubField, ToResponses
from cliproxy.translators.schema import refuse, refuse_excess, refuse_state, verify_unknown_fields

# Chat's names, which imitators of both dialects may take for this one's: a second cap, several choices.
_CHAT_FIELDS = frozenset({"max_tokens", "max_completion_tokens", "n", "messages"})


def decode_responses(body: bytes, *, max_tokens_cap: int, on_excess: Literal["reject", "clamp"], allow_provider_state: bool) -> ResponsesRequest:
    """Return the request in `body`. `max_tokens_cap` is the most output tokens; a request for more is refused or lowered as `on_excess` says.

    Without `allow_provider_state` a request that names something stored at the provider is refused, and what leaves says `store: false`.
    Raises `SchemaError` with the path of the field; its message never quotes the client.
    """
    document = decode_json(body, max_values=MAX_CHAT_VALUES)
    try:
        wire = _convert(_with_types(document), ResponsesBody)
    except msgspec.ValidationError as error:
        refuse(error)
    if not KNOWN_FIELDS.issuperset(document):
        _verify_fields(document)
    verify_credentials(wire)
    state = state_field(wire)
    if state and not allow_provider_state:
        refuse_state(state, how_to=HOW_TO)
    if wire.input is None and not state:
        raise SchemaError("The field input is missing.", param="input", code="missing_field")
    max_tokens = _cap(document, wire, max_tokens_cap, on_excess)
    stream = wire.stream is True
    if not stream and wire.stream_options is not None:
        raise SchemaError("stream_options is only for streams.", param="stream_options", code="invalid_value")
    losses = ToResponses()
    if leave_out_thoughts(document, wire, lookups=False) if allow_provider_state else forget(document, wire):
        losses.lose(HubField.THOUGHTS)
    del document["model"]
    return ResponsesRequest(
        model=wire.model,
        stream=stream,
        n=1,
        max_tokens=max_tokens,
        estimate=_estimate(len(body), wire),
        rest=document,
        wire=wire,
        state=state,
        dropped=tuple(losses),
    )


_convert = msgspec.convert


def _with_types(document: Any) -> Any:
    """Return `document` with the `type` of those items that may go without: messages and references."""
    items = document.get("input") if isinstance(document, dict) else None
    if not isinstance(items, list):
        return document
    typed = [item if isinstance(item, dict) and item.get("type") is not None else _with_type(item) for item in items]
    return {**document, "input": typed}


def _with_type(item: Any) -> Any:
    if not isinstance(item, dict):
        return item
    return {**item, "type": "message" if "role" in item else "item_reference"}


def _verify_fields(document: dict[str, Any]) -> None:
    for name in document.keys() - KNOWN_FIELDS:
        if plain_name(name) in _CHAT_FIELDS:
            raise SchemaError("This is a field of chat completions: the Responses API has input and max_output_tokens.", param=name, code="forbidden_field")
    verify_unknown_fields(document, KNOWN_FIELDS)


def _cap(document: dict[str, Any], wire: ResponsesBody, cap: int, on_excess: str) -> int:
    """See to it that what leaves has a cap on output tokens, and return it."""
    asked = wire.max_output_tokens
    if asked is not None and asked <= cap:
        return asked
    if asked is not None and on_excess != "clamp":
        refuse_excess("max_output_tokens", cap)
    document["max_output_tokens"] = cap
    return cap


def _estimate(length: int, wire: ResponsesBody) -> int:
    """Return the guess at the prompt's tokens; `length` is the body's, in bytes."""
    tokens = 0
    for item in wire.input if isinstance(wire.input, list) else ():
        if isinstance(item, MessageItem):
            content: Any = item.content
            if type(content) is str:
                continue
        elif isinstance(item, FunctionCallOutputItem | CustomCallOutputItem):
            content = item.output
        elif isinstance(item, ImageGenerationCallItem):
            length -= len(item.result or "")
            tokens += IMAGE_TOKENS
            continue
        else:
            continue
        for part in content if isinstance(content, list) else ():
            if isinstance(part, InputImage):
                length -= len(part.image_url or "")
                tokens += IMAGE_TOKENS
            elif isinstance(part, InputAudio):
                length -= len(part.input_audio.data)
                tokens += len(part.input_audio.data) // AUDIO_CHARS_PER_TOKEN
            elif isinstance(part, InputFile) and part.file_data is not None:
                length -= len(part.file_data)
                tokens += len(part.file_data) // FILE_CHARS_PER_TOKEN
    return tokens + tokens_of_text(max(length, 0))
