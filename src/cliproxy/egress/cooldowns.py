"""Which credential is not used for which model until when, and what a failure says about that. Pure: the caller passes the time.

Each endpoint cools by itself: a model that has no embeddings (404, or 403 at some) still talks.

    the provider answered          not used for                                                                tried elsewhere
    401, 402, 403                  30 minutes                                                                  yes
    404                            12 hours                                                                    yes
    429                            the provider's reset, while it keeps to it; else 1 s, doubling to 30 min    yes
    408, 5xx, redirects, no sound  `routing.cooldown_seconds`; longer if it says so itself (503, 529)          yes
    answer, no connection
    409, 425, our own trouble      -                                                                           yes
    any other 4xx                  - (the request is at fault, and would be elsewhere)                         no

What always holds: after its time a cooldown is half open: one call probes, and until that has its verdict no other goes there. A success ends the
cooldown, a failure renews it; a call that began before the cooldown did says nothing new about it. The table is bounded, and no words of a provider
are kept in it: they may quote another client.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import NamedTuple

from cliproxy.bounds import MAX_COOLDOWNS, MODEL_COOLDOWN_SECONDS
from cliproxy.dialects import ENDPOINT_NAMES, Endpoint
from cliproxy.errors import ClientError, CliproxyError, ProviderRefusal, RateLimited, Unavailable, UpstreamError
from cliproxy.ipc.messages import CooldownRecord

CREDENTIAL_COOLDOWN_SECONDS = 1800.0  # after 401, 402, 403
RATE_COOLDOWN_FIRST_SECONDS = 1.0  # after 429 without a time, doubling
RATE_COOLDOWN_LONGEST_SECONDS = 1800.0

_ENDPOINTS = {name: endpoint for endpoint, name in ENDPOINT_NAMES.items()}
PROBE_AGAIN_SECONDS = 1.0  # what a client is told to wait for the verdict of a probe under way
# What a provider asks for is believed the first time. One that says "in a millisecond" and then refuses again is left alone for longer each time, until it
# answers: a tenth of a second is what it costs an honest one whose clock is a little fast, a minute is the window that most vendors count in.
REPEATED_RATE_FIRST_SECONDS = 0.1
REPEATED_RATE_LONGEST_SECONDS = 60.0
PROBE_LOOK_SECONDS = 0.1  # how often a call that waits for it looks


class Key(NamedTuple):
    """What cools. `credential` is empty where the provider wants none."""

    provider: str
    credential: str
    model: str
    endpoint: int


class Rule(Enum):
    """For how long a failure cools."""

    NOTHING = "nothing"
    CREDENTIAL = "credential"
    MODEL = "model"
    RATE = "rate"
    TRANSIENT = "transient"


class Fault(NamedTuple):
    """What a failure says. `elsewhere`: another target may be tried; `seconds`: what the provider asked for, 0 if nothing; `everywhere`: the provider
    cannot be reached at all, with whatever credential."""

    elsewhere: bool
    rule: Rule
    status: int
    code: str
    seconds: float = 0.0
    everywhere: bool = False


_STATUSES = {
    401: (True, Rule.CREDENTIAL),
    402: (True, Rule.CREDENTIAL),
    403: (True, Rule.CREDENTIAL),
    404: (True, Rule.MODEL),
    408: (True, Rule.TRANSIENT),
    409: (True, Rule.NOTHING),
    425: (True, Rule.NOTHING),
    429: (True, Rule.RATE),
}
_OTHER_4XX = (False, Rule.NOTHING)
_OTHER = (True, Rule.TRANSIENT)
# A fault of our own, and an answer, or an event of one, that is too large wherever it comes from: its client asked for that much.
_OURS = frozenset({"internal_error", "overloaded", "provider_answer_too_large", "upstream_too_large"})
_UNREACHABLE = frozenset(
    {
        "provider_resolve",
        "provider_refused_connection",
        "provider_unreachable",
        "provider_connect_timeout",
        "provider_forbidden_address",
        "provider_certificate",
        "provider_tls",
    }
)
_WORDS = {
    Rule.CREDENTIAL: "The provider does not accept the gateway's credential for this model.",
    Rule.MODEL: "The provider does not know this model.",
    Rule.RATE: "The provider is limiting the rate of calls; try again later.",
    Rule.TRANSIENT: "The provider has trouble; try again later.",
}


def fault_of(error: CliproxyError) -> Fault:
    """Return what `error`, which ended an attempt before its answer began, says about where it was made."""
    code = str(getattr(error, "code", "internal_error"))
    if isinstance(error, ProviderRefusal):
        status = error.provider_status
        elsewhere, rule = _STATUSES.get(status) or (_OTHER_4XX if 400 <= status < 500 else _OTHER)
        return Fault(elsewhere, rule, status, code, error.retry_after or 0.0)
    if isinstance(error, UpstreamError):
        if code in _OURS:
            return Fault(False, Rule.NOTHING, 0, code)
        return Fault(True, Rule.TRANSIENT, 0, code, everywhere=code in _UNREACHABLE)
    return Fault(not isinstance(error, ClientError), Rule.NOTHING, 0, code)


class Cooldown:
    """One entry. Times are the caller's monotonic seconds."""

    __slots__ = ("code", "probing", "rule", "since", "status", "strikes", "until")

    def __init__(self, rule: Rule, *, since: float, until: float, status: int, code: str, strikes: int) -> None:
        self.rule = rule
        self.since = since
        self.until = until
        self.status = status
        self.code = code
        self.strikes = strikes
        self.probing = False

    def allows(self, now: float) -> bool:
        """Whether a call may go there: the time is over, and no probe is under way."""
        return now >= self.until and not self.probing

    def is_probed(self, now: float) -> bool:
        """Whether its time is over and only the verdict of a probe is awaited."""
        return self.probing and now >= self.until

    def wait(self, now: float) -> float:
        """Return the seconds until a call may go there, as far as one can say."""
        return PROBE_AGAIN_SECONDS if self.is_probed(now) else max(self.until - now, 0.001)

    def error(self, now: float) -> RateLimited | Unavailable:
        """Return what a client gets that finds nothing but this."""
        if self.rule is Rule.RATE:
            return RateLimited(_WORDS[self.rule], retry_after=self.wait(now))
        return Unavailable(_WORDS[self.rule], code=self.code, retry_after=self.wait(now))


