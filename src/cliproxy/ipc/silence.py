"""How long something has been missing, in time that this process was there to see.

A process that was stopped or starved, or whose machine was suspended, finds at its next look that much time has passed, in which what it waits for may have
been as unable to come as it was to look. So of the time between two looks at most `MAX_COUNTED_SECONDS` count.
"""

from __future__ import annotations

from typing import Final

MAX_COUNTED_SECONDS: Final = 2.0  # between two looks; twice what lies between the ticks of our processes


class Silence:
    """One wait. Times are monotonic seconds, passed in."""

    __slots__ = ("_looked_at", "seconds")

    def __init__(self) -> None:
        self.seconds = 0.0
        self._looked_at: float | None = None

    def look(self, now: float) -> float:
        """Return the seconds that count so far. The first look begins the wait."""
        if self._looked_at is not None:
            self.seconds += min(max(0.0, now - self._looked_at), MAX_COUNTED_SECONDS)
        self._looked_at = now
        return self.seconds

    def end(self) -> None:
        """It came: the next look begins a new wait."""
        self.seconds = 0.0
        self._looked_at = None
