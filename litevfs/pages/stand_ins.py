"""Pages that stand in for B-tree pages which are not in memory, so that SQLite can go on without them. Pure.

A table's stand-in is a leaf with the rowids that the true page may hold, and NULL in each column. So a row that an
index names is found, as it has to be, and a join goes on with what hangs on the rowid alone. An index's stand-in is a
leaf with one entry, the one before the page, so nothing new hangs on it: a search passes it and goes on with the entry
after the page, which is a true one, too. Both stand on interior pages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice

import numpy as np

from litevfs.pages.btree import INTERIOR_INDEX, INTERIOR_TABLE, LEAF_INDEX, LEAF_TABLE, parse_rowids, varint
from litevfs.pages.trees import MAX_ROWID, MIN_ROWID, KnownTrees

HEADER, POINTER, CHILD, MIN_CELL = 8, 2, 4, 4
"""Bytes of a leaf's header, of a cell pointer, of a child's number in an interior cell, and of the smallest cell
(https://www.sqlite.org/fileformat2.html#b_tree_pages)."""
LONG = 9
"""Bytes of the longest varint: that of numbers from 2**56 on, and of those below 0."""
MAX_ROWS = 2048
"""More take as long to write down as a round trip."""
_RESERVED = 255
"""Bytes at the end of a page that a database may keep for extensions, at most."""
_NULL = b"\x02\x00"
"""A record of one column: the header's size, and the serial type of NULL; SQLite reads columns beyond as NULL, too
(https://www.sqlite.org/fileformat2.html#record_format)."""


@dataclass(frozen=True, slots=True)
class Tree:
    """A B-tree that a statement reads."""

    root: int
    is_table: bool  # else an index, or a table WITHOUT ROWID
    is_scanned: bool  # not only looked up by single keys


class StandIns:
    """Makes them, from what the pages read so far say of those that are missing."""

    def __init__(self, page_size: int, trees: Mapping[int, Tree], peek: Callable[[int], bytes | None]) -> None:
        """`trees` by root page; `peek` gives a page's bytes if they are in memory."""
        self._page_size = page_size
        self._peek = peek
        self._tree_of = dict(trees)  # by page
        self._known = KnownTrees()
        self._index_leaves: dict[int, list[int] | None] = {}  # those read, and their rowids if these were needed

    def tree_of(self, pgno: int) -> Tree | None:
        """The tree that a page belongs to; None for pages that no interior page leads to."""
        return self._tree_of.get(pgno)

    def is_next_to(self, pgno: int, other: int) -> bool:
        """Whether two pages are neighbours below one interior page."""
        parent, position = self._known.place(pgno) or (0, 0)
        return self._known.place(other) in {(parent, position - 1), (parent, position + 1)}

    def learn(self, pgno: int, page: bytes) -> None:
        """A true page is read."""
        tree = self._tree_of.get(pgno)
        if tree is None:
            return
        if page[0] == LEAF_INDEX:
            self._index_leaves.setdefault(pgno, None)
        elif page[0] in {INTERIOR_INDEX, INTERIOR_TABLE} and pgno not in self._known.interior:
            self._known.learn(pgno, page)
            if (interior := self._known.interior.get(pgno)) is not None:
                self._tree_of.update(dict.fromkeys(interior.children, tree))

    def make(self, pgno: int) -> bytes:
        """A page that stands in for one of a known tree, or for a part of a large row, which then ends there."""
        tree = self._tree_of.get(pgno)
        if tree is None:
            return bytes(self._page_size)
        if tree.is_table:
            return table_leaf(self._page_size, self._rowids(pgno))
        return index_leaf(self._page_size, self._entry_before(pgno))

    def _entry_before(self, pgno: int) -> bytes:
        """The record of the last entry before a page of an index; of NULL if it is not known."""
        parent, position = self._known.place(pgno) or (0, 0)
        interior = self._known.interior.get(parent)
        if interior is None or not position:
            return _NULL
        size, start = varint(interior.page, interior.pointers[position - 1] + CHILD)
        record = interior.page[start : start + size]
        largest = (self._page_size - _RESERVED - 12) * 64 // 255 - 23  # the rest lies on other pages
        return record if len(record) == size <= largest else _NULL

    def _rowids(self, pgno: int) -> Iterable[int]:
        """Rowids that a page of a table may hold: all between those of its neighbours if these are not too many.

        Else those of them that index leaves name; at an end of the table, as many more as there is room for.
        """
        lower, upper = self._known.bounds(pgno)
        most = max_rows(self._page_size)
        if lower is not None and upper is not None and upper - lower <= most:
            return range(lower, upper)
        rowids = self._named(MIN_ROWID if lower is None else lower, MAX_ROWID if upper is None else upper)
        if lower is None or upper is None:
            first = lower if lower is not None else 0 if upper is None else max(0, upper - most)
            room = max(0, most - len(rowids))
            rowids.update(range(first, first + room if upper is None else min(first + room, upper)))
        return sorted(rowids)

    def _named(self, lower: int, upper: int) -> set[int]:
        """The rowids from `lower` on and below `upper` that index leaves name."""
        named: set[int] = set()
        for leaf, rowids in self._index_leaves.items():
            if rowids is None and (page := self._peek(leaf)):
                self._index_leaves[leaf] = rowids = parse_rowids(page)
            named.update(rowid for rowid in rowids or () if lower <= rowid < upper)
        return named


def max_rows(page_size: int) -> int:
    """How many rowids a stand-in may have."""
    return min(MAX_ROWS, (page_size - HEADER - _RESERVED) // (POINTER + 3 + 9))


def table_leaf(page_size: int, rowids: Iterable[int]) -> bytes:
    """A leaf of a table with the first of these rowids, which ascend; with the largest one of all if there is none."""
    values = np.fromiter(islice(rowids, max_rows(page_size)), np.int64)
    if not len(values):
        values = np.array([(1 << 63) - 1])
    cells: list[bytes] = []
    sizes: list[int] = []
    ends = np.searchsorted(values, [0, *(1 << 7 * size for size in range(1, LONG)), np.iinfo(np.int64).max], "left")
    ends[-1] = len(values)
    start = 0
    for size, end in zip((LONG, *range(1, LONG), LONG), ends.tolist(), strict=True):
        part = values[start:end]
        if len(part):
            made = [_cell(_NULL, _varint(rowid)) for rowid in part.tolist()] if size == LONG else [_cells(part, size)]
            cells += made
            sizes += [1 + size + len(_NULL)] * len(part)
        start = end
    return _leaf(page_size, LEAF_TABLE, b"".join(cells), sizes)


def _cells(rowids: np.ndarray[tuple[int], np.dtype[np.int64]], size: int) -> bytes:
    """The cells of rowids that take so many bytes each; a hundredth of the time of one cell after the other."""
    cells = np.zeros((len(rowids), 1 + size + len(_NULL)), np.uint8)
    cells[:, 0] = len(_NULL)
    cells[:, 1 : 1 + size] = rowids[:, None] >> 7 * np.arange(size - 1, -1, -1) & 0x7F
    cells[:, 1:size] |= 0x80
    cells[:, 1 + size :] = np.frombuffer(_NULL, np.uint8)
    return cells.tobytes()


def index_leaf(page_size: int, record: bytes) -> bytes:
    """A leaf of an index, or of a table WITHOUT ROWID."""
    cell = _cell(record)
    return _leaf(page_size, LEAF_INDEX, cell, [len(cell)])


def _cell(record: bytes, rowid: bytes = b"") -> bytes:
    return (_varint(len(record)) + rowid + record).ljust(MIN_CELL, b"\0")


def _leaf(page_size: int, kind: int, cells: bytes, sizes: list[int]) -> bytes:
    start = HEADER + POINTER * len(sizes)
    pointers = (start + np.cumsum([0, *sizes[:-1]])).astype(">u2").tobytes()
    header = bytes([kind, 0, 0]) + len(sizes).to_bytes(2) + start.to_bytes(2) + b"\0"
    return b"".join([header, pointers, cells]).ljust(page_size, b"\0")


def _varint(number: int) -> bytes:
    """A signed 64-bit number in SQLite's form: 1 to 9 bytes, big-endian, the last of 9 with 8 bits."""
    value = number & (1 << 64) - 1
    if value < 0x80:
        return bytes([value])
    if value >> 56:
        return bytes(value >> shift & 0x7F | 0x80 for shift in range(57, 7, -7)) + bytes([value & 0xFF])
    shifts = range((value.bit_length() - 1) // 7 * 7, 0, -7)
    return bytes(value >> shift & 0x7F | 0x80 for shift in shifts) + bytes([value & 0x7F])
