"""Someone who can write the database file: every stored value is theirs to alter, swap, delete, age or bring back. None of it goes unnoticed."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cliproxy.errors import ConfigError, EnvelopeError, TamperedVault, VaultError
from cliproxy.vault import database
from cliproxy.vault.store import Write, open_store
from vault.vault_fakes import MASTER, ListAnchor, close, new_vault, reopen

CONTENT = {"cred-a": b"sk-a", "cred-b": b"sk-b", "key-1": b"k1", "key-2": b"k2"}


class Scene:
    """A vault with a yesterday: `file` is today's, `yesterday` the file one change ago; the log knows today's state."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700)
        self.file = directory / "vault.db"
        self.yesterday = directory / "yesterday.db"
        self.anchor = ListAnchor()
        store = new_vault(self.file, self.anchor)
        writes = [Write(id=name, kind="credential", plaintext=text, origin="https://api.example.com:443") for name, text in CONTENT.items() if "cred" in name]
        writes += [Write(id=name, kind="client_key", plaintext=text) for name, text in CONTENT.items() if "key" in name]
        old = [Write(id=write.id, kind=write.kind, plaintext=b"old", origin=write.origin) for write in writes]
        store.change(old, (), anchor=self.anchor, because=())
        close(store)
        shutil.copy(self.file, self.yesterday)
        store = reopen(self.file, self.anchor)
        store.change(writes, (), anchor=self.anchor, because=())
        close(store)
        self.anchored = self.anchor.anchored()
        self.bytes = self.file.read_bytes()

    def content(self) -> dict[str, bytes]:
        """What a start would give, or raises what it would raise."""
        store = open_store(self.file, MASTER)
        try:
            store.confirm(self.anchored, ListAnchor())
            return {name: store.read(name).reveal() for kind in ("credential", "client_key") for name in store.ids(kind)}
        finally:
            close(store)

    def edit(self, *statements: tuple[str, tuple[object, ...]]) -> None:
        connection = sqlite3.connect(self.file)
        for statement, values in statements:
            connection.execute(statement, values)
        connection.commit()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()

    def rows_of_yesterday(self, where: str) -> list[tuple[object, ...]]:
        connection = sqlite3.connect(self.yesterday)
        rows = connection.execute(f"SELECT * FROM {where}").fetchall()
        connection.close()
        return rows

    def restore(self) -> None:
        for suffix in ("-wal", "-shm"):
            Path(f"{self.file}{suffix}").unlink(missing_ok=True)
        self.file.write_bytes(self.bytes)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene(tmp_path_factory.mktemp("vault") / "auths")


@pytest.fixture
def scene(shared: Scene) -> Iterator[Scene]:
    shared.restore()
    yield shared
    shared.restore()


def test_untouched_the_vault_opens(scene: Scene) -> None:
    assert scene.content() == CONTENT


def swap(column: str) -> Callable[[Scene], None]:
    def attack(scene: Scene) -> None:
        connection = sqlite3.connect(scene.file)
        a, b = (connection.execute(f"SELECT {column} FROM records WHERE id = ?", (name,)).fetchone()[0] for name in ("cred-a", "cred-b"))
        connection.close()
        scene.edit((f"UPDATE records SET {column} = ? WHERE id = 'cred-a'", (b,)), (f"UPDATE records SET {column} = ? WHERE id = 'cred-b'", (a,)))

    return attack


def age(where: str, into: str, columns: int) -> Callable[[Scene], None]:
    def attack(scene: Scene) -> None:
        marks = ", ".join("?" * columns)
        scene.edit(*((f"INSERT OR REPLACE INTO {into} VALUES ({marks})", row) for row in scene.rows_of_yesterday(where)))

    return attack


def sql(statement: str) -> Callable[[Scene], None]:
    return lambda scene: scene.edit((statement, ()))


