"""Attacks on a stopped gateway's home: a snapshot is put back, checkpoints are emptied. What a start notices, with and without `audit.pin`."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.gateway import Gateway, merged


@pytest.fixture
def disk() -> Iterator[Path]:
    """Another disk, which the attacker does not have."""
    path = Path(tempfile.mkdtemp(prefix="cliproxy-disk-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def answers(gateway: Gateway, key: str) -> int:
    return gateway.post("/v1/chat/completions", {"model": "echo", "messages": [{"role": "user", "content": "x"}]}, key=key)[0]


def snapshot(gateway: Gateway, place: Path) -> None:
    """What a backup, or the disk of a virtual machine, keeps: everything but the run's own files."""
    for part in ("auths", "logs", "key", "config"):
        shutil.copytree(gateway.home / part, place / part)


def put_back(gateway: Gateway, place: Path) -> None:
    for part in ("auths", "logs", "key", "config"):
        shutil.rmtree(gateway.home / part)
        shutil.copytree(place / part, gateway.home / part)


def revoked_after_a_snapshot(gateway: Gateway, place: Path) -> str:
    """Make a key, take a snapshot, revoke the key, stop; return the key."""
    key: str = json.loads(gateway.run("keys", "create", "--name", "thief", "--json"))["key"]
    assert answers(gateway, key) == 200
    gateway.stop()
    snapshot(gateway, place)
    gateway.start()
    gateway.run("keys", "revoke", "thief")
    assert answers(gateway, key) == 401
    gateway.stop()
    return key


def test_without_a_pin_a_home_that_was_put_back_serves_a_revoked_key(tmp_path: Path) -> None:
    """What docs/security/envelope.md says: the home alone cannot know better."""
    with Gateway() as gateway:
        key = revoked_after_a_snapshot(gateway, tmp_path)
        put_back(gateway, tmp_path)
        gateway.start()
        assert answers(gateway, key) == 200


def test_with_a_pin_a_home_that_was_put_back_is_refused_until_that_is_accepted(tmp_path: Path, disk: Path) -> None:
    with Gateway() as gateway:
        gateway.stop()
        gateway.configure(merged(gateway.settings, {"audit": {"pin": str(disk / "pin")}}))
        done = gateway.result("serve")
        assert done.returncode == 78 and "cliproxy audit pin" in done.stderr and done.stderr.count("\n") == 1, done.stderr
        gateway.run("audit", "pin")
        gateway.start()
        key = revoked_after_a_snapshot(gateway, tmp_path)
        gateway.run("audit", "verify", "--pin", str(disk / "pin"))
        put_back(gateway, tmp_path)
        for command in (("serve",), ("keys", "list")):
            done = gateway.result(*command)
            assert done.returncode == 78, done.stderr
            assert "put back from a copy" in done.stderr and "--accept-rollback" in done.stderr
        verified = gateway.result("audit", "verify", "--pin", str(disk / "pin"))
        assert verified.returncode == 1 and "entries are missing" in verified.stdout
        (disk / "pin").rename(disk / "away")
        assert gateway.result("serve").returncode == 78
        (disk / "away").rename(disk / "pin")
        gateway.start("--accept-rollback")
        assert answers(gateway, key) == 200  # it is what the operator accepted, and the log tells of it
        gateway.stop()
        events = (gateway.home / "logs" / "audit-00000001.jsonl").read_text()
        assert '"event":"log_rollback_accepted"' in events
        gateway.start()
        gateway.stop()
        gateway.run("audit", "verify", "--pin", str(disk / "pin"))


def test_a_pinned_home_starts_whenever_it_was_killed(disk: Path) -> None:
    with Gateway() as gateway:
        gateway.stop()
        gateway.configure(merged(gateway.settings, {"audit": {"pin": str(disk / "pin")}}))
        gateway.run("audit", "pin")
        gateway.start()
        for turn in range(3):
            for _ in range(turn):
                gateway.run("keys", "create")
            assert answers(gateway, gateway.key) == 200
            gateway.kill()
            gateway.start()
        assert answers(gateway, gateway.key) == 200


def test_emptied_checkpoints_and_an_edited_log_are_not_signed_anew(tmp_path: Path) -> None:
    """Write access to logs/ and nothing else. Before, the next start signed the edited log, and `audit verify` called it good."""
    with Gateway() as gateway:
        gateway.run("keys", "create", "--name", "first-of-many")
        assert answers(gateway, gateway.key) == 200
        gateway.stop()
        segment = gateway.home / "logs" / "audit-00000001.jsonl"
        edited = segment.read_bytes().replace(b"first-of-many", b"never-created")
        assert edited != segment.read_bytes()
        segment.write_bytes(edited)
        (gateway.home / "logs" / "checkpoints").write_bytes(b"")
        for command in (("serve",), ("keys", "list")):
            done = gateway.result(*command)
            assert done.returncode == 78, done.stderr
            assert "the vault has seen" in done.stderr and "--accept-rollback" in done.stderr
        assert (gateway.home / "logs" / "checkpoints").read_bytes() == b""
