from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from cliproxy.errors import ConfigError, TamperedVault, Unavailable, VaultConflict, VaultError
from cliproxy.secret import Secret
from cliproxy.vault import database
from cliproxy.vault.store import Anchored, Store, Write, create_store, open_store
from vault.vault_fakes import MASTER, ListAnchor, close, new_vault, reopen

SRC = Path(database.__file__).parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "auths").mkdir(mode=0o700)
    return tmp_path / "auths" / "vault.db"


def key(name: str, text: bytes = b"plain") -> Write:
    return Write(id=name, kind="client_key", plaintext=text)


def credential(name: str, secret: bytes) -> Write:
    return Write(id=name, kind="credential", plaintext=secret, origin="https://api.example.com:443")


def put(store: Store, anchor: ListAnchor, *writes: Write, remove: tuple[str, ...] = ()) -> None:
    store.change(writes, remove, anchor=anchor, because=())


def test_what_was_written_is_there_after_reopening(path: Path) -> None:
    anchor = ListAnchor()
    store = new_vault(path, anchor, [key("first", b"1")])
    put(store, anchor, credential("c", b"sk-1"), key("k", b"2"))
    put(store, anchor, credential("c", b"sk-2"), remove=("first",))
    state = (store.epoch, store.root, len(store))
    close(store)
    again = reopen(path, anchor)
    assert (again.epoch, again.root, len(again)) == state == (3, state[1], 3)
    assert again.read("c").reveal() == b"sk-2"
    assert again.read("k").reveal() == b"2"
    assert again.ids("client_key") == ["k"]
    entry = again.entry("c")
    assert entry is not None
    assert (entry.revision, entry.origin) == (2, "https://api.example.com:443")
    with pytest.raises(VaultConflict):
        again.read("first")


def test_each_change_is_intent_then_commit_then_done(path: Path) -> None:
    anchor = ListAnchor()
    store = new_vault(path, anchor)
    before = anchor.anchored()
    seen: list[int] = []
    real = anchor.intent

    def intent(epoch: int, root: bytes, because: object) -> None:
        seen.append(store._connection.execute("SELECT epoch FROM head").fetchone()[0])
        real(epoch, root, because)  # type: ignore[arg-type]

    anchor.intent = intent  # type: ignore[method-assign]
    store.change([key("k")], (), anchor=anchor, because=["why"])
    assert seen == [1]  # at the time of the intent the file held the old state
    assert before == Anchored(1, anchor.steps[0][2])
    assert [step[:2] for step in anchor.steps] == [("intent", 1), ("done", 1), ("intent", 2), ("done", 2)]
    assert anchor.steps[-1][2] == store.root
    assert anchor.because == ["why"]


def test_a_refused_intent_changes_nothing(path: Path) -> None:
    anchor = ListAnchor()
    store = new_vault(path, anchor)
    put(store, anchor, key("k", b"old"))
    root = store.root
    anchor.fails = True
    with pytest.raises(Unavailable):
        put(store, anchor, key("k", b"new"), key("l"))
    assert (store.epoch, store.root, store.read("k").reveal(), store.entry("l")) == (2, root, b"old", None)
    anchor.fails = False
    put(store, anchor, key("k", b"new"))
    close(store)
    assert reopen(path, anchor).read("k").reveal() == b"new"


def test_nothing_changes_before_the_log_has_confirmed_the_store(path: Path) -> None:
    store = create_store(path, MASTER)
    with pytest.raises(VaultError, match="before the audit log has confirmed"):
        put(store, ListAnchor(), key("k"))


@pytest.mark.parametrize(
    ("writes", "removals"),
    [([], ["nobody"]), ([], ["keyring"]), ([Write(id="keyring", kind="keyring", plaintext=b"")], []), ([credential("k", b"")], []), ([key("k")], ["k"])],
    ids=["removal of nothing", "removal of the keyring", "a keyring", "another kind", "written and removed"],
)
def test_a_change_that_does_not_fit_is_refused_before_it_is_announced(path: Path, writes: list[Write], removals: list[str]) -> None:
    anchor = ListAnchor()
    store = new_vault(path, anchor)
    put(store, anchor, key("k"))
    steps, root = list(anchor.steps), store.root
    with pytest.raises(VaultConflict):
        store.change(writes, removals, anchor=anchor, because=())
    assert (anchor.steps, store.root) == (steps, root)


