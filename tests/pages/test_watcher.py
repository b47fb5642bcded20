"""What a connection will read next: plans that name what comes, once and in time, and survive Ctrl-C at any moment."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from random import Random

import pytest

from litevfs.pages.btree import (
    INTERIOR_INDEX,
    INTERIOR_TABLE,
    LEAF_INDEX,
    LEAF_TABLE,
    parse_index_entries,
    parse_interior,
)
from litevfs.pages.lookups import ALL_ROWS
from litevfs.pages.watcher import FIRST_SHARE, Watcher
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
    assert len(plans[0]) == 64 // FIRST_SHARE  # of the pages that fill a request
    assert len(plans[0] + plans[1]) == 58  # up to the end of the first interior page
    planned = list(chain.from_iterable(plans))
    assert len(planned) == len(set(planned))
    assert len(plans) < len(leaves) / 16


def show_all(watcher: Watcher, pages: dict[int, bytes], plan: list[int]) -> list[list[int]]:
    """The plans that follow each other, where all pages of one come together."""
    plans = [plan]
    while awaited := watcher.awaited(plans[-1]):
        plans.append(list(chain.from_iterable(watcher.learn(pgno, pages[pgno]) for pgno in awaited)))
    return plans


@pytest.mark.parametrize("rows", [1, 5, 60, 3000])
def test_scans_that_are_sure_to_come_are_planned_whole_before_a_leaf_is_read(tmp_path: Path, rows: int):
    pages = indexed_pages(tmp_path / "t.db", rows)
    watcher = Watcher(4 * len(pages))
    plans = show_all(watcher, pages, watcher.expect_scans([TABLE_ROOT, INDEX_ROOT]))
    planned = list(chain.from_iterable(plans))
    assert set(planned) >= {*in_order(pages, TABLE_ROOT), *in_order(pages, INDEX_ROOT)}
    assert len(planned) <= 1.05 * len(set(planned)) + 2  # of each tree the page that has shown how deep it is
    assert len(plans) <= 5  # both roots; then the levels of the trees
    more = [watcher.before_read(pgno) for pgno in in_order(pages) if not watcher.after_read(pgno, pages[pgno])]
    assert not any(more)


def test_leaves_that_are_sure_to_lie_between_interior_pages_are_planned_with_the_first_of_these(tmp_path: Path):
    pages = database_pages(tmp_path / "t.db", 3000)
    watcher = Watcher(400)
    watcher.expect_scans([2])
    plan = watcher.learn(2, pages[2])
    assert 300 < len(plan) <= 400  # of what may be read ahead, more than the half that other guesses take
    assert plan[0] == parse_interior(2, pages[2]).children[0]
    assert len(set(plan) - set(in_order(pages))) <= 1


def test_the_way_to_the_first_leaf_of_a_later_tree_is_planned_as_soon_as_its_root_is_known(tmp_path: Path):
    pages = indexed_pages(tmp_path / "t.db", 3000)
    watcher = Watcher(64)
    watcher.expect_scans([TABLE_ROOT, INDEX_ROOT])
    first = parse_interior(INDEX_ROOT, pages[INDEX_ROOT]).children[0]
    assert watcher.learn(INDEX_ROOT, pages[INDEX_ROOT]) == [first]
    assert watcher.awaited([first]) == [first]
    assert watcher.learn(INDEX_ROOT, pages[INDEX_ROOT]) == []


def test_the_next_tree_is_planned_before_the_last_interior_page_of_a_tree_is_known(tmp_path: Path):
    pages = indexed_pages(tmp_path / "t.db", 3000)
    watcher = Watcher(4 * len(pages))
    watcher.expect_scans([TABLE_ROOT, INDEX_ROOT])
    last = parse_interior(TABLE_ROOT, pages[TABLE_ROOT]).children[-1]
    index = set(in_order(pages, INDEX_ROOT)) - {INDEX_ROOT}
    planned: set[int] = set()
    for pgno in (TABLE_ROOT, INDEX_ROOT, *index, *in_order(pages, TABLE_ROOT)):
        if pgno == last:
            break
        if pages[pgno][0] in {INTERIOR_TABLE, INTERIOR_INDEX}:
            planned.update(watcher.learn(pgno, pages[pgno]))
    assert planned >= index


def test_a_scan_begins_with_no_more_leaves_than_a_limit_lets_through_rows(tmp_path: Path):
    pages = indexed_pages(tmp_path / "t.db", 6000)
    first = parse_interior(TABLE_ROOT, pages[TABLE_ROOT]).children[0]
    planned = {}
    for rows in (0, 20, ALL_ROWS):
        watcher = Watcher(512)
        watcher.begin()
        watcher.expect(rows)
        watcher.after_read(TABLE_ROOT, pages[TABLE_ROOT])
        watcher.after_read(first, pages[first])
        leaves = parse_interior(first, pages[first]).children
        watcher.before_read(leaves[0])
        planned[rows] = len(watcher.before_read(leaves[1]))
    assert planned[20] <= 20 < planned[0] == planned[ALL_ROWS]


def test_a_scan_that_is_expected_ends_with_its_query(tmp_path: Path):
    pages = indexed_pages(tmp_path / "t.db", 3000)
    watcher = Watcher(64)
    watcher.expect_scans([TABLE_ROOT, INDEX_ROOT])
    for pgno in in_order(pages):
        watcher.before_read(pgno)
        watcher.after_read(pgno, pages[pgno])
    assert watcher.is_on_its_way
    watcher.begin()
    assert not watcher.is_on_its_way
    assert watcher.awaited([TABLE_ROOT, INDEX_ROOT]) == []
    assert watcher.learn(TABLE_ROOT, pages[TABLE_ROOT]) == []


# --- look-ups through an index ----------------------------------------------------------------------------------------

TABLE_ROOT, INDEX_ROOT = 2, 3
KEYS = 40


def indexed_pages(path: Path, rows: int, number: str = "i") -> dict[int, bytes]:
    """A table of so many rows in which those of each of KEYS keys lie scattered, and an index by key.

    The key of row i is 1000 and this `number`, an expression, modulo KEYS.
    """
    connection = sqlite3.connect(path)
    connection.executescript(
        f"PRAGMA page_size={PAGE_SIZE}; CREATE TABLE t(id INTEGER PRIMARY KEY, k, s TEXT); CREATE INDEX i ON t(k);"
        f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows}) "
        f"INSERT INTO t SELECT i, 1000 + {number} % {KEYS}, hex(zeroblob(50)) FROM n; VACUUM"
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


def fetched(
    pages: dict[int, bytes], reads: Iterator[int], watcher: Watcher | None = None, *, recalled: int = 0
) -> tuple[int, set[int]]:
    """(round trips that follow each other, pages asked for) where what is planned takes one round trip to come.

    Of the index leaves read earlier, the `recalled` last ones are in memory.
    """
    watcher = watcher or Watcher(300)
    now, arrivals = 0, {}  # page -> round trip in which it comes

    def ask_for(pgnos: list[int]) -> None:
        arrivals.update({pgno: now + 1 for pgno in pgnos if pgno not in arrivals and pgno in pages})

    for pgno in reads:
        ask_for(watcher.before_read(pgno))
        if watcher.recall.is_due:
            ask_for(watcher.recalled(pages.get, recalled))
        ask_for([pgno])
        while now < arrivals[pgno]:
            now += 1
            for come in [page for page, arrival in arrivals.items() if arrival == now]:
                ask_for(watcher.learn(come, pages[come]))
        ask_for(watcher.after_read(pgno, pages[pgno]))
    return now, set(arrivals)


def test_a_scan_guesses_what_lies_after_the_last_interior_page_as_between_those_before(tmp_path: Path):
    pages = indexed_pages(tmp_path / "t.db", 3000)
    scanned = list(in_order(pages, TABLE_ROOT))
    trips, asked_for = fetched(pages, iter(scanned))
    assert trips <= 8
    assert len(asked_for - set(scanned)) <= 20


def test_a_scan_that_has_come_to_its_end_leaves_its_window_to_the_next_one(tmp_path: Path):
    pages = indexed_pages(tmp_path / "t.db", 8000)
    table, index = list(in_order(pages, TABLE_ROOT)), list(in_order(pages, INDEX_ROOT))
    assert fetched(pages, chain(table, index))[0] <= 16
    assert fetched(pages, iter(table))[0] + fetched(pages, iter(index))[0] <= 20


def test_a_scan_begins_as_wide_as_one_before_it_in_the_query_that_came_to_its_end(tmp_path: Path):
    pages = indexed_pages(tmp_path / "t.db", 8000)
    table, index = list(in_order(pages, TABLE_ROOT)), list(in_order(pages, INDEX_ROOT))
    half = index[: len(index) // 2]

    def trips(reads: list[int]) -> int:
        watcher = Watcher(300)
        watcher.step = 16
        return fetched(pages, iter(reads), watcher)[0]

    assert trips(index + table) <= trips(index) + trips(table) - 2
    assert trips(half + table) >= trips(half) + trips(table) - 1  # that one has not


@pytest.mark.parametrize("root", [2, 3], ids=["table", "index"])
def test_a_scan_rests_to_the_end_of_its_tree_once_nothing_is_left_to_plan(tmp_path: Path, monkeypatch, root: int):
    pages = indexed_pages(tmp_path / "t.db", 8000)
    watcher, looks = Watcher(4000), 0

    def counted(parent: int, position: int) -> list[int]:
        nonlocal looks
        looks += 1
        return follow(parent, position)

    follow = watcher._follow_scan
    monkeypatch.setattr(watcher, "_follow_scan", counted)
    reads = list(in_order(pages, root))
    for pgno in reads:
        watcher.before_read(pgno)
        watcher.after_read(pgno, pages[pgno])
    assert looks < len(reads) / 8


def after_a_scan(pages: dict[int, bytes]) -> tuple[Watcher, list[int]]:
    """A watcher that knows all interior pages and has seen a scan of the table's first 40 leaves; all its leaves."""
    leaves = [pgno for pgno in in_order(pages) if pages[pgno][0] == LEAF_TABLE]
    watcher = Watcher(64)
    for pgno in in_order(pages):
        if pages[pgno][0] != LEAF_TABLE:
            watcher.after_read(pgno, pages[pgno])
    for pgno in leaves[:40]:
        watcher.before_read(pgno)
    return watcher, leaves


