"""The client connections of one worker: bytes to requests and answers to bytes (steps 1 and 2 of docs/architecture.md, and what the client sees of 10).

What always holds:
- An address is judged before anything is spent on its connection.
- A connection has at most one request under way; pipelined ones wait in order, unread bytes behind it are bounded, then reading stops.
- Every state but "a request is under way" has a deadline; one sweep a second looks at all of them.
- A client that does not read costs one whole answer, or `MAX_UNSENT_BYTES` of a stream, and is dropped when it stays so, or when its principal has more than
  its share of what all of them together may cost (`dataplane.rooms`).
- What was held goes back to the system once it is not.
- After broken framing: one error answer, then close. Nothing that follows it is ever looked at.
- A bug that raises in one connection's code closes that connection and no other.
- One `transport.write` per connection and loop turn: answers collect until `flush_dirty`.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from cliproxy.bounds import KIB, MAX_STRANGERS_BODY_BYTES, MIB, PIPELINE_BYTES
from cliproxy.config.schema import ServerLimits
from cliproxy.dataplane.connection import Connection
from cliproxy.dataplane.errors import encode_error
from cliproxy.dataplane.host import Exchange
from cliproxy.dataplane.outbox import CLOSE, status_line
from cliproxy.dataplane.rooms import Account, Room
from cliproxy.dataplane.routes import surface_of
from cliproxy.errors import CliproxyError, NotPermitted
from cliproxy.ingress.address import parse_address
from cliproxy.ingress.framing import RawRequest
from cliproxy.ingress.head import NOTHING, PartialHead
from cliproxy.ingress.headers import security_headers
from cliproxy.ingress.rules.address_rate import AddressRate
from cliproxy.ingress.rules.table import AcceptRules
from cliproxy.ingress.tls import ServerContext
from cliproxy.memory import Ebb, give_back

MAX_UNREAD_BYTES = 64 * MIB  # answered to clients of a worker that do not read, together; a share each
MAX_HELD_BODY_BYTES = 256 * MIB  # bodies of all connections of a worker together; 503 above
DRAIN_IDLE_SECONDS = 1.0  # an idle connection of a draining worker may still send one request, which is answered with Connection: close
ACCEPTS_PER_TURN = 8  # connections; a burst is shared among the workers
INGRESS_SWEEP_SECONDS = 1.0  # docs/architecture.md: one sweep over the deadlines each second

ORDINARY_UNREAD_BYTES: Final = 256 * KIB  # one stream's window
CONNECTION_BYTES: Final = 24 * KIB  # what a connection costs that sends nothing, over TLS; measured: 18 to 35 KiB


class Server:
    """All client connections of a worker. `start` it with the inherited listening sockets.

    `fault` is told what a bug raised, `denied` which address a rule turned away and the rule's name; neither may raise or block. `address_rate` is
    asked here only where an address's buckets are; the exchange asks it for each request.
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
        sweep_seconds: float = INGRESS_SWEEP_SECONDS,
        max_held_bytes: int = MAX_HELD_BODY_BYTES,
        max_unread_bytes: int = MAX_UNREAD_BYTES,
    ) -> None:
        self.exchange = exchange
        self.limits = limits
        self.draining = False
        self.collecting = False  # somebody will call `flush_dirty` before this loop turn ends
        self.bodies = Room(max_held_bytes, least=MAX_STRANGERS_BODY_BYTES)  # bytes of requests that are not answered
        self.unread = Room(max_unread_bytes, least=ORDINARY_UNREAD_BYTES)  # bytes of answers that wait for clients that do not read
        self.strangers = Account("")
        self.common = (b"", b"")
        self._tls = tls
        self._loop = loop
        self._rules = rules
        self._rate = address_rate
        self._fault = fault
        self._denied = denied
        self._sweep_seconds = sweep_seconds
        self._now = loop.time()
        self._connections: set[Connection] = set()
        self._openings: dict[Connection, asyncio.Task[None]] = {}
        self._dirty: list[Connection] = []
        self._flush_planned = False
        self._listeners: list[socket.socket] = []
        self._exhausted: list[socket.socket] = []  # listeners that found no descriptor: not accepted on until the next sweep
        self._ebb = Ebb(give_back)
        self._date = ""

    # --- life ---

    async def start(self, sockets: Sequence[socket.socket]) -> None:
        """Accept on `sockets`, which listen already, and begin to sweep. The server owns them from now on."""
        self._sweep()
        for sock in sockets:
            if sock.getblocking():  # a locked process may not ask even what changes nothing: the flag is everybody's
                sock.setblocking(False)
            self._listeners.append(sock)
            self._loop.add_reader(sock, self._accept, sock)

    def drain(self) -> None:
        """Accept no more; requests under way are finished and answered with `Connection: close`; idle connections close within about a second."""
        self.draining = True
        for listener in self._listeners:
            self._loop.remove_reader(listener)
            listener.close()
        self._listeners.clear()
        self._exhausted.clear()
        deadline = self._loop.time() + DRAIN_IDLE_SECONDS
        for connection in tuple(self._connections):
            connection.drain(deadline)

    def abort_all(self) -> None:
        """Break every connection off: the drain timeout is over."""
        for opening in tuple(self._openings.values()):
            opening.cancel()
        for connection in tuple(self._connections):
            connection.drop()

    @property
    def open_connections(self) -> int:
        """How many connections there are. 0 after `drain`: everything is answered."""
        return len(self._connections) + len(self._openings)

    def block(self, networks: Sequence[str]) -> None:
        """Put the policy feed's blocked networks in force: for new connections, and open ones of these networks end now.

        Raises `ConfigError`, and changes nothing, if one is no network.
        """
        if not self._rules.block(networks):
            return
        for connection in tuple(self._connections):
            if not self._rules.still_admits(connection.client):
                self._denied(connection.address, "ip_lists")
                connection.drop()

    # --- step 1: accepting ---

    def _accept(self, listener: socket.socket) -> None:
        """Accept what waits, but leave some of a burst to other workers.

        We accept ourselves, not by `loop.create_server`, so that an address is judged before anything is spent on it (a TLS handshake above all),
        and because libuv closes its listener for good when descriptors run out.
        """
        for _ in range(ACCEPTS_PER_TURN):
            try:
                sock, peer = listener.accept()
            except (BlockingIOError, InterruptedError):
                return  # another worker was faster
            except ConnectionError:
                continue  # gone before we looked
            except OSError as error:  # out of descriptors or memory: those who are connected go on; try again at the next sweep
                self._loop.remove_reader(listener)
                self._exhausted.append(listener)
                self._fault(error)
                return
            try:
                self._admit(sock, peer)
            except Exception as error:  # noqa: BLE001 - a bug about one connection closes that connection and no other
                sock.close()
                self._fault(error)

    def _admit(self, sock: socket.socket, peer: tuple[str, ...]) -> None:
        try:
            client = parse_address(peer[0])
        except (IndexError, ValueError):
            sock.close()
            return
        denied = self._rules.denied_by(client)
        if denied is not None:
            self._denied(client.text, denied)
            self._turn_away(sock, say_why=denied == "ip_lists" and self._tls is None)
            return
        connection = Connection(self, client, secure=self._tls is not None, buckets=None if self._rate is None else self._rate.buckets(client.group))
        self._rules.enter(connection)
        opening = self._openings[connection] = self._loop.create_task(self._open(sock, connection))
        self._ebb.rise(self.open_connections * CONNECTION_BYTES)
        opening.add_done_callback(partial(self._opened, sock, connection))

    async def _open(self, sock: socket.socket, connection: Connection) -> None:
        handshake = None if self._tls is None else self.limits.head_timeout_seconds
        try:
            await self._loop.connect_accepted_socket(lambda: connection, sock, ssl=self._tls, ssl_handshake_timeout=handshake)
        except (OSError, RuntimeError, asyncio.CancelledError) as error:  # ssl.SSLError is an OSError; no TLS client is no fault of ours
            connection.connection_lost(error)  # nobody else tells it when the handshake failed
            sock.close()

    def _opened(self, sock: socket.socket, connection: Connection, opening: asyncio.Task[None]) -> None:
        del self._openings[connection]
        if opening.cancelled():  # before it began: nobody else has closed it
            connection.connection_lost(None)
            sock.close()

    def _turn_away(self, sock: socket.socket, *, say_why: bool) -> None:
        """Close, after a word to whoever can read it in clear. Best effort: it keeps no state and never waits."""
        try:
            if say_why:
                sock.setblocking(False)
                status, headers, body = self.encode_error(NotPermitted("Your address may not connect here.", code="address_not_permitted"))
                head = status_line(status) + self.common[False] + headers + CLOSE + b"Content-Length: %d\r\n\r\n" % len(body)
                with contextlib.suppress(BlockingIOError):
                    sock.recv(PIPELINE_BYTES)  # what is unread at `close` would reset the connection and take the answer with it
                sock.send(head + body)
        except OSError:
            pass  # it is gone
        finally:
            sock.close()

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
        """Return the deadline that passes in `seconds`, or up to two sweeps later: the clock is the sweep's, which costs nothing to read."""
        return self._now + seconds + self._sweep_seconds

    def _sweep(self) -> None:
        self._now = now = self._loop.time()
        self._loop.call_later(self._sweep_seconds, self._sweep)
        date = email.utils.formatdate(time.time(), usegmt=True)  # RFC 9110 §6.6.1
        if date != self._date:
            self._date = date
            line = b"Date: " + date.encode("ascii") + b"\r\n"
            self.common = (line + security_headers(secure=False), line + security_headers(secure=True))
        while self._exhausted:
            listener = self._exhausted.pop()
            self._loop.add_reader(listener, self._accept, listener)
        for connection in tuple(self._connections):
            try:
                connection.sweep(now)
            except Exception as error:  # noqa: BLE001 - as in flush_dirty
                connection.failed(error)
        self._ebb.look(self.bodies.taken + self.unread.taken + self.open_connections * CONNECTION_BYTES)

    # --- what a connection asks for ---

    def remember(self, connection: Connection) -> None:
        """`connection` carries HTTP from now on."""
        self._connections.add(connection)

    def forget(self, connection: Connection) -> None:
        """`connection` is gone."""
        self._connections.discard(connection)
        self._rules.release(connection)

    def authenticated(self, connection: Connection) -> None:
        """A key was good on `connection`."""
        self._rules.authenticated(connection)

    def end(self, connection: Connection) -> None:
        """End `connection`, in whatever state it is, for somebody else to have room."""
        self._denied(connection.address, "connection_caps")
        if connection in self._connections:
            connection.drop()
        elif connection in self._openings:
            self._openings[connection].cancel()  # a handshake

    def encode_error(self, error: CliproxyError, seen: RawRequest | PartialHead = NOTHING) -> tuple[int, bytes, bytes]:
        """Encode an error of a request that the exchange never saw, or raised, with an id of its own. `seen` is what the request seems to say."""
        return encode_error(error, f"req_{secrets.token_hex(10)}", surface_of(seen))

    def report_fault(self, error: BaseException) -> None:
        """Code of ours raised `error`."""
        self._fault(error)
