"""What lies behind the situations of Litestream's errors, where rows and requests alone do not show it."""

from __future__ import annotations

import logging
import math
import threading
from dataclasses import replace
from typing import Any

import pytest

from litevfs.errors import PageUnavailableError
from litevfs.live.replica import Replica
from litevfs.options import Options
from tests.primary import Primary
from tests.scripted import Script
from tests.support import connected, one, rows, status_of, txid_of, wait_until

QUERY = "SELECT id, v, pad FROM t ORDER BY id"
FILL = (
    "CREATE TABLE t (id INTEGER PRIMARY KEY, v INTEGER, pad TEXT); "
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300) "
    "INSERT INTO t SELECT i, 0, printf('%0100d', i) FROM n"
)
UPDATE = "UPDATE t SET v = v + 1"
GROW = "INSERT INTO t (v, pad) SELECT v, pad FROM t"
SHRINK = "DELETE FROM t WHERE id > 150"  # with auto_vacuum=1 its pages go with it


# --- (a), (a'), (b): what a compacted file may do ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "span"),
    [
        pytest.param(level, span, marks=pytest.mark.soak if level in (2, 3) else ())
        for level in (1, 2, 3, 9)
        for span in ((1, 2), (1, 4), (2, 4), (3, 6), (1, 6), (4, 8), (1, 8))
        if level < 9 or span[0] == 1  # a snapshot begins with TXID 1
    ],
)
@pytest.mark.parametrize("change", [UPDATE, GROW, SHRINK], ids=["update", "growth", "shrinking"])
def test_a_compacted_file_of_any_span_changes_no_row_whenever_it_arrives(level, span, change):
    """Seen by a reader at TXID 6: before it, astride of it, ahead of it; with level 0 still there, and without."""
    with Script() as script, Primary(script.writer, page_size=1024, auto_vacuum=1) as primary:
        primary.commit(FILL)
        for txid in range(2, 7):
            primary.commit(change if txid == 5 else UPDATE)
        with connected(script.url, poll_interval=0, cache_size=0) as reader:
            primary.run(UPDATE)
            primary.run(UPDATE)
            primary.compact(level, *span)
            one(reader, "PRAGMA litestream_poll")
            assert rows(reader, QUERY) == primary.rows(QUERY, txid_of(reader))
            primary.upload(7)
            primary.upload(8)
            one(reader, "PRAGMA litestream_poll")
            primary.delete(0, range(span[0], span[1] + 1))
            for _ in range(2):
                one(reader, "PRAGMA litestream_poll")
                assert txid_of(reader) == 8
                assert rows(reader, QUERY) == primary.rows(QUERY)
                assert one(reader, "PRAGMA page_count") * 1024 == len(primary.images[8])
                assert rows(reader, "PRAGMA integrity_check") == [("ok",)]


def test_a_level_that_litestream_leaves_empty_is_looked_at_once_the_others_leave_a_gap():
    """Five listings less for every opening; Litestream's retention keeps the lower levels of what no snapshot has."""
    with Script() as script, Primary(script.writer) as primary:
        primary.commit(FILL)
        primary.run(UPDATE)
        primary.run(UPDATE)
        primary.compact(8, 2, 3)
        with connected(script.url, poll_interval=0) as reader:
            assert txid_of(reader) == 1
            assert rows(reader, QUERY) == primary.rows(QUERY, 1)
            primary.commit(UPDATE)
            one(reader, "PRAGMA litestream_poll")
            assert txid_of(reader) == 4
            assert rows(reader, QUERY) == primary.rows(QUERY)


# --- (d): the size ---------------------------------------------------------------------------------------------------


class Untouchable(tuple):  # type: ignore[type-arg]
    """A page map that no code may look at."""

    def _refuse(self, *_: object) -> Any:
        raise AssertionError("the page map was read")

    __iter__ = __getitem__ = __len__ = _refuse  # type: ignore[assignment]


def test_the_size_is_told_without_a_look_at_the_page_map():
    with Script() as script, Primary(script.writer) as primary:
        primary.commit(FILL)
        replica = Replica(Options(replica_url=script.url))
        replica.refresh()
        try:
            assert replica.snapshot is not None
            snapshot = replace(replica.snapshot, chunks=Untouchable())
            assert snapshot.size_bytes == len(primary.images[1])
            with pytest.raises(AssertionError, match="was read"):
                snapshot.place(1)
        finally:
            replica.close()


