"""The rules in their order. The first that denies decides; adding a rule is one file and one line here.

at accept    1  ip_lists          who may connect at all                          403, or closed
             2  connection_caps   how many connections there may be               closed, or somebody else is
per request  3  address_rate      how often one address may ask                   429 with Retry-After
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from cliproxy.config.schema import ServerLimits, ServerSecurity
from cliproxy.ingress.address import Address
from cliproxy.ingress.rules.connection_caps import ConnectionCaps, Member
from cliproxy.ingress.rules.ip_lists import IpLists
from cliproxy.limits.shared import RecentAddresses


class AcceptRule(Protocol):
    """A rule about a new connection."""

    @property
    def name(self) -> str:
        """What audit events call it."""

    def admits(self, address: Address) -> bool:
        """Say whether a connection of `address` may go on."""


class AcceptRules:
    """The rules at accept of one worker. A connection of an address that `denied_by` admitted enters, and is released once it is gone.

    `recent` remembers where keys were good lately; without it nobody does beyond the connections that are open.
    """

    def __init__(self, security: ServerSecurity, limits: ServerLimits, recent: RecentAddresses | None = None) -> None:
        self._lists = IpLists(security)
        self._blocked: tuple[str, ...] = ()
        self._caps = ConnectionCaps(
            total=limits.max_connections,
            per_address=limits.max_connections_per_address,
            was_good_lately=(lambda group: False) if recent is None else recent.has,
            good=(lambda group: None) if recent is None else recent.note,
        )
        self._order = self._table()

    def _table(self) -> tuple[AcceptRule, ...]:
        return (self._lists, self._caps)

    def block(self, networks: Sequence[str]) -> bool:
        """Put the policy feed's blocked networks in force for new connections; return whether anything changed.

        Raises `ConfigError` (and changes nothing) if one is no network.
        """
        blocked = tuple(networks)
        if blocked == self._blocked:
            return False
        self._lists = self._lists.with_blocked(blocked)
        self._blocked = blocked
        self._order = self._table()
        return True

    def denied_by(self, address: Address) -> str | None:
        """Return the name of the first rule that denies `address`, or None: then its connection may `enter`, for which another one may have given way."""
        for rule in self._order:
            if not rule.admits(address):
                return rule.name
        return None

    def still_admits(self, address: Address) -> bool:
        """Say whether an open connection of `address` may stay after `block`."""
        return self._lists.admits(address)

    def enter(self, connection: Member) -> None:
        """A connection was admitted: it is counted, as a stranger's."""
        self._caps.enter(connection)

    def authenticated(self, connection: Member) -> None:
        """A key was good on `connection`."""
        self._caps.authenticated(connection)

    def release(self, connection: Member) -> None:
        """A connection that entered is gone."""
        self._caps.release(connection)
