"""One vocabulary: each command has one request and one answer, everything is bounded, and each receiver takes its own commands only."""

from __future__ import annotations

import inspect
import socket
from collections.abc import Iterator
from typing import Any, get_args

import msgspec
import pytest

from cliproxy.admin.service import COMMANDS as ADMIN_TABLE
from cliproxy.errors import ChannelError
from cliproxy.ipc import commands, messages
from cliproxy.ipc.channel import PacketChannel
from cliproxy.ipc.commands import Answered, Asked, Command, Hello, Refused, Reply, answer_type, decode_command
from cliproxy.vault.service import COMMANDS as VAULT_TABLE

OPERATOR = set(get_args(commands.OperatorCommand))
VAULT = set(get_args(commands.VaultCommand))
AUDITOR = set(get_args(commands.AuditorCommand))
EVERY = sorted(OPERATOR | VAULT | AUDITOR, key=lambda kind: kind.__name__)
VALUES: dict[str, Any] = {
    "digest": bytes(32),
    "models": ("m",),
    "network": "10.0.0.0/8",
    "sealed": b"box",
    "rules": messages.PolicyRules(),
    "on": True,
}


def example(kind: type[Command[Any]]) -> Command[Any]:
    """A good command of this kind."""
    return kind(**{field.name: VALUES.get(field.name, "x") for field in msgspec.structs.fields(kind) if field.required})


def structs_of(module: Any) -> Iterator[type[msgspec.Struct]]:
    for kind in sorted({kind for _, kind in inspect.getmembers(module, inspect.isclass)}, key=lambda kind: kind.__name__):
        if issubclass(kind, msgspec.Struct) and kind.__module__ == module.__name__:
            yield kind


def test_every_command_of_the_module_is_somebodys() -> None:
    assert {kind for kind in structs_of(commands) if issubclass(kind, Command) and kind is not Command} == set(EVERY)


def test_every_command_has_a_row_where_it_is_answered_and_nowhere_else() -> None:
    assert set(ADMIN_TABLE) == OPERATOR
    assert set(VAULT_TABLE) == VAULT
    for kind, row in ADMIN_TABLE.items():
        assert (row.by == "vault") == (kind in VAULT) and (row.by == "auditor") == (kind in AUDITOR)
        if row.by == "vault":
            assert row.audited is VAULT_TABLE[kind].audited  # the two tables agree on what the log says


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
def test_every_command_has_one_answer_type_that_its_readers_know(kind: type[Command[Any]]) -> None:
    answer = answer_type(kind)
    assert issubclass(answer, Reply) and answer not in (Reply, Refused, Hello)
    assert kind not in OPERATOR or answer in get_args(commands.OperatorReply)
    assert kind not in VAULT or answer in get_args(commands.VaultAnswer)
    assert kind not in AUDITOR or answer in get_args(commands.AuditorAnswer)


def test_every_answer_has_its_command() -> None:
    answers = {kind for kind in structs_of(commands) if issubclass(kind, Reply)} - {Reply, Refused, Hello}
    assert answers == {answer_type(kind) for kind in EVERY}


def test_no_class_stands_in_two_modules() -> None:
    names = [kind.__name__ for module in (commands, messages) for kind in structs_of(module) if not kind.__name__.startswith("_")]
    assert sorted(names) == sorted(set(names))


# --- bounds ----------------------------------------------------------------------------------------------------------


def unbounded(kind: msgspec.inspect.Type, where: str) -> Iterator[str]:
    """The places in `kind` that could hold any number of bytes."""
    inspected = msgspec.inspect
    if isinstance(kind, inspected.StrType | inspected.BytesType | inspected.CollectionType | inspected.DictType) and kind.max_length is None:
        yield where
    if isinstance(kind, inspected.VarTupleType | inspected.ListType):
        yield from unbounded(kind.item_type, where)
    elif isinstance(kind, inspected.DictType):
        yield from unbounded(kind.key_type, where)
        yield from unbounded(kind.value_type, where)
    elif isinstance(kind, inspected.UnionType):
        for one in kind.types:
            yield from unbounded(one, where)
    elif isinstance(kind, inspected.StructType):
        for field in kind.fields:
            yield from unbounded(field.type, f"{kind.cls.__name__}.{field.name}")
    elif not isinstance(
        kind,
        inspected.StrType
        | inspected.BytesType
        | inspected.IntType
        | inspected.FloatType
        | inspected.BoolType
        | inspected.NoneType
        | inspected.CustomType,  # a Secret: as long as its packet at most, and the channel bounds that
    ):
        raise AssertionError(f"{where}: {kind} is not known to be bounded")


