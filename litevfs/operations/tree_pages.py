"""The pages of B-trees in two states of a database: cells, children, overflow chains. Raises what it cannot explain.

Unlike `pages.btree`, whose answers are hints for reading ahead, these decide which rows are compared: a page that does
not fit is an UnclearError, and then all rows are.

Source: https://www.sqlite.org/fileformat2.html, sections 1.5 to 1.7.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from litevfs.pages import btree
from litevfs.pages.btree import INTERIOR_INDEX as INTERIOR_INDEX
from litevfs.pages.btree import INTERIOR_TABLE as INTERIOR_TABLE
from litevfs.pages.btree import LEAF_INDEX as LEAF_INDEX
from litevfs.pages.btree import LEAF_TABLE as LEAF_TABLE
from litevfs.pages.trees import MAX_DEPTH as MAX_DEPTH

MAX_PAGES = 1 << 25
"""Below so many pages (128 GB at 4 KiB) an overflow page begins with a 0 or a 1, which no B-tree page does."""
_HEADER = 100


class UnclearError(Exception):
    """The pages do not show which rows differ; all rows have to be compared."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One row on a table leaf."""

    rowid: int
    content: bytes  # of the cell, without what is on overflow pages
    overflow: int  # first overflow page; 0: none


@dataclass(frozen=True, slots=True)
class IndexRecord:
    """One entry of an index, or one row of a WITHOUT ROWID table."""

    size: int  # bytes of the whole record
    content: bytes  # without what is on overflow pages
    overflow: int  # first overflow page; 0: none


@dataclass(slots=True)
class Side:
    """One of the two states."""

    read: Callable[[int], bytes]
    start_reading: Callable[[list[int]], None]  # of pages that are read next
    commit: int  # pages of the database
    usable: int  # bytes of a page that SQLite uses
    changed: dict[int, bytes] = field(default_factory=dict)  # pages that differ, as this state has them

    def announce(self, pgnos: Iterable[int]) -> None:
        """Start reading pages of this state that are needed next."""
        self.start_reading([pgno for pgno in pgnos if 1 <= pgno <= self.commit and pgno not in self.changed])

    def page(self, pgno: int) -> bytes:
        """A page of this state. Raises UnclearError for one past its end."""
        if (known := self.changed.get(pgno)) is not None:
            return known
        if not 1 <= pgno <= self.commit:
            raise UnclearError(f"a pointer to page {pgno} of {self.commit}")
        return self.read(pgno)


# --- pages ------------------------------------------------------------------------------------------------------------


def leaf_cells(pgno: int, page: bytes, usable: int) -> list[Cell]:
    """The rows of a table leaf. Raises UnclearError for a page that is not whole."""
    cells = []
    for pointer in cell_pointers(pgno, page):
        size, position = varint(page, pointer)
        rowid, start = varint(page, position)
        local = local_size(size, usable - 35, usable)
        content = page[pointer : start + local]
        overflow = int.from_bytes(page[start + local : start + local + 4], "big") if local < size else 0
        if start + local > len(page):
            raise UnclearError(f"a cell that leaves page {pgno}")
        cells.append(Cell(rowid, content, overflow))
    return cells


