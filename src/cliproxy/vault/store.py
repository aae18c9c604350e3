"""The sealed store: records in SQLite, and the proof that they are the ones that were last committed.

What always holds:
- Every stored value is sealed (`crypto`), and a sealed head row holds an epoch and the Merkle root (`tree`) over all records. Head and records
  change in one transaction, so a crash leaves the old state or the new one.
- A change is announced before it happens: intent (epoch, root) durable in the audit log, then the commit, then done. At the start the log's last
  commit or its one pending intent must be the store's state (`confirm`); anything else is rollback or tampering. Until then nothing is changed.
- A value is read back against the leaf in memory, so that a file altered under a running vault is noticed too.

Everything that needs `open` happens in `open_store`: exclusive locking keeps the WAL index on the heap, and the first write makes SQLite create the
WAL file and sync its directory. Afterwards commits, checkpoints and rollbacks do with reads and writes on open descriptors.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from cliproxy.errors import ConfigError, EnvelopeError, TamperedVault, VaultConflict, VaultError
from cliproxy.secret import Secret
from cliproxy.vault.crypto import RecordId
from cliproxy.vault.database import DATABASE_ERRORS, create_database, open_database, start_writing
from cliproxy.vault.keyring import KEYRING_ID, Keyring, create_keyring, open_keyring, seal_keyring
from cliproxy.vault.tree import Tree, leaf_of

GENESIS_EPOCH = 1
_HEAD = "head"
_NOT_OURS = "put back auths/ and logs/ as they were together, from the same backup"

E = TypeVar("E", contravariant=True)


class Anchor(Protocol[E]):
    """Where states are announced: the audit log. `intent` returns when it is durable there, or raises, and then nothing is changed."""

    def intent(self, epoch: int, root: bytes, because: Sequence[E]) -> None: ...

    def done(self, epoch: int, root: bytes) -> None: ...


class Anchored(msgspec.Struct, frozen=True):
    """What the log knows: the last state that was done, and the one announced after it, if any. Epoch 0 is none."""

    epoch: int
    root: bytes
    pending_epoch: int = 0
    pending_root: bytes = b""


class Write(msgspec.Struct, frozen=True, kw_only=True):
    """A record to be sealed and stored; its revision is the store's affair."""

    id: str
    kind: str
    plaintext: bytes
    origin: str = ""


class Entry(msgspec.Struct, frozen=True):
    """What the store keeps in memory of a record."""

    kind: str
    revision: int
    origin: str


class _Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    epoch: int
    root: bytes
    records: int


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Head)


