"""DeepSeek (https://api-docs.deepseek.com), which speaks Anthropic's dialect below `/anthropic` as well."""

from __future__ import annotations

from cliproxy.dialects import Endpoint, Quirks
from cliproxy.providers.facts import EndpointFacts, ProviderFacts

FACTS = ProviderFacts(
    kind="deepseek",
    remote=True,
    base_url="https://api.deepseek.com",
    extra_headers=((b"anthropic-version", b"2023-06-01"),),
    endpoints={
        Endpoint.CHAT_COMPLETIONS: EndpointFacts(path="/chat/completions", quirks=Quirks.OLD_TOKEN_CAP | Quirks.NO_DEVELOPER_ROLE),
        Endpoint.MESSAGES: EndpointFacts(path="/anthropic/v1/messages"),
    },
)
