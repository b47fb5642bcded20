"""The differences between two states of a replica, row by row. Owns the choice of tables and the matching of rows.

The page map and the B-trees (`table_trees`) say which rows can differ; SQLite reads those rows in both states, so
values are SQLite's own. If the pages do not show them, SQLite compares all rows.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import Literal, Self

import apsw

from litevfs.errors import LitevfsError, OptionError
from litevfs.ltx.names import format_txid
from litevfs.operations.changed_sides import read_sides
from litevfs.operations.index_trees import COLLATIONS, KeyOrder, KeyValue, changed_keys
from litevfs.operations.key_orders import key_order
from litevfs.operations.table_trees import changed_rows
from litevfs.operations.tree_pages import Side, UnclearError, unexplained_overflow
from litevfs.pages.source import PageSource
from litevfs.states.changes import pgnos_differing
from litevfs.states.snapshot import Snapshot

logger = logging.getLogger("litevfs.operations.diff")

ROWS_A_QUERY = 500

Value = None | int | float | str | bytes
Key = tuple[Value, ...]
Row = dict[str, Value]


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


@dataclass(frozen=True, slots=True)
class Table:
    """An ordinary table in one state."""

    name: str
    sql: str
    root: int
    columns: tuple[str, ...]  # all but generated ones
    key: tuple[str, ...]  # column names, or the rowid under a name that no column has
    rowid_is_column: bool  # INTEGER PRIMARY KEY
    order: KeyOrder | None  # of a WITHOUT ROWID table

    @property
    def has_rowid(self) -> bool:
        """Whether it is no WITHOUT ROWID table."""
        return self.order is None

    @property
    def collates(self) -> tuple[str, ...]:
        """What SQL adds to a comparison of each key column: the key's collation need not be the column's."""
        return tuple(f" COLLATE {quoted(column.collation)}" for column in self.order.columns) if self.order else ("",)


class State:
    """One of the two states: a connection that sees it under the name `schema`, and its page map."""

    def __init__(self, connection: apsw.Connection, schema: str, snapshot: Snapshot) -> None:
        self.schema = schema
        self.snapshot = snapshot
        self._connection = connection
        rows = connection.execute(f"SELECT type, name, sql, rootpage, tbl_name FROM {schema}.sqlite_schema").fetchall()
        self.table_of = {str(r[1]): str(r[4]) for r in rows}  # the table of each index and trigger
        self.objects: dict[tuple[str, str], str] = {(str(r[0]), str(r[1])): str(r[2]) for r in rows if r[2]}
        self.views = {str(r[1]) for r in rows if r[0] == "view"}
        self.virtual = {str(r[1]) for r in rows if r[0] == "table" and not r[3]}
        self._roots: dict[str, int] = {str(r[1]): int(r[3]) for r in rows if r[0] == "table" and r[3]}
        pragmas = ("user_version", "application_id")
        self.numbers = {name: int(str(connection.pragma(name, schema=schema))) for name in pragmas}
        self.tables = [name for name in self._roots if not name.startswith("sqlite_stat")]

    def table(self, name: str) -> Table | None:
        """The table of that name, if this state has it."""
        if name not in self._roots:
            return None
        info = self._connection.execute(f"PRAGMA {self.schema}.table_xinfo({quoted(name)})").fetchall()
        columns = tuple(str(column[1]) for column in info if column[6] == 0)
        sql = "SELECT wr FROM pragma_table_list WHERE schema = ? AND name = ?"
        has_rowid = not self._connection.execute(sql, (self.schema, name)).fetchall()[0][0]
        indexes = self._connection.execute(f"PRAGMA {self.schema}.index_list({quoted(name)})").fetchall()
        key_index = next((str(index[1]) for index in indexes if index[3] == "pk"), None)
        sql = self.objects.get(("table", name), "")
        if not has_rowid:
            order = self._key_order(str(key_index))
            key = tuple(column.name for column in order.columns)
            return Table(name, sql, self._roots[name], columns, key, False, order)
        primary = [str(column[2]).upper() for column in info if column[5]]
        is_column = primary == ["INTEGER"] and key_index is None  # it has one as INTEGER PRIMARY KEY DESC
        return Table(name, sql, self._roots[name], columns, (_rowid_name(name, columns),), is_column, None)

    def _key_order(self, index: str) -> KeyOrder:
        encoding = str(self._connection.pragma("encoding", schema=self.schema))
        decoded = {"UTF-16le": "utf-16-le", "UTF-16be": "utf-16-be"}.get(encoding, "utf-8")
        return key_order(self._connection, self.schema, index, decoded)

    def has_unique_index(self, name: str) -> bool:
        """Whether two rows of a table can violate a constraint together."""
        return any(index[2] for index in self._connection.execute(f"PRAGMA {self.schema}.index_list({quoted(name)})"))

    def rows(self, table: Table, rowids: Sequence[int] | None = None) -> Iterator[tuple[Key, Row]]:
        """(key, row) of these rows, or of all, in the order of the key."""
        key = _columns("", table.key)
        names = ", ".join([key, _columns("", table.columns)]) if table.columns else key
        where = "" if rowids is None else f" WHERE {key} IN (SELECT value FROM json_each(?))"
        sql = f"SELECT {names} FROM {self.schema}.{quoted(table.name)}{where} ORDER BY {key}"
        for row in _read(self._connection, table, sql, () if rowids is None else (json.dumps(rowids),)):
            yield _split(row, table)

    def row(self, table: Table, key: Sequence[KeyValue]) -> tuple[Key, Row] | None:
        """(key, row) of the row of a WITHOUT ROWID table with this key, if there is one."""
        names = ", ".join([_columns("", table.key), _columns("", table.columns)])
        same_key = " AND ".join(f"{quoted(name)} = ?{c}" for name, c in zip(table.key, table.collates, strict=True))
        sql = f"SELECT {names} FROM {self.schema}.{quoted(table.name)} WHERE {same_key}"
        for row in _read(self._connection, table, sql, tuple(key)):
            return _split(row, table)
        return None


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
            if name in self.old.virtual | self.new.virtual:
                raise OptionError(
                    f"{name} is a virtual table", hint="its rows lie in shadow tables, which are compared"
                )
            if name not in known and name in self.old.views | self.new.views:
                raise OptionError(f"{name} is a view", hint="its rows are those of tables: name these")
            if name not in known:
                txids = f"{format_txid(self.from_txid)} and {format_txid(self.to_txid)}"
                raise OptionError(f"no table {name} in the states {txids}", hint="tables: " + ", ".join(known))
        return [name for name in known if name in set(tables)]

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
            _columns(*side) for side in (("a.", old.key), ("a.", old.columns), ("b.", new.key), ("b.", new.columns))
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
        for row in _read(self._connection, old, joined):
            key, before = _split(row[:middle], old)
            there, after = _split(row[middle:], new)
            if there[0] is None:
                yield Change(old.name, "delete", key, before, None)
            elif not _same(before, after):
                yield Change(old.name, "update", key, before, after)
        names = ", ".join([_columns("b.", new.key), _columns("b.", new.columns)])
        missing = f"NOT EXISTS (SELECT 1 FROM {a} AS a WHERE {same_key})"
        for row in _read(self._connection, new, f"SELECT {names} FROM {b} AS b WHERE {missing}"):
            key, after = _split(row, new)
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
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


def _read(
    connection: apsw.Connection, table: Table, sql: str, bindings: tuple[KeyValue, ...] = ()
) -> Iterator[tuple[Value, ...]]:
    try:
        yield from connection.execute(sql, bindings)
    except UnicodeDecodeError as error:
        raise LitevfsError(
            f"table {table.name} holds text that is not UTF-8: {error}", hint="leave it out: tables= names the others"
        ) from error


def _same(a: Row, b: Row) -> bool:
    return a == b and all(same_value(value, b[name]) for name, value in a.items())


def same_value(a: Value, b: Value) -> bool:
    """Whether two values are the same: 1 is not 1.0, and 0.0 is not -0.0."""
    return a == b and type(a) is type(b) and (a != 0 or repr(a) == repr(b))


def _split(row: Sequence[Value], table: Table) -> tuple[Key, Row]:
    width = len(table.key)
    return tuple(row[:width]), dict(zip(table.columns, row[width:], strict=True))


def _columns(prefix: str, names: Sequence[str]) -> str:
    return ", ".join(prefix + quoted(name) for name in names)


def quoted(name: str) -> str:
    """A name as SQL has to write it."""
    return '"' + name.replace('"', '""') + '"'


def _rowid_name(table: str, columns: Collection[str]) -> str:
    taken = {column.lower() for column in columns}
    for name in ("rowid", "_rowid_", "oid"):
        if name not in taken:
            return name
    raise OptionError(
        f"the rowid of table {table} is hidden by columns of that name", hint="choose other tables with tables="
    )
