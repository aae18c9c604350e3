"""Telling the service manager (sd_notify(3)); silent where there is none."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping


class ServiceManager:
    """The receiver of our notifications. Never waits, never raises: a manager that does not read is not our trouble."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        path = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path
        interval = environment.get("WATCHDOG_USEC", "")
        ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        # Half the interval, as sd_watchdog_enabled(3) advises. 0: no watchdog.
        self.watchdog_seconds = int(interval) / 2_000_000 if path and interval.isdecimal() and ours else 0.0

    def tell(self, state: str) -> None:
        """Send `state`, lines of VARIABLE=value."""
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)
                sock.sendto(state.encode(), self._address)
        except OSError:
            pass
