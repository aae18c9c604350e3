"""`fdatasync` in a thread of its own, so that the auditor goes on receiving meanwhile. One request at a time; both sides wait on eventfds."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

from cliproxy.errors import AuditError


class Syncer:
    """Made before the lockdown (it opens its eventfds), started after it (a filter does not reach threads that exist already)."""

    def __init__(self) -> None:
        self._requested = os.eventfd(0, os.EFD_CLOEXEC)
        self._done = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._descriptors: Sequence[int] = ()
        self._error: OSError | None = None
        self.busy = False

    def start(self) -> None:
        """Start the thread; it ends with the process."""
        threading.Thread(target=self._run, name="sync", daemon=True).start()

    def fileno(self) -> int:
        """The descriptor that is readable when a request is done."""
        return self._done

    def request(self, descriptors: Sequence[int]) -> None:
        """Make what was written to `descriptors` durable."""
        self.busy = True
        self._descriptors = descriptors
        os.eventfd_write(self._requested, 1)

    def collect(self) -> bool:
        """Whether the request is done. Raises `AuditError` when it failed: what the kernel then holds of the data is not known, so nothing is retried."""
        try:
            os.eventfd_read(self._done)
        except BlockingIOError:
            return False
        self.busy = False
        if self._error is not None:
            raise AuditError(f"the log cannot be made durable: {self._error.strerror}") from self._error
        return True

    def _run(self) -> None:
        while True:
            os.eventfd_read(self._requested)
            try:
                for descriptor in self._descriptors:
                    os.fdatasync(descriptor)
            except OSError as error:
                self._error = error
            os.eventfd_write(self._done, 1)
