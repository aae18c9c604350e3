"""Killing a gateway's processes, and whether everything is as it should be afterwards: it serves, the log is good, every call is accounted for."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from cliproxy.cli.connection import CommandRefused, Session, attach
from cliproxy.cli.home import Home
from cliproxy.cli.new_key import new_key
from cliproxy.errors import ChannelError
from cliproxy.ipc import commands

from .gateway import Gateway
from .load import Caller, Told, markers_of

PATIENCE_SECONDS = 30.0
_writers = itertools.count(1)
DIALLED_MODEL = "fault-close"  # the provider closes after each answer: every call needs the dialer


def recover(gateway: Gateway, *names: str, model: str = DIALLED_MODEL) -> float:
    """Kill the children `names` and return the seconds until all of the gateway serves again: /readyz, a call over a fresh connection to the provider
    (`model`), and a command that asks the vault."""
    before = gateway.children()
    killed = {before[name] for name in names}
    began = time.monotonic()
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    caller = Caller(gateway.port, gateway.key)
    try:
        while not _is_whole(gateway, before, killed, caller, model):
            assert time.monotonic() - began < PATIENCE_SECONDS, f"{names} killed, and {gateway.children()} do not serve\n{gateway.messages()}"
            time.sleep(0.01)
    finally:
        caller.close()
    return time.monotonic() - began


def _is_whole(gateway: Gateway, before: dict[str, int], killed: set[int], caller: Caller, model: str) -> bool:
    children = gateway.children()
    if killed & set(children.values()) or sorted(children) != sorted(before) or not gateway.is_ready():
        return False
    return caller.call(model, stream=False).ending == "done" and list_keys(gateway) is not None


def session(gateway: Gateway) -> Session | None:
    """Return a connection to admin, `None` while there is none."""
    try:
        return attach(Home(gateway.home))
    except (CommandRefused, ChannelError):
        return None


def list_keys(gateway: Gateway) -> dict[str, str] | None:
    """Return name and state of every client key, `None` when the gateway cannot say."""
    found: dict[str, str] = {}
    connection = session(gateway)
    if connection is None:
        return None
    try:
        page = connection.ask(commands.ListKeys())
        while True:
            found.update({key.name: "revoked" if key.revoked_at else "valid" for key in page.keys})
            if not page.more:
                return found
            page = connection.ask(commands.ListKeys(after=page.keys[-1].id))
    except (CommandRefused, ChannelError):
        return None
    finally:
        connection.close()


@dataclass
class KeyWriter:
    """Creates client keys and revokes every second of them, and remembers what was acknowledged; trouble is met with the next try."""

    gateway: Gateway
    created: dict[str, str] = field(default_factory=dict)  # name to key
    revoked: dict[str, str] = field(default_factory=dict)
    _number: int = field(default_factory=lambda: next(_writers))
    _count: int = 0
    refused: list[str] = field(default_factory=list)  # why writes were not acknowledged

    def step(self) -> None:
        """Create one, and revoke it when its number is even. Raises nothing when the gateway does not answer."""
        connection = session(self.gateway)
        if connection is None:
            time.sleep(0.01)
            return
        self._count += 1
        name = f"writer-{self._number}-{self._count}"
        secret, digest = new_key()
        try:
            connection.ask(commands.CreateKey(digest=digest, name=name, models=("*",)))
            self.created[name] = secret.reveal().decode()
            if self._count % 2 == 0:
                connection.ask(commands.RevokeKey(key=name))
                self.revoked[name] = self.created.pop(name)
        except (CommandRefused, ChannelError) as refusal:
            self.refused.append(f"{name}: {refusal}")
            # A revocation without an answer may or may not have happened: nothing is claimed about that key.
            self.created.pop(name, None)
            time.sleep(0.01)
        finally:
            connection.close()

    def verify(self) -> None:
        """Fail unless every acknowledged write is in force."""
        states = list_keys(self.gateway)
        assert states is not None
        assert self.created and self.revoked, f"nothing was written: {self.refused[-5:]}\n{self.gateway.messages()}"
        assert {name: states.get(name) for name in self.created} == dict.fromkeys(self.created, "valid")
        assert {name: states.get(name) for name in self.revoked} == dict.fromkeys(self.revoked, "revoked")
        some = [*self.created.values()][-5:]
        assert [self.gateway.get("/v1/models", key=key)[0] for key in some] == [200] * len(some)
        some = [*self.revoked.values()][-5:]
        assert [self.gateway.get("/v1/models", key=key)[0] for key in some] == [401] * len(some)


def verify_log(gateway: Gateway) -> None:
    """Fail unless `audit verify` finds the log good and of the key that `init` printed."""
    done = gateway.result("audit", "verify", "--public-key", gateway.log_public_key)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "good" in done.stdout


@dataclass
class Ledger:
    """What the log says about calls: request ids of intents and outcomes with how often they are there, and the outcomes' error codes."""

    intents: Counter[str]
    outcomes: Counter[str]
    errors: dict[str, str]

    @classmethod
    def of(cls, lines: Collection[dict[str, Any]]) -> Ledger:
        """Read the events `lines`."""
        outcomes = [line for line in lines if line["event"] == "provider_outcome"]
        return cls(
            Counter(line["request"] for line in lines if line["event"] == "provider_request"),
            Counter(line["request"] for line in outcomes),
            {line["request"]: line["error"] for line in outcomes},
        )

    @property
    def unsettled(self) -> set[str]:
        """Intents without an outcome."""
        return set(self.intents) - set(self.outcomes)


def settled_ledger(gateway: Gateway, told: Collection[Told] = (), *, but: Collection[str] = (), seconds: float = 10.0) -> Ledger:
    """Return the ledger once the good answers of `told` are in the log, and every intent but those in `but` has its outcome there.

    Events are written some time after the answer.
    """
    good = {one.request for one in told if one.ending == "done"}
    until = time.monotonic() + seconds
    while missing := (good | set((ledger := Ledger.of(gateway.audit_lines())).intents)) - set(ledger.outcomes) - set(but):
        assert time.monotonic() < until, f"calls without an outcome in the log: {missing}"
        time.sleep(0.2)
    return ledger


def verify_nothing_is_sent_twice(told: list[Told], record: dict[str, Any]) -> None:
    """Fail unless the provider got no call twice, and each that was answered well exactly once."""
    sent = markers_of(record)
    assert [marker for marker, count in sent.items() if count > 1] == []
    assert [one for one in told if one.ending == "done" and sent[one.marker] != 1] == []


def verify_settled(told: list[Told], ledger: Ledger, *, may_repeat: bool = False) -> None:
    """Fail unless every good answer of `told` has its intent and its outcome in the log, and no outcome is without its intent.

    `may_repeat`: the auditor died, and what it had written but not acknowledged was sent to the next one again.
    """
    good = [one for one in told if one.ending == "done"]
    assert set(ledger.outcomes) <= set(ledger.intents)
    for counts in (ledger.intents, ledger.outcomes):
        assert [one.request for one in good if not counts[one.request]] == []
        if not may_repeat:
            assert [request for request, count in counts.items() if count > 1] == []
