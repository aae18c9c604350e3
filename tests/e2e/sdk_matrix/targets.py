"""Every upstream dialect behind one gateway: the configuration, and which public name leads where."""

from __future__ import annotations

from typing import Any

from fakes import vendor_bedrock
from fakes.vendors import API_VERSION, LOCATION, PROJECT, SECRETS

# target: provider, its models for ordinary questions and for thinking, and how a name begins that is of the same kind
TARGETS: dict[str, tuple[str, str, str, str]] = {
    "openai_chat": ("compatible", "gpt-4o-mini", "open-reasoner", ""),
    "openai_responses": ("openai", "computer-use-preview", "gpt-5-pro", "computer-use-preview-"),
    "anthropic_messages": ("anthropic", "claude-opus-5", "claude-opus-5", ""),
    "gemini_generate": ("gemini", "gemini-2.5-flash", "gemini-2.5-flash", ""),
    "bedrock_converse": ("bedrock", "anthropic.claude-sonnet-4-5-20250929-v1:0", "anthropic.claude-sonnet-4-5-20250929-v1:0", ""),
}
ELSEWHERE: dict[str, tuple[str, str]] = {
    "vertex_gemini": ("vertex", "gemini-2.5-flash"),
    "vertex_anthropic": ("vertex", "claude-opus-5"),
    "azure_chat": ("azure", "gpt-4o-mini"),
    "openai_reasoning": ("openai", "gpt-5-mini"),  # which refuses `max_tokens`
}


def settings(origin: str) -> dict[str, Any]:
    """Return the gateway's settings for the fake vendors at `origin`. Each provider's own names are public as `PROVIDER/NAME`."""
    providers: dict[str, dict[str, Any]] = {
        "compatible": {"kind": "openai_compatible", "base_url": f"{origin}/v1"},
        "openai": {"kind": "openai", "base_url": f"{origin}/v1"},
        "anthropic": {"kind": "anthropic", "base_url": f"{origin}/v1"},
        "gemini": {"kind": "gemini", "base_url": f"{origin}/v1beta"},
        "bedrock": {"kind": "bedrock", "base_url": origin, "region": vendor_bedrock.REGION},
        "vertex": {"kind": "vertex", "base_url": f"{origin}/v1/projects/{PROJECT}/locations/{LOCATION}", "project": PROJECT, "location": LOCATION},
        "azure": {"kind": "azure_openai", "base_url": origin, "api_version": API_VERSION},
    }
    for name, provider in providers.items():
        provider |= {"prefix": name, "models": ["*"]}
    models: dict[str, Any] = {}
    for name, (owner, plain, thinking, _) in TARGETS.items():
        models[name] = {"provider": owner, "model": plain}
        models[f"{name}-thinking"] = {"provider": owner, "model": thinking}
    for name, (owner, plain) in ELSEWHERE.items():
        models[name] = {"provider": owner, "model": plain}
    return {"providers": providers, "models": models, "routing": {"max_attempts": 1, "retry_rounds": 0}}


def broken(target: str, fault: str, who: str) -> str:
    """Return the public name of a model with a fault. `who` makes it a model of its own, which cools down alone."""
    owner, _, _, stem = TARGETS[target]
    return f"{owner}/{stem}fault-{fault}--{who}"


def credentials() -> dict[str, str]:
    """Return each provider's secret."""
    return {**SECRETS, "compatible": SECRETS["openai"]}
