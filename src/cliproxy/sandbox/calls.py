"""The raw system calls of the lockdown."""

from __future__ import annotations

import ctypes
import os

from cliproxy.sandbox.syscalls import NUMBERS, this_arch

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.prctl.restype = ctypes.c_int


def system_call(name: str, *arguments: int) -> int:
    """Make the call by its number, past any wrapper of the C library. Raises `OSError`."""
    result = int(_libc.syscall(ctypes.c_long(NUMBERS[this_arch()][name]), *(ctypes.c_long(argument) for argument in arguments)))
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), name)
    return result


def prctl(option: int, second: int = 0, third: int = 0, fourth: int = 0, fifth: int = 0) -> int:
    """prctl(2). Raises `OSError`."""
    return system_call("prctl", option, second, third, fourth, fifth)
