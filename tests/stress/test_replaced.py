"""Another replica appears under the same URL. What is read is always one state of one of the two databases."""

from __future__ import annotations

from typing import Any

import pytest

from litevfs import PageUnavailableError, errors
from litevfs.replica_clients.memory import MemoryStore
from tests.primary import START_MS, Primary
from tests.stress.conftest import MakePrimary
from tests.support import connected, one, rows, status_of, txid_of

pytestmark = pytest.mark.plan("E03")

QUERY = "SELECT 1, a, b FROM t UNION ALL SELECT 2, x, 0 FROM u ORDER BY 1, 2"
NUMBERS = "WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < 300) "


def database(primary: Primary, tag: str, txids: int, start_ms: int) -> Primary:
    """Transaction 2 fills a table over many pages; all later ones touch one page of another table."""
    primary.start_ms = start_ms
    primary.commit("CREATE TABLE t (a INTEGER PRIMARY KEY, b); CREATE TABLE u (x)")
    primary.commit(f"{NUMBERS} INSERT INTO t SELECT n, '{tag} ' || n || hex(randomblob(40)) FROM s")
    while primary.txid < txids:
        primary.commit(f"INSERT INTO u VALUES ('{tag} {primary.txid + 1:03d}')")
    return primary


@pytest.fixture
def old(make_primary: MakePrimary) -> Primary:
    return database(make_primary(), "old", 10, START_MS)


def replacement(make_primary: MakePrimary, store: MemoryStore, txids: int, **options: Any) -> Primary:
    """Another database, made an hour later, in the place of the old one."""
    store.files.clear()
    return database(make_primary(**options), "new", txids, START_MS + 3_600_000)


def assert_new_state_is_served(connection: Any, new: Primary) -> None:
    """Noticed at the first look, or at the second where the first could only find that something is wrong."""
    for _ in range(2):
        try:
            one(connection, "PRAGMA litestream_poll")
        except errors.ReplicaError:
            continue
    assert txid_of(connection) == new.txid
    assert rows(connection, QUERY) == new.rows(QUERY)
    assert rows(connection, "PRAGMA integrity_check") == [("ok",)]


@pytest.mark.parametrize("txids", [3, 10, 17], ids=["lower", "same", "higher"])
@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
def test_a_replica_that_starts_again_is_noticed_whatever_its_txid(old, make_primary, store, url, txids, warm):
    with connected(url, poll_interval=0) as connection:
        if warm:
            assert rows(connection, QUERY) == old.rows(QUERY)
        new = replacement(make_primary, store, txids)
        assert_new_state_is_served(connection, new)
        assert status_of(connection)["epoch"] == 1
        new.commit("INSERT INTO u VALUES ('afterwards')")
        one(connection, "PRAGMA litestream_poll")
        assert rows(connection, QUERY) == new.rows(QUERY)
        assert status_of(connection)["epoch"] == 1


def compacted(new: Primary, store: MemoryStore, *files: tuple[int, int, int]) -> None:
    """Leave only these files, (level, min_txid, max_txid) each."""
    store.files.clear()
    for file in files:
        new.compact(*file)


@pytest.mark.parametrize(
    "files",
    [
        pytest.param([(9, 1, 20)], id="one snapshot"),
        pytest.param([(9, 1, 12), (0, 13, 20)], id="snapshot past our TXID and more"),
        pytest.param(
            [(9, 1, 8), (1, 9, 14), (1, 15, 20), (0, 20, 20)],
            id="a compacted file overlaps our TXID",
        ),
        pytest.param(
            [(9, 1, 10), (0, 11, 20)],
            id="a compacted file ends at our TXID",
        ),
    ],
)
def test_a_replica_replaced_by_a_newer_compacted_one_is_noticed(old, make_primary, store, url, files):
    with connected(url, poll_interval=0) as connection:
        assert rows(connection, QUERY) == old.rows(QUERY)
        new = replacement(make_primary, store, 20)
        compacted(new, store, *files)
        assert_new_state_is_served(connection, new)


