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
    IndexRecord,
    Side,
    UnclearError,
    cell_pointers,
    depth_of,
    interior,
    leaf_cells,
    page_kind,
    record_columns,
    varint,
    whole_record,
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


def encoding_of(side: Side) -> str:
    """The encoding of the database's texts, as `bytes.decode` calls it."""
    return {2: "utf-16-le", 3: "utf-16-be"}.get(int.from_bytes(side.page(1)[56:60], "big"), "utf-8")


def table_roots(side: Side) -> dict[str, int]:
    """The root page of each table, by its name in lower case. Raises UnclearError."""
    return {name: root for name, root, _ in _tables(side)}


def table_sql(side: Side, name: str) -> str | None:
    """The statement that makes the table of this name, which is in lower case. Raises UnclearError."""
    for known, _, cell in _tables(side):
        if known == name:
            size, position = varint(cell.content, 0)
            _, start = varint(cell.content, position)
            record = whole_record(side, IndexRecord(size, cell.content[start:], cell.overflow))
            sql = _values(record, 5, encoding_of(side))[4]
            return sql if isinstance(sql, str) else None
    return None


def schema_names(side: Side) -> list[str]:
    """The names of the tables, virtual ones too, and of the views. Raises UnclearError."""
    return [str(values[1]) for values, _ in _schema(side) if values[0] in ("table", "view")]


def _tables(side: Side) -> Iterator[tuple[str, int, Cell]]:
    """(name in lower case, root page, row of the schema) of each table that has pages."""
    for values, cell in _schema(side):
        if values[0] == "table" and isinstance(root := values[3], int) and root:
            yield str(values[1]).lower(), root, cell


def _schema(side: Side) -> Iterator[tuple[list[str | int | None], Cell]]:
    """(type, name, table's name and root page; the row) of each row of the schema."""
    encoding = encoding_of(side)
    for cell in _all_cells(side, 1):
        _, position = varint(cell.content, 0)
        _, start = varint(cell.content, position)
        yield _values(cell.content[start:], 4, encoding), cell


def _values(record: bytes, count: int, encoding: str) -> list[str | int | None]:
    """The first columns of a record, texts and integers; None for any other value."""
    values = [_value(*column, encoding) for column in record_columns(record, count)]
    return values + [None] * (count - len(values))


def _value(kind: int, content: bytes, encoding: str) -> str | int | None:
    if kind >= 12:
        return content.decode(encoding, errors="replace") if kind % 2 else None
    if kind in (8, 9):
        return kind - 8
    return int.from_bytes(content, "big", signed=True) if 1 <= kind <= 6 else None
