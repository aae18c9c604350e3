"""OpenAI (https://platform.openai.com/docs/api-reference), and origins that have its whole API.

`max_tokens` is deprecated there, and reasoning models refuse it. Some models are in the Responses API alone (their pages under /docs/models say so).
"""

from __future__ import annotations

import re

from cliproxy.dialects import Endpoint, Quirks
from cliproxy.providers.facts import EndpointFacts, ProviderFacts

_RESPONSES = {Endpoint.RESPONSES: EndpointFacts(path="/responses")}
_RESPONSES_ONLY = re.compile(r"o\d(-mini)?-(pro|deep-research)|gpt-5[\w.]*-(pro|codex)|codex-|computer-use-")
_ENDPOINTS = {
    Endpoint.CHAT_COMPLETIONS: EndpointFacts(path="/chat/completions", quirks=Quirks.NEW_TOKEN_CAP),
    **_RESPONSES,
    Endpoint.EMBEDDINGS: EndpointFacts(path="/embeddings"),
    Endpoint.IMAGES: EndpointFacts(path="/images/generations"),
    Endpoint.SPEECH: EndpointFacts(path="/audio/speech"),
    Endpoint.TRANSCRIPTIONS: EndpointFacts(path="/audio/transcriptions"),
    Endpoint.TRANSLATIONS: EndpointFacts(path="/audio/translations"),
}
FACTS = ProviderFacts(
    kind="openai",
    remote=True,
    base_url="https://api.openai.com/v1",
    families=((_RESPONSES_ONLY, _RESPONSES), (re.compile(""), _ENDPOINTS)),
    endpoints=_ENDPOINTS,
)
