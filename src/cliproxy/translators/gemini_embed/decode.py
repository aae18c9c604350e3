"""A request for embeddings from its bytes, one or several. What leaves is our own encoding of the value that was checked, and names no model."""

from __future__ import annotations

from typing import Any

import msgspec

from cliproxy.bounds import MAX_CHAT_VALUES
from cliproxy.dialects import Dialect
from cliproxy.errors import SchemaError, UnsupportedFeature
from cliproxy.formats.json_bounds import decode_json
from cliproxy.translators.embedding import EmbedRequest
from cliproxy.translators.estimate import FILE_CHARS_PER_TOKEN, tokens_of_text
from cliproxy.translators.gemini_embed.wire import BatchBody, EmbedBody
from cliproxy.translators.gemini_generate.decode import checked, verify_model, verify_parts
from cliproxy.translators.gemini_generate.spelling import may_be_misspelt, shape_of, verify_names
from cliproxy.translators.gemini_generate.state import verify_parts_stateless

__all__ = ["FIELD_NAMES", "GeminiEmbedRequest", "decode_embed", "embed_request_of"]

# A field of `EmbedRequest` and what a client of this dialect calls it.
FIELD_NAMES: dict[str, str] = {
    "model": "model",
    "texts": "requests",
    "dimensions": "outputDimensionality",
    "task": "taskType",
    "title": "title",
}
_ONE = shape_of(EmbedBody)
_BATCH = shape_of(BatchBody)
_UNDERSTOOD = frozenset({"content", "taskType", "title", "outputDimensionality"})
_SETTINGS = ("task_type", "title", "output_dimensionality")


class GeminiEmbedRequest(msgspec.Struct, frozen=True):
    """A checked request for a vector of each of `wire`. `batch`: the client called `batchEmbedContents`, whose answer has another shape. `rest` are the same as
    dictionaries, without the model."""

    model: str
    batch: bool
    estimate: int
    rest: list[dict[str, Any]]
    wire: list[EmbedBody]


def decode_embed(body: bytes, *, model: str, batch: bool, allow_provider_state: bool = False) -> GeminiEmbedRequest:
    """Return the request in `body` for `model`. `allow_provider_state` as in `decode_gemini`.

    Raises `SchemaError` with the path of the field; its message never quotes the client.
    """
    verify_model(model)
    document = decode_json(body, max_values=MAX_CHAT_VALUES)
    misspelt = may_be_misspelt(body)
    if batch:
        several = checked(document, BatchBody, _BATCH, misspelt=misspelt)
        verify_names(document, _BATCH)
        _verify_model(several.model, model, "model")
        wire, rest = several.requests, document["requests"]
    else:
        wire, rest = [checked(document, EmbedBody, _ONE, misspelt=misspelt)], [document]
    for index, said in enumerate(rest):
        path = f"requests[{index}]." if batch else ""
        verify_names(said, _ONE, path)
        _verify_model(wire[index].model, model, f"{path}model")
        said.pop("model", None)
        verify_parts(said["content"], f"{path}content")
        if not allow_provider_state:
            verify_parts_stateless(wire[index].content.parts, f"{path}content")
    return GeminiEmbedRequest(model=model, batch=batch, estimate=_estimate(len(body), wire), rest=rest, wire=wire)


def _verify_model(said: str | None, model: str, path: str) -> None:
    if said is not None and said.removeprefix("models/") != model.removeprefix("models/"):
        raise SchemaError("The body names another model than the path.", param=path, code="ambiguous_field")


def _estimate(length: int, wire: list[EmbedBody]) -> int:
    tokens = 0
    for request in wire:
        for part in request.content.parts:
            if part.inline_data is not None:
                length -= len(part.inline_data.data)
                tokens += len(part.inline_data.data) // FILE_CHARS_PER_TOKEN
    return tokens + tokens_of_text(max(length, 0))


def embed_request_of(request: GeminiEmbedRequest) -> EmbedRequest:
    """Return `request` in the hub's types. Raises `UnsupportedFeature` for anything but one text a vector, and for settings that differ between vectors."""
    texts = []
    first = request.wire[0]
    for index, wire in enumerate(request.wire):
        path = f"requests[{index}]." if request.batch else ""
        said = request.rest[index]
        for name, value in said.items():
            if name not in _UNDERSTOOD and value is not None:
                raise UnsupportedFeature("The field cannot be translated.", param=path + name)
        parts = wire.content.parts
        if len(parts) != 1 or parts[0].text is None or len(said["content"]["parts"][0]) != 1:
            raise UnsupportedFeature("Only one text a vector can be translated.", param=f"{path}content.parts")
        if any(getattr(wire, name) != getattr(first, name) for name in _SETTINGS):
            raise UnsupportedFeature("Settings that differ between vectors cannot be translated.", param=f"requests[{index}]")
        texts.append(parts[0].text)
    return EmbedRequest(Dialect.GEMINI_EMBED, request.model, tuple(texts), first.output_dimensionality, task=first.task_type or "", title=first.title or "")
