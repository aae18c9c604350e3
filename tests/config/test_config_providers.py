"""Providers of every kind: what a kind implies is written out, and what it does not take is refused with its line. docs/providers.md is checked whole."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cliproxy.config.load import parse_config
from cliproxy.config.schema import Provider
from cliproxy.egress.inject import Injector
from cliproxy.errors import ConfigError
from cliproxy.providers.table import PROVIDERS

FILE = "cliproxy.yaml"
DOCUMENT = (Path(__file__).parents[2] / "docs" / "providers.md").read_text()


def provider(text: str) -> Provider:
    block = "providers:\n  p:\n" + "".join(f"    {line}\n" for line in text.strip().split("\n"))
    return parse_config(block.encode(), file=FILE).settings.providers["p"]


IMPLIED = {
    "kind: openai": ("https://api.openai.com/v1", "bearer"),
    "kind: anthropic": ("https://api.anthropic.com/v1", "x-api-key"),
    "kind: gemini": ("https://generativelanguage.googleapis.com/v1beta", "x-goog-api-key"),
    "kind: vertex\nproject: my-project-1\nlocation: global": ("https://aiplatform.googleapis.com/v1/projects/my-project-1/locations/global", "bearer"),
    "kind: vertex\nproject: my-project-1\nlocation: us-east5": (
        "https://us-east5-aiplatform.googleapis.com/v1/projects/my-project-1/locations/us-east5",
        "bearer",
    ),
    "kind: bedrock\nregion: us-gov-west-1": ("https://bedrock-runtime.us-gov-west-1.amazonaws.com", "sigv4"),
    "kind: azure_openai\nbase_url: https://mine.openai.azure.com/": ("https://mine.openai.azure.com", "api-key"),
    "kind: ollama": ("http://127.0.0.1:11434/v1", "none"),
    "kind: mistral\nbase_url: https://proxy.example/mistral/v1": ("https://proxy.example/mistral/v1", "bearer"),
    "kind: bedrock\nregion: eu-west-1\nauth: bearer": ("https://bedrock-runtime.eu-west-1.amazonaws.com", "bearer"),
    "kind: vllm\nbase_url: http://127.0.0.1:8000/v1\nauth: none": ("http://127.0.0.1:8000/v1", "none"),
    "rate_limit: {requests_per_minute: 5}": ("", "bearer"),
}


@pytest.mark.parametrize("text", IMPLIED)
def test_what_a_kind_implies_is_written_out(text: str) -> None:
    made = provider(text)
    assert (made.base_url, made.auth) == IMPLIED[text]
    Injector({"p": made})  # egress takes what was written


REFUSED = {
    "kind: openai\nregion: us-east-1": (4, "providers.p.region", "have no such key"),
    "kind: bedrock\nregion: us-east-1\nproject: x": (5, "providers.p.project", "have no such key"),
    "region: us-east-1": (3, "providers.p.region", "have no such key"),
    "kind: bedrock": (2, "providers.p.region", "need this key"),
    "kind: vertex\nproject: my-project-1": (2, "providers.p.location", "need this key"),
    "kind: vertex\nproject: a/b\nlocation: global": (4, "providers.p.project", "no project"),
    "kind: bedrock\nregion: us-east-1.attacker.example": (4, "providers.p.region", "no region"),
    "kind: bedrock\nregion: '../../x'": (4, "providers.p.region", "no region"),
    "kind: azure_openai\nbase_url: https://x.example\napi_version: 2024-10-21&x=y": (5, "providers.p.api_version", "no api version"),
    "kind: openai\nauth: sigv4": (4, "providers.p.auth", "do not take this"),
    "kind: gemini\nauth: x-api-key": (4, "providers.p.auth", "do not take this"),
    "kind: bedrock\nregion: us-east-1\nauth: api-key": (5, "providers.p.auth", "do not take this"),
    "kind: exec": (3, "providers.p.kind", "not known"),
    "kind: openai\napi_key: sk-123": (4, "providers.p.api_key", "unknown"),
    "kind: vllm\nmodels: [m]": (4, "providers.p.models", "needs a base_url"),
    "kind: azure_openai\nmodels: [m]": (4, "providers.p.models", "needs a base_url"),
    "kind: echo\nregion: us-east-1": (4, "providers.p.region", "have no such key"),
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_a_kind_does_not_take_is_refused_with_its_line(text: str) -> None:
    line, key, problem = REFUSED[text]
    with pytest.raises(ConfigError, match=re.escape(problem)) as caught:
        provider(text)
    assert (caught.value.file, caught.value.line, caught.value.key) == (FILE, line, key) and caught.value.cure


def test_every_kind_has_a_section_with_a_block_that_works() -> None:
    sections = re.findall(r"^## `([a-z_]+)`.*?\n(.*?)(?=^## |\Z)", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert [kind for kind, _ in sections] == list(PROVIDERS)
    for kind, text in sections:
        blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
        assert blocks, kind
        for block in blocks:
            loaded = parse_config(block.encode(), file=f"{kind}.yaml")
            assert loaded.warnings == () and (loaded.settings.models or any(made.models for made in loaded.settings.providers.values()))
            assert {made.kind for made in loaded.settings.providers.values()} == {kind}
            Injector(loaded.settings.providers)


def test_the_document_names_each_kinds_own_address() -> None:
    from cliproxy.providers.table import PROVIDERS

    words = {"{host}": "HOST", "{project}": "PROJECT", "{location}": "LOCATION", "{region}": "REGION"}
    for kind, facts in PROVIDERS.items():
        address = facts.base_url
        for setting, word in words.items():
            address = address.replace(setting, word)
        if address:
            assert f"| `{kind}` | `{address}` |" in DOCUMENT
        elif facts.remote:
            assert f"`{kind}`" in DOCUMENT.partition("| none: give one |")[0].rpartition("\n")[2]
