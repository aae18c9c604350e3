from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cliproxy.ipc import commands, messages
from cliproxy.ipc.policy_feed import PolicyFeed
from cliproxy.vault import feed as feed_module
from cliproxy.vault.contents import Contents, first_records
from cliproxy.vault.crypto import credential_context, seal_to
from cliproxy.vault.feed import Feed, GrantDue, packed
from vault.vault_fakes import ListAnchor, new_vault


class Scene:
    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700)
        self.anchor = ListAnchor()
        self.contents = Contents(new_vault(directory / "vault.db", self.anchor, first_records()), anchor=self.anchor)
        self.log: list[Any] = []
        self.takes_events = True
        self.room = 10**9
        self.sent: list[Any] = []
        self.feed = Feed(self.contents, record=self.record)

    def record(self, events: Sequence[Any]) -> bool:
        if self.takes_events:
            self.log.extend(events)
        return self.takes_events

    def send(self, message: Any) -> bool:
        if self.room == 0:
            return False
        self.room -= 1
        self.sent.append(message)
        return True

    def add(self, label: str) -> str:
        keyring = self.contents.store.keyring
        box = seal_to(keyring.public_key, b"sk-" + label.encode(), context=credential_context(vault=keyring.vault, provider="p", label=label))
        command = commands.AddCredential(provider="p", label=label, sealed=box)
        return self.contents.add_credential(command, origin="https://p:443", operator="uid:0").id

    def create(self, number: int) -> messages.PolicyChange:
        return self.contents.create_key(commands.CreateKey(digest=b"%032d" % number, name=f"k{number}", models=("*",)), operator="uid:0")[1]


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path / "auths")


def test_nothing_is_told_before_the_hello(scene: Scene) -> None:
    scene.feed.tell(scene.create(1))
    assert scene.feed.pump(scene.send)
    assert scene.sent == []


def test_a_change_never_overtakes_the_snapshot_that_it_follows(scene: Scene) -> None:
    scene.create(1)
    scene.add("a")
    scene.feed.begin()
    scene.room = 1
    assert not scene.feed.pump(scene.send)
    change = scene.create(2)  # while the snapshot is half sent
    scene.feed.tell(change)
    scene.room = 100
    assert scene.feed.pump(scene.send)
    assert [type(message).__name__ for message in scene.sent] == ["PolicyBegin", "PolicyKeys", "PolicyEnd", "Grant", "GrantsEnd", "PolicyChange"]
    assert [key.name for key in scene.sent[1].keys] == ["k1"]
    assert (scene.sent[2].number, change.number) == (2, 3)


def test_a_full_peer_gets_each_message_once(scene: Scene) -> None:
    for number in range(200):
        scene.create(number)
    scene.feed.begin()
    while not scene.feed.pump(scene.send):
        scene.room = 1
        if scene.feed.pump(scene.send):
            break
    names = [key.name for message in scene.sent if isinstance(message, messages.PolicyKeys) for key in message.keys]
    assert sorted(names) == sorted(f"k{number}" for number in range(200))
    assert all(len(message.keys) <= 64 for message in scene.sent if isinstance(message, messages.PolicyKeys))


def test_a_credential_is_opened_only_after_the_log_took_the_event(scene: Scene) -> None:
    id = scene.add("a")
    scene.takes_events = False
    scene.feed.begin()
    assert not scene.feed.pump(scene.send)
    assert scene.feed.awaits_log
    assert not any(isinstance(message, messages.Grant) for message in scene.sent)
    scene.takes_events = True
    assert scene.feed.pump(scene.send)
    (grant,) = [message for message in scene.sent if isinstance(message, messages.Grant)]
    assert (grant.id, grant.secret.reveal(), grant.origin) == (id, b"sk-a", "https://p:443")
    assert len(scene.log) == 1


def test_a_credential_that_was_removed_meanwhile_is_not_granted(scene: Scene) -> None:
    id = scene.add("a")
    scene.feed.begin()
    scene.room = 0
    scene.feed.pump(scene.send)
    scene.contents.remove_credential(id, operator="uid:0")
    scene.feed.tell(messages.Withdraw(id=id))
    scene.room = 100
    assert scene.feed.pump(scene.send)
    assert not any(isinstance(message, messages.Grant) for message in scene.sent)
    assert scene.sent[-1] == messages.Withdraw(id=id)


def test_a_peer_that_does_not_read_gets_a_new_snapshot_and_every_withdrawal(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "MAX_FEED_BACKLOG", 8)
    gone, kept = scene.add("gone"), scene.add("kept")
    scene.feed.begin()
    scene.feed.pump(scene.send)
    scene.room = 0
    scene.contents.remove_credential(gone, operator="uid:0")
    scene.feed.tell(messages.Withdraw(id=gone))
    for number in range(30):
        scene.feed.tell(scene.create(number))
        scene.feed.pump(scene.send)
        assert len(scene.feed._queue) <= 9
    scene.room = 10**9
    assert scene.feed.pump(scene.send)
    # What egress makes of all that: every number follows, and it ends with the vault's own state.
    receiver, granted = PolicyFeed(), set()
    for message in scene.sent:
        if isinstance(message, messages.Grant):
            granted.add(message.id)
        elif isinstance(message, messages.Withdraw):
            granted.discard(message.id)
        elif not isinstance(message, messages.GrantsEnd):
            receiver.apply(message)
    assert receiver.number == scene.contents.number == 31
    assert receiver.principals.ids() == {key.id for key in scene.contents.keys_in_force()}
    assert granted == {kept}


def test_after_the_end_nothing_is_left_and_a_new_hello_begins_anew(scene: Scene) -> None:
    scene.feed.begin()
    scene.feed.end()
    assert scene.feed.idle
    assert scene.feed.pump(scene.send)
    assert scene.sent == []
    scene.feed.begin()
    scene.feed.tell(GrantDue(scene.add("late")))
    assert scene.feed.pump(scene.send)
    assert [message.id for message in scene.sent if isinstance(message, messages.Grant)] == list(scene.contents.credential_ids())


@pytest.mark.parametrize(
    ("items", "groups"),
    [
        ([], [(0, False)]),
        ([b"x"], [(1, False)]),
        ([b"x"] * 8, [(4, True), (4, False)]),
        ([bytes(30_000)] * 3, [(1, True), (1, True), (1, False)]),
        ([bytes(20_000)] * 3, [(2, True), (1, False)]),
    ],
)
def test_items_are_packed_by_number_and_size(items: list[bytes], groups: list[tuple[int, bool]]) -> None:
    assert [(len(group), more) for group, more in packed(items, count=4)] == groups
