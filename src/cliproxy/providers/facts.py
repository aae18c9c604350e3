"""What a kind of provider wants on the wire, and the request heads made from that.

`build_head` is the only source of outbound request lines and headers: its inputs are these facts, the operator's settings, the credential and the
upstream's name of the model. Nothing else that a client or a worker sent can get into it, and the model's name only as one percent-encoded piece of
one path segment: it can add no segment, no query, no dot segment and no line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from enum import Enum
from urllib.parse import quote

import msgspec

from cliproxy import __version__
from cliproxy.bounds import MAX_MODEL_NAME_CHARS
from cliproxy.dialects import ENDPOINTS, Dialect, Endpoint, Quirks
from cliproxy.errors import ConfigError, SchemaError
from cliproxy.providers.origin import Origin

MODEL = "{model}"
_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")
_DOTS = re.compile(r"\.*")
_MODEL_IN_PATH = frozenset({Dialect.GEMINI_GENERATE, Dialect.GEMINI_EMBED, Dialect.BEDROCK_CONVERSE})
SETTING_NAMES = ("api_version", "project", "location", "region")  # every key of `config.schema.Provider` that only some kinds have
_NO_SETTINGS: Mapping[str, str] = {}
JSON = b"application/json"
EVENT_STREAM = b"text/event-stream"
AWS_EVENT_STREAM = b"application/vnd.amazon.eventstream"


class Auth(str, Enum):
    """How a credential is shown to the provider. All but the last two put it into one header."""

    BEARER = "bearer"
    X_API_KEY = "x-api-key"
    X_GOOG_API_KEY = "x-goog-api-key"
    API_KEY = "api-key"
    SIGV4 = "sigv4"
    NONE = "none"


AUTH_PREFIXES: dict[Auth, bytes] = {
    Auth.BEARER: b"Authorization: Bearer ",
    Auth.X_API_KEY: b"x-api-key: ",
    Auth.X_GOOG_API_KEY: b"x-goog-api-key: ",
    Auth.API_KEY: b"api-key: ",
}


class Framing(Enum):
    """How a stream's events are told apart on the wire."""

    SSE = "sse"
    AWS_EVENT_STREAM = "aws_event_stream"


class EndpointFacts(msgspec.Struct, frozen=True, kw_only=True):
    """`path` is relative to the provider's `base_url`; `stream_path` is another one for streams, where the provider has two. Both may hold `{model}` and
    the names of the kind's settings. What is spoken there is `dialects.ENDPOINTS`, with `quirks`."""

    path: str
    stream_path: str = ""
    quirks: Quirks = Quirks.NONE


Endpoints = Mapping[Endpoint, EndpointFacts]


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """A key of `providers.<name>` that a kind takes. `pattern` is what its text must match whole; `cure` says so to the operator."""

    pattern: str
    cure: str
    required: bool = True

    def fits(self, value: str) -> bool:
        """Return whether `value` may be used."""
        return (not value and not self.required) or re.fullmatch(self.pattern, value) is not None


class ProviderFacts(msgspec.Struct, frozen=True, kw_only=True):
    """`remote`: answers come over the network. `base_url` is the kind's own, with names of settings in it; empty: the operator must say.

    `auth` is how a credential is shown where the operator names no other of `auths` (empty: there is no other). `endpoints` are in the order in which they
    are preferred for translation. `families`: a provider with models of several vendors; the first whose pattern matches a model's name says which
    endpoints that has.
    `derived` makes more names for paths and `base_url` from the settings.
    """

    kind: str
    remote: bool
    endpoints: Endpoints
    base_url: str = ""
    auth: Auth = Auth.BEARER
    auths: frozenset[Auth] = frozenset()
    framing: Framing = Framing.SSE
    extra_headers: tuple[tuple[bytes, bytes], ...] = ()
    settings: Mapping[str, Setting] = msgspec.field(default_factory=dict)
    families: tuple[tuple[re.Pattern[str], Endpoints], ...] = ()
    derived: Callable[[Mapping[str, str]], Mapping[str, str]] | None = None

    def endpoints_for(self, model: str) -> Endpoints:
        """Return the endpoints that the provider's `model` has; empty when no family knows it."""
        if not self.families:
            return self.endpoints
        for pattern, endpoints in self.families:
            if pattern.match(model):
                return endpoints
        return {}

    def model_in_body(self, endpoint: Endpoint) -> bool:
        """Return whether the body for `endpoint` names the model (`{model}` may be in the path as well)."""
        if endpoint is Endpoint.MESSAGES and self.endpoints[endpoint].quirks & Quirks.VERTEX:
            return False
        return ENDPOINTS[endpoint][1] not in _MODEL_IN_PATH

    @property
    def allowed_auths(self) -> frozenset[Auth]:
        """The schemes that the operator may name. `none` is one of them for every kind: what is at `base_url` may add the credential itself."""
        return self.auths | {self.auth, Auth.NONE}

    def values(self, settings: Mapping[str, str]) -> Mapping[str, str]:
        """Return everything that placeholders other than `{model}` stand for. Raises `ConfigError` for a setting that may not be (`config.rules` has
        refused it with its line; here it is looked at once more, since it goes into paths and host names)."""
        for name, setting in self.settings.items():
            if not setting.fits(settings[name]):
                raise ConfigError(f"this is no {name.replace('_', ' ')}", cure=setting.cure, key=name)
        return {**settings, **self.derived(settings)} if self.derived is not None else settings

    def base_url_with(self, settings: Mapping[str, str]) -> str:
        """Return the kind's own `base_url`, with the settings in it; empty: it has none."""
        return fill(self.base_url, self.values(settings)) if self.base_url else ""


