"""The rules at accept and per request, and the addresses they judge."""

from __future__ import annotations

import ipaddress
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cliproxy.config.schema import IpAllowlist, ServerLimits, ServerSecurity
from cliproxy.errors import ConfigError
from cliproxy.ingress.address import parse_address
from cliproxy.ingress.rules.address_rate import AddressRate, Buckets
from cliproxy.ingress.rules.connection_caps import ConnectionCaps
from cliproxy.ingress.rules.ip_lists import IpLists
from cliproxy.ingress.rules.table import AcceptRules
from cliproxy.limits.shared import SharedRates, create


def lists(allowed: tuple[str, ...] = (), denied: tuple[str, ...] = (), blocked: tuple[str, ...] = (), *, enabled: bool = True) -> IpLists:
    return IpLists(ServerSecurity(ip_allowlist=IpAllowlist(enabled=enabled, allowed_ips=allowed), ip_denylist=denied), blocked)


SPECIFICATION = lists(("10.0.0.0/8", "192.168.1.100"), ("0.0.0.0/0",))
VERDICTS = {
    "specification's example: inside the allowed block": (SPECIFICATION, "10.255.255.255", True),
    "specification's example: the allowed address": (SPECIFICATION, "192.168.1.100", True),
    "specification's example: its neighbour": (SPECIFICATION, "192.168.1.101", False),
    "specification's example: anybody else": (SPECIFICATION, "8.8.8.8", False),
    "specification's example: IPv6 is not let in by IPv4 lists": (SPECIFICATION, "2001:db8::1", False),
    "no lists: everybody": (lists(), "203.0.113.9", True),
    "no lists: everybody, IPv6": (lists(), "2001:db8::1", True),
    "denylist alone: the denied": (lists((), ("203.0.113.0/24",)), "203.0.113.9", False),
    "denylist alone: the others": (lists((), ("203.0.113.0/24",)), "203.0.114.0", True),
    "allowlist alone denies by default": (lists(("203.0.113.0/24",)), "203.0.114.0", False),
    "disabled allowlist says nothing": (lists(("203.0.113.0/24",), enabled=False), "8.8.8.8", True),
    "disabled allowlist does not outweigh a denial": (lists(("203.0.113.9",), ("203.0.113.0/24",), enabled=False), "203.0.113.9", False),
    "exact tie denies": (lists(("203.0.113.0/24",), ("203.0.113.0/24",)), "203.0.113.9", False),
    "longer denial inside an allowed block": (lists(("10.0.0.0/8",), ("10.1.0.0/16",)), "10.1.2.3", False),
    "longer permission inside that": (lists(("10.0.0.0/8", "10.1.2.0/24"), ("10.1.0.0/16",)), "10.1.2.3", True),
    "behind it the denial again": (lists(("10.0.0.0/8", "10.1.2.0/24"), ("10.1.0.0/16",)), "10.1.3.0", False),
    "behind that the permission again": (lists(("10.0.0.0/8", "10.1.2.0/24"), ("10.1.0.0/16",)), "10.2.0.0", True),
    "first address of all": (lists((), ("0.0.0.0/32",)), "0.0.0.0", False),
    "last address of all": (lists((), ("255.255.255.255/32",)), "255.255.255.255", False),
    "last IPv6 address of all": (lists((), ("ffff::/16",)), "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", False),
    "mapped IPv4 is judged as IPv4": (lists((), ("203.0.113.0/24",)), "::ffff:203.0.113.9", False),
    "mapped IPv4 in hexadecimal": (lists((), ("203.0.113.0/24",)), "::ffff:cb00:7109", False),
    "a mapped network is an IPv4 network": (lists((), ("::ffff:203.0.113.0/120",)), "203.0.113.9", False),
    "IPv6 lists say nothing about mapped IPv4": (lists((), ("::/0",)), "::ffff:203.0.113.9", True),
    "a zone is no part of an address": (lists((), ("fe80::/10",)), "fe80::1%eth0", False),
    "a block of the feed": (lists((), (), ("203.0.113.9",)), "203.0.113.9", False),
    "a block of the feed beats a longer permission": (lists(("203.0.113.9",), (), ("203.0.113.0/24",)), "203.0.113.9", False),
    "a block of the feed, IPv6": (lists((), (), ("2001:db8::/32",)), "2001:db8:1::1", False),
    "a block of the feed permits nobody": (lists(("10.0.0.0/8",), (), ("203.0.113.0/24",)), "203.0.114.1", False),
}


@pytest.mark.parametrize("name", VERDICTS)
def test_the_lists_say(name: str) -> None:
    rule, address, expected = VERDICTS[name]
    assert rule.admits(parse_address(address)) is expected


@pytest.mark.parametrize("text", ["10.0.0.1/8", "10.0.0.0/33", "10.0.0", "0x0a.0.0.1", "010.0.0.1", "localhost", "", "fe80::1%eth0", "10.0.0.0/255.0.0.0/8"])
def test_what_is_no_network_is_refused(text: str) -> None:
    for refused in (lambda: lists((text,)), lambda: lists((), (text,)), lambda: lists((), (), (text,))):
        with pytest.raises(ConfigError):
            refused()


