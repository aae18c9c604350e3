"""Nobody gets more rights than they were given: not by a field that nobody checks, not by a key, not by a socket.

Sources: CVE-2026-47101 and CVE-2026-47102 (LiteLLM: a key may create keys that may more than it), mass assignment (CWE-915, GitHub 2012), Docker sockets
that every local user can open (CWE-732).
"""

from __future__ import annotations

import base64
import json
import os
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cliproxy.bounds import MAX_COMMAND_LINE_BYTES
from cliproxy.cli.new_key import new_key
from cliproxy.errors import ChannelError
from cliproxy.ipc import commands
from cliproxy.ipc.commands import Command, OperatorCommand, decode_command, encode_line
from fakes.gateway import Gateway
from fakes.recovery import list_keys
from fakes.wire import WireClient

STRANGER = 54321
USER = [{"role": "user", "content": "Hello."}]


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with Gateway() as running:
        yield running


class Control:
    """A connection to the control socket that says whatever it likes."""

    def __init__(self, gateway: Gateway) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(20)
        self.sock.connect(str(gateway.home / "run" / "control.sock"))
        self.hello = self.reply()

    def __enter__(self) -> Control:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def say(self, line: bytes | dict[str, Any]) -> Any:
        self.sock.sendall((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n")
        return self.reply()

    def reply(self) -> Any:
        """Return the next reply, None at the end."""
        data = b""
        while not data.endswith(b"\n"):
            piece = self.sock.recv(65536)
            if not piece:
                return None
            data += piece
        return json.loads(data)


def creation(**more: Any) -> dict[str, Any]:
    """A `keys.create` that would be good."""
    _, digest = new_key()
    return {"command": "keys.create", "digest": base64.b64encode(digest).decode(), "name": f"made-{digest.hex()[:8]}", "models": ["echo"], **more}


# --- fields that nobody checks -------------------------------------------------------------------------------------------

EVERY_COMMAND: list[Command[Any]] = [
    commands.CreateKey(digest=bytes(32), name="x", models=("echo",)),
    commands.RevokeKey(key="x"),
    commands.ListKeys(),
    commands.AddCredential(provider="p", label="l", sealed=b"x"),
    commands.RemoveCredential(id="x"),
    commands.ListCredentials(),
    commands.ListCooldowns(),
    commands.Block(network="192.0.2.0/24"),
    commands.Unblock(network="192.0.2.0/24"),
    commands.Lockdown(on=False),
    commands.GetRules(),
    commands.GetVaultStatus(),
    commands.GetStatus(),
    commands.Reload(),
    commands.TakeCheckpoint(),
    commands.GetAuditStatus(),
]
FIELDS = """
operator uid role roles admin is_admin is_superuser permissions scopes rights owner user user_id tenant parent key_id id force override sudo dry_run
config home path origin base_url secret key_hash created_at revoked_at max_budget allowed_routes metadata __class__ constructor
"""


def test_every_command_is_in_the_table() -> None:
    assert {type(command) for command in EVERY_COMMAND} == set(OperatorCommand.__args__)


@pytest.mark.parametrize("command", EVERY_COMMAND, ids=lambda command: type(command).__name__)
def test_no_command_has_a_field_that_is_not_its_own(command: Command[Any]) -> None:
    good = json.loads(encode_line(command))
    assert decode_command(json.dumps(good).encode()) == command
    own = set(command.__struct_fields__)
    values: tuple[object, ...] = (True, "root", 0, None, {})
    for field in set(FIELDS.split()) - own:
        for value in values:
            with pytest.raises(ChannelError):
                decode_command(json.dumps({**good, field: value}).encode())


def test_an_unknown_field_is_refused_by_the_running_gateway_and_nothing_is_made(gateway: Gateway) -> None:
    before = list_keys(gateway)
    for field in ("operator", "role", "is_admin", "permissions", "id", "Models", "models ", "expiresAt", "revoked_at"):
        with Control(gateway) as control:
            reply = control.say(creation(**{field: "root"}))
            assert reply["reply"] == "refused"
            assert control.reply() is None, "and the connection is closed"
    assert list_keys(gateway) == before


@pytest.mark.parametrize(
    "change",
    [
        {"models": []},
        {"models": "*"},
        {"models": None},
        {"models": [""]},
        {"models": ["x" * 201]},
        {"models": ["echo"] * 65},
        {"models": [["*"]]},
        {"models": {"echo": "*"}},
        {"networks": ["everywhere"]},
        {"networks": ["0.0.0.0/0\n10.0.0.0/8"]},
        {"networks": ["10.0.0.1/8"]},
        {"networks": [""]},
        {"networks": None},
        {"networks": ["10.0.0.0/8"] * 65},
        {"expires_at": -1},
        {"expires_at": 1},
        {"expires_at": 10**16},
        {"expires_at": "never"},
        {"expires_at": 1.5},
        {"expires_at": True},
        {"requests_per_minute": -1},
        {"tokens_per_minute": -(10**9)},
        {"concurrency": "0"},
        {"concurrency": None},
        {"digest": ""},
        {"digest": base64.b64encode(bytes(31)).decode()},
        {"digest": base64.b64encode(bytes(33)).decode()},
        {"digest": "not base64!"},
        {"digest": None},
        {"name": ""},
        {"name": "x" * 129},
        {"name": "key_0123456789abcdef"},
        {"command": "keys.create\u0000"},
        {"command": "KEYS.CREATE"},
        {"command": "set_rules"},
        {"command": None},
        {"command": ["keys.create"]},
    ],
    ids=json.dumps,
)
def test_a_key_that_is_not_exactly_described_is_not_made(gateway: Gateway, change: dict[str, Any]) -> None:
    before = list_keys(gateway)
    with Control(gateway) as control:
        assert control.say(creation(**change))["reply"] == "refused"
    assert list_keys(gateway) == before


def test_the_good_sister_is_made_and_may_what_it_says(gateway: Gateway) -> None:
    with Control(gateway) as control:
        assert control.hello["reply"] == "hello"
        reply = control.say(creation(concurrency=1))
        assert (reply["reply"], reply["key"]["models"], reply["key"]["concurrency"]) == ("key_created", ["echo"], 1)


def test_of_a_field_said_twice_what_is_stored_is_what_was_checked(gateway: Gateway) -> None:
    secret, digest = new_key()
    line = b'{"command":"keys.create","digest":"%b","name":"twice","models":["*"],"models":["other"],"concurrency":1}' % base64.b64encode(digest)
    with Control(gateway) as control:
        assert control.say(line)["key"]["models"] == ["other"]
    body = {"model": "echo", "messages": USER}
    assert gateway.post("/v1/chat/completions", body, key=secret.reveal().decode())[0] == 403


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'"keys.create"',
        b"\xff\xfe",
        b"{" * 5000,
        b'{"command":"lockdown"}',
        b'{"command":"lockdown","on":"yes"}',
        b'{"command":"status"} {"command":"lockdown","on":true}',
        b'{"reply":"done"}',
        b'{"reply":"hello","build":"x","serving":true}',
        b'{"type":"SetRules","request":1,"operator":"uid:0","rules":{"lockdown":true}}',
        b'{"command":"credentials.reveal","id":"x"}',
        b'{"command":"keys.update","key":"first","models":["*"]}',
        b'{"command":"vault.key"}',
        b"GET / HTTP/1.1",
        b"x" * (MAX_COMMAND_LINE_BYTES + 1),
    ],
)
def test_what_is_no_command_is_refused_and_ends_the_connection(gateway: Gateway, line: bytes) -> None:
    with Control(gateway) as control:
        assert control.say(line)["reply"] == "refused"
        try:
            assert control.reply() is None
        except ConnectionResetError:
            pass  # it closed with unread bytes
    assert gateway.post("/v1/chat/completions", {"model": "echo", "messages": USER})[0] == 200


