"""Gemini's surface: the models are in the paths, and what is wanted of one stands behind a colon.

A key may stand in the query, on these paths only. An error is a google.rpc.Status: our code is the ErrorInfo's reason, the field a violation, the wait a
RetryInfo.
"""

from __future__ import annotations

import math
from typing import Any, Final

import msgspec

from cliproxy.config.routes import Route
from cliproxy.dataplane.surfaces.paths import MODEL_PREFIX, MODELS, model_name, parameters
from cliproxy.dataplane.surfaces.surface import ClientRoute, Page, Problem, Surface
from cliproxy.dialects import Dialect, Operation
from cliproxy.errors import ClientError
from cliproxy.translators.gemini_generate.errors import rpc_name
from cliproxy.translators.table import CLIENTS

_ROOT: Final = b"/v1beta/"
_MODELS_PATH: Final = b"/v1beta/models"
_MODEL_PREFIX: Final = b"/v1beta/models/"
# What stands behind the last colon: dialect, operation, whether it streams (None: it never does), many requests in one body.
_VERBS: Final = {
    b"generateContent": (Dialect.GEMINI_GENERATE, Operation.GENERATE, False, False),
    b"streamGenerateContent": (Dialect.GEMINI_GENERATE, Operation.GENERATE, True, False),
    b"countTokens": (Dialect.GEMINI_GENERATE, Operation.COUNT_TOKENS, None, False),
    b"embedContent": (Dialect.GEMINI_EMBED, Operation.EMBED, None, False),
    b"batchEmbedContents": (Dialect.GEMINI_EMBED, Operation.EMBED, None, True),
}
# What a client may do with a model that has the operation.
_METHODS: Final = (
    (Operation.GENERATE, Dialect.GEMINI_GENERATE, ("generateContent", "streamGenerateContent", "countTokens")),
    (Operation.EMBED, Dialect.GEMINI_EMBED, ("embedContent", "batchEmbedContents")),
)
_encoder: Final = msgspec.json.Encoder()


def _error_body(problem: Problem, request_id: str) -> bytes:
    details: list[dict[str, Any]] = [
        {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": problem.code.upper(), "domain": "cliproxy"},
    ]
    if problem.param is not None:
        violation = {"field": problem.param, "description": problem.message}
        details.append({"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": [violation]})
    if problem.wait:
        details.append({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{math.ceil(problem.wait)}s"})
    error = {"code": problem.status, "message": problem.message_with_field, "status": rpc_name(problem.status), "details": details}
    return _encoder.encode({"error": error})


def _owns(path: bytes) -> bool:
    # Google's SDKs since 3.0 say /v1 where they said /v1beta: there the verb tells.
    return path.startswith(_ROOT) or (path.startswith(MODEL_PREFIX) and path.rpartition(b":")[2] in _VERBS)


def _find(path: bytes, query: bytes | None) -> ClientRoute | None:
    if path == MODELS:
        return _LIST
    for prefix in (_MODEL_PREFIX, MODEL_PREFIX):
        if path.startswith(prefix):
            return _model(path[len(prefix) :], query)
    return None


def _model(rest: bytes, query: bytes | None) -> ClientRoute:
    # Model names may hold colons (`llama3:8b`): only what follows the last one can be a verb.
    name, _, verb = rest.rpartition(b":")
    found = _VERBS.get(verb)
    if found is None or not name:
        return ClientRoute(GEMINI, b"GET", Page.MODEL, model=model_name(rest))
    dialect, operation, stream, batch = found
    array = _alt(query) != b"sse" if stream else False
    return ClientRoute(GEMINI, b"POST", None, CLIENTS[dialect, operation], model_name(name), stream, array, batch)


def _alt(query: bytes | None) -> bytes:
    """Return how a stream is wanted: `sse` or `json`. Raises 400 for anything else."""
    values = parameters(query, b"alt")
    if not values:
        return b"json"
    if len(values) > 1 or values[0] not in (b"sse", b"json"):
        raise ClientError("The parameter alt is neither 'sse' nor 'json'.", param="alt", code="invalid_value")
    return values[0]


def _list_body(items: list[dict[str, Any]]) -> dict[str, Any]:
    return {"models": items}


def _model_item(name: str, route: Route, max_tokens: int) -> dict[str, Any]:
    methods = [method for operation, dialect, names in _METHODS if route.profiles(operation, dialect) for method in names]
    return {
        "name": f"models/{name}",
        "baseModelId": name,
        "version": "",
        "displayName": name,
        "outputTokenLimit": max_tokens,
        "supportedGenerationMethods": methods,
    }


GEMINI: Final = Surface(
    name="gemini",
    pages={_MODELS_PATH: Page.MODELS},
    owns=_owns,
    find=_find,
    hint="goog_api_key",
    key_header="goog_api_key",
    key_parameter=b"key",
    method_hint=f"; what a model does stands behind a colon: {', '.join(verb.decode() for verb in _VERBS)}",
    error_body=_error_body,
    list_body=_list_body,
    model_item=_model_item,
)
_LIST: Final = ClientRoute(GEMINI, b"GET", Page.MODELS)
