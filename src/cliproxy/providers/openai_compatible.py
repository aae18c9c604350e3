"""Any origin that speaks OpenAI's API below its `base_url` (https://platform.openai.com/docs/api-reference)."""

from __future__ import annotations

from cliproxy.dialects import Dialect, Endpoint
from cliproxy.providers.facts import EndpointFacts, ProviderFacts

FACTS = ProviderFacts(
    kind="openai_compatible",
    remote=True,
    auth_header=b"Authorization",
    auth_scheme=b"Bearer ",
    endpoints={
        Endpoint.CHAT_COMPLETIONS: EndpointFacts(path="/chat/completions", dialect=Dialect.OPENAI_CHAT),
        Endpoint.EMBEDDINGS: EndpointFacts(path="/embeddings", dialect=Dialect.OPENAI_EMBEDDINGS),
    },
)