class Store:
    """An open store. One process has it, one thread uses it. Made by `create_store` and `open_store`."""

    def __init__(self, connection: sqlite3.Connection, keyring: Keyring, entries: dict[str, Entry], tree: Tree, epoch: int) -> None:
        self._connection = connection
        self._entries = entries
        self._tree = tree
        self._confirmed = False
        self._broken = False
        self.keyring = keyring
        self.epoch = epoch

    @property
    def root(self) -> bytes:
        """The Merkle root over all records."""
        return self._tree.root

    def __len__(self) -> int:
        return len(self._entries)

    def entry(self, key: str) -> Entry | None:
        """Return what is known of record `key`, or `None` when there is no such record."""
        return self._entries.get(key)

    def ids(self, kind: str) -> list[str]:
        """Return the ids of all records of `kind`, sorted."""
        return sorted(key for key, entry in self._entries.items() if entry.kind == kind)

    def read(self, key: str) -> Secret:
        """Return what was sealed as record `key`.

        Raises `VaultConflict` when there is no such record, `TamperedVault` when the file no longer holds what was committed.
        """
        entry = self._entries.get(key)
        if entry is None:
            raise VaultConflict(f"there is no record {key}")
        try:
            row = self._connection.execute("SELECT blob FROM records WHERE id = ?", (key,)).fetchone()
        except DATABASE_ERRORS as error:
            raise VaultError(f"the vault's database cannot be read ({error})") from error
        record = self._record(key, entry)
        if row is None or not isinstance(row[0], bytes) or leaf_of(record, row[0]) != self._tree.leaf(key):
            raise TamperedVault(f"the vault's {entry.kind} record {key} was altered while the vault was open; stop the gateway and {_NOT_OURS}")
        return self.keyring.open(row[0], record=record)

    def confirm(self, anchored: Anchored, anchor: Anchor[E]) -> None:
        """Accept the store for business if its state is the anchored one or the one pending intent; say `done` where that is news to the log.

        A log that knows no vault is accepted only by a vault that never changed. Raises `TamperedVault`.
        """
        state = (self.epoch, self.root)
        if anchored.epoch == 0 and not anchored.pending_epoch:
            if self.epoch != GENESIS_EPOCH:
                raise TamperedVault(f"the audit log does not know the vault, which is at epoch {self.epoch}; {_NOT_OURS}")
            anchor.intent(self.epoch, self.root, ())
        elif state not in ((anchored.epoch, anchored.root), (anchored.pending_epoch, anchored.pending_root)):
            raise TamperedVault(f"the vault is at epoch {self.epoch}, the audit log expects {_expected(anchored, self.epoch)}; {_NOT_OURS}")
        if anchored.pending_epoch or state != (anchored.epoch, anchored.root):
            anchor.done(self.epoch, self.root)  # closes the pending intent, whichever way it went: from now on one state is right
        self._confirmed = True

    def change(self, writes: Sequence[Write], removals: Sequence[str], *, anchor: Anchor[E], because: Sequence[E]) -> None:
        """Make all `writes` and `removals` durable, or none. `because` goes into the log with the intent.

        Steps: seal; new epoch and root; intent durable; one transaction; done. Raises what the anchor raises, `VaultConflict` for a removal of what is not
        there, `VaultError` when the disk refuses; then the old state stands, or the store takes no more changes and the process must be replaced.
        """
        if self._broken or not self._confirmed:
            raise VaultError("the vault takes no changes" + (" after a failed commit" if self._broken else " before the audit log has confirmed it"))
        # 1. seal
        rows = [self._seal(write) for write in writes]
        for key in removals:
            if key not in self._entries or key == KEYRING_ID or any(record.id == key for record, _ in rows):
                raise VaultConflict(f"there is no record {key} to remove")
        # 2. new epoch and root
        leaves: dict[str, bytes | None] = {record.id: leaf_of(record, sealed) for record, sealed in rows}
        leaves.update(dict.fromkeys(removals))
        count = len((self._entries.keys() | {record.id for record, _ in rows}) - set(removals))
        undo = self._tree.change(leaves)
        epoch = self.epoch + 1
        try:
            head = _seal_head(self.keyring, _Head(epoch, self._tree.root, count))
            # 3. intent
            anchor.intent(epoch, self._tree.root, because)
            # 4. commit
            self._commit(rows, removals, epoch, head)
        except BaseException:
            self._tree.change(undo)
            raise
        self.epoch = epoch
        for record, _ in rows:
            self._entries[record.id] = Entry(record.kind, record.revision, record.origin)
        for key in removals:
            del self._entries[key]
        # 5. done
        anchor.done(epoch, self._tree.root)

    def _seal(self, write: Write) -> tuple[RecordId, bytes]:
        before = self._entries.get(write.id)
        if (before is not None and before.kind != write.kind) or write.kind == KEYRING_ID:
            raise VaultConflict(f"record {write.id} is no {write.kind}")
        revision = 1 if before is None else before.revision + 1
        record = RecordId(vault=self.keyring.vault, id=write.id, kind=write.kind, revision=revision, origin=write.origin)
        return record, self.keyring.seal(write.plaintext, record=record)

    def _record(self, key: str, entry: Entry) -> RecordId:
        return RecordId(vault=self.keyring.vault, id=key, kind=entry.kind, revision=entry.revision, origin=entry.origin)

    def _commit(self, rows: Sequence[tuple[RecordId, bytes]], removals: Sequence[str], epoch: int, head: bytes) -> None:
        connection = self._connection
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("DELETE FROM records WHERE id = ?", [(key,) for key in removals])
            connection.executemany(_PUT_RECORD, [(record.id, record.kind, record.revision, record.origin, sealed) for record, sealed in rows])
            connection.execute(_PUT_HEAD, (epoch, head))
            connection.execute("COMMIT")
        except DATABASE_ERRORS as error:
            self._roll_back()
            raise VaultError(f"the vault's database cannot be written ({error}); check the disk of auths/") from error

    def _roll_back(self) -> None:
        """After a failed commit: go on only if the old state certainly stands. After a failed sync nobody knows what reached the disk."""
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.execute("ROLLBACK")
            (epoch,) = self._connection.execute("SELECT epoch FROM head").fetchone()
            self._broken = epoch != self.epoch
        except (*DATABASE_ERRORS, TypeError):
            self._broken = True

    @property
    def broken(self) -> bool:
        """Whether a commit failed in a way that leaves open what is on disk. The process must be replaced; the new one reads what is there."""
        return self._broken


_PUT_RECORD = "INSERT OR REPLACE INTO records (id, kind, revision, origin, blob) VALUES (?, ?, ?, ?, ?)"
_PUT_HEAD = "INSERT OR REPLACE INTO head (one, epoch, blob) VALUES (1, ?, ?)"


def create_store(path: Path, master: Secret, first: Sequence[Write] = ()) -> Store:
    """Make a new vault at `path` (which must not exist) that holds `first`, and return it open. Raises `ConfigError`."""
    keyring = create_keyring()
    record = RecordId(vault=keyring.vault, id=KEYRING_ID, kind=KEYRING_ID, revision=1)
    rows = [(record, seal_keyring(keyring, master, revision=1))]
    for write in first:
        record = RecordId(vault=keyring.vault, id=write.id, kind=write.kind, revision=1, origin=write.origin)
        rows.append((record, keyring.seal(write.plaintext, record=record)))
    tree = Tree({record.id: leaf_of(record, sealed) for record, sealed in rows})
    head = _seal_head(keyring, _Head(GENESIS_EPOCH, tree.root, len(rows)))
    create_database(
        path,
        records=[(record.id, record.kind, record.revision, record.origin, sealed) for record, sealed in rows],
        head=(GENESIS_EPOCH, head),
    )
    return open_store(path, master)


