"""The embedded provider: answers inside egress, so it has dialects but no origin and wants no credential."""

from __future__ import annotations

from cliproxy.dialects import Dialect, Endpoint
from cliproxy.providers.facts import EndpointFacts, ProviderFacts

FACTS = ProviderFacts(
    kind="echo",
    remote=False,
    auth_header=b"",
    auth_scheme=b"",
    endpoints={
        Endpoint.CHAT_COMPLETIONS: EndpointFacts(path="", dialect=Dialect.OPENAI_CHAT),
        Endpoint.EMBEDDINGS: EndpointFacts(path="", dialect=Dialect.OPENAI_EMBEDDINGS),
    },
)
