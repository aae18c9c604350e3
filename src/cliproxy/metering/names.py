"""Which names of fields may leave for a provider, judged by the worker of its clients and by egress of its workers.

Two names are one where a reader folds case, as Go's `encoding/json` does: `MODEL` is `model`, and so is a spelling with the Kelvin sign for K or the long s.
A name that differs from a known one in case and hyphens only is refused, and so are two unknown ones that differ only so. Fields that choose where a request
goes, with which credential, or which code runs on the way are never kept, whatever the upstream: many upstreams are gateways themselves (LiteLLM
CVE-2024-6587, Portkey CVE-2025-66405).
"""

from __future__ import annotations

from collections.abc import Iterable

from cliproxy.errors import SchemaError

# Names are compared as `plain_name` writes them. A name that begins with one of the prefixes is refused too.
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
_OF_ONE_LETTER = str.maketrans({"-": "_", "\u0131": "i", "\u0307": None})  # Java's readers take the dotless i for i, and what is left of the dotted I too


def plain_name(name: str) -> str:
    """Return what `name` is to the readers that fold most: case, hyphens and underscores, the Kelvin sign, the long s, the Turkish i."""
    return name.casefold().translate(_OF_ONE_LETTER)


def verify_names(unknown: Iterable[str], known: Iterable[str]) -> None:
    """Raise `SchemaError` for a name of `unknown` that must not reach a provider which is also told (or could be) the names `known`."""
    verify_spelling(unknown, known)
    for name in unknown:
        plain = plain_name(name)
        if plain in REFUSED_FIELDS or plain.startswith(REFUSED_PREFIXES):
            raise SchemaError("This gateway's configuration decides about routing and credentials; a request may not.", param=plain, code="forbidden_field")
        if plain in OUTPUT_CAPS_ELSEWHERE:
            raise SchemaError("Say max_completion_tokens or max_tokens instead.", param=plain, code="forbidden_field")


def verify_spelling(unknown: Iterable[str], known: Iterable[str]) -> None:
    """Raise `SchemaError` for a name of `unknown` that some readers take for one of `known` or for another of `unknown`."""
    spellings = {plain_name(name): name for name in known}
    for name in unknown:
        plain = plain_name(name)
        if spellings.setdefault(plain, name) != name:
            raise SchemaError(f"The field {plain} is spelt in another way.", param=plain, code="ambiguous_field")
