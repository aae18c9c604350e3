"""Errors as a client sees them: OpenAI's shape, a request id, and Retry-After where waiting helps.

What always holds: an error that is not one of ours, or not meant for a client, says nothing but "internal error"; no answer names a secret.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

from cliproxy.errors import ClientError, CliproxyError, NotAuthenticated, RateLimited, Unavailable, UpstreamError


class _Error(msgspec.Struct, frozen=True, gc=False):
    message: str
    type: str
    param: str | None
    code: str


class _Body(msgspec.Struct, frozen=True, gc=False):
    error: _Error


_encoder: Final = msgspec.json.Encoder()


def encode_error(error: CliproxyError, request_id: str) -> tuple[int, bytes, bytes]:
    """Return status, header lines (each with its CRLF) and body for `error`. `request_id` must be printable ASCII without blanks: it becomes a header."""
    headers = b"Content-Type: application/json\r\nx-request-id: " + request_id.encode("ascii") + b"\r\n"
    param = None
    wait: float | None = None
    if isinstance(error, ClientError):
        status, kind, code, message, param = error.status, error.kind, error.code, error.message, error.param
        if isinstance(error, RateLimited):
            wait = error.retry_after
        elif isinstance(error, NotAuthenticated):
            headers += b"WWW-Authenticate: Bearer\r\n"  # RFC 9110 §15.5.2: a 401 must
    elif isinstance(error, UpstreamError):
        status, kind, code, message = error.status, error.kind, error.code, error.message
        wait = getattr(error, "retry_after", None)
    elif isinstance(error, Unavailable):
        status, kind, code, message, wait = error.status, error.kind, error.code, error.message, error.retry_after
    else:
        status, kind, code, message = 500, "internal_error", "internal_error", "The gateway failed to answer."
    if wait is not None and 0.0 < wait < math.inf:
        headers += b"Retry-After: %d\r\n" % math.ceil(wait)  # whole seconds (RFC 9110 §10.2.3); rounded up, so that obeying it succeeds
    return status, headers, _encoder.encode(_Body(_Error(message, kind, param, code)))
