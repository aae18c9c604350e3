from __future__ import annotations

import base64
import fcntl
import os
import secrets
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliproxy.errors import ConfigError
from cliproxy.secret import Secret
from cliproxy.vault import master_key
from cliproxy.vault.master_key import PLACEHOLDER, create_master_key, from_memfd, into_memfd, load_master_key, parse_master_key, weakness_of

KEY = bytes.fromhex("8f3a1c5e7b9d204466e8aacc13579bdf02468ace91b3d5f70f1e2d3c4b5a6978")
OTHER = bytes.fromhex("1d7c3e5a9b8f42602446acce8a57319bfd20648ec91b53df7f0e1d2c3b4a5967")
B64 = base64.b64encode(KEY)


@pytest.mark.parametrize(
    "text",
    [B64, B64 + b"\n", B64.rstrip(b"="), base64.urlsafe_b64encode(KEY), KEY.hex().encode(), KEY.hex().upper().encode() + b"\r\n", KEY],
    ids=["base64", "with newline", "unpadded", "url-safe", "hex", "hex upper with CRLF", "raw"],
)
def test_each_form_of_a_key_gives_the_same_32_bytes(text: bytes) -> None:
    assert parse_master_key(text, where="here").reveal() == KEY


@pytest.mark.parametrize("text", [b"", b"\n", KEY[:31], KEY + b"x", KEY.hex()[:62].encode(), B64[:40], B64 + B64, b"g" * 64, b"\xff" * 44], ids=range(9))
def test_what_is_no_key_is_refused(text: bytes) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_master_key(text, where="CLIPROXY_MASTER_KEY")
    assert "CLIPROXY_MASTER_KEY" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "why"),
    [
        (PLACEHOLDER, "placeholder"),
        (bytes(32), "distinct bytes"),
        (b"a" * 32, "distinct characters"),
        (b"abababababababababababababababab", "distinct"),
        (b"0123456789abcdef0123456789abcdef", "repetition"),
        (b"k3Xq9ZtM" * 4, "distinct|repetition"),
        (b"k3Xq9ZtMp2Lr8YvW" * 2, "repetition"),
        (bytes(range(32)), "sequence"),
        (bytes(range(200, 232)), "sequence"),
        (bytes(range(64, 32, -1)), "sequence"),
        (b"abcdefghijklmnopqrstuvwxyz012345", "sequence"),
        (b"zyxwvutsrqponmlkjihgfedcba987654", "sequence"),
        (b"12345678901234567890123456789012", "repetition|sequence|digits"),
        (b"83920174650291837465019283746501", "digits"),
        (b"my-very-secret-password-for-2025", "list"),
        (b"MyEncryptionKey_for_production!9", "list"),
        (b"changeme-changeme-please-now-ok!", "list"),
        (b"X9!qwertyuiopZ7#asdfghjklM3$plok", "list"),
        (b"correct horse battery staple yes", "words"),
        (b"the-quick-brown-fox-jumped-over!", "words"),
        (b"One Ring to rule them all, ok 12", "words"),
    ],
)
def test_a_weak_key_is_refused_with_the_reason(key: bytes, why: str) -> None:
    assert len(key) == 32
    with pytest.raises(ConfigError, match=why) as caught:
        parse_master_key(key, where="auth.encryption.key")
    assert key.decode("latin-1") not in str(caught.value)


def test_random_keys_of_every_alphabet_pass() -> None:
    alphabets = [string.ascii_letters + string.digits, string.hexdigits[:16], string.ascii_lowercase, string.ascii_letters + string.digits + "+/"]
    for _ in range(500):
        assert weakness_of(secrets.token_bytes(32)) is None
    refused = sum(weakness_of("".join(secrets.choice(alphabet) for _ in range(32)).encode()) is not None for alphabet in alphabets for _ in range(500))
    assert refused <= 2