class TestAtTheStart:
    @pytest.fixture
    def states(self, path: Path) -> tuple[ListAnchor, Store]:
        anchor = ListAnchor()
        store = new_vault(path, anchor)
        put(store, anchor, key("k"))
        return anchor, store

    def test_the_pending_intent_that_was_committed_is_accepted_and_closed(self, states: tuple[ListAnchor, Store]) -> None:
        anchor, store = states
        anchor.steps.pop()  # killed between commit and done
        assert anchor.anchored().pending_epoch == 2
        store.confirm(anchor.anchored(), anchor)
        assert anchor.anchored() == Anchored(2, store.root)

    def test_the_pending_intent_that_was_not_committed_is_accepted_and_closed(self, states: tuple[ListAnchor, Store]) -> None:
        anchor, store = states
        anchor.steps.append(("intent", 3, b"r" * 32))  # killed between intent and commit
        store.confirm(anchor.anchored(), anchor)
        assert anchor.anchored() == Anchored(2, store.root)

    @pytest.mark.parametrize(
        ("anchored", "why"),
        [
            (lambda root: Anchored(3, root), "expects 3: the file is older"),
            (lambda root: Anchored(2, b"x" * 32), "expects 2 with other records"),
            (lambda root: Anchored(1, root), "expects 1"),
            (lambda root: Anchored(1, b"x" * 32, 2, b"y" * 32), "expects 1 or 2 with other records"),
            (lambda root: Anchored(3, b"x" * 32, 4, b"y" * 32), "older than the log"),
            (lambda root: Anchored(0, b"", 2, b"y" * 32), "expects 0 or 2"),
            (lambda root: Anchored(0, b""), "does not know the vault"),
        ],
    )
    def test_any_other_state_is_tampering(self, states: tuple[ListAnchor, Store], anchored: object, why: str) -> None:
        anchor, store = states
        steps = list(anchor.steps)
        with pytest.raises(TamperedVault, match=why):
            store.confirm(anchored(store.root), anchor)  # type: ignore[operator]
        assert anchor.steps == steps

    def test_a_new_vault_and_an_empty_log_find_each_other(self, path: Path) -> None:
        anchor = ListAnchor()
        store = create_store(path, MASTER)
        store.confirm(anchor.anchored(), anchor)
        assert anchor.anchored() == Anchored(1, store.root)

    def test_a_new_vault_beside_an_old_log_is_tampering(self, states: tuple[ListAnchor, Store], tmp_path: Path) -> None:
        with pytest.raises(TamperedVault):
            new_vault(tmp_path / "auths" / "other.db", states[0])


def test_another_master_key_is_named(path: Path) -> None:
    close(create_store(path, MASTER))
    with pytest.raises(ConfigError, match="master key"):
        open_store(path, Secret(bytes(32)))


def test_the_file_holds_no_plaintext(path: Path) -> None:
    anchor = ListAnchor()
    store = new_vault(path, anchor)
    put(store, anchor, credential("c", b"sk-canary-in-clear"), key("k", b"canary-name"))
    everything = b"".join(file.read_bytes() for file in path.parent.iterdir())
    assert b"canary" not in everything
    assert store.keyring.private_key.reveal() not in everything
    assert store.keyring.terms[1].key.reveal() not in everything
    assert {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()} == {"vault.db": 0o600, "vault.db-wal": 0o600}


