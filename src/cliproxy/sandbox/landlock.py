"""Landlock: from here on this process reaches no file but the few it may read, no TCP port, and no process outside.

`restrict` denies every right that the running kernel can deny; rights that a newer kernel adds and this module has never heard of stay out (the system call
filter covers the calls behind them). The ruleset holds for the calling thread and what it starts, so the lockdown refuses a process with threads.
Source: `include/uapi/linux/landlock.h` up to ABI 7 (Linux 6.15).
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterable

import msgspec

from cliproxy.errors import SandboxError
from cliproxy.sandbox.calls import system_call

_CREATE_VERSION = 1  # LANDLOCK_CREATE_RULESET_VERSION
_RULE_PATH_BENEATH = 1

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_FIRST_ABI_FILE_RIGHTS = (1 << 13) - 1  # execute to make_sym
BIND_TCP, CONNECT_TCP = 1 << 0, 1 << 1
SCOPE_ABSTRACT_UNIX_SOCKET, SCOPE_SIGNAL = 1 << 0, 1 << 1


class Rights(msgspec.Struct, frozen=True):
    """What a ruleset takes away: `files`, `network` and `scopes` are the bits of `struct landlock_ruleset_attr`."""

    files: int
    network: int
    scopes: int

    def encode(self) -> bytes:
        """The struct, only as long as it must be: an older kernel refuses fields that it does not know."""
        fields: tuple[int, ...] = (self.files, self.network, self.scopes)
        while len(fields) > 1 and not fields[-1]:
            fields = fields[:-1]
        return struct.pack(f"={len(fields)}Q", *fields)


def deniable_rights(abi: int, *, may_connect: bool) -> Rights:
    """Return everything that ABI `abi` can deny. `may_connect` leaves outgoing TCP alone, for the process whose work it is."""
    files = _FIRST_ABI_FILE_RIGHTS
    if abi >= 2:
        files |= REFER
    if abi >= 3:
        files |= TRUNCATE
    network = 0
    if abi >= 4:
        network = BIND_TCP if may_connect else BIND_TCP | CONNECT_TCP
    if abi >= 5:
        files |= IOCTL_DEV
    scopes = SCOPE_ABSTRACT_UNIX_SOCKET | SCOPE_SIGNAL if abi >= 6 else 0
    return Rights(files, network, scopes)


def landlock_abi() -> int:
    """Return the kernel's Landlock ABI, 0 when it has none or it is switched off at boot."""
    try:
        return system_call("landlock_create_ruleset", 0, 0, _CREATE_VERSION)
    except OSError:
        return 0


def restrict(*, read_paths: Iterable[str], may_connect: bool) -> int:
    """Deny everything to the calling thread but reading the files (or the files under the directories) `read_paths`; return the ABI used.

    A path that does not exist grants nothing. Needs no_new_privs. Raises `SandboxError` when the kernel lacks or refuses it.
    """
    abi = landlock_abi()
    if abi < 1:
        raise SandboxError("this kernel offers no Landlock", cure="use Linux 5.13 or newer with landlock among the `lsm=` boot options")
    attributes = deniable_rights(abi, may_connect=may_connect).encode()
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    try:
        ruleset = system_call("landlock_create_ruleset", ctypes.addressof(buffer), len(attributes), 0)
        try:
            for path in read_paths:
                _allow_reading(ruleset, path)
            system_call("landlock_restrict_self", ruleset, 0)
        finally:
            os.close(ruleset)
    except OSError as error:
        raise SandboxError(f"the kernel refused the Landlock ruleset ({error.strerror})", cure="see `cliproxy doctor`") from error
    return abi


def _allow_reading(ruleset: int, path: str) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    try:
        if not (stat.S_ISREG(os.fstat(descriptor).st_mode) or stat.S_ISDIR(os.fstat(descriptor).st_mode)):
            return
        rule = struct.pack("=Qi", READ_FILE, descriptor)
        buffer = ctypes.create_string_buffer(rule, len(rule))
        system_call("landlock_add_rule", ruleset, _RULE_PATH_BENEATH, ctypes.addressof(buffer), 0)
    finally:
        os.close(descriptor)
