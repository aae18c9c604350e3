"""Files that are written to break whoever reads them, and mistakes whose message has to say where and what."""

from __future__ import annotations

import pytest

from cliproxy.bounds import MAX_MODEL_CHARS
from cliproxy.config.load import parse_config
from cliproxy.config.routes import MAX_ROUTING_STEPS, pattern_of
from cliproxy.errors import ConfigError

URL = "https://a.example.com/v1"
PROVIDER = f'providers:\n  a: {{base_url: "{URL}"}}\n'


def fault(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse_config(text.encode(), file="f")
    return caught.value


SYNTAX = {
    # name: (text, line, what the message says)
    "escape beyond Unicode": ('server:\n  listen: ["\\U00110000"]\n', 2, "escapes"),
    "escape beyond 32 bits": ('server:\n  listen: ["\\UFFFFFFFF"]\n', 2, "escapes"),
    "tab before a key": ("server:\n\tport: 1\n", 2, "tab"),
    "tab before a value": ("server:\n  port:\t1\n", 2, "tab"),
    "quote never closed": ("server:\n  listen: ['127.0.0.1\nproviders:\n  a: {}\n", 2, "quote"),
    "quote around a key never closed": ("auth:\n  encryption:\n    key: 'sk-secret\n", 3, "quote"),
    "bracket never closed": ('server:\n  listen: ["127.0.0.1"\n  port: 1\n', 3, "the [ that was opened in line 2"),
    "brace never closed": ("server: {port: 1\nproviders: {}\n", 2, "the { that was opened in line 1"),
}


@pytest.mark.parametrize(("text", "line", "said"), SYNTAX.values(), ids=SYNTAX)
def test_what_is_no_yaml_is_named_with_the_line_to_mend(text: str, line: int, said: str) -> None:
    error = fault(text)
    assert error.line == line
    assert said in str(error)
    assert "sk-secret" not in str(error)


def test_a_variable_of_the_environment_is_refused_and_never_taken_for_its_own_name() -> None:
    assert fault(PROVIDER.replace(URL, "${BASE_URL}")).key == "providers.a.base_url"
    key = fault("auth:\n  encryption:\n    key: ${LLM_PROXY_VAULT_KEY_PRODUCTION}\n")  # 32 characters, as a key has
    assert (key.key, key.line) == ("auth.encryption.key", 3)
    assert "environment" in str(key) and "VAULT" not in str(key)


def test_a_list_as_the_inline_key_is_not_called_empty_alone() -> None:
    error = fault("auth: {encryption: {key: [sk-secret]}}\n")
    assert "more than one value" in str(error) and "sk-secret" not in str(error)


@pytest.mark.parametrize("key", ["api_key", "apikey", "key", "token", "secret", "password", "openai_api_key", "access-token", "api-keys", "API_KEY"])
def test_a_secret_under_a_provider_is_answered_with_the_command_that_takes_it(key: str) -> None:
    error = fault(f"providers:\n  a:\n    {key}: sk-secret\n")
    assert error.cure.endswith("`cliproxy credentials add a`")
    assert (error.line, error.key) == (3, f"providers.a.{key}")
    assert "sk-secret" not in str(error)


@pytest.mark.parametrize(
    ("kind", "url"),
    [
        ("openai_compatible", "https://h.example.com/v1/chat/completions"),
        ("openai", "https://api.openai.com/v1/chat/completions/"),
        ("anthropic", "https://api.anthropic.com/v1/messages"),
        ("azure_openai", "https://r.openai.azure.com/openai/v1/"),
        ("gemini", "https://generativelanguage.googleapis.com/v1beta/models"),
    ],
)
def test_a_base_url_that_holds_an_endpoints_path_is_warned_about(kind: str, url: str) -> None:
    (warning,) = parse_config(f"providers:\n  a:\n    kind: {kind}\n    base_url: {url}\n    models: [m]\n".encode(), file="f").warnings
    assert warning.startswith("f:4: providers.a.base_url: it should end before /")


@pytest.mark.parametrize("url", [URL, "https://h.example.com", "https://h.example.com/chat", "https://r.openai.azure.com"])
def test_a_base_url_that_ends_before_the_endpoints_path_is_not(url: str) -> None:
    assert parse_config(f"providers:\n  a:\n    base_url: {url}\n    models: [m]\n".encode(), file="f").warnings == ()


def test_one_address_in_two_spellings_is_listened_on_once() -> None:
    assert fault('server:\n  listen:\n    - "::1"\n    - "0:0:0:0:0:0:0:1"\n').key == "server.listen[1]"


# --- size ------------------------------------------------------------------------------------------------------------


def test_aliases_of_a_large_pool_are_counted_before_they_fill_the_memory_of_every_process() -> None:
    members = "".join(f"      - {{provider: a, model: m{number}}}\n" for number in range(64))
    aliases = "".join(f"  n{number}: {{alias: x}}\n" for number in range(MAX_ROUTING_STEPS // 64))
    error = fault(f"{PROVIDER}models:\n  x:\n    pool:\n{members}{aliases}")
    assert error.key is not None and error.key.startswith("models.n")
    assert error.line is not None and error.line > 60


def test_a_long_fallback_of_many_models_is_counted_at_the_model_that_has_it() -> None:
    aliases = "".join(f"  a{number}: {{alias: z}}\n" for number in range(2000))
    fallback = ", ".join(f"a{number}" for number in range(2000))
    users = "".join(f"  n{number}: {{provider: a, model: b, fallback: [x]}}\n" for number in range(200))
    error = fault(f"{PROVIDER}models:\n  z: {{provider: a, model: z}}\n{aliases}  x: {{provider: a, model: y, fallback: [{fallback}]}}\n{users}")
    assert error.key is not None and error.key.startswith("models.n")


def test_settings_that_no_process_would_take_are_refused_when_they_are_read() -> None:
    names = ",".join(f"{'x' * 190}{number}" for number in range(2000))
    providers = f"  p0: {{base_url: '{URL}', exclude: &e [{names}]}}\n" + "".join(
        f"  p{number}: {{base_url: '{URL}', exclude: *e}}\n" for number in range(1, 20)
    )
    error = fault(f"providers:\n{providers}")
    assert error.file == "f" and "aliases written out" in str(error)


def test_a_message_does_not_list_a_thousand_providers() -> None:
    providers = "".join(f"  vendor-{number}: {{}}\n" for number in range(1000))
    error = fault(f"providers:\n{providers}models:\n  x: {{provider: vendor-77x, model: m}}\n")
    assert "vendor-77" in str(error)
    assert len(str(error)) < 400


def test_a_wildcard_that_a_client_wrote_a_name_against_is_matched_without_going_back() -> None:
    pattern = pattern_of("*a*a*a*b")
    assert "(?>" in pattern.pattern  # each part is sought once: with plain `.*` this name costs a third of a second
    assert pattern.fullmatch("a" * (MAX_MODEL_CHARS - 1) + "c") is None
    for text, name, fits in [("a*b*c", "aXbXbXc", True), ("a*b*c", "abc", True), ("a*b*c", "acb", False), ("*ab*ab", "abab", True), ("*ab*ab", "abXb", False)]:
        assert (pattern_of(text).fullmatch(name) is not None) is fits, (text, name)
