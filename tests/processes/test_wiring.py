"""Whatever order processes die and return in, the two ends of an edge are of the same pair."""

import os

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cliproxy.processes.topology import EDGES, WORKER
from cliproxy.processes.wiring import Member, Wiring, edges_between

MEMBERS = [Member("auditor"), Member("vault"), Member("dialer"), Member("egress"), Member(WORKER, 0), Member(WORKER, 7), Member("admin"), Member("supervisor")]


def test_a_worker_meets_egress_in_its_own_slot():
    slots = [(mine, theirs) for mine, theirs, _ in edges_between(Member(WORKER, 5), Member("egress"))]
    assert slots == [(6, 16 + 5)]
    assert [(mine, theirs) for mine, theirs, _ in edges_between(Member("egress"), Member(WORKER, 5))] == [(16 + 5, 6)]


def test_workers_never_meet_each_other_nor_the_vault():
    assert not list(edges_between(Member(WORKER, 1), Member(WORKER, 2)))
    assert not list(edges_between(Member(WORKER, 1), Member("vault")))


def test_admin_and_auditor_share_two_edges():
    assert len(list(edges_between(Member("admin"), Member("auditor")))) == 2


class Machine(RuleBasedStateMachine):
    """Members start and die at random; each live member keeps what it was given, as its process would."""

    def __init__(self):
        super().__init__()
        self.held = {}  # live member -> slot -> descriptor
        self.wiring = Wiring(self.deliver)

    def deliver(self, member, slot, descriptor):
        if member not in self.held:
            return False
        old = self.held[member].pop(slot, None)
        if old is not None:
            os.close(old)
        self.held[member][slot] = os.dup(descriptor)
        return True

    @rule(member=st.sampled_from(MEMBERS))
    def start(self, member):
        if member not in self.held:
            self.held[member] = self.wiring.ends_for(member, MEMBERS)

    @rule(member=st.sampled_from(MEMBERS))
    def die(self, member):
        if member in self.held:
            for descriptor in self.held.pop(member).values():
                os.close(descriptor)
            self.wiring.forget(member, MEMBERS)

    @invariant()
    def live_members_reach_each_other_on_every_edge(self):
        for one in self.held:
            for other in self.held:
                for mine, theirs, _ in edges_between(one, other):
                    text = f"{one.name}:{mine}".encode()
                    os.write(self.held[one][mine], text)
                    assert os.read(self.held[other][theirs], 100) == text

    def teardown(self):
        for member in list(self.held):
            self.die(member)
        assert not self.wiring._waiting or all(owner not in self.held for owner, _ in self.wiring._waiting)
        for descriptor in self.wiring._waiting.values():
            os.close(descriptor)


TestWiring = Machine.TestCase
TestWiring.settings = settings(max_examples=30, stateful_step_count=25)


def test_nothing_is_left_open_when_all_are_gone():
    before = len(os.listdir("/proc/self/fd"))
    machine = Machine()
    for member in MEMBERS:
        machine.start(member)
    for member in MEMBERS:
        machine.die(member)
    assert len(os.listdir("/proc/self/fd")) == before
    assert not machine.wiring._waiting
    assert len(EDGES) == 11


@pytest.mark.parametrize("first", MEMBERS, ids=lambda member: member.name)
def test_a_start_gives_one_descriptor_for_each_edge(first):
    machine = Machine()
    machine.start(first)
    expected = sum(len(list(edges_between(first, other))) for other in MEMBERS if other != first)
    assert len(machine.held[first]) == expected
    machine.teardown()