def index_records(pgno: int, page: bytes, usable: int) -> list[IndexRecord]:
    """The records on a leaf or an interior page of an index. Raises UnclearError for a page that is not whole."""
    kind = page_kind(pgno, page)
    if kind not in (LEAF_INDEX, INTERIOR_INDEX):
        raise UnclearError(f"page {pgno} is no page of an index")
    records = []
    for pointer in cell_pointers(pgno, page):
        size, start = varint(page, pointer + 4 if kind == INTERIOR_INDEX else pointer)
        local = local_size(size, (usable - 12) * 64 // 255 - 23, usable)
        if start + local > len(page):
            raise UnclearError(f"a cell that leaves page {pgno}")
        overflow = int.from_bytes(page[start + local : start + local + 4], "big") if local < size else 0
        records.append(IndexRecord(size, page[start : start + local], overflow))
    return records


def local_size(size: int, most: int, usable: int) -> int:
    """Bytes of a payload on the B-tree page itself."""
    if size <= most:
        return size
    least = (usable - 12) * 32 // 255 - 23
    local = least + (size - least) % (usable - 4)
    return local if local <= most else least


def interior(pgno: int, page: bytes) -> tuple[list[int], list[int]]:
    """(children, the largest key below each but the last). Raises UnclearError for another page."""
    if page_kind(pgno, page) != INTERIOR_TABLE:
        raise UnclearError(f"page {pgno} is no page of a table")
    start = _HEADER if pgno == 1 else 0
    pointers = cell_pointers(pgno, page)
    children = [int.from_bytes(page[pointer : pointer + 4], "big") for pointer in pointers]
    keys = [varint(page, pointer + 4)[0] for pointer in pointers]
    return [*children, int.from_bytes(page[start + 8 : start + 12], "big")], keys


def cell_pointers(pgno: int, page: bytes) -> list[int]:
    """Where the cells begin, in the order of their keys. Raises UnclearError for a page that is not whole."""
    start = _HEADER if pgno == 1 else 0
    count = int.from_bytes(page[start + 3 : start + 5], "big")
    first = start + (12 if page[start] in (INTERIOR_TABLE, INTERIOR_INDEX) else 8)
    if first + 2 * count > len(page):
        raise UnclearError(f"page {pgno} has more cells than it can hold")
    return [int.from_bytes(page[first + 2 * i : first + 2 * i + 2], "big") for i in range(count)]


def page_kind(pgno: int, page: bytes) -> int:
    """One of the four kinds of B-tree pages, or anything for another page."""
    return page[_HEADER if pgno == 1 else 0]


def varint(page: bytes, position: int) -> tuple[int, int]:
    """See `btree.varint`. Raises UnclearError at the end of the page."""
    try:
        return btree.varint(page, position)
    except IndexError:
        raise UnclearError("a number that leaves its page") from None


def content_size(kind: int) -> int:
    """Bytes of a value of a serial type."""
    return (kind - 12) // 2 if kind >= 12 else (0, 1, 2, 3, 4, 6, 8, 8, 0, 0, 0, 0)[kind]


def depth_of(side: Side, root: int) -> int:
    """Levels of interior pages above the leaves: the same everywhere in a B-tree."""
    pgno = root
    for depth in range(MAX_DEPTH):
        side.announce([pgno])
        page = side.page(pgno)
        if is_leaf(pgno, page):
            return depth
        pgno = page_children(pgno, page)[0]
    raise UnclearError("pages that point in a circle")


def are_index_pages_touched(old: Side, new: Side) -> bool:
    """Whether a page of any index, or of a WITHOUT ROWID table, differs."""
    kinds = {page_kind(pgno, page) for side in (old, new) for pgno, page in side.changed.items()}
    return not kinds.isdisjoint((LEAF_INDEX, INTERIOR_INDEX))


# --- records ----------------------------------------------------------------------------------------------------------


def whole_record(side: Side, record: IndexRecord) -> bytes:
    """A record with what is on its overflow pages. Raises UnclearError for a chain that ends early."""
    parts, left, pgno = [record.content], record.size - len(record.content), record.overflow
    while left > 0:
        if not pgno:
            raise UnclearError("a record that ends early")
        page = side.page(pgno)
        parts.append(page[4 : min(4 + left, side.usable)])
        left -= len(parts[-1])
        pgno = int.from_bytes(page[:4], "big")
    return b"".join(parts)


def record_columns(record: bytes, count: int) -> list[tuple[int, bytes]]:
    """(serial type, content) of the first columns, fewer of a record that has fewer.

    Raises UnclearError for a record that is not whole, and continues on another page.
    """
    header_size, position = varint(record, 0)
    start, columns = header_size, list[tuple[int, bytes]]()
    while len(columns) < count and position < header_size:
        kind, position = varint(record, position)
        content = record[start : start + content_size(kind)]
        if len(content) < content_size(kind):
            raise UnclearError("a value that continues on another page")
        start += len(content)
        columns.append((kind, content))
    return columns


# --- overflow pages ---------------------------------------------------------------------------------------------------


def unexplained_overflow(old: Side, new: Side) -> bool:
    """Whether an overflow page may differ that belongs to no row on a page that differs."""
    if max(old.commit, new.commit) >= MAX_PAGES:
        return True
    suspects = {pgno for pgno, page in old.changed.items() if _may_overflow(pgno, page)}
    suspects &= {pgno for pgno, page in new.changed.items() if _may_overflow(pgno, page)}
    for side in (old, new):
        if suspects:
            suspects -= _free_pages(side)
        for pgno, page in side.changed.items():
            if not suspects:
                return False
            for first in _overflow_of(pgno, page, side.usable):
                _follow_chain(side, first, suspects)
    return bool(suspects)


def _may_overflow(pgno: int, page: bytes) -> bool:
    return pgno != 1 and page[0] < INTERIOR_INDEX


def _follow_chain(side: Side, pgno: int, suspects: set[int]) -> None:
    for _ in range(side.commit):
        if not pgno or not suspects:
            return
        suspects.discard(pgno)
        pgno = int.from_bytes(side.page(pgno)[:4], "big")


def _free_pages(side: Side) -> set[int]:
    """The pages of the freelist."""
    free: set[int] = set()
    trunk = int.from_bytes(side.page(1)[32:36], "big")
    while trunk and trunk not in free:
        free.add(trunk)
        page = side.page(trunk)
        count = min(int.from_bytes(page[4:8], "big"), len(page) // 4 - 2)
        free |= {int.from_bytes(page[8 + 4 * i : 12 + 4 * i], "big") for i in range(count)}
        trunk = int.from_bytes(page[:4], "big")
    return free


def _overflow_of(pgno: int, page: bytes, usable: int) -> Iterator[int]:
    """First overflow pages of a B-tree page's cells."""
    kind = page_kind(pgno, page)
    if kind == LEAF_TABLE:
        yield from (cell.overflow for cell in leaf_cells(pgno, page, usable) if cell.overflow)
    elif kind in (LEAF_INDEX, INTERIOR_INDEX):
        yield from (record.overflow for record in index_records(pgno, page, usable) if record.overflow)


# --- questions of other modules ---------------------------------------------------------------------------------------


def is_leaf(pgno: int, page: bytes) -> bool:
    """Whether it is a leaf of a table or an index. Raises UnclearError if it is no B-tree page."""
    kind = page_kind(pgno, page)
    if kind not in (LEAF_TABLE, LEAF_INDEX, INTERIOR_TABLE, INTERIOR_INDEX):
        raise UnclearError(f"page {pgno} is no page of a table")
    return kind in (LEAF_TABLE, LEAF_INDEX)


def page_children(pgno: int, page: bytes) -> list[int]:
    """The pages below an interior page, in order."""
    start = _HEADER if pgno == 1 else 0
    children = [int.from_bytes(page[pointer : pointer + 4], "big") for pointer in cell_pointers(pgno, page)]
    return [*children, int.from_bytes(page[start + 8 : start + 12], "big")]


def rowid_cells(pgno: int, page: bytes) -> list[int]:
    """The largest rowid below each child of a table's interior page but the last."""
    return interior(pgno, page)[1]


def index_cells(pgno: int, page: bytes) -> list[bytes]:
    """The records on an index's interior page, as far as they are on it."""
    return [page[varint(page, pointer + 4)[1] :] for pointer in cell_pointers(pgno, page)]


def record_value(record: bytes) -> tuple[int, bytes]:
    """(serial type, content) of a record's first value; no content where it continues on another page."""
    header_size, position = varint(record, 0)
    kind, _ = varint(record, position)
    content = record[header_size : header_size + content_size(kind)]
    return kind, content if len(content) == content_size(kind) else b""
