"""Which system calls each process may make, and with which arguments. One table per role, read together with docs/architecture.md ("may never").

A call that is not here fails: EPERM when the kernel's tables know it, ENOSYS when they do not (so that a libc falls back), and what a process could only do
after it was taken over (running a program, tracing, mounting, opening what its row forbids) kills it, which the supervisor counts.
`tests/sandbox` shows each process doing its work under its profile and failing at everything else.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from enum import Enum
from pathlib import Path

import msgspec

from cliproxy.sandbox.bpf import ALLOW, INT, KILL_PROCESS, LONG, Action, Argument, Clause, Policy, Rule, errno_action

EPERM = errno_action(errno.EPERM)
ENOSYS = errno_action(errno.ENOSYS)


class Later(Enum):
    """Values that only the process itself knows, put in by `Profile.policy`."""

    ANCILLARY = "descriptors that may pass descriptors"
    REPLACEABLE = "descriptors that a restarted peer's channel may replace"
    LISTENING = "listening sockets, which other processes accept on too"
    SELF = "the process's own id"


class When(msgspec.Struct, frozen=True):
    """An `Argument` whose values may come later."""

    index: int
    values: frozenset[int] | Later
    mask: int


class Call(msgspec.Struct, frozen=True):
    """What happens to a call when all `conditions` hold. Otherwise the next `Call` of the same name is asked, and the last one's `otherwise` is left."""

    name: str
    conditions: tuple[When, ...] = ()
    action: Action = ALLOW
    otherwise: Action = EPERM


def _equals(index: int, *values: int) -> When:
    return When(index, frozenset(values), INT)


def _lacks(index: int, bits: int, mask: int = LONG) -> When:
    return When(index, frozenset({0}), bits & mask)


def _null(index: int) -> When:
    return When(index, frozenset({0}), LONG)


def _own(index: int) -> When:
    return When(index, Later.SELF, INT)


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# --- what takes a break-in to want -----------------------------------------------------------------------------------
_KILLED = _names("""
execve execveat fork vfork ptrace process_vm_readv process_vm_writev process_madvise pidfd_getfd kcmp bpf userfaultfd perf_event_open keyctl add_key request_key
mount umount2 pivot_root chroot move_mount open_tree fsopen fsmount fsconfig fspick mount_setattr open_tree_attr setns unshare open_by_handle_at
name_to_handle_at init_module finit_module delete_module create_module kexec_load kexec_file_load reboot swapon swapoff acct iopl ioperm modify_ldt uselib
personality
""")
_OPENING = ("open", "openat", "openat2", "creat")
_CONNECTING = ("socket", "connect")
IO_URING_CALLS = ("io_uring_setup", "io_uring_enter", "io_uring_register")
_ABSENT = (*IO_URING_CALLS, "clone3", "statx", "openat2", "faccessat2", "fchmodat2", "futex_waitv", "epoll_pwait2")

# --- what every process needs: CPython, its allocator, glibc or musl -------------------------------------------------
_ANY = _names("""
read write readv writev poll ppoll select pselect6 epoll_wait epoll_pwait epoll_ctl epoll_create1
brk munmap mremap madvise futex set_robust_list set_tid_address rseq membarrier sched_yield sched_getaffinity getcpu
nanosleep clock_nanosleep clock_gettime clock_getres gettimeofday time times getrusage
rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait rt_sigsuspend sigaltstack restart_syscall
getpid gettid getppid getuid geteuid getgid getegid getresuid getresgid getpgrp getpgid getsid getgroups uname sysinfo getrandom exit exit_group
shutdown getpeername getsockname recvfrom
""")

