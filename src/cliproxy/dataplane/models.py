"""Lists of models, and one model, in each vendor's shape. Only what the asking key may use is listed; no upstream's name of a model is told.

When a model was made is not known here: OpenAI's `created` is 0 and Anthropic's `created_at` the epoch, as Anthropic documents it for unknown dates.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from cliproxy.auth.principals import Principal
from cliproxy.config.routes import Route, RouteTable
from cliproxy.dataplane.errors import Shape
from cliproxy.dialects import Dialect, Operation

_encoder: Final = msgspec.json.Encoder()
# What a Gemini client may do with a model that has the operation.
_METHODS: Final = (
    (Operation.GENERATE, Dialect.GEMINI_GENERATE, ("generateContent", "streamGenerateContent", "countTokens")),
    (Operation.EMBED, Dialect.GEMINI_EMBED, ("embedContent", "batchEmbedContents")),
)


class ModelPages:
    """The models of one configuration. `max_tokens` is the operator's cap on output tokens."""

    def __init__(self, table: RouteTable, *, max_tokens: int) -> None:
        self._table = table
        self._max_tokens = max_tokens
        self._items: dict[Shape, tuple[tuple[str, dict[str, Any]], ...]] = {}

    def listed(self, principal: Principal, shape: Shape) -> bytes:
        """Return the body of the list for `principal`. It is always one page."""
        items = self._items.get(shape)
        if items is None:
            found = ((name, self._table.find(name)) for name, _ in self._table.public())
            items = self._items[shape] = tuple((name, self._item(name, route, shape)) for name, route in found if route is not None)
        allowed = [item for name, item in items if principal.allows_model(name)]
        if shape is Shape.OPENAI:
            return _encoder.encode({"object": "list", "data": allowed})
        if shape is Shape.GEMINI:
            return _encoder.encode({"models": allowed})
        first, last = (allowed[0]["id"], allowed[-1]["id"]) if allowed else (None, None)
        return _encoder.encode({"data": allowed, "has_more": False, "first_id": first, "last_id": last})

    def one(self, name: str, route: Route, shape: Shape) -> bytes:
        """Return the body that tells of the model `name`."""
        return _encoder.encode(self._item(name, route, shape))

    def _item(self, name: str, route: Route, shape: Shape) -> dict[str, Any]:
        if shape is Shape.OPENAI:
            return {"id": name, "object": "model", "created": 0, "owned_by": route.targets[0].provider}
        if shape is Shape.ANTHROPIC:
            return {"type": "model", "id": name, "display_name": name, "created_at": "1970-01-01T00:00:00Z", "lifecycle": "active"}
        methods = [method for operation, dialect, names in _METHODS if route.profiles(operation, dialect) for method in names]
        return {
            "name": f"models/{name}",
            "baseModelId": name,
            "version": "",
            "displayName": name,
            "outputTokenLimit": self._max_tokens,
            "supportedGenerationMethods": methods,
        }
