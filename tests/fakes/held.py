"""A gateway whose processes are the real ones but for those that the test plays itself, with nothing but the descriptors that such a process has.

The test is the supervisor. Whoever it holds is what a process would be after its fall: it may send any bytes on its channels, and it can do nothing else to
the others; `tests/processes/test_locked_roles.py` shows why.

    with Held({"worker-0"}, settings, ...) as gateway: worker = FallenWorker(gateway); worker.hello(); worker.call(1, ...)
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any, Self

import msgspec

from cliproxy.cli.home import Home
from cliproxy.cli.starting import make_plan
from cliproxy.config.schema import decode_settings
from cliproxy.ipc.control import Down, Up
from cliproxy.ipc.mux import HEADER, Kind
from cliproxy.processes.boot import Boot
from cliproxy.processes.fleet import Child, Fleet, State, Supplies
from cliproxy.processes.openings import Openings
from cliproxy.processes.spawn import FIRST_SOURCE_FD, build_id, lift, program
from cliproxy.processes.topology import EGRESS, ROLES, SUPERVISOR, WORKER, EgressDescriptors, uid_offset
from cliproxy.processes.wiring import Member
from fakes.gateway import Gateway

SECONDS = 20.0


def wait_for(question: Any, what: str = "it") -> Any:
    """Return the first true answer to `question`."""
    until = time.monotonic() + SECONDS
    while not (answer := question()):
        assert time.monotonic() < until, f"{what} never came true"
        time.sleep(0.02)
    return answer


class Held(Gateway):
    """`held`: names of the processes that the test plays (`worker-0`, `egress`). The others run, locked down as always."""

    def __init__(self, held: set[str], settings: dict[str, Any], *, credentials: dict[str, str], workers: int = 2) -> None:
        super().__init__({**settings, "server": {"workers": workers}}, credentials=credentials)
        self._held = held
        self._workers = workers
        self._before = _open_descriptors()
        self.ends: dict[tuple[str, int], socket.socket] = {}
        self._fleet: Fleet | None = None

    def __enter__(self) -> Self:
        try:
            made = json.loads(self.run("init", "--json"))
            self.key, self.log_public_key = made["key"], made["log_public_key"]
            self.configure(self.settings)
            for provider, secret in self.credentials.items():
                self.run("credentials", "add", provider, "--stdin", stdin=secret)
            self.prepare()
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def prepare(self) -> None:
        """For a subclass: the home is made and nothing runs."""

    def start(self, *options: str) -> None:
        assert not options, "the test is the supervisor, there is no command line"
        home = Home(self.home)
        plan = make_plan(home, home.config_file, serving=True, announce=False)
        settings = decode_settings(plan.settings)
        openings = Openings(plan, settings, environment={}, say=lambda line: None)
        separate = os.geteuid() == 0

        def boot_of(child: Child) -> Boot:
            own = settings.sandbox.uid_base + uid_offset(child.member.role)
            return Boot(
                role=child.member.role,
                name=child.name,
                build=build_id(),
                generation=1,
                settings=plan.settings,
                home=plan.home,
                uid=own if separate else os.geteuid(),
                gid=own if separate else os.getegid(),
                operator_uid=os.getuid(),
                serving=True,
                sandbox=True,
                supervisor_pid=os.getpid(),
            )

        supplies = Supplies(boot_of=boot_of, files_of=lambda role: openings.files_of(role, openings.listeners), program=program, output_of=self._output_of)
        self._fleet = Fleet(supplies, on_start=lambda child: None, on_end=lambda child: None)
        members = [Member(role, number) for role in ROLES for number in range(self._workers if role == WORKER else 1)]
        for member in (Member(SUPERVISOR), *members):
            if member.role == SUPERVISOR or member.name in self._held:
                self._fleet.outside[member] = self._taker(member.name)
        for member in members:
            if member not in self._fleet.outside:
                self._fleet.add(member, generation=1)
        assert self._fleet.start_due(time.monotonic()) == []

    def wait_until_ready(self, *, but: tuple[str, ...] = ()) -> None:
        """Wait until each real process has said READY, `but` those."""
        assert self._fleet is not None
        until = time.monotonic() + SECONDS
        awaited = [child for child in self._fleet if child.state is not State.READY and child.name not in but]
        waiting = {child.control: child for child in awaited if child.control is not None}
        assert len(waiting) == len(awaited), "all were started"
        while waiting:
            assert time.monotonic() < until, f"not ready: {[child.name for child in waiting.values()]}\n{self.messages()}"
            for control in select.select(list(waiting), [], [], 0.5)[0]:
                reports = control.receive()
                assert reports is not None, f"{waiting[control].name} ended\n{self.messages()}"
                if any(report.kind is Up.READY for report in reports):
                    self._fleet.ready(waiting.pop(control))

    def pid(self, name: str) -> int:
        """The pid of a real process."""
        assert self._fleet is not None
        return next(child.pid for child in self._fleet if child.name == name)

    def is_running(self, name: str) -> bool:
        """Whether a real process has not ended."""
        return os.waitpid(self.pid(name), os.WNOHANG) == (0, 0)

    def fresh(self, name: str, slot: int, *, kind: socket.SocketKind = socket.SOCK_SEQPACKET) -> socket.socket:
        """Give the real process `name` a new channel on `slot`, as after a restart of its peer, and return the peer's end."""
        assert self._fleet is not None
        near, far = socket.socketpair(socket.AF_UNIX, kind)
        near.settimeout(SECONDS)
        (child,) = [child for child in self._fleet if child.name == name]
        self._fleet.order(child, Down.REPLACE, slot, (far.fileno(),))
        far.close()
        return near

    def violations(self, source: str) -> list[dict[str, Any]]:
        """The violations that `source` has told the log of."""
        return [line for line in self.audit_lines() if line["event"] == "channel_violation" and line["source"] == source]

    def stop(self) -> None:
        if self._fleet is not None:
            for child in self._fleet:
                if child.control is not None:
                    child.control.close()
                if child.pid:
                    os.kill(child.pid, signal.SIGKILL)
                    try:
                        os.waitpid(child.pid, 0)
                    except ChildProcessError:
                        pass  # `is_running` was told of its end
            self._fleet = None
        for end in self.ends.values():
            end.close()
        for number in _open_descriptors() - self._before:
            try:
                if number >= FIRST_SOURCE_FD:  # what the supervisor's code has opened here: bare numbers, no objects that would close them again
                    os.close(number)
            except OSError:
                pass  # the listing's own

    def _taker(self, name: str) -> Any:
        def take(slot: int, descriptor: int) -> None:
            end = socket.socket(fileno=os.dup(descriptor))
            end.settimeout(SECONDS)
            self.ends[name, slot] = end

        return take

    def _output_of(self, child: Child) -> int:
        """What the children say goes where `messages` looks."""
        return lift(os.open(self.home / "stderr", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600))