PROT_EXEC = 0x4
MAP_ANONYMOUS = 0x20
F_GETFD, F_SETFD, F_GETFL, F_SETFL = 1, 2, 3, 4
F_DUPFD_CLOEXEC = 1030
F_GETLK, F_SETLK = 5, 6
FIONBIO, FIONREAD = 0x5421, 0x541B
PR_GET_DUMPABLE, PR_SET_NAME, PR_GET_NAME, PR_GET_SECCOMP, PR_GET_NO_NEW_PRIVS = 3, 15, 16, 21, 39
AT_EMPTY_PATH = 0x1000
_SOL_SOCKET, _IPPROTO_IP, _IPPROTO_TCP, _IPPROTO_IPV6 = 1, 0, 6, 41
_SOCKET_OPTIONS = (2, 7, 8, 9, 13)  # SO_REUSEADDR, SO_SNDBUF, SO_RCVBUF, SO_KEEPALIVE, SO_LINGER
_TCP_OPTIONS = (1, 3, 4, 5, 6, 9, 12, 18)  # NODELAY, CORK, KEEPIDLE, KEEPINTVL, KEEPCNT, DEFER_ACCEPT, QUICKACK, USER_TIMEOUT

# One open file description is shared by all who accept on a listening socket, the next process of the role included: what changes it would stop them all, or
# change what they accept (buffers and lingering are inherited). A copy of the descriptor would have a number that no condition knows.
_ON_LISTENING = When(0, Later.LISTENING, INT)
_LISTENERS = (
    # libuv makes a descriptor non-blocking before it polls it. Told ENOTTY it looks at the flags instead, finds it done, and is content
    Call("ioctl", (_ON_LISTENING,), errno_action(errno.ENOTTY)),
    Call("fcntl", (_ON_LISTENING, _equals(1, F_GETFD, F_GETFL))),
    *(Call(name, (_ON_LISTENING,), EPERM) for name in ("fcntl", "shutdown", "setsockopt", "dup2", "dup3")),
)

_SO_TYPE, _SO_ERROR, _SO_PEERCRED, _SO_PROTOCOL, _SO_DOMAIN = 3, 4, 17, 38, 39
_ASKED_OPTIONS = (_SO_TYPE, _SO_ERROR, _SO_PROTOCOL, _SO_DOMAIN)  # not SO_PEERPIDFD, which makes a descriptor of another process

_BASE: tuple[Call, ...] = (
    *_LISTENERS,
    *(Call(name) for name in _ANY),
    # The numbers over which descriptors may travel stay what the supervisor put there: closed, the next socket would take the number and the right
    Call("close", (When(0, Later.ANCILLARY, INT),), EPERM),
    Call("close"),
    Call("mmap", (_lacks(2, PROT_EXEC), When(3, frozenset({MAP_ANONYMOUS}), MAP_ANONYMOUS))),
    Call("mprotect", (_lacks(2, PROT_EXEC),)),
    Call("fcntl", (_equals(1, F_GETFD, F_SETFD, F_GETFL),)),
    Call("ioctl", (_equals(1, FIONBIO, FIONREAD),)),
    Call("prctl", (_equals(0, PR_GET_DUMPABLE, PR_SET_NAME, PR_GET_NAME, PR_GET_SECCOMP, PR_GET_NO_NEW_PRIVS),)),
    Call("prlimit64", (_equals(0, 0), _null(2))),
    Call("tgkill", (_own(0),)),  # abort()
    Call("sendto", (_null(4),)),  # send(): an address would reach a socket that nobody connected
    Call("sendmsg", (When(0, Later.ANCILLARY, INT),)),
    Call("recvmsg", (When(0, Later.ANCILLARY, INT),)),
    Call("dup2", (When(1, Later.REPLACEABLE, INT),)),
    Call("dup3", (When(1, Later.REPLACEABLE, INT),)),
    Call("getsockopt", (_equals(1, _SOL_SOCKET), _equals(2, *_ASKED_OPTIONS))),
    Call("setsockopt", (_equals(1, _SOL_SOCKET), _equals(2, *_SOCKET_OPTIONS))),
    Call("setsockopt", (_equals(1, _IPPROTO_TCP), _equals(2, *_TCP_OPTIONS))),
)
_O_ASYNC = 0o20000  # with an owner, I/O on the descriptor sends signals
_SET_STATUS_FLAGS = (Call("fcntl", (_equals(1, F_SETFL), _lacks(2, _O_ASYNC))),)
# glibc 2.33 to 2.38 makes fstat() of newfstatat(fd, "", …, AT_EMPTY_PATH). The kernel cannot compare the path, so names, sizes and times of files can be asked
# for (docs/adr/0010); contents cannot.
_FSTAT = (Call("fstat"), Call("newfstatat", (_equals(3, AT_EMPTY_PATH),)))
# glibc's and musl's pthread_create, exactly: a clone without CLONE_THREAD is a fork
_THREAD_FLAGS = 0x3D0F00  # VM FS FILES SIGHAND THREAD SYSVSEM SETTLS PARENT_SETTID CHILD_CLEARTID
_CLONE_DETACHED = 0x400000  # musl adds it
_IS_THREAD = When(0, frozenset({_THREAD_FLAGS, _THREAD_FLAGS | _CLONE_DETACHED}), LONG)
_THREADS = (Call("clone", (_IS_THREAD,), otherwise=KILL_PROCESS),)
_NO_THREADS = (Call("clone", (_IS_THREAD,), EPERM, otherwise=KILL_PROCESS),)  # a thread is a mistake, a fork is an attack
_AF_UNIX = 1
# uvloop makes its wake-up pair each time the loop starts to run; a pair reaches nobody but itself
# A transport closes its descriptor itself, so a channel's is moved off its fixed slot before it gets one (processes/descriptors.take): a copy of what one has
_EVENT_LOOP = (Call("fcntl", (_equals(1, F_DUPFD_CLOEXEC),)), Call("eventfd2"), Call("socketpair", (_equals(0, _AF_UNIX),)), *_SET_STATUS_FLAGS, *_FSTAT)