def test_a_second_process_is_told_that_the_vault_is_in_use(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = (
        "import sys; from pathlib import Path; from cliproxy.secret import Secret; from cliproxy.vault import database, store\n"
        "database._BUSY_SECONDS = 0.01\n"
        "try: store.open_store(Path(sys.argv[1]), Secret(bytes.fromhex(sys.argv[2])))\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    store = create_store(path, MASTER)
    command = [sys.executable, "-c", script, str(path), MASTER.reveal().hex()]
    result = subprocess.run(command, capture_output=True, text=True, timeout=30, env={"PYTHONPATH": str(SRC)}, check=True)
    assert "ConfigError" in result.stdout
    assert "in use by another process" in result.stdout
    close(store)


@pytest.mark.parametrize("where", ["file", "WAL"])
def test_a_newer_format_is_refused_with_nothing_written(path: Path, where: str) -> None:
    store = create_store(path, MASTER)
    if where == "file":
        close(store)
    # As a newer build would leave it, killed before its WAL was moved into the file.
    script = (
        "import os, sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None); c.execute('PRAGMA locking_mode=EXCLUSIVE');"
        "c.execute('PRAGMA user_version = 2');" + ("c.close();" if where == "file" else "") + "os._exit(0)"
    )
    close(store)
    subprocess.run([sys.executable, "-c", script, str(path)], check=True, timeout=30)
    before = {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in path.parent.iterdir()}
    assert ("vault.db-wal" in before) == (where == "WAL")
    with pytest.raises(ConfigError, match="format 2; this build knows 1"):
        open_store(path, MASTER)
    assert {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in path.parent.iterdir()} == before


@pytest.mark.parametrize(
    "content", [b"", b"SQLite format 3\x00", b"x" * 5000, b"SQLite format 3\x00" + bytes(5000)], ids=["empty", "magic only", "junk", "magic and zeros"]
)
def test_what_is_no_vault_is_refused_in_one_line_with_a_cure(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="put back auths/ and logs/") as caught:
        open_store(path, MASTER)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == content


@pytest.mark.parametrize("name", ["vault.db", "vault.db-wal", "."])
def test_a_file_that_others_can_read_is_refused(path: Path, name: str) -> None:
    create_store(path, MASTER)._connection.execute("PRAGMA user_version = 1")
    (path.parent / name).chmod(0o750 if name == "." else 0o640)
    with pytest.raises(ConfigError, match="chmod"):
        open_store(path, MASTER)


def test_a_vault_is_never_made_over_another(path: Path) -> None:
    close(create_store(path, MASTER))
    before = path.read_bytes()
    with pytest.raises(ConfigError):
        create_store(path, MASTER)
    assert path.read_bytes() == before


def test_a_failed_commit_leaves_the_old_state_or_a_store_that_takes_no_more(path: Path) -> None:
    anchor = ListAnchor()
    store = new_vault(path, anchor)
    put(store, anchor, key("k", b"old"))
    pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
    store._connection.execute(f"PRAGMA max_page_count = {pages}")  # SQLITE_FULL, as on a full disk
    root = store.root
    with pytest.raises(VaultError, match="check the disk"):
        put(store, anchor, key("k", b"new"), *(key(f"big-{n}", bytes(5000)) for n in range(20)))
    assert (store.broken, store.epoch, store.root, store.read("k").reveal()) == (False, 2, root, b"old")
    store._connection.execute("PRAGMA max_page_count = 100000")
    put(store, anchor, key("k", b"new"))
    close(store)
    assert reopen(path, anchor).read("k").reveal() == b"new"


def test_after_an_unclear_commit_the_store_takes_no_more_changes(path: Path) -> None:
    anchor = ListAnchor()
    store = new_vault(path, anchor)
    close(store)  # every statement fails from now on
    with pytest.raises(VaultError):
        put(store, anchor, key("k"))
    assert store.broken
    with pytest.raises(VaultError, match="after a failed commit"):
        put(store, anchor, key("k"))


def test_a_file_altered_under_a_running_vault_is_noticed_on_reading(path: Path) -> None:
    anchor = ListAnchor()
    store = new_vault(path, anchor)
    put(store, anchor, credential("c", b"sk-1"), credential("d", b"sk-2"))
    store._connection.execute("UPDATE records SET blob = (SELECT blob FROM records WHERE id = 'd') WHERE id = 'c'")
    with pytest.raises(TamperedVault, match="while the vault was open"):
        store.read("c")
    assert store.read("d").reveal() == b"sk-2"


def test_a_new_key_term_seals_from_now_on_and_older_records_still_open(path: Path) -> None:
    anchor = ListAnchor()
    store = new_vault(path, anchor)
    put(store, anchor, key("old", b"1"))
    store.keyring = store.keyring.with_new_term()
    put(store, anchor, key("new", b"2"))
    assert (store.read("old").reveal(), store.read("new").reveal()) == (b"1", b"2")
    blob = store._connection.execute("SELECT blob FROM records WHERE id = 'new'").fetchone()[0]
    assert int.from_bytes(blob[1:5], "big") == 2


def test_commits_need_no_file_to_be_opened_made_or_removed(path: Path) -> None:
    """In a process whose filter kills at open, unlink, rename, and at lock calls, as in the real vault. Enough changes for checkpoints."""
    libc_numbers = {"openat": 257, "open": 2, "unlink": 87, "rename": 82, "unlinkat": 263, "creat": 85, "socket": 41}
    if os.uname().machine != "x86_64":
        pytest.skip("the numbers are x86_64's")
    script = f"""
import ctypes, os, struct, sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from pathlib import Path
from vault.vault_fakes import ListAnchor, new_vault
from cliproxy.vault.store import Write
anchor = ListAnchor()
store = new_vault(Path(sys.argv[1]), anchor)
deny = {sorted(libc_numbers.values())}
program = [struct.pack("HBBI", 0x20, 0, 0, 0)]
for number in deny:
    program += [struct.pack("HBBI", 0x15, 0, 1, number), struct.pack("HBBI", 0x06, 0, 0, 0x80000000)]
program.append(struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000))
code = ctypes.create_string_buffer(b"".join(program))
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
filled = Program(len(program), ctypes.addressof(code))
assert libc.prctl(22, 2, ctypes.byref(filled), 0, 0) == 0
for n in range(60):
    store.change([Write(id=f"k{{n % 9}}-{{m}}", kind="client_key", plaintext=bytes(2000)) for m in range(20)], (), anchor=anchor, because=())
    store.read(f"k{{n % 9}}-3")
store.change([], store.ids("client_key"), anchor=anchor, because=())
os.write(1, b"done %d" % store.epoch)
os._exit(0)
"""
    result = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, timeout=60, env={"PYTHONPATH": str(SRC)})
    assert (result.returncode, result.stdout) == (0, b"done 62"), result.stderr


def test_the_database_is_durable_by_its_settings(path: Path) -> None:
    store = create_store(path, MASTER)
    found = {name: store._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous", "locking_mode", "temp_store")}
    assert found == {"journal_mode": "wal", "synchronous": 2, "locking_mode": "exclusive", "temp_store": 2}
    with pytest.raises(sqlite3.OperationalError):
        sqlite3.connect(path, timeout=0).execute("SELECT * FROM head")
