"""Storage that is consistent only in the end: listings hide what is new, show what is gone, repeat themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import litevfs
from litevfs.replica_clients.memory import MemoryStore, StoredFile
from litevfs.testing.faulty import Fault, Faults
from tests.primary import Primary
from tests.support import connected, one, rows, txid_of

QUERY = "SELECT a, b FROM t ORDER BY a"
POLL_LISTINGS = 11
"""A look at all levels after one at level 0 alone."""


@pytest.fixture
def primary(primary: Primary) -> Primary:
    primary.commit("CREATE TABLE t (a INTEGER PRIMARY KEY, b)")
    for n in range(2, 7):
        primary.commit(f"INSERT INTO t VALUES ({n}, hex(randomblob(500)))")
    return primary


@pytest.fixture
def connection(primary: Primary, faults: Faults) -> Iterator[Any]:
    with connected(faults.url, poll_interval=0) as connection:
        yield connection


def poll(connection: Any, faults: Faults, primary: Primary, *, at_least: int) -> int:
    """One look: it goes neither back nor into a loop, and what is then visible is one state of the primary."""
    faults.reset_counters()
    try:
        one(connection, "PRAGMA litestream_poll")
    except (litevfs.TXIDGapError, litevfs.StorageNotFoundError, litevfs.ReplicaEmptyError):  # all is hidden
        pass
    assert faults.calls["list"] <= POLL_LISTINGS
    txid = txid_of(connection)
    assert txid >= at_least
    assert rows(connection, QUERY) == primary.rows(QUERY, txid)
    return txid


@pytest.mark.plan("L29", "E01")
@pytest.mark.parametrize("hidden", [1, 3, 100])
def test_hidden_files_are_picked_up_when_they_show_and_nothing_goes_back(connection, primary, faults, hidden):
    faults.add(Fault("hide_newest", files=hidden))
    txid = 6
    for _ in range(8):
        primary.commit("INSERT INTO t (b) VALUES (hex(randomblob(50)))")
        txid = poll(connection, faults, primary, at_least=txid)
    assert faults.injected["hide_newest"]
    faults.clear()
    assert poll(connection, faults, primary, at_least=txid) == primary.txid


@pytest.mark.plan("L29", "E01")
def test_a_listing_that_is_repeated_for_some_polls_is_harmless(connection, primary, faults):
    poll(connection, faults, primary, at_least=6)
    faults.add(Fault("repeat", count=10))
    txid = 6
    for _ in range(6):
        primary.commit("INSERT INTO t (b) VALUES (hex(randomblob(50)))")
        txid = poll(connection, faults, primary, at_least=txid)
    faults.clear()
    assert poll(connection, faults, primary, at_least=txid) == primary.txid


@pytest.mark.plan("L29", "E01")
def test_files_listed_after_their_deletion_lead_to_nothing_wrong(connection, primary, faults):
    poll(connection, faults, primary, at_least=6)
    faults.add(Fault("show_deleted"))
    txid = 6
    for _ in range(6):
        primary.commit("INSERT INTO t (b) VALUES (hex(randomblob(50)))")
        txid = poll(connection, faults, primary, at_least=txid)
        primary.compact(1, 1, primary.txid)
        primary.delete(0)
        txid = poll(connection, faults, primary, at_least=txid)
    faults.clear()
    assert poll(connection, faults, primary, at_least=txid) == primary.txid
    assert rows(connection, QUERY) == primary.rows(QUERY)


@pytest.mark.plan("L29")
def test_opening_on_a_stale_listing_gives_an_older_state_and_then_catches_up(primary, faults):
    faults.add(Fault("hide_newest", files=2, levels=(0,)))
    with connected(faults.url, poll_interval=0) as connection:
        assert txid_of(connection) == 4
        assert rows(connection, QUERY) == primary.rows(QUERY, 4)
        faults.clear()
        assert poll(connection, faults, primary, at_least=4) == 6


@pytest.mark.plan("L29", "E01")
def test_listings_of_several_levels_that_disagree_never_go_back(connection, primary, faults):
    """Level 0 is stale while level 1 shows what came of it, and the other way round."""
    txid = 6
    for levels in ((0,), (1,), (0, 1), (0,)):
        fault = Fault("hide_newest", files=3, levels=levels)
        faults.add(fault)
        for _ in range(3):
            primary.commit("UPDATE t SET b = hex(randomblob(60)) WHERE a % 2")
            primary.compact(1, primary.txid - 1, primary.txid)
            txid = poll(connection, faults, primary, at_least=txid)
        faults.remove(fault)
        txid = poll(connection, faults, primary, at_least=txid)
        assert txid == primary.txid


def age(store: MemoryStore, key: str, modified_ms: int) -> None:
    """Give a file another time of its write: on S3, a compacted file is written later than those it is made of."""
    stored = store.files[key]
    store.files[key] = StoredFile(stored.data, modified_ms, stored.etag)


@pytest.mark.plan("L29", "E01")
def test_a_compaction_written_after_our_newest_file_is_no_other_replica(connection, primary, faults, store):
    """Level 0 hides the newest files for a while; what level 1 shows ends before them, and was written after them."""
    compacted = primary.compact(1, 1, 4)
    age(store, f"1/{compacted.name}", primary.timestamp_ms(60))
    faults.add(Fault("hide_newest", files=2, levels=(0,)))
    poll(connection, faults, primary, at_least=6)


@pytest.mark.plan("E01")
@pytest.mark.parametrize("fault", [Fault("hide_newest", files=100), Fault("repeat"), Fault("show_deleted")])
def test_a_listing_that_stays_stale_costs_the_same_at_every_poll(connection, primary, faults, fault):
    primary.commit("INSERT INTO t VALUES (50, 'late')")
    poll(connection, faults, primary, at_least=6)
    faults.add(fault)
    costs = []
    for _ in range(6):
        poll(connection, faults, primary, at_least=6)
        costs.append(faults.calls["list"] + faults.calls["read"])
    assert len(set(costs[1:])) == 1


@pytest.mark.plan("E01")
def test_a_listing_that_stays_stale_is_not_logged_at_every_poll(connection, primary, faults, caplog):
    faults.add(Fault("hide_newest", files=100))
    for _ in range(10):
        poll(connection, faults, primary, at_least=6)
    warnings = [record for record in caplog.records if record.levelname in {"WARNING", "ERROR"}]
    assert len(warnings) <= 2


@pytest.mark.plan("L29", "D05")
def test_opening_outlasts_a_listing_that_shows_deleted_files(primary, faults):
    """Retention between the listing and the reads looks the same."""
    client = litevfs.open_replica_client(faults.url)
    for level in range(10):
        client.list_files(level)
    client.close()
    primary.compact(1, 1, 6)
    primary.delete(0)
    faults.add(Fault("show_deleted", levels=(0,), count=3))
    with connected(faults.url, poll_interval=0, open_timeout="20s") as connection:
        assert rows(connection, QUERY) == primary.rows(QUERY)
    assert faults.injected["show_deleted"]


@pytest.mark.plan("L29", "D05", "E02")
@pytest.mark.parametrize("storage", ["faults", "remote_faults"])
@pytest.mark.parametrize("count", [1, 3, None], ids=["once", "three times", "always"])
def test_a_file_that_is_listed_but_cannot_be_found_never_makes_a_reader_ask_without_end(
    request, primary, storage, count
):
    """A read that says 404 for a file that is there, as storage behind a cache may: right rows or a typed error."""
    faults: Faults = request.getfixturevalue(storage)
    with connected(faults.url, poll_interval=0, cache_size=0) as connection:
        faults.reset_counters()
        faults.add(Fault("not_found", operations=("read",), count=count))
        try:
            assert rows(connection, QUERY) == primary.rows(QUERY)
        except (litevfs.PageUnavailableError, litevfs.StorageNotFoundError):
            assert count is None
        assert sum(faults.calls.values()) < 300
        faults.clear()
        assert rows(connection, QUERY) == primary.rows(QUERY)


@pytest.mark.plan("L29", "D05", "E02")
def test_a_file_that_is_listed_after_its_deletion_never_makes_a_reader_ask_without_end(primary, faults):
    with connected(faults.url, poll_interval=0, cache_size=0) as connection:
        faults.add(Fault("show_deleted"))
        one(connection, "PRAGMA litestream_poll")
        primary.delete(0)
        faults.reset_counters()
        with pytest.raises((litevfs.PageUnavailableError, litevfs.StorageNotFoundError)):
            rows(connection, QUERY)
        assert sum(faults.calls.values()) < 300
        primary.upload()
        primary.compact(1, 1, 6)
        faults.clear()
        one(connection, "PRAGMA litestream_poll")
        assert rows(connection, QUERY) == primary.rows(QUERY)


@pytest.mark.plan("L29", "D05")
def test_a_further_connection_opens_although_its_refresh_at_the_storage_finds_a_file_gone(primary, faults):
    with connected(faults.url, poll_interval="1h") as first:
        txid = primary.commit("INSERT INTO t VALUES (50, 'late')")
        faults.add(Fault("not_found", operations=("read",), count=1))
        with connected(faults.url, poll_interval="1h", open_timeout="20s") as second:
            assert rows(second, "SELECT count(*) FROM t") in [[(5,)], [(6,)]]
            assert litevfs.wait_for(second, txid, timeout=20) == txid
            assert rows(second, QUERY) == primary.rows(QUERY)
        assert rows(first, QUERY) == primary.rows(QUERY)
