"""Storage that answers late: the rows are right, and the number of requests, hence of waits, is bounded."""

from __future__ import annotations

import time

import pytest

import litevfs
from litevfs.testing.faulty import Fault, Faults
from tests.primary import Primary
from tests.stress.conftest import MakePrimary
from tests.support import connected, in_threads, one, rows

ROWS = 2000


@pytest.fixture
def primary(make_primary: MakePrimary) -> Primary:
    """About 2.5 MB in one large file, then some small ones."""
    primary = make_primary()
    primary.run("CREATE TABLE t (id INTEGER PRIMARY KEY, data, n)")
    primary.run(
        f"WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {ROWS}) "
        "INSERT INTO t SELECT n, randomblob(1100), n % 10 FROM s"
    )
    primary.compact(9, 1, 2)
    for _ in range(5):
        primary.commit("UPDATE t SET n = n + 1 WHERE id % 401 = 0")
    return primary


def slow(delay_s: float) -> Fault:
    return Fault("slow", delay_s=delay_s)


@pytest.mark.plan("L25")
@pytest.mark.parametrize("delay_s", [0.01, 0.1])
def test_opening_and_a_first_query_take_few_requests_in_few_round_trips(primary, remote_faults, delay_s):
    remote_faults.add(slow(delay_s))
    before = time.monotonic()
    with connected(remote_faults.url, poll_interval=0) as connection:
        assert rows(connection, "SELECT n FROM t WHERE id = 802") == primary.rows("SELECT n FROM t WHERE id = 802")
        elapsed_s = time.monotonic() - before
        assert remote_faults.calls["list"] == 5  # the usual levels, in parallel
        assert remote_faults.calls["read"] <= 12  # two ends of the large file, five small ones, pages
    if delay_s >= 0.1:
        assert elapsed_s < 8 * delay_s + 1


@pytest.mark.plan("L25")
@pytest.mark.parametrize("delay_s", [0.01, 0.1])
def test_a_scan_takes_far_fewer_requests_than_pages(primary, remote_faults, delay_s):
    with connected(remote_faults.url, poll_interval=0, cache_size="50MB") as connection:
        remote_faults.reset_counters()
        remote_faults.add(slow(delay_s))
        assert rows(connection, "SELECT count(*), sum(n), sum(length(data)) FROM t") == primary.rows(
            "SELECT count(*), sum(n), sum(length(data)) FROM t"
        )
        pages = len(primary.images[primary.txid]) // 4096
        assert pages > 600
        assert remote_faults.calls["read"] <= 15
        assert remote_faults.calls["list"] == 0
        remote_faults.reset_counters()
        assert one(connection, "SELECT count(*) FROM t") == ROWS
        assert not remote_faults.requests, "what was read is cached"


@pytest.mark.plan("L25")
@pytest.mark.parametrize("delay_s", [0.01, 0.1])
def test_a_new_transaction_costs_one_listing_and_one_read(primary, remote_faults, delay_s):
    with connected(remote_faults.url, poll_interval=0) as connection:
        remote_faults.add(slow(delay_s))
        for _ in range(3):
            primary.commit("UPDATE t SET n = n + 1 WHERE id = 5")
            remote_faults.reset_counters()
            one(connection, "PRAGMA litestream_poll")
            assert remote_faults.calls == {"list": 1, "read": 1}
            assert rows(connection, "SELECT n FROM t WHERE id = 5") == primary.rows("SELECT n FROM t WHERE id = 5")
        remote_faults.reset_counters()
        one(connection, "PRAGMA litestream_poll")
        assert remote_faults.calls == {"list": 1}, "nothing new costs one listing"


@pytest.mark.plan("L25")
def test_readers_of_the_same_pages_share_their_requests(primary, remote_faults):
    """Ten connections that miss the same blocks at the same time ask for each block once."""
    query = "SELECT sum(n) FROM t WHERE id < 200"
    expected = primary.rows(query)
    with connected(remote_faults.url, poll_interval="1h", cache_size="50MB"):
        remote_faults.reset_counters()
        remote_faults.add(slow(0.05))

        def read(_: int) -> None:
            with connected(remote_faults.url, poll_interval="1h", cache_size="50MB") as connection:
                assert rows(connection, query) == expected

        in_threads(10, read)
        reads = [(r.level, r.min_txid, r.offset) for r in remote_faults.requests if r.operation == "read"]
        assert len(reads) == len(set(reads))
        assert remote_faults.calls["list"] == 0


@pytest.mark.plan("L25")
def test_a_slow_poll_delays_no_reader(primary, remote_faults: Faults):
    with connected(remote_faults.url, poll_interval="5ms", cache_size="50MB") as connection:
        expected = rows(connection, "SELECT sum(n) FROM t")
        remote_faults.add(Fault("slow", delay_s=20, operations=("list",)))
        remote_faults.wait_until_waiting()
        before = time.monotonic()
        for _ in range(20):
            assert rows(connection, "SELECT sum(n) FROM t") == expected
        assert time.monotonic() - before < 10
        remote_faults.clear()


@pytest.mark.plan("L25")
def test_a_local_storage_is_read_page_by_page_and_nothing_twice(primary, faults):
    faults.add(slow(0.001))
    with connected(faults.url, poll_interval=0, cache_size="50MB") as connection:
        assert one(connection, "SELECT sum(length(data)) FROM t") == ROWS * 1100
        faults.reset_counters()
        assert one(connection, "SELECT sum(length(data)) FROM t") == ROWS * 1100
        assert litevfs.wait_for(connection, primary.txid, timeout=0) == primary.txid
        assert not faults.requests
