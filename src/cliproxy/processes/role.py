"""What every process does with the supervisor's orders. A process's own file holds its work; which orders it takes is its row of `topology.ORDERS`.

`Role` is a state machine without a loop of its own: orders in, reports out, the process's work called in between.

    settled ──PREPARE n──▶ prepared ──COMMIT n──▶ settled, in generation n
       ▲                      │
       └──────ABANDON n───────┘                   STOP, in either: leaving; what comes after it is nobody's

An order that is not in the row, comes in the wrong state, names another generation, or has the wrong number of descriptors raises `ChannelError`. That ends the
process, whichever loop it has (`take_orders` in a poll loop, `attend` in an event loop), and its successor starts with the settings in force.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from enum import Enum, auto
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

import msgspec

from cliproxy.config.schema import Settings, decode_settings
from cliproxy.errors import ChannelError, CliproxyError
from cliproxy.ipc.channel import ChannelClosed, PacketChannel
from cliproxy.ipc.control import Down, Order, Up, close_all, descriptors_of
from cliproxy.ipc.silence import Silence
from cliproxy.processes import child
from cliproxy.processes.boot import Boot, read_sealed
from cliproxy.processes.child import Control
from cliproxy.processes.descriptors import channel, is_socket
from cliproxy.processes.lines import describe, say
from cliproxy.processes.topology import CHANNELS, ORDERS, RECONFIGURED

if TYPE_CHECKING:
    import asyncio  # processes with a poll loop do not load it

ORPHAN_SECONDS = 45.0  # without a channel that a process needs; longer than the supervisor's longest back-off (30 s)

T = TypeVar("T")
Incoming = TypeVar("Incoming")

ALIVE_SECONDS: Final = 2.0  # between two signs of life; five of them fit the shortest time after which the supervisor takes a process for hung


class Stage(Enum):
    """Of a role, as the module says."""

    SETTLED = auto()
    PREPARED = auto()
    LEAVING = auto()


_STANDING: Final = frozenset({Stage.SETTLED, Stage.PREPARED})
_MAY_COME: Final[dict[Down, frozenset[Stage]]] = {
    Down.PREPARE: frozenset({Stage.SETTLED}),
    Down.COMMIT: frozenset({Stage.PREPARED}),
    Down.ABANDON: _STANDING,  # SETTLED: everybody is told, also who refused or was started since
    **dict.fromkeys((Down.DRAIN, Down.STOP, Down.REPLACE, Down.SEGMENT, Down.RELOADED, Down.REOPENED), _STANDING),
}


class Reconfigurable(Protocol[T]):
    """A process that takes new settings while it runs. `T` is what it makes of them before it is told to use it."""

    def check(self, settings: Settings) -> T:
        """Return what `settings` mean for this process; nothing is in force yet. Raises `CliproxyError` or `ValueError` when they will not do."""

    def adopt(self, checked: T) -> None:
        """Use it from now on."""


class Losable(Protocol):
    """A channel that may be away. `lost_at`: since when, in monotonic seconds; `None` when it is there."""

    @property
    def lost_at(self) -> float | None: ...


class Role(Generic[T]):
    """One process's part in the supervisor's protocol. `generation` is that of the settings in force, `leaving` whether it was told to stop."""

    def __init__(
        self,
        boot: Boot,
        *,
        report: Callable[[Up, int], None],
        replaced: Mapping[int, Callable[[], None]],
        drain: Callable[[int], None],
        settings: Reconfigurable[T] | None = None,
        further: Mapping[Down, Callable[..., None]] = MappingProxyType({}),
        needs: Mapping[str, Losable],
    ) -> None:
        """`replaced`: by descriptor number, what to do when a new channel is on it. `drain`: let what is under way finish, for at most so many seconds,
        then call `drained`. `further`: the orders of this role alone, called with the argument and, where one comes along, the descriptor, which is closed
        afterwards. `needs`: by the peer's name, the channels without which it cannot work.

        Raises `ValueError` when that is not the role's row of the topology.
        """
        self._name = boot.role
        self._takes = ORDERS[boot.role]
        self.generation = boot.generation
        self._report = report
        self._replaced = dict(replaced)
        self._drain = drain
        self._settings = settings
        self._further = dict(further)
        self._prepared: tuple[int, T] | None = None
        self._stage = Stage.SETTLED
        self._losses = [(peer, needed, _Loss()) for peer, needed in needs.items()]
        self._alive_at = 0.0
        self._acts: dict[Down, Callable[[Order], None]] = {
            Down.PREPARE: self._prepare,
            Down.COMMIT: self._commit,
            Down.ABANDON: self._abandon,
            Down.DRAIN: lambda order: drain(order.argument),
            Down.STOP: self._stop,
            Down.REPLACE: self._replace,
        }
        own = self._takes - self._acts.keys()
        if own != self._further.keys() or self._replaced.keys() != CHANNELS[self._name].keys() or (settings is None) == (self._takes >= RECONFIGURED):
            raise ValueError(f"what {self._name} does is not its row of the topology")

    @property
    def leaving(self) -> bool:
        """Whether the supervisor has said STOP."""
        return self._stage is Stage.LEAVING

    # --- orders in -----------------------------------------------------------------------------------------------------

    def take(self, order: Order) -> None:
        """Carry out one order; its descriptors are closed afterwards. Raises `ChannelError` for one that may not come: the process must end."""
        try:
            if self.leaving:
                return
            if order.kind not in self._takes:
                raise ChannelError(f"{self._name} takes no {order.kind.name}")
            if len(order.descriptors) != (0 if order.kind is Down.REPLACE else descriptors_of(order.kind)):  # a REPLACE's is on its number already
                raise ChannelError(f"a {order.kind.name} with {len(order.descriptors)} descriptors")
            if self._stage not in _MAY_COME[order.kind]:
                raise ChannelError(f"a {order.kind.name} of generation {order.argument} while {self._stage.name.lower()}")
            further = self._further.get(order.kind)
            if further is not None:
                further(order.argument, *order.descriptors)
            else:
                self._acts[order.kind](order)
        finally:
            close_all(order.descriptors)

    def _prepare(self, order: Order) -> None:
        assert self._settings is not None
        if order.argument <= self.generation:
            raise ChannelError(f"a PREPARE of generation {order.argument} in generation {self.generation}")
        try:
            checked = self._settings.check(decode_settings(read_sealed(order.descriptors[0])))
        except (CliproxyError, msgspec.DecodeError, OSError, ValueError) as error:
            say(f"cliproxy: {self._name} refuses the new configuration: {describe(error)}")
            self._report(Up.REFUSED, order.argument)
            return
        self._prepared = (order.argument, checked)
        self._stage = Stage.PREPARED
        self._report(Up.PREPARED, order.argument)

    def _commit(self, order: Order) -> None:
        assert self._settings is not None
        checked = self._settle(order)
        assert checked is not None
        self.generation = order.argument
        self._settings.adopt(checked)
        self._report(Up.COMMITTED, order.argument)

    def _abandon(self, order: Order) -> None:
        if self._prepared is not None:
            self._settle(order)

    def _settle(self, order: Order) -> T | None:
        """Return what was prepared for the generation that `order` names, and forget it."""
        if self._prepared is None or self._prepared[0] != order.argument:
            raise ChannelError(f"a {order.kind.name} of generation {order.argument}, which was not prepared")
        (_, checked), self._prepared = self._prepared, None
        self._stage = Stage.SETTLED
        return checked

    def _replace(self, order: Order) -> None:
        replaced = self._replaced.get(order.argument)
        if replaced is None:
            raise ChannelError(f"{self._name} has no channel on descriptor {order.argument}")
        replaced()

    def _stop(self, _order: Order) -> None:
        self._stage = Stage.LEAVING

    # --- reports out ---------------------------------------------------------------------------------------------------

    def ready(self) -> None:
        """Say that this process serves."""
        self._report(Up.READY, self.generation)

    def drained(self) -> None:
        """Say that nothing is under way any more."""
        self._report(Up.DRAINED, self.generation)

    def tick(self, now: float) -> None:
        """Give the sign of life when it is due, and see whether the channels that this process needs are there. Belongs into a tick that it has anyway.

        Raises `ChannelError` when one has been closed for longer than the supervisor takes to bring the next: then both ends live, one closed it for what
        the other sent, and only a new start gives them a new one.
        """
        if now >= self._alive_at:
            self._alive_at = now + ALIVE_SECONDS
            self._report(Up.ALIVE, self.generation)
        for peer, needed, loss in self._losses:
            if loss.lasts(now, needed.lost_at) > ORPHAN_SECONDS:
                raise ChannelError(f"the channel to {peer} is closed and no other came")


class _Loss:
    """How long a channel has been away, this time."""

    __slots__ = ("_lost_at", "_silence")

    def __init__(self) -> None:
        self._lost_at: float | None = None
        self._silence = Silence()

    def lasts(self, now: float, lost_at: float | None) -> float:
        if lost_at is None or lost_at != self._lost_at:
            self._silence.end()
        self._lost_at = lost_at
        return 0.0 if lost_at is None else self._silence.look(now)


# --- the two kinds of loop ---------------------------------------------------------------------------------------------


def take_orders(control: Control, role: Role[Any]) -> None:
    """Carry out the orders that wait: for a poll loop, which goes on until `role.leaving`. Raises `ChannelError`."""
    for order in control.receive():
        role.take(order)


def attend(loop: asyncio.AbstractEventLoop, control: Control, role: Role[Any], *, name: str) -> None:
    """Carry out orders as they come, in an event loop. STOP ends the process `name`, and so does whatever an order raises: the loop would go on."""

    def on_orders() -> None:
        try:
            take_orders(control, role)
        except BaseException as error:  # noqa: BLE001 - the way out of the process
            child.end(name, error)
        if role.leaving:
            os._exit(0)

    loop.add_reader(control.fileno(), on_orders)


# --- a channel that a restarted peer's replaces ------------------------------------------------------------------------


class Peer(Generic[Incoming]):
    """The channel to another process, on its descriptor number; away while that process is restarted. Made closed: `open` takes what is there.

    `incoming`, `per_second` and `secrets` are `PacketChannel`'s.
    """

    def __init__(self, number: int, *, name: str, incoming: Any, per_second: float, secrets: bool) -> None:
        self.number = number
        self.name = name
        self._incoming = incoming
        self._per_second = per_second
        self._secrets = secrets
        self._channel: PacketChannel[Incoming] | None = None
        self.lost_at: float | None = None

    @property
    def is_there(self) -> bool:
        """Whether there is a channel."""
        return self._channel is not None

    def open(self) -> None:
        """Take the channel that is on the number now, if there is one. An old one's object is let go of without a word: the number is the new one's already."""
        if self._channel is not None:
            self._channel.release()
        self._channel = None
        if is_socket(self.number):
            sock = channel(self.number)
            self._channel = PacketChannel(sock, incoming=self._incoming, peer=self.name, per_second=self._per_second, secrets=self._secrets)
        self.lost_at = None if self._channel is not None else time.monotonic()

    def close(self) -> None:
        """End the channel; the number stays occupied for the next one."""
        if self._channel is not None:
            self._channel.abandon()
            self._channel = None
            self.lost_at = time.monotonic()

    def send(self, message: object, descriptors: tuple[int, ...] = ()) -> bool:
        """Send; False when the peer's queue is full. Raises `ChannelClosed`, also when the peer is away."""
        if self._channel is None:
            raise ChannelClosed(f"{self.name} is away")
        return self._channel.send(message, descriptors)

    def tell(self, message: object) -> bool:
        """Send; False when the peer is away or does not take it. That it is gone is noticed again when the loop reads."""
        try:
            return self.send(message)
        except ChannelClosed:
            return False

    def hear(self, take: Callable[[Incoming], None], *, most: int, violated: Callable[[str, ChannelError], None]) -> bool:
        """Hand what waits to `take`, at most `most` messages. False: there is no channel now; it ended, or broke the rules, which `violated` was told first."""
        try:
            for _ in range(most):
                message = None if self._channel is None else self._channel.receive()
                if message is None:
                    break
                take(message)
        except ChannelClosed:
            self.close()
        except ChannelError as error:
            violated(self.name, error)
            self.close()
        return self._channel is not None
