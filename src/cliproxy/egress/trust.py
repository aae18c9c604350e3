"""Which authorities each provider's certificate must come from, loaded before the lockdown and kept for every later configuration.

A reload may add providers that trust the system's authorities or a `ca_file` that is already loaded; a new `ca_file` needs a restart,
because a locked process opens no file. The receiver says so, and the old configuration goes on.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping

from cliproxy.config.schema import Provider
from cliproxy.egress.tls import client_context
from cliproxy.errors import ConfigError


class TrustStore:
    """TLS contexts by `ca_file` (empty: the system's authorities)."""

    def __init__(self, providers: Mapping[str, Provider]) -> None:
        """Load what `providers` name, and the system's authorities if there are any. Raises `ConfigError`."""
        self._contexts: dict[str, ssl.SSLContext] = {}
        needed = {provider.ca_file for provider in providers.values() if provider.base_url.startswith("https://")}
        for ca_file in {"", *needed}:
            try:
                self._contexts[ca_file] = client_context(ca_file=ca_file)
            except ConfigError:
                if ca_file in needed:
                    raise

    def contexts_for(self, providers: Mapping[str, Provider]) -> dict[str, ssl.SSLContext]:
        """Return the context of each https provider by its name. Raises `ConfigError` for authorities that were not loaded at the start."""
        contexts = {}
        for name, provider in providers.items():
            if not provider.base_url.startswith("https://"):
                continue
            if provider.ca_file not in self._contexts:
                raise ConfigError("these authorities were not loaded when the gateway started", key=f"providers.{name}.ca_file", cure="restart the gateway")
            contexts[name] = self._contexts[provider.ca_file]
        return contexts
