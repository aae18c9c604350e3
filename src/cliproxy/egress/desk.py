"""Where calls are decided, started and settled, a loop turn at a time.

A turn: all calls that arrived together are authorised; their intents go to the auditor in one packet (more, if they don't fit); only then does
anything leave for a provider. A call whose intent the auditor does not take at once waits, in order and bounded, and is refused (503) when the
auditor's deadline has passed or the auditor has failed; it does not leave before. Outcomes are collected the same way and go out at the end of the
turn in which calls ended; those that the auditor does not take wait, bounded, and no new call is taken while they do.

An attempt that failed before its answer began gives its call back: the next attempt takes the same way, with an intent of its own, or the call rests
until a cooldown ends, or goes back to its worker to be written anew. Bodies are kept for that, within a bound, until answers begin.

Policy: what the vault says is in force here before it is passed on; a revoked key's calls are cancelled at once; the acknowledgement goes
back when every worker has acknowledged, or after a second with those that had, for each change with its own figures.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol, cast

from cliproxy.audit.client import AuditClient
from cliproxy.audit.events import ChannelViolation, ProviderOutcome, ProviderRequest, clip
from cliproxy.bounds import AUDIT_AGAIN_SECONDS, MAX_BYTES_AWAITING_AUDIT, MAX_OUTCOMES_WAITING, POLICY_ACK_SECONDS, TIMER_EARLY_SECONDS
from cliproxy.dialects import ENDPOINT_NAMES
from cliproxy.egress.acknowledgements import Acknowledgements
from cliproxy.egress.authorise import Authoriser, AuthorizedRequest, Order, Rest
from cliproxy.egress.between import HeldAnswers, KeptBodies, Rerouted
from cliproxy.egress.calls import Outcome, ProviderCall, Sending
from cliproxy.egress.cooldowns import Fault, fault_of
from cliproxy.egress.workers import WorkerChannel
from cliproxy.errors import ChannelError, CliproxyError, NotPermitted, ProviderRefusal, Unavailable, UpstreamError
from cliproxy.ipc.messages import PolicyAck, PolicyBegin, PolicyEnd, PolicyKeys
from cliproxy.ipc.mux import Call, Hello, Kind, Readiness, Reroute
from cliproxy.ipc.policy_feed import PolicyFeed, PolicyFrame

_NO_AUDIT = Unavailable("The gateway cannot record this call and so does not make it; try again in a moment.", code="audit_unavailable")
_INTENTS_TO_A_LOT = 256  # about one packet
_TURNED_AWAY = frozenset({501, 503, 529})  # of the 5xx: not implemented, overloaded
_FAILED = UpstreamError("The gateway failed to send this call.", status=500, code="internal_error")


class Senders(Protocol):
    """Who sends authorised calls to their providers."""

    def start(self, call: ProviderCall) -> Sending:
        """Begin; the call's `on_…` functions are called from later turns on, never from within. Raises when nothing can leave."""


class _Turn:
    """An authorised attempt that waits for the end of the turn; `since` then, on the monotonic clock."""

    __slots__ = ("request", "since", "stream", "worker")

    def __init__(self, worker: WorkerChannel, stream: int, request: AuthorizedRequest, since: float) -> None:
        self.worker = worker
        self.stream = stream
        self.request = request
        self.since = since


class _Resting:
    """A call between two rounds of attempts."""

    __slots__ = ("order", "stream", "timer", "worker")

    def __init__(self, worker: WorkerChannel, stream: int, order: Order) -> None:
        self.worker = worker
        self.stream = stream
        self.order = order
        self.timer: asyncio.TimerHandle | None = None


