"""Amazon Bedrock's Converse API (https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_Converse.html), which is one dialect for all its models.

A credential is an AWS access key (`credentials.parse_aws_credential`) that signs each request, or with `auth: bearer` a Bedrock API key. A model is the id of
a model or of an inference profile (`us.anthropic.…`), or the ARN of one. Streams are in AWS's own framing.
"""

from __future__ import annotations

import re

from cliproxy.dialects import Endpoint, Quirks
from cliproxy.providers.anthropic import BY_BUDGET
from cliproxy.providers.facts import Auth, EndpointFacts, Framing, ProviderFacts, Setting

_ANTHROPIC = r"(?:arn:[^/]*/)?(?:[a-z]{2,6}\.)?anthropic\."
_PATH, _STREAM_PATH = "/model/{model}/converse", "/model/{model}/converse-stream"
_ANY = {Endpoint.CONVERSE: EndpointFacts(path=_PATH, stream_path=_STREAM_PATH)}
_BY_BUDGET = {Endpoint.CONVERSE: EndpointFacts(path=_PATH, stream_path=_STREAM_PATH, quirks=Quirks.CLAUDE | Quirks.BUDGET_THINKING)}
_CLAUDE = {Endpoint.CONVERSE: EndpointFacts(path=_PATH, stream_path=_STREAM_PATH, quirks=Quirks.CLAUDE)}

FACTS = ProviderFacts(
    kind="bedrock",
    remote=True,
    base_url="https://bedrock-runtime.{region}.amazonaws.com",
    auth=Auth.SIGV4,
    auths=frozenset({Auth.SIGV4, Auth.BEARER}),
    framing=Framing.AWS_EVENT_STREAM,
    settings={"region": Setting(pattern=r"[a-z]{2}(-[a-z]{2,10}){1,3}-[0-9]", cure="write the region's id, like us-east-1")},
    families=((re.compile(_ANTHROPIC + BY_BUDGET.pattern), _BY_BUDGET), (re.compile(_ANTHROPIC), _CLAUDE), (re.compile(""), _ANY)),
    endpoints=_ANY,
)
