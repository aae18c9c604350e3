"""The real gateway whose processes all fell: each runs its own `prepare` and the real lockdown, and then reads and writes on what it has for a terminal.

start HOME        what `cliproxy serve` does, then become the supervisor
supervise PLAN    the real supervisor, whose children are:
ROLE              the role; it notes in `stolen-NAME` of the home what it could read, and that it has looked again

With the argument `handed` behind HOME the children get the supervisor's own stderr, as one that forgot the pipe would give it to them; with `unchecked` they
do not notice, either.
"""

import importlib
import json
import os
import select
import stat
import sys
import time

PROGRAM = __file__  # or that of who borrows `start` and `supervise`
ESCAPES = "\x1b]0;owned\x07 \x9b31m \u202e owned\n".encode() + b"\xff\xfe\n"


def start(home, *handed):
    from pathlib import Path

    from cliproxy.cli.home import Home
    from cliproxy.cli.starting import make_plan
    from cliproxy.processes.boot import seal
    from cliproxy.processes.plan import _encoder

    made = Home(Path(home))
    plan = make_plan(made, made.config_file, serving=True)
    memfd = seal(_encoder.encode(plan), name="plan")
    for number in (memfd, plan.master_key_fd):
        os.set_inheritable(number, True)
    os.execv(sys.executable, [sys.executable, "-I", "-B", PROGRAM, "supervise", str(memfd), *handed])


def supervise(plan, *handed):
    from cliproxy.processes import fleet, spawn, supervisor

    def program(role):
        return spawn.program(role) if role == "config_loader" else [sys.executable, "-I", "-B", PROGRAM, role, *handed]

    if "handed" in handed:
        vars(fleet)["spawn"] = lambda command, *, descriptors, output: spawn.spawn(command, descriptors=descriptors, output=2)
    sys.exit(supervisor.main([plan], program=program))


def run(role, *handed):
    module = importlib.import_module(f"cliproxy.processes.{role}")
    child = importlib.import_module("cliproxy.processes.child")
    from cliproxy.processes.child import Up

    if "unchecked" in handed:
        vars(child)["verify_no_device"] = lambda numbers: None

    def prepare(boot):
        module.prepare(boot)
        return os.open(f"{boot.home}/stolen-{boot.name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def body(boot, notes, control):
        control.send(Up.READY, boot.generation)
        for number in (0, 1, 2):
            try:
                os.write(number, ESCAPES)
            except OSError:
                pass
        poll = select.poll()
        for number in (0, 1, 2):
            poll.register(number, select.POLLIN)
        while True:
            time.sleep(0.1)
            readable = dict(poll.poll(0))
            for number in (0, 1, 2):
                if stat.S_ISCHR(os.fstat(number).st_mode) and number not in readable:
                    continue  # a terminal: a read would wait for the next line
                try:
                    found = os.read(number, 4096).decode("utf-8", "replace")
                except OSError as error:
                    found = type(error).__name__
                os.write(notes, json.dumps([number, found]).encode() + b"\n")

    child.main(role, prepare=prepare, body=body)


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    if what == "start":
        start(*arguments)
    elif what == "supervise":
        supervise(*arguments)
    else:
        run(what, *arguments)
