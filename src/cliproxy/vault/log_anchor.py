"""The audit log as the store's anchor: an intent is durable before its commit, and what is done is told before the next intent.

What always holds: the log never has an intent after an untold commit, so that its last commit or its last intent is always the store's state.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from cliproxy.audit.client import AuditClient
from cliproxy.audit.events import VaultCommit, VaultEvent, VaultIntent
from cliproxy.errors import Unavailable

_AWAY = "the audit log is not available, so nothing was changed; see `cliproxy status`"


class LogAnchor:
    """`Anchor` over the vault's channel to the auditor. `deadline_seconds` is how long an intent may take."""

    def __init__(self, audit: AuditClient, *, deadline_seconds: float) -> None:
        self._audit = audit
        self._deadline = deadline_seconds
        self._untold: list[VaultCommit] = []
        self.open = False  # whether the auditor has the log key and said what it knows of us

    def intent(self, epoch: int, root: bytes, because: Sequence[VaultEvent]) -> None:
        """Return when `because` and the intent are durable in the log. Raises `Unavailable`; they may become so later all the same."""
        if not self.open or not self._audit.healthy(time.monotonic()):
            raise Unavailable(_AWAY, code="audit_unavailable")
        try:
            self._audit.wait_durable([*self._untold, *because, VaultIntent(epoch=epoch, root=root.hex())], self._deadline)
        except Unavailable as error:
            raise Unavailable(_AWAY, code="audit_unavailable") from error
        self._untold.clear()

    def done(self, epoch: int, root: bytes) -> None:
        """Tell the log of the commit, now or before the next intent."""
        self._untold.append(VaultCommit(epoch=epoch, root=root.hex()))
        self.settle()

    def settle(self) -> None:
        """Tell the log what it did not take before."""
        if self._untold and self.open and self._audit.offer(self._untold):
            self._untold.clear()
