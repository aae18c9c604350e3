"""Which paths there are, what each is for, and in whose words its errors are told.

What always holds: a path means the same whatever the method, so that 405 and 404 are told apart; a model's name in a path is percent-decoded once, must then
be UTF-8 of printable characters, and is looked up in a table and never becomes part of another path.
"""

from __future__ import annotations

from enum import Enum
from typing import Final
from urllib.parse import unquote_to_bytes

import msgspec

from cliproxy.bounds import MAX_MODEL_NAME_CHARS, MAX_QUERY_PARAMETERS, MAX_QUERY_VALUE_BYTES
from cliproxy.dataplane.errors import Shape
from cliproxy.dialects import Dialect, Operation
from cliproxy.errors import ClientError, NotFound
from cliproxy.ingress.framing import RawRequest
from cliproxy.translators.table import CLIENTS, ClientRow


class Page(Enum):
    """What is answered without a provider."""

    HEALTH = "health"
    READY = "ready"
    MODELS = "models"
    MODEL = "model"


class ClientRoute(msgspec.Struct, frozen=True, gc=False):
    """Either a `page`, or a call as `row` of the dialects' table says. `model` and `stream` are what the path says, if it does.

    `array`: a stream goes out as one JSON array, and not as events (Gemini without `alt=sse`). `batch`: many requests in one body.
    """

    shape: Shape
    method: bytes
    page: Page | None = None
    row: ClientRow | None = None
    model: str = ""
    stream: bool | None = None
    array: bool = False
    batch: bool = False


_CALLS: Final = {
    b"/v1/chat/completions": (Shape.OPENAI, Dialect.OPENAI_CHAT, Operation.GENERATE),
    b"/v1/responses": (Shape.OPENAI, Dialect.OPENAI_RESPONSES, Operation.GENERATE),
    b"/v1/completions": (Shape.OPENAI, Dialect.OPENAI_COMPLETIONS, Operation.GENERATE),
    b"/v1/embeddings": (Shape.OPENAI, Dialect.OPENAI_EMBEDDINGS, Operation.EMBED),
    b"/v1/images/generations": (Shape.OPENAI, Dialect.OPENAI_MEDIA, Operation.IMAGES),
    b"/v1/audio/speech": (Shape.OPENAI, Dialect.OPENAI_MEDIA, Operation.SPEECH),
    b"/v1/audio/transcriptions": (Shape.OPENAI, Dialect.OPENAI_MEDIA, Operation.TRANSCRIBE),
    b"/v1/audio/translations": (Shape.OPENAI, Dialect.OPENAI_MEDIA, Operation.TRANSLATE_SPEECH),
    b"/v1/messages": (Shape.ANTHROPIC, Dialect.ANTHROPIC_MESSAGES, Operation.GENERATE),
    b"/v1/messages/count_tokens": (Shape.ANTHROPIC, Dialect.ANTHROPIC_MESSAGES, Operation.COUNT_TOKENS),
}
EXACT: Final[dict[bytes, ClientRoute]] = {
    b"/v1/models": ClientRoute(Shape.OPENAI, b"GET", Page.MODELS),
    b"/v1beta/models": ClientRoute(Shape.GEMINI, b"GET", Page.MODELS),
    b"/healthz": ClientRoute(Shape.OPENAI, b"GET", Page.HEALTH),
    b"/readyz": ClientRoute(Shape.OPENAI, b"GET", Page.READY),
    **{path: ClientRoute(shape, b"POST", None, CLIENTS[dialect, operation]) for path, (shape, dialect, operation) in _CALLS.items()},
}
_ANTHROPIC_MODELS: Final = ClientRoute(Shape.ANTHROPIC, b"GET", Page.MODELS)

_MODEL_PREFIX: Final = b"/v1/models/"
_GEMINI_PREFIX: Final = b"/v1beta/models/"
_GEMINI_ROOT: Final = b"/v1beta/"
# What stands behind the last colon of a Gemini path.
_VERBS: Final = {
    b"generateContent": (Dialect.GEMINI_GENERATE, Operation.GENERATE, False, False),
    b"streamGenerateContent": (Dialect.GEMINI_GENERATE, Operation.GENERATE, True, False),
    b"countTokens": (Dialect.GEMINI_GENERATE, Operation.COUNT_TOKENS, None, False),
    b"embedContent": (Dialect.GEMINI_EMBED, Operation.EMBED, None, False),
    b"batchEmbedContents": (Dialect.GEMINI_EMBED, Operation.EMBED, None, True),
}
_MOST_BYTES_A_CHARACTER: Final = 12  # four of UTF-8, each as %XX
# What a client is told that took another path than it meant.
NO_ROUTE: Final = "There is no such route. The base URL for OpenAI's SDKs ends in /v1; for Anthropic's and Google's it has no path."
METHODS_OF_MODELS: Final = f"; what a model does stands behind a colon: {', '.join(verb.decode() for verb in _VERBS)}"


