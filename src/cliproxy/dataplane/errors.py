"""Errors as a client sees them: worded as the vendor words them whose surface it uses, with a request id, and Retry-After where waiting helps.

What always holds: an error that is not one of ours, or not meant for a client, says nothing but "internal error"; no answer names a secret; whatever the
surface, the status is the same; an error inside a stream says what the same error says as a whole answer, since both are made of one `Problem`.
"""

from __future__ import annotations

import math

from cliproxy.dataplane.surfaces.surface import Problem, Surface
from cliproxy.errors import ClientError, CliproxyError, NotAuthenticated, RateLimited, Unavailable, UpstreamError


def problem_of(error: CliproxyError) -> Problem:
    """Return what a client may know of `error`."""
    if isinstance(error, ClientError):
        wait = error.retry_after if isinstance(error, RateLimited) else 0.0
        return Problem(error.status, error.kind, error.code, error.message, error.param, _useful(wait), isinstance(error, NotAuthenticated))
    if isinstance(error, UpstreamError):
        return Problem(error.status, error.kind, error.code, error.message, wait=_useful(getattr(error, "retry_after", None) or 0.0))
    if isinstance(error, Unavailable):
        return Problem(error.status, error.kind, error.code, error.message, wait=_useful(error.retry_after))
    return Problem(500, "internal_error", "internal_error", "The gateway failed to answer.")


def _useful(wait: float) -> float:
    return wait if 0.0 < wait < math.inf else 0.0


def encode_error(error: CliproxyError, request_id: str, surface: Surface) -> tuple[int, bytes, bytes]:
    """Return status, header lines (each with its CRLF) and body for `error`. `request_id` must be printable ASCII without blanks: it becomes a header."""
    problem = problem_of(error)
    headers = b"Content-Type: application/json\r\n" + id_headers(request_id, surface)
    if problem.challenge:
        headers += b"WWW-Authenticate: Bearer\r\n"  # RFC 9110 §15.5.2: a 401 must
    if problem.wait:
        headers += b"Retry-After: %d\r\n" % math.ceil(problem.wait)  # whole seconds (RFC 9110 §10.2.3); rounded up, so that obeying it succeeds
    return problem.status, headers, surface.error_body(problem, request_id)


def id_headers(request_id: str, surface: Surface) -> bytes:
    """Return the header lines that tell a request's id."""
    id = request_id.encode("ascii")
    lines = b"x-request-id: " + id + b"\r\n"
    return lines + surface.id_header + b": " + id + b"\r\n" if surface.id_header else lines
