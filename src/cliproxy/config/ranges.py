"""The range of every number in the configuration: one row per key; `*` stands for a name. A test asserts that no number lacks a row."""

from __future__ import annotations

from cliproxy.bounds import KIB, MAX_WORKERS, MIB

MINUTE = 60.0
HOUR = 3600.0
DAY = 86400.0
_REQUESTS = (0, 10**9)  # 0: no limit
_TOKENS = (0, 10**12)
_CALLS = (0, 10**6)
_PRIORITY = (-1000, 1000)

RANGES: dict[str, tuple[float, float]] = {
    "server.port": (0, 65535),  # 0: any free one
    "server.workers": (1, MAX_WORKERS),
    "server.rate_limit.requests_per_second": (0.001, 1_000_000),
    "server.rate_limit.burst": (1, 1_000_000),
    "server.rate_limit.authenticated_requests_per_second": (0, 1_000_000),  # 0: no limit
    "server.rate_limit.authenticated_burst": (1, 1_000_000),
    "server.limits.max_head_bytes": (KIB, 256 * KIB),
    "server.limits.max_headers": (8, 1000),
    "server.limits.max_body_bytes": (KIB, 64 * MIB),
    "server.limits.max_connections": (1, 65_536),
    "server.limits.max_connections_per_address": (1, 65_536),
    "server.limits.head_timeout_seconds": (0.1, 10 * MINUTE),
    "server.limits.body_timeout_seconds": (0.1, HOUR),
    "server.limits.idle_timeout_seconds": (0.1, HOUR),
    "server.limits.drain_timeout_seconds": (0.1, HOUR),
    "server.limits.keepalive_comment_seconds": (0.1, HOUR),
    "server.limits.stalled_reader_seconds": (0.1, HOUR),
    "auth.key_limits.requests_per_minute": _REQUESTS,
    "auth.key_limits.tokens_per_minute": _TOKENS,
    "auth.key_limits.concurrency": _CALLS,
    "requests.max_tokens": (1, 100_000_000),
    "providers.*.priority": _PRIORITY,
    "providers.*.concurrency": _CALLS,
    "providers.*.rate_limit.requests_per_minute": _REQUESTS,
    "providers.*.rate_limit.tokens_per_minute": _TOKENS,
    "providers.*.timeouts.connect": (0.1, 10 * MINUTE),
    "providers.*.timeouts.first_byte": (0.1, HOUR),
    "providers.*.timeouts.idle": (0.1, HOUR),
    "providers.*.timeouts.total": (0.1, DAY),
    "models.*.pool[].weight": (1, 1000),
    "models.*.pool[].priority": _PRIORITY,
    "routing.max_attempts": (1, 64),
    "routing.retry_rounds": (0, 10),
    "routing.max_wait_seconds": (0, 5 * MINUTE),
    "routing.cooldown_seconds": (0, HOUR),
    "audit.deadline_seconds": (0.05, 5 * MINUTE),
    "audit.segment_bytes": (64 * KIB, 4096 * MIB),
    "audit.unauthenticated_bytes_per_hour": (16 * KIB, 4096 * MIB),
    "sandbox.uid_base": (1000, 2_000_000_000),
}


def range_of(path: tuple[str | int, ...]) -> tuple[float, float]:
    """Return the inclusive range of the number at `path`. Raises `KeyError` for a number without a row."""
    name = ""
    for index, part in enumerate(path):
        if isinstance(part, int):
            name += "[]"
        else:
            name += ("." if name else "") + ("*" if index == 1 and path[0] in ("providers", "models") else part)
    return RANGES[name]
