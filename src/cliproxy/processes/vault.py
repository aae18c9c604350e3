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

import msgspec

from cliproxy.audit.client import AuditClient
from cliproxy.audit.events import ChannelViolation, VaultEvent, clip
from cliproxy.bounds import (
    ADMIN_REQUESTS_PER_SECOND,
    COOLDOWN_FLUSH_SECONDS,
    EGRESS_MESSAGES_PER_SECOND,
    LAST_USE_FLUSH_SECONDS,
    MAX_FEED_BACKLOG,
    VAULT_ALIVE_SECONDS,
)
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
from cliproxy.processes.boot import read_sealed
from cliproxy.processes.child import Boot, Control, Down, Order, Up
from cliproxy.processes.slots import channel, is_socket
from cliproxy.processes.topology import VAULT, VaultSlots
from cliproxy.secure_files import create_private_directory
from cliproxy.vault.contents import Contents, first_records
from cliproxy.vault.feed import Feed
from cliproxy.vault.identity import FILE_NAME, publish_identity
from cliproxy.vault.keyring import verify_working
from cliproxy.vault.log_anchor import LogAnchor
from cliproxy.vault.master_key import from_memfd
from cliproxy.vault.service import VaultService
from cliproxy.vault.store import Anchored, Store, create_store, open_store

DATABASE: Final = "vault.db"
_HANDSHAKES_PER_SECOND: Final = 4.0
_MESSAGES_PER_TURN: Final = 64


class Link:
    """The channel on a slot, away while the peer is restarted; with the messages that its queue had no room for."""

    def __init__(self, slot: int, *, incoming: Any, name: str, per_second: float, secrets: bool) -> None:
        self.slot = slot
        self.name = name
        self._incoming = incoming
        self._per_second = per_second
        self._secrets = secrets
        self._channel: PacketChannel[Any] | None = None

    def open(self) -> None:
        """Take the channel that is on the slot now, if there is one, in the place of the old."""
        if self._channel is not None:
            self._channel.release()  # the number is the new channel's already
        self._channel = None
        if is_socket(self.slot):
            sock = channel(self.slot)
            self._channel = PacketChannel(sock, incoming=self._incoming, peer=self.name, per_second=self._per_second, secrets=self._secrets)

    def close(self) -> None:
        """End the channel; the slot stays occupied for the next one."""
        if self._channel is not None:
            self._channel.abandon()
        self._channel = None

    @property
    def there(self) -> bool:
        """Whether there is a channel."""
        return self._channel is not None

    def send(self, message: object) -> bool:
        """Send; False when the peer's queue is full. Raises `ChannelClosed`, also when the peer is away."""
        if self._channel is None:
            raise ChannelClosed(f"{self.name} is away")
        return self._channel.send(message)

    def receive(self) -> Any:
        """Return the next message or None. Raises `ChannelError`."""
        return None if self._channel is None else self._channel.receive()


