"""The assembled program decides exactly as the policy says: for every call of every role, for made-up policies, and where a jump does not reach."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cliproxy.sandbox.bpf import ALLOW, INT, KILL_PROCESS, LONG, TRAP, Action, Argument, Clause, Policy, Rule, Verdict, assemble, errno_action
from cliproxy.sandbox.roles import PROFILES
from cliproxy.sandbox.syscalls import KNOWN_NAMES, NUMBERS, X32_BIT, Arch
from sandbox.bpf_interpreter import load_program, run

EPERM, ENOSYS = errno_action(1), errno_action(38)
NOTHING = (0, 0, 0, 0, 0, 0)

actions = st.sampled_from([ALLOW, KILL_PROCESS, TRAP, EPERM, ENOSYS, errno_action(97)])
edges = st.sampled_from([0, 1, 2, 4, 5, 0x7FFF_FFFF, 0x8000_0000, INT, INT + 1, 0x1_0000_0004, 0xFFFF_FFFF_0000_0000, LONG])
longs = edges | st.integers(0, LONG) | st.integers(0, 40)
masks = st.sampled_from([INT, LONG, 0x4, 0x20, 0xF, 0xFFFF_FFFF_0000_0000, 0x8000_0000_0000_0001, 0]) | st.integers(0, LONG)


@st.composite
def conditions(draw: st.DrawFn) -> Argument:
    mask = draw(masks)
    values = frozenset(value & mask for value in draw(st.lists(longs, max_size=6)))
    return Argument(draw(st.integers(0, 5)), values, mask)


rules = st.builds(
    Rule,
    st.lists(st.builds(Clause, actions, st.lists(conditions(), max_size=3).map(tuple)), max_size=4).map(tuple),
    actions,
)


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    named = draw(st.dictionaries(st.sampled_from(sorted(KNOWN_NAMES)), rules, max_size=12))
    hot = tuple(draw(st.lists(st.sampled_from(sorted(KNOWN_NAMES)), max_size=4, unique=True)))
    return Policy(named, known=draw(actions), unknown=draw(actions), hot=hot)


def interesting_values(policy: Policy) -> list[int]:
    values = {0, 1, INT, LONG}
    for rule in policy.rules.values():
        for clause in rule.clauses:
            for condition in clause.conditions:
                for value in condition.values:
                    values |= {value, value ^ 1, value ^ (1 << 32), value | (~condition.mask & LONG)}
    return sorted(values)


@settings(max_examples=150)
@given(policies(), st.sampled_from(list(Arch)), st.data())
def test_a_program_decides_as_its_policy_says(policy: Policy, arch: Arch, data: st.DataObject) -> None:
    program = load_program(assemble(policy, arch))
    named = [NUMBERS[arch][name] for name in (*policy.rules, *policy.hot) if name in NUMBERS[arch]]
    numbers = st.sampled_from(named) if named else st.nothing()
    for _ in range(12):
        number = data.draw(numbers | numbers | st.integers(0, 500) | st.integers(0, 0xFFFF_FFFF))
        audit_arch = data.draw(st.sampled_from([arch.value, arch.value, arch.value, *(other.value for other in Arch), 0x4000_0003, 0]))
        arguments = data.draw(st.tuples(*[longs | st.sampled_from(interesting_values(policy))] * 6))
        verdict, _ = run(program, audit_arch=audit_arch, number=number, arguments=arguments)
        assert verdict == policy.decide(arch, audit_arch, number, arguments).code


@pytest.mark.parametrize("arch", list(Arch))
@pytest.mark.parametrize("role", sorted(PROFILES))
def test_each_roles_program_decides_as_its_profile_says_for_every_call(role: str, arch: Arch) -> None:
    policy = PROFILES[role].policy(ancillary=frozenset({3, 6, 7}), replaceable=frozenset({6}), listening=frozenset({8, 9}), process=4242)
    program = load_program(assemble(policy, arch))
    vectors: list[tuple[int, ...]] = [NOTHING, (LONG,) * 6, (INT,) * 6]
    values = interesting_values(policy)
    vectors += [tuple(value if place == at else 0 for place in range(6)) for at in range(6) for value in values]
    vectors += [(value,) * 6 for value in values]
    for number in range(max(NUMBERS[arch].values()) + 3):
        for arguments in vectors:
            verdict, _ = run(program, audit_arch=arch.value, number=number, arguments=arguments)
            assert verdict == policy.decide(arch, arch.value, number, arguments).code, (number, arguments)


@pytest.mark.parametrize("role", sorted(PROFILES))
def test_another_architecture_and_x32_kill_whatever_the_call(role: str) -> None:
    policy = PROFILES[role].policy(ancillary=frozenset(), replaceable=frozenset(), listening=frozenset({8}), process=1)
    for arch in Arch:
        program = load_program(assemble(policy, arch))
        for number in (0, 1, 59, 231, 500, INT):
            for stranger in (0x4000_0003, 0xC000_0015, 0, *(other.value for other in Arch if other is not arch)):
                assert run(program, audit_arch=stranger, number=number, arguments=NOTHING)[0] == Verdict.KILL_PROCESS
    program = load_program(assemble(policy, Arch.X86_64))
    for number in (0, 1, 39, 231, 512, 547):
        assert run(program, audit_arch=Arch.X86_64.value, number=number | X32_BIT, arguments=NOTHING)[0] == Verdict.KILL_PROCESS


def test_jumps_that_do_not_reach_go_another_way() -> None:
    """2,800 instructions: nearly every jump of the search is too far for 8 bits."""
    many = tuple(Clause(errno_action(1 + place % 4000), (Argument(place % 6, frozenset({place, place + (7 << 32)}), LONG),)) for place in range(30))
    names = ["read", "write", "open", "futex", "clone", "mmap", "ioctl", "fcntl", "socket", "connect", "file_setattr", "openat"]
    policy = Policy({name: Rule((*many, Clause(errno_action(4000 - place))), ALLOW) for place, name in enumerate(names)}, known=EPERM, unknown=ENOSYS)
    program = load_program(assemble(policy, Arch.X86_64))
    assert len(program) > 2000
    for name in names:
        number = NUMBERS[Arch.X86_64][name]
        for place in range(30):
            for upper in (0, 7, 8):
                arguments = tuple(place + (upper << 32) if at == place % 6 else LONG for at in range(6))
                verdict, _ = run(program, audit_arch=Arch.X86_64.value, number=number, arguments=arguments)
                assert verdict == policy.decide(Arch.X86_64, Arch.X86_64.value, number, arguments).code


def test_a_policy_too_long_for_the_kernel_is_refused() -> None:
    clause = Clause(EPERM, (Argument(0, frozenset(range(1000)), LONG),))
    with pytest.raises(ValueError, match="more than 4096"):
        assemble(
            Policy(
                {name: Rule((clause,), errno_action(place + 1)) for place, name in enumerate(("read", "write", "open"))}
                | {"close": Rule((Clause(TRAP, (Argument(1, frozenset(range(2000)), LONG),)),), ALLOW)},
                known=EPERM,
                unknown=ENOSYS,
            ),
            Arch.X86_64,
        )


@pytest.mark.parametrize("role", sorted(PROFILES))
def test_a_hot_call_is_decided_within_fourteen_instructions(role: str) -> None:
    profile = PROFILES[role]
    program = load_program(assemble(profile.policy(ancillary=frozenset({3}), replaceable=frozenset(), listening=frozenset({8}), process=1), Arch.X86_64))
    for name in profile.hot:
        _, steps = run(program, audit_arch=Arch.X86_64.value, number=NUMBERS[Arch.X86_64][name], arguments=NOTHING)
        assert steps <= 14, name


def test_the_upper_half_of_an_int_argument_does_not_count_but_that_of_a_long_does() -> None:
    policy = Policy(
        {
            "fcntl": Rule((Clause(ALLOW, (Argument(1, frozenset({3}), INT),)),), EPERM),
            "clone": Rule((Clause(ALLOW, (Argument(0, frozenset({3}), LONG),)),), EPERM),
        },
        known=KILL_PROCESS,
        unknown=ENOSYS,
    )
    program = load_program(assemble(policy, Arch.X86_64))
    dirty = 3 | 0xABCD << 32

    def decided(name: str, arguments: tuple[int, ...]) -> int:
        return run(program, audit_arch=Arch.X86_64.value, number=NUMBERS[Arch.X86_64][name], arguments=arguments)[0]

    assert decided("fcntl", (0, dirty, 0, 0, 0, 0)) == ALLOW.code
    assert decided("clone", (dirty, 0, 0, 0, 0, 0)) == EPERM.code
    assert decided("clone", (3, 0, 0, 0, 0, 0)) == ALLOW.code


@pytest.mark.parametrize(
    "made",
    [
        lambda: Argument(6, frozenset({1}), INT),
        lambda: Argument(0, frozenset({1 << 32}), INT),
        lambda: Argument(0, frozenset({8}), 4),
        lambda: errno_action(0),
        lambda: errno_action(4096),
        lambda: Policy({"opne": Rule((), ALLOW)}, known=EPERM, unknown=ENOSYS),
        lambda: Policy({}, known=EPERM, unknown=ENOSYS, hot=("raed",)),
    ],
    ids=["no seventh argument", "value wider than int", "value outside its mask", "errno 0", "errno too large", "misspelt call", "misspelt hot call"],
)
def test_a_policy_that_means_nothing_is_refused(made: object) -> None:
    with pytest.raises(ValueError):
        made()  # type: ignore[operator]


def test_an_action_returns_what_the_kernel_expects() -> None:
    table: list[tuple[Action, int]] = [(ALLOW, 0x7FFF0000), (KILL_PROCESS, 0x80000000), (TRAP, 0x00030000), (EPERM, 0x00050001), (ENOSYS, 0x00050026)]
    assert [action.code for action, _ in table] == [code for _, code in table]
