"""The server's TLS context: what it offers, and which files it refuses."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import pytest

from cliproxy.config.schema import Tls
from cliproxy.errors import ConfigError
from cliproxy.ingress.headers import security_headers
from cliproxy.ingress.tls import SUITES, openssl_suites, server_context
from fakes.certificates import Authority


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    authority = Authority(tmp_path)
    issued = authority.issue("localhost")
    issued.key.chmod(0o600)
    issued.cert.chmod(0o644)
    return authority.ca, issued.cert, issued.key


def settings(files: tuple[Path, Path, Path], **more: object) -> Tls:
    return Tls(enabled=True, cert_file=str(files[1]), key_file=str(files[2]), **more)  # type: ignore[arg-type]


def handshake(server: ssl.SSLContext, ca: Path, **limits: object) -> ssl.SSLObject:
    """Shake hands in memory; return the client's side."""
    client = ssl.create_default_context(cafile=str(ca))
    for name, value in limits.items():
        client.set_ciphers(str(value)) if name == "ciphers" else setattr(client, name, value)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [client.wrap_bio(to_client, to_server, server_hostname="localhost"), server.wrap_bio(to_server, to_client, server_side=True)]
    done = [False, False]
    for _ in range(10):
        for index, side in enumerate(sides):
            if not done[index]:
                try:
                    side.do_handshake()
                    done[index] = True
                except ssl.SSLWantReadError:
                    continue
    assert all(done)
    return sides[0]


def test_tls_1_3_is_spoken_and_1_2_only_when_allowed(files: tuple[Path, Path, Path]) -> None:
    context = server_context(settings(files))
    assert handshake(context, files[0]).version() == "TLSv1.3"
    older = handshake(context, files[0], maximum_version=ssl.TLSVersion.TLSv1_2)
    assert older.version() == "TLSv1.2" and older.cipher() is not None and older.cipher()[0].startswith("ECDHE-ECDSA-")  # type: ignore[index]
    with pytest.raises(ssl.SSLError):
        handshake(server_context(settings(files, min_version="1.3")), files[0], maximum_version=ssl.TLSVersion.TLSv1_2)


def test_suites_without_forward_secrecy_or_aead_are_not_offered(files: tuple[Path, Path, Path]) -> None:
    context = server_context(settings(files))
    offered = {suite["name"] for suite in context.get_ciphers() if suite["protocol"] == "TLSv1.2"}
    assert offered == set(SUITES.values())
    for weak in ("ECDHE-ECDSA-AES128-SHA", "AES128-GCM-SHA256"):
        with pytest.raises(ssl.SSLError):
            handshake(context, files[0], maximum_version=ssl.TLSVersion.TLSv1_2, ciphers=weak)


def test_the_specifications_rsa_suites_work_with_an_ecdsa_certificate(files: tuple[Path, Path, Path]) -> None:
    names = ("TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256")
    context = server_context(settings(files, cipher_suites=names))
    used = handshake(context, files[0], maximum_version=ssl.TLSVersion.TLSv1_2).cipher()
    assert used is not None and used[0] == "ECDHE-ECDSA-AES256-GCM-SHA384"


def test_suites_keep_the_order_that_was_written_and_bring_their_twins() -> None:
    assert openssl_suites(("TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256", "TLS_AES_128_GCM_SHA256", "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256")) == [
        "ECDHE-ECDSA-CHACHA20-POLY1305",
        "ECDHE-RSA-CHACHA20-POLY1305",
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        "ECDHE-RSA-AES128-GCM-SHA256",
    ]
    assert set(openssl_suites(())) == set(SUITES.values())
    with pytest.raises(ConfigError, match="cipher_suites"):
        openssl_suites(("TLS_RSA_WITH_AES_128_CBC_SHA",))


def test_no_tickets_no_compression_no_renegotiation(files: tuple[Path, Path, Path]) -> None:
    context = server_context(settings(files))
    assert context.num_tickets == 0
    for option in (ssl.OP_NO_COMPRESSION, ssl.OP_NO_RENEGOTIATION, ssl.OP_NO_TICKET):
        assert context.options & option
    assert not handshake(context, files[0]).session_reused


def test_a_file_that_is_not_there_or_no_file_names_its_key_and_cure(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    for path, text in ((tmp_path / "missing.pem", "cannot be read"), (tmp_path, "no regular file")):
        with pytest.raises(ConfigError, match=r"server\.tls\.cert_file.*" + text):
            server_context(Tls(enabled=True, cert_file=str(path), key_file=str(files[2])))
        with pytest.raises(ConfigError, match=r"server\.tls\.key_file.*" + text):
            server_context(Tls(enabled=True, cert_file=str(files[1]), key_file=str(path)))
    with pytest.raises(ConfigError, match="cert_file"):
        server_context(Tls(enabled=True))


@pytest.mark.parametrize("mode", [0o604, 0o666, 0o620, 0o602])
def test_a_key_that_others_may_read_or_write_is_refused(files: tuple[Path, Path, Path], mode: int) -> None:
    files[2].chmod(mode)
    with pytest.raises(ConfigError, match="chmod"):
        server_context(settings(files))


def test_a_group_may_read_the_key(files: tuple[Path, Path, Path]) -> None:
    files[2].chmod(0o640)  # Debian's ssl-cert
    server_context(settings(files))


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file away needs root")
def test_a_key_of_another_user_is_refused(files: tuple[Path, Path, Path]) -> None:
    os.chown(files[2], 12345, 12345)
    with pytest.raises(ConfigError, match="another user"):
        server_context(settings(files))


def test_what_does_not_load_is_one_line_and_shows_nothing_of_the_key(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other").issue("localhost")
    secret = files[2].read_text()
    garbage = secret[:60] + "garbage" + secret[70:]
    for text in (other.key.read_text(), garbage, "", "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE KEY-----\n"):
        files[2].write_text(text)
        with pytest.raises(ConfigError) as caught:
            server_context(settings(files))
        assert "\n" not in str(caught.value) and "passphrase" in str(caught.value)
        assert text[30:50] not in str(caught.value) or not text


def test_a_key_with_a_passphrase_is_refused_and_nobody_is_asked_for_it(files: tuple[Path, Path, Path]) -> None:
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(files[2].read_bytes(), None)
    files[2].write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")))
    with pytest.raises(ConfigError, match="passphrase"):
        server_context(settings(files))


def test_hsts_is_for_tls_alone() -> None:
    assert b"Strict-Transport-Security: max-age=31536000" in security_headers(secure=True)
    assert b"Strict" not in security_headers(secure=False)
    for block in (security_headers(secure=True), security_headers(secure=False)):
        for name in (
            b"X-Content-Type-Options: nosniff",
            b"X-Frame-Options: DENY",
            b"X-XSS-Protection: 0",
            b"Content-Security-Policy: ",
            b"Cache-Control: no-store",
        ):
            assert b"\r\n" + name in b"\r\n" + block
        assert block.endswith(b"\r\n") and b"\r\n\r\n" not in block
