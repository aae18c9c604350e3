"""A change of configuration in a running gateway, as a transaction: every process takes it, or none does.

    1. LOADING     a throw-away process reads and checks the files and returns the settings without secrets
    2. PREPARING   listeners opened where addresses changed; egress, dialer, vault, auditor and admin say PREPARED
    3. COMMIT      they all take generation n, and the workers of generation n are started
    4. STARTING    once those are READY, the old workers drain

Anything that goes wrong in 1 or 2 is an ABANDON: the old generation goes on as if nothing had been. New workers that cannot start (4) turn
the gateway back to the settings of before, by the same steps.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import Protocol

import msgspec

from cliproxy.bounds import LOADER_SECONDS, MAX_LOADER_LINE_BYTES, MAX_START_DEATHS
from cliproxy.config.schema import Settings, decode_settings
from cliproxy.errors import EXIT_CONFIG, ChannelError, ConfigError
from cliproxy.ipc.control import Down, Up
from cliproxy.processes.boot import read_sealed, seal
from cliproxy.processes.fleet import Child, Fleet, State
from cliproxy.processes.listeners import Listeners, open_listeners
from cliproxy.processes.loader_protocol import LOADER, RESULT_FD
from cliproxy.processes.spawn import lift, spawn
from cliproxy.processes.topology import WORKER

PREPARE_SECONDS = 10.0  # from PREPARE to the last PREPARED; from COMMIT to new workers READY


class InForce(msgspec.Struct, frozen=True):
    """A generation: its number, its settings as bytes and as types, its listening sockets (`None` when not serving)."""

    generation: int
    blob: bytes
    settings: Settings
    listeners: Listeners | None


class Owner(Protocol):
    """What a reload needs of the supervisor."""

    in_force: InForce

    def adopt(self, new: InForce) -> None:
        """`new` is what children are started with from now on."""

    def start_workers(self) -> None:
        """Add and start the workers of the generation in force."""

    def drain_workers_before(self, generation: int) -> None:
        """Tell the workers of earlier generations to finish."""

    def reload_ended(self, *, applied: bool, attempted: bytes, reason: str) -> None:
        """A reload is over. `attempted`: the encoded settings that were tried, empty when none were read. `reason`: why they were refused."""

    def output_of(self, name: str) -> int:
        """Return what the process `name` is to write on; the caller closes it."""

    def output_ended(self, name: str) -> None:
        """The process `name` is dead."""

    def say(self, line: str) -> None:
        """Write a line for the operator."""


class Phase(Enum):
    """Where the transaction is."""

    IDLE = auto()
    LOADING = auto()
    PREPARING = auto()
    STARTING = auto()


class Reload:
    """At most one transaction at a time; requests that arrive meanwhile become one more afterwards."""

    def __init__(self, fleet: Fleet, owner: Owner, *, loader_command: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._fleet = fleet
        self._owner = owner
        self._loader_command = loader_command
        self._clock = clock
        self.phase = Phase.IDLE
        self._again = False
        self._deadline = float("inf")
        self._loader_pid = 0
        self._loader_output = -1
        self._before: InForce | None = None
        self._next: InForce | None = None
        self._generation = owner.in_force.generation  # the highest that was ever tried: numbers are not used twice
        self._awaited: set[Child] = set()
        self._deaths = 0
        self._reverting = False
        self._reason = ""  # why the transaction under way was refused

    def request(self) -> None:
        """Reload the configuration."""
        if self.phase is not Phase.IDLE:
            self._again = True
            return
        output = lift(os.memfd_create("cliproxy-settings", os.MFD_CLOEXEC))
        try:
            voice = self._owner.output_of(LOADER)
            try:
                self._loader_pid = spawn([*self._loader_command], descriptors={RESULT_FD: output}, output=voice)
            finally:
                os.close(voice)
        except OSError as error:
            os.close(output)
            reason = f"the configuration loader does not start: {error.strerror}"
            self._owner.say(f"cliproxy: {reason}")
            self._owner.reload_ended(applied=False, attempted=b"", reason=reason)
            return
        self._loader_output = output
        self._enter(Phase.LOADING, LOADER_SECONDS)

    def next_time(self) -> float:
        """Return when `tick` has something to do; infinity if never."""
        return self._deadline

    def tick(self, now: float) -> None:
        """Give up what takes too long."""
        if now < self._deadline:
            return
        if self.phase is Phase.LOADING:
            os.kill(self._loader_pid, 9)  # `process_ended` goes on from there
            self._deadline = float("inf")
        elif self.phase is Phase.PREPARING:
            self._abandon(f"no answer from {', '.join(sorted(child.name for child in self._awaited))}")
        elif self.phase is Phase.STARTING:
            for child in self._awaited:
                if child.member.role != WORKER:
                    self._fleet.kill(child)  # it comes back with the settings in force
            if any(child.member.role == WORKER for child in self._awaited):
                self._revert("the new workers do not get ready")
            else:
                self._deadline = float("inf")

    def process_ended(self, pid: int, status: int) -> None:
        """A process that is no child of the fleet has ended; perhaps the loader."""
        if self.phase is not Phase.LOADING or pid != self._loader_pid:
            return
        self._owner.output_ended(LOADER)
        output, self._loader_output, self._loader_pid = self._loader_output, -1, 0
        try:
            blob = read_sealed(output)  # the only writer is dead
        except ChannelError:
            blob = b""
        finally:
            os.close(output)
        if status != 0:
            line = blob[:MAX_LOADER_LINE_BYTES].decode("utf-8", "replace") if os.WIFEXITED(status) and os.WEXITSTATUS(status) == EXIT_CONFIG else ""
            self._refuse(line or "the configuration loader failed or took too long; run `cliproxy check`", b"")
            return
        try:
            settings = decode_settings(blob)
        except msgspec.DecodeError:
            self._refuse("the configuration loader returned no settings", b"")
            return
        if settings.sandbox != self._owner.in_force.settings.sandbox:
            self._refuse("a change of `sandbox` needs a restart", blob)
            return
        self._prepare(blob, settings)

    def reported(self, child: Child, kind: Up, generation: int) -> None:
        """A child reported PREPARED, REFUSED, COMMITTED or READY."""
        if child not in self._awaited or self._next is None:
            return
        if self.phase is Phase.PREPARING and generation == self._next.generation:
            if kind is Up.REFUSED:
                self._abandon(f"{child.name} refuses the settings; the gateway's messages say why")
            elif kind is Up.PREPARED:
                self._awaited.discard(child)
                if not self._awaited:
                    self._commit()
        elif self.phase is Phase.STARTING and kind in (Up.COMMITTED, Up.READY):
            self._awaited.discard(child)
            self._finish_if_complete()

    def child_died(self, child: Child, *, unusable: bool) -> None:
        """A child ended unexpectedly. `unusable`: by exit code 78, so the next one will too."""
        if child not in self._awaited:
            return
        if self.phase is Phase.PREPARING:
            self._abandon(f"{child.name} ended meanwhile")
        elif self.phase is Phase.STARTING and child.member.role != WORKER:
            self._awaited.discard(child)  # it comes back with the settings in force
            self._finish_if_complete()
        elif self.phase is Phase.STARTING:
            self._deaths += 1
            if unusable or self._deaths >= MAX_START_DEATHS:
                self._revert("the new workers do not start")

    def _enter(self, phase: Phase, seconds: float) -> None:
        self.phase = phase
        self._deadline = self._clock() + seconds

    def _prepare(self, blob: bytes, settings: Settings) -> None:
        before = self._owner.in_force
        standing = [child for child in self._fleet if child.member.role != WORKER]
        absent = [child.name for child in standing if child.state is not State.READY]
        if absent:
            self._refuse(f"{', '.join(absent)} is being restarted; try again", blob)
            return
        try:
            listeners = None if before.listeners is None else open_listeners(settings.server, before=before.listeners, say=self._owner.say)
        except ConfigError as error:
            self._refuse(str(error), blob)
            return
        self._generation += 1
        self._before = before
        self._next = InForce(self._generation, blob, settings, listeners)
        self._awaited = set(standing)
        self._enter(Phase.PREPARING, PREPARE_SECONDS)
        memfd = lift(seal(blob, name="cliproxy-settings"))
        try:
            for child in standing:
                self._fleet.order(child, Down.PREPARE, self._generation, (memfd,))
        finally:
            os.close(memfd)

    def _commit(self) -> None:
        assert self._next is not None
        committing = [child for child in self._fleet if child.member.role != WORKER]
        for child in committing:
            self._fleet.order(child, Down.COMMIT, self._next.generation)
        self._owner.adopt(self._next)
        self._enter(Phase.STARTING, PREPARE_SECONDS)
        self._deaths = 0
        self._owner.start_workers()
        self._awaited = {*committing, *(child for child in self._fleet.of_role(WORKER) if child.generation == self._next.generation)}

    def _finish_if_complete(self) -> None:
        if self._awaited:
            return
        assert self._next is not None and self._before is not None
        self._owner.drain_workers_before(self._next.generation)
        if self._before.listeners is not None:
            self._before.listeners.close_except(self._next.listeners)
        attempted = self._next.blob
        applied = not self._reverting
        self._reverting = False
        self._end(applied=applied, attempted=attempted)

    def _abandon(self, reason: str) -> None:
        assert self._next is not None
        for child in self._fleet:
            if child.member.role != WORKER:
                self._fleet.order(child, Down.ABANDON, self._next.generation)
        if self._next.listeners is not None:
            self._next.listeners.close_except(self._owner.in_force.listeners)
        self._refuse(reason, self._next.blob)

    def _revert(self, reason: str) -> None:
        """The new generation cannot serve: its workers go, and the settings of before come back as a generation of their own."""
        assert self._next is not None and self._before is not None
        failed, before = self._next, self._before
        for child in self._fleet.of_role(WORKER):
            if child.generation == failed.generation:
                self._fleet.leave(child, Down.STOP, 0, seconds=0.0)
        if self._reverting:
            self._reverting = False
            self._refuse(f"{reason}, and neither do those of the settings before; restart the gateway", failed.blob)
            return
        self._reason = f"{reason}; the gateway's messages say why"
        self._owner.say(f"cliproxy: reload: {reason}; going back to the settings before")
        self._owner.adopt(InForce(failed.generation, before.blob, before.settings, before.listeners))
        if failed.listeners is not None:
            failed.listeners.close_except(before.listeners)
        self._reverting = True
        self._prepare(before.blob, before.settings)

    def _refuse(self, reason: str, attempted: bytes) -> None:
        self._reverting = False
        self._reason = reason
        self._owner.say(f"cliproxy: reload refused, generation {self._owner.in_force.generation} goes on: {reason}")
        self._end(applied=False, attempted=attempted)

    def _end(self, *, applied: bool, attempted: bytes) -> None:
        self.phase = Phase.IDLE
        self._deadline = float("inf")
        self._awaited = set()
        self._before = self._next = None
        reason, self._reason = self._reason, ""
        self._owner.reload_ended(applied=applied, attempted=attempted, reason=reason)
        if self._again:
            self._again = False
            self.request()
