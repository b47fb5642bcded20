"""Pages that a rehearsal gives SQLite in place of B-tree pages that are not in memory, so that it goes on. Pure.

- A table's stand-in is a leaf with the rowids that the true page may hold, and NULL in each column; if these are too
  many, an interior page above such leaves. So SQLite finds each row that an index names, and a join goes on with
  look-ups that depend on the rowid alone.
- An index's stand-in is a leaf with one entry, the one next to the true page, so it causes no new look-ups: a search
  passes it and goes on with the entry after the page, which is true as well.
- Both may be below interior pages that are stand-ins. A part of a large row leads to itself, so the row has its size.

A page that SQLite would call corrupt is avoided: SQLite would say so in the application's log.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from litevfs.ltx.format import lock_pgno
from litevfs.pages.btree import INTERIOR_INDEX, INTERIOR_KINDS, LEAF_INDEX, parse_interior_rowids, parse_rowids, varint
from litevfs.pages.made_pages import (
    CHILD,
    NULL_ENTRY,
    RESERVED,
    index_leaf,
    max_children,
    max_rows,
    table_interior,
    table_leaf,
)
from litevfs.pages.trees import MAX_DEPTH, MAX_ROWID, MIN_ROWID, KnownTrees

DENSE = 1 << 24
"""Rowids that a page has, known or not, if it may hold no more; it takes a few pages to come to one of them."""
_POINTER_MAP_ENTRY = b"\x05\0\0\0\0"
"""One of a B-tree page, and its parent: some page (https://www.sqlite.org/fileformat2.html#pointer_map_or_ptrmap_pages)."""


@dataclass(frozen=True, slots=True)
class Tree:
    """A B-tree that a statement reads."""

    root: int
    is_table: bool  # else an index, or a table WITHOUT ROWID
    is_scanned: bool  # not only looked up by single keys


@dataclass(frozen=True, slots=True)
class _Split:
    """The pages below a stand-in that is an interior page, numbered one after the other."""

    tree: Tree
    edges: Sequence[int]  # the first rowid of each
    end: int  # the rowid after the last one


class StandIns:
    """Makes them, from what the pages read so far say of those that are missing."""

    def __init__(
        self,
        page_size: int,
        trees: Mapping[int, Tree],
        peek: Callable[[int], bytes | None],
        numbers: range,
        dense: int = DENSE,
    ) -> None:
        """`trees` by root page; `peek` gives a page's bytes if they are in memory.

        `numbers` are those of no page of the database, for pages below stand-ins. A page that may hold no more rowids
        than `dense` has all of them.
        """
        self._page_size = page_size
        self._peek = peek
        self._numbers = numbers
        self._dense = dense
        self._firsts: list[int] = []  # numbers of the first pages below each interior stand-in
        self._splits: list[_Split] = []  # those stand-ins
        self._tree_of = dict(trees)  # by interior page or root
        self._known = KnownTrees()
        self._index_pages: dict[int, bool] = {}  # those read, and whether their rowids are among those named
        self._named: list[list[int]] = []  # ascending rowids; each list is less than half as long as the one before

    def tree_of(self, pgno: int) -> Tree | None:
        """The tree that a page belongs to; None for pages that no interior page leads to."""
        tree = self._tree_of.get(pgno)
        if tree is None and (place := self._known.place(pgno)) is not None:
            tree = self._tree_of.get(place[0])
        return tree

    def is_next_to(self, pgno: int, other: int) -> bool:
        """Whether two pages are neighbours below one interior page."""
        parent, position = self._known.place(pgno) or (0, 0)
        return self._known.place(other) in {(parent, position - 1), (parent, position + 1)}

    def leaves_of(self, root: int) -> list[int]:
        """The leaves of a tree, in order; or, where interior pages of it are not known, those.

        A page below which nothing is known counts as a leaf where its neighbours do.
        """
        level = [root]
        for _ in range(MAX_DEPTH):
            known = [self._known.interior.get(pgno) for pgno in level]
            if not all(known):
                return [pgno for pgno, interior in zip(level, known, strict=True) if interior is None]
            level = [child for interior in known if interior for child in interior.children]
        return []

    def leaves_after(self, pgno: int, count: int, *, backwards: bool) -> list[int]:
        """See `KnownTrees.leaves_after`."""
        return self._known.leaves_after(pgno, count, backwards=backwards)

    def learn(self, pgno: int, page: bytes) -> None:
        """A true page is read."""
        tree = self.tree_of(pgno)
        if tree is None:
            return
        if page[0] in {LEAF_INDEX, INTERIOR_INDEX}:
            self._index_pages.setdefault(pgno, False)
        if page[0] in INTERIOR_KINDS and pgno not in self._known.interior:
            self._known.learn(pgno, page)
            self._tree_of[pgno] = tree

    def make(self, pgno: int) -> bytes:
        """A page that stands in for one of a known tree, for a part of a large row, or for a pointer map."""
        tree = self.tree_of(pgno)
        if tree is None:
            entries = _POINTER_MAP_ENTRY * (self._page_size // len(_POINTER_MAP_ENTRY))
            return (pgno.to_bytes(4) + b"\0" + entries)[: self._page_size]
        if tree.is_table:
            return self._table_page(tree, *self._known.bounds(pgno))
        return index_leaf(self._page_size, self._entry_beside(pgno))

    def begin(self) -> None:
        """Another rehearsal begins, in which SQLite reads all pages once more."""
        self._firsts.clear()
        self._splits.clear()

    def made(self, pgno: int) -> tuple[Tree, bytes] | None:
        """A page below a stand-in, with its tree; None if it is none."""
        place = bisect_right(self._firsts, pgno) - 1
        if place < 0 or pgno - self._firsts[place] >= len(self._splits[place].edges):
            return None
        split, child = self._splits[place], pgno - self._firsts[place]
        edges = split.edges
        upper = edges[child + 1] if child + 1 < len(edges) else split.end
        return split.tree, self._table_page(split.tree, edges[child], upper)

    def _table_page(self, tree: Tree, lower: int | None, upper: int | None) -> bytes:
        """A leaf with rowids that a page of a table may hold, or an interior page where these are too many for one."""
        rowids = self._rowids(lower, upper)
        edges = self._edges(tree, lower, upper, rowids)
        first = self._numbers_for(len(edges))
        if len(edges) < 2 or not first:
            return table_leaf(self._page_size, rowids)
        self._firsts.append(first)
        self._splits.append(_Split(tree, edges, MAX_ROWID if upper is None else upper))
        return table_interior(self._page_size, edges, first)

    def _edges(self, tree: Tree, lower: int | None, upper: int | None, rowids: Sequence[int]) -> Sequence[int]:
        """The first rowids of the pages below an interior page between these; none where a leaf does.

        All rowids between are covered if that may be, and as many at an end of the table; beyond that, those named so
        far. There are no more than on a leaf at an end of a table where a scan would find them, too.
        """
        if lower is not None and upper is not None:
            if upper - lower <= self._dense:
                return range(lower, upper, self._step(upper - lower))
            step = self._step(len(rowids))
            return [lower, *rowids[step::step]]
        if tree.is_scanned or (lower is None and upper is None):
            return ()
        if lower is not None:
            return range(lower, min(lower + self._dense, MAX_ROWID), self._step(self._dense))
        first = max(0, upper - self._dense) if upper else 0
        return [MIN_ROWID, *range(first, upper, self._step(upper - first))] if upper and upper > 0 else ()

    def _step(self, rowids: int) -> int:
        """How many of so many rowids go to each of the pages below an interior one."""
        return max(max_rows(self._page_size), -(-rowids // (max_children(self._page_size) - 1)))

    def _numbers_for(self, count: int) -> int:
        """The first of so many numbers of no page; 0 if there are none left."""
        first, numbers = self._numbers.start, self._numbers
        if self._firsts:
            first = self._firsts[-1] + len(self._splits[-1].edges)
        lock = lock_pgno(self._page_size)
        if first <= lock < first + count:
            first = lock + 1
        return first if first + count <= numbers.stop else 0

    def _entry_beside(self, pgno: int) -> bytes:
        """The record of the last entry before a page of an index, or of the first after it; NULL if none is known."""
        parent, position = self._known.place(pgno) or (0, 0)
        interior = self._known.interior.get(parent)
        pointers = () if interior is None else interior.pointers[max(0, position - 1) : position + 1]
        largest = (self._page_size - RESERVED - 12) * 64 // 255 - 23  # the rest lies on other pages
        for pointer in pointers:
            assert interior is not None
            size, start = varint(interior.page, pointer + CHILD)
            record = interior.page[start : start + size]
            if len(record) == size <= largest:
                return record
        return NULL_ENTRY

    def _rowids(self, lower: int | None, upper: int | None) -> Sequence[int]:
        """Rowids of a table from `lower` on and below `upper`, if that is known: all if these are not too many.

        Else those of them that index pages name; at an end of the table, as many more as a leaf has room for.
        """
        most = max_rows(self._page_size)
        if lower is not None and upper is not None and upper - lower <= self._dense:
            return range(lower, upper)
        rowids = self._named_within(MIN_ROWID if lower is None else lower, MAX_ROWID if upper is None else upper)
        if lower is None or upper is None:
            first = lower if lower is not None else 0 if upper is None else max(0, upper - most)
            room = max(0, most - len(rowids))
            rowids.update(range(first, min(first + room, MAX_ROWID if upper is None else upper)))
        return sorted(rowids)

    def _named_within(self, lower: int, upper: int) -> set[int]:
        """The rowids from `lower` on and below `upper` that index pages name."""
        for pgno, is_named in self._index_pages.items():
            if not is_named and (page := self._peek(pgno)):
                self._index_pages[pgno] = True
                self._name(parse_rowids(page) if page[0] == LEAF_INDEX else parse_interior_rowids(page))
        found: set[int] = set()
        for rowids in self._named:
            found.update(rowids[bisect_left(rowids, lower) : bisect_left(rowids, upper)])
        return found

    def _name(self, rowids: list[int]) -> None:
        named = self._named
        named.append(sorted(rowids))
        while len(named) > 1 and len(named[-2]) <= 2 * len(named[-1]):
            named[-2:] = [sorted(named[-2] + named[-1])]
