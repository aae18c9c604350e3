"""The address buckets that the workers of a machine share."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from cliproxy.errors import ChannelError
from cliproxy.limits.locks import LOST_NANOSECONDS, STRIPES, Held
from cliproxy.limits.shared import RECENT_SECONDS, SHARED_RATE_SETS, SHARED_RATE_WAYS, TABLE_BYTES, RecentAddresses, SharedRates, create

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
    bucket = subject.bucket(b"address")
    assert [subject.admit(bucket, NOW) for _ in range(20)] == [None] * 20
    wait = subject.admit(bucket, NOW)
    assert wait is not None and wait == pytest.approx(0.1)
    assert subject.admit(bucket, NOW + SECOND // 10) is None
    assert subject.admit(bucket, NOW + SECOND // 10) is not None


def test_another_worker_sees_the_same_bucket(table: int) -> None:
    one, other = rates(table), rates(os.dup(table))
    assert one.bucket(b"address") == other.bucket(b"address")
    for number in range(20):
        assert (one, other)[number % 2].admit(one.bucket(b"address"), NOW) is None
    assert one.admit(one.bucket(b"address"), NOW) is not None
    assert other.admit(other.bucket(b"address"), NOW) is not None
    assert other.admit(other.bucket(b"elsewhere"), NOW) is None


def test_another_process_sees_the_same_bucket(table: int) -> None:
    subject = rates(table)
    os.set_inheritable(table, True)
    program = (
        f"from cliproxy.limits.shared import SharedRates; r = SharedRates({table}, rate=10, burst=20); s = r.bucket(b'address')\n"
        f"print(sum(r.admit(s, {NOW}) is None for _ in range(12)))"
    )
    counts = [int(subprocess.run([sys.executable, "-c", program], pass_fds=[table], capture_output=True, check=True, timeout=30).stdout) for _ in range(2)]
    assert counts == [12, 8]
    assert subject.admit(subject.bucket(b"address"), NOW) is not None


def test_a_million_addresses_are_bounded_and_take_no_ones_tokens(table: int) -> None:
    subject = rates(table, rate=1, burst=1)
    count = 1_000_000
    refused = sum(subject.admit(subject.bucket(number.to_bytes(4, "big")), NOW) is not None for number in range(count))
    assert refused == 0  # each is new: nobody is denied for another's requests
    assert os.fstat(table).st_size == TABLE_BYTES == 2 * 4096 + 4 * 1024 * 1024
    late = subject.bucket((count - 1).to_bytes(4, "big"))
    assert subject.admit(late, NOW) is not None  # who came last is remembered


def test_a_set_gives_up_the_bucket_that_refills_soonest(table: int) -> None:
    subject = rates(table, rate=1, burst=10)
    first = subject.bucket(b"x")[0]
    for tag in range(1, SHARED_RATE_WAYS + 1):
        for _ in range(tag):
            assert subject.admit((first, tag), NOW) is None
    assert subject.admit((first, 99), NOW) is None  # takes tag 1's place, which had one token to pay
    assert [subject._words[first + 2 * way] for way in range(SHARED_RATE_WAYS)] == [99, 2, 3, 4]
    assert sum(subject.admit((first, SHARED_RATE_WAYS), NOW) is None for _ in range(20)) == 10 - SHARED_RATE_WAYS


def test_strangers_cannot_know_where_an_address_lands() -> None:
    places = set()
    for _ in range(8):
        descriptor = create()
        places.add(rates(descriptor).bucket(b"address"))
        os.close(descriptor)
    assert len(places) == 8


def test_nonsense_in_the_table_locks_nobody_out(table: int) -> None:
    subject = rates(table)
    bucket = subject.bucket(b"address")
    subject.admit(bucket, NOW)
    subject._words[bucket[0] + 1] = 2**63 - 1
    wait = subject.admit(bucket, NOW)
    assert wait is not None and wait <= 0.1
    assert subject.admit(bucket, NOW + SECOND // 10 + 1) is None


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
    bucket = subject.bucket(b"address")
    other.admit(bucket, NOW)
    subject._words = Contended(other._words, bucket[0] + 1, 2)  # type: ignore[assignment]
    assert subject.admit(bucket, NOW) is None
    assert [other.admit(bucket, NOW) is None for _ in range(3)] == [True, False, False]  # 1 + 2 of the other, 1 of ours, 1 left


def test_a_bucket_that_changes_without_end_denies(table: int) -> None:
    subject, other = rates(table, burst=1000), rates(table, burst=1000)
    bucket = subject.bucket(b"address")
    other.admit(bucket, NOW)
    subject._words = Contended(other._words, bucket[0] + 1, 10**6)  # type: ignore[assignment]
    assert subject.admit(bucket, NOW) == pytest.approx(0.1)


def test_workers_that_ask_at_once_admit_together_what_one_bucket_admits(table: int) -> None:
    """Without the lock four processes that do nothing but ask admit about twice the limit."""
    os.set_inheritable(table, True)
    burst, processes = 20_000, 4
    program = (
        "import sys\n"
        f"from cliproxy.limits.shared import SharedRates; r = SharedRates({table}, rate=10, burst={burst}); b = r.bucket(b'address')\n"
        "print('here', flush=True); sys.stdin.readline()\n"
        f"print(sum(r.admit(b, {NOW}) is None for _ in range({burst})))"
    )
    asking = [
        subprocess.Popen([sys.executable, "-c", program], pass_fds=[table], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(processes)
    ]
    for process in asking:
        assert process.stdout is not None and process.stdout.readline() == "here\n"
    for process in asking:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    admitted = [int(process.communicate(timeout=120)[0]) for process in asking]
    assert burst // 2 <= sum(admitted) <= burst


def test_while_another_worker_is_inside_a_request_is_denied_and_nothing_is_counted(table: int) -> None:
    subject, other = rates(table), rates(table)
    bucket = subject.bucket(b"address")
    assert other._locks.take(bucket[0] // 8, NOW) is Held.OURS
    assert subject.admit(bucket, NOW + 1) == pytest.approx(0.1)
    other._locks.release(bucket[0] // 8)
    assert [subject.admit(bucket, NOW + 1) for _ in range(20)] == [None] * 20


def test_a_lock_that_its_holder_took_into_death_keeps_nobody_out(table: int) -> None:
    os.set_inheritable(table, True)
    subject = rates(table)
    bucket = subject.bucket(b"address")
    program = (
        "import os\nfrom cliproxy.limits.shared import SharedRates\n"
        f"SharedRates({table}, rate=1, burst=1)._locks.take({bucket[0] // 8}, {NOW})\nos.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", program], pass_fds=[table], timeout=30, check=False).returncode == -9
    assert subject.admit(bucket, NOW + LOST_NANOSECONDS - 1) is not None
    later = NOW + LOST_NANOSECONDS
    assert [subject.admit(bucket, later) is None for _ in range(30)].count(True) == 20
    for nonsense in (2**63 - 1, -(2**63)):  # a fallen worker's: that it holds the lock since then
        subject._locks._words[bucket[0] // 8 % STRIPES * 8 + 5] = nonsense
        assert subject.admit(bucket, later + SECOND) is None


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


def test_every_bucket_is_inside_the_table_and_no_tag_is_empty(table: int) -> None:
    subject = rates(table)
    words = len(subject._words)
    for number in range(20_000):
        first, tag = subject.bucket(number.to_bytes(4, "big"))
        assert 0 <= first <= words - SHARED_RATE_WAYS * 2 and first % (SHARED_RATE_WAYS * 2) == 0
        assert tag != 0 and -(2**63) <= tag < 2**63
    assert words == SHARED_RATE_SETS * SHARED_RATE_WAYS * 2


def test_every_kind_has_buckets_of_its_own(table: int) -> None:
    strangers, holders = rates(table, burst=1), SharedRates(table, rate=10, burst=1, whose=b"holders")
    assert strangers.admit(strangers.bucket(b"address"), NOW) is None
    assert strangers.admit(strangers.bucket(b"address"), NOW) is not None
    assert holders.admit(holders.bucket(b"address"), NOW) is None


def test_where_a_key_was_good_lately_is_known_to_every_worker_for_an_hour(table: int, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other, now = RecentAddresses(table), RecentAddresses(os.dup(table)), NOW
    monkeypatch.setattr(time, "monotonic_ns", lambda: now)
    assert not other.has(b"address")
    one.note(b"address")
    assert other.has(b"address") and not other.has(b"elsewhere")
    now += RECENT_SECONDS * SECOND - 1
    assert other.has(b"address")
    now += 1
    assert not other.has(b"address")
    one._words[one._find(*one.bucket(b"address")) + 1] = 2**63 - 1  # a fallen worker's nonsense
    assert not other.has(b"address")
