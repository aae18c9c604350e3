"""Starts that the sealed store or the log forbid: one line that says what and how to mend it, exit 78, nothing changed on disk; and mended, it starts.

What the vault itself refuses it leaves byte by byte. While another process refuses, a sound vault has made its journal ready (a write that changes
nothing). Where vault and log are both sound and contradict each other, only their talk shows it: then the log has grown, and nothing else.
"""

from __future__ import annotations

import secrets
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes.gateway import Gateway
from fakes.recovery import KeyWriter, verify_log


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, Path]]:
    """A gateway that has ended, and a copy of its vault from before the last key was made."""
    yesterday = tmp_path_factory.mktemp("yesterday") / "auths"
    with Gateway() as gateway:
        gateway.stop()
        shutil.copytree(gateway.home / "auths", yesterday)
        gateway.start()
        writer = KeyWriter(gateway)
        writer.step()
        assert writer.created
        gateway.stop()
        yield gateway, yesterday


def contents_of(home: Path) -> dict[str, tuple[int, bytes]]:
    """Return mode and content of every file but those of `run/` (lock and socket of the run itself) and empty ones (a journal, a new log segment)."""
    files = [file for file in sorted(home.rglob("*")) if file.is_file() and file.stat().st_size and file.relative_to(home).parts[0] not in ("run", "stderr")]
    return {str(file.relative_to(home)): (file.stat().st_mode, file.read_bytes()) for file in files}


def records_of(home: Path, copies: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Return everything that the vault's database holds, read from a copy."""
    shutil.copytree(home / "auths", copies)
    database = sqlite3.connect(copies / "vault.db")
    try:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
        return {table: database.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall() for table in tables}
    finally:
        database.close()


def another_master_key(home: Path, yesterday: Path) -> None:
    (home / "key" / "master.key").write_text(secrets.token_hex(32) + "\n")


def no_vault(home: Path, yesterday: Path) -> None:
    shutil.rmtree(home / "auths")


def yesterdays_vault(home: Path, yesterday: Path) -> None:
    shutil.rmtree(home / "auths")
    shutil.copytree(yesterday, home / "auths")


def junk_for_checkpoints(home: Path, yesterday: Path) -> None:
    (home / "logs" / "checkpoints").write_bytes(b"junk\n")


def a_forged_checkpoint(home: Path, yesterday: Path) -> None:
    file = home / "logs" / "checkpoints"
    data = file.read_bytes()
    place = data.rindex(b"\n\n\xe2\x80\x94 ") + 80  # inside the last signature
    file.write_bytes(data[:place] + (b"A" if data[place : place + 1] != b"A" else b"B") + data[place + 1 :])


def a_shorter_log(home: Path, yesterday: Path) -> None:
    segment = home / "logs" / "audit-00000001.jsonl"
    segment.write_bytes(b"\n".join(segment.read_bytes().split(b"\n")[:-3]) + b"\n")


def no_segment(home: Path, yesterday: Path) -> None:
    (home / "logs" / "audit-00000001.jsonl").unlink()


def a_world_readable_vault(home: Path, yesterday: Path) -> None:
    (home / "auths" / "vault.db").chmod(0o644)


BYTES, RECORDS, LOG_GROWN = "bytes", "records", "log grown"


@pytest.mark.parametrize(
    ("damage", "words", "kept"),
    [
        (another_master_key, ("master key",), BYTES),
        (no_vault, ("put auths/ back",), BYTES),
        (a_world_readable_vault, ("chmod 600",), BYTES),
        (junk_for_checkpoints, ("holds something that is no checkpoint",), RECORDS),
        (a_forged_checkpoint, ("signature",), RECORDS),
        (a_shorter_log, ("entries that a checkpoint covers are missing",), RECORDS),
        (no_segment, ("entry 0", "put logs/ back"), RECORDS),
        (yesterdays_vault, ("older than the log",), LOG_GROWN),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_start_on_damaged_state_is_refused_in_one_line_and_leaves_everything(
    stopped: tuple[Gateway, Path], tmp_path: Path, damage: Callable[[Path, Path], None], words: tuple[str, ...], kept: str
) -> None:
    gateway, yesterday = stopped
    sound = tmp_path / "sound"
    shutil.copytree(gateway.home, sound, ignore=shutil.ignore_patterns("run"))
    try:
        damage(gateway.home, yesterday)
        before = contents_of(gateway.home)
        records = records_of(gateway.home, tmp_path / "before") if kept != BYTES else {}
        done = gateway.result("serve")
        assert done.returncode == 78, done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
        for word in (*words, ";"):
            assert word in done.stderr
        after = contents_of(gateway.home)
        changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
        if kept != BYTES:
            assert records_of(gateway.home, tmp_path / "after") == records != {}
            changed.discard("auths/vault.db-wal")
        if kept == LOG_GROWN:
            assert changed == {"logs/audit-00000001.jsonl", "logs/checkpoints"}
            assert all(after[name][1].startswith(before[name][1]) for name in changed)
        else:
            assert changed == set()
    finally:
        for part in ("auths", "key", "logs"):
            shutil.rmtree(gateway.home / part, ignore_errors=True)
            shutil.copytree(sound / part, gateway.home / part)


def test_what_was_put_back_starts_as_if_nothing_had_been(stopped: tuple[Gateway, Path]) -> None:
    gateway, _ = stopped
    gateway.start()
    assert gateway.get("/v1/models")[0] == 200
    gateway.stop()
    verify_log(gateway)
