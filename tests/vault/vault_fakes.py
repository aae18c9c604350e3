"""What the store talks to, for tests: an audit log that is a list."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cliproxy.errors import Unavailable
from cliproxy.secret import Secret
from cliproxy.vault.store import Anchored, Store, Write, create_store, open_store

MASTER = Secret(bytes.fromhex("8f3a1c5e7b9d204466e8aacc13579bdf02468ace91b3d5f70f1e2d3c4b5a6978"))


class ListAnchor:
    """Keeps what was announced and done, as the audit log does."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, int, bytes]] = []
        self.because: list[object] = []
        self.fails = False

    def intent(self, epoch: int, root: bytes, because: Sequence[object]) -> None:
        if self.fails:
            raise Unavailable("the audit log is not available")
        self.steps.append(("intent", epoch, root))
        self.because.extend(because)

    def done(self, epoch: int, root: bytes) -> None:
        self.steps.append(("done", epoch, root))

    def anchored(self) -> Anchored:
        """What the log would answer after a restart."""
        done = next(((epoch, root) for step, epoch, root in reversed(self.steps) if step == "done"), (0, b""))
        pending = self.steps[-1][1:] if self.steps and self.steps[-1][0] == "intent" else (0, b"")
        return Anchored(*done, *pending)


def new_vault(path: Path, anchor: ListAnchor, first: Sequence[Write] = ()) -> Store:
    store = create_store(path, MASTER, first)
    store.confirm(anchor.anchored(), anchor)
    return store


def reopen(path: Path, anchor: ListAnchor) -> Store:
    store = open_store(path, MASTER)
    store.confirm(anchor.anchored(), anchor)
    return store


def close(store: Store) -> None:
    """As a clean end of the process would: SQLite moves the WAL into the file."""
    store._connection.close()
