"""A process's part in the supervisor's protocol: every role, every order, in every state; and the channels that a restarted peer's replaces."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from cliproxy.config.schema import Settings, encode_settings
from cliproxy.errors import ChannelError, ConfigError
from cliproxy.ipc.channel import ChannelClosed
from cliproxy.ipc.control import Down, Order, SupervisorControl, Up, descriptors_of
from cliproxy.ipc.messages import Dial, DialFailed, EgressToDialer
from cliproxy.ipc.silence import MAX_COUNTED_SECONDS
from cliproxy.processes.boot import Boot, seal
from cliproxy.processes.child import Control
from cliproxy.processes.fleet import RESTART_LONGEST_SECONDS
from cliproxy.processes.role import ALIVE_SECONDS, ORPHAN_SECONDS, Peer, Role, take_orders
from cliproxy.processes.topology import ADMIN, AUDITOR, CHANNELS, CONTROL_FD, ORDERS, RECONFIGURED, ROLES, WORKER

GENERATION = 3  # in force when a case begins
PREPARED = 4
ORIGIN = Dial(dial=1, origin="https://a.example:443")


class Away:
    """A channel that may be lost."""

    def __init__(self) -> None:
        self.lost_at: float | None = None


OWN = {Down.SEGMENT, Down.RELOADED, Down.REOPENED}  # orders of one role alone


class Process:
    """A process of `role` that writes down what its role lets it do."""

    def __init__(self, role: str, **changes: Any) -> None:
        self.done: list[tuple[Any, ...]] = []
        self.reports: list[tuple[Up, int]] = []
        self.refuses: Exception | None = None
        self.peer = Away()
        takes = ORDERS[role]
        parts: dict[str, Any] = {
            "report": lambda kind, generation: self.reports.append((kind, generation)),
            "replaced": {number: self.noting("replaced", number) for number in CHANNELS[role]},
            "drain": self.drain,
            "settings": self if takes >= RECONFIGURED else None,
            "further": {kind: self.further(kind) for kind in takes & OWN},
            "needs": {"egress": self.peer},
        }
        self.role: Role[str] = Role(boot(role), **{**parts, **changes})

    def noting(self, *what: Any) -> Callable[[], None]:
        return lambda: self.done.append(what)

    def further(self, kind: Down) -> Callable[..., None]:
        return lambda argument, *descriptors: self.done.append((kind, argument, *(os.fstat(descriptor).st_size for descriptor in descriptors)))

    def drain(self, seconds: int) -> None:
        self.done.append(("drain", seconds))
        self.role.drained()

    def check(self, settings: Settings) -> str:
        if self.refuses is not None:
            raise self.refuses
        return f"settings for {settings.server.port}"

    def adopt(self, checked: str) -> None:
        self.done.append(("adopted", checked, self.role.generation))


def boot(role: str) -> Boot:
    return Boot(
        role=role,
        name=role,
        build="",
        generation=GENERATION,
        settings=b"",
        home="/nowhere",
        uid=0,
        gid=0,
        operator_uid=0,
        serving=True,
        sandbox=False,
        supervisor_pid=1,
    )


def order(kind: Down, argument: int = PREPARED, *, count: int | None = None) -> Order:
    """An order as the control channel hands it over: a REPLACE's descriptor is on its number by then."""
    expected = 0 if kind is Down.REPLACE else descriptors_of(kind)
    blob = encode_settings(Settings())
    return Order(kind, argument, tuple(seal(blob, name="x") for _ in range(expected if count is None else count)))


def brought_to(role: str, stage: str) -> Process:
    process = Process(role)
    if stage == "prepared":
        process.role.take(order(Down.PREPARE))
        process.reports.clear()
    return process


