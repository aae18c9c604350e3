"""The log's Merkle tree, hashed as RFC 9162 §2.1 says (leaf: 0x00 before the line, node: 0x01 before its two children).

A `Frontier` is all that appending needs: the roots of the complete subtrees that make up the tree, at most one per bit of its size. Proofs
are computed from ranges of leaves, so that the one who reads the leaves needs to see each only once and keeps log2(size) hashes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from cliproxy.errors import AuditError

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256(b"").digest()  # RFC 9162 §2.1.1
_sha256 = hashlib.sha256


def leaf_hash(line: bytes) -> bytes:
    """Return the hash of an entry: its line without the newline."""
    return _sha256(b"\x00" + line).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node."""
    return _sha256(b"\x01" + left + right).digest()


class Frontier:
    """The tree of `size` leaves, reduced to the roots of its complete subtrees, largest first.

    Raises `AuditError` when there are not as many `hashes` as `size` has bits set.
    """

    __slots__ = ("_hashes", "size")

    def __init__(self, size: int = 0, hashes: Sequence[bytes] = ()) -> None:
        if size < 0 or len(hashes) != size.bit_count() or any(len(one) != HASH_BYTES for one in hashes):
            raise AuditError(f"a tree of {size} entries has no frontier of {len(hashes)} hashes")
        self.size = size
        self._hashes = list(hashes)

    @property
    def hashes(self) -> tuple[bytes, ...]:
        """The roots of the complete subtrees, largest first."""
        return tuple(self._hashes)

    def copy(self) -> Frontier:
        """Return the same tree, to grow independently."""
        return Frontier(self.size, self._hashes)

    def append(self, leaf: bytes) -> None:
        """Add one leaf by its hash."""
        size, hashes, node = self.size, self._hashes, leaf
        while size & 1:
            node = _sha256(b"\x01" + hashes.pop() + node).digest()
            size >>= 1
        hashes.append(node)
        self.size += 1

    def extend(self, leaves: Iterable[bytes]) -> None:
        """Add leaves by their hashes."""
        size, hashes = self.size, self._hashes
        for node in leaves:
            bits = size
            while bits & 1:
                node = _sha256(b"\x01" + hashes.pop() + node).digest()
                bits >>= 1
            hashes.append(node)
            size += 1
        self.size = size

    def root(self) -> bytes:
        """Return the Merkle tree hash."""
        if not self._hashes:
            return EMPTY_ROOT
        root = self._hashes[-1]
        for node in reversed(self._hashes[:-1]):
            root = node_hash(node, root)
        return root


def _split(size: int) -> int:
    """Return the largest power of two below `size` (`size` of 2 or more): how many leaves the left subtree has."""
    return 1 << (size - 1).bit_length() - 1


def inclusion_ranges(index: int, size: int) -> list[range]:
    """Return the ranges of leaves whose tree hashes are the inclusion proof of leaf `index` in a tree of `size`, in the proof's order.

    Raises `AuditError` when there is no such leaf.
    """
    if not 0 <= index < size:
        raise AuditError(f"there is no entry {index} in a log of {size}")
    ranges: list[range] = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            ranges.append(range(middle, end))
            end = middle
        else:
            ranges.append(range(start, middle))
            start = middle
    return ranges[::-1]


def consistency_ranges(old: int, new: int) -> list[range]:
    """Return the ranges of leaves whose tree hashes are the consistency proof between trees of `old` and `new` leaves (RFC 9162 §2.1.4.1).

    Raises `AuditError` unless 0 < `old` <= `new`.
    """
    if not 0 < old <= new:
        raise AuditError(f"a log of {new} entries does not continue one of {old}")
    ranges: list[range] = []
    start, end, whole = 0, new, True  # whole: the old tree is the whole of [start, end) so far, and its root is known to the verifier
    while old != end:
        middle = start + _split(end - start)
        if old <= middle:
            ranges.append(range(middle, end))
            end = middle
        else:
            ranges.append(range(start, middle))
            start, whole = middle, False
    if not whole:
        ranges.append(range(start, end))
    return ranges[::-1]


class RangeHashes:
    """Collects the tree hashes of disjoint ranges of leaves from one pass over the leaves."""

    def __init__(self, ranges: Sequence[range]) -> None:
        self._ranges = list(ranges)
        self._trees = [Frontier() for _ in ranges]
        self._order = sorted(range(len(ranges)), key=lambda number: self._ranges[number].start)
        self._next = 0

    def add(self, index: int, leaf: bytes) -> None:
        """Take leaf `index`; indices come in rising order."""
        while self._next < len(self._order):
            number = self._order[self._next]
            if index < self._ranges[number].start:
                return
            if index < self._ranges[number].stop:
                self._trees[number].append(leaf)
                return
            self._next += 1

    def proof(self) -> tuple[bytes, ...]:
        """Return the hashes in the order of the ranges. Raises `AuditError` when leaves were missing."""
        if any(tree.size != len(wanted) for tree, wanted in zip(self._trees, self._ranges, strict=True)):
            raise AuditError("the log ended before the proof was whole")
        return tuple(tree.root() for tree in self._trees)


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Raise `AuditError` unless `proof` shows `leaf` at `index` in the tree of `size` with `root` (RFC 9162 §2.1.3.2)."""
    if not 0 <= index < size:
        raise AuditError(f"there is no entry {index} in a log of {size}")
    number, last, node = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            raise AuditError("the inclusion proof is too long")
        if number & 1 or number == last:
            node = node_hash(sibling, node)
            while not number & 1 and number:
                number >>= 1
                last >>= 1
        else:
            node = node_hash(node, sibling)
        number >>= 1
        last >>= 1
    if last != 0 or node != root:
        raise AuditError(f"entry {index} is not in the tree of {size}")


def verify_consistency(old: int, old_root: bytes, new: int, new_root: bytes, proof: Sequence[bytes]) -> None:
    """Raise `AuditError` unless `proof` shows that the tree of `new` leaves continues that of `old` (RFC 9162 §2.1.4.2)."""
    if not 0 < old <= new:
        raise AuditError(f"a log of {new} entries does not continue one of {old}")
    if old == new:
        if proof or old_root != new_root:
            raise AuditError(f"two different trees of {old} entries")
        return
    path = list(proof) if old & (old - 1) else [old_root, *proof]
    if not path:
        raise AuditError("the consistency proof is empty")
    number, last = old - 1, new - 1
    while number & 1:
        number >>= 1
        last >>= 1
    before = after = path[0]
    for sibling in path[1:]:
        if last == 0:
            raise AuditError("the consistency proof is too long")
        if number & 1 or number == last:
            before = node_hash(sibling, before)
            after = node_hash(sibling, after)
            while not number & 1 and number:
                number >>= 1
                last >>= 1
        else:
            after = node_hash(after, sibling)
        number >>= 1
        last >>= 1
    if last != 0 or before != old_root or after != new_root:
        raise AuditError(f"the tree of {new} entries does not continue the one of {old}")
