"""A worker that fell, and what it may tell the supervisor: a few records of sixteen bytes, which the log and the operator hear of.

Found by attack: READY, told without pause, was an event of the supervisor's each time. 107,000 lines of the log in five seconds, 15 GB in an hour, waited for
by `fdatasync`, and what the supervisor had to tell of others went under in them.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fakes.gateway import Gateway

PROGRAM = str(Path(__file__).parents[1] / "processes" / "flooding_role.py")
CALL = {"model": "echo", "messages": [{"role": "user", "content": "still there"}]}
SECONDS = 60.0


class Flooded(Gateway):
    """Two workers, of which the first fell and says one thing without pause."""

    def __init__(self, report: str) -> None:
        super().__init__({"server": {"workers": 2}})
        self._report = report

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-I", "-B", PROGRAM, "start", str(self.home), self._report] if arguments == ("serve",) else super().command(*arguments)

    def events(self) -> Counter[tuple[str, str]]:
        """What the log tells of worker 0: how often what happened."""
        mine = [line for line in self.audit_lines() if line.get("role") == "worker-0" or line.get("peer") == "worker-0"]
        return Counter((line["event"], line.get("what") or line["reason"]) for line in mine)

    def wait_for(self, question: Callable[[], Any]) -> None:
        until = time.monotonic() + SECONDS
        while not question():
            assert time.monotonic() < until, (self.events(), self.messages())
            time.sleep(0.05)


@pytest.mark.parametrize(
    ("report", "reason"),
    [
        ("READY", "READY a second time"),
        ("ALIVE", "more than 8 reports a second"),
        ("PREPARED", "more than 8 reports a second"),
        ("STOP", "STOP is not for it to say"),
    ],
)
def test_a_process_that_reports_without_pause_is_replaced_and_the_log_tells_it_once(report: str, reason: str) -> None:
    with Flooded(report) as gateway:
        gateway.wait_for(lambda: gateway.events()["process", "ready"] >= 2)  # it, and its successor
        assert gateway.events() == {("process", "ready"): 2, ("channel_violation", reason): 1, ("process", "killed"): 1}
        for _ in range(10):
            status, _, body = gateway.post("/v1/chat/completions", CALL)
            assert status == 200 and b"still there" in body
