"""The supervisor's files in `CLIPROXY_HOME`: the lock, the control socket, the log segments that only grow.

Everything is opened relative to a descriptor of its directory, which must be ours alone. Nothing is created before `lock` succeeded.
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from pathlib import Path
from typing import Final

from cliproxy.audit.files import CHECKPOINTS, segment_name, segment_numbers
from cliproxy.errors import AuditError, ConfigError
from cliproxy.processes.spawn import lift

CONTROL_BACKLOG = 16

CONTROL_SOCKET: Final = "control.sock"
_LOCK: Final = "lock"
_MAX_PID_BYTES: Final = 16


class Workspace:
    """The directories `run` and `logs` of a home, and what the supervisor keeps there. One supervisor per home."""

    def __init__(self, home: str) -> None:
        self._home = Path(home)
        self._lock = -1
        self._run = -1
        self._logs = -1

    def verify_free(self) -> None:
        """Raise `ConfigError` when another supervisor holds the lock. Creates nothing."""
        try:
            descriptor = os.open(self._home / "run" / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return  # not there: `lock` makes it; otherwise wrong: `lock` says how
        try:
            self._take_lock(descriptor)
        finally:
            os.close(descriptor)

    def lock(self) -> None:
        """Become the one supervisor of this home until this process ends. Raises `ConfigError`."""
        self._run = self._directory("run")
        self._logs = self._directory("logs")
        self._lock = lift(self._open(self._run, _LOCK, os.O_RDWR | os.O_CREAT))
        self._take_lock(self._lock)
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def open_control_socket(self) -> int:
        """Return the listening control socket `run/control.sock`, mode 0600, whatever the length of the home's path."""
        self.remove_control_socket()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)
        try:
            sock.bind(f"/proc/self/fd/{self._run}/{CONTROL_SOCKET}")
        except OSError as error:
            sock.close()
            raise ConfigError(f"{self._home / 'run' / CONTROL_SOCKET}: {error.strerror}", cure="put CLIPROXY_HOME on a local file system") from error
        finally:
            os.umask(before)
        sock.listen(CONTROL_BACKLOG)
        sock.setblocking(False)
        return lift(sock.detach())

    def remove_control_socket(self) -> None:
        """Remove the name of the control socket, if it is there."""
        try:
            os.unlink(CONTROL_SOCKET, dir_fd=self._run)
        except FileNotFoundError:
            pass

    def open_newest_segment(self) -> tuple[int, int]:
        """Return index and descriptor (append only) of the newest log segment; the first is created when there is none."""
        try:
            numbers = segment_numbers(self._home / "logs")
        except AuditError as error:
            raise ConfigError(str(error), cure="give the directory to the user who runs cliproxy, mode 0700") from error
        if not numbers:
            return 1, self.create_segment(1)
        return numbers[-1], lift(self._open(self._logs, segment_name(numbers[-1]), os.O_WRONLY | os.O_APPEND))

    def create_segment(self, index: int) -> int:
        """Create log segment `index` and return its descriptor, append only. Raises `ConfigError`, also when it exists."""
        segment = lift(self._open(self._logs, segment_name(index), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL))
        os.fsync(self._logs)
        return segment

    def open_checkpoints(self) -> int:
        """Return the descriptor (append only) of the checkpoints file, created when there is none."""
        checkpoints = lift(self._open(self._logs, CHECKPOINTS, os.O_WRONLY | os.O_APPEND | os.O_CREAT))
        os.fsync(self._logs)
        return checkpoints

    def _take_lock(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, _MAX_PID_BYTES, 0).strip()
            pid = holder.decode() if holder.isdigit() else "unknown"
            raise ConfigError(f"{self._home}: a cliproxy (pid {pid}) runs there", cure="stop it first, or set another CLIPROXY_HOME") from error

    def _directory(self, name: str) -> int:
        path = self._home / name
        try:
            path.mkdir(mode=0o700, exist_ok=True)
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}", cure="run `cliproxy init`, or set CLIPROXY_HOME") from error
        _verify_private(descriptor, path)
        return lift(descriptor)

    def _open(self, directory: int, name: str, flags: int) -> int:
        path = self._home / ("run" if directory == self._run else "logs") / name
        try:
            descriptor = os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600, dir_fd=directory)
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}", cure="give the file to the user who runs cliproxy, mode 0600") from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise ConfigError(f"{path}: not a regular file", cure="move it away")
        _verify_private(descriptor, path)
        os.set_blocking(descriptor, True)
        return descriptor


def _verify_private(descriptor: int, path: Path) -> None:
    status = os.fstat(descriptor)
    if status.st_uid != os.geteuid():
        os.close(descriptor)
        raise ConfigError(f"{path}: belongs to uid {status.st_uid}", cure=f"chown it to uid {os.geteuid()}, or run cliproxy as that user")
    if status.st_mode & 0o077:
        os.close(descriptor)
        raise ConfigError(f"{path}: others may read or write it", cure=f"chmod go= {path}")
