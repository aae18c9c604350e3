"""The messages that cross between our processes, grouped by edge (DESIGN §2). An edge's union says who may send what.

Bulk data of calls between worker and egress goes over `ipc.mux`; everything here travels one to a packet over `ipc.channel`.
Lists are paged by their senders so that each packet stays below `MAX_CONTROL_MESSAGE_BYTES`.
"""

from __future__ import annotations

import msgspec

from cliproxy.secret import Secret

POLICY_KEYS_PER_PACKET = 64
LIST_ITEMS_PER_PAGE = 64


class _Message(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True, kw_only=True):
    """A message: its class name is its tag."""


# --- policy feed: vault -> egress -> workers -------------------------------------------------------------------------


class KeyRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A client key as the policy feed carries it.

    `digest` is SHA-256(SHA-256(key)), 32 bytes. `models` are public names, `("*",)` for all; `networks` CIDR blocks, empty for anywhere.
    `expires_at` in seconds since the epoch, 0 for never. Limits of 0 mean none.
    """

    id: str
    digest: bytes
    name: str
    models: tuple[str, ...]
    networks: tuple[str, ...] = ()
    expires_at: int = 0
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    concurrency: int = 0


class PolicyRules(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What holds for everybody: blocked networks (CIDR), lockdown (no calls at all), providers that are off."""

    blocked: tuple[str, ...] = ()
    lockdown: bool = False
    disabled_providers: tuple[str, ...] = ()


class PolicyBegin(_Message, frozen=True):
    """A whole snapshot follows: `PolicyKeys` packets, then `PolicyEnd` with the same number. It replaces everything at `PolicyEnd`."""

    number: int


class PolicyKeys(_Message, frozen=True):
    """Part of a snapshot."""

    keys: tuple[KeyRecord, ...]


class PolicyEnd(_Message, frozen=True):
    """The snapshot is whole and in force."""

    number: int
    rules: PolicyRules


class PolicyChange(_Message, frozen=True):
    """Update `number` (the one before was `number - 1`): keys added or changed, ids revoked, and the rules if they changed."""

    number: int
    keys: tuple[KeyRecord, ...] = ()
    revoked: tuple[str, ...] = ()
    rules: PolicyRules | None = None


# --- egress-vault ----------------------------------------------------------------------------------------------------


class Grant(_Message, frozen=True):
    """A credential for use: only egress gets it, and only for `origin` (`https://host:port`), which is part of the sealed record."""

    id: str
    provider: str
    origin: str
    secret: Secret


class GrantsEnd(_Message, frozen=True):
    """Every credential that there is has been granted."""

    count: int


class Withdraw(_Message, frozen=True):
    """The credential is gone: forget it."""

    id: str


class VaultAlive(_Message, frozen=True):
    """Once a second: the vault serves, and this is the newest policy number."""

    number: int


class EgressHello(_Message, frozen=True):
    """Egress (re)connected. The vault answers with a policy snapshot and all grants."""

    build: str


class PolicyAck(_Message, frozen=True):
    """Policy `number` is in force in egress and in `workers` of `of_workers`; `streams_ended` calls were cancelled by it. Sent when all have
    acknowledged, or after one second with those that had."""

    number: int
    workers: int
    of_workers: int
    streams_ended: int


class LastUse(_Message, frozen=True):
    """Key ids and when each was last used (seconds since the epoch); at most once in ten seconds."""

    keys: dict[str, int]


class CooldownRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A credential (empty: the provider wants none) that is not used for a model at an endpoint until `until`, seconds since the epoch; 0: it is again.

    `status` is the provider's (0: it did not answer), `code` our word for it, `strikes` how often in a row its rate was limited.
    """

    provider: str
    credential: str
    model: str
    endpoint: str
    until: float
    status: int
    code: str
    strikes: int = 0


class CooldownsChanged(_Message, frozen=True):
    """What has changed since the last of these, at most `COOLDOWNS_PER_PACKET`, at most once a second. `afresh`: what was told before is void."""

    cooldowns: tuple[CooldownRecord, ...]
    afresh: bool = False


class Cooldowns(_Message, frozen=True):
    """What egress told before it was restarted: before the policy, so before any call."""

    cooldowns: tuple[CooldownRecord, ...]


VaultToEgress = PolicyBegin | PolicyKeys | PolicyEnd | PolicyChange | Grant | GrantsEnd | Withdraw | VaultAlive | Cooldowns
EgressToVault = EgressHello | PolicyAck | LastUse | CooldownsChanged


# --- admin-vault -----------------------------------------------------------------------------------------------------


class _Request(_Message, frozen=True):
    """`request` pairs an answer with its request; `operator` names who asked (`uid:1000`), for the audit log."""

    request: int
    operator: str


class CreateKey(_Request, frozen=True):
    """Store a client key. The command that shows it made it; only `digest` gets here. `id` and times are the vault's."""

    digest: bytes
    name: str
    models: tuple[str, ...]
    networks: tuple[str, ...] = ()
    expires_at: int = 0
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    concurrency: int = 0


class RevokeKey(_Request, frozen=True):
    """Revoke by id or by name."""

    key: str


class ListKeys(_Request, frozen=True):
    """One page of keys with an id greater than `after`."""

    after: str = ""


class AddCredential(_Request, frozen=True):
    """`sealed` was sealed to the vault's public key (`vault.crypto.seal_to`); the origin comes from the vault's own settings."""

    provider: str
    label: str
    sealed: bytes


class RemoveCredential(_Request, frozen=True):
    """Remove by id."""

    id: str


