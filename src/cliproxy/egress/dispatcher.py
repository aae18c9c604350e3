"""Where calls are decided, started and settled.

An attempt that failed before its answer began gives its call back: the next attempt takes the same way, with an intent of its own, or the call waits until a
cooldown ends, or goes back to its worker to be written anew. Bodies are kept for that, within a bound, until answers begin.

What waits for the auditor is `audit_gate.py`'s business, what the vault says `policy_relay.py`'s, who may call whom `authorise.py`'s; the states of a call and
how they follow each other are `call.py`'s.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol, cast

from cliproxy.audit.client import AuditClient
from cliproxy.bounds import MIB, STREAM_WINDOW_BYTES, TIMER_EARLY_SECONDS
from cliproxy.egress.attempt import Attempt, Outcome, Sending
from cliproxy.egress.audit_gate import NO_AUDIT, AuditGate
from cliproxy.egress.authorise import Authoriser, Wait
from cliproxy.egress.call import TRANSITIONS, AuthorizedRequest, Call, Event, Progress, State
from cliproxy.egress.cooldowns import Fault, fault_of
from cliproxy.egress.policy_relay import PolicyRelay
from cliproxy.egress.rerouted_calls import ReroutedCalls
from cliproxy.egress.rooms import Room
from cliproxy.egress.worker_channel import WorkerChannel
from cliproxy.errors import ChannelError, CliproxyError, NotPermitted, ProviderRefusal, Unavailable, UpstreamError
from cliproxy.ipc.messages import PolicyAck
from cliproxy.ipc.mux import CallHead, Reroute
from cliproxy.ipc.policy_feed import PolicyFeed, PolicyFrame
from cliproxy.memory import Ebb, give_back

MAX_HELD_ANSWER_BYTES = 256 * MIB  # whole answers that egress holds, of all calls together; 503 above. 60 of the largest took it to 1.9 GB
MAX_KEPT_BODY_BYTES = 128 * MIB  # of bodies kept until their answers begin, so that they can be sent elsewhere; what has no room is sent once
MAX_OUTCOMES_WAITING = 16384  # outcomes that the auditor has not taken; more, and no new call is

MAX_UNFINISHED_EVENT_BYTES = 256 * MIB  # of all calls together; one event of Responses may have 8 MiB, and 2,048 connections could each hold one back
_TURNED_AWAY = frozenset({501, 503, 529})  # of the 5xx: not implemented, overloaded
_FAILED = UpstreamError("The gateway failed to send this call.", status=500, code="internal_error")
_REVOKED = NotPermitted("This call was ended by the gateway's operator: its key was revoked, or calls were stopped.", code="revoked")


class Senders(Protocol):
    """Who sends authorised calls to their providers."""

    def start(self, attempt: Attempt) -> Sending:
        """Begin; the attempt's `on_…` functions are called from later turns on, never from within. Raises when nothing can leave."""


