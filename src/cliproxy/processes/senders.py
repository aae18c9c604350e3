"""The auditor's end of everybody's audit channel: packets in, acknowledgements out, one descriptor number per sender.

The vault begins with the log's key and gets its anchor; everybody else begins with events. A channel that carries what it may not is closed.
What a dead sender had sent is still read: its end closed, its packets are there.

Waking up costs more than the work, so the queues of those who send much are looked at by the clock (`Pace`): 20 ms apart at a thousand packets a
second, the more often the more there is, down to 4 ms, so that a queue of 160 packets is never full. Who waits for each event is heard at once.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterable
from typing import Final, Protocol

import msgspec

from cliproxy.audit.client import ACKNOWLEDGEMENT, DURABLE, FAILED, NOTED
from cliproxy.audit.events import timestamp
from cliproxy.audit.intake import Source
from cliproxy.bounds import MAX_CONTROL_MESSAGE_BYTES
from cliproxy.errors import ChannelError
from cliproxy.ipc.channel import ChannelClosed, PacketChannel
from cliproxy.ipc.messages import Anchor, LogKey, VaultToAuditor
from cliproxy.processes.descriptors import channel, is_socket, vacate
from cliproxy.processes.topology import ADMIN, DIALER, EGRESS, SUPERVISOR, VAULT, WORKER, AuditorDescriptors

# In this order they are read when several wait: egress's intents hold up calls.
SENDERS: Final[dict[int, tuple[str, str]]] = {
    AuditorDescriptors.EGRESS_FD: (EGRESS, EGRESS),
    AuditorDescriptors.VAULT_FD: (VAULT, VAULT),
    AuditorDescriptors.SUPERVISOR_FD: (SUPERVISOR, SUPERVISOR),
    AuditorDescriptors.ADMIN_FD: (ADMIN, ADMIN),
    AuditorDescriptors.DIALER_FD: (DIALER, DIALER),
    **{number: (WORKER, f"{WORKER}-{index}") for index, number in enumerate(AuditorDescriptors.WORKER_FDS)},
}
AWAITED: Final = frozenset({VAULT, ADMIN, SUPERVISOR})  # few events, each waited for
FEW: Final = tuple(number for number, (role, _) in SENDERS.items() if role in AWAITED)
MANY: Final = tuple(number for number, (role, _) in SENDERS.items() if role not in AWAITED)
_PACKETS_PER_TURN: Final = 512  # whatever a queue holds when packets are small; the channel's socket buffer bounds the bytes
_KEYS_PER_SECOND: Final = 8.0  # the vault sends one to each auditor
_LEAST_NAP_SECONDS: Final = 0.004  # after the first packet of a quiet time: 40,000 packets a second fill no queue meanwhile
_LONGEST_NAP_SECONDS: Final = 0.02  # as long as a batch lingers (`AUDIT_SYNC_SECONDS`)
_PACKETS_PER_NAP: Final = 80  # half of what a sender's queue holds: 212,992 bytes of socket buffer, some 1,300 a packet
_LONGEST_QUEUE: Final = 4096  # packets; more than a socket buffer holds of the smallest
_CLOSED: Final = select.POLLHUP | select.POLLERR | select.POLLNVAL


class Owner(Protocol):
    """The auditor."""

    def take(self, source: Source, packet: bytes, *, now: float, stamp: str) -> None:
        """A packet of events. Raises `ChannelError`."""

    def take_key(self, message: LogKey) -> Anchor:
        """The vault's key. Raises `ChannelError`."""

    def violation(self, peer: str, reason: str) -> None:
        """A channel was closed for what it carried."""


class Pace:
    """When the queues of those who send much are looked at next. Times are one steady clock's seconds."""

    def __init__(self) -> None:
        self.until = 0.0  # not before
        self.quiet = True  # nothing was there: the next packet may wake us
        self._looked_at = 0.0

    def begin(self, now: float) -> bool:
        """Something is there. `True`: look now; `False`: it is the first of a quiet time, and more will follow: look when the nap is over."""
        if not self.quiet:
            return True
        self.quiet = False
        self._looked_at = now
        self.until = now + _LEAST_NAP_SECONDS
        return False

    def looked(self, now: float, packets: int) -> None:
        """`packets` were taken. After none it is quiet, and the next one wakes us."""
        self.quiet = not packets
        per_second = packets / max(now - self._looked_at, _LEAST_NAP_SECONDS)
        self._looked_at = now
        self.until = now + min(_LONGEST_NAP_SECONDS, max(_LEAST_NAP_SECONDS, _PACKETS_PER_NAP / per_second)) if packets else now


class _Channel(msgspec.Struct):
    """One sender's channel. `handshake`: the vault's, until its key came."""

    sock: socket.socket
    source: Source
    handshake: PacketChannel[VaultToAuditor] | None = None