def test_a_state_made_of_a_snapshot_alone_is_not_extended_with_files_of_another_replica(old, make_primary, store, url):
    """No level-0 file is known that could prove that the next one belongs to the same history."""
    compacted(old, store, (9, 1, 10))
    with connected(url, poll_interval=0) as connection:
        assert rows(connection, QUERY) == old.rows(QUERY)
        new = replacement(make_primary, store, 11)
        assert_new_state_is_served(connection, new)


def test_pages_are_not_relocated_into_a_file_of_another_replica_that_ends_at_the_same_txid(
    old, make_primary, store, url
):
    with connected(url, poll_interval=0) as connection:
        assert rows(connection, QUERY) == old.rows(QUERY)
        new = replacement(make_primary, store, 10)
        compacted(new, store, (1, 1, 10))
        assert_new_state_is_served(connection, new)


def test_a_read_transaction_never_sees_pages_of_the_replica_that_replaced_its_own(old, make_primary, store, url):
    with connected(url, poll_interval=0) as connection:
        connection.execute("BEGIN")
        assert rows(connection, "SELECT x FROM u") == old.rows("SELECT x FROM u")
        new = replacement(make_primary, store, 10)
        compacted(new, store, (1, 1, 10))
        with pytest.raises(PageUnavailableError):
            rows(connection, "SELECT b FROM t WHERE a = 250")
        if connection.in_transaction:  # SQLite may have rolled back by itself
            connection.execute("ROLLBACK")


def test_a_replacement_with_another_page_size_is_noticed(old, make_primary, store, url):
    with connected(url, poll_interval=0) as connection:
        assert rows(connection, "SELECT x FROM u") == old.rows("SELECT x FROM u")
        new = replacement(make_primary, store, 20, page_size=1024)
        compacted(new, store, (9, 1, 20))
        assert_new_state_is_served(connection, new)


def test_an_equal_schema_version_of_another_database_is_no_equal_schema(old, make_primary, store, url):
    """SQLite reads the schema again when its version has changed, and these two have the same."""
    with connected(url, poll_interval=0) as connection:
        assert rows(connection, QUERY) == old.rows(QUERY)
        store.files.clear()
        new = make_primary()
        new.start_ms = START_MS + 3_600_000
        new.commit("CREATE TABLE u (x); CREATE TABLE t (b, a INTEGER PRIMARY KEY)")
        new.commit("INSERT INTO u VALUES ('new'); INSERT INTO t VALUES ('new', 7)")
        version = "PRAGMA schema_version"
        assert new.rows(version) == old.rows(version)
        assert_new_state_is_served(connection, new)
        assert rows(connection, "SELECT * FROM t") == [("new", 7)]


def test_an_idle_reader_without_level_0_files_notices_a_replacement_at_the_next_refresh_at_all_levels(
    old, make_primary, store, url, monkeypatch
):
    compacted(old, store, (9, 1, 10))
    with connected(url, poll_interval=0) as connection:
        assert rows(connection, QUERY) == old.rows(QUERY)
        new = replacement(make_primary, store, 4)
        monkeypatch.setattr("litevfs.states.survey.INTERVAL_S", 0)
        assert_new_state_is_served(connection, new)


def test_an_open_transaction_keeps_its_cached_state_while_the_replica_is_replaced(old, make_primary, store, url):
    with connected(url, poll_interval=0) as holding, connected(url, poll_interval=0) as polling:
        holding.execute("BEGIN")
        before = rows(holding, QUERY)
        new = replacement(make_primary, store, 10)
        assert_new_state_is_served(polling, new)
        assert rows(holding, QUERY) == before == old.rows(QUERY)
        assert txid_of(holding) == 10
        holding.execute("COMMIT")


def test_a_vanished_replica_leaves_the_last_state_in_place_until_a_new_one_comes(
    old, make_primary, store, url, monkeypatch
):
    with connected(url, poll_interval=0) as connection:
        assert rows(connection, QUERY) == old.rows(QUERY)
        store.files.clear()
        for _ in range(3):
            try:
                one(connection, "PRAGMA litestream_poll")
            except errors.ReplicaError:
                continue
            assert txid_of(connection) == 10
        assert rows(connection, QUERY) == old.rows(QUERY)
        new = replacement(make_primary, store, 6)
        monkeypatch.setattr("litevfs.states.survey.INTERVAL_S", 0)
        assert_new_state_is_served(connection, new)
