"""A real gateway on a throw-away home, started and driven through the commands that a user types.

with Gateway(config="providers: …") as gateway: gateway.url, gateway.key, gateway.run("keys", "list", "--json")
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any, Self

import yaml

START_SECONDS = 30.0
STOP_SECONDS = 30.0


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def merged(base: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with `more` laid over it, block by block."""
    result = dict(base)
    for name, value in more.items():
        old = result.get(name)
        result[name] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


class Gateway:
    """`settings` is laid over a configuration that listens on a free port of 127.0.0.1, has the echo model, generous address limits, and forgets
    faults of its providers at once."""

    def __init__(self, settings: dict[str, Any] | None = None, *, credentials: dict[str, str] | None = None, environment: dict[str, str] | None = None) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.home = Path(tempfile.mkdtemp(prefix="cliproxy-test-"))
        self._environment = {**os.environ, "CLIPROXY_HOME": str(self.home), **(environment or {})}
        base = {
            "server": {"listen": ["127.0.0.1"], "port": self.port, "rate_limit": {"requests_per_second": 100000, "burst": 100000}},
            "providers": {"echo": {"models": ["echo"]}},
            "routing": {"cooldown_seconds": 0, "retry_rounds": 0},  # one test's faults are no business of the next
        }
        self.settings = merged(base, settings or {})
        self.credentials = credentials or {}
        self.process: subprocess.Popen[bytes] | None = None
        self.key = ""
        self.log_public_key = ""
        self.start_seconds = 0.0  # what the last start took: how busy the machine is

    def __enter__(self) -> Self:
        try:
            made = json.loads(self.run("init", "--json"))
            self.key, self.log_public_key = made["key"], made["log_public_key"]
            self.configure(self.settings)
            self.start()
            for provider, secret in self.credentials.items():
                self.run("credentials", "add", provider, "--stdin", stdin=secret)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.home, ignore_errors=True)

    def configure(self, settings: dict[str, Any]) -> None:
        """Write the configuration; `reload` or `start` takes it."""
        self.settings = settings
        file = self.home / "config" / "cliproxy.yaml"
        file.write_text(yaml.safe_dump(settings))
        file.chmod(0o600)

    def command(self, *arguments: str) -> list[str]:
        """Return the command line of `cliproxy arguments`."""
        return [sys.executable, "-m", "cliproxy.cli.main", *arguments]

    def run(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        """Run a command and return its stdout."""
        done = self.result(*arguments, stdin=stdin)
        if check and done.returncode:
            raise AssertionError(f"cliproxy {' '.join(arguments)} ended with {done.returncode}: {done.stderr}\n{self.messages()}")
        return done.stdout

    def result(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command and return everything about it."""
        return subprocess.run(
            self.command(*arguments), input=stdin if stdin is not None else "", capture_output=True, text=True, timeout=60, env=self._environment, check=False
        )

    def start(self, *options: str) -> None:
        """Start it, with `options` of `cliproxy serve`, and wait until it is ready."""
        self._stderr = open(self.home / "stderr", "ab")  # noqa: SIM115 - lives as long as the process
        self.process = subprocess.Popen(
            self.command("serve", *options), stdout=self._stderr, stderr=self._stderr, env=self._environment, start_new_session=True
        )
        began = time.monotonic()
        self.wait_ready()
        self.start_seconds = time.monotonic() - began

    def wait_ready(self, seconds: float = START_SECONDS) -> None:
        """Wait until `/readyz` says so."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            assert self.process is not None
            if self.process.poll() is not None:
                raise AssertionError(f"the gateway ended with {self.process.returncode}:\n{self.messages()}")
            if self.is_ready():
                return
            time.sleep(0.02)
        raise AssertionError(f"the gateway did not become ready:\n{self.messages()}")

    def is_ready(self) -> bool:
        """Ask `/readyz` once."""
        try:
            with urllib.request.urlopen(self.url + "/readyz", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def stop(self) -> int | None:
        """End it gracefully; by force if it does not."""
        if self.process is None:
            return None
        process, self.process = self.process, None
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._stderr.close()
        return process.returncode

    def kill(self) -> None:
        """Kill the supervisor, and with it everything."""
        assert self.process is not None
        process, self.process = self.process, None
        process.kill()
        process.wait()
        self._stderr.close()

    def messages(self) -> str:
        """Return what it wrote to stdout and stderr."""
        try:
            return (self.home / "stderr").read_text(errors="replace")
        except OSError:
            return ""

    def children(self) -> dict[str, int]:
        """Return the pids of the children by name (`worker-0`, `egress`, …)."""
        assert self.process is not None
        found: dict[str, int] = {}
        for child in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
            try:
                command = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            role = next((part.rsplit(b".", 1)[1].decode() for part in command if part.startswith(b"cliproxy.processes.")), "")
            name = role
            number = 0
            while name in found:
                number += 1
                name = f"{role}-{number}"
            found[name] = int(child)
        return found

    def audit_lines(self) -> list[dict[str, Any]]:
        """Return the events of the log so far."""
        lines = []
        for segment in sorted((self.home / "logs").glob("audit-*.jsonl")):
            lines += [json.loads(line) for line in segment.read_bytes().splitlines() if line.endswith(b"}")]
        return lines

    def post(self, path: str, body: Any, *, key: str | None = None, timeout: float = 30.0) -> tuple[int, dict[str, str], bytes]:
        """POST JSON and return status, headers (lower case) and body."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, method="POST", headers={"Content-Type": "application/json"})
        if key != "":
            request.add_header("Authorization", f"Bearer {key or self.key}")
        return _answer(request, timeout)

    def get(self, path: str, *, key: str | None = None, timeout: float = 30.0) -> tuple[int, dict[str, str], bytes]:
        """GET and return status, headers (lower case) and body."""
        request = urllib.request.Request(self.url + path)
        if key != "":
            request.add_header("Authorization", f"Bearer {key or self.key}")
        return _answer(request, timeout)


def _answer(request: urllib.request.Request, timeout: float) -> tuple[int, dict[str, str], bytes]:
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, {name.lower(): value for name, value in answer.headers.items()}, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, {name.lower(): value for name, value in error.headers.items()}, error.read()
