"""The embedded provider: answers inside egress, so it has dialects but no origin and wants no credential."""

from __future__ import annotations

from cliproxy.dialects import Endpoint
from cliproxy.providers.facts import Auth, EndpointFacts, ProviderFacts

FACTS = ProviderFacts(
    kind="echo",
    remote=False,
    auth=Auth.NONE,
    endpoints={
        Endpoint.CHAT_COMPLETIONS: EndpointFacts(path=""),
        Endpoint.EMBEDDINGS: EndpointFacts(path=""),
    },
)
