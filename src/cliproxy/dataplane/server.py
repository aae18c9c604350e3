"""The client connections of one worker: bytes to requests and answers to bytes (DESIGN §3, steps 1 and 2, and what the client sees of 10).

What always holds:
- A connection has at most one request under way; pipelined ones wait in order, unread bytes behind it are bounded, then reading stops.
- Every state but "a request is under way" has a deadline; one sweep a second looks at all of them.
- A client that does not read costs `MAX_UNSENT_BYTES` at most and is aborted when it stays so.
- After broken framing: one error answer, then close. Nothing that follows it is ever looked at.
- A bug that raises in one connection's code closes that connection and no other.
- One `transport.write` per connection and loop turn: answers collect until `flush_dirty`.
"""

from __future__ import annotations

import asyncio
import email.utils
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from cliproxy.bounds import DRAIN_IDLE_SECONDS, LISTEN_BACKLOG, MAX_HELD_BODY_BYTES, SWEEP_SECONDS
from cliproxy.config.schema import ServerLimits
from cliproxy.dataplane.connection import Connection, State, Verdict
from cliproxy.dataplane.errors import encode_error
from cliproxy.errors import CliproxyError
from cliproxy.ingress.address import Address
from cliproxy.ingress.framing import RawRequest
from cliproxy.ingress.headers import security_headers
from cliproxy.ingress.rules.address_rate import AddressRate
from cliproxy.ingress.rules.table import AcceptRules
from cliproxy.ingress.tls import ServerContext

__all__ = ["Connection", "Exchange", "RawRequest", "Server", "State"]


class Exchange(Protocol):
    """Who answers requests. What it raises (but `CliproxyError` from `on_request`, which is answered) closes the connection."""

    def on_request(self, connection: Connection, request: RawRequest) -> None:
        """Answer `request`, now or later, through `connection`. The next one of this connection comes only after that."""

    def on_client_gone(self, connection: Connection) -> None:
        """The client closed, or was aborted, while its request was under way. Answers are dropped from now on."""

    def on_paused(self, connection: Connection) -> None:
        """The client does not read: send no more than a bounded buffer."""

    def on_writable(self, connection: Connection) -> None:
        """It reads again."""


