"""The hub's messages as Anthropic's turns and content blocks.

Ids of tool calls: Anthropic takes letters, digits, `_` and `-` only. An id that has others becomes `toolu_` and 24 hexadecimal digits of its SHA-256, so that a
call and its result, in this request and in the next, get the same one.

Left out: texts of nothing but white space, which Anthropic refuses; thoughts that another vendor signed, or nobody (reported as `thinking`); the sources of
texts in the history, whose places within them the hub does not know (reported as `messages`); an image's `detail` (reported as the image's place).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Sequence
from typing import Any

import msgspec

from cliproxy.bounds import MAX_CHAT_VALUES
from cliproxy.dialects import Dialect
from cliproxy.errors import SchemaError
from cliproxy.formats.json_bounds import decode_json, encode_json
from cliproxy.translators.conversation import Audio, Document, Image, Message, Part, Reasoning, Refusal, Text, ToolCall, ToolResult
from cliproxy.translators.policy_targets import HubField, ToMessages

TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")
_CALL_ID = re.compile(r"[a-zA-Z0-9_-]+")
_IMAGE_TYPES = frozenset(("image/jpeg", "image/png", "image/gif", "image/webp"))
_CACHE = {"type": "ephemeral"}


def call_id(given: str) -> str:
    """Return `given` as Anthropic takes it."""
    if _CALL_ID.fullmatch(given):
        return given
    return "toolu_" + hashlib.sha256(given.encode("utf-8", "surrogatepass")).hexdigest()[:24]


def system_blocks(system: Sequence[Text]) -> list[dict[str, Any]]:
    return [_text(text) for text in system if text.text.strip()]


def turns(messages: Sequence[Message], losses: ToMessages) -> list[dict[str, Any]]:
    """Return `messages` as turns that alternate, with tool results first in theirs. Raises `UnsupportedFeature` if the user does not begin."""
    made: list[dict[str, Any]] = []
    for role, parts in _joined(messages):
        blocks = [block for part in parts if (block := _block(part, role, losses)) is not None]
        if role == "user" and len(blocks) > 1:
            blocks.sort(key=_comes_second)
        if not blocks:
            continue
        if made and made[-1]["role"] == role:  # what stood between said nothing
            made[-1]["content"] += blocks
        else:
            made.append({"role": role, "content": blocks})
    if not made or made[0]["role"] != "user":  # "first message must use the `user` role"
        raise losses.refusal(HubField.FIRST_TURN)
    return made


def begin_with_thoughts(messages: Sequence[Message]) -> bool:
    """Whether each of the assistant's turns that calls tools, or that the answer is to go on from, starts with thoughts that Anthropic signed."""
    joined = _joined(messages)
    for index, (role, parts) in enumerate(joined):
        if role == "assistant" and (index == len(joined) - 1 or any(isinstance(part, ToolCall) for part in parts)):
            first = next((part for part in parts if not isinstance(part, Text) or part.text.strip()), None)
            if not isinstance(first, Reasoning) or not _is_ours(first):
                return False
    return True


def called_names(messages: Sequence[Message]) -> list[str]:
    """Return the names of the tools that were called, each once."""
    return list(dict.fromkeys(part.name for message in messages for part in message.parts if isinstance(part, ToolCall)))


def _joined(messages: Sequence[Message]) -> list[tuple[str, list[Part]]]:
    joined: list[tuple[str, list[Part]]] = []
    for message in messages:
        if joined and joined[-1][0] == message.role:
            joined[-1][1].extend(message.parts)
        else:
            joined.append((message.role, list(message.parts)))
    return joined


def _comes_second(block: dict[str, Any]) -> bool:
    return bool(block["type"] != "tool_result")


def _is_ours(part: Reasoning) -> bool:
    return part.signer is Dialect.ANTHROPIC_MESSAGES and bool(part.redacted or part.signature)


