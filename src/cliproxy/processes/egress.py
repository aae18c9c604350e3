"""Egress: decides which call may leave, holds the credentials in use, speaks to providers over sockets that the dialer connected.

It cannot make a socket, connect, open a file or run a program; it reaches the origins that the dialer knows and no other.
"""

from __future__ import annotations

import asyncio
import functools
import time
from typing import Final

from cliproxy.audit.client import AuditClient
from cliproxy.bounds import VAULT_SILENT_SECONDS
from cliproxy.config.schema import Settings, decode_settings
from cliproxy.egress.admission import Admission
from cliproxy.egress.authorise import Authoriser
from cliproxy.egress.dialer_client import DialerClient
from cliproxy.egress.dispatcher import Dispatcher
from cliproxy.egress.inject import Injector
from cliproxy.egress.pool import Pool
from cliproxy.egress.senders import CallSenders
from cliproxy.egress.trust import TrustStore
from cliproxy.errors import ChannelError, ForeignOrigin, UpstreamError
from cliproxy.ipc.channel import ChannelClosed
from cliproxy.ipc.messages import (
    Cooldowns,
    CooldownsChanged,
    EgressHello,
    Grant,
    GrantsEnd,
    LastUse,
    PolicyAck,
    PolicyBegin,
    PolicyChange,
    PolicyEnd,
    PolicyKeys,
    VaultAlive,
    VaultToEgress,
    Withdraw,
)
from cliproxy.ipc.policy_feed import PolicyFeed
from cliproxy.processes import child
from cliproxy.processes.child import Boot, Control
from cliproxy.processes.descriptors import channel, is_socket, take
from cliproxy.processes.lines import fault_reporter, say
from cliproxy.processes.role import Peer, Role, attend
from cliproxy.processes.topology import EGRESS, EgressDescriptors
from cliproxy.sandbox.loop import make_event_loop

AUDIT_POLL_SECONDS = 0.05  # how often egress takes in the auditor's acknowledgements
MAX_VAULT_MESSAGES_PER_SECOND = 20_000  # a snapshot of a million keys is 16,000 packets

VAULT_MESSAGES_PER_TURN: Final = 256  # a snapshot of 100,000 keys is 1,600; calls go on between


