"""vLLM (https://docs.vllm.ai/en/stable/serving/online_serving.html). It wants a key only when started with `--api-key`: `auth: none` otherwise."""

from __future__ import annotations

from cliproxy.dialects import Endpoint, Quirks
from cliproxy.providers.facts import Auth, EndpointFacts, ProviderFacts

FACTS = ProviderFacts(
    kind="vllm",
    remote=True,
    auths=frozenset({Auth.BEARER}),
    endpoints={
        Endpoint.CHAT_COMPLETIONS: EndpointFacts(path="/chat/completions", quirks=Quirks.NO_DEVELOPER_ROLE),
        Endpoint.MESSAGES: EndpointFacts(path="/messages"),
        Endpoint.RESPONSES: EndpointFacts(path="/responses", quirks=Quirks.STATELESS),
        Endpoint.COUNT_MESSAGE_TOKENS: EndpointFacts(path="/messages/count_tokens"),
        Endpoint.EMBEDDINGS: EndpointFacts(path="/embeddings"),
        Endpoint.TRANSCRIPTIONS: EndpointFacts(path="/audio/transcriptions"),
        Endpoint.TRANSLATIONS: EndpointFacts(path="/audio/translations"),
    },
)
