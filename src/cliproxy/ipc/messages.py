"""The messages that cross between our processes, grouped by edge (`processes.topology`). An edge's union says who may send what.

The operator's commands, which go from admin to the vault and the auditor too, are `ipc.commands`. Bulk data of calls between worker and egress goes
over `ipc.mux`; everything here travels one to a packet over `ipc.channel`. Lists are paged by their senders so that each packet stays below
`MAX_CONTROL_MESSAGE_BYTES`.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from cliproxy.bounds import COOLDOWNS_PER_PACKET, MAX_CLIENT_KEYS
from cliproxy.ipc.fields import BlockedNetworks, Count, Digest, Label, Models, Networks, Number, Origin, ProviderModel, Providers, Root
from cliproxy.secret import Secret

POLICY_KEYS_PER_PACKET = 64


class _Message(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True, kw_only=True):
    """A message: its class name is its tag."""


# --- policy feed: vault -> egress -> workers -------------------------------------------------------------------------


class KeyRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A client key as the policy feed carries it.

    `digest` is SHA-256(SHA-256(key)), 32 bytes. `models` are public names, `("*",)` for all; `networks` CIDR blocks, empty for anywhere.
    `expires_at` in seconds since the epoch, 0 for never. Limits of 0 mean none.
    """

    id: Label
    digest: Digest
    name: Label
    models: Models
    networks: Networks = ()
    expires_at: Count = 0
    requests_per_minute: Count = 0
    tokens_per_minute: Count = 0
    concurrency: Count = 0


class PolicyRules(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What holds for everybody: blocked networks (CIDR), lockdown (no calls at all), providers that are off."""

    blocked: BlockedNetworks = ()
    lockdown: bool = False
    disabled_providers: Providers = ()


class PolicyBegin(_Message, frozen=True):
    """A whole snapshot follows: `PolicyKeys` packets, then `PolicyEnd` with the same number. It replaces everything at `PolicyEnd`."""

    number: Number


class PolicyKeys(_Message, frozen=True):
    """Part of a snapshot."""

    keys: Annotated[tuple[KeyRecord, ...], msgspec.Meta(max_length=POLICY_KEYS_PER_PACKET)]


class PolicyEnd(_Message, frozen=True):
    """The snapshot is whole and in force."""

    number: Number
    rules: PolicyRules


class PolicyChange(_Message, frozen=True):
    """Update `number` (the one before was `number - 1`): keys added or changed, ids revoked, and the rules if they changed."""

    number: Number
    keys: Annotated[tuple[KeyRecord, ...], msgspec.Meta(max_length=POLICY_KEYS_PER_PACKET)] = ()
    revoked: Annotated[tuple[Label, ...], msgspec.Meta(max_length=POLICY_KEYS_PER_PACKET)] = ()
    rules: PolicyRules | None = None


# --- egress-vault ----------------------------------------------------------------------------------------------------


class Grant(_Message, frozen=True):
    """A credential for use: only egress gets it, and only for `origin` (`https://host:port`), which is part of the sealed record."""

    id: Label
    provider: Label
    origin: Origin
    secret: Secret


class GrantsEnd(_Message, frozen=True):
    """Every credential that there is has been granted."""

    count: Count


class Withdraw(_Message, frozen=True):
    """The credential is gone: forget it."""

    id: Label


class VaultAlive(_Message, frozen=True):
    """Once a second: the vault serves, and this is the newest policy number."""

    number: Number


class EgressHello(_Message, frozen=True):
    """Egress (re)connected. The vault answers with a policy snapshot and all grants."""

    build: Label


class PolicyAck(_Message, frozen=True):
    """Policy `number` is in force in egress and in `workers` of `of_workers`; `streams_ended` calls were cancelled by it. Sent when all have
    acknowledged, or after one second with those that had."""

    number: Number
    workers: Count
    of_workers: Count
    streams_ended: Count


class LastUse(_Message, frozen=True):
    """Key ids and when each was last used (seconds since the epoch); at most once in ten seconds."""

    keys: Annotated[dict[Label, int], msgspec.Meta(max_length=MAX_CLIENT_KEYS)]


class CooldownRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A credential (empty: the provider wants none) that is not used for a model at an endpoint until `until`, seconds since the epoch; 0: it is again.

    `status` is the provider's (0: it did not answer), `code` our word for it, `strikes` how often in a row its rate was limited.
    """

    provider: Label
    credential: Label
    model: ProviderModel
    endpoint: Label
    until: float
    status: int
    code: Label
    strikes: int = 0


class CooldownsChanged(_Message, frozen=True):
    """What has changed since the last of these, at most `COOLDOWNS_PER_PACKET`, at most once a second. `afresh`: what was told before is void."""

    cooldowns: Annotated[tuple[CooldownRecord, ...], msgspec.Meta(max_length=COOLDOWNS_PER_PACKET)]
    afresh: bool = False


class Cooldowns(_Message, frozen=True):
    """What egress told before it was restarted: before the policy, so before any call."""

    cooldowns: Annotated[tuple[CooldownRecord, ...], msgspec.Meta(max_length=COOLDOWNS_PER_PACKET)]


VaultToEgress = PolicyBegin | PolicyKeys | PolicyEnd | PolicyChange | Grant | GrantsEnd | Withdraw | VaultAlive | Cooldowns
EgressToVault = EgressHello | PolicyAck | LastUse | CooldownsChanged


# --- vault-auditor ---------------------------------------------------------------------------------------------------
# Spoken once on the vault's audit channel, before the first event, and again with each new auditor; afterwards `audit.client` has the channel.


class LogKey(_Message, frozen=True):
    """The log's signing key: an Ed25519 seed (32 bytes). The vault keeps it sealed, and with it what it last heard of the log: a durable checkpoint of
    `size` entries with `root` (0 and empty: nothing yet)."""

    secret: Secret
    size: Number = 0
    root: Root = b""


class Anchor(_Message, frozen=True):
    """What the log knows of the vault: the last `vault_commit`, and the last `vault_intent` if it came after that. Epochs are 0 and roots empty
    when there is none."""

    epoch: Number
    root: Root
    pending_epoch: Number
    pending_root: Root


VaultToAuditor = LogKey
AuditorToVault = Anchor


# --- egress-dialer ---------------------------------------------------------------------------------------------------


class Dial(_Message, frozen=True):
    """Connect to an origin of the dialer's own table. There is no way to name an address."""

    dial: int
    origin: Origin


class Dialled(_Message, frozen=True):
    """The connected socket comes along as a descriptor. `address` is for the log."""

    dial: int
    address: Label


class DialFailed(_Message, frozen=True):
    """`reason` is one of: `not_enrolled`, `resolve`, `forbidden_address`, `refused`, `timeout`, `unreachable`, `busy`."""

    dial: int
    reason: Label


EgressToDialer = Dial
DialerToEgress = Dialled | DialFailed
