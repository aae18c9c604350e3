"""The three sides of a client's connection: who has it, who answers its requests, and what the latter sees of it. Neither imports the other."""

from __future__ import annotations

from typing import Protocol, TypeVar

from cliproxy.config.schema import ServerLimits
from cliproxy.dataplane.rooms import Account, Room
from cliproxy.errors import CliproxyError
from cliproxy.ingress.address import IpAddress
from cliproxy.ingress.framing import RawRequest
from cliproxy.ingress.head import PartialHead
from cliproxy.ingress.rules.address_rate import Buckets

C = TypeVar("C", contravariant=True)


class Client(Protocol):
    """A client's connection, as the exchange sees it. Answers to one that is gone are dropped.

    `address` and `ip` are the client's, normalised. `paused`: the client does not read, send no more than a bounded buffer. `call` and `presented` are the
    exchange's own: what belongs to the request under way, and to the connection. What the connection holds counts for `account`.
    """

    account: Account
    address: str
    call: object
    ip: IpAddress
    paused: bool
    prepaid: bool
    presented: object
    buckets: Buckets | None

    def authenticated(self, presented: object, account: Account) -> None:
        """A key is good on this connection, `presented`: from now on it is no stranger's, and what it holds, and will hold, counts for `account`."""

    def has_room_for(self, count: int) -> bool:
        """Whether a whole answer of `count` bytes may be added to what the client's principal does not read."""

    def hold_back(self, change: int) -> None:
        """Count bytes that the exchange keeps until the client reads; negative: that it keeps no more. A client that has more than its share is dropped."""

    def respond(self, status: int, headers: bytes, body: bytes) -> None:
        """Send a whole answer to the request under way. `headers`: encoded lines, each with its CRLF. Adds Content-Length, Connection, Date, security."""

    def start_stream(self, status: int, headers: bytes) -> None:
        """Begin an answer of unknown length: chunked, or delimited by the connection's end for HTTP/1.0. `end_stream` or `abort` must follow."""

    def write_chunk(self, data: bytes) -> None:
        """Add to the stream. What one loop turn adds leaves as one chunk in one write. A client that let too much pile up is dropped."""

    def end_stream(self) -> None:
        """The stream is complete; the connection goes on with its next request."""

    def abort(self) -> None:
        """Break the connection off, so that the client can't take what it has for the whole answer. The exchange is not told: it knows."""


class Exchange(Protocol):
    """Who answers requests. What it raises (but `CliproxyError` from `on_head` and `on_request`, which is answered) closes the connection."""

    def on_body(self, connection: Client, request: RawRequest) -> None:
        """The body of `request` is still to come: raise `RateLimited` if its sender may not ask now. `on_request` counts it no second time."""

    def on_head(self, connection: Client, request: RawRequest) -> None:
        """Raise what `request`, whose body is large and still to come, is refused for whatever that says. If it is not, `on_request` asks again."""

    def on_request(self, connection: Client, request: RawRequest) -> None:
        """Answer `request`, now or later, through `connection`. The next one of this connection comes only after that."""

    def on_client_gone(self, connection: Client) -> None:
        """The client closed, or was dropped, while its request was under way. Answers are ignored from now on."""

    def on_paused(self, connection: Client) -> None:
        """The client does not read: send no more than a bounded buffer."""

    def on_writable(self, connection: Client) -> None:
        """It reads again."""


class Host(Protocol[C]):
    """Who has a connection of type `C`. `bodies` and `unread` are the rooms that all connections share; `common` is what every answer's head says, encoded:
    in clear, over TLS."""

    bodies: Room
    collecting: bool
    common: tuple[bytes, bytes]
    draining: bool
    exchange: Exchange
    limits: ServerLimits
    strangers: Account
    unread: Room

    def after(self, seconds: float) -> float:
        """Return the deadline that passes in `seconds`."""

    def remember(self, connection: C) -> None:
        """`connection` carries HTTP from now on."""

    def forget(self, connection: C) -> None:
        """`connection` is gone."""

    def mark_dirty(self, connection: C) -> None:
        """`connection` has something to write."""

    def flush_dirty(self) -> None:
        """Write what connections collected."""

    def authenticated(self, connection: C) -> None:
        """A key was good on `connection`."""

    def end(self, connection: C) -> None:
        """End `connection`, in whatever state it is, for somebody else to have room."""

    def encode_error(self, error: CliproxyError, seen: RawRequest | PartialHead) -> tuple[int, bytes, bytes]:
        """Encode an error of a request that the exchange never saw, or raised. `seen` is what the request seems to say."""

    def report_fault(self, error: BaseException) -> None:
        """Code of ours raised `error`."""
