"""Which addresses may be connected to; every allowed row has its forbidden sisters."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliproxy.errors import ForbiddenAddress
from cliproxy.providers.vet import verify_address

PUBLIC: tuple[str, ...] = ("1.1.1.1", "8.8.8.8", "104.18.7.192")
PUBLIC += ("172.32.0.1", "172.15.255.255", "100.128.0.1", "100.63.255.255", "11.0.0.1", "192.167.255.255", "192.169.0.1")
PUBLIC += ("198.17.255.255", "198.20.0.1", "169.253.255.255", "223.255.255.255", "126.255.255.255", "128.0.0.1", "1.0.0.0", "168.63.129.15")
PUBLIC += ("2606:4700::6812:7c0", "2001:4860:4860::8888", "2a00:1450::1", "2003::1", "2000::1", "64:ff9b::8.8.8.8", "::ffff:8.8.8.8")

NEVER = {
    "0.0.0.0": "unspecified",
    "0.1.2.3": "unspecified",
    "169.254.169.254": "metadata",
    "169.254.170.2": "metadata",
    "169.254.0.1": "link_local",
    "169.254.255.255": "link_local",
    "100.100.100.200": "metadata",
    "168.63.129.16": "metadata",
    "192.0.0.192": "metadata",
    "192.0.0.1": "reserved",
    "192.0.2.1": "documentation",
    "198.51.100.7": "documentation",
    "203.0.113.9": "documentation",
    "192.88.99.1": "transition",
    "198.18.0.1": "benchmark",
    "198.19.255.255": "benchmark",
    "224.0.0.1": "multicast",
    "239.255.255.250": "multicast",
    "240.0.0.1": "reserved",
    "255.255.255.255": "reserved",
    "::": "unspecified",
    "::ffff:169.254.169.254": "metadata",
    "::ffff:0.0.0.0": "unspecified",
    "::ffff:0:127.0.0.1": "reserved",  # SIIT
    "::127.0.0.1": "reserved",  # IPv4-compatible
    "::8.8.8.8": "reserved",
    "64:ff9b::169.254.169.254": "metadata",
    "64:ff9b::127.0.0.1": "loopback",
    "64:ff9b::10.0.0.1": "private",
    "64:ff9b::100.64.0.1": "shared",
    "64:ff9b:1::8.8.8.8": "transition",
    "2002:7f00:1::": "transition",
    "2002:a9fe:a9fe::1": "transition",
    "2002:808:808::1": "transition",
    "2001::1": "reserved",  # Teredo
    "2001:0:53aa:64c:0:fbff:f5fe:fffe": "reserved",
    "2001:2::1": "reserved",  # benchmarking
    "2001:20::1": "reserved",  # ORCHIDv2
    "2001:db8::1": "documentation",
    "3fff::1": "documentation",
    "5f00::1": "reserved",  # segment routing
    "100::1": "reserved",  # discard
    "fe80::1": "link_local",
    "febf::1": "link_local",
    "fec0::1": "reserved",
    "ff02::1": "multicast",
    "fd00:ec2::254": "metadata",
    "fd20:ce::254": "metadata",
    "4000::1": "reserved",
}
PRIVATE: tuple[str, ...] = ("10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.255.255", "192.168.0.1", "192.168.255.255", "100.64.0.1", "100.127.255.255")
PRIVATE += ("fc00::1", "fd12:3456::1", "fdff::1", "::ffff:10.0.0.1")
LOOPBACK = ("127.0.0.1", "127.255.255.254", "::1", "::ffff:127.0.0.1", "::ffff:7f00:1")
MALFORMED = (
    "",
    "localhost",
    "0x7f.1",
    "0x7f000001",
    "2130706433",
    "0177.0.0.1",
    "127.1",
    "127.0.0.1 ",
    "127.0.0.1/8",
    "1.2.3.4.5",
    "::1%lo",
    "fe80::1%eth0",
    "[::1]",
    "１.1.1.1",
)


def is_allowed(text: str, *, loopback: bool, private: bool) -> bool:
    try:
        verify_address(text, loopback=loopback, private=private)
    except ForbiddenAddress:
        return False
    return True


@pytest.mark.parametrize("text", PUBLIC)
def test_public_addresses_are_allowed(text: str) -> None:
    assert is_allowed(text, loopback=False, private=False)


@pytest.mark.parametrize("text", NEVER)
def test_these_are_never_allowed_whatever_the_provider_says(text: str) -> None:
    for loopback in (False, True):
        for private in (False, True):
            with pytest.raises(ForbiddenAddress) as caught:
                verify_address(text, loopback=loopback, private=private)
            assert caught.value.reason == NEVER[text]


@pytest.mark.parametrize("text", PRIVATE)
def test_private_addresses_need_the_providers_word(text: str) -> None:
    assert [is_allowed(text, loopback=loopback, private=private) for loopback, private in ((False, False), (True, False), (False, True), (True, True))] == [
        False,
        False,
        True,
        True,
    ]


@pytest.mark.parametrize("text", LOOPBACK)
def test_loopback_needs_a_literal_origin_or_the_providers_word(text: str) -> None:
    assert [is_allowed(text, loopback=loopback, private=private) for loopback, private in ((False, False), (True, False), (False, True))] == [False, True, True]


@pytest.mark.parametrize("text", MALFORMED)
def test_what_is_no_plain_address_is_refused(text: str) -> None:
    assert not is_allowed(text, loopback=True, private=True)


@pytest.mark.parametrize(("text", "canonical"), [("::ffff:8.8.8.8", "8.8.8.8"), ("::ffff:127.0.0.1", "127.0.0.1"), ("2606:4700:0:0::1", "2606:4700::1")])
def test_the_address_that_was_judged_is_the_one_to_connect_to(text: str, canonical: str) -> None:
    assert str(verify_address(text, loopback=True, private=False)) == canonical


@given(st.ip_addresses(v=4))
def test_ipv4_is_judged_the_same_in_every_disguise(address: ipaddress.IPv4Address) -> None:
    for loopback in (False, True):
        for private in (False, True):
            plain = is_allowed(str(address), loopback=loopback, private=private)
            assert is_allowed(f"::ffff:{address}", loopback=loopback, private=private) is plain
    assert is_allowed(f"64:ff9b::{address}", loopback=True, private=True) is is_allowed(str(address), loopback=False, private=False)
    for disguise in (f"::{address}", f"64:ff9b:1::{address}", f"2002:{int(address) >> 16:x}:{int(address) & 0xFFFF:x}::1"):
        if disguise not in ("::0.0.0.1",):  # which is ::1
            assert not is_allowed(disguise, loopback=True, private=True)


@given(st.ip_addresses())
def test_nothing_beyond_pythons_own_idea_of_global_is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    if is_allowed(str(address), loopback=False, private=False):
        embedded = address.ipv4_mapped or address if address.version == 6 else address
        assert not (embedded.is_loopback or embedded.is_link_local or embedded.is_multicast or embedded.is_unspecified)
        assert embedded.version == 6 or not embedded.is_private


@given(
    st.ip_addresses(network="169.254.0.0/16")
    | st.ip_addresses(network="127.0.0.0/8")
    | st.ip_addresses(network="10.0.0.0/8")
    | st.ip_addresses(network="fe80::/10")
)
def test_ranges_are_whole(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    assert not is_allowed(str(address), loopback=False, private=False)


@given(st.text(max_size=50))
def test_any_text_is_an_address_or_forbidden(text: str) -> None:
    is_allowed(text, loopback=True, private=True)
