"""The real vault process, locked down as always, between a supervisor, an auditor, an egress and an admin that a test plays."""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cliproxy.audit.client import ACKNOWLEDGEMENT, DURABLE, packet_decoder
from cliproxy.audit.events import VaultCommit, VaultEvent, VaultIntent
from cliproxy.config.schema import AuditSettings, Provider, Settings, encode_settings
from cliproxy.ipc import commands, messages
from cliproxy.ipc.channel import PacketChannel
from cliproxy.ipc.control import Down, Report, SupervisorControl, Up
from cliproxy.processes.boot import Boot, encode_boot, seal
from cliproxy.processes.spawn import build_id, lift, program, spawn
from cliproxy.processes.topology import BOOT_FD, CONTROL_FD, VaultDescriptors
from cliproxy.secret import Secret
from cliproxy.vault.crypto import credential_context, seal_to
from cliproxy.vault.identity import Identity, read_identity
from cliproxy.vault.master_key import into_memfd
from fakes.output import spawn_output
from vault.vault_fakes import MASTER

BUILD = build_id()
SECONDS = 20.0  # that any wait in a test may take
PROVIDERS = {"api": Provider(base_url="https://API.example.com/v1"), "free": Provider(base_url="http://127.0.0.1:9", auth="none"), "named": Provider()}


