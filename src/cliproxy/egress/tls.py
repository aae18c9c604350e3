"""TLS towards providers: 1.2 or newer, certificate and name verified, no way to switch either off.

Contexts are made before lockdown, because trust stores are files.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from cliproxy.errors import ConfigError


def client_context(*, ca_file: str = "") -> ssl.SSLContext:
    """Return a context that trusts the system's authorities, or those in `ca_file` alone. Raises `ConfigError` if there is nothing to trust."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies certificate and host name
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    try:
        if ca_file:
            context.load_verify_locations(cafile=ca_file)
        else:
            context.load_default_certs(ssl.Purpose.SERVER_AUTH)
            _load_directory(context)
    except OSError as error:  # ssl.SSLError is one
        reason = error.strerror or "it holds no certificate"
        raise ConfigError(f"the authorities can not be loaded: {reason}", cure="give a readable PEM file in ca_file", file=ca_file or None) from error
    if not context.get_ca_certs():
        raise ConfigError("there is no certificate authority to trust", cure="install the system's CA bundle (ca-certificates) or set ca_file")
    return context


def _load_directory(context: ssl.SSLContext) -> None:
    """Load a hashed CA directory now: OpenSSL would open its files during each handshake, which a locked process can't."""
    if context.get_ca_certs():
        return
    directory = ssl.get_default_verify_paths().capath
    for path in sorted(Path(directory).iterdir()) if directory else ():
        if path.is_file():
            try:
                context.load_verify_locations(cafile=path)
            except ssl.SSLError:
                continue  # a file there that is no certificate
