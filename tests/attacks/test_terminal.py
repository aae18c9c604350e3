"""A process that fell, in a gateway that was started from a terminal (`cliproxy serve &`): what is typed there next may be a provider's key."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cliproxy.sandbox.roles import PROFILES
from fakes.gateway import Gateway

PROGRAM = str(Path(__file__).parents[1] / "processes" / "thief_role.py")
TYPED = b"sk-typed-into-credentials-add"
SECONDS = 60.0
NAMES = sorted("worker-0" if role == "worker" else role for role in PROFILES)


class OnTerminal(Gateway):
    """The gateway of thieves as the foreground job of a terminal of its own. `screen`: what the terminal has shown."""

    def __init__(self, *more: str) -> None:
        super().__init__({"server": {"workers": 1}})
        self.screen = b""
        self.run("init", "--json")
        self.configure(self.settings)
        self.master, slave = pty.openpty()
        self.name = os.ttyname(slave)
        raw = termios.tcgetattr(slave)
        raw[3] &= ~termios.ECHO  # as when a secret is asked for
        termios.tcsetattr(slave, termios.TCSANOW, raw)
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-B", PROGRAM, "start", str(self.home), *more],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=self._environment,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)

    def look(self, seconds: float = 0.05) -> None:
        """Read what the terminal shows."""
        while select.select([self.master], [], [], seconds)[0]:
            try:
                piece = os.read(self.master, 65536)
            except OSError:
                return  # the last process that had it is gone
            self.screen += piece
            if not piece:
                return

    def looks(self, name: str) -> list[list[object]]:
        """What process `name` got each time that it looked: descriptor, and text or error."""
        try:
            return [json.loads(line) for line in (self.home / f"stolen-{name}").read_text().splitlines(keepends=True) if line.endswith("\n")]
        except FileNotFoundError:
            return []

    def wait_for(self, question: object) -> None:
        until = time.monotonic() + SECONDS
        while not question():  # type: ignore[operator]
            self.look()
            assert time.monotonic() < until, self.screen

    def end(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process = None
        os.close(self.master)
        shutil.rmtree(self.home, ignore_errors=True)


@pytest.fixture(scope="module")
def gateway() -> Iterator[OnTerminal]:
    running = OnTerminal()
    try:
        running.wait_for(lambda: all(running.looks(name) for name in NAMES))
        before = {name: len(running.looks(name)) for name in NAMES}
        os.write(running.master, TYPED + b"\n")
        running.wait_for(lambda: all(len(running.looks(name)) > before[name] + 12 for name in NAMES))
        yield running
    finally:
        running.end()


def test_no_fallen_process_reads_what_is_typed(gateway: OnTerminal) -> None:
    for name in NAMES:
        found = {(number, text) for number, text in gateway.looks(name)}
        assert found <= {(0, ""), (1, "OSError"), (2, "OSError")}, name  # /dev/null, and twice a pipe's end for writing only (EBADF)
        assert (1, "OSError") in found


def test_what_was_typed_is_still_there_for_whom_it_is_meant(gateway: OnTerminal) -> None:
    """Or nobody could have read it, and the test above would prove nothing."""
    reader = os.open(gateway.name, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
    try:
        assert os.read(reader, 4096) == TYPED + b"\n"
    finally:
        os.close(reader)


def test_no_fallen_process_steers_the_terminal(gateway: OnTerminal) -> None:
    gateway.wait_for(lambda: gateway.screen.count(b"owned") >= 2 * len(NAMES))
    screen = gateway.screen.decode()
    assert all(character.isprintable() or character in "\r\n" for character in screen)
    for name in NAMES:
        assert f"cliproxy: {name}: \\x1b]0;owned\\x07 \\x9b31m \\u202e owned" in screen
        assert f"cliproxy: {name}: \\xff\\xfe" in screen


def test_with_the_supervisors_own_stderr_the_same_thieves_read_it() -> None:
    """Or the tests above would prove nothing."""
    running = OnTerminal("handed", "unchecked")
    try:
        running.wait_for(lambda: all(running.looks(name) for name in NAMES))
        os.write(running.master, TYPED + b"\n")
        running.wait_for(lambda: any(TYPED.decode() in str(text) for name in NAMES for _, text in running.looks(name)))
        assert b"\x1b]0;owned\x07" in running.screen
    finally:
        running.end()


def test_a_process_that_was_handed_a_terminal_does_not_start() -> None:
    running = OnTerminal("handed")
    try:
        running.wait_for(lambda: running.process is not None and running.process.poll() is not None)
        running.look()
        assert running.process is not None and running.process.returncode == 78
        assert b"is a terminal or another device" in running.screen
        assert not any(running.looks(name) for name in NAMES)
    finally:
        running.end()
