"""The vault's contents: client keys, credentials, the policy feed's state and the log key, over the sealed store.

What always holds: every change is in the audit log before it is in the store and in the store before it is in here; the policy number grows by one with
each change that the feed carries and is stored with it; no digest is ever accepted twice, revoked ones included; a credential keeps the origin that it
was sealed for, whatever the configuration says later. No secret of a credential stays in memory: it is opened for each grant.
"""

from __future__ import annotations

import os
import re
import time
from bisect import bisect_right, insort
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import msgspec

from cliproxy.audit.events import CredentialChange, KeyChange, PolicyChange, VaultEvent, clip
from cliproxy.bounds import MAX_CLIENT_KEYS
from cliproxy.errors import VaultConflict
from cliproxy.ipc import messages
from cliproxy.ipc.commands import AddCredential, CreateKey, CredentialInfo, KeyInfo
from cliproxy.ipc.messages import Grant, KeyRecord, PolicyRules
from cliproxy.secret import Secret
from cliproxy.vault.cooldowns import Cooldowns
from cliproxy.vault.crypto import Random, credential_context, open_sealed
from cliproxy.vault.records import (
    CLIENT_KEY,
    CREDENTIAL,
    LAST_USE,
    LOG_KEY,
    LOG_KEY_BYTES,
    LOG_KEY_ID,
    LOG_SEEN,
    LOG_SEEN_ID,
    POLICY,
    POLICY_ID,
    ClientKey,
    Credential,
    LastUses,
    LogSeen,
    Policy,
    decode,
    encode,
    verify_credential_secret,
    verify_key,
    verify_label,
    verify_rules,
)
from cliproxy.vault.store import Anchor, Store, Write

MAX_CREDENTIALS = 1000

_KEY_ID = re.compile(r"key_[0-9a-f]{16}")
_FEW_ENTRIES = 4  # what a writing of ours puts into the log, and room: so many more are not worth another
_NETWORKS_PER_EVENT = 10  # 43 characters each: they fit one text field of an event
T = TypeVar("T", KeyInfo, CredentialInfo)


def first_records(random: Random = os.urandom) -> tuple[Write, ...]:
    """Return what a new vault begins with: the log key and the policy's first number."""
    return (
        Write(id=LOG_KEY_ID, kind=LOG_KEY, plaintext=random(LOG_KEY_BYTES)),
        Write(id=POLICY_ID, kind=POLICY, plaintext=encode(Policy(number=1, rules=PolicyRules()))),
    )