class Server:
    """All client connections of a worker. Make it after the loop; `start` it with the inherited listening sockets.

    `fault` is told what a bug raised, `denied` which address a rule turned away and the rule's name; neither may raise or block.
    """

    def __init__(
        self,
        exchange: Exchange,
        *,
        loop: asyncio.AbstractEventLoop,
        limits: ServerLimits,
        rules: AcceptRules,
        address_rate: AddressRate | None,
        tls: ServerContext | None,
        fault: Callable[[BaseException], None],
        denied: Callable[[str, str], None],
        sweep_seconds: float = SWEEP_SECONDS,
        max_held_bytes: int = MAX_HELD_BODY_BYTES,
    ) -> None:
        self.exchange = exchange
        self.limits = limits
        self.tls = tls
        self.draining = False
        self.collecting = False  # somebody will call `flush_dirty` before this loop turn ends
        self.held = 0  # body bytes of requests that are not answered, of all connections
        self._max_held = max_held_bytes
        self._loop = loop
        self._rules = rules
        self._rate = address_rate
        self._fault = fault
        self._denied = denied
        self._sweep_seconds = sweep_seconds
        self._now = loop.time()
        self._connections: set[Connection] = set()
        self._dirty: list[Connection] = []
        self._flush_planned = False
        self._listeners: list[asyncio.AbstractServer] = []
        self._handshakes: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._common = (b"", b"")
        self._date = ""

    # --- life ---

    async def start(self, sockets: Sequence[socket.socket]) -> None:
        """Accept on `sockets`, which are bound already, and begin to sweep."""
        self._sweep()
        for sock in sockets:
            self._listeners.append(await self._loop.create_server(lambda: Connection(self), sock=sock, backlog=LISTEN_BACKLOG))

    def drain(self) -> None:
        """Accept no more; requests under way are finished and answered with `Connection: close`; idle connections close within about a second."""
        self.draining = True
        self.stop_accepting()
        deadline = self._loop.time() + DRAIN_IDLE_SECONDS
        for connection in tuple(self._connections):
            connection.drain(deadline)

    def stop_accepting(self) -> None:
        """Close our descriptors of the listening sockets."""
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()

    def abort_all(self) -> None:
        """Break every connection off: the drain timeout is over."""
        for connection in tuple(self._connections):
            connection.drop()

    @property
    def open_connections(self) -> int:
        """How many connections there are. 0 after `drain`: everything is answered."""
        return len(self._connections)

    def block(self, networks: Iterable[str]) -> None:
        """Put the policy feed's blocked networks in force: for new connections, and open ones of these networks end now."""
        self._rules.block(networks)
        for connection in tuple(self._connections):
            if not self._rules.still_admits(connection.client):
                connection.drop()

    # --- the end of a loop turn ---

    def flush_dirty(self) -> None:
        """Write what connections collected. Call it at the end of a turn that answers several (a channel's `data_received`)."""
        self.collecting = False
        while self._dirty:
            dirty, self._dirty = self._dirty, []
            for connection in dirty:
                try:
                    connection.flush()
                except Exception as error:  # noqa: BLE001 - a bug in one connection's code closes that connection and no other
                    connection.failed(error)

    def mark_dirty(self, connection: Connection) -> None:
        """`connection` has something to write. Outside a declared turn a flush is planned for the loop's next one."""
        self._dirty.append(connection)
        if not self.collecting and not self._flush_planned:
            self._flush_planned = True
            self._loop.call_soon(self._planned_flush)

    def _planned_flush(self) -> None:
        self._flush_planned = False
        self.flush_dirty()

    # --- time ---

    def after(self, seconds: float) -> float:
        """Return the deadline that passes in `seconds`, or up to two sweeps later: the clock is the sweep's, which costs nothing."""
        return self._now + seconds + self._sweep_seconds

    def _sweep(self) -> None:
        self._now = now = self._loop.time()
        self._sweeper = self._loop.call_later(self._sweep_seconds, self._sweep)
        date = email.utils.formatdate(time.time(), usegmt=True)  # RFC 9110 §6.6.1
        if date != self._date:
            self._date = date
            line = b"Date: " + date.encode("ascii") + b"\r\n"
            self._common = (line + security_headers(secure=False), line + security_headers(secure=True))
        for connection in tuple(self._connections):
            try:
                connection.sweep(now)
            except Exception as error:  # noqa: BLE001 - as in flush_dirty
                connection.failed(error)

    # --- what a connection asks for ---

    def admit(self, connection: Connection, address: Address) -> Verdict:
        """Step 1. Whoever is served or refused is counted until `forget`."""
        denied = self._rules.denied_by(address)
        if denied is not None:
            self._denied(address.text, denied)
            # In clear the address learns why, if there is room; over TLS a handshake would be too dear for it.
            if self.tls is not None or denied != "ip_lists" or not self._rules.counts(address):
                return Verdict.CLOSE
        elif self._rate is not None:
            connection.slot = self._rate.slot(address.group)
        self._connections.add(connection)
        return Verdict.SERVE if denied is None else Verdict.REFUSE

    def forget(self, connection: Connection, address: Address) -> None:
        """`connection` is gone."""
        self._connections.discard(connection)
        self._rules.release(address)

    def prepay(self, connection: Connection) -> float | None:
        """Let a request whose body is still to come pay its address's token now: None, or the seconds until there is one."""
        if self._rate is None:
            return None
        wait = self._rate(connection, time.monotonic())
        connection.prepaid = wait is None
        return wait

    @property
    def is_overloaded(self) -> bool:
        """Whether we hold more bodies than we may."""
        return self.held > self._max_held

    def common_headers(self, *, secure: bool) -> bytes:
        """Date and security headers, encoded."""
        return self._common[secure]

    def encode_error(self, error: CliproxyError) -> tuple[int, bytes, bytes]:
        """Encode an error of a request that the exchange never saw, or raised, with an id of its own."""
        return encode_error(error, f"req_{secrets.token_hex(10)}")

    def report_fault(self, error: BaseException) -> None:
        """Code of ours raised `error`."""
        self._fault(error)

    def shake_hands(self, connection: Connection, transport: asyncio.Transport) -> None:
        """Begin TLS on an admitted connection. Nothing was read from it yet: the loop reads only after this turn's callbacks."""
        task = self._loop.create_task(self._shake_hands(connection, transport))
        self._handshakes.add(task)
        task.add_done_callback(self._handshakes.discard)

    async def _shake_hands(self, connection: Connection, transport: asyncio.Transport) -> None:
        assert self.tls is not None
        connection.secure = True  # from here on the transport's bytes go through TLS
        try:
            secured = await self._loop.start_tls(transport, connection, self.tls, server_side=True, ssl_handshake_timeout=self.limits.head_timeout_seconds)
        except (OSError, ValueError, RuntimeError) as error:  # ssl.SSLError is an OSError; a client that is no TLS client is no fault of ours
            transport.abort()
            connection.connection_lost(error)  # TLS does not tell the protocol of a handshake that failed
            return
        if secured is None or connection.state is State.CLOSED:
            transport.abort()
            connection.connection_lost(None)
            return
        try:
            connection.opened(secured, secure=True)
        except Exception as error:  # noqa: BLE001 - as in flush_dirty
            connection.failed(error)
        self.flush_dirty()
