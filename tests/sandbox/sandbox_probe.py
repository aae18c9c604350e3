"""Runs attacks and work in locked-down processes and prints what came out, as one JSON object. `python -I -B sandbox_probe.py ROLE IDENTITY`

For each one a process is forked, locked down as ROLE and let go. ROLE "unlocked" leaves the lockdown out. IDENTITY: "own uid" starts as root and gives the role
a uid of its own, "container" starts as root and stays it, "user" is an ordinary user before anything begins.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import select
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from cliproxy.sandbox.calls import prctl
from cliproxy.sandbox.lockdown import lock_down
from cliproxy.sandbox.roles import PROFILES
from sandbox.sandbox_attacks import LISTENER, WHO_LISTENS, Scene, attacks_here
from sandbox.sandbox_jobs import Workplace, jobs_of, make_workplace

ROLE_UID = 61001
ORDINARY_UID = 65534
PATIENCE_SECONDS = 30


def become_ordinary(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    prctl(4, 1)  # as a process that began with that uid would be


def start_victim(uid: int, scratch: str) -> tuple[Scene, list[int]]:
    secret = ctypes.create_string_buffer(b"a secret", 64)
    server = socket.create_server(("127.0.0.1", 0))
    by_path = socket.socket(socket.AF_UNIX)
    by_path.bind(scratch + "/victim.sock")
    os.chmod(scratch + "/victim.sock", 0o777)
    by_path.listen(100)
    abstract = b"\0cliproxy-test-%d" % os.getpid()
    by_name = socket.socket(socket.AF_UNIX)
    by_name.bind(abstract)
    by_name.listen(100)
    ready, tell = os.pipe()
    victim = os.fork()
    if victim == 0:
        prctl(1, signal.SIGKILL)
        if os.geteuid() == 0 and uid:
            become_ordinary(uid)
            prctl(1, signal.SIGKILL)
        os.write(tell, b"!")
        waiting = [server, by_path, by_name]
        while True:
            for one in select.select(waiting, [], [])[0]:
                one.accept()
    os.read(ready, 1)
    os.close(ready)
    os.close(tell)
    for sock in (server, by_path, by_name):
        sock.setblocking(False)
    left, right = socket.socketpair()
    scene = Scene(
        victim=victim,
        secret=ctypes.addressof(secret),
        tcp_port=server.getsockname()[1],
        unix_path=scratch + "/victim.sock",
        abstract=abstract,
        file=scratch + "/log",
        scratch=scratch,
        channel=(left.detach(), right.detach()),
        listener=LISTENER,
    )
    Path(scene.file).write_bytes(b"x" * 8192)
    os.chmod(scene.file, 0o666)
    return scene, [victim]


def outcome_of(act: Callable[[], object]) -> str:
    try:
        act()
    except OSError as error:
        if isinstance(error, ImportError):
            return type(error).__name__
        return errno.errorcode.get(error.errno or 0, type(error).__name__)
    except BaseException as error:  # the name is the finding
        return type(error).__name__ if not isinstance(error, AssertionError) else f"AssertionError: {error}"
    return "done"


def in_a_process(role: str, uid: int, prepare: Callable[[], Any], act: Callable[[Any], object], channel: tuple[int, int]) -> str:
    """Fork, prepare, lock down, act; return the outcome."""
    ours, theirs = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(ours)
        for number, end in zip(channel, socket.socketpair(), strict=True):
            os.dup2(end.fileno(), number)
        try:
            prepared = prepare()
            if role != "unlocked":
                listening = frozenset({LISTENER}) if role in WHO_LISTENS else frozenset()
                keep = frozenset(int(name) for name in os.listdir("/proc/self/fd"))
                lock_down(
                    PROFILES[role],
                    keep=keep,
                    ancillary=frozenset(channel),
                    replaceable=frozenset(channel[:1]),
                    listening=listening,
                    uid=uid,
                    gid=uid,
                    parent_pid=parent,
                )
            found = outcome_of(lambda: act(prepared))
        except BaseException as error:
            found = f"before: {type(error).__name__}: {error}"
        os.write(theirs, found.encode())
        os._exit(0)
    os.close(theirs)
    readable, _, _ = select.select([ours], [], [], PATIENCE_SECONDS)
    found = os.read(ours, 4096).decode() if readable else "too slow"
    os.close(ours)
    if not readable:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and readable:
        return signal.Signals(os.WTERMSIG(status)).name
    return found or "done"  # execve leaves no message


def main(role: str, identity: str) -> None:
    scratch = tempfile.mkdtemp(prefix="cliproxy-sandbox-")
    os.chmod(scratch, 0o777)
    try:
        uid = {"own uid": ROLE_UID, "container": 0, "user": os.geteuid() or ORDINARY_UID}[identity]
        place: Workplace = make_workplace(scratch, uid)
        if identity == "user" and os.geteuid() == 0:
            os.chown(scratch, uid, uid)
            become_ordinary(uid)
        scene, children = start_victim(uid, scratch)
        results: dict[str, str] = {}
        try:
            for attack in attacks_here():
                if role == "unlocked" and attack.unlocked is None:
                    continue
                prepare = attack.prepare or (lambda scene: None)
                results[attack.name] = in_a_process(role, uid, partial(prepare, scene), partial(attack.attempt, scene), scene.channel)
            for job in jobs_of(role):
                results[job.name] = in_a_process(role, uid, partial(job.prepare, place, scene.channel), job.work, scene.channel)
        finally:
            for child in children:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
        print(json.dumps(results))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
