"""A credential goes to its sealed origin or nowhere."""

from __future__ import annotations

import pytest

from cliproxy.config.schema import Provider
from cliproxy.dialects import Endpoint
from cliproxy.egress.inject import BoundCredential, Injector
from cliproxy.errors import ForeignOrigin, UpstreamError
from cliproxy.secret import Secret

A = "https://a.example:443"
PROVIDERS = {
    "a": Provider(base_url="https://a.example/v1"),
    "b": Provider(base_url="https://b.example:8443"),
    "open": Provider(base_url="http://127.0.0.1:1", auth="none"),
    "named": Provider(),
    "echo": Provider(),
}


def granted(secret: bytes = b"sk-secret-a") -> Injector:
    injector = Injector(PROVIDERS)
    injector.grant("c1", provider="a", origin=A, secret=Secret(secret))
    return injector


def head(bound: BoundCredential | None, *, origin: str = A, stream: bool = False) -> bytes:
    assert bound is not None
    return bound.head(Endpoint.CHAT_COMPLETIONS, origin=origin, stream=stream, body=b"x" * 12)


def test_the_head_carries_the_credential_and_the_length() -> None:
    text = head(granted().for_provider("a"))
    assert text.startswith(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a.example\r\nAuthorization: Bearer sk-secret-a\r\n")
    assert text.endswith(b"\r\nContent-Length: 12\r\n\r\n") and text.count(b"\r\n\r\n") == 1


@pytest.mark.parametrize(
    "origin",
    [
        "https://b.example:8443",
        "http://a.example:443",
        "https://a.example:444",
        "https://a.example",
        "https://a.example:443.attacker.example",
        "https://A.example:443",
        "",
    ],
)
def test_no_head_is_made_for_another_origin(origin: str) -> None:
    with pytest.raises(ForeignOrigin):
        head(granted().for_provider("a"), origin=origin)


@pytest.mark.parametrize(("provider", "origin"), [("b", A), ("a", "https://b.example:8443"), ("unknown", A), ("named", A), ("echo", A)])
def test_a_grant_for_another_origin_is_refused_and_unused(provider: str, origin: str) -> None:
    injector = Injector(PROVIDERS)
    with pytest.raises(ForeignOrigin):
        injector.grant("c1", provider=provider, origin=origin, secret=Secret(b"sk-secret-a"))
    assert injector.for_provider(provider) is None


@pytest.mark.parametrize(
    "secret", [b"sk-1234\r\nX: y", b"sk-1234\n", b"sk 123456", b"sk-\x00123456", b"sk-\xff123456", b"sk-123\t456", b"", b"short", b"x" * 9000]
)
def test_a_secret_that_fits_no_header_is_refused_and_unused(secret: bytes) -> None:
    injector = Injector(PROVIDERS)
    with pytest.raises(UpstreamError):
        injector.grant("c1", provider="a", origin=A, secret=Secret(secret))
    assert injector.for_provider("a") is None


def test_without_a_credential_there_is_nothing_to_call_with() -> None:
    injector = Injector(PROVIDERS)
    assert injector.for_provider("a") is None
    assert injector.for_provider("named") is None


def test_a_provider_that_wants_no_credential_gets_none() -> None:
    bound = Injector(PROVIDERS).for_provider("open")
    assert bound is not None and bound.id == ""
    assert b"uthorization" not in head(bound, origin="http://127.0.0.1:1")


def test_a_credential_for_a_provider_that_wants_none_is_not_sent() -> None:
    injector = Injector(PROVIDERS)
    injector.grant("c1", provider="open", origin="http://127.0.0.1:1", secret=Secret(b"sk-secret-a"))
    assert b"sk-secret-a" not in head(injector.for_provider("open"), origin="http://127.0.0.1:1")


def test_the_newest_credential_is_used_and_the_older_one_after_its_withdrawal() -> None:
    injector = granted()
    injector.grant("c0", provider="a", origin=A, secret=Secret(b"sk-secret-new"))
    bound = injector.for_provider("a")
    assert bound is not None and bound.id == "c0"
    injector.withdraw("c0")
    assert b"sk-secret-a" in head(injector.for_provider("a"))
    injector.withdraw("c1")
    injector.withdraw("c1")
    assert injector.for_provider("a") is None


def test_what_the_vault_no_longer_grants_is_forgotten() -> None:
    injector = granted()
    injector.grant("c2", provider="b", origin="https://b.example:8443", secret=Secret(b"sk-secret-b"))
    injector.keep_only(frozenset({"c2"}))
    assert injector.for_provider("a") is None and injector.for_provider("b") is not None


def test_after_a_reload_a_moved_provider_has_no_credential_until_it_moves_back() -> None:
    injector = granted()
    assert injector.retable(PROVIDERS | {"a": Provider(base_url="https://attacker.example/v1")}) == ["c1"]
    assert injector.for_provider("a") is None
    assert injector.retable(PROVIDERS | {"a": Provider(base_url="https://a.example/v2")}) == []
    assert head(injector.for_provider("a")).startswith(b"POST /v2/chat/completions ")


def test_nothing_prints_a_secret() -> None:
    injector = granted()
    bound = injector.for_provider("a")
    assert "sk-secret-a" not in repr(bound) + str(injector) + repr(bound.guard if bound else "")


def test_the_guard_knows_the_secret() -> None:
    bound = granted().for_provider("a")
    assert bound is not None and bound.guard.clean(b"sk-secret-a") == b"[redacted]"
