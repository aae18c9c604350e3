"""Anthropic (https://docs.anthropic.com/en/api). Keys go into `x-api-key`; tokens of an OAuth login are bearer tokens."""

from __future__ import annotations

from cliproxy.dialects import Endpoint
from cliproxy.providers.facts import Auth, EndpointFacts, ProviderFacts

FACTS = ProviderFacts(
    kind="anthropic",
    remote=True,
    base_url="https://api.anthropic.com/v1",
    auth=Auth.X_API_KEY,
    auths=frozenset({Auth.X_API_KEY, Auth.BEARER}),
    extra_headers=((b"anthropic-version", b"2023-06-01"),),
    endpoints={
        Endpoint.MESSAGES: EndpointFacts(path="/messages"),
        Endpoint.COUNT_MESSAGE_TOKENS: EndpointFacts(path="/messages/count_tokens"),
    },
)