class Senders:
    """All of them. The polls are the owner's: each open channel is registered in `poll`, and in `awaited_poll` where each event is waited for."""

    def __init__(self, owner: Owner, poll: select.poll, awaited_poll: select.poll) -> None:
        self._owner = owner
        self._poll = poll
        self._awaited_poll = awaited_poll
        self._channels: dict[int, _Channel] = {}
        for number in SENDERS:
            self.open(number)

    def open(self, number: int) -> None:
        """Take the channel that is on `number` now, if there is one. An old one's object is let go of without touching the number."""
        if number in self._channels:
            self._channels.pop(number).sock.detach()
            self._unregister(number)
        if not is_socket(number):
            return
        role, name = SENDERS[number]
        sock = channel(number)
        handshake: PacketChannel[VaultToAuditor] | None = None
        if role == VAULT:
            handshake = PacketChannel(sock, incoming=VaultToAuditor, peer=VAULT, per_second=_KEYS_PER_SECOND, secrets=True)
        self._channels[number] = _Channel(sock, Source(role, name), handshake)
        self._channels = {one: self._channels[one] for one in SENDERS if one in self._channels}
        self._poll.register(number, select.POLLIN)
        if role in AWAITED:
            self._awaited_poll.register(number, select.POLLIN)

    def has_awaited(self, ready: dict[int, int]) -> bool:
        """Whether a sender whose events are each waited for is in `ready`."""
        return any(number in ready and number in self._channels for number in FEW)

    def has_many(self, ready: dict[int, int]) -> bool:
        """Whether a sender that sends much is in `ready`."""
        return any(number in ready and number in self._channels for number in MANY)

    def receive(self, ready: dict[int, int], which: Iterable[int]) -> int:
        """Take what waits from those of `which` that are in `ready`, a bounded number of packets each; return how many the longest queue had."""
        return max((self._receive(number, most=_PACKETS_PER_TURN) for number in which if number in ready and number in self._channels), default=0)

    def receive_last(self, ready: Iterable[tuple[int, int]]) -> None:
        """Take everything from those whose sender has ended."""
        for number, what in ready:
            if what & _CLOSED and number in self._channels:
                self._receive(number, most=_LONGEST_QUEUE)

    def receive_rest(self) -> None:
        """Take everything that waits."""
        for number in tuple(self._channels):
            self._receive(number, most=_LONGEST_QUEUE)

    def close_source(self, source: Source, reason: str) -> None:
        """Close the channel of `source`, if it is open, for what it carried."""
        for number, one in tuple(self._channels.items()):
            if one.source is source:
                self._close(number)
        self._owner.violation(source.name, reason)

    def sealed(self) -> None:
        """Everything received is in a batch now."""
        for one in self._channels.values():
            one.source.sealed = one.source.received

    def durable(self) -> None:
        """Everything sealed is durable: acknowledge it. Whoever does not read hears of it with the next."""
        for one in self._channels.values():
            if one.source.sealed > one.source.acknowledged and _tell(one.sock, DURABLE, one.source.sealed):
                one.source.acknowledged = one.source.sealed

    def trouble(self, failing: bool) -> None:
        """Tell everybody that the log takes nothing, or does again."""
        for one in self._channels.values():
            if one.handshake is None:
                _tell(one.sock, FAILED if failing else DURABLE, one.source.acknowledged)

    def noted(self, size: int, root: bytes) -> None:
        """Tell the vault of a durable checkpoint. One that does not read hears of the next."""
        vault = self._channels.get(AuditorDescriptors.VAULT_FD)
        if vault is not None and vault.handshake is None:
            _send(vault.sock, NOTED.pack(0, size, root))

    def _close(self, number: int) -> None:
        """End the channel; the number stays occupied."""
        self._channels.pop(number).sock.detach()
        vacate(number)
        self._unregister(number)

    def _unregister(self, number: int) -> None:
        self._poll.unregister(number)
        if SENDERS[number][0] in AWAITED:
            self._awaited_poll.unregister(number)

    def _receive(self, number: int, *, most: int) -> int:
        """Take up to `most` packets and return how many there were; close the channel when it ended or broke the rules."""
        one = self._channels[number]
        now = time.monotonic()
        stamp = timestamp(time.time())
        taken = 0
        for _ in range(most):
            try:
                if one.handshake is not None:
                    if not self._shake_hands(one, one.handshake):
                        break
                    continue
                packet = one.sock.recv(MAX_CONTROL_MESSAGE_BYTES + 1, socket.MSG_DONTWAIT)
                if not packet:
                    self._close(number)
                    break
                taken += 1
                self._owner.take(one.source, packet, now=now, stamp=stamp)
            except BlockingIOError:
                break
            except ConnectionResetError:
                continue  # reported once, when the peer died with acknowledgements unread; what it had sent is still there
            except ChannelClosed as error:
                if isinstance(error.__cause__, ConnectionResetError):
                    continue
                self._close(number)
                break
            except ChannelError as error:
                self.close_source(one.source, str(error))
                break
        return taken

    def _shake_hands(self, one: _Channel, handshake: PacketChannel[VaultToAuditor]) -> bool:
        """Take the vault's key and answer with its anchor. `False`: it has not come yet."""
        message = handshake.receive()
        if message is None:
            return False
        if not handshake.send(self._owner.take_key(message)):
            raise ChannelError("the vault does not read its anchor")
        one.handshake = None
        return True


def _tell(sock: socket.socket, state: int, batch: int) -> bool:
    """Send an acknowledgement; `False` when the sender does not read or is gone."""
    return _send(sock, ACKNOWLEDGEMENT.pack(state, batch))


def _send(sock: socket.socket, packet: bytes) -> bool:
    try:
        sock.send(packet, socket.MSG_DONTWAIT)
    except OSError:
        return False
    return True
