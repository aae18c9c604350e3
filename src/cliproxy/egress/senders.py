"""Who sends an authorised call: the pool of its origin, or the provider inside the process."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque

from cliproxy.dialects import Endpoint
from cliproxy.egress.attempt import Attempt, Sending
from cliproxy.egress.echo import answer_chat, answer_embeddings
from cliproxy.egress.pool import Pool
from cliproxy.errors import ClientError, UpstreamError

_ECHO_PIECE_EVENTS = 16


class CallSenders:
    """Starts calls by what their target is."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def start(self, attempt: Attempt) -> Sending:
        """Begin; the attempt hears of it from later turns on. Raises `Unavailable` or `ForeignOrigin` when nothing can leave."""
        request = attempt.request
        body = request.take_body()
        if request.credential is None:
            return EchoSending(attempt, body)
        return self._pool.send(attempt, request.credential, request.endpoint, body, stream=request.stream, model=request.target.model)


class EchoSending:
    """The echo provider's answer to one call, in pieces, at the pace at which the call takes them."""

    def __init__(self, attempt: Attempt, body: bytes) -> None:
        self._attempt = attempt
        self._body = body
        self._loop = asyncio.get_event_loop()
        self._pieces: deque[bytes] = deque()
        self._paused = False
        self._scheduled = False
        self._cancelled = False
        self._loop.call_soon(self._begin)

    def cancel(self) -> None:
        self._cancelled = True
        self._pieces.clear()

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False
        self._next_soon()

    def _begin(self) -> None:
        if self._cancelled:
            return
        request = self._attempt.request
        body, self._body = self._body, b""
        id, created = secrets.token_hex(12), int(time.time())
        try:
            if request.endpoint is Endpoint.EMBEDDINGS:
                pieces = [answer_embeddings(body)]
            else:
                pieces = list(answer_chat(body, id=id, created=created))
        except ClientError as error:
            self._attempt.on_failure(error)
            return
        except Exception:
            self._attempt.on_failure(UpstreamError("The echo provider failed.", status=500, code="internal_error"))
            raise  # to the loop, which reports it
        self._pieces.extend(pieces)
        self._attempt.on_head(200, {b"content-type": b"text/event-stream" if request.stream else b"application/json"})
        self._next()

    def _next_soon(self) -> None:
        if not self._scheduled and not self._cancelled:
            self._scheduled = True
            self._loop.call_soon(self._next)

    def _next(self) -> None:
        self._scheduled = False
        if self._cancelled or self._paused:
            return
        taken = [self._pieces.popleft() for _ in range(min(_ECHO_PIECE_EVENTS, len(self._pieces)))]
        if taken:
            self._attempt.on_data(b"".join(taken))
        if self._pieces:
            self._next_soon()
        elif not self._cancelled:
            self._cancelled = True
            self._attempt.on_complete()
