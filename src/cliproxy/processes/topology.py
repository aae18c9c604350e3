"""Who talks to whom: the one table of roles, descriptor numbers and edges.

Each channel and file of a role has a fixed descriptor number, which is its name everywhere (`REPLACE`'s argument too), so that the filters of the
sandbox can name descriptors. An edge is a socketpair that the supervisor makes between two of them. What is not in `EDGES` has no channel:
there is no worker-vault and no worker-admin.

Such a number is never free: the child library puts /dev/null on those that were not given (`descriptors.vacate`), because a descriptor received
over a channel takes the lowest free number and must not land where the next `REPLACE` will strike.
"""

from __future__ import annotations

import socket
from typing import Final

import msgspec

from cliproxy.bounds import MAX_LISTENERS, WORKER_NUMBERS
from cliproxy.ipc.control import Down

SUPERVISOR: Final = "supervisor"
WORKER: Final = "worker"
EGRESS: Final = "egress"
DIALER: Final = "dialer"
VAULT: Final = "vault"
AUDITOR: Final = "auditor"
ADMIN: Final = "admin"

# In this order they are started; its index is added to `sandbox.uid_base` when started as root. The order is part of the on-disk state (file
# owners): append, never reorder.
ROLES: Final = (AUDITOR, VAULT, DIALER, EGRESS, WORKER, ADMIN)
SERVING_ROLES: Final = frozenset(ROLES)
COMMAND_ROLES: Final = frozenset({AUDITOR, VAULT, ADMIN})  # a command without a running gateway

# What the supervisor may order a role. A worker takes no new settings: it is replaced by one that was started with them.
_EVERYBODY: Final = frozenset({Down.REPLACE, Down.DRAIN, Down.STOP})
RECONFIGURED: Final = frozenset({Down.PREPARE, Down.COMMIT, Down.ABANDON})
ORDERS: Final[dict[str, frozenset[Down]]] = {
    WORKER: _EVERYBODY,
    EGRESS: _EVERYBODY | RECONFIGURED,
    DIALER: _EVERYBODY | RECONFIGURED,
    VAULT: _EVERYBODY | RECONFIGURED,
    AUDITOR: _EVERYBODY | RECONFIGURED | {Down.SEGMENT},
    ADMIN: _EVERYBODY | RECONFIGURED | {Down.RELOADED, Down.REOPENED},
}

# Seconds without a sign of life after which a process that serves counts as hung, is killed and replaced. Its start is the longest step that a process takes, a
# second or two, and has 30 s (`START_SECONDS`), which is enough on a busy machine of one core. Vault and auditor wait for disks; Linux itself gives one 30 s.
HUNG_SECONDS: Final = {WORKER: 20.0, EGRESS: 20.0, DIALER: 20.0, ADMIN: 20.0, VAULT: 60.0, AUDITOR: 60.0}

NULL_FD: Final = 0  # stdin, /dev/null: what `vacate` puts on an empty number
STDOUT_FD: Final = 1  # as stderr: the write end of the pipe on which a child speaks (`processes.relay`)
STDERR_FD: Final = 2
CONTROL_FD: Final = 3
BOOT_FD: Final = 4
AUDIT_FD: Final = 5

# Old generations drain while the new one serves, so egress and auditor have room for all of them.
FIRST_WORKER_FD: Final = 16
FIRST_FREE_FD: Final = FIRST_WORKER_FD + WORKER_NUMBERS  # `descriptors.take` moves a channel to here or above


class WorkerDescriptors:
    """Descriptors of a worker. `LISTEN_FDS`: those that are sockets are listening ones, in the order of `server.listen`."""

    AUDIT_FD: Final = AUDIT_FD
    EGRESS_FD: Final = 6  # SOCK_STREAM, ipc.mux
    LIMITS_FD: Final = 7  # memfd of limits.shared: the address buckets that all workers share
    LISTEN_FDS: Final = tuple(range(8, 8 + MAX_LISTENERS))


class EgressDescriptors:
    """Descriptors of egress. `WORKER_FDS[n]` is the worker with index n."""

    AUDIT_FD: Final = AUDIT_FD
    VAULT_FD: Final = 6
    DIALER_FD: Final = 7  # carries descriptors: connected sockets
    WORKER_FDS: Final = tuple(range(FIRST_WORKER_FD, FIRST_WORKER_FD + WORKER_NUMBERS))  # SOCK_STREAM, ipc.mux


class DialerDescriptors:
    """Descriptors of the dialer."""

    AUDIT_FD: Final = AUDIT_FD
    EGRESS_FD: Final = 6  # carries descriptors: connected sockets


class VaultDescriptors:
    """Descriptors of the vault. The log-signing key goes to the auditor over `AUDIT_FD`, again after each REPLACE of it."""

    AUDIT_FD: Final = AUDIT_FD
    EGRESS_FD: Final = 6
    ADMIN_FD: Final = 7
    MASTER_KEY_FD: Final = 8  # sealed memfd, 32 bytes: read with pread, a restarted vault reads it again


