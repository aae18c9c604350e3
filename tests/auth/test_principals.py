"""Principals: what a key allows, and the table that finds them."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest

from cliproxy.auth.principals import Principal, PrincipalTable
from cliproxy.errors import ChannelError
from cliproxy.ipc.messages import KeyRecord


def principal(id: str = "k1", digest: bytes = b"d" * 32, **fields: Any) -> Principal:
    return Principal(**{"id": id, "digest": digest, "name": "n", "models": ("*",), **fields})


def test_the_fields_of_a_key_record_make_a_principal() -> None:
    record = KeyRecord(
        id="k", digest=b"x" * 32, name="n", models=("m",), networks=("10.0.0.0/8",), expires_at=9, requests_per_minute=1, tokens_per_minute=2, concurrency=3
    )
    made = Principal(**{field: getattr(record, field) for field in record.__struct_fields__})
    assert (made.id, made.name, made.models, made.expires_at) == ("k", "n", ("m",), 9)
    assert (made.limits.requests_per_minute, made.limits.tokens_per_minute, made.limits.concurrency) == (1, 2, 3)


@pytest.mark.parametrize(
    ("models", "asked", "allowed"),
    [
        (("*",), "anything", True),
        (("a", "b"), "b", True),
        (("a",), "b", False),
        ((), "a", False),
        (("a",), "A", False),
        (("a",), "*", False),
        (("a*",), "ab", False),
    ],
)
def test_models_are_allowed_by_exact_name_or_by_the_star(models: tuple[str, ...], asked: str, allowed: bool) -> None:
    assert principal(models=models).allows_model(asked) is allowed


@pytest.mark.parametrize(
    ("networks", "address", "allowed"),
    [
        ((), "203.0.113.9", True),
        ((), "2001:db8::1", True),
        (("10.0.0.0/8",), "10.255.255.255", True),
        (("10.0.0.0/8",), "11.0.0.0", False),
        (("10.0.0.0/8",), "9.255.255.255", False),
        (("10.0.0.0/8",), "::1", False),
        (("10.0.0.0/8",), "::ffff:10.1.2.3", True),
        (("::/0",), "::ffff:10.1.2.3", False),
        (("2001:db8::/32", "10.1.1.1/32"), "2001:db8:ffff::1", True),
        (("2001:db8::/32", "10.1.1.1/32"), "10.1.1.1", True),
        (("2001:db8::/32", "10.1.1.1/32"), "10.1.1.2", False),
        (("10.0.0.0/8", "10.1.0.0/16", "192.168.0.0/16"), "10.200.0.1", True),
        (("10.0.0.0/8", "10.1.0.0/16", "192.168.0.0/16"), "172.16.0.1", False),
    ],
)
def test_networks_admit_their_addresses_and_no_others(networks: tuple[str, ...], address: str, allowed: bool) -> None:
    assert principal(networks=networks).allows_address(ip_address(address)) is allowed
    assert principal(networks=networks).allows_address(address) is allowed


@pytest.mark.parametrize("address", ["", "unix", "10.0.0.1:80", "0x0a.1", "10.0.0", "fe80::1%eth0/64"])
def test_what_is_no_address_is_in_no_network(address: str) -> None:
    assert not principal(networks=("0.0.0.0/0", "::/0")).allows_address(address)


@pytest.mark.parametrize(
    "fields",
    [
        {"digest": b"short"},
        {"id": ""},
        {"networks": ("10.0.0.1/8",)},
        {"networks": ("nowhere",)},
        {"expires_at": -1},
        {"tokens_per_minute": -1},
        {"concurrency": -5},
    ],
)
def test_a_record_that_no_vault_would_send_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ChannelError):
        principal(**fields)


@pytest.mark.parametrize(("expires_at", "now", "found"), [(0, 1e12, True), (100, 99.9, True), (100, 100.0, False), (100, 101.0, False)])
def test_an_expired_key_finds_nobody(expires_at: int, now: float, found: bool) -> None:
    table = PrincipalTable()
    table.put(principal(expires_at=expires_at))
    assert (table.find(b"d" * 32, now) is not None) is found
    assert table.get("k1") is not None
    assert principal(expires_at=expires_at).is_expired(now) is not found


def test_a_revoked_key_finds_nobody_and_revoking_twice_is_fine() -> None:
    table = PrincipalTable()
    table.put(principal())
    revoked = table.revoke("k1")
    assert revoked is not None and revoked.id == "k1"
    assert table.revoke("k1") is None
    assert table.find(b"d" * 32, 0) is None and table.get("k1") is None and len(table) == 0


def test_a_key_with_a_new_digest_no_longer_answers_to_the_old_one() -> None:
    table = PrincipalTable()
    table.put(principal())
    table.put(principal(digest=b"e" * 32))
    assert table.find(b"d" * 32, 0) is None
    assert table.find(b"e" * 32, 0) is not None
    assert len(table) == 1


def test_a_digest_that_another_id_holds_is_refused_and_nothing_changes() -> None:
    table = PrincipalTable()
    table.put(principal())
    with pytest.raises(ChannelError):
        table.put(principal(id="k2"))
    assert table.ids() == {"k1"}


def test_a_snapshot_replaces_everything() -> None:
    table = PrincipalTable()
    table.put(principal())
    table.replace_all([principal(id="k2", digest=b"2" * 32), principal(id="k3", digest=b"3" * 32)])
    assert table.ids() == {"k2", "k3"}
    assert table.find(b"d" * 32, 0) is None


@pytest.mark.parametrize("twin", [{"id": "k1", "digest": b"e" * 32}, {"id": "k2", "digest": b"d" * 32}])
def test_a_snapshot_that_contradicts_itself_changes_nothing(twin: dict[str, Any]) -> None:
    table = PrincipalTable()
    table.put(principal(id="old", digest=b"o" * 32))
    with pytest.raises(ChannelError):
        table.replace_all([principal(), principal(**twin)])
    assert table.ids() == {"old"}
