"""Read your writes, refuse what is stale, hear of each transaction."""

from __future__ import annotations

import itertools
import threading
import time

import pytest

import litevfs
from litevfs.errors import StaleReplicaError, StorageError
from litevfs.live import registry
from litevfs.live.replica import Replica
from litevfs.options import Options
from litevfs.testing.faulty import Fault
from tests.primary import Primary
from tests.support import connected, one, rows, txid_of, wait_until

LISTING_FAILS = Fault("timeout", operations=("list",))


@pytest.fixture
def primary(primary: Primary) -> Primary:
    primary.commit("CREATE TABLE t AS SELECT 1 AS a")
    return primary


def insert(primary: Primary) -> int:
    return primary.commit("INSERT INTO t SELECT max(a) + 1 FROM t")


# --- wait_for ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("poll_interval", [0, "1h", "5ms"])
def test_wait_for_sees_a_transaction_that_is_there_without_waiting_for_the_next_poll(primary, url, poll_interval):
    with connected(url, poll_interval=poll_interval) as connection:
        txid = insert(primary)
        assert litevfs.wait_for(connection, txid, timeout=20) == txid
        assert rows(connection, "SELECT max(a) FROM t") == [(2,)]


@pytest.mark.parametrize("poll_interval", [0, "5ms"])
def test_wait_for_returns_when_a_late_transaction_arrives(primary, faults, poll_interval):
    with connected(faults.url, poll_interval=poll_interval) as connection:
        faults.reset_counters()
        started = threading.Event()

        def write_late() -> None:
            assert started.wait(10)
            wait_until(lambda: faults.calls["list"] >= 3, "looks for the transaction")
            insert(primary)

        writer = threading.Thread(target=write_late)
        writer.start()
        started.set()
        assert litevfs.wait_for(connection, 2, timeout=20) == 2
        writer.join(10)
        assert rows(connection, "SELECT max(a) FROM t") == [(2,)]


def test_wait_for_an_earlier_transaction_asks_the_storage_nothing(primary, faults):
    with connected(faults.url, poll_interval=0) as connection:
        faults.reset_counters()
        assert litevfs.wait_for(connection, 1, timeout=0) == 1
        assert litevfs.wait_for(connection, "0000000000000001", timeout=0) == 1
        assert not faults.requests


def test_wait_for_a_transaction_that_never_comes_says_so_in_time(primary, url):
    with connected(url, poll_interval="10ms") as connection:
        before = time.monotonic()
        with pytest.raises(StaleReplicaError, match="00000000000000ff") as caught:
            litevfs.wait_for(connection, 255, timeout=0.3)
        assert 0.3 <= time.monotonic() - before < 10
        assert isinstance(caught.value, TimeoutError)
        assert caught.value.hint
        assert rows(connection, "SELECT a FROM t") == [(1,)]


@pytest.mark.parametrize(("kind", "operation", "count"), [("timeout", "list", 4), ("not_found", "read", 5)])
def test_wait_for_outlasts_listings_that_fail_or_show_what_is_not_there(primary, faults, kind, operation, count):
    with connected(faults.url, poll_interval=0) as connection:
        insert(primary)
        faults.add(Fault(kind, operations=(operation,), count=count))
        assert litevfs.wait_for(connection, 2, timeout=20) == 2
        assert faults.injected[kind] == count


def test_wait_for_outlasts_a_file_that_is_still_being_uploaded(primary, store, url):
    with connected(url, poll_interval=0) as connection:
        primary.run("INSERT INTO t VALUES (2)")
        whole = primary.file_bytes(2, 2)
        key = f"0/{2:016x}-{2:016x}.ltx"
        store.put(key, whole[:-40], primary.timestamp_ms(2))
        timer = threading.Timer(0.3, store.put, (key, whole, primary.timestamp_ms(2)))
        timer.start()
        try:
            assert litevfs.wait_for(connection, 2, timeout=20) == 2
        finally:
            timer.join()


def test_wait_for_inside_a_transaction_tells_what_the_next_one_will_see(primary, url):
    with connected(url, poll_interval=0) as connection:
        connection.execute("BEGIN")
        assert rows(connection, "SELECT max(a) FROM t") == [(1,)]
        insert(primary)
        assert litevfs.wait_for(connection, 2, timeout=20) == 2
        assert rows(connection, "SELECT max(a) FROM t") == [(1,)]
        assert txid_of(connection) == 1
        connection.execute("COMMIT")
        assert rows(connection, "SELECT max(a) FROM t") == [(2,)]


