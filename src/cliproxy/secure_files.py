"""Files and directories that only we may read: made 0600/0700, verified on the descriptor, replaced whole or not at all.

What always holds: no symbolic link is followed (one in a parent only if root made it), the owner is us, group and others have no bit, and nobody
but us or root can exchange a parent under our feet (writable by others only where the sticky bit stands). Stricter modes (0400, 0500) are fine.
Every check looks at the descriptor that is used afterwards, so that there is no gap between looking and using.

All errors are `ConfigError`s that name the file and the command that mends it. Nothing here changes the mode or owner of what exists.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cliproxy.errors import ConfigError

MAX_SYMLINKS_IN_PATH = 8  # links that root made, on the way to a file of ours; Linux itself gives up at 40

_SEARCH = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


@contextmanager
def safe_parent(path: Path) -> Iterator[tuple[int, str]]:
    """Give the descriptor of `path`'s directory (for `dir_fd=`) and the last name; each directory from `/` down was verified.

    Raises `ConfigError` when one is missing, is a link that root did not make, belongs to someone else, or is writable by others without the sticky bit.
    """
    absolute = Path(os.path.normpath(path.absolute()))
    if not absolute.name:
        raise ConfigError("is no file name", cure="name a file below a directory", file=str(path))
    descriptor = _walk(absolute.parent)
    try:
        yield descriptor, absolute.name
    finally:
        os.close(descriptor)


def _walk(directory: Path) -> int:
    """Return a verified descriptor of `directory`; the caller closes it."""
    todo = list(reversed(directory.parts[1:]))
    reached = Path("/")
    links = 0
    descriptor = os.open("/", _SEARCH)
    try:
        _verify_parent(descriptor, reached)
        while todo:
            name = todo.pop()
            try:
                status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                if stat.S_ISLNK(status.st_mode):
                    links += 1
                    if status.st_uid != 0 or links > MAX_SYMLINKS_IN_PATH:
                        raise ConfigError("is a symbolic link", cure="use the path that it points to", file=str(reached / name))
                    target = Path(os.path.normpath(reached / os.readlink(name, dir_fd=descriptor)))
                    todo.extend(reversed(target.parts[1:]))
                    reached, following = Path("/"), os.open("/", _SEARCH)
                else:
                    reached, following = reached / name, os.open(name, _SEARCH, dir_fd=descriptor)
            except OSError as error:
                raise _unusable(reached / name, error) from error
            os.close(descriptor)
            descriptor = following
            _verify_parent(descriptor, reached)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _verify_parent(descriptor: int, path: Path) -> None:
    status = os.fstat(descriptor)
    if status.st_uid not in (0, os.geteuid()):
        raise ConfigError(f"belongs to uid {status.st_uid}, who could exchange what is in it", cure=f"chown {os.geteuid()} {path}", file=str(path))
    if status.st_mode & _WRITABLE_BY_OTHERS and not status.st_mode & stat.S_ISVTX:
        raise ConfigError(f"others may write here (mode {stat.S_IMODE(status.st_mode):04o})", cure=f"chmod go-w {path}", file=str(path))


def _unusable(path: Path, error: OSError) -> ConfigError:
    cure = "create it" if isinstance(error, FileNotFoundError) else "check the path and who may read it"
    return ConfigError(f"cannot be used ({error.strerror})", cure=cure, file=str(path))


def _verify_private(descriptor: int, path: Path, *, directory: bool) -> None:
    status = os.fstat(descriptor)
    mode = stat.S_IMODE(status.st_mode)
    if directory != stat.S_ISDIR(status.st_mode) or not (directory or stat.S_ISREG(status.st_mode)):
        raise ConfigError(f"is no {'directory' if directory else 'plain file'}", cure="move it away", file=str(path))
    if status.st_uid != os.geteuid():
        raise ConfigError(f"belongs to uid {status.st_uid}, not to us (uid {os.geteuid()})", cure=f"chown {os.geteuid()} {path}", file=str(path))
    if mode & _OTHERS:
        wanted = "700" if directory else "600"
        raise ConfigError(f"group or others have access (mode {mode:04o})", cure=f"chmod {wanted} {path}", file=str(path))


def _open_verified(path: Path, flags: int, *, directory: bool) -> int:
    with safe_parent(path) as (parent, name):
        try:
            # O_NONBLOCK: opening a FIFO that someone put here must not wait for its writer.
            descriptor = os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=parent)
        except OSError as error:
            if _is_link(name, parent):
                raise ConfigError("is a symbolic link", cure="put the file itself here", file=str(path)) from error
            raise _unusable(path, error) from error
    try:
        _verify_private(descriptor, path, directory=directory)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _is_link(name: str, parent: int) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
    except OSError:
        return False


def verify_private_directory(path: Path) -> None:
    """Raise `ConfigError` unless `path` is a directory of ours, not a link, without a bit for group or others, below safe parents."""
    os.close(_open_verified(path, os.O_RDONLY | os.O_DIRECTORY, directory=True))


def verify_private_file(path: Path) -> None:
    """Raise `ConfigError` unless `path` is a plain file of ours, not a link, with no bit for group or others, below safe parents."""
    os.close(_open_verified(path, os.O_RDONLY, directory=False))


def create_private_directory(path: Path) -> None:
    """Make `path` with mode 0700, durable. One that exists is verified instead. Its parent must exist and be safe."""
    with safe_parent(path) as (parent, name):
        try:
            os.mkdir(name, 0o700, dir_fd=parent)  # never wider than 0700: the umask only takes bits away
            _sync_directory(parent)
        except FileExistsError:
            pass
        except OSError as error:
            raise _unusable(path, error) from error
    verify_private_directory(path)


def open_private_file(path: Path, *, write: bool) -> int:
    """Return a descriptor of the verified file, for reading, or for reading and writing; the caller closes it."""
    return _open_verified(path, os.O_RDWR if write else os.O_RDONLY, directory=False)


def create_private_file(path: Path) -> int:
    """Make a new, empty file with mode 0600 and return its descriptor (read and write). Raises `ConfigError` if the name is taken."""
    with safe_parent(path) as (parent, name):
        try:
            descriptor = _create(name, parent)
        except FileExistsError as error:
            raise ConfigError("is there already", cure="move it away first", file=str(path)) from error
        except OSError as error:
            raise _unusable(path, error) from error
        _sync_directory(parent)
    return descriptor


def read_private_file(path: Path, *, limit: int) -> bytes:
    """Return the content of the verified file. Raises `ConfigError` when it is longer than `limit` bytes."""
    descriptor = open_private_file(path, write=False)
    with os.fdopen(descriptor, "rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ConfigError(f"is longer than {limit} bytes", cure="check that this is the right file", file=str(path))
    return content


def write_private_file(path: Path, content: bytes, *, replace: bool) -> None:
    """Write `content` so that after a crash the file is the old one or the new one, whole; durable on return.

    Steps: a new file of mode 0600 in the same directory, written, fsync, renamed over `path` (with `replace=False` linked, which fails if the name is
    taken), fsync of the directory. A file that is there must be a private file of ours, or nothing is written.
    """
    with safe_parent(path) as (parent, name):
        try:
            os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            pass
        else:
            if not replace:
                raise ConfigError("is there already", cure="move it away first", file=str(path))
            verify_private_file(path)
        temporary = f".{name}.{secrets.token_hex(8)}"
        try:
            with os.fdopen(_create(temporary, parent), "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if replace:
                os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
            else:
                os.link(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
                os.unlink(temporary, dir_fd=parent)
            _sync_directory(parent)
        except OSError as error:
            _discard(temporary, parent)
            raise _unusable(path, error) from error


def _create(name: str, parent: int) -> int:
    descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=parent)
    os.fchmod(descriptor, 0o600)  # a umask of 0777 would leave it unreadable for us
    return descriptor


def _discard(name: str, parent: int) -> None:
    try:
        os.unlink(name, dir_fd=parent)
    except OSError:
        pass


def _sync_directory(parent: int) -> None:
    # The descriptor of the walk is O_PATH, which fsync refuses; "." of it is the same directory.
    descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=parent)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
