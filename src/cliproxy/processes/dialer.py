"""The dialer: resolves names, vets addresses, connects, and hands the connected sockets to egress. Holds nothing secret.

It is asked for an origin of its own table and can't be asked for an address. A plain poll loop; only `getaddrinfo` runs in threads, which
start after the lockdown, because Landlock binds the threads that exist. Each dial has one deadline over queue, resolving and connecting.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import Final

from cliproxy.audit.client import AuditClient
from cliproxy.audit.events import AddressDenied, ChannelViolation, DialerEvent, clip
from cliproxy.bounds import MAX_DIALS_PER_SECOND, MAX_PENDING_DIALS
from cliproxy.config.schema import Settings, decode_settings
from cliproxy.dialer.race import Race
from cliproxy.dialer.resolve import Resolved, Resolvers
from cliproxy.dialer.table import Target, build_table
from cliproxy.errors import ChannelError
from cliproxy.ipc.messages import Dial, DialFailed, Dialled, EgressToDialer
from cliproxy.processes import child
from cliproxy.processes.child import Boot, Control
from cliproxy.processes.descriptors import channel
from cliproxy.processes.role import Peer, Role, take_orders
from cliproxy.processes.topology import AUDIT_FD, DIALER, DialerDescriptors

MAX_DENIED_ADDRESSES = 256  # forbidden addresses counted apart until they are in the log

_QUESTIONS_PER_TURN: Final = 64  # of egress; what has to wait for room in its queue is at most so many answers and the dials under way


class _Job:
    """A dial under way."""

    __slots__ = ("deadline", "dial", "race", "target")

    def __init__(self, dial: int, *, target: Target, deadline: float) -> None:
        self.dial = dial
        self.target = target
        self.deadline = deadline
        self.race: Race | None = None


class Dialer:
    """The process between its start and its end."""

    def __init__(self, boot: Boot) -> None:
        settings = decode_settings(boot.settings)
        self._boot = boot
        self._role: Role[dict[str, Target]]  # from `run` on
        self._table = build_table(settings.providers)
        self._wake, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._resolvers = Resolvers(wake)
        self._audit = AuditClient(channel(AUDIT_FD), deadline_seconds=settings.audit.deadline_seconds)
        self._denied: Counter[tuple[str, str]] = Counter()
        self._jobs: dict[int, _Job] = {}
        self._racing: dict[int, _Job] = {}
        self._poller = select.poll()
        self._egress: Peer[EgressToDialer] = Peer(
            DialerDescriptors.EGRESS_FD, name="egress", incoming=EgressToDialer, per_second=MAX_DIALS_PER_SECOND, secrets=False
        )
        self._polls_egress = False
        self._outbox: deque[tuple[Dialled | DialFailed, socket.socket | None]] = deque()
        self._next_tick = 0.0

    def run(self, control: Control) -> None:
        """Serve until the supervisor says stop."""
        self._role = Role(
            self._boot,
            report=control.send,
            replaced={DialerDescriptors.EGRESS_FD: self._egress_replaced, AUDIT_FD: self._auditor_replaced},
            drain=lambda _seconds: self._role.drained(),
            settings=self,
            needs={"egress": self._egress, "the auditor": self._audit},
        )
        self._resolvers.start()
        for descriptor in (control.fileno(), self._audit.fileno(), self._wake):
            self._poller.register(descriptor, select.POLLIN)
        self._open()
        self._role.ready()
        while not self._role.leaving:
            ready = self._poller.poll(self._milliseconds())
            now = time.monotonic()
            for descriptor, _ in ready:
                if descriptor == control.fileno():
                    take_orders(control, self._role)
                elif descriptor == self._audit.fileno():
                    self._hear_auditor(now)
                elif descriptor == self._wake:
                    self._take_resolved(now)
                elif descriptor == DialerDescriptors.EGRESS_FD:
                    self._send_answers()
                    self._take_questions(now)
                elif descriptor in self._racing:
                    self._advance(self._racing[descriptor], now, descriptor)
            self._tick(now)

    # --- egress --------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        self._egress.open()
        if self._egress.is_there:
            self._poller.register(DialerDescriptors.EGRESS_FD, select.POLLIN)
            self._polls_egress = True

    def _close(self) -> None:
        """The channel has ended, until the supervisor brings another one. What it asked for is nobody's now."""
        self._egress.close()
        self._let_go()

    def _egress_replaced(self) -> None:
        """Egress was restarted: the channel to the new one is there."""
        self._let_go()
        self._open()

    def _let_go(self) -> None:
        if self._polls_egress:
            self._poller.unregister(DialerDescriptors.EGRESS_FD)
            self._polls_egress = False
        self._drop_jobs()

    def _drop_jobs(self) -> None:
        for job in tuple(self._jobs.values()):
            self._forget(job)
        while self._outbox:
            _, sock = self._outbox.popleft()
            if sock is not None:
                sock.close()

    def _take_questions(self, now: float) -> None:
        if not self._outbox and not self._egress.hear(lambda question: self._begin(question, now), most=_QUESTIONS_PER_TURN, violated=self._violation):
            self._close()

    def _violation(self, peer: str, error: ChannelError) -> None:
        self._offer([ChannelViolation(peer=peer, reason=clip(str(error)))])

    def _begin(self, question: Dial, now: float) -> None:
        if question.dial in self._jobs:
            raise ChannelError("a dial has the number of another one")
        target = self._table.get(question.origin)
        if target is None:
            self._say(DialFailed(dial=question.dial, reason="not_enrolled"))
        elif len(self._jobs) >= MAX_PENDING_DIALS:
            self._say(DialFailed(dial=question.dial, reason="busy"))
        else:
            self._jobs[question.dial] = _Job(question.dial, target=target, deadline=now + target.connect_seconds)
            self._resolvers.ask(target)

    def _say(self, answer: Dialled | DialFailed, sock: socket.socket | None = None) -> None:
        """Answer egress. While its queue is full answers wait, and no more questions are taken."""
        self._outbox.append((answer, sock))
        if len(self._outbox) == 1:
            self._send_answers()

    def _send_answers(self) -> None:
        try:
            while self._outbox and self._egress.is_there:
                answer, sock = self._outbox[0]
                if not self._egress.send(answer, () if sock is None else (sock.fileno(),)):
                    break
                self._outbox.popleft()
                if sock is not None:
                    sock.close()
        except ChannelError:
            self._close()
        if self._egress.is_there:
            self._poller.modify(DialerDescriptors.EGRESS_FD, select.POLLOUT if self._outbox else select.POLLIN)

    # --- a dial --------------------------------------------------------------------------------------------------

    def _take_resolved(self, now: float) -> None:
        try:
            os.read(self._wake, 4096)
        except BlockingIOError:
            pass
        for resolved in self._resolvers.take():
            if resolved.forbidden is not None:
                self._deny(resolved)
            for job in [job for job in self._jobs.values() if job.race is None and job.target == resolved.target]:
                if resolved.reason:
                    self._finish(job, DialFailed(dial=job.dial, reason=resolved.reason))
                else:
                    job.race = Race(resolved.addresses, port=job.target.origin.port)
                    self._advance(job, now)

    def _advance(self, job: _Job, now: float, descriptor: int | None = None) -> None:
        """Go on with a dial's connecting: `descriptor` is ready, or it is time for the next attempt."""
        race = job.race
        if race is None:
            return
        before = race.descriptors()
        if descriptor is None:
            race.step(now)
        else:
            race.ready(descriptor, now)
        after = race.descriptors()
        for gone in set(before) - set(after):
            self._stop_polling(gone)
        for new in set(after) - set(before):
            self._racing[new] = job
            self._poller.register(new, select.POLLOUT)
        if race.won is not None:
            sock, address = race.won
            self._finish(job, Dialled(dial=job.dial, address=address), sock)
        elif race.lost:
            self._finish(job, DialFailed(dial=job.dial, reason=race.lost))

    def _finish(self, job: _Job, answer: Dialled | DialFailed, sock: socket.socket | None = None) -> None:
        self._forget(job)
        self._say(answer, sock)

    def _forget(self, job: _Job) -> None:
        del self._jobs[job.dial]
        if job.race is not None:
            for descriptor in job.race.descriptors():
                self._stop_polling(descriptor)
            job.race.close()

    def _stop_polling(self, descriptor: int) -> None:
        del self._racing[descriptor]
        self._poller.unregister(descriptor)

    # --- time and audit ------------------------------------------------------------------------------------------

    def _milliseconds(self) -> int:
        times = [self._next_tick, *(job.deadline for job in self._jobs.values())]
        times += [at for job in self._jobs.values() if job.race is not None and (at := job.race.next_at()) is not None]
        return max(1, int((min(times) - time.monotonic()) * 1000) + 1)

    def _tick(self, now: float) -> None:
        for job in tuple(self._jobs.values()):
            if now >= job.deadline:
                self._finish(job, DialFailed(dial=job.dial, reason="timeout"))
            elif job.race is not None and (at := job.race.next_at()) is not None and now >= at:
                self._advance(job, now)
        if now >= self._next_tick:
            self._next_tick = now + 1.0
            self._audit.poll(now)
            self._role.tick(now)
            second = int(time.time())
            events = [AddressDenied(address=address, count=count, reason=reason, second=second) for (address, reason), count in self._denied.items()]
            if events and self._offer(events):
                self._denied.clear()

    def _deny(self, resolved: Resolved) -> None:
        assert resolved.forbidden is not None
        key = (clip(resolved.forbidden.address), clip(f"{resolved.forbidden.reason}: {resolved.target.origin}"))
        if key in self._denied or len(self._denied) < MAX_DENIED_ADDRESSES:
            self._denied[key] += 1

    def _offer(self, events: Sequence[DialerEvent]) -> bool:
        return self._audit.offer(events)

    def _hear_auditor(self, now: float) -> None:
        self._audit.poll(now)
        if not self._audit.healthy(now):
            self._poller.unregister(self._audit.fileno())  # gone: until the supervisor brings the next one

    # --- supervisor ----------------------------------------------------------------------------------------------

    def _auditor_replaced(self) -> None:
        """The auditor was restarted: the channel to the new one is there."""
        self._poller.register(AUDIT_FD, select.POLLIN)
        self._audit.replaced()

    def check(self, settings: Settings) -> dict[str, Target]:
        """Return the table of origins."""
        return build_table(settings.providers)

    def adopt(self, checked: dict[str, Target]) -> None:
        """Use it from now on."""
        self._table = checked


def prepare(boot: Boot) -> Dialer:
    """Make the table and the wake-up pipe; import what resolving imports."""
    return Dialer(boot)


def body(boot: Boot, dialer: Dialer, control: Control) -> None:
    """Serve."""
    dialer.run(control)


if __name__ == "__main__":
    child.main(DIALER, prepare=prepare, body=body)
