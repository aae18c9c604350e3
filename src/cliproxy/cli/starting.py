"""From a home to a supervisor: the configuration read by a throw-away process, the master key into a sealed memory file, the plan.

The process that does this holds the master key for a moment; the supervisor never runs in its image (`processes.plan`).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from cliproxy.bounds import LOADER_SECONDS, MAX_BOOT_BYTES, MAX_LOADER_LINE_BYTES, MAX_MASTER_KEY_FILE_BYTES
from cliproxy.cli.home import Home
from cliproxy.errors import EXIT_CONFIG, ConfigError
from cliproxy.integrity.self_check import verify_start_files
from cliproxy.processes.loader_protocol import KEY_FD, RESULT_FD, UNSAFE_NO_SANDBOX, WITH_KEY
from cliproxy.processes.plan import Plan
from cliproxy.processes.relay import Relay
from cliproxy.processes.spawn import lift, program, spawn
from cliproxy.secret import Secret


class StatedConfigError(ConfigError):
    """A `ConfigError` whose whole line was made in another process."""

    def __init__(self, line: str) -> None:
        super().__init__(line, cure="")
        self._whole = line

    def __str__(self) -> str:
        return self._whole


def load_configuration(config_file: Path, *, unsafe_no_sandbox: bool) -> tuple[bytes, Secret | None]:
    """Return the encoded settings and the master key that stands in the file, if one does. Warnings go to stderr. Raises `ConfigError`."""
    result, key = lift(os.memfd_create("settings", os.MFD_CLOEXEC)), lift(os.memfd_create("key", os.MFD_CLOEXEC))
    try:
        command = [*program("config_loader"), str(config_file), WITH_KEY, *([UNSAFE_NO_SANDBOX] if unsafe_no_sandbox else [])]
        code, late = _run_loader(command, {RESULT_FD: result, KEY_FD: key})
        if code == EXIT_CONFIG:
            raise StatedConfigError(os.pread(result, MAX_LOADER_LINE_BYTES, 0).decode("utf-8", "replace"))
        if late:
            raise ConfigError(f"to read it takes longer than {LOADER_SECONDS:g} s", cure="give it fewer models and providers", file=str(config_file))
        if code:
            raise ConfigError(f"the configuration loader ended with {code}", cure="run `cliproxy check`", file=str(config_file))
        inline = os.pread(key, MAX_MASTER_KEY_FILE_BYTES, 0)
        return os.pread(result, MAX_BOOT_BYTES + 1, 0), Secret(inline) if inline else None
    finally:
        os.close(result)
        os.close(key)


def _run_loader(command: Sequence[str], descriptors: Mapping[int, int]) -> tuple[int, bool]:
    """Run the loader and pass on what it says. Return its exit code, and whether it was killed because `LOADER_SECONDS` were over."""
    import select

    poll = select.poll()
    relay = Relay(poll, _say)
    output = relay.open("", time.monotonic())
    try:
        pid = spawn(command, descriptors=descriptors, output=output)
    finally:
        os.close(output)
    ended = os.pidfd_open(pid)
    poll.register(ended, select.POLLIN)
    until = time.monotonic() + LOADER_SECONDS
    late = True
    while late and (now := time.monotonic()) < until:
        for number, _ in poll.poll(int((min(until, relay.next_time()) - now) * 1000) + 1):
            if number == ended:
                late = False
            else:
                relay.heard(number, now)
        relay.tick(now)
    os.close(ended)
    if late:
        os.kill(pid, 9)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    relay.close("")
    return code, late


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def make_plan(
    home: Home,
    config_file: Path,
    *,
    serving: bool,
    unsafe_no_sandbox: bool = False,
    announce: bool = True,
    ready_fd: int = -1,
    starter_fd: int = -1,
    may_create: bool = False,
    accept_rollback: bool = False,
) -> Plan:
    """Return the plan of a run. The master key's memory file is open in this process until it ends or becomes the supervisor. Raises `ConfigError`.

    Before anything is started or read, what would run in each process of ours is checked (`integrity.self_check`).
    """
    from cliproxy.vault.master_key import ENVIRONMENT_VARIABLE, into_memfd, load_master_key

    verify_start_files()
    settings, inline = load_configuration(config_file, unsafe_no_sandbox=unsafe_no_sandbox)
    key = load_master_key(path=home.master_key_file, environment=os.environ, inline=inline)
    os.environ.pop(ENVIRONMENT_VARIABLE, None)
    master_key_fd = into_memfd(key)
    key.wipe()
    if inline is not None:
        inline.wipe()
    return Plan(
        home=str(home.path),
        settings=settings,
        serving=serving,
        master_key_fd=master_key_fd,
        operator_uid=os.getuid(),
        config_file=str(config_file),
        allow_no_sandbox=unsafe_no_sandbox,
        ready_fd=ready_fd,
        starter_fd=starter_fd,
        announce=announce,
        may_create=may_create,
        accept_rollback=accept_rollback,
    )
