"""The auditor: takes everybody's events, writes the log, says what is durable. A plain `poll` loop; `fdatasync` has the only other thread.

It serves once the vault has handed over the signing key and the last checkpoint is genuine under it; what comes before waits, bounded. A
channel that carries what it may not is closed, and the log says so. What a dead sender had sent is read to the end before its slot is given to
the next. When senders are busy it looks at their queues every few milliseconds only: waking up costs more than the work.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from cliproxy.audit.client import ACKNOWLEDGEMENT, DURABLE, FAILED
from cliproxy.audit.cycle import Cycle
from cliproxy.audit.events import ChannelViolation, Event, clip, timestamp
from cliproxy.audit.intake import Intake, Source
from cliproxy.audit.log import SEED_BYTES, LogSigner, LogWriter, verify_note
from cliproxy.audit.recovery import Position, recover
from cliproxy.audit.sync import Syncer
from cliproxy.bounds import AUDIT_NAP_SECONDS, AUDIT_QUERIES_PER_SECOND, MAX_CONTROL_MESSAGE_BYTES, MAX_PENDING_AUDIT_BYTES
from cliproxy.config.schema import AuditSettings, decode_settings
from cliproxy.errors import AuditError, ChannelError
from cliproxy.ipc.channel import ChannelClosed, PacketChannel
from cliproxy.ipc.messages import Anchor, LogKey, VaultToAuditor
from cliproxy.processes import child
from cliproxy.processes.boot import read_sealed
from cliproxy.processes.child import Boot, Control, Down, Order, Up
from cliproxy.processes.queries import Queries
from cliproxy.processes.slots import channel, is_socket, vacate
from cliproxy.processes.topology import ADMIN, AUDITOR, DIALER, EGRESS, SUPERVISOR, VAULT, WORKER, AuditorSlots
from cliproxy.secret import Secret

# In this order they are read when several wait: egress's intents hold up calls.
SENDERS: Final[dict[int, tuple[str, str]]] = {
    AuditorSlots.EGRESS_FD: (EGRESS, EGRESS),
    AuditorSlots.VAULT_FD: (VAULT, VAULT),
    AuditorSlots.SUPERVISOR_FD: (SUPERVISOR, SUPERVISOR),
    AuditorSlots.ADMIN_FD: (ADMIN, ADMIN),
    AuditorSlots.DIALER_FD: (DIALER, DIALER),
    **{slot: (WORKER, f"{WORKER}-{number}") for number, slot in enumerate(AuditorSlots.WORKER_FDS)},
}
_AWAITED: Final = frozenset({VAULT, ADMIN, SUPERVISOR})  # few events, each waited for
_PACKETS_PER_TURN: Final = 64
_LONGEST_QUEUE: Final = 4096  # packets; more than a socket buffer holds of the smallest
_CLOSED: Final = select.POLLHUP | select.POLLERR | select.POLLNVAL


@dataclass(slots=True)
class Prepared:
    """What is made before the lockdown."""

    position: Position
    syncer: Syncer


@dataclass(slots=True)
class Channel:
    """One sender's channel. `handshake`: the vault's, until its key came."""

    sock: socket.socket
    source: Source
    handshake: PacketChannel[VaultToAuditor] | None = None


class Auditor:
    """The process between its lockdown and its end."""

    def __init__(self, boot: Boot, prepared: Prepared, control: Control) -> None:
        self._generation = boot.generation
        self._settings: AuditSettings = decode_settings(boot.settings).audit
        self._next_settings: tuple[int, AuditSettings] | None = None
        self._position = prepared.position
        self._syncer = prepared.syncer
        self._control = control
        self._channels: dict[int, Channel] = {}
        self._held: list[tuple[Source, bytes]] = []  # packets that came before the key
        self._held_bytes = 0
        self._log: LogWriter | None = None
        self._intake: Intake | None = None
        self._cycle: Cycle | None = None
        self._queries = Queries(self)
        self._leaving = False
        self._drained_at = -1  # a DRAIN waits until so many entries are covered
        self._nap_until = 0.0
        self._urgent_poll = select.poll()
        self._poll = select.poll()
        for poll in (self._urgent_poll, self._poll):
            poll.register(control.fileno(), select.POLLIN)
            poll.register(self._syncer.fileno(), select.POLLIN)
        for slot in (*SENDERS, AuditorSlots.ADMIN_QUERY_FD):
            self._open(slot)

    def run(self) -> None:
        """Serve until STOP. Raises `CorruptLog` when the log is another key's, `AuditError` when it cannot be written."""
        self._syncer.start()
        while not self._leaving:
            self._turn()
        for slot in tuple(self._channels):
            self._receive(slot, most=_LONGEST_QUEUE)
        self._finish()

    # --- one turn ----------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        now = time.monotonic()
        cycle = self._cycle
        backed_up = self._held_bytes >= MAX_PENDING_AUDIT_BYTES if cycle is None else cycle.is_backed_up()
        wake = now + 1.0 if cycle is None else min(now + 1.0, cycle.next_time(now))
        reads = not backed_up and now >= self._nap_until
        if not reads and not backed_up:
            wake = min(wake, self._nap_until)
        ready = dict((self._poll if reads else self._urgent_poll).poll(max(0.0, (wake - now) * 1000)))
        if reads:
            self._receive_all(ready)
        if ready.get(self._syncer.fileno()) and self._syncer.collect() and cycle is not None:
            cycle.synced()
        if ready.get(AuditorSlots.ADMIN_QUERY_FD):
            self._serve_admin()
        self._advance()
        if ready.get(self._control.fileno()):
            self._take_orders()

    def _receive_all(self, ready: dict[int, int]) -> None:
        quiet = True
        for slot in [slot for slot in self._channels if slot in ready]:
            quiet = self._receive(slot, most=_PACKETS_PER_TURN) in _AWAITED and quiet
        if not quiet:
            self._nap_until = time.monotonic() + AUDIT_NAP_SECONDS

    def _serve_admin(self) -> None:
        if not self._queries.serve():
            for poll in (self._poll, self._urgent_poll):
                poll.unregister(AuditorSlots.ADMIN_QUERY_FD)

    def _advance(self) -> None:
        if self._cycle is None or self._intake is None:
            return
        now, wall = time.monotonic(), time.time()
        self._intake.summarise(now=now, wall=wall)
        self._cycle.advance(now, wall)

    def _finish(self) -> None:
        """Write, sync and sign for everything received. Without a key nothing was taken."""
        if self._cycle is None:
            return
        self._cycle.demand()
        self._advance()
        done = select.poll()
        done.register(self._syncer.fileno(), select.POLLIN)
        while not self._cycle.is_at_rest() and not self._cycle.failing:
            now = time.monotonic()
            if done.poll(max(1.0, (self._cycle.next_time(now) - now) * 1000)) and self._syncer.collect():
                self._cycle.synced()
            self._advance()

    # --- senders -----------------------------------------------------------------------------------------------------

    def _open(self, slot: int) -> None:
        """Take the channel that is on `slot` now, if there is one."""
        if slot == AuditorSlots.ADMIN_QUERY_FD:
            self._queries.open(channel(slot) if is_socket(slot) else None, per_second=AUDIT_QUERIES_PER_SECOND)
        elif is_socket(slot):
            role, name = SENDERS[slot]
            sock = channel(slot)
            handshake: PacketChannel[VaultToAuditor] | None = None
            if role == VAULT:
                handshake = PacketChannel(sock, incoming=VaultToAuditor, peer=VAULT, per_second=_PACKETS_PER_TURN, secrets=True)
            self._channels[slot] = Channel(sock, Source(role, name), handshake)
            self._channels = {one: self._channels[one] for one in SENDERS if one in self._channels}
        if is_socket(slot):
            self._poll.register(slot, select.POLLIN)
            if slot == AuditorSlots.ADMIN_QUERY_FD:
                self._urgent_poll.register(slot, select.POLLIN)

    def _close(self, slot: int) -> None:
        """End the channel on `slot`; the number stays occupied."""
        self._channels.pop(slot).sock.detach()
        vacate(slot)
        self._poll.unregister(slot)

    def _receive(self, slot: int, *, most: int) -> str:
        """Take up to `most` packets from the sender on `slot`, and close its channel when it ended or broke the rules; return its role."""
        one = self._channels[slot]
        now = time.monotonic()
        stamp = timestamp(time.time())
        for _ in range(most):
            try:
                if one.handshake is not None:
                    if not self._shake_hands(one):
                        break
                    continue
                packet = one.sock.recv(MAX_CONTROL_MESSAGE_BYTES + 1, socket.MSG_DONTWAIT)
                if not packet:
                    self._close(slot)
                    break
                self._take(one.source, packet, now=now, stamp=stamp)
            except BlockingIOError:
                break
            except ConnectionResetError:
                continue  # reported once, when the peer died with acknowledgements unread; what it had sent is still there
            except ChannelClosed:
                self._close(slot)
                break
            except ChannelError as error:
                self._close(slot)
                self.violation(one.source.name, str(error))
                break
        return one.source.role

    def _take(self, source: Source, packet: bytes, *, now: float, stamp: str) -> None:
        if self._intake is None or self._cycle is None:
            self._held.append((source, packet))
            self._held_bytes += len(packet)
            return
        self._intake.take(source, packet, now=now, time=stamp)
        if source.role in _AWAITED:
            self._cycle.urgent = True

    def violation(self, peer: str, reason: str) -> None:
        """Let the log say that `peer` broke its channel's rules."""
        self._own(ChannelViolation(peer=peer, reason=clip(reason)))

    def _own(self, event: Event) -> None:
        if self._intake is not None:
            self._intake.own(event, time=timestamp(time.time()))

    # --- the vault's key ---------------------------------------------------------------------------------------------

    def _shake_hands(self, one: Channel) -> bool:
        """Take the vault's key and answer with what the log knows of it. `False`: it has not come yet."""
        assert one.handshake is not None
        try:
            message = one.handshake.receive()
        except ChannelError as error:
            if isinstance(error.__cause__, ConnectionResetError):
                return True
            raise
        if message is None:
            return False
        self._begin(message)
        assert self._log is not None
        anchor = self._log.anchor
        answer = Anchor(epoch=anchor.epoch, root=anchor.root, pending_epoch=anchor.pending_epoch, pending_root=anchor.pending_root)
        if not one.handshake.send(answer):
            raise ChannelError("the vault does not read its anchor")
        one.handshake = None
        return True

    def _begin(self, message: LogKey) -> None:
        """Open the log with the vault's key. Raises `CorruptLog` when the log is another key's, `ChannelError` when it is open with another."""
        try:
            signer = LogSigner(message.secret)
        except AuditError as error:
            raise ChannelError(str(error)) from error
        finally:
            message.secret.wipe()
        if self._log is not None:
            if signer.public_key != self._log.public_key:
                raise ChannelError("the vault brought another signing key")
            return
        now, wall = time.monotonic(), time.time()
        segment, checkpoints = AuditorSlots.SEGMENT_FD, AuditorSlots.CHECKPOINTS_FD
        self._log = LogWriter(self._position, signer, segment=segment, checkpoints=checkpoints, now=timestamp(wall))
        self._intake = Intake(self._log, unauthenticated_bytes_per_hour=self._settings.unauthenticated_bytes_per_hour, now=now)
        self._cycle = Cycle(self._log, self._syncer, self, segment=segment, checkpoints=checkpoints, segment_bytes=self._settings.segment_bytes, now=now)
        self._take_held(now=now, stamp=timestamp(wall))
        self._control.send(Up.READY, self._generation)

    def _take_held(self, *, now: float, stamp: str) -> None:
        held, self._held, self._held_bytes = self._held, [], 0
        slots = {id(one.source): slot for slot, one in self._channels.items()}
        broken: set[int] = set()
        for source, packet in held:
            if id(source) in broken:
                continue
            try:
                self._take(source, packet, now=now, stamp=stamp)
            except ChannelError as error:
                broken.add(id(source))
                if id(source) in slots:
                    self._close(slots[id(source)])
                self.violation(source.name, str(error))

    # --- what the cycle tells (audit.cycle.Owner) --------------------------------------------------------------------

    def sealed(self) -> None:
        """What was received is in a batch now."""
        for one in self._channels.values():
            one.source.sealed = one.source.received

    def durable(self) -> None:
        """Acknowledge what is durable."""
        for one in self._channels.values():
            if one.source.sealed > one.source.acknowledged and _tell(one.sock, DURABLE, one.source.sealed):
                one.source.acknowledged = one.source.sealed

    def trouble(self, failing: bool) -> None:
        """Tell everybody that the log takes nothing, or does again."""
        child.say(f"cliproxy: {AUDITOR}: the disk of the log is full; calls are refused" if failing else f"cliproxy: {AUDITOR}: the log is written again")
        for one in self._channels.values():
            if one.handshake is None:
                _tell(one.sock, FAILED if failing else DURABLE, one.source.acknowledged)

    def covered(self, size: int, note: bytes) -> None:
        """Answer those who asked for a checkpoint, a DRAIN among them."""
        self._queries.covered(size, note)
        if 0 <= self._drained_at <= size:
            self._drained_at = -1
            self._control.send(Up.DRAINED, self._generation)

    def want_segment(self, number: int) -> None:
        """Ask the supervisor for the next segment."""
        self._control.send(Up.SEGMENT, number)

    @property
    def log(self) -> LogWriter | None:
        """The log, once the key is there."""
        return self._log

    @property
    def cycle(self) -> Cycle | None:
        """Its clockwork, likewise."""
        return self._cycle

    # --- orders ------------------------------------------------------------------------------------------------------

    def _take_orders(self) -> None:
        # A REPLACE is on its slot as soon as it is received: first read what the one who died had sent.
        for slot, what in self._poll.poll(0):
            if what & _CLOSED and slot in self._channels:
                self._receive(slot, most=_LONGEST_QUEUE)
        for order in self._control.receive():
            self._carry_out(order)

    def _carry_out(self, order: Order) -> None:
        if order.kind is Down.STOP:
            self._leaving = True
        elif order.kind is Down.DRAIN:
            self._drain()
        elif order.kind is Down.REPLACE:
            self._replace(order.argument)
        elif order.kind is Down.SEGMENT:
            self._take_segment(order.argument, order.descriptors)
        elif order.kind is Down.PREPARE:
            self._prepare(order.argument, order.descriptors)
        elif order.kind is Down.COMMIT:
            self._commit(order.argument)
        elif order.kind is Down.ABANDON:
            self._next_settings = None
        else:
            raise ChannelError(f"the auditor takes no {order.kind.name}")

    def _drain(self) -> None:
        if self._cycle is None or self._log is None:
            self._control.send(Up.DRAINED, self._generation)
            return
        self._drained_at = self._cycle.demand()
        if self._log.covered >= self._drained_at:
            self.covered(self._log.covered, self._log.last_note)
        self._advance()

    def _replace(self, slot: int) -> None:
        """A restarted sender's channel is on `slot` already: let go of the old one's object without touching the number."""
        if slot in self._channels:
            self._channels.pop(slot).sock.detach()
        self._open(slot)

    def _take_segment(self, number: int, descriptors: Sequence[int]) -> None:
        (descriptor,) = descriptors
        try:
            if self._cycle is None:
                raise ChannelError("a segment that nobody asked for")
            self._cycle.segment_begun(number)
            os.dup2(descriptor, AuditorSlots.SEGMENT_FD, inheritable=False)
        finally:
            os.close(descriptor)

    def _prepare(self, generation: int, descriptors: Sequence[int]) -> None:
        (descriptor,) = descriptors
        try:
            self._next_settings = (generation, decode_settings(read_sealed(descriptor)).audit)
        except (ChannelError, msgspec.DecodeError, OSError):
            self._next_settings = None
            self._control.send(Up.REFUSED, generation)
        else:
            self._control.send(Up.PREPARED, generation)
        finally:
            os.close(descriptor)

    def _commit(self, generation: int) -> None:
        if self._next_settings is None or self._next_settings[0] != generation:
            raise ChannelError("a COMMIT for what was not prepared")
        self._generation, self._settings = self._next_settings
        self._next_settings = None
        if self._intake is not None and self._cycle is not None:
            self._intake.resize(self._settings.unauthenticated_bytes_per_hour)
            self._cycle.segment_bytes = self._settings.segment_bytes
        self._control.send(Up.COMMITTED, generation)


def _tell(sock: socket.socket, state: int, batch: int) -> bool:
    """Send an acknowledgement; `False` when the sender does not read (it goes with the next) or is gone."""
    try:
        sock.send(ACKNOWLEDGEMENT.pack(state, batch), socket.MSG_DONTWAIT)
    except OSError:
        return False
    return True


def prepare(boot: Boot) -> Prepared:
    """Find out where the log stands, cut what a crash left unfinished, and use the signing code once, so that nothing is loaded later."""
    signer = LogSigner(Secret(bytes(SEED_BYTES)))
    verify_note(signer.sign(b"warm\n"), public_key=signer.public_key)
    return Prepared(recover(boot.home), Syncer())


def body(boot: Boot, prepared: Prepared, control: Control) -> None:
    """Serve."""
    Auditor(boot, prepared, control).run()


if __name__ == "__main__":
    child.main(AUDITOR, prepare=prepare, body=body)
