"""The differences between two states of a replica, row by row. Owns the choice of tables and the matching of rows.

The page map and the B-trees (`table_trees`) say which rows can differ; SQLite reads those rows in both states, so
values are SQLite's own. If the pages do not show them, SQLite compares all rows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal, Self

import apsw

from litevfs.errors import OptionError
from litevfs.ltx.names import format_txid
from litevfs.operations.changed_sides import read_sides
from litevfs.operations.index_trees import COLLATIONS, KeyValue, changed_keys
from litevfs.operations.table_trees import changed_rows
from litevfs.operations.tables import (
    Key,
    Row,
    State,
    Table,
    Value,
    column_list,
    is_among,
    no_table,
    quoted,
    read_rows,
    split_row,
)
from litevfs.operations.tree_pages import Side, UnclearError, unexplained_overflow
from litevfs.pages.source import PageSource
from litevfs.states.changes import pgnos_differing

logger = logging.getLogger("litevfs.operations.diff")

ROWS_A_QUERY = 500


@dataclass(frozen=True, slots=True)
class Change:
    """One row that differs."""

    table: str
    op: Literal["insert", "update", "delete"]
    key: Key  # the rowid, or the primary key of a WITHOUT ROWID table
    old: Row | None  # column -> value; None for an insert
    new: Row | None  # None for a delete


@dataclass(frozen=True, slots=True)
class SchemaChange:
    """One table, index, view or trigger that differs."""

    type: str
    name: str
    op: Literal["create", "change", "drop"]
    old_sql: str | None
    new_sql: str | None


class Diff:
    """The differences between two states: iterate for the changed rows. Made by `litevfs.diff`; close it."""

    def __init__(
        self,
        connection: apsw.Connection,
        old: State,
        new: State,
        pages: PageSource,
        tables: Collection[str] | None,
        *,
        close: Callable[[], None],
    ) -> None:
        self._connection = connection
        self.old, self.new = old, new
        self.from_txid, self.to_txid = old.snapshot.txid, new.snapshot.txid
        self._pages = pages
        self._close = close
        self._sides: tuple[Side, Side] | Literal["unread"] | None = "unread"
        self.tables = self._chosen(tables)

    def _chosen(self, tables: Collection[str] | None) -> list[str]:
        """Names of the tables to compare, those of the newer state first. Raises OptionError for no table."""
        known = list(dict.fromkeys([*self.new.tables, *self.old.tables]))
        if tables is None:
            return known
        for name in tables:
            if is_among(name, self.old.virtual | self.new.virtual):
                raise OptionError(
                    f"{name} is a virtual table", hint="its rows lie in shadow tables, which are compared"
                )
            if is_among(name, known):
                continue
            if is_among(name, self.old.views | self.new.views):
                raise OptionError(f"{name} is a view", hint="its rows are those of tables: name these")
            txids = f"{format_txid(self.from_txid)} and {format_txid(self.to_txid)}"
            raise no_table(name, known, f" in the states {txids}")
        return [name for name in known if is_among(name, tables)]

    def __iter__(self) -> Iterator[Change]:
        for name in self.tables:
            yield from self.changes(name)

    @property
    def schema(self) -> list[SchemaChange]:
        """Tables, indexes, views and triggers that were created, changed or dropped."""
        old, new = self.old.objects, self.new.objects
        return [
            SchemaChange(
                kind,
                name,
                "create" if key not in old else "change" if key in new else "drop",
                old.get(key),
                new.get(key),
            )
            for key in dict.fromkeys([*old, *new])
            if old.get(key) != new.get(key)
            for kind, name in [key]
        ]

    def changes(self, name: str) -> Iterator[Change]:
        """The rows of one table that differ; of a table that only one state has, all."""
        old, new = self.old.table(name), self.new.table(name)
        if old is None or new is None or old.collates != new.collates:
            yield from (Change(name, "delete", key, row, None) for key, row in (self.old.rows(old) if old else ()))
            yield from (Change(name, "insert", key, None, row) for key, row in (self.new.rows(new) if new else ()))
            return
        candidates = self._candidates(old, new)
        if candidates is None:
            yield from self._compared(old, new)
            return
        rowids, keys = candidates
        ordered = iter(sorted(rowids))
        while batch := list(islice(ordered, ROWS_A_QUERY)):
            yield from _merged(name, self.old.rows(old, batch), self.new.rows(new, batch))
        for key in keys:
            yield from _change(name, self.old.row(old, key), self.new.row(new, key))

    def _compared(self, old: Table, new: Table) -> Iterator[Change]:
        """All rows of both states compared by SQLite: first rows that the older one has, then new rows."""
        a, b = f"{self.old.schema}.{quoted(old.name)}", f"{self.new.schema}.{quoted(new.name)}"
        pairs = zip(old.key, new.key, new.collates, strict=True)
        same_key = " AND ".join(f"a.{quoted(x)} = b.{quoted(y)}{collate}" for x, y, collate in pairs)
        names = ", ".join(
            column_list(*side) for side in (("a.", old.key), ("a.", old.columns), ("b.", new.key), ("b.", new.columns))
        )
        where = ""
        if old.columns == new.columns:
            differs = [
                f"a.{c} IS NOT b.{c} COLLATE BINARY OR typeof(a.{c}) <> typeof(b.{c}) "
                f"OR (a.{c} = 0 AND typeof(a.{c}) = 'real')"  # only `same_value` tells -0.0 from 0.0
                for c in map(quoted, new.columns)
            ]
            where = " WHERE " + " OR ".join([f"b.{quoted(new.key[0])} IS NULL", *differs])
        middle = len(old.key) + len(old.columns)
        joined = f"SELECT {names} FROM {a} AS a LEFT JOIN {b} AS b ON {same_key}{where}"
        for row in read_rows(self._connection, old, joined):
            key, before = split_row(row[:middle], old)
            there, after = split_row(row[middle:], new)
            if there[0] is None:
                yield Change(old.name, "delete", key, before, None)
            elif not _same(before, after):
                yield Change(old.name, "update", key, before, after)
        names = ", ".join([column_list("b.", new.key), column_list("b.", new.columns)])
        missing = f"NOT EXISTS (SELECT 1 FROM {a} AS a WHERE {same_key})"
        for row in read_rows(self._connection, new, f"SELECT {names} FROM {b} AS b WHERE {missing}"):
            key, after = split_row(row, new)
            yield Change(new.name, "insert", key, None, after)

    def _candidates(self, old: Table, new: Table) -> tuple[set[int], list[list[KeyValue]]] | None:
        """Rowids, or primary keys, of rows that may differ; None: all."""
        if not (old.order == new.order and old.root == new.root and old.sql == new.sql):
            return None
        if new.order and not all(column.collation in COLLATIONS for column in new.order.columns):
            return None
        sides = self._changed_sides()
        if sides is None:
            return None
        try:
            if new.order:
                return set(), changed_keys(*sides, new.root, new.order)
            return changed_rows(*sides, new.root), []
        except UnclearError as error:
            logger.info("all rows of %s are compared: %s", new.name, error)
            return None

    def _changed_sides(self) -> tuple[Side, Side] | None:
        """The pages that differ, as both states have them; None if they do not show which rows do."""
        if self._sides == "unread":
            self._sides = self._read_sides()
        return self._sides

    def _read_sides(self) -> tuple[Side, Side] | None:
        old, new = self.old.snapshot, self.new.snapshot
        if old.page_size != new.page_size or not old.commit or not new.commit:
            return None
        sides = read_sides(self._pages, old, new, pgnos_differing(old, new))
        try:
            return None if sides is None or unexplained_overflow(*sides) else sides
        except UnclearError as error:
            logger.info("all rows are compared: %s", error)
            return None

    def close(self) -> None:
        """Release both states. Idempotent."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _merged(name: str, old: Iterator[tuple[Key, Row]], new: Iterator[tuple[Key, Row]]) -> Iterator[Change]:
    """The differences of two sets of rows, in the order of their rowids."""
    before, after = dict(old), dict(new)
    for key in sorted(before.keys() | after.keys(), key=lambda key: int(key[0] or 0)):
        a, b = before.get(key), after.get(key)
        yield from _change(name, None if a is None else (key, a), None if b is None else (key, b))


def _change(name: str, old: tuple[Key, Row] | None, new: tuple[Key, Row] | None) -> Iterator[Change]:
    """What became of one row, if it differs."""
    if old is None and new is not None:
        yield Change(name, "insert", new[0], None, new[1])
    elif old is not None and new is None:
        yield Change(name, "delete", old[0], old[1], None)
    elif old is not None and new is not None and not _same(old[1], new[1]):
        yield Change(name, "update", old[0], old[1], new[1])


def _same(a: Row, b: Row) -> bool:
    return a == b and all(same_value(value, b[name]) for name, value in a.items())


def same_value(a: Value, b: Value) -> bool:
    """Whether two values are the same: 1 is not 1.0, and 0.0 is not -0.0."""
    return a == b and type(a) is type(b) and (a != 0 or repr(a) == repr(b))