def route_of(request: RawRequest) -> ClientRoute | None:
    """Return the row of the request's path, `None` if there is none. Raises `NotFound` for a name that no model can have, 400 for a bad `alt`."""
    path = request.path
    if request.query is not None and request.query.count(b"&") >= MAX_QUERY_PARAMETERS and is_gemini(path):
        raise ClientError(f"The query has more than {MAX_QUERY_PARAMETERS} parameters.", code="invalid_request")
    route = EXACT.get(path)
    if route is not None:
        if route.row is None and path == b"/v1/models":
            if request.anthropic_version is not None:
                return _ANTHROPIC_MODELS
            if request.goog_api_key is not None:
                return EXACT[b"/v1beta/models"]
        return route
    if path.startswith(_GEMINI_PREFIX):
        return _gemini(path[len(_GEMINI_PREFIX) :], request.query)
    if path.startswith(_MODEL_PREFIX):
        # Google's SDKs since 3.0 say /v1 where they said /v1beta.
        if is_gemini(path) or (request.goog_api_key is not None and request.anthropic_version is None):
            return _gemini(path[len(_MODEL_PREFIX) :], request.query)
        shape = Shape.OPENAI if request.anthropic_version is None else Shape.ANTHROPIC
        return ClientRoute(shape, b"GET", Page.MODEL, model=_model_name(path[len(_MODEL_PREFIX) :]))
    return None


def _gemini(rest: bytes, query: bytes | None) -> ClientRoute:
    # Model names may hold colons (`llama3:8b`): only what follows the last one can be a verb.
    name, _, verb = rest.rpartition(b":")
    found = _VERBS.get(verb)
    if found is None or not name:
        return ClientRoute(Shape.GEMINI, b"GET", Page.MODEL, model=_model_name(rest))
    dialect, operation, stream, batch = found
    array = _alt(query) != b"sse" if stream else False
    return ClientRoute(Shape.GEMINI, b"POST", None, CLIENTS[dialect, operation], _model_name(name), stream, array, batch)


def _model_name(encoded: bytes) -> str:
    """Return the name in a path. Decoded once: what still looks encoded is part of the name."""
    if len(encoded) > MAX_MODEL_NAME_CHARS * _MOST_BYTES_A_CHARACTER:
        raise _no_such_model()
    decoded = unquote_to_bytes(encoded)
    try:
        name = decoded.decode()
    except UnicodeDecodeError:
        raise _no_such_model() from None
    if not 0 < len(name) <= MAX_MODEL_NAME_CHARS or not name.isprintable():
        raise _no_such_model()
    return name


def _no_such_model() -> NotFound:
    return NotFound("There is no model of that name here; the list of models names those that there are.", param="model", code="model_not_found")


# --- the query of Gemini's paths ---------------------------------------------------------------------------------------


def is_gemini(path: bytes) -> bool:
    """Whether `path` is Gemini's, whoever asks: only there may a client key stand in the query."""
    return path.startswith(_GEMINI_ROOT) or (path.startswith(_MODEL_PREFIX) and path.rpartition(b":")[2] in _VERBS)


def parameters(query: bytes | None, name: bytes) -> list[bytes]:
    """Return the values of the parameter `name`, percent-decoded; other spellings of the name are other parameters. A value that is too long for any use
    stays as it is: decoding 16 KB costs strangers nothing and us a millisecond."""
    if query is None:
        return []
    pairs = (part.partition(b"=") for part in query.split(b"&"))
    return [unquote_to_bytes(value) if len(value) <= MAX_QUERY_VALUE_BYTES else value for found, _, value in pairs if found == name]


def _alt(query: bytes | None) -> bytes:
    """Return how a stream is wanted: `sse` or `json`. Raises 400 for anything else."""
    values = parameters(query, b"alt")
    if not values:
        return b"json"
    if len(values) > 1 or values[0] not in (b"sse", b"json"):
        raise ClientError("The parameter alt is neither 'sse' nor 'json'.", param="alt", code="invalid_value")
    return values[0]


# --- errors ------------------------------------------------------------------------------------------------------------


def shape_of(path: bytes, *, anthropic: bool, goog: bool) -> Shape:
    """Return in whose words an error about `path` is told, whether there is such a path or not. `anthropic`: `anthropic-version` was sent; `goog`: Google's
    key header was."""
    if is_gemini(path):
        return Shape.GEMINI
    if path.startswith(b"/v1/messages"):
        return Shape.ANTHROPIC
    if path in EXACT and path != b"/v1/models":
        return Shape.OPENAI
    return Shape.ANTHROPIC if anthropic else Shape.GEMINI if goog else Shape.OPENAI


def shape_of_request(request: RawRequest) -> Shape:
    """Return in whose words an error about `request` is told."""
    return shape_of(request.path, anthropic=request.anthropic_version is not None, goog=request.goog_api_key is not None)
