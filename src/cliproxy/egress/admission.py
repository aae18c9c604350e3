"""The limits of a call, taken before it leaves and settled after it ended: requests and tokens a minute and calls at once, of the key and of
the provider.

A call that is tried at several providers counts once for its key, and at each provider that it is sent to.

What always holds: never more than a limit plus what is in flight; a refusal takes nothing; a reservation is settled once, with the real
usage or, if the provider told none, as reserved; a provider's word keeps a key waiting for `MAX_DEBT_MINUTES` at most. State is bounded: an
entry is dropped when nothing is under way and its minute is over.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from cliproxy.auth.principals import Principal
from cliproxy.bounds import MAX_ADMISSION_ENTRIES
from cliproxy.config.schema import Settings
from cliproxy.errors import ProviderLimited, RateLimited, Unavailable
from cliproxy.limits.gcra import Gcra, per_minute

MAX_DEBT_MINUTES = 60.0  # of a token limit: what a provider says a call used keeps a key waiting no longer

_MINUTE = 60.0


class _Meter:
    """One key's or provider's state: a bucket of requests, a bucket of tokens that may go into debt, calls under way."""

    __slots__ = ("debt", "in_flight", "seen", "tat")

    def __init__(self) -> None:
        self.tat = 0.0
        self.debt = 0.0  # tokens taken and not yet drained by time
        self.seen = 0.0
        self.in_flight = 0


class _Limit:
    """Limits as numbers; 0 means none."""

    __slots__ = ("concurrency", "error", "requests", "tokens_per_minute", "whose")

    def __init__(self, whose: str, *, requests_per_minute: int, tokens_per_minute: int, concurrency: int, error: type[RateLimited] = RateLimited) -> None:
        self.whose = whose
        self.error = error
        self.requests: Gcra | None = per_minute(requests_per_minute) if requests_per_minute else None
        self.tokens_per_minute = tokens_per_minute
        self.concurrency = concurrency

    def verify(self, meter: _Meter, tokens: int, now: float) -> float:
        """Let time pay off tokens, and return the new TAT of the request bucket if the call fits; raises `error` and takes nothing."""
        limit = self.tokens_per_minute
        if limit:
            debt = min(meter.debt, limit * MAX_DEBT_MINUTES) - (now - meter.seen) * limit / _MINUTE
            meter.debt = debt if debt > 0.0 else 0.0
        else:
            meter.debt = 0.0  # or a limit that a reload brings would begin with all that was ever used
        meter.seen = now
        if self.concurrency and meter.in_flight >= self.concurrency:
            raise self.error(f"Too many calls at once for {self.whose} (at most {self.concurrency}).", retry_after=1.0)
        tat = meter.tat
        if self.requests is not None:
            tat, wait = self.requests.judge(meter.tat, now)
            if wait:
                raise self.error(f"Too many requests a minute for {self.whose}.", retry_after=wait)
        if limit:
            if tokens > limit:
                raise self.error(
                    f"The call reserves {tokens} tokens, more than {self.whose} may use in a minute ({limit}): lower max_tokens or send less.",
                    retry_after=math.inf,
                )
            over = meter.debt + tokens - limit
            if over > 0:
                raise self.error(f"Too many tokens a minute for {self.whose}.", retry_after=max(over * _MINUTE / limit, 0.001))
        return tat


class Reservation:
    """What one call has taken. `tokens` is what was set aside."""

    __slots__ = ("_key", "_provider", "_request", "_standing", "tokens")

    def __init__(self, key: _Meter, provider: _Meter | None, tokens: int, request: float) -> None:
        self._key: _Meter | None = key
        self._provider = provider
        self._request = request  # seconds by which the key's bucket of requests moved
        self._standing = 0  # tokens that stayed counted for the key when the call was over
        self.tokens = tokens

    def settle(self, used: int | None) -> None:
        """Replace the reservation by what was used; `None`: not known, it stays as reserved. Only the first time counts."""
        meters = (self._key, self._provider)
        if used is None and self._key is not None:
            self._standing = self.tokens
        self._key = self._provider = None
        for meter in meters:
            if meter is not None:
                meter.in_flight -= 1
                if used is not None:
                    meter.debt = max(0.0, meter.debt + used - self.tokens)

    def leave(self, used: int | None) -> None:
        """An attempt is over and the call is not: the provider's part is settled as above, the key's stays."""
        provider, self._provider = self._provider, None
        if provider is not None:
            provider.in_flight -= 1
            if used is not None:
                provider.debt = max(0.0, provider.debt + used - self.tokens)

    def give_back(self, key: _Meter) -> None:
        """The same call comes again and is counted then: its request is taken off `key`, and tokens that stayed counted. Only the first time counts."""
        request, self._request = self._request, 0.0
        key.tat -= request
        standing, self._standing = self._standing, 0
        key.debt = max(0.0, key.debt - standing)

    def enter(self, provider: _Meter) -> None:
        """Take what the call needs of `provider`, which `Admission` has verified."""
        provider.debt += self.tokens
        provider.in_flight += 1
        self._provider = provider


class Admission:
    """All meters of this egress. Times are monotonic seconds, passed in."""

    def __init__(self, settings: Settings) -> None:
        self._meters: dict[str, _Meter] = {}
        self._provider_meters: dict[str, _Meter] = {}
        self._last_use: dict[str, int] = {}
        self._key_limits: dict[tuple[int, int, int], _Limit] = {}
        self.reconfigure(settings)

    def reconfigure(self, settings: Settings) -> None:
        """Take the limits of a new configuration; what is under way and what was used stays counted."""
        self._defaults = settings.auth.key_limits
        self._provider_limits = {
            name: _Limit(
                f"provider {name}",
                requests_per_minute=provider.rate_limit.requests_per_minute,
                tokens_per_minute=provider.rate_limit.tokens_per_minute,
                concurrency=provider.concurrency,
                error=ProviderLimited,
            )
            for name, provider in settings.providers.items()
        }

    def reserve(self, principal: Principal, provider: str, *, tokens: int, now: float, wall: float) -> Reservation:
        """Take one request, `tokens` tokens and one place of the key and of the provider, or raise `RateLimited` (`ProviderLimited` if the key has
        room) and take nothing."""
        key_meter = self._meters.get(principal.id) or self._new_meter(self._meters, principal.id)
        provider_meter = self._provider_meters.get(provider) or self._new_meter(self._provider_meters, provider)
        limit = self._limit_of(principal)
        key_tat = limit.verify(key_meter, tokens, now)
        provider_meter.tat = self._provider_limits[provider].verify(provider_meter, tokens, now)
        key_meter.tat = key_tat
        key_meter.debt += tokens
        key_meter.in_flight += 1
        provider_meter.debt += tokens
        provider_meter.in_flight += 1
        self._last_use[principal.id] = int(wall)
        return Reservation(key_meter, provider_meter, tokens, 0.0 if limit.requests is None else limit.requests.interval)

    def hold(self, principal: Principal, *, tokens: int, now: float, wall: float) -> Reservation:
        """Take the key's part for a call that waits until a provider can take it; `move` takes the provider's. Raises `RateLimited` and takes nothing."""
        meter = self._meters.get(principal.id) or self._new_meter(self._meters, principal.id)
        limit = self._limit_of(principal)
        meter.tat = limit.verify(meter, tokens, now)
        meter.debt += tokens
        meter.in_flight += 1
        self._last_use[principal.id] = int(wall)
        return Reservation(meter, None, tokens, 0.0 if limit.requests is None else limit.requests.interval)

    def move(self, reservation: Reservation, provider: str, *, now: float) -> None:
        """Take what the next attempt of the same call needs of `provider`, after `Reservation.leave` or `hold`. Raises `ProviderLimited` and takes nothing."""
        meter = self._provider_meters.get(provider) or self._new_meter(self._provider_meters, provider)
        meter.tat = self._provider_limits[provider].verify(meter, reservation.tokens, now)
        reservation.enter(meter)

    def count_once(self, principal: Principal, before: Reservation) -> None:
        """The call of `before`, which was settled, comes again: neither its request nor its tokens count twice."""
        meter = self._meters.get(principal.id)
        if meter is not None:
            before.give_back(meter)

    def take_last_use(self) -> dict[str, int]:
        """Return which keys were used since the last time, and when (seconds since the epoch); at most a packet's worth."""
        taken: dict[str, int] = {}
        while self._last_use and len(taken) < 512:
            key, when = self._last_use.popitem()
            taken[key] = when
        return taken

    def _limit_of(self, principal: Principal) -> _Limit:
        own, default = principal.limits, self._defaults
        numbers = (
            own.requests_per_minute or default.requests_per_minute,
            own.tokens_per_minute or default.tokens_per_minute,
            own.concurrency or default.concurrency,
        )
        limit = self._key_limits.get(numbers)
        if limit is None:
            if len(self._key_limits) >= MAX_ADMISSION_ENTRIES:
                self._key_limits.clear()
            limit = self._key_limits[numbers] = _Limit("this API key", requests_per_minute=numbers[0], tokens_per_minute=numbers[1], concurrency=numbers[2])
        return limit

    def _new_meter(self, meters: dict[str, _Meter], id: str) -> _Meter:
        if len(meters) >= MAX_ADMISSION_ENTRIES and not self._forget():
            raise Unavailable("The gateway counts more keys than it can.", code="overloaded")
        meter = meters[id] = _Meter()
        return meter

    def _forget(self) -> bool:
        """Drop meters that nothing is under way on and whose minute is over; say whether there were any."""
        newest = max(meter.seen for meter in self._meters.values())
        old = [entry for entry, meter in self._idle() if newest - meter.seen > 2 * _MINUTE]
        for entry in old:
            del self._meters[entry]
        return bool(old)

    def _idle(self) -> Iterator[tuple[str, _Meter]]:
        return ((entry, meter) for entry, meter in self._meters.items() if meter.in_flight == 0)
