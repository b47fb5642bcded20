"""Which rows of a table can differ between two states, from the pages that differ. Knows B-trees, no SQL.

A row that differs lies on a leaf that differs, or on a leaf that only one of the two trees has; and the page above such
a leaf, or one further up, differs. So it is enough to go down to the pages that differ, by a key of each, and to read
whole only the subtrees that one state alone has. A row of which only overflow pages were written leaves its leaf
unchanged; such pages have to belong to a row that is compared anyway, else the answer is "all rows".

Source: https://www.sqlite.org/fileformat2.html, sections 1.5 to 1.7.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from litevfs.pages.btree import INTERIOR_INDEX, INTERIOR_TABLE, LEAF_INDEX, LEAF_TABLE

MAX_DEPTH = 20
"""No B-tree is deeper."""
MAX_PAGES = 1 << 24
"""Below so many pages (64 GB at 4 KiB) an overflow page begins with a 0 byte, which no B-tree page does."""
_HEADER = 100


class UnclearError(Exception):
    """The pages do not show which rows differ; all rows have to be compared."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One row on a table leaf."""

    rowid: int
    content: bytes  # of the cell, without what is on overflow pages
    overflow: int  # first overflow page; 0: none


@dataclass(slots=True)
class Side:
    """One of the two states."""

    read: Callable[[int], bytes]
    commit: int  # pages of the database
    usable: int  # bytes of a page that SQLite uses
    changed: dict[int, bytes] = field(default_factory=dict)  # pages that differ, as this state has them

    def page(self, pgno: int) -> bytes:
        """A page of this state. Raises UnclearError for one past its end."""
        if (known := self.changed.get(pgno)) is not None:
            return known
        if not 1 <= pgno <= self.commit:
            raise UnclearError(f"a pointer to page {pgno} of {self.commit}")
        return self.read(pgno)


def changed_rows(old: Side, new: Side, root: int) -> set[int]:
    """Rowids of the table with this root that may differ; every row that does is among them. Raises UnclearError."""
    trees = [_descend(side, root) for side in (old, new)]
    children = [_children(side, members) for side, members in zip((old, new), trees, strict=True)]
    cells: list[dict[int, Cell]] = []
    for side, members, mine, others in zip((old, new), trees, children, reversed(children), strict=True):
        found: dict[int, Cell] = {}
        for pgno in members:
            page = side.changed[pgno]
            if _kind(pgno, page) == LEAF_TABLE:
                found |= {cell.rowid: cell for cell in leaf_cells(pgno, page, side.usable)}
        for pgno in mine - others:  # belongs to this side's tree only
            found |= {cell.rowid: cell for cell in _all_cells(side, pgno)}
        cells.append(found)
    before, after = cells
    return {
        rowid
        for rowid in before.keys() | after.keys()
        if before.get(rowid) != after.get(rowid) or before[rowid].overflow
    }


def is_table_touched(old: Side, new: Side, root: int) -> bool:
    """Whether a page that differs belongs to the table with this root, in either state. Raises UnclearError."""
    return any(_descend(side, root) for side in (old, new))


def are_index_pages_touched(old: Side, new: Side) -> bool:
    """Whether a page of any index, or of a WITHOUT ROWID table, differs."""
    kinds = {_kind(pgno, page) for side in (old, new) for pgno, page in side.changed.items()}
    return not kinds.isdisjoint((LEAF_INDEX, INTERIOR_INDEX))


def _descend(side: Side, root: int) -> set[int]:
    """The pages that differ which belong to this tree."""
    depth = _depth(side, root)
    probes = sorted({key for pgno, page in side.changed.items() for key in _first_key(pgno, page)})
    members: set[int] = set()
    level = {root: probes}
    for left in range(depth, -1, -1):
        members |= level.keys() & side.changed.keys()
        below: dict[int, list[int]] = {}
        if left:
            for pgno, keys in level.items():
                below.update(_share(_interior(pgno, side.page(pgno)), keys))
        level = below
    return members


def _share(interior: tuple[list[int], list[int]], probes: list[int]) -> Iterator[tuple[int, list[int]]]:
    """The children that hold some of the keys, with those."""
    children, keys = interior
    start = 0
    while start < len(probes):
        place = bisect_left(keys, probes[start])
        end = bisect_left(probes, keys[place] + 1, start) if place < len(keys) else len(probes)
        yield children[place], probes[start:end]
        start = end


