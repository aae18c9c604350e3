"""A gateway of probe roles on a throw-away home, ended by pid."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from cliproxy.config.load import load_settings
from cliproxy.config.schema import encode_settings
from cliproxy.processes.boot import seal
from cliproxy.processes.plan import Plan

RUNNER = str(Path(__file__).parent / "run_supervisor.py")
PATIENCE = 20.0


class Gateway:
    """A supervisor under test and what its probes told."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.process: subprocess.Popen[bytes] | None = None
        self.ready: dict[str, Any] | None = None
        self.starter = -1
        for name in ("run", "logs"):
            (home / name).mkdir(mode=0o700, exist_ok=True)
        self.configure()

    def configure(self, *, port: int = 0, workers: int = 1, drain: float = 5.0, extra: str = "") -> None:
        server = f"server:\n  listen: [127.0.0.1]\n  port: {port}\n  workers: {workers}\n  limits:\n    drain_timeout_seconds: {drain}\n"
        text = f"{server}sandbox:\n  mode: 'off'\n{extra}"
        file = self.home / "cliproxy.yaml"
        file.write_text(text)
        file.chmod(0o600)

    def behave(self, **wanted) -> None:
        new = self.home / "behaviour.new"
        new.write_text(json.dumps(wanted))
        new.rename(self.home / "behaviour.json")

    def start(self, *, serving: bool = True, wait: bool = True, starter: bool = False, environment: dict[str, str] | None = None) -> "Gateway":
        settings = load_settings(self.home / "cliproxy.yaml", allow_no_sandbox=True).settings
        key = seal(b"k" * 32, name="key")
        reader, writer = os.pipe()
        starter_read, starter_write = os.pipe()
        plan = Plan(
            home=str(self.home),
            settings=encode_settings(settings),
            serving=serving,
            master_key_fd=key,
            operator_uid=os.getuid(),
            config_file=str(self.home / "cliproxy.yaml"),
            allow_no_sandbox=True,
            ready_fd=writer,
            may_create=True,  # of a vault that is a probe
            starter_fd=starter_read if starter else -1,
        )
        memfd = seal(msgspec.msgpack.encode(plan), name="plan")
        passed = [key, writer, memfd, starter_read]
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-B", RUNNER, str(memfd)],
            pass_fds=passed,
            stdout=subprocess.PIPE,
            stderr=(self.home / "stderr").open("ab"),
            env={"SECRET_IN_ENVIRONMENT": "x", "LANG": "C.UTF-8", **(environment or {})},
        )
        for number in passed:
            os.close(number)
        self.starter = starter_write
        try:
            if wait:
                line = _read_line(reader)
                self.ready = json.loads(line) if line else None
        finally:
            os.close(reader)
        return self

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def trace(self, **wanted) -> list[dict[str, Any]]:
        try:
            lines = (self.home / "trace").read_text().split("\n")[:-1]  # the last one may still be being written
        except FileNotFoundError:
            return []
        records = [json.loads(line) for line in lines]
        return [record for record in records if all(record.get(key) == value for key, value in wanted.items())]

    def wait_trace(self, count: int = 1, **wanted) -> list[dict[str, Any]]:
        records: list[dict[str, Any]] = wait_for(lambda: found if len(found := self.trace(**wanted)) >= count else None)
        return records

    def pids(self, name: str) -> list[int]:
        return [record["pid"] for record in self.trace(name=name, what="ready")]

    def stderr(self) -> str:
        return (self.home / "stderr").read_text()

    def wait(self) -> int:
        assert self.process is not None
        return self.process.wait(PATIENCE)

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def end(self) -> None:
        if self.starter >= 0:
            os.close(self.starter)
            self.starter = -1
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(PATIENCE)
        if self.process is not None and self.process.stdout is not None:
            self.process.stdout.close()


def _read_line(reader: int) -> bytes:
    data = b""
    until = time.monotonic() + PATIENCE
    while not data.endswith(b"\n") and time.monotonic() < until:
        if not select.select([reader], [], [], 1.0)[0]:
            continue
        piece = os.read(reader, 4096)
        if not piece:
            break
        data += piece
    return data


def wait_for(question):
    """Return the first true answer to `question`; fail after `PATIENCE` seconds."""
    until = time.monotonic() + PATIENCE
    while True:
        answer = question()
        if answer:
            return answer
        assert time.monotonic() < until, "it never became true"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