class AuditorDescriptors:
    """Descriptors of the auditor: the far ends of everybody's `AUDIT_FD`, the log, and the edge on which admin asks."""

    VAULT_FD: Final = 6
    EGRESS_FD: Final = 7
    DIALER_FD: Final = 8
    SEGMENT_FD: Final = 9  # O_APPEND: the newest segment of logs/
    CHECKPOINTS_FD: Final = 10  # O_APPEND
    ADMIN_FD: Final = 11  # admin's events
    ADMIN_QUERY_FD: Final = 12  # admin's questions
    SUPERVISOR_FD: Final = 13
    WORKER_FDS: Final = tuple(range(FIRST_WORKER_FD, FIRST_WORKER_FD + WORKER_NUMBERS))


class AdminDescriptors:
    """Descriptors of admin."""

    AUDIT_FD: Final = AUDIT_FD
    VAULT_FD: Final = 6
    AUDITOR_FD: Final = 7
    LISTEN_FD: Final = 8  # run/control.sock, bound and listening


class End(msgspec.Struct, frozen=True):
    """One end of an edge. `workers`: `number` is the first of a range, one for each worker index."""

    role: str
    number: int
    workers: bool = False


class Edge(msgspec.Struct, frozen=True):
    """A socketpair between two descriptor numbers. `carries`: descriptors may be sent over it, so the filter allows sendmsg and recvmsg there."""

    name: str
    a: End
    b: End
    kind: socket.SocketKind = socket.SOCK_SEQPACKET
    carries: bool = False


EDGES: Final = (
    Edge("worker-egress", End(WORKER, WorkerDescriptors.EGRESS_FD), End(EGRESS, FIRST_WORKER_FD, workers=True), kind=socket.SOCK_STREAM),
    Edge("egress-dialer", End(EGRESS, EgressDescriptors.DIALER_FD), End(DIALER, DialerDescriptors.EGRESS_FD), carries=True),
    Edge("egress-vault", End(EGRESS, EgressDescriptors.VAULT_FD), End(VAULT, VaultDescriptors.EGRESS_FD)),
    Edge("admin-vault", End(ADMIN, AdminDescriptors.VAULT_FD), End(VAULT, VaultDescriptors.ADMIN_FD)),
    Edge("admin-auditor", End(ADMIN, AdminDescriptors.AUDITOR_FD), End(AUDITOR, AuditorDescriptors.ADMIN_QUERY_FD)),
    Edge("worker-audit", End(WORKER, AUDIT_FD), End(AUDITOR, FIRST_WORKER_FD, workers=True)),
    Edge("egress-audit", End(EGRESS, AUDIT_FD), End(AUDITOR, AuditorDescriptors.EGRESS_FD)),
    Edge("dialer-audit", End(DIALER, AUDIT_FD), End(AUDITOR, AuditorDescriptors.DIALER_FD)),
    Edge("vault-audit", End(VAULT, AUDIT_FD), End(AUDITOR, AuditorDescriptors.VAULT_FD)),
    Edge("admin-audit", End(ADMIN, AUDIT_FD), End(AUDITOR, AuditorDescriptors.ADMIN_FD)),
    Edge("supervisor-audit", End(SUPERVISOR, AUDIT_FD), End(AUDITOR, AuditorDescriptors.SUPERVISOR_FD)),
)

# Descriptors that are no channel: files, listening sockets, memfds.
FILES: Final[dict[str, tuple[int, ...]]] = {
    WORKER: (WorkerDescriptors.LIMITS_FD, *WorkerDescriptors.LISTEN_FDS),
    EGRESS: (),
    DIALER: (),
    VAULT: (VaultDescriptors.MASTER_KEY_FD,),
    AUDITOR: (AuditorDescriptors.SEGMENT_FD, AuditorDescriptors.CHECKPOINTS_FD),
    ADMIN: (AdminDescriptors.LISTEN_FD,),
}


def _channels(role: str) -> dict[int, Edge]:
    channels: dict[int, Edge] = {}
    for edge in EDGES:
        for end in (edge.a, edge.b):
            if end.role == role:
                channels.update(dict.fromkeys(range(end.number, end.number + (WORKER_NUMBERS if end.workers else 1)), edge))
    return channels


CHANNELS: Final[dict[str, dict[int, Edge]]] = {role: _channels(role) for role in (*ROLES, SUPERVISOR)}


def all_descriptors(role: str) -> frozenset[int]:
    """Return every number that `role` may be handed beyond stdin, stdout, stderr."""
    return frozenset({CONTROL_FD, BOOT_FD, *CHANNELS[role], *FILES[role]})


def ancillary(role: str) -> frozenset[int]:
    """Return the descriptors of `role` over which descriptors may travel: the control channel and the edges that carry."""
    return frozenset({CONTROL_FD, *(number for number, edge in CHANNELS[role].items() if edge.carries)})


def listening(role: str) -> frozenset[int]:
    """Return the numbers of `role` on which listening sockets lie: their one open file description is everybody's who accepts on them."""
    return {WORKER: frozenset(WorkerDescriptors.LISTEN_FDS), ADMIN: frozenset({AdminDescriptors.LISTEN_FD})}.get(role, frozenset())


def replaceable(role: str) -> frozenset[int]:
    """Return the numbers that `dup2` may target after the lockdown: the channels and, in the auditor, the log segment."""
    return frozenset({*CHANNELS[role], *((AuditorDescriptors.SEGMENT_FD,) if role == AUDITOR else ())})


def uid_offset(role: str) -> int:
    """Return what is added to `sandbox.uid_base` for `role` when the gateway was started as root."""
    return ROLES.index(role)
