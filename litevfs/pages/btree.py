"""What a B-tree page says: its kind, an interior page's children and keys, an index leaf's entries. Pure.

Source: https://www.sqlite.org/fileformat2.html#b_tree_pages. These are hints for reading ahead: a page that is damaged
or no B-tree page at all gives nothing, never an error.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, overload
from weakref import WeakValueDictionary

import numpy as np

INTERIOR_INDEX, INTERIOR_TABLE, LEAF_INDEX, LEAF_TABLE = 0x02, 0x05, 0x0A, 0x0D
INTERIOR_KINDS = frozenset({INTERIOR_INDEX, INTERIOR_TABLE})
_FIRST_PAGE_HEADER = 100
"""Bytes before the B-tree header on page 1."""
_INTERIOR_HEADER, _LEAF_HEADER = 12, 8
_MAX_VARINT, _CHILD = 9, 4
"""Bytes of the longest varint, and of the number of a child before an interior page's entry."""
_FIXED_SIZES = (0, 1, 2, 3, 4, 6, 8, 8, 0, 0, 0, 0)
"""Bytes by serial type, 0 to 11: NULL, six integers, a float, the constants 0 and 1, two reserved."""

_FLOAT, _ZERO, _ONE = 7, 8, 9
"""Serial types of a float, which no rowid has, and of the constants."""
_INT64 = 8
"""Bytes."""
_MAX_COLUMNS = 32
"""Entries with more are decoded one by one."""

Int64s = np.ndarray[tuple[int], np.dtype[np.int64]]


def kind(pgno: int, page: bytes) -> int:
    """The page's first B-tree byte: one of the four kinds, or anything for another page. The page is not empty."""
    return page[_FIRST_PAGE_HEADER if pgno == 1 else 0]


@dataclass(slots=True, weakref_slot=True)
class Interior:
    """An interior page: `children[i]` holds keys up to `keys[i]`, the last child the rest."""

    page: bytes
    is_table: bool
    children: list[int]
    pointers: list[int] = field(repr=False)
    _keys: list[int] | None = None
    _arrays: tuple[Int64s, Int64s] | None = field(default=None, repr=False, compare=False)

    @property
    def keys(self) -> list[int]:
        """Rowids between the children (of table pages), decoded when first asked for."""
        if self._keys is None:
            self._keys = _varints(self.page, [pointer + 4 for pointer in self.pointers])
        return self._keys

    @property
    def arrays(self) -> tuple[Int64s, Int64s]:
        """The keys and the children (of table pages), made when first asked for."""
        if self._arrays is None:
            self._arrays = np.array(self.keys, np.int64), np.array(self.children, np.int64)
        return self._arrays

    def child_for(self, rowid: int) -> int:
        """The child of a table's interior page that holds a rowid."""
        return self.children[bisect_left(self.keys, rowid)]


_parsed: WeakValueDictionary[tuple[int, bytes], Interior] = WeakValueDictionary()
"""By what they were parsed from: a query and its rehearsal, or several connections, look at the same pages."""


def parse_interior(pgno: int, page: bytes) -> Interior | None:
    """An interior page, which others may share, or None if it is none."""
    start = _FIRST_PAGE_HEADER if pgno == 1 else 0
    if page[start] not in INTERIOR_KINDS:
        return None
    key = start, page
    interior = _parsed.get(key)
    if interior is None:
        interior = _newly_parsed(page, start)
        if interior is not None:
            _parsed[key] = interior
    return interior


def _newly_parsed(page: bytes, start: int) -> Interior | None:
    pointers = _cell_pointers(page, start, _INTERIOR_HEADER)
    if not len(pointers) or int(pointers.max()) + 4 > len(page):
        return None
    if page[start] == INTERIOR_TABLE and not all(_has_varint(page, p + 4) for p in _near_the_end(page, pointers)):
        return None
    cells = np.frombuffer(page, np.uint8)[pointers[:, None] + np.arange(4)]
    left = cells.astype(np.uint32) @ np.array([1 << 24, 1 << 16, 1 << 8, 1], np.uint32)
    right = int.from_bytes(page[start + 8 : start + 12])
    return Interior(page, page[start] == INTERIOR_TABLE, [*left.tolist(), right], pointers.tolist())


def _near_the_end(page: bytes, pointers: Int64s) -> list[int]:
    """Cells whose key may not lie wholly in the page."""
    near: list[int] = pointers[pointers + 4 + _MAX_VARINT > len(page)].tolist()
    return near


def _has_varint(page: bytes, position: int) -> bool:
    """Whether a varint that begins here, not far from the page's end, ends in the page."""
    return any(byte < 0x80 for byte in page[position : position + _MAX_VARINT - 1])


Key = tuple[int, bytes]
"""The first column of an index entry, in its encoded form: serial type and content."""


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """An entry of an index leaf: its key, and the rowid it leads to."""

    key: Key
    rowid: int


