"""Vertex AI (https://cloud.google.com/vertex-ai/generative-ai/docs/learn/locations): Google's own models and Anthropic's, told apart by their names.

The project and the location are in the path, the location in the host's name too. The credential is an OAuth access token. Anthropic's models take their
own dialect with the model in the path and `anthropic_version` in the body (`Quirks.VERTEX`); a question for tokens names the model in its body after all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from cliproxy.dialects import Endpoint, Quirks
from cliproxy.providers.anthropic import BY_BUDGET
from cliproxy.providers.facts import EndpointFacts, ProviderFacts, Setting

_GEMINI = {
    Endpoint.GENERATE_CONTENT: EndpointFacts(
        path="/publishers/google/models/{model}:generateContent", stream_path="/publishers/google/models/{model}:streamGenerateContent?alt=sse"
    ),
    Endpoint.COUNT_CONTENT_TOKENS: EndpointFacts(path="/publishers/google/models/{model}:countTokens"),
}


def _claude(quirks: Quirks) -> Mapping[Endpoint, EndpointFacts]:
    return {
        Endpoint.MESSAGES: EndpointFacts(
            path="/publishers/anthropic/models/{model}:rawPredict",
            stream_path="/publishers/anthropic/models/{model}:streamRawPredict",
            quirks=quirks,
        ),
        Endpoint.COUNT_MESSAGE_TOKENS: EndpointFacts(path="/publishers/anthropic/models/count-tokens:rawPredict", quirks=quirks),
    }


_CLAUDE = _claude(Quirks.VERTEX)
_BY_BUDGET = _claude(Quirks.VERTEX | Quirks.BUDGET_THINKING)
_HOSTS = {  # the locations that are no region
    "global": "aiplatform.googleapis.com",
    "us": "aiplatform.us.rep.googleapis.com",
    "eu": "aiplatform.eu.rep.googleapis.com",
}


def _host(settings: Mapping[str, str]) -> Mapping[str, str]:
    location = settings["location"]
    return {"host": _HOSTS.get(location, f"{location}-aiplatform.googleapis.com")}


FACTS = ProviderFacts(
    kind="vertex",
    remote=True,
    base_url="https://{host}/v1/projects/{project}/locations/{location}",
    settings={
        "project": Setting(pattern=r"[a-z][a-z0-9-]{4,28}[a-z0-9]", cure="write the project's id, like my-project-123"),
        "location": Setting(pattern=r"global|us|eu|[a-z]{2,20}-[a-z]{4,20}[0-9]{1,2}", cure="write global, us, eu or a region, like us-east5"),
    },
    derived=_host,
    families=((BY_BUDGET, _BY_BUDGET), (re.compile(r"claude"), _CLAUDE), (re.compile(r"gemini|gemma|learnlm"), _GEMINI)),
    endpoints={**_GEMINI, **_CLAUDE},
)
