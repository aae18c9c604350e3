"""What is audited, as types: one Struct per kind of event, and for each source the kinds that it may send.

Senders construct events and send them as MessagePack (`audit.client`); only the auditor turns them into lines (`lines_of`), and it alone
says who sent them (`source`, from the channel) and when (`time`). A line is canonical JSON: keys sorted, no spaces, control characters
escaped, so that a newline inside a value cannot begin a line of its own. No event has room for a secret, a prompt or an answer.

Text has a bound. A sender passes text that a stranger could have made long or malformed through `clip`; the auditor closes a channel that
sends a longer one.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec

MAX_AUDIT_TEXT = 512  # characters in one text field of an event


Text = Annotated[str, msgspec.Meta(max_length=MAX_AUDIT_TEXT)]
Hex = Annotated[str, msgspec.Meta(pattern=r"\A(?:[0-9a-f]{2}){0,64}\Z")]
MAX_COUNT = 2**63 - 1
Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)]


class _Event(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=True, tag_field="event", forbid_unknown_fields=True, gc=False):
    """An event, frozen. Fields are declared in sorted order; a test holds every class to it."""


class Authentication(_Event, frozen=True, tag="authentication"):
    """`count` times within `second` (since the epoch) the same address got the same answer. `principal` is empty when nobody was recognised."""

    address: Text
    count: Count
    principal: Text
    reason: Text
    result: Literal["accepted", "refused"]
    second: Count


class AddressDenied(_Event, frozen=True, tag="address_denied"):
    """`count` times within `second` an address was turned away before authentication (`reason`: deny list, rate), or the dialer refused to
    connect to it."""

    address: Text
    count: Count
    reason: Text
    second: Count


class ProviderRequest(_Event, frozen=True, tag="provider_request"):
    """The intent: recorded before anything leaves for the provider, one for each attempt of the call `request`, counted from 1. `credential` is an id;
    `reserved_tokens` what the limits set aside."""

    address: Text
    attempt: Count
    credential: Text
    endpoint: Text
    model: Text
    principal: Text
    provider: Text
    request: Text
    reserved_tokens: Count
    stream: bool


class ProviderOutcome(_Event, frozen=True, tag="provider_outcome"):
    """How an attempt of the call `request` ended: exactly one for each intent. `status` is the provider's, 0 if there was none; `error` is empty or our code;
    `bytes` is what the provider sent."""

    attempt: Count
    bytes: Count
    duration_ms: Count
    error: Text
    input_tokens: Count
    output_tokens: Count
    request: Text
    status: Count


class CredentialAccess(_Event, frozen=True, tag="credential_access"):
    """The vault opened a credential and handed it over for `origin`. `purpose`: `grant`, `refresh`, `backup`, ..."""

    credential: Text
    origin: Text
    provider: Text
    purpose: Text


class CredentialChange(_Event, frozen=True, tag="credential_change"):
    """A credential was `added`, `rotated` or `removed` by `operator`."""

    action: Text
    credential: Text
    operator: Text
    origin: Text
    provider: Text


class KeyChange(_Event, frozen=True, tag="key_change"):
    """A client key was `created`, `changed` or `revoked` by `operator`."""

    action: Text
    key: Text
    name: Text
    operator: Text


class ConfigurationChange(_Event, frozen=True, tag="configuration_change"):
    """A configuration (`digest`: SHA-256 of its encoding, hex) was `applied` or `refused` as `generation`."""

    digest: Text
    generation: Count
    operator: Text
    result: Text


class PolicyChange(_Event, frozen=True, tag="policy_change"):
    """Policy `number` came into being: `change` names what (`block`, `lockdown`, ...), `detail` to what."""

    change: Text
    detail: Text
    number: Count
    operator: Text


class Process(_Event, frozen=True, tag="process"):
    """A process `role` (`worker-0`) was `started`, `ready`, `exited`, `killed`, ...; `code` is its exit status or signal."""

    code: Count
    role: Text
    what: Text


class ChannelViolation(_Event, frozen=True, tag="channel_violation"):
    """`peer` sent what it may not; its channel was closed."""

    peer: Text
    reason: Text


class ListenerReopened(_Event, frozen=True, tag="listener_reopened"):
    """The socket on `address` did not accept any more, for `reason`, and was made to listen again: a process that accepts on it may have fallen."""

    address: Text
    reason: Text


class VaultIntent(_Event, frozen=True, tag="vault_intent"):
    """The vault is about to commit `epoch` with Merkle root `root` (hex)."""

    epoch: Count
    root: Hex


class VaultCommit(_Event, frozen=True, tag="vault_commit"):
    """The vault has committed `epoch` with Merkle root `root` (hex)."""

    epoch: Count
    root: Hex


class LogOpened(_Event, frozen=True, tag="log_opened"):
    """The first line of a log: its format, name (the checkpoints' origin line) and public key (Ed25519, hex)."""

    format: Count
    log: Text
    public_key: Text


class LogRecovered(_Event, frozen=True, tag="log_recovered"):
    """The log was not whole: `cut_bytes` of an unterminated line were cut, `kept_entries` that no checkpoint covered were kept."""

    cut_bytes: Count
    kept_entries: Count
    reason: Text


class LogRollbackAccepted(_Event, frozen=True, tag="log_rollback_accepted"):
    """The operator started (`serve --accept-rollback`) although the log, with `entries`, is not what vault or pin had seen; `reason` says what."""

    entries: Count
    reason: Text


class EventsSuppressed(_Event, frozen=True, tag="events_suppressed"):
    """`count` things that the strangers' quota had no room for happened since the last such line, in `events` events; `kind` says of what."""

    count: Count
    events: Count
    kind: Text


WorkerEvent = Authentication | AddressDenied | ChannelViolation
EgressEvent = ProviderRequest | ProviderOutcome | ChannelViolation
DialerEvent = AddressDenied | ChannelViolation
VaultEvent = CredentialAccess | CredentialChange | KeyChange | PolicyChange | VaultIntent | VaultCommit | ChannelViolation
SupervisorEvent = Process | ConfigurationChange | ChannelViolation | ListenerReopened
AdminEvent = Authentication | ConfigurationChange | ChannelViolation
AuditorEvent = LogOpened | LogRecovered | LogRollbackAccepted | EventsSuppressed | ChannelViolation
Event = (
    Authentication
    | AddressDenied
    | ProviderRequest
    | ProviderOutcome
    | CredentialAccess
    | CredentialChange
    | KeyChange
    | ConfigurationChange
    | PolicyChange
    | Process
    | ChannelViolation
    | ListenerReopened
    | VaultIntent
    | VaultCommit
    | LogOpened
    | LogRecovered
    | LogRollbackAccepted
    | EventsSuppressed
)
KINDS: tuple[type[_Event], ...] = Event.__args__

SOURCES: dict[str, Any] = {
    "worker": WorkerEvent,
    "egress": EgressEvent,
    "dialer": DialerEvent,
    "vault": VaultEvent,
    "supervisor": SupervisorEvent,
    "admin": AdminEvent,
}


def clip(text: str, limit: int = MAX_AUDIT_TEXT) -> str:
    """Return `text` fit for an event: at most `limit` characters, without lone surrogates."""
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _record_of(kind: type[_Event]) -> tuple[Callable[..., Any], Callable[[Any], tuple[Any, ...]]]:
    """Return the line's own Struct (the event's fields, `event`, `source` and `time`, sorted) and what takes the event's fields from it.

    A tag always comes first in msgspec's output; a line's keys are sorted, so there `event` is a field like the others.
    """
    config = kind.__struct_config__
    constants = {"event": config.tag, "source": "", "time": ""}
    names = sorted((*kind.__struct_fields__, *constants))
    types = {field.name: field.type for field in msgspec.structs.fields(kind)}
    record = msgspec.defstruct(kind.__name__ + "Line", [(name, types.get(name, str)) for name in names], gc=False)
    for name, value in constants.items():
        setattr(kind, name, value)
    return record, operator.attrgetter(*names)


_RECORDS = {kind: _record_of(kind) for kind in KINDS}
_encoder = msgspec.json.Encoder()


def timestamp(seconds: float) -> str:
    """Return `seconds` since the epoch as RFC 3339 in UTC with microseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")[:-6] + "Z"


def lines_of(events: Sequence[Event], *, source: str, time: str) -> bytes:
    """Return the canonical lines of `events`, each ended by a newline."""
    records = []
    for event in events:
        record, fields = _RECORDS[type(event)]
        line = record(*fields(event))
        line.source = source
        line.time = time
        records.append(line)
    return _encoder.encode_lines(records)
