"""What the vault remembers of the log: sealed when it is worth it, told with the log key, lowered only when the operator accepted a log from a copy."""

from __future__ import annotations

from pathlib import Path

import pytest

from cliproxy.errors import Unavailable
from cliproxy.vault.contents import Contents, first_records
from cliproxy.vault.records import LogSeen
from vault.vault_fakes import ListAnchor, close, new_vault, reopen


@pytest.fixture
def anchor() -> ListAnchor:
    return ListAnchor()


def made(path: Path, anchor: ListAnchor) -> Contents:
    path.parent.mkdir(mode=0o700)
    return Contents(new_vault(path, anchor, first_records()), anchor=anchor)


def test_a_new_vault_has_seen_nothing(tmp_path: Path, anchor: ListAnchor) -> None:
    assert made(tmp_path / "auths" / "vault.db", anchor).log_seen == LogSeen(size=0, root=b"")


def test_what_was_noted_is_sealed_and_there_after_a_restart(tmp_path: Path, anchor: ListAnchor) -> None:
    path = tmp_path / "auths" / "vault.db"
    contents = made(path, anchor)
    contents.note_log(10, b"r" * 32)
    assert contents.log_seen.size == 0  # noted is not sealed
    contents.flush_log()
    assert contents.log_seen == LogSeen(size=10, root=b"r" * 32)
    close(contents.store)
    assert Contents(reopen(path, anchor), anchor=anchor).log_seen == LogSeen(size=10, root=b"r" * 32)


def test_its_own_writing_is_not_worth_another(tmp_path: Path, anchor: ListAnchor) -> None:
    contents = made(tmp_path / "auths" / "vault.db", anchor)
    contents.note_log(10, b"r" * 32)
    contents.flush_log()
    steps = len(anchor.steps)
    contents.note_log(12, b"s" * 32)  # the two lines of that writing
    contents.flush_log()
    assert len(anchor.steps) == steps


def test_a_smaller_log_is_sealed_too_since_only_the_operator_can_have_let_it_through(tmp_path: Path, anchor: ListAnchor) -> None:
    contents = made(tmp_path / "auths" / "vault.db", anchor)
    for size in (100, 99):
        contents.note_log(size, bytes([size]) * 32)
        contents.flush_log()
        assert contents.log_seen == LogSeen(size=size, root=bytes([size]) * 32)


def test_what_could_not_be_sealed_is_tried_again(tmp_path: Path, anchor: ListAnchor) -> None:
    contents = made(tmp_path / "auths" / "vault.db", anchor)
    contents.note_log(10, b"r" * 32)
    anchor.fails = True
    with pytest.raises(Unavailable):
        contents.flush_log()
    assert contents.log_seen.size == 0
    anchor.fails = False
    contents.flush_log()
    assert contents.log_seen.size == 10
