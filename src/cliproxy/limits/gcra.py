"""The generic cell rate algorithm: a token bucket in one number, the theoretical arrival time (TAT).

What always holds: in any span of T seconds no more than `burst + T / interval` are admitted. Pure: the caller passes the time (of a clock that
never goes back) and keeps the TAT; floats in seconds or integers in nanoseconds, as `interval` is.
"""

from __future__ import annotations

import msgspec


class Gcra(msgspec.Struct, frozen=True, gc=False):
    """One request every `interval`, and `tolerance` = (burst - 1) intervals early at most. Make it with `per_second`, `per_minute` or `in_nanoseconds`."""

    interval: float
    tolerance: float

    def judge(self, tat: float, now: float) -> tuple[float, float]:
        """Return `(TAT to keep, 0)` when admitted, else `(TAT to keep, wait)` with the time until it would be. A TAT of 0 is a full bucket.

        A TAT later than this bucket can produce (another process wrote nonsense, the limit was raised) becomes the latest one that it can: nobody
        is locked out for ever.
        """
        wait = tat - self.tolerance - now
        if wait <= 0:
            return (tat if tat > now else now) + self.interval, 0
        if wait > self.interval:
            return now + self.tolerance + self.interval, self.interval
        return tat, wait


def per_second(rate: float, *, burst: int) -> Gcra:
    """Return the bucket of `burst` that refills `rate` a second, in float seconds. Both must be positive."""
    if rate <= 0 or burst < 1:
        raise ValueError("a rate is positive and a burst at least 1")
    return Gcra(1.0 / rate, (burst - 1) / rate)


def per_minute(limit: int) -> Gcra:
    """Return the bucket for `limit` requests a minute: all of them at once, or evenly; never more than twice the limit in any minute."""
    return per_second(limit / 60.0, burst=limit)


def in_nanoseconds(rate: float, *, burst: int) -> Gcra:
    """As `per_second`, in integer nanoseconds: nothing is lost to rounding, and the TAT fits 64 bits."""
    if rate <= 0 or burst < 1:
        raise ValueError("a rate is positive and a burst at least 1")
    interval = max(1, round(1e9 / rate))
    return Gcra(interval, interval * (burst - 1))
