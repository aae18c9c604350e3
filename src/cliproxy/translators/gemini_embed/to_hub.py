"""A checked request for embeddings in the words of the hub."""

from __future__ import annotations

from cliproxy.dialects import Dialect
from cliproxy.translators.embedding import EmbedRequest
from cliproxy.translators.gemini_embed.request import GeminiEmbedRequest
from cliproxy.translators.policy_clients import EmbedField, FromGeminiEmbed

# A field of `EmbedRequest` and what a client of this dialect calls it.
FIELD_NAMES: dict[str, str] = {
    "model": "model",
    "texts": "requests",
    "dimensions": "outputDimensionality",
    "task": "taskType",
    "title": "title",
}
_UNDERSTOOD = frozenset({"content", "taskType", "title", "outputDimensionality"})
_SETTINGS = ("task_type", "title", "output_dimensionality")


def embed_request_of(request: GeminiEmbedRequest) -> EmbedRequest:
    """Return `request` in the hub's types. Raises `UnsupportedFeature` for anything but one text a vector, and for settings that differ between vectors."""
    losses = FromGeminiEmbed()
    texts = []
    first = request.wire[0]
    for index, wire in enumerate(request.wire):
        path = f"requests[{index}]." if request.batch else ""
        said = request.rest[index]
        for name, value in said.items():
            if name not in _UNDERSTOOD and value is not None:
                losses.lose(EmbedField.UNKNOWN, path + name)
        parts = wire.content.parts
        if len(parts) != 1 or parts[0].text is None or len(said["content"]["parts"][0]) != 1:
            raise losses.refusal(EmbedField.PARTS, f"{path}content.parts")
        if any(getattr(wire, name) != getattr(first, name) for name in _SETTINGS):
            raise losses.refusal(EmbedField.SETTINGS, f"requests[{index}]")
        texts.append(parts[0].text)
    return EmbedRequest(
        Dialect.GEMINI_EMBED, request.model, tuple(texts), first.output_dimensionality, task=first.task_type or "", title=first.title or "", left_out=losses
    )