# What every role answers to every order in its two states, if the order is in its row: what it does, what it reports, the generation afterwards.
CHANNEL = "the number of its lowest channel"
ADOPTED = ("adopted", "settings for 8317", PREPARED)
ANSWERS: dict[tuple[str, Down], tuple[list[tuple[Any, ...]], list[tuple[Up, int]], int] | None] = {
    ("settled", Down.PREPARE): ([], [(Up.PREPARED, PREPARED)], GENERATION),
    ("settled", Down.COMMIT): None,
    ("settled", Down.ABANDON): ([], [], GENERATION),
    ("prepared", Down.PREPARE): None,
    ("prepared", Down.COMMIT): ([ADOPTED], [(Up.COMMITTED, PREPARED)], PREPARED),
    ("prepared", Down.ABANDON): ([], [], GENERATION),
}
for one in ("settled", "prepared"):
    ANSWERS[one, Down.DRAIN] = ([("drain", PREPARED)], [(Up.DRAINED, GENERATION)], GENERATION)
    ANSWERS[one, Down.STOP] = ([], [], GENERATION)
    ANSWERS[one, Down.REPLACE] = ([("replaced", CHANNEL)], [], GENERATION)
    ANSWERS[one, Down.REOPENED] = ([(Down.REOPENED, PREPARED)], [], GENERATION)
    for kind in (Down.SEGMENT, Down.RELOADED):
        ANSWERS[one, kind] = ([(kind, PREPARED, len(encode_settings(Settings())))], [], GENERATION)
CASES = [(role, stage, kind) for role in ROLES for stage in ("settled", "prepared") for kind in Down if stage == "settled" or role != WORKER]


@pytest.fixture(autouse=True)
def _no_descriptor_stays_open() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(("role", "stage", "kind"), CASES, ids=[f"{role}-{stage}-{kind.name}" for role, stage, kind in CASES])
def test_every_role_answers_every_order_as_the_table_says(role: str, stage: str, kind: Down) -> None:
    process = brought_to(role, stage)
    lowest = min(CHANNELS[role])
    one = order(kind, lowest if kind is Down.REPLACE else PREPARED)
    answer = ANSWERS[stage, kind] if kind in ORDERS[role] else None
    if answer is None:
        with pytest.raises(ChannelError):
            process.role.take(one)
        assert (process.done, process.reports, process.role.generation, process.role.leaving) == ([], [], GENERATION, False)
        return
    process.role.take(one)
    done = [tuple(lowest if word == CHANNEL else word for word in words) for words in answer[0]]
    assert (process.done, process.reports, process.role.generation) == (done, answer[1], answer[2])
    assert process.role.leaving == (kind is Down.STOP)


@pytest.mark.parametrize(("role", "stage", "kind"), CASES, ids=[f"{role}-{stage}-{kind.name}" for role, stage, kind in CASES])
def test_an_order_with_descriptors_that_it_should_not_have_is_refused(role: str, stage: str, kind: Down) -> None:
    for count in {0, 1, 2} - {0 if kind is Down.REPLACE else descriptors_of(kind)}:
        process = brought_to(role, stage)
        with pytest.raises(ChannelError):
            process.role.take(order(kind, min(CHANNELS[role]) if kind is Down.REPLACE else PREPARED, count=count))
        assert process.done == []


def test_the_rows_are_what_the_supervisor_sends() -> None:
    assert sorted(ORDERS) == sorted(ROLES)
    everybody = {Down.REPLACE, Down.DRAIN, Down.STOP}
    assert {role: set(row) - everybody - RECONFIGURED for role, row in ORDERS.items() if set(row) - everybody - RECONFIGURED} == {
        AUDITOR: {Down.SEGMENT},
        ADMIN: {Down.RELOADED, Down.REOPENED},
    }
    assert [role for role, row in ORDERS.items() if not row >= RECONFIGURED] == [WORKER]
    assert all(everybody <= row for row in ORDERS.values())


@pytest.mark.parametrize("kind", [Down.COMMIT, Down.ABANDON])
@pytest.mark.parametrize("generation", [GENERATION, PREPARED - 1, PREPARED + 1, 2**32 - 1])
def test_another_generation_than_the_prepared_one_is_refused(kind: Down, generation: int) -> None:
    process = brought_to("vault", "prepared")
    with pytest.raises(ChannelError, match="not prepared"):
        process.role.take(order(kind, generation))
    assert process.done == [] and process.role.generation == GENERATION


@pytest.mark.parametrize("generation", [0, GENERATION - 1, GENERATION])
def test_a_generation_is_not_prepared_twice(generation: int) -> None:
    process = Process("egress")
    with pytest.raises(ChannelError, match=f"PREPARE of generation {generation}"):
        process.role.take(order(Down.PREPARE, generation))
    assert process.reports == []


