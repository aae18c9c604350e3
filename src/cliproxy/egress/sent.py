"""A request on its way to a provider, between whoever sent it and the connection that carries it."""

from __future__ import annotations

from typing import Protocol

from cliproxy.dialects import Endpoint
from cliproxy.egress.reflection import ReflectionGuard
from cliproxy.errors import CliproxyError
from cliproxy.providers.facts import Framing


class UpstreamCall(Protocol):
    """Who sent a request. Nothing is called after `on_complete`, `on_failure` or the owner's own `cancel()`."""

    def on_head(self, status: int, headers: dict[bytes, bytes]) -> None:
        """A successful answer begins; headers by allow-list, names in lower case."""

    def on_data(self, data: bytes) -> None:
        """Some of its body, at most what one read brings (256 KiB)."""

    def on_unfinished(self, size: int) -> None:
        """So many bytes of a message in AWS's framing are held until it is whole; 0: none any more."""

    def on_complete(self) -> None:
        """The body is complete."""

    def on_failure(self, error: CliproxyError) -> None:
        """`UpstreamError` (a `ProviderRefusal` if the provider said so itself) or `Unavailable`. May come after data."""


class Carrier(Protocol):
    """The connection that carries a request."""

    def abort(self) -> None:
        """Close at once."""

    def pause(self) -> None:
        """Stop reading."""

    def resume(self) -> None:
        """Read again."""


class Owner(Protocol):
    """Where a request waits for a connection."""

    def forget(self, sent: Sent) -> None:
        """It is cancelled, and waits no longer."""


class Sent:
    """A request on its way, for its owner to cancel or to hold back. `may_have_left`: bytes of it were given to a connection."""

    __slots__ = ("_owner", "body", "call", "connection", "endpoint", "framing", "guard", "head", "may_have_left", "started", "stream")

    def __init__(
        self,
        call: UpstreamCall,
        owner: Owner,
        guard: ReflectionGuard,
        stream: bool,
        head: bytes,
        body: bytes,
        started: float,
        endpoint: Endpoint = Endpoint.CHAT_COMPLETIONS,
        framing: Framing = Framing.SSE,
    ) -> None:
        self.call: UpstreamCall | None = call
        self._owner = owner
        self.guard = guard
        self.stream = stream
        self.endpoint = endpoint
        self.framing = framing
        self.head = head
        self.body = body
        self.started = started
        self.connection: Carrier | None = None
        self.may_have_left = False

    def cancel(self) -> None:
        """End the call: its connection is closed, which is how the provider learns of it. Idempotent; no callback follows."""
        self.call = None
        if self.connection is not None:
            self.connection.abort()
        else:
            self._owner.forget(self)

    def pause_reading(self) -> None:
        """Take no more bytes from the provider for now. Idle time does not count while paused."""
        if self.connection is not None:
            self.connection.pause()

    def resume_reading(self) -> None:
        """Take bytes again."""
        if self.connection is not None:
            self.connection.resume()

    def fail(self, error: CliproxyError) -> None:
        """End the call with `error`; nothing if it has ended."""
        call, self.call, self.connection = self.call, None, None
        if call is not None:
            call.on_failure(error)