class Contents:
    """`clock` gives seconds since the epoch. Changes raise what `Store.change` raises."""

    def __init__(self, store: Store, *, anchor: Anchor[VaultEvent], clock: Callable[[], float] = time.time, random: Random = os.urandom) -> None:
        self.store = store
        self._anchor = anchor
        self._clock = clock
        self._random = random
        self._policy = decode(store.read(POLICY_ID), Policy)
        self._key_ids = store.ids(CLIENT_KEY)
        self._keys = {id: decode(store.read(id), ClientKey) for id in self._key_ids}
        self._digests = {key.key.digest for key in self._keys.values()}
        self._names = {key.key.name: id for id, key in self._keys.items() if not key.revoked_at}
        self._last_use: dict[str, int] = {}
        for bucket in store.ids(LAST_USE):
            self._last_use.update(decode(store.read(bucket), LastUses).keys)
        self._used_since: set[str] = set()
        self.cooldowns = Cooldowns(store, anchor=anchor, clock=clock)
        self._sealed_log = decode(store.read(LOG_SEEN_ID), LogSeen) if store.entry(LOG_SEEN_ID) is not None else LogSeen(size=0, root=b"")
        self._log = self._sealed_log
        self._credential_ids = store.ids(CREDENTIAL)
        self._credentials = {id: self._info_of(id) for id in self._credential_ids}

    # --- reading -----------------------------------------------------------------------------------------------------

    @property
    def number(self) -> int:
        """The newest policy number."""
        return self._policy.number

    @property
    def rules(self) -> PolicyRules:
        """The rules for everybody."""
        return self._policy.rules

    def keys_in_force(self) -> tuple[KeyRecord, ...]:
        """Every key that is not revoked; expiry is judged where calls are."""
        return tuple(key.key for key in self._keys.values() if not key.revoked_at)

    def keys(self, *, after: str) -> Iterable[KeyInfo]:
        """Yield what may be shown of each key with an id above `after`, by id."""
        for id in self._key_ids[bisect_right(self._key_ids, after) :]:
            yield self._key_info(id)

    def credentials(self, *, after: str) -> Iterable[CredentialInfo]:
        """Yield what may be shown of each credential with an id above `after`, by id."""
        for id in self._credential_ids[bisect_right(self._credential_ids, after) :]:
            yield self._credentials[id]

    def credential_ids(self) -> tuple[str, ...]:
        """The ids of all credentials."""
        return tuple(self._credential_ids)

    def has_credential(self, id: str) -> bool:
        """Whether there is a credential `id`."""
        return id in self._credentials

    def credential(self, id: str) -> CredentialInfo:
        """Return what may be shown of credential `id`. Raises `VaultConflict`."""
        if id not in self._credentials:
            raise VaultConflict(f"there is no credential {id}; `cliproxy credentials list` shows them")
        return self._credentials[id]

    def open_credential(self, id: str) -> Grant:
        """Return credential `id`, opened, for egress."""
        info = self.credential(id)
        sealed = decode(self.store.read(id), Credential)
        return Grant(id=id, provider=info.provider, origin=info.origin, secret=Secret(sealed.secret))

    def log_key(self) -> Secret:
        """Return the seed of the log-signing key."""
        return self.store.read(LOG_KEY_ID)

    # --- what is known of the log ------------------------------------------------------------------------------------

    @property
    def log_seen(self) -> LogSeen:
        """What is sealed of the log: a log that is shorter was cut back, or written anew."""
        return self._sealed_log

    def note_log(self, size: int, root: bytes) -> None:
        """The log has a durable checkpoint of `size` entries with `root`."""
        self._log = LogSeen(size=size, root=root)

    def flush_log(self) -> None:
        """Seal what `note_log` told, if the log has grown by more than this itself makes it grow, or was put back and accepted so."""
        if self._sealed_log.size <= self._log.size <= self._sealed_log.size + _FEW_ENTRIES:
            return
        self.store.change([Write(id=LOG_SEEN_ID, kind=LOG_SEEN, plaintext=encode(self._log))], (), anchor=self._anchor, because=())
        self._sealed_log = self._log

    # --- client keys -------------------------------------------------------------------------------------------------

    def create_key(self, command: CreateKey, *, operator: str) -> tuple[KeyInfo, messages.PolicyChange]:
        """Store a new client key. Raises `VaultConflict` when it is not acceptable, its name is taken or its digest was ever seen."""
        id = f"key_{self._random(8).hex()}"
        record = KeyRecord(
            id=id,
            digest=command.digest,
            name=command.name,
            models=command.models,
            networks=command.networks,
            expires_at=command.expires_at,
            requests_per_minute=command.requests_per_minute,
            tokens_per_minute=command.tokens_per_minute,
            concurrency=command.concurrency,
        )
        verify_key(record)
        now = int(self._clock())
        if record.expires_at and record.expires_at <= now:
            raise VaultConflict("the key would have expired already; give a later time")
        if record.name in self._names or _KEY_ID.fullmatch(record.name):
            raise VaultConflict(f"the name {record.name} is taken; choose another, or revoke that key first")
        if record.digest in self._digests or id in self._keys:
            raise VaultConflict("this key was stored before; make a new one")
        if len(self._keys) >= MAX_CLIENT_KEYS:
            raise VaultConflict(f"there is room for {MAX_CLIENT_KEYS} keys, revoked ones included")
        key = ClientKey(key=record, created_at=now)
        change = self._change_policy(
            [Write(id=id, kind=CLIENT_KEY, plaintext=encode(key))],
            KeyChange(action="created", key=id, name=clip(record.name), operator=clip(operator)),
        )
        self._keys[id] = key
        insort(self._key_ids, id)
        self._digests.add(record.digest)
        self._names[record.name] = id
        return self._key_info(id), messages.PolicyChange(number=change, keys=(record,))

    def revoke_key(self, named: str, *, operator: str) -> tuple[str, messages.PolicyChange]:
        """Revoke the key with this id or name. Returns its id. Raises `VaultConflict` when there is none or it is revoked already."""
        id = named if named in self._keys else self._names.get(named, "")
        key = self._keys.get(id)
        if key is None:
            raise VaultConflict("there is no such key; `cliproxy keys list` shows them")
        if key.revoked_at:
            raise VaultConflict(f"key {id} is revoked already")
        revoked = msgspec.structs.replace(key, revoked_at=int(self._clock()))
        number = self._change_policy(
            [Write(id=id, kind=CLIENT_KEY, plaintext=encode(revoked))],
            KeyChange(action="revoked", key=id, name=clip(key.key.name), operator=clip(operator)),
        )
        self._keys[id] = revoked
        del self._names[key.key.name]
        return id, messages.PolicyChange(number=number, revoked=(id,))

    def note_use(self, times: Mapping[str, int]) -> None:
        """Remember when keys were last used, until `flush_use` writes it. Unknown ids and times in the future or the past are ignored."""
        now = int(self._clock())
        for id, when in times.items():
            if id in self._keys and self._last_use.get(id, 0) < when <= now + 1:
                self._last_use[id] = when
                self._used_since.add(id)

    def flush_use(self) -> None:
        """Write what `note_use` collected, in one change."""
        if not self._used_since:
            return
        dirty = {_bucket_of(id) for id in self._used_since}
        buckets: dict[str, dict[str, int]] = {bucket: {} for bucket in dirty}
        for id, when in self._last_use.items():
            bucket = _bucket_of(id)
            if bucket in dirty:
                buckets[bucket][id] = when
        writes = [Write(id=bucket, kind=LAST_USE, plaintext=encode(LastUses(keys=keys))) for bucket, keys in sorted(buckets.items())]
        self.store.change(writes, (), anchor=self._anchor, because=())
        self._used_since.clear()

    # --- credentials -------------------------------------------------------------------------------------------------

    def add_credential(self, command: AddCredential, *, origin: str, operator: str) -> CredentialInfo:
        """Open the box, judge the secret and seal it for `origin`. Raises `VaultConflict`, and `EnvelopeError` when the box was made for another purpose."""
        verify_label(command.label, what="a credential's label")
        if any(info.provider == command.provider and info.label == command.label for info in self._credentials.values()):
            raise VaultConflict(f"{command.provider} has a credential {command.label} already; remove it first, or choose another label")
        if len(self._credentials) >= MAX_CREDENTIALS:
            raise VaultConflict(f"there is room for {MAX_CREDENTIALS} credentials")
        keyring = self.store.keyring
        secret = open_sealed(
            keyring.private_key, command.sealed, context=credential_context(vault=keyring.vault, provider=command.provider, label=command.label)
        )
        try:
            verify_credential_secret(secret)
            id = f"cred_{self._random(8).hex()}"
            info = CredentialInfo(id=id, provider=command.provider, label=command.label, origin=origin, created_at=int(self._clock()))
            content = Credential(provider=info.provider, label=info.label, created_at=info.created_at, secret=secret.reveal())
            write = Write(id=id, kind=CREDENTIAL, plaintext=encode(content), origin=origin)
        finally:
            secret.wipe()
        self.store.change([write], (), anchor=self._anchor, because=[_credential_event("added", info, operator)])
        self._credentials[id] = info
        insort(self._credential_ids, id)
        return info

    def remove_credential(self, id: str, *, operator: str) -> None:
        """Delete credential `id`. Raises `VaultConflict` when there is none."""
        info = self.credential(id)
        self.store.change([], [id], anchor=self._anchor, because=[_credential_event("removed", info, operator)])
        del self._credentials[id]
        self._credential_ids.remove(id)

    # --- the rules for everybody -------------------------------------------------------------------------------------

    def set_rules(self, rules: PolicyRules, *, operator: str) -> messages.PolicyChange | None:
        """Replace the rules. `None`: they were the same. Raises `VaultConflict` when they are not acceptable."""
        verify_rules(rules)
        if rules == self._policy.rules:
            return None
        events = _rule_events(self._policy.rules, rules, number=self.number + 1, operator=clip(operator))
        number = self._change_policy([], *events, rules=rules)
        return messages.PolicyChange(number=number, rules=rules)

    def _change_policy(self, writes: Sequence[Write], *because: VaultEvent, rules: PolicyRules | None = None) -> int:
        policy = Policy(number=self._policy.number + 1, rules=self._policy.rules if rules is None else rules)
        write = Write(id=POLICY_ID, kind=POLICY, plaintext=encode(policy))
        self.store.change([*writes, write], (), anchor=self._anchor, because=because)
        self._policy = policy
        return policy.number

    def _key_info(self, id: str) -> KeyInfo:
        key = self._keys[id]
        record = key.key
        return KeyInfo(
            id=id,
            name=record.name,
            models=record.models,
            networks=record.networks,
            created_at=key.created_at,
            expires_at=record.expires_at,
            revoked_at=key.revoked_at,
            last_used_at=self._last_use.get(id, 0),
            requests_per_minute=record.requests_per_minute,
            tokens_per_minute=record.tokens_per_minute,
            concurrency=record.concurrency,
        )

    def _info_of(self, id: str) -> CredentialInfo:
        entry = self.store.entry(id)
        assert entry is not None
        sealed = decode(self.store.read(id), Credential)
        return CredentialInfo(id=id, provider=sealed.provider, label=sealed.label, origin=entry.origin, created_at=sealed.created_at)


