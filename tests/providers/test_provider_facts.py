"""Request heads come from the facts, the settings and the credential, and hold nothing else."""

from __future__ import annotations

import re
from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliproxy import __version__
from cliproxy.bounds import MAX_MODEL_NAME_CHARS
from cliproxy.config.schema import Provider
from cliproxy.dialects import ENDPOINTS, Dialect, Endpoint, Operation, Quirks
from cliproxy.errors import ConfigError, SchemaError
from cliproxy.providers.credentials import parse_aws_credential
from cliproxy.providers.facts import SETTING_NAMES, Auth, ProviderFacts, build_head, path_segment
from cliproxy.providers.origin import parse_base_url
from cliproxy.providers.table import PROVIDERS, facts_of

SETTINGS = {"api_version": "2024-10-21", "project": "my-project-1", "location": "us-east5", "region": "eu-west-1"}


def head_of(base_url: str, endpoint: Endpoint, *, credential: bytes | None = b"sk-1", stream: bool = False) -> bytes:
    origin, base_path = parse_base_url(base_url)
    return build_head(facts_of("p", kind=""), endpoint, origin=origin, base_path=base_path, credential=credential, stream=stream)


def settings_of(facts: ProviderFacts, **changed: str) -> dict[str, str]:
    return {name: (SETTINGS | changed)[name] for name in facts.settings}


def line_of(kind: str, endpoint: Endpoint, *, model: str = "m", stream: bool = False, **changed: str) -> tuple[str, str]:
    """Return the origin and the path of a request that a kind's own facts make."""
    facts = PROVIDERS[kind]
    settings = settings_of(facts, **changed)
    origin, base_path = parse_base_url(facts.base_url_with(settings) or "https://mine.example")
    head = build_head(facts, endpoint, origin=origin, base_path=base_path, credential=None, stream=stream, settings=settings, model=model)
    match = re.fullmatch(r"POST ([!-~]+) HTTP/1\.1", head.decode().split("\r\n")[0])
    assert match is not None
    return str(origin), match[1]


def test_a_chat_head_is_exactly_this() -> None:
    assert head_of("https://api.example.com/v1", Endpoint.CHAT_COMPLETIONS) == (
        b"POST /v1/chat/completions HTTP/1.1\r\n"
        b"Host: api.example.com\r\n"
        b"Authorization: Bearer sk-1\r\n"
        b"Content-Type: application/json\r\n"
        b"Accept: application/json\r\n"
        b"Accept-Encoding: identity\r\n"
        b"User-Agent: cliproxy/" + __version__.encode() + b"\r\n"
        b"Content-Length: "
    )


def test_a_stream_is_asked_for_as_events() -> None:
    whole, stream = (head_of("https://h.example/v1", Endpoint.CHAT_COMPLETIONS, stream=stream) for stream in (False, True))
    assert whole.replace(b"Accept: application/json", b"Accept: text/event-stream") == stream != whole


def test_an_endpoint_has_its_own_path_below_the_base() -> None:
    assert head_of("http://localhost:1/a/b/", Endpoint.EMBEDDINGS).startswith(b"POST /a/b/embeddings HTTP/1.1\r\nHost: localhost:1\r\n")
    assert head_of("http://localhost:1", Endpoint.EMBEDDINGS).startswith(b"POST /embeddings HTTP/1.1\r\n")


def test_without_a_credential_there_is_no_authorization_line() -> None:
    assert b"uthorization" not in head_of("https://h.example", Endpoint.CHAT_COMPLETIONS, credential=None)


def test_a_missing_kind_follows_from_the_name() -> None:
    assert facts_of("echo", kind="").kind == "echo"
    assert facts_of("openai", kind="").kind == "openai_compatible"
    assert facts_of("echo", kind="openai_compatible").kind == "openai_compatible"


def test_an_unknown_kind_names_its_key() -> None:
    with pytest.raises(ConfigError, match=r"providers\.x\.kind.*does not exist.*use one of: anthropic, azure_openai, .*, xai"):
        facts_of("x", kind="exec")


