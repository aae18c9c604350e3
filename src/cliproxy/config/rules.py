"""What the types cannot say: the meaning of the configuration, checked key by key.

`Judge.settings` returns the settings with what is implied written out (a provider's kind, `providers.*.models` merged into `models`), or
raises `ConfigError` with the line of the key at fault. What is allowed but deserves a word ends in `warnings`.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NoReturn

import msgspec

from cliproxy.bounds import MAX_CONFIG_NAME_CHARS, MAX_LISTENERS
from cliproxy.config.addresses import (
    Complaint,
    complaint_about_base_url,
    complaint_about_listener,
    complaint_about_network,
    complaint_about_proxy,
    is_loopback,
    sends_in_clear,
)
from cliproxy.config.document import Mapping
from cliproxy.config.ranges import range_of
from cliproxy.config.routes import MODEL_NAME, WILDCARD, RouteTable
from cliproxy.config.schema import ModelRoute, Provider, Settings
from cliproxy.config.shape import Path, find, line_of, name_of
from cliproxy.errors import ConfigError
from cliproxy.providers.facts import SETTING_NAMES, path_of
from cliproxy.providers.origin import parse_base_url
from cliproxy.providers.table import PROVIDERS

MAX_WILDCARDS = 4  # in one pattern of model names: a pattern is tried on names that clients send, and costs more with each

CIPHER_SUITES = frozenset(  # TLS 1.2 with forward secrecy and authenticated encryption (RFC 9325 §4.2)
    f"TLS_ECDHE_{certificate}_WITH_{cipher}"
    for certificate in ("RSA", "ECDSA")
    for cipher in ("AES_128_GCM_SHA256", "AES_256_GCM_SHA384", "CHACHA20_POLY1305_SHA256")
)
ALWAYS_ON_SUITES = frozenset({"TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"})  # TLS 1.3: may be named
ALERT_METRICS = frozenset({"auth_failures", "rate_limit_violations", "suspicious_activity", "blocked_ips"})  # the specification's counters
_CONDITION = re.compile(r"([a-z_]{1,64}) (>|>=|<|<=|==) ([0-9]{1,12}(?:\.[0-9]{1,6})?)")
_DURATION = re.compile(r"[1-9][0-9]{0,5}[smhd]")
_FEW = 8  # names that a message can list
_PROVIDER_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")


class Judge:
    """Checks the settings of one file."""

    def __init__(self, root: Mapping, *, file: str) -> None:
        self._root = root
        self._file = file
        self._warnings: list[str] = []

    @property
    def warnings(self) -> tuple[str, ...]:
        """Single lines, in the order of the file's blocks."""
        return tuple(self._warnings)

    def settings(self, settings: Settings, *, sandbox_may_be_off: bool) -> Settings:
        """Return `settings` with what is implied written out."""
        for path, number in _numbers(settings, ()):
            self._range(path, number)
        self._server(settings)
        if not settings.auth.encryption.enabled:
            self._refuse(("auth", "encryption", "enabled"), "stored credentials are always encrypted", cure="write true or remove the line")
        providers = {name: self._provider(name, provider) for name, provider in settings.providers.items()}
        models = self._models(settings.models, providers)
        prefixes = Counter(provider.prefix for provider in providers.values())
        for name, provider in providers.items():
            self._prefix(("providers", name), provider, taken=prefixes[provider.prefix] > 1)
        settings = msgspec.structs.replace(settings, providers=providers, models=models)
        self._table(settings)
        self._sandbox(settings, may_be_off=sandbox_may_be_off)
        if settings.audit.pin:
            self._absolute(("audit", "pin"), settings.audit.pin)
        self._alerts(settings)
        return settings

    def _range(self, path: Path, number: float) -> None:
        low, high = range_of(path)
        if not low <= number <= high:
            self._refuse(path, f"{number:g} is out of range", cure=f"write a number from {low:.10g} to {high:.10g}")

    def _server(self, settings: Settings) -> None:
        server = settings.server
        listen = ("server", "listen")
        if not server.listen:
            self._refuse(listen, "there is no address to listen on", cure='write "127.0.0.1" or remove the key')
        if len(server.listen) > MAX_LISTENERS:
            self._refuse(listen, f"there are more than {MAX_LISTENERS} addresses to listen on", cure='write "0.0.0.0" or "::" for all of this machine')
        for index, address in enumerate(server.listen):
            self._judge((*listen, index), complaint_about_listener(address))
            if any(ipaddress.ip_address(address) == ipaddress.ip_address(other) for other in server.listen[:index]):
                self._refuse((*listen, index), "this address stands twice", cure="remove one")
        self._tls(settings)
        exposed = [index for index, address in enumerate(server.listen) if not is_loopback(address)]
        if exposed and not server.tls.enabled:
            if not server.behind_tls_proxy:
                self._refuse(
                    (*listen, exposed[0]),
                    "client keys would cross the network in clear",
                    cure="set server.tls, or server.behind_tls_proxy: true if a proxy in front ends TLS",
                )
            self._warn(("server", "behind_tls_proxy"), "plain HTTP is served beyond loopback; make sure that only the TLS proxy can reach the port")
        security = ("server", "security")
        for index, text in enumerate(server.security.ip_allowlist.allowed_ips):
            self._judge((*security, "ip_allowlist", "allowed_ips", index), complaint_about_network(text))
        for index, text in enumerate(server.security.ip_denylist):
            self._judge((*security, "ip_denylist", index), complaint_about_network(text))
        allowlist = (*security, "ip_allowlist")
        if find(self._root, allowlist) is not None and server.security.ip_allowlist.enabled and not server.security.ip_allowlist.allowed_ips:
            self._refuse(allowlist, "an enabled allowlist without addresses says nothing", cure="add allowed_ips, write enabled: false, or remove the block")

    def _tls(self, settings: Settings) -> None:
        tls = settings.server.tls
        path = ("server", "tls")
        for key, value in (("cert_file", tls.cert_file), ("key_file", tls.key_file)):
            if tls.enabled and not value:
                self._refuse((*path, key), "TLS is enabled without this file", cure="give its path")
            if value:
                self._absolute((*path, key), value)
        for index, suite in enumerate(tls.cipher_suites):
            if suite not in CIPHER_SUITES | ALWAYS_ON_SUITES:
                self._refuse(
                    (*path, "cipher_suites", index), "this cipher suite is not known or not safe", cure="choose from " + ", ".join(sorted(CIPHER_SUITES))
                )
        if CIPHER_SUITES.intersection(tls.cipher_suites) and tls.min_version == "1.3":
            self._warn((*path, "cipher_suites"), "these suites are TLS 1.2's: with min_version 1.3 they are never used")

    def _provider(self, name: str, provider: Provider) -> Provider:
        path = ("providers", name)
        if not _PROVIDER_NAME.fullmatch(name):
            self._refuse(path, "this is no name for a provider", cure="use 1 to 64 of a-z 0-9 . _ - (a letter or digit at both ends)")
        kind = provider.kind or ("echo" if name == "echo" else "openai_compatible")
        if kind == "echo":
            for key in ("base_url", "plain_http", "private_network", "ca_file", "proxy", "auth"):
                if getattr(provider, key) != getattr(Provider(), key):
                    self._refuse((*path, key), "the echo provider answers by itself and takes no such key", cure="remove it, or write kind: openai_compatible")
        provider = self._kind(path, msgspec.structs.replace(provider, kind=kind))
        if provider.base_url:
            self._judge((*path, "base_url"), complaint_about_base_url(provider.base_url, plain_http=provider.plain_http))
            self._endpoints_path((*path, "base_url"), provider)
            if sends_in_clear(provider.base_url):
                self._warn((*path, "plain_http"), "the credential and the prompts cross this network in clear")
        elif kind != "echo":
            if provider.models:
                self._refuse((*path, "models"), "a provider with models needs a base_url", cure="add base_url: https://…")
            self._warn(path, "without base_url no model can be routed to this provider; its limits are kept")
        if provider.ca_file:
            self._absolute((*path, "ca_file"), provider.ca_file)
        if provider.proxy:
            self._judge((*path, "proxy"), complaint_about_proxy(provider.proxy))
        return msgspec.structs.replace(provider, base_url=provider.base_url.rstrip("/"))

    def _endpoints_path(self, path: Path, provider: Provider) -> None:
        """Warn where `base_url` goes on into an endpoint's path: calls would go to `…/chat/completions/chat/completions`."""
        facts = PROVIDERS[provider.kind]
        settings = {key: getattr(provider, key) for key in SETTING_NAMES}
        base = parse_base_url(provider.base_url)[1].split("/")[1:]
        for endpoint in facts.endpoints:
            whole = path_of(facts, endpoint, base_path="", stream=False, settings=settings)
            fixed = whole.partition("?")[0].partition("/{")[0].split("/")[1:]
            for count in range(len(fixed), 0, -1):
                if base[-count:] == fixed[:count] and (count == len(fixed) or count > 1):
                    self._warn(path, f"it should end before /{'/'.join(fixed[:count])}: calls go to it with {whole} behind it")
                    return

    def _kind(self, path: Path, provider: Provider) -> Provider:
        """Return `provider` with what its kind implies: the scheme of its credential, its own `base_url`. A key that the kind does not have is refused."""
        facts = PROVIDERS[provider.kind]
        for key in SETTING_NAMES:
            value = getattr(provider, key)
            setting = facts.settings.get(key)
            if setting is None:
                if value:
                    self._refuse((*path, key), f"providers of the kind {provider.kind} have no such key", cure="remove it")
            elif not value and setting.required:
                self._refuse((*path, key), f"providers of the kind {provider.kind} need this key", cure=setting.cure)
            elif value and not setting.fits(value):
                self._refuse((*path, key), f"this is no {key.replace('_', ' ')}", cure=setting.cure)
        auth = provider.auth or facts.auth.value
        if auth not in {allowed.value for allowed in facts.allowed_auths}:
            known = ", ".join(sorted(allowed.value for allowed in facts.allowed_auths))
            self._refuse((*path, "auth"), f"providers of the kind {provider.kind} do not take this", cure=f"write {known} or remove the line")
        base_url = provider.base_url or facts.base_url_with({key: getattr(provider, key) for key in facts.settings})
        return msgspec.structs.replace(provider, auth=auth, base_url=base_url)

    def _models(self, models: dict[str, ModelRoute], providers: dict[str, Provider]) -> dict[str, ModelRoute]:
        merged: dict[str, ModelRoute] = {}
        served = (f"{one.prefix}/{model}" if one.prefix else model for one in providers.values() for model in one.models if WILDCARD not in model)
        known = frozenset((*models, *served))
        for name, route in models.items():
            path: Path = ("models", name)
            self._model_name(path, name)
            self._route(path, route, known, providers)
            merged[name] = route
        for provider_name, provider in providers.items():
            for index, name in enumerate(provider.models):
                path = ("providers", provider_name, "models", index)
                if WILDCARD in name:
                    self._pattern(path, name)
                    if not provider.prefix:
                        self._refuse(path, "a wildcard needs a prefix for the public names", cure="add prefix, or name the models one by one")
                    continue
                self._model_name(path, name)
                public = f"{provider.prefix}/{name}" if provider.prefix else name
                self._model_name(path, public)
                if public in merged:
                    owner = merged[public].provider
                    self._refuse(
                        path,
                        f"a model of the name {public} is already at provider {owner}" if owner else f"a model of the name {public} is already under models",
                        cure="give one of them another name under models, or make a pool there",
                    )
                merged[public] = ModelRoute(provider=provider_name, model=name)
        if not merged and not any(provider.models for provider in providers.values()):
            self._warnings.append(f"{self._file}: models: there is no model, so every call is answered 404")
        return merged

    def _route(self, path: Path, route: ModelRoute, known: frozenset[str], providers: dict[str, Provider]) -> None:
        """One entry of `models`: either provider and model, or alias, or pool."""
        said = [key for key in ("provider", "alias", "pool") if getattr(route, key)]
        if len(said) != 1:
            problem = f"{said[0]} and {said[1]} do not go together" if said else "this leads nowhere"
            self._refuse((*path, said[1]) if said else path, problem, cure="give provider and model, or alias, or pool")
        if route.alias:
            for key in ("model", "strategy", "affinity", "fallback"):
                if getattr(route, key) != getattr(ModelRoute(), key):
                    self._refuse((*path, key), "an alias takes no such key", cure=f"write it under models.{route.alias}")
        elif route.provider:
            self._member(path, route.provider, route.model, providers)
        else:
            if route.model:
                self._refuse((*path, "model"), "a pool names a model for each member", cure="remove the key")
            members: set[tuple[str, str]] = set()
            for index, member in enumerate(route.pool):
                self._member((*path, "pool", index), member.provider, member.model, providers)
                if (member.provider, member.model) in members:
                    self._refuse((*path, "pool", index), "this member stands twice", cure="remove one, or give the other a weight")
                members.add((member.provider, member.model))
        others: list[tuple[Path, str]] = [((*path, "alias"), route.alias)] if route.alias else []
        for at, name in others + [((*path, "fallback", index), name) for index, name in enumerate(route.fallback)]:
            if name not in known:
                near = ", ".join(difflib.get_close_matches(name, sorted(known)[:1000], n=3)) or "none like it"
                self._refuse(at, "there is no model of this name", cure=f"add it under models (there is {near})")
        if len(set(route.fallback)) != len(route.fallback):
            self._refuse((*path, "fallback"), "a name stands twice", cure="remove one")

    def _member(self, path: Path, name: str, model: str, providers: dict[str, Provider]) -> None:
        provider = providers.get(name)
        if provider is None:
            known = ", ".join(sorted(providers) if len(providers) <= _FEW else difflib.get_close_matches(name, list(providers)[:1000], n=3))
            self._refuse((*path, "provider"), "there is no provider of this name", cure=f"add it under providers (there is {known or 'none like it'})")
        if not model:
            self._refuse((*path, "model"), "this key is missing", cure="add it")
        self._model_name((*path, "model"), model)
        if provider.kind != "echo" and not provider.base_url:
            self._refuse((*path, "provider"), "this provider has no base_url", cure=f"add providers.{name}.base_url: https://…")

    def _table(self, settings: Settings) -> None:
        """What only the whole table of routes shows: circles, exclusions, models that a kind of provider does not have."""
        try:
            RouteTable(settings)
        except ConfigError as error:
            path = self._path_of(error.key or "models", settings)
            self._refuse(path, error.problem, cure=error.cure)

    def _path_of(self, key: str, settings: Settings) -> Path:
        """Return the path of `models.NAME`, or of the entry of a provider's `models` that NAME was made from."""
        name = key.removeprefix("models.")
        if find(self._root, ("models", name)) is None and name in settings.models:
            route = settings.models[name]
            return ("providers", route.provider, "models", settings.providers[route.provider].models.index(route.model))
        return ("models", name)

    def _prefix(self, path: Path, provider: Provider, *, taken: bool) -> None:
        if provider.prefix:
            if not _PROVIDER_NAME.fullmatch(provider.prefix):
                self._refuse((*path, "prefix"), "this is no prefix", cure="use 1 to 64 of a-z 0-9 . _ - (a letter or digit at both ends)")
            if taken:
                self._refuse((*path, "prefix"), "another provider has this prefix", cure="give one of them another")
            if not provider.models:
                self._refuse((*path, "prefix"), "a prefix without models leads to none", cure='add models: ["*"] for all, or name them')
        for index, text in enumerate(provider.exclude):
            self._pattern((*path, "exclude", index), text)

    def _pattern(self, path: Path, text: str) -> None:
        if text.count(WILDCARD) > MAX_WILDCARDS:
            self._refuse(path, f"there are more than {MAX_WILDCARDS} wildcards in it", cure="write a simpler pattern")
        if len(text) > MAX_CONFIG_NAME_CHARS or not MODEL_NAME.fullmatch(re.sub(r"\*+", "x", text)):
            self._refuse(path, "this is no pattern of model names", cure="use A-Z a-z 0-9 . _ : / @ + - and *")

    def _model_name(self, path: Path, name: str) -> None:
        if len(name) > MAX_CONFIG_NAME_CHARS or not MODEL_NAME.fullmatch(name):
            self._refuse(
                path, "this is no name for a model", cure=f"use 1 to {MAX_CONFIG_NAME_CHARS} of A-Z a-z 0-9 . _ : / @ + - (a letter or digit at both ends)"
            )

    def _sandbox(self, settings: Settings, *, may_be_off: bool) -> None:
        if settings.sandbox.mode == "off":
            path = ("sandbox", "mode")
            if not may_be_off:
                self._refuse(path, "the sandbox is not switched off by a file alone", cure="write enforce, or start with --unsafe-no-sandbox")
            self._warn(path, "the processes are NOT locked down")

    def _alerts(self, settings: Settings) -> None:
        names: set[str] = set()
        for index, alert in enumerate(settings.alerts):
            path = ("alerts", index)
            if not alert.name or len(alert.name) > MAX_CONFIG_NAME_CHARS:
                self._refuse((*path, "name"), "the name is empty or too long", cure=f"use 1 to {MAX_CONFIG_NAME_CHARS} characters")
            condition = _CONDITION.fullmatch(alert.condition)
            if condition is None:
                self._refuse((*path, "condition"), "this is no condition", cure="write it as `auth_failures > 100`")
            if condition.group(1) not in ALERT_METRICS:
                self._refuse((*path, "condition"), "this metric is not known", cure="choose from " + ", ".join(sorted(ALERT_METRICS)))
            if not _DURATION.fullmatch(alert.duration):
                self._refuse((*path, "duration"), "this is no duration", cure="write a number and s, m, h or d, as in 5m")
            if alert.name in names:
                self._refuse((*path, "name"), "an alert of this name stands above", cure="give it another name")
            names.add(alert.name)
        if settings.alerts:
            self._warn(("alerts",), "alert rules are checked, but not evaluated yet")

    def _absolute(self, path: Path, value: str) -> None:
        if not value.startswith("/"):
            self._refuse(path, "this path is not absolute", cure="write it from / on")

    def _judge(self, path: Path, complaint: Complaint | None) -> None:
        if complaint is not None:
            self._refuse(path, complaint[0], cure=complaint[1])

    def _refuse(self, path: Path, problem: str, *, cure: str) -> NoReturn:
        raise ConfigError(problem, cure=cure, file=self._file, line=line_of(self._root, path), key=name_of(path))

    def _warn(self, path: Path, text: str) -> None:
        self._warnings.append(f"{self._file}:{line_of(self._root, path)}: {name_of(path)}: {text}")


def _numbers(value: Any, path: Path) -> Iterator[tuple[Path, float]]:
    """Yield every number of `value` with its path."""
    if isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield from _numbers(getattr(value, name), (*path, name))
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _numbers(item, (*path, name))
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from _numbers(item, (*path, index))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, value
