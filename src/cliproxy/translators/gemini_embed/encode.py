"""Requests for embeddings as Gemini's bytes. The model is in the path, so `Encoded.prefix` is all.

`batchEmbedContents` wants the model again in each of its requests, where one place for it does not do, so one text at a time is what Gemini is asked for; ADR
0095 says where several can go.
"""

from __future__ import annotations

from typing import Any

from cliproxy.dialects import Quirks
from cliproxy.formats.json_bounds import encode_json
from cliproxy.translators.conversation import Encoded
from cliproxy.translators.embedding import EmbedRequest
from cliproxy.translators.gemini_embed.request import GeminiEmbedRequest
from cliproxy.translators.policy_targets import HubField, ToGeminiEmbed


def encode_same(request: GeminiEmbedRequest, quirks: Quirks) -> Encoded:
    """Return the body for an upstream of the same dialect. Raises `UnsupportedFeature` for several texts."""
    if len(request.rest) != 1:
        raise ToGeminiEmbed.refusal(HubField.TEXTS, "requests")
    return Encoded(encode_json(request.rest[0]), b"")


def encode_embed(request: EmbedRequest, quirks: Quirks) -> Encoded:
    """Return `request` as a body for `embedContent`. Raises `UnsupportedFeature` for several texts."""
    if len(request.texts) != 1:
        raise ToGeminiEmbed.refusal(HubField.TEXTS)
    losses = ToGeminiEmbed(request.left_out)
    body: dict[str, Any] = {"content": {"parts": [{"text": request.texts[0]}]}}
    if request.task:
        body["taskType"] = request.task
    if request.title:
        body["title"] = request.title
    if request.dimensions is not None:
        body["outputDimensionality"] = request.dimensions
    if request.user:
        losses.lose(HubField.USER)
    return Encoded(encode_json(body), b"", tuple(losses))