class Vault:
    """The process between its start and its end."""

    def __init__(self, boot: Boot, store: Store) -> None:
        self._boot = boot
        self._settings = decode_settings(boot.settings)
        self._prepared: Settings | None = None
        self._store = store
        self._audit_sock = channel(VaultSlots.AUDIT_FD)
        self._audit = AuditClient(self._audit_sock, deadline_seconds=self._settings.audit.deadline_seconds)
        self._anchor = LogAnchor(self._audit, deadline_seconds=self._settings.audit.deadline_seconds)
        self._greeting: PacketChannel[AuditorToVault] | None = None
        self._egress = Link(VaultSlots.EGRESS_FD, incoming=EgressToVault, name="egress", per_second=EGRESS_MESSAGES_PER_SECOND, secrets=True)
        self._admin = Link(VaultSlots.ADMIN_FD, incoming=AdminToVault, name="admin", per_second=ADMIN_REQUESTS_PER_SECOND, secrets=True)
        self._answers: deque[VaultToAdmin] = deque()
        self._contents = Contents(store, anchor=self._anchor)
        self._feed = Feed(self._contents, record=self._record)
        self._service = VaultService(self._contents, self._feed, providers=self._settings.providers, serving=boot.serving, answer=self._answers.append)
        self._control: Control | None = None
        self._ready = False
        self._leaving = False
        self._alive_at = 0.0
        self._flush_at = time.monotonic() + LAST_USE_FLUSH_SECONDS
        self._flush_cooldowns_at = time.monotonic() + COOLDOWN_FLUSH_SECONDS

    def run(self, control: Control) -> None:
        """Serve until the supervisor says stop. Raises `TamperedVault` when the log knows another state, `VaultError` when a commit's fate is unclear."""
        self._control = control
        self._greet()
        while not self._leaving:
            self._turn(self._poller().poll(self._milliseconds()))
        self._flush_all()

    # --- the loop ----------------------------------------------------------------------------------------------------

    def _poller(self) -> select.poll:
        assert self._control is not None
        poller = select.poll()
        poller.register(self._control.fileno(), select.POLLIN)
        if self._greeting is not None or self._audit.healthy(time.monotonic()):  # else its end would be reported without pause
            poller.register(VaultSlots.AUDIT_FD, select.POLLIN)
        if self._ready:
            for link, waiting in ((self._egress, self._feed_waits_for_egress()), (self._admin, bool(self._answers))):
                if link.there:
                    poller.register(link.slot, select.POLLIN | (select.POLLOUT if waiting else 0))
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
                for order in self._control.receive():
                    self._obey(order)
            elif descriptor == VaultSlots.AUDIT_FD:
                self._hear_auditor()
            elif descriptor == self._egress.slot and self._ready:
                self._hear(self._egress, self._take_from_egress, most=_MESSAGES_PER_TURN)
            elif descriptor == self._admin.slot and self._ready:
                self._hear(self._admin, self._take_from_admin, most=1)
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
        child.verify_connected(now, {"the auditor": self._audit.lost_at})
        if self._feed.greeted and self._feed.idle:
            self._feed.tell(VaultAlive(number=self._contents.number))
        if now >= self._flush_at:
            self._flush_at = now + LAST_USE_FLUSH_SECONDS
            self._flush(self._contents.flush_use)
        if now >= self._flush_cooldowns_at:
            self._flush_cooldowns_at = now + COOLDOWN_FLUSH_SECONDS
            self._flush(self._contents.cooldowns.flush)

    def _hear(self, link: Link, take: Any, *, most: int) -> None:
        try:
            for _ in range(most):
                message = link.receive()
                if message is None:
                    return
                take(message)
        except ChannelClosed:
            self._lose(link)
        except ChannelError as error:
            self._record((ChannelViolation(peer=link.name, reason=clip(str(error))),))
            self._lose(link)

    def _lose(self, link: Link) -> None:
        link.close()
        if link is self._egress:
            self._feed.end()
            self._service.egress_gone()
        else:
            self._answers.clear()

    def _pump(self) -> None:
        """Send what the peers have room for."""
        if self._egress.there:
            try:
                self._feed.pump(self._send_to_egress)
            except ChannelError:
                self._lose(self._egress)
        while self._answers and self._admin.there:
            try:
                if not self._admin.send(self._answers[0]):
                    break
            except ChannelError:
                self._lose(self._admin)
                break
            self._answers.popleft()
        if len(self._answers) > MAX_FEED_BACKLOG or not self._admin.there:
            self._answers.clear()

    def _send_to_egress(self, message: VaultToEgress) -> bool:
        return self._egress.send(message)

    def _record(self, events: Sequence[VaultEvent]) -> bool:
        return self._anchor.open and self._audit.healthy(time.monotonic()) and self._audit.offer(events)

    # --- the auditor -------------------------------------------------------------------------------------------------

    def _greet(self) -> None:
        """Hand the log key to the auditor that is on the slot now; its anchor is awaited in the loop."""
        self._anchor.open = False
        self._greeting = PacketChannel(self._audit_sock, incoming=AuditorToVault, peer="auditor", per_second=_HANDSHAKES_PER_SECOND, secrets=True)
        key = self._contents.log_key()
        try:
            self._greeting.send(LogKey(secret=key))
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
            assert self._control is not None
            self._control.send(Up.READY, self._boot.generation)

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

    def _flush(self, write: Callable[[], None]) -> None:
        try:
            write()
        except Unavailable:
            pass  # it stays noted and goes with the next; neither is a promise
        except VaultError as error:
            child.say(f"cliproxy: {VAULT}: last-use times or cooldowns were not written: {error}")
            if self._store.broken:
                raise

    # --- the supervisor ----------------------------------------------------------------------------------------------

    def _obey(self, order: Order) -> None:
        assert self._control is not None
        if order.kind is Down.STOP:
            self._leaving = True
        elif order.kind is Down.DRAIN:
            self._flush_all()
            self._control.send(Up.DRAINED, self._boot.generation)
        elif order.kind is Down.REPLACE:
            self._replaced(order.argument)
        elif order.kind is Down.PREPARE:
            self._prepare(order)
        elif order.kind is Down.COMMIT:
            if self._prepared is None:
                raise ChannelError("a COMMIT for what was not prepared")
            self._settings, self._prepared = self._prepared, None
            self._service.providers = self._settings.providers
            self._control.send(Up.COMMITTED, order.argument)
        elif order.kind is Down.ABANDON:
            self._prepared = None
        else:
            raise ChannelError(f"the vault takes no {order.kind.name}")

    def _replaced(self, slot: int) -> None:
        """A peer was restarted: its new channel is on the slot already."""
        if slot == VaultSlots.AUDIT_FD:
            self._greet()
        elif slot == VaultSlots.EGRESS_FD:
            self._feed.end()
            self._service.egress_gone()
            if self._ready:
                self._egress.open()
        elif slot == VaultSlots.ADMIN_FD:
            self._answers.clear()
            if self._ready:
                self._admin.open()

    def _prepare(self, order: Order) -> None:
        assert self._control is not None
        (descriptor,) = order.descriptors
        try:
            self._prepared = decode_settings(read_sealed(descriptor))
        except (ChannelError, msgspec.DecodeError, OSError):
            self._prepared = None
            self._control.send(Up.REFUSED, order.argument)
        else:
            self._control.send(Up.PREPARED, order.argument)
        finally:
            os.close(descriptor)


