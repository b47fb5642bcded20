"""What a B-tree page says: its kind, an interior page's children and keys, an index leaf's entries. Pure.

Source: https://www.sqlite.org/fileformat2.html#b_tree_pages. These are hints for reading ahead: a page that is damaged
or no B-tree page at all gives nothing, never an error.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

import numpy as np

INTERIOR_INDEX, INTERIOR_TABLE, LEAF_INDEX, LEAF_TABLE = 0x02, 0x05, 0x0A, 0x0D
_FIRST_PAGE_HEADER = 100
"""Bytes before the B-tree header on page 1."""
_INTERIOR_HEADER, _LEAF_HEADER = 12, 8
_MAX_VARINT = 9
"""Bytes."""
_FIXED_SIZES = (0, 1, 2, 3, 4, 6, 8, 8, 0, 0, 0, 0)
"""Bytes by serial type, 0 to 11: NULL, six integers, a float, the constants 0 and 1, two reserved."""

_FLOAT = 7
"""Serial type of a float, which no rowid has."""


def kind(pgno: int, page: bytes) -> int:
    """The page's first B-tree byte: one of the four kinds, or anything for another page. The page is not empty."""
    return page[_FIRST_PAGE_HEADER if pgno == 1 else 0]


@dataclass(slots=True)
class Interior:
    """An interior page: `children[i]` holds keys up to `keys[i]`, the last child the rest."""

    page: bytes
    is_table: bool
    children: list[int]
    pointers: list[int] = field(repr=False)
    _keys: list[int] | None = None

    @property
    def keys(self) -> list[int]:
        """Rowids between the children (of table pages), decoded when first asked for."""
        if self._keys is None:
            self._keys = _varints(self.page, [pointer + 4 for pointer in self.pointers])
        return self._keys

    def child_for(self, rowid: int) -> int:
        """The child of a table's interior page that holds a rowid."""
        return self.children[bisect_left(self.keys, rowid)]


def parse_interior(pgno: int, page: bytes) -> Interior | None:
    """An interior page, or None if it is none."""
    start = _FIRST_PAGE_HEADER if pgno == 1 else 0
    if page[start] not in {INTERIOR_INDEX, INTERIOR_TABLE}:
        return None
    pointers = _cell_pointers(page, start, _INTERIOR_HEADER)
    if not len(pointers) or int(pointers.max()) + 4 > len(page):
        return None
    if page[start] == INTERIOR_TABLE and not all(_has_varint(page, p + 4) for p in _near_the_end(page, pointers)):
        return None
    cells = np.frombuffer(page, np.uint8)[pointers[:, None] + np.arange(4)]
    left = cells.astype(np.uint32) @ np.array([1 << 24, 1 << 16, 1 << 8, 1], np.uint32)
    right = int.from_bytes(page[start + 8 : start + 12])
    return Interior(page, page[start] == INTERIOR_TABLE, [*left.tolist(), right], pointers.tolist())


def _near_the_end(page: bytes, pointers: np.ndarray[tuple[int], np.dtype[np.int64]]) -> list[int]:
    """Cells whose key may not lie wholly in the page."""
    near: list[int] = pointers[pointers + 4 + _MAX_VARINT > len(page)].tolist()
    return near


def _has_varint(page: bytes, position: int) -> bool:
    """Whether a varint that begins here, not far from the page's end, ends in the page."""
    return any(byte < 0x80 for byte in page[position : position + _MAX_VARINT - 1])


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """An entry of an index leaf: the first column, in its encoded form, and the rowid it leads to."""

    key: tuple[int, bytes]  # serial type and content
    rowid: int


def parse_index_entries(page: bytes) -> list[IndexEntry]:
    """The entries of an index leaf, in order; fewer if one is not understood."""
    entries: list[IndexEntry] = []
    try:
        for pointer in _cell_pointers(page, 0, _LEAF_HEADER).tolist():
            entry = _index_entry(page, pointer)
            if entry is None:
                break
            entries.append(entry)
    except (IndexError, ValueError):
        pass
    return entries


def parse_rowids(page: bytes) -> list[int]:
    """The rowids that the entries of an index leaf lead to, in order; fewer if one is not understood.

    For leaves of usual entries, with headers of less than 128 bytes; a third of the work of `parse_index_entries`.
    """
    rowids: list[int] = []
    try:
        for pointer in _cell_pointers(page, 0, _LEAF_HEADER).tolist():
            payload_size, payload = varint(page, pointer)
            end, serial_type = payload + payload_size, page[payload + page[payload] - 1]
            if page[payload] >= 0x80 or end > len(page) or not 1 <= serial_type <= 9 or serial_type == _FLOAT:
                break
            size = _FIXED_SIZES[serial_type]
            rowids.append(int.from_bytes(page[end - size : end], signed=True) if size else serial_type - 8)
    except IndexError:
        pass
    return rowids


def _cell_pointers(page: bytes, start: int, header: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    count = int.from_bytes(page[start + 3 : start + 5])
    available = (len(page) - start - header) // 2
    return np.frombuffer(page, ">u2", min(count, available), start + header).astype(np.int64)


def _index_entry(page: bytes, pointer: int) -> IndexEntry | None:
    """The entry at `pointer`; None if it overflows the page or does not end with an integer."""
    payload_size, payload = varint(page, pointer)
    if payload + payload_size > len(page):
        return None
    header_size, position = varint(page, payload)
    first_type, position = varint(page, position)
    last_type = -1
    while position < payload + header_size:
        last_type, position = varint(page, position)
    body, end = payload + header_size, payload + payload_size
    key = (first_type, page[body : body + _content_size(first_type)])
    if last_type in {8, 9}:
        return IndexEntry(key, last_type - 8)
    if not 1 <= last_type <= 6:
        return None
    return IndexEntry(key, int.from_bytes(page[end - _content_size(last_type) : end], signed=True))


def _content_size(serial_type: int) -> int:
    """Bytes of a column's content (https://www.sqlite.org/fileformat2.html#record_format)."""
    return (serial_type - 12) // 2 if serial_type >= 12 else _FIXED_SIZES[serial_type]


def _varints(page: bytes, positions: list[int]) -> list[int]:
    """The values of many varints that end in the page, as `varint` has them, in a tenth of the time."""
    content = np.frombuffer(page + bytes(_MAX_VARINT), np.uint8)
    places = np.array(positions)
    values = np.zeros(len(places), np.int64)
    goes_on = np.ones(len(places), np.bool_)
    for _ in range(_MAX_VARINT - 1):
        byte = content[places].astype(np.int64)
        values = np.where(goes_on, values << 7 | byte & 0x7F, values)
        goes_on &= byte >= 0x80
        if not goes_on.any():
            break
        places = places + 1
    else:
        values = np.where(goes_on, values << 8 | content[places], values)
    found: list[int] = values.tolist()
    return found


def varint(page: bytes, position: int) -> tuple[int, int]:
    """(value, position after it) of a big-endian varint of 1 to 9 bytes, as a signed 64-bit number."""
    value = 0
    for i in range(8):
        byte = page[position + i]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, position + i + 1
    value = value << 8 | page[position + 8]
    return value - (1 << 64) if value >= 1 << 63 else value, position + 9
