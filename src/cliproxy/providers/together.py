"""Together AI (https://docs.together.ai/docs/inference/openai-compatibility)."""

from __future__ import annotations

from cliproxy.dialects import Endpoint, Quirks
from cliproxy.providers.facts import EndpointFacts, ProviderFacts

FACTS = ProviderFacts(
    kind="together",
    remote=True,
    base_url="https://api.together.ai/v1",
    endpoints={
        Endpoint.CHAT_COMPLETIONS: EndpointFacts(path="/chat/completions", quirks=Quirks.OLD_TOKEN_CAP | Quirks.NO_DEVELOPER_ROLE),
        Endpoint.EMBEDDINGS: EndpointFacts(path="/embeddings"),
        Endpoint.IMAGES: EndpointFacts(path="/images/generations"),
        Endpoint.SPEECH: EndpointFacts(path="/audio/speech"),
        Endpoint.TRANSCRIPTIONS: EndpointFacts(path="/audio/transcriptions"),
        Endpoint.TRANSLATIONS: EndpointFacts(path="/audio/translations"),
    },
)