class LogOfEvents:
    """What the auditor has made durable, across restarts of both."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.keys: list[bytes] = []
        self.refuses = False  # takes packets and acknowledges none

    def anchor(self) -> messages.Anchor:
        done = next((event for event in reversed(self.events) if isinstance(event, VaultCommit)), None)
        steps = [event for event in self.events if isinstance(event, VaultCommit | VaultIntent)]
        pending = steps[-1] if steps and isinstance(steps[-1], VaultIntent) else None
        return messages.Anchor(
            epoch=done.epoch if done else 0,
            root=bytes.fromhex(done.root) if done else b"",
            pending_epoch=pending.epoch if pending else 0,
            pending_root=bytes.fromhex(pending.root) if pending else b"",
        )

    def wait_for(self, kind: type, count: int = 1) -> list[Any]:
        """The first `count` events of `kind`, as soon as they are there."""
        until = time.monotonic() + SECONDS
        while len(self.of(kind)) < count and time.monotonic() < until:
            time.sleep(0.01)
        found = self.of(kind)
        assert len(found) >= count
        return found

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


class AuditorEnd(threading.Thread):
    """The auditor's end of the vault's channel."""

    def __init__(self, sock: socket.socket, log: LogOfEvents) -> None:
        super().__init__(daemon=True)
        self.sock = sock
        self.log = log
        self.anchor: messages.Anchor | None = None
        self.start()

    def run(self) -> None:
        handshake: PacketChannel[Any] = PacketChannel(self.sock, incoming=messages.VaultToAuditor, peer="vault", per_second=100, secrets=True)
        try:
            while (message := handshake.receive()) is None:
                select.select([self.sock], [], [], 1.0)
            self.log.keys.append(message.secret.reveal())
            self.anchor = self.log.anchor()
            handshake.send(self.anchor)
            decoder = packet_decoder(VaultEvent)
            self.sock.setblocking(True)
            while packet := self.sock.recv(1 << 17):
                batch, events = decoder.decode(packet)
                if not self.log.refuses:
                    self.log.events.extend(events)
                    self.sock.send(ACKNOWLEDGEMENT.pack(DURABLE, batch))
        except Exception:  # the vault was killed, or the test ended
            return


class VaultProcess:
    """One run of the vault on `home`."""

    def __init__(
        self,
        home: Path,
        log: LogOfEvents,
        *,
        serving: bool = True,
        sandbox: bool = True,
        master: Secret = MASTER,
        providers: Any = PROVIDERS,
        audit_deadline: float = 5.0,
        uid: int | None = None,
        may_create: bool = True,
    ) -> None:
        self.home = home
        self.log = log
        self.requests = 0
        ends = {
            slot: socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            for slot in (CONTROL_FD, VaultDescriptors.AUDIT_FD, VaultDescriptors.EGRESS_FD, VaultDescriptors.ADMIN_FD)
        }
        boot = Boot(
            role="vault",
            name="vault",
            build=BUILD,
            generation=1,
            settings=encode_settings(Settings(providers=providers, audit=AuditSettings(deadline_seconds=audit_deadline))),
            home=str(home),
            uid=os.getuid() if uid is None else uid,
            gid=os.getgid() if uid is None else uid,
            operator_uid=os.getuid(),
            serving=serving,
            sandbox=sandbox,
            supervisor_pid=os.getpid(),
            may_create=may_create,
        )
        handed = {slot: lift(os.dup(theirs.fileno())) for slot, (_, theirs) in ends.items()}
        handed[BOOT_FD] = lift(seal(encode_boot(boot), name="boot"))
        handed[VaultDescriptors.MASTER_KEY_FD] = lift(into_memfd(master))
        self.pid = spawn(program("vault"), descriptors=handed, output=spawn_output())
        for descriptor in handed.values():
            os.close(descriptor)
        for _, theirs in ends.values():
            theirs.close()
        self.code: int | None = None
        self.control = SupervisorControl(ends[CONTROL_FD][0])
        self.auditor = AuditorEnd(ends[VaultDescriptors.AUDIT_FD][0], log)
        self.egress = self.egress_channel(ends[VaultDescriptors.EGRESS_FD][0])
        self.admin: PacketChannel[Any] = PacketChannel(ends[VaultDescriptors.ADMIN_FD][0], incoming=commands.VaultToAdmin, peer="vault", per_second=1e6)

    @staticmethod
    def egress_channel(sock: socket.socket) -> PacketChannel[Any]:
        return PacketChannel(sock, incoming=messages.VaultToEgress, peer="vault", per_second=1e6, secrets=True)

    # --- the supervisor's side

    def wait_for(self, kind: Up) -> Report:
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            select.select([self.control.fileno()], [], [], 1.0)
            reports = self.control.receive()
            if reports is None:
                raise AssertionError(f"the vault ended with {self.wait()}")
            for report in reports:
                if report.kind is kind:
                    return report
        raise AssertionError(f"no {kind.name}")

    def ready(self) -> VaultProcess:
        self.wait_for(Up.READY)
        return self

    def replace(self, slot: int) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        assert self.control.order(Down.REPLACE, slot, [theirs.fileno()])
        theirs.close()
        return ours

    def reload(self, providers: Any) -> None:
        memfd = seal(encode_settings(Settings(providers=providers)), name="settings")
        self.control.order(Down.PREPARE, 2, [memfd])
        os.close(memfd)
        self.wait_for(Up.PREPARED)
        self.control.order(Down.COMMIT, 2)
        self.wait_for(Up.COMMITTED)

    def wait(self) -> int:
        """The exit code; minus the signal when it was killed."""
        if self.code is None:
            descriptor = os.pidfd_open(self.pid)
            if not select.select([descriptor], [], [], SECONDS)[0]:
                os.kill(self.pid, signal.SIGKILL)
            os.close(descriptor)
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            self.auditor.join(SECONDS)
        return self.code

    def stop(self) -> int:
        self.control.order(Down.STOP)
        code = self.wait()
        self.close()
        return code

    def kill(self) -> None:
        if self.code is None:
            os.kill(self.pid, signal.SIGKILL)
        self.wait()
        self.close()

    def close(self) -> None:
        self.control.close()
        self.auditor.sock.close()
        self.egress.close()
        self.admin.close()

    # --- admin's side

    def ask(self, kind: type, **fields: Any) -> Any:
        """Send a request of admin's and return its answer."""
        self.requests += 1
        assert self.admin.send(commands.Asked(request=self.requests, operator="uid:0", command=kind(**fields)))
        return self.answer(self.requests)

    def answer(self, request: int) -> Any:
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            select.select([self.admin.fileno()], [], [], 1.0)
            message = self.admin.receive()
            if message is not None:
                assert message.request == request
                return message.answer
        raise AssertionError("admin got no answer")

    @property
    def identity(self) -> Identity:
        return read_identity(self.home / "auths" / "vault.pub")

    def add_credential(self, secret: bytes, *, provider: str = "api", label: str = "main") -> Any:
        context = credential_context(vault=self.identity.vault, provider=provider, label=label)
        sealed = seal_to(self.identity.public_key, secret, context=context)
        return self.ask(commands.AddCredential, provider=provider, label=label, sealed=sealed)

    # --- egress's side

    def hello(self, build: str = BUILD) -> None:
        self.egress.send(messages.EgressHello(build=build))

    def next_for_egress(self) -> Any:
        """The next message, beats of the heart left out."""
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            select.select([self.egress.fileno()], [], [], 1.0)
            message = self.egress.receive()
            if message is not None and not isinstance(message, messages.VaultAlive):
                return message
        raise AssertionError("egress got nothing")

    def state_for_egress(self) -> tuple[int, dict[str, messages.KeyRecord], messages.PolicyRules, dict[str, messages.Grant]]:
        """Everything up to the end of the grants."""
        keys: dict[str, messages.KeyRecord] = {}
        grants: dict[str, messages.Grant] = {}
        number, rules = -1, messages.PolicyRules()
        assert isinstance(begin := self.next_for_egress(), messages.PolicyBegin)
        while not isinstance(message := self.next_for_egress(), messages.GrantsEnd):
            if isinstance(message, messages.PolicyKeys):
                keys.update({key.id: key for key in message.keys})
            elif isinstance(message, messages.PolicyEnd):
                assert message.number == begin.number
                number, rules = message.number, message.rules
            else:
                assert number >= 0 and isinstance(message, messages.Grant)
                grants[message.id] = message
        assert message.count == len(grants)
        return number, keys, rules, grants


def digest(number: int) -> bytes:
    """A client key's digest."""
    return struct.pack(">32s", b"%032d" % number)


Start = Callable[..., VaultProcess]


def create(vault: VaultProcess, number: int = 1, **fields: Any) -> Any:
    return vault.ask(commands.CreateKey, digest=digest(number), name=fields.pop("name", f"key {number}"), models=fields.pop("models", ("*",)), **fields)


assert sys.platform == "linux"
