"""Makes B-tree pages that no database has: leaves with given entries, and interior pages with some of their children.

Pure. `btree.py` reads such pages; the caller decides their entries.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np

from litevfs.pages.btree import INTERIOR_TABLE, LEAF_INDEX, LEAF_TABLE, Int64s
from litevfs.pages.trees import MAX_ROWID, MIN_ROWID

HEADER, POINTER, CHILD, MIN_CELL = 8, 2, 4, 4
"""Bytes of a leaf's header, of a cell pointer, of a child's number in an interior cell, and of the smallest cell
(https://www.sqlite.org/fileformat2.html#b_tree_pages)."""
LONG = 9
"""Bytes of the longest varint: that of numbers from 2**56 on, and of those below 0."""
MAX_ROWS = 2048
"""More take as long to write down as a round trip."""
_COUNT, _RIGHT, _POINTERS = slice(3, 5), slice(8, 12), 12
"""On an interior page: the number of its cells, its last child, and where the pointers to the cells begin."""
RESERVED = 255
"""Bytes at the end of a page that a database may keep for extensions, at most."""
_EDGES = (0, *(1 << 7 * size for size in range(1, LONG)))
"""The first rowid whose varint has 1 byte, 2, and so on, and of those that have LONG ones from 2**56 on."""
_SHIFTS = 7 * np.arange(LONG - 2, -1, -1)
_NULL = b"\x02\x00"
"""A record of one column: the header's size, and the serial type of NULL; SQLite reads columns beyond as NULL, too
(https://www.sqlite.org/fileformat2.html#record_format)."""
_NULL_BYTES = np.frombuffer(_NULL, np.uint8)
NULL_ENTRY = b"\x03\x00\x08"
"""A record of an index: NULL, and the rowid 0."""
_LAST_ENTRY = b"\x03\x1c\x08" + b"\xff" * 8
"""A record of an index: a blob that comes after most values, and the rowid 0."""


def max_rows(page_size: int) -> int:
    """How many rowids a stand-in may have."""
    return min(MAX_ROWS, (page_size - HEADER - RESERVED) // (POINTER + 3 + 9))


def table_leaf(page_size: int, rowids: Sequence[int]) -> bytes:
    """A leaf of a table with the first of these rowids, which ascend; with the largest one of all if there is none."""
    rowids = rowids[: max_rows(page_size)] or (MAX_ROWID - 1,)
    size = _varint_size(rowids[-1])
    if _varint_size(rowids[0]) == size < LONG:  # most leaves are such
        return _leaf(page_size, LEAF_TABLE, _cells(rowids, size), [1 + size + len(_NULL)] * len(rowids))
    cells: list[bytes] = []
    sizes: list[int] = []
    ends = [0, *(bisect_left(rowids, edge) for edge in _EDGES), len(rowids)]
    for (start, end), size in zip(pairwise(ends), (LONG, *range(1, LONG), LONG), strict=True):
        cells.append(_cells(rowids[start:end], size))
        sizes += [1 + size + len(_NULL)] * (end - start)
    return _leaf(page_size, LEAF_TABLE, b"".join(cells), sizes)


def _varint_size(rowid: int) -> int:
    return LONG if rowid < 0 else min(max(1, -(-rowid.bit_length() // 7)), LONG)


def _cells(rowids: Sequence[int], size: int) -> bytes:
    """The cells of rowids that take so many bytes each; a hundredth of the time of one cell after the other."""
    if size == LONG:
        return b"".join(_cell(_NULL, _varint(rowid)) for rowid in rowids)
    values: Int64s = np.arange(rowids.start, rowids.stop) if isinstance(rowids, range) else np.array(rowids, np.int64)
    cells = np.empty((len(rowids), 1 + size + len(_NULL)), np.uint8)
    cells[:, 0] = len(_NULL)
    cells[:, 1 : 1 + size] = values[:, None] >> _SHIFTS[-size:] & 0x7F
    cells[:, 1:size] |= 0x80
    cells[:, 1 + size :] = _NULL_BYTES
    return cells.tobytes()


def max_children(page_size: int) -> int:
    """How many children an interior page of a table may have, whatever their keys are."""
    return (page_size - _POINTERS - RESERVED) // (POINTER + CHILD + LONG)


def table_interior(page_size: int, edges: Sequence[int], first_child: int) -> bytes:
    """An interior page of a table whose children, numbered from `first_child` on, begin with the rowids `edges`.

    There are two or more. The first one has all rowids before its edge, too.
    """
    keys = [_varint(edge - 1) for edge in edges[1:]]
    children = range(first_child, first_child + len(edges))
    return _interior(bytes([INTERIOR_TABLE]).ljust(page_size, b"\0"), keys, children)


def index_leaf(page_size: int, record: bytes) -> bytes:
    """A leaf of an index, or of a table WITHOUT ROWID."""
    cell = _cell(record)
    return _leaf(page_size, LEAF_INDEX, cell, [len(cell)])


def _cell(record: bytes, rowid: bytes = b"") -> bytes:
    return (_varint(len(record)) + rowid + record).ljust(MIN_CELL, b"\0")


def _leaf(page_size: int, kind: int, cells: bytes, sizes: Sequence[int]) -> bytes:
    """A leaf with these cells, of so many bytes each."""
    start = HEADER + POINTER * len(sizes)
    pointers = np.array([*accumulate(sizes[:-1], initial=start)], ">u2").tobytes()
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


def from_child_on(page: bytes, position: int) -> bytes:
    """An interior page without the children before that position.

    It has two at least, so the last one comes twice if it is left alone.
    """
    count = int.from_bytes(page[_COUNT])
    first = min(position, count - 1)
    part = bytearray(page)
    part[_COUNT] = (count - first).to_bytes(2)
    part[_POINTERS : _POINTERS + POINTER * (count - first)] = page[_pointer_at(first) : _pointer_at(count)]
    if position > first:
        cell = _cell_at(page, first)
        part[cell : cell + CHILD] = page[_RIGHT]
    return bytes(part)


def up_to_child(page: bytes, position: int) -> bytes:
    """An interior page without the children after that position; the first one comes twice if it is left alone."""
    count = int.from_bytes(page[_COUNT])
    if position >= count:
        return page
    cell = _cell_at(page, position)
    part = bytearray(page)
    part[_COUNT] = max(position, 1).to_bytes(2)
    part[_RIGHT] = page[cell : cell + CHILD]
    return bytes(part)


def two_ways(
    way: Sequence[tuple[bytes, int]], numbers: Sequence[int], rowid: int | None = None, *, is_descending: bool
) -> tuple[bytes, dict[int, bytes]]:
    """A root that leads a scan of its tree to a place in it, and look-ups to all of it; and the pages below, by number.

    The `way` to the place are interior pages, from the root on, and positions. The scan begins with the first entry or,
    if it is descending, the last one; or with a search for a rowid, which no look-up finds. `numbers` are those of no
    page of the database, as many as the way and two more: the first is that of a page, which is not given, that the
    scan comes to when it has come to the end of the tree.
    """
    end, tree, *scan = numbers
    cut_down = up_to_child if is_descending else from_child_on
    parts = [cut_down(page, position) for page, position in way]
    parts[:-1] = [_with_child(part, below, is_last=is_descending) for part, below in zip(parts, scan[1:], strict=False)]
    root = way[0][0]
    keys: Sequence[bytes]
    children: Sequence[int]
    if rowid is not None:
        keys, children = _around(rowid, scan[0], end, tree, is_descending=is_descending)
    else:
        keys = (_HIGHEST if is_descending else _LOWEST)[root[0] == INTERIOR_TABLE]
        children = (tree, end, scan[0]) if is_descending else (scan[0], end, tree)
    return _interior(root, keys, children), {tree: root} | dict(zip(scan, parts, strict=True))


def _around(
    rowid: int, scan: int, end: int, tree: int, *, is_descending: bool
) -> tuple[Sequence[bytes], Sequence[int]]:
    """Keys and children of a root that leads a search for the rowid to `scan`, beside `end`, and all others to `tree`.

    Where two children share a key, SQLite's binary search comes to the one before `end` first.
    """
    if is_descending:
        keys = rowid - 2, rowid - 1, rowid - 1, rowid
        return [*map(_varint, keys)], [tree, tree, end, scan, tree]
    return [*map(_varint, (rowid - 1, rowid, rowid))], [tree, scan, end, tree]


def _with_child(page: bytes, child: int, *, is_last: bool) -> bytes:
    """An interior page that was cut down, with another page for the child it was cut down to: its last or first one."""
    part = bytearray(page)
    cell = _cell_at(page, 0)
    is_alone = int.from_bytes(page[_COUNT]) == 1 and page[cell : cell + CHILD] == page[_RIGHT]
    if is_last or is_alone:
        part[_RIGHT] = child.to_bytes(CHILD)
    if not is_last or is_alone:
        part[cell : cell + CHILD] = child.to_bytes(CHILD)
    return bytes(part)


def _interior(like: bytes, keys: Sequence[bytes], children: Sequence[int]) -> bytes:
    """An interior page of the same kind and size with these keys, and one child more."""
    cells = [child.to_bytes(CHILD) + key for child, key in zip(children, keys, strict=False)]
    start = _POINTERS + POINTER * len(cells)
    pointers = np.array([*accumulate(map(len, cells[:-1]), initial=start)], ">u2").tobytes()
    header = like[:1] + b"\0\0" + len(cells).to_bytes(2) + start.to_bytes(2) + b"\0" + children[-1].to_bytes(CHILD)
    return b"".join([header, pointers, *cells]).ljust(len(like), b"\0")


def _pointer_at(number: int) -> int:
    return _POINTERS + POINTER * number


def _cell_at(page: bytes, number: int) -> int:
    return int.from_bytes(page[_pointer_at(number) : _pointer_at(number + 1)])


def _index_key(record: bytes) -> bytes:
    return (_varint(len(record)) + record).ljust(MIN_CELL, b"\0")


_LOWEST = {True: (_varint(MIN_ROWID), _varint(MIN_ROWID + 1)), False: (_index_key(NULL_ENTRY),) * 2}
_HIGHEST = {True: (_varint(MAX_ROWID - 2), _varint(MAX_ROWID - 1)), False: (_index_key(_LAST_ENTRY),) * 2}
"""Keys before and after all that a query looks up, by whether they are a table's."""
