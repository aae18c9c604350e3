"""What the vault process does when a peer breaks the protocol, when the auditor is away, and when it must not start at all."""

from __future__ import annotations

import os
import select
import time
from pathlib import Path
from typing import Any

import pytest

from cliproxy.audit.events import ChannelViolation, CredentialAccess
from cliproxy.ipc import commands, messages
from cliproxy.processes.spawn import build_id
from cliproxy.processes.topology import VaultDescriptors
from cliproxy.secret import Secret
from vault.vault_process import AuditorEnd, LogOfEvents, Start, create, digest

SECRET = b"sk-canary-Zx9QvT4mW7kLp2Rb8Ny5"


class TestTheReceiverEnforces:
    @pytest.mark.parametrize(
        ("message", "reason"),
        [
            (messages.PolicyAck(number=1, workers=1, of_workers=1, streams_ended=0), "before its hello"),
            (messages.EgressHello(build="other"), "another build"),
            (messages.VaultAlive(number=1), "may not"),
            (commands.Asked(request=1, operator="uid:0", command=commands.CreateKey(digest=digest(1), name="n", models=("*",))), "may not"),
        ],
    )
    def test_egress_that_breaks_the_protocol_is_cut_off_and_logged(self, start: Start, log: LogOfEvents, message: Any, reason: str) -> None:
        vault = start().ready()
        vault.egress.send(message)
        assert vault.egress._sock.recv(1 << 16, 0) == b"" if select.select([vault.egress.fileno()], [], [], 20)[0] else False
        (violation,) = log.wait_for(ChannelViolation)
        assert violation.peer == "egress"
        assert reason in violation.reason
        assert isinstance(create(vault), commands.KeyCreated)  # the others are served on

    def test_a_second_hello_and_an_acknowledgement_of_the_future_too(self, start: Start, log: LogOfEvents) -> None:
        vault = start().ready()
        for offence in (messages.EgressHello(build=build_id()), messages.PolicyAck(number=99, workers=1, of_workers=1, streams_ended=0)):
            vault.hello()
            vault.state_for_egress()
            vault.egress.send(offence)
            with pytest.raises(Exception, match="clos"):
                while True:
                    vault.next_for_egress()
            vault.egress = vault.egress_channel(vault.replace(VaultDescriptors.EGRESS_FD))
        assert len(log.wait_for(ChannelViolation, 2)) == 2

    def test_admin_that_sends_junk_is_cut_off_and_gets_no_secret_in_any_case(self, start: Start, log: LogOfEvents) -> None:
        vault = start().ready()
        vault.admin._sock.send(b"\xc1junk")
        assert select.select([vault.admin.fileno()], [], [], 20)[0]
        assert vault.admin._sock.recv(1 << 16) == b""
        assert log.wait_for(ChannelViolation)[0].peer == "admin"
        vault.admin = type(vault.admin)(vault.replace(VaultDescriptors.ADMIN_FD), incoming=commands.VaultToAdmin, peer="vault", per_second=1e6)
        assert isinstance(vault.ask(commands.GetRules), commands.Rules)


class TestTheAuditorIsNeeded:
    def test_nothing_changes_while_no_event_becomes_durable(self, start: Start, log: LogOfEvents) -> None:
        vault = start(audit_deadline=0.3).ready()
        before = vault.ask(commands.GetVaultStatus)
        log.refuses = True
        answer = create(vault)
        assert isinstance(answer, commands.Refused)
        assert "audit log is not available" in answer.message
        assert vault.ask(commands.GetVaultStatus).root == before.root

    def test_a_new_auditor_gets_the_key_again_and_changes_go_on(self, start: Start, log: LogOfEvents) -> None:
        vault = start().ready()
        create(vault, 1)
        vault.auditor.sock.shutdown(2)
        vault.auditor.join(20)
        assert "audit log is not available" in create(vault, 2).message
        vault.auditor = AuditorEnd(vault.replace(VaultDescriptors.AUDIT_FD), log)
        until = time.monotonic() + 20
        while vault.auditor.anchor is None and time.monotonic() < until:
            time.sleep(0.01)
        assert log.keys[0] == log.keys[1]
        while isinstance(answer := create(vault, 2), commands.Refused) and time.monotonic() < until:
            pass
        assert isinstance(answer, commands.KeyCreated)

    def test_a_credential_is_not_granted_until_the_log_has_the_event(self, start: Start, log: LogOfEvents) -> None:
        vault = start().ready()
        added = vault.add_credential(SECRET).credential
        vault.auditor.sock.shutdown(2)
        vault.auditor.join(20)
        vault.hello()
        assert isinstance(vault.next_for_egress(), messages.PolicyBegin)
        assert isinstance(vault.next_for_egress(), messages.PolicyEnd)
        assert not select.select([vault.egress.fileno()], [], [], 1.5)[0]
        vault.auditor = AuditorEnd(vault.replace(VaultDescriptors.AUDIT_FD), log)
        assert vault.next_for_egress().id == added.id
        assert len(log.wait_for(CredentialAccess)) == 1


class TestItRefusesToStart:
    def refused(self, start: Start, capfd: pytest.CaptureFixture[str], **options: Any) -> str:
        vault = start(**options)
        assert vault.wait() == 78
        said = capfd.readouterr().err
        assert said.count("\n") == 1
        return said

    def test_on_a_vault_from_yesterday(self, start: Start, capfd: pytest.CaptureFixture[str]) -> None:
        vault = start().ready()
        file = vault.home / "auths" / "vault.db"
        vault.kill()
        yesterday = {path: path.read_bytes() for path in file.parent.iterdir()}
        vault = start().ready()
        create(vault)
        vault.kill()
        for path in file.parent.iterdir():
            path.write_bytes(yesterday[path])
        assert "older than the log" in self.refused(start, capfd)

    def test_with_another_master_key(self, start: Start, capfd: pytest.CaptureFixture[str]) -> None:
        start().ready().kill()
        assert "master key" in self.refused(start, capfd, master=Secret(os.urandom(32)))

    def test_when_the_vault_is_gone_but_the_log_is_there(self, start: Start, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        start().ready().kill()
        home = tmp_path / "home"
        for path in (home / "auths").iterdir():
            path.unlink()
        (home / "logs").mkdir(mode=0o700)
        (home / "logs" / "segment").write_bytes(b"{}\n")
        assert "put auths/ back" in self.refused(start, capfd)
        assert list((home / "auths").iterdir()) == []

    def test_with_a_database_that_others_can_read(self, start: Start, capfd: pytest.CaptureFixture[str]) -> None:
        vault = start().ready()
        vault.kill()
        (vault.home / "auths" / "vault.db").chmod(0o644)
        assert "chmod 600" in self.refused(start, capfd)
