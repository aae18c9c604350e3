"""Credential redirection, the egress half: a credential leaves for its enrolled origin or not at all.

Sources: CVE-2024-6587 (LiteLLM, `api_base` in the body), CVE-2025-66405 (Portkey, `custom-host`), Bifrost #7323, and every client that follows a
redirect with its Authorization header on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from cliproxy.config.schema import Provider
from cliproxy.dialects import Endpoint
from cliproxy.egress.inject import Injector
from cliproxy.errors import ForeignOrigin, ProviderRefusal
from cliproxy.secret import Secret
from fakes.provider import FakeProvider
from fakes.rig import SECRET, Recorder, Rig, raw_server, run


@pytest.fixture(scope="module")
def provider() -> Iterator[FakeProvider]:
    with FakeProvider() as fake:
        yield fake


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary Redirect", "308 Permanent Redirect"])
def test_no_redirect_is_followed(provider: FakeProvider, status: str) -> None:
    provider.reset()
    answer = f"HTTP/1.1 {status}\r\nLocation: {provider.base_url}/chat/completions\r\nContent-Length: 0\r\n\r\n".encode()

    async def work() -> None:
        with raw_server(answer) as (base_url, received):
            rig = Rig(base_url)
            recorder = await rig.call()
            assert isinstance(recorder.error, ProviderRefusal) and recorder.error.code == "provider_redirected"
            assert rig.dialer.dials == 1 and len(received) == 1

    run(work)
    assert provider.record() == {"requests": [], "connections": 0, "broken_off": 0}


ROUTING = {
    "api_base": "http://attacker.example/v1",
    "base_url": "http://attacker.example/v1",
    "custom_host": "http://attacker.example",
    "api_key": "x",
    "headers": {"Host": "attacker.example", "Authorization": "Bearer x"},
    "extra_headers": {"X-Forwarded-Host": "attacker.example"},
    "url": "http://attacker.example",
}


def test_a_body_cannot_say_where_it_goes(provider: FakeProvider) -> None:
    """Decoding refuses routing fields before egress sees them; here they are let through, and change neither target nor head."""
    provider.reset()
    body = json.dumps({"model": "m", "messages": [], **ROUTING}).encode()

    async def work() -> None:
        rig = Rig(provider.base_url)
        recorder, _ = rig.send(body)
        await recorder.ended.wait()
        assert recorder.completed

    run(work)
    (received,) = provider.record()["requests"]
    assert received["line"] == "POST /v1/chat/completions HTTP/1.1"
    assert dict(received["headers"])["Host"] == provider.origin.removeprefix("http://")
    assert [value for name, value in received["headers"] if name.lower() == "authorization"] == [f"Bearer {SECRET.decode()}"]
    assert len(received["headers"]) == 7


def test_a_moved_provider_takes_no_credential_along() -> None:
    """The operator's file is edited (or an attacker edits it): the sealed origin does not move with it."""
    injector = Injector({"p": Provider(base_url="https://api.example.com/v1")})
    injector.grant("c", provider="p", origin="https://api.example.com:443", secret=Secret(SECRET))
    for base_url in (
        "https://attacker.example/v1",
        "http://api.example.com/v1",
        "https://api.example.com:8443/v1",
        "https://api.example.com.attacker.example/v1",
    ):
        assert injector.retable({"p": Provider(base_url=base_url)}) == ["c"]
        assert injector.for_provider("p") is None


def test_a_grant_for_another_origin_is_never_used() -> None:
    injector = Injector({"p": Provider(base_url="https://attacker.example/v1")})
    with pytest.raises(ForeignOrigin):
        injector.grant("c", provider="p", origin="https://api.example.com:443", secret=Secret(SECRET))
    assert injector.for_provider("p") is None


def test_a_credential_held_from_before_a_move_does_not_go_to_the_new_origin(provider: FakeProvider) -> None:
    """A call was authorised, then the reload came: its credential is bound to the old origin, the provider's connections lead to the new one."""
    provider.reset()

    async def work() -> None:
        rig = Rig("http://127.0.0.1:1/v1")
        bound = rig.injector.for_provider("fake")
        assert bound is not None
        rig.pool.retable({"fake": Provider(base_url=provider.base_url)}, {})
        with pytest.raises(ForeignOrigin):
            rig.pool.send(Recorder(), bound, Endpoint.CHAT_COMPLETIONS, b"{}", stream=False)

    run(work)
    assert provider.record()["requests"] == []


def test_a_credential_cannot_smuggle_a_header() -> None:
    injector = Injector({"p": Provider(base_url="https://api.example.com/v1")})
    for secret in (b"sk-12345\r\nHost: attacker.example", b"sk-12345\nX: y", b"sk-12345\rX: y", b"sk-12345\x00"):
        with pytest.raises(Exception, match="can not be sent"):
            injector.grant("c", provider="p", origin="https://api.example.com:443", secret=Secret(secret))
        assert injector.for_provider("p") is None
