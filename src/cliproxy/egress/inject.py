"""Credentials in use: each bound to the origin that it was sealed for, and the only place that reveals one.

A `BoundCredential` makes request heads, and only for its own origin; asking for any other raises `ForeignOrigin`, whoever asks and for
whatever reason. The origin is part of the sealed record, so neither the configuration nor a worker can move a credential.
Nothing here can wipe the heads that hold the secret: they are Python bytes. They go when the credential is withdrawn, or with the process.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping

from cliproxy.bounds import MAX_CREDENTIAL_SECRET_BYTES, MIN_GUARDED_SECRET_BYTES
from cliproxy.config.schema import Provider
from cliproxy.dialects import Endpoint
from cliproxy.egress.reflection import NO_SECRET, ReflectionGuard
from cliproxy.egress.sigv4 import Signer
from cliproxy.errors import ForeignOrigin, Unavailable, UpstreamError
from cliproxy.providers.credentials import AWS_FORM, parse_aws_credential
from cliproxy.providers.facts import JSON, MODEL, Auth, build_head, path_of
from cliproxy.providers.origin import parse_base_url
from cliproxy.providers.table import facts_of
from cliproxy.secret import Secret

MAX_MODEL_HEADS = 128  # request heads with a model's name in their path that egress keeps for one credential, some 500 bytes each

_VISIBLE = re.compile(rb"[\x21-\x7e]+")  # what a header value may hold without becoming two
_MULTIPART = frozenset({Endpoint.TRANSCRIPTIONS, Endpoint.TRANSLATIONS})
_BOUNDARY = re.compile(rb"--([A-Za-z0-9_-]{16,64})\r\n")  # RFC 2046 §5.1.1 allows more characters; ours need no quotes
_SIGNED_HEADS = re.compile(rb"POST ([^ ]+) HTTP/1\.1\r\n")


class _Wanted:
    """What the heads of one provider are made from."""

    __slots__ = ("auth", "base_path", "facts", "origin", "provider", "settings")

    def __init__(self, provider: str, settings: Provider) -> None:
        self.provider = provider
        self.facts = facts_of(provider, kind=settings.kind)
        self.origin, self.base_path = parse_base_url(settings.base_url)
        self.auth = Auth(settings.auth) if settings.auth else self.facts.auth
        self.settings = {name: str(getattr(settings, name)) for name in self.facts.settings}
        self.facts.values(self.settings)  # raises `ConfigError` for one that may not be


class BoundCredential:
    """A provider's credential, or its absence (`auth: none`; then `id` is empty), bound to `origin`. `guard` removes its secrets from answers."""

    __slots__ = ("_clock", "_credential", "_models", "_signer", "_streams", "_wanted", "_whole", "framing", "guard", "id", "origin", "provider")

    def __init__(self, id: str, *, wanted: _Wanted, secret: Secret | None, clock: Callable[[], float]) -> None:
        self.id = id
        self.provider = wanted.provider
        self.origin = str(wanted.origin)
        self.framing = wanted.facts.framing
        self.guard = NO_SECRET
        self._wanted = wanted
        self._clock = clock
        self._credential: bytes | None = None
        self._signer: Signer | None = None
        if secret is not None and wanted.auth is not Auth.NONE:
            self._take(secret.reveal())
        self._models: dict[tuple[Endpoint, bool, str], bytes] = {}
        self._whole, self._streams = ({endpoint: self._build(endpoint, stream=stream) for endpoint in self._fixed(stream=stream)} for stream in (False, True))

    def __repr__(self) -> str:
        return f"BoundCredential({self.id!r}, origin={self.origin!r})"

    def head(self, endpoint: Endpoint, *, origin: str, stream: bool, body: bytes, model: str = "") -> bytes:
        """Return the whole request head for `body`, with the empty line. `model` is the provider's name of the model, for paths that hold it.

        Raises `ForeignOrigin` unless `origin` is the sealed one, `Unavailable` if the provider lacks `endpoint`, `SchemaError` if `model` fits no path.
        """
        if origin != self.origin:
            raise ForeignOrigin(self.id)
        prefix = (self._streams if stream else self._whole).get(endpoint)
        if prefix is None:
            prefix = self._head_of_this_call(endpoint, stream=stream, model=model, body=body)
        return prefix + b"%d\r\n\r\n" % len(body)

    def _take(self, credential: bytes) -> None:
        """Raises `UpstreamError` for a secret that can not be sent."""
        if not MIN_GUARDED_SECRET_BYTES <= len(credential) <= MAX_CREDENTIAL_SECRET_BYTES or _VISIBLE.fullmatch(credential) is None:
            raise UpstreamError(f"credential {self.id} can not be sent in a header", code="credential_malformed")
        if self._wanted.auth is not Auth.SIGV4:
            self._credential = credential
            self.guard = ReflectionGuard(credential)
            return
        parts = parse_aws_credential(credential.decode("ascii"))
        if parts is None:
            raise UpstreamError(f"credential {self.id} is no {AWS_FORM}", code="credential_malformed")
        id, secret_key, token = parts
        # The id is no secret; providers may name it in their errors. The text as a whole is never sent, but whoever knows a part may know it.
        self.guard = ReflectionGuard(*(part.encode("ascii") for part in (secret_key, token) if part))
        self._signer = Signer(access_key_id=id, secret_key=secret_key, session_token=token, region=self._wanted.settings["region"], service="bedrock")

    def _fixed(self, *, stream: bool) -> list[Endpoint]:
        """The endpoints whose heads differ in nothing but the length."""
        if self._signer is not None:
            return []
        wanted = self._wanted
        paths = {
            endpoint: path_of(wanted.facts, endpoint, base_path=wanted.base_path, stream=stream, settings=wanted.settings)
            for endpoint in wanted.facts.endpoints
            if endpoint not in _MULTIPART
        }
        return [endpoint for endpoint, path in paths.items() if MODEL not in path]

    def _head_of_this_call(self, endpoint: Endpoint, *, stream: bool, model: str, body: bytes) -> bytes:
        if endpoint not in self._wanted.facts.endpoints:
            raise Unavailable("The provider does not have this endpoint.", code="endpoint_not_supported")
        if endpoint in _MULTIPART:
            match = _BOUNDARY.match(body)
            if match is None:
                raise UpstreamError("The body of the call is no form.", status=500, code="internal_error")
            return self._build(endpoint, stream=stream, model=model, content_type=b"multipart/form-data; boundary=" + match[1])
        key = (endpoint, stream, model)
        head = self._models.get(key)
        if head is None:
            head = self._build(endpoint, stream=stream, model=model)
            if len(self._models) >= MAX_MODEL_HEADS:
                del self._models[next(iter(self._models))]
            self._models[key] = head
        return head if self._signer is None else self._signed(self._signer, head, body)

    def _signed(self, signer: Signer, head: bytes, body: bytes) -> bytes:
        """Return `head` with AWS's headers before its last line."""
        match = _SIGNED_HEADS.match(head)
        assert match is not None  # build_head made it
        signed = [(b"Host", self._wanted.origin.host_field), (b"Content-Type", JSON)]
        added = signer.sign(method=b"POST", target=match[1], headers=signed, body=body, now=self._clock())
        before, last = head[: -len(b"Content-Length: ")], head[-len(b"Content-Length: ") :]
        return before + b"".join(name + b": " + value + b"\r\n" for name, value in added) + last

    def _build(self, endpoint: Endpoint, *, stream: bool, model: str = "", content_type: bytes = JSON) -> bytes:
        wanted = self._wanted
        return build_head(
            wanted.facts,
            endpoint,
            origin=wanted.origin,
            base_path=wanted.base_path,
            auth=wanted.auth,
            credential=self._credential,
            stream=stream,
            settings=wanted.settings,
            model=model,
            content_type=content_type,
        )


