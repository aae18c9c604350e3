"""The Merkle tree over the store's records: one root that changes when any record is added, removed, exchanged, aged or altered.

What always holds: the root depends on the set of records alone, not on the order in which they came; replacing one record hashes one bucket and
one path, however many there are. Hashing as in RFC 9162 §2.1.1, with a prefix byte for each kind of node, so that none can pass for another.

    leaf    SHA-256(0x00, length-prefixed: id, kind, revision, origin, SHA-256(sealed bytes))
    bucket  SHA-256(0x02, count, the leaves of the ids that fall into it, sorted by id)
    node    SHA-256(0x01, left, right)

An id falls into one of `MERKLE_BUCKETS` buckets by the first bits of its SHA-256. The buckets are the bottom of a complete binary tree.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from hashlib import sha256

from cliproxy.vault.crypto import RecordId, length_prefixed

MERKLE_BUCKETS = 1024  # 100,000 records give 100 to a bucket: 16 µs to change one

_BITS = MERKLE_BUCKETS.bit_length() - 1


def leaf_of(record: RecordId, sealed: bytes) -> bytes:
    """Return the leaf of `record` as it is stored. The vault id is not in it: the head that carries the root is sealed for its vault."""
    revision = struct.pack(">Q", record.revision)
    parts = length_prefixed(record.id.encode(), record.kind.encode(), revision, record.origin.encode(), sha256(sealed).digest())
    return sha256(b"\x00" + parts).digest()


class Tree:
    """The leaves by record id, and the hashes above them."""

    def __init__(self, leaves: Mapping[str, bytes]) -> None:
        self._buckets: list[dict[str, bytes]] = [{} for _ in range(MERKLE_BUCKETS)]
        for key, leaf in leaves.items():
            self._buckets[_bucket_of(key)][key] = leaf
        # A heap: node n has the children 2n and 2n+1, the buckets are the last MERKLE_BUCKETS entries, entry 1 is the root.
        self._nodes = [b""] * MERKLE_BUCKETS + [_hash_bucket(bucket) for bucket in self._buckets]
        for index in range(MERKLE_BUCKETS - 1, 0, -1):
            self._nodes[index] = self._hash_node(index)

    @property
    def root(self) -> bytes:
        """The root, 32 bytes."""
        return self._nodes[1]

    def leaf(self, key: str) -> bytes | None:
        """Return the leaf of record `key`, or `None`."""
        return self._buckets[_bucket_of(key)].get(key)

    def change(self, changes: Mapping[str, bytes | None]) -> dict[str, bytes | None]:
        """Set each record's leaf, or remove it (`None`). Returns what undoes it: `change(change(c))` leaves the tree as it was."""
        undo: dict[str, bytes | None] = {}
        dirty = set()
        for key, leaf in changes.items():
            index = _bucket_of(key)
            bucket = self._buckets[index]
            undo[key] = bucket.get(key)
            if leaf is None:
                bucket.pop(key, None)
            else:
                bucket[key] = leaf
            dirty.add(index)
        for index in dirty:
            self._nodes[MERKLE_BUCKETS + index] = _hash_bucket(self._buckets[index])
        level = {(MERKLE_BUCKETS + index) // 2 for index in dirty}
        while level and 0 not in level:
            for index in level:
                self._nodes[index] = self._hash_node(index)
            level = {index // 2 for index in level}
        return undo

    def _hash_node(self, index: int) -> bytes:
        return sha256(b"\x01" + self._nodes[2 * index] + self._nodes[2 * index + 1]).digest()


def _bucket_of(key: str) -> int:
    return int.from_bytes(sha256(key.encode()).digest()[:4], "big") >> (32 - _BITS)


def _hash_bucket(bucket: dict[str, bytes]) -> bytes:
    return sha256(b"\x02" + struct.pack(">I", len(bucket)) + b"".join(bucket[key] for key in sorted(bucket))).digest()
