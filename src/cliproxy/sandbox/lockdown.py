"""The lockdown: after it this process has its descriptors, its memory and the calls of its profile, and no way back.

`lock_down` is the same for every role, in one order; a step that cannot be taken, or that does not read back as taken, raises `SandboxError` and the caller
must end the process. Nothing here can be undone, so the tests run it in processes of their own.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import struct

from cliproxy.errors import SandboxError
from cliproxy.sandbox.bpf import ALLOW, Policy, Rule, assemble
from cliproxy.sandbox.calls import prctl, system_call
from cliproxy.sandbox.interpreter import close_interpreter
from cliproxy.sandbox.landlock import restrict
from cliproxy.sandbox.roles import ENOSYS, IO_URING_CALLS, Profile, resolver_paths
from cliproxy.sandbox.syscalls import this_arch

# linux/prctl.h
_PR_SET_PDEATHSIG, _PR_GET_PDEATHSIG, _PR_GET_DUMPABLE, _PR_SET_DUMPABLE = 1, 2, 3, 4
_PR_GET_SECCOMP, _PR_CAPBSET_READ, _PR_CAPBSET_DROP, _PR_SET_SECUREBITS = 21, 23, 24, 28
_PR_SET_NO_NEW_PRIVS, _PR_GET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 38, 39, 47, 4
_SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC, _SECCOMP_MODE_FILTER = 1, 1, 2
_CAPABILITY_VERSION_3 = 0x2008_0522
_CAP_SETGID, _CAP_SETPCAP = 6, 8
# NOROOT, KEEP_CAPS_LOCKED, NO_CAP_AMBIENT_RAISE with their locks (linux/securebits.h): uid 0 alone means nothing any more
_SECUREBITS = 0b1110_0011
_SIGKILL = 9
_LAST_DESCRIPTOR = 0xFFFF_FFFF
_STANDARD = (0, 1, 2)
_DOCTOR = "see `cliproxy doctor`"


def refuse_io_uring() -> None:
    """Make io_uring absent for this process (ENOSYS), before uvloop makes its loop: libuv polls through it wherever it exists and aborts when a later
    filter forbids it. Sets no_new_privs. Raises `SandboxError`."""
    _set_no_new_privs()
    _install(Policy({name: Rule((), ENOSYS) for name in IO_URING_CALLS}, known=ALLOW, unknown=ALLOW))
    _verify_refused("io_uring_setup", errno.ENOSYS)


def lock_down(
    profile: Profile,
    *,
    keep: frozenset[int],
    ancillary: frozenset[int],
    replaceable: frozenset[int],
    listening: frozenset[int],
    uid: int,
    gid: int,
    parent_pid: int,
    read_paths: tuple[str, ...] = (),
) -> None:
    """Lock the calling process into `profile`, for good. Raises `SandboxError`, after which the process must end.

    `keep`: the descriptors that stay open; 0, 1 and 2 become /dev/null unless they are among them, since a number left free would be the next connection's.
    `ancillary`: descriptors on which sendmsg and recvmsg are allowed; `replaceable`: numbers that dup2 and dup3 may target;
    `listening`: shared listening sockets, on which nothing is changed and which are never copied. `uid`, `gid`: who to become.
    `read_paths`: more files to read than the profile's. The process must have a single thread (capabilities, no_new_privs and Landlock belong to a thread);
    a role with threads starts them afterwards. Exits when `parent_pid` is no longer its parent.

    1. Nobody else: a single thread.
    2. A session of its own: no terminal, no job control.
    3. Descriptors: all closed but `keep`.
    4. Limits: no core file; no new process.
    5. Identity: no capability in any set, no supplementary group, `uid` and `gid` in all three places.
    6. Not dumpable, so not traceable and /proc/self closed to its equals: after 5, which resets it.
    7. Killed when the supervisor dies: after 5, which resets it. The supervisor may be dead already.
    8. no_new_privs.
    9. Landlock: files, TCP, abstract sockets, signals.
    10. The seccomp filter.
    11. The interpreter: no late import, no source line in a traceback.
    """
    resolver = resolver_paths(profile.read_paths)
    try:
        _verify_single_thread()  # 1
        _start_session()  # 2
        _close_descriptors(keep)  # 3
        _limit(profile)  # 4
        _become(uid, gid)  # 5
        _forbid_dumping()  # 6
        _die_with(parent_pid)  # 7
        _set_no_new_privs()  # 8
        restrict(read_paths=(*resolver, *read_paths), may_connect=profile.may_connect)  # 9
        _verify_files_closed()
        _install(profile.policy(ancillary=ancillary, replaceable=replaceable, listening=listening, process=os.getpid()))  # 10
        _verify_filtered()
        close_interpreter()  # 11
    except OSError as error:  # a call that no kernel of ours refuses: a container's own filter does
        call = f"{error.filename}: " if error.filename else ""
        raise SandboxError(f"the lockdown was refused ({call}{error.strerror})", cure="allow the call in the container profile") from error


def _verify_single_thread() -> None:
    try:
        threads = len(os.listdir("/proc/self/task"))  # noqa: PTH208
    except OSError as error:
        raise SandboxError("/proc/self/task cannot be read", cure="mount /proc") from error
    if threads != 1:
        raise SandboxError(f"the process has {threads} threads at lockdown", cure="start threads after it")


def _start_session() -> None:
    if os.getsid(0) != os.getpid():
        try:
            os.setsid()
        except OSError as error:
            raise SandboxError("no session of its own: the process leads its group", cure="start it without a process group of its own") from error
    if os.getsid(0) != os.getpid():
        raise SandboxError("no session of its own", cure=_DOCTOR)


def _close_descriptors(keep: frozenset[int]) -> None:
    try:
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise SandboxError("/dev/null cannot be opened", cure="give the container a /dev") from error
    for descriptor in _STANDARD:
        if descriptor not in keep and descriptor != null:
            os.dup2(null, descriptor)
    staying = sorted(keep.union(_STANDARD))
    try:
        for below, above in zip(staying, (*staying[1:], _LAST_DESCRIPTOR + 1), strict=True):
            if above - below > 1:
                system_call("close_range", below + 1, above - 1, 0)
    except OSError as error:
        raise SandboxError("close_range does not work", cure="use Linux 5.13 or newer") from error
    listing = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        left = {int(name) for name in os.listdir(listing)} - {listing}  # noqa: PTH208
    finally:
        os.close(listing)
    # listdir(descriptor) reads through a duplicate, which is closed again by now
    strangers = {descriptor for descriptor in left.difference(staying) if _is_open(descriptor)}
    if strangers:
        raise SandboxError(f"descriptors {sorted(strangers)} are still open", cure=_DOCTOR)


def _is_open(descriptor: int) -> bool:
    try:
        os.get_inheritable(descriptor)
    except OSError:
        return False
    return True


def _limit(profile: Profile) -> None:
    limits = [resource.RLIMIT_CORE] if profile.threads else [resource.RLIMIT_CORE, resource.RLIMIT_NPROC]
    for limit in limits:
        resource.setrlimit(limit, (0, 0))
        if resource.getrlimit(limit) != (0, 0):
            raise SandboxError(f"resource limit {limit} did not take", cure=_DOCTOR)


def _become(uid: int, gid: int) -> None:
    """Drop every capability and become `uid` and `gid`. For root in a container whose uid stays, too."""
    changes = os.getresuid() != (uid, uid, uid) or os.getresgid() != (gid, gid, gid)
    effective = _capabilities()[0]
    if effective & (1 << _CAP_SETPCAP):
        prctl(_PR_SET_SECUREBITS, _SECUREBITS)
        for capability in range(64):
            try:
                prctl(_PR_CAPBSET_DROP, capability)
            except OSError:  # EINVAL: past the kernel's last one
                break
    prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    try:
        if changes or effective & (1 << _CAP_SETGID):
            os.setgroups([])
        if changes:
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
    except OSError as error:
        if changes:
            raise SandboxError(f"cannot become uid {uid}, gid {gid} ({error.strerror})", cure="start the gateway as root or as that user") from error
        # a user namespace may forbid setgroups; the groups that the user has anyway are then kept
    _set_no_capabilities()
    if os.getresuid() != (uid, uid, uid) or os.getresgid() != (gid, gid, gid) or (changes and os.getgroups()):
        raise SandboxError(f"did not become uid {uid}, gid {gid}", cure=_DOCTOR)
    if any(_capabilities()):
        raise SandboxError("capabilities are left", cure=_DOCTOR)
    if uid != 0:
        try:
            os.setuid(0)
        except PermissionError:
            return
        raise SandboxError("the way back to root is open", cure=_DOCTOR)


def _capabilities() -> tuple[int, int, int]:
    """Return the effective, permitted and inheritable sets as bit masks."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), 8)
    data = ctypes.create_string_buffer(24)
    system_call("capget", ctypes.addressof(header), ctypes.addressof(data))
    low = struct.unpack("=6I", data.raw)
    return low[0] | low[3] << 32, low[1] | low[4] << 32, low[2] | low[5] << 32


