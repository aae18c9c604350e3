"""The children: started with what the topology gives them, watched, and started again after a growing pause.

A child that died comes back after 100 ms, then twice as long each time, to 30 s; a child that served for 30 s has a clean record again.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from enum import Enum, auto

import msgspec

from cliproxy.bounds import WORKER_NUMBERS
from cliproxy.ipc.control import Down, SupervisorControl
from cliproxy.ipc.silence import Silence
from cliproxy.processes.boot import Boot, encode_boot, seal
from cliproxy.processes.spawn import lift, spawn
from cliproxy.processes.topology import BOOT_FD, CONTROL_FD, HUNG_SECONDS, WORKER
from cliproxy.processes.wiring import Member, Wiring

START_SECONDS = 30.0  # from spawn to READY; ten times what a busy one-core machine needs
RESTART_FIRST_SECONDS = 0.1  # recovers well within 2 s
RESTART_LONGEST_SECONDS = 30.0  # docs/architecture.md
STABLE_SECONDS = 30.0  # served that long: the next death is the first again


class State(Enum):
    """Of a child. WAITING: dead, `restart_at` says until when. LEAVING: it was told to finish and does not come back."""

    WAITING = auto()
    STARTING = auto()
    READY = auto()
    LEAVING = auto()


class Child(msgspec.Struct, eq=False):
    """A member with a process, or waiting for one. Times are `time.monotonic()`; 0.0 means not set."""

    member: Member
    generation: int
    state: State = State.WAITING
    pid: int = 0
    control: SupervisorControl | None = None
    failures: int = 0
    restart_at: float = 0.0
    ready_at: float = 0.0
    deadline: float = 0.0  # killed then
    silence: Silence = msgspec.field(default_factory=Silence)  # since its last report; counted while it is READY

    @property
    def name(self) -> str:
        """The member's name."""
        return self.member.name


class Supplies(msgspec.Struct, kw_only=True):
    """What children are started with beyond their channels. `files_of(role)`: number to descriptor, which the supervisor keeps.
    `program(role)`: the command that runs the role. `output_of(child)`: what its stdout and stderr are to be, closed here once it has it."""

    boot_of: Callable[[Child], Boot]
    files_of: Callable[[str], dict[int, int]]
    program: Callable[[str], list[str]]
    output_of: Callable[[Child], int]


class Death(msgspec.Struct):
    """How a child ended: `signal` 0 when it exited with `status`. `expected`: it was LEAVING."""

    child: Child
    status: int
    signal: int
    expected: bool


