"""The bounded field types of messages. Every text, byte string and list of a message has one of these, or a bound of its own: the receiver checks it."""

from __future__ import annotations

from typing import Annotated

import msgspec

from cliproxy.bounds import (
    MAX_BLOCKED_NETWORKS,
    MAX_DISABLED_PROVIDERS,
    MAX_HOST_CHARS,
    MAX_KEY_MODELS,
    MAX_KEY_NETWORKS,
    MAX_LABEL_CHARS,
    MAX_MODEL_CHARS,
    MAX_MODEL_NAME_CHARS,
)

_MAX_NETWORK_CHARS = 64  # the longest CIDR block has 43
_MAX_ORIGIN_CHARS = MAX_HOST_CHARS + 16  # scheme, colons, brackets, port

Count = Annotated[int, msgspec.Meta(ge=0, le=10**15)]  # limits, and seconds since the epoch
Number = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]  # epochs, sizes, running numbers
Label = Annotated[str, msgspec.Meta(max_length=MAX_LABEL_CHARS)]  # an id, a name, a short word of ours; empty where there may be none
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_LABEL_CHARS)]  # the same, and never empty
Model = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_MODEL_CHARS)]  # a public name
ProviderModel = Annotated[str, msgspec.Meta(max_length=MAX_MODEL_NAME_CHARS)]  # a provider's name of a model
Network = Annotated[str, msgspec.Meta(min_length=2, max_length=_MAX_NETWORK_CHARS)]  # an address or a CIDR block
Origin = Annotated[str, msgspec.Meta(max_length=_MAX_ORIGIN_CHARS)]
Digest = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]  # SHA-256, or a raw public key
Root = Annotated[bytes, msgspec.Meta(max_length=32)]  # a Merkle root; empty where there may be none

Models = Annotated[tuple[Model, ...], msgspec.Meta(min_length=1, max_length=MAX_KEY_MODELS)]
Networks = Annotated[tuple[Network, ...], msgspec.Meta(max_length=MAX_KEY_NETWORKS)]
BlockedNetworks = Annotated[tuple[Network, ...], msgspec.Meta(max_length=MAX_BLOCKED_NETWORKS)]
Providers = Annotated[tuple[Name, ...], msgspec.Meta(max_length=MAX_DISABLED_PROVIDERS)]
