"""The worker: reads clients. It holds digests, the TLS key and requests in flight; it cannot open, connect, exec or fork.

Everything that the request path needs is made in `prepare`, before the lockdown; `body` runs the event loop until told to leave.
"""

from __future__ import annotations

import os
import socket
import time

from cliproxy.audit.client import AuditClient
from cliproxy.audit.events import ChannelViolation, clip
from cliproxy.config.schema import Settings, decode_settings
from cliproxy.dataplane.exchange import Exchange
from cliproxy.dataplane.link import EgressLink
from cliproxy.dataplane.server import Server
from cliproxy.dataplane.unauthenticated import AuthenticationTally
from cliproxy.errors import ChannelError
from cliproxy.ingress.tls import server_context
from cliproxy.limits.shared import SharedRates
from cliproxy.processes import child
from cliproxy.processes.child import Boot, Control, Down, Up
from cliproxy.processes.slots import channel, is_socket, take
from cliproxy.processes.topology import WORKER, WorkerSlots
from cliproxy.sandbox.loop import make_event_loop


class Worker:
    """One worker process between its start and its end."""

    def __init__(self, boot: Boot) -> None:
        self.boot = boot
        self.settings: Settings = decode_settings(boot.settings)
        self.loop = make_event_loop()
        self.audit = AuditClient(channel(WorkerSlots.AUDIT_FD), deadline_seconds=self.settings.audit.deadline_seconds)
        self.tally = AuthenticationTally()
        self.link = EgressLink(build=boot.build, generation=boot.generation, violation=self.violation, policy_applied=self.policy_applied)
        rate = self.settings.server.rate_limit
        self.rates = SharedRates(WorkerSlots.LIMITS_FD, rate=rate.requests_per_second, burst=rate.burst)
        self.exchange = Exchange(self.settings, self.link, self.tally, draining=lambda: self.draining)
        tls = self.settings.server.tls
        self.server = Server(self.settings.server, self.exchange, rates=self.rates, tls=server_context(tls) if tls.enabled else None, loop=self.loop)
        self.listening = [socket.socket(fileno=number) for number in WorkerSlots.LISTEN_FDS if is_socket(number)]
        self.draining = False
        self.ready = False
        self.control: Control | None = None

    # --- body ---

    def run(self, control: Control) -> None:
        """Serve until the supervisor says otherwise."""
        self.control = control
        self.loop.add_reader(control.fileno(), self.on_control)
        self.loop.run_until_complete(self.start())
        self.loop.call_soon(self.tick)
        self.loop.run_forever()

    async def start(self) -> None:
        await self.connect_egress()
        await self.server.start(self.listening)

    async def connect_egress(self) -> None:
        await self.loop.create_unix_connection(self.link.attach, sock=take(WorkerSlots.EGRESS_FD))

    def tick(self) -> None:
        """Once a second: deadlines, keep-alive comments, tallies, acknowledgements."""
        self.loop.call_later(1.0, self.tick)
        now = time.monotonic()
        self.server.sweep(now)
        self.exchange.sweep(now)
        self.audit.poll(now)
        events = [*self.tally.take(int(time.time())), *self.server.take_denied(int(time.time()))]
        if events and not self.audit.offer(events):
            self.tally.put_back(events)
        self.report_ready(now)
        if self.link.build_mismatch:
            self.leave(child.EXIT_SOFTWARE)

    def report_ready(self, now: float) -> None:
        if not self.ready and self.link.is_ready(now) and self.control is not None:
            self.ready = True
            self.control.send(Up.READY, self.boot.generation)

    def policy_applied(self, ended: tuple[str, ...]) -> None:
        """The policy feed changed: nothing of ours outlives a request, and egress ends calls; blocked addresses are the server's."""
        self.server.block(self.link.policy.rules.blocked)

    def violation(self, error: ChannelError) -> None:
        self.audit.offer([ChannelViolation(peer="egress", reason=clip(str(error)))])

    def on_control(self) -> None:
        assert self.control is not None
        try:
            orders = self.control.receive()
        except ChannelError:
            self.leave(0)
        for order in orders:
            if order.kind is Down.REPLACE and order.argument == WorkerSlots.EGRESS_FD:
                self.link.close()
                self.loop.create_task(self.connect_egress())
            elif order.kind is Down.REPLACE and order.argument == WorkerSlots.AUDIT_FD:
                self.audit.replaced()
            elif order.kind is Down.DRAIN:
                self.draining = True
                self.loop.create_task(self.drain(order.argument))
            elif order.kind is Down.STOP:
                self.leave(0)
            else:
                raise ChannelError(f"a worker takes no {order.kind.name}")

    async def drain(self, seconds: int) -> None:
        """Take nothing new, let requests finish, at most `seconds`."""
        await self.server.drain(float(seconds))
        events = self.tally.take(int(time.time()))
        if events:
            self.audit.offer(events)
        assert self.control is not None
        self.control.send(Up.DRAINED, self.boot.generation)

    def leave(self, code: int) -> None:
        os._exit(code)


def prepare(boot: Boot) -> Worker:
    """Make everything that the worker needs; import every module that it may."""
    return Worker(boot)


def body(boot: Boot, worker: Worker, control: Control) -> None:
    """Serve."""
    worker.run(control)


if __name__ == "__main__":
    child.main(WORKER, prepare=prepare, body=body)
