"""The auditor: takes everybody's events, writes the log, says what is durable. A plain `poll` loop; `fdatasync` has the only other thread.

It serves once the vault has handed over the signing key and the last checkpoint is genuine under it; what comes before waits, bounded. A
channel that carries what it may not is closed, and the log says so. What a dead sender had sent is read to the end before its descriptor number is given to
the next.
"""

from __future__ import annotations

import functools
import os
import select
import time
from pathlib import Path

import msgspec

from cliproxy.audit.cycle import Cycle
from cliproxy.audit.events import AuditorEvent, ChannelViolation, LogRollbackAccepted, clip, timestamp
from cliproxy.audit.intake import Intake, Source
from cliproxy.audit.log import SEED_BYTES, LogSigner, LogWriter, verify_note
from cliproxy.audit.pin import PinFile, open_pin, verify_pinned
from cliproxy.audit.recovery import Position, recover, verify_seen
from cliproxy.audit.sync import Syncer
from cliproxy.bounds import MAX_PENDING_AUDIT_BYTES
from cliproxy.config.schema import AuditSettings, Settings, decode_settings
from cliproxy.errors import AuditError, ChannelError, ConfigError, PinMismatch
from cliproxy.ipc.messages import Anchor, LogKey
from cliproxy.processes import child
from cliproxy.processes.child import Boot, Control, Down, Up
from cliproxy.processes.queries import Queries
from cliproxy.processes.role import Role, take_orders
from cliproxy.processes.senders import AWAITED, FEW, MANY, SENDERS, Pace, Senders
from cliproxy.processes.topology import AUDITOR, AuditorDescriptors
from cliproxy.secret import Secret


class Prepared(msgspec.Struct):
    """What is made before the lockdown."""

    position: Position
    syncer: Syncer
    pin: PinFile | None
    trouble: str  # what the pin says against the log, accepted by the operator; empty: nothing


