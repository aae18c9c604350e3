"""What admin may ask of the vault, and what it is answered. `COMMANDS` is the table: who carries a command out, and what the audit log says of it.

What always holds: a command that cannot be carried out changes nothing and says why in one line; a change of the policy is answered when egress has put it
in force or its time is up, so that the answer can say which.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from cliproxy.audit.events import CredentialChange, KeyChange, PolicyChange, VaultEvent
from cliproxy.config.schema import Provider
from cliproxy.errors import EnvelopeError, TamperedVault, Unavailable, VaultConflict, VaultError
from cliproxy.ipc import commands, messages
from cliproxy.ipc.commands import LIST_ITEMS_PER_PAGE, AdminToVault, Answered, Command, Refused, VaultAnswer, VaultToAdmin
from cliproxy.ipc.messages import PolicyAck
from cliproxy.providers.origin import parse_base_url
from cliproxy.vault.contents import Contents
from cliproxy.vault.feed import Feed, GrantDue, packed

REVOKE_WAIT_SECONDS = 2.0  # egress answers after one second with the workers that had acknowledged; a commit on a slow disk comes before that

_NONE = PolicyAck(number=0, workers=0, of_workers=0, streams_ended=0)
_Answer = Callable[[PolicyAck | None], VaultAnswer]


class WhenInForce(msgspec.Struct, frozen=True):
    """The answer waits until egress has put `change` in force: `answer` makes it of the acknowledgement, `None` if there was none in time."""

    change: messages.PolicyChange
    answer: _Answer


class _Waiting(msgspec.Struct, frozen=True):
    """The answer to `request` waits for policy `number` to be in force, until `deadline` (monotonic seconds)."""

    request: int
    number: int
    deadline: float
    answer: _Answer


class VaultService:
    """`answer` sends to admin. `serving` is False in a command without a running gateway."""

    def __init__(self, contents: Contents, feed: Feed, *, providers: Mapping[str, Provider], serving: bool, answer: Callable[[VaultToAdmin], None]) -> None:
        self._contents = contents
        self._feed = feed
        self._serving = serving
        self._answer = answer
        self._waiting: list[_Waiting] = []
        self.providers = providers

    def take(self, asked: AdminToVault, *, now: float) -> None:
        """Carry out a command and answer it, now or when egress has acknowledged. Raises `TamperedVault`, after which the vault must not go on."""
        answer: VaultAnswer | WhenInForce
        try:
            answer = COMMANDS[type(asked.command)].carry_out(self, asked.command, asked.operator)
        except TamperedVault:
            raise
        except (VaultConflict, EnvelopeError, Unavailable, VaultError) as error:
            answer = Refused(message=str(error)[: commands.MAX_REFUSAL_CHARS])
        if isinstance(answer, WhenInForce):
            if self._feed.greeted:
                self._feed.tell(answer.change)
                self._waiting.append(_Waiting(asked.request, answer.change.number, now + REVOKE_WAIT_SECONDS, answer.answer))
                return
            answer = answer.answer(None)
        self._answer(Answered(request=asked.request, answer=answer))

    def acknowledged(self, ack: PolicyAck) -> None:
        """Egress has put `ack.number`, and with it every number before, in force."""
        self._settle(lambda one: one.number <= ack.number, ack)

    def sweep(self, now: float) -> None:
        """Answer what waited long enough."""
        self._settle(lambda one: one.deadline <= now, None)

    def egress_gone(self) -> None:
        """Nobody will acknowledge: answer everything that waits. The next egress begins with the new state."""
        self._settle(lambda one: True, None)

    def next_deadline(self) -> float | None:
        """When `sweep` has something to do, in monotonic seconds."""
        return min((one.deadline for one in self._waiting), default=None)

    def _settle(self, is_due: Callable[[_Waiting], bool], ack: PolicyAck | None) -> None:
        due = [one for one in self._waiting if is_due(one)]
        if due:
            self._waiting = [one for one in self._waiting if not is_due(one)]
        for one in due:
            self._answer(Answered(request=one.request, answer=one.answer(ack)))

    # --- one method for each command: the answer, or when to give it -------------------------------------------------

    def create_key(self, command: commands.CreateKey, operator: str) -> WhenInForce:
        info, change = self._contents.create_key(command, operator=operator)
        return WhenInForce(change, lambda ack: commands.KeyCreated(key=info))

    def revoke_key(self, command: commands.RevokeKey, operator: str) -> WhenInForce:
        id, change = self._contents.revoke_key(command.key, operator=operator)

        def answer(ack: PolicyAck | None) -> commands.KeyRevoked:
            seen = ack or _NONE
            return commands.KeyRevoked(
                id=id, serving=self._serving, egress=ack is not None, workers=seen.workers, of_workers=seen.of_workers, streams_ended=seen.streams_ended
            )

        return WhenInForce(change, answer)

    def list_keys(self, command: commands.ListKeys, operator: str) -> commands.KeyPage:
        keys, more = next(packed(self._contents.keys(after=command.after), count=LIST_ITEMS_PER_PAGE))
        return commands.KeyPage(keys=keys, more=more)

    def add_credential(self, command: commands.AddCredential, operator: str) -> commands.CredentialAdded:
        info = self._contents.add_credential(command, origin=self._origin_of(command.provider), operator=operator)
        self._feed.tell(GrantDue(info.id))
        return commands.CredentialAdded(credential=info)

    def remove_credential(self, command: commands.RemoveCredential, operator: str) -> commands.Done:
        self._contents.remove_credential(command.id, operator=operator)
        self._feed.tell(messages.Withdraw(id=command.id))
        return commands.Done()

    def list_credentials(self, command: commands.ListCredentials, operator: str) -> commands.CredentialPage:
        found, more = next(packed(self._contents.credentials(after=command.after), count=LIST_ITEMS_PER_PAGE))
        return commands.CredentialPage(credentials=found, more=more)

    def list_cooldowns(self, command: commands.ListCooldowns, operator: str) -> commands.CooldownPage:
        found = self._contents.cooldowns.in_force()[command.after :]
        cooldowns, more = next(packed(found, count=LIST_ITEMS_PER_PAGE))
        return commands.CooldownPage(cooldowns=cooldowns, more=more)

    def set_rules(self, command: commands.SetRules, operator: str) -> commands.Done | WhenInForce:
        change = self._contents.set_rules(command.rules, operator=operator)
        return commands.Done() if change is None else WhenInForce(change, lambda ack: commands.Done())

    def get_rules(self, command: commands.GetRules, operator: str) -> commands.Rules:
        return commands.Rules(rules=self._contents.rules)

    def get_status(self, command: commands.GetVaultStatus, operator: str) -> commands.VaultStatus:
        store = self._contents.store
        return commands.VaultStatus(
            vault_id=store.keyring.vault,
            epoch=store.epoch,
            root=store.root,
            records=len(store),
            key_term=store.keyring.current,
            policy_number=self._contents.number,
            public_key=store.keyring.public_key,
        )

    def _origin_of(self, name: str) -> str:
        """Return the origin that the vault's own settings give provider `name`. Raises `VaultConflict`."""
        provider = self.providers.get(name)
        if provider is None:
            raise VaultConflict("the configuration has no such provider; add it under `providers` and run `cliproxy reload`")
        if not provider.base_url or provider.auth == "none":
            raise VaultConflict(f"provider {name} takes no credential; give it a base_url and an auth scheme first")
        return str(parse_base_url(provider.base_url)[0])


class Row(msgspec.Struct, frozen=True):
    """A command's row. `carry_out(service, command, operator)` returns the answer; `audited`: the event that tells of it, `None` for what changes nothing."""

    carry_out: Callable[[VaultService, Any, str], VaultAnswer | WhenInForce]
    audited: type[VaultEvent] | None = None


COMMANDS: Final[Mapping[type[Command[Any]], Row]] = {
    commands.CreateKey: Row(VaultService.create_key, KeyChange),
    commands.RevokeKey: Row(VaultService.revoke_key, KeyChange),
    commands.ListKeys: Row(VaultService.list_keys),
    commands.AddCredential: Row(VaultService.add_credential, CredentialChange),
    commands.RemoveCredential: Row(VaultService.remove_credential, CredentialChange),
    commands.ListCredentials: Row(VaultService.list_credentials),
    commands.ListCooldowns: Row(VaultService.list_cooldowns),
    commands.SetRules: Row(VaultService.set_rules, PolicyChange),
    commands.GetRules: Row(VaultService.get_rules),
    commands.GetVaultStatus: Row(VaultService.get_status),
}
