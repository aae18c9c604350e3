"""Any origin that speaks OpenAI's API below its `base_url` (https://platform.openai.com/docs/api-reference)."""

from __future__ import annotations

from cliproxy.dialects import Endpoint
from cliproxy.providers.facts import Auth, EndpointFacts, ProviderFacts

FACTS = ProviderFacts(
    kind="openai_compatible",
    remote=True,
    auths=frozenset({Auth.BEARER, Auth.API_KEY, Auth.X_API_KEY}),
    endpoints={
        Endpoint.CHAT_COMPLETIONS: EndpointFacts(path="/chat/completions"),
        Endpoint.EMBEDDINGS: EndpointFacts(path="/embeddings"),
    },
)