def test_the_configuration_knows_the_kinds_and_settings_of_the_table_and_no_others() -> None:
    types = {field.name: field.type for field in msgspec.structs.fields(Provider)}
    assert set(get_args(types["kind"])) == {"", *PROVIDERS}
    assert set(get_args(types["auth"])) == {"", *(auth.value for auth in Auth)}
    assert {name for facts in PROVIDERS.values() for name in facts.settings} == set(SETTING_NAMES) <= set(types)


@pytest.mark.parametrize("kind", PROVIDERS)
def test_what_a_kind_says_of_itself_is_usable(kind: str) -> None:
    facts = PROVIDERS[kind]
    assert facts.kind == kind and facts.auth in facts.allowed_auths
    assert (Auth.SIGV4 in facts.allowed_auths) is (kind == "bedrock")
    if not facts.remote:
        return
    for endpoint in facts.endpoints:
        for stream in (False, True):
            origin, path = line_of(kind, endpoint, stream=stream)
            assert origin.startswith(("https://", "http://127.0.0.1:")) and path.startswith("/") and "{" not in path


# The origin, and then for each endpoint its path (and that of a stream, where it has its own), from the vendors' references.
PATHS = {
    "openai": (
        "https://api.openai.com:443",
        {
            Endpoint.CHAT_COMPLETIONS: "/v1/chat/completions",
            Endpoint.RESPONSES: "/v1/responses",
            Endpoint.EMBEDDINGS: "/v1/embeddings",
            Endpoint.IMAGES: "/v1/images/generations",
            Endpoint.SPEECH: "/v1/audio/speech",
            Endpoint.TRANSCRIPTIONS: "/v1/audio/transcriptions",
            Endpoint.TRANSLATIONS: "/v1/audio/translations",
        },
    ),
    "anthropic": ("https://api.anthropic.com:443", {Endpoint.MESSAGES: "/v1/messages", Endpoint.COUNT_MESSAGE_TOKENS: "/v1/messages/count_tokens"}),
    "gemini": (
        "https://generativelanguage.googleapis.com:443",
        {
            Endpoint.GENERATE_CONTENT: "/v1beta/models/m:generateContent",
            Endpoint.COUNT_CONTENT_TOKENS: "/v1beta/models/m:countTokens",
            Endpoint.EMBED_CONTENT: "/v1beta/models/m:embedContent",
        },
    ),
    "vertex": (
        "https://us-east5-aiplatform.googleapis.com:443",
        {
            Endpoint.MESSAGES: "/v1/projects/my-project-1/locations/us-east5/publishers/anthropic/models/m:rawPredict",
            Endpoint.COUNT_MESSAGE_TOKENS: "/v1/projects/my-project-1/locations/us-east5/publishers/anthropic/models/count-tokens:rawPredict",
            Endpoint.GENERATE_CONTENT: "/v1/projects/my-project-1/locations/us-east5/publishers/google/models/m:generateContent",
            Endpoint.COUNT_CONTENT_TOKENS: "/v1/projects/my-project-1/locations/us-east5/publishers/google/models/m:countTokens",
        },
    ),
    "azure_openai": (
        "https://mine.example:443",
        {
            Endpoint.CHAT_COMPLETIONS: "/openai/deployments/m/chat/completions?api-version=2024-10-21",
            Endpoint.RESPONSES: "/openai/responses?api-version=2024-10-21",
            Endpoint.EMBEDDINGS: "/openai/deployments/m/embeddings?api-version=2024-10-21",
            Endpoint.IMAGES: "/openai/deployments/m/images/generations?api-version=2024-10-21",
            Endpoint.SPEECH: "/openai/deployments/m/audio/speech?api-version=2024-10-21",
            Endpoint.TRANSCRIPTIONS: "/openai/deployments/m/audio/transcriptions?api-version=2024-10-21",
            Endpoint.TRANSLATIONS: "/openai/deployments/m/audio/translations?api-version=2024-10-21",
        },
    ),
    "bedrock": ("https://bedrock-runtime.eu-west-1.amazonaws.com:443", {Endpoint.CONVERSE: "/model/m/converse"}),
    "mistral": (
        "https://api.mistral.ai:443",
        {
            Endpoint.CHAT_COMPLETIONS: "/v1/chat/completions",
            Endpoint.EMBEDDINGS: "/v1/embeddings",
            Endpoint.TRANSCRIPTIONS: "/v1/audio/transcriptions",
        },
    ),
    "groq": (
        "https://api.groq.com:443",
        {
            Endpoint.CHAT_COMPLETIONS: "/openai/v1/chat/completions",
            Endpoint.RESPONSES: "/openai/v1/responses",
            Endpoint.SPEECH: "/openai/v1/audio/speech",
            Endpoint.TRANSCRIPTIONS: "/openai/v1/audio/transcriptions",
            Endpoint.TRANSLATIONS: "/openai/v1/audio/translations",
        },
    ),
    "deepseek": ("https://api.deepseek.com:443", {Endpoint.CHAT_COMPLETIONS: "/chat/completions", Endpoint.MESSAGES: "/anthropic/v1/messages"}),
    "ollama": (
        "http://127.0.0.1:11434",
        {
            Endpoint.CHAT_COMPLETIONS: "/v1/chat/completions",
            Endpoint.MESSAGES: "/v1/messages",
            Endpoint.RESPONSES: "/v1/responses",
            Endpoint.EMBEDDINGS: "/v1/embeddings",
        },
    ),
}
STREAM_PATHS = {
    ("gemini", Endpoint.GENERATE_CONTENT): "/v1beta/models/m:streamGenerateContent?alt=sse",
    ("vertex", Endpoint.GENERATE_CONTENT): "/v1/projects/my-project-1/locations/us-east5/publishers/google/models/m:streamGenerateContent?alt=sse",
    ("vertex", Endpoint.MESSAGES): "/v1/projects/my-project-1/locations/us-east5/publishers/anthropic/models/m:streamRawPredict",
    ("bedrock", Endpoint.CONVERSE): "/model/m/converse-stream",
}


