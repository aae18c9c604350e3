"""The kinds of provider that there are. A kind that is not in the table does not exist."""

from __future__ import annotations

from cliproxy.errors import ConfigError
from cliproxy.providers import (
    anthropic,
    azure_openai,
    bedrock,
    deepseek,
    echo,
    gemini,
    groq,
    mistral,
    ollama,
    openai,
    openai_compatible,
    openrouter,
    together,
    vertex,
    vllm,
    xai,
)
from cliproxy.providers.facts import ProviderFacts

PROVIDERS: dict[str, ProviderFacts] = {
    facts.kind: facts
    for facts in (
        openai.FACTS,
        anthropic.FACTS,
        gemini.FACTS,
        azure_openai.FACTS,
        vertex.FACTS,
        bedrock.FACTS,
        mistral.FACTS,
        groq.FACTS,
        deepseek.FACTS,
        openrouter.FACTS,
        together.FACTS,
        xai.FACTS,
        ollama.FACTS,
        vllm.FACTS,
        openai_compatible.FACTS,
        echo.FACTS,
    )
}


def facts_of(name: str, *, kind: str) -> ProviderFacts:
    """Return the facts for provider `name`, whose `kind` may be empty: `echo` is then an echo, everything else OpenAI-compatible.

    Raises `ConfigError` for an unknown kind.
    """
    facts = PROVIDERS.get(kind or ("echo" if name == "echo" else "openai_compatible"))
    if facts is None:
        raise ConfigError(f"provider kind {kind!r} does not exist", cure=f"use one of: {', '.join(sorted(PROVIDERS))}", key=f"providers.{name}.kind")
    return facts
