"""Security headers: the constant block that every answer carries, whatever else it says.

An API answers with data, never with a page, so the policy is stricter than the specification's `default-src 'self'`: nothing may load, frame or
cache it. `X-XSS-Protection: 0` because the filter that it once switched on opened holes of its own (OWASP Secure Headers). HSTS is sent over
TLS only; browsers ignore it elsewhere (RFC 6797 §7.2).
"""

from __future__ import annotations

from typing import Final

_ALWAYS: Final = (
    b"X-Content-Type-Options: nosniff\r\n"
    b"X-Frame-Options: DENY\r\n"
    b"X-XSS-Protection: 0\r\n"
    b"Content-Security-Policy: default-src 'none'; frame-ancestors 'none'\r\n"
    b"Referrer-Policy: no-referrer\r\n"
    b"Cache-Control: no-store\r\n"
)
_HSTS: Final = b"Strict-Transport-Security: max-age=31536000; includeSubDomains\r\n"


def security_headers(*, secure: bool) -> bytes:
    """Return the block as header lines, each with its CRLF. `secure`: the connection is TLS and ends here."""
    return _ALWAYS + _HSTS if secure else _ALWAYS
