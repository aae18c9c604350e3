"""What egress knows of credentials that are not used for a while, kept so that a restart does not forget it.

What always holds: nothing here decides anything; it is bounded; what egress tells is checked before it is kept. Told at most once a second, written every
`COOLDOWN_FLUSH_SECONDS` and at the end (ADR 0105): a killed egress forgets at most a second, a killed gateway ten.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from cliproxy.audit.events import VaultEvent
from cliproxy.bounds import COOLDOWNS_PER_PACKET, MAX_COOLDOWNS, MAX_LABEL_CHARS, MAX_MODEL_NAME_CHARS, MODEL_COOLDOWN_SECONDS
from cliproxy.errors import ChannelError
from cliproxy.ipc.messages import CooldownRecord
from cliproxy.vault.records import COOLDOWNS, COOLDOWNS_ID, KeptCooldowns, decode, encode
from cliproxy.vault.store import Anchor, Store, Write

_FORGOTTEN_AFTER: Final = 3600.0  # seconds after its end: how often a rate was limited in a row means nothing any more
_CLOCK_STEP: Final = 60.0  # seconds by which egress's reading of the clock may be ahead of ours
_MAX_STRIKES: Final = 1_000_000

_Key = tuple[str, str, str, str]


class Cooldowns:
    """`clock` gives seconds since the epoch."""

    def __init__(self, store: Store, *, anchor: Anchor[VaultEvent], clock: Callable[[], float]) -> None:
        self._store = store
        self._anchor = anchor
        self._clock = clock
        self._changed = False
        self._kept: dict[_Key, CooldownRecord] = {}
        if store.entry(COOLDOWNS_ID) is not None:
            self._kept = {_key_of(record): record for record in decode(store.read(COOLDOWNS_ID), KeptCooldowns).cooldowns}

    def records(self) -> tuple[CooldownRecord, ...]:
        """Everything that is worth telling egress."""
        self._forget()
        return tuple(self._kept.values())

    def in_force(self) -> tuple[CooldownRecord, ...]:
        """Those whose time is not over, by name."""
        now = self._clock()
        return tuple(self._kept[key] for key in sorted(self._kept) if self._kept[key].until > now)

    def note(self, records: Sequence[CooldownRecord], *, afresh: bool) -> None:
        """Take what egress tells; `afresh`: it begins anew, and what was told before is void. Raises `ChannelError` for what no egress of ours tells."""
        latest = self._clock() + MODEL_COOLDOWN_SECONDS + _CLOCK_STEP
        if len(records) > COOLDOWNS_PER_PACKET or not all(_is_sound(record, latest) for record in records):
            raise ChannelError("egress told of a cooldown that cannot be")
        if afresh:
            self._kept.clear()
        for record in records:
            if record.until == 0.0:
                self._kept.pop(_key_of(record), None)
            elif len(self._kept) < MAX_COOLDOWNS or _key_of(record) in self._kept:
                self._kept[_key_of(record)] = record
        self._changed = True

    def flush(self) -> None:
        """Write what was told, if anything was. Raises what `Store.change` raises; then it is written next time."""
        if not self._changed:
            return
        self._forget()
        plaintext = encode(KeptCooldowns(cooldowns=tuple(self._kept.values())))
        self._store.change([Write(id=COOLDOWNS_ID, kind=COOLDOWNS, plaintext=plaintext)], (), anchor=self._anchor, because=())
        self._changed = False

    def _forget(self) -> None:
        before = self._clock() - _FORGOTTEN_AFTER
        for key in [key for key, record in self._kept.items() if record.until < before]:
            del self._kept[key]


def _key_of(record: CooldownRecord) -> _Key:
    return record.provider, record.credential, record.model, record.endpoint


def _is_sound(record: CooldownRecord, latest: float) -> bool:
    labels = (record.provider, record.credential, record.endpoint, record.code)
    return (
        all(len(text) <= MAX_LABEL_CHARS and text.isprintable() for text in labels)
        and len(record.model) <= MAX_MODEL_NAME_CHARS
        and record.model.isprintable()
        and 0.0 <= record.until <= latest
        and 0 <= record.status <= 599
        and 0 <= record.strikes <= _MAX_STRIKES
    )
