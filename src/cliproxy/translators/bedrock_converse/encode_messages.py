"""The hub's messages as Converse's turns and content blocks.

Ids of tool calls: Bedrock takes 64 letters, digits, `_`, `.`, `:` and `-`. An id that is no such becomes `tooluse_` and 24 hexadecimal digits of its SHA-256,
so that a call and its result, in this request and in the next, get the same one. A document's name may hold letters, digits, single spaces, hyphens,
parentheses and brackets, and no two documents of a request have the same: titles are written so.

Left out: texts of nothing but white space, which Bedrock refuses; thoughts that it did not sign (reported as `thinking`); the sources of texts in the history
(reported as `messages`); an image's `detail` and what a document's name cannot hold of its title (reported as the part's place).
"""

from __future__ import annotations

import base64
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
from cliproxy.translators.policy_targets import HubField, ToConverse

TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
MAX_DOCUMENT_NAME_CHARS = 200
_CALL_ID = re.compile(r"[a-zA-Z0-9_.:-]{1,64}")
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9 ()\[\]-]+")
CACHE_POINT = {"cachePoint": {"type": "default"}}
_IMAGE_FORMATS = {"image/png": "png", "image/jpeg": "jpeg", "image/gif": "gif", "image/webp": "webp"}
_DOCUMENT_FORMATS = {
    "application/pdf": "pdf",
    "text/csv": "csv",
    "application/msword": "doc",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": "docx",
    "application/vnd.ms-excel": "xls",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": "xlsx",
    "text/html": "html",
    "text/plain": "txt",
    "text/markdown": "md",
}
_AUDIO_FORMATS = {
    "audio/mpeg": "mp3",
    "audio/mp3": "mp3",
    "audio/wav": "wav",
    "audio/x-wav": "wav",
    "audio/flac": "flac",
    "audio/ogg": "ogg",
    "audio/opus": "opus",
    "audio/aac": "aac",
    "audio/mp4": "mp4",
    "audio/webm": "webm",
}


def call_id(given: str) -> str:
    """Return `given` as Bedrock takes it."""
    if _CALL_ID.fullmatch(given):
        return given
    return "tooluse_" + hashlib.sha256(given.encode("utf-8", "surrogatepass")).hexdigest()[:24]


def system_blocks(system: Sequence[Text]) -> list[dict[str, Any]]:
    return [block for text in system if text.text.strip() for block in _cached({"text": text.text}, text.cache)]


def called_names(messages: Sequence[Message]) -> list[str]:
    """Return the names of the tools that were called, each once."""
    return list(dict.fromkeys(part.name for message in messages for part in message.parts if isinstance(part, ToolCall)))


def begin_with_thoughts(messages: Sequence[Message]) -> bool:
    """Whether each of the assistant's turns that calls tools, or that the answer is to go on from, starts with thoughts that Bedrock's model signed."""
    joined = _joined(messages)
    for index, (role, parts) in enumerate(joined):
        if role == "assistant" and (index == len(joined) - 1 or any(isinstance(part, ToolCall) for part in parts)):
            first = next((part for part in parts if not isinstance(part, Text) or part.text.strip()), None)
            if not isinstance(first, Reasoning) or not _is_ours(first):
                return False
    return True


