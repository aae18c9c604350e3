"""The operator's commands: most are passed on as they are to the vault or the auditor, and so are the answers; a few are carried out here.

`COMMANDS` is the one table: who answers a command, and what the audit log says of it. What always holds: each command is answered once, also when a peer
restarts or stays silent; a change whose audit record the auditor does not take is refused. Where the vault carries out a change it writes the audit record
too, in the order that its own log needs; here only what no other process sees is recorded: who asked for a reload, who was turned away.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec

from cliproxy.admin.questions import Questions
from cliproxy.admin.rules import RuleChanges
from cliproxy.audit.events import AdminEvent, Authentication, ConfigurationChange, CredentialChange, Event, KeyChange, PolicyChange
from cliproxy.bounds import CONTROL_REQUEST_SECONDS
from cliproxy.config.addresses import complaint_about_network
from cliproxy.config.schema import Server
from cliproxy.ipc import commands
from cliproxy.ipc.commands import AdminToAuditor, AdminToVault, AuditorToAdmin, Command, OperatorCommand, Refused, Reply, VaultToAdmin

PEER_ANSWER_SECONDS = 20.0  # from admin's question to the vault's or the auditor's answer
STATUS_WAIT_SECONDS = 2.0  # `status` says that a peer is away when it does not answer within this time

VAULT: Final = "vault"
AUDITOR: Final = "auditor"
_AWAY: Final = {
    VAULT: "the vault is restarting; try again in a moment",
    AUDITOR: "the auditor does not answer; look at the gateway's messages and at `cliproxy status`",
}
_LOST: Final = {
    VAULT: "the vault restarted before it answered; look whether the change was made, and repeat the command if not",
    AUDITOR: _AWAY[AUDITOR],
}
_NO_AUDIT = "the audit log takes nothing now, so nothing was changed; look at the gateway's messages and the disk"


class Peers(Protocol):
    """How the service reaches the others. `tell_vault` and `tell_auditor` say False when the message was not taken."""

    def tell_vault(self, message: AdminToVault) -> bool: ...
    def tell_auditor(self, message: AdminToAuditor) -> bool: ...
    def record(self, events: Sequence[AdminEvent]) -> bool: ...
    def ask_for_reload(self) -> None: ...


class Gateway(msgspec.Struct, frozen=True, kw_only=True):
    """What admin knows of the gateway it belongs to."""

    build: str
    serving: bool
    supervisor_pid: int


class AdminService:
    """`answer(ticket, reply)` is called once for each `take(ticket, ...)`. Times are monotonic seconds."""

    def __init__(self, gateway: Gateway, peers: Peers, *, answer: Callable[[int, Reply], None], generation: int, server: Server) -> None:
        self._gateway = gateway
        self._peers = peers
        self._answer = answer
        self.generation = generation
        self.server = server  # of that generation
        self.reopened = 0  # how often a listening socket that accepted nobody was made to listen again, as the supervisor says
        self._now = 0.0
        self._questions = {VAULT: Questions(VAULT, peers.tell_vault), AUDITOR: Questions(AUDITOR, peers.tell_auditor)}
        self._rules = RuleChanges(lambda operator, command, then: self._pass_on(VAULT, operator, command, then))
        self._reloads: list[tuple[int, float]] = []

    def take(self, ticket: int, operator: str, command: OperatorCommand, *, now: float) -> None:
        """Carry out `command` for `operator` (`uid:1000`)."""
        self._now = now
        row = COMMANDS[type(command)]
        complaint = row.complaint(command) if row.complaint is not None else None
        if complaint is not None:
            self._answer(ticket, Refused(message=complaint))
        elif isinstance(row.by, str):
            self._pass_on(row.by, operator, command, lambda reply: self._answer(ticket, reply))
        else:
            row.by(self, ticket, operator, command)

    def turned_away(self, uid: int, *, second: int) -> None:
        """A peer that may not use the socket connected. Told to the auditor as far as it takes it: the peer gets nothing either way."""
        event = Authentication(address="control socket", count=1, principal=f"uid:{uid}", reason="peer_uid", result="refused", second=second)
        self._peers.record((event,))

    def on_vault(self, message: VaultToAdmin) -> None:
        """An answer of the vault. Raises `ChannelError` when it fits no question."""
        self._questions[VAULT].answered(message)

    def on_auditor(self, message: AuditorToAdmin) -> None:
        """An answer of the auditor. Raises `ChannelError` when it fits no question."""
        self._questions[AUDITOR].answered(message)

    def on_vault_lost(self) -> None:
        """The channel to the vault is gone: no open question will be answered."""
        self._questions[VAULT].lost()

    def on_auditor_lost(self) -> None:
        """The channel to the auditor is gone: no open question will be answered."""
        self._questions[AUDITOR].lost()

    def on_reloaded(self, generation: int, reason: str) -> None:
        """The supervisor has ended a reload: `generation` is in force, or 0: refused, and `reason` is the line that says why."""
        tickets, self._reloads = self._reloads, []
        for ticket, _ in tickets:
            if generation:
                self._answer(ticket, commands.Reloaded(generation=generation))
            else:
                said = f"the reload was refused and the old configuration is in force: {reason or 'see the messages of the gateway'}"
                self._answer(ticket, Refused(message=said[: commands.MAX_REFUSAL_CHARS]))

    def sweep(self, now: float) -> None:
        """Give up on questions whose time is over; call it once a second."""
        self._now = now
        for questions in self._questions.values():
            questions.sweep(now)
        self._reloads = [(ticket, deadline) for ticket, deadline in self._reloads if deadline > now]

    def _pass_on(self, peer: str, operator: str, command: Command[Any], then: Callable[[Reply], None]) -> None:
        """Ask `peer`; `then` gets its answer as it is, or a refusal in its place."""

        def answered(answer: Reply | None) -> None:
            then(Refused(message=_LOST[peer]) if answer is None else answer)

        if not self._questions[peer].ask(command, answered, operator=operator, deadline=self._now + PEER_ANSWER_SECONDS):
            then(Refused(message=_AWAY[peer]))

    # --- what is carried out here ------------------------------------------------------------------------------------

    def change_rules(self, ticket: int, operator: str, command: commands.Block | commands.Unblock | commands.Lockdown) -> None:
        """Change the rules that hold for everybody."""
        self._rules.take(operator, command, lambda reply: self._answer(ticket, reply))

    def status(self, ticket: int, operator: str, command: commands.GetStatus) -> None:
        """Ask both; answer when both have answered, or their time is over."""
        found: dict[str, Reply | None] = {}

        def heard(peer: str, answer: Reply | None) -> None:
            found[peer] = answer
            if len(found) == len(self._questions):
                self._answer(ticket, self._status(found[VAULT], found[AUDITOR]))

        asked: dict[str, Command[Any]] = {VAULT: commands.GetRules(), AUDITOR: commands.GetAuditStatus()}
        for peer, question in asked.items():
            there = self._questions[peer].ask(
                question,
                lambda answer, peer=peer: heard(peer, answer),  # type: ignore[misc]
                operator=operator,
                deadline=self._now + STATUS_WAIT_SECONDS,
            )
            if not there:
                heard(peer, None)

    def _status(self, vault: Reply | None, auditor: Reply | None) -> commands.Status:
        rules = vault.rules if isinstance(vault, commands.Rules) else None
        return commands.Status(
            build=self._gateway.build,
            serving=self._gateway.serving,
            generation=self.generation,
            supervisor_pid=self._gateway.supervisor_pid,
            vault=rules is not None,
            auditor=isinstance(auditor, commands.AuditStatus) and auditor.healthy,
            lockdown=rules is not None and rules.lockdown,
            blocked=() if rules is None else rules.blocked,
            host=self.server.listen[0],
            port=self.server.port,
            reopened=self.reopened,
            cert_file=self.server.tls.cert_file if self.server.tls.enabled else "",
        )

    def reload(self, ticket: int, operator: str, command: commands.Reload) -> None:
        """Ask the supervisor, once the log has who asked; `on_reloaded` answers."""
        if not self._gateway.serving:
            self._answer(ticket, Refused(message="no gateway is running, so there is nothing to reload; start it with `cliproxy serve`"))
            return
        event = ConfigurationChange(digest="", generation=self.generation + 1, operator=operator, result="requested")
        if not self._peers.record((event,)):
            self._answer(ticket, Refused(message=_NO_AUDIT))
            return
        self._reloads.append((ticket, self._now + CONTROL_REQUEST_SECONDS))
        self._peers.ask_for_reload()


def _complaint_about_networks(command: commands.CreateKey) -> str | None:
    if any(complaint_about_network(network) for network in command.networks):
        return "a network of the key is no CIDR block; write it as 10.0.0.0/8"
    return None


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A command's row. `by`: the peer that answers it, or the method that carries it out here; `audited`: the event that tells of it, `None` for what
    changes nothing; `complaint`: what admin itself refuses before it passes the command on."""

    by: str | Callable[[AdminService, int, str, Any], None]
    audited: type[Event] | None = None
    complaint: Callable[[Any], str | None] | None = None


COMMANDS: Final[Mapping[type[Command[Any]], Row]] = {
    commands.CreateKey: Row(by=VAULT, audited=KeyChange, complaint=_complaint_about_networks),
    commands.RevokeKey: Row(by=VAULT, audited=KeyChange),
    commands.ListKeys: Row(by=VAULT),
    commands.AddCredential: Row(by=VAULT, audited=CredentialChange),
    commands.RemoveCredential: Row(by=VAULT, audited=CredentialChange),
    commands.ListCredentials: Row(by=VAULT),
    commands.ListCooldowns: Row(by=VAULT),
    commands.GetRules: Row(by=VAULT),
    commands.GetVaultStatus: Row(by=VAULT),
    commands.TakeCheckpoint: Row(by=AUDITOR),
    commands.GetAuditStatus: Row(by=AUDITOR),
    commands.Block: Row(by=AdminService.change_rules, audited=PolicyChange),
    commands.Unblock: Row(by=AdminService.change_rules, audited=PolicyChange),
    commands.Lockdown: Row(by=AdminService.change_rules, audited=PolicyChange),
    commands.GetStatus: Row(by=AdminService.status),
    commands.Reload: Row(by=AdminService.reload, audited=ConfigurationChange),
}
