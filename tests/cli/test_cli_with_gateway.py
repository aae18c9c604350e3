"""Commands beside a running gateway: the same control socket, and what they change is in force when they return."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
CONFIG = """\
server:
  listen: ["127.0.0.1"]
  port: {port}
  rate_limit: {{requests_per_second: 10000, burst: 10000}}
{tls}providers:
  echo:
    models: [{models}]
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Gateway:
    """`cliproxy serve` as a child."""

    def __init__(self, home: Path, key: str) -> None:
        self.home = home
        self.key = key
        self.port = free_port()
        self.configure("echo")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cliproxy.cli.main", "serve", "--home", str(home)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"},
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert b"ready on" in line, self.process.communicate(timeout=30)

    def configure(self, models: str, *, more: str = "", tls: str = "") -> None:
        (self.home / "config" / "cliproxy.yaml").write_text(CONFIG.format(port=self.port, models=models, tls=tls) + more)

    def child(self, role: str) -> int:
        """The pid of the child with that role."""
        for number in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
            if f"cliproxy.processes.{role}".encode() in Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0"):
                return int(number)
        raise AssertionError(f"there is no {role}")

    def chat(self, key: str, model: str = "echo") -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello"}]})
        connection.request("POST", "/v1/chat/completions", body, {"Authorization": f"Bearer {key}", "Content-Type": "application/json"})
        answer = connection.getresponse()
        data = json.loads(answer.read())
        connection.close()
        return answer.status, data


@pytest.fixture(scope="module")
def gateway(made: tuple[Path, dict[str, Any]]) -> Iterator[Gateway]:
    home, printed = made
    gateway = Gateway(home, printed["key"])
    yield gateway
    gateway.process.send_signal(signal.SIGTERM)
    try:
        gateway.process.communicate(timeout=60)
    finally:
        gateway.process.kill()
    assert gateway.process.returncode == 0


def test_status_says_that_it_runs_and_is_ready(cliproxy: Run, gateway: Gateway) -> None:
    done = cliproxy("status", "--ready", "--json", "--home", str(gateway.home))
    assert done.code == 0, done.out
    assert done.json["running"] and done.json["ready"] and done.json["vault"] and done.json["auditor"]
    assert done.json["pid"] == gateway.process.pid


def test_a_new_key_works_at_once_and_a_revoked_one_no_more(cliproxy: Run, gateway: Gateway) -> None:
    at = ("--home", str(gateway.home))
    key = cliproxy("keys", "create", "--name", "short-lived", *at, "--json").json["key"]
    assert gateway.chat(key)[0] == 200
    done = cliproxy("keys", "revoke", "short-lived", *at)
    assert done.code == 0
    assert "egress, 1 of 1 workers, 0 streams ended" in done.out
    assert gateway.chat(key)[0] == 401
    assert gateway.chat(gateway.key)[0] == 200


def test_lockdown_refuses_calls_until_it_is_off(cliproxy: Run, gateway: Gateway) -> None:
    at = ("--home", str(gateway.home))
    assert cliproxy("lockdown", "on", *at).code == 0
    assert gateway.chat(gateway.key)[0] == 503
    assert "ON" in cliproxy("status", *at).out
    assert cliproxy("lockdown", "off", *at).code == 0
    assert gateway.chat(gateway.key)[0] == 200


def test_a_blocked_address_is_turned_away_and_let_in_again(cliproxy: Run, gateway: Gateway) -> None:
    at = ("--home", str(gateway.home))
    assert cliproxy("block", "127.0.0.0/8", *at).code == 0
    try:
        assert gateway.chat(gateway.key)[0] == 403
    except (ConnectionError, http.client.HTTPException):
        pass  # closed without an answer
    assert cliproxy("unblock", "127.0.0.0/8", *at).code == 0
    assert gateway.chat(gateway.key)[0] == 200


def test_reload_takes_a_new_model_and_refuses_a_faulty_file(cliproxy: Run, gateway: Gateway) -> None:
    at = ("--home", str(gateway.home))
    assert gateway.chat(gateway.key, "parrot")[0] == 404
    gateway.configure("echo, parrot")
    before = cliproxy("status", *at, "--json").json["generation"]
    done = cliproxy("reload", *at, "--json")
    assert (done.code, done.json) == (0, {"generation": before + 1}), done.err
    assert gateway.chat(gateway.key, "parrot")[0] == 200
    gateway.configure("echo", more="bogus: 1\n")
    refused = cliproxy("reload", *at)
    assert (refused.code, "cliproxy.yaml:" in refused.line, "bogus" in refused.line) == (1, True, True)
    assert gateway.chat(gateway.key, "parrot")[0] == 200
    assert cliproxy("status", *at, "--json").json["generation"] == before + 1
    gateway.configure("echo, parrot")


def test_readiness_over_tls_trusts_the_configured_certificate_alone(cliproxy: Run, gateway: Gateway, tmp_path: Path) -> None:
    at = ("--home", str(gateway.home))
    certificate, key = certify(tmp_path / "a")
    other, _ = certify(tmp_path / "b")
    try:
        gateway.configure("echo", tls=f"  tls: {{enabled: true, cert_file: {certificate}, key_file: {key}}}\n")
        assert cliproxy("reload", *at).code == 0
        assert cliproxy("status", "--ready", *at).code == 0
        certificate.write_bytes(other.read_bytes())
        refused = cliproxy("status", "--ready", *at)
        assert (refused.code, "another certificate" in refused.out) == (1, True)
        for text in (b"", b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n", b"\xff" * 100):  # as a broken renewal leaves it
            certificate.write_bytes(text)
            refused = cliproxy("status", "--ready", *at)
            assert (refused.code, "another certificate" in refused.out) == (1, True)
    finally:
        gateway.configure("echo")
        assert cliproxy("reload", *at).code == 0
    assert gateway.chat(gateway.key)[0] == 200


@pytest.mark.parametrize("role", ["vault", "admin", "auditor", "egress"])
def test_commands_work_again_after_a_process_was_killed(cliproxy: Run, gateway: Gateway, role: str) -> None:
    at = ("--home", str(gateway.home))
    os.kill(gateway.child(role), signal.SIGKILL)
    until = time.monotonic() + 30
    while (done := cliproxy("status", "--ready", *at)).code != 0 and time.monotonic() < until:
        time.sleep(0.1)
    assert done.code == 0, done.out
    assert cliproxy("keys", "create", *at).code == 0
    assert cliproxy("audit", "status", *at).code == 0
    assert gateway.chat(gateway.key)[0] == 200


def certify(directory: Path) -> tuple[Path, Path]:
    """Make a self-signed certificate for 127.0.0.1."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    directory.mkdir()
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "cliproxy test")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(private, hashes.SHA256())
    )
    certificate, key = directory / "tls.crt", directory / "tls.key"
    certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    key.write_bytes(private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    key.chmod(0o600)
    return certificate, key


def test_a_second_gateway_on_the_same_home_is_refused(cliproxy: Run, gateway: Gateway) -> None:
    done = cliproxy("serve", "--home", str(gateway.home))
    assert done.code == 78
    assert str(gateway.process.pid) in done.err
    assert gateway.chat(gateway.key)[0] == 200


def test_the_log_grows_and_verifies_meanwhile(cliproxy: Run, gateway: Gateway) -> None:
    done = cliproxy("audit", "checkpoint", "--home", str(gateway.home))
    assert done.code == 0, done.err
    assert cliproxy("audit", "verify", "--home", str(gateway.home)).code == 0
