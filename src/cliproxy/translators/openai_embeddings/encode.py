"""An embeddings request as bytes, with a place for the upstream's name of the model: the client's own, or one of the hub's."""

from __future__ import annotations

from typing import Any

from cliproxy.dialects import Quirks
from cliproxy.formats.json_bounds import encode_json
from cliproxy.translators.conversation import Encoded
from cliproxy.translators.embedding import EmbedRequest
from cliproxy.translators.openai_embeddings.request import EmbeddingsRequest
from cliproxy.translators.policy_targets import HubField, ToOpenAIEmbeddings

PREFIX = b'{"model":'


def encode_same(request: EmbeddingsRequest, quirks: Quirks) -> Encoded:
    """Return the body for an upstream of the same dialect. Changes nothing, so it can be called again. Raises `SchemaError` if it is nested too deeply."""
    return Encoded(PREFIX, b"," + encode_json(request.rest)[1:])  # `rest` is never empty: it holds the input


def encode_embed(request: EmbedRequest, quirks: Quirks) -> Encoded:
    """Return `request` as a body for an upstream of this dialect, with a place for the model. Raises `UnsupportedFeature`."""
    body: dict[str, Any] = {"input": request.texts[0] if len(request.texts) == 1 else list(request.texts)}
    if request.dimensions is not None:
        body["dimensions"] = request.dimensions
    if request.user:
        body["user"] = request.user
    losses = ToOpenAIEmbeddings(request.left_out)
    if request.task:
        losses.lose(HubField.TASK)
    if request.title:
        losses.lose(HubField.TITLE)
    return Encoded(PREFIX, b"," + encode_json(body)[1:], tuple(losses))