@dataclass(frozen=True, slots=True, eq=False)
class IndexEntries(Sequence[IndexEntry]):
    """Entries of an index leaf, in the order in which they are looked up. Keys are decoded when asked for."""

    page: bytes = field(repr=False)
    pointers: Int64s
    rowids: Int64s

    def __len__(self) -> int:
        return len(self.rowids)

    @overload
    def __getitem__(self, place: int) -> IndexEntry: ...
    @overload
    def __getitem__(self, place: slice) -> IndexEntries: ...
    def __getitem__(self, place: int | slice) -> IndexEntry | IndexEntries:
        if isinstance(place, slice):
            return IndexEntries(self.page, self.pointers[place], self.rowids[place])
        entry = _index_entry(self.page, int(self.pointers[place]))
        assert entry is not None
        return entry

    def rowid(self, place: int) -> int:
        """That of one entry, without its key."""
        return int(self.rowids[place])


NO_ENTRIES: Final = IndexEntries(b"", np.empty(0, np.int64), np.empty(0, np.int64))


def parse_index_entries(page: bytes) -> IndexEntries:
    """The entries of an index leaf, in order; fewer if one is not understood."""
    try:
        pointers = _cell_pointers(page, 0, _LEAF_HEADER)
    except ValueError:  # the page is shorter than the header
        return NO_ENTRIES
    return _entries_at(page, pointers)


def _entries_at(page: bytes, pointers: Int64s) -> IndexEntries:
    rowids, is_usual = _usual_rowids(page, pointers)
    for i in np.flatnonzero(~is_usual).tolist():
        try:
            entry = _index_entry(page, int(pointers[i]))
        except IndexError:
            entry = None
        if entry is None:
            return IndexEntries(page, pointers[:i], rowids[:i])
        rowids[i] = entry.rowid
    return IndexEntries(page, pointers, rowids)


def parse_rowids(page: bytes) -> list[int]:
    """The rowids that the entries of an index leaf lead to, in order; fewer if one is not understood."""
    rowids: list[int] = parse_index_entries(page).rowids.tolist()
    return rowids


def parse_interior_rowids(page: bytes) -> list[int]:
    """The same for an interior page of an index, which has entries between its children."""
    pointers = _cell_pointers(page, 0, _INTERIOR_HEADER) + _CHILD
    rowids: list[int] = _entries_at(page, pointers[pointers < len(page)]).rowids.tolist()
    return rowids


def _usual_rowids(page: bytes, pointers: Int64s) -> tuple[Int64s, np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    """The rowids of the entries at `pointers`, and for which of them they are right: all but a few.

    What `_index_entry` does for one entry, for all at once: in a page of 64 KiB a fiftieth of the time. Left out are
    entries that end near the end of the page, those that `_index_entry` does not understand, and odd ones.
    """
    last_place = len(page) - _MAX_VARINT
    if last_place < _INT64 or not len(pointers):
        return np.zeros(len(pointers), np.int64), np.zeros(len(pointers), np.bool_)
    content = np.frombuffer(page, np.uint8)

    def next_varints(places: Int64s) -> tuple[Int64s, Int64s]:
        return _read_varints(content, np.minimum(places, last_place))

    sizes, payloads = next_varints(pointers)
    header_sizes, places = next_varints(payloads)
    bodies, ends = payloads + header_sizes, payloads + sizes
    is_usual = (sizes >= 0) & (header_sizes >= 0) & (header_sizes <= sizes) & (ends >= _INT64) & (ends <= last_place)
    if not is_usual.any():
        return np.zeros(len(pointers), np.int64), is_usual
    first_types, places = next_varints(places)
    is_usual &= first_types >= 0
    types = np.full(len(pointers), -1)
    for _ in range(_MAX_COLUMNS):
        has_more = is_usual & (places < bodies)
        if has_more.all():
            types, places = next_varints(places)
        elif has_more.any():
            types[has_more], places[has_more] = next_varints(places[has_more])
        else:
            break
    is_usual &= (places >= bodies) & (types >= 1) & (types <= _ONE) & (types != _FLOAT)
    return _integers(content, np.where(is_usual, ends, _INT64), np.where(is_usual, types, _ZERO)), is_usual


def _integers(content: np.ndarray[tuple[int], np.dtype[np.uint8]], ends: Int64s, types: Int64s) -> Int64s:
    """The integers of these serial types whose content ends there, after at least _INT64 bytes."""
    values = content[ends[:, None] + np.arange(-_INT64, 0)].view(">i8")[:, 0].astype(np.int64)
    unused_bits = 8 * (_INT64 - np.array(_FIXED_SIZES)[types])
    return np.where(types >= _ZERO, types - _ZERO, values << unused_bits >> unused_bits)


def _cell_pointers(page: bytes, start: int, header: int) -> Int64s:
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
    values, _ = _read_varints(np.frombuffer(page + bytes(_MAX_VARINT), np.uint8), np.array(positions))
    found: list[int] = values.tolist()
    return found


def _read_varints(content: np.ndarray[tuple[int], np.dtype[np.uint8]], places: Int64s) -> tuple[Int64s, Int64s]:
    """(values, places after them) of many varints; _MAX_VARINT bytes follow each place."""
    first = content[places]
    if first.max() < 0x80:
        return first.astype(np.int64), places + 1
    values = np.zeros(len(places), np.int64)
    goes_on = np.ones(len(places), np.bool_)
    for _ in range(_MAX_VARINT - 1):
        byte = content[places].astype(np.int64)
        values = np.where(goes_on, values << 7 | byte & 0x7F, values)
        places = places + goes_on
        goes_on &= byte >= 0x80
        if not goes_on.any():
            return values, places
    values = np.where(goes_on, values << 8 | content[places], values)
    return values, places + goes_on


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
