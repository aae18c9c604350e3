"""How much of the log strangers may fill: what does not fit is counted, and one line a minute tells of it.

In any hour no more than the quota is let through. The caller passes the time, in seconds of any steady clock.
"""

from __future__ import annotations

from cliproxy.audit.events import EventsSuppressed

_HOUR = 3600.0


class HourlyQuota:
    """Lets through at most `bytes_per_hour` in any hour: half at once, and half an hour's worth as time goes by."""

    def __init__(self, bytes_per_hour: int, *, now: float) -> None:
        self._half = bytes_per_hour / 2
        self._left = self._half
        self._at = now

    def resize(self, bytes_per_hour: int) -> None:
        """Take a new quota; what is left stays, cut to the new one."""
        self._half = bytes_per_hour / 2
        self._left = min(self._left, self._half)

    def take(self, size: int, *, now: float) -> bool:
        """Whether `size` bytes fit now; then they are taken."""
        self._left = min(self._half, self._left + max(0.0, now - self._at) * self._half / _HOUR)
        self._at = max(self._at, now)
        if size > self._left:
            return False
        self._left -= size
        return True


class Suppressed:
    """Counts what had no room, by kind; kinds are a fixed few."""

    def __init__(self) -> None:
        self._counts: dict[str, tuple[int, int]] = {}

    def add(self, kind: str, count: int) -> None:
        """One event that tells of `count` things was left out."""
        things, events = self._counts.get(kind, (0, 0))
        self._counts[kind] = (things + count, events + 1)

    def summary(self) -> list[EventsSuppressed]:
        """Return what to write about it, and begin again."""
        summary = [EventsSuppressed(count=min(things, 2**63 - 1), events=events, kind=kind) for kind, (things, events) in sorted(self._counts.items())]
        self._counts.clear()
        return summary
