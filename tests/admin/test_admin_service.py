"""The service: each command reaches whom the table names, unchanged, and is answered once, whatever the peers do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from cliproxy.admin.service import AUDITOR, COMMANDS, PEER_ANSWER_SECONDS, STATUS_WAIT_SECONDS, VAULT, AdminService, Gateway
from cliproxy.audit.events import AdminEvent, Authentication, ConfigurationChange
from cliproxy.bounds import MAX_BLOCKED_NETWORKS
from cliproxy.config.schema import Server
from cliproxy.errors import ChannelError
from cliproxy.ipc import commands
from cliproxy.ipc.commands import AdminToAuditor, AdminToVault, Answered, Asked, Refused, Reply
from cliproxy.ipc.messages import PolicyRules

KEY = commands.KeyInfo(
    id="k1",
    name="n",
    models=("*",),
    networks=(),
    created_at=1,
    expires_at=0,
    revoked_at=0,
    last_used_at=0,
    requests_per_minute=0,
    tokens_per_minute=0,
    concurrency=0,
)
CREDENTIAL = commands.CredentialInfo(id="c1", provider="up", label="l", origin="https://a.example:443", created_at=1)
DIGEST = bytes(range(32))


class Peers:
    """Records what the service says; `vault_there` and so on make it refuse."""

    def __init__(self) -> None:
        self.to_vault: list[Any] = []
        self.to_auditor: list[Any] = []
        self.events: list[AdminEvent] = []
        self.reloads = 0
        self.vault_there = self.auditor_there = self.log_takes = True

    def tell_vault(self, message: AdminToVault) -> bool:
        if self.vault_there:
            self.to_vault.append(message)
        return self.vault_there

    def tell_auditor(self, message: AdminToAuditor) -> bool:
        if self.auditor_there:
            self.to_auditor.append(message)
        return self.auditor_there

    def record(self, events: Sequence[AdminEvent]) -> bool:
        if self.log_takes:
            self.events += events
        return self.log_takes

    def ask_for_reload(self) -> None:
        self.reloads += 1


class Bench:
    def __init__(self, *, serving: bool = True) -> None:
        self.peers = Peers()
        self.answers: dict[int, Reply] = {}
        self.service = AdminService(
            Gateway(build="b", serving=serving, supervisor_pid=7), self.peers, answer=self._answered, generation=3, server=Server(port=8443)
        )
        self.tickets = 0
        self.now = 50.0

    def _answered(self, ticket: int, reply: Reply) -> None:
        assert ticket not in self.answers, "answered twice"
        self.answers[ticket] = reply

    def take(self, command: commands.OperatorCommand) -> int:
        self.tickets += 1
        self.service.take(self.tickets, "uid:1000", command, now=self.now)
        return self.tickets

    def asked(self, peer: str) -> list[Any]:
        return self.peers.to_vault if peer == VAULT else self.peers.to_auditor

    def hear(self, peer: str, answered: Any) -> None:
        (self.service.on_vault if peer == VAULT else self.service.on_auditor)(answered)

    def refused(self, ticket: int) -> str:
        reply = self.answers[ticket]
        assert isinstance(reply, Refused)
        return reply.message


@pytest.fixture
def bench() -> Bench:
    return Bench()


CREATE = commands.CreateKey(
    digest=DIGEST, name="ci", models=("a", "b"), networks=("10.0.0.0/8",), expires_at=9, requests_per_minute=1, tokens_per_minute=2, concurrency=3
)
KEY_REVOKED = commands.KeyRevoked(id="k1", serving=True, egress=True, workers=4, of_workers=4, streams_ended=2)
VAULT_STATUS = commands.VaultStatus(vault_id="v", epoch=2, root=DIGEST, records=3, key_term=1, policy_number=4, public_key=DIGEST)
AUDIT_STATUS = commands.AuditStatus(size=9, root=DIGEST, segment=1, public_key=DIGEST, healthy=True)
PASSED_ON: dict[str, tuple[str, commands.OperatorCommand, Reply]] = {
    # name: (peer, command, its answer)
    "keys.create": (VAULT, CREATE, commands.KeyCreated(key=KEY)),
    "keys.revoke": (VAULT, commands.RevokeKey(key="ci"), KEY_REVOKED),
    "keys.list": (VAULT, commands.ListKeys(after="k0"), commands.KeyPage(keys=(KEY,), more=True)),
    "credentials.add": (VAULT, commands.AddCredential(provider="up", label="l", sealed=b"box"), commands.CredentialAdded(credential=CREDENTIAL)),
    "credentials.remove": (VAULT, commands.RemoveCredential(id="c1"), commands.Done()),
    "credentials.list": (VAULT, commands.ListCredentials(), commands.CredentialPage(credentials=(CREDENTIAL,), more=False)),
    "routes.cooldowns": (VAULT, commands.ListCooldowns(after=3), commands.CooldownPage(cooldowns=(), more=False)),
    "rules": (VAULT, commands.GetRules(), commands.Rules(rules=PolicyRules(lockdown=True))),
    "vault.status": (VAULT, commands.GetVaultStatus(), VAULT_STATUS),
    "audit.checkpoint": (AUDITOR, commands.TakeCheckpoint(), commands.CheckpointTaken(note="signed")),
    "audit.status": (AUDITOR, commands.GetAuditStatus(), AUDIT_STATUS),
}


def test_the_table_of_what_is_passed_on_is_whole() -> None:
    assert {(row.by, kind) for kind, row in COMMANDS.items() if isinstance(row.by, str)} == {(peer, type(command)) for peer, command, _ in PASSED_ON.values()}


@pytest.mark.parametrize("name", PASSED_ON)
def test_a_command_and_its_answer_are_passed_on_as_they_are(bench: Bench, name: str) -> None:
    peer, command, answer = PASSED_ON[name]
    ticket = bench.take(command)
    assert bench.asked(peer) == [Asked(request=1, operator="uid:1000", command=command)]
    assert bench.answers == {}
    bench.hear(peer, Answered(request=1, answer=answer))
    assert bench.answers == {ticket: answer}


@pytest.mark.parametrize("name", PASSED_ON)
def test_a_refusal_of_the_peer_is_passed_on(bench: Bench, name: str) -> None:
    peer, command, _ = PASSED_ON[name]
    ticket = bench.take(command)
    bench.hear(peer, Answered(request=1, answer=Refused(message="no such thing; look again")))
    assert bench.refused(ticket) == "no such thing; look again"


@pytest.mark.parametrize("name", PASSED_ON)
def test_a_command_is_refused_while_the_peer_is_away(bench: Bench, name: str) -> None:
    peer, command, _ = PASSED_ON[name]
    bench.peers.vault_there = bench.peers.auditor_there = False
    assert {VAULT: "restarting", AUDITOR: "does not answer"}[peer] in bench.refused(bench.take(command))


@pytest.mark.parametrize("name", PASSED_ON)
def test_a_command_is_answered_when_the_peer_is_lost_or_silent(bench: Bench, name: str) -> None:
    peer, command, answer = PASSED_ON[name]
    ticket = bench.take(command)
    bench.service.on_vault_lost()
    bench.service.on_auditor_lost()
    assert {VAULT: "restarted before it answered", AUDITOR: "does not answer"}[peer] in bench.refused(ticket)
    ticket = bench.take(command)
    bench.service.sweep(bench.now + PEER_ANSWER_SECONDS + 1)
    assert bench.refused(ticket)
    bench.hear(peer, Answered(request=2, answer=answer))  # late: dropped


@pytest.mark.parametrize(
    "answer",
    [
        Answered(request=1, answer=commands.Done()),
        Answered(request=0, answer=commands.Rules(rules=PolicyRules())),
        Answered(request=2, answer=commands.Rules(rules=PolicyRules())),
        Answered(request=1, answer=commands.KeyPage(keys=(), more=False)),
    ],
    ids=["other kind", "request 0", "request not asked", "other page"],
)
def test_an_answer_that_fits_no_question_is_a_violation(bench: Bench, answer: Any) -> None:
    bench.take(commands.GetRules())
    with pytest.raises(ChannelError):
        bench.service.on_vault(answer)


def test_a_key_with_a_broken_network_never_gets_to_the_vault(bench: Bench) -> None:
    ticket = bench.take(commands.CreateKey(digest=DIGEST, name="n", models=("*",), networks=("10.0.0.1/8",)))
    assert "CIDR" in bench.refused(ticket)
    assert bench.peers.to_vault == []


# --- rules -----------------------------------------------------------------------------------------------------------


def answer_rules(bench: Bench, rules: PolicyRules) -> None:
    bench.service.on_vault(Answered(request=bench.peers.to_vault[-1].request, answer=commands.Rules(rules=rules)))


def test_block_reads_changes_and_sets_the_rules_and_keeps_the_others(bench: Bench) -> None:
    ticket = bench.take(commands.Block(network="203.0.113.0/24"))
    answer_rules(bench, PolicyRules(blocked=("10.0.0.0/8",), lockdown=True, disabled_providers=("up",)))
    set_rules = bench.peers.to_vault[-1]
    assert isinstance(set_rules.command, commands.SetRules)
    assert set_rules.operator == "uid:1000"
    assert set_rules.command.rules == PolicyRules(blocked=("10.0.0.0/8", "203.0.113.0/24"), lockdown=True, disabled_providers=("up",))
    assert bench.answers == {}
    bench.service.on_vault(Answered(request=set_rules.request, answer=commands.Done()))
    assert bench.answers == {ticket: commands.Done()}


def test_an_address_is_blocked_and_unblocked_however_it_is_written(bench: Bench) -> None:
    bench.take(commands.Block(network="2001:DB8::1"))
    answer_rules(bench, PolicyRules())
    assert bench.peers.to_vault[-1].command.rules.blocked == ("2001:db8::1/128",)
    bench.service.on_vault(Answered(request=bench.peers.to_vault[-1].request, answer=commands.Done()))
    bench.take(commands.Unblock(network="2001:db8:0::1/128"))
    answer_rules(bench, PolicyRules(blocked=("2001:db8::1/128",)))
    assert bench.peers.to_vault[-1].command.rules.blocked == ()


def test_a_change_that_changes_nothing_is_done_without_a_write(bench: Bench) -> None:
    ticket = bench.take(commands.Block(network="10.0.0.0/8"))
    answer_rules(bench, PolicyRules(blocked=("10.0.0.0/8",)))
    assert len(bench.peers.to_vault) == 1
    assert bench.answers == {ticket: commands.Done()}


WRONG_CHANGES: dict[str, tuple[commands.OperatorCommand, PolicyRules, str]] = {
    "nonsense": (commands.Block(network="host"), PolicyRules(), "no IP address"),
    "host bits": (commands.Block(network="10.0.0.1/8"), PolicyRules(), "write 10.0.0.0/8"),
    "mapped": (commands.Block(network="::ffff:10.0.0.0/104"), PolicyRules(), "10.0.0.0/8"),
    "not blocked": (commands.Unblock(network="10.0.0.0/8"), PolicyRules(blocked=("10.0.0.0/9",)), "is not blocked"),
    "too many": (commands.Block(network="10.0.0.0/8"), PolicyRules(blocked=tuple(str(n) for n in range(MAX_BLOCKED_NETWORKS))), "blocked already"),
}


@pytest.mark.parametrize("name", WRONG_CHANGES)
def test_a_wrong_change_is_refused_and_the_next_one_goes_on(bench: Bench, name: str) -> None:
    command, rules, said = WRONG_CHANGES[name]
    ticket = bench.take(command)
    following = bench.take(commands.Lockdown(on=True))
    answer_rules(bench, rules)
    assert said in bench.refused(ticket)
    answer_rules(bench, PolicyRules())
    bench.service.on_vault(Answered(request=bench.peers.to_vault[-1].request, answer=commands.Done()))
    assert bench.answers[following] == commands.Done()


def test_two_changes_cannot_undo_each_other(bench: Bench) -> None:
    first = bench.take(commands.Block(network="10.0.0.0/8"))
    second = bench.take(commands.Lockdown(on=True))
    assert len(bench.peers.to_vault) == 1
    answer_rules(bench, PolicyRules())
    bench.service.on_vault(Answered(request=bench.peers.to_vault[-1].request, answer=commands.Done()))
    assert first in bench.answers and second not in bench.answers
    answer_rules(bench, PolicyRules(blocked=("10.0.0.0/8",)))
    assert bench.peers.to_vault[-1].command.rules == PolicyRules(blocked=("10.0.0.0/8",), lockdown=True)


def test_changes_go_on_after_the_vault_was_lost(bench: Bench) -> None:
    first = bench.take(commands.Lockdown(on=True))
    second = bench.take(commands.Lockdown(on=False))
    bench.service.on_vault_lost()
    assert bench.refused(first)
    answer_rules(bench, PolicyRules(lockdown=True))
    bench.service.on_vault(Answered(request=bench.peers.to_vault[-1].request, answer=commands.Done()))
    assert bench.answers[second] == commands.Done()
    bench.peers.vault_there = False
    tickets = [bench.take(commands.Lockdown(on=True)) for _ in range(3)]
    assert all("restarting" in bench.refused(ticket) for ticket in tickets)


# --- the gateway -----------------------------------------------------------------------------------------------------

AUDIT_ANSWER: commands.AuditorToAdmin = Answered(request=1, answer=AUDIT_STATUS)


def test_status_puts_both_answers_together(bench: Bench) -> None:
    ticket = bench.take(commands.GetStatus())
    bench.service.on_auditor(AUDIT_ANSWER)
    assert bench.answers == {}
    bench.service.on_vault(Answered(request=1, answer=commands.Rules(rules=PolicyRules(blocked=("10.0.0.0/8",), lockdown=True))))
    assert bench.answers[ticket] == commands.Status(
        build="b",
        serving=True,
        generation=3,
        supervisor_pid=7,
        vault=True,
        auditor=True,
        lockdown=True,
        blocked=("10.0.0.0/8",),
        host="127.0.0.1",
        port=8443,
        reopened=0,
        cert_file="",
    )


def test_status_says_which_peer_does_not_answer(bench: Bench) -> None:
    ticket = bench.take(commands.GetStatus())
    bench.service.on_auditor(AUDIT_ANSWER)
    bench.service.sweep(bench.now + STATUS_WAIT_SECONDS + 0.1)
    status = bench.answers[ticket]
    assert isinstance(status, commands.Status) and (status.vault, status.auditor) == (False, True)
    bench.peers.vault_there = bench.peers.auditor_there = False
    status = bench.answers[bench.take(commands.GetStatus())]
    assert isinstance(status, commands.Status) and (status.vault, status.auditor) == (False, False)


def test_an_unhealthy_log_is_said(bench: Bench) -> None:
    ticket = bench.take(commands.GetStatus())
    bench.service.on_vault(Answered(request=1, answer=commands.Rules(rules=PolicyRules())))
    bench.service.on_auditor(Answered(request=1, answer=msgspec.structs.replace(AUDIT_STATUS, healthy=False)))
    status = bench.answers[ticket]
    assert isinstance(status, commands.Status) and not status.auditor


def test_reload_is_audited_before_it_is_asked_for(bench: Bench) -> None:
    ticket = bench.take(commands.Reload())
    assert bench.peers.events == [ConfigurationChange(digest="", generation=4, operator="uid:1000", result="requested")]
    assert bench.peers.reloads == 1
    bench.service.on_reloaded(4, "")
    assert bench.answers[ticket] == commands.Reloaded(generation=4)


def test_reload_is_refused_when_the_log_takes_nothing(bench: Bench) -> None:
    bench.peers.log_takes = False
    assert "nothing was changed" in bench.refused(bench.take(commands.Reload()))
    assert bench.peers.reloads == 0


def test_a_refused_reload_is_told_to_everyone_who_asked(bench: Bench) -> None:
    tickets = [bench.take(commands.Reload()) for _ in range(2)]
    bench.service.on_reloaded(0, "cliproxy.yaml:3: port: is no number; write one")
    assert all("was refused" in (said := bench.refused(ticket)) and said.endswith("cliproxy.yaml:3: port: is no number; write one") for ticket in tickets)
    bench.service.on_reloaded(5, "")  # by SIGHUP: nobody asked


def test_reload_without_a_gateway_is_refused() -> None:
    bench = Bench(serving=False)
    assert "no gateway is running" in bench.refused(bench.take(commands.Reload()))
    assert bench.peers.reloads == 0


def test_a_stranger_is_recorded(bench: Bench) -> None:
    bench.service.turned_away(54321, second=77)
    assert bench.peers.events == [Authentication(address="control socket", count=1, principal="uid:54321", reason="peer_uid", result="refused", second=77)]