def fill(template: str, values: Mapping[str, str]) -> str:
    """Return `template` with its placeholders replaced, but for `{model}`."""
    return _PLACEHOLDER.sub(lambda match: match[0] if match[0] == MODEL else values[match[1]], template)


def path_segment(model: str) -> str:
    """Return `model` fit for a place inside one path segment: everything but RFC 3986's unreserved characters is percent-encoded.

    Raises `SchemaError` for a name that is empty, too long, or nothing but dots.
    """
    if len(model) > MAX_MODEL_NAME_CHARS or _DOTS.fullmatch(model):
        raise SchemaError("This is no name of a model.", param="model", code="model_not_found")
    return quote(model, safe="", errors="replace")


def path_of(facts: ProviderFacts, endpoint: Endpoint, *, base_path: str, stream: bool, settings: Mapping[str, str]) -> str:
    """Return the path and query of `endpoint`, with `{model}` in it where the provider wants it there. Raises `KeyError` when it lacks `endpoint`."""
    entry = facts.endpoints[endpoint]
    template = (entry.stream_path or entry.path) if stream else entry.path
    return base_path + fill(template, facts.values(settings))


def build_head(
    facts: ProviderFacts,
    endpoint: Endpoint,
    *,
    origin: Origin,
    base_path: str,
    credential: bytes | None,
    stream: bool,
    settings: Mapping[str, str] = _NO_SETTINGS,
    auth: Auth | None = None,
    model: str = "",
    content_type: bytes = JSON,
) -> bytes:
    """Return the head of a request up to and including `Content-Length: `; the caller adds the number and the empty line.

    `credential` is the text that follows `AUTH_PREFIXES`, and has been checked to hold visible ASCII only; `None` leaves the header out. Raises `KeyError`
    when the provider lacks `endpoint`, `SchemaError` when `model` can not be in a path and has to.
    """
    path = path_of(facts, endpoint, base_path=base_path, stream=stream, settings=settings)
    if MODEL in path:
        path = path.replace(MODEL, path_segment(model))
    lines = [b"POST " + path.encode("ascii") + b" HTTP/1.1", b"Host: " + origin.host_field]
    if credential is not None:
        lines.append(AUTH_PREFIXES[auth or facts.auth] + credential)
    lines += [name + b": " + value for name, value in facts.extra_headers]
    lines += [
        b"Content-Type: " + content_type,
        b"Accept: " + accepted(facts, endpoint, stream=stream),
        b"Accept-Encoding: identity",  # a compressed answer is refused: we would have to unpack it to see reflected secrets
        b"User-Agent: cliproxy/" + __version__.encode("ascii"),
        b"Content-Length: ",
    ]
    return b"\r\n".join(lines)


def accepted(facts: ProviderFacts, endpoint: Endpoint, *, stream: bool) -> bytes:
    """Return the media type that is asked for."""
    if stream:
        return AWS_EVENT_STREAM if facts.framing is Framing.AWS_EVENT_STREAM else EVENT_STREAM
    return b"*/*" if endpoint in (Endpoint.SPEECH, Endpoint.TRANSCRIPTIONS, Endpoint.TRANSLATIONS) else JSON