def test_what_was_abandoned_cannot_be_committed() -> None:
    process = brought_to("admin", "prepared")
    process.role.take(order(Down.ABANDON))
    with pytest.raises(ChannelError):
        process.role.take(order(Down.COMMIT))
    assert process.done == []


def test_what_was_committed_cannot_be_committed_again() -> None:
    process = brought_to("dialer", "prepared")
    process.role.take(order(Down.COMMIT))
    with pytest.raises(ChannelError):
        process.role.take(order(Down.COMMIT))
    process = brought_to("dialer", "prepared")
    process.role.take(order(Down.COMMIT))
    process.role.take(order(Down.PREPARE, PREPARED + 1))
    process.role.take(order(Down.COMMIT, PREPARED + 1))
    assert process.role.generation == PREPARED + 1


@pytest.mark.parametrize("refusal", [ConfigError("no such file", cure="make it"), ValueError("sk-secret"), OSError(2, "No such file"), ChannelError("x")])
def test_settings_that_will_not_do_are_refused_and_nothing_is_prepared(refusal: Exception, capfd: pytest.CaptureFixture[str]) -> None:
    process = Process("egress")
    process.refuses = refusal
    process.role.take(order(Down.PREPARE))
    assert process.reports == [(Up.REFUSED, PREPARED)]
    line = capfd.readouterr().err
    assert line.startswith("cliproxy: egress refuses the new configuration: ") and line.count("\n") == 1 and "sk-" not in line
    process.role.take(order(Down.ABANDON))
    with pytest.raises(ChannelError):
        process.role.take(order(Down.COMMIT))


