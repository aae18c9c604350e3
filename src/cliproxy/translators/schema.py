"""What OpenAI's request bodies have in common: how a violation is told, and which unknown fields may pass.

A same-dialect body keeps fields that this gateway does not know, so that a new parameter works on the day the provider has it. Fields that choose where a
request goes, with which credential, or which code runs on the way are never kept, whatever the upstream: many upstreams are gateways themselves
(LiteLLM CVE-2024-6587, Portkey CVE-2025-66405). Nor is a second spelling of a field that was checked: Go's decoder takes `Model` for `model`.
"""

from __future__ import annotations

import re
from typing import Any, NoReturn, TypeVar

import msgspec

from cliproxy.errors import SchemaError

T = TypeVar("T")

# Names are compared in lower case and with `_` for `-`. A name that begins with one of the prefixes is refused too.
_WHERE_TO = """
    api_base base_url api_url api_host endpoint endpoint_url custom_host custom_endpoint custom_llm_provider host url
    proxy http_proxy https_proxy proxy_url webhook webhook_url callback_url api_version api_type deployment deployment_id region region_name
    model_list models fallbacks context_window_fallbacks route router router_settings provider providers preset plugins
    engine model_id model_name fallback_model
    data_sources datasources kv_transfer_params mcp_servers
"""
_AS_WHOM = """
    api_key api_keys key token auth authorization credentials access_token organization organization_id org_id project project_id
    headers extra_headers default_headers custom_headers extra_body extra_query default_query
"""
_WHAT_RUNS = """
    callbacks success_callback failure_callback input_callback guardrails guardrail_config policies hooks mock_response mock_tool_calls
    no_log secret_fields proxy_server_request chat_template mm_processor_kwargs media_io_kwargs deferred
"""
# Other servers' names for the cap on output tokens. Kept, they would lead around `max_tokens`.
_OUTPUT_CAPS_ELSEWHERE = """
    max_new_tokens max_output_tokens maxoutputtokens maxtokens maxcompletiontokens max_tokens_to_sample max_length max_gen_len num_predict n_predict
    best_of num_return_sequences num_generations candidate_count candidatecount
"""
REFUSED_FIELDS = frozenset((_WHERE_TO + _AS_WHOM + _WHAT_RUNS).split())
REFUSED_PREFIXES = ("aws_", "azure_", "vertex_", "litellm_", "portkey_", "x_portkey", "langfuse_", "oci_", "watsonx_", "s3_")
OUTPUT_CAPS_ELSEWHERE = frozenset(_OUTPUT_CAPS_ELSEWHERE.split())

_PLACE = re.compile(r"^(?P<what>.*?)(?: - at `(?P<path>[^`]*)`| - at `key` in `(?P<map>[^`]*)`)?$", re.DOTALL)
_MISSING = re.compile(r"^Object missing required field `(\w+)`")


def convert(value: Any, type: type[T]) -> T:
    """Return `value` (decoded JSON) as `type`. Raises `SchemaError` with the field's path; its message never quotes what the client sent."""
    try:
        return msgspec.convert(value, type)
    except msgspec.ValidationError as error:
        refuse(error)


def refuse(error: msgspec.ValidationError) -> NoReturn:
    """Raise `error` as a `SchemaError`: `$.messages[0].content` becomes the param `messages[0].content`."""
    match = _PLACE.match(str(error))
    what, path = (match["what"], match["path"] or match["map"] or "") if match else ("", "")
    param = path.removeprefix("$").removeprefix(".")
    missing = _MISSING.match(what)
    if missing:
        param = f"{param}.{missing[1]}" if param else missing[1]
        raise SchemaError(f"The field {param} is missing.", param=param, code="missing_field") from None
    if not what.startswith("Expected"):  # "Invalid value 'what the client sent'"
        what = "This is not one of the values that are allowed"
    where = f" ({param})" if param else ""
    raise SchemaError(f"{what[0].upper()}{what[1:]}{where}.", param=param or None, code="invalid_type") from None


def verify_unknown_fields(body: dict[str, Any], known: frozenset[str]) -> None:
    """Raise `SchemaError` for a field of `body` that must not reach an upstream; return if every unknown one may."""
    for name in body.keys() - known:
        plain = name.casefold().replace("-", "_")
        if plain in known:
            raise SchemaError(f"The field {plain} is spelt in another way.", param=plain, code="ambiguous_field")
        if plain in REFUSED_FIELDS or plain.startswith(REFUSED_PREFIXES):
            raise SchemaError("This gateway's configuration decides about routing and credentials; a request may not.", param=plain, code="forbidden_field")
        if plain in OUTPUT_CAPS_ELSEWHERE:
            raise SchemaError("Say max_completion_tokens or max_tokens instead.", param=plain, code="forbidden_field")


def refuse_excess(param: str, cap: int) -> NoReturn:
    """Raise the refusal of more output tokens than the operator allows."""
    message = f"{param} is above this gateway's limit of {cap}: ask for less, or have its operator raise requests.max_tokens."
    raise SchemaError(message, param=param, code="max_tokens_exceeded")


def refuse_other_model(param: str) -> NoReturn:
    """Raise the refusal of a second model, which no route leads to and no key is held against."""
    message = "A request uses the one model that it names, which its key is permitted: a tool may not bring another."
    raise SchemaError(message, param=param, code="forbidden_field")


def refuse_state(param: str, *, how_to: str = "send the content itself") -> NoReturn:
    """Raise the refusal of what a provider keeps (ADR 0096)."""
    raise SchemaError(
        f"The clients of this gateway share the provider's account, so a request may not refer to what is stored there: {how_to}.",
        param=param,
        code="forbidden_field",
    )
