"""Pauses between restarts, and whose lateness counts."""

import pytest

from cliproxy.dataplane.link import EGRESS_SILENT_SECONDS
from cliproxy.processes.fleet import Fleet, State, Supplies, pause_after
from cliproxy.processes.role import ALIVE_SECONDS
from cliproxy.processes.topology import HUNG_SECONDS, ROLES
from cliproxy.processes.wiring import Member


@pytest.mark.parametrize(("failures", "seconds"), [(1, 0.1), (2, 0.2), (3, 0.4), (9, 25.6), (10, 30.0), (10_000, 30.0)])
def test_pauses_double_up_to_thirty_seconds(failures, seconds):
    assert pause_after(failures) == pytest.approx(seconds)


def never(*_):
    raise AssertionError("it starts nothing")


class Quiet(Fleet):
    """Starts nothing and notes whom it would kill."""

    def __init__(self, *, refuses=False):
        super().__init__(Supplies(boot_of=never, files_of=never, program=never, output_of=never), on_start=never, on_end=never)
        self.killed = []
        self.refuses = refuses

    def start(self, child):
        if self.refuses:
            raise OSError(11, "Resource temporarily unavailable")
        child.state, child.pid, child.deadline = State.STARTING, 1, 100.0

    def kill(self, child):
        self.killed.append(child.name)


def test_a_start_that_takes_too_long_is_killed():
    fleet = Quiet()
    child = fleet.add(Member("egress"), generation=1)
    fleet.start(child)
    fleet.kill_overdue(99.0)
    assert fleet.killed == []
    fleet.kill_overdue(100.0)
    assert fleet.killed == ["egress"]


def test_a_start_is_not_late_while_another_child_is_dead():
    fleet = Quiet()
    fleet.start(fleet.add(Member("egress"), generation=1))
    fleet.add(Member("vault"), generation=1)
    fleet.kill_overdue(100.0)
    assert fleet.killed == []


def test_a_leaving_child_is_late_whoever_is_dead():
    fleet = Quiet()
    child = fleet.add(Member("worker", 3), generation=1)
    fleet.start(child)
    fleet.add(Member("vault"), generation=1)
    child.state = State.LEAVING
    fleet.kill_overdue(100.0)
    assert fleet.killed == ["worker-3"]


def test_a_fork_that_the_system_refuses_is_tried_again_later():
    fleet = Quiet(refuses=True)
    child = fleet.add(Member("egress"), generation=1)
    now = child.restart_at
    ((failed, error),) = fleet.start_due(now)
    assert failed is child and error.errno == 11
    assert fleet.start_due(now + 0.05) == []
    assert len(fleet.start_due(now + 0.11)) == 1
    assert child.restart_at == pytest.approx(now + 0.11 + 0.2)


def test_worker_slots_run_out_at_all_generations_of_all_workers():
    fleet = Quiet()
    for _ in range(160):
        free = fleet.free_worker()
        assert free is not None
        fleet.add(free, generation=1)
    assert fleet.free_worker() is None


class Serving(Quiet):
    """Children that serve, looked at every other second unless it is said otherwise."""

    def __init__(self, *members):
        super().__init__()
        self.now = 1000.0
        for member in members:
            child = self.add(member, generation=1)
            self.start(child)
            self.ready(child)

    def serve(self, seconds, *, heard=(), look_after=2.0):
        until = self.now + seconds
        while self.now < until:
            self.now += look_after
            for child in self:
                if child.name in heard:
                    child.silence.end()
            self.kill_hung(self.now)


@pytest.mark.parametrize("role", sorted(HUNG_SECONDS))
def test_who_serves_and_gives_no_sign_of_life_is_killed_when_its_time_is_over_and_not_before(role):
    fleet = Serving(Member(role))
    fleet.serve(HUNG_SECONDS[role] + 2.0)
    assert fleet.killed == []
    fleet.serve(2.0)
    assert fleet.killed == [Member(role).name]
    fleet.serve(HUNG_SECONDS[role])  # it takes its time to die
    assert len(fleet.killed) == 1


def test_whoever_reports_anything_lives():
    fleet = Serving(Member("egress"), Member("vault"), Member("worker", 2))
    fleet.serve(600.0, heard={"egress", "vault"})
    assert set(fleet.killed) == {"worker-2"}


def test_time_in_which_the_supervisor_itself_did_not_run_makes_nobody_hang():
    """A machine that was suspended, a gateway that was stopped as a whole: at the next look an hour has passed, and for the children too."""
    fleet = Serving(Member("egress"))
    fleet.serve(1.0)
    fleet.serve(3600.0, look_after=3600.0)
    assert fleet.killed == []
    fleet.serve(HUNG_SECONDS["egress"] - 4.0)
    assert fleet.killed == []
    fleet.serve(6.0)
    assert fleet.killed == ["egress"]


@pytest.mark.parametrize("state", [State.STARTING, State.LEAVING, State.WAITING])
def test_who_does_not_serve_has_other_deadlines(state):
    fleet = Serving(Member("egress"))
    fleet[Member("egress")].state = state
    fleet.serve(600.0)
    assert fleet.killed == []


def test_everybody_has_a_time_and_several_signs_of_life_fit_the_shortest():
    assert sorted(HUNG_SECONDS) == sorted(ROLES)
    assert min(HUNG_SECONDS.values()) >= 5 * ALIVE_SECONDS
    assert min(HUNG_SECONDS.values()) > EGRESS_SILENT_SECONDS  # workers have ended what waits before egress is killed for it
