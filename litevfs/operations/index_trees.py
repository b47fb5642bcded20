"""Which rows of a WITHOUT ROWID table can differ between two states, from the pages that differ. Knows B-trees, no SQL.

As `table_trees` for tables with rowids; but here interior pages hold rows too, and keys are compared as SQLite compares
them: numbers, then text by the collation of its column, then blobs, each column ascending or descending.

Source: https://www.sqlite.org/fileformat2.html, sections 1.6, 2.1, 2.4 and 2.5; https://www.sqlite.org/datatype3.html,
sections 4 and 7.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import total_ordering
from typing import Any

from litevfs.operations.tree_pages import (
    INTERIOR_INDEX,
    LEAF_INDEX,
    MAX_DEPTH,
    IndexRecord,
    Side,
    UnclearError,
    depth_of,
    index_records,
    is_leaf,
    page_children,
    page_kind,
    record_columns,
    whole_record,
)

COLLATIONS = ("BINARY", "NOCASE", "RTRIM")
"""Those that SQLite brings; others are defined by applications."""

SortKey = tuple[Any, ...]
"""Keys of one table compare, and are equal, as SQLite says."""
KeyValue = int | float | str | bytes


@dataclass(frozen=True, slots=True)
class KeyColumn:
    """One column of a primary key."""

    name: str
    collation: str  # in upper case
    is_descending: bool


@total_ordering
@dataclass(frozen=True, slots=True)
class _Descending:
    value: Any

    def __lt__(self, other: _Descending) -> bool:
        return bool(other.value < self.value)


@dataclass(frozen=True, slots=True)
class KeyOrder:
    """The primary key of a WITHOUT ROWID table."""

    columns: tuple[KeyColumn, ...]
    encoding: str  # of the database's texts, as `bytes.decode` calls it

    def sort_key(self, stored: list[tuple[int, bytes]]) -> SortKey | None:
        """What (serial type, content) of each column compares by; None if that is no key of this table."""
        if len(stored) < len(self.columns):
            return None
        parts = []
        for column, (kind, content) in zip(self.columns, stored, strict=False):
            part = self._part(column.collation, kind, content)
            if part is None:
                return None
            parts.append(_Descending(part) if column.is_descending else part)
        return tuple(parts)

    def _part(self, collation: str, kind: int, content: bytes) -> tuple[Any, ...] | None:
        if kind == 0:
            return None  # no column of such a key is NULL
        if kind < 12:
            return 1, _number(kind, content)
        if kind % 2 == 0:
            return 3, content
        if collation == "BINARY":
            return 2, content
        text = self._text(content).encode() if self.encoding != "utf-8" else content
        if collation == "RTRIM":
            return 2, text.rstrip(b" ")
        return 2, text.partition(b"\0")[0].lower(), len(text)  # SQLite's comparison ends at a NUL, then goes by length

    def values(self, stored: list[tuple[int, bytes]]) -> list[KeyValue]:
        """The values of a key. Raises UnclearError for text that is not in the database's encoding."""
        return [self._value(*column) for column in stored[: len(self.columns)]]

    def _value(self, kind: int, content: bytes) -> KeyValue:
        if kind < 12:
            return _number(kind, content)
        return self._text(content) if kind % 2 else content

    def _text(self, content: bytes) -> str:
        try:
            return content.decode(self.encoding)
        except UnicodeDecodeError as error:
            raise UnclearError(f"text of a key that is no {self.encoding}") from error


def _number(kind: int, content: bytes) -> int | float:
    if kind in (8, 9):
        return kind - 8
    if kind == 7:
        return float(struct.unpack(">d", content)[0])
    if kind > 9:
        raise UnclearError(f"a value of the reserved type {kind}")
    return int.from_bytes(content, "big", signed=True)