def test_a_scan_that_begins_again_among_leaves_that_rested_is_planned(tmp_path: Path):
    pages = indexed_pages(tmp_path / "t.db", 8000)
    watcher, leaves = after_a_scan(pages)
    again = leaves.index(next(iter(watcher.resting))) - 2  # a position before the leaves that rest
    assert again > 0
    planned = [page for pgno in leaves[again : again + 4] for page in watcher.before_read(pgno)]
    assert planned[:8] == leaves[again + 2 : again + 10]


def test_look_ups_of_one_key_take_few_round_trips_and_no_pages_of_another_key(tmp_path: Path):
    pages = indexed_pages(tmp_path / "t.db", 8000)
    reads = list(look_ups(pages, 1017, 200))
    assert len(reads) > 200
    trips, asked_for = fetched(pages, iter(reads))
    assert trips <= 18  # five index leaves, each a trip of its own, and at most three for the rows of each
    assert asked_for == set(reads)


def test_a_look_up_that_ends_early_pays_for_what_it_needed_and_one_small_window(tmp_path: Path):
    pages = indexed_pages(tmp_path / "t.db", 8000)
    for limit, extra in ((1, 0), (2, 8)):
        reads = list(look_ups(pages, 1017, limit))
        _, asked_for = fetched(pages, iter(reads))
        more = [pgno for pgno in asked_for - set(reads) if pages[pgno][0] == LEAF_TABLE]
        assert len(more) <= extra


