"""Reloads of files that an operator, an editor or a full disk got wrong: one line that says what to do, and clients notice nothing."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.gateway import Gateway
from fakes.provider import FakeProvider

SECRET = "sk-fake-0123456789abcdef"


@pytest.fixture(scope="module")
def provider() -> Iterator[FakeProvider]:
    with FakeProvider() as running:
        yield running


@pytest.fixture(scope="module")
def shared(provider: FakeProvider) -> Iterator[Gateway]:
    with Gateway({"providers": {"fake": {"base_url": provider.base_url, "models": ["gpt-4o-mini"]}}}, credentials={"fake": SECRET}) as running:
        yield running


@pytest.fixture
def gateway(shared: Gateway) -> Iterator[Gateway]:
    before = copy.deepcopy(shared.settings)
    yield shared
    file = config(shared)
    if file.is_dir():
        file.rmdir()
    file.unlink(missing_ok=True)
    shared.configure(before)
    shared.run("reload")


def config(gateway: Gateway) -> Path:
    return gateway.home / "config" / "cliproxy.yaml"


def status(gateway: Gateway) -> int:
    return gateway.post("/v1/chat/completions", {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]})[0]


def refused_line(gateway: Gateway) -> str:
    """Reload, see that it was refused and that clients are served as before, and return the one line about it."""
    done = gateway.result("reload")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr + gateway.messages()
    assert status(gateway) == 200
    return done.stderr


@pytest.mark.parametrize("text", ["", "# every key\n# is commented out\n", "---\n"], ids=["truncated", "comments", "a mark"])
def test_a_file_that_says_nothing_ends_no_route(gateway: Gateway, text: str) -> None:
    config(gateway).write_text(text)
    assert "the file says nothing" in refused_line(gateway)


@pytest.mark.parametrize("kind", ["directory", "fifo", "missing", "device", "circle", "escape beyond 32 bits"])
def test_a_file_that_is_none_or_breaks_the_parser_changes_nothing(gateway: Gateway, kind: str) -> None:
    file = config(gateway)
    file.unlink()
    if kind == "directory":
        file.mkdir()
    elif kind == "fifo":
        os.mkfifo(file, 0o600)
    elif kind == "device":
        file.symlink_to("/dev/zero")
    elif kind == "circle":
        file.symlink_to(file.name)
    elif kind != "missing":
        file.write_text('server: {listen: ["\\UFFFFFFFF"]}\n')
        file.chmod(0o600)
    assert f"{file}:" in refused_line(gateway)


def test_readiness_is_asked_where_the_gateway_listens_and_not_where_a_changed_file_says(gateway: Gateway) -> None:
    for text in ("server: [\n", "server: {port: 1, listen: ['127.0.0.9']}\n"):  # a probe of the container must not restart what serves well
        config(gateway).write_text(text)
        assert gateway.result("status", "--ready").returncode == 0


def test_certificates_that_cannot_be_used_are_named_with_file_line_and_key(gateway: Gateway, tmp_path: Path) -> None:
    junk = tmp_path / "junk.pem"
    junk.write_text("junk\n")
    junk.chmod(0o600)
    changed = copy.deepcopy(gateway.settings)
    changed["server"]["tls"] = {"enabled": True, "cert_file": str(junk), "key_file": str(junk)}
    gateway.configure(changed)
    line = refused_line(gateway)
    assert f"{config(gateway)}:" in line and "server.tls.key_file: " in line


def test_routes_do_not_call_a_target_ready_whose_credential_is_for_another_address(gateway: Gateway, provider: FakeProvider) -> None:
    def state() -> str:
        (step,) = json.loads(gateway.run("routes", "gpt-4o-mini", "--json"))
        return str(step["state"])

    assert state() == "ready"
    changed = copy.deepcopy(gateway.settings)
    changed["providers"]["fake"]["base_url"] = provider.base_url.replace("127.0.0.1", "localhost")
    gateway.configure(changed)
    gateway.run("reload")
    assert status(gateway) == 503
    assert state() == "no credential"
