"""What egress holds of calls: their bodies between two attempts, within a bound, who was asked to write a call anew, and how much of answers.

What always holds: the bytes that are counted are those of bodies that are kept; a call that comes again after a REROUTE is known again once, within
`REROUTE_SECONDS`, and only as the same key's call for the same name over the same worker.
"""

from __future__ import annotations

from cliproxy.bounds import MAX_KEPT_BODY_BYTES, MAX_REROUTED_CALLS, REROUTE_SECONDS
from cliproxy.egress.authorise import Order


class KeptBodies:
    """Bodies that may be sent again, until their answers begin."""

    def __init__(self) -> None:
        self.bytes = 0

    def keep(self, order: Order) -> bool:
        """Keep the call's body, if there is room; without it the call is not tried again."""
        if not order.kept:
            size = len(order.body) or 1
            if self.bytes + size > MAX_KEPT_BODY_BYTES:
                order.body = b""
                return False
            order.kept = size
            self.bytes += size
        return True

    def let_go(self, order: Order) -> None:
        """The body is not needed any more."""
        self.bytes -= order.kept
        order.kept = 0
        order.body = b""


class HeldAnswers:
    """Whole answers that wait for their end, or for a slow client: how many `bytes`, of all calls."""

    __slots__ = ("bytes",)

    def __init__(self) -> None:
        self.bytes = 0


class Rerouted:
    """Calls that a worker was asked to write anew, by its slot and the request id."""

    def __init__(self) -> None:
        self.orders: dict[tuple[int, str], tuple[Order, float]] = {}

    def remember(self, slot: int, order: Order, now: float) -> None:
        """`order` went back to the worker in `slot`. Where there is no room, it is a call like another when it comes again."""
        if len(self.orders) >= MAX_REROUTED_CALLS:
            for key in [key for key, (_, until) in self.orders.items() if until < now]:
                del self.orders[key]
        if len(self.orders) < MAX_REROUTED_CALLS:
            self.orders[slot, order.request_id] = (order, now + REROUTE_SECONDS)

    def take(self, slot: int, order: Order, now: float) -> Order | None:
        """Return what `order` was before its REROUTE, once; `None`: it was nothing."""
        before, until = self.orders.pop((slot, order.request_id), (None, 0.0))
        if before is None or until < now or before.principal.id != order.principal.id or before.route.name != order.route.name:
            return None
        return before

    def forget(self, slot: int) -> None:
        """The worker in `slot` is gone."""
        for key in [key for key in self.orders if key[0] == slot]:
            del self.orders[key]