def index_leaves(pages: dict[int, bytes]) -> list[int]:
    """The leaves of the index, in order."""
    return [pgno for pgno in in_order(pages, INDEX_ROOT) if pages[pgno][0] == LEAF_INDEX]


def after_look_ups(pages: dict[int, bytes], limit: int) -> Watcher:
    """A watcher that knows the index and has seen look-ups of one key through it."""
    watcher = Watcher(300)
    for pgno in chain(in_order(pages, INDEX_ROOT), look_ups(pages, 1017, limit)):
        if pages[pgno][0] != LEAF_INDEX or limit:
            watcher.before_read(pgno)
            watcher.after_read(pgno, pages[pgno])
    return watcher


def planned_leaves(watcher: Watcher, pages: dict[int, bytes], reads: list[int]) -> set[int]:
    """Table leaves that are planned while these pages are read."""
    planned: set[int] = set()
    for pgno in reads:
        planned.update(watcher.before_read(pgno))
        planned.update(watcher.after_read(pgno, pages[pgno]))
    return {pgno for pgno in planned if pages[pgno][0] == LEAF_TABLE}


def look_ups_backwards(pages: dict[int, bytes], limit: int) -> Iterator[int]:
    """The pages that SQLite reads, each once, for the last `limit` rows by key, the last one first."""
    seen = set()
    for leaf in reversed([pgno for pgno in in_order(pages, INDEX_ROOT) if pages[pgno][0] == LEAF_INDEX]):
        yield leaf
        for entry in reversed(parse_index_entries(pages[leaf])):
            pgno = TABLE_ROOT
            while interior := parse_interior(pgno, pages[pgno]):
                yield from {pgno} - seen
                seen.add(pgno)
                pgno = interior.child_for(entry.rowid)
            yield from {pgno} - seen
            seen.add(pgno)
            limit -= 1
            if not limit:
                return


