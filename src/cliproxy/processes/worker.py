"""The worker: reads clients. It holds digests, the TLS key and requests in flight; it cannot open, connect, exec or fork.

Everything that the request path needs is made in `prepare`, before the lockdown; `body` runs the event loop until told to leave.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time

from cliproxy.audit.client import AuditClient
from cliproxy.audit.events import ChannelViolation, clip
from cliproxy.config import schema
from cliproxy.config.schema import Settings, decode_settings
from cliproxy.dataplane.exchange import Exchange
from cliproxy.dataplane.link import EgressLink
from cliproxy.dataplane.server import Server
from cliproxy.dataplane.unauthenticated import AuthenticationTally
from cliproxy.errors import ChannelError
from cliproxy.ingress.rules.address_rate import AddressRate
from cliproxy.ingress.rules.table import AcceptRules
from cliproxy.ingress.tls import server_context
from cliproxy.limits.shared import RecentAddresses, SharedRates
from cliproxy.processes import child
from cliproxy.processes.child import Boot, Control
from cliproxy.processes.descriptors import channel, is_socket, take
from cliproxy.processes.lines import describe, fault_reporter, say
from cliproxy.processes.role import Role, attend
from cliproxy.processes.topology import WORKER, WorkerDescriptors
from cliproxy.sandbox.loop import make_event_loop

DRAIN_POLL_SECONDS = 0.05  # how often a draining process looks whether it is done
READY_POLL_SECONDS = 0.01  # how often a starting worker looks whether the others serve
ACCEPT_ANYWAY_SECONDS = 2.0  # a starting worker accepts connections after this even when the others do not serve, to say so (503, /healthz)


class Worker:
    """One worker process between its start and its end."""

    def __init__(self, boot: Boot) -> None:
        self.boot = boot
        self.settings: Settings = decode_settings(boot.settings)
        self.loop = make_event_loop()
        self.loop.set_exception_handler(fault_reporter(boot.name))
        self.audit = AuditClient(channel(WorkerDescriptors.AUDIT_FD), deadline_seconds=self.settings.audit.deadline_seconds)
        self.tally = AuthenticationTally()
        self.link = EgressLink(
            build=boot.build,
            generation=boot.generation,
            violation=self.violation,
            policy_applied=self.policy_applied,
            collect=self.collect,
            fault=self.fault,
        )
        server = self.settings.server
        rate = address_rate(server.rate_limit)
        self.exchange = Exchange(self.settings, self.link, self.tally, address_limit=rate, draining=lambda: self.server.draining)
        self.server = Server(
            self.exchange,
            loop=self.loop,
            limits=server.limits,
            rules=AcceptRules(server.security, server.limits, RecentAddresses(WorkerDescriptors.LIMITS_FD)),
            address_rate=rate,
            tls=server_context(server.tls) if server.tls.enabled else None,
            fault=self.fault,
            denied=self.tally.denied,
        )
        self.listening = [socket.socket(fileno=number) for number in WorkerDescriptors.LISTEN_FDS if is_socket(number)]
        for sock in self.listening:
            sock.setblocking(False)  # before the lockdown
        self.role: Role[None]  # from `run` on

    # --- body ---

    def run(self, control: Control) -> None:
        """Serve until the supervisor says otherwise."""
        self.role = Role(
            self.boot,
            report=control.send,
            replaced={WorkerDescriptors.EGRESS_FD: self.egress_replaced, WorkerDescriptors.AUDIT_FD: self.audit.replaced},
            drain=self.drain,
            needs={"egress": self.link, "the auditor": self.audit},
        )
        attend(self.loop, control, self.role, name=self.boot.name)
        self.loop.run_until_complete(self.start())
        self.loop.call_soon(self.tick)
        self.loop.call_soon(self.report_ready)
        self.loop.run_forever()

    async def start(self) -> None:
        await self.connect_egress()
        # Who connects meanwhile waits in the listening socket, or is taken by the worker that this one replaces: better than a 503. Not for ever, though.
        until = time.monotonic() + ACCEPT_ANYWAY_SECONDS
        while time.monotonic() < until and not self.link.is_ready(time.monotonic()):
            await asyncio.sleep(READY_POLL_SECONDS)
        if not self.server.draining:
            await self.server.start(self.listening)

    async def connect_egress(self) -> None:
        await self.loop.create_unix_connection(self.link.attach, sock=take(WorkerDescriptors.EGRESS_FD))

    def tick(self) -> None:
        """Once a second: deadlines, keep-alive comments, tallies, acknowledgements."""
        self.loop.call_later(1.0, self.tick)
        now = time.monotonic()
        self.exchange.sweep(now)
        self.link.watch(now)
        self.audit.poll(now)
        events = self.tally.take(int(time.time()))
        if events and not self.audit.offer(events):
            self.tally.put_back(events)
        try:
            self.role.tick(now)
        except ChannelError as error:
            child.end(self.boot.name, error)
        if self.link.build_mismatch:
            os._exit(child.EXIT_SOFTWARE)

    def report_ready(self) -> None:
        """Tell the supervisor once that egress, vault and auditor serve; until then look often, since somebody waits."""
        if self.link.is_ready(time.monotonic()):
            self.role.ready()
        else:
            self.loop.call_later(READY_POLL_SECONDS, self.report_ready)

    def collect(self, begins: bool) -> None:
        """Egress's frames of one turn begin or end: answers leave together."""
        if begins:
            self.server.collecting = True
        else:
            self.server.flush_dirty()

    def fault(self, error: BaseException) -> None:
        """A bug of ours: told by type and place, since its text could hold what a client sent."""
        say(f"cliproxy: {self.boot.name}: {describe(error)}")

    def policy_applied(self) -> None:
        """The policy feed changed. Calls of revoked keys are ended by egress; blocked addresses are the server's."""
        self.server.block(self.link.policy.rules.blocked)

    def violation(self, error: ChannelError) -> None:
        self.audit.offer([ChannelViolation(peer="egress", reason=clip(str(error)))])

    # --- the supervisor ---

    def egress_replaced(self) -> None:
        """Egress was restarted: the channel to the new one is there."""
        self.link.close()
        self.loop.create_task(self.connect_egress())

    def drain(self, seconds: int) -> None:
        """Let requests finish, at most `seconds`."""
        self.server.drain()
        self.loop.create_task(self.finish(seconds))

    async def finish(self, seconds: int) -> None:
        until = time.monotonic() + seconds
        while self.server.open_connections and time.monotonic() < until:
            await asyncio.sleep(DRAIN_POLL_SECONDS)
        self.server.abort_all()
        events = self.tally.take(int(time.time()))
        if events:
            self.audit.offer(events)
        self.role.drained()


def address_rate(limit: schema.AddressRate) -> AddressRate:
    """Return the limits of addresses, with buckets that all workers share."""
    strangers = SharedRates(WorkerDescriptors.LIMITS_FD, rate=limit.requests_per_second, burst=limit.burst)
    if not limit.authenticated_requests_per_second:
        return AddressRate(strangers, None)
    holders = SharedRates(WorkerDescriptors.LIMITS_FD, rate=limit.authenticated_requests_per_second, burst=limit.authenticated_burst, whose=b"holders")
    return AddressRate(strangers, holders)


def prepare(boot: Boot) -> Worker:
    """Make everything that the worker needs; import every module that it may."""
    return Worker(boot)


def body(boot: Boot, worker: Worker, control: Control) -> None:
    """Serve."""
    worker.run(control)


if __name__ == "__main__":
    child.main(WORKER, prepare=prepare, body=body)
