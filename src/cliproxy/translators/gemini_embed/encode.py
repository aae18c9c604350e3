"""Requests for embeddings as Gemini's bytes. The model is in the path, so `Encoded.prefix` is all.

`batchEmbedContents` wants the model again in each of its requests, where one place for it does not do, so one text at a time is what Gemini is asked for; ADR
0095 says where several can go.
"""

from __future__ import annotations

from typing import Any

from cliproxy.dialects import Quirks
from cliproxy.errors import UnsupportedFeature
from cliproxy.formats.json_bounds import encode_json
from cliproxy.translators.conversation import Encoded
from cliproxy.translators.embedding import EmbedRequest
from cliproxy.translators.gemini_embed.request import GeminiEmbedRequest

_ONE_ONLY = "This provider embeds one text a request."


def encode_same(request: GeminiEmbedRequest, quirks: Quirks) -> Encoded:
    """Return the body for an upstream of the same dialect. Raises `UnsupportedFeature` for several texts."""
    if len(request.rest) != 1:
        raise UnsupportedFeature(_ONE_ONLY, param="requests")
    return Encoded(encode_json(request.rest[0]), b"")


def encode_embed(request: EmbedRequest, quirks: Quirks) -> Encoded:
    """Return `request` as a body for `embedContent`. Raises `UnsupportedFeature` for several texts."""
    if len(request.texts) != 1:
        raise UnsupportedFeature(_ONE_ONLY, param="texts")
    body: dict[str, Any] = {"content": {"parts": [{"text": request.texts[0]}]}}
    if request.task:
        body["taskType"] = request.task
    if request.title:
        body["title"] = request.title
    if request.dimensions is not None:
        body["outputDimensionality"] = request.dimensions
    return Encoded(encode_json(body), b"", ("user",) if request.user else ())