# --- max_staleness ----------------------------------------------------------------------------------------------------


def test_a_fresh_enough_state_is_read_without_asking_the_storage(primary, faults):
    with connected(faults.url, poll_interval=0, max_staleness="1h") as connection:
        faults.reset_counters()
        for _ in range(5):
            assert rows(connection, "SELECT a FROM t") == [(1,)]
        assert not [r for r in faults.requests if r.operation == "list"]


def test_max_staleness_is_no_matter_of_a_state_that_was_travelled_to(primary, faults):
    with connected(faults.url, poll_interval=0, max_staleness=0) as connection:
        insert(primary)
        then = one(connection, "PRAGMA litestream_time")
        one(connection, f"PRAGMA litestream_time = '{then}'")
        faults.add(Fault("permission", operations=("list",)))
        assert rows(connection, "SELECT a FROM t") == [(1,)]
        one(connection, "PRAGMA litestream_time = 'latest'")
        with pytest.raises(StaleReplicaError):
            rows(connection, "SELECT a FROM t")


def test_max_staleness_zero_sees_every_transaction_at_once(primary, faults):
    with connected(faults.url, poll_interval=0, max_staleness=0) as connection:
        for expected in range(2, 8):
            insert(primary)
            assert one(connection, "SELECT max(a) FROM t") == expected


def test_a_state_that_is_too_old_is_refused_and_the_connection_goes_on_afterwards(primary, faults):
    with connected(faults.url, poll_interval=0, max_staleness=0) as connection:
        assert rows(connection, "SELECT a FROM t") == [(1,)]
        faults.add(LISTING_FAILS)
        for _ in range(3):
            with pytest.raises(StaleReplicaError, match="max_staleness") as caught:
                rows(connection, "SELECT a FROM t")
            assert isinstance(caught.value.__cause__, StorageError)
        faults.clear()
        insert(primary)
        assert rows(connection, "SELECT a FROM t") == [(1,), (2,)]


def test_a_transaction_under_way_is_not_refused(primary, faults):
    with connected(faults.url, poll_interval=0, max_staleness=0) as connection:
        connection.execute("BEGIN")
        assert rows(connection, "SELECT a FROM t") == [(1,)]
        faults.add(LISTING_FAILS)
        insert(primary)
        assert rows(connection, "SELECT count(*) FROM t") == [(1,)]
        connection.execute("COMMIT")
        with pytest.raises(StaleReplicaError):
            rows(connection, "SELECT a FROM t")


def test_one_connection_may_refuse_what_another_reads(primary, faults):
    with (
        connected(faults.url, poll_interval="1h", max_staleness=0) as strict,
        connected(faults.url, poll_interval="1h") as relaxed,
    ):
        faults.add(LISTING_FAILS)
        with pytest.raises(StaleReplicaError):
            rows(strict, "SELECT a FROM t")
        assert rows(relaxed, "SELECT a FROM t") == [(1,)]


def test_a_refresh_that_listed_before_the_transaction_began_does_not_make_it_fresh(primary, faults, monkeypatch):
    with (
        connected(faults.url, poll_interval=0, max_staleness=0) as strict,
        connected(faults.url, poll_interval=0) as other,
    ):
        count = [one(strict, "SELECT count(*) FROM t")]
        insert(primary)
        faults.add(Fault("hang", operations=("read",), count=1))  # the look for TXID 2 has listed, and reads
        looking = threading.Thread(target=litevfs.wait_for, args=(other, 2, 20))
        looking.start()
        faults.wait_until_waiting()
        insert(primary)
        asks, check = threading.Event(), Replica.check_freshness
        monkeypatch.setattr(Replica, "check_freshness", lambda *arguments: (asks.set(), check(*arguments))[1])
        reading = threading.Thread(target=lambda: count.append(one(strict, "SELECT count(*) FROM t")))
        reading.start()
        assert asks.wait(10)
        faults.clear()
        looking.join(20)
        reading.join(20)
        assert count == [1, 3]


