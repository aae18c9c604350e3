"""The real gateway whose supervisor also sends the orders that a test writes down: `python -I -B ordering_supervisor.py start HOME`.

start HOME        what `cliproxy serve` does, then become the supervisor
supervise PLAN    the real supervisor with the real roles; at each of its turns it sends what is in HOME/order (a SIGCHLD makes it turn)
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def start(home: str) -> None:
    from cliproxy.cli.home import Home
    from cliproxy.cli.starting import make_plan
    from cliproxy.processes.boot import seal
    from cliproxy.processes.plan import _encoder

    made = Home(Path(home))
    plan = make_plan(made, made.config_file, serving=True)
    memfd = seal(_encoder.encode(plan), name="plan")
    for number in (memfd, plan.master_key_fd):
        os.set_inheritable(number, True)
    os.execv(sys.executable, [sys.executable, "-I", "-B", __file__, "supervise", str(memfd), home])


def supervise(plan: str, home: str) -> None:
    from cliproxy.ipc.control import Down
    from cliproxy.processes import supervisor

    file = Path(home) / "order"

    class Ordering(supervisor.Supervisor):
        def _turn(self) -> None:
            super()._turn()
            if file.exists():
                order = json.loads(file.read_text())
                file.unlink()
                (child,) = self._fleet.of_role(order["role"])
                assert child.control is not None
                child.control.order(Down[order["kind"]], order["argument"], [0] * order["descriptors"])

    supervisor.Supervisor = Ordering  # type: ignore[misc]
    sys.exit(supervisor.main([plan]))


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    if what == "start":
        start(*arguments)
    else:
        supervise(*arguments)
