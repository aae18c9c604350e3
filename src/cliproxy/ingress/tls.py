"""TLS towards clients: the server's context, made once before the lockdown.

What always holds: TLS 1.2 with forward secrecy and AEAD, or 1.3; no compression, no renegotiation, no session tickets (their key would outlive the
sessions). The key file is ours, a regular file and no one else's to read. What cannot be loaded is a `ConfigError` with its cure.
"""

from __future__ import annotations

import os
import ssl
import stat
from pathlib import Path
from typing import Final

from cliproxy.config.schema import Tls
from cliproxy.errors import ConfigError

ServerContext = ssl.SSLContext

_VERSIONS: Final = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}

# IANA name to OpenSSL name; ECDHE with AEAD only. The rest of TLS 1.2 has no forward secrecy or is CBC (RFC 7540 Appendix A lists it as bad).
SUITES: Final = {
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256": "ECDHE-ECDSA-AES128-GCM-SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": "ECDHE-RSA-AES128-GCM-SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384": "ECDHE-ECDSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384": "ECDHE-RSA-AES256-GCM-SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-ECDSA-CHACHA20-POLY1305",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-RSA-CHACHA20-POLY1305",
}
_ALWAYS_ON: Final = frozenset({"TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"})  # TLS 1.3


def server_context(tls: Tls) -> ServerContext:
    """Return the context for `server.tls`. Reads both files. Raises `ConfigError`."""
    for key, path in (("cert_file", tls.cert_file), ("key_file", tls.key_file)):
        if not path:
            raise _error(key, "TLS is enabled without it", cure="name a PEM file, or write enabled: false")
        _verify_file(key, path, private=key == "key_file")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[tls.min_version]
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.num_tickets = 0  # TLS 1.3's tickets have their own switch
    context.set_alpn_protocols(["http/1.1"])
    context.set_ciphers(":".join(openssl_suites(tls.cipher_suites)))
    try:
        context.load_cert_chain(tls.cert_file, tls.key_file, password=_no_password)
    except (OSError, ssl.SSLError, ValueError) as error:  # SSLError says neither which file nor anything of the key
        reason = getattr(error, "reason", None) or type(error).__name__
        raise _error("key_file", f"certificate and key do not load ({reason})", cure="both must be PEM, belong together, and have no passphrase") from None
    return context


def openssl_suites(names: tuple[str, ...]) -> list[str]:
    """Return OpenSSL's names for IANA's, in the given order, each RSA suite beside its ECDSA twin (an ECDSA certificate needs it). Empty: all of `SUITES`.

    TLS 1.3 suites are always on and may be named. Raises `ConfigError` for any other name.
    """
    chosen: dict[str, None] = {}
    for name in names or SUITES:
        if name in _ALWAYS_ON:
            continue
        if name not in SUITES:
            raise _error("cipher_suites", f"{name!r} is not offered", cure=f"choose from {', '.join(SUITES)}")
        chosen[SUITES[name.replace("_RSA_", "_ECDSA_")]] = None
        chosen[SUITES[name.replace("_ECDSA_", "_RSA_")]] = None
    return list(chosen or dict.fromkeys(SUITES.values()))


def _verify_file(key: str, path: str, *, private: bool) -> None:
    try:
        status = Path(path).stat()
    except OSError as error:
        raise _error(key, f"{path} cannot be read ({error.strerror})", cure="name an existing file that the gateway's user can read") from None
    if not stat.S_ISREG(status.st_mode):
        raise _error(key, f"{path} is no regular file", cure="name a PEM file")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise _error(key, f"others may write {path}", cure=f"chmod go-w {path}")
    if private and status.st_mode & stat.S_IRWXO:
        raise _error(key, f"everybody may read {path}", cure=f"chmod o-rwx {path}")  # a group is usual: ssl-cert on Debian
    if private and status.st_uid not in (0, os.geteuid()):
        raise _error(key, f"{path} belongs to another user", cure=f"chown it to the gateway's user, or root: {path}")


def _no_password() -> str:
    """Called for an encrypted key: without this OpenSSL would ask on the terminal."""
    raise ValueError("encrypted")


def _error(key: str, problem: str, *, cure: str) -> ConfigError:
    return ConfigError(problem, cure=cure, key=f"server.tls.{key}")
