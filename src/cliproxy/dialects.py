"""Enumerations and ids that several layers share; no behaviour."""

from __future__ import annotations

from enum import Enum, IntEnum


class Dialect(str, Enum):
    """A wire format (DESIGN §1)."""

    OPENAI_CHAT = "openai_chat"
    OPENAI_EMBEDDINGS = "openai_embeddings"


class Endpoint(IntEnum):
    """What a worker may ask egress for. An enum, never a path: egress maps it to the provider's own path."""

    CHAT_COMPLETIONS = 1
    EMBEDDINGS = 2