def _open_descriptors() -> set[int]:
    return {int(name) for name in os.listdir("/proc/self/fd")}


class FallenWorker:
    """A worker's end of its channel to egress: any frame can be sent, well-formed or not."""

    def __init__(self, gateway: Held, number: int = 0) -> None:
        self.slot = number
        self.sock = gateway.fresh(EGRESS, EgressDescriptors.WORKER_FDS[number], kind=socket.SOCK_STREAM)
        self.rest = b""
        self.closed = False

    def send(self, kind: int, stream: int, payload: bytes) -> None:
        """Send one frame."""
        self.raw(HEADER.pack(len(payload), kind, stream) + payload)

    def raw(self, data: bytes) -> None:
        """Send bytes as they are; nothing when egress has closed the channel."""
        try:
            self.sock.sendall(data)
        except OSError:
            self.closed = True

    def hello(self, build: str | None = None) -> None:
        """Say hello."""
        self.send(Kind.HELLO, 0, msgspec.msgpack.encode([build_id() if build is None else build, 1]))

    def frames(self) -> Iterator[tuple[Kind, int, bytes]]:
        """Yield what egress sends until it closes the channel. Fails when nothing comes for a while (READINESS comes each second)."""
        while True:
            while len(self.rest) >= HEADER.size:
                length, kind, stream = HEADER.unpack_from(self.rest)
                if len(self.rest) < HEADER.size + length:
                    break
                payload, self.rest = self.rest[HEADER.size : HEADER.size + length], self.rest[HEADER.size + length :]
                yield Kind(kind), stream, payload
            try:
                data = self.sock.recv(1 << 20)
            except ConnectionResetError:
                data = b""
            if not data:
                self.closed = True
                return
            self.rest += data

    def answer(self, stream: int) -> tuple[Kind, list[Any]]:
        """Return the next ANSWER or ABORT of `stream`, decoded; (HELLO, []) when the channel was closed instead."""
        for kind, number, payload in self.frames():
            if number == stream and kind in (Kind.ANSWER, Kind.ABORT):
                return kind, msgspec.msgpack.decode(payload)
        return Kind.HELLO, []

    def is_closed(self) -> bool:
        """Whether egress closes the channel; fails if it does not."""
        until = time.monotonic() + SECONDS
        for _ in self.frames():
            assert time.monotonic() < until, "egress did not close the channel"
        return True

    def close(self) -> None:
        """Leave."""
        self.sock.close()


CREDIT = struct.Struct("<I")
POLICY_ACK = struct.Struct("<q")
