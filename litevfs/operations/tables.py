"""The tables of one state of a replica, through SQLite: their columns, keys and rows. Compares nothing."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import apsw

from litevfs.errors import LitevfsError, OptionError
from litevfs.operations.index_trees import KeyOrder, KeyValue
from litevfs.operations.key_orders import key_order
from litevfs.options import nearest
from litevfs.states.snapshot import Snapshot

Value = None | int | float | str | bytes
Key = tuple[Value, ...]
Row = dict[str, Value]
_MOST_NAMES = 20  # in an error


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
    """A connection that sees the state under the name `schema`, and its page map."""

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
        key = column_list("", table.key)
        names = ", ".join([key, column_list("", table.columns)]) if table.columns else key
        where = "" if rowids is None else f" WHERE {key} IN (SELECT value FROM json_each(?))"
        sql = f"SELECT {names} FROM {self.schema}.{quoted(table.name)}{where} ORDER BY {key}"
        for row in read_rows(self._connection, table, sql, () if rowids is None else (json.dumps(rowids),)):
            yield split_row(row, table)

    def row(self, table: Table, key: Sequence[KeyValue]) -> tuple[Key, Row] | None:
        """(key, row) of the row of a WITHOUT ROWID table with this key, if there is one."""
        names = ", ".join([column_list("", table.key), column_list("", table.columns)])
        same_key = " AND ".join(f"{quoted(name)} = ?{c}" for name, c in zip(table.key, table.collates, strict=True))
        sql = f"SELECT {names} FROM {self.schema}.{quoted(table.name)} WHERE {same_key}"
        for row in read_rows(self._connection, table, sql, tuple(key)):
            return split_row(row, table)
        return None


def is_among(name: str, names: Collection[str]) -> bool:
    """Whether SQLite takes the name for one of these: case does not matter."""
    return name.lower() in {each.lower() for each in names}


def no_table(name: str, known: Collection[str], where: str = "") -> OptionError:
    """The error for a table that does not exist: names the nearest one, or the tables there are."""
    near = nearest(name, known)
    names = ", ".join(islice(known, _MOST_NAMES)) + (", ..." if len(known) > _MOST_NAMES else "")
    hint = f"did you mean {near}?" if near else f"tables: {names}" if known else "the database has no tables"
    return OptionError(f"no table {name}{where}", hint=hint)


def read_rows(
    connection: apsw.Connection, table: Table, sql: str, bindings: tuple[KeyValue, ...] = ()
) -> Iterator[tuple[Value, ...]]:
    """The rows of a query of the table. Raises LitevfsError for text that is not UTF-8."""
    try:
        yield from connection.execute(sql, bindings)
    except UnicodeDecodeError as error:
        raise LitevfsError(
            f"table {table.name} holds text that is not UTF-8: {error}", hint="leave it out: tables= names the others"
        ) from error


def split_row(row: Sequence[Value], table: Table) -> tuple[Key, Row]:
    """(key, row) of the values of the key's columns and then of the others."""
    width = len(table.key)
    return tuple(row[:width]), dict(zip(table.columns, row[width:], strict=True))


def column_list(prefix: str, names: Sequence[str]) -> str:
    """Names of columns as SQL has to write them, each after the prefix."""
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
