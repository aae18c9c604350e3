"""Admin: serves the control socket to the operator's commands. It holds nothing secret and opens nothing: digests and sealed boxes pass
through it to the vault.

In a gateway that was started for commands alone it also says when the work is done: when the last connection has ended.
"""

from __future__ import annotations

import select
import time
from collections.abc import Sequence
from typing import Any

from cliproxy.admin.control import ControlSocket
from cliproxy.admin.service import AdminService, Gateway
from cliproxy.audit.client import AuditClient
from cliproxy.audit.events import AdminEvent, ChannelViolation, clip
from cliproxy.config.schema import Settings, decode_settings
from cliproxy.errors import ChannelError
from cliproxy.ipc import commands
from cliproxy.ipc.commands import AdminToAuditor, AdminToVault, Hello
from cliproxy.processes import child
from cliproxy.processes.boot import read_sealed
from cliproxy.processes.child import Boot, Control, Down, Up
from cliproxy.processes.descriptors import channel
from cliproxy.processes.role import Peer, Role, take_orders
from cliproxy.processes.topology import ADMIN, AUDIT_FD, AdminDescriptors

MAX_ADMIN_ANSWERS_PER_SECOND = 400.0  # of the vault or the auditor to admin; twice what it may ask
COMMAND_LINGER_SECONDS = 30.0  # a gateway that was started for commands alone waits this long for the first one

_ENDED = select.POLLHUP | select.POLLERR | select.POLLNVAL
_TURN_MILLISECONDS = 1000  # deadlines are swept at least this often
_ANSWERS_PER_TURN = 64


class Admin:
    """The process between its start and its end."""

    def __init__(self, boot: Boot) -> None:
        self._boot = boot
        settings = decode_settings(boot.settings)
        self._role: Role[Settings]  # from `run` on
        self._control: Control | None = None
        self._audit = AuditClient(channel(AUDIT_FD), deadline_seconds=settings.audit.deadline_seconds)
        self._vault: Peer[commands.VaultToAdmin] = Peer(
            AdminDescriptors.VAULT_FD, name="vault", incoming=commands.VaultToAdmin, per_second=MAX_ADMIN_ANSWERS_PER_SECOND, secrets=False
        )
        self._auditor: Peer[commands.AuditorToAdmin] = Peer(
            AdminDescriptors.AUDITOR_FD, name="auditor", incoming=commands.AuditorToAdmin, per_second=MAX_ADMIN_ANSWERS_PER_SECOND, secrets=False
        )
        self._vault.open()
        self._auditor.open()
        now = time.monotonic()
        self._socket = ControlSocket(
            channel(AdminDescriptors.LISTEN_FD),
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
            server=settings.server,
        )
        self._idle_since = now
        self._had_connection = False
        self._is_ending = False

    def run(self, control: Control) -> None:
        """Serve until the supervisor says otherwise. Raises `ChannelClosed` when it is gone."""
        self._control = control
        self._role = Role(
            self._boot,
            report=control.send,
            replaced={AUDIT_FD: self._audit.replaced, AdminDescriptors.VAULT_FD: self._vault_replaced, AdminDescriptors.AUDITOR_FD: self._auditor_replaced},
            drain=lambda _seconds: self._role.drained(),
            settings=self,
            further={Down.RELOADED: self._reloaded, Down.REOPENED: self._reopened},
            needs={"the vault": self._vault, "the auditor": self._auditor, "the audit log": self._audit},
        )
        self._role.ready()
        while not self._role.leaving:
            poller = select.poll()
            poller.register(control.fileno(), select.POLLIN)
            if self._audit.healthy(time.monotonic()):  # else its end would be reported without pause; `_turn` asks it each second
                poller.register(AUDIT_FD, select.POLLIN)
            for peer in (self._vault, self._auditor):
                if peer.is_there:
                    poller.register(peer.number, select.POLLIN)
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
                take_orders(self._control, self._role)
            elif descriptor == AdminDescriptors.VAULT_FD:
                if not self._vault.hear(self._service.on_vault, most=_ANSWERS_PER_TURN, violated=self._violation):
                    self._service.on_vault_lost()
            elif descriptor == AdminDescriptors.AUDITOR_FD:
                if not self._auditor.hear(self._service.on_auditor, most=_ANSWERS_PER_TURN, violated=self._violation):
                    self._service.on_auditor_lost()
            elif descriptor != AUDIT_FD:
                self._socket.on_ready(descriptor, now=now, ended=bool(mask & _ENDED))
        self._audit.poll(now)
        self._role.tick(now)
        self._socket.sweep(now)
        self._service.sweep(now)
        self._end_when_idle(now)

    def _violation(self, peer: str, error: ChannelError) -> None:
        self.record((ChannelViolation(peer=peer, reason=clip(str(error))),))

    # --- the supervisor ----------------------------------------------------------------------------------------------

    def _vault_replaced(self) -> None:
        """The vault was restarted: the channel to the new one is there."""
        self._vault.open()
        self._service.on_vault_lost()

    def _auditor_replaced(self) -> None:
        """The auditor was restarted: the channel to the new one is there."""
        self._auditor.open()
        self._service.on_auditor_lost()

    def _reloaded(self, generation: int, descriptor: int) -> None:
        self._service.on_reloaded(generation, read_sealed(descriptor).decode("utf-8", "replace"))

    def _reopened(self, times: int) -> None:
        self._service.reopened = times

    def check(self, settings: Settings) -> Settings:
        """What admin needs of them is right when they can be decoded."""
        return settings

    def adopt(self, checked: Settings) -> None:
        """Settings of a new generation."""
        self._service.generation, self._service.server = self._role.generation, checked.server

    # --- the operator ------------------------------------------------------------------------------------------------

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
