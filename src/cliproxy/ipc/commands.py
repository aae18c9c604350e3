"""What goes over the control socket `run/control.sock`: one JSON object to a line, a command from the operator's side, a reply from admin's.

Admin greets with `Hello` as soon as it serves the connection; then each command gets exactly one reply, in order. The peer is a program of
the same build (`Hello.build` says so), but admin trusts nothing of it beyond its uid: every line is length-checked, typed and bounded, and
anything else is answered with `Refused` and the connection is closed. No secret has a place here: a client key travels as its digest, a
credential as a sealed box that only the vault opens. Bytes are base64 in JSON.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from cliproxy.bounds import (
    MAX_COMMAND_LINE_BYTES,
    MAX_CREDENTIAL_SECRET_BYTES,
    MAX_KEY_MODELS,
    MAX_KEY_NETWORKS,
    MAX_LABEL_CHARS,
    MAX_MODEL_CHARS,
    MAX_REPLY_LINE_BYTES,
)
from cliproxy.errors import ChannelError
from cliproxy.ipc.messages import CooldownRecord, CredentialInfo, KeyInfo, PolicyRules

_Count = Annotated[int, msgspec.Meta(ge=0, le=10**15)]
_Id = Annotated[str, msgspec.Meta(max_length=MAX_LABEL_CHARS)]
_Label = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_LABEL_CHARS)]
_Model = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_MODEL_CHARS)]
_Network = Annotated[str, msgspec.Meta(min_length=2, max_length=64)]
_Digest = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
_Sealed = Annotated[bytes, msgspec.Meta(min_length=1, max_length=MAX_CREDENTIAL_SECRET_BYTES + 256)]


class _Command(msgspec.Struct, frozen=True, tag_field="command", forbid_unknown_fields=True, kw_only=True):
    """A command."""


class CreateKey(_Command, frozen=True, tag="keys.create"):
    """Store a client key by its digest. `expires_at` in seconds since the epoch, 0 for never; limits of 0 mean none."""

    digest: _Digest
    name: _Label
    models: Annotated[tuple[_Model, ...], msgspec.Meta(min_length=1, max_length=MAX_KEY_MODELS)]
    networks: Annotated[tuple[_Network, ...], msgspec.Meta(max_length=MAX_KEY_NETWORKS)] = ()
    expires_at: _Count = 0
    requests_per_minute: _Count = 0
    tokens_per_minute: _Count = 0
    concurrency: _Count = 0


class RevokeKey(_Command, frozen=True, tag="keys.revoke"):
    """Revoke by id or name."""

    key: _Label


class ListKeys(_Command, frozen=True, tag="keys.list"):
    """A page of keys with an id above `after`."""

    after: _Id = ""


class AddCredential(_Command, frozen=True, tag="credentials.add"):
    """`sealed` is a box for the vault's public key."""

    provider: _Label
    label: _Label
    sealed: _Sealed


class RemoveCredential(_Command, frozen=True, tag="credentials.remove"):
    """Remove by id."""

    id: _Label


class ListCredentials(_Command, frozen=True, tag="credentials.list"):
    """A page of credentials with an id above `after`."""

    after: _Id = ""


class ListCooldowns(_Command, frozen=True, tag="routes.cooldowns"):
    """A page of the cooldowns in force, from the `after`th on."""

    after: _Count = 0


class Block(_Command, frozen=True, tag="block"):
    """Turn away an address or network from now on."""

    network: _Network


class Unblock(_Command, frozen=True, tag="unblock"):
    """Undo `Block` of exactly this network."""

    network: _Network


class Lockdown(_Command, frozen=True, tag="lockdown"):
    """No calls at all, or calls again."""

    on: bool


class GetRules(_Command, frozen=True, tag="rules"):
    """The rules that hold for everybody."""


class GetVaultStatus(_Command, frozen=True, tag="vault.status"):
    """Counts, epoch, key term, the public key to seal to."""


class GetStatus(_Command, frozen=True, tag="status"):
    """How the gateway is."""


class Reload(_Command, frozen=True, tag="reload"):
    """Read the configuration file again."""


class TakeCheckpoint(_Command, frozen=True, tag="audit.checkpoint"):
    """Sign a checkpoint of the log as it is now."""


class GetAuditStatus(_Command, frozen=True, tag="audit.status"):
    """How the log stands."""


class _Reply(msgspec.Struct, frozen=True, tag_field="reply", forbid_unknown_fields=True, kw_only=True):
    """A reply."""


class Hello(_Reply, frozen=True, tag="hello"):
    """First line of a connection. `serving` is False when the gateway was started for commands alone."""

    build: str
    serving: bool


class KeyCreated(_Reply, frozen=True, tag="key_created"):
    key: KeyInfo


