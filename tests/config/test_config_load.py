"""Valid configurations, their invalid sisters with the exact place of the fault, and garbage."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from cliproxy.config.load import load_settings, parse_config
from cliproxy.config.ranges import RANGES, range_of
from cliproxy.config.schema import ModelRoute, PoolMember, Provider, Settings, decode_settings, encode_settings
from cliproxy.errors import ConfigError

FILE = "cliproxy.yaml"

SPECIFICATION_TLS = """\
server:
  port: 8317
  tls:
    enabled: true
    cert_file: "/config/tls.crt"
    key_file: "/config/tls.key"
    min_version: "1.2"
    cipher_suites:
      - "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384"
      - "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"
"""
SPECIFICATION_LISTS = """\
server:
  security:
    ip_allowlist:
      enabled: true
      allowed_ips:
        - "10.0.0.0/8"
        - "192.168.1.100"
    ip_denylist:
      - "0.0.0.0/0"  # Block all except allowed
"""
SPECIFICATION_ENCRYPTION = """\
auth:
  encryption:
    enabled: true
    key: "YOUR_32_BYTE_ENCRYPTION_KEY_HERE"
"""
SPECIFICATION_RATE = """\
providers:
  claude:
    rate_limit:
      requests_per_minute: 100
      tokens_per_minute: 100000
"""
SPECIFICATION_ALERTS = """\
alerts:
  - name: High auth failure rate
    condition: auth_failures > 100
    duration: 5m
    action: notify_admin

  - name: Rate limit violations
    condition: rate_limit_violations > 50
    duration: 1m
    action: block_ip