class Fleet:
    """All children. `on_start` and `on_end` tell the owner which control channels to poll."""

    def __init__(self, supplies: Supplies, *, on_start: Callable[[Child], None], on_end: Callable[[Child], None]) -> None:
        self._supplies = supplies
        self._on_start = on_start
        self._on_end = on_end
        self._wiring = Wiring(self._deliver)
        self._children: dict[Member, Child] = {}
        self.outside: dict[Member, Callable[[int, int], None]] = {}  # members that are no child: the supervisor's own audit channel

    def __iter__(self) -> Iterator[Child]:
        return iter(list(self._children.values()))

    def __getitem__(self, member: Member) -> Child:
        return self._children[member]

    def __contains__(self, member: Member) -> bool:
        return member in self._children

    def of_role(self, role: str) -> list[Child]:
        """Return the children of `role`."""
        return [child for child in self._children.values() if child.member.role == role]

    def add(self, member: Member, *, generation: int) -> Child:
        """Add a child, to be started by `start` or by `start_due`."""
        child = self._children[member] = Child(member, generation, restart_at=time.monotonic())
        return child

    def free_worker(self) -> Member | None:
        """Return a worker with an index that nobody has, `None` when all are taken."""
        return next((member for number in range(WORKER_NUMBERS) if (member := Member(WORKER, number)) not in self._children), None)

    def start(self, child: Child) -> None:
        """Spawn the child's process. Raises `OSError`."""
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        far_end = lift(far.detach())
        boot = lift(seal(encode_boot(self._supplies.boot_of(child)), name="cliproxy-boot"))
        ends = self._wiring.ends_for(child.member, [*self.outside, *self._children])
        try:
            output = self._supplies.output_of(child)
            try:
                descriptors = {CONTROL_FD: far_end, BOOT_FD: boot, **ends, **self._supplies.files_of(child.member.role)}
                child.pid = spawn(self._supplies.program(child.member.role), descriptors=descriptors, output=output)
            finally:
                os.close(output)
        finally:
            for number in (far_end, boot, *ends.values()):
                os.close(number)
        child.control = SupervisorControl(socket.socket(fileno=lift(near.detach())))
        child.state = State.STARTING
        child.restart_at = 0.0
        child.deadline = time.monotonic() + START_SECONDS
        self._on_start(child)

    def start_due(self, now: float) -> list[tuple[Child, OSError]]:
        """Start every child whose pause is over; return those that the system did not let start. They wait for their next time."""
        failed: list[tuple[Child, OSError]] = []
        for child in self:
            if child.state is State.WAITING and child.restart_at <= now:
                try:
                    self.start(child)
                except OSError as error:
                    child.failures += 1
                    child.restart_at = now + pause_after(child.failures)
                    failed.append((child, error))
        return failed

    def ready(self, child: Child) -> None:
        """The child has said READY."""
        if child.state is State.STARTING:
            child.state = State.READY
            child.ready_at = time.monotonic()
            child.silence.end()
            child.deadline = 0.0

    def leave(self, child: Child, order: Down, argument: int, *, seconds: float) -> None:
        """Tell the child to finish; it is killed after `seconds` and does not come back."""
        if child.state is State.WAITING:
            self._remove(child)
            return
        child.state = State.LEAVING
        child.deadline = time.monotonic() + seconds
        self.order(child, order, argument)

    def order(self, child: Child, kind: Down, argument: int = 0, descriptors: tuple[int, ...] = ()) -> None:
        """Send an order; a child that does not take it is killed (and, unless LEAVING, started again)."""
        if child.control is not None and not child.control.order(kind, argument, descriptors):
            self.kill(child)

    def kill(self, child: Child) -> None:
        """SIGKILL. The pid cannot be another's: only `reap` frees it."""
        if child.pid:
            os.kill(child.pid, signal.SIGKILL)

    def kill_overdue(self, now: float) -> None:
        """Kill the children whose deadline has passed: not READY in time, or not gone in time.

        A start is not late while another child is dead: it may be the one that it waits for.
        """
        absent = any(child.state is State.WAITING for child in self)
        for child in self:
            if child.pid and child.deadline and child.deadline <= now:
                if absent and child.state is State.STARTING:
                    child.deadline = now + START_SECONDS
                    continue
                child.deadline = 0.0
                self.kill(child)

    def kill_hung(self, now: float) -> list[Child]:
        """Kill the children that serve and have reported nothing for too long, and return them. To be called every other second at least."""
        hung = [child for child in self if child.state is State.READY and child.silence.look(now) > HUNG_SECONDS[child.member.role]]
        for child in hung:
            child.silence.end()
            self.kill(child)
        return hung

    def reap(self) -> tuple[list[Death], list[tuple[int, int]]]:
        """Collect every dead process: our children's deaths, and pid and wait status of others (the loader, orphans that pid 1 inherits)."""
        deaths: list[Death] = []
        others: list[tuple[int, int]] = []
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return deaths, others
            if pid == 0:
                return deaths, others
            child = next((child for child in self if child.pid == pid), None)
            if child is None:
                others.append((pid, status))
            else:
                deaths.append(self._bury(child, status))

    def next_time(self) -> float:
        """Return when `start_due` or `kill_overdue` has something to do; infinity if never."""
        times = [child.restart_at if child.state is State.WAITING else child.deadline for child in self]
        return min((moment for moment in times if moment), default=float("inf"))

    def _bury(self, child: Child, status: int) -> Death:
        death = Death(
            child,
            status=os.WEXITSTATUS(status) if os.WIFEXITED(status) else 0,
            signal=os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0,
            expected=child.state is State.LEAVING,
        )
        self._on_end(child)
        if child.control is not None:
            child.control.close()
        self._wiring.forget(child.member, [*self.outside, *self._children])
        child.control = None
        child.pid = 0
        child.deadline = 0.0
        if death.expected:
            self._remove(child)
            return death
        now = time.monotonic()
        if child.state is State.READY and now - child.ready_at >= STABLE_SECONDS:
            child.failures = 0
        child.failures += 1
        child.state = State.WAITING
        child.restart_at = now + pause_after(child.failures)
        return death

    def _remove(self, child: Child) -> None:
        self._wiring.forget(child.member, [*self.outside, *self._children])
        del self._children[child.member]

    def _deliver(self, member: Member, number: int, descriptor: int) -> bool:
        outside = self.outside.get(member)
        if outside is not None:
            outside(number, descriptor)
            return True
        child = self._children[member]
        if child.control is None:
            return False
        self.order(child, Down.REPLACE, number, (descriptor,))
        return True


def pause_after(failures: int) -> float:
    """Return the seconds between death number `failures` (1 or more) and the restart."""
    return float(min(RESTART_LONGEST_SECONDS, RESTART_FIRST_SECONDS * 2 ** min(failures - 1, 16)))
