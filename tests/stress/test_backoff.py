"""How often the storage is asked while it fails: pauses grow, are bounded, and end with the trouble."""

from __future__ import annotations

import itertools
import statistics
import time

import pytest

import litevfs
from litevfs.concurrency.retry import Backoff
from litevfs.errors import ReplicaEmptyError, TransientStorageError
from litevfs.files.fetch import Fetcher
from litevfs.replica_clients.memory import MemoryReplicaClient
from litevfs.testing.faulty import Fault, Faults
from tests.primary import Primary
from tests.support import connected, one, rows, wait_until


@pytest.fixture
def primary(primary: Primary) -> Primary:
    primary.commit("CREATE TABLE t AS SELECT 1 AS a")
    return primary


# --- the pauses themselves --------------------------------------------------------------------------------------------


def pauses_of_try(number: int, samples: int = 400) -> list[float]:
    """What `number` tries after the last success lead to, over and over."""
    pauses = []
    for _ in range(samples):
        backoff = Backoff()
        for _ in range(number):
            backoff.next_s()
        pauses.append(backoff.next_s())
    return pauses


@pytest.mark.plan("E04")
@pytest.mark.parametrize(
    ("tries", "ceiling_s"), [(0, 0.05), (1, 0.1), (4, 0.8), (9, 25.6), (10, 32), (11, 32), (500, 32)]
)
def test_pauses_are_spread_evenly_from_zero_to_a_ceiling_that_doubles_up_to_32_s(tries, ceiling_s):
    pauses = pauses_of_try(tries)
    assert 0 <= min(pauses) < 0.1 * ceiling_s
    assert 0.9 * ceiling_s < max(pauses) <= ceiling_s
    assert 0.4 * ceiling_s < statistics.mean(pauses) < 0.6 * ceiling_s


@pytest.mark.plan("E04")
def test_a_success_starts_from_the_shortest_pause_again():
    backoff = Backoff()
    for _ in range(20):
        backoff.next_s()
    for _ in range(50):
        backoff.reset()
        assert backoff.next_s() <= 0.05


@pytest.mark.plan("E04")
def test_a_pause_is_at_least_what_the_storage_asks_for_and_never_above_the_bound():
    for _ in range(50):
        assert Backoff().next_s(retry_after_s=3.0) == 3.0
        assert Backoff().next_s(retry_after_s=3600.0) == 32.0
        assert Backoff(cap_s=0.5).next_s(retry_after_s=3.0) == 0.5
    late = Backoff()
    for _ in range(12):
        late.next_s()
    assert any(late.next_s(retry_after_s=0.001) > 1 for _ in range(20))


# --- what follows from them -------------------------------------------------------------------------------------------


def gaps_s(faults: Faults, operation: str = "list", level: int = 0) -> list[float]:
    times = [r.time for r in list(faults.requests) if r.operation == operation and r.level == level]
    return [later - earlier for earlier, later in itertools.pairwise(times)]


@pytest.mark.plan("E04")
@pytest.mark.parametrize("storage", ["faults", "remote_faults"])
def test_a_query_waits_as_long_as_the_storage_asks(request, primary, storage):
    faults: Faults = request.getfixturevalue(storage)
    with connected(faults.url, poll_interval=0, cache_size=0) as connection:
        faults.reset_counters()
        faults.add(Fault("transient", operations=("read",), count=1, retry_after_s=0.3))
        assert rows(connection, "SELECT a FROM t") == [(1,)]
        assert gaps_s(faults, "read")[0] >= 0.29


@pytest.mark.plan("E04", "E02")
def test_retries_of_a_read_honour_retry_after_and_end_with_the_read_timeout(primary, store, faults):
    client = litevfs.open_replica_client(faults.url)
    fetcher = Fetcher(client, read_timeout_s=0.5)
    try:
        file = MemoryReplicaClient(store).list_files(0)[0]
        faults.add(Fault("transient", operations=("read",), count=1, retry_after_s=0.2))
        before = time.monotonic()
        fetcher.read(file, 0, 100)
        assert time.monotonic() - before >= 0.2
        assert fetcher.counters.retries == 1

        faults.add(Fault("transient", operations=("read",), retry_after_s=10))
        before = time.monotonic()
        with pytest.raises(TransientStorageError):
            fetcher.read(file, 0, 100)  # waiting would outlast the read timeout: told at once
        assert time.monotonic() - before < 9

        faults.clear()
        faults.reset_counters()
        faults.add(Fault("transient", operations=("read",)))
        before = time.monotonic()
        with pytest.raises(TransientStorageError):
            fetcher.read(file, 0, 100)
        assert time.monotonic() - before < 9
        assert 2 <= faults.calls["read"] <= 40
    finally:
        fetcher.close()