def test_no_reply_has_room_for_a_secret() -> None:
    """`credentials.reveal` is no matter of permissions: there are no words for it. What bytes a reply may hold is public."""
    bytes_of = {
        (kind.__name__, field.name)
        for kind in commands.OperatorReply.__args__
        for field in msgspec.structs.fields(kind)
        if "bytes" in str(field.type) or "Secret" in str(field.type)
    }
    assert bytes_of == {("VaultStatus", "root"), ("VaultStatus", "public_key"), ("AuditStatus", "root"), ("AuditStatus", "public_key")}


# --- a key's rights -------------------------------------------------------------------------------------------------------


def test_a_known_key_cannot_be_made_again_with_more_rights(gateway: Gateway) -> None:
    """Whoever learns a digest (from a backup) cannot store it a second time under another record; nor can a revoked one come back."""
    secret, digest = new_key()
    key = secret.reveal().decode()
    text = base64.b64encode(digest).decode()
    with Control(gateway) as control:
        assert control.say(creation(digest=text, name="narrow", models=["other"]))["reply"] == "key_created"
        for name in ("narrow", "wider"):
            assert control.say(creation(digest=text, name=name, models=["*"]))["reply"] == "refused"
        assert gateway.post("/v1/chat/completions", {"model": "echo", "messages": USER}, key=key)[0] == 403
        assert control.say({"command": "keys.revoke", "key": "narrow"})["reply"] == "key_revoked"
        assert control.say(creation(digest=text, name="again", models=["*"]))["reply"] == "refused"
    assert gateway.get("/v1/models", key=key)[0] == 401


