"""Calls to providers: which connection carries a call, and how long it may take.

What always holds:
- A call ends once: `on_complete` or `on_failure`, or nothing at all after `cancel()`.
- A request is written once. What may have left is never sent again; `Sent.may_have_left` tells the owner whether it may try elsewhere.
- A connection is used again only after a complete answer on it that allows it, and never for another provider.
- Redirects are not followed, and error bodies are not passed on: an answer of 300 or above is an `on_failure`.
- Connections, waiting calls and every duration are bounded; deadlines are looked at once a second (`sweep`), not by a timer per call.

The bytes of an answer are `upstream.py`'s business, connecting is the dialer's.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import Callable, Mapping
from typing import Protocol

from cliproxy.bounds import (
    DIAL_AGAIN_SECONDS,
    MAX_CONNECTIONS_PER_PROVIDER,
    MAX_JOINED_REQUEST_BYTES,
    MAX_UPSTREAM_CONNECTIONS,
    MAX_WAITING_PER_PROVIDER,
    SWEEP_SECONDS,
    UPSTREAM_IDLE_SECONDS,
)
from cliproxy.config.schema import Provider
from cliproxy.dialects import Endpoint
from cliproxy.egress.inject import BoundCredential
from cliproxy.egress.peer import Peer, peer_of
from cliproxy.egress.tunnel import open_tunnel
from cliproxy.egress.upstream import Connection, Sent, UpstreamCall
from cliproxy.errors import CliproxyError, Unavailable, UpstreamError
from cliproxy.providers.origin import Origin, parse_base_url
from cliproxy.providers.table import facts_of


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
    "dialer_gone": (503, "dialer_gone", "Connections to providers can not be made now."),
}


def _dial_failure(reason: str) -> CliproxyError:
    status, code, message = _DIAL_FAILURES.get(reason, _DIAL_FAILURES["unreachable"])
    return Unavailable(message, code=code) if status == 503 else UpstreamError(message, status=status, code=code)


class Lane:
    """One provider: its origin, trust, deadlines, connections and the calls that wait for one."""

    def __init__(self, name: str, *, origin: Origin, context: ssl.SSLContext | None, provider: Provider) -> None:
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
        self._lanes: dict[str, Lane] = {}
        self._retired: list[Lane] = []
        self._connecting: set[asyncio.Task[None]] = set()
        self._sweep_seconds = sweep_seconds
        self._timer: asyncio.TimerHandle | None = None
        self._redial: asyncio.TimerHandle | None = None
        self._closed = False
        self.retable(providers, contexts)
        self._timer = loop.call_later(sweep_seconds, self._sweep_and_rearm)

    # --- calls ---------------------------------------------------------------------------------------------------

    def send(self, call: UpstreamCall, bound: BoundCredential, endpoint: Endpoint, body: bytes, *, stream: bool, model: str = "") -> Sent:
        """Send `body` to `bound`'s provider; what becomes of it is told to `call`, never before this returns. `model` is the
        provider's name of the model, for paths that hold it.

        Raises `Unavailable` if it can't be sent or queued now, and `ForeignOrigin` if the credential is sealed for another origin; nothing left then.
        """
        lane = self._lanes.get(bound.provider)
        if lane is None or self._closed:
            raise Unavailable("The provider has no origin.", code="provider_not_enrolled")
        head = bound.head(endpoint, origin=lane.origin_text, stream=stream, model=model, body=body)
        sent = Sent(call, self, lane, bound.guard, stream, head, body, self._loop.time(), endpoint, bound.framing)
        idle = lane.idle
        while idle:
            connection = idle.pop()
            if connection.usable():
                self._start(connection, sent)
                return sent
        self._wait(lane, sent)
        return sent

    def _start(self, connection: Connection, sent: Sent) -> None:
        head, body = sent.head, sent.body
        sent.head = sent.body = b""  # the head holds the credential: not kept longer than needed
        sent.may_have_left = True
        connection.begin(sent, self._loop.time())
        if len(body) <= MAX_JOINED_REQUEST_BYTES:
            connection.transport.write(head + body)
        else:
            connection.transport.writelines((head, body))

    def _wait(self, lane: Lane, sent: Sent) -> None:
        if len(lane.waiting) >= MAX_WAITING_PER_PROVIDER:
            raise _dial_failure("no_room")
        lane.waiting.append(sent)
        self._dial(lane)
        if not self._has_hope(lane):
            lane.waiting.pop()
            raise _dial_failure("dialer_gone")

    def forget_waiting(self, sent: Sent) -> None:
        """Take a cancelled call out of its queue. A connection that was asked for on its behalf goes to the next call, or becomes idle."""
        try:
            sent.lane.waiting.remove(sent)
        except ValueError:
            pass

    # --- connections ---------------------------------------------------------------------------------------------

    def _dial(self, lane: Lane) -> bool:
        """Ask for one more connection, unless as many are coming as calls wait, or a bound is reached."""
        if len(lane.open) + lane.dialling >= self._limit or lane.dialling >= len(lane.waiting):
            return False
        total = sum(len(other.open) + other.dialling for other in (*self._lanes.values(), *self._retired))
        if total >= MAX_UPSTREAM_CONNECTIONS and not self._evict():
            return False
        if not self._dialer.dial(lane.peer, lambda sock, reason: self._dialled(lane, sock, reason)):
            return False
        lane.dialling += 1
        return True

    def _has_hope(self, lane: Lane) -> bool:
        """Whether a call that waits may still get a connection. Where the dialer is there and only takes no more at once, it is asked again soon: one
        client that makes us connect all the time must not cost the others their calls."""
        if lane.open or lane.dialling or self._dial(lane):
            return True
        if self._dialer.is_there and self._redial is None:
            self._redial = self._loop.call_later(DIAL_AGAIN_SECONDS, self._dial_again)
        return self._dialer.is_there

    def _dial_again(self) -> None:
        self._redial = None
        for lane in tuple(self._lanes.values()):
            while self._dial(lane):
                pass
            while lane.waiting and not self._has_hope(lane):
                lane.waiting.popleft().fail(_dial_failure("dialer_gone"))

    def _evict(self) -> bool:
        for lane in self._lanes.values():
            if lane.idle:
                lane.idle.pop(0).abort()
                return True
        return False

    def _dialled(self, lane: Lane, sock: socket.socket | None, reason: str) -> None:
        if sock is None:
            lane.dialling -= 1
            self._connect_failed(lane, _dial_failure(reason))
        elif self._closed or lane.retired:
            lane.dialling -= 1
            sock.close()
        else:
            task = self._loop.create_task(self._connect(lane, sock))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    async def _connect(self, lane: Lane, sock: socket.socket) -> None:
        failure: CliproxyError | None = None
        try:
            if lane.proxied:
                await open_tunnel(self._loop, sock, lane.origin, seconds=lane.timeouts.connect)
            await self._loop.create_connection(
                lambda: Connection(self, lane),
                sock=sock,
                ssl=lane.context,
                server_hostname=lane.origin.host if lane.context is not None else None,
                ssl_handshake_timeout=lane.timeouts.connect if lane.context is not None else None,
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
            lane.dialling -= 1
        if failure is not None:
            sock.close()
            self._connect_failed(lane, failure)

    def _connect_failed(self, lane: Lane, error: CliproxyError) -> None:
        """One connection less is coming: one waiting call fails, and the rest keep a connection to hope for."""
        if lane.waiting:
            lane.waiting.popleft().fail(error)
        while lane.waiting and not self._has_hope(lane):
            lane.waiting.popleft().fail(error)

    def ready(self, connection: Connection) -> None:
        """A connection is new, or its answer is complete and it may be used again: give it to the next call."""
        lane = connection.lane
        lane.open.add(connection)
        if lane.waiting and connection.usable():
            self._start(connection, lane.waiting.popleft())
        elif lane.retired or self._closed:
            connection.abort()
        else:
            connection.since = self._loop.time()
            lane.idle.append(connection)

    def gone(self, connection: Connection) -> None:
        """A connection is closed."""
        lane = connection.lane
        lane.open.discard(connection)
        if connection in lane.idle:
            lane.idle.remove(connection)
        if lane.waiting and not self._closed and not self._dial(lane) and not self._has_hope(lane):
            self._connect_failed(lane, _dial_failure("dialer_gone"))

    # --- time, reload, end ---------------------------------------------------------------------------------------

    def _sweep_and_rearm(self) -> None:
        if not self._closed:  # armed first: a fault in one sweep must not be the end of all deadlines
            self._timer = self._loop.call_later(self._sweep_seconds, self._sweep_and_rearm)
        self.sweep(self._loop.time())

    def sweep(self, now: float) -> None:
        """Enforce every deadline that passed by `now` (the loop's clock, seconds)."""
        for lane in (*self._lanes.values(), *self._retired):
            timeouts = lane.timeouts
            while lane.waiting and now - lane.waiting[0].started > timeouts.connect:
                lane.waiting.popleft().fail(_dial_failure("timeout" if lane.dialling or not lane.open else "no_room"))
            for connection in tuple(lane.open):
                connection.enforce(timeouts, now)
            for connection in [connection for connection in lane.idle if now - connection.since > UPSTREAM_IDLE_SECONDS]:
                lane.idle.remove(connection)
                connection.abort()
            while self._dial(lane):
                pass
        self._retired = [lane for lane in self._retired if lane.open or lane.dialling]

    def retable(self, providers: Mapping[str, Provider], contexts: Mapping[str, ssl.SSLContext]) -> None:
        """Take a new table of providers. Calls under way go on; connections of providers that stay the same are kept."""
        lanes = {}
        for name, provider in providers.items():
            if not facts_of(name, kind=provider.kind).remote or not provider.base_url:
                continue
            origin, _ = parse_base_url(provider.base_url)
            if origin.tls and name not in contexts:
                raise Unavailable(f"provider {name} has no TLS context", code="provider_no_trust")
            lane = Lane(name, origin=origin, context=contexts[name] if origin.tls else None, provider=provider)
            old = self._lanes.get(name)
            lanes[name] = old if old is not None and old.settings == lane.settings else lane
        for name, lane in self._lanes.items():
            if lanes.get(name) is not lane:
                self._retire(lane)
        self._lanes = lanes

    def _retire(self, lane: Lane) -> None:
        lane.retired = True
        self._retired.append(lane)
        idle, lane.idle = lane.idle, []
        for connection in idle:
            connection.abort()
        while lane.waiting:
            lane.waiting.popleft().fail(Unavailable("The provider's settings have changed; try again.", code="provider_changed"))

    def counts(self) -> dict[str, tuple[int, int, int]]:
        """Return for each provider how many connections are open, how many of these are idle, and how many calls wait."""
        return {name: (len(lane.open), len(lane.idle), len(lane.waiting)) for name, lane in self._lanes.items()}

    def close(self) -> None:
        """Close every connection; calls under way fail."""
        self._closed = True
        for timer in (self._timer, self._redial):
            if timer is not None:
                timer.cancel()
        for lane in (*self._lanes.values(), *self._retired):
            if not lane.retired:
                self._retire(lane)
            for connection in tuple(lane.open):
                connection.abort()
