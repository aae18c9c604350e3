"""What a seccomp filter decides, and the classic BPF program that decides it.

A `Policy` is the meaning: per system call an ordered list of clauses, the first whose conditions all hold wins, and a call without a holding clause gets its
`otherwise`. `Policy.decide` states it in Python; `assemble` turns the same policy into a program for the kernel, and the tests hold one against the other with
an interpreter. What always holds: another architecture and the x32 ABI kill the process; a number that we do not know is ENOSYS; a known call that the policy
does not name gets the policy's default.

Programs only jump forward, so the assembler works from the end to the beginning: every target's distance is known when a jump is written, and a conditional
jump (8 bits of offset) that cannot reach goes by way of an unconditional one (32 bits). The kernel itself skips the program for calls that are allowed whatever
their arguments are (`SECCOMP_ARCH_NATIVE` cache, Linux 5.11), so the hot calls of a role should carry no conditions; of the others, those in `hot` are
compared first and the rest are found by halving.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from enum import IntEnum

import msgspec

from cliproxy.sandbox.syscalls import KNOWN_NAMES, NAMES, NUMBERS, X32_BIT, Arch

# linux/filter.h, linux/bpf_common.h
LD_ABS, ALU_AND, JMP_JA, JMP_JEQ, JMP_JGE, JMP_JSET, RET = 0x20, 0x54, 0x05, 0x15, 0x35, 0x45, 0x06
MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS
_MAX_SHORT_JUMP = 255

# struct seccomp_data: nr, arch, instruction_pointer, args[6]; both machines are little-endian
_NR, _ARCH, _ARGS = 0, 4, 16

INT = 0xFFFF_FFFF  # the mask of an `int` argument: the kernel ignores the register's upper half, and so must the filter
LONG = 0xFFFF_FFFF_FFFF_FFFF


class Verdict(IntEnum):
    """SECCOMP_RET_* actions without data."""

    KILL_PROCESS = 0x8000_0000
    TRAP = 0x0003_0000
    ERRNO = 0x0005_0000
    ALLOW = 0x7FFF_0000


class Action(msgspec.Struct, frozen=True):
    """What happens to a call. `errno` only with `Verdict.ERRNO`."""

    verdict: Verdict
    errno: int = 0

    @property
    def code(self) -> int:
        """The 32 bits that the filter returns."""
        return int(self.verdict) | self.errno


ALLOW = Action(Verdict.ALLOW)
KILL_PROCESS = Action(Verdict.KILL_PROCESS)
TRAP = Action(Verdict.TRAP)


def errno_action(number: int) -> Action:
    """The call fails with `number`, which must be an errno (1 to 4095: MAX_ERRNO)."""
    if not 1 <= number <= 4095:
        raise ValueError(f"{number} is no errno")
    return Action(Verdict.ERRNO, number)


class Argument(msgspec.Struct, frozen=True):
    """Holds when argument `index` (0 to 5), masked with `mask`, is one of `values`. An empty set never holds."""

    index: int
    values: frozenset[int]
    mask: int

    def __post_init__(self) -> None:
        if not 0 <= self.index <= 5 or not 0 <= self.mask <= LONG or any(value & ~self.mask for value in self.values):
            raise ValueError(f"argument {self.index}: a value lies outside its mask")

    def holds(self, arguments: Sequence[int]) -> bool:
        """The meaning, for the tests and for people."""
        return arguments[self.index] & self.mask in self.values


class Clause(msgspec.Struct, frozen=True):
    """`action`, when all `conditions` hold. Without conditions it always applies."""

    action: Action
    conditions: tuple[Argument, ...] = ()


class Rule(msgspec.Struct, frozen=True):
    """One call's clauses, in order, and what a call gets that none of them takes."""

    clauses: tuple[Clause, ...]
    otherwise: Action

    def decide(self, arguments: Sequence[int]) -> Action:
        """Return the first holding clause's action."""
        for clause in self.clauses:
            if all(condition.holds(arguments) for condition in clause.conditions):
                return clause.action
        return self.otherwise


class Policy(msgspec.Struct, frozen=True):
    """A filter's meaning. `rules` by call name; `known` is what other calls of the table get, `unknown` all others; `hot` names the calls to compare first."""

    rules: Mapping[str, Rule]
    known: Action
    unknown: Action
    hot: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        strangers = (set(self.rules) | set(self.hot)) - KNOWN_NAMES
        if strangers:
            raise ValueError(f"no such system call: {', '.join(sorted(strangers))}")

    def decide(self, arch: Arch, audit_arch: int, number: int, arguments: Sequence[int]) -> Action:
        """Return what a filter assembled for `arch` does to the call."""
        if audit_arch != arch.value or (arch is Arch.X86_64 and number & X32_BIT):
            return KILL_PROCESS
        name = NAMES[arch].get(number)
        if name is None:
            return self.unknown
        rule = self.rules.get(name)
        return self.known if rule is None else rule.decide(arguments)