@pytest.mark.parametrize("content", [b"", b"\xc1", b"no settings"])
def test_settings_that_cannot_be_read_are_refused(content: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    process = Process("vault")
    process.role.take(Order(Down.PREPARE, PREPARED, (seal(content, name="x"),)))
    assert process.reports == [(Up.REFUSED, PREPARED)]


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("number", [0, 2, CONTROL_FD, 400, 2**32 - 1])
def test_only_a_channel_of_the_role_is_replaced(role: str, number: int) -> None:
    process = Process(role)
    with pytest.raises(ChannelError, match="no channel"):
        process.role.take(order(Down.REPLACE, number))
    assert process.done == []


@pytest.mark.parametrize("kind", Down)
def test_what_comes_after_stop_is_nobodys(kind: Down) -> None:
    process = brought_to("auditor", "prepared")
    process.role.take(order(Down.STOP))
    process.role.take(order(kind))
    assert process.done == [] and process.reports == []


@pytest.mark.parametrize(
    "changes",
    [{"replaced": {}}, {"replaced": {9999: print}}, {"settings": None}, {"further": {}}, {"further": {Down.SEGMENT: print, Down.RELOADED: print}}],
)
def test_a_process_that_does_not_do_what_its_row_says_does_not_start(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not its row"):
        Process("auditor", **changes)
    Process("auditor")


def test_reports_name_the_generation_in_force() -> None:
    process = brought_to("egress", "prepared")
    process.role.take(order(Down.COMMIT))
    process.reports.clear()
    process.role.ready()
    process.role.drained()
    assert process.reports == [(Up.READY, PREPARED), (Up.DRAINED, PREPARED)]


def test_a_sign_of_life_is_given_every_other_second_however_often_the_loop_turns() -> None:
    process = Process("worker")
    for tenths in range(100):
        process.role.tick(1000.0 + tenths / 10)
    assert process.reports == [(Up.ALIVE, GENERATION)] * int(10 / ALIVE_SECONDS)


def test_a_channel_that_stays_closed_is_the_end_but_not_before_the_supervisor_had_time_to_replace_the_peer() -> None:
    assert ORPHAN_SECONDS > RESTART_LONGEST_SECONDS
    process = Process("worker")
    process.peer.lost_at = 1000.0
    for second in range(int(ORPHAN_SECONDS) + 1):
        process.role.tick(1000.0 + second)
    with pytest.raises(ChannelError, match="the channel to egress is closed and no other came"):
        process.role.tick(1001.0 + ORPHAN_SECONDS)


def test_a_channel_that_comes_and_goes_is_another_loss_each_time() -> None:
    process = Process("worker")
    for second in range(int(ORPHAN_SECONDS) * 3):
        process.peer.lost_at = 1000.0 + second // 20
        process.role.tick(1000.0 + second)


def test_a_process_that_was_stopped_for_long_first_takes_the_channel_that_came_meanwhile() -> None:
    process = Process("worker")
    process.peer.lost_at = 1000.0
    process.role.tick(1000.5)
    process.role.tick(5000.0)  # its timer came first; the REPLACE waits
    process.peer.lost_at = None
    process.role.tick(5001.0)
    assert MAX_COUNTED_SECONDS < ORPHAN_SECONDS


def test_orders_of_one_look_are_carried_out_in_their_sequence() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        supervisor, control = SupervisorControl(ours), Control(theirs, replaceable=frozenset())
        process = Process("auditor")
        for kind in (Down.PREPARE, Down.COMMIT, Down.SEGMENT, Down.STOP):
            one = order(kind)
            supervisor.order(kind, PREPARED, one.descriptors)
            for descriptor in one.descriptors:
                os.close(descriptor)
        take_orders(control, process.role)
        assert [what[0] for what in process.done] == ["adopted", Down.SEGMENT] and process.role.leaving


# --- channels ------------------------------------------------------------------------------------------------------


@pytest.fixture
def number() -> Iterator[int]:
    """A descriptor number with a placeholder on it."""
    made = os.open("/dev/null", os.O_RDWR)
    yield made
    os.close(made)


def peer_on(number: int) -> Peer[EgressToDialer]:
    return Peer(number, name="egress", incoming=EgressToDialer, per_second=10.0, secrets=False)


def connect(number: int) -> socket.socket:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    os.dup2(far.fileno(), number, inheritable=False)
    far.close()
    return near


def heard(peer: Peer[EgressToDialer], *, most: int = 10) -> tuple[bool, list[EgressToDialer], list[str]]:
    took: list[EgressToDialer] = []
    violations: list[str] = []
    there = peer.hear(took.append, most=most, violated=lambda name, error: violations.append(f"{name}: {error}"))
    return there, took, violations


def test_where_no_channel_is_there_is_none(number: int) -> None:
    peer = peer_on(number)
    peer.open()
    assert not peer.is_there and peer.lost_at is not None and not peer.tell(ORIGIN)
    with pytest.raises(ChannelClosed):
        peer.send(ORIGIN)
    assert heard(peer) == (False, [], [])


def test_what_a_peer_says_is_heard_a_bounded_number_at_a_time(number: int) -> None:
    peer = peer_on(number)
    with connect(number) as far:
        peer.open()
        for _ in range(3):
            far.send(msgspec.msgpack.encode(ORIGIN))
        assert heard(peer, most=2) == (True, [ORIGIN] * 2, [])
        assert heard(peer) == (True, [ORIGIN], [])
        assert peer.tell(DialFailed(dial=1, reason="busy")) and far.recv(100)
        peer.close()


def test_a_peer_that_ends_is_away_since_then_and_its_successor_takes_the_number(number: int) -> None:
    peer = peer_on(number)
    far = connect(number)
    peer.open()
    assert peer.lost_at is None
    far.close()
    assert not peer.tell(DialFailed(dial=1, reason="busy"))  # no error: an auditor whose admin died in the middle of a question goes on
    assert heard(peer) == (False, [], [])
    assert peer.lost_at is not None and not peer.is_there
    with connect(number) as successor:
        peer.open()
        assert peer.is_there and peer.lost_at is None
        assert peer.tell(DialFailed(dial=1, reason="busy")) and successor.recv(100)
        with connect(number) as second:  # replaced while it lives: nothing is shut down on the new one's number
            peer.open()
            assert peer.tell(DialFailed(dial=2, reason="busy")) and second.recv(100)
            peer.close()


def test_what_a_peer_may_not_send_is_told_and_ends_its_channel(number: int) -> None:
    peer = peer_on(number)
    with connect(number) as far:
        peer.open()
        far.send(b"\xc1")
        there, took, violations = heard(peer)
        assert (there, took) == (False, []) and len(violations) == 1 and violations[0].startswith("egress: ")
        assert far.recv(1) == b"" and peer.lost_at is not None
