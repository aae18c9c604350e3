"""The operator's commands and their answers: one vocabulary, from the command line through admin to the vault and the auditor.

A command is a struct that names its answer (`Command[KeyRevoked]`), so there is one request and one answer for each. Every receiver has its own closed
union of what it takes:

    command line to admin       `OperatorCommand`: one JSON object to a line over `run/control.sock`; admin greets with `Hello` and answers in order
    admin to vault or auditor   `Asked[VaultCommand]`, `Asked[AuditorCommand]`: the same struct in an envelope, MessagePack, one to a packet
    vault or auditor to admin   `Answered[...]`: admin passes the answer on as it is

Every text, list and byte string is bounded, and each receiver checks it again. The peer is a program of the same build (`Hello.build` says so), but nothing
of it is trusted beyond that: anything else is answered with `Refused` on the control socket, and closes a channel. No secret has a place here: a client
key travels as its digest, a credential as a sealed box that only the vault opens. Bytes are base64 in JSON.
"""

from __future__ import annotations

from typing import Annotated, Any, Generic, TypeVar, get_args

import msgspec

from cliproxy.bounds import MAX_CHECKPOINT_BYTES, MAX_COMMAND_LINE_BYTES, MAX_CREDENTIAL_SECRET_BYTES, MAX_REPLY_LINE_BYTES
from cliproxy.errors import ChannelError
from cliproxy.ipc.fields import BlockedNetworks, Count, Digest, Label, Models, Name, Network, Networks, Number, Origin
from cliproxy.ipc.messages import CooldownRecord, PolicyRules

LIST_ITEMS_PER_PAGE = 64  # keys, credentials or cooldowns in one answer
MAX_REFUSAL_CHARS = 4096  # one line for the operator; the longest names a path of PATH_MAX
_SEALING_BYTES = 256  # what sealing adds to a credential is less
_MAX_PATH_CHARS = 4096  # PATH_MAX

R = TypeVar("R", covariant=True)
C = TypeVar("C")

_Sealed = Annotated[bytes, msgspec.Meta(min_length=1, max_length=MAX_CREDENTIAL_SECRET_BYTES + _SEALING_BYTES)]
_Path = Annotated[str, msgspec.Meta(max_length=_MAX_PATH_CHARS)]
_Note = Annotated[str, msgspec.Meta(max_length=MAX_CHECKPOINT_BYTES)]
_Line = Annotated[str, msgspec.Meta(max_length=MAX_REFUSAL_CHARS)]


# --- answers ---------------------------------------------------------------------------------------------------------


class Reply(msgspec.Struct, frozen=True, tag_field="reply", forbid_unknown_fields=True, kw_only=True):
    """An answer."""


class Done(Reply, frozen=True, tag="done"):
    """It is done and durable."""


class Refused(Reply, frozen=True, tag="refused"):
    """It was not done. `message` is one line for the operator, with the cure. Every command may be answered with it."""

    message: _Line


class KeyInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What may be shown of a key. Times in seconds since the epoch, 0 for never."""

    id: Label
    name: Label
    models: Models
    networks: Networks
    created_at: Count
    expires_at: Count
    revoked_at: Count
    last_used_at: Count
    requests_per_minute: Count
    tokens_per_minute: Count
    concurrency: Count


class CredentialInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What may be shown of a credential: never any part of the secret."""

    id: Label
    provider: Label
    label: Label
    origin: Origin
    created_at: Count


class KeyCreated(Reply, frozen=True, tag="key_created"):
    """The key is in force, or will be when egress is there."""

    key: KeyInfo


class KeyRevoked(Reply, frozen=True, tag="key_revoked"):
    """`egress`: it acknowledged in time; `workers` of `of_workers` too; `streams_ended` calls under way were cancelled. Without a gateway that serves
    (`serving`) nothing was needed."""

    id: Label
    serving: bool
    egress: bool
    workers: Count
    of_workers: Count
    streams_ended: Count


class KeyPage(Reply, frozen=True, tag="keys"):
    """`more`: ask again with the last id."""

    keys: Annotated[tuple[KeyInfo, ...], msgspec.Meta(max_length=LIST_ITEMS_PER_PAGE)]
    more: bool


class CredentialAdded(Reply, frozen=True, tag="credential_added"):
    """It is sealed for its origin."""

    credential: CredentialInfo


