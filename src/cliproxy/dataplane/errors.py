"""Errors as a client sees them: in the shape of the vendor whose dialect it speaks, with a request id, and Retry-After where waiting helps.

What always holds: an error that is not one of ours, or not meant for a client, says nothing but "internal error"; no answer names a secret; whatever the
shape, the status is the same. A shape without a place for the field's path has it in the message.
"""

from __future__ import annotations

import math
from enum import Enum
from typing import Any, Final

import msgspec

from cliproxy.errors import ClientError, CliproxyError, NotAuthenticated, RateLimited, Unavailable, UpstreamError


class Shape(Enum):
    """Whose error bodies a client reads."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    GEMINI = "gemini"


class Problem(msgspec.Struct, frozen=True, gc=False):
    """An error in nobody's shape yet. `wait`: seconds after which trying again may help, 0.0 for none."""

    status: int
    kind: str
    code: str
    message: str
    param: str | None = None
    wait: float = 0.0
    challenge: bool = False


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


def encode_error(error: CliproxyError, request_id: str, shape: Shape = Shape.OPENAI) -> tuple[int, bytes, bytes]:
    """Return status, header lines (each with its CRLF) and body for `error`. `request_id` must be printable ASCII without blanks: it becomes a header."""
    problem = problem_of(error)
    id = request_id.encode("ascii")
    headers = b"Content-Type: application/json\r\nx-request-id: " + id + b"\r\n"
    if shape is Shape.ANTHROPIC:
        headers += b"request-id: " + id + b"\r\n"
    if problem.challenge:
        headers += b"WWW-Authenticate: Bearer\r\n"  # RFC 9110 §15.5.2: a 401 must
    if problem.wait:
        headers += b"Retry-After: %d\r\n" % math.ceil(problem.wait)  # whole seconds (RFC 9110 §10.2.3); rounded up, so that obeying it succeeds
    if shape is Shape.OPENAI:
        body = _encoder.encode(_OpenAiBody(_OpenAiError(problem.message, problem.kind, problem.param, problem.code)))
    elif shape is Shape.ANTHROPIC:
        body = _encoder.encode(_AnthropicBody("error", _AnthropicError(anthropic_type(problem.status), _with_field(problem)), request_id))
    else:
        body = _encoder.encode({"error": gemini_error(problem)})
    return problem.status, headers, body


_encoder: Final = msgspec.json.Encoder()


def _with_field(problem: Problem) -> str:
    """Return the message; the field's path stands before it where it does not stand in it."""
    if problem.param is None or problem.param in problem.message:
        return problem.message
    return f"{problem.param}: {problem.message}"


# --- OpenAI ------------------------------------------------------------------------------------------------------------


class _OpenAiError(msgspec.Struct, frozen=True, gc=False):
    message: str
    type: str
    param: str | None
    code: str


class _OpenAiBody(msgspec.Struct, frozen=True, gc=False):
    error: _OpenAiError


# --- Anthropic ---------------------------------------------------------------------------------------------------------


class _AnthropicError(msgspec.Struct, frozen=True, gc=False):
    type: str
    message: str


class _AnthropicBody(msgspec.Struct, frozen=True, gc=False):
    type: str
    error: _AnthropicError
    request_id: str


# https://docs.anthropic.com/en/api/errors; 504 as in Anthropic's SDKs. Any other 4xx is an invalid request, any other 5xx an API error.
_ANTHROPIC_TYPES: Final = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def anthropic_type(status: int) -> str:
    """Return the `type` that Anthropic's errors of this status have."""
    return _ANTHROPIC_TYPES.get(status) or ("invalid_request_error" if status < 500 else "api_error")


# --- Gemini ------------------------------------------------------------------------------------------------------------

# google.rpc.Code by HTTP status (googleapis, google/rpc/code.proto). 502 has no code of its own: the service behind cannot be reached.
_RPC_NAMES: Final = {
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    409: "ABORTED",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


def rpc_name(status: int) -> str:
    """Return the `status` that Google's errors of this HTTP status have."""
    return _RPC_NAMES.get(status) or ("INVALID_ARGUMENT" if status < 500 else "INTERNAL")


def gemini_error(problem: Problem) -> dict[str, Any]:
    """Return a google.rpc.Status: our code as the ErrorInfo's reason, the field as a violation, the wait as a RetryInfo."""
    details: list[dict[str, Any]] = [
        {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": problem.code.upper(), "domain": "cliproxy"},
    ]
    if problem.param is not None:
        violation = {"field": problem.param, "description": problem.message}
        details.append({"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": [violation]})
    if problem.wait:
        details.append({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{math.ceil(problem.wait)}s"})
    return {"code": problem.status, "message": _with_field(problem), "status": rpc_name(problem.status), "details": details}
