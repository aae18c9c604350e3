"""Whether the certificates and keys that a configuration names can be used: found by the loader, `check` and `doctor`, before workers or egress find it.

OpenSSL is loaded only when there is such a file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cliproxy.config.shape import line_of, name_of
from cliproxy.errors import ConfigError

if TYPE_CHECKING:
    from cliproxy.config.load import LoadedConfig


def verify_tls_files(loaded: LoadedConfig, *, file: str) -> None:
    """Load every file as the process would that uses it. Raises `ConfigError` with the line of the key that names it."""
    settings = loaded.settings
    path: tuple[str, ...] = ("server", "tls", "key_file")
    try:
        if settings.server.tls.enabled:
            from cliproxy.ingress.tls import server_context

            server_context(settings.server.tls)
        seen: set[str] = set()
        for name, provider in settings.providers.items():
            if provider.ca_file and provider.ca_file not in seen and provider.base_url.startswith("https://"):
                from cliproxy.egress.tls import client_context

                path = ("providers", name, "ca_file")
                seen.add(provider.ca_file)
                client_context(ca_file=provider.ca_file)
    except ConfigError as error:
        if error.key is not None:
            path = tuple(error.key.split("."))
        raise ConfigError(error.problem, cure=error.cure, file=file, line=line_of(loaded.root, path), key=name_of(path)) from None