class Desk:
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
        self._audit = audit
        self._loop = asyncio.get_event_loop()
        self._workers: dict[int, WorkerChannel] = {}
        self._waiting: list[_Turn] = []
        self._resting: dict[tuple[int, int], _Resting] = {}  # by worker's slot and stream
        self._rerouted = Rerouted()
        self._kept = KeptBodies()
        self.held = HeldAnswers()
        self._outcomes: deque[ProviderOutcome] = deque()
        self._flush_due = False
        self._looks_again = False
        self._acknowledgements = Acknowledgements(acknowledge)

    # --- workers ---

    def worker(self, slot: int, *, max_body_bytes: int) -> WorkerChannel:
        """Return the channel for the worker in `slot`; one that was there before is closed."""
        old = self._workers.pop(slot, None)
        if old is not None:
            old.channel.close()
        fresh = self._workers[slot] = WorkerChannel(slot, self, build=self._build, max_body_bytes=max_body_bytes)
        return fresh

    def introduce(self, worker: WorkerChannel) -> None:
        worker.send(Kind.HELLO, Hello(build=self._build, generation=self._generation))
        if self._policy.number >= 0:
            for message in self._policy.snapshot():
                worker.policy(message)
        self._tell_readiness(worker, time.monotonic())

    def worker_lost(self, worker: WorkerChannel, error: ChannelError | None) -> None:
        if self._workers.get(worker.slot) is worker:
            del self._workers[worker.slot]
        self._waiting = [turn for turn in self._waiting if turn.worker is not worker or self._release(turn)]
        for resting in [resting for resting in self._resting.values() if resting.worker is worker]:
            self._wake(resting)
            self._over(resting.order)
        self._rerouted.forget(worker.slot)
        if error is not None:
            self.violation(f"worker slot {worker.slot}", error)
        self._acknowledge_if_complete()

    def violation(self, peer: str, error: ChannelError) -> None:
        """Record that a peer broke the protocol."""
        self._audit.offer([ChannelViolation(peer=peer, reason=clip(str(error)))])

    @property
    def calls_under_way(self) -> int:
        """Calls that are not settled."""
        return len(self._resting) + sum(len(worker.calls) for worker in self._workers.values())

    # --- calls ---

    def submit(self, worker: WorkerChannel, stream: int, call: Call, body: bytes) -> None:
        try:
            if self._outcomes and len(self._outcomes) >= MAX_OUTCOMES_WAITING:
                raise _NO_AUDIT
            now = time.monotonic()
            wall = time.time()
            order = self._authoriser.admit(call, body, now=now, wall=wall)
            if self._rerouted.orders:
                before = self._rerouted.take(worker.slot, order, now)
                if before is not None:
                    self._authoriser.count_once(order, before)
            self._attempt(worker, stream, order, now=now, wall=wall)
        except ChannelError:
            raise
        except CliproxyError as error:
            worker.refuse(stream, error)

    def withdraw(self, worker: WorkerChannel, stream: int) -> None:
        resting = self._resting.get((worker.slot, stream))
        if resting is not None:
            self._wake(resting)
            self._over(resting.order)
            return
        for turn in self._waiting:
            if turn.worker is worker and turn.stream == stream:
                self._release(turn)
                self._waiting.remove(turn)
                return

    def _attempt(self, worker: WorkerChannel, stream: int, order: Order, *, now: float, wall: float) -> None:
        """Take the next step of a call: an attempt at the end of the turn, a rest, or back to the worker. Raises what its client gets, and what `authorise`
        raises."""
        try:
            step = self._authoriser.authorise(order, now=now, wall=wall)
        except BaseException:
            self._over(order)
            raise
        if type(step) is AuthorizedRequest:
            self._waiting.append(_Turn(worker, stream, step, now))
            worker.waiting.add(stream)
            self._flush_soon()
        elif isinstance(step, Rest):
            self._rest(worker, stream, order, step.seconds)
        else:
            self._over(order)
            self._rerouted.remember(worker.slot, order, now)
            worker.reroute(stream, cast(Reroute, step))

    # --- attempts ---

    def answered(self, call: ProviderCall) -> None:
        self._kept.let_go(call.request.order)
        self._authoriser.answered(call.request)

    def settled(self, call: ProviderCall, outcome: Outcome, error: CliproxyError | None) -> bool:
        request = call.request
        order = request.order
        usage = outcome.usage
        worker = self._workers.get(call.slot)
        mine = worker is not None and worker.calls.get(call.stream) is call
        if mine and worker is not None:
            del worker.calls[call.stream]
        fault = None if error is None or call.ended_by_us else fault_of(error)
        now = time.monotonic() if error is not None or request.probe else 0.0
        self._authoriser.ended(request, fault, now=now)
        self._outcomes.append(
            ProviderOutcome(
                attempt=request.attempt,
                bytes=outcome.received,
                duration_ms=outcome.duration_ms,
                error=outcome.error,
                input_tokens=0 if usage is None else usage.prompt,
                output_tokens=0 if usage is None else usage.completion,
                request=order.request_id,
                status=outcome.status,
            )
        )
        self._flush_soon()
        used = None if usage is None else usage.total
        if usage is None:
            nothing = call.may_go_on and fault is not None and error is not None and _used_nothing(error, fault)
            used = 0 if nothing else None
            order.unknown = order.unknown or not nothing
        if mine and worker is not None and error is not None and fault is not None and fault.elsewhere and call.may_go_on and order.kept:
            request.reservation.leave(used)
            self._authoriser.tried(request, error, fault)
            return self._go_on(worker, call.stream, order, now)
        if usage is None:
            request.reservation.leave(used)
        self._over(order, used=None if usage is None else usage.total)
        return False

    def _go_on(self, worker: WorkerChannel, stream: int, order: Order, now: float) -> bool:
        """Return whether there is another step; else the error of the last attempt is the client's."""
        try:
            self._attempt(worker, stream, order, now=now, wall=time.time())
        except ChannelError as error:
            worker.channel.fail(error)
        except CliproxyError as error:
            worker.refuse(stream, error)
        except Exception:  # a bug: to the loop, which reports it; but the call gets its ending
            worker.refuse(stream, _FAILED)
            raise
        return True

    def _rest(self, worker: WorkerChannel, stream: int, order: Order, seconds: float) -> None:
        if not self._kept.keep(order):
            self._over(order)
            raise order.error or Unavailable("The gateway holds more calls than it can let wait.", code="overloaded", retry_after=seconds)
        resting = self._resting[worker.slot, stream] = _Resting(worker, stream, order)
        # Never before the time: the call would find what it waits for still cooling, and have used up its round.
        resting.timer = self._loop.call_later(seconds + TIMER_EARLY_SECONDS, self._rested, resting)
        worker.waiting.add(stream)

    def _rested(self, resting: _Resting) -> None:
        self._wake(resting)
        self._go_on(resting.worker, resting.stream, resting.order, time.monotonic())

    def _wake(self, resting: _Resting) -> None:
        del self._resting[resting.worker.slot, resting.stream]
        resting.worker.waiting.discard(resting.stream)
        if resting.timer is not None:
            resting.timer.cancel()

    def _over(self, order: Order, *, used: int | None = None) -> None:
        """The call is over, or begins anew: nothing of it is held any more. Where its use is not told, it is nothing, unless an attempt's is not known."""
        self._kept.let_go(order)
        if order.reservation is not None:
            order.reservation.settle(0 if used is None and not order.unknown else used)

    def _flush_soon(self) -> None:
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """The end of a turn: intents, then what they tell of; and the outcomes."""
        self._flush_due = False
        try:
            if self._waiting:
                self._send_waiting(time.monotonic())
        finally:
            if self._outcomes:
                self._offer_outcomes()

    def _send_waiting(self, now: float) -> None:
        waiting, self._waiting = self._waiting, []
        taken = 0
        refused = waiting
        try:
            if self._audit.healthy(now):
                taken = self._offer_intents(waiting)
                refused = self._keep_waiting(waiting[taken:], now)
        finally:  # whatever happens, each call gets its ending
            for turn in refused:
                self._release(turn)
                turn.worker.refuse(turn.stream, _NO_AUDIT)
        faults = [fault for turn in waiting[:taken] if (fault := self._start(turn)) is not None]
        if faults:
            raise faults[0]  # to the loop, which reports it

    def _offer_intents(self, waiting: list[_Turn]) -> int:
        """Return how many the auditor took, from the front. In lots, so that a full queue costs one lot's encoding and not all of them."""
        taken = 0
        for start in range(0, len(waiting), _INTENTS_TO_A_LOT):
            lot = waiting[start : start + _INTENTS_TO_A_LOT]
            count = self._audit.offer_part([_intent(turn.request) for turn in lot])
            taken += count
            if count < len(lot):
                break
        return taken

    def _keep_waiting(self, left: list[_Turn], now: float) -> list[_Turn]:
        """The auditor's queue is full: let what is within its deadline, and within our bound, wait for the next look; return the others."""
        if not self._audit.healthy(now):
            return left  # it failed just now: nothing to wait for
        room = MAX_BYTES_AWAITING_AUDIT
        refused = []
        for turn in left:
            room -= turn.request.size
            if room < 0 or now - turn.since >= self._audit.deadline_seconds:
                refused.append(turn)
            else:
                self._waiting.append(turn)
        if self._waiting and not self._looks_again:
            self._looks_again = True
            self._loop.call_later(AUDIT_AGAIN_SECONDS, self._look_again)
        return refused

    def _look_again(self) -> None:
        self._looks_again = False
        self.flush()

    def _start(self, turn: _Turn) -> Exception | None:
        """Send the call; what a bug raised ends this call, and is returned so that the others of the turn are not left without an ending."""
        turn.worker.waiting.discard(turn.stream)
        self._kept.keep(turn.request.order)
        call = ProviderCall(turn.request, channel=turn.worker.channel, slot=turn.worker.slot, stream=turn.stream, ledger=self)
        turn.worker.calls[turn.stream] = call
        try:
            call.sent(self._senders.start(call))
        except CliproxyError as error:
            call.on_failure(error)
        except Exception as error:  # noqa: BLE001 - as the docstring says
            call.abort(_FAILED)
            return error
        return None

    def _release(self, turn: _Turn) -> bool:
        turn.worker.waiting.discard(turn.stream)
        self._authoriser.ended(turn.request, None, now=0.0)
        self._over(turn.request.order)
        return False

    def _offer_outcomes(self) -> None:
        for _ in range(self._audit.offer_part(list(self._outcomes))):
            self._outcomes.popleft()

    # --- policy ---

    def policy(self, message: PolicyFrame) -> None:
        """Put a message of the vault's feed in force and pass it on. Raises `ChannelError` when it does not follow."""
        ended = self._policy.apply(message)
        for worker in self._workers.values():
            if worker.introduced and not isinstance(message, PolicyBegin | PolicyKeys | PolicyEnd):
                worker.policy(message)
        if ended is None:
            return
        if isinstance(message, PolicyEnd):
            now = time.monotonic()
            for worker in self._workers.values():
                if worker.introduced:
                    for part in self._policy.snapshot():
                        worker.policy(part)
                    self._tell_readiness(worker, now)
        streams = self._end_calls(frozenset(ended))
        self._acknowledgements.expect(self._policy.number, streams_ended=streams, now=self._loop.time())
        self._acknowledge_if_complete()
        if self._acknowledgements:
            self._loop.call_later(POLICY_ACK_SECONDS + TIMER_EARLY_SECONDS, self._acknowledge_if_complete)

    def acknowledged(self, worker: WorkerChannel, number: int) -> None:
        if number > self._policy.number:
            raise ChannelError(f"worker slot {worker.slot} acknowledged a policy that there is not")
        worker.policy_number = number
        self._acknowledge_if_complete()

    def _end_calls(self, revoked: frozenset[str]) -> int:
        """Cancel the calls that the policy no longer allows; return how many there were. Those of this turn have not left yet: they never will."""
        rules = self._policy.rules

        def is_over(order: Order, provider: str = "") -> bool:
            return rules.lockdown or order.principal.id in revoked or provider in rules.disabled_providers

        over = NotPermitted("This call was ended by the gateway's operator: its key was revoked, or calls were stopped.", code="revoked")
        streams = 0
        for call in self._calls():
            if is_over(call.request.order, call.request.target.provider):
                call.abort(over)
                streams += 1
        waiting, self._waiting = self._waiting, []
        for turn in waiting:
            if is_over(turn.request.order, turn.request.target.provider):
                self._release(turn)
                turn.worker.refuse(turn.stream, over)
            else:
                self._waiting.append(turn)
        for resting in [resting for resting in self._resting.values() if is_over(resting.order)]:
            self._wake(resting)
            self._over(resting.order)
            resting.worker.refuse(resting.stream, over)
        return streams

    def _calls(self) -> Iterator[ProviderCall]:
        for worker in list(self._workers.values()):
            yield from list(worker.calls.values())

    def _acknowledge_if_complete(self) -> None:
        self._acknowledgements.tell_complete(self._workers.values(), now=self._loop.time())

    # --- once a second ---

    def sweep(self, now: float) -> None:
        """Tell the workers how things stand, and do what waited for the auditor."""
        for worker in self._workers.values():
            if worker.introduced:
                self._tell_readiness(worker, now)
        if self._outcomes:
            self._offer_outcomes()
        self._acknowledge_if_complete()

    def _tell_readiness(self, worker: WorkerChannel, now: float) -> None:
        age = self._policy.age(now)
        worker.send(Kind.READINESS, Readiness(policy_number=self._policy.number, vault_age=age, auditor=self._audit.healthy(now)))


def _used_nothing(error: CliproxyError, fault: Fault) -> bool:
    """Whether an attempt that failed with `error` cost nothing: the provider was not reached, or turned the request away. What became of one that it broke down
    on (500, 502, 504, 408) or never answered nobody knows: it counts as reserved, or calls that make a provider fail would be free."""
    if isinstance(error, ProviderRefusal):
        status = error.provider_status
        return (status < 500 and status != 408) or status in _TURNED_AWAY
    return fault.everywhere or isinstance(error, Unavailable)


def _intent(request: AuthorizedRequest) -> ProviderRequest:
    order = request.order
    return ProviderRequest(
        address=order.address,
        attempt=request.attempt,
        credential="" if request.credential is None else request.credential.id,
        endpoint=ENDPOINT_NAMES[order.endpoint],
        model=request.target.model,
        principal=order.principal.id,
        provider=request.target.provider,
        request=order.request_id,
        reserved_tokens=request.reservation.tokens,
        stream=request.stream,
    )
