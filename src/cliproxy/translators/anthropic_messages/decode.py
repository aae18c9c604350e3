"""A Messages request from its bytes: checked, capped, and what leaves decided.

What always holds: what leaves is our own encoding of the value that was checked (ADR 0050); it always carries a cap on output tokens that is no higher than
the operator's. `conversation_of` gives the same request in the hub's words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from cliproxy.bounds import MAX_CHAT_VALUES
from cliproxy.errors import SchemaError
from cliproxy.formats.json_bounds import decode_json
from cliproxy.metering.names import REFUSED_FIELDS
from cliproxy.translators.anthropic_messages.request import MessagesRequest
from cliproxy.translators.anthropic_messages.signatures import TAG
from cliproxy.translators.anthropic_messages.wire import (
    FORBIDDEN_FIELDS,
    KNOWN_FIELDS,
    Base64Source,
    ContainerUploadBlock,
    ContentSource,
    CountBody,
    DocumentBlock,
    FileSource,
    ImageBlock,
    Message,
    MessagesBody,
    TextBlock,
    ToolResultBlock,
)
from cliproxy.translators.estimate import FILE_CHARS_PER_TOKEN, IMAGE_TOKENS, tokens_of_text
from cliproxy.translators.schema import refuse, refuse_excess, refuse_other_model, refuse_state, verify_unknown_fields

MIN_BUDGET_TOKENS = 1024  # Anthropic: of `thinking.budget_tokens`, which must also be below `max_tokens`
_TAG = TAG.encode()
_convert = msgspec.convert


def decode_messages(body: bytes, *, max_tokens_cap: int, on_excess: Literal["reject", "clamp"], allow_provider_state: bool = False) -> MessagesRequest:
    """Return the request in `body`. `max_tokens_cap` is the most output tokens; a request for more is refused or lowered as `on_excess` says.

    Without `allow_provider_state` a request that names something stored at the provider is refused (ADR 0096).
    Raises `SchemaError` with the path of the field; its message never quotes the client.
    """
    document = decode_json(body, max_values=MAX_CHAT_VALUES)
    try:
        wire = _convert(document, MessagesBody)
    except msgspec.ValidationError as error:
        refuse(error)
    checked(document, wire, KNOWN_FIELDS)
    if not allow_provider_state:
        verify_stateless(wire.messages)
    if _TAG in body or b"\\u" in body:  # escaped, a tag is none of these bytes
        without_foreign_thoughts(document)
    max_tokens = wire.max_tokens
    if max_tokens > max_tokens_cap:
        if on_excess != "clamp":
            refuse_excess("max_tokens", max_tokens_cap)
        _clamp(document, wire, max_tokens_cap)
        max_tokens = max_tokens_cap
    del document["model"]
    return MessagesRequest(wire.model, wire.stream is True, 1, max_tokens, estimate_of(len(body), wire.messages), document, wire)


def without_foreign_thoughts(document: dict[str, Any]) -> None:
    """Take thoughts that another vendor signed, or nobody, out of what leaves for this one: it would refuse the request. The hub keeps them (`to_hub`)."""
    for message in document["messages"]:
        content = message["content"]
        if message["role"] == "assistant" and isinstance(content, list):
            message["content"] = [block for block in content if not _is_tagged(block)]
    document["messages"] = [message for message in document["messages"] if message["content"] != [] or message["role"] != "assistant"]


def _is_tagged(block: dict[str, Any]) -> bool:
    if block["type"] == "thinking":
        return bool(block["signature"].startswith(TAG))
    return block["type"] == "redacted_thinking" and bool(block["data"].startswith(TAG))


def checked(document: dict[str, Any], wire: CountBody, known: frozenset[str]) -> None:
    """Raise `SchemaError` for what the types do not tell: unknown fields that may not pass, and tools that are neither the client's nor the vendor's."""
    if not known.issuperset(document):
        for name in document.keys() - known:
            plain = name.casefold().replace("-", "_")
            if plain in FORBIDDEN_FIELDS:
                raise SchemaError("This gateway's configuration decides about routing and credentials; a request may not.", param=plain, code="forbidden_field")
        verify_unknown_fields(document, known)
    if wire.tools:
        for index, tool in enumerate(wire.tools):
            if tool.is_custom:
                if tool.name is None or tool.input_schema is None:
                    missing = f"tools[{index}].{'name' if tool.name is None else 'input_schema'}"
                    raise SchemaError(f"The field {missing} is missing.", param=missing, code="missing_field")
            else:
                _verify_vendors_tool(document["tools"][index], index)


def verify_stateless(messages: Sequence[Message]) -> None:
    """Raise `SchemaError` for a block that names a file which the provider keeps."""
    for index, message in enumerate(messages):
        if not isinstance(message.content, str):
            for at, block in enumerate(message.content):
                if type(block) is not TextBlock and _names_file(block):
                    refuse_state(f"messages[{index}].content[{at}]")


def _names_file(block: Any) -> bool:
    if isinstance(block, ImageBlock | DocumentBlock):
        source = block.source
        if isinstance(source, ContentSource):
            return not isinstance(source.content, str) and any(map(_names_file, source.content))
        return isinstance(source, FileSource)
    if isinstance(block, ToolResultBlock):
        return isinstance(block.content, list) and any(map(_names_file, block.content))
    return isinstance(block, ContainerUploadBlock)


def _verify_vendors_tool(tool: dict[str, Any], index: int) -> None:
    """Raise `SchemaError` if a tool that the vendor runs would bring a server, a credential or a model along."""
    if tool["type"].startswith("mcp"):  # `mcp_toolset` goes with `mcp_servers`
        raise SchemaError("This gateway does not let a request connect tool servers.", param=f"tools[{index}].type", code="forbidden_field")
    for name in tool:
        plain = name.casefold().replace("-", "_")
        if plain == "model":  # an adviser's
            refuse_other_model(f"tools[{index}].model")
        if plain in REFUSED_FIELDS:
            raise SchemaError("A tool may not bring its own routing or credentials.", param=f"tools[{index}]", code="forbidden_field")


def _clamp(document: dict[str, Any], wire: MessagesBody, cap: int) -> None:
    """Lower `max_tokens` to `cap`, and the budget for thoughts below that, as the vendor wants it."""
    document["max_tokens"] = cap
    thinking = wire.thinking
    if thinking is not None and thinking.budget_tokens is not None and thinking.budget_tokens >= cap:
        if cap <= MIN_BUDGET_TOKENS:
            raise SchemaError(f"Thinking needs more than this gateway's limit of {cap} tokens.", param="thinking.budget_tokens", code="max_tokens_exceeded")
        document["thinking"]["budget_tokens"] = cap - 1


def estimate_of(length: int, messages: Sequence[Message]) -> int:
    """Return the guess at the prompt's tokens; `length` is the body's, in bytes."""
    tokens = 0
    for message in messages:
        if isinstance(message.content, list):
            for block in message.content:
                if isinstance(block, ToolResultBlock):
                    if isinstance(block.content, list):
                        for inner in block.content:
                            if isinstance(inner, ImageBlock | DocumentBlock):
                                in_bytes, in_tokens = _size_of(inner)
                                length, tokens = length - in_bytes, tokens + in_tokens
                elif isinstance(block, ImageBlock | DocumentBlock):
                    in_bytes, in_tokens = _size_of(block)
                    length, tokens = length - in_bytes, tokens + in_tokens
    return tokens + tokens_of_text(max(length, 0))


def _size_of(block: ImageBlock | DocumentBlock) -> tuple[int, int]:
    """Return the characters that are no text to the model, and the tokens that they stand for."""
    source = block.source
    data = len(source.data) if isinstance(source, Base64Source) else 0
    return data, IMAGE_TOKENS if isinstance(block, ImageBlock) else data // FILE_CHARS_PER_TOKEN