def open_store(path: Path, master: Secret) -> Store:
    """Return the vault at `path`, read and verified, and ready for a lockdown that denies `open`.

    Raises `ConfigError` when the file is unusable, damaged, of a newer format or the master key another; `TamperedVault` when it does not hold what was
    committed. Then nothing was written.

    1. the database opens and is sound                  4. the sealed head opens
    2. every row is of the types we write               5. root and number of records are the head's
    3. the keyring opens under the master key
    """
    # 1.
    with open_database(path) as connection:
        entries: dict[str, Entry] = {}
        leaves: dict[str, bytes] = {}
        keyring: Keyring | None = None
        # 2.
        for key, kind, revision, origin, sealed in _rows(connection, path):
            if key in entries:
                raise TamperedVault(f"the vault has two records {key}; {_NOT_OURS}")
            entries[key] = Entry(kind, revision, origin)
            leaves[key] = leaf_of(RecordId(vault="", id=key, kind=kind, revision=revision, origin=origin), sealed)
            if key == KEYRING_ID:
                # 3.
                keyring = _open_keyring(sealed, master, revision, path)
        if keyring is None:
            raise TamperedVault(f"the vault has no keyring; {_NOT_OURS}")
        # 4.
        head = _open_head(connection, keyring, path)
        # 5.
        tree = Tree(leaves)
        if tree.root != head.root or len(entries) != head.records:
            raise TamperedVault(f"the vault's records are not the ones that were committed as epoch {head.epoch}; {_NOT_OURS}")
        start_writing(connection, path)
    return Store(connection, keyring, entries, tree, head.epoch)


def _rows(connection: sqlite3.Connection, path: Path) -> Iterator[tuple[str, str, int, str, bytes]]:
    try:
        for key, kind, revision, origin, sealed in connection.execute("SELECT id, kind, revision, origin, blob FROM records"):
            if not (isinstance(key, str) and isinstance(kind, str) and isinstance(origin, str) and isinstance(sealed, bytes)):
                raise TamperedVault(f"the vault has a row of a kind that nobody wrote; {_NOT_OURS}")
            if not isinstance(revision, int) or not 0 < revision < 2**63:
                raise TamperedVault(f"the vault has a row of a kind that nobody wrote; {_NOT_OURS}")
            yield key, kind, revision, origin, sealed
    except DATABASE_ERRORS as error:
        raise ConfigError("the vault's database is damaged", cure=_NOT_OURS, file=str(path)) from error


def _open_keyring(sealed: bytes, master: Secret, revision: int, path: Path) -> Keyring:
    try:
        return open_keyring(sealed, master, revision=revision)
    except EnvelopeError as error:
        cure = "put back the master key that this vault was made with, or the vault from its backup"
        raise ConfigError(f"the keyring does not open with this master key, or was altered ({error})", cure=cure, file=str(path)) from error


def _open_head(connection: sqlite3.Connection, keyring: Keyring, path: Path) -> _Head:
    try:
        rows = connection.execute("SELECT one, epoch, blob FROM head").fetchall()
    except DATABASE_ERRORS as error:
        raise ConfigError("the vault's database is damaged", cure=_NOT_OURS, file=str(path)) from error
    if len(rows) != 1 or not isinstance(rows[0][1], int) or not 0 < rows[0][1] < 2**63 or not isinstance(rows[0][2], bytes):
        raise TamperedVault(f"the vault's head is not one that was written; {_NOT_OURS}")
    _, epoch, sealed = rows[0]
    try:
        head = _decoder.decode(keyring.open(sealed, record=_head_record(keyring.vault, epoch)).reveal())
    except (EnvelopeError, msgspec.DecodeError) as error:
        raise TamperedVault(f"the vault's head was altered ({error}); {_NOT_OURS}") from error
    if head.epoch != epoch:
        raise TamperedVault(f"the vault's head is not one that was written; {_NOT_OURS}")
    return head


def _seal_head(keyring: Keyring, head: _Head) -> bytes:
    return keyring.seal(_encoder.encode(head), record=_head_record(keyring.vault, head.epoch))


def _head_record(vault: str, epoch: int) -> RecordId:
    return RecordId(vault=vault, id=_HEAD, kind=_HEAD, revision=epoch)


def _expected(anchored: Anchored, epoch: int) -> str:
    expected = f"{anchored.epoch}" + (f" or {anchored.pending_epoch}" if anchored.pending_epoch else "")
    if epoch in (anchored.epoch, anchored.pending_epoch):
        return f"{expected} with other records"
    return expected + (": the file is older than the log" if epoch < anchored.epoch else "")
