"""TLS towards providers is verified, whatever they offer."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import pytest

from cliproxy.egress.tls import client_context
from cliproxy.errors import ConfigError, UpstreamError
from fakes.certificates import Authority
from fakes.provider import TEXT, FakeProvider
from fakes.rig import Rig, run


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


def test_calls_over_tls_arrive_and_reuse_the_connection(authority: Authority) -> None:
    issued = authority.issue("127.0.0.1")
    with FakeProvider(cert=issued.cert, key=issued.key, ca=authority.ca) as provider:

        async def work() -> None:
            rig = Rig(provider.base_url, ca_file=authority.ca)
            for stream in (False, True, False):
                recorder = await rig.call(stream=stream)
                assert recorder.completed and (stream or TEXT.encode() in recorder.body)
            assert rig.dialer.dials == 1
            with_large_body, _ = rig.send(b'{"model":"m","pad":"' + b"p" * 500_000 + b'"}')
            await with_large_body.ended.wait()
            assert with_large_body.completed
            cancelled, sent = rig.send(b'{"model":"fault-stall-mid","stream":true}', stream=True)
            await cancelled.began.wait()
            sent.cancel()

        run(work)
        assert provider.record()["broken_off"] == 1


@pytest.mark.parametrize(
    ("hosts", "days", "trusted"),
    [(("other.example",), 30, True), (("127.0.0.2",), 30, True), (("127.0.0.1",), -1, True), (("127.0.0.1",), 30, False)],
    ids=["another name", "another address", "expired", "another authority"],
)
def test_a_certificate_that_does_not_verify_gets_no_request(authority: Authority, tmp_path: Path, hosts: tuple[str, ...], days: int, trusted: bool) -> None:
    issued = authority.issue(*hosts, days=days)
    trust = authority.ca if trusted else Authority(tmp_path, name="another CA").ca
    with FakeProvider(cert=issued.cert, key=issued.key) as provider:

        async def work() -> None:
            recorder = await Rig(provider.base_url, ca_file=trust).call()
            assert isinstance(recorder.error, UpstreamError)
            assert (recorder.error.status, recorder.error.code) == (502, "provider_certificate")

        run(work)


def test_a_server_without_tls_gets_no_request(authority: Authority) -> None:
    with FakeProvider() as provider:

        async def work() -> None:
            recorder = await Rig(f"https://127.0.0.1:{provider.port}/v1", ca_file=authority.ca, connect=2.0).call()
            assert isinstance(recorder.error, UpstreamError) and recorder.error.code == "provider_tls"

        run(work)
        assert provider.record()["requests"] == []


def test_a_server_that_never_shakes_hands_is_given_up_on(authority: Authority) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:

        async def work() -> None:
            recorder = await Rig(f"https://127.0.0.1:{silent.getsockname()[1]}/v1", ca_file=authority.ca, connect=0.3).call()
            assert isinstance(recorder.error, UpstreamError) and recorder.error.code in {"provider_tls", "provider_connect_timeout"}

        run(work)


def test_a_context_verifies_and_speaks_1_2_or_newer(authority: Authority) -> None:
    context = client_context(ca_file=str(authority.ca))
    assert context.verify_mode is ssl.CERT_REQUIRED and context.check_hostname and context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert len(context.get_ca_certs()) == 1  # that file alone, not the system's authorities too


@pytest.mark.parametrize("content", [None, b"", b"not a certificate", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_an_unusable_ca_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"ca\.pem"):
        client_context(ca_file=str(file))
