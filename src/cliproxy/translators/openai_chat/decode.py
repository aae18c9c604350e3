"""A chat completion request from its bytes: checked, capped, and what leaves decided.

What always holds: what leaves is our own encoding of the value that was checked (duplicate names are gone, the last one counts); it always carries a cap on
output tokens that is no higher than the operator's; a stream always asks for usage. How, and why the decoded value is kept as it is: ADR 0050.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from cliproxy.bounds import MAX_CHAT_VALUES
from cliproxy.errors import SchemaError
from cliproxy.formats.json_bounds import decode_json
from cliproxy.metering.names import verify_spelling
from cliproxy.translators.estimate import AUDIO_CHARS_PER_TOKEN, FILE_CHARS_PER_TOKEN, IMAGE_TOKENS, tokens_of_text
from cliproxy.translators.openai_chat.request import ChatRequest
from cliproxy.translators.openai_chat.wire import KNOWN_FIELDS, AssistantMessage, AudioPart, ChatBody, FilePart, ImagePart, Message
from cliproxy.translators.schema import refuse, refuse_excess, refuse_state, verify_unknown_fields


def decode_chat(body: bytes, *, max_tokens_cap: int, on_excess: Literal["reject", "clamp"], allow_provider_state: bool = False) -> ChatRequest:
    """Return the request in `body`. `max_tokens_cap` is the most output tokens of a choice; a request for more is refused or lowered as `on_excess` says.

    Without `allow_provider_state` a request that names something stored at the provider is refused, and none asks it to store (ADR 0096).
    Raises `SchemaError` with the path of the field; its message never quotes the client.
    """
    document = decode_json(body, max_values=MAX_CHAT_VALUES)
    try:
        wire = _convert(document, ChatBody)
    except msgspec.ValidationError as error:
        refuse(error)
    if not KNOWN_FIELDS.issuperset(document):
        verify_unknown_fields(document, KNOWN_FIELDS)
    if not allow_provider_state:
        _verify_stateless(wire.messages)
        if wire.store:
            document["store"] = False
    max_tokens = _cap(document, wire, max_tokens_cap, on_excess)
    stream = wire.stream is True
    include_usage = _ask_for_usage(document, wire) if stream else False
    if not stream and wire.stream_options is not None:
        raise SchemaError("stream_options is only for streams.", param="stream_options", code="invalid_value")
    del document["model"]
    return ChatRequest(
        model=wire.model,
        stream=stream,
        include_usage=include_usage,
        n=wire.n or 1,
        max_tokens=max_tokens,
        estimate=_estimate(len(body), wire.messages),
        rest=document,
        wire=wire,
    )


_convert = msgspec.convert


def _verify_stateless(messages: list[Message]) -> None:
    """Raise `SchemaError` for a message that names a file, or an answer in sound, which the provider keeps."""
    for index, message in enumerate(messages):
        content = message.content
        if isinstance(content, list):
            for at, part in enumerate(content):
                if isinstance(part, FilePart) and part.file.file_id is not None:
                    refuse_state(f"messages[{index}].content[{at}].file.file_id")
        if isinstance(message, AssistantMessage) and message.audio is not None:
            refuse_state(f"messages[{index}].audio")


def _cap(document: dict[str, Any], wire: ChatBody, cap: int, on_excess: str) -> int:
    """See to it that what leaves has a cap on output tokens, and return it. A request with both fields is held to the lower in both: which of them is read
    hangs on the target, and what leaves must be what was reserved."""
    lowest = 0
    for name, asked in (("max_completion_tokens", wire.max_completion_tokens), ("max_tokens", wire.max_tokens)):
        if asked is None:
            continue
        if asked > cap:
            if on_excess != "clamp":
                refuse_excess(name, cap)
            document[name] = asked = cap
        if lowest and lowest != asked:
            document["max_completion_tokens"] = document["max_tokens"] = asked = min(lowest, asked)
        lowest = asked
    if not lowest:
        document.pop("max_completion_tokens", None)  # an explicit null
        document["max_tokens"] = lowest = cap  # absent means no limit at the provider
    return lowest


_COUNTED_OPTIONS = frozenset(("include_usage",))


def _ask_for_usage(document: dict[str, Any], wire: ChatBody) -> bool:
    """Make what leaves ask for the usage event, and return whether the client did."""
    if wire.stream_options is None:
        document["stream_options"] = {"include_usage": True}
        return False
    options = document["stream_options"]
    verify_spelling(options.keys() - _COUNTED_OPTIONS, _COUNTED_OPTIONS)
    options["include_usage"] = True
    return wire.stream_options.include_usage is True


def _estimate(length: int, messages: list[Message]) -> int:
    """Return the guess at the prompt's tokens; `length` is the body's, in bytes."""
    tokens = 0
    for message in messages:
        content = message.content
        if isinstance(content, list):
            for part in content:
                if isinstance(part, ImagePart):
                    length -= len(part.image_url.url)
                    tokens += IMAGE_TOKENS
                elif isinstance(part, AudioPart):
                    length -= len(part.input_audio.data)
                    tokens += len(part.input_audio.data) // AUDIO_CHARS_PER_TOKEN
                elif isinstance(part, FilePart) and part.file.file_data is not None:
                    length -= len(part.file.file_data)
                    tokens += len(part.file.file_data) // FILE_CHARS_PER_TOKEN
    return tokens + tokens_of_text(max(length, 0))
