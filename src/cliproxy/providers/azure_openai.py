"""Azure OpenAI (https://learn.microsoft.com/en-us/azure/ai-foundry/openai/api-version-lifecycle): the operator's own resource is the origin.

Without `api_version` its v1 API is spoken, where the body names the deployment; with one, the older API, where the path does. A model here is a deployment.
"""

from __future__ import annotations

from collections.abc import Mapping

from cliproxy.dialects import Endpoint, Quirks
from cliproxy.providers.facts import Auth, EndpointFacts, ProviderFacts, Setting


def _roots(settings: Mapping[str, str]) -> Mapping[str, str]:
    version = settings["api_version"]
    if not version:
        return {"root": "/openai/v1", "deployment": "/openai/v1", "query": ""}
    return {"root": "/openai", "deployment": "/openai/deployments/{model}", "query": f"?api-version={version}"}


FACTS = ProviderFacts(
    kind="azure_openai",
    remote=True,
    auth=Auth.API_KEY,
    auths=frozenset({Auth.API_KEY, Auth.BEARER}),  # bearer: an access token of Microsoft Entra
    settings={
        "api_version": Setting(
            pattern=r"[0-9]{4}-[0-9]{2}-[0-9]{2}(-preview)?", cure="write it like 2024-10-21, or remove the line for the v1 API", required=False
        )
    },
    derived=_roots,
    endpoints={
        Endpoint.CHAT_COMPLETIONS: EndpointFacts(path="{deployment}/chat/completions{query}", quirks=Quirks.NEW_TOKEN_CAP),
        Endpoint.RESPONSES: EndpointFacts(path="{root}/responses{query}"),
        Endpoint.EMBEDDINGS: EndpointFacts(path="{deployment}/embeddings{query}"),
        Endpoint.IMAGES: EndpointFacts(path="{deployment}/images/generations{query}"),
        Endpoint.SPEECH: EndpointFacts(path="{deployment}/audio/speech{query}"),
        Endpoint.TRANSCRIPTIONS: EndpointFacts(path="{deployment}/audio/transcriptions{query}"),
        Endpoint.TRANSLATIONS: EndpointFacts(path="{deployment}/audio/translations{query}"),
    },
)
