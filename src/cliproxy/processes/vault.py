"""The vault: the only process with the master key and the database. It seals, opens, and is the source of the policy feed.

What always holds: it serves nobody until the auditor has the log key and the log has confirmed the store's state; each change is durable in the log before
it is in the store; egress alone gets opened credentials, admin none; its database was opened before the lockdown and nothing is opened after it.

A plain poll loop over four channels: supervisor, auditor, egress, admin. One request of admin's is carried out in a turn, since each may wait for two disks.
"""

from __future__ import annotations

import os
import select
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from cliproxy.audit.client import AuditClient
from cliproxy.audit.events import ChannelViolation, VaultEvent, clip
from cliproxy.audit.files import has_entries, logs_of
from cliproxy.bounds import MAX_FEED_BACKLOG
from cliproxy.config.schema import Settings, decode_settings
from cliproxy.errors import ChannelError, ConfigError, Unavailable, VaultError
from cliproxy.ipc.channel import ChannelClosed, PacketChannel
from cliproxy.ipc.commands import AdminToVault, VaultToAdmin
from cliproxy.ipc.messages import (
    Anchor,
    AuditorToVault,
    CooldownsChanged,
    EgressHello,
    EgressToVault,
    LastUse,
    LogKey,
    PolicyAck,
    VaultAlive,
    VaultToEgress,
)
from cliproxy.processes import child
from cliproxy.processes.boot import VAULT_FILE
from cliproxy.processes.child import Boot, Control
from cliproxy.processes.descriptors import channel
from cliproxy.processes.role import Peer, Role, take_orders
from cliproxy.processes.topology import VAULT, VaultDescriptors
from cliproxy.secure_files import create_private_directory
from cliproxy.vault.contents import Contents, first_records
from cliproxy.vault.feed import Feed
from cliproxy.vault.identity import FILE_NAME, publish_identity
from cliproxy.vault.keyring import verify_working
from cliproxy.vault.log_anchor import LogAnchor
from cliproxy.vault.master_key import from_memfd
from cliproxy.vault.service import VaultService
from cliproxy.vault.store import Anchored, Store, create_store, open_store

VAULT_ALIVE_SECONDS = 1.0
LAST_USE_FLUSH_SECONDS = 60.0  # last-use times are written once a minute, not per call
COOLDOWN_FLUSH_SECONDS = 10.0  # what kill -9 of everything loses of cooldowns; each writing is two lines in the log
ADMIN_REQUESTS_PER_SECOND = 200.0  # the control socket passes at most as many
EGRESS_MESSAGES_PER_SECOND = 200.0  # hellos, acknowledgements, last use: a handful in normal times

_HANDSHAKES_PER_SECOND: Final = 4.0
_MESSAGES_PER_TURN: Final = 64


