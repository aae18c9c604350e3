"""Commands of the operator turned into questions to the vault, the auditor and the supervisor, and their answers into replies.

What always holds: each command is answered once, also when a peer restarts or stays silent; a change whose audit record the auditor does not
take is refused; the rules that hold for everybody are changed one command at a time, so that two commands cannot undo each other. Where the
vault carries out the change it writes the audit record too, in the order that its own log needs; here only what no other process sees is
recorded: who asked for a reload, who was turned away.
"""

from __future__ import annotations

import ipaddress
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import msgspec

from cliproxy.audit.events import AdminEvent, Authentication, ConfigurationChange
from cliproxy.bounds import CONTROL_REQUEST_SECONDS, MAX_BLOCKED_NETWORKS, PEER_ANSWER_SECONDS, STATUS_WAIT_SECONDS
from cliproxy.config.addresses import complaint_about_network
from cliproxy.config.schema import Server
from cliproxy.errors import ChannelError
from cliproxy.ipc import commands, messages
from cliproxy.ipc.commands import Command, Refused, Reply

_VAULT_AWAY = "the vault is restarting; try again in a moment"
_VAULT_LOST = "the vault restarted before it answered; look whether the change was made, and repeat the command if not"
_NO_ANSWER = "the auditor does not answer; look at the gateway's messages and at `cliproxy status`"
_NO_AUDIT = "the audit log takes nothing now, so nothing was changed; look at the gateway's messages and the disk"