ATTACKS: dict[str, Callable[[Scene], object]] = {
    "sealed values of two rows swapped": swap("blob"),
    "ids of two rows swapped": lambda scene: scene.edit(
        ("UPDATE records SET id = 'tmp' WHERE id = 'cred-a'", ()),
        ("UPDATE records SET id = 'cred-a' WHERE id = 'cred-b'", ()),
        ("UPDATE records SET id = 'cred-b' WHERE id = 'tmp'", ()),
    ),
    "origin edited": sql("UPDATE records SET origin = 'https://evil.example.com:443' WHERE id = 'cred-a'"),
    "origin emptied": sql("UPDATE records SET origin = '' WHERE id = 'cred-a'"),
    "kind edited": sql("UPDATE records SET kind = 'client_key' WHERE id = 'cred-a'"),
    "revision edited": sql("UPDATE records SET revision = revision + 1 WHERE id = 'key-1'"),
    "revision of another type": sql("UPDATE records SET revision = 'two' WHERE id = 'key-1'"),
    "revision zero": sql("UPDATE records SET revision = 0 WHERE id = 'key-1'"),
    "value of another type": sql("UPDATE records SET blob = 'text' WHERE id = 'key-1'"),
    "value emptied": sql("UPDATE records SET blob = x'' WHERE id = 'key-1'"),
    "id that is no UTF-8": sql("UPDATE records SET id = CAST(x'ff' AS TEXT) WHERE id = 'key-1'"),
    "id as a blob": sql("UPDATE records SET id = CAST(id AS BLOB) WHERE id = 'key-1'"),
    "a credential deleted": sql("DELETE FROM records WHERE id = 'cred-a'"),
    "a key deleted": sql("DELETE FROM records WHERE id = 'key-2'"),
    "the keyring deleted": sql("DELETE FROM records WHERE id = 'keyring'"),
    "everything deleted": sql("DELETE FROM records"),
    "the head deleted": sql("DELETE FROM head"),
    "a second head": sql("INSERT INTO head SELECT 2, epoch, blob FROM head"),
    "the head's epoch edited": sql("UPDATE head SET epoch = epoch - 1"),
    "a row copied under a new id": sql("INSERT INTO records SELECT 'cred-c', kind, revision, origin, blob FROM records WHERE id = 'cred-a'"),
    "one row from yesterday": age("records WHERE id = 'key-1'", "records", 5),
    "all rows from yesterday": age("records", "records", 5),
    "the head from yesterday": age("head", "head", 3),
    "the whole file from yesterday": lambda scene: scene.file.write_bytes(scene.yesterday.read_bytes()),
    "a table added": sql("CREATE TABLE more (x)"),
    "a trigger added": sql("CREATE TRIGGER t AFTER INSERT ON records BEGIN DELETE FROM records; END"),
    "a view in place of the table": lambda scene: scene.edit(
        ("ALTER TABLE records RENAME TO r2", ()), ("CREATE VIEW records AS SELECT * FROM r2 WHERE id != 'key-2'", ())
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_tampered_vault_is_refused(scene: Scene, name: str) -> None:
    ATTACKS[name](scene)
    assert scene.file.read_bytes() != scene.bytes
    with pytest.raises((VaultError, ConfigError)) as caught:
        scene.content()
    assert "\n" not in str(caught.value)
    assert "put back" in str(caught.value)


@pytest.mark.parametrize(
    "name", ["one row from yesterday", "origin edited", "a key deleted", "the whole file from yesterday", "sealed values of two rows swapped"]
)
def test_tampering_is_called_so(scene: Scene, name: str) -> None:
    ATTACKS[name](scene)
    with pytest.raises(TamperedVault):
        scene.content()


def test_even_a_recomputed_root_does_not_open_an_aged_or_moved_value(scene: Scene) -> None:
    """The second lock: without the Merkle root, the associated data alone still binds a value to its place."""
    store = open_store(scene.file, MASTER)
    connection = sqlite3.connect(scene.yesterday)
    connection.execute("PRAGMA journal_mode = MEMORY")
    for name in CONTENT:
        (blob,) = connection.execute("SELECT blob FROM records WHERE id = ?", (name,)).fetchone()
        entry = store.entry(name)
        assert entry is not None
        with pytest.raises(EnvelopeError):
            store.keyring.open(blob, record=store._record(name, entry))
    connection.close()
    close(store)


def values_of(scene: Scene) -> Iterator[tuple[int, int]]:
    """Where the stored values lie in the file: (offset, length)."""
    connection = sqlite3.connect(scene.file)
    blobs = [row[0] for table in ("records", "head") for row in connection.execute(f"SELECT blob FROM {table}")]
    connection.close()
    for blob in blobs:
        assert scene.bytes.count(blob) == 1  # small: each lies in one piece on one page
        yield scene.bytes.index(blob), len(blob)


def flipped(data: bytes, bit: int) -> bytes:
    altered = bytearray(data)
    altered[bit // 8] ^= 1 << bit % 8
    return bytes(altered)


def test_a_flipped_bit_in_any_byte_of_a_stored_value_is_always_noticed(scene: Scene) -> None:
    for offset, length in list(values_of(scene)):
        for position in range(offset, offset + length):
            scene.file.write_bytes(flipped(scene.bytes, position * 8 + position % 8))
            with pytest.raises((VaultError, ConfigError)):
                scene.content()


def test_a_flipped_bit_anywhere_else_is_noticed_or_means_nothing(scene: Scene) -> None:
    sealed = {position for offset, length in values_of(scene) for position in range(offset, offset + length)}
    # Zeros are free space: one of 61 there, every byte of header, page heads, cell pointers, schema and cells.
    positions = [p for p in range(len(scene.bytes)) if p not in sealed and (scene.bytes[p] or scene.bytes[p - 1] or p % 61 == 0)]
    noticed = 0
    for position in positions:
        scene.file.write_bytes(flipped(scene.bytes, position * 8 + position % 8))
        try:
            assert scene.content() == CONTENT, f"bit {position % 8} of byte {position}"
        except (VaultError, ConfigError):
            noticed += 1
        scene.restore()
    assert noticed > len(positions) // 3


def test_a_flipped_bit_in_the_wal_is_noticed_or_means_nothing(tmp_path: Path) -> None:
    directory = tmp_path / "auths"
    directory.mkdir(mode=0o700)
    file, wal = directory / "vault.db", directory / "vault.db-wal"
    anchor = ListAnchor()
    store = new_vault(file, anchor)
    store.change([Write(id="k", kind="client_key", plaintext=b"plain")], (), anchor=anchor, because=())
    state, file_bytes, wal_bytes = anchor.anchored(), file.read_bytes(), wal.read_bytes()  # as after kill -9
    close(store)
    noticed = 0
    for position in [*range(400), *range(400, len(wal_bytes), 53)]:
        file.write_bytes(file_bytes)
        wal.write_bytes(flipped(wal_bytes, position * 8 + position % 8))
        wal.chmod(0o600)
        try:
            store = open_store(file, MASTER)
            try:
                store.confirm(state, ListAnchor())
                assert store.read("k").reveal() == b"plain"
            finally:
                close(store)
        except (VaultError, ConfigError):
            noticed += 1
        finally:
            for connection in database._given_up:
                connection.close()
            database._given_up.clear()
    assert noticed > 100


def test_a_refused_vault_is_left_as_it_is(tmp_path: Path) -> None:
    directory = tmp_path / "auths"
    directory.mkdir(mode=0o700)
    file = directory / "vault.db"
    store = new_vault(file, ListAnchor())
    store._connection.execute("UPDATE records SET revision = 9")  # lies in the WAL
    content = {path.name: path.read_bytes() for path in directory.iterdir()}
    close(store)
    for name, data in content.items():
        (directory / name).write_bytes(data)
        (directory / name).chmod(0o600)
    assert len(content["vault.db-wal"]) > 0
    with pytest.raises((VaultError, ConfigError)):
        open_store(file, MASTER)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == content
    database._given_up.pop().close()
