"""The real gateway, in each of whose processes an attacker tries everything from behind the real `prepare` and the real lockdown, before it serves.

    python -I -B fallen_role.py start HOME          what `cliproxy serve` does, then become the supervisor
    python -I -B fallen_role.py supervise PLAN      the real supervisor, whose children are:
    python -I -B fallen_role.py ROLE                the real role

A role first runs its own `prepare`. Then it forks for the attacks of `tests/sandbox/sandbox_attacks.py`; the fork goes on through `child.run_locked` into the
lockdown with the role's own slots, and the attacks are its body. What came out of all of them goes to `fallen-NAME` in the home, and the process itself goes on
to serve. When there is `fall-NAME` in the home, the process's own body is the attack: the supervisor sees it die.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import os
import select
import shutil
import signal
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sandbox.sandbox_attacks import Attack, Scene

sys.path.insert(0, str(Path(__file__).parents[1]))

PATIENCE_SECONDS = 20
LISTENER = 8  # WorkerDescriptors.LISTEN_FDS[0], AdminDescriptors.LISTEN_FD
FAR_END = 390  # where the other end of a probe's own channel is, beyond every slot
WITHOUT_LOCKDOWN = "worker"  # in one role the attacks are tried without the lockdown, too
# These are tried on the control channel, the others on a channel that a restarted peer's replaces.
ON_CONTROL = {"pass a descriptor on the channel", "free the number over which descriptors travel"}


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
    os.execv(sys.executable, [sys.executable, "-I", "-B", __file__, "supervise", str(memfd)])


def supervise(plan: str) -> None:
    from cliproxy.processes import spawn, supervisor

    def program(role: str) -> list[str]:
        return spawn.program(role) if role == "config_loader" else [sys.executable, "-I", "-B", __file__, role]

    sys.exit(supervisor.main([plan], program=program))


class Trial:
    """Attacks in a fork: what the body of the locked process is to do, and where the outcomes go."""

    def __init__(self, attempts: dict[str, Callable[[], object]], writer: int) -> None:
        self.attempts = attempts
        self.writer = writer

    def run(self) -> None:
        from sandbox.sandbox_probe import outcome_of

        found = {name: outcome_of(attempt) for name, attempt in self.attempts.items()}
        os.write(self.writer, json.dumps(found).encode())
        os._exit(0)


def run(role: str) -> None:
    module = importlib.import_module(f"cliproxy.processes.{role}")
    child = importlib.import_module("cliproxy.processes.child")
    from sandbox.sandbox_attacks import call, path, pointer

    trial: Trial | None = None
    falls = False

    def prepare(boot: Any) -> Any:
        nonlocal trial, falls
        prepared = module.prepare(boot)
        home = Path(boot.home)
        if (home / f"fall-{boot.name}").exists():
            (home / f"fall-{boot.name}").unlink()
            falls = True
        elif not (home / f"fallen-{boot.name}").exists():
            trial = attacked(boot)
        return prepared

    def body(boot: Any, prepared: Any, control: Any) -> None:
        if trial is not None:
            trial.run()
        if falls:
            call("execve", path("/bin/true"), pointer(struct.pack("=QQ", path("/bin/true"), 0)), 0)(None, None)  # type: ignore[arg-type]
        module.body(boot, prepared, control)

    child.main(role, prepare=prepare, body=body)


def attacked(boot: Any) -> Trial | None:
    """Return the trial in a fork, and None in the process itself, when all is over."""
    from sandbox.sandbox_attacks import attacks_here
    from sandbox.sandbox_probe import start_victim

    me = os.getpid()
    scratch = tempfile.mkdtemp(prefix="cliproxy-fallen-")
    os.chmod(scratch, 0o777)
    scene, victims = start_victim(boot.uid, scratch)
    os.chown(scene.file, boot.uid, boot.gid)
    kinds = (*(("unlocked",) if boot.role == WITHOUT_LOCKDOWN else ()), "locked", "supervisor")
    outcomes: dict[str, dict[str, str]] = {kind: {} for kind in kinds}
    try:
        for kind, results in outcomes.items():
            target = dataclasses.replace(scene, victim=boot.supervisor_pid) if kind == "supervisor" else scene
            for group in groups(boot.role, kind, attacks_here()):
                reader, writer = os.pipe()
                pid = os.fork()
                if pid == 0:
                    return in_fork(boot, kind, group, target, writer)
                os.close(writer)
                results.update(outcomes_in(pid, reader, group))
    finally:
        if os.getpid() == me:
            for victim in victims:
                os.kill(victim, signal.SIGKILL)
                os.waitpid(victim, 0)
            shutil.rmtree(scratch, ignore_errors=True)
    file = Path(boot.home) / f"fallen-{boot.name}"
    file.with_suffix(".new").write_text(json.dumps(outcomes))
    file.with_suffix(".new").rename(file)
    return None


def groups(role: str, kind: str, attacks: tuple[Attack, ...]) -> Iterator[tuple[Attack, ...]]:
    """Yield what is tried in one fork: those that the table says fail with an error together, every other one alone."""
    if kind == "unlocked":
        yield from ((attack,) for attack in attacks if attack.unlocked is not None)
        return
    if kind == "supervisor":
        attacks = tuple(attack for attack in attacks if attack.name in AT_THE_SUPERVISOR)
    together = tuple(attack for attack in attacks if attack.roles.get(role, attack.answer).startswith("E") and attack.name not in ON_CONTROL)
    yield together
    yield from ((attack,) for attack in attacks if attack not in together)


def in_fork(boot: Any, kind: str, group: tuple[Attack, ...], scene: Scene, writer: int) -> Trial:
    """Make ready what the attacks want and return the trial; without the lockdown, run it here, as the role's user."""
    from cliproxy.processes.topology import CHANNELS, CONTROL_FD
    from sandbox.sandbox_probe import become_ordinary

    slot = CONTROL_FD if group[0].name in ON_CONTROL else min(CHANNELS[boot.role])
    take_slot(slot)
    here = dataclasses.replace(scene, channel=(slot, FAR_END), listener=LISTENER)
    if kind == "unlocked" and os.geteuid() == 0:
        become_ordinary(boot.uid)
    attempts: dict[str, Callable[[], object]] = {}
    for attack in group:
        ready = None if attack.prepare is None else attack.prepare(here)
        attempts[attack.name] = functools.partial(attack.attempt, here, ready)
    trial = Trial(attempts, writer)
    if kind == "unlocked":
        trial.run()
    force_parent(boot, os.getppid())
    return trial


