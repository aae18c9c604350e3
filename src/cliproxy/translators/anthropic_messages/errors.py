"""Which `type` an error has in this dialect, by its HTTP status: the same for a whole answer and inside a stream."""

from __future__ import annotations

from typing import Final

# https://docs.anthropic.com/en/api/errors; 402, 408 and 504 as the types that Anthropic's SDKs have (`BillingError`, `GatewayTimeoutError`). Anthropic's own
# overload is 529; ours is 503 (docs/adr/0114).
_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def error_type(status: int) -> str:
    """Return the `type` of an error of HTTP status `status`. Any other 4xx is an invalid request, any other 5xx an API error, as Anthropic documents."""
    return _TYPES.get(status) or ("invalid_request_error" if status < 500 else "api_error")
