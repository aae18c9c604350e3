"""The configuration as types: frozen, every unknown key an error, every default safe.

`Settings` is what every process gets; it holds no secret (an inline `auth.encryption.key` is taken out by `config.load` and travels
to the vault as the master key, never in here). It crosses processes as MessagePack (`encode_settings`/`decode_settings`).
The specification's own YAML blocks are accepted as they stand.
"""

from __future__ import annotations

from typing import Literal

import msgspec

SpecAction = Literal["notify_admin", "block_ip", "disable_provider", "lockdown"]


class _Block(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A block of the configuration."""


class Tls(_Block, frozen=True):
    """`server.tls`. Suite names are IANA's (TLS 1.2); TLS 1.3 suites are always on."""

    enabled: bool = False
    cert_file: str = ""
    key_file: str = ""
    min_version: Literal["1.2", "1.3"] = "1.2"
    cipher_suites: tuple[str, ...] = ()


class IpAllowlist(_Block, frozen=True):
    """A non-empty, enabled allowlist means: everyone else is denied."""

    enabled: bool = True
    allowed_ips: tuple[str, ...] = ()


class ServerSecurity(_Block, frozen=True):
    """`server.security`: the longest matching prefix decides, an exact tie denies."""

    ip_allowlist: IpAllowlist = IpAllowlist()
    ip_denylist: tuple[str, ...] = ()


class AddressRate(_Block, frozen=True):
    """`server.rate_limit`: the token buckets of one client address (/64 for IPv6). The first is for requests without a good key; 0: key holders have none."""

    requests_per_second: float = 10.0
    burst: int = 20
    authenticated_requests_per_second: float = 0.0
    authenticated_burst: int = 20


class ServerLimits(_Block, frozen=True):
    """`server.limits`: bounds of what a client may make us hold. Bytes, seconds, counts."""

    max_head_bytes: int = 16 * 1024
    max_headers: int = 100
    max_body_bytes: int = 8 * 1024 * 1024
    max_connections: int = 4096
    max_connections_per_address: int = 256
    head_timeout_seconds: float = 10.0
    body_timeout_seconds: float = 30.0
    idle_timeout_seconds: float = 75.0
    drain_timeout_seconds: float = 30.0
    keepalive_comment_seconds: float = 15.0
    stalled_reader_seconds: float = 60.0


class Server(_Block, frozen=True):
    """`server`: where we listen and what a client may do there."""

    listen: tuple[str, ...] = ("127.0.0.1", "::1")
    port: int = 8317
    workers: int = 1
    behind_tls_proxy: bool = False
    tls: Tls = Tls()
    security: ServerSecurity = ServerSecurity()
    rate_limit: AddressRate = AddressRate()
    limits: ServerLimits = ServerLimits()


class Encryption(_Block, frozen=True):
    """`auth.encryption`, after `key` was taken out."""

    enabled: bool = True


class KeyDefaults(_Block, frozen=True):
    """`auth.key_limits`: the limits of a client key that names none of its own. 0 means no limit."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    concurrency: int = 64


class Auth(_Block, frozen=True):
    """`auth`."""

    encryption: Encryption = Encryption()
    key_limits: KeyDefaults = KeyDefaults()


class Requests(_Block, frozen=True):
    """`requests`: what a request may ask for. `max_tokens` is the specification's cap; `on_excess` says what happens above it.

    `provider_state`: requests may name what a provider keeps (responses, conversations, files), which all clients then share.
    """

    max_tokens: int = 4096
    on_excess: Literal["reject", "clamp"] = "reject"
    provider_state: bool = False


class ProviderRate(_Block, frozen=True):
    """`providers.<name>.rate_limit`. 0 means no limit."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0


class ProviderTimeouts(_Block, frozen=True):
    """Seconds. `idle` is the longest silence inside an answer, `total` the longest answer."""

    connect: float = 10.0
    first_byte: float = 120.0
    idle: float = 120.0
    total: float = 1800.0


class Provider(_Block, frozen=True):
    """`providers.<name>`. `base_url` ends before the endpoint's path (`https://api.example.com/v1`); left out: the kind's own.

    `kind` left out: `echo` for the name `echo`, else `openai_compatible`. `auth` left out: as the kind wants it; `none` is for origins that want no
    credential. `api_version`, `project`, `location` and `region` are for the kinds that have them (`providers.facts.Setting`).
    A provider without `base_url` can be named and limited, but no model can be routed to it.
    `models` may hold wildcards (`gpt-*`) where there is a `prefix`: public names are then `prefix/model`. No model that matches `exclude` is called there.
    """

    kind: Literal[
        "",
        "openai",
        "anthropic",
        "gemini",
        "azure_openai",
        "vertex",
        "bedrock",
        "mistral",
        "groq",
        "deepseek",
        "openrouter",
        "together",
        "xai",
        "ollama",
        "vllm",
        "openai_compatible",
        "echo",
    ] = ""
    base_url: str = ""
    plain_http: bool = False
    private_network: bool = False
    ca_file: str = ""
    proxy: str = ""
    auth: Literal["", "bearer", "x-api-key", "x-goog-api-key", "api-key", "sigv4", "none"] = ""
    api_version: str = ""
    project: str = ""
    location: str = ""
    region: str = ""
    models: tuple[str, ...] = ()
    prefix: str = ""
    exclude: tuple[str, ...] = ()
    priority: int = 0
    concurrency: int = 0
    rate_limit: ProviderRate = ProviderRate()
    timeouts: ProviderTimeouts = ProviderTimeouts()


Strategy = Literal["round_robin", "weighted", "fill_first", "least_busy"]


class PoolMember(_Block, frozen=True):
    """One of `models.<public name>.pool`. Higher priorities are tried first; a member's counts on top of its provider's."""

    provider: str
    model: str
    weight: int = 1
    priority: int = 0


class ModelRoute(_Block, frozen=True):
    """`models.<public name>`: where the model of that name is. Either `provider` and `model`, or `alias` (another public name), or `pool`.

    `strategy` chooses among targets of one priority; `affinity` keeps a session with its target. `fallback` are public names whose targets are tried
    when none of this one's can answer.
    """

    provider: str = ""
    model: str = ""
    alias: str = ""
    pool: tuple[PoolMember, ...] = ()
    strategy: Strategy = "round_robin"
    affinity: bool = False
    fallback: tuple[str, ...] = ()


class Routing(_Block, frozen=True):
    """`routing`: how often and how long a call is tried before the first byte of its answer. Seconds, counts.

    `max_attempts` counts everything that is sent for one request; `retry_rounds` are further rounds over the targets after all of them failed, each
    after a wait for the soonest of them, `max_wait_seconds` at most.
    """

    max_attempts: int = 6
    retry_rounds: int = 1
    max_wait_seconds: float = 5.0
    cooldown_seconds: float = 60.0


class AuditSettings(_Block, frozen=True):
    """`audit`: how long a call may wait for the auditor before it is refused, when a log segment is full, and the file outside the home that remembers
    the newest checkpoints (empty: none)."""

    deadline_seconds: float = 5.0
    segment_bytes: int = 64 * 1024 * 1024
    unauthenticated_bytes_per_hour: int = 4 * 1024 * 1024
    pin: str = ""


class Sandbox(_Block, frozen=True):
    """`sandbox`. `off` is refused on Linux unless the command line says `--unsafe-no-sandbox`."""

    mode: Literal["enforce", "off"] = "enforce"
    uid_base: int = 64200


class Alert(_Block, frozen=True):
    """One of `alerts`. Checked here; evaluated by the alert engine when that is there (a warning says so until then)."""

    name: str
    condition: str
    duration: str
    action: SpecAction


class Settings(_Block, frozen=True):
    """The whole configuration, without secrets. `models` holds every public name after `config.load` added `providers.*.models`."""

    server: Server = Server()
    auth: Auth = Auth()
    requests: Requests = Requests()
    providers: dict[str, Provider] = {}
    models: dict[str, ModelRoute] = {}
    routing: Routing = Routing()
    audit: AuditSettings = AuditSettings()
    sandbox: Sandbox = Sandbox()
    alerts: tuple[Alert, ...] = ()


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Settings)


def encode_settings(settings: Settings) -> bytes:
    """Return `settings` as MessagePack, for `decode_settings` in another process of the same build."""
    return _encoder.encode(settings)


def decode_settings(data: bytes) -> Settings:
    """Return the settings in `data`; raises `msgspec.ValidationError` on anything else."""
    return _decoder.decode(data)
