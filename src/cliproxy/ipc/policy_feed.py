"""The receiving end of the policy feed, the same in worker and egress: the keys, the rules, and how fresh they are.

Fresh: the vault was heard of (through egress) within `POLICY_GRACE_SECONDS`. Known keys go on that long when the vault or egress is silent;
after it, and before the first snapshot, every key gets 503: trouble of ours is never a 401.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from cliproxy.auth.principals import Principal, PrincipalTable
from cliproxy.errors import ChannelError, Unavailable
from cliproxy.ipc.messages import POLICY_KEYS_PER_PACKET, KeyRecord, PolicyBegin, PolicyChange, PolicyEnd, PolicyKeys, PolicyRules

POLICY_GRACE_SECONDS = 30.0  # docs/architecture.md: known keys go on that long when the policy feed is silent

PolicyFrame = PolicyBegin | PolicyKeys | PolicyEnd | PolicyChange
_decoder: msgspec.msgpack.Decoder[PolicyFrame] = msgspec.msgpack.Decoder(PolicyFrame)


def principal_of(record: KeyRecord) -> Principal:
    """Return the principal that `record` describes."""
    return Principal(
        id=record.id,
        digest=record.digest,
        name=record.name,
        models=record.models,
        networks=record.networks,
        expires_at=record.expires_at,
        requests_per_minute=record.requests_per_minute,
        tokens_per_minute=record.tokens_per_minute,
        concurrency=record.concurrency,
    )


class PolicyFeed:
    """The receiving end of the policy feed, the same in worker and egress. Times are monotonic seconds, passed in."""

    def __init__(self) -> None:
        self.principals = PrincipalTable()
        self.rules = PolicyRules()
        self.number = -1
        self._records: dict[str, KeyRecord] = {}
        self._snapshot: dict[str, KeyRecord] | None = None
        self._snapshot_number = -1
        self._heard_at: float | None = None

    def decode(self, payload: bytes) -> PolicyFrame:
        """Return the message in a POLICY frame."""
        return _decoder.decode(payload)

    def apply(self, message: PolicyFrame) -> tuple[str, ...] | None:
        """Apply one message. Returns the ids that lost their rights by it (empty: none), or `None` while a snapshot is incomplete.

        Raises `ChannelError` when the numbers do not follow each other.
        """
        if isinstance(message, PolicyBegin):
            self._snapshot = {}
            self._snapshot_number = message.number
            return None
        if isinstance(message, PolicyKeys):
            if self._snapshot is None:
                raise ChannelError("policy keys came without the beginning of a snapshot")
            self._snapshot.update((key.id, key) for key in message.keys)
            return None
        if isinstance(message, PolicyEnd):
            if self._snapshot is None or message.number != self._snapshot_number:
                raise ChannelError("the end of a policy snapshot does not match its beginning")
            before = self.principals.ids()
            self.principals.replace_all(principal_of(record) for record in self._snapshot.values())
            self._records, self._snapshot = self._snapshot, None
            self.number = message.number
            self.rules = message.rules
            return tuple(before - self.principals.ids())
        if self.number < 0 or message.number != self.number + 1:
            raise ChannelError(f"policy change {message.number} does not follow {self.number}")
        for record in message.keys:
            self.principals.put(principal_of(record))
            self._records[record.id] = record
        for key in message.revoked:
            self.principals.revoke(key)
            self._records.pop(key, None)
        if message.rules is not None:
            self.rules = message.rules
        self.number = message.number
        return message.revoked

    def snapshot(self) -> Iterator[PolicyFrame]:
        """Yield what is in force as the messages of a whole snapshot, for the next receiver. Only when `number` is 0 or more."""
        yield PolicyBegin(number=self.number)
        records = tuple(self._records.values())
        for start in range(0, len(records), POLICY_KEYS_PER_PACKET):
            yield PolicyKeys(keys=records[start : start + POLICY_KEYS_PER_PACKET])
        yield PolicyEnd(number=self.number, rules=self.rules)

    def age(self, now: float) -> float:
        """Seconds since the vault was last heard of; infinite before the first time."""
        return float("inf") if self._heard_at is None else now - self._heard_at

    def heard(self, *, vault_age: float, now: float) -> None:
        """The vault was alive `vault_age` seconds ago."""
        self._heard_at = now - vault_age

    def is_fresh(self, now: float) -> bool:
        """Whether decisions may rest on what we know."""
        return self.number >= 0 and self._heard_at is not None and now - self._heard_at <= POLICY_GRACE_SECONDS

    def require_fresh(self, now: float) -> None:
        """Raise `Unavailable` (503) unless `is_fresh`."""
        if not self.is_fresh(now):
            raise Unavailable("The gateway has no current list of keys; try again in a moment.", code="policy_unavailable")
