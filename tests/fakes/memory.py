"""Looks for bytes in the memory of other processes, as root: what an attacker inside them could read. And what there is to look for in a vault."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from cliproxy.vault.master_key import parse_master_key
from cliproxy.vault.records import LOG_KEY_ID
from cliproxy.vault.store import open_store

_PIECE = 8 << 20


def regions(pid: int) -> Iterable[tuple[int, int]]:
    """Yield start and end of every readable mapping of a process."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        addresses, access, rest = line.split(maxsplit=2)
        if access.startswith("r") and not rest.endswith(("[vvar]", "[vsyscall]", "[vvar_vclock]")):
            start, end = (int(text, 16) for text in addresses.split("-"))
            yield start, end


def found_in(pid: int, secrets: Mapping[str, bytes]) -> dict[str, int]:
    """Return which of `secrets` are in the memory of `pid`, and about how often."""
    longest = max(map(len, secrets.values()))
    counts = dict.fromkeys(secrets, 0)
    memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    try:
        for start, end in regions(pid):
            at = start
            while at < end:
                try:
                    data = os.pread(memory, min(_PIECE, end - at), at)
                except OSError:
                    break  # a mapping of a device, or gone meanwhile
                if not data:
                    break
                for name, secret in secrets.items():
                    counts[name] += data.count(secret)
                at += len(data) if at + len(data) >= end else max(1, len(data) - (longest - 1))  # a piece begins with what the last one may have cut
    finally:
        os.close(memory)
    return {name: count for name, count in counts.items() if count}


def size_of(pid: int) -> int:
    """Return the bytes that `found_in` looks through."""
    return sum(end - start for start, end in regions(pid))


def secrets_of_vault(home: Path) -> dict[str, bytes]:
    """Return what only the vault may know, by name: master key, key terms, private key; and the log's key, which the auditor has too. From a copy of the
    files, while no vault has them open."""
    file = home / "key" / "master.key"
    with tempfile.TemporaryDirectory(prefix="cliproxy-test-") as directory:
        copy = Path(directory) / "auths"
        shutil.copytree(home / "auths", copy)
        master = parse_master_key(file.read_bytes(), where=str(file))
        found = {"master key": master.reveal()}
        store = open_store(copy / "vault.db", master)
        found |= {"log key": store.read(LOG_KEY_ID).reveal(), "private key": store.keyring.private_key.reveal()}
        return found | {f"key term {number}": term.key.reveal() for number, term in store.keyring.terms.items()}
