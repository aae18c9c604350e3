"""The table of slots and edges is whole: nothing collides, nothing connects that docs/architecture.md does not connect."""

from itertools import combinations

import pytest

from cliproxy.bounds import MAX_DRAINING_GENERATIONS, MAX_WORKERS, WORKER_NUMBERS
from cliproxy.processes import topology
from cliproxy.processes.spawn import FIRST_SOURCE_FD
from cliproxy.processes.topology import CHANNELS, EDGES, FILES, ROLES, SUPERVISOR

EVERYONE = (*ROLES, SUPERVISOR)


def slots_of(end):
    return range(end.number, end.number + (WORKER_NUMBERS if end.workers else 1))


def test_the_edges_are_those_of_the_design_and_no_others():
    pairs = sorted(tuple(sorted((edge.a.role, edge.b.role))) for edge in EDGES)
    audited = [tuple(sorted((role, "auditor"))) for role in ("worker", "egress", "dialer", "vault", "admin", SUPERVISOR)]
    others: list[tuple[str, ...]] = [("egress", "worker"), ("dialer", "egress"), ("egress", "vault"), ("admin", "vault"), ("admin", "auditor")]
    assert pairs == sorted(audited + others)


@pytest.mark.parametrize("other", ["vault", "admin", "dialer"])
def test_a_worker_has_no_channel_to_what_holds_or_reaches_secrets(other):
    assert not [edge for edge in EDGES if {edge.a.role, edge.b.role} == {"worker", other}]


@pytest.mark.parametrize("role", EVERYONE)
def test_no_two_ends_of_a_role_share_a_number(role):
    used = [slot for edge in EDGES for end in (edge.a, edge.b) if end.role == role for slot in slots_of(end)]
    used += [*FILES.get(role, ()), topology.CONTROL_FD, topology.BOOT_FD]
    assert len(used) == len(set(used))
    assert min(used) > topology.STDERR_FD


@pytest.mark.parametrize("role", ROLES)
def test_slots_lie_below_what_is_taken_and_below_the_sources_of_a_spawn(role):
    assert max(topology.all_descriptors(role)) < topology.FIRST_FREE_FD < FIRST_SOURCE_FD


def test_only_worker_ends_are_one_and_the_other_side_has_room_for_all():
    for edge in EDGES:
        ends = {edge.a.role: edge.a, edge.b.role: edge.b}
        assert ("worker" in ends) == (edge.a.workers or edge.b.workers)
        assert all(not end.workers for role, end in ends.items() if role == "worker")
    assert WORKER_NUMBERS == MAX_WORKERS * (1 + MAX_DRAINING_GENERATIONS)


def test_descriptors_travel_only_on_control_and_between_egress_and_dialer():
    assert {role: topology.ancillary(role) - {topology.CONTROL_FD} for role in ROLES if topology.ancillary(role) != {topology.CONTROL_FD}} == {
        "egress": {topology.EgressDescriptors.DIALER_FD},
        "dialer": {topology.DialerDescriptors.EGRESS_FD},
    }


@pytest.mark.parametrize("role", ROLES)
def test_control_boot_and_files_are_never_replaced_but_the_log_segment(role):
    fixed = {topology.CONTROL_FD, topology.BOOT_FD, *FILES[role]} - {topology.AuditorDescriptors.SEGMENT_FD}
    assert not fixed & topology.replaceable(role)
    assert topology.replaceable(role) >= set(CHANNELS[role])


def test_every_role_has_a_uid_of_its_own():
    offsets = [topology.uid_offset(role) for role in ROLES]
    assert len(set(offsets)) == len(ROLES)
    assert all(a != b for a, b in combinations(offsets, 2))


@pytest.mark.parametrize("role", ROLES)
def test_the_slot_classes_name_only_slots_of_their_role(role):
    named = vars({name.lower().removesuffix("descriptors"): value for name, value in vars(topology).items() if name.endswith("Descriptors")}[role])
    numbers = [number for name, value in named.items() if not name.startswith("_") for number in (value if isinstance(value, tuple) else (value,))]
    assert set(numbers) == topology.all_descriptors(role) - {topology.CONTROL_FD, topology.BOOT_FD}