@pytest.mark.plan("E04", "E02")
def test_the_poller_waits_as_long_as_the_storage_asks(primary, faults):
    with connected(faults.url, poll_interval="10ms"):
        faults.add(Fault("transient", operations=("list",), count=3, retry_after_s=0.15))
        wait_until(lambda: faults.injected["transient"] == 3, "three failed polls")
        wait_until(lambda: faults.calls["list"] > 20, "polling as before")
    failed = [gap for gap in gaps_s(faults) if gap >= 0.14]
    assert len(failed) >= 3
    assert min(gaps_s(faults)[-10:]) < 0.14


@pytest.mark.plan("E04")
def test_opening_waits_as_long_as_the_storage_asks(primary, faults):
    faults.add(Fault("transient", operations=("list",), count=4, retry_after_s=0.3, levels=(0,)))
    with connected(faults.url, poll_interval=0) as connection:
        assert rows(connection, "SELECT a FROM t") == [(1,)]
    assert min(gaps_s(faults)) >= 0.29


@pytest.mark.plan("E02")
def test_failing_polls_are_not_repeated_faster_than_the_interval(primary, faults):
    with connected(faults.url, poll_interval="50ms") as connection:
        faults.add(Fault("transient", operations=("list",)))
        wait_until(lambda: faults.injected["transient"] >= 5, "five failed polls")
        assert rows(connection, "SELECT a FROM t") == [(1,)]
    gaps = gaps_s(faults)[1:]
    assert sum(gaps) >= len(gaps) * 0.045 - 0.03  # the first may be late


@pytest.mark.plan("E02")
def test_an_empty_replica_is_not_asked_in_a_fast_loop_while_opening(faults):
    with pytest.raises(ReplicaEmptyError):
        litevfs.connect(faults.url, open_timeout="1s", poll_interval=0)
    looks = [r for r in faults.requests if r.operation == "list" and r.level == 0]
    assert 2 <= len(looks) <= 25  # pauses of 25, 50, 100, 200, 250 ms on average
    assert faults.calls["list"] <= 250


@pytest.mark.plan("E02")
def test_waiting_for_a_txid_does_not_list_in_a_fast_loop(primary, faults):
    with connected(faults.url, poll_interval=0) as connection:
        faults.reset_counters()
        with pytest.raises(litevfs.StaleReplicaError):
            litevfs.wait_for(connection, 2, timeout=1.0)
        assert 2 <= faults.calls["list"] <= 40


@pytest.mark.plan("E02")
def test_a_file_that_stays_damaged_is_fetched_twice_a_poll_and_no_more(primary, store, faults):
    with connected(faults.url, poll_interval=0) as connection:
        primary.commit("INSERT INTO t VALUES (2)")
        faults.add(Fault("corrupt", operations=("read",)))
        for _ in range(5):
            faults.reset_counters()
            with pytest.raises(litevfs.LTXFormatError):
                one(connection, "PRAGMA litestream_poll")
            assert faults.calls["read"] == 2
            assert faults.calls["list"] == 1
        faults.clear()
        one(connection, "PRAGMA litestream_poll")
        assert rows(connection, "SELECT a FROM t") == [(1,), (2,)]


@pytest.mark.plan("E02")
def test_a_gap_costs_a_bounded_number_of_listings_a_poll(primary, faults):
    with connected(faults.url, poll_interval=0) as connection:
        primary.run("INSERT INTO t VALUES (2)")  # never uploaded
        primary.commit("INSERT INTO t VALUES (3)")
        for _ in range(5):
            faults.reset_counters()
            with pytest.raises(litevfs.TXIDGapError):
                one(connection, "PRAGMA litestream_poll")
            assert faults.calls["list"] <= 11
            assert faults.calls["read"] == 0
