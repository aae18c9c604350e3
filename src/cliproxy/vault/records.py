"""What the vault's records hold, and which of it is acceptable. Pure: no store, no clock.

What always holds: an empty list of models is refused (unknown means no), every record fits the packets that carry it, and a provider's secret is a line of
printable ASCII, so that it cannot end a header. A record that does not decode was sealed by another build: `EnvelopeError`.
"""

from __future__ import annotations

from typing import Any, Final, TypeVar

import msgspec

from cliproxy.bounds import (
    KIB,
    MAX_BLOCKED_NETWORKS,
    MAX_CREDENTIAL_SECRET_BYTES,
    MAX_DISABLED_PROVIDERS,
    MAX_KEY_MODELS,
    MAX_KEY_NETWORKS,
    MAX_LABEL_CHARS,
    MAX_MODEL_CHARS,
)
from cliproxy.config.addresses import complaint_about_network
from cliproxy.errors import EnvelopeError, VaultConflict
from cliproxy.ipc.messages import CooldownRecord, KeyRecord, PolicyRules
from cliproxy.secret import Secret

MAX_KEY_RECORD_BYTES = 16 * KIB  # one client key with its models and networks

CLIENT_KEY: Final = "client_key"
CREDENTIAL: Final = "credential"
POLICY: Final = "policy"
LAST_USE: Final = "last_use"
LOG_KEY: Final = "log_key"
COOLDOWNS: Final = "cooldowns"
LOG_SEEN: Final = "log_seen"

POLICY_ID: Final = "policy"
LOG_KEY_ID: Final = "log-key"
COOLDOWNS_ID: Final = "cooldowns"
LOG_SEEN_ID: Final = "log-seen"
LOG_KEY_BYTES: Final = 32  # an Ed25519 seed
DIGEST_BYTES: Final = 32
_MAX_COUNT: Final = 10**15
_MAX_TIME: Final = 2**40  # seconds since the epoch: the year 36,800


class _Content(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is sealed in a record, as MessagePack."""


class ClientKey(_Content, frozen=True):
    """A client key. Times in seconds since the epoch; `revoked_at` 0 while it is in force. Revoked keys stay, so that none comes back."""

    key: KeyRecord
    created_at: int
    revoked_at: int = 0


class Credential(_Content, frozen=True):
    """A credential; the origin is in the record's associated data."""

    provider: str
    label: str
    created_at: int
    secret: bytes


class Policy(_Content, frozen=True):
    """The newest number of the policy feed and the rules for everybody."""

    number: int
    rules: PolicyRules


class LastUses(_Content, frozen=True):
    """When the keys of one bucket were last used, in seconds since the epoch."""

    keys: dict[str, int]


class KeptCooldowns(_Content, frozen=True):
    """What egress last told."""

    cooldowns: tuple[CooldownRecord, ...]


class LogSeen(_Content, frozen=True):
    """The newest checkpoint that the auditor said was durable: the log has at least `size` entries, and at `size` this root."""

    size: int
    root: bytes


_encoder = msgspec.msgpack.Encoder()
# Made at once and not when first needed: the vault's process may not import anything later.
_decoders: Final[dict[type[_Content], msgspec.msgpack.Decoder[Any]]] = {
    kind: msgspec.msgpack.Decoder(kind) for kind in (ClientKey, Credential, Policy, LastUses, KeptCooldowns, LogSeen)
}


T = TypeVar("T", bound=_Content)


def encode(content: _Content) -> bytes:
    """Return `content` for `decode`."""
    return _encoder.encode(content)


def decode(plaintext: Secret, kind: type[T]) -> T:
    """Return what is in `plaintext`, which is wiped. Raises `EnvelopeError`."""
    try:
        content: T = _decoders[kind].decode(plaintext.reveal())
        return content
    except (msgspec.DecodeError, ValueError) as error:
        raise EnvelopeError(f"a sealed {kind.__name__} holds what this build does not understand") from error
    finally:
        plaintext.wipe()


# --- what is acceptable ----------------------------------------------------------------------------------------------


def verify_label(label: str, *, what: str) -> None:
    """Raise `VaultConflict` unless `label` is a short line of printable text."""
    if not 0 < len(label) <= MAX_LABEL_CHARS or not label.isprintable() or label != label.strip():
        raise VaultConflict(f"{what} must be 1 to {MAX_LABEL_CHARS} printable characters")


def verify_key(record: KeyRecord) -> None:
    """Raise `VaultConflict` unless `record` may become a client key."""
    verify_label(record.name, what="a key's name")
    if len(record.digest) != DIGEST_BYTES:
        raise VaultConflict(f"a key's digest has {DIGEST_BYTES} bytes")
    if not 0 < len(record.models) <= MAX_KEY_MODELS:
        raise VaultConflict(f'a key names 1 to {MAX_KEY_MODELS} models; "*" stands for all')
    for model in record.models:
        if not 0 < len(model) <= MAX_MODEL_CHARS or not model.isprintable():
            raise VaultConflict(f"a model's name is 1 to {MAX_MODEL_CHARS} printable characters")
    verify_networks(record.networks, limit=MAX_KEY_NETWORKS)
    for limit in (record.requests_per_minute, record.tokens_per_minute, record.concurrency):
        if not 0 <= limit <= _MAX_COUNT:
            raise VaultConflict("a limit is a whole number, 0 for none")
    if not 0 <= record.expires_at <= _MAX_TIME:
        raise VaultConflict("the time of expiry is out of range")
    if len(_encoder.encode(record)) > MAX_KEY_RECORD_BYTES:
        raise VaultConflict("the key's models and networks are too long together; name fewer of them")


def verify_networks(networks: tuple[str, ...], *, limit: int) -> None:
    """Raise `VaultConflict` unless each is an address or CIDR block and there are at most `limit`."""
    if len(networks) > limit:
        raise VaultConflict(f"there is room for {limit} networks; merge some of them")
    for network in networks:
        complaint = complaint_about_network(network) if len(network) <= MAX_LABEL_CHARS else ("this is no network", "write 10.0.0.0/8")
        if complaint is not None:
            raise VaultConflict(f"{network[:MAX_LABEL_CHARS]}: {complaint[0]}; {complaint[1]}")


def verify_rules(rules: PolicyRules) -> None:
    """Raise `VaultConflict` unless `rules` fit a packet and mean something."""
    verify_networks(rules.blocked, limit=MAX_BLOCKED_NETWORKS)
    if len(rules.disabled_providers) > MAX_DISABLED_PROVIDERS:
        raise VaultConflict(f"at most {MAX_DISABLED_PROVIDERS} providers can be disabled; remove them from the configuration")
    for provider in rules.disabled_providers:
        verify_label(provider, what="a provider's name")


def verify_credential_secret(secret: Secret) -> None:
    """Raise `VaultConflict` unless `secret` can stand in a header: visible ASCII without spaces, so no CR and no LF (RFC 9110 §5.5, RFC 6750 §2.1)."""
    if not 0 < len(secret) <= MAX_CREDENTIAL_SECRET_BYTES:
        raise VaultConflict(f"the secret must have 1 to {MAX_CREDENTIAL_SECRET_BYTES} bytes")
    if not all(0x21 <= byte <= 0x7E for byte in secret.reveal()):
        raise VaultConflict("the secret holds a space, a line break or a character that is no visible ASCII; paste it again")
