"""Mistral (https://docs.mistral.ai/api). Fields that it does not know are refused there with 422, so what a body may say is kept small."""

from __future__ import annotations

from cliproxy.dialects import Endpoint, Quirks
from cliproxy.providers.facts import EndpointFacts, ProviderFacts

FACTS = ProviderFacts(
    kind="mistral",
    remote=True,
    base_url="https://api.mistral.ai/v1",
    endpoints={
        Endpoint.CHAT_COMPLETIONS: EndpointFacts(path="/chat/completions", quirks=Quirks.OLD_TOKEN_CAP | Quirks.NO_STREAM_OPTIONS | Quirks.NO_DEVELOPER_ROLE),
        Endpoint.EMBEDDINGS: EndpointFacts(path="/embeddings"),
        Endpoint.TRANSCRIPTIONS: EndpointFacts(path="/audio/transcriptions"),
    },
)
