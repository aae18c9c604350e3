"""The first process: opens what the others need, starts them, watches them, replaces them, ends them in order.

It holds nothing secret (the master key is a descriptor that it never reads), parses nothing that a client or provider sent, and has no event
loop and no threads: one `poll`, fixed-size records from its children, signals as bytes of a pipe.

    start   addresses, lock, files, then all children at once: each waits on its channels for those that it needs
    death   an audit event and a restart after a growing pause; five deaths, or one exit with 78, before the first READY end the start;
            a child of another build (the package was replaced on disk) makes it drain and stop for the service manager
    reload  `processes.reloading`
    stop    workers drain, then egress, dialer, vault, admin, the auditor last; a second signal: now
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import Final

from cliproxy import __version__
from cliproxy.audit.events import ChannelViolation, ConfigurationChange, Process
from cliproxy.bounds import MAX_DRAINING_GENERATIONS, MAX_START_DEATHS
from cliproxy.config.schema import decode_settings
from cliproxy.errors import EXIT_CONFIG, ChannelError, ConfigError
from cliproxy.ipc.control import Down, Report, Up
from cliproxy.ipc.silence import MAX_COUNTED_SECONDS
from cliproxy.processes.boot import Boot, seal
from cliproxy.processes.fleet import Child, Death, Fleet, State, Supplies
from cliproxy.processes.journal import Journal
from cliproxy.processes.lines import EXIT_OTHER_BUILD, EXIT_SOFTWARE, describe, exit_code, say, visible
from cliproxy.processes.listener_watch import ListenerWatch
from cliproxy.processes.loader_protocol import UNSAFE_NO_SANDBOX
from cliproxy.processes.openings import Openings
from cliproxy.processes.outlet import Outlet
from cliproxy.processes.plan import Plan, read_plan
from cliproxy.processes.relay import Relay
from cliproxy.processes.reloading import InForce, Phase, Reload
from cliproxy.processes.service import ServiceManager
from cliproxy.processes.spawn import build_id, keep_descriptors_here, lift, program
from cliproxy.processes.topology import (
    ADMIN,
    AUDITOR,
    COMMAND_ROLES,
    DIALER,
    EGRESS,
    HUNG_SECONDS,
    ROLES,
    SUPERVISOR,
    VAULT,
    WORKER,
    uid_offset,
)
from cliproxy.processes.wiring import Member

STOP_SECONDS = 5.0  # from STOP to SIGKILL
STOP_NOW_SECONDS = 1.0  # the same after a second signal
DRAIN_GRACE_SECONDS = 2.0  # beyond the drain timeout, for the worker to end by itself
MIN_DESCRIPTORS = 1024  # of the hard limit
MAX_DESCRIPTORS = 65536  # what we raise the soft limit to; two for each of 4096 connections, and room

_SIGNALS: Final = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_STOP_ORDER: Final = (WORKER, EGRESS, DIALER, VAULT, ADMIN, AUDITOR)
LAST_WORDS_SECONDS: Final = 1.0  # for what a stopped terminal or a full pipe has not taken when the run is over


class Supervisor:
    """One run. `run` returns the exit code."""

    def __init__(self, plan: Plan, *, program: Callable[[str], list[str]] = program) -> None:
        self._plan = plan
        self._build = build_id()
        self._service = ServiceManager(os.environ)
        self._ready_fd = lift(plan.ready_fd) if plan.ready_fd >= 0 else -1
        self._starter_fd = lift(plan.starter_fd) if plan.starter_fd >= 0 else -1
        settings = decode_settings(plan.settings)
        self._poll = select.poll()
        self._stderr = Outlet(2, self._poll)
        self._stdout = Outlet(1, self._poll)
        self._relay = Relay(self._poll, self._stderr.write)
        self._openings = Openings(plan, settings, environment=os.environ, say=self.say)
        self.in_force = InForce(1, plan.settings, settings, self._openings.listeners)
        self._signals = self._receive_signals()
        self._journal = Journal(self._poll, deadline_seconds=settings.audit.deadline_seconds)
        self._controls: dict[int, Child] = {}
        self._announced = False
        self._start_deaths = 0
        self._phases: list[str] | None = None  # roles that are still to stop; None: running
        self._hurry = False  # stop at once
        self._exit = 0
        supplies = Supplies(boot_of=self._boot_of, files_of=self._files_of, program=program, output_of=lambda child: self.output_of(child.name))
        self._fleet = Fleet(supplies, on_start=self._started, on_end=self._ended)
        self._fleet.outside[Member(SUPERVISOR)] = self._journal.take_channel
        self._listener_watch = ListenerWatch(self._fleet, self._journal, say=self.say)
        loader = [*program("config_loader"), plan.config_file, *([UNSAFE_NO_SANDBOX] if plan.allow_no_sandbox else [])]
        self._reload = Reload(self._fleet, self, loader_command=loader)

    # --- start -------------------------------------------------------------------------------------------------------

    def _receive_signals(self) -> int:
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        return reader

    def run(self) -> int:
        """Start everything, serve until told to stop, and return the exit code."""
        self._poll.register(self._signals, select.POLLIN)
        if self._starter_fd >= 0:
            self._poll.register(self._starter_fd, select.POLLIN)
        if self._plan.serving:
            self._journal.record(Process(code=0, role=SUPERVISOR, what="started"))
        for role in ROLES:  # all are members before the first is started, so that nobody needs a REPLACE at once
            if role == WORKER and self._plan.serving:
                self._add_workers()
            elif role in COMMAND_ROLES or (self._plan.serving and role != WORKER):
                self._fleet.add(Member(role), generation=1)
        self._start_due(time.monotonic())
        while self._phases is None or self._phases:
            self._turn()
        self._openings.leave()
        for outlet in (self._stdout, self._stderr):
            outlet.finish(LAST_WORDS_SECONDS)
        return self._exit

    def start_workers(self) -> None:
        """Start the workers of the generation in force."""
        self._add_workers()
        self._start_due(time.monotonic())

    def _start_due(self, now: float) -> None:
        for child, error in self._fleet.start_due(now):
            self.say(f"cliproxy: {child.name} cannot be started: {error.strerror}")
            if not self._announced:
                self._count_start_death(child, f"({error.strerror})", EXIT_SOFTWARE)

    def _count_start_death(self, child: Child, how: str, code: int) -> None:
        """A child ended before everything was READY for the first time: too often, or in a way that the next one will too, and the start is over."""
        self._start_deaths += 1
        if self._phases is None and (code == EXIT_CONFIG or self._start_deaths >= MAX_START_DEATHS):
            if code != EXIT_CONFIG:  # else the child has said, in one line, what is wrong and how to mend it
                self.say(f"cliproxy: not started: {self._start_deaths} processes ended, the last one is {child.name} {how}")
            self._stop(code, at_once=True)

    def _add_workers(self) -> None:
        for _ in range(self.in_force.settings.server.workers):
            member = self._fleet.free_worker()
            if member is None:
                self.say("cliproxy: no worker index is free")
                return
            self._fleet.add(member, generation=self.in_force.generation)

    def _boot_of(self, child: Child) -> Boot:
        child.generation = self.in_force.generation
        enforced = self.in_force.settings.sandbox.mode == "enforce"
        separate = enforced and os.geteuid() == 0
        own = self.in_force.settings.sandbox.uid_base + uid_offset(child.member.role)
        return Boot(
            role=child.member.role,
            name=child.name,
            build=self._build,
            generation=child.generation,
            settings=self.in_force.blob,
            home=self._plan.home,
            uid=own if separate else os.geteuid(),
            gid=own if separate else os.getegid(),
            operator_uid=self._plan.operator_uid,
            serving=self._plan.serving,
            sandbox=enforced,
            supervisor_pid=os.getpid(),
            may_create=self._plan.may_create,
            accept_rollback=self._plan.accept_rollback and not self._announced,
        )

    def _files_of(self, role: str) -> dict[int, int]:
        return self._openings.files_of(role, self.in_force.listeners)

    def _announce(self) -> None:
        """Everything is READY for the first time: tell the operator, the starter, the service manager."""
        self._announced = True
        urls = [] if self.in_force.listeners is None else self.in_force.listeners.urls
        if self._plan.announce and self._plan.serving:
            self._stdout.write(f"cliproxy {__version__} ready on {', '.join(urls)} (pid {os.getpid()})")
        if self._ready_fd >= 0:
            line = {"pid": os.getpid(), "urls": urls, "generation": self.in_force.generation, "control": f"{self._plan.home}/run/control.sock"}
            try:
                os.write(self._ready_fd, json.dumps(line).encode() + b"\n")
            except OSError:
                pass  # the starter no longer reads; it has its own pipe to stop us
            os.close(self._ready_fd)
            self._ready_fd = -1
        self._service.tell(f"READY=1\nMAINPID={os.getpid()}")

    # --- one turn ----------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        now = time.monotonic()
        wake = min(
            self._fleet.next_time(),
            self._reload.next_time(),
            self._relay.next_time(),
            self._listener_watch.next_time(),
            now + (self._service.watchdog_seconds or 3600.0),
        )
        if self._journal.waits:
            wake = min(wake, now + 0.1)  # the auditor was not there to take them
        wake = min(wake, now + MAX_COUNTED_SECONDS)  # else `kill_hung` would count less than there is
        ready = self._poll.poll(max(0, min(int((wake - now) * 1000) + 1, 3_600_000)))
        if self._service.watchdog_seconds:
            self._service.tell("WATCHDOG=1")
        for number, what in ready:
            if number == self._signals:
                self._on_signals()
            elif number == self._starter_fd:
                self._poll.unregister(number)
                self._stop(0)
            elif number == self._journal.descriptor:
                self._journal.heard(what)
            elif number in self._controls:
                self._on_control(self._controls[number])
            elif number in self._relay:
                self._relay.heard(number, now)
            else:
                self._on_outlet(number)
        now = time.monotonic()
        self._relay.tick(now)
        self._listener_watch.tick(now, self.in_force.listeners if self._phases is None else None)
        self._fleet.kill_overdue(now)
        self._kill_hung(now)
        self._reload.tick(now)
        if self._phases is None:
            self._start_due(now)
        self._journal.flush()

    def _on_outlet(self, number: int) -> None:
        for outlet in (self._stdout, self._stderr):
            if number == outlet.descriptor:
                outlet.ready()

    def _on_signals(self) -> None:
        try:
            numbers = set(os.read(self._signals, 4096))
        except BlockingIOError:
            return
        if signal.SIGHUP in numbers and self._announced and self._phases is None:
            self._request_reload()  # before deaths: one that ends a reload must not make of this a request of its own, after the one that waits already
        if signal.SIGCHLD in numbers:
            deaths, others = self._fleet.reap()
            for death in deaths:
                self._on_death(death)
            for pid, status in others:
                self._reload.process_ended(pid, status)
        if signal.SIGTERM in numbers or signal.SIGINT in numbers:
            self._stop(0, at_once=self._phases is not None)

    def _kill_hung(self, now: float) -> None:
        for child in self._fleet.kill_hung(now):
            self._journal.record(Process(code=0, role=child.name, what="hung"))
            self.say(f"cliproxy: {child.name} has given no sign of life for {HUNG_SECONDS[child.member.role]:.0f} s; it is killed and started again")

    def _on_control(self, child: Child) -> None:
        if child.control is None:
            return
        try:
            reports = child.control.receive()
        except ChannelError as error:
            self._violated(child, str(error))
            return
        if reports is None:
            self._ended(child)  # it is leaving; SIGCHLD follows
            child.deadline = min(child.deadline or float("inf"), time.monotonic() + STOP_NOW_SECONDS)
            return
        child.silence.end()
        for report in reports:
            if child.control.fileno() in self._controls:
                self._on_report(child, report)

    def _on_report(self, child: Child, report: Report) -> None:
        admin = child.member.role == ADMIN
        if report.kind is Up.READY and child.state is State.READY:
            self._violated(child, "READY a second time")
        elif report.kind is Up.READY:
            self._fleet.ready(child)
            if self._plan.serving:
                self._journal.record(Process(code=0, role=child.name, what="ready"))
            self._reload.reported(child, Up.READY, report.argument)
            if admin:
                self._listener_watch.admin_ready(child)
            if not self._announced and all(one.state is State.READY for one in self._fleet):
                self._announce()
        elif report.kind in (Up.PREPARED, Up.REFUSED, Up.COMMITTED):
            self._reload.reported(child, report.kind, report.argument)
        elif report.kind is Up.DRAINED and child.state is State.LEAVING:
            self._fleet.order(child, Down.STOP)
        elif report.kind is Up.RELOAD and admin and self._plan.serving:
            self._request_reload()
        elif report.kind is Up.STOP and admin:
            self._stop(0)
        elif report.kind is Up.SEGMENT and child.member.role == AUDITOR:
            self._open_segment(child, report.argument)
        elif report.kind not in (Up.ALIVE, Up.DRAINED):
            self._violated(child, f"{report.kind.name} is not for it to say")

    def _violated(self, child: Child, reason: str) -> None:
        """The child said what it may not: the log tells it once, and nothing that the child said is heard any more."""
        if child.control is not None and child.control.fileno() in self._controls:
            self._journal.record(ChannelViolation(peer=child.name, reason=reason))
            self._ended(child)
        self._fleet.kill(child)

    def _open_segment(self, child: Child, index: int) -> None:
        """The auditor's segment is full. It gets the next one, or the present one again when it asks for that."""
        try:
            segment = self._openings.segment(index)
        except ConfigError as error:
            self.say(f"cliproxy: {error}")
            return
        self._fleet.order(child, Down.SEGMENT, index, (segment,))

    # --- death and stop ----------------------------------------------------------------------------------------------

    def _on_death(self, death: Death) -> None:
        child = death.child
        self._relay.close(child.name)  # its last words come before what we say about its end
        if death.signal or death.status or not death.expected:
            what = "sandbox_violation" if death.signal == signal.SIGSYS else "killed" if death.signal else "exited"
            self._journal.record(Process(code=death.signal or death.status, role=child.name, what=what))
            if self._phases is None and not death.expected and (self._announced or death.status != EXIT_CONFIG):
                self.say(f"cliproxy: {child.name} {what} ({death.signal or death.status})")
        if self._phases is not None:
            self._stop_next()
            return
        if death.expected:
            return
        if death.status == EXIT_OTHER_BUILD:
            self._stop(EXIT_OTHER_BUILD)  # the service manager starts the new build
            return
        if not self._announced:
            self._count_start_death(child, f"({death.signal or death.status})", EXIT_CONFIG if death.status == EXIT_CONFIG else EXIT_SOFTWARE)
            return
        self._reload.child_died(child, unusable=death.status == EXIT_CONFIG)
        if child.generation < self.in_force.generation and child.member.role == WORKER and child.member in self._fleet:
            self._fleet.leave(child, Down.STOP, 0, seconds=0.0)  # its successor is on the way

    def _stop(self, code: int, *, at_once: bool = False) -> None:
        """End the run: in order, or at once (again: at once). The first reason gives the exit code."""
        if self._phases is None:
            self._exit = code
            self._phases = list(_STOP_ORDER)
            self._service.tell("STOPPING=1")
            if self.in_force.listeners is not None:
                self.in_force.listeners.close_except(None)
        self._hurry = self._hurry or at_once
        for child in self._fleet:
            if child.state is State.WAITING or (at_once and child.member.role not in (AUDITOR, VAULT)):
                self._fleet.leave(child, Down.STOP, 0, seconds=0.0)
            elif at_once and child.state is State.LEAVING:
                child.deadline = time.monotonic() + STOP_NOW_SECONDS
        self._stop_next()

    def _stop_next(self) -> None:
        assert self._phases is not None
        while self._phases:
            children = self._fleet.of_role(self._phases[0])
            for child in children:
                if child.state is State.LEAVING:
                    continue
                if child.member.role == WORKER and child.state is State.READY:
                    seconds = self.in_force.settings.server.limits.drain_timeout_seconds
                    self._fleet.leave(child, Down.DRAIN, int(seconds), seconds=seconds + DRAIN_GRACE_SECONDS)
                else:
                    if child.member.role == AUDITOR and self._plan.serving:
                        self._journal.record(Process(code=self._exit, role=SUPERVISOR, what="stopped"))
                        self._journal.flush()
                    self._fleet.leave(child, Down.STOP, 0, seconds=STOP_NOW_SECONDS if self._hurry else STOP_SECONDS)
            if self._fleet.of_role(self._phases[0]):
                return
            del self._phases[0]

    # --- reload ------------------------------------------------------------------------------------------------------

    def _request_reload(self) -> None:
        if self._phases is not None or not self._announced:
            return
        if self._reload.phase is Phase.IDLE:
            self._service.tell(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
        self._reload.request()

    def adopt(self, new: InForce) -> None:
        """`new` is what children are started with from now on."""
        self.in_force = new

    def drain_workers_before(self, generation: int) -> None:
        """Tell the workers of earlier generations to finish; of more than four draining generations the oldest end at once."""
        seconds = self.in_force.settings.server.limits.drain_timeout_seconds
        old = [child for child in self._fleet.of_role(WORKER) if child.generation < generation]
        for child in old:
            if child.state is not State.LEAVING:
                self._fleet.leave(child, Down.DRAIN, int(seconds), seconds=seconds + DRAIN_GRACE_SECONDS)
        draining = sorted({child.generation for child in old})
        for child in old:
            if child.generation in draining[:-MAX_DRAINING_GENERATIONS]:
                self._fleet.kill(child)

    def reload_ended(self, *, applied: bool, attempted: bytes, reason: str) -> None:
        """Tell admin, the log and the service manager how the reload went."""
        generation = self.in_force.generation if applied else 0
        digest = hashlib.sha256(attempted).hexdigest() if attempted else ""
        result = "applied" if applied else "refused"
        self._journal.record(ConfigurationChange(digest=digest, generation=self.in_force.generation, operator="", result=result))
        if applied:
            self.say(f"cliproxy: configuration reloaded, generation {generation}")
        why = lift(seal(reason.encode("utf-8", "replace"), name="cliproxy-reason"))
        try:
            for child in self._fleet.of_role(ADMIN):
                self._fleet.order(child, Down.RELOADED, generation, (why,))
        finally:
            os.close(why)
        self._service.tell("READY=1")

    # --- channels ----------------------------------------------------------------------------------------------------

    def _started(self, child: Child) -> None:
        assert child.control is not None
        self._controls[child.control.fileno()] = child
        self._poll.register(child.control.fileno(), select.POLLIN)

    def _ended(self, child: Child) -> None:
        if child.control is not None and self._controls.pop(child.control.fileno(), None) is not None:
            self._poll.unregister(child.control.fileno())

    def output_of(self, name: str) -> int:
        """Return what `name` is to write on. The caller closes it."""
        return self._relay.open(name, time.monotonic())

    def output_ended(self, name: str) -> None:
        """`name` is dead: pass on its last words."""
        self._relay.close(name)

    def say(self, line: str) -> None:
        """Write a line for the operator, without waiting for who reads it."""
        self._stderr.write(visible(line))


def _raise_descriptor_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if wanted < MIN_DESCRIPTORS:
        raise ConfigError(f"only {wanted} open files are allowed", cure=f"raise the hard limit to {MIN_DESCRIPTORS} or more (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def main(arguments: list[str], *, program: Callable[[str], list[str]] = program) -> int:
    """Run the plan in the sealed memfd whose number is the only argument; return the exit code. `program(role)` is the command of a role."""
    try:
        keep_descriptors_here()
        os.umask(0o077)
        _raise_descriptor_limit()
        plan = read_plan(int(arguments[0]))
        os.close(int(arguments[0]))
        return Supervisor(plan, program=program).run()
    except Exception as error:  # noqa: BLE001 - the one way out of the process; children end with their control channels
        say(f"cliproxy: {describe(error)}")
        return exit_code(error)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
