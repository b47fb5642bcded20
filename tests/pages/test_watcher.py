"""What a connection will read next: plans that name what comes, once and in time, and survive Ctrl-C at any moment."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from litevfs.pages.btree import INTERIOR_TABLE, LEAF_INDEX, LEAF_TABLE, parse_index_entries, parse_interior
from litevfs.pages.watcher import Watcher
from tests.interrupts import interrupted_everywhere

PAGE_SIZE = 512


def database_pages(path: Path, rows: int) -> dict[int, bytes]:
    """The pages of a database with a table of so many rows, by number; the table's root is page 2."""
    connection = sqlite3.connect(path)
    connection.executescript(
        f"PRAGMA page_size={PAGE_SIZE}; CREATE TABLE t(id INTEGER PRIMARY KEY, s TEXT);"
        f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows}) "
        "INSERT INTO t SELECT i, hex(zeroblob(50)) FROM n"
    )
    connection.close()
    data = path.read_bytes()
    return {start // PAGE_SIZE + 1: data[start : start + PAGE_SIZE] for start in range(0, len(data), PAGE_SIZE)}


def interior_pages(path: Path, rows: int) -> dict[int, bytes]:
    """Those of the table's pages that are interior ones."""
    pages = database_pages(path, rows)
    return {pgno: page for pgno, page in pages.items() if pgno > 1 and page[0] == INTERIOR_TABLE}


def in_order(pages: dict[int, bytes], pgno: int = 2) -> Iterator[int]:
    """The pages below `pgno` as a scan reads them."""
    yield pgno
    interior = parse_interior(pgno, pages[pgno])
    for child in interior.children if interior else ():
        yield from in_order(pages, child)


def test_a_scan_is_planned_in_few_steps_with_each_page_once_and_before_it_is_read(tmp_path: Path):
    pages = database_pages(tmp_path / "t.db", 3000)
    leaves = [pgno for pgno in in_order(pages) if pages[pgno][0] == LEAF_TABLE]
    assert len(leaves) > 500
    first_ones = {parsed.children[0] for pgno, page in pages.items() if (parsed := parse_interior(pgno, page))}
    watcher = Watcher(64)
    plans: list[list[int]] = []
    for pgno in in_order(pages):
        plans += filter(None, [watcher.before_read(pgno)])
        if pgno in leaves[3:] and pgno not in first_ones:
            assert pgno in chain.from_iterable(plans)
        plans += filter(None, [watcher.after_read(pgno, pages[pgno])])
    assert [len(plan) for plan in plans[:2]] == [8, 28]  # four of the first eight were not read yet
    planned = list(chain.from_iterable(plans))
    assert len(planned) == len(set(planned))
    assert len(plans) < len(leaves) / 16


# --- look-ups through an index ----------------------------------------------------------------------------------------

TABLE_ROOT, INDEX_ROOT = 2, 3
KEYS = 40


def indexed_pages(path: Path, rows: int) -> dict[int, bytes]:
    """A table of so many rows in which those of each of KEYS keys lie scattered, and an index by key."""
    connection = sqlite3.connect(path)
    connection.executescript(
        f"PRAGMA page_size={PAGE_SIZE}; CREATE TABLE t(id INTEGER PRIMARY KEY, k, s TEXT); CREATE INDEX i ON t(k);"
        f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows}) "
        f"INSERT INTO t SELECT i, 1000 + i % {KEYS}, hex(zeroblob(50)) FROM n; VACUUM"
    )
    roots = [root for (root,) in connection.execute("SELECT rootpage FROM sqlite_schema ORDER BY type DESC")]
    connection.close()
    assert roots == [TABLE_ROOT, INDEX_ROOT]
    data = path.read_bytes()
    return {start // PAGE_SIZE + 1: data[start : start + PAGE_SIZE] for start in range(0, len(data), PAGE_SIZE)}


def look_ups(pages: dict[int, bytes], key: int, limit: int) -> Iterator[int]:
    """The pages that SQLite reads, each once, for the first `limit` rows of a key, from the index leaf on."""
    leaves = [pgno for pgno in in_order(pages, INDEX_ROOT) if pages[pgno][0] == LEAF_INDEX]
    encoded = key.to_bytes(2, "big")
    seen = {0}
    for leaf in leaves:
        rowids = [entry.rowid for entry in parse_index_entries(pages[leaf]) if entry.key[1] == encoded]
        if rowids:
            yield leaf
        for rowid in rowids[:limit]:
            limit -= 1
            pgno = TABLE_ROOT
            while interior := parse_interior(pgno, pages[pgno]):
                yield from {pgno} - seen
                seen.add(pgno)
                pgno = interior.child_for(rowid)
            yield from {pgno} - seen
            seen.add(pgno)
        if not limit:
            return


def fetched(pages: dict[int, bytes], reads: Iterator[int]) -> tuple[int, set[int]]:
    """(round trips that follow each other, pages asked for) where what is planned takes one round trip to come."""
    watcher = Watcher(300)
    now, arrivals = 0, {}  # page -> round trip in which it comes

    def ask_for(pgnos: list[int]) -> None:
        arrivals.update({pgno: now + 1 for pgno in pgnos if pgno not in arrivals})

    for pgno in reads:
        ask_for(watcher.before_read(pgno))
        ask_for([pgno])
        while now < arrivals[pgno]:
            now += 1
            for come in [page for page, arrival in arrivals.items() if arrival == now]:
                ask_for(watcher.learn(come, pages[come]))
        ask_for(watcher.after_read(pgno, pages[pgno]))
    return now, set(arrivals)


def test_look_ups_of_one_key_take_few_round_trips_and_no_pages_of_another_key(tmp_path: Path):
    pages = indexed_pages(tmp_path / "t.db", 8000)
    reads = list(look_ups(pages, 1017, 200))
    assert len(reads) > 200
    trips, asked_for = fetched(pages, iter(reads))
    assert trips <= 19  # five index leaves, each a trip of its own, and at most three for the rows of each
    assert asked_for == set(reads)


def test_a_look_up_that_ends_early_pays_for_what_it_needed_and_one_small_window(tmp_path: Path):
    pages = indexed_pages(tmp_path / "t.db", 8000)
    for limit, extra in ((1, 0), (2, 8)):
        reads = list(look_ups(pages, 1017, limit))
        _, asked_for = fetched(pages, iter(reads))
        more = [pgno for pgno in asked_for - set(reads) if pages[pgno][0] == LEAF_TABLE]
        assert len(more) <= extra


def test_ctrl_c_at_any_moment_leaves_a_watcher_that_goes_on(tmp_path: Path):
    before, after = interior_pages(tmp_path / "before.db", 1000), interior_pages(tmp_path / "after.db", 2000)
    changed = {pgno for pgno in before if before[pgno] != after.get(pgno)}
    assert changed
    assert len(after) > 3

    def make() -> Watcher:
        watcher = Watcher(64)
        for pgno, page in before.items():
            watcher.after_read(pgno, page)
        return watcher

    def work(watcher: Watcher) -> None:
        for pgno in sorted(changed):
            watcher.after_read(pgno, after.get(pgno, bytes(PAGE_SIZE)))
            watcher.before_read(pgno + 1)
            watcher.before_read(pgno + 2)

    for watcher in interrupted_everywhere(make, work):
        for pgno in range(2, 400):
            watcher.before_read(pgno)
        for pgno, page in after.items():
            watcher.after_read(pgno, page)
