"""Changes of the rules that hold for everybody: read them from the vault, change them, set them.

What always holds: one change at a time, so that two commands cannot undo each other; each is answered once, also when the vault is lost in between; a
change that changes nothing writes nothing.
"""

from __future__ import annotations

import ipaddress
from collections import deque
from collections.abc import Callable

import msgspec

from cliproxy.bounds import MAX_BLOCKED_NETWORKS
from cliproxy.config.addresses import complaint_about_network
from cliproxy.ipc.commands import Block, Command, Done, GetRules, Lockdown, Refused, Reply, Rules, SetRules, Unblock
from cliproxy.ipc.messages import PolicyRules

AskVault = Callable[[str, Command[Reply], Callable[[Reply], None]], None]  # operator, command, who gets the answer or a refusal


class ChangeRefused(Exception):
    """The rules do not allow this change; the text is for the operator."""


class _Change(msgspec.Struct, frozen=True):
    operator: str
    command: Block | Unblock | Lockdown
    answer: Callable[[Reply], None]


class RuleChanges:
    """The changes that wait, in order. `ask(operator, command, then)` asks the vault and calls `then` once."""

    def __init__(self, ask: AskVault) -> None:
        self._ask = ask
        self._waiting: deque[_Change] = deque()
        self._is_changing = False

    def take(self, operator: str, command: Block | Unblock | Lockdown, answer: Callable[[Reply], None]) -> None:
        """Carry out `command` after those before it; `answer` gets `Done` or `Refused`."""
        self._waiting.append(_Change(operator, command, answer))
        self._next()

    def _next(self) -> None:
        while self._waiting and not self._is_changing:
            self._is_changing = True
            change = self._waiting.popleft()
            self._ask(change.operator, GetRules(), lambda reply, change=change: self._read(change, reply))  # type: ignore[misc]

    def _read(self, change: _Change, reply: Reply) -> None:
        if not isinstance(reply, Rules):
            self._end(change, reply)
            return
        try:
            rules = changed(reply.rules, change.command)
        except ChangeRefused as error:
            self._end(change, Refused(message=str(error)))
            return
        if rules == reply.rules:
            self._end(change, Done())
        else:
            self._ask(change.operator, SetRules(rules=rules), lambda answer: self._end(change, answer))

    def _end(self, change: _Change, reply: Reply) -> None:
        self._is_changing = False
        change.answer(reply)
        self._next()


def changed(rules: PolicyRules, command: Block | Unblock | Lockdown) -> PolicyRules:
    """Return `rules` after `command`. Raises `ChangeRefused`."""
    if isinstance(command, Lockdown):
        return msgspec.structs.replace(rules, lockdown=command.on)
    network = _network(command.network)
    if isinstance(command, Unblock):
        if network not in rules.blocked:
            raise ChangeRefused(f"{network} is not blocked; `cliproxy status` lists what is")
        return msgspec.structs.replace(rules, blocked=tuple(item for item in rules.blocked if item != network))
    if network in rules.blocked:
        return rules
    if len(rules.blocked) >= MAX_BLOCKED_NETWORKS:
        raise ChangeRefused(f"{MAX_BLOCKED_NETWORKS} networks are blocked already; unblock some, or block a wider network")
    return msgspec.structs.replace(rules, blocked=tuple(sorted((*rules.blocked, network))))


def _network(text: str) -> str:
    """Return the one spelling of an address or network: what is blocked can be unblocked however it is written."""
    complaint = complaint_about_network(text)
    if complaint is not None:
        raise ChangeRefused(f"{complaint[0]}; {complaint[1]}")
    return str(ipaddress.ip_network(text))
