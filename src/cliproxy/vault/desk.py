"""What admin may ask of the vault, and what it is answered.

What always holds: a request that cannot be carried out changes nothing and says why in one line; a change of the policy is answered when egress has put it
in force or its time is up, so that the answer can say which.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cliproxy.bounds import REVOKE_WAIT_SECONDS
from cliproxy.config.schema import Provider
from cliproxy.errors import EnvelopeError, TamperedVault, Unavailable, VaultConflict, VaultError
from cliproxy.ipc import messages
from cliproxy.ipc.messages import LIST_ITEMS_PER_PAGE, AdminToVault, PolicyAck, PolicyChange, VaultToAdmin
from cliproxy.providers.origin import parse_base_url
from cliproxy.vault.contents import Contents
from cliproxy.vault.feed import Feed, GrantDue, packed

_NONE = PolicyAck(number=0, workers=0, of_workers=0, streams_ended=0)


@dataclass(frozen=True, slots=True)
class _Waiting:
    """An answer that waits for policy `number` to be in force, until `deadline` (monotonic seconds)."""

    number: int
    deadline: float
    answer: Callable[[PolicyAck | None], VaultToAdmin]


class Desk:
    """`answer` sends to admin. `serving` is False in a command without a running gateway."""

    def __init__(self, contents: Contents, feed: Feed, *, providers: Mapping[str, Provider], serving: bool, answer: Callable[[VaultToAdmin], None]) -> None:
        self._contents = contents
        self._feed = feed
        self._serving = serving
        self._answer = answer
        self._waiting: list[_Waiting] = []
        self._now = 0.0
        self.providers = providers

    def take(self, request: AdminToVault, *, now: float) -> None:
        """Carry out `request` and answer it, now or when egress has acknowledged. Raises `TamperedVault`, after which the vault must not go on."""
        self._now = now
        try:
            _DISPATCH[type(request)](self, request)
        except TamperedVault:
            raise
        except (VaultConflict, EnvelopeError, Unavailable, VaultError) as error:
            self._answer(messages.Refused(request=request.request, message=str(error)))

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
            self._answer(one.answer(ack))

    def _when_in_force(self, change: PolicyChange, answer: Callable[[PolicyAck | None], VaultToAdmin]) -> None:
        if not self._feed.greeted:
            self._answer(answer(None))
            return
        self._feed.tell(change)
        self._waiting.append(_Waiting(change.number, self._now + REVOKE_WAIT_SECONDS, answer))

    # --- one method for each request ---------------------------------------------------------------------------------

    def _create_key(self, wish: messages.CreateKey) -> None:
        info, change = self._contents.create_key(wish)
        self._when_in_force(change, lambda ack: messages.KeyCreated(request=wish.request, key=info))

    def _revoke_key(self, wish: messages.RevokeKey) -> None:
        id, change = self._contents.revoke_key(wish.key, operator=wish.operator)

        def answer(ack: PolicyAck | None) -> VaultToAdmin:
            seen = ack or _NONE
            return messages.KeyRevoked(
                request=wish.request,
                id=id,
                serving=self._serving,
                egress=ack is not None,
                workers=seen.workers,
                of_workers=seen.of_workers,
                streams_ended=seen.streams_ended,
            )

        self._when_in_force(change, answer)

    def _list_keys(self, wish: messages.ListKeys) -> None:
        keys, more = next(packed(self._contents.keys(after=wish.after), count=LIST_ITEMS_PER_PAGE))
        self._answer(messages.KeyPage(request=wish.request, keys=keys, more=more))

    def _add_credential(self, wish: messages.AddCredential) -> None:
        info = self._contents.add_credential(wish, origin=self._origin_of(wish.provider))
        self._feed.tell(GrantDue(info.id))
        self._answer(messages.CredentialAdded(request=wish.request, credential=info))

    def _remove_credential(self, wish: messages.RemoveCredential) -> None:
        self._contents.remove_credential(wish.id, operator=wish.operator)
        self._feed.tell(messages.Withdraw(id=wish.id))
        self._answer(messages.Done(request=wish.request))

    def _list_credentials(self, wish: messages.ListCredentials) -> None:
        found, more = next(packed(self._contents.credentials(after=wish.after), count=LIST_ITEMS_PER_PAGE))
        self._answer(messages.CredentialPage(request=wish.request, credentials=found, more=more))

    def _list_cooldowns(self, wish: messages.ListCooldowns) -> None:
        found = self._contents.cooldowns.in_force()[max(0, wish.after) :]
        cooldowns, more = next(packed(found, count=LIST_ITEMS_PER_PAGE))
        self._answer(messages.CooldownPage(request=wish.request, cooldowns=cooldowns, more=more))

    def _set_rules(self, wish: messages.SetRules) -> None:
        change = self._contents.set_rules(wish.rules, operator=wish.operator)
        if change is None:
            self._answer(messages.Done(request=wish.request))
        else:
            self._when_in_force(change, lambda ack: messages.Done(request=wish.request))

    def _get_rules(self, wish: messages.GetRules) -> None:
        self._answer(messages.RulesInForce(request=wish.request, rules=self._contents.rules))

    def _get_status(self, wish: messages.GetVaultStatus) -> None:
        store = self._contents.store
        self._answer(
            messages.VaultStatus(
                request=wish.request,
                vault_id=store.keyring.vault,
                epoch=store.epoch,
                root=store.root,
                records=len(store),
                key_term=store.keyring.current,
                policy_number=self._contents.number,
                public_key=store.keyring.public_key,
            )
        )

    def _origin_of(self, name: str) -> str:
        """Return the origin that the vault's own settings give provider `name`. Raises `VaultConflict`."""
        provider = self.providers.get(name)
        if provider is None:
            raise VaultConflict("the configuration has no such provider; add it under `providers` and run `cliproxy reload`")
        if not provider.base_url or provider.auth == "none":
            raise VaultConflict(f"provider {name} takes no credential; give it a base_url and an auth scheme first")
        return str(parse_base_url(provider.base_url)[0])


_DISPATCH: Mapping[type, Callable[[Desk, Any], None]] = {
    messages.CreateKey: Desk._create_key,
    messages.RevokeKey: Desk._revoke_key,
    messages.ListKeys: Desk._list_keys,
    messages.AddCredential: Desk._add_credential,
    messages.RemoveCredential: Desk._remove_credential,
    messages.ListCredentials: Desk._list_credentials,
    messages.ListCooldowns: Desk._list_cooldowns,
    messages.SetRules: Desk._set_rules,
    messages.GetRules: Desk._get_rules,
    messages.GetVaultStatus: Desk._get_status,
}
