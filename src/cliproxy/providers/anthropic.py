"""Anthropic (https://docs.anthropic.com/en/api). Keys go into `x-api-key`; tokens of an OAuth login are bearer tokens.

Models before 4.6 think by a budget of tokens (docs, "Extended thinking"), later ones as they see fit, at an effort.
"""

from __future__ import annotations

import re

from cliproxy.dialects import Endpoint, Quirks
from cliproxy.providers.facts import Auth, EndpointFacts, ProviderFacts

BY_BUDGET = re.compile(r"claude-(?:instant|[0-3]|[a-z]+-4(?!-[6-9]))")
_ENDPOINTS = {
    Endpoint.MESSAGES: EndpointFacts(path="/messages"),
    Endpoint.COUNT_MESSAGE_TOKENS: EndpointFacts(path="/messages/count_tokens"),
}
_BY_BUDGET = {endpoint: EndpointFacts(path=facts.path, quirks=Quirks.BUDGET_THINKING) for endpoint, facts in _ENDPOINTS.items()}

FACTS = ProviderFacts(
    kind="anthropic",
    remote=True,
    base_url="https://api.anthropic.com/v1",
    auth=Auth.X_API_KEY,
    auths=frozenset({Auth.X_API_KEY, Auth.BEARER}),
    extra_headers=((b"anthropic-version", b"2023-06-01"),),
    families=((BY_BUDGET, _BY_BUDGET), (re.compile(""), _ENDPOINTS)),
    endpoints=_ENDPOINTS,
)
