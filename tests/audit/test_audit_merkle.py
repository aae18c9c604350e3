"""The tree against RFC 9162's recursive definition."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliproxy.audit.merkle import (
    EMPTY_ROOT,
    Frontier,
    RangeHashes,
    consistency_ranges,
    inclusion_ranges,
    leaf_hash,
    node_hash,
    verify_consistency,
    verify_inclusion,
)
from cliproxy.errors import AuditError

LEAVES = [leaf_hash(b"line %d" % number) for number in range(140)]

# draft test vectors of certificate-transparency-go: the tree over these eight inputs
CT_INPUTS = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
CT_ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def naive_root(leaves: list[bytes]) -> bytes:
    if not leaves:
        return EMPTY_ROOT
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return node_hash(naive_root(leaves[:split]), naive_root(leaves[split:]))


def proof_over(leaves: list[bytes], ranges: list[range]) -> tuple[bytes, ...]:
    hashes = RangeHashes(ranges)
    for index, leaf in enumerate(leaves):
        hashes.add(index, leaf)
    return hashes.proof()


def test_the_roots_of_certificate_transparency_come_out() -> None:
    tree = Frontier()
    for text, root in zip(CT_INPUTS, CT_ROOTS, strict=True):
        tree.append(leaf_hash(bytes.fromhex(text)))
        assert tree.root().hex() == root


def test_a_frontier_equals_the_naive_tree_at_every_size() -> None:
    tree = Frontier()
    assert tree.root() == EMPTY_ROOT
    for size in range(1, len(LEAVES) + 1):
        tree.append(LEAVES[size - 1])
        assert tree.root() == naive_root(LEAVES[:size])
        assert Frontier(size, tree.hashes).root() == tree.root()


@given(st.integers(0, 140), st.integers(0, 140))
def test_extending_a_resumed_frontier_is_the_same_as_never_having_stopped(first: int, second: int) -> None:
    first, second = sorted((first, second))
    tree = Frontier()
    tree.extend(LEAVES[:first])
    resumed = Frontier(tree.size, tree.hashes)
    resumed.extend(LEAVES[first:second])
    assert resumed.root() == naive_root(LEAVES[:second])
    assert resumed.size == second


def test_a_frontier_with_the_wrong_number_of_hashes_is_refused() -> None:
    for size, hashes in ((1, []), (2, LEAVES[:2]), (3, LEAVES[:1]), (-1, []), (1, [b"short"])):
        with pytest.raises(AuditError):
            Frontier(size, hashes)


@given(st.data())
def test_inclusion_proofs_verify_and_nothing_else_does(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 140))
    index = data.draw(st.integers(0, size - 1))
    proof = list(proof_over(LEAVES[:size], inclusion_ranges(index, size)))
    root = naive_root(LEAVES[:size])
    verify_inclusion(LEAVES[index], index, size, proof, root)
    bent = {
        "another leaf": lambda: verify_inclusion(leaf_hash(b"other"), index, size, proof, root),
        "another root": lambda: verify_inclusion(LEAVES[index], index, size, proof, leaf_hash(b"root")),
        "a longer proof": lambda: verify_inclusion(LEAVES[index], index, size, [*proof, LEAVES[0]], root),
        "no such entry": lambda: verify_inclusion(LEAVES[index], size, size, proof, root),
    }
    if proof:
        bent["a shorter proof"] = lambda: verify_inclusion(LEAVES[index], index, size, proof[:-1], root)
        bent["another place"] = lambda: verify_inclusion(LEAVES[index], (index + 1) % size, size, proof, root)
    for case in bent.values():
        with pytest.raises(AuditError):
            case()


@given(st.data())
def test_consistency_proofs_verify_and_nothing_else_does(data: st.DataObject) -> None:
    new = data.draw(st.integers(1, 140))
    old = data.draw(st.integers(1, new))
    proof = list(proof_over(LEAVES[:new], consistency_ranges(old, new)))
    old_root, new_root = naive_root(LEAVES[:old]), naive_root(LEAVES[:new])
    verify_consistency(old, old_root, new, new_root, proof)
    other = leaf_hash(b"other")
    with pytest.raises(AuditError):
        verify_consistency(old, other, new, new_root, proof)
    with pytest.raises(AuditError):
        verify_consistency(old, old_root, new, other, proof)
    with pytest.raises(AuditError):
        verify_consistency(old, old_root, new, new_root, [*proof, other])
    if proof:
        with pytest.raises(AuditError):
            verify_consistency(old, old_root, new, new_root, proof[:-1])


def test_proofs_of_what_is_not_there_are_refused() -> None:
    for index, size in ((0, 0), (-1, 4), (4, 4)):
        with pytest.raises(AuditError):
            inclusion_ranges(index, size)
    for old, new in ((0, 4), (5, 4)):
        with pytest.raises(AuditError):
            consistency_ranges(old, new)
    with pytest.raises(AuditError):
        proof_over(LEAVES[:3], inclusion_ranges(0, 4))