class Auditor:
    """The process between its lockdown and its end."""

    def __init__(self, boot: Boot, prepared: Prepared, control: Control) -> None:
        self._settings: AuditSettings = decode_settings(boot.settings).audit
        self._position = prepared.position
        self._pin = prepared.pin
        self._trouble = prepared.trouble
        self._accepts_rollback = boot.accept_rollback
        self._syncer = prepared.syncer
        self._control = control
        self._held: list[tuple[Source, bytes]] = []  # packets that came before the key
        self._held_bytes = 0
        self._log: LogWriter | None = None
        self._intake: Intake | None = None
        self._cycle: Cycle | None = None
        self._queries = Queries(self)
        self._drained_at = -1  # a DRAIN waits until so many entries are covered
        self._pace = Pace()
        self._backed_up_poll = select.poll()  # while no sender may be read
        self._napping_poll = select.poll()  # and those whose events are waited for
        self._poll = select.poll()  # and everybody
        self._polls = (self._backed_up_poll, self._napping_poll, self._poll)
        for poll in self._polls:
            poll.register(control.fileno(), select.POLLIN)
            poll.register(self._syncer.fileno(), select.POLLIN)
        self._senders = Senders(self, self._poll, self._napping_poll)
        self._open_queries()
        self._role: Role[AuditSettings] = Role(
            boot,
            report=control.send,
            replaced={
                AuditorDescriptors.ADMIN_QUERY_FD: self._open_queries,
                **{number: functools.partial(self._senders.open, number) for number in SENDERS},
            },
            drain=self._drain,
            settings=self,
            further={Down.SEGMENT: self._take_segment},
            needs={},  # whoever needs this process sees to the channel
        )

    def run(self) -> None:
        """Serve until STOP. Raises `CorruptLog` when the log is another key's, `AuditError` when it cannot be written."""
        self._syncer.start()
        while not self._role.leaving:
            self._turn()
        self._senders.receive_rest()
        self._finish()

    # --- one turn ----------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        now = time.monotonic()
        cycle = self._cycle
        wait = max(0.0, min(1.0, 1.0 if cycle is None else cycle.next_time(now) - now))
        if cycle is not None and cycle.is_backed_up():
            ready = dict(self._backed_up_poll.poll(wait * 1000))
        elif now < self._pace.until:
            poll = self._backed_up_poll if self._holds_much() else self._napping_poll
            ready = dict(poll.poll(min(wait, self._pace.until - now) * 1000))
            if self._senders.has_awaited(ready):
                self._look(dict(self._poll.poll(0)), hurry=True)
        else:
            ready = dict(self._poll.poll(wait * 1000 if self._pace.quiet else 0))
            self._look(ready, hurry=self._senders.has_awaited(ready))
        if ready.get(self._syncer.fileno()) and self._syncer.collect() and cycle is not None:
            cycle.synced()
        if ready.get(AuditorDescriptors.ADMIN_QUERY_FD):
            self._serve_admin()
        self._advance()
        self._role.tick(now)
        if ready.get(self._control.fileno()):
            # A REPLACE is on its number as soon as it is received: first read what the one who died had sent.
            self._senders.receive_last(self._poll.poll(0))
            take_orders(self._control, self._role)

    def _look(self, ready: dict[int, int], *, hurry: bool) -> None:
        """Take what senders sent: from those who send much at the clock's pace, but before anything that was awaited (`hurry`): what egress had said
        before a key was revoked stands before the revocation."""
        if self._holds_much():
            self._senders.receive(ready, [AuditorDescriptors.VAULT_FD])
            self._pace.looked(time.monotonic(), 1)  # what waits in the other queues must not wake us without pause
            return
        if not self._senders.has_many(ready):
            self._pace.looked(time.monotonic(), 0)
        elif self._pace.begin(time.monotonic()) or hurry:
            self._pace.looked(time.monotonic(), self._senders.receive(ready, MANY) or 1)
        self._senders.receive(ready, FEW)

    def _holds_much(self) -> bool:
        """Whether no more may wait for the key."""
        return self._held_bytes >= MAX_PENDING_AUDIT_BYTES

    def _open_queries(self) -> None:
        """Take the channel of admin's questions, if there is one."""
        if self._queries.open():
            for poll in self._polls:
                poll.register(AuditorDescriptors.ADMIN_QUERY_FD, select.POLLIN)

    def _serve_admin(self) -> None:
        if not self._queries.serve():
            for poll in self._polls:
                poll.unregister(AuditorDescriptors.ADMIN_QUERY_FD)

    def _advance(self) -> None:
        if self._cycle is None or self._intake is None:
            return
        now, wall = time.monotonic(), time.time()
        self._intake.summarise(now=now, wall=wall)
        self._cycle.advance(now, wall)

    def _finish(self) -> None:
        """Write, sync and sign for everything received. Without a key nothing was taken."""
        if self._cycle is None or self._intake is None:
            return
        self._intake.summarise(now=time.monotonic(), wall=time.time(), at_once=True)
        self._cycle.stop_rotating()
        self._cycle.demand()
        self._advance()
        done = select.poll()
        done.register(self._syncer.fileno(), select.POLLIN)
        while not self._cycle.is_at_rest() and not self._cycle.failing:
            now = time.monotonic()
            if done.poll(max(1.0, (self._cycle.next_time(now) - now) * 1000)) and self._syncer.collect():
                self._cycle.synced()
            self._advance()

    # --- what senders send (processes.senders.Owner) -----------------------------------------------------------------

    def take(self, source: Source, packet: bytes, *, now: float, stamp: str) -> None:
        """Let the events of a packet wait for the next batch; before the key is there, let the packet wait."""
        if self._intake is None or self._cycle is None:
            self._held.append((source, packet))
            self._held_bytes += len(packet)
            return
        self._intake.take(source, packet, now=now, time=stamp)
        if source.role in AWAITED:
            self._cycle.urgent = True

    def violation(self, peer: str, reason: str) -> None:
        """Let the log say that `peer` broke its channel's rules."""
        if self._intake is not None:
            self._intake.own(ChannelViolation(peer=peer, reason=clip(reason)), time=timestamp(time.time()))

    def take_key(self, message: LogKey) -> Anchor:
        """Open the log with the vault's key and return what it knows of the vault. Raises `CorruptLog` when the log is another key's, `PinMismatch` when it
        is not what vault or pin have seen."""
        anchor = self._begin(message).anchor
        return Anchor(epoch=anchor.epoch, root=anchor.root, pending_epoch=anchor.pending_epoch, pending_root=anchor.pending_root)

    def _begin(self, message: LogKey) -> LogWriter:
        """Return the log, open. Raises `ChannelError` when it is open with another key."""
        try:
            signer = LogSigner(message.secret)
        except AuditError as error:
            raise ChannelError(str(error)) from error
        finally:
            message.secret.wipe()
        if self._log is not None:
            if signer.public_key != self._log.public_key:
                raise ChannelError("the vault brought another signing key")
            return self._log
        now, wall = time.monotonic(), time.time()
        segment, checkpoints = AuditorDescriptors.SEGMENT_FD, AuditorDescriptors.CHECKPOINTS_FD
        because = self._verify_seen(message, signer)
        self._log = LogWriter(self._position, signer, segment=segment, checkpoints=checkpoints, now=timestamp(wall), because=because)
        self._intake = Intake(self._log, unauthenticated_bytes_per_hour=self._settings.unauthenticated_bytes_per_hour, now=now)
        self._cycle = Cycle(
            self._log,
            self._syncer,
            self,
            segment=segment,
            checkpoints=checkpoints,
            segment_bytes=self._settings.segment_bytes,
            now=now,
            sync_notes=self._pin is not None,
        )
        self._take_held(now=now, stamp=timestamp(wall))
        self._role.ready()
        return self._log

    def _verify_seen(self, message: LogKey, signer: LogSigner) -> list[AuditorEvent]:
        """Raise `PinMismatch` unless the log has what the vault and the pin have seen of it; what the operator accepts all the same is returned as an event."""
        reasons = [self._trouble] if self._trouble else []
        try:
            verify_seen(self._position, size=message.size, root=message.root)
        except PinMismatch as error:
            reasons.append(str(error))
        if self._pin is not None and self._pin.pinned.number and not self._trouble:
            try:
                verify_note(self._pin.pinned.note, public_key=signer.public_key)
            except AuditError as error:
                reasons.append(f"the pin was not signed with the log's key: {error}")
        if reasons and not self._accepts_rollback:
            raise PinMismatch("; ".join(reasons))
        return [LogRollbackAccepted(entries=self._position.tree.size, reason=clip("; ".join(reasons)))] if reasons else []

    def _take_held(self, *, now: float, stamp: str) -> None:
        held, self._held, self._held_bytes = self._held, [], 0
        broken: list[Source] = []
        for source, packet in held:
            if source in broken:
                continue
            try:
                self.take(source, packet, now=now, stamp=stamp)
            except ChannelError as error:
                broken.append(source)
                self._senders.close_source(source, str(error))

    # --- what the cycle tells (audit.cycle.Owner) --------------------------------------------------------------------

    def sealed(self) -> None:
        """What was received is in a batch now."""
        self._senders.sealed()

    def durable(self) -> None:
        """Acknowledge what is durable."""
        self._senders.durable()

    def trouble(self, failing: bool) -> None:
        """Tell everybody, the operator too, that the log takes nothing, or does again."""
        child.say(f"cliproxy: {AUDITOR}: the disk of the log is full; calls are refused" if failing else f"cliproxy: {AUDITOR}: the log is written again")
        self._senders.trouble(failing)

    def covered(self, size: int, note: bytes) -> None:
        """Answer those who asked for a checkpoint, a DRAIN among them."""
        self._queries.covered(size, note)
        if 0 <= self._drained_at <= size:
            self._drained_at = -1
            self._role.drained()

    def noted(self) -> None:
        """The last checkpoint is durable: pin it, and let the vault know."""
        assert self._log is not None
        if self._pin is not None and self._log.last_note:
            self._pin.write(self._log.last_note)
        self._senders.noted(self._log.covered, self._log.covered_root)

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

    # --- the supervisor ----------------------------------------------------------------------------------------------

    def _drain(self, _seconds: int) -> None:
        if self._cycle is None or self._log is None:
            self._role.drained()
            return
        self._drained_at = self._cycle.demand()
        if self._log.covered >= self._drained_at:
            self.covered(self._log.covered, self._log.last_note)
        self._advance()

    def _take_segment(self, number: int, descriptor: int) -> None:
        if self._cycle is None:
            raise ChannelError("a segment that nobody asked for")
        if self._cycle.segment_begun(number):
            os.dup2(descriptor, AuditorDescriptors.SEGMENT_FD, inheritable=False)

    def check(self, settings: Settings) -> AuditSettings:
        """Return the part that is the auditor's. Raises `ConfigError` when it moves the pin: another file cannot be opened any more."""
        if settings.audit.pin != self._settings.pin:
            raise ConfigError("is changed by a restart only", cure="restart the gateway, or put the old value back", key="audit.pin")
        return settings.audit

    def adopt(self, checked: AuditSettings) -> None:
        """Use it from now on."""
        self._settings = checked
        if self._intake is not None and self._cycle is not None:
            self._intake.resize(checked.unauthenticated_bytes_per_hour)
            self._cycle.segment_bytes = checked.segment_bytes


