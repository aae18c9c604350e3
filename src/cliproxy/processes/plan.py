"""What whoever starts the gateway hands the supervisor, and how: a sealed memfd and a fresh program image.

The starter has parsed the configuration and perhaps held the master key. The supervisor shall hold nothing secret, so it never runs in the
starter's image: `become_supervisor` replaces it (same pid, as a service manager wants), `spawn_supervisor` starts one beside it.
"""

from __future__ import annotations

import os
import sys
from typing import Final, NoReturn

import msgspec

from cliproxy.errors import ChannelError
from cliproxy.processes.boot import is_sealed, read_sealed, seal
from cliproxy.processes.spawn import program, scrubbed_environment

# What a service manager tells its service (sd_notify(3), sd_listen_fds(3)); for the supervisor alone.
_SERVICE_VARIABLES: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID")


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A run of the supervisor.

    `settings`: `config.schema.encode_settings`. `master_key_fd`: a sealed memfd with the 32 bytes. `config_file`: what a reload reads.
    `serving=False`: supervisor, vault, auditor and admin only, for a command without a running gateway.
    `ready_fd`: gets one line of JSON when everything is ready, then is closed; `starter_fd`: the read end of a pipe whose closing stops the
    run. -1: none. `announce`: print the readiness line on stdout. `may_create`: make a vault where there is none, which is `init`'s alone.
    `accept_rollback`: start, once, although the log is older than what vault or pin have seen of it; the log tells of it.
    """

    home: str
    settings: bytes
    serving: bool
    master_key_fd: int
    operator_uid: int
    config_file: str
    allow_no_sandbox: bool = False
    ready_fd: int = -1
    starter_fd: int = -1
    announce: bool = True
    may_create: bool = False
    accept_rollback: bool = False


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Plan)


def read_plan(descriptor: int) -> Plan:
    """Return the plan in a sealed memfd; raises `ChannelError` on anything else."""
    if not is_sealed(descriptor):
        raise ChannelError("the plan is not sealed")
    try:
        return _decoder.decode(read_sealed(descriptor))
    except (msgspec.DecodeError, ValueError) as error:
        raise ChannelError("the plan is not one of this build") from error


def become_supervisor(plan: Plan) -> NoReturn:
    """Replace this program by the supervisor. Returns only by raising `OSError`."""
    arguments, environment = _prepare(plan)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(arguments[0], arguments, environment)  # noqa: S606 - our own interpreter and module


def spawn_supervisor(plan: Plan) -> int:
    """Start the supervisor as a child of this process and return its pid. The caller closes its own copies of the plan's descriptors."""
    arguments, environment = _prepare(plan)
    memfd = int(arguments[-1])
    try:
        return os.posix_spawn(arguments[0], arguments, environment)
    finally:
        os.close(memfd)
        for descriptor in _descriptors(plan):
            os.set_inheritable(descriptor, False)


def _descriptors(plan: Plan) -> list[int]:
    return [number for number in (plan.master_key_fd, plan.ready_fd, plan.starter_fd) if number >= 0]


def _prepare(plan: Plan) -> tuple[list[str], dict[str, str]]:
    memfd = seal(_encoder.encode(plan), name="cliproxy-plan")
    for descriptor in (memfd, *_descriptors(plan)):
        os.set_inheritable(descriptor, True)
    environment = scrubbed_environment() | {name: os.environ[name] for name in _SERVICE_VARIABLES if name in os.environ}
    return [*program("supervisor"), str(memfd)], environment
