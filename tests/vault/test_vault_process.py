"""The vault as it runs: a process of its own under its own filter, spoken to over its channels only."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cliproxy.audit.events import ChannelViolation, CredentialAccess, CredentialChange, KeyChange, PolicyChange, VaultCommit, VaultIntent
from cliproxy.config.schema import Provider
from cliproxy.ipc import commands, messages
from cliproxy.ipc.channel import ChannelClosed
from cliproxy.ipc.control import Down, Up
from cliproxy.processes.topology import VaultDescriptors
from cliproxy.secret import Secret
from vault.vault_process import PROVIDERS, LogOfEvents, Start, VaultProcess, create, digest

SECRET = b"sk-canary-Zx9QvT4mW7kLp2Rb8Ny5"


def test_a_first_start_makes_a_vault_that_the_log_knows(start: Start, log: LogOfEvents) -> None:
    vault = start().ready()
    log.wait_for(VaultCommit)
    assert [type(event) for event in log.events] == [VaultIntent, VaultCommit]
    status = vault.ask(commands.GetVaultStatus)
    assert (status.epoch, status.root.hex(), status.records) == (1, log.events[1].root, 3)
    assert (status.vault_id, status.public_key) == (vault.identity.vault, vault.identity.public_key)
    assert vault.stop() == 0
    again = start().ready()
    assert log.keys[0] == log.keys[1]
    assert len(log.keys[0]) == 32
    assert again.ask(commands.GetVaultStatus).vault_id == status.vault_id


def test_it_serves_under_its_own_filter_with_nothing_to_open(start: Start) -> None:
    vault = start().ready()
    create(vault)
    vault.add_credential(SECRET)
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{vault.pid}/status").read_text().splitlines() if ":\t" in line)
    assert (status["Seccomp"], status["NoNewPrivs"], status["Threads"]) == ("2", "1", "1")


@pytest.mark.skipif(os.geteuid() != 0, reason="a uid of its own needs root")
def test_with_a_uid_of_its_own_it_reads_and_writes_what_root_opened(start: Start) -> None:
    for turn in range(2):
        vault = start(uid=64201).ready()
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{vault.pid}/status").read_text().splitlines() if ":\t" in line)
        assert status["Uid"].split() == ["64201"] * 4
        assert isinstance(create(vault, turn), commands.KeyCreated)
        assert len(vault.ask(commands.ListKeys).keys) == turn + 1
        vault.kill()
        assert {file.stat().st_uid for file in (vault.home / "auths").iterdir()} == {0}


def test_keys_and_credentials_survive_a_restart_and_reach_egress(start: Start, log: LogOfEvents) -> None:
    vault = start().ready()
    made = create(vault, networks=("10.0.0.0/8",), requests_per_minute=5).key
    added = vault.add_credential(SECRET).credential
    assert added.origin == "https://api.example.com:443"
    vault.kill()
    vault = start().ready()
    vault.hello()
    number, keys, _, grants = vault.state_for_egress()
    assert number == 2
    assert keys[made.id].digest == digest(1)
    assert (keys[made.id].networks, keys[made.id].requests_per_minute) == (("10.0.0.0/8",), 5)
    grant = grants[added.id]
    assert (grant.provider, grant.origin, grant.secret.reveal()) == ("api", "https://api.example.com:443", SECRET)
    assert log.wait_for(CredentialAccess) == [CredentialAccess(credential=added.id, origin=grant.origin, provider="api", purpose="grant")]
    changes = [(type(event), event.action, event.operator) for event in log.events if isinstance(event, KeyChange | CredentialChange)]
    assert changes == [(KeyChange, "created", "uid:0"), (CredentialChange, "added", "uid:0")]


def test_no_secret_is_in_an_event_an_answer_or_a_file(start: Start, log: LogOfEvents) -> None:
    vault = start().ready()
    vault.add_credential(SECRET)
    vault.hello()
    vault.state_for_egress()
    assert SECRET.decode() not in repr(log.events)
    shown = vault.ask(commands.ListCredentials)
    assert SECRET.decode() not in repr(shown)
    assert all(SECRET not in file.read_bytes() for file in (vault.home / "auths").iterdir())


def test_a_revocation_is_answered_with_what_egress_acknowledged(start: Start) -> None:
    vault = start().ready()
    vault.hello()
    vault.state_for_egress()
    made = []
    for number in (1, 2):
        vault.admin.send(commands.Asked(request=number, operator="uid:0", command=commands.CreateKey(digest=digest(number), name=f"k{number}", models=("*",))))
        change = vault.next_for_egress()
        assert isinstance(change, messages.PolicyChange)
        assert change.number == number + 1
        vault.egress.send(messages.PolicyAck(number=change.number, workers=1, of_workers=1, streams_ended=0))
        made.append(vault.answer(number).key)
        assert change.keys[0].id == made[-1].id
    vault.admin.send(commands.Asked(request=7, operator="uid:0", command=commands.RevokeKey(key="k1")))
    assert vault.next_for_egress() == messages.PolicyChange(number=4, revoked=(made[0].id,))
    vault.egress.send(messages.PolicyAck(number=4, workers=3, of_workers=4, streams_ended=2))
    assert vault.answer(7) == commands.KeyRevoked(id=made[0].id, serving=True, egress=True, workers=3, of_workers=4, streams_ended=2)


def test_a_silent_egress_does_not_hold_the_answer_for_ever(start: Start) -> None:
    vault = start().ready()
    create(vault)
    vault.hello()
    vault.state_for_egress()
    answer = vault.ask(commands.RevokeKey, key="key 1")
    assert (answer.serving, answer.egress, answer.workers) == (True, False, 0)
    assert vault.ask(commands.ListKeys).keys[0].revoked_at > 0


def test_an_egress_that_goes_away_while_its_word_is_awaited_ends_the_wait(start: Start) -> None:
    vault = start().ready()
    create(vault)
    vault.hello()
    vault.state_for_egress()
    vault.admin.send(commands.Asked(request=9, operator="uid:0", command=commands.RevokeKey(key="key 1")))
    vault.next_for_egress()
    vault.egress.close()
    assert vault.answer(9).egress is False


@pytest.mark.parametrize("serving", [True, False])
def test_without_egress_a_revocation_is_stored_and_says_so(start: Start, serving: bool) -> None:
    vault = start(serving=serving).ready()
    made = create(vault).key
    answer = vault.ask(commands.RevokeKey, key=made.id)
    assert (answer.id, answer.serving, answer.egress) == (made.id, serving, False)
    vault.stop()
    vault = start().ready()
    vault.hello()
    assert vault.state_for_egress()[1] == {}


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"name": "a\nb"}, "name"),
        ({"name": "key_0123456789abcdef"}, "taken"),
        ({"models": tuple("\U0001f600" * 190 + str(n) for n in range(60))}, "too long together"),
        ({"networks": ("10.0.0.1/8",)}, "bits set"),
        ({"networks": ("nonsense",)}, "no IP address"),
        ({"networks": ("::ffff:10.0.0.0/104",)}, "judged as IPv4"),
        ({"expires_at": 1}, "expired already"),
    ],
)
def test_a_key_that_is_not_acceptable_is_refused_and_nothing_changes(refusing: VaultProcess, fields: dict[str, Any], why: str) -> None:
    before = refusing.ask(commands.GetVaultStatus)
    wish = {"digest": digest(5), "name": "n", "models": ("*",)} | fields
    answer = refusing.ask(commands.CreateKey, **wish)
    assert isinstance(answer, commands.Refused)
    assert why in answer.message
    assert "\n" not in answer.message
    assert refusing.ask(commands.GetVaultStatus).epoch == before.epoch


def test_a_key_beyond_the_bounds_of_its_message_closes_admins_channel(start: Start, log: LogOfEvents) -> None:
    vault = start().ready()
    before = vault.ask(commands.GetVaultStatus)
    with pytest.raises(ChannelClosed):
        vault.ask(commands.CreateKey, digest=b"short", name="n", models=("*",))
    assert "may not" in log.wait_for(ChannelViolation)[0].reason
    vault.admin = type(vault.admin)(vault.replace(VaultDescriptors.ADMIN_FD), incoming=commands.VaultToAdmin, peer="vault", per_second=1e6)
    assert vault.ask(commands.GetVaultStatus).epoch == before.epoch


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VaultProcess]:
    home = tmp_path_factory.mktemp("refusing") / "home"
    home.mkdir(mode=0o700)
    vault = VaultProcess(home, LogOfEvents()).ready()
    yield vault
    vault.kill()


def test_neither_a_name_nor_a_digest_is_taken_twice(start: Start) -> None:
    vault = start().ready()
    made = create(vault, 1, name="ci").key
    assert "taken" in create(vault, 2, name="ci").message
    assert "stored before" in create(vault, 1, name="other").message
    vault.ask(commands.RevokeKey, key="ci")
    assert "stored before" in create(vault, 1, name="ci").message  # a revoked key does not come back
    assert "revoked already" in vault.ask(commands.RevokeKey, key=made.id).message
    assert "no such key" in vault.ask(commands.RevokeKey, key="ci").message
    assert isinstance(create(vault, 2, name="ci"), commands.KeyCreated)


@pytest.mark.parametrize(
    ("secret", "why"),
    [
        (b"", "1 to 8192"),
        (b"x" * 8193, "1 to 8192"),
        (b"sk-1\r\nX: y", "line break"),
        (b"sk-1\n", "line break"),
        (b"sk 1", "space"),
        ("sk-é".encode(), "ASCII"),
        (b"\x00", "ASCII"),
    ],
)
def test_a_secret_that_could_break_a_header_is_refused(refusing: VaultProcess, secret: bytes, why: str) -> None:
    answer = refusing.add_credential(secret)
    assert isinstance(answer, commands.Refused)
    assert why in answer.message
    assert refusing.ask(commands.ListCredentials).credentials == ()


@pytest.mark.parametrize(("provider", "why"), [("nobody", "no such provider"), ("free", "takes no credential"), ("named", "takes no credential")])
def test_a_credential_needs_a_provider_with_an_origin(refusing: VaultProcess, provider: str, why: str) -> None:
    assert why in refusing.add_credential(SECRET, provider=provider).message


def test_admin_cannot_redirect_a_sealed_credential(start: Start) -> None:
    """Credential redirection: a box that was sealed for one provider is presented for another."""
    vault = start(providers={**PROVIDERS, "evil": Provider(base_url="https://evil.example.com")}).ready()
    from cliproxy.vault.crypto import credential_context, seal_to

    box = seal_to(vault.identity.public_key, SECRET, context=credential_context(vault=vault.identity.vault, provider="api", label="main"))
    answer = vault.ask(commands.AddCredential, provider="evil", label="main", sealed=box)
    assert isinstance(answer, commands.Refused)
    assert isinstance(vault.ask(commands.AddCredential, provider="api", label="main", sealed=box), commands.CredentialAdded)


def test_after_a_reload_a_credential_keeps_the_origin_that_it_was_sealed_for(start: Start) -> None:
    vault = start().ready()
    first = vault.add_credential(SECRET).credential
    vault.reload({"api": Provider(base_url="https://other.example.com:8443")})
    second = vault.add_credential(SECRET, label="second").credential
    assert second.origin == "https://other.example.com:8443"
    vault.hello()
    _, _, _, grants = vault.state_for_egress()
    assert {id: grant.origin for id, grant in grants.items()} == {first.id: "https://api.example.com:443", second.id: "https://other.example.com:8443"}


def test_settings_that_are_none_are_refused_and_the_old_ones_stay(start: Start) -> None:
    vault = start().ready()
    memfd = os.memfd_create("settings")
    os.write(memfd, b"junk")
    vault.control.order(Down.PREPARE, 2, [memfd])
    os.close(memfd)
    vault.wait_for(Up.REFUSED)
    assert isinstance(vault.add_credential(SECRET), commands.CredentialAdded)


def test_a_removed_credential_is_withdrawn(start: Start, log: LogOfEvents) -> None:
    vault = start().ready()
    vault.hello()
    vault.state_for_egress()
    added = vault.add_credential(SECRET).credential
    grant = vault.next_for_egress()
    assert (grant.id, grant.secret) == (added.id, Secret(SECRET))
    assert isinstance(vault.ask(commands.RemoveCredential, id=added.id), commands.Done)
    assert vault.next_for_egress() == messages.Withdraw(id=added.id)
    assert "no credential" in vault.ask(commands.RemoveCredential, id=added.id).message
    assert [event.action for event in log.of(CredentialChange)] == ["added", "removed"]


def test_rules_are_stored_told_and_logged(start: Start, log: LogOfEvents) -> None:
    vault = start().ready()
    rules = messages.PolicyRules(blocked=("192.0.2.0/24",), lockdown=True, disabled_providers=("api",))
    assert isinstance(vault.ask(commands.SetRules, rules=rules), commands.Done)
    assert isinstance(vault.ask(commands.SetRules, rules=rules), commands.Done)  # the same again is no change
    assert "no IP address" in vault.ask(commands.SetRules, rules=messages.PolicyRules(blocked=("nonsense",))).message
    assert {(event.change, event.detail, event.number) for event in log.of(PolicyChange)} == {
        ("block", "192.0.2.0/24", 2),
        ("disable_provider", "api", 2),
        ("lockdown", "on", 2),
    }
    vault.kill()
    vault = start().ready()
    assert vault.ask(commands.GetRules).rules == rules
    vault.hello()
    number, _, seen, _ = vault.state_for_egress()
    assert (number, seen) == (2, rules)


def test_a_new_egress_gets_everything_again(start: Start) -> None:
    vault = start().ready()
    vault.hello()
    vault.state_for_egress()
    vault.egress.close()
    added = vault.add_credential(SECRET).credential
    create(vault)
    vault.egress = vault.egress_channel(vault.replace(VaultDescriptors.EGRESS_FD))
    vault.hello()
    number, keys, _, grants = vault.state_for_egress()
    assert (number, len(keys), list(grants)) == (2, 1, [added.id])


def test_the_vault_says_that_it_lives(start: Start) -> None:
    vault = start().ready()
    vault.hello()
    vault.state_for_egress()
    seen: list[Any] = []
    until = time.monotonic() + 20
    while len(seen) < 2 and time.monotonic() < until:
        select.select([vault.egress.fileno()], [], [], 1)
        seen.append(vault.egress.receive())
        seen = [message for message in seen if message is not None]
    assert seen == [messages.VaultAlive(number=1)] * 2


def test_many_keys_are_listed_and_fed_in_packets_that_fit(start: Start) -> None:
    vault = start().ready()
    models = tuple(f"{'m' * 190}-{n:03}" for n in range(60))  # 12 KiB of names in each key
    for number in range(12):
        assert isinstance(create(vault, number, models=models), commands.KeyCreated)
    listed: list[Any] = []
    more = True
    pages = 0
    while more:
        page = vault.ask(commands.ListKeys, after=listed[-1].id if listed else "")
        listed += page.keys
        more = page.more
        pages += 1
    assert len({key.id for key in listed}) == 12
    assert pages > 1
    vault.hello()
    assert len(vault.state_for_egress()[1]) == 12


def test_last_use_is_kept_over_a_stop(start: Start, log: LogOfEvents) -> None:
    vault = start().ready()
    made = create(vault).key
    vault.hello()
    vault.state_for_egress()
    now = int(time.time())
    vault.egress.send(messages.LastUse(keys={made.id: now, "key_of_nobody": now}))
    vault.egress.send(messages.LastUse(keys={made.id: now - 100}))
    vault.egress.send(messages.LastUse(keys={made.id: now + 10_000}))
    until = time.monotonic() + 20
    while vault.ask(commands.ListKeys).keys[0].last_used_at == 0 and time.monotonic() < until:
        pass
    assert vault.stop() == 0
    assert start().ready().ask(commands.ListKeys).keys[0].last_used_at == now
    assert len(log.of(VaultCommit)) == 3  # made, key, one for all uses


def test_killed_in_the_middle_of_commits_it_has_every_acknowledged_write_and_no_half(start: Start, log: LogOfEvents) -> None:
    """kill -9 at any point, again and again: old or new state, never neither."""
    acknowledged: set[str] = set()
    asked: set[str] = set()
    for turn in range(12):
        vault = start().ready()
        names = set()
        after = ""
        while True:
            page = vault.ask(commands.ListKeys, after=after)
            names |= {key.name for key in page.keys}
            if not page.more:
                break
            after = page.keys[-1].id
        assert acknowledged <= names <= asked
        acknowledged = set(names)
        status = vault.ask(commands.GetVaultStatus)
        assert (status.epoch, status.policy_number) == (1 + len(names), 1 + len(names))
        for number in range(60):
            name = f"key {turn}-{number}"
            asked.add(name)
            vault.admin.send(
                commands.Asked(
                    request=1000 + number, operator="uid:0", command=commands.CreateKey(digest=digest(turn * 1000 + number), name=name, models=("*",))
                )
            )
        until = time.monotonic() + 0.002 * (turn * 7 % 12)
        answered = 0
        while time.monotonic() < until or not answered:
            select.select([vault.admin.fileno()], [], [], 0.002)
            answer = vault.admin.receive()
            if answer is not None:
                assert isinstance(answer.answer, commands.KeyCreated), answer
                acknowledged.add(answer.answer.key.name)
                answered += 1
        vault.kill()
    assert len(acknowledged) > 12


def test_checkpoints_of_the_wal_need_nothing_that_the_filter_denies(start: Start) -> None:
    vault = start().ready()
    models = tuple(f"{'m' * 190}-{n:03}" for n in range(70 - 8))
    wal = vault.home / "auths" / "vault.db-wal"
    file = vault.home / "auths" / "vault.db"
    before = file.stat().st_size
    for number in range(500):
        assert isinstance(create(vault, number, models=models), commands.KeyCreated)
        if file.stat().st_size > before + (1 << 20):
            break
    assert file.stat().st_size > before + (1 << 20)
    assert wal.stat().st_size < 8 << 20
    assert isinstance(create(vault, 1000, models=models), commands.KeyCreated)