def open_or_create(home: Path, master_key_fd: int) -> Store:
    """Return the store of `home`; a new one when there is neither a vault nor a log that knows one. Raises `ConfigError`, `TamperedVault`.

    The public key of the vault is published beside it.
    """
    master = from_memfd(master_key_fd)
    path = home / "auths" / DATABASE
    try:
        if os.path.lexists(path):
            store = open_store(path, master)
        else:
            if _has_entries(home / "logs"):
                raise ConfigError("there is an audit log but no vault", cure="put auths/ back, or move logs/ away to begin anew", file=str(path))
            create_private_directory(path.parent)
            store = create_store(path, master, first_records())
    finally:
        master.wipe()
    publish_identity(path.with_name(FILE_NAME), store.keyring)
    return store


def _has_entries(logs: Path) -> bool:
    """Whether anything was ever logged: the supervisor makes the first segment empty."""
    try:
        with os.scandir(logs) as entries:
            return any(entry.stat(follow_symlinks=False).st_size for entry in entries if entry.is_file(follow_symlinks=False))
    except FileNotFoundError:
        return False


def prepare(boot: Boot) -> Vault:
    """Open the database and everything that it needs later. Each primitive is used once, so that nothing is loaded after the lockdown."""
    store = open_or_create(Path(boot.home), VaultSlots.MASTER_KEY_FD)
    verify_working(store.keyring)
    return Vault(boot, store)


def body(boot: Boot, vault: Vault, control: Control) -> None:
    """Serve."""
    vault.run(control)


if __name__ == "__main__":
    child.main(VAULT, prepare=prepare, body=body)