class ListCredentials(_Request, frozen=True):
    """One page of credentials with an id greater than `after`."""

    after: str = ""


class ListCooldowns(_Request, frozen=True):
    """The cooldowns that have not ended, from the `after`th on."""

    after: int = 0


class SetRules(_Request, frozen=True):
    """Replace the rules that hold for everybody."""

    rules: PolicyRules


class GetRules(_Request, frozen=True):
    """The rules in force."""


class GetVaultStatus(_Request, frozen=True):
    """Counts, epoch, key term, public key."""


class KeyInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What may be shown of a key. Times in seconds since the epoch, 0 for never."""

    id: str
    name: str
    models: tuple[str, ...]
    networks: tuple[str, ...]
    created_at: int
    expires_at: int
    revoked_at: int
    last_used_at: int
    requests_per_minute: int
    tokens_per_minute: int
    concurrency: int


class CredentialInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What may be shown of a credential: never any part of the secret."""

    id: str
    provider: str
    label: str
    origin: str
    created_at: int


class KeyCreated(_Message, frozen=True):
    request: int
    key: KeyInfo


class KeyRevoked(_Message, frozen=True):
    """`egress` says whether egress acknowledged within its second; without a running gateway it is False and nothing was needed."""

    request: int
    id: str
    serving: bool
    egress: bool
    workers: int
    of_workers: int
    streams_ended: int


class KeyPage(_Message, frozen=True):
    """`more`: ask again with the last id."""

    request: int
    keys: tuple[KeyInfo, ...]
    more: bool


class CredentialPage(_Message, frozen=True):
    request: int
    credentials: tuple[CredentialInfo, ...]
    more: bool


class CooldownPage(_Message, frozen=True):
    """`more`: ask again with as many as were told so far. They may change between two pages."""

    request: int
    cooldowns: tuple[CooldownRecord, ...]
    more: bool


class CredentialAdded(_Message, frozen=True):
    request: int
    credential: CredentialInfo


class RulesInForce(_Message, frozen=True):
    request: int
    rules: PolicyRules


class VaultStatus(_Message, frozen=True):
    """`public_key` is the raw X25519 key that commands seal to."""

    request: int
    vault_id: str
    epoch: int
    root: bytes
    records: int
    key_term: int
    policy_number: int
    public_key: bytes


class Done(_Message, frozen=True):
    request: int


class Refused(_Message, frozen=True):
    """The request was not carried out. `message` is one line for the operator, with the cure."""

    request: int
    message: str


AdminToVault = CreateKey | RevokeKey | ListKeys | AddCredential | RemoveCredential | ListCredentials | ListCooldowns | SetRules | GetRules | GetVaultStatus
VaultToAdmin = KeyCreated | KeyRevoked | KeyPage | CredentialPage | CooldownPage | CredentialAdded | RulesInForce | VaultStatus | Done | Refused


# --- vault-auditor ---------------------------------------------------------------------------------------------------
# Spoken once on the vault's audit channel, before the first event, and again with each new auditor; afterwards `audit.client` has the channel.


class LogKey(_Message, frozen=True):
    """The log's signing key: an Ed25519 seed (32 bytes). The vault keeps it sealed."""

    secret: Secret


class Anchor(_Message, frozen=True):
    """What the log knows of the vault: the last `vault_commit`, and the last `vault_intent` if it came after that. Epochs are 0 and roots empty
    when there is none."""

    epoch: int
    root: bytes
    pending_epoch: int
    pending_root: bytes


VaultToAuditor = LogKey
AuditorToVault = Anchor


# --- admin-auditor ---------------------------------------------------------------------------------------------------


class TakeCheckpoint(_Request, frozen=True):
    """Sign a checkpoint of the log as it is now."""


class CheckpointTaken(_Message, frozen=True):
    """`note` is the signed note (C2SP tlog-checkpoint), text. It is in `logs/checkpoints` too."""

    request: int
    note: str


class GetAuditStatus(_Request, frozen=True):
    """How the log stands."""


class GetAuditTail(_Request, frozen=True):
    """The last `count` lines (1 to `LIST_ITEMS_PER_PAGE`) before index `before` (0: the newest), as far as the auditor still has them."""

    count: int
    before: int = 0


class AuditStatus(_Message, frozen=True):
    """`root` is the tree's hash at `size`; `note` the last checkpoint, empty if there is none; `healthy`: the log takes entries."""

    request: int
    size: int
    root: bytes
    segment: int
    note: str
    public_key: bytes
    healthy: bool


class AuditLines(_Message, frozen=True):
    """`first` is the index of the first of `lines` (canonical JSON without the newline)."""

    request: int
    first: int
    lines: tuple[str, ...]


AdminToAuditor = TakeCheckpoint | GetAuditStatus | GetAuditTail
AuditorToAdmin = CheckpointTaken | AuditStatus | AuditLines | Refused


# --- egress-dialer ---------------------------------------------------------------------------------------------------


class Dial(_Message, frozen=True):
    """Connect to an origin of the dialer's own table. There is no way to name an address."""

    dial: int
    origin: str


class Dialled(_Message, frozen=True):
    """The connected socket comes along as a descriptor. `address` is for the log."""

    dial: int
    address: str


class DialFailed(_Message, frozen=True):
    """`reason` is one of: `not_enrolled`, `resolve`, `forbidden_address`, `refused`, `timeout`, `unreachable`, `busy`."""

    dial: int
    reason: str


EgressToDialer = Dial
DialerToEgress = Dialled | DialFailed
