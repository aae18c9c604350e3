"""OpenAI's surface: what its SDKs, and most of everybody's, expect. Who names no other vendor gets this one.

When a model was made is not known here: `created` is 0.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from cliproxy.config.routes import Route
from cliproxy.dataplane.surfaces.paths import MODEL_PREFIX, MODELS, model_name
from cliproxy.dataplane.surfaces.surface import ClientRoute, Page, Problem, Surface
from cliproxy.dialects import Dialect, Operation


class _Error(msgspec.Struct, frozen=True, gc=False):
    message: str
    type: str
    param: str | None
    code: str


class _Body(msgspec.Struct, frozen=True, gc=False):
    error: _Error


_encoder: Final = msgspec.json.Encoder()


def _error_body(problem: Problem, request_id: str) -> bytes:
    return _encoder.encode(_Body(_Error(problem.message, problem.kind, problem.param, problem.code)))


def _owns(path: bytes) -> bool:
    return False


def _find(path: bytes, query: bytes | None) -> ClientRoute | None:
    if path == MODELS:
        return _MODELS
    if path.startswith(MODEL_PREFIX):
        return ClientRoute(OPENAI, b"GET", Page.MODEL, model=model_name(path[len(MODEL_PREFIX) :]))
    return None


def _list_body(items: list[dict[str, Any]]) -> dict[str, Any]:
    return {"object": "list", "data": items}


def _model_item(name: str, route: Route, max_tokens: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": route.targets[0].provider}


OPENAI: Final = Surface(
    name="openai",
    calls={
        b"/v1/chat/completions": (Dialect.OPENAI_CHAT, Operation.GENERATE),
        b"/v1/responses": (Dialect.OPENAI_RESPONSES, Operation.GENERATE),
        b"/v1/completions": (Dialect.OPENAI_COMPLETIONS, Operation.GENERATE),
        b"/v1/embeddings": (Dialect.OPENAI_EMBEDDINGS, Operation.EMBED),
        b"/v1/images/generations": (Dialect.OPENAI_MEDIA, Operation.IMAGES),
        b"/v1/audio/speech": (Dialect.OPENAI_MEDIA, Operation.SPEECH),
        b"/v1/audio/transcriptions": (Dialect.OPENAI_MEDIA, Operation.TRANSCRIBE),
        b"/v1/audio/translations": (Dialect.OPENAI_MEDIA, Operation.TRANSLATE_SPEECH),
    },
    pages={b"/healthz": Page.HEALTH, b"/readyz": Page.READY},  # the gateway's own; their errors need some wording
    owns=_owns,
    find=_find,
    error_body=_error_body,
    list_body=_list_body,
    model_item=_model_item,
)
_MODELS: Final = ClientRoute(OPENAI, b"GET", Page.MODELS)
