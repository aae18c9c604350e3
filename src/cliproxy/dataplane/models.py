"""Lists of models, and one model, as each vendor's clients read them. Only what the asking key may use is listed; no upstream's name of a model is told."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from cliproxy.auth.principals import Principal
from cliproxy.config.routes import Route, RouteTable
from cliproxy.dataplane.surfaces.surface import Surface

_encoder: Final = msgspec.json.Encoder()


class ModelPages:
    """The models of one configuration. `max_tokens` is the operator's cap on output tokens."""

    def __init__(self, table: RouteTable, *, max_tokens: int) -> None:
        self._table = table
        self._max_tokens = max_tokens
        self._items: dict[str, tuple[tuple[str, dict[str, Any]], ...]] = {}

    def listed(self, principal: Principal, surface: Surface) -> bytes:
        """Return the body of the list for `principal`. It is always one page."""
        items = self._items.get(surface.name)
        if items is None:
            found = ((name, self._table.find(name)) for name, _ in self._table.public())
            items = tuple((name, surface.model_item(name, route, self._max_tokens)) for name, route in found if route is not None)
            self._items[surface.name] = items
        return _encoder.encode(surface.list_body([item for name, item in items if principal.allows_model(name)]))

    def one(self, name: str, route: Route, surface: Surface) -> bytes:
        """Return the body that tells of the model `name`."""
        return _encoder.encode(surface.model_item(name, route, self._max_tokens))
