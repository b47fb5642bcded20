"""Which rows of a table can differ between two states, from the pages that differ. Knows B-trees, no SQL.

A row that differs lies on a leaf that differs, or on a leaf that only one of the two trees has; and the page above such
a leaf, or one further up, differs. So it is enough to go down to the pages that differ, by a key of each, and to read
whole only the subtrees that one state alone has. A row of which only overflow pages were written leaves its leaf
unchanged; such pages have to belong to a row that is compared anyway, else the answer is "all rows".

Tables with rowids; `index_trees` is about WITHOUT ROWID tables.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator

from litevfs.operations.tree_pages import (
    INTERIOR_TABLE,
    LEAF_TABLE,
    MAX_DEPTH,
    Cell,
    Side,
    UnclearError,
    cell_pointers,
    depth_of,
    interior,
    leaf_cells,
    page_kind,
    record_columns,
    varint,
)


def changed_rows(old: Side, new: Side, root: int) -> set[int]:
    """Rowids of the table with this root that may differ; every row that does is among them. Raises UnclearError."""
    trees = [_descend(side, root) for side in (old, new)]
    children = [_children(side, members) for side, members in zip((old, new), trees, strict=True)]
    cells: list[dict[int, Cell]] = []
    for side, members, mine, others in zip((old, new), trees, children, reversed(children), strict=True):
        found: dict[int, Cell] = {}
        for pgno in members:
            page = side.changed[pgno]
            if page_kind(pgno, page) == LEAF_TABLE:
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


def _descend(side: Side, root: int) -> set[int]:
    """The pages that differ which belong to this tree."""
    depth = depth_of(side, root)
    probes = sorted({key for pgno, page in side.changed.items() for key in _first_key(pgno, page)})
    members: set[int] = set()
    level = {root: probes}
    for left in range(depth, -1, -1):
        members |= level.keys() & side.changed.keys()
        below: dict[int, list[int]] = {}
        if left:
            side.announce(level)
            for pgno, keys in level.items():
                below.update(_share(interior(pgno, side.page(pgno)), keys))
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


def _children(side: Side, members: Iterable[int]) -> set[int]:
    return {
        child
        for pgno in members
        if page_kind(pgno, side.changed[pgno]) == INTERIOR_TABLE
        for child in interior(pgno, side.changed[pgno])[0]
    }


def _all_cells(side: Side, pgno: int, depth: int = 0) -> Iterator[Cell]:
    page = side.page(pgno)
    if page_kind(pgno, page) == LEAF_TABLE:
        yield from leaf_cells(pgno, page, side.usable)
        return
    if depth > MAX_DEPTH:
        raise UnclearError("pages that point in a circle")
    for child in interior(pgno, page)[0]:
        yield from _all_cells(side, child, depth + 1)


def _first_key(pgno: int, page: bytes) -> list[int]:
    """A key by which a table's page is found from the root; nothing for another page, or an empty one."""
    kind = page_kind(pgno, page)
    if kind not in (LEAF_TABLE, INTERIOR_TABLE):
        return []
    pointers = cell_pointers(pgno, page)
    if not pointers:
        if kind == INTERIOR_TABLE:
            raise UnclearError(f"page {pgno} has one child and no key")
        return []
    if kind == INTERIOR_TABLE:
        return [varint(page, pointers[0] + 4)[0]]
    return [varint(page, varint(page, pointers[0])[1])[0]]


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
    _, position = varint(cell, 0)
    _, start = varint(cell, position)
    values = [_value(*column) for column in record_columns(cell[start:], count)]
    return values + [None] * (count - len(values))


def _value(kind: int, content: bytes) -> str | int | None:
    if kind >= 12:
        return content.decode(errors="replace") if kind % 2 else None
    if kind in (8, 9):
        return kind - 8
    return int.from_bytes(content, "big", signed=True) if 1 <= kind <= 6 else None