class Vault:
    """The process between its start and its end."""

    def __init__(self, boot: Boot, store: Store) -> None:
        self._boot = boot
        settings = decode_settings(boot.settings)
        self._role: Role[Settings]  # from `run` on
        self._store = store
        self._audit_sock = channel(VaultDescriptors.AUDIT_FD)
        self._audit = AuditClient(self._audit_sock, deadline_seconds=settings.audit.deadline_seconds, on_noted=self._log_noted)
        self._anchor = LogAnchor(self._audit, deadline_seconds=settings.audit.deadline_seconds)
        self._greeting: PacketChannel[AuditorToVault] | None = None
        self._egress: Peer[EgressToVault] = Peer(
            VaultDescriptors.EGRESS_FD, name="egress", incoming=EgressToVault, per_second=EGRESS_MESSAGES_PER_SECOND, secrets=True
        )
        self._admin: Peer[AdminToVault] = Peer(
            VaultDescriptors.ADMIN_FD, name="admin", incoming=AdminToVault, per_second=ADMIN_REQUESTS_PER_SECOND, secrets=True
        )
        self._answers: deque[VaultToAdmin] = deque()
        self._contents = Contents(store, anchor=self._anchor)
        self._feed = Feed(self._contents, record=self._record)
        self._service = VaultService(self._contents, self._feed, providers=settings.providers, serving=boot.serving, answer=self._answers.append)
        self._control: Control | None = None
        self._ready = False
        self._alive_at = 0.0
        self._flush_at = time.monotonic() + LAST_USE_FLUSH_SECONDS
        self._flush_cooldowns_at = time.monotonic() + COOLDOWN_FLUSH_SECONDS

    def run(self, control: Control) -> None:
        """Serve until the supervisor says stop. Raises `TamperedVault` when the log knows another state, `VaultError` when a commit's fate is unclear."""
        self._control = control
        self._role = Role(
            self._boot,
            report=control.send,
            replaced={
                VaultDescriptors.AUDIT_FD: self._greet,
                VaultDescriptors.EGRESS_FD: self._egress_replaced,
                VaultDescriptors.ADMIN_FD: self._admin_replaced,
            },
            drain=self._drain,
            settings=self,
            needs={"the auditor": self._audit},
        )
        self._greet()
        while not self._role.leaving:
            self._turn(self._poller().poll(self._milliseconds()))
        self._flush_all()

    # --- the loop ----------------------------------------------------------------------------------------------------

    def _poller(self) -> select.poll:
        assert self._control is not None
        poller = select.poll()
        poller.register(self._control.fileno(), select.POLLIN)
        if self._greeting is not None or self._audit.healthy(time.monotonic()):  # else its end would be reported without pause
            poller.register(VaultDescriptors.AUDIT_FD, select.POLLIN)
        if self._ready:
            peers: tuple[tuple[Peer[Any], bool], ...] = ((self._egress, self._feed_waits_for_egress()), (self._admin, bool(self._answers)))
            for peer, waiting in peers:
                if peer.is_there:
                    poller.register(peer.number, select.POLLIN | (select.POLLOUT if waiting else 0))
        return poller

    def _feed_waits_for_egress(self) -> bool:
        # What waits for the auditor is tried again when it acknowledges and each second; POLLOUT would not wait for that but spin.
        return not self._feed.idle and not self._feed.awaits_log

    def _milliseconds(self) -> int:
        now = time.monotonic()
        times = [self._alive_at, self._service.next_deadline() or now + VAULT_ALIVE_SECONDS]
        return max(0, min(int((min(times) - now) * 1000) + 1, int(VAULT_ALIVE_SECONDS * 1000)))

    def _turn(self, ready: list[tuple[int, int]]) -> None:
        assert self._control is not None
        for descriptor, _ in ready:
            if descriptor == self._control.fileno():
                take_orders(self._control, self._role)
            elif descriptor == VaultDescriptors.AUDIT_FD:
                self._hear_auditor()
            elif descriptor == self._egress.number and self._ready:
                self._hear_egress()
            elif descriptor == self._admin.number and self._ready:
                self._hear_admin()
        self._tick(time.monotonic())
        self._pump()

    def _tick(self, now: float) -> None:
        self._service.sweep(now)
        if now < self._alive_at:
            return
        self._alive_at = now + VAULT_ALIVE_SECONDS
        if self._greeting is None:
            self._audit.poll(now)
            self._anchor.settle()
        self._role.tick(now)
        if self._feed.greeted and self._feed.idle:
            self._feed.tell(VaultAlive(number=self._contents.number))
        if now >= self._flush_at:
            self._flush_at = now + LAST_USE_FLUSH_SECONDS
            self._flush(self._contents.flush_use)
            self._flush(self._contents.flush_log)
        if now >= self._flush_cooldowns_at:
            self._flush_cooldowns_at = now + COOLDOWN_FLUSH_SECONDS
            self._flush(self._contents.cooldowns.flush)

    def _hear_egress(self) -> None:
        if not self._egress.hear(self._take_from_egress, most=_MESSAGES_PER_TURN, violated=self._violation):
            self._lose_egress()

    def _hear_admin(self) -> None:
        if not self._admin.hear(self._take_from_admin, most=1, violated=self._violation):
            self._lose_admin()

    def _violation(self, peer: str, error: ChannelError) -> None:
        self._record((ChannelViolation(peer=peer, reason=clip(str(error))),))

    def _lose_egress(self) -> None:
        self._egress.close()
        self._feed.end()
        self._service.egress_gone()

    def _lose_admin(self) -> None:
        self._admin.close()
        self._answers.clear()

    def _pump(self) -> None:
        """Send what the peers have room for."""
        if self._egress.is_there:
            try:
                self._feed.pump(self._send_to_egress)
            except ChannelError:
                self._lose_egress()
        while self._answers and self._admin.is_there:
            try:
                if not self._admin.send(self._answers[0]):
                    break
            except ChannelError:
                self._lose_admin()
                break
            self._answers.popleft()
        if len(self._answers) > MAX_FEED_BACKLOG or not self._admin.is_there:
            self._answers.clear()

    def _send_to_egress(self, message: VaultToEgress) -> bool:
        return self._egress.send(message)

    def _record(self, events: Sequence[VaultEvent]) -> bool:
        return self._anchor.open and self._audit.healthy(time.monotonic()) and self._audit.offer(events)

    # --- the auditor -------------------------------------------------------------------------------------------------

    def _greet(self) -> None:
        """Hand the log key to the auditor that is on the number now; its anchor is awaited in the loop."""
        self._anchor.open = False
        self._greeting = PacketChannel(self._audit_sock, incoming=AuditorToVault, peer="auditor", per_second=_HANDSHAKES_PER_SECOND, secrets=True)
        key = self._contents.log_key()
        try:
            self._greeting.send(LogKey(secret=key, size=self._contents.log_seen.size, root=self._contents.log_seen.root))
        except ChannelClosed:
            self._greeting = None  # the supervisor brings the next one
        finally:
            key.wipe()

    def _hear_auditor(self) -> None:
        if self._greeting is None:
            self._audit.poll(time.monotonic())
            self._anchor.settle()
            return
        try:
            anchor = self._greeting.receive()
        except ChannelClosed:
            self._greeting = None
            self._audit.poll(time.monotonic())  # learns that it is gone
            return
        if anchor is not None:
            self._greeting = None
            self._confirm(anchor)

    def _confirm(self, anchor: Anchor) -> None:
        """The log knows this state of ours, or we stop here."""
        self._audit.replaced()
        self._anchor.open = True
        self._store.confirm(Anchored(anchor.epoch, anchor.root, anchor.pending_epoch, anchor.pending_root), self._anchor)
        if not self._ready:
            self._ready = True
            self._egress.open()
            self._admin.open()
            self._role.ready()

    # --- egress and admin --------------------------------------------------------------------------------------------

    def _take_from_egress(self, message: EgressToVault) -> None:
        if isinstance(message, EgressHello):
            if message.build != self._boot.build:
                raise ChannelError("egress is of another build")
            if self._feed.greeted:
                raise ChannelError("egress said hello twice on one channel")
            self._feed.begin()
        elif not self._feed.greeted:
            raise ChannelError("egress spoke before its hello")
        elif isinstance(message, PolicyAck):
            if message.number > self._contents.number:
                raise ChannelError("egress acknowledged a policy that there is not")
            self._service.acknowledged(message)
        elif isinstance(message, LastUse):
            self._contents.note_use(message.keys)
        elif isinstance(message, CooldownsChanged):
            self._contents.cooldowns.note(message.cooldowns, afresh=message.afresh)

    def _take_from_admin(self, asked: AdminToVault) -> None:
        self._service.take(asked, now=time.monotonic())
        if self._store.broken:
            self._pump()  # admin learns that it failed
            raise VaultError("a commit failed and its fate is unclear; the vault starts anew and reads what is on disk")

    def _flush_all(self) -> None:
        self._flush(self._contents.flush_use)
        self._flush(self._contents.cooldowns.flush)
        self._flush(self._contents.flush_log)

    def _log_noted(self, size: int, root: bytes) -> None:
        """The auditor has a durable checkpoint. One that is below what is sealed tells that the operator accepted a log from a copy."""
        self._contents.note_log(size, root)
        if size < self._contents.log_seen.size:
            self._flush_at = 0.0

    def _flush(self, write: Callable[[], None]) -> None:
        try:
            write()
        except Unavailable:
            pass  # it stays noted and goes with the next; neither is a promise
        except VaultError as error:
            child.say(f"cliproxy: {VAULT}: last-use times, cooldowns or what is known of the log were not written: {error}")
            if self._store.broken:
                raise

    # --- the supervisor ----------------------------------------------------------------------------------------------

    def _egress_replaced(self) -> None:
        """Egress was restarted: the channel to the new one is there."""
        self._feed.end()
        self._service.egress_gone()
        if self._ready:
            self._egress.open()

    def _admin_replaced(self) -> None:
        """Admin was restarted: the channel to the new one is there."""
        self._answers.clear()
        if self._ready:
            self._admin.open()

    def _drain(self, _seconds: int) -> None:
        self._flush_all()
        self._role.drained()

    def check(self, settings: Settings) -> Settings:
        """What the vault needs of them is right when they can be decoded."""
        return settings

    def adopt(self, checked: Settings) -> None:
        """Settings of a new generation."""
        self._service.providers = checked.providers


