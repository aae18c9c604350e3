"""The dialer in its own process, locked down as in production, with the test in the place of supervisor, auditor and egress."""

from __future__ import annotations

import os
import select
import signal
import socket
import tempfile
import time
from typing import Any

import msgspec

from cliproxy.audit.client import packet_decoder
from cliproxy.audit.events import DialerEvent
from cliproxy.config.schema import Provider, Settings, encode_settings
from cliproxy.ipc.channel import PacketChannel
from cliproxy.ipc.control import Down, Report, SupervisorControl, Up
from cliproxy.ipc.messages import Dial, DialerToEgress, DialFailed, Dialled
from cliproxy.processes.boot import Boot, encode_boot, seal
from cliproxy.processes.spawn import build_id, lift, program, spawn
from cliproxy.processes.topology import AUDIT_FD, BOOT_FD, CONTROL_FD, DialerDescriptors
from fakes.output import spawn_output

PATIENCE = 20.0


def pair() -> tuple[socket.socket, socket.socket]:
    """Return a channel whose queues are short on any machine."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
    return ends


class DialerProcess:
    """Runs for as long as the `with` block lasts."""

    def __init__(self, providers: dict[str, Provider], *, sandbox: bool = True) -> None:
        self._home = tempfile.TemporaryDirectory()
        boot = Boot(
            role="dialer",
            name="dialer",
            build=build_id(),
            generation=1,
            settings=encode_settings(Settings(providers=providers)),
            home=self._home.name,
            uid=os.getuid(),
            gid=os.getgid(),
            operator_uid=os.getuid(),
            serving=True,
            sandbox=sandbox,
            supervisor_pid=os.getpid(),
        )
        control, control_far = pair()
        self.audit, audit_far = pair()
        self.egress, egress_far = pair()
        given = {CONTROL_FD: control_far, AUDIT_FD: audit_far, DialerDescriptors.EGRESS_FD: egress_far}
        lifted = {number: lift(sock.detach()) for number, sock in given.items()}
        lifted[BOOT_FD] = lift(seal(encode_boot(boot), name="boot"))
        self.pid = spawn(program("dialer"), descriptors=lifted, output=spawn_output())
        for number in lifted.values():
            os.close(number)
        self.control = SupervisorControl(control)
        self.channel = self._channel_over(self.egress)
        self._reports: list[Report] = []
        self._next = 0

    def __enter__(self) -> DialerProcess:
        assert self.report().kind is Up.READY
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
        self.control.close()
        self.channel.close()
        self.audit.close()
        self._home.cleanup()

    def report(self) -> Report:
        """Return the next thing that it tells the supervisor, signs of life left out: they come when they are due."""
        while not self._reports:
            readable, _, _ = select.select([self.control.fileno()], [], [], PATIENCE)
            assert readable, "the dialer says nothing"
            reports = self.control.receive()
            assert reports is not None, f"the dialer is gone: {os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])}"
            self._reports = [report for report in reports if report.kind is not Up.ALIVE]
        return self._reports.pop(0)

    def ask(self, origin: str) -> int:
        """Ask for a connection; returns the question's number."""
        self._next += 1
        while not self.channel.send(Dial(dial=self._next, origin=origin)):  # its queue is short, and it may still be starting
            assert select.select([], [self.channel], [], 20.0)[1], "the dialer does not read"
        return self._next

    def answer(self) -> tuple[Dialled | DialFailed, socket.socket | None]:
        """Return the next answer, with its socket."""
        readable, _, _ = select.select([self.channel.fileno()], [], [], PATIENCE)
        assert readable, "the dialer does not answer"
        received = self.channel.receive_with_descriptors()
        assert received is not None
        message, descriptors = received
        assert len(descriptors) == isinstance(message, Dialled)
        return message, socket.socket(fileno=descriptors[0]) if descriptors else None

    def dial(self, origin: str) -> socket.socket | str:
        """Return a connected socket, or the reason why not."""
        self.ask(origin)
        message, sock = self.answer()
        return message.reason if isinstance(message, DialFailed) else sock or ""

    def events(self, count: int = 1) -> list[DialerEvent]:
        """Return the next `count` or more audit events that it sent."""
        decoder: msgspec.msgpack.Decoder[Any] = packet_decoder(DialerEvent)
        events: list[DialerEvent] = []
        until = time.monotonic() + PATIENCE
        while len(events) < count:
            readable, _, _ = select.select([self.audit], [], [], max(0.0, until - time.monotonic()))
            assert readable, "the dialer audits nothing"
            events += decoder.decode(self.audit.recv(65536))[1]
        return events

    def replace_egress(self) -> None:
        """Give it a new channel to egress, as after egress's restart."""
        old = self.channel
        near, far = pair()
        assert self.control.order(Down.REPLACE, DialerDescriptors.EGRESS_FD, [far.fileno()])
        far.close()
        self.egress = near
        self.channel = self._channel_over(near)
        old.close()

    def order_settings(self, generation: int, blob: bytes) -> None:
        """Order PREPARE with a sealed `blob`."""
        memfd = seal(blob, name="settings")
        assert self.control.order(Down.PREPARE, generation, [memfd])
        os.close(memfd)

    def _channel_over(self, sock: socket.socket) -> PacketChannel[DialerToEgress]:
        return PacketChannel(sock, incoming=DialerToEgress, peer="dialer", per_second=100_000.0)
