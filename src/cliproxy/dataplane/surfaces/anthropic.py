"""Anthropic's surface: the Messages API.

An error has no place for our `code` and for the field's path: the path stands in the message. When a model was made is not known here: `created_at` is the
epoch, as Anthropic documents it for unknown dates.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from cliproxy.config.routes import Route
from cliproxy.dataplane.surfaces.paths import MODEL_PREFIX, MODELS, model_name
from cliproxy.dataplane.surfaces.surface import ClientRoute, Page, Problem, Surface
from cliproxy.dialects import Dialect, Operation
from cliproxy.translators.anthropic_messages.errors import error_type

_PREFIX: Final = b"/v1/messages"


class _Error(msgspec.Struct, frozen=True, gc=False):
    type: str
    message: str


class _Body(msgspec.Struct, frozen=True, gc=False):
    type: str
    error: _Error
    request_id: str


_encoder: Final = msgspec.json.Encoder()


def _error_body(problem: Problem, request_id: str) -> bytes:
    return _encoder.encode(_Body("error", _Error(error_type(problem.status), problem.message_with_field), request_id))


def _owns(path: bytes) -> bool:
    return path.startswith(_PREFIX)


def _find(path: bytes, query: bytes | None) -> ClientRoute | None:
    if path == MODELS:
        return _MODELS
    if path.startswith(MODEL_PREFIX):
        return ClientRoute(ANTHROPIC, b"GET", Page.MODEL, model=model_name(path[len(MODEL_PREFIX) :]))
    return None


def _list_body(items: list[dict[str, Any]]) -> dict[str, Any]:
    first, last = (items[0]["id"], items[-1]["id"]) if items else (None, None)
    return {"data": items, "has_more": False, "first_id": first, "last_id": last}


def _model_item(name: str, route: Route, max_tokens: int) -> dict[str, Any]:
    return {"type": "model", "id": name, "display_name": name, "created_at": "1970-01-01T00:00:00Z", "lifecycle": "active"}


ANTHROPIC: Final = Surface(
    name="anthropic",
    calls={
        b"/v1/messages": (Dialect.ANTHROPIC_MESSAGES, Operation.GENERATE),
        b"/v1/messages/count_tokens": (Dialect.ANTHROPIC_MESSAGES, Operation.COUNT_TOKENS),
    },
    owns=_owns,
    find=_find,
    hint="anthropic_version",
    key_header="api_key",
    id_header=b"request-id",
    error_body=_error_body,
    list_body=_list_body,
    model_item=_model_item,
)
_MODELS: Final = ClientRoute(ANTHROPIC, b"GET", Page.MODELS)
