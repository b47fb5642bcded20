"""One read transaction while everything around it moves on: the same rows to its end, or one clear error."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import apsw
import pytest

import litevfs
from litevfs.errors import PageUnavailableError
from litevfs.testing.faulty import Fault, Faults
from tests.primary import Primary
from tests.stress.conftest import MakePrimary
from tests.support import connected, one, rows, txid_of, wait_until

QUERY = "SELECT id, data, n FROM t ORDER BY id"
ROWS = 100
SNAPSHOT_TRANSACTIONS = 60


@pytest.fixture
def primary(make_primary: MakePrimary) -> Primary:
    """A table over some hundred pages."""
    primary = make_primary(page_size=512)
    primary.commit("CREATE TABLE t (id INTEGER PRIMARY KEY, data, n)")
    primary.commit(
        f"WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {ROWS}) "
        "INSERT INTO t SELECT n, hex(randomblob(90)), 0 FROM s"
    )
    return primary


def change(primary: Primary) -> int:
    """Every transaction changes some rows all over the table; all of them change the whole of it many times."""
    return primary.commit("UPDATE t SET n = n + 1, data = hex(randomblob(90)) WHERE id % 50 = ?", (primary.txid % 50,))


@pytest.fixture(params=["faults", "remote_faults"])
def storage(request: pytest.FixtureRequest) -> Faults:
    faults: Faults = request.getfixturevalue(request.param)
    return faults


@pytest.fixture
def holding(primary: Primary, storage: Faults) -> Iterator[Any]:
    """A connection without caches: whatever it reads, it reads from storage, now."""
    with connected(storage.url, poll_interval="5ms", cache_size=0) as connection:
        connection.execute("PRAGMA cache_size=1")
        yield connection


@pytest.fixture
def following(holding: Any, storage: Faults) -> Iterator[Any]:
    """A connection to the same replica that goes with the time."""
    with connected(storage.url, poll_interval="5ms", cache_size=0) as connection:
        yield connection


def wait_for_newest(following: apsw.Connection, primary: Primary) -> None:
    assert litevfs.wait_for(following, primary.txid, timeout=30) == primary.txid
    assert rows(following, QUERY) == primary.rows(QUERY)


@pytest.mark.plan("L08")
@pytest.mark.parametrize("transactions", [300, pytest.param(1000, marks=pytest.mark.soak)])
def test_a_transaction_keeps_its_rows_through_others_compaction_and_retention(
    primary, holding, following, transactions
):
    """Level 1 takes ten transactions at a time, and as it happens one file of it ends where the transaction reads."""
    while primary.txid % 10:
        change(primary)
    assert litevfs.wait_for(holding, primary.txid) == primary.txid
    holding.execute("BEGIN")
    before = rows(holding, QUERY)
    txid = txid_of(holding)
    assert before == primary.rows(QUERY)
    for _ in range(transactions):
        change(primary)
        if primary.txid % 10 == 0:
            primary.compact(1, primary.txid - 9, primary.txid)
            if primary.txid == txid + 10:
                primary.compact(1, 1, txid)
        if primary.txid % 100 == 0:
            primary.delete(0, range(1, primary.txid - 10))
            assert rows(holding, "SELECT count(*), sum(n) FROM t") == [(ROWS, sum(n for _, _, n in before))]
    wait_for_newest(following, primary)
    assert rows(holding, QUERY) == before
    assert txid_of(holding) == txid
    assert rows(holding, "PRAGMA integrity_check") == [("ok",)]
    holding.execute("COMMIT")
    assert rows(holding, QUERY) == primary.rows(QUERY)


@pytest.mark.plan("L08", "D05")
def test_a_transaction_whose_state_is_gone_for_good_ends_with_one_clear_error(primary, holding, following):
    holding.execute("BEGIN")
    before = rows(holding, "SELECT sum(n) FROM t")
    for _ in range(4 * SNAPSHOT_TRANSACTIONS):
        change(primary)
        if primary.txid % SNAPSHOT_TRANSACTIONS == 0:
            primary.compact(9, 1, primary.txid)
            primary.delete(9, [primary.txid - SNAPSHOT_TRANSACTIONS])
            primary.delete(0, range(1, primary.txid))
    wait_for_newest(following, primary)
    with pytest.raises(PageUnavailableError, match="new transaction") as caught:
        rows(holding, QUERY)
    assert caught.value.key
    assert caught.value.min_txid
    if holding.in_transaction:  # SQLite may have rolled back by itself
        holding.execute("ROLLBACK")
    assert rows(holding, QUERY) == primary.rows(QUERY)
    assert rows(holding, "SELECT sum(n) FROM t") != before


@pytest.mark.plan("D05")
@pytest.mark.parametrize("covered", [True, False], ids=["compacted elsewhere", "gone for good"])
def test_files_deleted_while_they_are_read_lead_to_the_same_rows_or_one_error(primary, storage, covered):
    """The deletion comes between two reads of one query; the query is not told beforehand."""
    for _ in range(10):
        change(primary)
    with connected(storage.url, poll_interval=0, cache_size=0) as connection:
        expected = primary.rows(QUERY)
        storage.reset_counters()
        cursor = connection.execute(QUERY)
        first = [next(cursor) for _ in range(5)]
        assert first == expected[:5]
        if covered:
            primary.compact(1, 1, primary.txid)
        primary.delete(0)
        if covered:
            assert first + list(cursor) == expected
        else:
            with pytest.raises((PageUnavailableError, litevfs.ReplicaEmptyError)) as caught:
                rows(connection, QUERY) and list(cursor)
            assert "gone" in str(caught.value)


class SumReader:
    """A thread that reads in transactions and compares with what the primary had at each one's TXID."""

    def __init__(self, url: str, sums: dict[int, int]) -> None:
        self.reads = 0
        self.gone = 0
        self.error: Exception | None = None
        self._sums = sums
        self._stop = threading.Event()
        self._connection = litevfs.connect(url, poll_interval="2ms", cache_size=0)
        self._connection.execute("PRAGMA cache_size=1")
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set() and self.error is None:
            try:
                self._read()
                self.reads += 1
            except PageUnavailableError:
                self.gone += 1
            except Exception as error:  # noqa: BLE001 - handed to the test
                self.error = error
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    def _read(self) -> None:
        self._connection.execute("BEGIN")
        total = one(self._connection, "SELECT sum(n) FROM t")
        assert total == self._sums[txid_of(self._connection)]
        self._connection.execute("COMMIT")

    def close(self) -> None:
        self._stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive()
        self._connection.close()


