"""What a taken-over process would try, as raw system calls, and what each role must answer.

Every attack is also run without the lockdown (`unlocked`): there it must work, or the test would prove nothing. An outcome is "done", an errno's name, the
name of the signal that killed the process, or the name of the exception.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cliproxy.sandbox.calls import system_call

AT_FDCWD = -100
IS_GLIBC = platform.libc_ver()[0] == "glibc"  # musl's resolver needs more
LISTENER = 380  # of the probes; the real roles have theirs in the topology
WHO_LISTENS = ("worker", "admin")
_alive: list[Any] = []  # buffers whose addresses went to the kernel


@dataclass(frozen=True, slots=True)
class Scene:
    """What the attacker finds: `victim` is another process of the same user, with `secret` at the same address as here."""

    victim: int
    secret: int
    tcp_port: int
    unix_path: str
    abstract: bytes
    file: str
    scratch: str
    channel: tuple[int, int]
    listener: int  # the number of a listening socket that other processes accept on, too


@dataclass(frozen=True, slots=True)
class Attack:
    """`attempt` gets the scene and what `prepare` made before the lockdown. `roles` lists the answers that differ from `answer`."""

    name: str
    answer: str
    attempt: Callable[[Scene, Any], object]
    prepare: Callable[[Scene], Any] | None = None
    roles: dict[str, str] = field(default_factory=dict)
    unlocked: str | None = "done"


def pointer(data: bytes) -> int:
    buffer = ctypes.create_string_buffer(data, max(len(data), 4096))
    _alive.append(buffer)
    return ctypes.addressof(buffer)


def path(text: str) -> int:
    return pointer(os.fsencode(text) + b"\0")


def call(name: str, *arguments: int) -> Callable[[Scene, Any], object]:
    return lambda scene, prepared: system_call(name, *arguments)


def fork_by(name: str, *arguments: int) -> Callable[[Scene, Any], object]:
    def attempt(scene: Scene, prepared: Any) -> None:
        if system_call(name, *arguments) == 0:
            os._exit(0)

    return attempt


def open_socket(scene: Scene) -> int:
    return socket.socket(socket.AF_INET, socket.SOCK_STREAM).detach()


def bound_socket(scene: Scene) -> int:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.bind(("127.0.0.1", 0))
    return sock.detach()


def listening_socket(scene: Scene) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        os.dup2(sock.fileno(), scene.listener, inheritable=False)


def on_listener(name: str, *arguments: int) -> Callable[[Scene, Any], object]:
    return lambda scene, prepared: system_call(name, scene.listener, *arguments)


def udp_socket(scene: Scene) -> int:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM).detach()


def unix_socket(scene: Scene) -> int:
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).detach()


def other_pair(scene: Scene) -> tuple[int, int]:
    left, right = socket.socketpair()
    return left.detach(), right.detach()


def log_descriptor(scene: Scene) -> int:
    return os.open(scene.file, os.O_RDWR | os.O_APPEND)


def victim_pidfd(scene: Scene) -> int:
    return os.pidfd_open(scene.victim)


def two_files(scene: Scene) -> tuple[int, int]:
    return os.open(scene.file, os.O_RDWR), os.open(scene.file + ".other", os.O_RDWR | os.O_CREAT, 0o600)


def writable_page(scene: Scene) -> int:
    return system_call("mmap", 0, 4096, 3, 0x22, -1 & 0xFFFF_FFFF_FFFF_FFFF, 0)


def internet_address(scene: Scene) -> bytes:
    return struct.pack("=H", socket.AF_INET) + struct.pack("!H", scene.tcp_port) + socket.inet_aton("127.0.0.1") + bytes(8)


def unix_address(name: bytes) -> bytes:
    return struct.pack("=H", socket.AF_UNIX) + name


def connect_to(kind: int, address: Callable[[Scene], bytes]) -> Callable[[Scene, Any], object]:
    def attempt(scene: Scene, prepared: Any) -> None:
        descriptor = system_call("socket", kind, socket.SOCK_STREAM, 0)
        system_call("connect", descriptor, pointer(address(scene)), len(address(scene)))

    return attempt


def connect_passed(address: Callable[[Scene], bytes]) -> Callable[[Scene, Any], object]:
    return lambda scene, descriptor: system_call("connect", descriptor, pointer(address(scene)), len(address(scene)))


def message_with_descriptor(descriptor: int) -> int:
    """A struct msghdr that passes `descriptor` (x86_64 and aarch64 layout)."""
    control = pointer(struct.pack("=QiiiI", 20, socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptor, 0))
    vector = pointer(struct.pack("=QQ", pointer(b"x"), 1))
    return pointer(struct.pack("=QIIQQQQi4x", 0, 0, 0, vector, 1, control, 24, 0))


def receiving_message() -> int:
    vector = pointer(struct.pack("=QQ", pointer(bytes(16)), 16))
    return pointer(struct.pack("=QIIQQQQi4x", 0, 0, 0, vector, 1, pointer(bytes(64)), 64, 0))


def send_through(descriptor: Callable[[Scene, Any], int], name: str) -> Callable[[Scene, Any], object]:
    extra = (0,) if name == "sendmsg" else (1, 0)
    return lambda scene, prepared: system_call(name, descriptor(scene, prepared), message_with_descriptor(2), *extra)


def receive_through(descriptor: Callable[[Scene, Any], int], name: str) -> Callable[[Scene, Any], object]:
    flags = 0x40  # MSG_DONTWAIT
    extra = (flags,) if name == "recvmsg" else (1, flags, 0)
    return lambda scene, prepared: system_call(name, descriptor(scene, prepared), receiving_message(), *extra)


def pair_with_data(scene: Scene) -> tuple[int, int]:
    left, right = other_pair(scene)
    os.write(right, b"data")
    return left, right


def start_thread(scene: Scene, prepared: Any) -> None:
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()


def read_victim(name: str) -> Callable[[Scene, Any], object]:
    def attempt(scene: Scene, prepared: Any) -> None:
        local, remote = pointer(struct.pack("=QQ", pointer(bytes(8)), 8)), pointer(struct.pack("=QQ", scene.secret, 8))
        system_call(name, scene.victim, local, 1, remote, 1, 0)

    return attempt


def abort(scene: Scene, prepared: Any) -> None:
    os.abort()


def late_import(scene: Scene, prepared: Any) -> None:
    sys.modules.pop("colorsys", None)
    __import__("colorsys")


def late_codec(scene: Scene, prepared: Any) -> None:
    "x".encode("cp1006")


FILELESS = {"dialer": "EACCES"}  # the dialer's filter lets it open files to read; Landlock says which
READS_ONLY = {"dialer": "EPERM"}


def only(answer: str, *roles: str) -> dict[str, str]:
    return dict.fromkeys(roles, answer)


ATTACKS: tuple[Attack, ...] = (
    # files
    Attack("open a file", "SIGSYS", lambda s, p: system_call("openat", AT_FDCWD, path("/etc/passwd"), 0, 0), roles=FILELESS),
    Attack("open a file the old way", "SIGSYS", lambda s, p: system_call("open", path("/etc/passwd"), 0, 0), roles=FILELESS),
    Attack("open a directory", "SIGSYS", lambda s, p: system_call("openat", AT_FDCWD, path("/"), os.O_DIRECTORY, 0), roles=FILELESS),
    Attack("open a file to write", "SIGSYS", lambda s, p: system_call("openat", AT_FDCWD, path(s.file), os.O_WRONLY, 0), roles=READS_ONLY),
    Attack(
        "create a file", "SIGSYS", lambda s, p: system_call("openat", AT_FDCWD, path(s.scratch + "/new"), os.O_RDONLY | os.O_CREAT, 0o600), roles=READS_ONLY
    ),
    Attack("creat", "SIGSYS", lambda s, p: system_call("creat", path(s.scratch + "/new2"), 0o600)),
    Attack("open an unnamed file", "SIGSYS", lambda s, p: system_call("openat", AT_FDCWD, path(s.scratch), os.O_TMPFILE | os.O_RDWR, 0o600), roles=READS_ONLY),
    Attack("open a path descriptor", "SIGSYS", lambda s, p: system_call("openat", AT_FDCWD, path("/"), os.O_PATH, 0), roles=READS_ONLY),
    Attack("openat2", "SIGSYS", lambda s, p: system_call("openat2", AT_FDCWD, path("/etc/passwd"), pointer(bytes(24)), 24), roles={"dialer": "ENOSYS"}),
    Attack("read another's memory through /proc", "SIGSYS", lambda s, p: system_call("openat", AT_FDCWD, path(f"/proc/{s.victim}/mem"), 0, 0), roles=FILELESS),
    Attack("write own memory through /proc", "SIGSYS", lambda s, p: system_call("openat", AT_FDCWD, path("/proc/self/mem"), os.O_RDWR, 0), roles=READS_ONLY),
    Attack("ask about a file", "EPERM", lambda s, p: system_call("newfstatat", AT_FDCWD, path("/etc/passwd"), pointer(b""), 0), roles=only("done", "dialer")),
    Attack("list a directory", "EPERM", lambda s, p: system_call("getdents64", p, pointer(b""), 4096), prepare=lambda s: os.open("/", os.O_RDONLY)),
    Attack("unlink", "EPERM", lambda s, p: system_call("unlinkat", AT_FDCWD, path(s.file + ".gone"), 0), prepare=lambda s: open(s.file + ".gone", "w").close()),
    Attack("mkdir", "EPERM", lambda s, p: system_call("mkdirat", AT_FDCWD, path(s.scratch + f"/directory{os.getpid()}"), 0o700)),
    Attack("symlink", "EPERM", lambda s, p: system_call("symlinkat", path("/etc"), AT_FDCWD, path(s.scratch + f"/link{os.getpid()}"))),
    Attack("chmod", "EPERM", lambda s, p: system_call("fchmodat", AT_FDCWD, path(s.file), 0o666)),
    Attack("chmod by descriptor", "EPERM", lambda s, p: system_call("fchmod", p, 0o666), prepare=log_descriptor),
    Attack("chdir", "EPERM", lambda s, p: system_call("chdir", path("/"))),
    Attack("truncate", "EPERM", lambda s, p: system_call("truncate", path(s.file + ".short"), 0), prepare=lambda s: open(s.file + ".short", "w").close()),
    # what is written stays written
    Attack("overwrite by pwrite", "EPERM", lambda s, p: system_call("pwrite64", p, pointer(b"x"), 1, 0), prepare=log_descriptor, roles=only("done", "vault")),
    Attack("overwrite by pwritev2", "EPERM", lambda s, p: system_call("pwritev2", p, pointer(bytes(16)), 1, 0, 0, 0), prepare=log_descriptor),
    Attack("cut by ftruncate", "EPERM", lambda s, p: system_call("ftruncate", p, 4096), prepare=log_descriptor, roles=only("done", "vault")),
    Attack("punch a hole", "EPERM", lambda s, p: system_call("fallocate", p, 3, 0, 4096), prepare=log_descriptor),
    Attack("drop O_APPEND", "done", lambda s, p: system_call("fcntl", p, 4, 0), prepare=log_descriptor, roles=only("EPERM", "auditor")),
    Attack("map a file to write it", "EPERM", lambda s, p: system_call("mmap", 0, 4096, 3, 1, p, 0), prepare=log_descriptor),
    Attack("sendfile", "EPERM", lambda s, p: system_call("sendfile", p[1], p[0], 0, 1), prepare=two_files),
    Attack("copy_file_range", "EPERM", lambda s, p: system_call("copy_file_range", p[0], 0, p[1], 0, 1, 0), prepare=two_files),
    Attack("splice", "EPERM", lambda s, p: system_call("splice", p[0], 0, p[1], 0, 1, 0), prepare=two_files, unlocked=None),
    # programs and processes
    Attack("execve", "SIGSYS", lambda s, p: system_call("execve", path("/bin/true"), pointer(struct.pack("=QQ", path("/bin/true"), 0)), 0)),
    Attack(
        "execveat", "SIGSYS", lambda s, p: system_call("execveat", p, pointer(b"\0"), pointer(bytes(8)), 0, 0x1000), prepare=lambda s: os.open("/bin/true", 0)
    ),
    Attack("fork", "SIGSYS", fork_by("fork")),
    Attack("vfork", "SIGSYS", call("vfork"), unlocked=None),  # the child would run on its parent's stack
    Attack("clone a process", "SIGSYS", fork_by("clone", signal.SIGCHLD, 0, 0, 0, 0)),
    Attack("clone with a new user namespace", "SIGSYS", fork_by("clone", 0x1000_0000 | signal.SIGCHLD, 0, 0, 0, 0), unlocked=None),
    Attack("clone3", "ENOSYS", call("clone3", 0, 0), unlocked="EINVAL"),
    Attack("start a thread", "RuntimeError", start_thread, roles=only("done", "dialer", "auditor")),
    Attack("ptrace", "SIGSYS", lambda s, p: system_call("ptrace", 0x4206, s.victim, 0, 0)),
    Attack("read another's memory", "SIGSYS", read_victim("process_vm_readv")),
    Attack("write another's memory", "SIGSYS", read_victim("process_vm_writev")),
    Attack("take another's descriptor", "SIGSYS", lambda s, p: system_call("pidfd_getfd", p, 0, 0), prepare=victim_pidfd),
    Attack(
        "advise another's memory", "SIGSYS", lambda s, p: system_call("process_madvise", p, pointer(bytes(16)), 0, 20, 0), prepare=victim_pidfd, unlocked=None
    ),
    Attack("open a pidfd", "EPERM", lambda s, p: system_call("pidfd_open", s.victim, 0)),
    Attack("change another's limits", "EPERM", lambda s, p: system_call("prlimit64", s.victim, 7, 0, pointer(b"")), unlocked=None),
    Attack("change own limits", "EPERM", lambda s, p: system_call("prlimit64", 0, 7, pointer(struct.pack("=QQ", 64, 64)), 0)),
    Attack("renice another", "EPERM", lambda s, p: system_call("setpriority", 0, s.victim, 5)),
    Attack("schedule another", "EPERM", lambda s, p: system_call("sched_setaffinity", s.victim, 8, pointer(struct.pack("=Q", 1)))),
    # signals
    Attack("kill another", "EPERM", lambda s, p: system_call("kill", s.victim, signal.SIGCONT)),
    Attack("kill own process by kill", "EPERM", lambda s, p: system_call("kill", os.getpid(), signal.SIGCONT)),
    Attack("kill everybody", "EPERM", lambda s, p: system_call("kill", -1, 0), unlocked=None),
    Attack("tkill another", "EPERM", lambda s, p: system_call("tkill", s.victim, signal.SIGCONT)),
    Attack("tgkill another", "EPERM", lambda s, p: system_call("tgkill", s.victim, s.victim, signal.SIGCONT)),
    Attack("queue a signal", "EPERM", lambda s, p: system_call("rt_sigqueueinfo", s.victim, 18, pointer(struct.pack("=iii", 18, 0, -1)))),
    Attack("signal by pidfd", "EPERM", lambda s, p: system_call("pidfd_send_signal", p, signal.SIGCONT, 0, 0), prepare=victim_pidfd),
    Attack("F_SETOWN", "EPERM", lambda s, p: system_call("fcntl", s.channel[0], 8, s.victim)),
    Attack("F_SETOWN_EX", "EPERM", lambda s, p: system_call("fcntl", s.channel[0], 15, pointer(struct.pack("=ii", 1, s.victim)))),
    Attack("F_SETSIG", "EPERM", lambda s, p: system_call("fcntl", s.channel[0], 10, 9)),
    Attack("F_SETOWN with a dirty upper half", "EPERM", lambda s, p: system_call("fcntl", s.channel[0], 8 | 0x5555 << 32, s.victim)),
    Attack("O_ASYNC", "EPERM", lambda s, p: system_call("fcntl", s.channel[0], 4, 0o20000)),
    Attack("FIOSETOWN", "EPERM", lambda s, p: system_call("ioctl", s.channel[0], 0x8901, pointer(struct.pack("=i", s.victim)))),
    # the network
    Attack("TCP socket", "SIGSYS", call("socket", socket.AF_INET, socket.SOCK_STREAM, 0), roles=only("done", "dialer")),
    Attack("UDP socket", "SIGSYS", call("socket", socket.AF_INET6, socket.SOCK_DGRAM, 0), roles=only("done", "dialer")),
    Attack("raw socket", "SIGSYS", call("socket", socket.AF_INET, socket.SOCK_RAW, 1), roles=only("EAFNOSUPPORT", "dialer"), unlocked=None),
    Attack("netlink socket", "SIGSYS", call("socket", 16, socket.SOCK_RAW, 0), roles=only("EAFNOSUPPORT", "dialer")),
    Attack("vsock", "SIGSYS", call("socket", 40, socket.SOCK_STREAM, 0), roles=only("EAFNOSUPPORT", "dialer"), unlocked=None),
    Attack("packet socket", "SIGSYS", call("socket", 17, socket.SOCK_RAW, 0), roles=only("EAFNOSUPPORT", "dialer"), unlocked=None),
    Attack("MPTCP", "SIGSYS", call("socket", socket.AF_INET, socket.SOCK_STREAM, 262), roles=only("EAFNOSUPPORT", "dialer"), unlocked=None),
    Attack("connect over TCP", "SIGSYS", connect_to(socket.AF_INET, internet_address), roles=only("done", "dialer")),
    Attack("connect a passed TCP socket", "SIGSYS", connect_passed(internet_address), prepare=open_socket, roles=only("done", "dialer")),
    Attack(
        "reach a UNIX socket by path",
        "SIGSYS",
        connect_to(socket.AF_UNIX, lambda s: unix_address(os.fsencode(s.unix_path))),
        roles=only("EAFNOSUPPORT", "dialer"),
    ),
    Attack("reach an abstract UNIX socket", "SIGSYS", connect_to(socket.AF_UNIX, lambda s: unix_address(s.abstract)), roles=only("EAFNOSUPPORT", "dialer")),
    Attack(
        "reach an abstract socket with a passed one",
        "SIGSYS",
        connect_passed(lambda s: unix_address(s.abstract)),
        prepare=unix_socket,
        roles=only("EPERM", "dialer"),
    ),
    Attack(
        "bind",
        "EPERM",
        lambda s, p: system_call("bind", p, pointer(internet_address(s)[:2] + bytes(14)), 16),
        prepare=open_socket,
        roles={} if IS_GLIBC else only("EACCES", "dialer"),
    ),
    Attack("listen on a passed socket", "EPERM", lambda s, p: system_call("listen", p, 1), prepare=bound_socket),
    Attack(
        "send to an address",
        "EPERM",
        lambda s, p: system_call("sendto", p, pointer(b"x"), 1, 0, pointer(internet_address(s)), 16),
        prepare=udp_socket,
        roles={} if IS_GLIBC else only("done", "dialer"),
    ),
    Attack(
        "ask for a descriptor of the peer's process",
        "EPERM",
        lambda s, p: system_call("getsockopt", p[0], 1, 77, pointer(b""), pointer(struct.pack("=I", 4))),
        prepare=other_pair,
        unlocked=None,  # Linux 6.5
    ),
    Attack(
        "ask who the peer is",
        "EPERM",
        lambda s, p: system_call("getsockopt", p[0], 1, 17, pointer(b""), pointer(struct.pack("=I", 12))),
        prepare=other_pair,
        roles=only("done", "admin"),
    ),
    Attack(
        "attach a packet filter",
        "EPERM",
        lambda s, p: system_call("setsockopt", p, 1, 26, pointer(struct.pack("=H6xQ", 1, pointer(struct.pack("=HBBI", 6, 0, 0, 1)))), 16),
        prepare=udp_socket,
    ),
    Attack("bind to a device", "EPERM", lambda s, p: system_call("setsockopt", p, 1, 25, pointer(b"lo\0"), 3), prepare=udp_socket, unlocked=None),
    Attack(
        "make a socketpair",
        "EPERM",
        lambda s, p: system_call("socketpair", socket.AF_UNIX, socket.SOCK_STREAM, 0, pointer(b"")),
        roles=only("done", "worker", "egress"),
    ),
    # descriptors
    Attack("pass a descriptor elsewhere", "EPERM", send_through(lambda s, p: p[0], "sendmsg"), prepare=other_pair),
    Attack("pass many elsewhere", "EPERM", send_through(lambda s, p: p[0], "sendmmsg"), prepare=other_pair, roles=only("done", "dialer")),
    Attack("pass a descriptor on the channel", "done", send_through(lambda s, p: s.channel[0], "sendmsg")),
    Attack(
        "receive a message elsewhere",
        "EPERM",
        receive_through(lambda s, p: p[0], "recvmsg"),
        prepare=pair_with_data,
        roles={} if IS_GLIBC else only("done", "dialer"),
    ),
    Attack("receive many messages", "EPERM", receive_through(lambda s, p: p[0], "recvmmsg"), prepare=pair_with_data),
    Attack("dup", "EPERM", lambda s, p: system_call("dup", s.channel[0])),
    Attack(
        "F_DUPFD_CLOEXEC",
        "EPERM",
        lambda s, p: system_call("fcntl", s.channel[0], 1030, 0),
        roles=only("done", "worker", "egress"),
    ),
    Attack("F_DUPFD", "EPERM", lambda s, p: system_call("fcntl", s.channel[0], 0, 0)),
    Attack("dup2 onto another number", "EPERM", lambda s, p: system_call("dup2", s.channel[1], 2)),
    Attack("dup3 onto another number", "EPERM", lambda s, p: system_call("dup3", s.channel[1], 2, 0)),
    Attack("dup2 onto the channel", "done", lambda s, p: system_call("dup2", 2, s.channel[0])),
    Attack("dup3 onto the channel", "done", lambda s, p: system_call("dup3", 2, s.channel[0], os.O_CLOEXEC)),
    # on what other processes accept, too: one open file description
    Attack("shut the listening socket down", "done", on_listener("shutdown", 2), prepare=listening_socket, roles=only("EPERM", *WHO_LISTENS)),
    Attack(
        "make the listening socket block",
        "done",
        lambda s, p: system_call("ioctl", s.listener, 0x5421, pointer(struct.pack("=i", 0))),
        prepare=listening_socket,
        roles=only("ENOTTY", *WHO_LISTENS),
    ),
    Attack(
        "make the listening socket block by its flags",
        "done",
        on_listener("fcntl", 4, 0),
        prepare=listening_socket,
        roles=only("EPERM", *WHO_LISTENS, "auditor"),
    ),
    Attack(
        "make accepted connections end with a reset",
        "done",
        lambda s, p: system_call("setsockopt", s.listener, 1, 13, pointer(struct.pack("=ii", 1, 0)), 8),
        prepare=listening_socket,
        roles=only("EPERM", *WHO_LISTENS),
    ),
    Attack("shorten the queue of the listening socket", "EPERM", on_listener("listen", 0), prepare=listening_socket),
    Attack("copy the listening socket", "EPERM", on_listener("fcntl", 1030, 0), prepare=listening_socket, roles=only("done", "egress")),
    Attack(
        "copy the listening socket onto the channel",
        "done",
        lambda s, p: system_call("dup3", s.listener, s.channel[0], os.O_CLOEXEC),
        prepare=listening_socket,
        roles=only("EPERM", *WHO_LISTENS),
    ),
    Attack(
        "copy the listening socket onto the channel the old way",
        "done",
        lambda s, p: system_call("dup2", s.listener, s.channel[0]),
        prepare=listening_socket,
        roles=only("EPERM", *WHO_LISTENS),
    ),
    Attack("free the number over which descriptors travel", "EPERM", lambda s, p: system_call("close", s.channel[0])),
    Attack("memfd", "EPERM", lambda s, p: system_call("memfd_create", path("x"), 0)),
    Attack("pipe", "EPERM", lambda s, p: system_call("pipe2", pointer(b""), 0)),
    # memory
    Attack("memory to write and run", "EPERM", call("mmap", 0, 4096, 7, 0x22, -1, 0)),
    Attack("memory to run", "EPERM", call("mmap", 0, 4096, 5, 0x22, -1, 0)),
    Attack("make memory runnable", "EPERM", lambda s, p: system_call("mprotect", p, 4096, 5), prepare=writable_page),
    Attack("make memory runnable by key", "EPERM", lambda s, p: system_call("pkey_mprotect", p, 4096, 5, -1), prepare=writable_page, unlocked=None),
    Attack("shared memory of System V", "EPERM", call("shmget", 0, 4096, 0o1600)),
    # ways around
    Attack("io_uring", "ENOSYS", lambda s, p: system_call("io_uring_setup", 4, pointer(bytes(120))), unlocked=None),
    Attack("io_uring_enter", "ENOSYS", call("io_uring_enter", -1, 0, 0, 0, 0, 0), unlocked=None),
    Attack("io_uring_register", "ENOSYS", call("io_uring_register", -1, 0, 0, 0), unlocked=None),
    Attack("a call nobody knows", "ENOSYS", lambda s, p: raw(999), unlocked="ENOSYS"),
    Attack("a call through the x32 door", "SIGSYS", lambda s, p: raw(0x4000_0000 | 39), unlocked=None),
    Attack("another filter", "EPERM", call("seccomp", 1, 0, 0), unlocked=None),
    Attack("personality", "SIGSYS", call("personality", 0x0040_0000)),
    Attack("umask", "EPERM", call("umask", 0)),
    Attack("dumpable again", "EPERM", call("prctl", 4, 1, 0, 0, 0)),
    Attack("outlive the parent", "EPERM", call("prctl", 1, 0, 0, 0, 0)),
    Attack("be traced by anyone", "EPERM", call("prctl", 0x59616D61, -1, 0, 0, 0), unlocked=None),
    Attack("keep capabilities", "EPERM", call("prctl", 8, 1, 0, 0, 0)),
    Attack("root again", "EPERM", call("setuid", 0), unlocked=None),
    Attack("root again by setresuid", "EPERM", call("setresuid", 0, 0, 0), unlocked=None),
    Attack("group again", "EPERM", call("setresgid", 0, 0, 0), unlocked=None),
    Attack("groups again", "EPERM", call("setgroups", 0, 0), unlocked=None),
    Attack("capabilities again", "EPERM", call("capset", 0, 0), unlocked=None),
    Attack("import late", "LateImport", late_import, unlocked=None),
    Attack("use a codec late", "LookupError", late_codec, unlocked=None),
    # a process of ours that works well
    Attack("abort", "SIGABRT", abort, unlocked="SIGABRT"),
    Attack("set a thread's name", "done", lambda s, p: system_call("prctl", 15, path("worker"), 0, 0, 0)),
    Attack("ask about a descriptor", "done", lambda s, p: os.fstat(s.channel[0])),
    Attack("do not block", "done", lambda s, p: system_call("ioctl", s.channel[0], 0x5421, pointer(struct.pack("=i", 1)))),
    Attack("send without delay", "done", lambda s, p: system_call("setsockopt", p, 6, 1, pointer(struct.pack("=i", 1)), 4), prepare=open_socket),
    *(
        Attack(name, "SIGSYS", call(name, *arguments), unlocked=None)
        for name, arguments in {
            "unshare": (0x1000_0000,),
            "setns": (-1, 0),
            "mount": (0, 0, 0, 0, 0),
            "umount2": (0, 0),
            "pivot_root": (0, 0),
            "chroot": (0,),
            "move_mount": (-1, 0, -1, 0, 0),
            "fsopen": (0, 0),
            "open_tree": (-1, 0, 0),
            "mount_setattr": (-1, 0, 0, 0, 0),
            "open_by_handle_at": (-1, 0, 0),
            "bpf": (0, 0, 0),
            "perf_event_open": (0, 0, -1, -1, 0),
            "userfaultfd": (0,),
            "keyctl": (0, 0, 0, 0, 0),
            "add_key": (0, 0, 0, 0, 0),
            "request_key": (0, 0, 0, 0),
            "init_module": (0, 0, 0),
            "finit_module": (-1, 0, 0),
            "delete_module": (0, 0),
            "kexec_load": (0, 0, 0, 0),
            "reboot": (0, 0, 0, 0),
            "swapon": (0, 0),
            "kcmp": (0, 0, 0, 0, 0),
            "iopl": (0,),
            "ioperm": (0, 0, 0),
            "modify_ldt": (0, 0, 0),
        }.items()
    ),
)


def raw(number: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    result = int(libc.syscall(ctypes.c_long(number), *(ctypes.c_long(0),) * 6))
    if result == -1:
        raise OSError(ctypes.get_errno(), "refused")
    return result


X86_ONLY = {
    "open a file the old way",
    "creat",
    "fork",
    "vfork",
    "dup2 onto another number",
    "dup2 onto the channel",
    "copy the listening socket onto the channel the old way",
    "iopl",
    "ioperm",
    "modify_ldt",
} | {"a call through the x32 door"}


def attacks_here() -> tuple[Attack, ...]:
    """Those whose calls this machine has."""
    return tuple(attack for attack in ATTACKS if platform.machine() == "x86_64" or attack.name not in X86_ONLY)