def prepare(boot: Boot) -> Prepared:
    """Find out where the log stands, cut what a crash left unfinished, and use the signing code once, so that nothing is loaded later."""
    signer = LogSigner(Secret(bytes(SEED_BYTES)))
    verify_note(signer.sign(b"warm\n"), public_key=signer.public_key)
    position = recover(boot.home)
    pin, trouble = _open_pin(boot, position)
    return Prepared(position, Syncer(), pin, trouble)


def _open_pin(boot: Boot, position: Position) -> tuple[PinFile | None, str]:
    """Return the pin, and what it says against the log where the operator accepts that. Raises `ConfigError` or `PinMismatch`."""
    named = decode_settings(boot.settings).audit.pin
    if not named:
        return None, ""
    path = Path(named)
    missing = not os.path.lexists(path)
    pin = open_pin(path, boot.home, may_create=boot.accept_rollback)
    try:
        verify_pinned(boot.home, position, pin.pinned)
    except PinMismatch as error:
        if not boot.accept_rollback:
            raise
        return pin, str(error)
    return pin, "the pin was missing" if missing else ""


def body(boot: Boot, prepared: Prepared, control: Control) -> None:
    """Serve."""
    Auditor(boot, prepared, control).run()


if __name__ == "__main__":
    child.main(AUDITOR, prepare=prepare, body=body)
