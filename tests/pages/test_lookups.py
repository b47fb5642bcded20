"""Look-ups of a query that is known to look up so many rows: plans for these, and for more only when they are read."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import pytest

from litevfs.pages.btree import INTERIOR_TABLE, LEAF_INDEX, LEAF_TABLE, parse_index_entries
from litevfs.pages.lookups import ALL_ROWS
from litevfs.pages.patterns import IndexLeaf
from litevfs.pages.trees import KnownTrees
from litevfs.pages.watcher import Watcher
from tests.pages.test_watcher import TABLE_ROOT, fetched, in_order, indexed_pages, look_ups, look_ups_backwards

ROWS = 8000
KEY = 1017


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[int, bytes]:
    """A table whose rows of each key lie scattered, and an index by key, whose leaves hold some forty rows each."""
    return indexed_pages(tmp_path_factory.mktemp("lookups") / "t.db", ROWS)


def _expecting(rows: int) -> Watcher:
    watcher = Watcher(300)
    watcher.expect(rows)
    return watcher


def _leaves(pages: dict[int, bytes], pgnos: set[int]) -> set[int]:
    return {pgno for pgno in pgnos if pages[pgno][0] == LEAF_TABLE}


@pytest.mark.parametrize("rows", [2, 3, 9, 20, 30, 70, 120])
@pytest.mark.parametrize("backwards", [False, True])
def test_as_many_rows_are_planned_as_are_expected(pages: dict[int, bytes], rows: int, backwards: bool):
    wanted = list(look_ups_backwards(pages, rows) if backwards else look_ups(pages, KEY, rows))
    trips, asked_for = fetched(pages, iter(wanted), _expecting(rows))
    assert asked_for == set(wanted)  # of interior pages, too
    assert trips <= fetched(pages, iter(wanted))[0]


def test_rows_beyond_those_expected_are_planned_as_the_query_comes_to_them(pages: dict[int, bytes]):
    wanted = list(look_ups(pages, KEY, 60))
    trips, asked_for = fetched(pages, iter(wanted), _expecting(10))
    assert len(_leaves(pages, asked_for)) <= 2 * 60
    assert trips <= fetched(pages, iter(wanted))[0] + 4


def test_rows_that_are_expected_too_late_are_planned_no_further(pages: dict[int, bytes]):
    wanted = list(look_ups(pages, KEY, 20))
    watcher = Watcher(300)
    more: set[int] = set()
    for number, pgno in enumerate(wanted):
        if number == 8:
            watcher.expect(20)
        more.update(watcher.before_read(pgno))
        more.update(watcher.after_read(pgno, pages[pgno]))
    assert len(_leaves(pages, more - set(wanted))) <= 8


def test_another_query_expects_nothing(pages: dict[int, bytes], tmp_path: Path):
    watcher = _expecting(3)
    watcher.begin()
    wanted = list(look_ups(pages, KEY, 200))
    assert fetched(pages, iter(wanted), watcher) == fetched(pages, iter(wanted))


def test_all_rows_of_a_key_are_planned_at_once_where_all_are_looked_up(pages: dict[int, bytes]):
    wanted = list(look_ups(pages, KEY, ROWS))
    trips, asked_for = fetched(pages, iter(wanted), _expecting(ALL_ROWS))
    assert asked_for == set(wanted)
    assert trips <= fetched(pages, iter(wanted))[0]
    assert _first_plan(pages, wanted, Watcher(300)) <= 8
    assert _first_plan(pages, wanted, _expecting(ALL_ROWS)) > 8


def _first_plan(pages: dict[int, bytes], wanted: list[int], watcher: Watcher) -> int:
    """How many leaves of the table are planned at once, as soon as any is."""
    for pgno, page in pages.items():
        if page[0] == INTERIOR_TABLE:
            watcher.learn(pgno, page)
    plans = ([*watcher.before_read(pgno), *watcher.after_read(pgno, pages[pgno])] for pgno in wanted)
    return next(len(leaves) for plan in plans if (leaves := _leaves(pages, set(plan))))


def test_where_all_rows_are_looked_up_no_more_are_planned_at_once_than_have_room(pages: dict[int, bytes]):
    watcher, wanted = Watcher(10), list(look_ups(pages, KEY, ROWS))
    watcher.expect(ALL_ROWS)
    for pgno in wanted:
        assert len(watcher.before_read(pgno)) <= 10
        assert len(_leaves(pages, set(watcher.after_read(pgno, pages[pgno])))) <= 10


@pytest.mark.parametrize("expected", [0, ALL_ROWS])
def test_look_ups_whose_leaves_follow_each_other_now_and_then_are_no_scan(tmp_path: Path, expected: int):
    pages = indexed_pages(tmp_path / "t.db", ROWS, "i * i % 1009 * 17")
    wanted = list(look_ups(pages, KEY, ROWS))
    leaves = [pgno for pgno in in_order(pages) if pages[pgno][0] == LEAF_TABLE]
    together = sum({first, second} <= set(wanted) for first, second in pairwise(leaves))
    assert together > 5
    assert len(wanted) < len(leaves) / 2
    asked_for = fetched(pages, iter(wanted), _expecting(expected))[1]
    assert len(asked_for - set(wanted)) <= 8


@pytest.mark.parametrize("seed", range(4))
def test_entries_are_led_on_as_if_they_were_looked_up_from_the_root_again(pages: dict[int, bytes], seed: int):
    interior = [pgno for pgno, page in pages.items() if page[0] == INTERIOR_TABLE and pgno != TABLE_ROOT]
    trees = KnownTrees()
    trees.learn(TABLE_ROOT, pages[TABLE_ROOT])
    entries = parse_index_entries(next(page for page in pages.values() if page[0] == LEAF_INDEX))
    leaf = IndexLeaf(1, b"", entries=entries, root=TABLE_ROOT, depth=9)

    def looked_up() -> list[list[int]]:
        return [each.tolist() for each in trees.ends(TABLE_ROOT, entries.rowids)]

    (leaf.ends, leaf.depths), leaf.known = looked_up(), trees.changes
    for pgno in random.Random(seed).sample(interior, len(interior)):
        trees.learn(pgno, pages[pgno])
        leaf.lead_on(pgno, trees)
        assert ([leaf.ends, leaf.depths], leaf.known) == (looked_up(), trees.changes)
    assert max(leaf.depths) > 1
