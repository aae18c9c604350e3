"""Request heads come from the facts, the settings and the credential, and hold nothing else."""

from __future__ import annotations

import pytest

from cliproxy import __version__
from cliproxy.dialects import Endpoint
from cliproxy.errors import ConfigError
from cliproxy.providers.facts import Auth, build_head
from cliproxy.providers.origin import parse_base_url
from cliproxy.providers.table import PROVIDERS, facts_of


def head_of(base_url: str, endpoint: Endpoint, *, credential: bytes | None = b"sk-1", stream: bool = False) -> bytes:
    origin, base_path = parse_base_url(base_url)
    return build_head(facts_of("p", kind=""), endpoint, origin=origin, base_path=base_path, credential=credential, stream=stream)


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
    with pytest.raises(ConfigError, match=r"providers\.x\.kind.*does not exist.*use one of: echo, openai_compatible"):
        facts_of("x", kind="exec")


def test_every_kind_has_facts_about_every_endpoint() -> None:
    for kind, facts in PROVIDERS.items():
        assert facts.kind == kind
        assert all(entry.path.startswith("/") is facts.remote for entry in facts.endpoints.values())
        assert (facts.auth is not Auth.NONE) is facts.remote