@pytest.mark.parametrize("kind", PATHS)
def test_a_kind_has_the_paths_of_its_vendors_reference(kind: str) -> None:
    origin, paths = PATHS[kind]
    assert set(PROVIDERS[kind].endpoints) == set(paths)
    for endpoint, path in paths.items():
        assert line_of(kind, endpoint) == (origin, path)
        assert line_of(kind, endpoint, stream=True) == (origin, STREAM_PATHS.get((kind, endpoint), path))


def test_azures_v1_api_has_the_model_in_the_body_alone() -> None:
    for endpoint in PROVIDERS["azure_openai"].endpoints:
        _, path = line_of("azure_openai", endpoint, model="secret-deployment", api_version="")
        assert path.startswith("/openai/v1/") and "secret-deployment" not in path and "?" not in path


@pytest.mark.parametrize(
    ("location", "host"),
    [
        ("global", "aiplatform.googleapis.com"),
        ("us", "aiplatform.us.rep.googleapis.com"),
        ("eu", "aiplatform.eu.rep.googleapis.com"),
        ("europe-west4", "europe-west4-aiplatform.googleapis.com"),
    ],
)
def test_vertex_has_a_host_for_each_location(location: str, host: str) -> None:
    assert line_of("vertex", Endpoint.MESSAGES, location=location)[0] == f"https://{host}:443"


HOSTILE_SETTINGS = [
    "",
    "a",
    "..",
    "a/b",
    "x.attacker.example",
    "us-east-1.attacker.example/",
    "us-east-1@x",
    "x?y",
    "x#y",
    "{model}",
    "x\r\ny",
    "us-east-1\n",
    "х-east-1",
]


@pytest.mark.parametrize("value", HOSTILE_SETTINGS)
@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, facts in PROVIDERS.items() for name, setting in facts.settings.items() if setting.required])
def test_a_setting_that_could_move_the_host_or_the_path_is_refused(kind: str, name: str, value: str) -> None:
    facts = PROVIDERS[kind]
    assert not facts.settings[name].fits(value)
    with pytest.raises(ConfigError):
        facts.values(settings_of(facts, **{name: value}))


@pytest.mark.parametrize("value", [value for value in HOSTILE_SETTINGS if value])
def test_an_api_version_is_a_date(value: str) -> None:
    assert not PROVIDERS["azure_openai"].settings["api_version"].fits(value)


# --- models in paths -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["", ".", "..", "...", "m" * (MAX_MODEL_NAME_CHARS + 1)])
def test_a_model_that_could_be_a_dot_segment_or_none_is_refused(model: str) -> None:
    with pytest.raises(SchemaError):
        path_segment(model)


