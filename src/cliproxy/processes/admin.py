"""Admin: serves the control socket to the operator's commands. It holds nothing secret and opens nothing: digests and sealed boxes pass
through it to the vault.

In a gateway that was started for commands alone it also says when the work is done: when the last connection has ended.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from cliproxy.admin.control import ControlSocket
from cliproxy.admin.service import AdminService, Gateway
from cliproxy.audit.client import AuditClient
from cliproxy.audit.events import AdminEvent, ChannelViolation, clip
from cliproxy.bounds import COMMAND_LINGER_SECONDS, MAX_ADMIN_ANSWERS_PER_SECOND
from cliproxy.config.schema import Settings, decode_settings
from cliproxy.errors import ChannelError
from cliproxy.ipc import commands
from cliproxy.ipc.channel import ChannelClosed, PacketChannel
from cliproxy.ipc.commands import AdminToAuditor, AdminToVault, Hello
from cliproxy.processes import child
from cliproxy.processes.boot import read_sealed
from cliproxy.processes.child import Boot, Control, Down, Order, Up
from cliproxy.processes.slots import channel, is_socket
from cliproxy.processes.topology import ADMIN, AUDIT_FD, AdminSlots

_ENDED = select.POLLHUP | select.POLLERR | select.POLLNVAL
_TURN_MILLISECONDS = 1000  # deadlines are swept at least this often


class Peer:
    """The channel to the vault or the auditor, on its slot; away while that process is restarted."""

    def __init__(self, slot: int, *, incoming: Any, name: str) -> None:
        self.slot = slot
        self.name = name
        self._incoming = incoming
        self._sock: socket.socket | None = None
        self._channel: PacketChannel[Any] | None = None
        self.lost_at: float | None = None
        self.open()

    def open(self) -> None:
        """Take the channel that is on the slot now, if there is one."""
        if self._sock is not None:
            self._sock.detach()  # no shutdown: the number is the new channel's already
        self._sock = channel(self.slot) if is_socket(self.slot) else None
        self._channel = None
        self.lost_at = None
        if self._sock is not None:
            self._channel = PacketChannel(self._sock, incoming=self._incoming, peer=self.name, per_second=MAX_ADMIN_ANSWERS_PER_SECOND)

    def close(self) -> None:
        """End the channel; the slot stays occupied for the next one."""
        if self._channel is not None:
            self._channel.abandon()
            self.lost_at = time.monotonic()
        self._sock, self._channel = None, None

    def is_there(self) -> bool:
        """Whether there is a channel."""
        return self._channel is not None

    def tell(self, message: object) -> bool:
        """Send; False when the peer is away or does not take it."""
        try:
            return self._channel is not None and self._channel.send(message)
        except ChannelClosed:
            return False  # noticed again, and handled, when the loop reads it

    def receive(self) -> Any:
        """Return the next message or None. Raises `ChannelError`."""
        return None if self._channel is None else self._channel.receive()


class Admin:
    """The process between its start and its end."""

    def __init__(self, boot: Boot) -> None:
        self._boot = boot
        self._settings = decode_settings(boot.settings)
        self._prepared: Settings | None = None
        self._control: Control | None = None
        self._audit = AuditClient(channel(AUDIT_FD), deadline_seconds=self._settings.audit.deadline_seconds)
        self._vault = Peer(AdminSlots.VAULT_FD, incoming=commands.VaultToAdmin, name="vault")
        self._auditor = Peer(AdminSlots.AUDITOR_FD, incoming=commands.AuditorToAdmin, name="auditor")
        now = time.monotonic()
        self._socket = ControlSocket(
            channel(AdminSlots.LISTEN_FD),
            operator_uid=boot.operator_uid,
            hello=Hello(build=boot.build, serving=boot.serving),
            ask=self._ask,
            stranger=self._stranger,
            now=now,
        )
        self._service = AdminService(
            Gateway(build=boot.build, serving=boot.serving, supervisor_pid=boot.supervisor_pid),
            self,
            answer=lambda ticket, reply: self._socket.answer(ticket, reply, now=time.monotonic()),
            generation=boot.generation,
            server=self._settings.server,
        )
        self._idle_since = now
        self._had_connection = False
        self._is_ending = False
        self._leaving = False

    def run(self, control: Control) -> None:
        """Serve until the supervisor says otherwise. Raises `ChannelClosed` when it is gone."""
        self._control = control
        control.send(Up.READY, self._boot.generation)
        while not self._leaving:
            poller = select.poll()
            poller.register(control.fileno(), select.POLLIN)
            if self._audit.healthy(time.monotonic()):  # else its end would be reported without pause; `_turn` asks it each second
                poller.register(AUDIT_FD, select.POLLIN)
            for peer in (self._vault, self._auditor):
                if peer.is_there():
                    poller.register(peer.slot, select.POLLIN)
            for descriptor, reading, writing in self._socket.wanted():
                poller.register(descriptor, (select.POLLIN if reading else 0) | (select.POLLOUT if writing else 0))
            self._turn(poller.poll(_TURN_MILLISECONDS))

    # --- what the service needs --------------------------------------------------------------------------------------

    def tell_vault(self, message: AdminToVault) -> bool:
        """Ask the vault."""
        return self._vault.tell(message)

    def tell_auditor(self, message: AdminToAuditor) -> bool:
        """Ask the auditor."""
        return self._auditor.tell(message)

    def record(self, events: Sequence[AdminEvent]) -> bool:
        """Hand `events` to the auditor; False: not taken."""
        return self._audit.offer(events)

    def ask_for_reload(self) -> None:
        """Ask the supervisor to read the configuration again."""
        assert self._control is not None
        self._control.send(Up.RELOAD)

    # --- the loop ----------------------------------------------------------------------------------------------------

    def _turn(self, events: list[tuple[int, int]]) -> None:
        now = time.monotonic()
        assert self._control is not None
        for descriptor, mask in events:
            if descriptor == self._control.fileno():
                for order in self._control.receive():
                    self._obey(order)
            elif descriptor == self._vault.slot:
                self._hear(self._vault, self._service.on_vault, self._service.on_vault_lost)
            elif descriptor == self._auditor.slot:
                self._hear(self._auditor, self._service.on_auditor, self._service.on_auditor_lost)
            elif descriptor != AUDIT_FD:
                self._socket.on_ready(descriptor, now=now, ended=bool(mask & _ENDED))
        self._audit.poll(now)
        child.verify_connected(now, {"the vault": self._vault.lost_at, "the auditor": self._auditor.lost_at, "the audit log": self._audit.lost_at})
        self._socket.sweep(now)
        self._service.sweep(now)
        self._end_when_idle(now)

    def _hear(self, peer: Peer, take: Any, lost: Any) -> None:
        try:
            while (message := peer.receive()) is not None:
                take(message)
        except ChannelClosed:
            peer.close()
            lost()
        except ChannelError as error:
            self.record((ChannelViolation(peer=peer.name, reason=clip(str(error))),))
            peer.close()
            lost()

    def _obey(self, order: Order) -> None:
        assert self._control is not None
        if order.kind is Down.PREPARE:
            self._prepare(order)
        elif order.kind is Down.COMMIT:
            if self._prepared is not None:
                self._settings, self._prepared = self._prepared, None
            self._service.generation, self._service.server = order.argument, self._settings.server
            self._control.send(Up.COMMITTED, order.argument)
        elif order.kind is Down.ABANDON:
            self._prepared = None
        elif order.kind is Down.RELOADED:
            self._reloaded(order)
        elif order.kind is Down.REPLACE:
            self._replaced(order.argument)
        elif order.kind is Down.DRAIN:
            self._control.send(Up.DRAINED)
        elif order.kind is Down.STOP:
            self._leaving = True

    def _prepare(self, order: Order) -> None:
        assert self._control is not None
        (descriptor,) = order.descriptors
        try:
            self._prepared = decode_settings(read_sealed(descriptor))
        except (ChannelError, msgspec.DecodeError):
            self._control.send(Up.REFUSED, order.argument)
        else:
            self._control.send(Up.PREPARED, order.argument)
        finally:
            os.close(descriptor)

    def _reloaded(self, order: Order) -> None:
        (descriptor,) = order.descriptors
        try:
            reason = read_sealed(descriptor).decode("utf-8", "replace")
        finally:
            os.close(descriptor)
        self._service.on_reloaded(order.argument, reason)

    def _replaced(self, slot: int) -> None:
        """A peer was restarted: its new channel is on the slot already."""
        if slot == AUDIT_FD:
            self._audit.replaced()
        elif slot == self._vault.slot:
            self._vault.open()
            self._service.on_vault_lost()
        elif slot == self._auditor.slot:
            self._auditor.open()
            self._service.on_auditor_lost()

    def _end_when_idle(self, now: float) -> None:
        """A gateway that was started for commands alone ends after the last of them, or when none comes."""
        if self._boot.serving or self._is_ending:
            return
        if len(self._socket):
            self._had_connection, self._idle_since = True, now
        elif self._had_connection or now - self._idle_since > COMMAND_LINGER_SECONDS:
            assert self._control is not None
            self._is_ending = True
            self._socket.stop_accepting()  # whoever was greeted is also answered
            self._control.send(Up.STOP)

    def _ask(self, ticket: int, operator: str, command: Any) -> None:
        self._service.take(ticket, operator, command, now=time.monotonic())

    def _stranger(self, uid: int) -> None:
        self._service.turned_away(uid, second=int(time.time()))


def prepare(boot: Boot) -> Admin:
    """Make everything that the body needs: afterwards nothing is opened or imported."""
    return Admin(boot)


def body(boot: Boot, admin: Admin, control: Control) -> None:
    """Serve the control socket."""
    admin.run(control)


if __name__ == "__main__":
    child.main(ADMIN, prepare=prepare, body=body)