NETWORKS = st.tuples(st.integers(0, 255), st.integers(24, 32)).map(lambda pair: str(ipaddress.ip_network((0xC0000200 | pair[0], pair[1]), strict=False)))


@settings(max_examples=60)
@given(st.lists(NETWORKS, max_size=8), st.lists(NETWORKS, max_size=8), st.lists(NETWORKS, max_size=3))
def test_bisection_says_what_a_search_of_all_networks_says(allowed: list[str], denied: list[str], blocked: list[str]) -> None:
    rule = lists(tuple(allowed), tuple(denied), tuple(blocked))
    for last in range(-1, 257):
        ip = ipaddress.ip_address(0xC0000200 + last)
        matches = [
            (ipaddress.ip_network(text).prefixlen, verdict)
            for texts, verdict in ((allowed, True), (denied, False))
            for text in texts
            if ip in ipaddress.ip_network(text)
        ]
        expected = min(((-length, verdict) for length, verdict in matches), default=(0, not allowed))[1]  # longest first; False before True
        if any(ip in ipaddress.ip_network(text) for text in blocked):
            expected = False
        assert rule.admits(parse_address(str(ip))) is expected, ip


def test_a_hundred_thousand_networks_are_one_bisection() -> None:
    rule = lists((), tuple(f"10.{n >> 8}.{n & 255}.{host}" for n in range(0, 25600, 1) for host in (0, 2, 4, 6)))
    assert not rule.admits(parse_address("10.0.77.4"))
    assert rule.admits(parse_address("10.0.77.5"))
    assert rule.admits(parse_address("11.0.0.0"))


def test_addresses_are_grouped_by_64_bits_of_ipv6_and_all_of_ipv4() -> None:
    assert parse_address("2001:db8:0:1::1").group == parse_address("2001:db8:0:1:ffff::9").group
    assert parse_address("2001:db8:0:1::1").group != parse_address("2001:db8:0:2::1").group
    assert parse_address("192.0.2.1").group != parse_address("192.0.2.2").group
    assert parse_address("::ffff:192.0.2.1") == parse_address("192.0.2.1")
    assert parse_address("2001:DB8::0:1").text == "2001:db8::1"


class Open:
    """A connection as the caps see it. `idle`: nothing is under way; `waiting`: its client sends no whole request, or does not read."""

    def __init__(self, caps: ConnectionCaps, text: str, *, key: bool = False, idle: bool = False, waiting: bool = False, account: object = "somebody") -> None:
        self.client = parse_address(text)
        self.account = account
        self.is_idle = idle
        self.is_answering = not (idle or waiting)
        self.gave_way = False
        self._caps = caps
        caps.enter(self)
        if key:
            caps.authenticated(self)

    def give_way(self) -> None:
        self.gave_way = True
        self._caps.release(self)


def caps_of(*, total: int, per_address: int) -> tuple[ConnectionCaps, set[bytes]]:
    """Return caps, and the addresses where a key was good, which it fills."""
    lately: set[bytes] = set()
    return ConnectionCaps(total=total, per_address=per_address, was_good_lately=lately.__contains__, good=lately.add), lately


ONE, SAME_64, OTHER, THIRD = (parse_address(text) for text in ("2001:db8::1", "2001:db8:0:0:9::", "192.0.2.1", "192.0.2.2"))


def test_caps_count_exactly_and_forget_everything() -> None:
    caps, _ = caps_of(total=5, per_address=2)
    members = [Open(caps, "2001:db8::1", key=True), Open(caps, "2001:db8:0:0:9::", key=True)]
    assert not caps.admits(ONE) and not caps.admits(SAME_64)  # one /64, and whoever is there has a key and works
    members += [Open(caps, "192.0.2.1", key=True), Open(caps, "192.0.2.1", key=True)]
    assert not caps.admits(OTHER) and caps.admits(THIRD)
    members.append(Open(caps, "192.0.2.2"))
    assert caps.open == 5 and not caps.admits(parse_address("192.0.2.3"))  # total
    for member in members:
        caps.release(member)
    assert caps.open == 0 and not caps._crowds and not caps._strangers and not caps._holders


def test_the_oldest_stranger_of_an_address_gives_way_then_an_idle_key_holder_and_never_one_who_works() -> None:
    caps, _ = caps_of(total=100, per_address=4)
    working, idle = Open(caps, "192.0.2.1", key=True), Open(caps, "192.0.2.1", key=True, idle=True)
    first, second = Open(caps, "192.0.2.1"), Open(caps, "192.0.2.1", idle=True)
    elsewhere = Open(caps, "192.0.2.2")
    for expected in (first, second, idle):
        assert caps.admits(OTHER) and expected.gave_way
        Open(caps, "192.0.2.1", key=True)
    assert not caps.admits(OTHER)
    assert not working.gave_way and not elsewhere.gave_way and caps.open == 5


