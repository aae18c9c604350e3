"""An order that may not come ends any of the real processes, in its lockdown, whichever loop it has; its successor serves with the settings in force.

The whole table of orders is `test_role.py`'s; here is what only the real processes show: that a refused order is an end, with a line and an exit code.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cliproxy.ipc.control import Down
from cliproxy.processes.topology import ORDERS, ROLES, WORKER
from fakes.gateway import Gateway

RIG = Path(__file__).with_name("ordering_supervisor.py")
SECONDS = 60.0
HELLO = {"model": "echo", "messages": [{"role": "user", "content": "still there"}]}
EXIT_SOFTWARE = 70


class Ordering(Gateway):
    """A gateway whose supervisor sends what a test writes down."""

    def command(self, *arguments: str) -> list[str]:
        if arguments != ("serve",):
            return super().command(*arguments)
        return [sys.executable, "-I", "-B", str(RIG), "start", str(self.home)]

    def order(self, role: str, kind: Down, argument: int, *, descriptors: int) -> None:
        assert self.process is not None
        new = self.home / "order.new"
        new.write_text(json.dumps({"role": role, "kind": kind.name, "argument": argument, "descriptors": descriptors}))
        new.rename(self.home / "order")
        os.kill(self.process.pid, signal.SIGCHLD)


@pytest.fixture(scope="module")
def gateway() -> Iterator[Ordering]:
    with Ordering({"server": {"workers": 1}}) as running:
        yield running


# What may not come, and what the process says when it does. A death each, so no more than one of a kind.
FOREIGN = {role: next(kind for kind in (Down.SEGMENT, Down.RELOADED) if kind not in row) for role, row in ORDERS.items()}
CASES = [
    case
    for role in ROLES
    for case in (
        (role, Down.COMMIT, 2, 0, "takes no COMMIT" if role == WORKER else "a COMMIT of generation 2 while settled"),
        (role, FOREIGN[role], 0, 1, f"takes no {FOREIGN[role].name}"),
        (role, Down.DRAIN, 0, 1, "DRAIN comes with 0 descriptors, not 1"),
    )
]


@pytest.mark.parametrize(("role", "kind", "argument", "descriptors", "reason"), CASES, ids=[f"{case[0]}-{case[1].name}" for case in CASES])
def test_an_order_that_may_not_come_ends_the_process_and_its_successor_serves(
    gateway: Ordering, role: str, kind: Down, argument: int, descriptors: int, reason: str
) -> None:
    gateway.wait_ready()
    before = gateway.children()[role]
    said = len(gateway.messages())
    gateway.order(role, kind, argument, descriptors=descriptors)
    until = time.monotonic() + SECONDS
    while gateway.children().get(role, before) == before:
        assert time.monotonic() < until, gateway.messages()[said:]
        time.sleep(0.02)
    gateway.wait_ready()
    lines = gateway.messages()[said:]
    assert reason in lines and f"exited ({EXIT_SOFTWARE})" in lines
    assert "refuses" not in lines
    assert gateway.post("/v1/chat/completions", HELLO)[0] == 200


def test_orders_that_may_come_end_nobody(gateway: Ordering) -> None:
    gateway.wait_ready()
    before = gateway.children()
    for role in ROLES:
        if role != WORKER:
            gateway.order(role, Down.ABANDON, 9, descriptors=0)
            until = time.monotonic() + SECONDS
            while (gateway.home / "order").exists():
                assert time.monotonic() < until
                time.sleep(0.02)
    gateway.run("reload")
    after = gateway.children()
    assert {role for role in ROLES if before[role] != after[role]} <= {WORKER}
    assert gateway.post("/v1/chat/completions", HELLO)[0] == 200
