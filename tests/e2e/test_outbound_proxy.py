"""A provider behind a proxy, from the configuration to its answer: the dialer knows the proxy alone, egress makes the tunnel."""

from __future__ import annotations

import json

from fakes.gateway import Gateway
from fakes.provider import TEXT, FakeProvider
from fakes.proxy import running_proxy

SECRET = "sk-fake-0123456789abcdef"
CHAT = {"model": "behind", "messages": [{"role": "user", "content": "Hi"}]}


def test_calls_of_a_provider_with_a_proxy_go_through_it_and_others_do_not() -> None:
    with FakeProvider() as provider, running_proxy() as proxy:
        behind = {"base_url": provider.base_url, "proxy": proxy.url, "models": ["behind"]}
        settings = {"providers": {"behind": behind, "direct": {"base_url": provider.base_url, "models": ["direct"]}}}
        with Gateway(settings, credentials={"behind": SECRET, "direct": SECRET}) as gateway:
            status, headers, body = gateway.post("/v1/chat/completions", CHAT)
            assert status == 200 and headers["x-cliproxy-provider"] == "behind"
            assert json.loads(body)["choices"][0]["message"]["content"] == TEXT
            authority = provider.origin.removeprefix("http://").encode()
            assert [head.split(b"\r\n")[0] for head in proxy.heads] == [b"CONNECT %s HTTP/1.1" % authority]
            assert gateway.post("/v1/chat/completions", CHAT | {"model": "direct"})[0] == 200
            assert len(proxy.heads) == 1


def test_a_proxy_that_lets_nobody_through_is_told_apart_from_the_provider() -> None:
    with FakeProvider() as provider, running_proxy(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n") as proxy:
        behind = {"base_url": provider.base_url, "proxy": proxy.url, "models": ["behind"]}
        with Gateway({"providers": {"behind": behind}}, credentials={"behind": SECRET}) as gateway:
            status, _, body = gateway.post("/v1/chat/completions", CHAT)
            assert (status, json.loads(body)["error"]["code"]) == (502, "provider_proxy_refused")
            assert provider.record()["requests"] == [] and proxy.heads