@pytest.mark.parametrize("kind", [*structs_of(commands), *structs_of(messages), Asked[commands.VaultCommand], Answered[commands.VaultAnswer]], ids=str)
def test_every_field_is_bounded(kind: Any) -> None:
    if kind not in (Asked, Answered):  # generic: what they carry is looked at above and below
        assert list(unbounded(msgspec.inspect.type_info(kind), str(kind))) == []


class _Unbounded(msgspec.Struct):
    text: str


def test_the_walk_finds_what_is_not_bounded() -> None:
    assert list(unbounded(msgspec.inspect.type_info(_Unbounded), "")) == ["_Unbounded.text"]


# --- receivers -------------------------------------------------------------------------------------------------------

RECEIVERS = {"vault": (commands.AdminToVault, VAULT), "auditor": (commands.AdminToAuditor, AUDITOR)}


def receive(incoming: Any, packet: bytes) -> Any:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        theirs.send(packet)
        return PacketChannel(ours, incoming=incoming, peer="admin", per_second=100).receive()


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", RECEIVERS)
def test_a_channel_takes_its_own_commands_and_closes_on_the_others(name: str, kind: type[Command[Any]]) -> None:
    incoming, own = RECEIVERS[name]
    asked = Asked(request=1, operator="uid:0", command=example(kind))
    if kind in own:
        assert receive(incoming, msgspec.msgpack.encode(asked)) == asked
    else:
        with pytest.raises(ChannelError):
            receive(incoming, msgspec.msgpack.encode(asked))


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
def test_admin_takes_the_operators_commands_from_a_line_and_no_others(kind: type[Command[Any]]) -> None:
    line = msgspec.json.encode(example(kind))
    if kind in OPERATOR:
        assert decode_command(line) == example(kind)
    else:
        with pytest.raises(ChannelError):
            decode_command(line)


WRONG_ENVELOPES: dict[str, dict[str, Any]] = {
    "no request": {"operator": "uid:0", "command": {"command": "rules"}},
    "request 0": {"request": 0, "operator": "uid:0", "command": {"command": "rules"}},
    "nobody asked": {"request": 1, "operator": "", "command": {"command": "rules"}},
    "a long operator": {"request": 1, "operator": "x" * 10_000, "command": {"command": "rules"}},
    "an unknown command": {"request": 1, "operator": "uid:0", "command": {"command": "keys.show"}},
    "one field more": {"request": 1, "operator": "uid:0", "command": {"command": "rules"}, "admin": True},
    "an answer": {"request": 1, "answer": {"reply": "done"}},
}


@pytest.mark.parametrize("name", WRONG_ENVELOPES)
def test_a_wrong_envelope_closes_the_channel(name: str) -> None:
    with pytest.raises(ChannelError):
        receive(commands.AdminToVault, msgspec.msgpack.encode(WRONG_ENVELOPES[name]))


@pytest.mark.parametrize("change", [{"name": "x" * 129}, {"models": ("m",) * 65}, {"digest": bytes(33)}, {"networks": ("10.0.0.0/8",) * 65}], ids=str)
def test_the_vault_checks_the_bounds_again(change: dict[str, Any]) -> None:
    command = msgspec.structs.replace(example(commands.CreateKey), **change)
    with pytest.raises(ChannelError):
        receive(commands.AdminToVault, msgspec.msgpack.encode(Asked(request=1, operator="uid:0", command=command)))
