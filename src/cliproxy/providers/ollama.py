"""Ollama (https://docs.ollama.com/api/openai-compatibility), on this machine unless the operator says otherwise. It wants no credential."""

from __future__ import annotations

from cliproxy.dialects import Endpoint, Quirks
from cliproxy.providers.facts import Auth, EndpointFacts, ProviderFacts

FACTS = ProviderFacts(
    kind="ollama",
    remote=True,
    base_url="http://127.0.0.1:11434/v1",
    auth=Auth.NONE,
    auths=frozenset({Auth.BEARER}),
    extra_headers=((b"anthropic-version", b"2023-06-01"),),
    endpoints={
        Endpoint.CHAT_COMPLETIONS: EndpointFacts(path="/chat/completions", quirks=Quirks.OLD_TOKEN_CAP | Quirks.NO_DEVELOPER_ROLE),
        Endpoint.MESSAGES: EndpointFacts(path="/messages"),
        Endpoint.RESPONSES: EndpointFacts(path="/responses", quirks=Quirks.STATELESS),
        Endpoint.EMBEDDINGS: EndpointFacts(path="/embeddings"),
    },
)