def _set_no_capabilities() -> None:
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), 8)
    data = ctypes.create_string_buffer(24)
    system_call("capset", ctypes.addressof(header), ctypes.addressof(data))


def _forbid_dumping() -> None:
    prctl(_PR_SET_DUMPABLE, 0)
    if prctl(_PR_GET_DUMPABLE) != 0:
        raise SandboxError("the process is still dumpable", cure=_DOCTOR)


def _die_with(parent_pid: int) -> None:
    prctl(_PR_SET_PDEATHSIG, _SIGKILL)
    signal_number = ctypes.c_int(0)
    prctl(_PR_GET_PDEATHSIG, ctypes.addressof(signal_number))
    if signal_number.value != _SIGKILL:
        raise SandboxError("the parent-death signal did not take", cure=_DOCTOR)
    if os.getppid() != parent_pid:
        os._exit(1)  # nobody is left to tell


def _set_no_new_privs() -> None:
    prctl(_PR_SET_NO_NEW_PRIVS, 1)
    if prctl(_PR_GET_NO_NEW_PRIVS) != 1:
        raise SandboxError("no_new_privs did not take", cure=_DOCTOR)


def _verify_files_closed() -> None:
    try:
        os.close(os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except PermissionError:
        return
    raise SandboxError("Landlock is in force but / can be read", cure=_DOCTOR)


def _install(policy: Policy) -> None:
    """Put the filter on every thread. Raises `SandboxError`."""
    program = assemble(policy, this_arch())
    buffer = ctypes.create_string_buffer(program, len(program))
    header = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer)), 16)
    try:
        thread = system_call("seccomp", _SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC, ctypes.addressof(header))
    except OSError as error:
        raise SandboxError(f"the kernel refused the seccomp filter ({error.strerror})", cure="use a kernel with CONFIG_SECCOMP_FILTER") from error
    if thread:
        raise SandboxError(f"thread {thread} could not take the seccomp filter", cure=_DOCTOR)


def _verify_filtered() -> None:
    if prctl(_PR_GET_SECCOMP) != _SECCOMP_MODE_FILTER or prctl(_PR_GET_NO_NEW_PRIVS) != 1 or prctl(_PR_GET_DUMPABLE) != 0:
        raise SandboxError("the filter is not in force", cure=_DOCTOR)
    _verify_refused("umask", errno.EPERM)  # a call that never fails by itself
    _verify_refused("io_uring_setup", errno.ENOSYS)


def _verify_refused(name: str, code: int) -> None:
    try:
        system_call(name, 0o077, 0)
    except OSError as error:
        if error.errno == code:
            return
    raise SandboxError(f"the filter lets {name} through", cure=_DOCTOR)