class _Program:
    """A program written from its end to its beginning. An address counts instructions from the end; a jump's offset counts those in between."""

    def __init__(self) -> None:
        self._reversed: list[tuple[int, int, int, int]] = []
        self._returns: dict[Action, int] = {}

    @property
    def here(self) -> int:
        """The address of the instruction written last, which is where the next one falls through to."""
        return len(self._reversed) - 1

    def emit(self, code: int, operand: int, if_true: int = 0, if_false: int = 0) -> int:
        self._reversed.append((code, if_true, if_false, operand))
        return self.here

    def ret(self, action: Action) -> int:
        """Return the address of a `return action`, an existing one when a short jump reaches it from here."""
        known = self._returns.get(action)
        if known is None or self.here - known > _MAX_SHORT_JUMP // 2:
            known = self._returns[action] = self.emit(RET, action.code)
        return known

    def load(self, offset: int, then: int) -> int:
        self.go(then)
        return self.emit(LD_ABS, offset)

    def go(self, target: int) -> None:
        """Make the code at `target` what comes next."""
        if target != self.here:
            self.emit(JMP_JA, self.here - target)

    def branch(self, code: int, operand: int, if_true: int, if_false: int) -> int:
        """Write a conditional jump to two addresses, each through an unconditional one where it is too far away."""
        if max(self.here - if_true, self.here - if_false) > _MAX_SHORT_JUMP - 2:
            if self.here - if_true > _MAX_SHORT_JUMP - 2:
                if_true = self.emit(JMP_JA, self.here - if_true)
            if self.here - if_false > _MAX_SHORT_JUMP - 2:
                if_false = self.emit(JMP_JA, self.here - if_false)
        return self.emit(code, operand, self.here - if_true, self.here - if_false)

    def encode(self) -> bytes:
        if len(self._reversed) > MAX_INSTRUCTIONS:
            raise ValueError(f"the filter has {len(self._reversed)} instructions, more than {MAX_INSTRUCTIONS}")
        return b"".join(struct.pack("=HBBI", *instruction) for instruction in reversed(self._reversed))


def _one_of(program: _Program, offset: int, mask: int, values: Sequence[int], if_true: int, if_false: int) -> int:
    """Write a test of one 32-bit half: whether it, masked, is one of `values`."""
    if not mask:
        return if_true if 0 in values else if_false
    if mask == INT or len(values) != 1 or values[0] != 0:
        following = if_false
        for value in reversed(values):
            following = program.branch(JMP_JEQ, value, if_true, following)
        if mask != INT:
            program.go(following)
            following = program.emit(ALU_AND, mask)
    else:
        following = program.branch(JMP_JSET, mask, if_false, if_true)
    return program.load(offset, following)


def _write_argument(program: _Program, argument: Argument, if_true: int, if_false: int) -> int:
    """Write one condition: the upper half chooses which lower halves are right."""
    low_offset = _ARGS + 8 * argument.index
    by_upper: dict[int, list[int]] = {}
    for value in sorted(argument.values):
        by_upper.setdefault(value >> 32, []).append(value & INT)
    following = if_false
    for upper, lowers in reversed(by_upper.items()):
        found = _one_of(program, low_offset, argument.mask & INT, lowers, if_true, if_false)
        following = _one_of(program, low_offset + 4, argument.mask >> 32, [upper], found, following)
    return following


def _write_rule(program: _Program, rule: Rule) -> int:
    """Write a rule's clauses and return where they begin. The code does not need the accumulator's value."""
    following = program.ret(rule.otherwise)
    for clause in reversed(rule.clauses):
        target = program.ret(clause.action)
        for condition in reversed(clause.conditions):
            target = _write_argument(program, condition, target, following)
        following = target
    return following


def _write_search(program: _Program, ranges: Sequence[tuple[int, int]]) -> int:
    """Write a halving search over `ranges` (first number, address), ascending. Expects the call's number in the accumulator."""
    if len(ranges) == 1:
        return ranges[0][1]
    middle = len(ranges) // 2
    right = _write_search(program, ranges[middle:])
    left = _write_search(program, ranges[:middle])
    return program.branch(JMP_JGE, ranges[middle][0], right, left)


def assemble(policy: Policy, arch: Arch) -> bytes:
    """Return `policy` as an array of `struct sock_filter` for `arch`. Raises `ValueError` when it is too long for the kernel."""
    program = _Program()
    starts: dict[int, int] = {}
    blocks: dict[Rule, int] = {}
    for name, number in sorted(NUMBERS[arch].items(), key=lambda item: item[1]):
        rule = policy.rules.get(name, Rule((), policy.known))
        if rule not in blocks:
            blocks[rule] = _write_rule(program, rule)
        starts[number] = blocks[rule]
    unknown = program.ret(policy.unknown)

    ranges: list[tuple[int, int]] = []
    last = max(starts)
    for number in range(last + 2):
        target = starts.get(number, unknown)
        if not ranges or ranges[-1][1] != target:
            ranges.append((number, target))
    following = _write_search(program, ranges)
    for name in reversed(policy.hot):
        if name in NUMBERS[arch]:
            number = NUMBERS[arch][name]
            following = program.branch(JMP_JEQ, number, starts[number], following)
    if arch is Arch.X86_64:
        following = program.branch(JMP_JSET, X32_BIT, program.ret(KILL_PROCESS), following)
    following = program.load(_NR, following)
    following = program.branch(JMP_JEQ, arch.value, following, program.ret(KILL_PROCESS))
    program.load(_ARCH, following)
    return program.encode()
