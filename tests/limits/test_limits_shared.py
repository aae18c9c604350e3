"""The address buckets that the workers of a machine share."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from cliproxy.bounds import SHARED_RATE_WAYS
from cliproxy.errors import ChannelError
from cliproxy.limits import shared
from cliproxy.limits.shared import TABLE_BYTES, SharedRates, create

SECOND = 10**9
NOW = 10**6 * SECOND


@pytest.fixture
def table() -> Iterator[int]:
    descriptor = create()
    yield descriptor
    os.close(descriptor)


def rates(table: int, *, rate: float = 10, burst: int = 20) -> SharedRates:
    return SharedRates(table, rate=rate, burst=burst)


def test_an_address_gets_its_burst_and_then_its_rate(table: int) -> None:
    subject = rates(table)
    slot = subject.slot(b"address")
    assert [subject.admit(slot, NOW) for _ in range(20)] == [None] * 20
    wait = subject.admit(slot, NOW)
    assert wait is not None and wait == pytest.approx(0.1)
    assert subject.admit(slot, NOW + SECOND // 10) is None
    assert subject.admit(slot, NOW + SECOND // 10) is not None


def test_another_worker_sees_the_same_bucket(table: int) -> None:
    one, other = rates(table), rates(os.dup(table))
    assert one.slot(b"address") == other.slot(b"address")
    for number in range(20):
        assert (one, other)[number % 2].admit(one.slot(b"address"), NOW) is None
    assert one.admit(one.slot(b"address"), NOW) is not None
    assert other.admit(other.slot(b"address"), NOW) is not None
    assert other.admit(other.slot(b"elsewhere"), NOW) is None


def test_another_process_sees_the_same_bucket(table: int) -> None:
    subject = rates(table)
    os.set_inheritable(table, True)
    program = (
        f"from cliproxy.limits.shared import SharedRates; r = SharedRates({table}, rate=10, burst=20); s = r.slot(b'address')\n"
        f"print(sum(r.admit(s, {NOW}) is None for _ in range(12)))"
    )
    counts = [int(subprocess.run([sys.executable, "-c", program], pass_fds=[table], capture_output=True, check=True, timeout=30).stdout) for _ in range(2)]
    assert counts == [12, 8]
    assert subject.admit(subject.slot(b"address"), NOW) is not None


def test_a_million_addresses_are_bounded_and_take_no_ones_tokens(table: int) -> None:
    subject = rates(table, rate=1, burst=1)
    count = 1_000_000
    refused = sum(subject.admit(subject.slot(number.to_bytes(4, "big")), NOW) is not None for number in range(count))
    assert refused == 0  # each is new: nobody is denied for another's requests
    assert os.fstat(table).st_size == TABLE_BYTES == 4096 + 4 * 1024 * 1024
    late = subject.slot((count - 1).to_bytes(4, "big"))
    assert subject.admit(late, NOW) is not None  # who came last is remembered


def test_a_set_gives_up_the_bucket_that_refills_soonest(table: int) -> None:
    subject = rates(table, rate=1, burst=10)
    first = subject.slot(b"x")[0]
    for tag in range(1, SHARED_RATE_WAYS + 1):
        for _ in range(tag):
            assert subject.admit((first, tag), NOW) is None
    assert subject.admit((first, 99), NOW) is None  # takes tag 1's place, which had one token to pay
    assert [subject._words[first + 2 * way] for way in range(SHARED_RATE_WAYS)] == [99, 2, 3, 4]
    assert sum(subject.admit((first, SHARED_RATE_WAYS), NOW) is None for _ in range(20)) == 10 - SHARED_RATE_WAYS


def test_strangers_cannot_know_where_an_address_lands() -> None:
    slots = set()
    for _ in range(8):
        descriptor = create()
        slots.add(rates(descriptor).slot(b"address"))
        os.close(descriptor)
    assert len(slots) == 8


def test_nonsense_in_the_table_locks_nobody_out(table: int) -> None:
    subject = rates(table)
    slot = subject.slot(b"address")
    subject.admit(slot, NOW)
    subject._words[slot[0] + 1] = 2**63 - 1
    wait = subject.admit(slot, NOW)
    assert wait is not None and wait <= 0.1
    assert subject.admit(slot, NOW + SECOND // 10 + 1) is None


class Contended:
    """The words of a table in which another worker admits one request after each of our first `times` readings of a bucket's time."""

    def __init__(self, words: memoryview, at: int, times: int) -> None:
        self.words, self.at, self.times = words, at, times

    def __getitem__(self, index: int) -> int:
        value = self.words[index]
        if index == self.at and self.times:
            self.times -= 1
            self.words[index] = max(value, NOW) + SECOND // 10
        return value

    def __setitem__(self, index: int, value: int) -> None:
        self.words[index] = value


def test_what_another_worker_admitted_meanwhile_is_not_forgotten(table: int) -> None:
    subject, other = rates(table, burst=5), rates(table, burst=5)
    slot = subject.slot(b"address")
    other.admit(slot, NOW)
    subject._words = Contended(other._words, slot[0] + 1, 2)  # type: ignore[assignment]
    assert subject.admit(slot, NOW) is None
    assert [other.admit(slot, NOW) is None for _ in range(3)] == [True, False, False]  # 1 + 2 of the other, 1 of ours, 1 left


def test_a_bucket_that_changes_without_end_denies(table: int) -> None:
    subject, other = rates(table, burst=1000), rates(table, burst=1000)
    slot = subject.slot(b"address")
    other.admit(slot, NOW)
    subject._words = Contended(other._words, slot[0] + 1, 10**6)  # type: ignore[assignment]
    assert subject.admit(slot, NOW) == pytest.approx(0.1)


def test_nobody_can_cut_the_table_under_the_others(table: int) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(table, 0)
    with pytest.raises(PermissionError):
        os.ftruncate(table, TABLE_BYTES * 2)
    assert fcntl.fcntl(table, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SEAL


def test_another_file_is_no_table() -> None:
    descriptor = os.memfd_create("other")
    with pytest.raises(ChannelError):
        rates(descriptor)
    os.ftruncate(descriptor, TABLE_BYTES)
    with pytest.raises(ChannelError):
        rates(descriptor)
    os.close(descriptor)


def test_every_slot_is_inside_the_table_and_no_tag_is_empty(table: int) -> None:
    subject = rates(table)
    words = len(subject._words)
    for number in range(20_000):
        first, tag = subject.slot(number.to_bytes(4, "big"))
        assert 0 <= first <= words - SHARED_RATE_WAYS * 2 and first % (SHARED_RATE_WAYS * 2) == 0
        assert tag != 0 and -(2**63) <= tag < 2**63
    assert words == shared.SHARED_RATE_SETS * SHARED_RATE_WAYS * 2
