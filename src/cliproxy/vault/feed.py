"""What goes to egress, in order: what it knew of cooldowns, a policy snapshot and all grants after its hello, then each change.

What always holds: a change never overtakes the snapshot that it follows; a credential is opened when its turn comes and not before, and leaves only after
the audit log has taken the event; a peer that does not read is not queued for without bound, but gets a new snapshot when it reads again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import msgspec

from cliproxy.audit.events import CredentialAccess, VaultEvent, clip
from cliproxy.bounds import COOLDOWNS_PER_PACKET, KIB, MAX_FEED_BACKLOG
from cliproxy.ipc.messages import (
    POLICY_KEYS_PER_PACKET,
    CooldownRecord,
    Cooldowns,
    GrantsEnd,
    KeyRecord,
    PolicyBegin,
    PolicyEnd,
    PolicyKeys,
    VaultToEgress,
    Withdraw,
)
from cliproxy.vault.contents import Contents

MAX_PACKED_BYTES = 40 * KIB  # keys or list items in one packet: with its frame well below MAX_CONTROL_MESSAGE_BYTES

T = TypeVar("T")
_encoder = msgspec.msgpack.Encoder()


class GrantDue(msgspec.Struct, frozen=True):
    """A credential to open and grant when its turn comes."""

    id: str


def packed(items: Iterable[T], *, count: int) -> Iterator[tuple[tuple[T, ...], bool]]:
    """Yield `items` in groups that fit a packet, at most `count` to a group, and with each whether more come. No items: one empty group."""
    group: list[T] = []
    size = 0
    for item in items:
        length = len(_encoder.encode(item))
        if group and (len(group) >= count or size + length > MAX_PACKED_BYTES):
            yield tuple(group), True
            group, size = [], 0
        group.append(item)
        size += length
    yield tuple(group), False


class Feed:
    """The queue towards egress. `record` hands events to the audit log; False means not taken."""

    def __init__(self, contents: Contents, *, record: Callable[[Sequence[VaultEvent]], bool]) -> None:
        self._contents = contents
        self._record = record
        self._queue: deque[Iterator[VaultToEgress | GrantDue]] = deque()
        self._withdrawals: dict[str, Withdraw] = {}  # queued and not sent: a new snapshot does not say what is gone
        self._held: VaultToEgress | GrantDue | None = None
        self._greeted = False
        self.awaits_log = False  # whether the next message waits for the audit log rather than for egress

    @property
    def greeted(self) -> bool:
        """Whether egress is there and has asked for the snapshot."""
        return self._greeted

    @property
    def idle(self) -> bool:
        """Whether everything was sent."""
        return self._held is None and not self._queue

    def begin(self) -> None:
        """Egress said hello: the whole state, from the beginning."""
        self._greeted = True
        self._held = None
        self._withdrawals.clear()
        contents = self._contents
        self._queue = deque(
            [self._cooldowns(contents.cooldowns.records()), self._snapshot(contents.number, contents.keys_in_force()), self._grants(contents.credential_ids())]
        )

    def end(self) -> None:
        """Egress is gone: forget what it did not get."""
        self._greeted = False
        self._held = None
        self._withdrawals.clear()
        self._queue.clear()

    def tell(self, message: VaultToEgress | GrantDue) -> None:
        """Send `message` after what was told before; nothing when egress is away, its hello brings it the state."""
        if not self._greeted:
            return
        if isinstance(message, Withdraw):
            self._withdrawals[message.id] = message
        if len(self._queue) < MAX_FEED_BACKLOG:
            self._queue.append(iter((message,)))
            return
        withdrawals = dict(self._withdrawals)
        self.begin()  # the contents changed before the telling, so the new snapshot has every change
        self._withdrawals = withdrawals
        self._queue.appendleft(iter(tuple(withdrawals.values())))

    def pump(self, send: Callable[[VaultToEgress], bool]) -> bool:
        """Send what there is until `send` says that the peer's queue is full. True: nothing is left; False also when the audit log took no event."""
        self.awaits_log = False
        while True:
            if self._held is None:
                self._held = self._next()
            if self._held is None:
                return True
            if isinstance(self._held, GrantDue):
                self.awaits_log = not self._grant(self._held)
                if self.awaits_log:
                    return False
            elif not send(self._held):
                return False
            else:
                if isinstance(self._held, Withdraw):
                    self._withdrawals.pop(self._held.id, None)
                self._held = None

    def _next(self) -> VaultToEgress | GrantDue | None:
        while self._queue:
            message = next(self._queue[0], None)
            if message is not None:
                return message
            self._queue.popleft()
        return None

    def _grant(self, due: GrantDue) -> bool:
        """Put the opened credential in the place of `due`. False: its event was not taken, try again."""
        if not self._contents.has_credential(due.id):
            self._held = None  # removed meanwhile; its Withdraw is in the queue
            return True
        info = self._contents.credential(due.id)
        event = CredentialAccess(credential=due.id, origin=clip(info.origin), provider=clip(info.provider), purpose="grant")
        if not self._record((event,)):
            return False
        self._held = self._contents.open_credential(due.id)
        return True

    def _snapshot(self, number: int, keys: tuple[KeyRecord, ...]) -> Iterator[VaultToEgress]:
        rules = self._contents.rules
        return self._policy_messages(number, keys, PolicyEnd(number=number, rules=rules))

    @staticmethod
    def _policy_messages(number: int, keys: tuple[KeyRecord, ...], end: PolicyEnd) -> Iterator[VaultToEgress]:
        yield PolicyBegin(number=number)
        for group, _ in packed(keys, count=POLICY_KEYS_PER_PACKET):
            if group:
                yield PolicyKeys(keys=group)
        yield end

    @staticmethod
    def _cooldowns(records: tuple[CooldownRecord, ...]) -> Iterator[VaultToEgress]:
        for group, _ in packed(records, count=COOLDOWNS_PER_PACKET):
            if group:
                yield Cooldowns(cooldowns=group)

    @staticmethod
    def _grants(ids: tuple[str, ...]) -> Iterator[VaultToEgress | GrantDue]:
        for id in ids:
            yield GrantDue(id)
        yield GrantsEnd(count=len(ids))