def test_a_name_that_looks_like_an_id_cannot_stand_for_another_key(gateway: Gateway) -> None:
    """`keys revoke ID` must not be caught by a key of that name."""
    with Control(gateway) as control:
        made = control.say(creation(name="victim"))["key"]
        assert control.say(creation(name=made["id"]))["reply"] == "refused"
        assert control.say(creation(name="victim"))["reply"] == "refused", "and no name stands for two"


@pytest.mark.parametrize("path", ["/key/generate", "/key/update", "/user/new", "/v1/keys", "/keys", "/admin/keys", "/v0/management/api-keys"])
def test_no_client_key_makes_keys(gateway: Gateway, path: str) -> None:
    """The data port has no words for it either: rights come from the control socket alone."""
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
        with WireClient(gateway.port) as client:
            assert client.ask(method, path, key=gateway.key, body={"models": ["*"], "role": "admin"}).status == 404


def test_a_body_cannot_lend_rights(gateway: Gateway) -> None:
    with Control(gateway) as control:
        secret, digest = new_key()
        control.say(creation(digest=base64.b64encode(digest).decode(), name="poor", models=["other"]))
    key = secret.reveal().decode()
    for fields in (
        {"user_role": "admin"},
        {"permissions": ["*"]},
        {"metadata": {"models": "*"}},
        {"user": "first"},
        {"allowed_models": ["*"]},
        {"team_id": "root"},
    ):
        status, _, body = gateway.post("/v1/chat/completions", {"model": "echo", "messages": USER, **fields}, key=key)
        assert (status, json.loads(body)["error"]["code"]) == (403, "model_not_permitted")
    assert json.loads(gateway.get("/v1/models", key=key)[2])["data"] == []


# --- who may speak -------------------------------------------------------------------------------------------------------


def test_the_control_socket_and_all_that_leads_to_it_are_ours_alone(gateway: Gateway) -> None:
    socket_file = gateway.home / "run" / "control.sock"
    found = socket_file.lstat()
    assert stat.S_ISSOCK(found.st_mode) and stat.S_IMODE(found.st_mode) == 0o600
    for directory in (gateway.home / "run", gateway.home):
        assert stat.S_IMODE(directory.stat().st_mode) & 0o077 in (0, 0o011), directory  # others may pass through at most, never list
    names = {file.name for file in (gateway.home / "run").iterdir() if stat.S_ISSOCK(file.lstat().st_mode)}
    assert names == {"control.sock"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may look at the descriptors of locked processes")
def test_no_other_name_leads_to_a_process_of_ours(gateway: Gateway) -> None:
    """Neither a second file nor an abstract name (which begins with @ and has no mode at all)."""
    (name,) = _names_of_unix_sockets(gateway)
    assert name.rpartition("/")[2] == "control.sock" and not name.startswith("@")


def _names_of_unix_sockets(gateway: Gateway) -> set[str]:
    """Return the names under which sockets of our processes can be connected to (abstract ones begin with @)."""
    inodes = set()
    for pid in gateway.children().values():
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            target = os.readlink(entry)
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return {fields[7] for fields in lines if len(fields) > 7 and fields[6] in inodes}


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_another_user_is_turned_away_twice(gateway: Gateway) -> None:
    """The file modes do it; and when somebody opens them, the peer's credentials do."""
    socket_file = gateway.home / "run" / "control.sock"
    assert _as_stranger(socket_file) == b"EACCES"
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (gateway.home, gateway.home / "run", socket_file)}
    try:
        for path in modes:
            path.chmod(0o777)
        said = _as_stranger(socket_file)
    finally:
        for path, mode in modes.items():
            path.chmod(mode)
    assert f"uid {STRANGER} may not use this control socket" in json.loads(said)["message"]
    assert gateway.post("/v1/chat/completions", {"model": "echo", "messages": USER})[0] == 200, "its lockdown was not carried out"
    until = time.monotonic() + 10
    while not [line for line in gateway.audit_lines() if line["event"] == "authentication" and line["principal"] == f"uid:{STRANGER}"]:
        assert time.monotonic() < until, "and it is in the log"
        time.sleep(0.05)


def _as_stranger(socket_file: Path) -> bytes:
    """Return what another user hears that asks for a lockdown."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(STRANGER)
            os.setuid(STRANGER)
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.settimeout(10)
            try:
                sock.connect(str(socket_file))
                sock.sendall(b'{"command":"lockdown","on":true}\n')
            except PermissionError:
                os.write(writer, b"EACCES")
                os._exit(0)
            except OSError:
                pass  # turned away while it spoke
            try:
                while piece := sock.recv(65536):
                    os.write(writer, piece)
            except OSError:
                pass
        finally:
            os._exit(0)
    os.close(writer)
    said = b""
    while piece := os.read(reader, 65536):
        said += piece
    os.close(reader)
    os.waitpid(child, 0)
    return said