# --- (g): the pinned state is truly gone ------------------------------------------------------------------------------


def test_a_state_that_is_gone_is_one_clear_error_and_the_next_transaction_is_fresh():
    with Script() as script, Primary(script.writer) as primary:
        primary.commit(FILL)
        with connected(script.url, poll_interval=0, cache_size=0) as reader:
            reader.execute("PRAGMA cache_size=1; BEGIN")
            assert one(reader, "SELECT count(*) FROM sqlite_schema") == 1
            primary.commit(UPDATE)
            primary.compact(9, 1, 2)
            primary.delete(0)
            with pytest.raises(PageUnavailableError, match="new transaction") as caught:
                rows(reader, QUERY)
            assert caught.value.key
            if reader.in_transaction:  # SQLite may have rolled back by itself
                reader.execute("ROLLBACK")
            for _ in range(3):
                assert rows(reader, QUERY) == primary.rows(QUERY)
            assert txid_of(reader) == 2


# --- (h): a poller that cannot go on says so and recovers -------------------------------------------------------------


def test_a_hole_that_nothing_covers_is_told_by_status_and_log_until_it_is_filled(caplog):
    with Script() as script, Primary(script.writer) as primary:
        primary.commit(FILL)
        with connected(script.url, poll_interval="10ms") as reader:
            primary.run(UPDATE)
            primary.commit(UPDATE)
            with caplog.at_level(logging.WARNING, "litevfs"):
                wait_until(lambda: status_of(reader)["state"] == "behind", "the state behind")
                errors = status_of(reader)["errors"]
                wait_until(lambda: status_of(reader)["errors"] > errors + 1, "further looks")
            behind = status_of(reader)
            assert "TXIDs 0000000000000002-0000000000000002" in behind["last_error"]
            assert behind["lag_s"] > 0
            assert rows(reader, QUERY) == primary.rows(QUERY, 1)
            said = [record for record in caplog.records if "stays at its last state" in record.getMessage()]
            assert len(said) == 1
            primary.compact(1, 1, 2)  # a straddling file, and not the one that was missing
            wait_until(lambda: txid_of(reader) == 3, "TXID 3", timeout_s=60)
            wait_until(lambda: status_of(reader)["state"] == "current", "the state current")
            assert rows(reader, QUERY) == primary.rows(QUERY)


# --- (k), (l): requests -----------------------------------------------------------------------------------------------


def test_opening_reads_its_files_at_the_same_time():
    """Each read waits until eight of them are under way: one after the other, they would wait in vain."""
    together = threading.Barrier(8)
    with Script(block_size=1 << 16) as script, Primary(script.writer) as primary:
        primary.commit(FILL)
        for _ in range(15):
            primary.commit(UPDATE)

        def meet(_file: object, _offset: int, data: bytes) -> bytes:
            together.wait(20)
            return data

        script.on_read = meet
        with connected(script.url, poll_interval=0) as reader:
            script.on_read = None
            assert len(script.reads) == 16
            assert rows(reader, QUERY) == primary.rows(QUERY)
            assert not together.broken


@pytest.mark.parametrize("transactions", [8, 64, 512])
def test_time_travel_reads_as_many_headers_as_a_binary_search(transactions):
    with Script() as script, Primary(script.writer, page_size=512) as primary:
        primary.commit("CREATE TABLE t (x)")
        for _ in range(transactions - 1):
            primary.commit("INSERT INTO t VALUES (1)")
        primary.compact(9, 1, transactions // 2)
        with connected(script.url, poll_interval=0) as reader:
            script.clear()
            wanted = transactions // 2 + 1
            one(reader, f"PRAGMA litestream_time = '2026-01-01T00:{wanted // 60:02d}:{wanted % 60:02d}.5Z'")
            headers = [read for read in script.reads if read[1:] == (0, 100)]
            assert len(headers) <= math.log2(transactions) + 1
            # The snapshot and one file, of which pages are read; and the two files whose times decide, to verify them.
            assert len(script.reads) - len(headers) <= 2 + 1 + 2
            assert txid_of(reader) == wanted
            assert one(reader, "SELECT count(*) FROM t") == wanted - 1
