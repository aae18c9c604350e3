from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliproxy.bounds import MAX_CONTROL_MESSAGE_BYTES
from cliproxy.errors import ConfigError, EnvelopeError, VaultConflict
from cliproxy.ipc.messages import KeyRecord, PolicyEnd, PolicyRules
from cliproxy.secret import Secret
from cliproxy.vault import records
from cliproxy.vault.identity import publish_identity, read_identity
from cliproxy.vault.keyring import create_keyring
from cliproxy.vault.records import ClientKey, Credential, LastUses, Policy, verify_key

KEY = KeyRecord(id="key_1", digest=bytes(32), name="n", models=("*",))
KINDS = [ClientKey, Credential, Policy, LastUses]


@pytest.mark.parametrize(
    "content",
    [
        ClientKey(key=KEY, created_at=1, revoked_at=2),
        Credential(provider="p", label="l", created_at=1, secret=b"s"),
        Policy(number=7, rules=PolicyRules(lockdown=True)),
        LastUses(keys={"key_1": 5}),
    ],
    ids=lambda content: type(content).__name__,
)
def test_a_record_comes_back_as_it_was_and_the_buffer_is_wiped(content: ClientKey | Credential | Policy | LastUses) -> None:
    plaintext = Secret(records.encode(content))
    assert records.decode(plaintext, type(content)) == content
    assert len(plaintext) == 0


@given(junk=st.binary(max_size=100), kind=st.sampled_from(KINDS))
def test_any_bytes_give_a_record_or_the_declared_error(junk: bytes, kind: type[ClientKey]) -> None:
    try:
        assert isinstance(records.decode(Secret(junk), kind), kind)
    except EnvelopeError:
        pass


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(EnvelopeError):
        records.decode(Secret(msgspec.msgpack.encode({"keys": {}, "more": 1})), LastUses)


@given(secret=st.binary(max_size=40))
def test_an_accepted_secret_can_always_stand_in_a_header(secret: bytes) -> None:
    try:
        records.verify_credential_secret(Secret(secret))
    except VaultConflict as error:
        assert secret not in str(error).encode() or not secret.strip(b" ,.:;'abcdefghijklmnopqrstuvwxyz0123456789CRLFASI")
    else:
        assert secret and secret.isascii() and secret.decode().isprintable() and b" " not in secret


def test_the_largest_acceptable_rules_fit_a_packet() -> None:
    networks = tuple(f"2001:db8:{high:x}:{low:x}:ffff:ffff:ffff:ffff/128" for high in range(0xF000, 0xF020) for low in range(0xF000, 0xF020))
    rules = PolicyRules(blocked=networks, disabled_providers=tuple(f"{'p' * 100}{number}" for number in range(64)))
    records.verify_rules(rules)
    assert len(rules.blocked) == 1024
    assert len(msgspec.msgpack.encode(PolicyEnd(number=2**60, rules=rules))) < MAX_CONTROL_MESSAGE_BYTES


@pytest.mark.parametrize(
    "rules",
    [
        PolicyRules(blocked=("10.0.0.0/8",) * 1025),
        PolicyRules(blocked=("10.0.0.1/8",)),
        PolicyRules(disabled_providers=("p",) * 65),
        PolicyRules(disabled_providers=("",)),
    ],
)
def test_rules_that_do_not_fit_or_mean_nothing_are_refused(rules: PolicyRules) -> None:
    with pytest.raises(VaultConflict):
        records.verify_rules(rules)


class TestTheIdentity:
    def test_is_read_as_it_was_published_and_written_only_when_it_changed(self, tmp_path: Path) -> None:
        path = tmp_path / "vault.pub"
        first, second = create_keyring(), create_keyring()
        publish_identity(path, first)
        assert path.stat().st_mode & 0o777 == 0o600
        assert (read_identity(path).vault, read_identity(path).public_key) == (first.vault, first.public_key)
        inode = path.stat().st_ino
        publish_identity(path, first)
        assert path.stat().st_ino == inode
        publish_identity(path, second)
        assert read_identity(path).vault == second.vault

    @pytest.mark.parametrize("text", [b"", b"cliproxy-vault 2 " + b"a" * 32 + b" " + b"A" * 43 + b"=\n", b"cliproxy-vault 1 xyz AAAA\n"])
    def test_in_another_form_is_refused(self, tmp_path: Path, text: bytes) -> None:
        path = tmp_path / "vault.pub"
        path.write_bytes(text)
        path.chmod(0o600)
        with pytest.raises(ConfigError, match="public key"):
            read_identity(path)

    def test_that_others_can_write_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "vault.pub"
        publish_identity(path, create_keyring())
        path.chmod(0o622)
        with pytest.raises(ConfigError, match="chmod 600"):
            read_identity(path)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"models": ()}, "models"),
        ({"name": ""}, "name"),
        ({"name": "x" * 129}, "name"),
        ({"models": ("m",) * 65}, "models"),
        ({"models": ("m" * 201,)}, "model"),
        ({"networks": ("10.0.0.0/8",) * 65}, "room for 64"),
        ({"requests_per_minute": -1}, "limit"),
        ({"expires_at": 2**50}, "out of range"),
        ({"digest": b"short"}, "32 bytes"),
    ],
    ids=str,
)
def test_a_key_that_no_message_could_bring_is_refused_here_too(fields: dict[str, Any], why: str) -> None:
    good = KeyRecord(id="key_0", digest=bytes(32), name="n", models=("*",))
    verify_key(good)
    with pytest.raises(VaultConflict, match=why):
        verify_key(msgspec.structs.replace(good, **fields))