@pytest.mark.plan("D05")
def test_readers_of_files_that_vanish_all_the_time_see_states_of_the_primary_only(primary, storage):
    """Retention deletes every file as soon as it is compacted; a reader finds what is gone elsewhere."""
    sums = {primary.txid: 0}
    readers = [SumReader(storage.url, sums) for _ in range(2)]
    previous = step = 0
    pause, deadline = threading.Event(), time.monotonic() + 60
    try:
        while time.monotonic() < deadline:
            step += 1
            pause.wait(0.002)
            primary.run("UPDATE t SET n = n + 1 WHERE id % 50 = ?", (step % 50,))
            sums[primary.txid] = primary.con.execute("SELECT sum(n) FROM t").fetchall()[0][0]
            primary.upload()
            if step % 5 == 4:
                primary.compact(1, 1, primary.txid)
                primary.delete(0)
                primary.delete(1, [previous])
                previous = primary.txid
            if any(reader.error for reader in readers) or (step > 60 and all(reader.reads > 10 for reader in readers)):
                break
    finally:
        for reader in readers:
            reader.close()
    errors = [reader.error for reader in readers if reader.error is not None]
    if errors:
        raise errors[0]
    assert all(reader.reads > 10 for reader in readers)


@pytest.mark.plan("D05")
def test_a_listing_that_fails_while_vanished_files_are_looked_for_is_a_typed_error_and_passes(primary, storage):
    with connected(storage.url, poll_interval=0, cache_size=0, read_timeout="500ms") as connection:
        primary.compact(1, 1, primary.txid)
        primary.delete(0)
        storage.add(Fault("timeout", operations=("list",)))
        with pytest.raises(litevfs.StorageTimeoutError):
            rows(connection, QUERY)
        storage.clear()
        assert rows(connection, QUERY) == primary.rows(QUERY)


@pytest.mark.plan("L08")
def test_transactions_of_many_connections_each_keep_their_own_state(primary, url):
    """Twenty transactions begun at twenty TXIDs, all open at once."""
    connections = [litevfs.connect(url, poll_interval=0 if n else "1h", cache_size=0) for n in range(20)]
    try:
        expected = []
        for connection in connections:
            change(primary)
            one(connection, "PRAGMA litestream_poll")
            connection.execute("BEGIN")
            assert one(connection, "SELECT count(*) FROM t") == ROWS
            expected.append(primary.rows(QUERY))
        assert [rows(connection, QUERY) for connection in connections] == expected
        assert len({txid_of(connection) for connection in connections}) == 20
    finally:
        for connection in connections:
            connection.close()
    wait_until(lambda: not [t for t in threading.enumerate() if t.name.startswith("litevfs")], "the end of threads")
