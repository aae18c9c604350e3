"""Which google.rpc.Code an error has, by its HTTP status: the same for a whole answer and inside a stream."""

from __future__ import annotations

from typing import Final

# google/rpc/code.proto of googleapis names the HTTP status of each code. Of several codes for one status it is the one that Google's servers use for
# requests of this kind. 402: Gemini asks for billing with FAILED_PRECONDITION. 408 and 502 have no code of their own: the caller was too slow, the service
# behind cannot be reached. 529 is Anthropic's 503.
_NAMES: Final = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    402: "FAILED_PRECONDITION",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    409: "ABORTED",
    412: "FAILED_PRECONDITION",
    416: "OUT_OF_RANGE",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
    529: "UNAVAILABLE",
}


def rpc_name(status: int) -> str:
    """Return the name of the code for HTTP status `status`. Any other 4xx is wrong whatever state the server is in, any other 5xx our fault."""
    return _NAMES.get(status) or ("INVALID_ARGUMENT" if status < 500 else "INTERNAL")
