"""A worker that fell, and the listening socket that it shares with the others: one open file description."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fakes.gateway import Gateway

PROGRAM = str(Path(__file__).parents[1] / "processes" / "breaker_role.py")
CALL = {"model": "echo", "messages": [{"role": "user", "content": "still there"}]}
SECONDS = 60.0


class Broken(Gateway):
    """Two workers, of which the first fell."""

    def __init__(self, *how: str) -> None:
        super().__init__({"server": {"workers": 2}})
        self._how = how

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-I", "-B", PROGRAM, "start", str(self.home), *self._how] if arguments == ("serve",) else super().command(*arguments)

    def child(self, role: str) -> int:
        """The pid of the child of `role`, whose program is not the real one's."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        (pid,) = [int(child) for child in children if role.encode() in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")]
        return pid

    def tried(self) -> dict[str, str]:
        """What worker 0 tried, and what the kernel said."""
        self.wait_for(lambda: (self.home / "broken").exists() and (self.home / "broken").read_text())
        found: dict[str, str] = json.loads((self.home / "broken").read_text())
        return found

    def wait_for(self, question: Callable[[], Any]) -> None:
        until = time.monotonic() + SECONDS
        while not question():
            assert time.monotonic() < until, self.messages()
            time.sleep(0.05)

    def is_served(self) -> bool:
        try:
            status, _, body = self.post("/v1/chat/completions", CALL)
        except OSError:
            return False
        return status == 200 and b"still there" in body


def reopened(gateway: Gateway) -> int:
    """What `cliproxy status` says; -1: admin is away."""
    said = gateway.result("status", "--json").stdout
    return int(json.loads(said).get("listeners_reopened", -1)) if said else -1


def test_a_fallen_worker_changes_nothing_about_the_socket_that_all_accept_on() -> None:
    with Broken() as gateway:
        assert gateway.tried() == {name: "ENOTTY" if name == "block" else "EPERM" for name in gateway.tried()} and len(gateway.tried()) == 8
        for _ in range(20):
            assert gateway.is_served()
        assert "listening again" not in gateway.messages()
        assert reopened(gateway) == 0 and "sockets" not in gateway.run("status")


@pytest.mark.parametrize("attack", ["shutdown", "block"])
def test_a_socket_that_does_not_accept_is_noticed_and_listens_again(attack: str) -> None:
    """And without the filter the attack works, or the test above would prove nothing."""
    gateway = Broken("unguarded", attack)
    try:
        made = json.loads(gateway.run("init", "--json"))
        gateway.key, gateway.log_public_key = made["key"], made["log_public_key"]
        gateway.configure(gateway.settings)
        gateway.wait_ready = lambda seconds=0.0: None  # type: ignore[method-assign]
        gateway.start()
        assert gateway.tried() == {attack: "done"}
        gateway.wait_for(lambda: "listening again, but a worker may have fallen" in gateway.messages())
        gateway.wait_for(gateway.is_served)
        gateway.wait_for(lambda: any(line["event"] == "listener_reopened" for line in gateway.audit_lines()))
        line, *_ = [line for line in gateway.audit_lines() if line["event"] == "listener_reopened"]
        assert line["source"] == "supervisor" and line["address"] == f"127.0.0.1:{gateway.port}"
        gateway.wait_for(lambda: reopened(gateway) == sum(line["event"] == "listener_reopened" for line in gateway.audit_lines()))
        assert "sockets  ACCEPTED NOBODY" in gateway.run("status")
        os.kill(gateway.child("admin"), signal.SIGKILL)
        gateway.wait_for(lambda: "admin killed (9)" in gateway.messages())
        gateway.wait_for(lambda: reopened(gateway) > 0)  # the next admin knows it too
    finally:
        gateway.__exit__()
