"""The pin: a file elsewhere that remembers the newest checkpoints, and a log that must continue them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from audit.audit_logs import Log, build, event
from audit.auditor_rig import SEED, Rig
from cliproxy.audit import pin as module
from cliproxy.audit.pin import PLACE_BYTES, PLACES, PinFile, Pinned, create_pin, open_pin, parse_pin, read_pin, verify_pinned
from cliproxy.audit.recovery import recover, verify_seen
from cliproxy.audit.verify import verify_log
from cliproxy.config.schema import AuditSettings
from cliproxy.errors import ConfigError, PinMismatch
from cliproxy.ipc.commands import TakeCheckpoint
from cliproxy.ipc.control import Up


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """Another disk."""
    path = tmp_path / "disk"
    path.mkdir(mode=0o700)
    return path


@pytest.fixture
def home(tmp_path: Path) -> Path:
    path = tmp_path / "home"
    path.mkdir(mode=0o700)
    return path


def pinned(path: Path, *notes: bytes) -> PinFile:
    create_pin(path)
    file = open_pin(path, "/nowhere", may_create=False)
    for note in notes:
        file.write(note)
    return file


# --- the file --------------------------------------------------------------------------------------------------------


def test_the_newest_note_is_read_however_many_came_before(disk: Path) -> None:
    file = pinned(disk / "pin")
    for number in range(1, 3 * PLACES):
        note = b"note %d" % number
        file.write(note)
        assert read_pin(disk / "pin") == Pinned(number, note)
    assert (disk / "pin").stat().st_size == PLACES * PLACE_BYTES
    again = open_pin(disk / "pin", "/nowhere", may_create=False)
    again.write(b"after a restart")
    assert read_pin(disk / "pin") == Pinned(3 * PLACES, b"after a restart")


def test_a_torn_place_leaves_the_note_before(disk: Path) -> None:
    pinned(disk / "pin", b"one", b"two", b"three")
    data = bytearray((disk / "pin").read_bytes())
    for offset in range(3 * PLACE_BYTES, 3 * PLACE_BYTES + 44 + 5):
        torn = bytearray(data)
        torn[offset] ^= 1
        assert parse_pin(bytes(torn), path=disk / "pin") == Pinned(2, b"two")


@pytest.mark.parametrize("data", [b"", b"x", b"x" * PLACES * PLACE_BYTES, bytes(PLACES * PLACE_BYTES - 1)], ids=["empty", "short", "junk", "cut"])
def test_what_is_no_pin_is_refused(disk: Path, data: bytes) -> None:
    with pytest.raises(ConfigError, match="no pin"):
        parse_pin(data, path=disk / "pin")


def test_a_pin_is_private_outside_the_home_and_never_overwritten(disk: Path, home: Path) -> None:
    pinned(disk / "pin", b"one")
    assert (disk / "pin").stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match="is there already"):
        create_pin(disk / "pin")
    with pytest.raises(ConfigError, match="is missing"):
        open_pin(disk / "other", str(home), may_create=False)
    with pytest.raises(ConfigError, match="lies in the home"):
        open_pin(home / "logs" / "pin", str(home), may_create=True)
    (disk / "elsewhere").symlink_to(home / "logs")
    for inside in (disk / "elsewhere" / "pin", disk / ".." / home.relative_to(disk.parent) / "logs" / "pin"):
        with pytest.raises(ConfigError, match="lies in the home"):
            open_pin(inside, str(home), may_create=True)
    (disk / "pin").chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        open_pin(disk / "pin", str(home), may_create=False)


# --- a log against it ------------------------------------------------------------------------------------------------


def test_every_log_continues_each_of_its_checkpoints(home: Path) -> None:
    notes = build(home, [3, 1, 7, 2], rotate_after=1)
    position = recover(str(home))
    verify_pinned(str(home), position, Pinned(0, b""))
    for note in notes:
        verify_pinned(str(home), position, Pinned(1, note))


def test_a_shorter_a_forked_and_a_foreign_log_are_refused(home: Path, tmp_path: Path) -> None:
    notes = build(home, [3, 1, 7])
    older = tmp_path / "older"
    older.mkdir()
    build(older, [3])
    with pytest.raises(PinMismatch, match="put back"):
        verify_pinned(str(older), recover(str(older)), Pinned(1, notes[-1]))
    forked = tmp_path / "forked"  # the same beginning, other entries since, and longer than what was pinned
    forked.mkdir()
    build(forked, [3])
    log = Log(forked)
    log.batch(*(event(500 + number) for number in range(9)))
    log.checkpoint()
    log.close()
    with pytest.raises(PinMismatch, match="another one"):
        verify_pinned(str(forked), recover(str(forked)), Pinned(1, notes[1]))
    with pytest.raises(PinMismatch, match="no checkpoint"):
        verify_pinned(str(home), recover(str(home)), Pinned(1, b"junk"))


def test_what_the_vault_has_seen_must_be_there(home: Path) -> None:
    build(home, [3, 4])
    position = recover(str(home))
    assert position.checkpoint is not None
    verify_seen(position, size=0, root=b"")
    verify_seen(position, size=position.covered, root=position.checkpoint.root)
    verify_seen(position, size=position.covered - 1, root=bytes(32))
    with pytest.raises(PinMismatch, match="taken away"):
        verify_seen(position, size=position.covered + 1, root=bytes(32))
    with pytest.raises(PinMismatch, match="not the one"):
        verify_seen(position, size=position.covered, root=bytes(32))


# --- the auditor -----------------------------------------------------------------------------------------------------


@pytest.fixture
def rig(home: Path, disk: Path) -> Iterator[Rig]:
    create_pin(disk / "pin")
    rig = Rig(home, settings=AuditSettings(pin=str(disk / "pin")))
    yield rig
    rig.close()


def ended(rig: Rig) -> int:
    rig.start(seed=None)
    try:
        rig.hand_over(SEED)
    except Exception:
        pass
    return rig.wait()


def test_each_checkpoint_is_pinned_and_told_to_the_vault(rig: Rig, disk: Path) -> None:
    rig.start()
    for number in range(3):
        rig.record("supervisor", [event(number)])
        note = rig.ask(TakeCheckpoint()).note.encode()
        rig.record("supervisor", [event(100 + number)])  # a sync has come after it
        newest = read_pin(disk / "pin")
        assert newest.number and newest.checkpoint().size >= Pinned(1, note).checkpoint().size
    assert rig.stop() == 0
    report = verify_log(rig.home, earlier_checkpoint=read_pin(disk / "pin").note)
    assert read_pin(disk / "pin").checkpoint().size == report.entries  # at an orderly stop everything is pinned


def test_killed_at_any_point_it_starts_again(rig: Rig, disk: Path) -> None:
    for turn in range(8):
        rig.start()
        for number in range(turn * 3):
            rig.record("supervisor", [event(number)])
        if turn % 2:
            rig.ask(TakeCheckpoint())
        rig.kill()
    rig.start()
    assert rig.stop() == 0


def test_a_log_that_was_put_back_is_refused_until_that_is_accepted_and_the_log_tells_of_it(rig: Rig, disk: Path, tmp_path: Path) -> None:
    rig.start()
    rig.record("supervisor", [event(1)])
    assert rig.stop() == 0
    shutil.copytree(rig.home / "logs", tmp_path / "copy")
    rig.start()
    rig.record("supervisor", [event(2)])
    assert rig.stop() == 0
    for file in (tmp_path / "copy").iterdir():
        (rig.home / "logs" / file.name).write_bytes(file.read_bytes())
    before = {file.name: file.read_bytes() for file in (rig.home / "logs").iterdir()}
    assert ended(rig) == 78
    assert {file.name: file.read_bytes() for file in (rig.home / "logs").iterdir()} == before
    rig.accept_rollback = True
    rig.start()
    assert rig.stop() == 0
    assert b'"event":"log_rollback_accepted"' in (rig.home / "logs" / "audit-00000001.jsonl").read_bytes()
    rig.accept_rollback = False
    rig.start()
    assert rig.stop() == 0


def test_a_missing_pin_is_refused_until_that_is_accepted(rig: Rig, disk: Path) -> None:
    rig.start()
    assert rig.stop() == 0
    (disk / "pin").unlink()
    assert ended(rig) == 78
    rig.accept_rollback = True
    rig.start()
    assert rig.stop() == 0
    assert read_pin(disk / "pin").number > 0


def test_a_pin_of_another_key_is_refused(rig: Rig, disk: Path, tmp_path: Path) -> None:
    rig.start()
    assert rig.stop() == 0
    note = read_pin(disk / "pin").note
    broken = note[:-20] + (b"A" if note[-20:-19] != b"A" else b"B") + note[-19:]
    open_pin(disk / "pin", "/nowhere", may_create=False).write(broken)
    assert ended(rig) == 78


def test_emptied_checkpoints_are_not_signed_anew(home: Path) -> None:
    """Whoever can write logs/ but has no key empties the checkpoints and edits an entry; what the vault has seen forbids that the edited log is signed."""
    rig = Rig(home)
    try:
        rig.start()
        rig.client("vault")
        for number in range(5):
            rig.record("supervisor", [event(number)])
        rig.ask(TakeCheckpoint())
        rig.record("supervisor", [event(9)])
        while not rig.noted:
            rig.record("supervisor", [event(10)])
            rig.client("vault").poll(0.0)
        rig.seen = rig.noted[-1]
        assert rig.stop() == 0
        segment = home / "logs" / "audit-00000001.jsonl"
        segment.write_bytes(segment.read_bytes().replace(b'"code":3', b'"code":7'))
        (home / "logs" / "checkpoints").write_bytes(b"")
        assert ended(rig) == 78
        rig.seen = (0, b"")  # a vault that had seen nothing: the attack succeeds, and nobody would know
        rig.start()
        assert rig.stop() == 0
        verify_log(home)
    finally:
        rig.close()


def test_a_reload_that_moves_the_pin_is_refused(rig: Rig, disk: Path) -> None:
    from cliproxy.config.schema import Settings, encode_settings
    from cliproxy.ipc.control import Down
    from cliproxy.processes.boot import seal

    rig.start()
    memfd = seal(encode_settings(Settings(audit=AuditSettings(pin=str(disk / "other")))), name="settings")
    assert rig.control.order(Down.PREPARE, 2, (memfd,))
    os.close(memfd)
    rig.wait_for(Up.REFUSED)
    assert rig.stop() == 0


def test_a_pinned_note_never_outgrows_its_place() -> None:
    with pytest.raises(Exception, match="at most"):
        module._place(1, bytes(PLACE_BYTES))
