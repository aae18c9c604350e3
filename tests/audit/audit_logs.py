"""Logs for the tests, written by the production writer into a directory, without processes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from cliproxy.audit.checkpoint import Record, RecordReader
from cliproxy.audit.events import Event, KeyChange, Process, ProviderOutcome, ProviderRequest, VaultCommit, VaultIntent, lines_of
from cliproxy.audit.files import CHECKPOINTS, segment_name
from cliproxy.audit.log import LogSigner, LogWriter
from cliproxy.audit.recovery import recover
from cliproxy.secret import Secret

SEED = bytes(range(32))
NOW = "2026-01-02T03:04:05.000006Z"


def signer(seed: bytes = SEED) -> LogSigner:
    return LogSigner(Secret(seed))


def event(number: int) -> Event:
    return Process(code=number, role="worker-0", what="tested")


def intent(number: int) -> ProviderRequest:
    return ProviderRequest(
        address="192.0.2.1",
        attempt=1,
        credential="c_1",
        endpoint="chat_completions",
        model="gpt-4o-mini",
        principal="k_1",
        provider="openai",
        request=f"req_{number}",
        reserved_tokens=100,
        stream=False,
    )


def outcome(number: int) -> ProviderOutcome:
    return ProviderOutcome(attempt=1, bytes=1, duration_ms=2, error="", input_tokens=3, output_tokens=4, request=f"req_{number}", status=200)


class Log:
    """A log in `home`, opened as the supervisor opens it."""

    def __init__(self, home: Path, *, seed: bytes = SEED) -> None:
        self.home = home
        self.logs = home / "logs"
        self.logs.mkdir(mode=0o700, exist_ok=True)
        numbers = [int(path.name[6:14]) for path in self.logs.glob("audit-*.jsonl")]
        position = recover(str(home))
        self.segment = self._open(segment_name(max(numbers, default=1)))
        self.checkpoints = self._open(CHECKPOINTS)
        self.position = position
        self.writer = LogWriter(position, signer(seed), segment=self.segment, checkpoints=self.checkpoints, now=NOW)

    def _open(self, name: str) -> int:
        return os.open(self.logs / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def add(self, *events: Event) -> None:
        for one in events:
            self.writer.add(lines_of([one], source="supervisor", time=NOW), 1)
            if isinstance(one, VaultIntent | VaultCommit):
                self.writer.add_anchor(one)

    def batch(self, *events: Event) -> None:
        self.add(*events)
        self.writer.seal()
        assert self.writer.write()

    def checkpoint(self) -> bytes:
        note = self.writer.checkpoint(NOW)
        assert self.writer.write()
        return note

    def rotate(self) -> None:
        number = self.writer.segment + 1
        descriptor = self._open(segment_name(number))
        os.dup2(descriptor, self.segment, inheritable=False)
        os.close(descriptor)
        self.writer.begin_segment(number)

    def close(self) -> None:
        os.close(self.segment)
        os.close(self.checkpoints)


def build(home: Path, batches: list[int], *, rotate_after: int = -1) -> list[bytes]:
    """Write a log with a checkpoint after each batch of so many events (the opening comes on top); return the notes."""
    log = Log(home)
    notes = []
    number = 0
    for turn, count in enumerate(batches):
        log.batch(*(event(number + one) for one in range(count)))
        number += count
        notes.append(log.checkpoint())
        if turn == rotate_after:
            log.rotate()
    log.close()
    return notes


def segments(home: Path) -> list[Path]:
    return sorted((home / "logs").glob("audit-*.jsonl"))


def lines(home: Path) -> list[bytes]:
    return [line for path in segments(home) for line in path.read_bytes().splitlines(keepends=True)]


def entries(home: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines(home)]


def records(home: Path) -> list[Record]:
    return list(RecordReader().feed((home / "logs" / CHECKPOINTS).read_bytes()))


KEY_CHANGE = KeyChange(action="created", key="k_1", name="first", operator="uid:0")