def test_staleness_counts_from_the_beginning_of_a_refresh(primary, faults):
    """What was committed while a look read its files is not in it, however recently it ended."""
    replica = Replica(Options(replica_url=faults.url))
    try:
        replica.open(10)
        insert(primary)
        faults.add(Fault("hang", operations=("read",), count=1))
        looking = threading.Thread(target=replica.refresh)
        looking.start()
        faults.wait_until_waiting()
        listed = time.monotonic()
        wait_until(lambda: time.monotonic() - listed > 0.2)
        insert(primary)
        faults.clear()
        looking.join(20)
        assert replica.lag_s() > 0.2
        replica.check_freshness(0.2)
        assert replica.snapshot is not None
        assert replica.snapshot.txid == 3
    finally:
        replica.close()


# --- subscribe --------------------------------------------------------------------------------------------------------


@pytest.mark.plan("K07")
def test_each_subscriber_hears_of_each_transaction_once_and_in_order(primary, faults):
    heard: list[list[int]] = [[], [], []]
    subscriptions = [litevfs.subscribe(faults.url, calls.append, poll_interval="2ms") for calls in heard]
    try:
        assert [subscription.txid for subscription in subscriptions] == [1, 1, 1]
        faults.add(Fault("timeout", probability=0.3), Fault("hide_newest", probability=0.3))
        for _ in range(50):
            insert(primary)
        wait_until(lambda: all(calls and calls[-1] == 51 for calls in heard), "the last transaction", 20)
        assert heard == [list(range(2, 52))] * 3
        assert [subscription.txid for subscription in subscriptions] == [51, 51, 51]
        assert faults.injected["timeout"]
    finally:
        for subscription in subscriptions:
            subscription.close()


@pytest.mark.plan("K07")
def test_a_removed_subscriber_hears_nothing_more_and_the_others_do(primary, url):
    first: list[int] = []
    second: list[int] = []
    with litevfs.subscribe(url, second.append, poll_interval="2ms"):
        subscription = litevfs.subscribe(url, first.append, poll_interval="2ms")
        insert(primary)
        wait_until(lambda: first == [2] == second, "the first transaction")
        subscription.close()
        subscription.close()
        insert(primary)
        wait_until(lambda: second == [2, 3], "the second transaction")
        assert first == [2]


@pytest.mark.plan("K07")
def test_transactions_compacted_before_they_were_seen_are_told_as_one(primary, url):
    heard: list[int] = []
    with litevfs.subscribe(url, heard.append, poll_interval="2ms"):
        for _ in range(5):
            primary.run("INSERT INTO t VALUES (9)")
        primary.compact(1, 2, 6)
        insert(primary)
        wait_until(lambda: heard[-1:] == [7], "the newest transaction")
    assert heard == [6, 7]


@pytest.mark.plan("K07")
def test_a_subscriber_that_raises_or_is_slow_delays_no_other_and_misses_nothing(primary, url):
    heard: list[int] = []
    go_on = threading.Event()

    def callback(txid: int) -> None:
        heard.append(txid)
        assert go_on.wait(10)
        raise RuntimeError("the subscriber's own mistake")

    with litevfs.subscribe(url, callback, poll_interval="2ms"), connected(url, poll_interval="2ms") as connection:
        for _ in range(5):
            insert(primary)
        wait_until(lambda: rows(connection, "SELECT max(a) FROM t") == [(6,)], "the newest row")
        assert heard in ([], [2])
        go_on.set()
        wait_until(lambda: heard == [2, 3, 4, 5, 6], "every call")


def test_ctrl_c_while_a_subscription_waits_for_its_last_call_lets_the_replica_go(primary, url, monkeypatch):
    subscription = litevfs.subscribe(url, print, poll_interval="2ms")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(subscription._thread, "join", interrupt)
        with pytest.raises(KeyboardInterrupt):
            subscription.close()
    assert registry.registry.shared == {}


@pytest.mark.plan("K07")
def test_a_subscriber_may_close_its_own_subscription_from_a_call(primary, url):
    heard: list[int] = []
    subscriptions: list[litevfs.Subscription] = []
    ready = threading.Event()

    def callback(txid: int) -> None:
        assert ready.wait(10)
        heard.append(txid)
        subscriptions[0].close()

    subscriptions.append(litevfs.subscribe(url, callback, poll_interval="2ms"))
    ready.set()
    for _ in itertools.repeat(None, 3):
        insert(primary)
    wait_until(lambda: heard, "the first call")
    assert heard == [2]
    wait_until(lambda: not [t for t in threading.enumerate() if t.name.startswith("litevfs")], "the end of threads")
    assert heard == [2]
