"""A `generateContent` request from its bytes: checked, capped, and what leaves decided. How it becomes the hub's is said in `to_hub`.

What always holds: what leaves is our own encoding of the value that was checked, in one spelling (`spelling`); it always carries
`generationConfig.maxOutputTokens`, no higher than the operator's cap; nothing in it names or chooses a model, which the path does (ADR 0094).
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar

import msgspec

from cliproxy.bounds import MAX_CHAT_VALUES, MAX_MODEL_NAME_CHARS
from cliproxy.errors import SchemaError
from cliproxy.formats.json_bounds import decode_json
from cliproxy.translators.estimate import AUDIO_CHARS_PER_TOKEN, FILE_CHARS_PER_TOKEN, IMAGE_TOKENS, tokens_of_text
from cliproxy.translators.gemini_generate.provider_state import verify_stateless
from cliproxy.translators.gemini_generate.request import GeminiRequest
from cliproxy.translators.gemini_generate.signatures import TAG
from cliproxy.translators.gemini_generate.spelling import Spelling, may_be_misspelt, normalise, spelling_of, verify_names
from cliproxy.translators.gemini_generate.to_hub import FIELD_NAMES
from cliproxy.translators.gemini_generate.wire import PART_KINDS, Content, GenerateBody, GenerationConfig, Tool
from cliproxy.translators.schema import refuse, refuse_excess

T = TypeVar("T", bound=msgspec.Struct)

BODY = spelling_of(GenerateBody)
_CONFIG = BODY.nested["generationConfig"][0]
_KINDS = frozenset(PART_KINDS)
_TAG = TAG.encode()
_TOOL_NAMES = spelling_of(Tool).names


def decode_gemini(
    body: bytes, *, model: str, stream: bool, max_tokens_cap: int, on_excess: Literal["reject", "clamp"], allow_provider_state: bool = False
) -> GeminiRequest:
    """Return the request in `body` for `model`. `max_tokens_cap` is the most output tokens of a candidate; a request for more is refused or lowered as
    `on_excess` says. Without `allow_provider_state` a request that names something stored at the provider is refused, and none asks it to store (ADR 0096).

    Raises `SchemaError` with the path of the field; its message never quotes the client.
    """
    verify_model(model)
    document = decode_json(body, max_values=MAX_CHAT_VALUES)
    wire = checked(document, GenerateBody, BODY, misspelt=may_be_misspelt(body))
    verify_request(document, wire, model=model)
    if not allow_provider_state:
        verify_stateless(wire)
        if wire.store:
            document["store"] = False
    config = wire.generation_config
    max_tokens = _cap(document, config, max_tokens_cap, on_excess)
    return GeminiRequest(
        model=model,
        stream=stream,
        n=(config.candidate_count or 1) if config is not None else 1,
        max_tokens=max_tokens,
        estimate=estimate(len(body), wire.contents),
        rest=document,
        wire=wire,
        tagged=_TAG in body or b"\\u" in body,  # escaped, a tag is none of these bytes
    )


def verify_model(model: str) -> None:
    """Raise `SchemaError` unless the path names a model."""
    if not 0 < len(model) <= MAX_MODEL_NAME_CHARS:
        raise SchemaError("The path names no model.", param="model", code="invalid_value")


def checked(document: Any, kind: type[T], spelling: Spelling, *, misspelt: bool) -> T:
    """Return `document` as `kind`, with its names normalised in place where that can be needed. Raises `SchemaError`."""
    if misspelt:
        normalise(document, spelling)
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        if not misspelt:  # a single object may stand where a list belongs
            return checked(document, kind, spelling, misspelt=True)
        refuse(error)


def verify_request(document: dict[str, Any], wire: GenerateBody, *, model: str, path: str = "") -> None:
    """Raise `SchemaError` for what the types cannot say. Takes `model` out of `document`, where it only repeats the path."""
    verify_names(document, BODY, path)
    if wire.model is not None and wire.model.removeprefix("models/") != model.removeprefix("models/"):
        raise SchemaError("The body names another model than the path.", param=f"{path}model", code="ambiguous_field")
    document.pop("model", None)
    config = document.get("generationConfig")
    if config is not None:
        verify_names(config, _CONFIG, f"{path}generationConfig.")
    for index, content in enumerate(document["contents"]):
        verify_parts(content, f"{path}contents[{index}]")
    if wire.system_instruction is not None:
        verify_parts(document["systemInstruction"], f"{path}systemInstruction")
    for index, tool in enumerate(document.get("tools") or ()):
        if not _TOOL_NAMES.issuperset(tool):
            raise SchemaError("This kind of tool is not supported.", param=f"{path}tools[{index}]", code="invalid_value")


def verify_parts(content: dict[str, Any], path: str) -> None:
    """Raise `SchemaError` unless each part is of one known kind."""
    for index, part in enumerate(content["parts"]):
        if len(part) == 1 and "text" in part:  # the common case
            continue
        kinds = [name for name in part if name in _KINDS and part[name] is not None]
        if len(kinds) != 1 and (kinds or part.get("thoughtSignature") is None):
            what = "A part is of one kind." if kinds else "This kind of part is not supported."
            raise SchemaError(what, param=f"{path}.parts[{index}]", code="invalid_value")


def _cap(document: dict[str, Any], config: GenerationConfig | None, cap: int, on_excess: str) -> int:
    """See to it that what leaves has a cap on output tokens, and return it."""
    if config is None:
        document["generationConfig"] = {"maxOutputTokens": cap}  # absent means the model's own limit
        return cap
    asked = config.max_output_tokens
    if asked is not None and asked <= cap:
        return asked
    if asked is not None and on_excess != "clamp":
        refuse_excess(FIELD_NAMES["max_tokens"], cap)
    document["generationConfig"]["maxOutputTokens"] = cap
    return cap


def estimate(length: int, contents: list[Content]) -> int:
    """Return the guess at the prompt's tokens; `length` is the body's, in bytes."""
    tokens = 0
    for content in contents:
        for part in content.parts:
            blob = part.inline_data
            if blob is not None:
                length -= len(blob.data)
                if blob.mime_type.startswith("image/"):
                    tokens += IMAGE_TOKENS
                elif blob.mime_type.startswith("audio/"):
                    tokens += len(blob.data) // AUDIO_CHARS_PER_TOKEN
                else:
                    tokens += len(blob.data) // FILE_CHARS_PER_TOKEN
            elif part.file_data is not None:
                tokens += IMAGE_TOKENS  # of unknown size: a page or a picture
    return tokens + tokens_of_text(max(length, 0))
