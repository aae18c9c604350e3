"""Credentials in use: each bound to the origin that it was sealed for, and the only place that reveals one.

A `BoundCredential` makes request heads, and only for its own origin; asking for any other raises `ForeignOrigin`, whoever asks and for
whatever reason. The origin is part of the sealed record (DESIGN §4), so neither the configuration nor a worker can move a credential.
Nothing here can wipe the heads that hold the secret: they are Python bytes. They go when the credential is withdrawn, or with the process.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from cliproxy.bounds import MAX_CREDENTIAL_SECRET_BYTES, MIN_GUARDED_SECRET_BYTES
from cliproxy.config.schema import Provider
from cliproxy.dialects import Endpoint
from cliproxy.egress.reflection import NO_SECRET, ReflectionGuard
from cliproxy.errors import ForeignOrigin, UpstreamError
from cliproxy.providers.facts import ProviderFacts, build_head
from cliproxy.providers.origin import Origin, parse_base_url
from cliproxy.providers.table import facts_of
from cliproxy.secret import Secret

_VISIBLE = re.compile(rb"[\x21-\x7e]+")  # what a header value may hold without becoming two


class BoundCredential:
    """A provider's credential, or its absence (`auth: none`; then `id` is empty), bound to `origin`. `guard` removes the secret from answers."""

    __slots__ = ("_streams", "_whole", "guard", "id", "origin", "provider")

    def __init__(self, id: str, *, provider: str, facts: ProviderFacts, origin: Origin, base_path: str, secret: Secret | None) -> None:
        self.id = id
        self.provider = provider
        self.origin = str(origin)
        credential = None
        self.guard = NO_SECRET
        if secret is not None:
            credential = secret.reveal()
            if not MIN_GUARDED_SECRET_BYTES <= len(credential) <= MAX_CREDENTIAL_SECRET_BYTES or _VISIBLE.fullmatch(credential) is None:
                raise UpstreamError(f"credential {id} can not be sent in a header", code="credential_malformed")
            self.guard = ReflectionGuard(credential)
        self._whole, self._streams = (
            {endpoint: build_head(facts, endpoint, origin=origin, base_path=base_path, credential=credential, stream=stream) for endpoint in facts.endpoints}
            for stream in (False, True)
        )

    def __repr__(self) -> str:
        return f"BoundCredential({self.id!r}, origin={self.origin!r})"

    def head(self, endpoint: Endpoint, *, origin: str, stream: bool, length: int) -> bytes:
        """Return the whole request head for a body of `length` bytes. Raises `ForeignOrigin` unless `origin` is the sealed one."""
        if origin != self.origin:
            raise ForeignOrigin(self.id)
        return (self._streams if stream else self._whole)[endpoint] + b"%d\r\n\r\n" % length


class Injector:
    """Every credential in use, by provider. The newest one of a provider is used, so a rotation is: add the new one, remove the old one."""

    def __init__(self, providers: Mapping[str, Provider]) -> None:
        self._granted: dict[str, tuple[str, str, Secret]] = {}
        self._bound: dict[str, BoundCredential] = {}
        self._newest: dict[str, BoundCredential] = {}
        self._providers: dict[str, tuple[ProviderFacts, Origin, str, bool]] = {}
        self.retable(providers)

    def retable(self, providers: Mapping[str, Provider]) -> list[str]:
        """Take a new table of providers. Returns the ids of credentials that no longer fit their provider's origin; they are kept but unused."""
        self._providers = {}
        for name, provider in providers.items():
            facts = facts_of(name, kind=provider.kind)
            if facts.remote and provider.base_url:
                origin, base_path = parse_base_url(provider.base_url)
                self._providers[name] = (facts, origin, base_path, provider.auth != "none")
        self._bound = {}
        foreign = []
        for id, (name, origin_text, secret) in self._granted.items():
            try:
                self._bind(id, provider=name, origin=origin_text, secret=secret)
            except (ForeignOrigin, UpstreamError):  # the second was refused when it was granted; a reload must not stop in its middle for it
                foreign.append(id)
        self._choose()
        return foreign

    def grant(self, id: str, *, provider: str, origin: str, secret: Secret) -> None:
        """Put a credential to use. Raises `ForeignOrigin` if its sealed origin is not its provider's, `UpstreamError` if it fits no header."""
        self._granted.pop(id, None)
        self._bound.pop(id, None)
        self._granted[id] = (provider, origin, secret)
        try:
            self._bind(id, provider=provider, origin=origin, secret=secret)
        finally:
            self._choose()

    def withdraw(self, id: str) -> None:
        """Forget a credential; an unknown id is nothing to forget."""
        _, _, secret = self._granted.pop(id, ("", "", None))
        if secret is not None:
            secret.wipe()
        self._bound.pop(id, None)
        self._choose()

    def keep_only(self, ids: frozenset[str]) -> None:
        """Withdraw every credential that is not in `ids` (after the vault has granted all there are)."""
        for id in [id for id in self._granted if id not in ids]:
            self.withdraw(id)

    def for_provider(self, provider: str) -> BoundCredential | None:
        """Return what to call `provider` with; `None`: it wants a credential and there is none, or it has no origin."""
        return self._newest.get(provider)

    def _bind(self, id: str, *, provider: str, origin: str, secret: Secret) -> None:
        known = self._providers.get(provider)
        if known is None or str(known[1]) != origin:
            raise ForeignOrigin(id)
        facts, parsed, base_path, _ = known
        self._bound[id] = BoundCredential(id, provider=provider, facts=facts, origin=parsed, base_path=base_path, secret=secret)

    def _choose(self) -> None:
        newest = {}
        for name, (facts, origin, base_path, wants_credential) in self._providers.items():
            if not wants_credential:
                newest[name] = BoundCredential("", provider=name, facts=facts, origin=origin, base_path=base_path, secret=None)
        for bound in self._bound.values():
            if self._providers[bound.provider][3]:
                newest[bound.provider] = bound
        self._newest = newest
