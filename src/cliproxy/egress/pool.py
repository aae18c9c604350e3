"""Calls to providers: which connection carries a call, and how long it may take.

What always holds:
- A call ends once: `on_complete` or `on_failure`, or nothing at all after `cancel()`.
- A request is written once. What may have left is never sent again; `Sent.may_have_left` tells the owner whether it may try elsewhere.
- A connection is used again only after a complete answer on it that allows it, and never for another provider.
- Redirects are not followed, and error bodies are not passed on: an answer of 300 or above is an `on_failure`.
- AllOrigins, waiting calls and every duration are bounded; deadlines are looked at once a second (`sweep`), not by a timer per call.

The bytes of an answer are `upstream.py`'s business, connecting is the dialer's.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import Callable, Mapping
from typing import Protocol

from cliproxy.bounds import KIB
from cliproxy.config.schema import Provider
from cliproxy.dialects import Endpoint
from cliproxy.egress.inject import BoundCredential
from cliproxy.egress.peer import Peer, peer_of
from cliproxy.egress.sent import Sent, UpstreamCall
from cliproxy.egress.tunnel import open_tunnel
from cliproxy.egress.upstream import Connection
from cliproxy.errors import CliproxyError, Unavailable, UpstreamError
from cliproxy.providers.origin import Origin, parse_base_url
from cliproxy.providers.table import facts_of

MAX_JOINED_REQUEST_BYTES = 64 * KIB  # head and body are copied into one buffer up to here
MAX_CONNECTIONS_PER_PROVIDER = 512
MAX_UPSTREAM_CONNECTIONS = 2048  # of all providers; half of a common descriptor limit of 4096
MAX_WAITING_PER_PROVIDER = 1024  # calls that wait for a connection
DIAL_AGAIN_SECONDS = 0.02  # until a dialer that took no more questions is asked again
UPSTREAM_IDLE_SECONDS = 55.0  # nginx and most load balancers close after 60 to 75; be first
SWEEP_SECONDS = 1.0  # deadlines are looked at this often


class Dialer(Protocol):
    """What `dialer_client.DialerClient` does: ask for a connected socket to an origin."""

    @property
    def is_there(self) -> bool: ...

    def dial(self, peer: Peer, done: Callable[[socket.socket | None, str], None]) -> bool: ...


# What the dialer's reasons are to a client: status, code, message.
_DIAL_FAILURES = {
    "resolve": (502, "provider_resolve", "The provider's name does not resolve."),
    "refused": (502, "provider_refused_connection", "The provider refused the connection."),
    "unreachable": (502, "provider_unreachable", "The provider can not be reached."),
    "timeout": (504, "provider_connect_timeout", "The provider did not take the connection in time."),
    "forbidden_address": (502, "provider_forbidden_address", "The provider's name leads to an address that is not allowed."),
    "not_enrolled": (503, "provider_not_enrolled", "The provider is not enrolled with the dialer."),
    "no_room": (503, "provider_busy", "Too many calls to the provider are under way."),
    "busy": (503, "dialer_busy", "Too many connections to providers are being made."),
    "dialer_gone": (503, "dialer_gone", "AllOrigins to providers can not be made now."),
}


def _dial_failure(reason: str) -> CliproxyError:
    status, code, message = _DIAL_FAILURES.get(reason, _DIAL_FAILURES["unreachable"])
    return Unavailable(message, code=code) if status == 503 else UpstreamError(message, status=status, code=code)


class AllOrigins(Protocol):
    """What the pool of one origin needs of the pool of all."""

    now: Callable[[], float]
    closed: bool

    def replace_lost(self, origin: OriginPool) -> None:
        """A connection of `origin` is closed while calls wait."""


class OriginPool:
    """One provider: its origin, trust, deadlines, connections and the calls that wait for one."""

    def __init__(self, all: AllOrigins, name: str, *, origin: Origin, context: ssl.SSLContext | None, provider: Provider) -> None:
        self._all = all
        self.now = all.now
        self.name = name
        self.origin = origin
        self.origin_text = str(origin)
        self.proxied = bool(provider.proxy)
        self.peer = peer_of(provider)
        self.context = context
        self.timeouts = provider.timeouts
        self.settings = (provider.base_url, provider.ca_file, provider.proxy, provider.private_network, provider.timeouts)
        self.open: set[Connection] = set()
        self.idle: list[Connection] = []
        self.waiting: deque[Sent] = deque()
        self.dialling = 0
        self.retired = False

    def ready(self, connection: Connection) -> None:
        """A connection is new, or its answer is complete and it may be used again: give it to the next call."""
        self.open.add(connection)
        if self.waiting and connection.usable():
            self.start(connection, self.waiting.popleft())
        elif self.retired or self._all.closed:
            connection.abort()
        else:
            connection.since = self.now()
            self.idle.append(connection)

    def start(self, connection: Connection, sent: Sent) -> None:
        """Write a request to an idle connection."""
        head, body = sent.head, sent.body
        sent.head = sent.body = b""  # the head holds the credential: not kept longer than needed
        sent.may_have_left = True
        connection.begin(sent, self.now())
        if len(body) <= MAX_JOINED_REQUEST_BYTES:
            connection.transport.write(head + body)
        else:
            connection.transport.writelines((head, body))

    def gone(self, connection: Connection) -> None:
        """A connection is closed."""
        self.open.discard(connection)
        if connection in self.idle:
            self.idle.remove(connection)
        if self.waiting:
            self._all.replace_lost(self)

    def forget(self, sent: Sent) -> None:
        """Take a cancelled call out of the queue. A connection that was asked for on its behalf goes to the next call, or becomes idle."""
        try:
            self.waiting.remove(sent)
        except ValueError:
            pass


class Pool:
    """The upstream HTTP/1.1 client. Made and used in one event loop."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        dialer: Dialer,
        providers: Mapping[str, Provider],
        contexts: Mapping[str, ssl.SSLContext],
        connections_per_provider: int = MAX_CONNECTIONS_PER_PROVIDER,
        sweep_seconds: float = SWEEP_SECONDS,
    ) -> None:
        self._loop = loop
        self.now = loop.time
        self._dialer = dialer
        self._limit = connections_per_provider
        self._origins: dict[str, OriginPool] = {}
        self._retired: list[OriginPool] = []
        self._connecting: set[asyncio.Task[None]] = set()
        self._sweep_seconds = sweep_seconds
        self._timer: asyncio.TimerHandle | None = None
        self._redial: asyncio.TimerHandle | None = None
        self.closed = False
        self.retable(providers, contexts)
        self._timer = loop.call_later(sweep_seconds, self._sweep_and_rearm)

    # --- calls ---------------------------------------------------------------------------------------------------

    def send(self, call: UpstreamCall, bound: BoundCredential, endpoint: Endpoint, body: bytes, *, stream: bool, model: str = "") -> Sent:
        """Send `body` to `bound`'s provider; what becomes of it is told to `call`, never before this returns. `model` is the
        provider's name of the model, for paths that hold it.

        Raises `Unavailable` if it can't be sent or queued now, and `ForeignOrigin` if the credential is sealed for another origin; nothing left then.
        """
        origin = self._origins.get(bound.provider)
        if origin is None or self.closed:
            raise Unavailable("The provider has no origin.", code="provider_not_enrolled")
        head = bound.head(endpoint, origin=origin.origin_text, stream=stream, model=model, body=body)
        sent = Sent(call, origin, bound.guard, stream, head, body, self._loop.time(), endpoint, bound.framing)
        idle = origin.idle
        while idle:
            connection = idle.pop()
            if connection.usable():
                origin.start(connection, sent)
                return sent
        self._wait(origin, sent)
        return sent

    def _wait(self, origin: OriginPool, sent: Sent) -> None:
        if len(origin.waiting) >= MAX_WAITING_PER_PROVIDER:
            raise _dial_failure("no_room")
        origin.waiting.append(sent)
        self._dial(origin)
        if not self._has_hope(origin):
            origin.waiting.pop()
            raise _dial_failure("dialer_gone")

    # --- connections ---------------------------------------------------------------------------------------------

    def _dial(self, origin: OriginPool) -> bool:
        """Ask for one more connection, unless as many are coming as calls wait, or a bound is reached."""
        if len(origin.open) + origin.dialling >= self._limit or origin.dialling >= len(origin.waiting):
            return False
        total = sum(len(other.open) + other.dialling for other in (*self._origins.values(), *self._retired))
        if total >= MAX_UPSTREAM_CONNECTIONS and not self._evict():
            return False
        if not self._dialer.dial(origin.peer, lambda sock, reason: self._dialled(origin, sock, reason)):
            return False
        origin.dialling += 1
        return True

    def _has_hope(self, origin: OriginPool) -> bool:
        """Whether a call that waits may still get a connection. Where the dialer is there and only takes no more at once, it is asked again soon: one
        client that makes us connect all the time must not cost the others their calls."""
        if origin.open or origin.dialling or self._dial(origin):
            return True
        if self._dialer.is_there and self._redial is None:
            self._redial = self._loop.call_later(DIAL_AGAIN_SECONDS, self._dial_again)
        return self._dialer.is_there

    def _dial_again(self) -> None:
        self._redial = None
        for origin in tuple(self._origins.values()):
            while self._dial(origin):
                pass
            while origin.waiting and not self._has_hope(origin):
                origin.waiting.popleft().fail(_dial_failure("dialer_gone"))

    def _evict(self) -> bool:
        for origin in self._origins.values():
            if origin.idle:
                origin.idle.pop(0).abort()
                return True
        return False

    def _dialled(self, origin: OriginPool, sock: socket.socket | None, reason: str) -> None:
        if sock is None:
            origin.dialling -= 1
            self._connect_failed(origin, _dial_failure(reason))
        elif self.closed or origin.retired:
            origin.dialling -= 1
            sock.close()
        else:
            task = self._loop.create_task(self._connect(origin, sock))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    async def _connect(self, origin: OriginPool, sock: socket.socket) -> None:
        failure: CliproxyError | None = None
        try:
            if origin.proxied:
                await open_tunnel(self._loop, sock, origin.origin, seconds=origin.timeouts.connect)
            await self._loop.create_connection(
                lambda: Connection(origin),
                sock=sock,
                ssl=origin.context,
                server_hostname=origin.origin.host if origin.context is not None else None,
                ssl_handshake_timeout=origin.timeouts.connect if origin.context is not None else None,
            )
        except UpstreamError as error:  # the tunnel's
            failure = error
        except ssl.SSLCertVerificationError:
            failure = UpstreamError("The provider's certificate is not valid.", code="provider_certificate")
        except TimeoutError:
            failure = _dial_failure("timeout")
        except (OSError, ssl.SSLError):
            failure = UpstreamError("The connection to the provider broke off while it was made.", code="provider_tls")
        finally:
            origin.dialling -= 1
        if failure is not None:
            sock.close()
            self._connect_failed(origin, failure)

    def _connect_failed(self, origin: OriginPool, error: CliproxyError) -> None:
        """One connection less is coming: one waiting call fails, and the rest keep a connection to hope for."""
        if origin.waiting:
            origin.waiting.popleft().fail(error)
        while origin.waiting and not self._has_hope(origin):
            origin.waiting.popleft().fail(error)

    def replace_lost(self, origin: OriginPool) -> None:
        """A connection of `origin` is closed while calls wait."""
        if not self.closed and not self._dial(origin) and not self._has_hope(origin):
            self._connect_failed(origin, _dial_failure("dialer_gone"))

    # --- time, reload, end ---------------------------------------------------------------------------------------

    def _sweep_and_rearm(self) -> None:
        if not self.closed:  # armed first: a fault in one sweep must not be the end of all deadlines
            self._timer = self._loop.call_later(self._sweep_seconds, self._sweep_and_rearm)
        self.sweep(self._loop.time())

    def sweep(self, now: float) -> None:
        """Enforce every deadline that passed by `now` (the loop's clock, seconds)."""
        for origin in (*self._origins.values(), *self._retired):
            timeouts = origin.timeouts
            while origin.waiting and now - origin.waiting[0].started > timeouts.connect:
                origin.waiting.popleft().fail(_dial_failure("timeout" if origin.dialling or not origin.open else "no_room"))
            for connection in tuple(origin.open):
                connection.enforce(timeouts, now)
            for connection in [connection for connection in origin.idle if now - connection.since > UPSTREAM_IDLE_SECONDS]:
                origin.idle.remove(connection)
                connection.abort()
            while self._dial(origin):
                pass
        self._retired = [origin for origin in self._retired if origin.open or origin.dialling]

    def retable(self, providers: Mapping[str, Provider], contexts: Mapping[str, ssl.SSLContext]) -> None:
        """Take a new table of providers. Calls under way go on; connections of providers that stay the same are kept."""
        origins = {}
        for name, provider in providers.items():
            if not facts_of(name, kind=provider.kind).remote or not provider.base_url:
                continue
            parsed, _ = parse_base_url(provider.base_url)
            if parsed.tls and name not in contexts:
                raise Unavailable(f"provider {name} has no TLS context", code="provider_no_trust")
            origin = OriginPool(self, name, origin=parsed, context=contexts[name] if parsed.tls else None, provider=provider)
            old = self._origins.get(name)
            origins[name] = old if old is not None and old.settings == origin.settings else origin
        for name, origin in self._origins.items():
            if origins.get(name) is not origin:
                self._retire(origin)
        self._origins = origins

    def _retire(self, origin: OriginPool) -> None:
        origin.retired = True
        self._retired.append(origin)
        idle, origin.idle = origin.idle, []
        for connection in idle:
            connection.abort()
        while origin.waiting:
            origin.waiting.popleft().fail(Unavailable("The provider's settings have changed; try again.", code="provider_changed"))

    def counts(self) -> dict[str, tuple[int, int, int]]:
        """Return for each provider how many connections are open, how many of these are idle, and how many calls wait."""
        return {name: (len(origin.open), len(origin.idle), len(origin.waiting)) for name, origin in self._origins.items()}

    def close(self) -> None:
        """Close every connection; calls under way fail."""
        self.closed = True
        for timer in (self._timer, self._redial):
            if timer is not None:
                timer.cancel()
        for origin in (*self._origins.values(), *self._retired):
            if not origin.retired:
                self._retire(origin)
            for connection in tuple(origin.open):
                connection.abort()
