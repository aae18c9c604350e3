"""OpenRouter (https://openrouter.ai/docs/api-reference). Its Responses API keeps nothing; the model names have a slash (`vendor/model`)."""

from __future__ import annotations

from cliproxy.dialects import Endpoint, Quirks
from cliproxy.providers.facts import EndpointFacts, ProviderFacts

FACTS = ProviderFacts(
    kind="openrouter",
    remote=True,
    base_url="https://openrouter.ai/api/v1",
    extra_headers=((b"anthropic-version", b"2023-06-01"),),
    endpoints={
        Endpoint.CHAT_COMPLETIONS: EndpointFacts(path="/chat/completions"),
        Endpoint.MESSAGES: EndpointFacts(path="/messages"),
        Endpoint.RESPONSES: EndpointFacts(path="/responses", quirks=Quirks.STATELESS),
        Endpoint.EMBEDDINGS: EndpointFacts(path="/embeddings"),
    },
)
