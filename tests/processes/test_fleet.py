"""Pauses between restarts, and whose lateness counts."""

import pytest

from cliproxy.processes.fleet import Fleet, State, Supplies, pause_after
from cliproxy.processes.wiring import Member


@pytest.mark.parametrize(("failures", "seconds"), [(1, 0.1), (2, 0.2), (3, 0.4), (9, 25.6), (10, 30.0), (10_000, 30.0)])
def test_pauses_double_up_to_thirty_seconds(failures, seconds):
    assert pause_after(failures) == pytest.approx(seconds)


class Quiet(Fleet):
    """Starts nothing and notes whom it would kill."""

    def __init__(self, *, refuses=False):
        super().__init__(Supplies(boot_of=None, files_of=None, program=None, output_of=None), on_start=None, on_end=None)
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
        fleet.add(fleet.free_worker(), generation=1)
    assert fleet.free_worker() is None
