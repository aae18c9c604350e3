"""OpenAI (https://platform.openai.com/docs/api-reference), and origins that have its whole API.

`max_tokens` is deprecated there, and reasoning models refuse it.
"""

from __future__ import annotations

from cliproxy.dialects import Endpoint, Quirks
from cliproxy.providers.facts import EndpointFacts, ProviderFacts

FACTS = ProviderFacts(
    kind="openai",
    remote=True,
    base_url="https://api.openai.com/v1",
    endpoints={
        Endpoint.CHAT_COMPLETIONS: EndpointFacts(path="/chat/completions", quirks=Quirks.NEW_TOKEN_CAP),
        Endpoint.RESPONSES: EndpointFacts(path="/responses"),
        Endpoint.EMBEDDINGS: EndpointFacts(path="/embeddings"),
        Endpoint.IMAGES: EndpointFacts(path="/images/generations"),
        Endpoint.SPEECH: EndpointFacts(path="/audio/speech"),
        Endpoint.TRANSCRIPTIONS: EndpointFacts(path="/audio/transcriptions"),
        Endpoint.TRANSLATIONS: EndpointFacts(path="/audio/translations"),
    },
)
