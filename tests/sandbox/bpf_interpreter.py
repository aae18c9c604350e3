"""Classic BPF as seccomp runs it, in Python, written from the kernel's documentation and not from the assembler: the judge of the filters that we assemble.

Strict where the kernel's checker is (`bpf_check_classic`, `seccomp_check_filter`): only forward jumps inside the program, aligned loads inside `seccomp_data`,
a return at the end, at most 4096 instructions.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence


class BadProgram(Exception):
    """The kernel would refuse the program."""


def load_program(program: bytes) -> list[tuple[int, int, int, int]]:
    """Return the instructions (code, jump if true, jump if false, operand). Raises `BadProgram`."""
    instructions = [tuple(one) for one in struct.iter_unpack("<HBBI", program)]
    if not 0 < len(instructions) <= 4096:
        raise BadProgram(f"{len(instructions)} instructions")
    for place, (code, if_true, if_false, operand) in enumerate(instructions):
        left = len(instructions) - place - 1
        match code:
            case 0x20:  # LD | W | ABS
                if operand % 4 or operand >= 64:
                    raise BadProgram(f"{place}: load at {operand}")
            case 0x05:  # JMP | JA
                if operand >= left:
                    raise BadProgram(f"{place}: jump out")
            case 0x15 | 0x35 | 0x45:  # JMP | JEQ, JGE, JSET | K
                if if_true >= left or if_false >= left:
                    raise BadProgram(f"{place}: jump out")
            case 0x54 | 0x06:  # ALU | AND | K, RET | K
                pass
            case _:
                raise BadProgram(f"{place}: code {code:#x}")
    if instructions[-1][0] != 0x06:
        raise BadProgram("no return at the end")
    return instructions


def run(instructions: Sequence[tuple[int, int, int, int]], *, audit_arch: int, number: int, arguments: Sequence[int]) -> tuple[int, int]:
    """Return what the program returns for one call, and after how many instructions."""
    data = struct.pack("<IIQ6Q", number & 0xFFFFFFFF, audit_arch, 0x7F00_1234_5678, *(argument & 0xFFFF_FFFF_FFFF_FFFF for argument in arguments))
    accumulator, place, steps = 0xDEAD_BEEF, 0, 0
    while True:
        code, if_true, if_false, operand = instructions[place]
        steps += 1
        place += 1
        match code:
            case 0x20:
                accumulator = struct.unpack_from("<I", data, operand)[0]
            case 0x54:
                accumulator &= operand
            case 0x05:
                place += operand
            case 0x15:
                place += if_true if accumulator == operand else if_false
            case 0x35:
                place += if_true if accumulator >= operand else if_false
            case 0x45:
                place += if_true if accumulator & operand else if_false
            case 0x06:
                return operand, steps