class KeyRevoked(_Reply, frozen=True, tag="key_revoked"):
    """`egress`: it acknowledged in time; `workers` of `of_workers` too; `streams_ended` calls under way were cancelled."""

    id: str
    serving: bool
    egress: bool
    workers: int
    of_workers: int
    streams_ended: int


class KeyPage(_Reply, frozen=True, tag="keys"):
    """`more`: ask again with the last id."""

    keys: tuple[KeyInfo, ...]
    more: bool


class CredentialAdded(_Reply, frozen=True, tag="credential_added"):
    credential: CredentialInfo


class CredentialPage(_Reply, frozen=True, tag="credentials"):
    """`more`: ask again with the last id."""

    credentials: tuple[CredentialInfo, ...]
    more: bool


class CooldownPage(_Reply, frozen=True, tag="cooldowns"):
    """`more`: ask again with as many as were told so far."""

    cooldowns: tuple[CooldownRecord, ...]
    more: bool


class Rules(_Reply, frozen=True, tag="rules"):
    rules: PolicyRules


class VaultStatus(_Reply, frozen=True, tag="vault_status"):
    """`public_key` is the raw X25519 key that commands seal to."""

    vault_id: str
    epoch: int
    root: bytes
    records: int
    key_term: int
    policy_number: int
    public_key: bytes


class Status(_Reply, frozen=True, tag="status"):
    """`vault` and `auditor`: whether each answered within its time just now. `host`, `port` and `cert_file` (empty: no TLS) are where it listens first,
    by the configuration in force, which the file need not be any more."""

    build: str
    serving: bool
    generation: int
    supervisor_pid: int
    vault: bool
    auditor: bool
    lockdown: bool
    blocked: tuple[str, ...]
    host: str
    port: int
    cert_file: str


class Reloaded(_Reply, frozen=True, tag="reloaded"):
    """`generation` is in force everywhere."""

    generation: int


class Checkpoint(_Reply, frozen=True, tag="checkpoint"):
    """`note` is the signed note (C2SP tlog-checkpoint), text."""

    note: str


class AuditStatus(_Reply, frozen=True, tag="audit_status"):
    """`root` is the tree's hash at `size` entries; `healthy`: the log takes entries; `public_key`: Ed25519, raw."""

    size: int
    root: bytes
    segment: int
    public_key: bytes
    healthy: bool


class Done(_Reply, frozen=True, tag="done"):
    """It is done and durable."""


class Refused(_Reply, frozen=True, tag="refused"):
    """It was not done. `message` is one line for the operator, with the cure."""

    message: str


Command = (
    CreateKey
    | RevokeKey
    | ListKeys
    | AddCredential
    | RemoveCredential
    | ListCredentials
    | ListCooldowns
    | Block
    | Unblock
    | Lockdown
    | GetRules
    | GetVaultStatus
    | GetStatus
    | Reload
    | TakeCheckpoint
    | GetAuditStatus
)
Reply = (
    Hello
    | KeyCreated
    | KeyRevoked
    | KeyPage
    | CredentialAdded
    | CredentialPage
    | CooldownPage
    | Rules
    | VaultStatus
    | Status
    | Reloaded
    | Checkpoint
    | AuditStatus
    | Done
    | Refused
)

_encoder = msgspec.json.Encoder()
_commands: msgspec.json.Decoder[Any] = msgspec.json.Decoder(Command)
_replies: msgspec.json.Decoder[Any] = msgspec.json.Decoder(Reply)


def encode_line(message: Command | Reply) -> bytes:
    """Return `message` as one line, newline included."""
    return _encoder.encode(message) + b"\n"


def complaint_about(command: Command) -> str | None:
    """Return what is wrong with a value of `command` by the bounds that admin holds it to, in words for the operator; `None` if nothing is."""
    try:
        _commands.decode(_encoder.encode(command))
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        what, _, place = str(error).rpartition(" - at `$.")
        return f"{place.rstrip('`').partition('[')[0].replace('_', ' ')}: {what[0].lower()}{what[1:]}" if what else "a value is not one that is taken"
    return None


def decode_command(line: bytes) -> Command:
    """Return the command in `line` (without its newline); raises `ChannelError` on anything else."""
    return _decode(_commands, line, limit=MAX_COMMAND_LINE_BYTES)  # type: ignore[no-any-return]


def decode_reply(line: bytes) -> Reply:
    """Return the reply in `line` (without its newline); raises `ChannelError` on anything else."""
    return _decode(_replies, line, limit=MAX_REPLY_LINE_BYTES)  # type: ignore[no-any-return]


def _decode(decoder: msgspec.json.Decoder[Any], line: bytes, *, limit: int) -> Any:
    if len(line) > limit:
        raise ChannelError(f"a line on the control socket is longer than {limit} bytes")
    try:
        return decoder.decode(line)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise ChannelError("a line on the control socket is not what this build speaks") from error
