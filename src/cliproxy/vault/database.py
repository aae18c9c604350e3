"""The SQLite file under the store: how it is made, opened, and judged before a byte of it is believed.

What always holds: the file and its WAL are private files of ours; a format newer than this build's is refused before SQLite could write anything; the
schema is the one we made, to the letter; and when a connection is returned, nothing later needs `open`, `unlink` or a lock call.
"""

from __future__ import annotations

import os
import sqlite3
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cliproxy.errors import ConfigError
from cliproxy.secure_files import create_private_file, open_private_file, verify_private_directory, verify_private_file

DATABASE_FORMAT = 1
APPLICATION_ID = 0x43505856  # "CPXV"
_SCHEMA = (
    ("head", "CREATE TABLE head (one INTEGER PRIMARY KEY, epoch INTEGER NOT NULL, blob BLOB NOT NULL)"),
    (
        "records",
        "CREATE TABLE records (id TEXT PRIMARY KEY, kind TEXT NOT NULL, revision INTEGER NOT NULL, origin TEXT NOT NULL, blob BLOB NOT NULL) WITHOUT ROWID",
    ),
)
_PRAGMAS = (
    "PRAGMA locking_mode = EXCLUSIVE",  # before the first access: then the WAL index is on the heap and no lock call follows
    "PRAGMA temp_store = MEMORY",
    "PRAGMA secure_delete = ON",  # what was replaced does not stay in free pages
    "PRAGMA trusted_schema = OFF",
    "PRAGMA cell_size_check = ON",
    "PRAGMA mmap_size = 0",
    "PRAGMA cache_size = -2048",
)
_DURABLE = "PRAGMA synchronous = FULL"
# SQLite quotes a damaged schema in its messages, bytes that are no UTF-8 included, and then Python raises UnicodeDecodeError instead.
DATABASE_ERRORS: Final = (sqlite3.Error, UnicodeError)
_BUSY_SECONDS = 2.0  # a vault that was killed gives its lock back within milliseconds
_RESTORE = "put back auths/ and logs/ as they were together, from the same backup"

# SQLite's file format: https://www.sqlite.org/fileformat2.html §1.3 (database header) and §4.1 (WAL)
_MAGIC = b"SQLite format 3\x00"
_HEADER_BYTES = 100
_USER_VERSION_OFFSET = 60
_APPLICATION_ID_OFFSET = 68
_WAL_HEADER_BYTES = 32
_FRAME_HEADER_BYTES = 24


def create_database(path: Path, *, records: Sequence[tuple[str, str, int, str, bytes]], head: tuple[int, bytes]) -> None:
    """Make the database at `path` with its first content, durable. Raises `ConfigError` if the name is taken.

    A start that was killed half-way leaves nothing under that name: the file is made under another one and linked when it is whole.
    """
    verify_private_directory(path.parent)
    draft = path.with_name(f".{path.name}.new")
    draft.unlink(missing_ok=True)
    os.close(create_private_file(draft))
    try:
        connection = sqlite3.connect(draft, isolation_level=None)
        try:
            for pragma in ("PRAGMA journal_mode = MEMORY", _DURABLE, "BEGIN EXCLUSIVE"):
                connection.execute(pragma)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {DATABASE_FORMAT}")
            for _, statement in _SCHEMA:
                connection.execute(statement)
            connection.executemany("INSERT INTO records (id, kind, revision, origin, blob) VALUES (?, ?, ?, ?, ?)", records)
            connection.execute("INSERT INTO head (one, epoch, blob) VALUES (1, ?, ?)", head)
            connection.execute("COMMIT")
            connection.execute("PRAGMA journal_mode = WAL")
        finally:
            connection.close()
        os.link(draft, path)  # fails if the name is taken
        draft.unlink()
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except (*DATABASE_ERRORS, OSError) as error:
        draft.unlink(missing_ok=True)
        raise ConfigError(f"the vault cannot be made ({error})", cure="check the directory and the space on its disk", file=str(path)) from error


@contextmanager
def open_database(path: Path) -> Iterator[sqlite3.Connection]:
    """Give the only connection to the database at `path`, exclusive, sound as far as SQLite can tell; it stays open when the block ends well.

    When the block raises, nothing has been written and the connection is given up. `start_writing` is the block's last step.
    Raises `ConfigError`: not private, damaged, a newer format, no vault at all, or in use by another process.
    """
    verify_private_directory(path.parent)
    verify_private_file(path)
    for suffix in ("-wal", "-journal"):
        if os.path.lexists(f"{path}{suffix}"):
            verify_private_file(Path(f"{path}{suffix}"))
    _verify_format(path)
    wal = Path(f"{path}-wal")
    recovered = wal.exists() and wal.stat().st_size > 0
    connection = sqlite3.connect(path, isolation_level=None, timeout=_BUSY_SECONDS)
    try:
        for pragma in _PRAGMAS:
            connection.execute(pragma)
        _verify_sound(connection, path)
        yield connection
    except DATABASE_ERRORS as error:
        _give_up(connection, recovered=recovered)
        raise _trouble(error, path) from error
    except BaseException:
        _give_up(connection, recovered=recovered)
        raise


