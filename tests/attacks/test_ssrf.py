"""SSRF: a provider's name that leads inside, by every trick on the list.

The dialer is asked for an origin of its table and resolves, vets and pins; there is no message with an address in it. Sources: CVE-2024-6587 (LiteLLM),
CVE-2025-66405 (Portkey), the usual bypass lists for 169.254.169.254.
"""

from __future__ import annotations

import socket

import msgspec
import pytest

from cliproxy.config.schema import Provider
from cliproxy.dialer.race import Race
from cliproxy.dialer.resolve import resolve
from cliproxy.dialer.table import build_table
from cliproxy.errors import ConfigError
from cliproxy.ipc.messages import Dial, EgressToDialer
from cliproxy.providers.origin import parse_base_url
from fakes.dialer_process import DialerProcess

TARGETS = {
    "the metadata service": "169.254.169.254",
    "link-local": "169.254.1.1",
    "ECS metadata": "169.254.170.2",
    "Alibaba metadata": "100.100.100.200",
    "Azure's wire server": "168.63.129.16",
    "AWS metadata over IPv6": "fd00:ec2::254",
    "loopback": "127.0.0.1",
    "all of 127/8": "127.66.66.66",
    "loopback, IPv6": "::1",
    "mapped loopback": "::ffff:127.0.0.1",
    "mapped metadata": "::ffff:169.254.169.254",
    "mapped, in hexadecimal": "::ffff:a9fe:a9fe",
    "IPv4-compatible": "::127.0.0.1",
    "unspecified": "0.0.0.0",
    "unspecified, IPv6": "::",
    "private 10": "10.0.0.1",
    "private 172": "172.16.0.1",
    "private 192": "192.168.0.1",
    "carrier-grade NAT": "100.64.0.1",
    "unique local": "fc00::1",
    "NAT64 of metadata": "64:ff9b::a9fe:a9fe",
    "NAT64 of loopback": "64:ff9b::7f00:1",
    "local NAT64": "64:ff9b:1::7f00:1",
    "6to4 of loopback": "2002:7f00:1::1",
    "6to4 of metadata": "2002:a9fe:a9fe::1",
    "Teredo": "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "link-local, IPv6": "fe80::1",
    "scoped": "fe80::1%eth0",
    "site-local": "fec0::1",
    "multicast": "224.0.0.251",
    "multicast, IPv6": "ff02::1",
    "broadcast": "255.255.255.255",
    "benchmark": "198.18.0.1",
    "documentation": "192.0.2.1",
    "documentation, IPv6": "2001:db8::1",
}
NEVER_EVEN_IF_PRIVATE = [name for name in TARGETS if name not in {"loopback", "all of 127/8", "loopback, IPv6", "mapped loopback", "private 10", "private 172"}]
NEVER_EVEN_IF_PRIVATE = [name for name in NEVER_EVEN_IF_PRIVATE if name not in {"private 192", "carrier-grade NAT", "unique local"}]


@pytest.mark.parametrize("name", TARGETS)
def test_a_name_that_leads_inside_is_not_connected_to(name: str) -> None:
    (target,) = build_table({"p": Provider(base_url="https://api.example.com/v1")}).values()
    for answers in ([TARGETS[name]], ["8.8.8.8", TARGETS[name]], [TARGETS[name], "8.8.8.8"]):
        resolved = resolve(target, look_up=lambda host, port, answers=answers: answers)  # type: ignore[misc]
        assert resolved.reason == "forbidden_address" and not resolved.addresses


@pytest.mark.parametrize("name", NEVER_EVEN_IF_PRIVATE)
def test_a_private_network_is_no_excuse_for_these(name: str) -> None:
    (target,) = build_table({"p": Provider(base_url="https://api.example.com/v1", private_network=True)}).values()
    resolved = resolve(target, look_up=lambda host, port: [TARGETS[name]])
    assert resolved.reason == "forbidden_address"


SPELLINGS: tuple[str, ...] = (
    "0x7f.1",
    "0x7f.0.0.1",
    "0x7f000001",
    "2130706433",
    "017700000001",
    "0177.0.0.1",
    "127.1",
    "127.0.1",
    "0",
    "0x0",
    "127.0.0.1.",
    "169.254.43518",
    "0xa9fea9fe",
)
SPELLINGS += (
    "2852039166",
    "[::ffff:127.0.0.1%25lo]",
    "127.0.0.1%00.example.com",
    "①②⑦.⓪.⓪.①",
    "127。0。0。1",
    "example.com@127.0.0.1",
    "127.0.0.1#@example.com",
)
SPELLINGS += ("127.0.0.1\\@example.com", "example.com:80@127.0.0.1", "[::1]:80@example.com", "0x7f.example.0x1", "1e9.0x", "ⓛocalhost")


@pytest.mark.parametrize("host", SPELLINGS)
def test_an_address_in_disguise_is_no_host(host: str) -> None:
    for scheme in ("http", "https"):
        with pytest.raises(ConfigError):
            parse_base_url(f"{scheme}://{host}/v1")


def test_a_literal_inside_address_is_refused_by_the_running_dialer_too() -> None:
    """Settings can only come from the supervisor; even then the receiver vets."""
    literals = [text for text in TARGETS.values() if "%" not in text and not text.startswith("127.") and text not in ("::1", "::ffff:127.0.0.1")]
    providers = {f"p{index}": Provider(base_url=f"https://[{text}]/v1" if ":" in text else f"https://{text}/v1") for index, text in enumerate(literals)}
    with DialerProcess(providers) as dialer:
        for provider in providers.values():
            assert dialer.dial(str(parse_base_url(provider.base_url)[0])) == "forbidden_address", provider.base_url


def test_a_rebinding_name_is_vetted_for_each_connection_and_pinned() -> None:
    """DNS rebinding: the first answer is fine, the second leads inside. What was vetted is what is connected to; a later connection is vetted again."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        (target,) = build_table({"p": Provider(base_url=f"https://api.example.com:{port}", private_network=True)}).values()
        answers = iter([["127.0.0.1"], ["169.254.169.254"]])
        first = resolve(target, look_up=lambda host, port: next(answers))
        race = Race(first.addresses, port=port)  # has the address alone: there is no name that could be looked up again
        race.step(0.0)
        while race.won is None:
            for descriptor in race.descriptors():
                race.ready(descriptor, 0.0)
        sock, address = race.won
        assert address == "127.0.0.1" == sock.getpeername()[0]
        sock.close()
        assert resolve(target, look_up=lambda host, port: next(answers)).reason == "forbidden_address"


def test_egress_has_no_words_for_an_address() -> None:
    assert Dial.__struct_fields__ == ("dial", "origin")
    decoder = msgspec.msgpack.Decoder(EgressToDialer)
    for extra in ({"address": "169.254.169.254"}, {"host": "x", "port": 80}, {"private": True}):
        with pytest.raises(msgspec.ValidationError):
            decoder.decode(msgspec.msgpack.encode({"type": "Dial", "dial": 1, "origin": "https://api.example.com:443", **extra}))


@pytest.mark.parametrize("base_url", ["http://api.example.com/v1", "http://169.254.169.254/v1", "http://10.0.0.1/v1"])
def test_a_credential_does_not_travel_in_clear_unless_the_operator_says_so(base_url: str) -> None:
    with pytest.raises(ConfigError):
        build_table({"p": Provider(base_url=base_url)})
