"""The real auditor process, started as the supervisor starts it, with all its channels in our hands."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cliproxy.audit.client import AuditClient
from cliproxy.audit.events import Event
from cliproxy.config.schema import AuditSettings, Settings, encode_settings
from cliproxy.ipc.channel import PacketChannel
from cliproxy.ipc.commands import Asked, AuditorToAdmin, Command
from cliproxy.ipc.control import Down, Report, SupervisorControl, Up
from cliproxy.ipc.messages import Anchor, AuditorToVault, LogKey
from cliproxy.processes.boot import Boot, encode_boot, seal
from cliproxy.processes.spawn import build_id, lift, program, spawn
from cliproxy.processes.topology import AUDITOR, BOOT_FD, CONTROL_FD, AuditorDescriptors
from cliproxy.processes.workspace import Workspace
from cliproxy.secret import Secret
from fakes.output import spawn_output

SEED = bytes(range(32))
PATIENCE = 20.0  # seconds; a bound for tests that hang, not a measure

SLOTS = {
    "vault": AuditorDescriptors.VAULT_FD,
    "egress": AuditorDescriptors.EGRESS_FD,
    "dialer": AuditorDescriptors.DIALER_FD,
    "admin": AuditorDescriptors.ADMIN_FD,
    "supervisor": AuditorDescriptors.SUPERVISOR_FD,
    "worker-0": AuditorDescriptors.WORKER_FDS[0],
    "worker-3": AuditorDescriptors.WORKER_FDS[3],
    "query": AuditorDescriptors.ADMIN_QUERY_FD,
}


class Rig:
    """An auditor of `home`. `ends[name]` is the sender's end of a channel."""

    def __init__(self, home: Path, *, settings: AuditSettings | None = None, sandbox: bool = True, accept_rollback: bool = False) -> None:
        self.home = home
        self.accept_rollback = accept_rollback
        self.seen: tuple[int, bytes] = (0, b"")  # what a vault of this log has sealed of it
        self.noted: list[tuple[int, bytes]] = []
        self.settings = settings or AuditSettings()
        self.sandbox = sandbox
        for name in ("run", "logs"):
            (home / name).mkdir(mode=0o700, exist_ok=True)
        self.workspace = Workspace(str(home))
        self.workspace.lock()
        self.segment_number, self.segment = self.workspace.open_newest_segment()
        self.checkpoints = self.workspace.open_checkpoints()
        self.ends: dict[str, socket.socket] = {}
        self.clients: dict[str, AuditClient] = {}
        self.anchor: Anchor | None = None
        self.pid = 0
        self.reports: list[Report] = []
        self.asked = 0

    # --- its life ---

    def start(self, *, seed: bytes | None = SEED) -> Rig:
        """Start it, hand over the key, and wait until it is READY."""
        theirs: dict[int, int] = {}
        for name, slot in SLOTS.items():
            ours, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            theirs[slot] = lift(there.detach())
            self._put(name, ours)
        ours, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control = SupervisorControl(ours)
        theirs[CONTROL_FD] = lift(there.detach())
        theirs[BOOT_FD] = lift(seal(encode_boot(self._boot()), name="boot"))
        files = {AuditorDescriptors.SEGMENT_FD: self.segment, AuditorDescriptors.CHECKPOINTS_FD: self.checkpoints}
        self.pid = spawn(program(AUDITOR), descriptors={**theirs, **files}, output=spawn_output())
        for descriptor in theirs.values():
            os.close(descriptor)
        self.reports.clear()
        if seed is not None:
            self.hand_over(seed)
            self.wait_for(Up.READY)
        return self

    def _boot(self) -> Boot:
        return Boot(
            role=AUDITOR,
            name=AUDITOR,
            build=build_id(),
            generation=1,
            settings=encode_settings(Settings(audit=self.settings)),
            home=str(self.home),
            uid=os.geteuid(),
            gid=os.getegid(),
            operator_uid=os.geteuid(),
            serving=True,
            sandbox=self.sandbox,
            supervisor_pid=os.getpid(),
            accept_rollback=self.accept_rollback,
        )

    def _put(self, name: str, sock: socket.socket) -> None:
        """As in the sender's process: a new channel lands on the old one's number."""
        if name in self.ends:
            os.dup2(sock.fileno(), self.ends[name].fileno(), inheritable=False)
            sock.close()
            if name in self.clients:
                self.clients[name].replaced()
        else:
            self.ends[name] = sock

    def hand_over(self, seed: bytes) -> None:
        """What a vault does with each new auditor."""
        vault: PacketChannel[AuditorToVault] = PacketChannel(self.ends["vault"], incoming=AuditorToVault, peer="auditor", per_second=100, secrets=True)
        assert vault.send(LogKey(secret=Secret(seed), size=self.seen[0], root=self.seen[1]))
        self.anchor = self.await_message(vault)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def stop(self) -> int:
        assert self.control.order(Down.STOP)
        return self.wait()

    def wait(self) -> int:
        """Return the exit code, negative for a signal."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid = 0
                return os.waitstatus_to_exitcode(status)
            self._serve_control(0.01)
        raise AssertionError("the auditor does not end")

    def close(self) -> None:
        if self.pid:
            self.kill()

    # --- talking ---

    def client(self, name: str) -> AuditClient:
        if name not in self.clients:
            self.clients[name] = AuditClient(self.ends[name], deadline_seconds=5.0, on_noted=(lambda *one: self.noted.append(one)) if name == "vault" else None)
        return self.clients[name]

    def record(self, name: str, events: Sequence[Event]) -> None:
        """Offer and wait until durable."""
        self.client(name).wait_durable(events, PATIENCE)

    def wait_for(self, kind: Up) -> Report:
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            for report in self.reports:
                if report.kind is kind:
                    self.reports.remove(report)
                    return report
            self._serve_control(0.05)
            ended = self.pid and os.waitpid(self.pid, os.WNOHANG)[0]
            if ended:
                self.pid = 0
                raise AssertionError("the auditor ended")
        raise AssertionError(f"no {kind.name}")

    def _serve_control(self, seconds: float) -> None:
        """Do what the supervisor does: open the segments that are asked for."""
        select.select([self.control.fileno()], [], [], seconds)
        for report in self.control.receive() or ():
            if report.kind is Up.SEGMENT:
                self.segment_number, self.segment = report.argument, self.workspace.create_segment(report.argument)
                self.control.order(Down.SEGMENT, report.argument, (self.segment,))
            else:
                self.reports.append(report)

    def await_message(self, channel: PacketChannel[Any]) -> Any:
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            select.select([channel.fileno()], [], [], 0.05)
            message = channel.receive()
            if message is not None:
                return message
            self._serve_control(0)
        raise AssertionError("no answer")

    def ask(self, command: Command[Any]) -> Any:
        """As admin does: the answer comes with the number of its question."""
        self.asked += 1
        channel: PacketChannel[AuditorToAdmin] = PacketChannel(self.ends["query"], incoming=AuditorToAdmin, peer="auditor", per_second=1000)
        assert channel.send(Asked(request=self.asked, operator="uid:0", command=command))
        answered = self.await_message(channel)
        assert answered.request == self.asked
        return answered.answer

    def replace(self, name: str) -> None:
        """The sender was restarted: it has a new end, and the auditor gets its own by REPLACE."""
        ours, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ends.pop(name).close()
        self.clients.pop(name, None)
        self.ends[name] = ours
        assert self.control.order(Down.REPLACE, SLOTS[name], (there.fileno(),))
        there.close()
