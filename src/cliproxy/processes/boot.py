"""What the supervisor hands a child at its start, in a sealed memfd: nobody, the sender included, can change it any more.

No field is secret: the master key travels in a memfd of its own, to the vault alone.
"""

from __future__ import annotations

import fcntl
import os
import stat
from typing import Final

import msgspec

from cliproxy.bounds import MAX_BOOT_BYTES
from cliproxy.errors import ChannelError

VAULT_FILE: Final = "auths/vault.db"  # below the home
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class Boot(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A child's start. `uid` and `gid`: who to become, the present ones when not started as root. `operator_uid`: who started the gateway.

    `serving` is False for a command without a running gateway: supervisor, vault, auditor and admin only. `settings` is
    `config.schema.encode_settings` of generation `generation`. `may_create`, `accept_rollback`: as in `plan.Plan`.
    """

    role: str
    name: str
    build: str
    generation: int
    settings: bytes
    home: str
    uid: int
    gid: int
    operator_uid: int
    serving: bool
    sandbox: bool
    supervisor_pid: int
    may_create: bool = False
    accept_rollback: bool = False


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Boot)


def seal(data: bytes, *, name: str) -> int:
    """Return a new memfd that holds `data` and cannot be changed, by anyone. The caller closes it."""
    memfd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    view = memoryview(data)
    while view:
        view = view[os.write(memfd, view) :]
    fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, _SEALS)
    return memfd


def read_sealed(descriptor: int) -> bytes:
    """Return the bytes of a memfd made by `seal`, from its start, wherever its offset is; the descriptor stays open.

    Raises `ChannelError` when it is no regular file or longer than `MAX_BOOT_BYTES`.
    """
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BOOT_BYTES:
        raise ChannelError(f"descriptor {descriptor} is not a settings memfd")
    data = os.pread(descriptor, MAX_BOOT_BYTES + 1, 0)
    if len(data) != status.st_size:
        raise ChannelError(f"descriptor {descriptor} changed while it was read")
    return data


def is_sealed(descriptor: int) -> bool:
    """Whether nobody can change the memfd any more. For use before the lockdown, which denies F_GET_SEALS."""
    return fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS == _SEALS


def encode_boot(boot: Boot) -> bytes:
    """Return `boot` for `decode_boot` in the child."""
    return _encoder.encode(boot)


def decode_boot(data: bytes) -> Boot:
    """Return the boot record in `data`; raises `ChannelError` on anything else."""
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, ValueError) as error:
        raise ChannelError("the boot record is not one of this build") from error
