"""What a difference reads from a storage: requests and bytes grow with the rows that changed, not with the database."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec

import apsw
import pytest

import litevfs
from litevfs.replica_clients.memory import MemoryReplicaClient, drop_memory_store, memory_store
from litevfs.replica_clients.s3.client import S3ReplicaClient
from litevfs.testing.faulty import faulty_replica
from tests.primary import Primary
from tests.support import numbers


@dataclass(frozen=True)
class Cost:
    """What one difference read."""

    pages: int  # that were in no cache
    requests: int  # reads of files
    read_bytes: int


def cost_of(url: str, old: int, new: int | str = "latest") -> tuple[list[litevfs.Change], Cost]:
    """The difference from `old` to the newest state, over a storage with the block size of S3."""
    with faulty_replica(url, block_size=S3ReplicaClient.block_size) as faults:
        with litevfs.diff(faults.url, old, new) as diff:
            changes = list(diff)
            pages = diff._pages.counters.misses
        reads = [request for request in faults.requests if request.operation == "read"]
        assert all(request.size is not None for request in reads)
        return changes, Cost(pages, len(reads), sum(request.size or 0 for request in reads))


@pytest.fixture(scope="module")
def large() -> Iterator[Primary]:
    """A database of 40 MB: ten rows are changed, then a column is added, then a row deleted."""
    store = f"cost-{uuid.uuid4().hex[:12]}"
    with Primary(MemoryReplicaClient(memory_store(store))) as primary:
        primary.con.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
        primary.commit(f"INSERT INTO t SELECT value, randomblob(1960) FROM {numbers(18_750)}")
        primary.commit("UPDATE t SET x = randomblob(1960) WHERE id % 1875 = 7")
        primary.commit("ALTER TABLE t ADD COLUMN y")
        primary.commit("DELETE FROM t WHERE id % 7500 = 5")
        yield primary
    drop_memory_store(store)


def url_of(primary: Primary) -> str:
    return primary.client.url


def test_of_a_large_page_index_only_parts_are_read(large):
    changes, cost = cost_of(url_of(large), 1, 2)
    assert len(changes) == 10
    assert cost.requests < 60
    assert cost.read_bytes < 250_000, cost  # 64 kB of them are the first block; the whole index has 90 kB


def test_where_all_rows_are_compared_a_page_index_comes_in_few_parts(large):
    changes, cost = cost_of(url_of(large), 2, 3)
    assert len(changes) == 18_750
    assert cost.read_bytes < 78_000_000, cost  # both states, whole
    assert cost.requests < 400, cost


def test_the_snapshot_file_may_go_while_parts_of_its_index_are_known(large):
    with (
        faulty_replica(url_of(large), block_size=S3ReplicaClient.block_size) as faults,
        litevfs.diff(faults.url, 3, 4) as diff,
    ):
        large.compact(9, 1, 3)
        large.delete(0, [1])
        try:
            changes = [(change.op, change.key) for change in diff]
        finally:  # other tests use this replica, too
            large.client.write(0, 1, 1, large.file_bytes(1, 1), large.timestamp_ms(1))
            large.delete(9)
    assert changes == [("delete", (5,)), ("delete", (7505,)), ("delete", (15005,))]


@pytest.mark.parametrize(
    "megabytes", [10, pytest.param(100, marks=pytest.mark.soak), pytest.param(1000, marks=pytest.mark.soak)]
)
@pytest.mark.timeout(300)
def test_a_hundred_changed_rows_take_kilobytes_of_any_database(url, tmp_path, megabytes):
    with closing(apsw.Connection(str(tmp_path / "app.db"))) as connection:
        connection.execute(
            "PRAGMA journal_mode = wal; PRAGMA synchronous = off; CREATE TABLE t (id INTEGER PRIMARY KEY, x);"
            "CREATE TABLE w (k TEXT COLLATE NOCASE, n, x, PRIMARY KEY (k, n)) WITHOUT ROWID; CREATE INDEX wx ON w (n)"
        ).fetchall()
        rows = megabytes * 1000
        with litevfs.Replicator(tmp_path / "app.db", url) as replicator:
            connection.execute(f"INSERT INTO t SELECT value, randomblob(480) FROM {numbers(rows)}")
            connection.execute(f"INSERT INTO w SELECT hex(value % 1000), value, randomblob(480) FROM {numbers(rows)}")
            old = replicator.sync()
            connection.execute(f"UPDATE t SET x = randomblob(480) WHERE id % {rows // 50} = 7")
            connection.execute(f"UPDATE w SET x = randomblob(480) WHERE n % {rows // 50} = 9")
            replicator.sync()
    changes, cost = cost_of(url, old)
    assert len(changes) == 100
    assert cost.pages < 400
    assert cost.requests < (450 if megabytes == 1000 else 250)
    # What lies between two wanted pages is read, too, where that takes less time than another request.
    assert cost.read_bytes < (5_000_000 if megabytes == 10 else 2_000_000), cost
    print(f"{len(changes)} changes of {megabytes} MB: {cost}")


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.skipif(find_spec("jamdict_data") is None, reason="pip install jamdict-data (a dictionary of 325 MB)")
def test_the_difference_of_a_real_database_is_that_of_all_its_rows_and_cheap(tmp_path):
    from jamdict_data import JAMDICT_DB_PATH

    shutil.copyfile(JAMDICT_DB_PATH, tmp_path / "app.db")
    url = f"file://{tmp_path / 'replica'}"
    with closing(apsw.Connection(str(tmp_path / "app.db"))) as connection:
        connection.pragma("journal_mode", "wal")
        with litevfs.Replicator(tmp_path / "app.db", url) as replicator:
            old = replicator.sync()
            tables = [str(row[0]) for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
            connection.execute(
                "UPDATE Entry SET idseq = idseq + 100000000 WHERE rowid % 20000 = 17;"
                "UPDATE SenseGloss SET text = upper(text) WHERE rowid % 5000 = 3;"
                "DELETE FROM Kana WHERE rowid % 9000 = 7;"
                "INSERT INTO Kanji (idseq, text) SELECT idseq, text || '?' FROM Kanji WHERE rowid % 9000 = 1"
            )
            replicator.sync()
            connection.execute("ATTACH ? AS older", (JAMDICT_DB_PATH,))
            expected = {table: naive_counts(connection, table) for table in tables}
    began = time.monotonic()
    changes, cost = cost_of(url, old)
    print(f"{len(changes)} changes, {cost}, {time.monotonic() - began:.2f} s")
    found = dict.fromkeys(tables, (0, 0))
    for change in changes:
        gone, come = found[change.table]
        found[change.table] = gone + (change.old is not None), come + (change.new is not None)
    assert found == expected
    assert len(changes) > 100
    assert cost.requests < 1000
    assert cost.read_bytes < 15_000_000


def naive_counts(connection: apsw.Connection, table: str) -> tuple[int, int]:
    """(rows that only the older state has, rows that only the newer one has), by SQL over all rows."""
    sides = f'SELECT rowid, * FROM older."{table}"', f'SELECT rowid, * FROM main."{table}"'
    gone, come = (
        connection.execute(f"SELECT count(*) FROM ({a} EXCEPT {b})").get for a, b in (sides, tuple(reversed(sides)))
    )
    return int(gone), int(come)
