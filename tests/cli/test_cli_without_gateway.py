"""Commands without a running gateway: they start the vault and the auditor for themselves, and everything is audited."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import select
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
SECRET = "sk-test-4f1d9c7e5b3a2816"
CONFIG = """\
providers:
  echo:
    models: [echo]
  up:
    base_url: https://api.example.com/v1
    models: [small]
"""


def events(home: Path, event: str) -> list[dict[str, Any]]:
    lines = (home / "logs" / "audit-00000001.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if entry["event"] == event]


def everything_in(home: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(home.rglob("*")) if file.is_file())


def test_init_makes_a_private_home_and_shows_a_key_once(made: tuple[Path, dict[str, Any]]) -> None:
    home, printed = made
    for path in (home, *home.rglob("*")):
        mode = path.lstat().st_mode
        assert not mode & 0o077, path
        assert stat.S_IMODE(mode) == (0o700 if stat.S_ISDIR(mode) else 0o600), path
    assert printed["key"].startswith("cpk_") and len(printed["key"]) == 53
    assert printed["key"].encode() not in everything_in(home)
    assert hashlib.sha256(printed["key"].encode()).digest() not in everything_in(home)
    assert len(bytes.fromhex(printed["log_public_key"])) == 32


def test_init_again_changes_nothing(cliproxy: Run, home: Path) -> None:
    before = everything_in(home)
    done = cliproxy("init", "--home", str(home))
    assert done.code == 0
    assert "nothing was changed" in done.out and "cpk_" not in done.out
    silent = cliproxy("init", "--if-missing", "--home", str(home))
    assert (silent.code, silent.out, silent.err) == (0, "", "")
    assert everything_in(home) == before


def test_init_with_a_given_master_key_writes_none_and_says_so(cliproxy: Run, tmp_path: Path) -> None:
    home = tmp_path / "home"
    done = cliproxy("init", "--home", str(home), environment={"CLIPROXY_MASTER_KEY": os.urandom(32).hex()})
    assert done.code == 0, done.err
    assert list((home / "key").iterdir()) == []
    assert "no file was made" in done.out and "master.key" not in done.out


def test_init_goes_on_where_it_was_interrupted_and_overwrites_nothing(cliproxy: Run, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "config").mkdir(parents=True, mode=0o700)
    home.chmod(0o700)
    file = home / "config" / "cliproxy.yaml"
    file.write_text(CONFIG)
    file.chmod(0o600)
    assert cliproxy("init", "--home", str(home), "--json").json["created"]
    assert file.read_text() == CONFIG


def test_init_refuses_a_new_master_key_for_an_old_vault(cliproxy: Run, home: Path, tmp_path: Path) -> None:
    copy = copied(home, tmp_path)
    (copy / "key" / "master.key").unlink()
    done = cliproxy("init", "--home", str(copy))
    assert done.code == 78
    assert "master.key" in done.line and "put the key back" in done.line
    assert not (copy / "key" / "master.key").exists()


def test_a_key_is_created_listed_and_revoked(cliproxy: Run, home: Path) -> None:
    begun = time.time()
    made = cliproxy(
        "keys", "create", "--home", str(home), "--json", "--name", "ci", "--model", "a", "--model", "b", "--network", "10.0.0.0/8",
        "--expires", "30d", "--rpm", "60", "--tpm", "1000", "--concurrency", "3",
    )  # fmt: skip
    assert made.code == 0, made.err
    key = made.json
    assert 30 * 86400 - 5 <= key["expires_at"] - begun <= 30 * 86400 + 60
    (listed,) = [item for item in cliproxy("keys", "list", "--home", str(home), "--json").json if item["name"] == "ci"]
    assert listed == {name: value for name, value in key.items() if name != "key"}
    assert (listed["models"], listed["networks"], listed["requests_per_minute"], listed["concurrency"]) == (["a", "b"], ["10.0.0.0/8"], 60, 3)
    assert key["key"].encode() not in everything_in(home)
    revoked = cliproxy("keys", "revoke", "ci", "--home", str(home))
    assert (revoked.code, revoked.out) == (0, f"revoked {key['id']}: no gateway is running\n")
    assert "revoked" in cliproxy("keys", "list", "--home", str(home)).out
    again = cliproxy("keys", "revoke", "ci", "--home", str(home))
    assert again.code == 1 and again.line
    changes = [(entry["action"], entry["name"], entry["operator"]) for entry in events(home, "key_change") if entry["name"] == "ci"]
    assert changes == [("created", "ci", f"uid:{os.getuid()}"), ("revoked", "ci", f"uid:{os.getuid()}")]


def test_the_key_comes_alone_on_its_line_for_other_programs(cliproxy: Run, home: Path) -> None:
    out = cliproxy("keys", "create", "--home", str(home)).out
    assert len(out.splitlines()[0]) == 53


def test_a_credential_from_stdin_is_sealed_and_never_shown(cliproxy: Run, home: Path) -> None:
    (home / "config" / "cliproxy.yaml").write_text(CONFIG)
    done = cliproxy("credentials", "add", "up", "--label", "main", "--home", str(home), "--json", stdin=SECRET + "\n")
    assert done.code == 0, done.err
    added = done.json
    assert (added["provider"], added["label"], added["origin"]) == ("up", "main", "https://api.example.com:443")
    listed = cliproxy("credentials", "list", "--home", str(home), "--json")
    assert listed.json == [added]
    assert SECRET not in done.out + done.err + listed.out
    assert SECRET.encode() not in everything_in(home)
    removed = cliproxy("credentials", "remove", added["id"], "--home", str(home))
    assert removed.code == 0
    assert cliproxy("credentials", "list", "--home", str(home), "--json").json == []
    assert [entry["action"] for entry in events(home, "credential_change") if entry["credential"] == added["id"]] == ["added", "removed"]


BAD_SECRETS = {
    "empty": "",
    "short": "sk-1",
    "two lines": "sk-aaaaaaaaaaaa\nsk-bbbbbbbbbbbb\n",
    "space": "sk-aaaa bbbbbbbb",
    "not ASCII": "sk-aaaaäbbbbbbb",
    "too long": "s" * 9000,
}


@pytest.mark.parametrize("name", BAD_SECRETS)
def test_what_is_no_secret_is_refused_without_being_shown(cliproxy: Run, home: Path, name: str) -> None:
    done = cliproxy("credentials", "add", "up", "--home", str(home), stdin=BAD_SECRETS[name])
    assert done.code == 78
    assert "visible ASCII" in done.line
    assert not BAD_SECRETS[name] or BAD_SECRETS[name].strip() not in done.line


def test_an_aws_key_is_told_apart_from_what_is_none_and_sealed_for_its_region(cliproxy: Run, home: Path) -> None:
    (home / "config" / "cliproxy.yaml").write_text("providers:\n  aws:\n    kind: bedrock\n    region: eu-west-1\n    models: [amazon.nova-pro-v1:0]\n")
    refused = cliproxy("credentials", "add", "aws", "--home", str(home), stdin=SECRET + "\n")
    assert refused.code == 78 and "ACCESS_KEY_ID:SECRET_ACCESS_KEY" in refused.line and SECRET not in refused.line
    done = cliproxy("credentials", "add", "aws", "--home", str(home), "--json", stdin="AKIDEXAMPLEEXAMPLE:wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY\n")
    assert done.code == 0, done.err
    assert done.json["origin"] == "https://bedrock-runtime.eu-west-1.amazonaws.com:443"
    (home / "config" / "cliproxy.yaml").write_text(CONFIG)


def test_a_secret_is_no_argument(cliproxy: Run, home: Path) -> None:
    assert cliproxy("credentials", "add", "up", SECRET, "--home", str(home)).code == 2
    assert cliproxy("credentials", "add", "up", "--secret", SECRET, "--home", str(home)).code == 2


def test_a_prompt_does_not_show_the_secret(home: Path) -> None:
    (home / "config" / "cliproxy.yaml").write_text(CONFIG)
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "cliproxy.cli.main", "credentials", "add", "up", "--label", "prompted", "--home", str(home)],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        start_new_session=True,
        preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"},
    )
    os.close(follower)
    shown = b""
    typed = False
    while True:
        if not select.select([leader], [], [], 60)[0]:
            process.kill()
            break
        try:
            piece = os.read(leader, 4096)
        except OSError:
            break
        if not piece:
            break
        shown += piece
        if not typed and b"(not shown)" in shown:
            time.sleep(0.2)  # getpass switches the echo off after it has written the prompt
            os.write(leader, SECRET.encode() + b"\n")
            typed = True
    os.close(leader)
    assert process.wait(60) == 0, shown
    assert typed
    assert SECRET.encode() not in shown
    assert b"added cred" in shown


def test_block_and_lockdown_last_and_are_audited(cliproxy: Run, home: Path) -> None:
    at = ("--home", str(home))
    assert cliproxy("block", "203.0.113.9", *at).code == 0
    assert cliproxy("lockdown", "on", *at, "--json").json == {"lockdown": True}
    assert cliproxy("unblock", "203.0.113.9/32", *at).code == 0
    missing = cliproxy("unblock", "203.0.113.9", *at)
    assert (missing.code, "is not blocked" in missing.line) == (1, True)
    wrong = cliproxy("block", "everyone", *at)
    assert (wrong.code, "no IP address" in wrong.line) == (1, True)
    assert cliproxy("lockdown", "off", *at).code == 0
    assert len(events(home, "policy_change")) >= 4
    assert {entry["operator"] for entry in events(home, "policy_change")} == {f"uid:{os.getuid()}"}


def test_vault_status_tells_its_key_and_epoch(cliproxy: Run, home: Path) -> None:
    first = cliproxy("vault", "status", "--home", str(home), "--json").json
    cliproxy("keys", "create", "--home", str(home))
    second = cliproxy("vault", "status", "--home", str(home), "--json").json
    assert second["epoch"] == first["epoch"] + 1
    assert (second["vault_id"], second["public_key"]) == (first["vault_id"], first["public_key"])


def test_the_log_verifies_against_its_key_and_an_earlier_checkpoint(cliproxy: Run, made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    home, printed = made
    at = ("--home", str(home))
    note = tmp_path / "witness.note"
    taken = cliproxy("audit", "checkpoint", *at)
    assert taken.code == 0, taken.err
    note.write_text(taken.out)
    cliproxy("lockdown", "off", *at)
    cliproxy("lockdown", "on", *at)
    report = cliproxy("audit", "verify", *at, "--json", "--public-key", printed["log_public_key"], "--checkpoint", str(note))
    assert report.code == 0, report.out
    assert (report.json["good"], report.json["pinned"], report.json["log"]) == (True, True, printed["log"])
    status = cliproxy("audit", "status", *at, "--json").json
    assert (status["log"], status["public_key"], status["healthy"]) == (printed["log"], printed["log_public_key"], True)
    proof = cliproxy("audit", "prove", "1", *at, "--json").json
    assert json.loads(proof["entry"])["event"] and proof["path"]
    since = cliproxy("audit", "prove", "--since", str(note), *at, "--json").json
    assert since["old"] < since["new"]
    other = cliproxy("audit", "verify", *at, "--public-key", "00" * 32)
    assert (other.code, "BAD" in other.out) == (1, True)


def test_verify_names_the_first_bad_index(cliproxy: Run, home: Path, tmp_path: Path) -> None:
    copy = copied(home, tmp_path)
    segment = copy / "logs" / "audit-00000001.jsonl"
    lines = segment.read_bytes().split(b"\n")
    lines[3] = lines[3].replace(b'"source":"', b'"source":"x')
    segment.write_bytes(b"\n".join(lines))
    done = cliproxy("audit", "verify", "--home", str(copy), "--json")
    assert done.code == 1
    assert done.json["good"] is False and done.json["index"] == 3


def test_tail_prints_the_last_entries_as_they_are(cliproxy: Run, home: Path) -> None:
    lines = (home / "logs" / "audit-00000001.jsonl").read_text().splitlines(keepends=True)
    assert cliproxy("audit", "tail", "-n", "3", "--home", str(home)).out == "".join(lines[-3:])
    assert cliproxy("audit", "tail", "-n", "0", "--home", str(home)).out == ""


def test_several_commands_at_once_share_one_gateway(cliproxy: Run, home: Path) -> None:
    results: list[Any] = []
    threads = [threading.Thread(target=lambda n=n: results.append(cliproxy("keys", "create", "--name", f"par-{n}", "--home", str(home)))) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [done.code for done in results] == [0, 0, 0, 0], [done.err for done in results]
    assert {f"par-{n}" for n in range(4)} <= {item["name"] for item in cliproxy("keys", "list", "--home", str(home), "--json").json}


def test_a_command_leaves_no_process_and_no_socket_behind(cliproxy: Run, home: Path) -> None:
    assert cliproxy("keys", "list", "--home", str(home)).code == 0
    assert not (home / "run" / "control.sock").exists()
    assert processes_of(home) == []


def test_a_command_that_is_killed_leaves_no_process_behind(home: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "cliproxy.cli.main", "audit", "status", "--home", str(home)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + 30
    while not processes_of(home, supervisors=True) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    while processes_of(home) and time.monotonic() < until:
        time.sleep(0.05)
    assert processes_of(home) == []


def processes_of(home: Path, *, supervisors: bool = False) -> list[int]:
    """Supervisors that hold the lock of `home`, by the pid in the lock file, while they run."""
    try:
        pid = int((home / "run" / "lock").read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return []
    return [pid] if b"cliproxy.processes.supervisor" in command else []


def test_a_vault_that_is_gone_is_told_with_the_cure_and_nothing_is_made_anew(cliproxy: Run, home: Path, tmp_path: Path) -> None:
    copy = copied(home, tmp_path)
    for file in (copy / "auths").glob("vault.db*"):
        file.unlink()
    done = cliproxy("keys", "list", "--home", str(copy))
    assert done.code == 78
    assert "vault.db" in done.err and "put auths/ back" in done.err
    assert list((copy / "auths").glob("vault.db*")) == []


def emptied(home: Path, tmp_path: Path, *names: str) -> Path:
    copy = copied(home, tmp_path)
    for name in names:
        for file in (copy / name).iterdir():
            file.unlink()
    return copy


@pytest.mark.parametrize("command", [("serve",), ("keys", "list"), ("init",), ("init", "--if-missing")], ids=" ".join)
def test_an_emptied_home_is_not_taken_for_a_new_one(cliproxy: Run, home: Path, tmp_path: Path, command: tuple[str, ...]) -> None:
    """Both emptied, the master key still there: neither `serve` nor what `make serve` runs first begins a new vault, in which nothing is revoked."""
    copy = emptied(home, tmp_path, "auths", "logs")
    done = cliproxy(*command, "--home", str(copy))
    assert done.code == 78
    assert "no vault" in done.line and "backup" in done.line and "cliproxy init" in done.line
    assert list((copy / "auths").iterdir()) == [] and list((copy / "logs").iterdir()) == []
    begun = cliproxy("init", "--new-vault", "--home", str(copy), "--json")
    assert begun.code == 0, begun.err
    assert begun.json["created"] and cliproxy("keys", "list", "--home", str(copy)).code == 0


@pytest.mark.parametrize(("name", "said"), [("auths", ("put auths/ back",)), ("logs", ("the audit log does not know the vault", "the vault has seen"))])
def test_a_home_with_one_of_the_two_emptied_is_refused(cliproxy: Run, home: Path, tmp_path: Path, name: str, said: tuple[str, ...]) -> None:
    copy = emptied(home, tmp_path, name)
    for command in (("serve",), ("keys", "list"), ("init", "--new-vault")):
        done = cliproxy(*command, "--home", str(copy))
        if name == "logs" and command[0] == "init":
            assert "nothing was changed" in done.out  # there is a vault
            continue
        assert done.code == 78
        assert any(words in done.err for words in said)  # which of two is first depends on whether the vault has sealed what it saw of the log


def test_an_init_that_was_killed_before_the_vault_is_taken_up_by_init_and_by_nothing_else(cliproxy: Run, home: Path, tmp_path: Path) -> None:
    copy = emptied(home, tmp_path, "auths", "logs")
    draft = copy / "auths" / ".vault.db.new"
    draft.touch(mode=0o600)
    marker = copy / "key" / "init-unfinished"
    marker.touch(mode=0o600)
    for command in (("serve",), ("keys", "list")):
        assert cliproxy(*command, "--home", str(copy)).code == 78
    key = (copy / "key" / "master.key").read_bytes()
    done = cliproxy("init", "--if-missing", "--home", str(copy), "--json")
    assert done.code == 0, done.err
    assert done.json["created"] and (copy / "key" / "master.key").read_bytes() == key
    assert not marker.exists() and not draft.exists()


def test_init_leaves_no_sign_of_being_unfinished(home: Path) -> None:
    assert [file.name for file in (home / "key").iterdir()] == ["master.key"]


def test_with_a_key_from_elsewhere_init_alone_makes_the_vault(cliproxy: Run, tmp_path: Path) -> None:
    home = tmp_path / "home"
    environment = {"CLIPROXY_MASTER_KEY": os.urandom(32).hex()}
    for directory in (home, home / "config"):
        directory.mkdir(mode=0o700)
    (home / "config" / "cliproxy.yaml").write_text(CONFIG)
    (home / "config" / "cliproxy.yaml").chmod(0o600)
    for command in (("serve",), ("keys", "list")):
        done = cliproxy(*command, "--home", str(home), environment=environment)
        assert done.code == 78 and "no vault" in done.line
    done = cliproxy("init", "--if-missing", "--home", str(home), environment=environment)
    assert done.code == 0, done.err
    assert cliproxy("keys", "list", "--home", str(home), environment=environment).code == 0


def test_another_master_key_does_not_open_the_vault(cliproxy: Run, home: Path) -> None:
    done = cliproxy("keys", "list", "--home", str(home), environment={"CLIPROXY_MASTER_KEY": os.urandom(32).hex()})
    assert done.code == 78
    assert done.err


def test_a_readable_master_key_is_refused_with_the_cure(cliproxy: Run, home: Path, tmp_path: Path) -> None:
    copy = copied(home, tmp_path)
    (copy / "key" / "master.key").chmod(0o644)
    for command in (("keys", "list"), ("serve",)):
        done = cliproxy(*command, "--home", str(copy))
        assert done.code == 78
        assert "chmod 600" in done.line


def copied(home: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "copy"
    shutil.copytree(home, copy, ignore=shutil.ignore_patterns("control.sock"))
    copy.chmod(0o700)
    return copy