def test_look_ups_from_the_last_entry_on_are_planned_from_leaf_to_leaf(tmp_path: Path):
    pages = indexed_pages(tmp_path / "t.db", 8000)
    wanted = list(look_ups_backwards(pages, 200))
    assert len(wanted) > 180
    assert fetched(pages, iter(wanted))[0] <= 30


def test_look_ups_plan_interior_pages_that_sqlite_has_no_more(tmp_path: Path):
    pages = indexed_pages(tmp_path / "t.db", 8000)
    watcher = Watcher(300)
    for pgno, page in pages.items():
        watcher.learn(pgno, page)
    wanted = list(look_ups(pages, 1007, 200))
    interior = {pgno for pgno in wanted if pages[pgno][0] == INTERIOR_TABLE}
    assert len(interior) > 20
    trips, asked_for = fetched(pages, iter(wanted), watcher)
    assert trips <= 20  # instead of one for each of them
    assert len(asked_for) <= 1.6 * len(wanted)


def after_a_scan_of_the_index(pages: dict[int, bytes]) -> Watcher:
    """A watcher of a connection whose first query read the whole index."""
    watcher = Watcher(300)
    for pgno in in_order(pages, INDEX_ROOT):
        watcher.before_read(pgno)
        watcher.after_read(pgno, pages[pgno])
    watcher.begin()
    return watcher


def test_look_ups_are_planned_though_their_index_leaf_was_read_by_an_earlier_query(tmp_path: Path):
    pages = indexed_pages(tmp_path / "t.db", 8000)
    wanted = [pgno for pgno in look_ups(pages, 1007, 200) if pages[pgno][0] != LEAF_INDEX]
    assert len(wanted) > 150
    trips, asked_for = fetched(pages, iter(wanted), after_a_scan_of_the_index(pages), recalled=512)
    assert trips <= 40  # instead of one for each page
    assert len(asked_for) <= 1.2 * len(wanted)


@pytest.mark.slow
def test_a_next_index_leaf_that_is_not_in_memory_ends_no_reading_ahead(tmp_path: Path):
    pages = indexed_pages(tmp_path / "t.db", 8000)
    wanted = [pgno for pgno in look_ups(pages, 1007, 60) if pages[pgno][0] != LEAF_INDEX]
    watcher, peeks, in_vain = after_a_scan_of_the_index(pages), 0, 0

    def peek(pgno: int) -> bytes | None:  # every second one is in memory
        nonlocal peeks
        peeks += 1
        return pages[pgno] if pgno % 2 else None

    for pgno in wanted:
        watcher.before_read(pgno)
        if watcher.recall.is_due:
            in_vain += not watcher.recalled(peek, 512)
        watcher.after_read(pgno, pages[pgno])
        assert not watcher.recall.is_due
    assert 0 < in_vain < peeks


