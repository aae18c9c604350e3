"""Cooldowns in the vault: what egress may tell, what is kept, and what a restart of either finds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cliproxy.bounds import COOLDOWNS_PER_PACKET, MAX_COOLDOWNS
from cliproxy.errors import ChannelError
from cliproxy.ipc import commands, messages
from cliproxy.ipc.messages import CooldownRecord
from cliproxy.vault.contents import Contents, first_records
from cliproxy.vault.feed import Feed
from cliproxy.vault.service import VaultService
from vault.vault_fakes import ListAnchor, close, new_vault, reopen

NOW = 1_700_000_000.0


def record(name: str = "p", **changes: Any) -> CooldownRecord:
    fields = {
        "provider": name,
        "credential": "cred_1",
        "model": "m",
        "endpoint": "chat_completions",
        "until": NOW + 60,
        "status": 500,
        "code": "provider_error",
    }
    return CooldownRecord(**{**fields, **changes})


class Scene:
    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700)
        self.path = directory / "vault.db"
        self.anchor = ListAnchor()
        self.now = NOW
        self.contents = Contents(new_vault(self.path, self.anchor, first_records()), anchor=self.anchor, clock=lambda: self.now)

    def again(self) -> Contents:
        close(self.contents.store)
        self.contents = Contents(reopen(self.path, self.anchor), anchor=self.anchor, clock=lambda: self.now)
        return self.contents


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path / "auths")


def test_what_was_written_is_there_after_a_restart_of_the_vault(scene: Scene) -> None:
    scene.contents.cooldowns.note([record("a"), record("b", until=NOW + 5)], afresh=False)
    scene.contents.cooldowns.note([record("b", until=0.0)], afresh=False)
    scene.contents.cooldowns.flush()
    assert scene.again().cooldowns.records() == (record("a"),)


def test_a_flush_without_news_writes_nothing(scene: Scene) -> None:
    epoch = scene.contents.store.epoch
    scene.contents.cooldowns.flush()
    assert scene.contents.store.epoch == epoch
    scene.contents.cooldowns.note([record()], afresh=False)
    scene.contents.cooldowns.flush()
    scene.contents.cooldowns.flush()
    assert scene.contents.store.epoch == epoch + 1


def test_egress_beginning_anew_voids_what_it_told_before(scene: Scene) -> None:
    scene.contents.cooldowns.note([record("a"), record("b")], afresh=False)
    scene.contents.cooldowns.note([record("c")], afresh=True)
    assert [item.provider for item in scene.contents.cooldowns.records()] == ["c"]


def test_what_ended_long_ago_is_forgotten_and_what_ended_just_now_is_half_open(scene: Scene) -> None:
    scene.contents.cooldowns.note([record("a"), record("b", until=NOW + 5000)], afresh=False)
    scene.now = NOW + 100
    assert [item.provider for item in scene.contents.cooldowns.records()] == ["a", "b"]
    assert [item.provider for item in scene.contents.cooldowns.in_force()] == ["b"]
    scene.now = NOW + 4000
    assert [item.provider for item in scene.contents.cooldowns.records()] == ["b"]


IMPOSSIBLE = {
    "for ever": record(until=math.inf),
    "no number": record(until=math.nan),
    "before time": record(until=-1.0),
    "longer than any": record(until=NOW + 100_000),
    "no status": record(status=1000),
    "negative strikes": record(strikes=-1),
    "a long name": record("p" * 1000),
    "a long model": record(model="m" * 1000),
    "a line break": record(code="a\nb"),
}


@pytest.mark.parametrize("impossible", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_a_fallen_egress_cannot_store_what_could_not_be(scene: Scene, impossible: CooldownRecord) -> None:
    with pytest.raises(ChannelError):
        scene.contents.cooldowns.note([record(), impossible], afresh=True)
    assert scene.contents.cooldowns.records() == ()


def test_what_egress_can_make_the_vault_hold_is_bounded(scene: Scene) -> None:
    cooldowns = scene.contents.cooldowns
    with pytest.raises(ChannelError):
        cooldowns.note([record(f"p{number}") for number in range(COOLDOWNS_PER_PACKET + 1)], afresh=False)
    for start in range(0, 3 * MAX_COOLDOWNS, COOLDOWNS_PER_PACKET):
        cooldowns.note([record(f"p{number}") for number in range(start, start + COOLDOWNS_PER_PACKET)], afresh=False)
    assert len(cooldowns.records()) == MAX_COOLDOWNS
    longest = [record("p" * 128, credential=f"{number:0128d}", model="m" * 256, endpoint="e" * 128, code="c" * 128) for number in range(COOLDOWNS_PER_PACKET)]
    assert len(msgspec.msgpack.encode(messages.CooldownsChanged(cooldowns=tuple(longest)))) < 64 * 1024
    cooldowns.note([], afresh=True)
    for start in range(0, MAX_COOLDOWNS, COOLDOWNS_PER_PACKET):
        cooldowns.note([msgspec.structs.replace(item, credential=f"{start + at:0128d}") for at, item in enumerate(longest)], afresh=False)
    cooldowns.flush()
    assert len(scene.again().cooldowns.records()) == MAX_COOLDOWNS


def test_egress_is_told_before_the_policy_and_so_before_any_call(scene: Scene) -> None:
    scene.contents.cooldowns.note([record("a")], afresh=False)
    sent: list[Any] = []

    def send(message: Any) -> bool:
        sent.append(message)
        return True

    feed = Feed(scene.contents, record=lambda events: True)
    feed.begin()
    assert feed.pump(send)
    assert [type(message) for message in sent[:2]] == [messages.Cooldowns, messages.PolicyBegin]
    assert sent[0].cooldowns == (record("a"),)


def test_admin_gets_them_in_pages(scene: Scene) -> None:
    for start in range(0, 192, COOLDOWNS_PER_PACKET):
        scene.contents.cooldowns.note([record(f"p{number:04d}") for number in range(start, start + COOLDOWNS_PER_PACKET)], afresh=False)
    answers: list[Any] = []
    service = VaultService(scene.contents, Feed(scene.contents, record=lambda events: True), providers={}, serving=True, answer=answers.append)
    found: list[CooldownRecord] = []
    while not answers or answers[-1].answer.more:
        service.take(commands.Asked(request=1, operator="uid:0", command=commands.ListCooldowns(after=len(found))), now=0.0)
        found += answers[-1].answer.cooldowns
    assert [item.provider for item in found] == [f"p{number:04d}" for number in range(192)]
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode({"command": "routes.cooldowns", "after": -5}), type=commands.ListCooldowns)
