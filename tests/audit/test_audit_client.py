"""The sender's end: what is taken, kept, sent again, and when the auditor counts as unavailable."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator

import msgspec
import pytest

from audit.audit_logs import event
from cliproxy.audit.client import ACKNOWLEDGEMENT, DURABLE, FAILED, MAX_UNACKNOWLEDGED_BYTES, AuditClient, packet_decoder
from cliproxy.audit.events import Event, Process
from cliproxy.bounds import MAX_CONTROL_MESSAGE_BYTES
from cliproxy.errors import Unavailable

DECODER = packet_decoder(Event)


class Pair:
    """A client and the auditor's end."""

    def __init__(self) -> None:
        ours, self.auditor = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.auditor.setblocking(False)
        self.sock = ours
        self.client = AuditClient(ours, deadline_seconds=2.0)

    def received(self) -> list[tuple[int, list[Event]]]:
        packets: list[tuple[int, list[Event]]] = []
        while True:
            try:
                packet = self.auditor.recv(MAX_CONTROL_MESSAGE_BYTES + 1)
            except BlockingIOError:
                return packets
            assert len(packet) <= MAX_CONTROL_MESSAGE_BYTES
            packets.append(DECODER.decode(packet))

    def acknowledge(self, batch: int, state: int = DURABLE) -> None:
        self.auditor.send(ACKNOWLEDGEMENT.pack(state, batch))
        self.client.poll(time.monotonic())

    def replace(self) -> None:
        """A new auditor: its channel lands on the old one's number."""
        ours, auditor = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        auditor.setblocking(False)
        self.auditor.close()
        os.dup2(ours.fileno(), self.sock.fileno(), inheritable=False)
        ours.close()
        self.auditor = auditor
        self.client.replaced()

    def fill(self) -> int:
        """Offer until the kernel takes no more; return how many were taken."""
        taken = 0
        while self.client.offer([event(taken)]):
            taken += 1
        return taken


@pytest.fixture
def pair() -> Iterator[Pair]:
    one = Pair()
    yield one
    one.auditor.close()
    one.sock.close()


def test_a_batch_is_one_packet_with_its_number(pair: Pair) -> None:
    assert pair.client.offer([event(1), event(2)])
    assert pair.client.offer([event(3)])
    assert pair.received() == [(1, [event(1), event(2)]), (2, [event(3)])]
    assert pair.client.offered_through() == 2
    assert pair.client.durable_through() == 0


def test_acknowledgements_bring_durable_up_to_date(pair: Pair) -> None:
    for number in range(3):
        pair.client.offer([event(number)])
    pair.acknowledge(2)
    assert pair.client.durable_through() == 2
    pair.acknowledge(3)
    assert pair.client.durable_through() == 3


def test_a_full_queue_says_no_and_numbers_have_no_gap(pair: Pair) -> None:
    taken = pair.fill()
    assert taken > 50
    assert not pair.client.offer([event(0)])
    assert [batch for batch, _ in pair.received()] == list(range(1, taken + 1))
    assert pair.client.offer([event(0)])
    assert [batch for batch, _ in pair.received()] == [taken + 1]


def test_many_events_go_in_packets_that_fit(pair: Pair) -> None:
    many = [Process(code=number, role="é" * 500, what="x" * 500) for number in range(90)]
    assert pair.client.offer(many)
    packets = pair.received()
    assert len(packets) > 1
    assert [one for _, part in packets for one in part] == many


def test_of_many_events_as_many_are_taken_as_there_is_room_and_the_sender_knows_how_many(pair: Pair) -> None:
    many = [Process(code=number, role="x" * 500, what="x" * 500) for number in range(1000)]
    taken = pair.client.offer_part(many)
    assert 0 < taken < len(many)
    first = [one for _, part in pair.received() for one in part]
    assert first == many[:taken]
    again = pair.client.offer_part(many[taken:])
    assert again > 0
    assert [one for _, part in pair.received() for one in part] == many[taken : taken + again]
    pair.auditor.close()
    assert pair.client.offer_part(many) == 0


def test_no_more_is_kept_than_the_bound(pair: Pair) -> None:
    size = 0
    big = [Process(code=0, role="x" * 500, what="x" * 500)] * 40
    while pair.client.offer(big):
        size += len(msgspec.msgpack.encode((1, big)))
        pair.received()
    assert size <= MAX_UNACKNOWLEDGED_BYTES
    assert size > MAX_UNACKNOWLEDGED_BYTES - 100_000
    pair.acknowledge(pair.client.offered_through())
    assert pair.client.offer(big)


def test_it_is_healthy_until_the_oldest_event_is_older_than_the_deadline(pair: Pair) -> None:
    now = time.monotonic()
    assert pair.client.healthy(now + 1000)  # nothing under way
    pair.client.offer([event(1)])
    assert pair.client.healthy(now + 1.9)
    assert not pair.client.healthy(now + 1000)
    pair.acknowledge(1)
    assert pair.client.healthy(now + 1000)


