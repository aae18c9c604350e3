"""The real gateway whose worker 0 fell and wants to stop the other one, by what both have: one listening socket.

`start HOME`, `supervise PLAN`, `ROLE` as in `thief_role`. What worker 0 tried, behind its own `prepare` and the real lockdown, goes to `broken` of the home.
With the argument `unguarded` behind HOME its filter knows no listening sockets: then one attack, named behind that, succeeds.
"""

import ctypes
import errno
import importlib
import json
import os
import struct
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from cliproxy.processes.topology import WorkerDescriptors
from cliproxy.sandbox.calls import system_call
from processes import thief_role

thief_role.PROGRAM = __file__
LISTENER = WorkerDescriptors.LISTEN_FDS[0]
EGRESS_FD = WorkerDescriptors.EGRESS_FD
_buffer = ctypes.create_string_buffer(struct.pack("=ii", 1, 0), 64)
_zero = ctypes.create_string_buffer(64)

ATTACKS = {
    "copy": lambda: system_call("fcntl", LISTENER, 1030, 100),
    "copy onto a channel": lambda: system_call("dup3", LISTENER, EGRESS_FD, os.O_CLOEXEC),
    "free the control channel's number": lambda: system_call("close", 3),
    "queue of none": lambda: system_call("listen", LISTENER, 0),
    "reset who is accepted": lambda: system_call("setsockopt", LISTENER, 1, 13, ctypes.addressof(_buffer), 8),
    "block": lambda: system_call("ioctl", LISTENER, 0x5421, ctypes.addressof(_zero)),
    "block by its flags": lambda: system_call("fcntl", LISTENER, 4, 0),
    "shutdown": lambda: system_call("shutdown", LISTENER, 2),
}


def outcome(attack):
    try:
        attack()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "done"


def run(role, *how):
    module = importlib.import_module(f"cliproxy.processes.{role}")
    child = importlib.import_module("cliproxy.processes.child")
    if role == "worker" and "unguarded" in how:
        child.topology.listening = lambda role: frozenset()
    notes = -1

    def prepare(boot):
        nonlocal notes
        if boot.name == "worker-0" and not os.path.exists(f"{boot.home}/broken"):
            notes = os.open(f"{boot.home}/broken", os.O_WRONLY | os.O_CREAT, 0o600)
        return module.prepare(boot)

    def body(boot, prepared, control):
        if notes < 0:
            module.body(boot, prepared, control)
            return
        control.send(child.Up.READY, boot.generation)
        wanted = [how[1]] if "unguarded" in how else ATTACKS
        os.write(notes, json.dumps({name: outcome(ATTACKS[name]) for name in wanted}).encode())
        for _ in range(20 if "unguarded" in how else 0):  # the other worker makes the socket non-blocking when it begins to accept
            time.sleep(0.5)
            outcome(ATTACKS[how[1]])
        while True:
            time.sleep(60)

    child.main(role, prepare=prepare, body=body)


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    {"start": thief_role.start, "supervise": thief_role.supervise}.get(what, lambda *rest: run(what, *rest))(*arguments)