def test_of_key_holders_gives_way_who_has_the_most_connections_and_each_account_s_idle_ones_first() -> None:
    for total, per_address in ((100, 6), (6, 100)):  # at one address, and in a full worker
        caps, _ = caps_of(total=total, per_address=per_address)
        small = [Open(caps, "192.0.2.1", key=True, idle=True, account="small") for _ in range(2)]
        working = Open(caps, "192.0.2.1", key=True, account="large")
        half_sent, later = (Open(caps, "192.0.2.1", key=True, waiting=True, account="large") for _ in range(2))
        idle = Open(caps, "192.0.2.1", key=True, idle=True, account="large")
        for expected in (idle, half_sent):
            assert caps.admits(OTHER) and expected.gave_way and not later.gave_way
            Open(caps, "192.0.2.1", key=True, account="third")
        assert not any(one.gave_way for one in (working, *small))
        assert caps.admits(OTHER) and small[0].gave_way, "as many as the others, and the first"


def test_a_connection_is_its_last_key_s_holder_s() -> None:
    caps, _ = caps_of(total=10, per_address=3)
    changed = Open(caps, "192.0.2.1", key=True, idle=True, account="first")
    changed.account = "second"
    caps.authenticated(changed)
    others = [Open(caps, "192.0.2.1", key=True, idle=True, account="first") for _ in range(2)]
    assert caps.admits(OTHER) and others[0].gave_way and not changed.gave_way
    caps.release(others[1])
    caps.release(changed)
    assert caps.open == 0 and not caps._holders


def test_a_full_worker_has_room_for_addresses_where_a_key_was_good_lately() -> None:
    caps, lately = caps_of(total=3, per_address=2)
    strangers = [Open(caps, f"198.51.100.{number}") for number in range(3)]
    assert not caps.admits(ONE)
    lately.add(ONE.group)
    assert caps.admits(ONE) and [stranger.gave_way for stranger in strangers] == [True, False, False]
    holder = Open(caps, "2001:db8::1", key=True)
    lately.clear()
    assert caps.admits(SAME_64), "a key is good there now"
    Open(caps, "2001:db8::1", key=True)
    assert not caps.admits(OTHER) and not strangers[2].gave_way
    caps.release(holder)
    assert lately == {ONE.group}, "and was, until now"


def test_the_first_rule_that_denies_decides_and_the_denied_are_not_counted() -> None:
    rules = AcceptRules(ServerSecurity(ip_denylist=("192.0.2.0/24",)), ServerLimits(max_connections=1, max_connections_per_address=1))
    denied, fine = parse_address("192.0.2.1"), parse_address("198.51.100.1")
    assert rules.denied_by(denied) == "ip_lists"
    assert rules.denied_by(fine) is None
    assert rules.denied_by(denied) == "ip_lists"
    member = Open(rules._caps, "198.51.100.1", key=True)
    assert rules.denied_by(fine) == "connection_caps"
    rules.release(member)
    assert rules.denied_by(fine) is None


def test_a_block_that_is_no_network_changes_nothing() -> None:
    rules = AcceptRules(ServerSecurity(), ServerLimits())
    assert rules.block(("192.0.2.0/24",))
    assert not rules.block(("192.0.2.0/24",))
    with pytest.raises(ConfigError):
        rules.block(("nonsense",))
    assert not rules.still_admits(parse_address("192.0.2.1"))
    assert rules.block(())
    assert rules.still_admits(parse_address("192.0.2.1"))


class Client:
    def __init__(self, buckets: Buckets | None) -> None:
        self.buckets = buckets
        self.prepaid = False


def limits_of(*, holders: bool) -> AddressRate:
    table = create()
    return AddressRate(SharedRates(table, rate=1, burst=2), SharedRates(table, rate=1, burst=3, whose=b"holders") if holders else None)


def test_a_request_pays_once() -> None:
    rate = limits_of(holders=False)
    client = Client(rate.buckets(parse_address("192.0.2.1").group))
    now = time.monotonic()
    assert rate.stranger(client, now) is None
    client.prepaid = True
    assert rate.stranger(client, now) is None and not client.prepaid
    assert rate.stranger(client, now) is None
    wait = rate.stranger(client, now)
    assert wait is not None and 0 < wait <= 1
    assert rate.stranger(Client(rate.buckets(parse_address("192.0.2.2").group)), now) is None


def test_strangers_take_nothing_from_the_key_holders_of_their_address() -> None:
    now = time.monotonic()
    for holders, admitted in ((False, 50), (True, 3)):
        rate = limits_of(holders=holders)
        client = Client(rate.buckets(parse_address("192.0.2.1").group))
        assert [rate.stranger(client, now) is None for _ in range(50)].count(True) == 2
        assert [rate.holder(client, now) is None for _ in range(50)].count(True) == admitted


def test_a_connection_without_a_bucket_is_a_bug_and_never_free() -> None:
    rate = limits_of(holders=True)
    for buckets in (None, ((0, 1), None)):
        with pytest.raises(RuntimeError):
            rate.holder(Client(buckets), 0.0)
    with pytest.raises(RuntimeError):
        rate.stranger(Client(None), 0.0)