class Profile(msgspec.Struct, frozen=True):
    """One role's row. `calls` are let through; `kills` kill (before `calls` of the same name are looked at, none is in both).

    `read_paths`: the files that it may still open, read-only. `may_connect`: whether outgoing TCP is its work. `threads`: whether it starts threads after the
    lockdown.
    """

    role: str
    calls: tuple[Call, ...]
    kills: tuple[str, ...]
    read_paths: tuple[str, ...] = ()
    may_connect: bool = False
    threads: bool = False
    hot: tuple[str, ...] = msgspec.field(default=("sendto", "mmap"))

    def policy(self, *, ancillary: frozenset[int], replaceable: frozenset[int], listening: frozenset[int], process: int) -> Policy:
        """Return the filter's meaning for one process: `process` is its own id."""
        later: Mapping[Later, frozenset[int]] = {
            Later.ANCILLARY: ancillary,
            Later.REPLACEABLE: replaceable,
            Later.LISTENING: listening,
            Later.SELF: frozenset({process}),
        }
        clauses: dict[str, list[Clause]] = {}
        otherwise: dict[str, Action] = {}
        for call in self.calls:
            conditions = tuple(
                Argument(when.index, later[when.values] if isinstance(when.values, Later) else when.values, when.mask) for when in call.conditions
            )
            clauses.setdefault(call.name, []).append(Clause(call.action, conditions))
            otherwise[call.name] = call.otherwise
        rules = {name: Rule((), ENOSYS) for name in _ABSENT}
        rules |= {name: Rule((), KILL_PROCESS) for name in self.kills}
        rules |= {name: Rule(tuple(ways), otherwise[name]) for name, ways in clauses.items()}
        return Policy(rules, known=EPERM, unknown=ENOSYS, hot=self.hot)


def _calls(text: str) -> tuple[Call, ...]:
    return tuple(Call(name) for name in _names(text))


_CLOSED = (*_KILLED, *_OPENING, *_CONNECTING)  # neither files nor sockets

WORKER = Profile(role="worker", calls=(*_BASE, *_NO_THREADS, *_EVENT_LOOP, *_calls("accept4")), kills=_CLOSED)

# pread64: the settings of a PREPARE lie in one memfd that all read, so nobody may move its offset
EGRESS = Profile(role="egress", calls=(*_BASE, *_NO_THREADS, *_EVENT_LOOP, *_calls("mlock munlock pread64")), kills=_CLOSED)

