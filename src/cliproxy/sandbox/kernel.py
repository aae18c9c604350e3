"""What the running kernel offers to the lockdown, and which guarantee rests on which part of it. For `cliproxy doctor` and for every start.

Seccomp and Landlock ABI 1 are required: without either, nothing starts. What only newer kernels have is used where it is there, and every guarantee that
leans on it has another leg. Probing changes nothing: each call is made so that the kernel refuses its arguments after it has said whether it knows the call.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from pathlib import Path

import msgspec

from cliproxy.errors import SandboxError
from cliproxy.sandbox.bpf import Verdict
from cliproxy.sandbox.calls import system_call
from cliproxy.sandbox.landlock import landlock_abi
from cliproxy.sandbox.syscalls import this_arch

_SECCOMP_SET_MODE_FILTER, _SECCOMP_GET_ACTION_AVAIL, _SECCOMP_FILTER_FLAG_TSYNC = 1, 2, 1
_UNUSED_DESCRIPTOR = 0xFFFF_FFFF
_WHOLE_UID_RANGE = ["0", "0", "4294967295"]


class KernelReport(msgspec.Struct, frozen=True):
    """What `probe_kernel` found. `seccomp_actions` is empty without seccomp; `landlock_abi` 0 without Landlock; `yama` is its ptrace scope, `None` without it.

    `io_uring` is "present", "disabled" (by sysctl) or "absent": the lockdown takes it away in any case. `container` names the sign, `None` outside.
    """

    release: str
    machine: str
    seccomp_actions: frozenset[Verdict]
    tsync: bool
    landlock_abi: int
    close_range: bool
    io_uring: str
    yama: int | None
    container: str | None
    user_namespace: bool

    @property
    def seccomp(self) -> bool:
        """Whether filters work as the lockdown uses them: kill, errno and allow, on every thread at once."""
        return self.tsync and {Verdict.KILL_PROCESS, Verdict.ERRNO, Verdict.ALLOW} <= self.seccomp_actions


class Guarantee(msgspec.Struct, frozen=True):
    """One promise of the processes' table, what it rests on, and whether that is there. `required`: without it nothing starts."""

    process: str
    may_never: str
    rests_on: str
    present: bool
    required: bool


def probe_kernel() -> KernelReport:
    """Return what this kernel offers. Changes nothing. Raises `SandboxError` off Linux or on an unknown machine."""
    if sys.platform != "linux":
        raise SandboxError(f"no sandbox on {sys.platform}", cure="run on Linux, or set sandbox.mode: off")
    this_arch()
    system = os.uname()
    return KernelReport(
        release=system.release,
        machine=system.machine,
        seccomp_actions=frozenset(verdict for verdict in Verdict if _has_action(verdict)),
        tsync=_refusal("seccomp", _SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC, 0) == errno.EFAULT,
        landlock_abi=landlock_abi(),
        close_range=_refusal("close_range", _UNUSED_DESCRIPTOR, _UNUSED_DESCRIPTOR, 0) == 0,
        io_uring={errno.ENOSYS: "absent", errno.EPERM: "disabled"}.get(_refusal("io_uring_setup", 0, 0), "present"),
        yama=_number_in("/proc/sys/kernel/yama/ptrace_scope"),
        container=_container(),
        user_namespace=_words_in("/proc/self/uid_map") not in ([], _WHOLE_UID_RANGE),
    )


def require_kernel() -> KernelReport:
    """Return the report of a kernel that can lock processes down. Raises `SandboxError`, one line with the cure, when it cannot."""
    report = probe_kernel()
    verify_sufficient(report)
    return report


def verify_sufficient(report: KernelReport) -> None:
    """Raise `SandboxError` when `report` lacks something required."""
    where = f"Linux {report.release}"
    inside = f" (in a container: {report.container})" if report.container else ""
    if not report.seccomp:
        raise SandboxError(
            f"{where} offers no seccomp filters{inside}", cure="use a kernel with CONFIG_SECCOMP_FILTER and a container profile that allows seccomp"
        )
    if report.landlock_abi < 1:
        raise SandboxError(
            f"{where} offers no Landlock{inside}",
            cure="use Linux 5.13 or newer, add landlock to the `lsm=` boot option, allow landlock_* in the container profile",
        )
    if not report.close_range:
        raise SandboxError(f"{where} offers no close_range{inside}", cure="allow close_range in the container profile")


