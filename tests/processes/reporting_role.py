"""The real gateway whose processes each write down which modules they have: `python -I -B reporting_role.py start HOME`.

start HOME        what `cliproxy serve` does, then become the supervisor
supervise PLAN    the real supervisor, whose children are the real roles
ROLE              the real role: its prepare, then the list (after that the lockdown refuses every import), then its body
"""

import importlib
import os
import sys


def write_list(home, name):
    names = "\n".join(sorted(sys.modules))
    descriptor = os.open(f"{home}/modules-{name}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.write(descriptor, names.encode())
    os.close(descriptor)
    os.rename(f"{home}/modules-{name}.new", f"{home}/modules-{name}")


def start(home):
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
    os.execv(sys.executable, [sys.executable, "-I", "-B", __file__, "supervise", str(memfd), home])


def supervise(plan, home):
    from cliproxy.processes import spawn, supervisor

    def program(role):
        return spawn.program(role) if role == "config_loader" else [sys.executable, "-I", "-B", __file__, role]

    code = supervisor.main([plan], program=program)
    write_list(home, "supervisor")
    os._exit(code)


def run(role):
    module = importlib.import_module(f"cliproxy.processes.{role}")
    child = importlib.import_module("cliproxy.processes.child")

    def prepare(boot):
        prepared = module.prepare(boot)
        write_list(boot.home, role)
        return prepared

    child.main(role, prepare=prepare, body=module.body)


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    if what == "start":
        start(*arguments)
    elif what == "supervise":
        supervise(*arguments)
    else:
        run(what)