class Cooldowns:
    """All cooldowns of one egress. `table` is there to be asked whether it is empty: then nothing else needs to be asked."""

    def __init__(self, *, transient_seconds: float) -> None:
        self.transient_seconds = transient_seconds
        self.table: dict[Key, Cooldown] = {}
        self._changed: dict[Key, None] = {}
        self._told: set[Key] = set()  # what the vault keeps
        self._anew: dict[str, float] = {}  # since when a provider's name means another one

    def begin(self, key: Key, now: float) -> bool:
        """A call begins that `Cooldown.allows` let through: return whether it is a probe, whose verdict must be told (`succeeded`, `failed`, `released`)."""
        found = self.table.get(key)
        if found is None:
            return False
        found.probing = True
        return True

    def succeeded(self, key: Key, *, started: float) -> None:
        """The provider answered a call that began at `started`."""
        found = self.table.get(key)
        if found is not None and started >= found.since:
            del self.table[key]
            self._changed[key] = None

    def released(self, key: Key, *, started: float) -> None:
        """A probe that began at `started` ended without a verdict: its client went away, or the request was at fault."""
        found = self.table.get(key)
        if found is not None and started >= found.since:  # else it probed another cooldown, which is over: this one may have a probe of its own
            found.probing = False

    def failed(self, key: Key, fault: Fault, *, started: float, now: float) -> None:
        """A call that began at `started` failed with `fault`."""
        found = self.table.get(key)
        if found is not None and started >= found.since:
            found.probing = False
        if fault.rule is Rule.NOTHING or started < self._anew.get(key.provider, started):
            return
        # A call that left before the cooldown began met the same trouble: it is no strike of its own, but may know of a longer time.
        same = found is not None and started < found.since
        strikes = found.strikes if found is not None and found.rule is Rule.RATE else 0
        seconds = self._seconds(fault, max(0, strikes - 1) if same else strikes)
        if seconds <= 0.0 or (found is not None and found.until >= now + seconds):
            return
        if found is None and len(self.table) >= MAX_COOLDOWNS:
            self._drop_one(now)
        strikes = max(1, strikes if same else strikes + 1) if fault.rule is Rule.RATE else 0
        since = found.since if found is not None and same else now
        fresh = Cooldown(fault.rule, since=since, until=now + seconds, status=fault.status, code=fault.code, strikes=strikes)
        fresh.probing = found is not None and found.probing
        self.table[key] = fresh
        self._changed[key] = None

    def _seconds(self, fault: Fault, strikes: int) -> float:
        if fault.rule is Rule.CREDENTIAL:
            return CREDENTIAL_COOLDOWN_SECONDS
        if fault.rule is Rule.MODEL:
            return MODEL_COOLDOWN_SECONDS
        if fault.rule is Rule.RATE:
            if fault.seconds > 0.0:
                floor = min(REPEATED_RATE_FIRST_SECONDS * 2.0 ** min(strikes - 1, 30), REPEATED_RATE_LONGEST_SECONDS) if strikes else 0.0
                return min(max(fault.seconds, floor), MODEL_COOLDOWN_SECONDS)
            return min(RATE_COOLDOWN_FIRST_SECONDS * 2.0 ** min(strikes, 30), RATE_COOLDOWN_LONGEST_SECONDS)
        return max(self.transient_seconds, min(fault.seconds, MODEL_COOLDOWN_SECONDS))

    def _drop_one(self, now: float) -> None:
        """Make room: what is over for longest goes; where nothing is, what cools longest, which costs one call that fails. Names that only a wildcard knows end
        there (404)."""
        oldest = min(self.table, key=lambda key: self.table[key].until)
        gone = oldest if self.table[oldest].until <= now else max(self.table, key=lambda key: self.table[key].until)
        del self.table[gone]
        if gone in self._told:
            self._changed[gone] = None
        else:
            self._changed.pop(gone, None)  # the vault has not heard of it, and need not

    def forget(self, provider: str, *, now: float) -> None:
        """What was found out about `provider` no longer holds, nor what calls find out that began before `now`: it is another one now."""
        if len(self._anew) >= MAX_COOLDOWNS:
            self._anew.clear()  # of so many reloads the calls before the last are over
        self._anew[provider] = now
        for key in [key for key in self.table if key.provider == provider]:
            del self.table[key]
            self._changed[key] = None

    # --- across restarts ---

    def take_changes(self, *, now: float, wall: float, most: int) -> tuple[CooldownRecord, ...]:
        """Return what the vault is to be told, `most` at most. `wall` is now in seconds since the epoch."""
        records: list[CooldownRecord] = []
        while self._changed and len(records) < most:
            key = next(iter(self._changed))
            del self._changed[key]
            found = self.table.get(key)
            if found is None:
                self._told.discard(key)
            else:
                self._told.add(key)
            record = CooldownRecord(
                provider=key.provider,
                credential=key.credential,
                model=key.model,
                endpoint=ENDPOINT_NAMES[Endpoint(key.endpoint)],
                until=0.0 if found is None else max(wall + found.until - now, 1.0),  # 0 means gone, and the clock may have been set back
                status=0 if found is None else found.status,
                code="" if found is None else found.code,
                strikes=0 if found is None else found.strikes,
            )
            records.append(record)
        return tuple(records)

    def forget_told(self) -> None:
        """The vault is told everything anew, from an empty table on."""
        self._changed = dict.fromkeys(self.table)
        self._told.clear()

    def load(self, records: Iterable[CooldownRecord], *, now: float, wall: float) -> None:
        """Take what was known before a restart. What we have found out since stays; an entry whose time is over is half open."""
        for record in records:
            endpoint = _ENDPOINTS.get(record.endpoint)
            if endpoint is None:
                continue
            key = Key(record.provider, record.credential, record.model, int(endpoint))
            rule = _STATUSES.get(record.status, _OTHER)[1]
            if key in self.table or len(self.table) >= MAX_COOLDOWNS or rule is Rule.NOTHING:  # none of ours cools for nothing
                continue
            self._told.add(key)
            seconds = min(record.until - wall, MODEL_COOLDOWN_SECONDS)
            self.table[key] = Cooldown(rule, since=now, until=now + seconds, status=record.status, code=record.code, strikes=record.strikes)
