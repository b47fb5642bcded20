"""The tests' own primaries: what they upload is what the oracle says, judged by the tests' own reader of LTX files."""

from __future__ import annotations

import struct

import pytest

from litevfs.replica_clients.memory import MemoryReplicaClient, MemoryStore
from tests.histories import image_after, read_pages
from tests.made import MadePrimary
from tests.primary import START_MS, Primary

STATEMENTS = (
    "CREATE TABLE t (id INTEGER PRIMARY KEY, x, y); CREATE INDEX i ON t (x)",
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300) "
    "INSERT INTO t SELECT i, randomblob(500), 5 FROM n",
    "BEGIN; UPDATE t SET y = 6 WHERE id = 150; UPDATE t SET y = 5 WHERE id = 150; COMMIT",
    "DELETE FROM t WHERE id > 20",
    "VACUUM",
    "PRAGMA user_version = 7",
)


@pytest.fixture
def client() -> MemoryReplicaClient:
    return MemoryReplicaClient(MemoryStore())


@pytest.mark.parametrize("page_size", [512, 4096, 65536])
def test_files_of_the_primary_applied_in_order_give_the_images_that_sqlite_has(client, page_size):
    with Primary(client, page_size=page_size) as primary:
        for sql in STATEMENTS:
            primary.commit(sql)
        for info in client.list_files(0):
            before = primary.images[info.min_txid - 1]
            assert image_after(before, client.read(info)) == primary.images[info.max_txid]
        for first, last in [(1, 6), (2, 5), (3, 4)]:
            data = client.read(primary.compact(1, first, last))
            assert image_after(primary.images[first - 1], data) == primary.images[last]
        assert primary.rows("SELECT count(*) FROM t", 3) == [(300,)]
        assert primary.rows("SELECT count(*) FROM t") == [(20,)]


def test_a_file_of_the_primary_is_what_the_replicator_takes_from_the_wal(client):
    """A page that was written as it was before is in it, page 1 when it was written, and its place in the WAL."""
    with Primary(client) as primary:
        for sql in STATEMENTS[:3]:
            primary.commit(sql)
        data = client.read(client.list_files(0)[2])
        _, _, pages = read_pages(data)
        assert len(pages) == 1
        assert 1 not in pages
        assert primary.images[3] == primary.images[2]
        timestamp_ms, wal_offset, wal_size, salt = struct.unpack_from(">QxxxxxxxxQQI", data, 32)
        assert timestamp_ms == START_MS + 3000
        assert wal_offset > 32
        assert wal_size == 4096 + 24
        assert salt


def test_sql_that_changes_nothing_is_no_transaction(client):
    with Primary(client) as primary:
        primary.commit("CREATE TABLE t (x)")
        assert primary.commit("DELETE FROM t WHERE x = 1", may_change_nothing=True) == 1
        with pytest.raises(AssertionError):
            primary.run("DELETE FROM t WHERE x = 1")
        assert len(client.list_files(0)) == 1


def test_files_of_a_made_history_give_its_images(client):
    with MadePrimary(client) as first:
        first.record(b"")
        first.commit("CREATE TABLE t (x); INSERT INTO t VALUES (randomblob(9000))")
    with MadePrimary(client, first.images) as second:
        second.commit("DELETE FROM t; VACUUM")
    files = [client.read(info) for info in client.list_files(0)]
    assert len(files) == second.txid == 3
    image = b""
    for txid, data in enumerate(files, 1):
        image = image_after(image, data)
        assert image == second.images[txid]