def open_or_create(home: Path, master_key_fd: int, *, may_create: bool) -> Store:
    """Return the store of `home`; a new one only when it may be made and there is neither a vault nor a log that knows one. Raises `ConfigError`,
    `TamperedVault`.

    The public key of the vault is published beside it.
    """
    master = from_memfd(master_key_fd)
    path = home / VAULT_FILE
    try:
        if os.path.lexists(path):
            store = open_store(path, master)
        else:
            if has_entries(logs_of(home)):
                raise ConfigError("there is an audit log but no vault", cure="put auths/ back, or move logs/ away to begin anew", file=str(path))
            if not may_create:
                raise ConfigError("there is no vault", cure="put auths/ and logs/ back from the same backup, or run `cliproxy init`", file=str(path))
            create_private_directory(path.parent)
            store = create_store(path, master, first_records())
    finally:
        master.wipe()
    publish_identity(path.with_name(FILE_NAME), store.keyring)
    return store


def prepare(boot: Boot) -> Vault:
    """Open the database and everything that it needs later. Each primitive is used once, so that nothing is loaded after the lockdown."""
    store = open_or_create(Path(boot.home), VaultDescriptors.MASTER_KEY_FD, may_create=boot.may_create)
    verify_working(store.keyring)
    return Vault(boot, store)


def body(boot: Boot, vault: Vault, control: Control) -> None:
    """Serve."""
    vault.run(control)


if __name__ == "__main__":
    child.main(VAULT, prepare=prepare, body=body)