@given(text=st.binary(max_size=80))
def test_any_bytes_give_a_key_or_the_declared_error(text: bytes) -> None:
    try:
        assert len(parse_master_key(text, where="here")) == 32
    except ConfigError:
        pass


def test_a_new_key_file_is_private_random_and_loads(tmp_path: Path) -> None:
    create_master_key(tmp_path / "master.key")
    assert (tmp_path / "master.key").stat().st_mode & 0o777 == 0o600
    create_master_key(tmp_path / "other.key")
    first = load_master_key(path=tmp_path / "master.key", environment={}, inline=None)
    assert first != load_master_key(path=tmp_path / "other.key", environment={}, inline=None)


def test_a_key_file_is_never_overwritten(tmp_path: Path) -> None:
    create_master_key(tmp_path / "master.key")
    before = (tmp_path / "master.key").read_bytes()
    with pytest.raises(ConfigError, match="already"):
        create_master_key(tmp_path / "master.key")
    assert (tmp_path / "master.key").read_bytes() == before


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o602, 0o611])
def test_a_key_file_that_others_can_reach_is_refused_with_the_cure(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "master.key"
    create_master_key(path)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"chmod 600 {path}"):
        load_master_key(path=path, environment={}, inline=None)


def test_a_missing_key_names_the_cure(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cliproxy init"):
        load_master_key(path=tmp_path / "master.key", environment={}, inline=None)


def test_each_source_gives_its_key(tmp_path: Path) -> None:
    (tmp_path / "cliproxy-master-key").write_bytes(B64)
    sources: list[tuple[dict[str, str], Secret | None]] = [
        ({"CLIPROXY_MASTER_KEY": B64.decode()}, None),
        ({"CREDENTIALS_DIRECTORY": str(tmp_path)}, None),
        ({}, Secret(KEY)),
        ({"CLIPROXY_MASTER_KEY": KEY.hex(), "CREDENTIALS_DIRECTORY": str(tmp_path)}, Secret(KEY)),
    ]
    for environment, inline in sources:
        assert load_master_key(path=tmp_path / "none", environment=environment, inline=inline).reveal() == KEY


def test_sources_that_disagree_are_an_error_not_a_precedence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="different master keys"):
        load_master_key(path=tmp_path / "none", environment={"CLIPROXY_MASTER_KEY": OTHER.hex()}, inline=Secret(KEY))


def test_an_empty_or_weak_variable_does_not_fall_back_to_the_file(tmp_path: Path) -> None:
    create_master_key(tmp_path / "master.key")
    for value in ("", "a" * 32):
        with pytest.raises(ConfigError, match="CLIPROXY_MASTER_KEY"):
            load_master_key(path=tmp_path / "master.key", environment={"CLIPROXY_MASTER_KEY": value}, inline=None)


def test_the_memory_file_can_be_read_again_and_never_changed() -> None:
    descriptor = into_memfd(Secret(KEY))
    try:
        assert not os.get_inheritable(descriptor)
        os.lseek(descriptor, 0, os.SEEK_END)
        for _ in range(2):  # a restarted vault reads it again from a copy that shares the offset
            assert from_memfd(os.dup(descriptor)).reveal() == KEY
        for attack in (lambda: os.pwrite(descriptor, b"x", 0), lambda: os.ftruncate(descriptor, 0), lambda: os.ftruncate(descriptor, 64)):
            with pytest.raises(PermissionError):
                attack()
        with pytest.raises(PermissionError):
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, 0)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(("content", "sealed"), [(KEY, False), (KEY + b"x", True), (KEY[:5], True), (b"", True), (PLACEHOLDER, True)])
def test_an_unsealed_or_unsound_memory_file_is_refused_and_closed(content: bytes, sealed: bool) -> None:
    descriptor = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.write(descriptor, content)
    if sealed:
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, master_key._all_seals())
    with pytest.raises(ConfigError):
        from_memfd(descriptor)
    with pytest.raises(OSError):
        os.fstat(descriptor)
