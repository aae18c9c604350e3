"""The real gateway whose worker 0 fell and tells the supervisor one thing, without pause: what it may say once, or now and then.

`start HOME KIND`, `supervise PLAN`, `ROLE` as in `thief_role`; KIND is the name of an `Up`. It falls once, behind the real lockdown: its successor serves.
"""

import importlib
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from processes import thief_role

thief_role.PROGRAM = __file__


def run(role, *how):
    module = importlib.import_module(f"cliproxy.processes.{role}")
    child = importlib.import_module("cliproxy.processes.child")
    from cliproxy.ipc.channel import ChannelClosed

    falls = False

    def prepare(boot):
        nonlocal falls
        if boot.name == "worker-0" and not os.path.exists(f"{boot.home}/fallen"):
            os.close(os.open(f"{boot.home}/fallen", os.O_WRONLY | os.O_CREAT, 0o600))
            falls = True
        return module.prepare(boot)

    def body(boot, prepared, control):
        if not falls:
            module.body(boot, prepared, control)
            return
        control.send(child.Up.READY, boot.generation)
        while True:
            try:
                control.send(child.Up[how[0]], boot.generation)
            except ChannelClosed:
                pass  # its queue is full

    child.main(role, prepare=prepare, body=body)


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    {"start": thief_role.start, "supervise": thief_role.supervise}.get(what, lambda *rest: run(what, *rest))(*arguments)