class CredentialPage(Reply, frozen=True, tag="credentials"):
    """`more`: ask again with the last id."""

    credentials: Annotated[tuple[CredentialInfo, ...], msgspec.Meta(max_length=LIST_ITEMS_PER_PAGE)]
    more: bool


class CooldownPage(Reply, frozen=True, tag="cooldowns"):
    """`more`: ask again with as many as were told so far. They may change between two pages."""

    cooldowns: Annotated[tuple[CooldownRecord, ...], msgspec.Meta(max_length=LIST_ITEMS_PER_PAGE)]
    more: bool


class Rules(Reply, frozen=True, tag="rules"):
    """The rules in force."""

    rules: PolicyRules


class VaultStatus(Reply, frozen=True, tag="vault_status"):
    """`public_key` is the raw X25519 key that commands seal to."""

    vault_id: Label
    epoch: Number
    root: Digest
    records: Number
    key_term: Number
    policy_number: Number
    public_key: Digest


class Status(Reply, frozen=True, tag="status"):
    """`vault` and `auditor`: whether each answered within its time just now. `host`, `port` and `cert_file` (empty: no TLS) are where it listens first,
    by the configuration in force, which the file need not be any more. `reopened`: how often a listening socket was made to listen again since the start."""

    build: Label
    serving: bool
    generation: Number
    supervisor_pid: Number
    vault: bool
    auditor: bool
    lockdown: bool
    blocked: BlockedNetworks
    host: Label
    port: Count
    reopened: Count
    cert_file: _Path


class Reloaded(Reply, frozen=True, tag="reloaded"):
    """`generation` is in force everywhere."""

    generation: Number


class CheckpointTaken(Reply, frozen=True, tag="checkpoint"):
    """`note` is the signed note (C2SP tlog-checkpoint), text. It is in `logs/checkpoints` too."""

    note: _Note


class AuditStatus(Reply, frozen=True, tag="audit_status"):
    """`root` is the tree's hash at `size` entries; `healthy`: the log takes entries; `public_key`: Ed25519, raw."""

    size: Number
    root: Digest
    segment: Number
    public_key: Digest
    healthy: bool


class Hello(Reply, frozen=True, tag="hello"):
    """First line of a connection, before any command. `serving` is False when the gateway was started for commands alone."""

    build: Label
    serving: bool


# --- commands --------------------------------------------------------------------------------------------------------


class Command(msgspec.Struct, Generic[R], frozen=True, tag_field="command", forbid_unknown_fields=True, kw_only=True):
    """A command whose answer is an `R` (or `Refused`)."""


class CreateKey(Command[KeyCreated], frozen=True, tag="keys.create"):
    """Store a client key by its digest; who shows the key made it. `expires_at` in seconds since the epoch, 0 for never; limits of 0 mean none."""

    digest: Digest
    name: Name
    models: Models
    networks: Networks = ()
    expires_at: Count = 0
    requests_per_minute: Count = 0
    tokens_per_minute: Count = 0
    concurrency: Count = 0


class RevokeKey(Command[KeyRevoked], frozen=True, tag="keys.revoke"):
    """Revoke by id or name."""

    key: Name


class ListKeys(Command[KeyPage], frozen=True, tag="keys.list"):
    """A page of keys with an id above `after`."""

    after: Label = ""


class AddCredential(Command[CredentialAdded], frozen=True, tag="credentials.add"):
    """`sealed` is a box for the vault's public key (`vault.crypto.seal_to`); the origin comes from the vault's own settings."""

    provider: Name
    label: Name
    sealed: _Sealed


class RemoveCredential(Command[Done], frozen=True, tag="credentials.remove"):
    """Remove by id."""

    id: Name


class ListCredentials(Command[CredentialPage], frozen=True, tag="credentials.list"):
    """A page of credentials with an id above `after`."""

    after: Label = ""


class ListCooldowns(Command[CooldownPage], frozen=True, tag="routes.cooldowns"):
    """A page of the cooldowns in force, from the `after`th on."""

    after: Count = 0


class GetRules(Command[Rules], frozen=True, tag="rules"):
    """The rules that hold for everybody."""


class SetRules(Command[Done], frozen=True, tag="rules.set"):
    """Replace the rules that hold for everybody. Admin's alone, which knows the rules that it changes."""

    rules: PolicyRules


class GetVaultStatus(Command[VaultStatus], frozen=True, tag="vault.status"):
    """Counts, epoch, key term, the public key to seal to."""