class Injector:
    """Every credential in use, by provider, the newest first, so a rotation is: add the new one, remove the old one. `clock` tells seconds since the epoch."""

    def __init__(self, providers: Mapping[str, Provider], *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._granted: dict[str, tuple[str, str, Secret]] = {}
        self._bound: dict[str, BoundCredential] = {}
        self._usable: dict[str, tuple[BoundCredential, ...]] = {}
        self._providers: dict[str, _Wanted] = {}
        self.retable(providers)

    def retable(self, providers: Mapping[str, Provider]) -> list[str]:
        """Take a new table of providers. Returns the ids of credentials that no longer fit their provider's origin; they are kept but unused."""
        self._providers = {
            name: _Wanted(name, provider) for name, provider in providers.items() if provider.base_url and facts_of(name, kind=provider.kind).remote
        }
        self._bound = {}
        foreign = []
        for id, (name, origin_text, secret) in self._granted.items():
            try:
                self._bind(id, provider=name, origin=origin_text, secret=secret)
            except (ForeignOrigin, UpstreamError):  # the second was refused when it was granted; a reload must not stop in its middle for it
                foreign.append(id)
        self._choose()
        return foreign

    def grant(self, id: str, *, provider: str, origin: str, secret: Secret) -> None:
        """Put a credential to use. Raises `ForeignOrigin` if its sealed origin is not its provider's, `UpstreamError` if it fits no header."""
        self._granted.pop(id, None)
        self._bound.pop(id, None)
        self._granted[id] = (provider, origin, secret)
        try:
            self._bind(id, provider=provider, origin=origin, secret=secret)
        finally:
            self._choose()

    def withdraw(self, id: str) -> None:
        """Forget a credential; an unknown id is nothing to forget."""
        _, _, secret = self._granted.pop(id, ("", "", None))
        if secret is not None:
            secret.wipe()
        self._bound.pop(id, None)
        self._choose()

    def keep_only(self, ids: frozenset[str]) -> None:
        """Withdraw every credential that is not in `ids` (after the vault has granted all there are)."""
        for id in [id for id in self._granted if id not in ids]:
            self.withdraw(id)

    def credentials_of(self, provider: str) -> tuple[BoundCredential, ...]:
        """Return everything that `provider` can be called with, the newest first. Empty: it wants a credential and there is none, or it has no origin."""
        return self._usable.get(provider, ())

    def for_provider(self, provider: str) -> BoundCredential | None:
        """Return the first of `credentials_of`, if there is one."""
        usable = self._usable.get(provider)
        return usable[0] if usable else None

    def _bind(self, id: str, *, provider: str, origin: str, secret: Secret) -> None:
        wanted = self._providers.get(provider)
        if wanted is None or str(wanted.origin) != origin:
            raise ForeignOrigin(id)
        self._bound[id] = BoundCredential(id, wanted=wanted, secret=secret, clock=self._clock)

    def _choose(self) -> None:
        usable: dict[str, list[BoundCredential]] = {}
        for name, wanted in self._providers.items():
            if wanted.auth is Auth.NONE:
                usable[name] = [BoundCredential("", wanted=wanted, secret=None, clock=self._clock)]
        for bound in reversed(self._bound.values()):
            if self._providers[bound.provider].auth is not Auth.NONE:
                usable.setdefault(bound.provider, []).append(bound)
        self._usable = {name: tuple(found) for name, found in usable.items()}