# Of the attacks on another process, those that could mean the supervisor, which has our uid when an ordinary user started the gateway.
AT_THE_SUPERVISOR = {
    "kill another",
    "tgkill another",
    "ptrace",
    "read another's memory",
    "write another's memory",
    "read another's memory through /proc",
    "open a pidfd",
    "F_SETOWN",
    "F_SETOWN_EX",
    "FIOSETOWN",
    "queue a signal",
    "renice another",
    "change another's limits",
}


def take_slot(slot: int) -> None:
    """Put a channel of the fork's own on `slot`: the real one is the process's, and the other end would hear the probe."""
    import socket

    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    os.dup2(near.fileno(), slot, inheritable=False)
    os.dup2(far.fileno(), FAR_END, inheritable=False)


def force_parent(boot: Any, parent: int) -> None:
    """The fork's parent is the role's process and not the supervisor: the lockdown ends a process whose parent is another."""
    import msgspec

    msgspec.structs.force_setattr(boot, "supervisor_pid", parent)


def outcomes_in(pid: int, reader: int, group: tuple[Attack, ...]) -> dict[str, str]:
    """Return what the fork said, or for all of its attacks the signal that killed it."""
    readable, _, _ = select.select([reader], [], [], PATIENCE_SECONDS)
    found = os.read(reader, 65536) if readable else b""
    os.close(reader)
    if not readable:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if found:
        return dict(json.loads(found))
    if not readable:
        end = "too slow"
    elif os.WIFSIGNALED(status):
        end = signal.Signals(os.WTERMSIG(status)).name
    else:
        end = f"exit {os.WEXITSTATUS(status)}" if os.WEXITSTATUS(status) else "done"  # execve leaves no message
    return {attack.name: end for attack in group}


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    if what == "start":
        start(*arguments)
    elif what == "supervise":
        supervise(*arguments)
    else:
        run(what)