class TakeCheckpoint(Command[CheckpointTaken], frozen=True, tag="audit.checkpoint"):
    """Sign a checkpoint of the log as it is now."""


class GetAuditStatus(Command[AuditStatus], frozen=True, tag="audit.status"):
    """How the log stands."""


class Block(Command[Done], frozen=True, tag="block"):
    """Turn away an address or network from now on."""

    network: Network


class Unblock(Command[Done], frozen=True, tag="unblock"):
    """Undo `Block` of exactly this network."""

    network: Network


class Lockdown(Command[Done], frozen=True, tag="lockdown"):
    """No calls at all, or calls again."""

    on: bool


class GetStatus(Command[Status], frozen=True, tag="status"):
    """How the gateway is."""


class Reload(Command[Reloaded], frozen=True, tag="reload"):
    """Read the configuration file again."""


# --- who takes what --------------------------------------------------------------------------------------------------

_ForVault = CreateKey | RevokeKey | ListKeys | AddCredential | RemoveCredential | ListCredentials | ListCooldowns | GetRules | GetVaultStatus
_OfVault = KeyCreated | KeyRevoked | KeyPage | CredentialAdded | CredentialPage | CooldownPage | Rules | VaultStatus | Done | Refused
VaultCommand = _ForVault | SetRules
AuditorCommand = TakeCheckpoint | GetAuditStatus
OperatorCommand = _ForVault | AuditorCommand | Block | Unblock | Lockdown | GetStatus | Reload
VaultAnswer = _OfVault
AuditorAnswer = CheckpointTaken | AuditStatus | Refused
OperatorReply = Hello | _OfVault | CheckpointTaken | AuditStatus | Status | Reloaded


class Asked(msgspec.Struct, Generic[C], frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A command on its way from admin. `request` pairs it with its answer; `operator` names who asked (`uid:1000`), for the audit log."""

    request: Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
    operator: Name
    command: C


class Answered(msgspec.Struct, Generic[C], frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The answer to request `request`."""

    request: Number
    answer: C


AdminToVault = Asked[VaultCommand]
VaultToAdmin = Answered[VaultAnswer]
AdminToAuditor = Asked[AuditorCommand]
AuditorToAdmin = Answered[AuditorAnswer]


def answer_type(command: type[Command[Any]]) -> type[Reply]:
    """Return the type of the answer to `command`, other than `Refused`."""
    (base,) = command.__orig_bases__  # type: ignore[attr-defined]
    (answer,) = get_args(base)
    assert isinstance(answer, type) and issubclass(answer, Reply)
    return answer


# --- lines on the control socket -------------------------------------------------------------------------------------

_encoder = msgspec.json.Encoder()
_commands: msgspec.json.Decoder[Any] = msgspec.json.Decoder(OperatorCommand)
_replies: msgspec.json.Decoder[Any] = msgspec.json.Decoder(OperatorReply)


def encode_line(message: Command[Any] | Reply) -> bytes:
    """Return `message` as one line, newline included."""
    return _encoder.encode(message) + b"\n"


def complaint_about(command: Command[Any]) -> str | None:
    """Return what is wrong with a value of `command` by the bounds that admin holds it to, in words for the operator; `None` if nothing is."""
    try:
        _commands.decode(_encoder.encode(command))
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        what, _, place = str(error).rpartition(" - at `$.")
        return f"{place.rstrip('`').partition('[')[0].replace('_', ' ')}: {what[0].lower()}{what[1:]}" if what else "a value is not one that is taken"
    return None


def decode_command(line: bytes) -> OperatorCommand:
    """Return the command in `line` (without its newline); raises `ChannelError` on anything else."""
    return _decode(_commands, line, limit=MAX_COMMAND_LINE_BYTES)  # type: ignore[no-any-return]


def decode_reply(line: bytes) -> OperatorReply:
    """Return the reply in `line` (without its newline); raises `ChannelError` on anything else."""
    return _decode(_replies, line, limit=MAX_REPLY_LINE_BYTES)  # type: ignore[no-any-return]


def _decode(decoder: msgspec.json.Decoder[Any], line: bytes, *, limit: int) -> Any:
    if len(line) > limit:
        raise ChannelError(f"a line on the control socket is longer than {limit} bytes")
    try:
        return decoder.decode(line)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise ChannelError("a line on the control socket is not what this build speaks") from error