class Turns:
    """Writes the turns of one request."""

    def __init__(self, losses: ToConverse) -> None:
        self._losses = losses
        self._names: set[str] = set()

    def write(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """Return `messages` as turns that alternate, with tool results first in theirs. Raises `UnsupportedFeature` if the user does not begin, and for a turn
        that is nothing but documents, which Bedrock does not take."""
        made: list[dict[str, Any]] = []
        for role, parts in _joined(messages):
            if role == "user":
                parts = sorted(parts, key=lambda part: not isinstance(part, ToolResult))
            blocks = [block for part in parts for block in self._blocks(part, role)]
            if not blocks:
                continue
            if made and made[-1]["role"] == role:  # what stood between said nothing
                made[-1]["content"] += blocks
            else:
                made.append({"role": role, "content": blocks})
        if not made or made[0]["role"] != "user":  # "A conversation must start with a user message"
            raise self._losses.refusal(HubField.FIRST_TURN)
        for turn in made:
            if any("document" in block for block in turn["content"]) and not any("text" in block for block in turn["content"]):
                raise self._losses.refusal(HubField.DOCUMENTS_ALONE)
        return made

    def _blocks(self, part: Part, role: str) -> list[dict[str, Any]]:
        """Return `part` as a block, with a cache point behind it where it has one; empty for what is left out."""
        if isinstance(part, Text):
            if not part.text.strip():
                return []
            if part.citations:
                self._losses.lose(HubField.CITATIONS)
            return _cached({"text": part.text}, part.cache)
        if role == "user":
            if isinstance(part, ToolResult):
                return _cached(self._result(part), part.cache)
            if isinstance(part, Image):
                return _cached(self._image(part), part.cache)
            if isinstance(part, Document):
                return _cached(self._document(part), part.cache)
            if isinstance(part, Audio):
                return [_audio(part)]
        elif isinstance(part, ToolCall):
            return [_call(part)]
        elif isinstance(part, Reasoning):
            return self._thoughts(part)
        elif isinstance(part, Refusal):
            return [{"text": part.text}] if part.text.strip() else []
        elif isinstance(part, Image):
            self._losses.lose(HubField.ASSISTANT_IMAGE, part.at)
            return []
        raise self._losses.refusal(HubField.UNKNOWN_PART, getattr(part, "at", ""))

    def _image(self, part: Image) -> dict[str, Any]:
        if part.detail not in ("", "auto"):
            self._losses.lose(HubField.IMAGE_DETAIL, part.at)
        if not part.data or part.media_type not in _IMAGE_FORMATS:  # a URL would have to be one of S3, in the operator's account
            raise self._losses.refusal(HubField.IMAGE, part.at)
        return {"image": {"format": _IMAGE_FORMATS[part.media_type], "source": {"bytes": part.data}}}

    def _document(self, part: Document) -> dict[str, Any]:
        if part.text:
            kind, data = "txt", base64.b64encode(part.text.encode("utf-8", "surrogatepass")).decode("ascii")
        elif part.data and part.media_type in _DOCUMENT_FORMATS:
            kind, data = _DOCUMENT_FORMATS[part.media_type], part.data
        else:
            raise self._losses.refusal(HubField.DOCUMENT, part.at)
        name = self._name(part.title)
        if part.title and name != part.title:
            self._losses.lose(HubField.DOCUMENT_TITLE, part.at)
        made: dict[str, Any] = {"format": kind, "name": name, "source": {"bytes": data}}
        if part.citations:
            made["citations"] = {"enabled": True}
        return {"document": made}

    def _name(self, title: str) -> str:
        """Return a document's name that no other has."""
        base = " ".join(_NOT_IN_NAMES.sub(" ", title[: 2 * MAX_DOCUMENT_NAME_CHARS]).split())[: MAX_DOCUMENT_NAME_CHARS - 10].strip() or "document"
        name, number = base, len(self._names) + 1
        if name in self._names:
            name = f"{base} [{number}]"
        while name in self._names:
            number += 1
            name = f"{base} [{number}]"
        self._names.add(name)
        return name

    def _thoughts(self, part: Reasoning) -> list[dict[str, Any]]:
        if not _is_ours(part):
            self._losses.lose(HubField.THOUGHTS)
            return []
        if part.redacted:
            return [{"reasoningContent": {"redactedContent": part.redacted}}]
        return [{"reasoningContent": {"reasoningText": {"text": part.text, "signature": part.signature}}}]

    def _result(self, part: ToolResult) -> dict[str, Any]:
        content = [block for inner in part.content for block in self._blocks(inner, "user") if block is not CACHE_POINT]
        made: dict[str, Any] = {"toolUseId": call_id(part.call_id), "content": content}
        if part.is_error:
            made["status"] = "error"
        return {"toolResult": made}


def _joined(messages: Sequence[Message]) -> list[tuple[str, list[Part]]]:
    joined: list[tuple[str, list[Part]]] = []
    for message in messages:
        if joined and joined[-1][0] == message.role:
            joined[-1][1].extend(message.parts)
        else:
            joined.append((message.role, list(message.parts)))
    return joined


def _is_ours(part: Reasoning) -> bool:
    return part.signer is Dialect.BEDROCK_CONVERSE and bool(part.redacted or part.signature)


def _cached(block: dict[str, Any], cache: bool) -> list[dict[str, Any]]:
    return [block, CACHE_POINT] if cache else [block]


def _audio(part: Audio) -> dict[str, Any]:
    if part.media_type not in _AUDIO_FORMATS:
        raise ToConverse.refusal(HubField.AUDIO, part.at)
    return {"audio": {"format": _AUDIO_FORMATS[part.media_type], "source": {"bytes": part.data}}}


def _call(part: ToolCall) -> dict[str, Any]:
    """Arguments of a client's history may be anything that a model wrote. Here they are an object: it is checked, and encoded anew."""
    if not TOOL_NAME.fullmatch(part.name):
        raise ToConverse.refusal(HubField.CALL_NAME, part.at)
    try:
        given = decode_json((part.arguments or "{}").encode(), max_values=MAX_CHAT_VALUES)
        written = encode_json(given)
    except (SchemaError, UnicodeError):
        raise ToConverse.refusal(HubField.ARGUMENTS, part.at) from None
    if not isinstance(given, dict):
        raise ToConverse.refusal(HubField.ARGUMENTS, part.at)
    return {"toolUse": {"toolUseId": call_id(part.id), "name": part.name, "input": msgspec.Raw(written)}}