def changed_keys(old: Side, new: Side, root: int, order: KeyOrder) -> list[list[KeyValue]]:
    """Keys of the rows of the table with this root that may differ, ascending; those of all that do are among them.

    Raises UnclearError.
    """
    trees = [_descend(side, root, order) for side in (old, new)]
    children = [_children(side, members) for side, members in zip((old, new), trees, strict=True)]
    rows = [
        [*_records(side, members), *(record for pgno in mine - others for record in _all_records(side, pgno))]
        for side, members, mine, others in zip((old, new), trees, children, reversed(children), strict=True)
    ]
    contents = [{record.content for record in found if not record.overflow} for found in rows]
    keys: dict[SortKey, list[KeyValue]] = {}
    for side, found, others_contents in zip((old, new), rows, reversed(contents), strict=True):
        for record in found:
            if record.overflow or record.content not in others_contents:
                stored = _key_columns(side, record, order)
                key = order.sort_key(stored)
                if key is None:
                    raise UnclearError("a row without a key")
                keys[key] = order.values(stored)
    return [keys[key] for key in sorted(keys)]


def is_index_tree_touched(old: Side, new: Side, root: int, order: KeyOrder) -> bool:
    """Whether a page that differs belongs to the table with this root, in either state. Raises UnclearError."""
    return any(_descend(side, root, order) for side in (old, new))


def _descend(side: Side, root: int, order: KeyOrder) -> set[int]:
    """The pages that differ which belong to this tree."""
    probes = sorted(key for pgno, page in side.changed.items() for key in _first_key(side, pgno, page, order))
    members: set[int] = set()
    level = {root: probes}
    for left in range(depth_of(side, root), -1, -1):
        members |= level.keys() & side.changed.keys()
        below: dict[int, list[SortKey]] = {}
        if left:
            side.announce(level)
            for pgno, keys in level.items():
                below.update(_share(side, pgno, keys, order))
        level = below
    return members


def _share(side: Side, pgno: int, probes: list[SortKey], order: KeyOrder) -> Iterator[tuple[int, list[SortKey]]]:
    """The children that hold some of the keys, with those."""
    page = side.page(pgno)
    keys = []
    for record in index_records(pgno, page, side.usable):
        key = order.sort_key(_key_columns(side, record, order))
        if key is None:
            raise UnclearError(f"page {pgno} is no page of this table")
        keys.append(key)
    children = page_children(pgno, page)
    start = 0
    while start < len(probes):
        place = bisect_left(keys, probes[start])
        end = _first_above(probes, keys[place], start) if place < len(keys) else len(probes)
        yield children[place], probes[start:end]
        start = end


def _first_above(probes: list[SortKey], key: SortKey, start: int) -> int:
    end = bisect_left(probes, key, start)
    while end < len(probes) and probes[end] == key:
        end += 1
    return end


def _first_key(side: Side, pgno: int, page: bytes, order: KeyOrder) -> Iterator[SortKey]:
    """A key by which a page of this table is found from the root; of other pages perhaps none."""
    if page_kind(pgno, page) not in (LEAF_INDEX, INTERIOR_INDEX):
        return
    records = index_records(pgno, page, side.usable)
    if not records:
        if page_kind(pgno, page) == INTERIOR_INDEX:
            raise UnclearError(f"page {pgno} has one child and no key")
        return
    key = order.sort_key(_key_columns(side, records[0], order))
    if key is not None:
        yield key


def _key_columns(side: Side, record: IndexRecord, order: KeyOrder) -> list[tuple[int, bytes]]:
    try:
        return record_columns(record.content, len(order.columns))
    except UnclearError:
        if not record.overflow:
            raise
    return record_columns(whole_record(side, record), len(order.columns))


def _children(side: Side, members: Iterable[int]) -> set[int]:
    return {
        child
        for pgno in members
        if page_kind(pgno, side.changed[pgno]) == INTERIOR_INDEX
        for child in page_children(pgno, side.changed[pgno])
    }


def _records(side: Side, members: Iterable[int]) -> Iterator[IndexRecord]:
    for pgno in members:
        yield from index_records(pgno, side.changed[pgno], side.usable)


def _all_records(side: Side, pgno: int, depth: int = 0) -> Iterator[IndexRecord]:
    page = side.page(pgno)
    yield from index_records(pgno, page, side.usable)
    if is_leaf(pgno, page):
        return
    if depth > MAX_DEPTH:
        raise UnclearError("pages that point in a circle")
    for child in page_children(pgno, page):
        yield from _all_records(side, child, depth + 1)
