"""What may be dialled: the origins of the settings, each with what its provider's entry allows. There is no other way to a `Target`."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from cliproxy.config.schema import Provider
from cliproxy.errors import ConfigError
from cliproxy.providers.origin import Origin, parse_base_url
from cliproxy.providers.table import facts_of


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """An origin that may be dialled. `private`: private and loopback addresses too. `connect_seconds`: for resolving and connecting together."""

    origin: Origin
    private: bool
    connect_seconds: float


def build_table(providers: Mapping[str, Provider]) -> dict[str, Target]:
    """Return the targets by the text of their origin. Raises `ConfigError` for an origin in clear text that may not be.

    The receiver checks: `config.load` has refused the same. Where two providers share an origin, what both allow is allowed. A provider behind a proxy is not
    dialled itself: the proxy is, and that may be in a private network, since the operator has named it.
    """
    table: dict[str, Target] = {}
    for name, provider in providers.items():
        if not facts_of(name, kind=provider.kind).remote or not provider.base_url:
            continue
        origin, _ = parse_base_url(provider.base_url)
        if not origin.tls and not provider.plain_http and not origin.names_loopback():
            raise ConfigError(
                "plain http would show the credential to the network", cure="use https, or say plain_http: true", key=f"providers.{name}.base_url"
            )
        private = provider.private_network
        if provider.proxy:
            origin, _ = parse_base_url(provider.proxy)
            private = True
        target = Target(origin=origin, private=private, connect_seconds=provider.timeouts.connect)
        other = table.get(str(origin))
        if other is not None:
            target = Target(origin=origin, private=target.private and other.private, connect_seconds=max(target.connect_seconds, other.connect_seconds))
        table[str(origin)] = target
    return table
