"""Starting a process with exactly the descriptors it is to have, at fixed numbers, and next to no environment.

fork and exec, never fork alone: a forked child would have its parent's secrets, address layout and hash seed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from cliproxy import __version__
from cliproxy.processes.topology import FIRST_FREE_FD, NULL_FD, STDERR_FD, STDOUT_FD

# Sources lie above every number of the topology, so that no dup2 of the spawn overwrites the source of a later one.
FIRST_SOURCE_FD: Final = 400
assert FIRST_SOURCE_FD > FIRST_FREE_FD

# Locale for messages, TZ for nothing but tzdata, the CA path because TLS needs it where the system has an unusual one.
_KEPT_VARIABLES: Final = ("LANG", "LC_ALL", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR")

# Blocked from the first instruction on; the child ignores them for good (`processes.child`).
_BLOCKED_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def scrubbed_environment() -> dict[str, str]:
    """Return the environment of our processes: the few variables that are kept, where they are set."""
    return {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}


def program(module: str) -> list[str]:
    """Return the command that runs `cliproxy.processes.<module>`: isolated (-I: no PYTHON* variables, no user site) and writing no bytecode."""
    return [sys.executable, "-I", "-B", "-m", f"cliproxy.processes.{module}"]


def lift(descriptor: int) -> int:
    """Move `descriptor` above every number of the topology, close-on-exec, and return its new number."""
    lifted = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, FIRST_SOURCE_FD)
    os.close(descriptor)
    return lifted


def spawn(command: Sequence[str], *, descriptors: Mapping[int, int], output: int) -> int:
    """Start `command` and return its pid. `descriptors`: number in the child to number here (lifted). stdin is /dev/null,
    stdout and stderr are `output`: a pipe of its own (`processes.relay`), never the terminal.

    The caller keeps its descriptors. Raises `OSError`.
    """
    actions: list[tuple[int, int, int] | tuple[int, int, str, int, int]] = [
        (os.POSIX_SPAWN_OPEN, NULL_FD, os.devnull, os.O_RDWR, 0),
        (os.POSIX_SPAWN_DUP2, output, STDOUT_FD),
        (os.POSIX_SPAWN_DUP2, output, STDERR_FD),
    ]
    for number, source in descriptors.items():
        if source < FIRST_SOURCE_FD:
            raise ValueError(f"descriptor {source} lies among the numbers of the topology")
        actions.append((os.POSIX_SPAWN_DUP2, source, number))
    return os.posix_spawn(command[0], list(command), scrubbed_environment(), file_actions=actions, setsigmask=_BLOCKED_SIGNALS)


def keep_descriptors_here() -> None:
    """Mark everything that this process inherited close-on-exec: what a child gets is what `spawn` lists."""
    for entry in os.listdir("/proc/self/fd"):  # noqa: PTH208 - names only, as numbers
        try:
            if int(entry) > STDERR_FD:
                os.set_inheritable(int(entry), False)
        except OSError:
            continue  # the listing's own descriptor


def build_id() -> str:
    """Return what tells this build from another: the version and a digest of the package's sources."""
    package = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(package)}\0{len(content)}\0".encode())
        digest.update(content)
    return f"{__version__}+{digest.hexdigest()[:16]}"
