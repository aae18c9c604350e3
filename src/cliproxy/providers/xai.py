"""xAI (https://docs.x.ai/docs/api-reference)."""

from __future__ import annotations

from cliproxy.dialects import Endpoint
from cliproxy.providers.facts import EndpointFacts, ProviderFacts

FACTS = ProviderFacts(
    kind="xai",
    remote=True,
    base_url="https://api.x.ai/v1",
    endpoints={
        Endpoint.CHAT_COMPLETIONS: EndpointFacts(path="/chat/completions"),
        Endpoint.RESPONSES: EndpointFacts(path="/responses"),
        Endpoint.IMAGES: EndpointFacts(path="/images/generations"),
    },
)
