"""Control records: sixteen bytes, known kinds, the right number of descriptors; anything else is a declared error."""

import os
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliproxy.errors import ChannelError
from cliproxy.ipc.channel import ChannelClosed
from cliproxy.ipc.control import Control, Down, SupervisorControl, Up, decode_order, decode_report

WITH_DESCRIPTOR = (Down.PREPARE, Down.REPLACE, Down.SEGMENT, Down.RELOADED)


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield SupervisorControl(ours), Control(theirs), ours, theirs


def open_descriptors():
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("kind", Down)
def test_an_order_arrives_as_sent_with_its_descriptor(pair, kind):
    supervisor, child, *_ = pair
    reader, writer = os.pipe()
    descriptors = (reader,) if kind in WITH_DESCRIPTOR else ()
    assert supervisor.order(kind, 4_000_000_000, descriptors)
    (order,) = child.receive()
    assert (order.kind, order.argument, len(order.descriptors)) == (kind, 4_000_000_000, len(descriptors))
    if order.descriptors:
        os.write(writer, b"x")
        assert os.read(order.descriptors[0], 1) == b"x"
        assert not os.get_inheritable(order.descriptors[0])
        os.close(order.descriptors[0])
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("kind", Up)
def test_a_report_arrives_as_sent(pair, kind):
    supervisor, child, *_ = pair
    child.send(kind, 7, 2**64 - 1)
    (report,) = supervisor.receive()
    assert (report.kind, report.argument, report.value) == (kind, 7, 2**64 - 1)


def test_orders_keep_their_sequence_and_nothing_waits_for_nothing(pair):
    supervisor, child, *_ = pair
    assert child.receive() == [] and supervisor.receive() == []
    for generation in range(5):
        supervisor.order(Down.COMMIT, generation)
    assert [order.argument for order in child.receive()] == [0, 1, 2, 3, 4]


def test_the_end_of_the_supervisor_is_told_after_what_it_had_sent(pair):
    supervisor, child, ours, _ = pair
    supervisor.order(Down.STOP)
    ours.close()
    with pytest.raises(ChannelClosed):
        child.receive()  # STOP and the end mean the same: leave
    with pytest.raises(ChannelClosed):
        child.send(Up.READY)


def test_the_end_of_a_child_is_told_after_its_last_reports(pair):
    supervisor, child, _, theirs = pair
    child.send(Up.DRAINED)
    theirs.close()
    assert [report.kind for report in supervisor.receive()] == [Up.DRAINED]
    assert supervisor.receive() is None
    assert not supervisor.order(Down.STOP)


def test_reports_of_a_child_that_died_with_orders_unread_are_not_lost(pair):
    supervisor, child, _, theirs = pair
    child.send(Up.REFUSED, 2)
    supervisor.order(Down.STOP)
    theirs.close()
    assert [report.kind for report in supervisor.receive()] == [Up.REFUSED]
    assert supervisor.receive() is None


def test_a_replacement_is_dealt_with_before_the_next_is_received(pair):
    """Both would be on the slot otherwise, the second over the first, and a body would take the second for both."""
    supervisor, child, *_ = pair
    for order, descriptors in ((Down.COMMIT, ()), (Down.REPLACE, (0,)), (Down.REPLACE, (0,)), (Down.ABANDON, ()), (Down.STOP, ())):
        assert supervisor.order(order, 1, descriptors)
    received = []
    while orders := child.receive():
        received.append([order.kind for order in orders])
        for order in orders:
            for descriptor in order.descriptors:
                os.close(descriptor)
    assert received == [[Down.COMMIT, Down.REPLACE], [Down.REPLACE], [Down.ABANDON, Down.STOP]]


def test_an_order_that_the_child_never_reads_is_refused_not_waited_for(pair):
    supervisor, *_ = pair
    assert not all(supervisor.order(Down.COMMIT, number) for number in range(100_000))


def test_descriptors_that_a_child_sends_are_not_installed(pair):
    supervisor, _, _, theirs = pair
    before = open_descriptors()
    socket.send_fds(theirs, [struct.pack("<BxxxIQ", Up.READY, 1, 0)], [0, 1, 2])
    assert [report.kind for report in supervisor.receive()] == [Up.READY]
    assert open_descriptors() == before


@pytest.mark.parametrize(
    ("kind", "count"),
    [(Down.STOP, 1), (Down.REPLACE, 0), (Down.REPLACE, 2), (Down.PREPARE, 0), (Down.SEGMENT, 3), (Down.COMMIT, 4)],
)
def test_a_wrong_number_of_descriptors_is_refused_and_they_are_closed(pair, kind, count):
    _, child, ours, _ = pair
    before = open_descriptors()
    record = struct.pack("<BxxxIQ", kind, 1, 0)
    if count:
        socket.send_fds(ours, [record], [0] * count)
    else:
        ours.send(record)
    with pytest.raises(ChannelError):
        child.receive()
    assert open_descriptors() == before


def test_more_descriptors_than_fit_are_refused_and_none_stays_open(pair):
    _, child, ours, _ = pair
    before = open_descriptors()
    socket.send_fds(ours, [struct.pack("<BxxxIQ", Down.REPLACE, 1, 0)], [0] * 20)
    with pytest.raises(ChannelError):
        child.receive()
    assert open_descriptors() == before


@given(st.binary(max_size=40))
def test_any_bytes_are_an_order_or_the_declared_error(data):
    try:
        order = decode_order(data, ())
    except ChannelError:
        return
    assert len(data) == 16 and order.kind not in WITH_DESCRIPTOR


@given(st.binary(max_size=40))
def test_any_bytes_are_a_report_or_the_declared_error(data):
    try:
        report = decode_report(data)
    except ChannelError:
        return
    assert len(data) == 16 and report.kind == data[0]
