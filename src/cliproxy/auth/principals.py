"""Who a client key stands for, and what that principal may do.

The table is filled from the policy feed and nothing else. A key that is unknown, revoked or expired is no principal, and an empty list of models allows no
model: unknown means no. Look-ups cost the same whatever the number of keys; the caller passes the time.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, collapse_addresses, ip_address, ip_network
from typing import TypeVar

import msgspec

from cliproxy.errors import ChannelError

DIGEST_BYTES = 32
ANY_MODEL = "*"


class KeyLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The limits of one key: requests and tokens in a minute, calls under way at once. 0 means none."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    concurrency: int = 0


class Principal:
    """A client key's identity after authentication. Made once when the policy arrives; nothing about it changes."""

    __slots__ = ("_any_model", "_four", "_models", "_six", "digest", "expires_at", "id", "limits", "models", "name", "networks")

    def __init__(
        self,
        *,
        id: str,
        digest: bytes,
        name: str,
        models: tuple[str, ...],
        networks: tuple[str, ...] = (),
        expires_at: int = 0,
        requests_per_minute: int = 0,
        tokens_per_minute: int = 0,
        concurrency: int = 0,
    ) -> None:
        """Take the fields of the policy feed's key record: `networks` are CIDR blocks (empty: from anywhere), `expires_at` seconds since the epoch (0: never).

        Raises `ChannelError` if a record could not have come from a sound vault: a digest of another length, no id, a network that is none, a negative number.
        """
        if len(digest) != DIGEST_BYTES or not id:
            raise ChannelError("a key record has no id or a digest of the wrong length")
        if min(expires_at, requests_per_minute, tokens_per_minute, concurrency) < 0:
            raise ChannelError("a key record holds a negative number")
        try:
            parsed = [ip_network(text) for text in networks]
        except ValueError:
            raise ChannelError("a key record names a network that is none") from None
        self.id = id
        self.digest = digest
        self.name = name
        self.models = models
        self.networks = networks
        self.expires_at = expires_at
        self.limits = KeyLimits(requests_per_minute=requests_per_minute, tokens_per_minute=tokens_per_minute, concurrency=concurrency)
        self._models = frozenset(models)
        self._any_model = ANY_MODEL in self._models
        self._four = _ranges([network for network in parsed if isinstance(network, IPv4Network)])
        self._six = _ranges([network for network in parsed if isinstance(network, IPv6Network)])

    def allows_model(self, name: str) -> bool:
        """Say whether this principal may call the public model `name`. An empty list allows none."""
        return self._any_model or name in self._models

    def allows_address(self, address: str | IPv4Address | IPv6Address) -> bool:
        """Say whether a call may come from `address`. Without networks it may come from anywhere; a mapped IPv4 address is judged as IPv4.

        What is no address comes from nowhere: a key with networks does not allow it.
        """
        if not self.networks:
            return True
        if isinstance(address, str):
            try:
                address = ip_address(address)
            except ValueError:
                return False
        if isinstance(address, IPv6Address):
            mapped = address.ipv4_mapped
            if mapped is None:
                return _covers(self._six, int(address))
            address = mapped
        return _covers(self._four, int(address))

    def is_expired(self, now: float) -> bool:
        """Say whether the key has ended at `now`, seconds since the epoch. The second of `expires_at` itself is over."""
        return 0 < self.expires_at <= now

    def __repr__(self) -> str:
        return f"Principal({self.id})"


_Network = TypeVar("_Network", IPv4Network, IPv6Network)
_Ranges = tuple[tuple[int, ...], tuple[int, ...]]  # first addresses in ascending order; the last address of each


def _ranges(networks: list[_Network]) -> _Ranges:
    merged = list(collapse_addresses(networks))  # ascending, and no two touch: one bisection decides
    return tuple(int(network.network_address) for network in merged), tuple(int(network.broadcast_address) for network in merged)


def _covers(ranges: _Ranges, address: int) -> bool:
    firsts, lasts = ranges
    at = bisect_right(firsts, address) - 1
    return at >= 0 and address <= lasts[at]


class PrincipalTable:
    """The principals in force, by digest and by id. Both views always hold the same principals."""

    __slots__ = ("_by_digest", "_by_id")

    def __init__(self) -> None:
        self._by_digest: dict[bytes, Principal] = {}
        self._by_id: dict[str, Principal] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def replace_all(self, principals: Iterable[Principal]) -> None:
        """Put a whole snapshot in force, at once or (on `ChannelError`: two records share an id or a digest) not at all."""
        by_digest: dict[bytes, Principal] = {}
        by_id: dict[str, Principal] = {}
        for principal in principals:
            if principal.id in by_id or principal.digest in by_digest:
                raise ChannelError("two key records share an id or a digest")
            by_digest[principal.digest] = principal
            by_id[principal.id] = principal
        self._by_digest = by_digest
        self._by_id = by_id

    def put(self, principal: Principal) -> None:
        """Add a principal, or replace the one with its id; a digest that it had before no longer authenticates.

        Raises `ChannelError` and changes nothing if another id has this digest.
        """
        holder = self._by_digest.get(principal.digest)
        if holder is not None and holder.id != principal.id:
            raise ChannelError("two key records share a digest")
        former = self._by_id.get(principal.id)
        if former is not None:
            del self._by_digest[former.digest]
        self._by_id[principal.id] = principal
        self._by_digest[principal.digest] = principal

    def revoke(self, id: str) -> Principal | None:
        """Forget a principal and return it; None if there was none (revoking twice is fine)."""
        principal = self._by_id.pop(id, None)
        if principal is not None:
            del self._by_digest[principal.digest]
        return principal

    def find(self, digest: bytes, now: float) -> Principal | None:
        """Return who has this digest, SHA-256(P); None for an unknown, revoked or expired key. `now` in seconds since the epoch."""
        principal = self._by_digest.get(digest)
        if principal is None or 0 < principal.expires_at <= now:
            return None
        return principal

    def get(self, id: str) -> Principal | None:
        """Return the principal with this id, expired or not."""
        return self._by_id.get(id)

    def ids(self) -> frozenset[str]:
        """Return the ids in force."""
        return frozenset(self._by_id)
