"""Calls through a proxy of ours over real sockets: what it is told, and what its answers do."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from cliproxy.config.schema import Provider
from cliproxy.dialer.table import build_table
from cliproxy.egress.pool import Pool
from cliproxy.errors import UpstreamError
from fakes.certificates import Authority
from fakes.provider import TEXT, FakeProvider
from fakes.proxy import OK, running_proxy
from fakes.rig import SECRET, Recorder, Rig, run


class ProxiedRig(Rig):
    """A rig whose provider is behind `url`."""

    def __init__(self, base_url: str, url: str, *, ca_file: Path | None = None) -> None:
        super().__init__(base_url, ca_file=ca_file, connect=0.5)
        self.pool.close()
        self.providers = {"fake": Provider(base_url=base_url, proxy=url, ca_file=str(ca_file or ""), timeouts=self.providers["fake"].timeouts)}
        self.pool = Pool(self.loop, dialer=self.dialer, providers=self.providers, contexts=self.contexts, sweep_seconds=0.02)


def call_through(base_url: str, url: str, *, ca_file: Path | None = None, calls: int = 1) -> list[Recorder]:
    async def work() -> list[Recorder]:
        rig = ProxiedRig(base_url, url, ca_file=ca_file)
        return [await rig.call() for _ in range(calls)]

    return run(work)


def test_calls_go_through_the_proxy_and_the_tunnel_is_used_again() -> None:
    with FakeProvider() as provider, running_proxy() as between:
        first, second = call_through(provider.base_url, between.url, calls=2)
        assert first.completed and TEXT.encode() in first.body and second.completed
        authority = provider.base_url.split("/")[2].encode()
        assert [head.split(b"User-Agent")[0] for head in between.heads] == [b"CONNECT %s HTTP/1.1\r\nHost: %s\r\n" % (authority, authority)]


def test_a_proxy_sees_neither_the_credential_nor_the_prompt_of_a_provider_with_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    issued = authority.issue("127.0.0.1", "localhost")
    with FakeProvider(cert=issued.cert, key=issued.key, ca=authority.ca) as provider, running_proxy() as between:
        (only,) = call_through(provider.base_url.replace("127.0.0.1", "localhost"), between.url, ca_file=authority.ca)
        assert only.completed
        assert provider.record()["requests"]
        assert between.carried and SECRET not in between.carried and b"messages" not in between.carried


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "provider_proxy_refused"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://elsewhere/\r\n\r\n", "provider_proxy_refused"),
        (b"SSH-2.0-x\r\n\r\n", "provider_proxy_refused"),
        (b"HTTP/1.1 200\n\r\n\r\n", "provider_proxy_refused"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 9000, "provider_proxy_answer"),
        (b"", "provider_tls"),
        (b"HTTP/1.1 200 OK\r\n", "provider_tls"),
    ],
    ids=["unauthorised", "redirect", "another protocol", "a lone line feed", "an endless head", "hangs up", "hangs up in its head"],
)
def test_a_proxy_that_does_not_let_us_through_fails_the_call(answer: bytes, code: str) -> None:
    with running_proxy(answer) as between:
        (only,) = call_through("http://127.0.0.1:9/v1", between.url)
        assert isinstance(only.error, UpstreamError) and only.error.code == code


def test_bytes_behind_the_proxys_answer_are_no_answer_of_the_provider() -> None:
    forged = OK + b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"

    async def work() -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        rig = ProxiedRig("http://127.0.0.1:9/v1", f"http://127.0.0.1:{listener.getsockname()[1]}")
        recorder, _ = rig.send(b"{}")

        def answer() -> None:
            client, _ = listener.accept()
            client.recv(1024)
            client.sendall(forged)
            client.recv(1024)

        await asyncio.wait([asyncio.create_task(asyncio.to_thread(answer)), asyncio.create_task(recorder.ended.wait())])
        assert isinstance(recorder.error, UpstreamError) and recorder.error.code == "provider_proxy_answer"
        assert not recorder.body

    run(work)


def test_a_silent_proxy_costs_the_connect_timeout_and_no_more() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        (only,) = call_through("http://127.0.0.1:9/v1", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert isinstance(only.error, UpstreamError) and only.error.status == 504


def test_the_dialer_knows_the_proxy_and_not_the_provider_behind_it() -> None:
    table = build_table({"p": Provider(base_url="https://api.example.com/v1", proxy="http://10.1.2.3:3128")})
    assert {name: target.private for name, target in table.items()} == {"http://10.1.2.3:3128": True}