@pytest.mark.parametrize(
    ("model", "segment"),
    [
        ("gemini-2.5-flash", "gemini-2.5-flash"),
        ("anthropic.claude-sonnet-4-20250514-v1:0", "anthropic.claude-sonnet-4-20250514-v1%3A0"),
        ("claude-sonnet-4@20250514", "claude-sonnet-4%4020250514"),
        ("arn:aws:bedrock:us-east-1:1:inference-profile/x", "arn%3Aaws%3Abedrock%3Aus-east-1%3A1%3Ainference-profile%2Fx"),
        ("../../../v1/admin", "..%2F..%2F..%2Fv1%2Fadmin"),
        ("a?key=b#c", "a%3Fkey%3Db%23c"),
        ("a%2f..%2fb", "a%252f..%252fb"),
        ("a b\r\nX: y", "a%20b%0D%0AX%3A%20y"),
        ("модель", "%D0%BC%D0%BE%D0%B4%D0%B5%D0%BB%D1%8C"),
        ("a\\..\\b;c", "a%5C..%5Cb%3Bc"),
    ],
)
def test_a_model_becomes_one_piece_of_one_segment(model: str, segment: str) -> None:
    assert path_segment(model) == segment


@given(model=st.text(max_size=60))
def test_no_model_changes_the_shape_of_a_path(model: str) -> None:
    for kind, endpoint in (("gemini", Endpoint.GENERATE_CONTENT), ("bedrock", Endpoint.CONVERSE), ("azure_openai", Endpoint.CHAT_COMPLETIONS)):
        plain = line_of(kind, endpoint, model="m", stream=True)[1]
        try:
            path = line_of(kind, endpoint, model=model, stream=True)[1]
        except SchemaError:
            continue
        assert [path.count(mark) for mark in "/?#"] == [plain.count(mark) for mark in "/?#"]
        assert not {".", "..", ""} & set(path.partition("?")[0].split("/")[1:])
        assert re.fullmatch(r"[A-Za-z0-9._~%/:?=&-]+", path)


# --- what a kind can do ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "endpoints"),
    [
        ("claude-sonnet-4@20250514", [Endpoint.MESSAGES, Endpoint.COUNT_MESSAGE_TOKENS]),
        ("gemini-2.5-pro", [Endpoint.GENERATE_CONTENT, Endpoint.COUNT_CONTENT_TOKENS]),
        ("my-claude", []),
        ("text-embedding-005", []),
        ("", []),
    ],
)
def test_vertex_has_the_endpoints_of_the_models_own_vendor(model: str, endpoints: list[Endpoint]) -> None:
    assert list(PROVIDERS["vertex"].endpoints_for(model)) == endpoints


@pytest.mark.parametrize(
    ("model", "by_budget"),
    [
        ("claude-3-7-sonnet-20250219", True),
        ("claude-sonnet-4-20250514", True),
        ("claude-opus-4@20250514", True),
        ("claude-opus-4-5", True),
        ("claude-haiku-4-5-20251001", True),
        ("claude-opus-4-6", False),
        ("claude-sonnet-4-6", False),
        ("claude-opus-4-7-20260401", False),
        ("claude-sonnet-5", False),
        ("claude-next", False),
        ("my-own-name", False),
    ],
)
def test_models_before_4_6_think_by_budget(model: str, by_budget: bool) -> None:
    quirks = PROVIDERS["anthropic"].endpoints_for(model)[Endpoint.MESSAGES].quirks
    assert bool(quirks & Quirks.BUDGET_THINKING) is by_budget
    if model.startswith("claude"):
        assert PROVIDERS["vertex"].endpoints_for(model)[Endpoint.MESSAGES].quirks == quirks | Quirks.VERTEX


