"""`base_url` has one meaning or none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliproxy.errors import ConfigError
from cliproxy.providers.origin import Origin, parse_base_url

VALID = {
    "https with a path": ("https://api.openai.com/v1", "https://api.openai.com:443", "/v1", b"api.openai.com"),
    "a slash at the end": ("https://api.openai.com/v1/", "https://api.openai.com:443", "/v1", b"api.openai.com"),
    "no path": ("https://api.openai.com", "https://api.openai.com:443", "", b"api.openai.com"),
    "only a slash": ("https://api.openai.com/", "https://api.openai.com:443", "", b"api.openai.com"),
    "upper case": ("https://API.OpenAI.com/V1", "https://api.openai.com:443", "/V1", b"api.openai.com"),
    "the default port, written": ("https://api.openai.com:443/v1", "https://api.openai.com:443", "/v1", b"api.openai.com"),
    "another port": ("https://api.openai.com:8443/v1", "https://api.openai.com:8443", "/v1", b"api.openai.com:8443"),
    "http": ("http://localhost:11434/v1", "http://localhost:11434", "/v1", b"localhost:11434"),
    "http on the https port": ("http://localhost:443", "http://localhost:443", "", b"localhost:443"),
    "IPv4": ("http://127.0.0.1:9000", "http://127.0.0.1:9000", "", b"127.0.0.1:9000"),
    "IPv6, written long": ("http://[0:0:0:0:0:0:0:1]:9000/v1", "http://[::1]:9000", "/v1", b"[::1]:9000"),
    "a deep path": ("https://h.example/openai/deployments/gpt-4o_1", "https://h.example:443", "/openai/deployments/gpt-4o_1", b"h.example"),
    "a punycode name": ("https://xn--bcher-kva.example/v1", "https://xn--bcher-kva.example:443", "/v1", b"xn--bcher-kva.example"),
}

REFUSED = {
    "another scheme": "ftp://api.openai.com/v1",
    "a file": "file:///etc/passwd",
    "no scheme": "api.openai.com/v1",
    "scheme in capitals": "HTTPS://api.openai.com/v1",
    "userinfo": "https://user:secret@api.openai.com/v1",
    "a host before the at sign": "https://api.openai.com@attacker.example/v1",
    "a query": "https://api.openai.com/v1?x=1",
    "a fragment": "https://api.openai.com/v1#x",
    "a percent sign": "https://api.openai.com/v1%2f..",
    "a dot segment": "https://api.openai.com/v1/../admin",
    "a single dot": "https://api.openai.com/./v1",
    "an empty segment": "https://api.openai.com//v1",
    "a backslash": "https://api.openai.com\\@attacker.example/v1",
    "a space": "https://api.openai.com/v1 HTTP/1.1",
    "a line feed": "https://api.openai.com/v1\nX: y",
    "a line feed at the end": "https://api.openai.com/v1\n",
    "a null byte": "https://api.openai.com/v1\0",
    "letters beyond ASCII": "https://büche.example/v1",
    "full-width digits": "http://１２７.0.0.1/v1",
    "hexadecimal IPv4": "http://0x7f.1/v1",
    "hexadecimal in one": "http://0x7f000001/v1",
    "decimal in one": "http://2130706433/v1",
    "octal": "http://0177.0.0.1/v1",
    "short IPv4": "http://127.1/v1",
    "a number for a last label": "http://example.1/v1",
    "an empty hexadecimal label": "http://example.0x/v1",
    "a dot at the end": "https://api.openai.com./v1",
    "an empty label": "https://api..openai.com/v1",
    "a label that begins with a hyphen": "https://-api.openai.com/v1",
    "a label too long": f"https://{'a' * 64}.example/v1",
    "a name too long": "https://" + ".".join(["a" * 60] * 5) + "/v1",
    "an underscore": "https://api_x.example/v1",
    "a scope": "http://[fe80::1%25eth0]/v1",
    "IPv6 without brackets": "http://::1/v1",
    "IPv6 cut short": "http://[::1/v1",
    "no host": "https:///v1",
    "an empty port": "https://api.openai.com:/v1",
    "port 0": "https://api.openai.com:0/v1",
    "port 65536": "https://api.openai.com:65536/v1",
    "a signed port": "https://api.openai.com:+443/v1",
    "nothing": "",
    "a URL without end": "https://api.openai.com/" + "a" * 3000,
}


@pytest.mark.parametrize(("base_url", "origin", "path", "host"), VALID.values(), ids=VALID.keys())
def test_a_base_url_has_one_origin_and_one_path(base_url: str, origin: str, path: str, host: bytes) -> None:
    parsed, parsed_path = parse_base_url(base_url)
    assert (str(parsed), parsed_path, parsed.host_field) == (origin, path, host)


@pytest.mark.parametrize("base_url", REFUSED.values(), ids=REFUSED.keys())
def test_what_could_mean_two_things_is_refused(base_url: str) -> None:
    with pytest.raises(ConfigError):
        parse_base_url(base_url)


@pytest.mark.parametrize("base_url", [row[0] for row in VALID.values()])
def test_an_origin_parses_to_itself(base_url: str) -> None:
    origin, _ = parse_base_url(base_url)
    assert parse_base_url(str(origin)) == (origin, "")


@given(st.text(max_size=80))
def test_any_text_is_an_origin_or_a_config_error(text: str) -> None:
    for candidate in (text, "https://" + text, "http://h" + text):
        try:
            origin, path = parse_base_url(candidate)
        except ConfigError:
            continue
        assert str(origin).isascii() and path.isascii() and not set("\r\n \t@?#%\\") & set(str(origin) + path)
        assert parse_base_url(str(origin) + path) == (origin, path)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("localhost", True), ("127.0.0.1", True), ("127.8.9.1", True), ("::1", True), ("localhost.attacker.example", False), ("10.0.0.1", False), ("::2", False)],
)
def test_only_literal_loopback_counts_as_loopback(host: str, loopback: bool) -> None:
    assert Origin(scheme="http", host=host, port=80).names_loopback() is loopback
