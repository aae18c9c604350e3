"""What a call says to egress, and what its failures say to the client: frames made of requests, errors made of frames."""

from __future__ import annotations

from cliproxy.bounds import MAX_DATA_FRAME_BYTES
from cliproxy.dataplane.steps import OutboundRequest
from cliproxy.errors import ClientError, CliproxyError, NotAuthenticated, RateLimited, Unavailable, UpstreamError
from cliproxy.ipc.mux import Abort, CallHead

BAD_ANSWER = Abort(
    status=502, kind="upstream_error", code="bad_upstream_answer", message="The provider answered in a form that was not asked for.", retry_after=0.0
)
TOO_LARGE = Abort(
    status=502, kind="upstream_error", code="provider_answer_too_large", message="The provider's answer is larger than the gateway takes.", retry_after=0.0
)
OVERLOADED = Abort(
    status=503, kind="unavailable_error", code="overloaded", message="The gateway holds more answers than it may; try again in a moment.", retry_after=1.0
)


def frame_of(outbound: OutboundRequest, session: str, tried: tuple[str, ...], *, request_id: str, address: str) -> CallHead:
    """Return the frame that asks egress for `outbound`. `tried`: targets that failed before."""
    decoded = outbound.admitted.decoded
    facts = decoded.facts
    endpoint, quirks = outbound.profile
    body = outbound.body
    size = len(body)
    # Positional, in the order of `ipc.mux.CallHead`: keywords cost half a microsecond here.
    return CallHead(
        endpoint,
        decoded.proof,
        request_id,
        address,
        facts.model,
        facts.max_tokens,
        facts.n,
        facts.stream,
        facts.estimate,
        outbound.model_offset,
        size,
        body if size <= MAX_DATA_FRAME_BYTES else b"",
        quirks,
        session,
        tried,
        decoded.row.dialect,
    )


def abort_of(error: UpstreamError) -> Abort:
    """Return `error`, found in here, as if egress had reported it."""
    return Abort(error.status, error.kind, error.code, error.message, 0.0)


def error_of(abort: Abort) -> CliproxyError:
    """Return the error that `abort` reports, for the encoder of error answers."""
    if abort.status == 429:
        return RateLimited(abort.message, retry_after=max(abort.retry_after, 1.0))
    if abort.status == 503:
        return Unavailable(abort.message, code=abort.code, retry_after=max(abort.retry_after, 1.0))
    if abort.status >= 500:
        return UpstreamError(abort.message, status=abort.status, code=abort.code)
    if abort.status == 401:
        return NotAuthenticated()
    error = ClientError(abort.message, code=abort.code, status=abort.status)
    error.kind = abort.kind
    return error