@pytest.mark.parametrize(
    ("model", "quirks"),
    [
        ("anthropic.claude-sonnet-4-20250514-v1:0", Quirks.CLAUDE | Quirks.BUDGET_THINKING),
        ("us.anthropic.claude-sonnet-4-20250514-v1:0", Quirks.CLAUDE | Quirks.BUDGET_THINKING),
        ("global.anthropic.claude-opus-4-5-20251101-v1:0", Quirks.CLAUDE | Quirks.BUDGET_THINKING),
        ("arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.anthropic.claude-sonnet-4-20250514-v1:0", Quirks.CLAUDE | Quirks.BUDGET_THINKING),
        ("eu.anthropic.claude-opus-4-7-v1", Quirks.CLAUDE),
        ("anthropic.claude-next", Quirks.CLAUDE),
        ("amazon.nova-pro-v1:0", Quirks.NONE),
        ("arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/abc123", Quirks.NONE),
        ("meta.anthropic-like", Quirks.NONE),
    ],
)
def test_bedrock_knows_anthropics_models_by_their_ids(model: str, quirks: Quirks) -> None:
    entry = PROVIDERS["bedrock"].endpoints_for(model)[Endpoint.CONVERSE]
    assert (entry.quirks, entry.path) == (quirks, "/model/{model}/converse")


@pytest.mark.parametrize("kind", PROVIDERS)
def test_every_kind_can_generate_and_says_what_it_prefers_first(kind: str) -> None:
    first = next(iter(PROVIDERS[kind].endpoints))
    assert ENDPOINTS[first][0] is Operation.GENERATE


@pytest.mark.parametrize("kind", PROVIDERS)
def test_quirks_belong_to_the_dialect_of_their_endpoint(kind: str) -> None:
    belongs = {
        Dialect.OPENAI_CHAT: Quirks.OLD_TOKEN_CAP | Quirks.NEW_TOKEN_CAP | Quirks.NO_STREAM_OPTIONS | Quirks.NO_DEVELOPER_ROLE,
        Dialect.OPENAI_RESPONSES: Quirks.STATELESS,
        Dialect.ANTHROPIC_MESSAGES: Quirks.VERTEX | Quirks.BUDGET_THINKING,
        Dialect.BEDROCK_CONVERSE: Quirks.CLAUDE | Quirks.BUDGET_THINKING,
    }
    facts = PROVIDERS[kind]
    for endpoint, entry in [*facts.endpoints.items(), *(row for _, family in facts.families for row in family.items())]:
        assert not entry.quirks & ~belongs.get(ENDPOINTS[endpoint][1], Quirks.NONE)
        assert entry.quirks & (Quirks.OLD_TOKEN_CAP | Quirks.NEW_TOKEN_CAP) != Quirks.OLD_TOKEN_CAP | Quirks.NEW_TOKEN_CAP


def test_a_model_is_in_the_body_unless_the_dialect_or_vertex_has_it_in_the_path() -> None:
    assert PROVIDERS["azure_openai"].model_in_body(Endpoint.CHAT_COMPLETIONS)
    assert PROVIDERS["anthropic"].model_in_body(Endpoint.MESSAGES)
    assert not PROVIDERS["vertex"].model_in_body(Endpoint.MESSAGES)
    assert PROVIDERS["vertex"].model_in_body(Endpoint.COUNT_MESSAGE_TOKENS)
    assert not PROVIDERS["gemini"].model_in_body(Endpoint.EMBED_CONTENT)
    assert not PROVIDERS["bedrock"].model_in_body(Endpoint.CONVERSE)
    for facts in PROVIDERS.values():
        for endpoint, entry in facts.endpoints.items():
            assert facts.model_in_body(endpoint) or "{model}" in entry.path


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("AKIDEXAMPLEEXAMPLE:wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", ("AKIDEXAMPLEEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "")),
        (
            "ASIAEXAMPLEEXAMPLE:wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY:" + "IQoJb3JpZ2lu/+==" * 20,
            ("ASIAEXAMPLEEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "IQoJb3JpZ2lu/+==" * 20),
        ),
        ("sk-just-a-key-that-is-no-pair", None),
        ("AKIDEXAMPLEEXAMPLE:", None),
        ("AKIDEXAMPLEEXAMPLE:wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY:", None),
        ("AKIDEXAMPLEEXAMPLE:wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY\n", None),
        ("akidexampleexample:wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", None),
    ],
)
def test_an_aws_credential_has_two_or_three_parts(text: str, parts: tuple[str, str, str] | None) -> None:
    assert parse_aws_credential(text) == parts