class Dispatcher:
    """All calls of one egress process."""

    def __init__(
        self,
        *,
        build: str,
        generation: int,
        policy: PolicyFeed,
        authoriser: Authoriser,
        senders: Senders,
        audit: AuditClient,
        acknowledge: Callable[[PolicyAck], None],
    ) -> None:
        self._build = build
        self._generation = generation
        self._policy = policy
        self._authoriser = authoriser
        self._senders = senders
        self._loop = asyncio.get_event_loop()
        self._workers: dict[int, WorkerChannel] = {}
        self._rerouted = ReroutedCalls()
        self.kept: Room[str] = Room(MAX_KEPT_BODY_BYTES)
        self.held: Room[str] = Room(MAX_HELD_ANSWER_BYTES)
        self.unfinished: Room[str] = Room(MAX_UNFINISHED_EVENT_BYTES)
        self.gate = AuditGate(audit, self, loop=self._loop)
        self.flush = self.gate.flush
        self._ebb = Ebb(give_back)
        self._relay = PolicyRelay(
            policy,
            self._workers.values(),
            loop=self._loop,
            acknowledge=acknowledge,
            end_calls=self._end_calls,
            auditor_healthy=self.gate.healthy,
        )
        self.policy: Callable[[PolicyFrame], None] = self._relay.take
        self.acknowledged = self._relay.acknowledged

    # --- workers ---

    def worker(self, index: int, *, max_body_bytes: int) -> WorkerChannel:
        """Return the channel for the worker of that index; one that was there before is closed."""
        old = self._workers.pop(index, None)
        if old is not None:
            old.withdraw_all()
            old.channel.close()
            self._rerouted.forget(index)
        fresh = self._workers[index] = WorkerChannel(index, self, build=self._build, max_body_bytes=max_body_bytes)
        return fresh

    def introduce(self, worker: WorkerChannel) -> None:
        self._relay.introduce(worker, build=self._build, generation=self._generation)

    def worker_lost(self, worker: WorkerChannel, error: ChannelError | None) -> None:
        if self._workers.get(worker.index) is worker:
            del self._workers[worker.index]
            self._rerouted.forget(worker.index)  # a late end of a channel that was replaced is not the successor's
        if error is not None:
            self.violation(f"worker {worker.index}", error)
        self._relay.acknowledge_if_complete()

    def violation(self, peer: str, error: ChannelError) -> None:
        """Record that a peer broke the protocol."""
        self.gate.violation(peer, error)

    @property
    def calls_under_way(self) -> int:
        """Calls that are whole and not over."""
        return sum(call.state is not State.ARRIVING for worker in self._workers.values() for call in worker.calls.values())

    def sweep(self, now: float) -> None:
        """Once a second: tell the workers how things stand, the auditor what it had no room for, and give memory back after a crowd."""
        self._relay.sweep(now)
        self.gate.offer_outcomes()
        self._ebb.look(self.kept.used + self.held.used + self.calls_under_way * STREAM_WINDOW_BYTES)

    # --- from state to state ---

    def submit(self, call: Call, head: CallHead, body: bytes) -> None:
        """A call is whole: authorise it and, at the end of the turn, send it. Raises `ChannelError` when the worker says what an honest one cannot."""
        try:
            if len(self.gate.outcomes) >= MAX_OUTCOMES_WAITING:
                raise NO_AUDIT
            now = time.monotonic()
            wall = time.time()
            call.asked = asked = self._authoriser.admit(head, now=now, wall=wall)
        except CliproxyError as error:
            self._free(call)
            if isinstance(error, ChannelError):
                raise
            call.worker.refuse(call, error)
            return
        before = self._rerouted.take(call.worker.index, asked, now) if self._rerouted.calls else None
        call.progress = Progress() if before is None and not head.tried else self._authoriser.resume(asked, head.tried, before)
        call.body = body
        try:
            self._attempt(call, now=now, wall=wall)
        except ChannelError:
            raise
        except CliproxyError as error:
            call.worker.refuse(call, error)

    def _attempt(self, call: Call, *, now: float, wall: float) -> None:
        """Take the next step of a call that is DECIDING: an attempt at the end of the turn, a wait, or back to the worker. Raises what its client gets, and
        what `authorise` raises; the call is over then."""
        try:
            step = self._authoriser.authorise(call, now=now, wall=wall)
        except BaseException:
            self._close(call)
            raise
        if type(step) is AuthorizedRequest:
            call.state = TRANSITIONS[Event.AUTHORISED][call.state]
            call.request = step
            self.gate.enter(step)
        elif type(step) is Wait:
            self._wait(call, step.seconds)
        else:
            self._close(call, Event.SENT_BACK)
            self._rerouted.remember(call, now)
            call.worker.reroute(call, cast(Reroute, step))

    def _wait(self, call: Call, seconds: float) -> None:
        size = len(call.body) or 1
        if not call.kept and not self.kept.take(call.asked.principal.id, size):
            error = call.progress.error or Unavailable("The gateway holds more calls than it can let wait.", code="overloaded", retry_after=seconds)
            self._close(call)
            raise error
        call.kept = size
        call.state = TRANSITIONS[Event.MUST_COOL][call.state]
        # Never before the time: the call would find what it waits for still cooling, and have used up its round.
        call.timer = self._loop.call_later(seconds + TIMER_EARLY_SECONDS, self._cooled, call)

    def _cooled(self, call: Call) -> None:
        call.timer = None
        call.state = TRANSITIONS[Event.COOLED][call.state]
        self._go_on(call, time.monotonic())

    def _go_on(self, call: Call, now: float) -> None:
        """Take the next step, outside of any frame of the worker: what goes wrong is told here."""
        try:
            self._attempt(call, now=now, wall=time.time())
        except ChannelError as error:
            call.worker.channel.fail(error)
        except CliproxyError as error:
            call.worker.refuse(call, error)
        except Exception:  # a bug: to the loop, which reports it; but the call gets its ending
            call.worker.refuse(call, _FAILED)
            raise

    def depart(self, request: AuthorizedRequest) -> Exception | None:
        """The auditor has the intent: send the attempt. What a bug raised ends this call, and is returned so that the others of the turn get their ending."""
        call = request.call
        call.state = TRANSITIONS[Event.SENT][call.state]
        call.request = None
        size = len(call.body) or 1
        if not call.kept and self.kept.take(call.asked.principal.id, size):
            call.kept = size
        elif not call.kept:
            call.body = b""  # no room: it is sent once
        call.attempt = attempt = Attempt(request, channel=call.worker.channel, ledger=self)
        try:
            attempt.sent(self._senders.start(attempt))
        except CliproxyError as error:
            attempt.on_failure(error)
        except Exception as error:  # noqa: BLE001 - as the docstring says
            attempt.abort(_FAILED)
            return error
        return None

    def turn_away(self, request: AuthorizedRequest) -> None:
        """The auditor did not take the intent in time."""
        self._end(request.call, "", NO_AUDIT)

    def answered(self, attempt: Attempt) -> None:
        """The worker has the first of the answer: from now on nothing is tried again."""
        call = attempt.request.call
        call.state = TRANSITIONS[Event.ANSWERED][call.state]
        if call.kept:
            self.kept.give_back(call.asked.principal.id, call.kept)
            call.kept = 0
        call.body = b""
        self._authoriser.answered(attempt.request)

    def settled(self, attempt: Attempt, outcome: Outcome, error: CliproxyError | None) -> bool:
        """An attempt is over. Return whether its call goes on without it."""
        request = attempt.request
        call = request.call
        progress = call.progress
        call.attempt = None
        fault = None if error is None or attempt.ended_by_us else fault_of(error)
        now = time.monotonic() if error is not None or request.probe else 0.0
        self._authoriser.ended(request, fault, now=now)
        usage = outcome.usage
        self.gate.tell(request, outcome)
        if usage is not None:
            used: int | None = usage.total
        else:
            nothing = fault is not None and error is not None and attempt.may_go_on and _used_nothing(error, fault)
            used = 0 if nothing else None
            progress.is_unknown = progress.is_unknown or not nothing
        if fault is not None and error is not None and fault.elsewhere and attempt.may_go_on and call.kept:
            request.reservation.leave(used)
            self._authoriser.tried(request, error, fault)
            call.state = TRANSITIONS[Event.FAILED][call.state]
            self._go_on(call, now)
            return True
        if usage is None:
            request.reservation.leave(used)
            self._close(call)
        else:
            self._close(call, used=used)
        return False

    # --- the end of a call ---

    def withdraw(self, call: Call, code: str) -> None:
        """Nobody waits for the call any more; `code` says why."""
        self._end(call, code, None)

    def _end(self, call: Call, code: str, error: CliproxyError | None) -> None:
        """End a call in whatever state. `error`: what the worker is told; None: nobody is there to hear it, `code` is for the log."""
        attempt = call.attempt
        if attempt is not None:
            if error is None:
                attempt.cancel(code)
            else:
                attempt.abort(error)
            return
        request, call.request = call.request, None
        if request is not None:
            self._authoriser.ended(request, None, now=0.0)
        timer, call.timer = call.timer, None
        if timer is not None:
            timer.cancel()
        if call.state is State.ARRIVING:
            self._free(call)
        else:
            self._close(call)
        if error is not None:
            call.worker.refuse(call, error)

    def _close(self, call: Call, event: Event = Event.ENDED, *, used: int | None = None) -> None:
        """The call is over, or sent back: its stream is free and nothing of it is held any more. Where its use is not told, it is nothing, unless an attempt's
        is not known."""
        call.state = TRANSITIONS[event][call.state]
        worker = call.worker
        del worker.calls[call.stream]
        worker.places.give_back(call.owner, 1)
        if call.kept:
            self.kept.give_back(call.asked.principal.id, call.kept)
            call.kept = 0
        call.body = b""
        progress = call.progress
        if progress.reservation is not None:
            progress.reservation.settle(0 if used is None and not progress.is_unknown else used)

    def _free(self, call: Call) -> None:
        """A call that was not admitted is over."""
        call.state = TRANSITIONS[Event.ENDED][call.state]
        del call.worker.calls[call.stream]
        call.worker.places.give_back(call.owner, 1)

    def _end_calls(self, revoked: frozenset[str]) -> int:
        """End the calls that the policy no longer allows; return how many had left. Those of this turn have not, and never will."""
        rules = self._policy.rules
        streams = 0
        for worker in list(self._workers.values()):
            for call in list(worker.calls.values()):
                if call.state is State.ARRIVING:
                    continue  # nobody has looked at its key yet; `admit` will
                request = call.request if call.attempt is None else call.attempt.request
                provider = "" if request is None else request.target.provider
                if rules.lockdown or call.asked.principal.id in revoked or provider in rules.disabled_providers:
                    streams += call.attempt is not None
                    self._end(call, "", _REVOKED)
        return streams


def _used_nothing(error: CliproxyError, fault: Fault) -> bool:
    """Whether an attempt that failed with `error` cost nothing: the provider was not reached, or turned the request away. What became of one that it broke down
    on (500, 502, 504, 408) or never answered nobody knows: it counts as reserved, or calls that make a provider fail would be free."""
    if isinstance(error, ProviderRefusal):
        status = error.provider_status
        return (status < 500 and status != 408) or status in _TURNED_AWAY
    return fault.everywhere or isinstance(error, Unavailable)
