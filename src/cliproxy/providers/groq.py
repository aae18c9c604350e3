"""Groq (https://console.groq.com/docs/api-reference). Its Responses API keeps nothing."""

from __future__ import annotations

from cliproxy.dialects import Endpoint, Quirks
from cliproxy.providers.facts import EndpointFacts, ProviderFacts

FACTS = ProviderFacts(
    kind="groq",
    remote=True,
    base_url="https://api.groq.com/openai/v1",
    endpoints={
        Endpoint.CHAT_COMPLETIONS: EndpointFacts(path="/chat/completions", quirks=Quirks.NEW_TOKEN_CAP | Quirks.NO_DEVELOPER_ROLE),
        Endpoint.RESPONSES: EndpointFacts(path="/responses", quirks=Quirks.STATELESS),
        Endpoint.SPEECH: EndpointFacts(path="/audio/speech"),
        Endpoint.TRANSCRIPTIONS: EndpointFacts(path="/audio/transcriptions"),
        Endpoint.TRANSLATIONS: EndpointFacts(path="/audio/translations"),
    },
)
