"""Calls that were sent back to their workers, until they come again.

What always holds: a call that comes again after a REROUTE is known again once, within `REROUTE_SECONDS`, and only as the same key's call for the same name
over the same worker.
"""

from __future__ import annotations

from cliproxy.egress.call import Asked, Call, Progress

MAX_REROUTED_CALLS = 4096  # calls that a worker was asked to write anew and has not sent again
REROUTE_SECONDS = 10.0  # for it to do so and still count as the same call; writing one anew takes milliseconds


class ReroutedCalls:
    """Calls that a worker was asked to write anew, by the worker's index and the request id."""

    def __init__(self) -> None:
        self.calls: dict[tuple[int, str], tuple[Call, float]] = {}

    def remember(self, call: Call, now: float) -> None:
        """`call` went back to its worker. Where there is no room, it is a call like another when it comes again."""
        if len(self.calls) >= MAX_REROUTED_CALLS:
            for key in [key for key, (_, until) in self.calls.items() if until < now]:
                del self.calls[key]
        if len(self.calls) < MAX_REROUTED_CALLS:
            self.calls[call.worker.index, call.asked.request_id] = (call, now + REROUTE_SECONDS)

    def take(self, worker: int, asked: Asked, now: float) -> Progress | None:
        """Return how far the call that comes again with `asked` had come, once; `None`: it is a new one."""
        before, until = self.calls.pop((worker, asked.request_id), (None, 0.0))
        if before is None or until < now or before.asked.principal.id != asked.principal.id or before.asked.route.name != asked.route.name:
            return None
        return before.progress

    def forget(self, worker: int) -> None:
        """The worker of that index is gone."""
        for key in [key for key in self.calls if key[0] == worker]:
            del self.calls[key]
