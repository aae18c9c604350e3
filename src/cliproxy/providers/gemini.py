"""Gemini with an API key (https://ai.google.dev/api). The model is in the path, and a stream has a path of its own."""

from __future__ import annotations

from cliproxy.dialects import Endpoint
from cliproxy.providers.facts import Auth, EndpointFacts, ProviderFacts

FACTS = ProviderFacts(
    kind="gemini",
    remote=True,
    base_url="https://generativelanguage.googleapis.com/v1beta",
    auth=Auth.X_GOOG_API_KEY,
    auths=frozenset({Auth.X_GOOG_API_KEY, Auth.BEARER}),
    endpoints={
        Endpoint.GENERATE_CONTENT: EndpointFacts(path="/models/{model}:generateContent", stream_path="/models/{model}:streamGenerateContent?alt=sse"),
        Endpoint.COUNT_CONTENT_TOKENS: EndpointFacts(path="/models/{model}:countTokens"),
        Endpoint.EMBED_CONTENT: EndpointFacts(path="/models/{model}:embedContent"),
    },
)