def test_look_ups_that_no_index_leaf_explains_plan_nothing_and_search_seldom(tmp_path: Path):
    pages = indexed_pages(tmp_path / "t.db", 8000)
    watcher, peeks = after_a_scan_of_the_index(pages), 0

    def peek(pgno: int) -> bytes:
        nonlocal peeks
        peeks += 1
        return pages[pgno]

    leaves = [pgno for pgno in in_order(pages, TABLE_ROOT) if pages[pgno][0] == LEAF_TABLE]
    index_leaves = sum(pages[pgno][0] == LEAF_INDEX for pgno in in_order(pages, INDEX_ROOT))
    scattered = leaves[::3]
    Random(1).shuffle(scattered)
    for pgno in (TABLE_ROOT, *(p for p in pages if parse_interior(p, pages[p]) and p != TABLE_ROOT)):
        watcher.after_read(pgno, pages[pgno])
    for pgno in scattered[:500]:
        assert not watcher.before_read(pgno)
        if watcher.recall.is_due:
            assert not watcher.recalled(peek, 512)
        watcher.after_read(pgno, pages[pgno])
    assert 0 < peeks <= 3 * index_leaves  # at the 3rd, the 24th and the 192nd look-up
    watcher.begin()
    assert watcher.recalled(peek, 0) == []


def test_a_scan_of_an_index_plans_no_look_ups_though_look_ups_went_before_it(tmp_path: Path):
    """In the same transaction, where no lock says that another query begins."""
    pages = indexed_pages(tmp_path / "t.db", 8000)
    for limit in (20, 60, 100, 150):
        assert not planned_leaves(after_look_ups(pages, limit), pages, index_leaves(pages))


def test_a_pattern_ends_with_its_query(tmp_path: Path):
    pages = indexed_pages(tmp_path / "t.db", 8000)
    watcher, leaves = after_a_scan(pages)
    watcher.begin()
    assert watcher.before_read(leaves[200]) == []
    assert 0 < len(watcher.before_read(leaves[201])) <= 64 // FIRST_SHARE


def test_a_plan_that_is_held_back_starts_again_with_the_smallest_window(tmp_path: Path):
    pages = indexed_pages(tmp_path / "t.db", 8000)
    table_leaves = [pgno for pgno in in_order(pages) if pages[pgno][0] == LEAF_TABLE]
    watcher = Watcher(64)
    for pgno in in_order(pages):
        if pages[pgno][0] != LEAF_TABLE:
            watcher.after_read(pgno, pages[pgno])
    for pgno in table_leaves[:40]:
        watcher.before_read(pgno)
    watcher.hold_back()
    following = watcher.before_read(table_leaves[40])
    assert following == table_leaves[41:49]


def test_the_rest_of_a_large_row_is_planned_while_its_pages_follow_each_other():
    watcher = Watcher(300)
    planned: list[int] = []
    for pgno in range(50, 150):
        planned += watcher.after_read(pgno, (pgno + 1).to_bytes(4, "big") + bytes(PAGE_SIZE - 4))
    assert planned[:8] == list(range(51, 59))
    assert sorted(set(planned)) == planned
    assert set(range(51, 151)) <= set(planned)
    assert watcher.after_read(400, (390).to_bytes(4, "big") + bytes(PAGE_SIZE - 4)) == []


@pytest.mark.slow
def test_ctrl_c_at_any_moment_leaves_a_watcher_that_goes_on(tmp_path: Path):
    before, after = interior_pages(tmp_path / "before.db", 600), interior_pages(tmp_path / "after.db", 900)
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
        for pgno in range(2, 100):
            watcher.before_read(pgno)
        for pgno, page in after.items():
            watcher.after_read(pgno, page)


def test_where_a_scan_is_stays_known_while_pages_of_another_tree_are_looked_up(tmp_path: Path):
    pages = indexed_pages(tmp_path / "t.db", 3000)
    rng = Random(1)
    looked_up = [pgno for pgno in in_order(pages, INDEX_ROOT) if pages[pgno][0] == LEAF_INDEX]
    watcher = Watcher(64)
    for pgno in in_order(pages, INDEX_ROOT):
        watcher.learn(pgno, pages[pgno])
    watcher.hold([TABLE_ROOT])
    assert watcher.way_to(TABLE_ROOT) == []
    for pgno in in_order(pages, TABLE_ROOT):
        for read in (pgno, *rng.sample(looked_up, 20)):
            watcher.before_read(read)
            watcher.after_read(read, pages[read])
        if pages[pgno][0] == LEAF_TABLE:
            way = watcher.way_to(TABLE_ROOT)
            parsed = [parse_interior(above, pages[above]) for above, _ in way]
            assert [interior.children[place] for interior, (_, place) in zip(parsed, way, strict=True) if interior] == [
                *(above for above, _ in way[1:]),
                pgno,
            ]
    watcher.begin()
    assert watcher.way_to(TABLE_ROOT) == []
