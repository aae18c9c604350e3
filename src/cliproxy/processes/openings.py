"""Everything that the supervisor opens for the others before it starts them, in the order that leaves nothing behind when it fails.

1. the settings are usable here: sandbox mode and what the kernel has for it, number of workers; there is a vault, or it may be made
2. nobody else runs on this home (looked at, nothing created)
3. listening sockets
4. the lock; the log's newest segment and the checkpoints; the control socket; the table of address rates
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from cliproxy.audit.files import has_entries, logs_of
from cliproxy.bounds import MAX_WORKERS
from cliproxy.config.schema import Settings
from cliproxy.errors import ConfigError
from cliproxy.limits import shared
from cliproxy.processes.boot import VAULT_FILE
from cliproxy.processes.listeners import Listeners, inherited_listeners, open_listeners
from cliproxy.processes.plan import Plan
from cliproxy.processes.spawn import lift
from cliproxy.processes.topology import ADMIN, AUDITOR, VAULT, WORKER, AdminDescriptors, AuditorDescriptors, VaultDescriptors, WorkerDescriptors
from cliproxy.processes.workspace import Workspace
from cliproxy.sandbox.kernel import require_kernel


class Openings:
    """The files and sockets of one run. Made once; raises `ConfigError` or `SandboxError` with nothing changed on disk when the start cannot be.

    `listeners` are those of the first generation, `None` when not serving.
    """

    def __init__(self, plan: Plan, settings: Settings, *, environment: Mapping[str, str], say: Callable[[str], None]) -> None:
        _verify_usable(plan, settings, say)
        _verify_made(plan)
        self._workspace = Workspace(plan.home)
        self._master_key = lift(plan.master_key_fd)
        self._workspace.verify_free()
        self.listeners: Listeners | None = None
        if plan.serving:
            self.listeners = inherited_listeners(settings.server, environment) or open_listeners(settings.server, before=None, say=say)
        self._workspace.lock()
        self._segment_index, self._segment = self._workspace.open_newest_segment()
        self._checkpoints = self._workspace.open_checkpoints()
        self._control_socket = self._workspace.open_control_socket()
        self._rates = lift(shared.create())

    def files_of(self, role: str, listeners: Listeners | None) -> dict[int, int]:
        """Return number to descriptor of what `role` gets beyond its channels."""
        if role == WORKER:
            sockets = [] if listeners is None else listeners.sockets.values()
            return {WorkerDescriptors.LIMITS_FD: self._rates, **dict(zip(WorkerDescriptors.LISTEN_FDS, sockets, strict=False))}
        return {
            VAULT: {VaultDescriptors.MASTER_KEY_FD: self._master_key},
            AUDITOR: {AuditorDescriptors.SEGMENT_FD: self._segment, AuditorDescriptors.CHECKPOINTS_FD: self._checkpoints},
            ADMIN: {AdminDescriptors.LISTEN_FD: self._control_socket},
        }.get(role, {})

    def segment(self, index: int) -> int:
        """Return the log segment that the auditor asks for: the next one, created, or the present one again. Raises `ConfigError` otherwise."""
        if index == self._segment_index + 1:
            created = self._workspace.create_segment(index)
            os.close(self._segment)
            self._segment_index, self._segment = index, created
        elif index != self._segment_index:
            raise ConfigError(f"log segment {index} is not the next one", cure="report this")
        return self._segment

    def leave(self) -> None:
        """Take the control socket's name away; the rest ends with the process."""
        self._workspace.remove_control_socket()


def _verify_made(plan: Plan) -> None:
    """Raise `ConfigError` where neither a vault nor a log is and none may be made: an emptied home must not be taken for a new one."""
    path = Path(plan.home) / VAULT_FILE
    if not plan.may_create and not os.path.lexists(path) and not has_entries(logs_of(plan.home)):
        raise ConfigError(
            "there is no vault and no audit log, and only `cliproxy init` makes them",
            cure="put auths/ and logs/ back from the same backup, or, if this home is new, run `cliproxy init`",
            file=str(path),
        )


def _verify_usable(plan: Plan, settings: Settings, say: Callable[[str], None]) -> None:
    if settings.sandbox.mode == "off":
        if sys.platform == "linux" and not plan.allow_no_sandbox:
            raise ConfigError("`off` is refused on Linux", cure="set it to enforce, or start with --unsafe-no-sandbox", key="sandbox.mode")
        say("cliproxy: WARNING: the sandbox is off: a bug in the code that reads clients gives everything away")
    else:
        require_kernel()
    if settings.server.workers > MAX_WORKERS:
        raise ConfigError(f"more than {MAX_WORKERS}", cure="set it to the number of cores or less", key="server.workers")
