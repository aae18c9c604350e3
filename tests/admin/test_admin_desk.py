"""The desk: each command becomes the right question and is answered once, whatever the peers do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from cliproxy.admin.desk import Desk, Gateway
from cliproxy.audit.events import AdminEvent, Authentication, ConfigurationChange
from cliproxy.bounds import MAX_BLOCKED_NETWORKS, PEER_ANSWER_SECONDS, STATUS_WAIT_SECONDS
from cliproxy.config.schema import Server
from cliproxy.errors import ChannelError
from cliproxy.ipc import commands, messages
from cliproxy.ipc.commands import Command, Refused, Reply
from cliproxy.ipc.messages import PolicyRules

KEY = messages.KeyInfo(
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
CREDENTIAL = messages.CredentialInfo(id="c1", provider="up", label="l", origin="https://a.example:443", created_at=1)
DIGEST = bytes(range(32))


class Peers:
    """Records what the desk says; `vault_there` and so on make it refuse."""

    def __init__(self) -> None:
        self.to_vault: list[Any] = []
        self.to_auditor: list[Any] = []
        self.events: list[AdminEvent] = []
        self.reloads = 0
        self.vault_there = self.auditor_there = self.log_takes = True

    def tell_vault(self, message: messages.AdminToVault) -> bool:
        if self.vault_there:
            self.to_vault.append(message)
        return self.vault_there

    def tell_auditor(self, message: messages.AdminToAuditor) -> bool:
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
        self.desk = Desk(Gateway(build="b", serving=serving, supervisor_pid=7), self.peers, answer=self._answered, generation=3, server=Server(port=8443))
        self.tickets = 0
        self.now = 50.0

    def _answered(self, ticket: int, reply: Reply) -> None:
        assert ticket not in self.answers, "answered twice"
        self.answers[ticket] = reply

    def take(self, command: Command) -> int:
        self.tickets += 1
        self.desk.take(self.tickets, "uid:1000", command, now=self.now)
        return self.tickets

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
THROUGH = {
    # name: (command, question to the vault, its answer, reply)
    "keys.create": (
        CREATE,
        messages.CreateKey(
            request=1,
            operator="uid:1000",
            digest=DIGEST,
            name="ci",
            models=("a", "b"),
            networks=("10.0.0.0/8",),
            expires_at=9,
            requests_per_minute=1,
            tokens_per_minute=2,
            concurrency=3,
        ),
        messages.KeyCreated(request=1, key=KEY),
        commands.KeyCreated(key=KEY),
    ),
    "keys.revoke": (
        commands.RevokeKey(key="ci"),
        messages.RevokeKey(request=1, operator="uid:1000", key="ci"),
        messages.KeyRevoked(request=1, id="k1", serving=True, egress=True, workers=4, of_workers=4, streams_ended=2),
        commands.KeyRevoked(id="k1", serving=True, egress=True, workers=4, of_workers=4, streams_ended=2),
    ),
    "keys.list": (
        commands.ListKeys(after="k0"),
        messages.ListKeys(request=1, operator="uid:1000", after="k0"),
        messages.KeyPage(request=1, keys=(KEY,), more=True),
        commands.KeyPage(keys=(KEY,), more=True),
    ),
    "credentials.add": (
        commands.AddCredential(provider="up", label="l", sealed=b"box"),
        messages.AddCredential(request=1, operator="uid:1000", provider="up", label="l", sealed=b"box"),
        messages.CredentialAdded(request=1, credential=CREDENTIAL),
        commands.CredentialAdded(credential=CREDENTIAL),
    ),
    "credentials.remove": (
        commands.RemoveCredential(id="c1"),
        messages.RemoveCredential(request=1, operator="uid:1000", id="c1"),
        messages.Done(request=1),
        commands.Done(),
    ),
    "credentials.list": (
        commands.ListCredentials(),
        messages.ListCredentials(request=1, operator="uid:1000"),
        messages.CredentialPage(request=1, credentials=(CREDENTIAL,), more=False),
        commands.CredentialPage(credentials=(CREDENTIAL,), more=False),
    ),
    "rules": (
        commands.GetRules(),
        messages.GetRules(request=1, operator="uid:1000"),
        messages.RulesInForce(request=1, rules=PolicyRules(lockdown=True)),
        commands.Rules(rules=PolicyRules(lockdown=True)),
    ),
    "vault.status": (
        commands.GetVaultStatus(),
        messages.GetVaultStatus(request=1, operator="uid:1000"),
        messages.VaultStatus(request=1, vault_id="v", epoch=2, root=b"r", records=3, key_term=1, policy_number=4, public_key=b"p"),
        commands.VaultStatus(vault_id="v", epoch=2, root=b"r", records=3, key_term=1, policy_number=4, public_key=b"p"),
    ),
}


@pytest.mark.parametrize("name", THROUGH)
def test_a_command_becomes_a_question_and_the_answer_a_reply(bench: Bench, name: str) -> None:
    command, question, answer, reply = THROUGH[name]
    ticket = bench.take(command)
    assert bench.peers.to_vault == [question]
    assert bench.answers == {}
    bench.desk.on_vault(answer)
    assert bench.answers == {ticket: reply}


@pytest.mark.parametrize("name", THROUGH)
def test_a_refusal_of_the_vault_is_passed_on(bench: Bench, name: str) -> None:
    ticket = bench.take(THROUGH[name][0])
    bench.desk.on_vault(messages.Refused(request=1, message="no such thing; look again"))
    assert bench.refused(ticket) == "no such thing; look again"


@pytest.mark.parametrize("name", THROUGH)
def test_a_command_is_refused_while_the_vault_is_away(bench: Bench, name: str) -> None:
    bench.peers.vault_there = False
    assert "restarting" in bench.refused(bench.take(THROUGH[name][0]))


@pytest.mark.parametrize("name", THROUGH)
def test_a_command_is_answered_when_the_vault_is_lost_or_silent(bench: Bench, name: str) -> None:
    ticket = bench.take(THROUGH[name][0])
    bench.desk.on_vault_lost()
    assert "restarted before it answered" in bench.refused(ticket)
    ticket = bench.take(THROUGH[name][0])
    bench.desk.sweep(bench.now + PEER_ANSWER_SECONDS + 1)
    assert bench.refused(ticket)
    bench.desk.on_vault(messages.Done(request=2))  # late: dropped


def test_every_command_is_known_to_the_desk(bench: Bench) -> None:
    for kind in Command.__args__:
        assert kind in bench.desk._takers


@pytest.mark.parametrize(
    "answer",
    [messages.Done(request=1), messages.Done(request=0), messages.Done(request=2), messages.KeyPage(request=1, keys=(), more=False)],
    ids=["other kind", "request 0", "request not asked", "other page"],
)
def test_an_answer_that_fits_no_question_is_a_violation(bench: Bench, answer: Any) -> None:
    bench.take(commands.GetRules())
    with pytest.raises(ChannelError):
        bench.desk.on_vault(answer)


def test_a_key_with_a_broken_network_never_gets_to_the_vault(bench: Bench) -> None:
    ticket = bench.take(commands.CreateKey(digest=DIGEST, name="n", models=("*",), networks=("10.0.0.1/8",)))
    assert "CIDR" in bench.refused(ticket)
    assert bench.peers.to_vault == []


# --- rules -----------------------------------------------------------------------------------------------------------


def answer_rules(bench: Bench, rules: PolicyRules) -> None:
    bench.desk.on_vault(messages.RulesInForce(request=bench.peers.to_vault[-1].request, rules=rules))


def test_block_reads_changes_and_sets_the_rules_and_keeps_the_others(bench: Bench) -> None:
    ticket = bench.take(commands.Block(network="203.0.113.0/24"))
    answer_rules(bench, PolicyRules(blocked=("10.0.0.0/8",), lockdown=True, disabled_providers=("up",)))
    set_rules = bench.peers.to_vault[-1]
    assert isinstance(set_rules, messages.SetRules)
    assert set_rules.operator == "uid:1000"
    assert set_rules.rules == PolicyRules(blocked=("10.0.0.0/8", "203.0.113.0/24"), lockdown=True, disabled_providers=("up",))
    assert bench.answers == {}
    bench.desk.on_vault(messages.Done(request=set_rules.request))
    assert bench.answers == {ticket: commands.Done()}


def test_an_address_is_blocked_and_unblocked_however_it_is_written(bench: Bench) -> None:
    bench.take(commands.Block(network="2001:DB8::1"))
    answer_rules(bench, PolicyRules())
    assert bench.peers.to_vault[-1].rules.blocked == ("2001:db8::1/128",)
    bench.desk.on_vault(messages.Done(request=bench.peers.to_vault[-1].request))
    bench.take(commands.Unblock(network="2001:db8:0::1/128"))
    answer_rules(bench, PolicyRules(blocked=("2001:db8::1/128",)))
    assert bench.peers.to_vault[-1].rules.blocked == ()


def test_a_change_that_changes_nothing_is_done_without_a_write(bench: Bench) -> None:
    ticket = bench.take(commands.Block(network="10.0.0.0/8"))
    answer_rules(bench, PolicyRules(blocked=("10.0.0.0/8",)))
    assert len(bench.peers.to_vault) == 1
    assert bench.answers == {ticket: commands.Done()}


WRONG_CHANGES = {
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
    bench.desk.on_vault(messages.Done(request=bench.peers.to_vault[-1].request))
    assert bench.answers[following] == commands.Done()


def test_two_changes_cannot_undo_each_other(bench: Bench) -> None:
    first = bench.take(commands.Block(network="10.0.0.0/8"))
    second = bench.take(commands.Lockdown(on=True))
    assert len(bench.peers.to_vault) == 1
    answer_rules(bench, PolicyRules())
    bench.desk.on_vault(messages.Done(request=bench.peers.to_vault[-1].request))
    assert first in bench.answers and second not in bench.answers
    answer_rules(bench, PolicyRules(blocked=("10.0.0.0/8",)))
    assert bench.peers.to_vault[-1].rules == PolicyRules(blocked=("10.0.0.0/8",), lockdown=True)


def test_changes_go_on_after_the_vault_was_lost(bench: Bench) -> None:
    first = bench.take(commands.Lockdown(on=True))
    second = bench.take(commands.Lockdown(on=False))
    bench.desk.on_vault_lost()
    assert bench.refused(first)
    answer_rules(bench, PolicyRules(lockdown=True))
    bench.desk.on_vault(messages.Done(request=bench.peers.to_vault[-1].request))
    assert bench.answers[second] == commands.Done()
    bench.peers.vault_there = False
    tickets = [bench.take(commands.Lockdown(on=True)) for _ in range(3)]
    assert all("restarting" in bench.refused(ticket) for ticket in tickets)


# --- the gateway -----------------------------------------------------------------------------------------------------

AUDIT_STATUS = messages.AuditStatus(request=2, size=9, root=b"r", segment=1, note="", public_key=b"p", healthy=True)


def test_status_puts_both_answers_together(bench: Bench) -> None:
    ticket = bench.take(commands.GetStatus())
    bench.desk.on_auditor(AUDIT_STATUS)
    assert bench.answers == {}
    bench.desk.on_vault(messages.RulesInForce(request=1, rules=PolicyRules(blocked=("10.0.0.0/8",), lockdown=True)))
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
        cert_file="",
    )


def test_status_says_which_peer_does_not_answer(bench: Bench) -> None:
    ticket = bench.take(commands.GetStatus())
    bench.desk.on_auditor(AUDIT_STATUS)
    bench.desk.sweep(bench.now + STATUS_WAIT_SECONDS + 0.1)
    status = bench.answers[ticket]
    assert isinstance(status, commands.Status) and (status.vault, status.auditor) == (False, True)
    bench.peers.vault_there = bench.peers.auditor_there = False
    status = bench.answers[bench.take(commands.GetStatus())]
    assert isinstance(status, commands.Status) and (status.vault, status.auditor) == (False, False)


def test_an_unhealthy_log_is_said(bench: Bench) -> None:
    ticket = bench.take(commands.GetStatus())
    bench.desk.on_vault(messages.RulesInForce(request=1, rules=PolicyRules()))
    bench.desk.on_auditor(messages.AuditStatus(request=2, size=9, root=b"r", segment=1, note="", public_key=b"p", healthy=False))
    status = bench.answers[ticket]
    assert isinstance(status, commands.Status) and not status.auditor


def test_reload_is_audited_before_it_is_asked_for(bench: Bench) -> None:
    ticket = bench.take(commands.Reload())
    assert bench.peers.events == [ConfigurationChange(digest="", generation=4, operator="uid:1000", result="requested")]
    assert bench.peers.reloads == 1
    bench.desk.on_reloaded(4, "")
    assert bench.answers[ticket] == commands.Reloaded(generation=4)


def test_reload_is_refused_when_the_log_takes_nothing(bench: Bench) -> None:
    bench.peers.log_takes = False
    assert "nothing was changed" in bench.refused(bench.take(commands.Reload()))
    assert bench.peers.reloads == 0


def test_a_refused_reload_is_told_to_everyone_who_asked(bench: Bench) -> None:
    tickets = [bench.take(commands.Reload()) for _ in range(2)]
    bench.desk.on_reloaded(0, "cliproxy.yaml:3: port: is no number; write one")
    assert all("was refused" in (said := bench.refused(ticket)) and said.endswith("cliproxy.yaml:3: port: is no number; write one") for ticket in tickets)
    bench.desk.on_reloaded(5, "")  # by SIGHUP: nobody asked


def test_reload_without_a_gateway_is_refused() -> None:
    bench = Bench(serving=False)
    assert "no gateway is running" in bench.refused(bench.take(commands.Reload()))
    assert bench.peers.reloads == 0


def test_a_checkpoint_comes_from_the_auditor(bench: Bench) -> None:
    ticket = bench.take(commands.TakeCheckpoint())
    assert bench.peers.to_auditor == [messages.TakeCheckpoint(request=1, operator="uid:1000")]
    bench.desk.on_auditor(messages.CheckpointTaken(request=1, note="signed"))
    assert bench.answers[ticket] == commands.Checkpoint(note="signed")


def test_audit_status_comes_from_the_auditor(bench: Bench) -> None:
    ticket = bench.take(commands.GetAuditStatus())
    bench.desk.on_auditor(messages.AuditStatus(request=1, size=9, root=b"r", segment=2, note="n", public_key=b"p", healthy=True))
    assert bench.answers[ticket] == commands.AuditStatus(size=9, root=b"r", segment=2, public_key=b"p", healthy=True)


def test_the_auditor_away_lost_or_refusing_is_said(bench: Bench) -> None:
    ticket = bench.take(commands.TakeCheckpoint())
    bench.desk.on_auditor_lost()
    assert "does not answer" in bench.refused(ticket)
    ticket = bench.take(commands.TakeCheckpoint())
    bench.desk.on_auditor(messages.Refused(request=2, message="disk full; make room"))
    assert bench.refused(ticket) == "disk full; make room"
    bench.peers.auditor_there = False
    assert "does not answer" in bench.refused(bench.take(commands.TakeCheckpoint()))


def test_a_stranger_is_recorded(bench: Bench) -> None:
    bench.desk.turned_away(54321, second=77)
    assert bench.peers.events == [Authentication(address="control socket", count=1, principal="uid:54321", reason="peer_uid", result="refused", second=77)]
