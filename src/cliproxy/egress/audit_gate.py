"""The gate before providers: nothing leaves before the auditor has taken its intent, and every outcome is told.

A turn: the intents of all calls that were authorised in it go to the auditor in one packet (more, if they don't fit); only then does anything leave. A call
whose intent is not taken at once waits, in order and bounded, and is refused (503) when the auditor's deadline has passed or the auditor has failed; it does
not leave before. Outcomes are collected the same way and go out at the end of the turn in which attempts ended; those that the auditor does not take wait,
bounded, and no new call is taken while they do.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Protocol

from cliproxy.audit.client import AuditClient
from cliproxy.audit.events import ChannelViolation, ProviderOutcome, ProviderRequest, clip
from cliproxy.bounds import MIB
from cliproxy.dialects import ENDPOINT_NAMES
from cliproxy.egress.attempt import Outcome
from cliproxy.egress.call import AuthorizedRequest, State
from cliproxy.egress.rooms import Room
from cliproxy.errors import ChannelError, Unavailable

AUDIT_AGAIN_SECONDS = 0.005  # until intents that the auditor's full queue did not take are offered again
MAX_BYTES_AWAITING_AUDIT = 64 * MIB  # of request bodies whose intents the auditor has not taken; more, and they are refused at once

NO_AUDIT = Unavailable("The gateway cannot record this call and so does not make it; try again in a moment.", code="audit_unavailable")
_INTENTS_TO_A_BATCH = 256  # about one packet


class Departures(Protocol):
    """Who is told what became of an intent."""

    def depart(self, request: AuthorizedRequest) -> Exception | None:
        """Its intent is with the auditor: send it. Returns what a bug raised, so that the others of the turn are not left without an ending."""

    def turn_away(self, request: AuthorizedRequest) -> None:
        """The auditor did not take its intent in time: the attempt does not leave."""


class AuditGate:
    """Intents and outcomes of one egress process, by the turn. `outcomes` are those that the auditor has not taken."""

    __slots__ = ("_audit", "_departures", "_flush_due", "_intents", "_looks_again", "_loop", "outcomes")

    def __init__(self, audit: AuditClient, departures: Departures, *, loop: asyncio.AbstractEventLoop) -> None:
        self._audit = audit
        self._departures = departures
        self._loop = loop
        self._intents: list[AuthorizedRequest] = []
        self.outcomes: deque[ProviderOutcome] = deque()
        self._flush_due = False
        self._looks_again = False

    def healthy(self, now: float) -> bool:
        """Whether the auditor can be relied on."""
        return self._audit.healthy(now)

    def enter(self, request: AuthorizedRequest) -> None:
        """Record and send `request` at the end of this turn, if its call is RECORDING then."""
        self._intents.append(request)
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self.flush)

    def tell(self, request: AuthorizedRequest, outcome: Outcome) -> None:
        """Tell the auditor at the end of this turn how an attempt ended."""
        usage = outcome.usage
        self.outcomes.append(
            ProviderOutcome(
                attempt=request.attempt,
                bytes=outcome.received,
                duration_ms=outcome.duration_ms,
                error=outcome.error,
                input_tokens=0 if usage is None else usage.prompt,
                output_tokens=0 if usage is None else usage.completion,
                request=request.call.asked.request_id,
                status=outcome.status,
            )
        )
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self.flush)

    def violation(self, peer: str, error: ChannelError) -> None:
        """Record that a peer broke the protocol."""
        self._audit.offer([ChannelViolation(peer=peer, reason=clip(str(error)))])

    def flush(self) -> None:
        """The end of a turn: intents, then what they tell of; and the outcomes."""
        self._flush_due = False
        try:
            if self._intents:
                self._let_through(time.monotonic())
        finally:
            if self.outcomes:
                self.offer_outcomes()

    def offer_outcomes(self) -> None:
        """Offer what is known of attempts that ended; what is not taken waits."""
        for _ in range(self._audit.offer_part(list(self.outcomes))):
            self.outcomes.popleft()

    def _let_through(self, now: float) -> None:
        intents, self._intents = self._intents, []
        waiting = [request for request in intents if request.call.state is State.RECORDING]  # the others ended while they waited
        taken = 0
        refused = waiting
        try:
            if self._audit.healthy(now):
                taken = self._offer_intents(waiting)
                refused = [] if taken == len(waiting) else self._keep(waiting[taken:], now)
        finally:  # whatever happens, each call gets its ending
            for request in refused:
                self._departures.turn_away(request)
        fault: Exception | None = None
        for request in waiting[:taken]:
            fault = self._departures.depart(request) or fault
        if fault is not None:
            raise fault  # to the loop, which reports it

    def _offer_intents(self, waiting: list[AuthorizedRequest]) -> int:
        """Return how many the auditor took, from the front. In batches, so that a full queue costs one batch's encoding and not all of them."""
        taken = 0
        for start in range(0, len(waiting), _INTENTS_TO_A_BATCH):
            batch = waiting[start : start + _INTENTS_TO_A_BATCH]
            count = self._audit.offer_part([_intent(request) for request in batch])
            taken += count
            if count < len(batch):
                break
        return taken

    def _keep(self, left: list[AuthorizedRequest], now: float) -> list[AuthorizedRequest]:
        """The auditor's queue is full: let what is within its deadline, and within its key's share of the room, wait for the next look; return the others."""
        if not self._audit.healthy(now):
            return left  # it failed just now: nothing to wait for
        room: Room[str] = Room(MAX_BYTES_AWAITING_AUDIT)
        refused = []
        for request in left:
            if now - request.started < self._audit.deadline_seconds and room.take(request.call.asked.principal.id, request.size):
                self._intents.append(request)
            else:
                refused.append(request)
        if self._intents and not self._looks_again:
            self._looks_again = True
            self._loop.call_later(AUDIT_AGAIN_SECONDS, self._look_again)
        return refused

    def _look_again(self) -> None:
        self._looks_again = False
        self.flush()


def _intent(request: AuthorizedRequest) -> ProviderRequest:
    asked = request.call.asked
    return ProviderRequest(
        address=asked.address,
        attempt=request.attempt,
        credential="" if request.credential is None else request.credential.id,
        endpoint=ENDPOINT_NAMES[asked.endpoint],
        model=request.target.model,
        principal=asked.principal.id,
        provider=request.target.provider,
        request=asked.request_id,
        reserved_tokens=request.reservation.tokens,
        stream=request.stream,
    )
