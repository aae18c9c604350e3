from __future__ import annotations

from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from cliproxy.vault import tree as tree_module
from cliproxy.vault.crypto import RecordId
from cliproxy.vault.tree import MERKLE_BUCKETS, Tree, leaf_of

RECORD = RecordId(vault="", id="k", kind="client_key", revision=1)
leaves = st.dictionaries(st.text(max_size=8), st.binary(min_size=32, max_size=32), max_size=12)
changes = st.dictionaries(st.text(max_size=8), st.one_of(st.none(), st.binary(min_size=32, max_size=32)), max_size=12)


@given(before=leaves, change=changes)
def test_a_changed_tree_is_the_tree_of_the_changed_records_and_can_be_undone(before: dict[str, bytes], change: dict[str, bytes | None]) -> None:
    tree = Tree(before)
    root = tree.root
    undo = tree.change(change)
    after = {key: leaf for key, leaf in {**before, **change}.items() if leaf is not None}
    assert tree.root == Tree(after).root
    assert {key: tree.leaf(key) for key in {*before, *change}} == {key: after.get(key) for key in {*before, *change}}
    tree.change(undo)
    assert tree.root == root


@given(left=leaves, right=leaves)
def test_different_records_have_different_roots(left: dict[str, bytes], right: dict[str, bytes]) -> None:
    assert (Tree(left).root == Tree(right).root) == (left == right)


def test_the_root_is_the_documented_hash() -> None:
    leaf = leaf_of(RECORD, b"sealed")
    bucket = int.from_bytes(sha256(b"k").digest()[:2], "big") >> 6
    level = [sha256(b"\x02" + bytes(4)).digest()] * MERKLE_BUCKETS
    level[bucket] = sha256(b"\x02" + (1).to_bytes(4, "big") + leaf).digest()
    while len(level) > 1:
        level = [sha256(b"\x01" + left + right).digest() for left, right in zip(level[::2], level[1::2], strict=True)]
    assert Tree({"k": leaf}).root == level[0]


@pytest.mark.parametrize(
    ("other", "sealed"),
    [
        (replace(RECORD, id="l"), b"sealed"),
        (replace(RECORD, kind="credential"), b"sealed"),
        (replace(RECORD, revision=2), b"sealed"),
        (replace(RECORD, origin="https://a:443"), b"sealed"),
        (replace(RECORD, id="kclient_key", kind=""), b"sealed"),
        (RECORD, b"sealee"),
    ],
)
def test_each_field_of_a_record_changes_its_leaf(other: RecordId, sealed: bytes) -> None:
    assert leaf_of(other, sealed) != leaf_of(RECORD, b"sealed")


def test_a_change_hashes_one_bucket_and_one_path(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = Tree({f"key-{n}": sha256(b"%d" % n).digest() for n in range(5000)})
    hashed = []

    def counted(data: bytes) -> Any:
        hashed.append(len(data))
        return sha256(data)

    monkeypatch.setattr(tree_module, "sha256", counted)
    tree.change({"key-17": bytes(32)})
    assert len(hashed) == 1 + 1 + 10  # where it falls, its bucket, ten levels