def _block(part: Part, role: str, losses: ToMessages) -> dict[str, Any] | None:
    """Return `part` as a block; None for what is left out."""
    if isinstance(part, Text):
        if not part.text.strip():
            return None
        if part.citations:
            losses.lose(HubField.CITATIONS)
        return _text(part)
    if role == "user":
        if isinstance(part, ToolResult):
            return _result(part, losses)
        if isinstance(part, Image):
            return _image(part, losses)
        if isinstance(part, Document):
            return _document(part, losses)
        if isinstance(part, Audio):
            raise losses.refusal(HubField.AUDIO, part.at)
    elif isinstance(part, ToolCall):
        return _call(part, losses)
    elif isinstance(part, Reasoning):
        return _thoughts(part, losses)
    elif isinstance(part, Refusal):
        return {"type": "text", "text": part.text} if part.text.strip() else None
    elif isinstance(part, Image):
        losses.lose(HubField.ASSISTANT_IMAGE, part.at)
        return None
    raise losses.refusal(HubField.UNKNOWN_PART, getattr(part, "at", ""))


def _text(part: Text) -> dict[str, Any]:
    return _cached({"type": "text", "text": part.text}, part.cache)


def _cached(block: dict[str, Any], cache: bool) -> dict[str, Any]:
    if cache:
        block["cache_control"] = _CACHE
    return block


def _image(part: Image, losses: ToMessages) -> dict[str, Any]:
    if part.detail not in ("", "auto"):
        losses.lose(HubField.IMAGE_DETAIL, part.at)
    if part.data:
        if part.media_type not in _IMAGE_TYPES:
            raise losses.refusal(HubField.IMAGE, part.at)
        source = {"type": "base64", "media_type": part.media_type, "data": part.data}
    else:
        source = _linked(part.url, HubField.IMAGE, part.at)
    return _cached({"type": "image", "source": source}, part.cache)


def _linked(url: str, field: HubField, at: str) -> dict[str, str]:
    if not url.startswith(("https://", "http://")):
        raise ToMessages.refusal(field, at)
    return {"type": "url", "url": url}


def _document(part: Document, losses: ToMessages) -> dict[str, Any]:
    source: dict[str, str]
    if part.text:
        source = {"type": "text", "media_type": "text/plain", "data": part.text}
    elif part.data and part.media_type == "application/pdf":
        source = {"type": "base64", "media_type": "application/pdf", "data": part.data}
    elif part.data and part.media_type == "text/plain":
        source = {"type": "text", "media_type": "text/plain", "data": _plain(part)}
    elif part.url and part.media_type in ("", "application/pdf"):
        source = _linked(part.url, HubField.DOCUMENT, part.at)
    else:
        raise losses.refusal(HubField.DOCUMENT, part.at)
    made: dict[str, Any] = {"type": "document", "source": source}
    if part.title:
        made["title"] = part.title
    if part.citations:
        made["citations"] = {"enabled": True}
    return _cached(made, part.cache)


def _plain(part: Document) -> str:
    try:
        text = base64.b64decode(part.data, validate=True).decode()
    except (binascii.Error, UnicodeError, ValueError):
        raise ToMessages.refusal(HubField.DOCUMENT, part.at) from None
    if not text.strip():
        raise ToMessages.refusal(HubField.DOCUMENT, part.at)
    return text


def _call(part: ToolCall, losses: ToMessages) -> dict[str, Any]:
    """Arguments of a client's history may be anything that a model wrote. Here they are an object: it is checked, and encoded anew."""
    if not TOOL_NAME.fullmatch(part.name):
        raise losses.refusal(HubField.CALL_NAME, part.at)
    try:
        given = decode_json((part.arguments or "{}").encode(), max_values=MAX_CHAT_VALUES)
        written = encode_json(given)
    except (SchemaError, UnicodeError):
        raise losses.refusal(HubField.ARGUMENTS, part.at) from None
    if not isinstance(given, dict):
        raise losses.refusal(HubField.ARGUMENTS, part.at)
    return {"type": "tool_use", "id": call_id(part.id), "name": part.name, "input": msgspec.Raw(written)}


def _thoughts(part: Reasoning, losses: ToMessages) -> dict[str, Any] | None:
    if not _is_ours(part):
        losses.lose(HubField.THOUGHTS)
        return None
    if part.redacted:
        return {"type": "redacted_thinking", "data": part.redacted}
    return {"type": "thinking", "thinking": part.text, "signature": part.signature}


def _result(part: ToolResult, losses: ToMessages) -> dict[str, Any]:
    made: dict[str, Any] = {"type": "tool_result", "tool_use_id": call_id(part.call_id)}
    content = [block for inner in part.content if (block := _block(inner, "user", losses)) is not None]
    if content:
        made["content"] = content
    if part.is_error:
        made["is_error"] = True
    return _cached(made, part.cache)