class Egress:
    """The egress process between its start and its end."""

    def __init__(self, boot: Boot) -> None:
        self.boot = boot
        self.settings = decode_settings(boot.settings)
        self.loop = make_event_loop()
        self.loop.set_exception_handler(fault_reporter(boot.name))
        self.audit = AuditClient(channel(EgressDescriptors.AUDIT_FD), deadline_seconds=self.settings.audit.deadline_seconds)
        self.trust = TrustStore(self.settings.providers)
        self.policy = PolicyFeed()
        self.injector = Injector(self.settings.providers)
        self.admission = Admission(self.settings)
        self.authoriser = Authoriser(self.settings, self.policy, self.injector, self.admission)
        self.pool: Pool | None = None
        self.dialer: DialerClient | None = None
        self.dispatcher: Dispatcher | None = None
        self.vault: Peer[VaultToEgress] = Peer(
            EgressDescriptors.VAULT_FD, name="vault", incoming=VaultToEgress, per_second=MAX_VAULT_MESSAGES_PER_SECOND, secrets=True
        )
        self.granted: set[str] = set()
        self.has_grants = False
        self.knows_cooldowns = False  # the vault has told what was known before
        self.tells_afresh = False
        self.ready = False
        self.role: Role[Settings]  # from `run` on

    # --- body ---

    def run(self, control: Control) -> None:
        """Serve until the supervisor says otherwise."""
        workers = {number: functools.partial(self.worker_replaced, index) for index, number in enumerate(EgressDescriptors.WORKER_FDS)}
        self.role = Role(
            self.boot,
            report=control.send,
            replaced={
                EgressDescriptors.AUDIT_FD: self.audit.replaced,
                EgressDescriptors.VAULT_FD: self.vault_replaced,
                EgressDescriptors.DIALER_FD: self.dialer_replaced,
                **workers,
            },
            drain=self.drain,
            settings=self,
            needs={"the vault": self.vault, "the auditor": self.audit},
        )
        self.loop.run_until_complete(self.start(control))
        self.loop.run_forever()

    async def start(self, control: Control) -> None:
        self.dialer = DialerClient(self.loop, channel(EgressDescriptors.DIALER_FD), violated=self.dialer_violated)
        self.pool = Pool(self.loop, dialer=self.dialer, providers=self.settings.providers, contexts=self.trust.contexts_for(self.settings.providers))
        self.dispatcher = Dispatcher(
            build=self.boot.build,
            generation=self.boot.generation,
            policy=self.policy,
            authoriser=self.authoriser,
            senders=CallSenders(self.pool),
            audit=self.audit,
            acknowledge=self.acknowledge,
        )
        attend(self.loop, control, self.role, name=EGRESS)
        for index, number in enumerate(EgressDescriptors.WORKER_FDS):
            if is_socket(number):
                await self.connect_worker(index)
        self.open_vault()
        self.tick()
        self.poll_audit()

    async def connect_worker(self, index: int) -> None:
        assert self.dispatcher is not None
        worker = self.dispatcher.worker(index, max_body_bytes=self.settings.server.limits.max_body_bytes * 2 + 65536)
        await self.loop.create_unix_connection(lambda: worker.channel, sock=take(EgressDescriptors.WORKER_FDS[index]))

    def tick(self) -> None:
        """Once a second."""
        self.loop.call_later(1.0, self.tick)
        assert self.dispatcher is not None
        now = time.monotonic()
        self.dispatcher.sweep(now)
        # A vault that does not answer is told nothing more: all that waited would reach it at once, and it would take us for a flood.
        if self.vault.is_there and self.policy.age(now) <= VAULT_SILENT_SECONDS:
            used = self.admission.take_last_use()
            if used:
                self.tell_vault(LastUse(keys=used))
            self.tell_cooldowns(now)
        try:
            self.role.tick(now)
        except ChannelError as error:
            child.end(EGRESS, error)

    def poll_audit(self) -> None:
        """Take in the auditor's acknowledgements. By the clock and not by the descriptor: one look for many."""
        self.loop.call_later(AUDIT_POLL_SECONDS, self.poll_audit)
        self.audit.poll(time.monotonic())

    # --- the vault ---

    def open_vault(self) -> None:
        self.vault.open()
        self.granted = set()
        if self.vault.is_there:
            self.loop.add_reader(self.vault.number, self.on_vault)
        self.tell_vault(EgressHello(build=self.boot.build))
        self.tell_all_cooldowns()

    def vault_replaced(self) -> None:
        """The vault was restarted: the channel to the new one is there."""
        self.loop.remove_reader(self.vault.number)
        self.open_vault()

    def close_vault(self) -> None:
        self.loop.remove_reader(self.vault.number)
        self.vault.close()

    def tell_vault(self, message: object) -> bool:
        """Return whether the vault's queue has it."""
        try:
            return self.vault.is_there and self.vault.send(message)
        except ChannelClosed:
            self.close_vault()
            return False

    def tell_cooldowns(self, now: float) -> None:
        """Let the vault keep what a restart must not forget: a packet a second, and everything again when a packet was lost."""
        changed = self.authoriser.take_cooldown_changes(now=now, wall=time.time()) if self.knows_cooldowns else ()
        if changed or self.tells_afresh:
            afresh, self.tells_afresh = self.tells_afresh, False
            if not self.tell_vault(CooldownsChanged(cooldowns=changed, afresh=afresh)):
                self.tell_all_cooldowns()

    def tell_all_cooldowns(self) -> None:
        self.authoriser.cooldowns.forget_told()
        self.tells_afresh = self.knows_cooldowns

    def acknowledge(self, message: PolicyAck) -> None:
        self.tell_vault(message)

    def on_vault(self) -> None:
        if not self.vault.hear(self.take, most=VAULT_MESSAGES_PER_TURN, violated=self.violation):
            self.close_vault()

    def violation(self, peer: str, error: ChannelError) -> None:
        assert self.dispatcher is not None
        self.dispatcher.violation(peer, error)

    def take(self, message: VaultToEgress) -> None:
        """Act on one message of the vault."""
        assert self.dispatcher is not None
        now = time.monotonic()
        self.policy.heard(vault_age=0.0, now=now)
        if isinstance(message, Cooldowns):
            if not self.knows_cooldowns:  # else we know better than a vault that was restarted
                self.authoriser.cooldowns.load(message.cooldowns, now=now, wall=time.time())
            return
        if isinstance(message, PolicyBegin):
            self.knows_cooldowns = True
        if isinstance(message, PolicyBegin | PolicyKeys | PolicyEnd | PolicyChange):
            self.dispatcher.policy(message)
        elif isinstance(message, Grant):
            self.granted.add(message.id)
            try:
                self.injector.grant(message.id, provider=message.provider, origin=message.origin, secret=message.secret)
            except (ForeignOrigin, UpstreamError) as error:
                say(f"cliproxy: credential {message.id} is not used: {error}")
        elif isinstance(message, GrantsEnd):
            self.injector.keep_only(frozenset(self.granted))
            self.has_grants = True
        elif isinstance(message, Withdraw):
            self.granted.discard(message.id)
            self.injector.withdraw(message.id)
        elif isinstance(message, VaultAlive) and message.number > self.policy.number >= 0:
            raise ChannelError("the vault's policy is ahead of what it sent")
        if not self.ready and self.has_grants and self.policy.number >= 0:
            self.ready = True
            self.role.ready()

    def dialer_violated(self, reason: str) -> None:
        self.violation("dialer", ChannelError(reason))

    # --- the supervisor ---

    def dialer_replaced(self) -> None:
        """The dialer was restarted: the channel to the new one is there."""
        assert self.dialer is not None
        self.dialer.replace(channel(EgressDescriptors.DIALER_FD))

    def worker_replaced(self, index: int) -> None:
        """Worker `index` was restarted (or is new): the channel to it is there."""
        self.loop.create_task(self.connect_worker(index))

    def check(self, settings: Settings) -> Settings:
        """Make what `adopt` will, once, for the errors."""
        Authoriser(settings, self.policy, Injector(settings.providers), Admission(settings))
        self.trust.contexts_for(settings.providers)
        return settings

    def adopt(self, checked: Settings) -> None:
        """Settings of a new generation."""
        assert self.pool is not None
        self.settings = checked
        self.authoriser.reconfigure(checked, now=time.monotonic())
        for id in self.injector.retable(checked.providers):
            say(f"cliproxy: credential {id} is not used: no provider of that name is at the address that it was added for")
        self.pool.retable(checked.providers, self.trust.contexts_for(checked.providers))

    def drain(self, seconds: int) -> None:
        """Let calls finish, at most `seconds`."""
        self.loop.create_task(self.finish(seconds))

    async def finish(self, seconds: int) -> None:
        assert self.dispatcher is not None
        until = time.monotonic() + seconds
        while self.dispatcher.calls_under_way and time.monotonic() < until:
            await asyncio.sleep(0.05)
        self.dispatcher.flush()
        self.role.drained()


def prepare(boot: Boot) -> Egress:
    """Make everything that egress needs; import every module that it may."""
    return Egress(boot)


def body(boot: Boot, egress: Egress, control: Control) -> None:
    """Serve."""
    egress.run(control)


if __name__ == "__main__":
    child.main(EGRESS, prepare=prepare, body=body)