def guarantees(report: KernelReport) -> tuple[Guarantee, ...]:
    """Return the table "may never", row by row, with what each row rests on in this kernel."""
    seccomp, abi = report.seccomp, report.landlock_abi
    everyone = "every process but the supervisor"
    return (
        Guarantee(everyone, "run a program or fork", "seccomp kills execve, fork and clone", seccomp, True),
        Guarantee("worker, egress, vault, auditor, admin", "open a file", "seccomp kills open", seccomp, True),
        Guarantee(everyone, "open a file that is not listed (dialer: the resolver's)", "Landlock ABI 1", abi >= 1, True),
        Guarantee("worker, egress, vault, auditor, admin", "make a socket or connect", "seccomp kills socket and connect", seccomp, True),
        Guarantee("worker, egress, vault, auditor, admin", "bind or connect TCP (second leg)", "Landlock ABI 4", abi >= 4, False),
        Guarantee("dialer", "listen on a TCP port", "seccomp refuses listen", seccomp, True),
        Guarantee("dialer", "bind a TCP port (second leg)", "Landlock ABI 4", abi >= 4, False),
        Guarantee(everyone, "reach an abstract socket of another program (second leg)", "Landlock ABI 6", abi >= 6, False),
        Guarantee(everyone, "signal another process", "seccomp refuses kill, pidfd_* and F_SETOWN", seccomp, True),
        Guarantee(everyone, "signal another process (second leg)", "Landlock ABI 6", abi >= 6, False),
        Guarantee(everyone, "trace or read the memory of another process", "seccomp kills ptrace and process_vm_*; Landlock ABI 1", seccomp and abi >= 1, True),
        Guarantee(everyone, "be traced by an equal", "PR_SET_DUMPABLE 0", True, True),
        Guarantee(everyone, "be traced by an equal (second leg)", "Yama ptrace_scope 1 or more", bool(report.yama), False),
        Guarantee(everyone, "make memory executable", "seccomp refuses PROT_EXEC", seccomp, True),
        Guarantee(everyone, "use io_uring past the filter", "seccomp answers ENOSYS", seccomp, True),
        Guarantee(everyone, "gain a right again", "no_new_privs, empty capability sets", True, True),
        Guarantee(everyone, "pass descriptors but on its channels", "seccomp checks the number in sendmsg", seccomp, True),
        Guarantee("auditor", "overwrite or truncate the log", "O_APPEND; seccomp refuses pwrite, ftruncate, fallocate, F_SETFL", seccomp, True),
        Guarantee(everyone, "outlive the supervisor", "PR_SET_PDEATHSIG", True, True),
    )


def _refusal(name: str, *arguments: int) -> int:
    """Return the errno with which the kernel answers, 0 for none."""
    try:
        system_call(name, *arguments)
    except OSError as error:
        return error.errno or 0
    return 0


def _has_action(verdict: Verdict) -> bool:
    action = ctypes.create_string_buffer(struct.pack("=I", verdict), 4)
    return _refusal("seccomp", _SECCOMP_GET_ACTION_AVAIL, 0, ctypes.addressof(action)) == 0


def _words_in(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return []


def _number_in(path: str) -> int | None:
    words = _words_in(path)
    return int(words[0]) if len(words) == 1 and words[0].isdigit() else None


def _container() -> str | None:
    for sign in ("/.dockerenv", "/run/.containerenv", "/run/systemd/container"):
        if Path(sign).exists():
            return sign
    if "container" in os.environ:
        return f"container={os.environ['container']}"  # noqa: SIM112 - systemd and podman write it so
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        return "KUBERNETES_SERVICE_HOST"
    return None
