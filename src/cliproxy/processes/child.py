"""How every child process begins and ends.

    1. signals of the service manager ignored: only the supervisor stops a child
    2. boot record read from its sealed memfd; the role must be the module's own, the build this one
    3. descriptors that were not handed over are closed, empty numbers occupied
    4. `prepare(boot)`: every module imported, database and files opened
    5. no descriptor is a terminal or another device: what it fell into could read what is typed there
    6. the lockdown of the role (`sandbox.lockdown`), after which an import raises
    7. `body(boot, prepared, control)`

A child never returns from here and never runs interpreter shutdown: it leaves with `os._exit` (uvloop would call `socketpair`, and a locked
process would die of it). When the control channel closes, it leaves. An unexpected error is told by type and place only: its text could
hold a secret.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

from cliproxy.errors import ChannelError
from cliproxy.ipc.channel import ChannelClosed
from cliproxy.ipc.control import Control as _Control
from cliproxy.ipc.control import Down, Order, Up
from cliproxy.processes import topology
from cliproxy.processes.boot import Boot, decode_boot, is_sealed, read_sealed
from cliproxy.processes.descriptors import is_open, vacate, verify_no_device
from cliproxy.processes.lines import EXIT_OTHER_BUILD, EXIT_SOFTWARE, describe, exit_code, say
from cliproxy.processes.spawn import build_id
from cliproxy.processes.topology import BOOT_FD, CONTROL_FD, NULL_FD, STDERR_FD, STDOUT_FD
from cliproxy.sandbox import lockdown
from cliproxy.sandbox.roles import PROFILES

__all__ = ["EXIT_SOFTWARE", "Boot", "Control", "Down", "Order", "Up", "end", "main", "read_boot", "run_locked", "say"]

P = TypeVar("P")


class Control(_Control):
    """The child's end of the control channel. A `REPLACE` is on its number before the body sees it."""

    def __init__(self, sock: socket.socket, *, replaceable: frozenset[int]) -> None:
        super().__init__(sock)
        self._replaceable = replaceable

    def _on_receipt(self, order: Order) -> Order:
        if order.kind is not Down.REPLACE:
            return order
        (received,) = order.descriptors
        try:
            if order.argument not in self._replaceable:
                raise ChannelError(f"descriptor {order.argument} is not replaceable")
            os.dup2(received, order.argument, inheritable=False)
        finally:
            os.close(received)
        return Order(order.kind, order.argument)


def read_boot(role: str) -> Boot:
    """Return the boot record at `BOOT_FD`. Raises `ChannelError` when it is not sealed or meant for another role."""
    if not is_sealed(BOOT_FD):
        raise ChannelError("the boot record is not sealed")
    boot = decode_boot(read_sealed(BOOT_FD))
    if boot.role != role:
        raise ChannelError(f"the boot record is for {boot.role!r}, not {role!r}")
    return boot


def main(role: str, *, prepare: Callable[[Boot], P], body: Callable[[Boot, P, Control], None]) -> NoReturn:
    """Read the boot record and run `role`: what each role module calls as `__main__`."""
    try:
        boot = read_boot(role)
        build = build_id()
    except BaseException as error:  # noqa: BLE001 - the one way out of the process
        say(f"cliproxy: {role}: {describe(error)}")
        os._exit(exit_code(error))
    if build != boot.build:
        say(f"cliproxy: {boot.name}: cliproxy was replaced by build {build} while {boot.build} runs; the gateway drains and stops")
        os._exit(EXIT_OTHER_BUILD)
    run_locked(boot, prepare=prepare, body=body)


def run_locked(boot: Boot, *, prepare: Callable[[Boot], P], body: Callable[[Boot, P, Control], None]) -> NoReturn:
    """Prepare, lock down, run the body, leave. Exit codes: 0 when the body returns or the supervisor is gone, 78 or 70 (`exit_code`) on errors."""
    try:
        _ignore_signals()
        handed = _occupy_numbers(boot.role)
        prepared = prepare(boot)
        verify_no_device(_open_descriptors())
        _lock_down(boot, handed)
        body(boot, prepared, Control(socket.socket(fileno=CONTROL_FD), replaceable=frozenset(topology.CHANNELS[boot.role])))
    except BaseException as error:  # noqa: BLE001 - the one way out of the process
        end(boot.name, error)
    os._exit(0)


def end(name: str, error: BaseException) -> NoReturn:
    """End process `name` for `error`: silently when it is that the supervisor is gone, else with a line and an exit code (`exit_code`)."""
    if isinstance(error, ChannelClosed) and _is_supervisor_gone():
        os._exit(0)
    say(f"cliproxy: {name}: {describe(error)}")
    os._exit(exit_code(error))


def _ignore_signals() -> None:
    # A service manager may send SIGTERM to the whole control group, a terminal SIGINT to the process group: the supervisor drains us instead.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _occupy_numbers(role: str) -> frozenset[int]:
    """Close what has none of our numbers, put the placeholder on the empty ones, and return all numbers that must stay."""
    expected = topology.all_descriptors(role)
    for number in _open_descriptors():
        if number > STDERR_FD and number not in expected:
            os.close(number)
    os.set_inheritable(CONTROL_FD, False)
    for number in sorted({*topology.CHANNELS[role], *topology.listening(role)}):
        if is_open(number):
            os.set_inheritable(number, False)
        else:
            vacate(number)
    return expected | {NULL_FD, STDOUT_FD, STDERR_FD}


def _open_descriptors() -> Sequence[int]:
    with os.scandir("/proc/self/fd") as entries:
        listed = [int(entry.name) for entry in entries]
    return [number for number in listed if is_open(number)]  # the listing's own descriptor is closed by now


def _lock_down(boot: Boot, handed: frozenset[int]) -> None:
    if boot.sandbox:
        # What prepare opened (database, event loop, trust store) stays too: it is the role's own code, and step 3 closed all that was inherited.
        keep = frozenset(_open_descriptors()) | handed
        lockdown.lock_down(
            PROFILES[boot.role],
            keep=keep,
            ancillary=topology.ancillary(boot.role),
            replaceable=topology.replaceable(boot.role),
            listening=topology.listening(boot.role),
            uid=boot.uid,
            gid=boot.gid,
            parent_pid=boot.supervisor_pid,
        )


def _is_supervisor_gone() -> bool:
    """Whether the far end of the control channel is closed."""
    peer = socket.socket(fileno=CONTROL_FD)
    try:
        return peer.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        peer.detach()
