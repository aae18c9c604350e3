"""How long a provider wants to be left alone, from what it says in any of the vendors' ways.

    Retry-After                            seconds, or a date (RFC 9110 §10.2.3)
    retry-after-ms                         milliseconds (Azure OpenAI, OpenAI)
    x-ratelimit-{remaining,reset}-*        OpenAI and its imitators: durations like 1m3.5s
    anthropic-ratelimit-*-{remaining,reset}    times (RFC 3339)
    error.details[].retryDelay             Gemini's RetryInfo: 34.07s, in the body

Times are told against the wall clock that is passed in. What is not understood counts as not said; every answer is capped.
"""

from __future__ import annotations

import re
from datetime import datetime
from email.utils import parsedate_to_datetime

MAX_RETRY_AFTER_SECONDS = 86400


_NUMBER = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,9})?")
_DURATION = re.compile(r"(?:([0-9]{1,6})d)?(?:([0-9]{1,6})h)?(?:([0-9]{1,6})m(?!s))?(?:([0-9]{1,9}(?:\.[0-9]{1,12})?)s)?(?:([0-9]{1,9}(?:\.[0-9]{1,9})?)ms)?")
_UNITS = (86400.0, 3600.0, 60.0, 1.0, 0.001)
_OPENAI = ("requests", "tokens")
_ANTHROPIC = ("requests", "tokens", "input-tokens", "output-tokens")

RESET_HEADERS = frozenset(
    {b"retry-after", b"retry-after-ms"}
    | {f"x-ratelimit-{what}-{kind}".encode() for what in ("remaining", "reset") for kind in _OPENAI}
    | {f"anthropic-ratelimit-{kind}-{what}".encode() for what in ("remaining", "reset") for kind in _ANTHROPIC}
)


def parse_duration(text: str) -> float | None:
    """Return the seconds of `1m3.5s`, `20ms`, `1h` or a plain number of seconds; `None` for anything else."""
    if _NUMBER.fullmatch(text):
        return float(text)
    match = _DURATION.fullmatch(text)
    if match is None or not text:
        return None
    return sum(float(part) * unit for part, unit in zip(match.groups(), _UNITS, strict=True) if part)


def retry_after_of(headers: dict[bytes, bytes], *, delay: str, wall: float) -> float | None:
    """Return the seconds to wait, at most `MAX_RETRY_AFTER_SECONDS`; `None`: the provider does not say. `delay` is the body's, `wall` in seconds since 1970."""
    text = {name.decode(): headers[name].decode("ascii") for name in RESET_HEADERS if name in headers and headers[name].isascii()}
    seconds = _milliseconds(text.get("retry-after-ms", ""))
    if seconds is None:
        seconds = _seconds_or_date(text.get("retry-after", ""), wall)
    if seconds is None and delay:
        seconds = parse_duration(delay[:64])
    if seconds is None:
        resets = [(text.get(f"x-ratelimit-remaining-{kind}", ""), parse_duration(text.get(f"x-ratelimit-reset-{kind}", ""))) for kind in _OPENAI]
        seconds = _of_resets(resets)
    if seconds is None:
        resets = [
            (text.get(f"anthropic-ratelimit-{kind}-remaining", ""), _until(text.get(f"anthropic-ratelimit-{kind}-reset", ""), wall)) for kind in _ANTHROPIC
        ]
        seconds = _of_resets(resets)
    return None if seconds is None else min(max(seconds, 0.0), float(MAX_RETRY_AFTER_SECONDS))


def _of_resets(resets: list[tuple[str, float | None]]) -> float | None:
    """Return the longest of those that are used up. Where none says so the call was too large for what is left of one: the shortest then."""
    empty = [seconds for remaining, seconds in resets if seconds is not None and remaining == "0"]
    known = [seconds for _, seconds in resets if seconds is not None]
    return max(empty) if empty else min(known) if known else None


def _milliseconds(text: str) -> float | None:
    return float(text) / 1000 if _NUMBER.fullmatch(text) else None


def _seconds_or_date(text: str, wall: float) -> float | None:
    if _NUMBER.fullmatch(text):
        return float(text)
    if not text or text[0] not in "SMTWF":  # every form of RFC 9110 §5.6.7 begins with a day's name; the parser takes much else
        return None
    try:
        moment = parsedate_to_datetime(text)
        return moment.timestamp() - wall if moment.tzinfo is not None else None
    except (ValueError, OverflowError, TypeError, IndexError):
        return None


def _until(text: str, wall: float) -> float | None:
    try:
        moment = datetime.fromisoformat(text)
        return moment.timestamp() - wall if moment.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None