# O_CLOEXEC, O_NONBLOCK, and O_LARGEFILE, O_NOFOLLOW, O_DIRECTORY, O_DIRECT, whose bits the two machines deal out differently;
# all other flags write, create or make an O_PATH descriptor
_READ_ONLY = INT & ~(0o2000000 | 0o4000 | 0o100000 | 0o400000 | 0o200000 | 0o40000)
_AF_INET, _AF_INET6 = 2, 10
_SOCK_STREAM, _SOCK_DGRAM, _SOCK_TYPE_MASK = 1, 2, 0xF
_IP_RECVERR, _IPV6_RECVERR, _IPV6_V6ONLY = 11, 25, 26
EAFNOSUPPORT = errno_action(errno.EAFNOSUPPORT)


def _is_glibc() -> bool:
    try:
        return bool(os.confstr("CS_GNU_LIBC_VERSION"))
    except (ValueError, OSError):
        return False


# musl's resolver binds, asks and hears on a socket that it never connects; glibc's connects first
_MUSL_RESOLVER = () if _is_glibc() else _calls("bind recvmsg sendto")

DIALER = Profile(
    role="dialer",
    calls=(
        *_BASE,
        *_SET_STATUS_FLAGS,
        *_THREADS,
        *_FSTAT,
        *_calls("connect sendmmsg eventfd2 lseek pread64 newfstatat stat lstat"),
        *_MUSL_RESOLVER,
        Call(
            "socket",
            (
                _equals(0, _AF_INET, _AF_INET6),
                When(1, frozenset({_SOCK_STREAM, _SOCK_DGRAM}), _SOCK_TYPE_MASK),
                _equals(2, 0, 6, 17),
            ),
            otherwise=EAFNOSUPPORT,
        ),
        Call("open", (_lacks(1, _READ_ONLY),)),
        Call("openat", (_lacks(2, _READ_ONLY),)),
        Call("setsockopt", (_equals(1, _IPPROTO_IP), _equals(2, _IP_RECVERR))),
        Call("setsockopt", (_equals(1, _IPPROTO_IPV6), _equals(2, _IPV6_RECVERR, _IPV6_V6ONLY))),
    ),
    kills=(*_KILLED, "creat"),
    read_paths=("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/gai.conf", "/etc/host.conf", "/etc/services", "/etc/protocols"),
    may_connect=True,
    threads=True,
)

VAULT = Profile(
    role="vault",
    calls=(
        *_BASE,
        *_NO_THREADS,
        *_SET_STATUS_FLAGS,
        *_FSTAT,
        *_calls("lseek pread64 pwrite64 ftruncate fsync fdatasync mlock munlock"),
        Call("fcntl", (_equals(1, F_GETLK, F_SETLK),)),
    ),
    kills=_CLOSED,
)

AUDITOR = Profile(
    role="auditor",
    # no F_SETFL: without O_APPEND a write would go where lseek points
    calls=(*_BASE, *_THREADS, *_FSTAT, *_calls("lseek pread64 fsync fdatasync eventfd2")),
    kills=_CLOSED,
    threads=True,
)

ADMIN = Profile(
    role="admin",
    calls=(
        *_BASE,
        *_NO_THREADS,
        *_SET_STATUS_FLAGS,
        *_FSTAT,
        *_calls("accept4 eventfd2 pread64"),
        Call("getsockopt", (_equals(1, _SOL_SOCKET), _equals(2, _SO_PEERCRED))),
    ),
    kills=_CLOSED,
)

PROFILES: dict[str, Profile] = {profile.role: profile for profile in (WORKER, EGRESS, DIALER, VAULT, AUDITOR, ADMIN)}


def resolver_paths(paths: tuple[str, ...]) -> tuple[str, ...]:
    """Return `paths`, and for each that is a link out of its directory the target's directory too.

    systemd-resolved, NetworkManager and resolvconf replace the target of `/etc/resolv.conf` as a whole, and a rule for the old file does not cover the new one.
    """
    directories = []
    for path in paths:
        target = Path(path).resolve()
        if target.parent != Path(path).parent and target.parent.is_relative_to("/run"):
            directories.append(str(target.parent))
    return (*paths, *directories)