def test_a_failed_log_refuses_until_it_is_written_again(pair: Pair) -> None:
    pair.client.offer([event(1)])
    pair.acknowledge(0, FAILED)
    assert not pair.client.healthy(time.monotonic())
    assert not pair.client.offer([event(2)])
    pair.acknowledge(1)
    assert pair.client.healthy(time.monotonic())
    assert pair.client.offer([event(2)])


def test_a_gone_auditor_refuses_and_the_next_gets_what_was_not_acknowledged(pair: Pair) -> None:
    for number in range(1, 6):
        pair.client.offer([event(number)])
    pair.acknowledge(2)
    pair.auditor.close()
    pair.client.poll(time.monotonic())
    assert not pair.client.healthy(time.monotonic())
    assert not pair.client.offer([event(9)])
    pair.replace()
    assert pair.client.healthy(time.monotonic())
    assert pair.client.offer([event(6)])
    assert pair.received() == [(number, [event(number)]) for number in (3, 4, 5, 6)]
    pair.acknowledge(6)
    assert pair.client.durable_through() == 6


def test_what_has_to_be_sent_again_goes_before_anything_new(pair: Pair) -> None:
    first = 0
    for _ in range(3):  # more than one queue holds
        first += pair.fill()
        pair.received()
    pair.replace()
    assert not pair.client.offer([event(-1 & 0xFF)])  # the queue is full of what is sent again
    batches: list[int] = []
    while len(batches) < first:
        batches += [batch for batch, _ in pair.received()]
        pair.client.poll(time.monotonic())
    assert batches == list(range(1, first + 1))
    assert pair.client.offer([event(1)])


@pytest.mark.parametrize(
    "packet",
    [b"x", b"", bytes(17), ACKNOWLEDGEMENT.pack(DURABLE, 99), ACKNOWLEDGEMENT.pack(9, 1), ACKNOWLEDGEMENT.pack(DURABLE, 1) + b"x"],
    ids=["short", "empty", "long", "a batch never sent", "an unknown state", "trailing byte"],
)
def test_an_auditor_that_talks_nonsense_is_not_relied_on(pair: Pair, packet: bytes) -> None:
    pair.client.offer([event(1)])
    pair.auditor.send(packet)
    pair.client.poll(time.monotonic())
    assert pair.client.durable_through() == 0
    assert not pair.client.healthy(time.monotonic())
    assert not pair.client.offer([event(2)])


@pytest.mark.parametrize("notices", ["poll", "offer"])
def test_it_knows_since_when_its_channel_is_closed_until_the_next_is_there(pair: Pair, notices: str) -> None:
    assert pair.client.lost_at is None
    pair.acknowledge(0, FAILED)  # a full disk is no closed channel
    assert pair.client.lost_at is None
    pair.acknowledge(0)
    before = time.monotonic()
    pair.auditor.close()
    if notices == "poll":
        pair.client.poll(before)
    else:
        assert not pair.client.offer([event(1)])
    first = pair.client.lost_at
    assert first is not None
    assert before <= first <= time.monotonic()
    pair.client.poll(time.monotonic())
    assert pair.client.lost_at == first
    pair.replace()
    assert pair.client.lost_at is None


def test_an_acknowledgement_does_not_go_backwards(pair: Pair) -> None:
    for number in range(3):
        pair.client.offer([event(number)])
    pair.acknowledge(3)
    pair.acknowledge(2)
    assert pair.client.durable_through() == 3
    assert not pair.client.healthy(time.monotonic())


def test_waiting_ends_when_the_events_are_durable_and_not_before(pair: Pair) -> None:
    pair.auditor.setblocking(True)
    seen: list[int] = []

    def answer() -> None:
        for _ in range(2):
            batch, _ = DECODER.decode(pair.auditor.recv(MAX_CONTROL_MESSAGE_BYTES))
            seen.append(batch)
        pair.auditor.send(ACKNOWLEDGEMENT.pack(DURABLE, 1))
        pair.auditor.send(ACKNOWLEDGEMENT.pack(DURABLE, 2))

    thread = threading.Thread(target=answer)
    thread.start()
    pair.client.offer([event(1)])
    pair.client.wait_durable([event(2)], 10.0)
    assert pair.client.durable_through() == 2
    assert seen == [1, 2]
    thread.join()


def test_waiting_has_an_end(pair: Pair) -> None:
    with pytest.raises(Unavailable) as caught:
        pair.client.wait_durable([event(1)], 0.05)
    assert caught.value.code == "audit_unavailable"
    pair.auditor.close()
    with pytest.raises(Unavailable):
        pair.client.wait_durable([event(1)], 30.0)