def start_writing(connection: sqlite3.Connection, path: Path) -> None:
    """Make commits durable, and make them possible without `open`. Raises `ConfigError` or `sqlite3.Error`."""
    if connection.execute("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
        raise ConfigError("SQLite has no WAL here", cure="put auths/ on a local disk", file=str(path))
    connection.execute(_DURABLE)
    connection.execute("SELECT random()")  # SQLite seeds its generator from /dev/urandom once, and needs it for the salts of a restarted WAL
    # A write that changes nothing: it creates the WAL and syncs its directory now, while `open` is still allowed.
    connection.execute(f"PRAGMA user_version = {DATABASE_FORMAT}")


_given_up: list[sqlite3.Connection] = []


def _give_up(connection: sqlite3.Connection, *, recovered: bool) -> None:
    # Closing the last connection moves the WAL into the database and removes it: on a file that we refuse, that would be a change, and evidence lost.
    # Python 3.11 cannot switch it off (SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE), so such a connection is kept until the process ends, which it does next.
    if recovered:
        _given_up.append(connection)
    else:
        connection.close()


def _verify_sound(connection: sqlite3.Connection, path: Path) -> None:
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    if found != DATABASE_FORMAT:
        raise _unknown_format(found, path)
    schema = connection.execute("SELECT name, sql FROM sqlite_schema ORDER BY name").fetchall()
    if tuple(schema) != _SCHEMA:
        raise ConfigError("the vault's database is damaged: its tables are not ours", cure=_RESTORE, file=str(path))
    verdict = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != ("ok",):
        raise ConfigError("the vault's database is damaged", cure=_RESTORE, file=str(path))


def _trouble(error: Exception, path: Path) -> ConfigError:
    code = getattr(error, "sqlite_errorcode", None)
    if code is not None and code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return ConfigError("the vault is in use by another process", cure="stop it (`cliproxy status` tells who)", file=str(path))
    if code is not None and code & 0xFF in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
        return ConfigError(f"the vault's database cannot be used ({error})", cure="check the disk and who may write there", file=str(path))
    return ConfigError("the vault's database is damaged", cure=_RESTORE, file=str(path))


def _verify_format(path: Path) -> None:
    """Judge the format from the bytes alone: SQLite would recover or checkpoint a WAL, and a newer vault must not be written to."""
    descriptor = open_private_file(path, write=False)
    try:
        header = os.pread(descriptor, _HEADER_BYTES, 0)
    finally:
        os.close(descriptor)
    if len(header) < _HEADER_BYTES or not header.startswith(_MAGIC):
        raise ConfigError("is no vault database, or damaged", cure=_RESTORE, file=str(path))
    wal = Path(f"{path}-wal")
    headers = [header, *(_first_pages(wal) if os.path.lexists(wal) else ())]
    for page in headers:
        (found,) = struct.unpack_from(">I", page, _USER_VERSION_OFFSET)
        (application,) = struct.unpack_from(">I", page, _APPLICATION_ID_OFFSET)
        if application != APPLICATION_ID:
            raise ConfigError("is no vault database, or damaged", cure=_RESTORE, file=str(path))
        if found > DATABASE_FORMAT:
            raise _unknown_format(found, path)


def _first_pages(wal: Path) -> Iterator[bytes]:
    """Yield the database header of each version of page 1 in the present run of the WAL."""
    with os.fdopen(open_private_file(wal, write=False), "rb") as file:
        start = file.read(_WAL_HEADER_BYTES)
        if len(start) < _WAL_HEADER_BYTES:
            return
        (page_bytes,) = struct.unpack_from(">I", start, 8)
        salts = start[16:24]
        if not 512 <= page_bytes <= 65536 or page_bytes & (page_bytes - 1):
            return  # SQLite ignores such a WAL as a whole
        position = _WAL_HEADER_BYTES
        while True:
            file.seek(position)
            frame = file.read(_FRAME_HEADER_BYTES + _HEADER_BYTES)
            if len(frame) < _FRAME_HEADER_BYTES + _HEADER_BYTES or frame[8:16] != salts:
                return  # left over from an earlier run
            if frame[:4] == b"\x00\x00\x00\x01":
                yield frame[_FRAME_HEADER_BYTES:]
            position += _FRAME_HEADER_BYTES + page_bytes


def _unknown_format(found: int, path: Path) -> ConfigError:
    cure = "use the newer build that wrote it" if found > DATABASE_FORMAT else _RESTORE
    return ConfigError(f"the vault has format {found}; this build knows {DATABASE_FORMAT}", cure=cure, file=str(path))