def _bucket_of(key: str) -> str:
    """The record that holds the last use of key `key`: one of 256, so that a busy minute rewrites few records."""
    return f"last-use-{key[4:6]}"


def _credential_event(action: str, info: CredentialInfo, operator: str) -> CredentialChange:
    return CredentialChange(action=action, credential=info.id, operator=clip(operator), origin=clip(info.origin), provider=clip(info.provider))


def _rule_events(before: PolicyRules, after: PolicyRules, *, number: int, operator: str) -> list[VaultEvent]:
    """Say what changes, one event for each kind of change, ten networks to an event."""
    events: list[VaultEvent] = []

    def tell(change: str, detail: str) -> None:
        events.append(PolicyChange(change=change, detail=clip(detail), number=number, operator=operator))

    sets = (
        ("block", set(after.blocked) - set(before.blocked)),
        ("unblock", set(before.blocked) - set(after.blocked)),
        ("disable_provider", set(after.disabled_providers) - set(before.disabled_providers)),
        ("enable_provider", set(before.disabled_providers) - set(after.disabled_providers)),
    )
    for change, items in sets:
        names = sorted(items)
        step = _NETWORKS_PER_EVENT if "block" in change else 1
        for start in range(0, len(names), step):
            tell(change, ", ".join(names[start : start + step]))
    if after.lockdown != before.lockdown:
        tell("lockdown", "on" if after.lockdown else "off")
    return events or [PolicyChange(change="order", detail="the same rules in another order", number=number, operator=operator)]