class Peers(Protocol):
    """How the desk reaches the others. `tell_vault` and `tell_auditor` say False when the message was not taken."""

    def tell_vault(self, message: messages.AdminToVault) -> bool: ...
    def tell_auditor(self, message: messages.AdminToAuditor) -> bool: ...
    def record(self, events: Sequence[AdminEvent]) -> bool: ...
    def ask_for_reload(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """What admin knows of the gateway it belongs to."""

    build: str
    serving: bool
    supervisor_pid: int


@dataclass(slots=True)
class _Asked:
    """A question under way. `then` gets the answer, or None when there will be none."""

    kinds: tuple[type[Any], ...]
    then: Callable[[Any], None]
    deadline: float


class Desk:
    """`answer(ticket, reply)` is called once for each `take(ticket, ...)`. Times are monotonic seconds."""

    def __init__(self, gateway: Gateway, peers: Peers, *, answer: Callable[[int, Reply], None], generation: int, server: Server) -> None:
        self._gateway = gateway
        self._peers = peers
        self._answer = answer
        self.generation = generation
        self.server = server  # of that generation
        self._now = 0.0
        self._last_request = 0
        self._vault: dict[int, _Asked] = {}
        self._auditor: dict[int, _Asked] = {}
        self._reloads: list[tuple[int, float]] = []
        self._changes: deque[tuple[int, str, Callable[[messages.PolicyRules], messages.PolicyRules]]] = deque()
        self._changing = False
        self._takers: dict[type, Callable[[int, str, Any], None]] = {
            commands.CreateKey: self._create_key,
            commands.RevokeKey: self._revoke_key,
            commands.ListKeys: self._list_keys,
            commands.AddCredential: self._add_credential,
            commands.RemoveCredential: self._remove_credential,
            commands.ListCredentials: self._list_credentials,
            commands.ListCooldowns: self._list_cooldowns,
            commands.Block: self._block,
            commands.Unblock: self._unblock,
            commands.Lockdown: self._lockdown,
            commands.GetRules: self._get_rules,
            commands.GetVaultStatus: self._vault_status,
            commands.GetStatus: self._status,
            commands.Reload: self._reload,
            commands.TakeCheckpoint: self._checkpoint,
            commands.GetAuditStatus: self._audit_status,
        }

    def take(self, ticket: int, operator: str, command: Command, *, now: float) -> None:
        """Carry out `command` for `operator` (`uid:1000`)."""
        self._now = now
        self._takers[type(command)](ticket, operator, command)

    def turned_away(self, uid: int, *, second: int) -> None:
        """A peer that may not use the socket connected. Told to the auditor as far as it takes it: the peer gets nothing either way."""
        event = Authentication(address="control socket", count=1, principal=f"uid:{uid}", reason="peer_uid", result="refused", second=second)
        self._peers.record((event,))

    def on_vault(self, message: messages.VaultToAdmin) -> None:
        """An answer of the vault. Raises `ChannelError` when it fits no question."""
        self._on_answer(self._vault, message, peer="vault")

    def on_auditor(self, message: messages.AuditorToAdmin) -> None:
        """An answer of the auditor. Raises `ChannelError` when it fits no question."""
        self._on_answer(self._auditor, message, peer="auditor")

    def on_vault_lost(self) -> None:
        """The channel to the vault is gone: no open question will be answered."""
        self._drop(self._vault)

    def on_auditor_lost(self) -> None:
        """The channel to the auditor is gone: no open question will be answered."""
        self._drop(self._auditor)

    def on_reloaded(self, generation: int, reason: str) -> None:
        """The supervisor has ended a reload: `generation` is in force, or 0: refused, and `reason` is the line that says why."""
        tickets, self._reloads = self._reloads, []
        for ticket, _ in tickets:
            if generation:
                self._answer(ticket, commands.Reloaded(generation=generation))
            else:
                self._refuse(ticket, f"the reload was refused and the old configuration is in force: {reason or 'see the messages of the gateway'}")

    def sweep(self, now: float) -> None:
        """Give up on questions whose time is over; call it once a second."""
        self._now = now
        for asked_of in (self._vault, self._auditor):
            for request in [number for number, asked in asked_of.items() if asked.deadline <= now]:
                asked_of.pop(request).then(None)
        self._reloads = [(ticket, deadline) for ticket, deadline in self._reloads if deadline > now]

    # --- keys and credentials ----------------------------------------------------------------------------------------

    def _create_key(self, ticket: int, operator: str, command: commands.CreateKey) -> None:
        if any(complaint_about_network(network) for network in command.networks):
            self._refuse(ticket, "a network of the key is no CIDR block; write it as 10.0.0.0/8")
            return
        fields = {name: getattr(command, name) for name in command.__struct_fields__}
        self._ask_vault(ticket, operator, messages.CreateKey, fields, messages.KeyCreated, lambda answer: commands.KeyCreated(key=answer.key))

    def _revoke_key(self, ticket: int, operator: str, command: commands.RevokeKey) -> None:
        def reply(answer: messages.KeyRevoked) -> Reply:
            return commands.KeyRevoked(
                id=answer.id,
                serving=answer.serving,
                egress=answer.egress,
                workers=answer.workers,
                of_workers=answer.of_workers,
                streams_ended=answer.streams_ended,
            )

        self._ask_vault(ticket, operator, messages.RevokeKey, {"key": command.key}, messages.KeyRevoked, reply)

    def _list_keys(self, ticket: int, operator: str, command: commands.ListKeys) -> None:
        def reply(answer: messages.KeyPage) -> Reply:
            return commands.KeyPage(keys=answer.keys, more=answer.more)

        self._ask_vault(ticket, operator, messages.ListKeys, {"after": command.after}, messages.KeyPage, reply)

    def _add_credential(self, ticket: int, operator: str, command: commands.AddCredential) -> None:
        fields = {"provider": command.provider, "label": command.label, "sealed": command.sealed}
        self._ask_vault(
            ticket, operator, messages.AddCredential, fields, messages.CredentialAdded, lambda answer: commands.CredentialAdded(credential=answer.credential)
        )

    def _remove_credential(self, ticket: int, operator: str, command: commands.RemoveCredential) -> None:
        self._ask_vault(ticket, operator, messages.RemoveCredential, {"id": command.id}, messages.Done, lambda _: commands.Done())

    def _list_credentials(self, ticket: int, operator: str, command: commands.ListCredentials) -> None:
        def reply(answer: messages.CredentialPage) -> Reply:
            return commands.CredentialPage(credentials=answer.credentials, more=answer.more)

        self._ask_vault(ticket, operator, messages.ListCredentials, {"after": command.after}, messages.CredentialPage, reply)

    def _list_cooldowns(self, ticket: int, operator: str, command: commands.ListCooldowns) -> None:
        def reply(answer: messages.CooldownPage) -> Reply:
            return commands.CooldownPage(cooldowns=answer.cooldowns, more=answer.more)

        self._ask_vault(ticket, operator, messages.ListCooldowns, {"after": command.after}, messages.CooldownPage, reply)

    # --- rules for everybody -----------------------------------------------------------------------------------------

    def _get_rules(self, ticket: int, operator: str, command: commands.GetRules) -> None:
        self._ask_vault(ticket, operator, messages.GetRules, {}, messages.RulesInForce, lambda answer: commands.Rules(rules=answer.rules))

    def _block(self, ticket: int, operator: str, command: commands.Block) -> None:
        def block(rules: messages.PolicyRules) -> messages.PolicyRules:
            network = _network(command.network)
            if network in rules.blocked:
                return rules
            if len(rules.blocked) >= MAX_BLOCKED_NETWORKS:
                _refuse_change(f"{MAX_BLOCKED_NETWORKS} networks are blocked already; unblock some, or block a wider network")
            return msgspec.structs.replace(rules, blocked=tuple(sorted((*rules.blocked, network))))

        self._change(ticket, operator, block)

    def _unblock(self, ticket: int, operator: str, command: commands.Unblock) -> None:
        def unblock(rules: messages.PolicyRules) -> messages.PolicyRules:
            network = _network(command.network)
            if network not in rules.blocked:
                _refuse_change(f"{network} is not blocked; `cliproxy status` lists what is")
            return msgspec.structs.replace(rules, blocked=tuple(item for item in rules.blocked if item != network))

        self._change(ticket, operator, unblock)

    def _lockdown(self, ticket: int, operator: str, command: commands.Lockdown) -> None:
        self._change(ticket, operator, lambda rules: msgspec.structs.replace(rules, lockdown=command.on))

    def _change(self, ticket: int, operator: str, change: Callable[[messages.PolicyRules], messages.PolicyRules]) -> None:
        self._changes.append((ticket, operator, change))
        self._next_change()

    def _next_change(self) -> None:
        """Read the rules, change them, set them; the next change only after that."""
        while self._changes and not self._changing:
            ticket, operator, change = self._changes.popleft()
            self._changing = True

            def ended(ticket: int = ticket, reply: Reply | None = None) -> None:
                self._changing = False
                self._answer(ticket, reply or Refused(message=_VAULT_LOST))
                self._next_change()

            def changed(answer: Any, ended: Callable[..., None] = ended) -> None:
                ended(reply=None if answer is None else Refused(message=answer.message) if isinstance(answer, messages.Refused) else commands.Done())

            def read(
                answer: Any,
                operator: str = operator,
                change: Callable[[messages.PolicyRules], messages.PolicyRules] = change,
                ended: Callable[..., None] = ended,
                changed: Callable[[Any], None] = changed,
            ) -> None:
                if not isinstance(answer, messages.RulesInForce):
                    ended(reply=Refused(message=answer.message) if answer else None)
                    return
                try:
                    rules = change(answer.rules)
                except _ChangeRefused as error:
                    ended(reply=Refused(message=str(error)))
                    return
                if rules == answer.rules:
                    ended(reply=commands.Done())
                elif not self._send_vault(messages.SetRules, operator, {"rules": rules}, (messages.Done, messages.RulesInForce), changed):
                    ended(reply=Refused(message=_VAULT_AWAY))

            if not self._send_vault(messages.GetRules, operator, {}, (messages.RulesInForce,), read):
                ended(reply=Refused(message=_VAULT_AWAY))

    # --- the gateway -------------------------------------------------------------------------------------------------

    def _vault_status(self, ticket: int, operator: str, command: commands.GetVaultStatus) -> None:
        def reply(answer: messages.VaultStatus) -> Reply:
            return commands.VaultStatus(**{name: getattr(answer, name) for name in commands.VaultStatus.__struct_fields__})

        self._ask_vault(ticket, operator, messages.GetVaultStatus, {}, messages.VaultStatus, reply)

    def _status(self, ticket: int, operator: str, command: commands.GetStatus) -> None:
        """Ask both; answer when both have answered, or their time is over."""
        found: dict[str, Any] = {}

        def heard(peer: str, answer: Any) -> None:
            found[peer] = answer
            if len(found) < 2:
                return
            rules = found["vault"].rules if isinstance(found["vault"], messages.RulesInForce) else None
            log = found["auditor"]
            self._answer(
                ticket,
                commands.Status(
                    build=self._gateway.build,
                    serving=self._gateway.serving,
                    generation=self.generation,
                    supervisor_pid=self._gateway.supervisor_pid,
                    vault=rules is not None,
                    auditor=isinstance(log, messages.AuditStatus) and log.healthy,
                    lockdown=rules is not None and rules.lockdown,
                    blocked=() if rules is None else rules.blocked,
                    host=self.server.listen[0],
                    port=self.server.port,
                    cert_file=self.server.tls.cert_file if self.server.tls.enabled else "",
                ),
            )

        if not self._send_vault(messages.GetRules, operator, {}, (messages.RulesInForce,), lambda answer: heard("vault", answer), seconds=STATUS_WAIT_SECONDS):
            heard("vault", None)
        if not self._send_auditor(
            messages.GetAuditStatus, operator, messages.AuditStatus, lambda answer: heard("auditor", answer), seconds=STATUS_WAIT_SECONDS
        ):
            heard("auditor", None)

    def _reload(self, ticket: int, operator: str, command: commands.Reload) -> None:
        if not self._gateway.serving:
            self._refuse(ticket, "no gateway is running, so there is nothing to reload; start it with `cliproxy serve`")
            return
        event = ConfigurationChange(digest="", generation=self.generation + 1, operator=operator, result="requested")
        if not self._peers.record((event,)):
            self._refuse(ticket, _NO_AUDIT)
            return
        self._reloads.append((ticket, self._now + CONTROL_REQUEST_SECONDS))
        self._peers.ask_for_reload()

    def _checkpoint(self, ticket: int, operator: str, command: commands.TakeCheckpoint) -> None:
        self._ask_auditor(ticket, operator, messages.TakeCheckpoint, messages.CheckpointTaken, lambda answer: commands.Checkpoint(note=answer.note))

    def _audit_status(self, ticket: int, operator: str, command: commands.GetAuditStatus) -> None:
        def reply(answer: messages.AuditStatus) -> Reply:
            return commands.AuditStatus(**{name: getattr(answer, name) for name in commands.AuditStatus.__struct_fields__})

        self._ask_auditor(ticket, operator, messages.GetAuditStatus, messages.AuditStatus, reply)

    # --- questions and answers ---------------------------------------------------------------------------------------

    def _ask_vault(self, ticket: int, operator: str, question: type[Any], fields: dict[str, Any], kind: type[Any], reply: Callable[[Any], Reply]) -> None:
        def then(answer: Any) -> None:
            if answer is None:
                self._refuse(ticket, _VAULT_LOST)
            elif isinstance(answer, messages.Refused):
                self._refuse(ticket, answer.message)
            else:
                self._answer(ticket, reply(answer))

        if not self._send_vault(question, operator, fields, (kind,), then):
            self._refuse(ticket, _VAULT_AWAY)

    def _send_vault(
        self,
        question: type[Any],
        operator: str,
        fields: dict[str, Any],
        kinds: tuple[type, ...],
        then: Callable[[Any], None],
        *,
        seconds: float = PEER_ANSWER_SECONDS,
    ) -> bool:
        request = self._expect(self._vault, (*kinds, messages.Refused), then, seconds)
        if self._peers.tell_vault(question(request=request, operator=operator, **fields)):
            return True
        self._vault.pop(request, None)
        return False

    def _ask_auditor(self, ticket: int, operator: str, question: type[Any], kind: type[Any], reply: Callable[[Any], Reply]) -> None:
        def then(answer: Any) -> None:
            if isinstance(answer, kind):
                self._answer(ticket, reply(answer))
            else:
                self._refuse(ticket, _NO_ANSWER if answer is None else answer.message)

        if not self._send_auditor(question, operator, kind, then):
            self._refuse(ticket, _NO_ANSWER)

    def _send_auditor(self, question: type[Any], operator: str, kind: type[Any], then: Callable[[Any], None], *, seconds: float = PEER_ANSWER_SECONDS) -> bool:
        request = self._expect(self._auditor, (kind, messages.Refused), then, seconds)
        if self._peers.tell_auditor(question(request=request, operator=operator)):
            return True
        self._auditor.pop(request, None)
        return False

    def _expect(self, asked_of: dict[int, _Asked], kinds: tuple[type, ...], then: Callable[[Any], None], seconds: float) -> int:
        self._last_request += 1
        asked_of[self._last_request] = _Asked(kinds, then, self._now + seconds)
        return self._last_request

    def _on_answer(self, asked_of: dict[int, _Asked], message: Any, *, peer: str) -> None:
        request: int = message.request
        asked = asked_of.get(request)
        if asked is None:
            if 0 < request <= self._last_request:
                return  # late: the question was given up
            raise ChannelError(f"{peer} answered a question that nobody asked")
        if not isinstance(message, asked.kinds):
            raise ChannelError(f"{peer} answered with {type(message).__name__}, which does not fit the question")
        del asked_of[request]
        asked.then(message)

    def _drop(self, asked_of: dict[int, _Asked]) -> None:
        dropped = list(asked_of.values())
        asked_of.clear()
        for asked in dropped:
            asked.then(None)

    def _refuse(self, ticket: int, message: str) -> None:
        self._answer(ticket, Refused(message=message))


class _ChangeRefused(Exception):
    """The rules do not allow this change; the text is for the operator."""


def _refuse_change(message: str) -> NoReturn:
    raise _ChangeRefused(message)


def _network(text: str) -> str:
    """Return the one spelling of an address or network: what is blocked can be unblocked however it is written."""
    complaint = complaint_about_network(text)
    if complaint is not None:
        _refuse_change(f"{complaint[0]}; {complaint[1]}")
    return str(ipaddress.ip_network(text))