"""


def parse(text: str, **keywords: bool) -> Settings:
    return parse_config(text.encode(), file=FILE, **keywords).settings


def fault(text: str | bytes, **keywords: bool) -> ConfigError:
    data = text if isinstance(text, bytes) else text.encode()
    with pytest.raises(ConfigError) as caught:
        parse_config(data, file=FILE, **keywords)
    return caught.value


def test_the_specifications_blocks_are_accepted_as_they_stand() -> None:
    tls = parse(SPECIFICATION_TLS).server.tls
    assert (tls.enabled, tls.cert_file, tls.min_version, len(tls.cipher_suites)) == (True, "/config/tls.crt", "1.2", 2)
    security = parse(SPECIFICATION_LISTS).server.security
    assert security.ip_allowlist.allowed_ips == ("10.0.0.0/8", "192.168.1.100")
    assert security.ip_denylist == ("0.0.0.0/0",)
    claude = parse(SPECIFICATION_RATE).providers["claude"]
    assert (claude.rate_limit.requests_per_minute, claude.rate_limit.tokens_per_minute) == (100, 100_000)
    alerts = parse_config(SPECIFICATION_ALERTS.encode(), file=FILE)
    assert [alert.action for alert in alerts.settings.alerts] == ["notify_admin", "block_ip"]
    assert any("not evaluated yet" in warning for warning in alerts.warnings)


def test_an_inline_key_comes_out_as_a_secret_and_is_nowhere_else() -> None:
    loaded = parse_config(SPECIFICATION_ENCRYPTION.encode(), file=FILE)
    assert loaded.inline_master_key is not None
    assert loaded.inline_master_key.reveal() == b"YOUR_32_BYTE_ENCRYPTION_KEY_HERE"
    assert "YOUR_32" not in repr(loaded)
    assert b"YOUR_32" not in encode_settings(loaded.settings)
    assert loaded.warnings[0].startswith(f"{FILE}:4: auth.encryption.key: ")


def test_an_inline_key_of_digits_keeps_its_text() -> None:
    loaded = parse_config(b"auth:\n  encryption:\n    key: 00112233445566778899001122334455\n", file=FILE)
    assert loaded.inline_master_key is not None
    assert loaded.inline_master_key.reveal() == b"00112233445566778899001122334455"


def test_an_inline_key_shows_in_no_error() -> None:
    hidden = "aVerySecretKeyThatNobodyMaySee00"
    for text in (
        f"auth:\n  encryption:\n    key: {hidden}\n    key: {hidden}\n",
        f"auth:\n  encryption:\n    key: [{hidden}]\n",
        f"auth:\n  encryption:\n    key: *{hidden}\n",
        f"auth:\n  encryption:\n    key: !{hidden}\n",
        f"auth:\n  encryption:\n    key: '{hidden}\n",
        f'auth:\n  encryption:\n    key: "\\q{hidden}"\n',
        f"auth:\n  encryption:\n    key: %{hidden}\n",
        f"auth:\n  encryption:\n    key: {hidden}: {hidden}\n",
        f"auth:\n  encryption:\n    key: {hidden}\nserver: 1\n",
    ):
        assert hidden not in str(fault(text))


def test_an_empty_file_is_the_defaults_and_says_that_there_is_no_model() -> None:
    for text in (b"", b"\n", b"# nothing\n", b"---\n", b"{}"):
        loaded = parse_config(text, file=FILE)
        assert loaded.settings == Settings()
        assert loaded.warnings == (f"{FILE}: models: there is no model, so every call is answered 404",)


def test_a_commented_out_block_counts_as_absent() -> None:
    assert parse("server:\n#  port: 1\n") == Settings()


def test_provider_models_are_merged_into_models() -> None:
    settings = parse(
        "providers:\n  echo:\n    models: [echo]\n"
        "  up:\n    base_url: https://api.example.com/v1/\n    models: [a, b]\nmodels:\n  c:\n    provider: up\n    model: big/c\n"
    )
    assert settings.models == {
        "c": ModelRoute(provider="up", model="big/c"),
        "echo": ModelRoute(provider="echo", model="echo"),
        "a": ModelRoute(provider="up", model="a"),
        "b": ModelRoute(provider="up", model="b"),
    }
    assert settings.providers["echo"].kind == "echo"
    assert settings.providers["up"].kind == "openai_compatible"
    assert settings.providers["up"].base_url == "https://api.example.com/v1"


def test_settings_cross_processes_unchanged() -> None:
    settings = parse(SPECIFICATION_TLS + SPECIFICATION_RATE + SPECIFICATION_ALERTS)
    assert decode_settings(encode_settings(settings)) == settings


def test_yaml_1_1_surprises_are_text() -> None:
    assert fault("server:\n  behind_tls_proxy: yes\n").key == "server.behind_tls_proxy"
    assert fault("server:\n  port: 0x20\n").key == "server.port"
    assert fault("server:\n  port: 1:30\n").key == "server.port"
    assert fault("server:\n  port: 010\n").key == "server.port"
    assert parse("models:\n  no:\n    provider: echo\n    model: on\nproviders:\n  echo: {}\n").models["no"].model == "on"


PROVIDER = "providers:\n  up:\n    base_url: "

INVALID = {
    # name: (text, line, key)
    "unknown key": ("server:\n  prot: 1\n", 2, "server.prot"),
    "unknown block": ("port: 1\n", 1, "port"),
    "duplicate key": ("server:\n  port: 1\n  port: 2\n", 3, None),
    "duplicate key by quotes": ('server: {}\n"server": {}\n', 2, None),
    "duplicate model": ("models:\n  a: {}\n  a: {}\n", 3, None),
    "merge key": ("server: &a {}\nauth:\n  <<: *a\n", 3, None),
    "tag": ("server:\n  port: !!int 5\n", 2, None),
    "python tag": ("server: !!python/object/apply:os.system [id]\n", 1, None),
    "second document": ("server: {}\n---\nserver: {}\n", 2, None),
    "list at the top": ("- 1\n", 1, None),
    "text at the top": ("hello\n", 1, None),
    "tab": ("server:\n\tport: 1\n", 2, None),
    "unclosed quote": ('server:\n  listen: ["a\n', 2, None),
    "alias without anchor": ("server: *x\n", 1, None),
    "alias to its own block": ("server: &x\n  port: *x\n", 2, None),
    "list as key": ("? [a]\n: 1\n", 1, None),
    "wrong type: text for number": ('server:\n  port: "1"\n', 2, "server.port"),
    "wrong type: number for text": ("server:\n  listen: [127]\n", 2, "server.listen[0]"),
    "wrong type: fraction for count": ("server:\n  port: 1.5\n", 2, "server.port"),
    "wrong type: value for block": ("server: 5\n", 1, "server"),
    "wrong type: value for list": ("server:\n  listen: 127.0.0.1\n", 2, "server.listen"),
    "wrong type: list for value": ("server:\n  port: [1]\n", 2, "server.port"),
    "wrong type: list for names": ("providers: [a]\n", 1, "providers"),
    "infinity": ("server:\n  rate_limit:\n    requests_per_second: .inf\n", 3, "server.rate_limit.requests_per_second"),
    "number of many digits": ("server:\n  port: " + "9" * 5000 + "\n", 2, "server.port"),
    "empty value": ("server:\n  port:\n", 2, "server.port"),
    "empty list": ("server:\n  listen:\n", 2, "server.listen"),
    "missing key": ("models:\n  a:\n    provider: echo\nproviders:\n  echo: {}\n", 2, "models.a.model"),
    "unknown choice": ("requests:\n  on_excess: drop\n", 2, "requests.on_excess"),
    "port below 0": ("server:\n  port: -1\n", 2, "server.port"),
    "port 65536": ("server:\n  port: 65536\n", 2, "server.port"),
    "workers 0": ("server:\n  workers: 0\n", 2, "server.workers"),
    "workers 33": ("server:\n  workers: 33\n", 2, "server.workers"),
    "timeout 0": (PROVIDER + "https://a.example\n    timeouts:\n      idle: 0\n", 5, "providers.up.timeouts.idle"),
    "negative limit": ("auth:\n  key_limits:\n    concurrency: -1\n", 3, "auth.key_limits.concurrency"),
    "no listener": ("server:\n  listen: []\n", 2, "server.listen"),
    "listener by name": ("server:\n  listen: [localhost]\n", 2, "server.listen[0]"),
    "listener twice": ('server:\n  listen:\n    - "::1"\n    - "::1"\n', 4, "server.listen[1]"),
    "exposed without TLS": ('server:\n  listen:\n    - "127.0.0.1"\n    - "0.0.0.0"\n', 4, "server.listen[1]"),
    "TLS without certificate": ("server:\n  tls:\n    enabled: true\n", 2, "server.tls.cert_file"),
    "TLS by relative path": ("server:\n  tls:\n    cert_file: a.crt\n", 3, "server.tls.cert_file"),
    "old TLS": ('server:\n  tls:\n    min_version: "1.1"\n', 3, "server.tls.min_version"),
    "weak suite": ("server:\n  tls:\n    cipher_suites:\n      - TLS_RSA_WITH_RC4_128_SHA\n", 4, "server.tls.cipher_suites[0]"),
    "allowlist: host bits": ('server:\n  security:\n    ip_allowlist:\n      allowed_ips: ["10.0.0.1/8"]\n', 4, "server.security.ip_allowlist.allowed_ips[0]"),
    "allowlist: nonsense": (
        "server:\n  security:\n    ip_allowlist:\n      allowed_ips:\n        - host.example\n",
        5,
        "server.security.ip_allowlist.allowed_ips[0]",
    ),
    "allowlist: empty but enabled": ("server:\n  security:\n    ip_allowlist:\n      enabled: true\n", 3, "server.security.ip_allowlist"),
    "denylist: mapped IPv4": ('server:\n  security:\n    ip_denylist: ["::ffff:10.0.0.0/104"]\n', 3, "server.security.ip_denylist[0]"),
    "denylist: octal": ('server:\n  security:\n    ip_denylist: ["010.0.0.1"]\n', 3, "server.security.ip_denylist[0]"),
    "plaintext vault": ("auth:\n  encryption:\n    enabled: false\n", 3, "auth.encryption.enabled"),
    "empty inline key": ('auth:\n  encryption:\n    key: ""\n', 3, "auth.encryption.key"),
    "provider name with slash": ("providers:\n  a/b: {}\n", 2, "providers.a/b"),
    "provider name in capitals": ("providers:\n  Up: {}\n", 2, "providers.Up"),
    "models without base_url": ("providers:\n  up:\n    models: [a]\n", 3, "providers.up.models"),
    "echo with base_url": ("providers:\n  echo:\n    base_url: https://a.example\n", 3, "providers.echo.base_url"),
    "echo with credential": ("providers:\n  e:\n    kind: echo\n    auth: none\n", 4, "providers.e.auth"),
    "URL: plain HTTP": (PROVIDER + "http://api.example.com/v1\n", 3, "providers.up.base_url"),
    "URL: plain HTTP to a name like localhost": (PROVIDER + "http://localhost.example.com\n", 3, "providers.up.base_url"),
    "URL: other scheme": (PROVIDER + "ftp://a.example\n", 3, "providers.up.base_url"),
    "URL: no scheme": (PROVIDER + "api.example.com/v1\n", 3, "providers.up.base_url"),
    "URL: one slash": (PROVIDER + "https:/a.example\n", 3, "providers.up.base_url"),
    "URL: no host": (PROVIDER + "https:///v1\n", 3, "providers.up.base_url"),
    "URL: user": (PROVIDER + "https://u:p@a.example\n", 3, "providers.up.base_url"),
    "URL: query": (PROVIDER + "https://a.example/v1?x=1\n", 3, "providers.up.base_url"),
    "URL: fragment": (PROVIDER + '"https://a.example/v1#x"\n', 3, "providers.up.base_url"),
    "URL: space": (PROVIDER + '"https://a.example/v 1"\n', 3, "providers.up.base_url"),
    "URL: backslash": (PROVIDER + "https://a.example\\@evil.example\n", 3, "providers.up.base_url"),
    "URL: percent": (PROVIDER + "https://a.example/%2e%2e/\n", 3, "providers.up.base_url"),
    "URL: dot segments": (PROVIDER + "https://a.example/v1/../x\n", 3, "providers.up.base_url"),
    "URL: octal host": (PROVIDER + "http://0177.0.0.1\n", 3, "providers.up.base_url"),
    "URL: hexadecimal host": (PROVIDER + "https://0x7f.1\n", 3, "providers.up.base_url"),
    "URL: number as host": (PROVIDER + "https://2130706433\n", 3, "providers.up.base_url"),
    "URL: mapped host": (PROVIDER + '"https://[::ffff:127.0.0.1]/"\n', 3, "providers.up.base_url"),
    "URL: empty label": (PROVIDER + "https://a..example\n", 3, "providers.up.base_url"),
    "URL: port 0": (PROVIDER + "https://a.example:0\n", 3, "providers.up.base_url"),
    "URL: port 70000": (PROVIDER + "https://a.example:70000\n", 3, "providers.up.base_url"),
    "URL: non-ASCII": (PROVIDER + "https://exämple.com\n", 3, "providers.up.base_url"),
    "CA by relative path": (PROVIDER + "https://a.example\n    ca_file: ca.pem\n", 4, "providers.up.ca_file"),
    "model at unknown provider": ("models:\n  a:\n    provider: up\n    model: b\n", 3, "models.a.provider"),
    "model at provider without base_url": ("providers:\n  up: {}\nmodels:\n  a:\n    provider: up\n    model: b\n", 5, "models.a.provider"),
    "model twice": ("providers:\n  echo:\n    models: [a]\n  e2:\n    kind: echo\n    models: [a]\n", 6, "providers.e2.models[0]"),
    "model in both places": ("providers:\n  echo:\n    models: [a]\nmodels:\n  a:\n    provider: echo\n    model: a\n", 3, "providers.echo.models[0]"),
    "model with a space": ('providers:\n  echo:\n    models: ["a b"]\n', 3, "providers.echo.models[0]"),
    "model with a line break": ('providers:\n  echo:\n    models: ["a\\nb"]\n', 3, "providers.echo.models[0]"),
    "model name too long": ("providers:\n  echo:\n    models: [" + "a" * 201 + "]\n", 3, "providers.echo.models[0]"),
    "sandbox off": ("sandbox:\n  mode: off\n", 2, "sandbox.mode"),
    "uid of a system account": ("sandbox:\n  uid_base: 0\n", 2, "sandbox.uid_base"),
    "alert: condition": ("alerts:\n  - name: a\n    condition: auth_failures >\n    duration: 5m\n    action: lockdown\n", 3, "alerts[0].condition"),
    "alert: metric": ("alerts:\n  - name: a\n    condition: failures > 1\n    duration: 5m\n    action: lockdown\n", 3, "alerts[0].condition"),
    "alert: code": ("alerts:\n  - name: a\n    condition: __import__('os') > 1\n    duration: 5m\n    action: lockdown\n", 3, "alerts[0].condition"),
    "alert: duration": ("alerts:\n  - name: a\n    condition: auth_failures > 1\n    duration: 5\n    action: lockdown\n", 4, "alerts[0].duration"),
    "alert: zero duration": ("alerts:\n  - name: a\n    condition: auth_failures > 1\n    duration: 0m\n    action: lockdown\n", 4, "alerts[0].duration"),
    "alert: action": ("alerts:\n  - name: a\n    condition: auth_failures > 1\n    duration: 5m\n    action: run\n", 5, "alerts[0].action"),
    "alert: missing action": ("alerts:\n  - name: a\n    condition: auth_failures > 1\n    duration: 5m\n", 2, "alerts[0].action"),
    "alert: name twice": (SPECIFICATION_ALERTS + SPECIFICATION_ALERTS[SPECIFICATION_ALERTS.index("  -") :], 11, "alerts[2].name"),
}


@pytest.mark.parametrize("name", INVALID)
def test_a_fault_is_reported_with_its_line_and_key(name: str) -> None:
    text, line, key = INVALID[name]
    error = fault(text)
    assert (error.file, error.line, error.key) == (FILE, line, key), str(error)
    assert str(error).startswith(f"{FILE}:{line}: ")
    assert "\n" not in str(error)
    assert len(str(error)) < 700
    assert error.cure


VALID_URLS = {
    "https": "https://api.example.com/v1",
    "port": "https://api.example.com:8443",
    "loopback name": "http://localhost:11434/v1",
    "loopback IPv4": "http://127.0.0.1:9000",
    "loopback IPv6": "http://[::1]:9000/v1",
    "loopback IPv6 without port": "http://[::1]/v1",
    "address": "https://192.0.2.7/v1",
}


@pytest.mark.parametrize("name", VALID_URLS)
def test_a_base_url_is_accepted(name: str) -> None:
    loaded = parse_config(f'{PROVIDER}"{VALID_URLS[name]}"\n'.encode(), file=FILE)
    assert loaded.settings.providers["up"].base_url == VALID_URLS[name]
    assert not any("plain_http" in warning for warning in loaded.warnings)


def test_plain_http_is_accepted_where_the_provider_says_so_and_warned_about() -> None:
    loaded = parse_config(f"{PROVIDER}http://10.1.2.3/v1\n    plain_http: true\n".encode(), file=FILE)
    assert loaded.settings.providers["up"].plain_http
    assert any(warning.startswith(f"{FILE}:4: providers.up.plain_http: ") for warning in loaded.warnings)


def test_listening_beyond_loopback_needs_tls_or_a_proxy() -> None:
    assert parse('server:\n  listen: ["0.0.0.0"]\n  behind_tls_proxy: true\n').server.behind_tls_proxy
    assert parse('server:\n  listen: ["::"]\n' + SPECIFICATION_TLS.split("\n", 2)[2]).server.tls.enabled


def test_the_sandbox_is_off_only_with_the_flag() -> None:
    loaded = parse_config(b"sandbox:\n  mode: off\n", file=FILE, allow_no_sandbox=True)
    assert loaded.settings.sandbox.mode == "off"
    assert any("NOT locked down" in warning for warning in loaded.warnings)


def test_an_unknown_key_is_answered_with_the_near_one() -> None:
    assert "did you mean port?" in str(fault("server:\n  prot: 1\n"))
    assert "did you mean requests_per_minute?" in str(fault("providers:\n  a:\n    rate_limit:\n      request_per_minute: 1\n"))


def test_billion_laughs_are_counted_not_expanded() -> None:
    text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    for level in range(1, 9):
        text += f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n"
    error = fault(text)
    assert "aliases expanded" in str(error)
    assert error.line is not None and error.line < 9


def test_depth_is_bounded_also_through_aliases() -> None:
    assert "deep" in str(fault("a: " + "[" * 100_000))
    assert "deep" in str(fault("a: " + "[" * 17 + "]" * 17))
    nested = "a: &a " + "[" * 12 + "]" * 12 + "\nb: " + "[" * 8 + "*a" + "]" * 8
    assert "deep" in str(fault(nested))


def test_an_alias_repeats_a_block() -> None:
    settings = parse(f"{PROVIDER}https://a.example\n    timeouts: &slow\n      idle: 9.5\n  other:\n    base_url: https://b.example\n    timeouts: *slow\n")
    assert settings.providers["other"].timeouts.idle == 9.5


def test_size_is_bounded() -> None:
    assert "larger than" in str(fault(b"#" * (1024 * 1024 + 1)))
    assert "more than 100000" in str(fault(b"a: [" + b"x," * 110_000 + b"]"))


def test_bytes_that_are_no_text_are_named_with_their_line() -> None:
    assert fault(b"server: {}\n# \xff\n").line == 2
    assert fault(b"server: {}\n\n# \x07\n").line == 3
    assert fault("server: {}\n".encode("utf-16")).line == 1


GARBAGE = st.one_of(
    st.binary(max_size=200),
    st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")),
    st.text(alphabet="abse rvport:-[]{},&*!|>'\"%@`#\n\t01?~<.\\", max_size=120).map(str.encode),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["server", "port", "tls", "auth", "providers", "models", "alerts", "listen", "limits", "security", "x"]) | st.text(max_size=4),
                inner,
                max_size=4,
            )
        ),
        max_leaves=20,
    ).map(lambda value: yaml.safe_dump(value).encode()),
)


@given(GARBAGE)
@example(b"? \n")
@example(b"&a")
@example(b"- &a *a")
@example(b'"\\U00110000"')
@example(b'"\\UFFFFFFFF"')
@example(b'"\\ud800"')
@example(b"%YAML 9.9\n---\n")
@example(b"[" * 3000)
@example(b"a: |9999999999\n x")
@example(b"server:\n  listen: ['\\ud800']")
def test_garbage_gives_settings_or_a_config_error_and_nothing_else(data: bytes) -> None:
    try:
        loaded = parse_config(data, file=FILE)
    except ConfigError as error:
        assert "\n" not in str(error)
        assert str(error).isprintable()
    else:
        assert decode_settings(encode_settings(loaded.settings)) == loaded.settings


def test_every_number_of_the_schema_has_a_range_and_its_default_is_within() -> None:
    seen = set()

    def walk(kind: type[msgspec.Struct], path: tuple[str, ...]) -> None:
        for field in msgspec.structs.fields(kind):
            here = (*path, field.name)
            if field.type in (int, float):
                low, high = range_of(here)
                assert low <= field.default <= high, here
                seen.add(".".join(here))
            elif isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
                walk(field.type, here)

    walk(Settings, ())
    walk(Provider, ("providers", "*"))
    walk(PoolMember, ("models", "*", "pool[]"))
    assert seen == set(RANGES)


# --- the file on the machine -----------------------------------------------------------------------------------------


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def load_fault(path: Path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_settings(path)
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_missing_file_names_init(tmp_path: Path) -> None:
    assert "cliproxy init" in str(load_fault(tmp_path / "none.yaml"))


def test_a_file_that_others_may_write_is_refused(tmp_path: Path) -> None:
    for mode in (0o620, 0o602):
        assert "others may write" in str(load_fault(write(tmp_path / "c.yaml", "", mode)))
    load_settings(write(tmp_path / "c.yaml", "server: {}\n", 0o444))


def test_a_file_with_the_key_inside_is_for_us_alone(tmp_path: Path) -> None:
    error = load_fault(write(tmp_path / "c.yaml", SPECIFICATION_ENCRYPTION, 0o640))
    assert (error.line, error.key) == (4, "auth.encryption.key")
    assert load_settings(write(tmp_path / "c.yaml", SPECIFICATION_ENCRYPTION, 0o600)).inline_master_key is not None


@pytest.mark.skipif(os.geteuid() != 0, reason="chown needs root")
def test_another_users_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "server: {}\n")
    os.chown(path, 12345, -1)
    assert "belongs to uid 12345" in str(load_fault(path))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    assert "not a regular file" in str(load_fault(tmp_path / "pipe"))
    assert "not a regular file" in str(load_fault(tmp_path))
    assert "\0" not in str(load_fault(Path("a\0b")))


def test_tls_files_must_be_there_and_the_key_private(tmp_path: Path) -> None:
    text = SPECIFICATION_TLS.replace("/config/", f"{tmp_path}/")
    config = write(tmp_path / "c.yaml", text)
    error = load_fault(config)
    assert (error.line, error.key) == (5, "server.tls.cert_file")
    write(tmp_path / "tls.crt", "x", 0o644)
    assert load_fault(config).line == 6
    write(tmp_path / "tls.key", "x", 0o644)
    assert "private key" in str(load_fault(config))
    (tmp_path / "tls.key").chmod(0o640)
    assert load_settings(config).settings.server.tls.enabled


def test_a_ca_file_must_be_there(tmp_path: Path) -> None:
    error = load_fault(write(tmp_path / "c.yaml", f"{PROVIDER}https://a.example\n    ca_file: {tmp_path}/ca.pem\n"))
    assert (error.line, error.key) == (4, "providers.up.ca_file")