def _depth(side: Side, root: int) -> int:
    """Levels of interior pages above the leaves: the same everywhere in a B-tree."""
    pgno = root
    for depth in range(MAX_DEPTH):
        page = side.page(pgno)
        if _kind(pgno, page) == LEAF_TABLE:
            return depth
        pgno = _interior(pgno, page)[0][0]
    raise UnclearError("pages that point in a circle")


def _children(side: Side, members: Iterable[int]) -> set[int]:
    return {
        child
        for pgno in members
        if _kind(pgno, side.changed[pgno]) == INTERIOR_TABLE
        for child in _interior(pgno, side.changed[pgno])[0]
    }


def _all_cells(side: Side, pgno: int, depth: int = 0) -> Iterator[Cell]:
    page = side.page(pgno)
    if _kind(pgno, page) == LEAF_TABLE:
        yield from leaf_cells(pgno, page, side.usable)
        return
    if depth > MAX_DEPTH:
        raise UnclearError("pages that point in a circle")
    for child in _interior(pgno, page)[0]:
        yield from _all_cells(side, child, depth + 1)


# --- the schema -------------------------------------------------------------------------------------------------------


def table_roots(side: Side) -> dict[str, int]:
    """The root page of each table, by its name in lower case. Raises UnclearError."""
    roots = {}
    for cell in _all_cells(side, 1):
        values = _first_values(cell.content, 4)
        if values[0] == "table" and isinstance(root := values[3], int) and root:
            roots[str(values[1]).lower()] = root
    return roots


def _first_values(cell: bytes, count: int) -> list[str | int | None]:
    """The first columns of a table's row, texts and integers; None for any other value."""
    _, position = _varint(cell, 0)
    _, start = _varint(cell, position)
    header_size, position = _varint(cell, start)
    body = start + header_size
    values: list[str | int | None] = []
    while len(values) < count and position < start + header_size:
        kind, position = _varint(cell, position)
        size = _content_size(kind)
        content = cell[body : body + size]
        if len(content) < size:
            raise UnclearError("a name that continues on another page")
        body += size
        values.append(_value(kind, content))
    return values + [None] * (count - len(values))


def _content_size(kind: int) -> int:
    """Bytes of a value of a serial type."""
    return (kind - 12) // 2 if kind >= 12 else (0, 1, 2, 3, 4, 6, 8, 8, 0, 0, 0, 0)[kind]


def _value(kind: int, content: bytes) -> str | int | None:
    if kind >= 12:
        return content.decode(errors="replace") if kind % 2 else None
    if kind in (8, 9):
        return kind - 8
    return int.from_bytes(content, "big", signed=True) if 1 <= kind <= 6 else None


# --- overflow pages ---------------------------------------------------------------------------------------------------


def unexplained_overflow(old: Side, new: Side) -> bool:
    """Whether an overflow page may differ that belongs to no row on a page that differs."""
    suspects = {pgno for pgno, page in old.changed.items() if _may_overflow(pgno, page)}
    suspects &= {pgno for pgno, page in new.changed.items() if _may_overflow(pgno, page)}
    if suspects and max(old.commit, new.commit) >= MAX_PAGES:
        return True
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
    kind = _kind(pgno, page)
    if kind == LEAF_TABLE:
        yield from (cell.overflow for cell in leaf_cells(pgno, page, usable) if cell.overflow)
    elif kind in (LEAF_INDEX, INTERIOR_INDEX):
        most = (usable - 12) * 64 // 255 - 23
        skip = 4 if kind == INTERIOR_INDEX else 0
        for pointer in _pointers(pgno, page):
            size, start = _varint(page, pointer + skip)
            local = _local_size(size, most, usable)
            if local < size:
                yield int.from_bytes(page[start + local : start + local + 4], "big")


# --- questions of other modules ---------------------------------------------------------------------------------------


def is_leaf(pgno: int, page: bytes) -> bool:
    """Whether it is a leaf of a table or an index. Raises UnclearError if it is no B-tree page."""
    kind = _kind(pgno, page)
    if kind not in (LEAF_TABLE, LEAF_INDEX, INTERIOR_TABLE, INTERIOR_INDEX):
        raise UnclearError(f"page {pgno} is no page of a table")
    return kind in (LEAF_TABLE, LEAF_INDEX)


