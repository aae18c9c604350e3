"""A request for embeddings from its bytes, one or several. What leaves is our own encoding of the value that was checked, and names no model."""

from __future__ import annotations

from cliproxy.bounds import MAX_CHAT_VALUES
from cliproxy.errors import SchemaError
from cliproxy.formats.json_bounds import decode_json
from cliproxy.metering.names import verify_spelling
from cliproxy.translators.estimate import FILE_CHARS_PER_TOKEN, tokens_of_text
from cliproxy.translators.gemini_embed.request import GeminiEmbedRequest
from cliproxy.translators.gemini_embed.wire import BatchBody, EmbedBody
from cliproxy.translators.gemini_generate.decode import checked, verify_model, verify_parts
from cliproxy.translators.gemini_generate.provider_state import verify_parts_stateless
from cliproxy.translators.gemini_generate.spelling import may_be_misspelt, spelling_of, verify_names

_ONE = spelling_of(EmbedBody)
_BATCH = spelling_of(BatchBody)


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
        verify_spelling(said.keys() - _ONE.names, _BATCH.names)
        if said.get("requests") is not None:
            raise SchemaError("A request for one vector holds no others.", param=f"{path}requests", code="invalid_value")
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
