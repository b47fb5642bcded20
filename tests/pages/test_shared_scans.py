"""Where a scan is in a tree that look-ups read, too; which reads are the scan's is known here, as SQLite knows it."""

from __future__ import annotations

from collections import OrderedDict
from random import Random

import pytest

from litevfs.pages.btree import LEAF_TABLE
from litevfs.pages.shared_scans import Begin, SharedScan
from litevfs.pages.watcher import Watcher
from tests.pages.test_watcher import TABLE_ROOT, in_order, indexed_pages


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[int, bytes]:
    return indexed_pages(tmp_path_factory.mktemp("shared") / "t.db", 30_000)


def leaves_of(pages: dict[int, bytes]) -> list[int]:
    """Those of the table, in order."""
    return [pgno for pgno in in_order(pages, TABLE_ROOT) if pages[pgno][0] == LEAF_TABLE]


def known(pages: dict[int, bytes], *, is_descending: bool = False, rowid: int | None = None) -> Watcher:
    """A watcher that knows the tree and has read none of its leaves."""
    watcher = Watcher(64)
    for pgno in in_order(pages, TABLE_ROOT):
        if pages[pgno][0] != LEAF_TABLE:
            watcher.learn(pgno, pages[pgno])
    watcher.hold([TABLE_ROOT], {TABLE_ROOT: Begin(is_descending, rowid)})
    return watcher


class Kept:
    """SQLite's own cache: what is in it is not read again."""

    def __init__(self, watcher: Watcher, pages: dict[int, bytes], most: int) -> None:
        self._watcher, self._pages, self._most = watcher, pages, most
        self._kept: OrderedDict[int, None] = OrderedDict()

    def read(self, pgno: int) -> None:
        """A cursor needs a page."""
        if pgno not in self._kept:
            self._watcher.before_read(pgno)
            self._watcher.after_read(pgno, self._pages[pgno])
        self._kept[pgno] = None
        self._kept.move_to_end(pgno)
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)


@pytest.mark.parametrize("is_descending", [False, True])
@pytest.mark.parametrize("kept", [8, 100])
def test_it_stays_known_however_many_leaves_are_looked_up(pages, is_descending, kept):
    rng = Random(1)
    leaves = leaves_of(pages)
    watcher = known(pages, is_descending=is_descending)
    cache = Kept(watcher, pages, kept)
    order = leaves[::-1] if is_descending else leaves
    for number, leaf in enumerate(order[:2000]):
        cache.read(leaf)
        for other in rng.choices(leaves, k=12):
            cache.read(other)
        parent, place = watcher.way_to(TABLE_ROOT)[-1]
        found = order.index(watcher.trees.interior[parent].children[place])
        assert abs(found - number) < 8


@pytest.mark.parametrize("is_descending", [False, True])
def test_it_begins_where_a_rowid_lies(pages, is_descending):
    leaves, watcher = leaves_of(pages), known(pages, is_descending=is_descending, rowid=15_000)
    parent, place = watcher.way_to(TABLE_ROOT)[-1]
    first = watcher.trees.interior[parent].children[place]
    assert 15_000 in watcher.trees.rowids_of(first)
    number = leaves.index(first)
    for leaf in leaves[number::-1][:50] if is_descending else leaves[number : number + 50]:
        watcher.before_read(leaf)
        watcher.before_read(leaves[7])  # a look-up
        assert (
            watcher.trees.interior[watcher.way_to(TABLE_ROOT)[-1][0]].children[watcher.way_to(TABLE_ROOT)[-1][1]]
            == leaf
        )


@pytest.mark.parametrize("is_descending", [False, True])
def test_the_leaves_to_come_cross_interior_pages_and_end_with_the_tree(pages, is_descending):
    leaves = leaves_of(pages)[:: -1 if is_descending else 1]
    scan = SharedScan(TABLE_ROOT, known(pages).trees, Begin(is_descending))
    assert scan.leaves_after(10_000) == leaves[1:]
    scan.note(leaves[1])
    assert scan.leaves_after(3) == leaves[2:5]


def test_another_query_begins_without_it(pages):
    watcher = known(pages)
    watcher.before_read(leaves_of(pages)[1])
    place = watcher.way_to(TABLE_ROOT)
    watcher.hold([TABLE_ROOT], {TABLE_ROOT: Begin(False)})
    assert watcher.way_to(TABLE_ROOT) == place  # the same query
    watcher.begin()
    assert watcher.way_to(TABLE_ROOT) == []
    watcher.hold([TABLE_ROOT], {TABLE_ROOT: Begin(False)})
    assert watcher.way_to(TABLE_ROOT) != place