def page_children(pgno: int, page: bytes) -> list[int]:
    """The pages below an interior page, in order."""
    start = _HEADER if pgno == 1 else 0
    children = [int.from_bytes(page[pointer : pointer + 4], "big") for pointer in _pointers(pgno, page)]
    return [*children, int.from_bytes(page[start + 8 : start + 12], "big")]


def rowid_cells(pgno: int, page: bytes) -> list[int]:
    """The largest rowid below each child of a table's interior page but the last."""
    return _interior(pgno, page)[1]


def index_cells(pgno: int, page: bytes) -> list[bytes]:
    """The records on an index's interior page, as far as they are on it."""
    return [page[_varint(page, pointer + 4)[1] :] for pointer in _pointers(pgno, page)]


def record_value(record: bytes) -> tuple[int, bytes]:
    """(serial type, content) of a record's first value; no content where it continues on another page."""
    header_size, position = _varint(record, 0)
    kind, _ = _varint(record, position)
    content = record[header_size : header_size + _content_size(kind)]
    return kind, content if len(content) == _content_size(kind) else b""


# --- pages ------------------------------------------------------------------------------------------------------------


def leaf_cells(pgno: int, page: bytes, usable: int) -> list[Cell]:
    """The rows of a table leaf. Raises UnclearError for a page that is not whole."""
    cells = []
    for pointer in _pointers(pgno, page):
        size, position = _varint(page, pointer)
        rowid, start = _varint(page, position)
        local = _local_size(size, usable - 35, usable)
        content = page[pointer : start + local]
        overflow = int.from_bytes(page[start + local : start + local + 4], "big") if local < size else 0
        if start + local > len(page):
            raise UnclearError(f"a cell that leaves page {pgno}")
        cells.append(Cell(rowid, content, overflow))
    return cells


def _local_size(size: int, most: int, usable: int) -> int:
    """Bytes of a payload on the B-tree page itself."""
    if size <= most:
        return size
    least = (usable - 12) * 32 // 255 - 23
    local = least + (size - least) % (usable - 4)
    return local if local <= most else least


def _first_key(pgno: int, page: bytes) -> list[int]:
    """A key by which a table's page is found from the root; nothing for another page, or an empty one."""
    kind = _kind(pgno, page)
    if kind not in (LEAF_TABLE, INTERIOR_TABLE):
        return []
    pointers = _pointers(pgno, page)
    if not pointers:
        if kind == INTERIOR_TABLE:
            raise UnclearError(f"page {pgno} has one child and no key")
        return []
    if kind == INTERIOR_TABLE:
        return [_varint(page, pointers[0] + 4)[0]]
    return [_varint(page, _varint(page, pointers[0])[1])[0]]


def _interior(pgno: int, page: bytes) -> tuple[list[int], list[int]]:
    """(children, the largest key below each but the last). Raises UnclearError for another page."""
    if _kind(pgno, page) != INTERIOR_TABLE:
        raise UnclearError(f"page {pgno} is no page of a table")
    start = _HEADER if pgno == 1 else 0
    pointers = _pointers(pgno, page)
    children = [int.from_bytes(page[pointer : pointer + 4], "big") for pointer in pointers]
    keys = [_varint(page, pointer + 4)[0] for pointer in pointers]
    return [*children, int.from_bytes(page[start + 8 : start + 12], "big")], keys


def _pointers(pgno: int, page: bytes) -> list[int]:
    start = _HEADER if pgno == 1 else 0
    count = int.from_bytes(page[start + 3 : start + 5], "big")
    first = start + (12 if page[start] in (INTERIOR_TABLE, INTERIOR_INDEX) else 8)
    if first + 2 * count > len(page):
        raise UnclearError(f"page {pgno} has more cells than it can hold")
    return [int.from_bytes(page[first + 2 * i : first + 2 * i + 2], "big") for i in range(count)]


def _kind(pgno: int, page: bytes) -> int:
    return page[_HEADER if pgno == 1 else 0]


def _varint(page: bytes, position: int) -> tuple[int, int]:
    """(value, position after it), signed. Raises UnclearError at the end of the page."""
    try:
        value = 0
        for i in range(8):
            byte = page[position + i]
            value = value << 7 | byte & 0x7F
            if byte < 0x80:
                return value, position + i + 1
        value = value << 8 | page[position + 8]
    except IndexError:
        raise UnclearError("a number that leaves its page") from None
    return value - (1 << 64) if value >= 1 << 63 else value, position + 9
