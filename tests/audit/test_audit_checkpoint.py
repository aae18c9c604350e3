"""Signed notes as C2SP says, and nothing that looks like one."""

from __future__ import annotations

import base64
import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from audit.audit_logs import NOW, signer
from cliproxy.audit.checkpoint import Checkpoint, Record, RecordReader, VaultAnchor, key_id, leaves_digest, origin_of, parse_checkpoint, parse_note
from cliproxy.audit.log import verify_note
from cliproxy.audit.merkle import Frontier, leaf_hash
from cliproxy.bounds import MAX_CHECKPOINT_BYTES, MAX_CHECKPOINT_RECORD_BYTES
from cliproxy.errors import AuditError, NewerLog


def checkpoint(size: int = 5, *, anchor: VaultAnchor | None = None) -> Checkpoint:
    tree = Frontier()
    tree.extend(leaf_hash(b"%d" % number) for number in range(size))
    return Checkpoint(
        origin=signer().origin,
        size=size,
        root=tree.root(),
        time=NOW,
        previous=0,
        segment=1,
        offset=100 * size,
        frontier=tree.hashes,
        leaves=leaves_digest(b"12345678" * size),
        anchor=anchor or VaultAnchor(),
    )


def test_a_note_is_what_the_specification_says() -> None:
    key = signer()
    note = key.sign(checkpoint().text())
    text, signature_line = note.split(b"\n\n")
    origin, size, root = text.split(b"\n")[:3]
    assert origin.decode() == key.origin == f"cliproxy/{hashlib.sha256(key.public_key).hexdigest()[:16]}"
    assert size == b"5"
    assert base64.b64decode(root) == checkpoint().root
    dash, name, blob = signature_line.rstrip(b"\n").split(b" ")
    assert (dash, name) == ("—".encode(), origin)
    raw = base64.b64decode(blob)
    assert raw[:4] == hashlib.sha256(origin + b"\n\x01" + key.public_key).digest()[:4]
    Ed25519PublicKey.from_public_bytes(key.public_key).verify(raw[4:], text + b"\n")


@pytest.mark.parametrize(
    "anchor", [VaultAnchor(), VaultAnchor(3, b"\x01" * 32), VaultAnchor(3, b"\x01" * 32, 4, b"\x02" * 32), VaultAnchor(0, b"", 1, b"\x03" * 32)]
)
@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_what_is_written_is_read_back(size: int, anchor: VaultAnchor) -> None:
    one = checkpoint(size, anchor=anchor)
    assert parse_checkpoint(one.text()) == one
    assert one.tree().root() == one.root


BENT = {
    "nothing": lambda text: b"",
    "no newline at the end": lambda text: text[:-1],
    "one line more": lambda text: text + b"more 1\n",
    "a line less": lambda text: text.rsplit(b"\n", 2)[0] + b"\n",
    "a leading zero": lambda text: text.replace(b"\n5\n", b"\n05\n"),
    "a sign": lambda text: text.replace(b"\n5\n", b"\n+5\n"),
    "no entries": lambda text: text.replace(b"\n5\n", b"\n0\n"),
    "another size than the frontier's": lambda text: text.replace(b"\n5\n", b"\n7\n"),
    "another root than the frontier's": lambda text: text.replace(base64.b64encode(checkpoint().root), base64.b64encode(bytes(32))),
    "covering less than nothing": lambda text: text.replace(b"previous 0", b"previous 5"),
    "no time": lambda text: text.replace(NOW.encode(), b"yesterday"),
    "Windows line ends": lambda text: text.replace(b"\n", b"\r\n"),
    "an empty line": lambda text: text.replace(b"\nformat", b"\n\nformat"),
    "bytes that are no text": lambda text: text.replace(b"cliproxy", b"\xff\xfe"),
    "a short leaves digest": lambda text: text[: text.rindex(b" ")] + b" AAAA\n",
    "base64 with other bits at its end": lambda text: text.replace(b"=\nformat", b"=x\nformat"),
}


@pytest.mark.parametrize("case", BENT)
def test_anything_else_is_no_checkpoint(case: str) -> None:
    with pytest.raises(AuditError):
        parse_checkpoint(BENT[case](checkpoint().text()))


def test_a_newer_format_is_told_by_name() -> None:
    with pytest.raises(NewerLog, match="format 2"):
        parse_checkpoint(checkpoint().text().replace(b"format 1", b"format 2") + b"something new\n")


@given(st.binary(max_size=300))
def test_garbage_is_an_audit_error(data: bytes) -> None:
    for parse in (parse_note, parse_checkpoint, lambda note: verify_note(note, public_key=signer().public_key)):
        with pytest.raises(AuditError):
            parse(data)


def test_a_signature_counts_for_its_own_text_key_and_name_only() -> None:
    key, other = signer(), signer(bytes(32))
    note = key.sign(checkpoint().text())
    assert verify_note(note, public_key=key.public_key) == checkpoint().text()
    renamed = note.replace(b"\xe2\x80\x94 cliproxy/", b"\xe2\x80\x94 cliproxx/")
    rekeyed = note.replace(base64.b64encode(key_id(key.origin, key.public_key))[:4], b"AAAA")
    for bad in (note.replace(b"\n5\n", b"\n6\n"), renamed, rekeyed, note[:-10] + b"AAAAAAAA=\n"):
        with pytest.raises(AuditError):
            verify_note(bad, public_key=key.public_key)
    with pytest.raises(AuditError):
        verify_note(note, public_key=other.public_key)
    assert origin_of(key.public_key) != origin_of(other.public_key)


def test_a_note_longer_than_the_bound_is_refused() -> None:
    with pytest.raises(AuditError, match="at most"):
        parse_note(b"x" * MAX_CHECKPOINT_BYTES + signer().sign(checkpoint().text()))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.lists(st.integers(1, 400), min_size=1, max_size=6))
def test_records_are_found_however_the_file_is_cut(sizes: list[int], pieces: list[int]) -> None:
    written = [Record(signer().sign(checkpoint(size).text()), b"12345678" * size) for size in sizes]
    data = b"".join(record.data() for record in written) + b"cliproxy/begun"
    found: list[Record] = []
    reader, at, turn = RecordReader(), 0, 0
    while at < len(data):
        piece = pieces[turn % len(pieces)]
        found += reader.feed(data[at : at + piece])
        at, turn = at + piece, turn + 1
    assert found == written
    assert reader.rest == b"cliproxy/begun"
    assert reader.consumed == len(data) - len(b"cliproxy/begun")


@pytest.mark.parametrize(
    "data", [b"a\n\nb\n\nc\n\n", b"a\n\nb\n\nleaves !\n\n", b"a\n\nb\n\nleaves AAA\n\n", b"\n" * 12, b"x" * (MAX_CHECKPOINT_RECORD_BYTES + 1)]
)
def test_what_is_no_record_is_refused(data: bytes) -> None:
    with pytest.raises(AuditError):
        list(RecordReader().feed(data))
