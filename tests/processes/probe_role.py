"""A role for the supervisor's tests: the real child library (unlocked), a body that does what `behaviour.json` of its home says and tells all in `trace`.

On every channel it sends its name and traces what arrives, so a test sees which process is at the other end.
"""

import json
import os
import select
import sys
import time

from cliproxy.processes import child, topology
from cliproxy.processes.boot import read_sealed
from cliproxy.processes.child import Down, Up
from cliproxy.processes.descriptors import is_socket


def trace(boot, what, **more):
    line = json.dumps({"name": boot.name, "pid": os.getpid(), "what": what, "generation": boot.generation, **more}) + "\n"
    descriptor = os.open(f"{boot.home}/trace", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(descriptor, line.encode())
    os.close(descriptor)


def behaviour(boot):
    try:
        with open(f"{boot.home}/behaviour.json") as file:
            return json.load(file)
    except FileNotFoundError:
        return {}


def prepare(boot):
    opened = {}
    for entry in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{entry}").partition(":")[0]
        except OSError:
            continue
        if target != "/dev/null":
            opened[int(entry)] = target
    trace(boot, "prepare", environment=dict(os.environ), descriptors=opened, uid=os.getuid())
    return


def greet(boot, slot):
    try:
        os.write(slot, boot.name.encode())
    except OSError:
        pass


def body(boot, _prepared, control):
    wanted = behaviour(boot)
    role_code = wanted.get("exit", {}).get(boot.role)
    if role_code is not None and boot.generation >= wanted.get("from_generation", 1):
        trace(boot, "exit")
        os._exit(role_code)
    channels = [slot for slot in topology.CHANNELS[boot.role] if is_socket(slot)]
    poll = select.poll()
    poll.register(control.fileno(), select.POLLIN)
    if boot.role != topology.AUDITOR:  # the supervisor's own audit channel speaks another protocol
        channels = [slot for slot in channels if slot != topology.AUDIT_FD]
    else:
        channels = [slot for slot in channels if slot == topology.AuditorDescriptors.ADMIN_QUERY_FD]
    for slot in channels:
        poll.register(slot, select.POLLIN)
        greet(boot, slot)
    if not wanted.get("never_ready", {}).get(boot.role):
        trace(boot, "ready")
        control.send(Up.READY, boot.generation)
    if wanted.get("garbage") == boot.role:
        os.write(control.fileno(), b"garbage")
    if wanted.get("claims") == boot.role:
        control.send(Up.STOP)
    prepared = None
    alive_at = 0.0
    while True:
        if time.monotonic() >= alive_at:
            alive_at = time.monotonic() + 2.0
            control.send(Up.ALIVE)
        for number, _ in poll.poll(100):
            if number == control.fileno():
                for order in control.receive():
                    trace(boot, order.kind.name, argument=order.argument)
                    if order.kind is Down.PREPARE:
                        prepared = read_sealed(order.descriptors[0])
                        os.close(order.descriptors[0])
                        answer = behaviour(boot).get("prepare", {}).get(boot.role, "PREPARED")
                        if answer != "SILENCE":
                            control.send(Up[answer], order.argument)
                    elif order.kind is Down.COMMIT:
                        assert prepared is not None
                        control.send(Up.COMMITTED, order.argument)
                    elif order.kind is Down.DRAIN:
                        if not behaviour(boot).get("never_drained"):
                            control.send(Up.DRAINED)
                    elif order.kind is Down.STOP:
                        if not behaviour(boot).get("ignores_stop"):
                            os._exit(0)
                    elif order.kind is Down.REPLACE and (order.argument in channels or (boot.role == topology.EGRESS and order.argument >= 16)):
                        poll.register(order.argument, select.POLLIN)
                        greet(boot, order.argument)
            else:
                try:
                    data = os.read(number, 100)
                except OSError:
                    data = b""
                if data:
                    trace(boot, "heard", slot=number, text=data.decode("utf-8", "replace"))
                else:
                    poll.unregister(number)
        extra = behaviour(boot).get("sends", {}).get(boot.role)
        if extra and not os.path.exists(f"{boot.home}/sent-{extra}"):
            open(f"{boot.home}/sent-{extra}", "w").close()
            control.send(Up[extra], int(behaviour(boot).get("argument", 0)))


if __name__ == "__main__":
    child.main(sys.argv[1], prepare=prepare, body=body)
