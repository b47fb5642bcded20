"""Results as Arrow: a stream of record batches whose types hold for all rows, for pyarrow, polars, pandas and DuckDB.

Owns the statement, the state that it sees, and when a column's type is known; how values become columns is
`arrow_columns`'. A stream states its types before its first row. So a type must hold for all rows: it is the declared
type, if SQLite's affinity enforces it, otherwise the rows themselves tell it (see `arrow`).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import chain, islice
from typing import Any

import apsw

from litevfs.api import connect
from litevfs.bindings.any_connection import plain_connection
from litevfs.bindings.apsw_connections import add_hint
from litevfs.errors import LitevfsError, OptionError, ResultTypeError
from litevfs.integrations.arrow_columns import (
    NULL,
    REAL,
    TEXT,
    Column,
    Part,
    arrow_type,
    cast,
    column_kind,
    has_misfit,
    joined,
    part_of,
    type_in_sql,
)

BATCH_ROWS = 65_536
BATCH_BYTES = 32 << 20
"""A batch ends at either limit, so wide rows need no more memory than narrow ones."""
KEPT_BYTES = 64 << 20
"""Columns that are kept until their types are known. Beyond it, SQLite reads the types of the whole result."""
PIECE_BYTES = 4 << 20
_PIECE_ROWS = 1000
"""Rows held as Python objects at a time. More would not fit the processor's caches, and would burden the collector."""
_FIRST_ROWS = 1
"""The first piece, which shows how wide rows are. The next ones hold at most about `PIECE_BYTES`."""
_FEW = 3
"""So many columns have at most 216 combinations of types. DISTINCT finds them in half the time of min and max, which
are for more columns, as these may have a combination in each row."""

Parameters = Sequence[Any] | Mapping[str, Any]
Piece = list[Part]
"""Rows that follow each other, as a part of each column."""


def arrow(
    source: str | os.PathLike[str] | apsw.Connection | Any,
    sql: str,
    parameters: Parameters = (),
    *,
    strict: bool = True,
    **options: Any,
) -> ArrowResult:
    """The rows of one statement as a stream of Arrow record batches: `pyarrow.table(litevfs.arrow(url, "SELECT ..."))`.

    `source` is a replica URL, with `options` as for `connect`, or a connection of `connect`, `litevfs.dbapi` or
    SQLAlchemy's `litevfs:///`. Columns declared INTEGER, REAL, TEXT or BLOB (by SQLite's rules of affinity) are int64,
    double, large_string and large_binary. All others, expressions and NUMERIC above all, get the type that all their
    values have: with such a column a stream begins when all rows are read. `KEPT_BYTES` of them are kept; if there are
    more, the statement runs a second time for the types alone, on the same state.

    A value that does not fit raises ResultTypeError, which names row and column; with `strict=False` such a column is
    text instead. Text that is not UTF-8 raises it in both cases. Raises what `connect` raises, OptionError without
    pyarrow, and APSW's errors for the statement.
    """
    if _pyarrow() is None:
        raise OptionError("Arrow needs pyarrow", hint="pip install 'litevfs[arrow]'")
    if isinstance(source, str | os.PathLike):
        return ArrowResult(connect(source, **options), sql, parameters, strict=strict, is_owner=True)
    if options:
        raise OptionError(f"options with an open connection: {', '.join(options)}", hint="give them where it is opened")
    connection = plain_connection(source)
    connection = getattr(connection, "apsw_connection", connection)
    if not isinstance(connection, apsw.Connection):
        raise OptionError(
            f"no replica URL and no connection: {type(source).__name__}",
            hint="pass a URL, or a connection of litevfs.connect, litevfs.dbapi.connect or SQLAlchemy",
        )
    return ArrowResult(connection, sql, parameters, strict=strict, is_owner=False)


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError:
        return None
    return pyarrow


class ArrowResult:
    """The result of `arrow`. Each consumer of the stream runs the statement, on the newest state it can see."""

    def __init__(
        self, connection: apsw.Connection, sql: str, parameters: Parameters, *, strict: bool, is_owner: bool
    ) -> None:
        self._connection = connection
        self._parameters = parameters
        self._strict = strict
        self._is_owner = is_owner
        try:
            with _closed_hint():
                self._sql, self._columns = _described(connection, sql, parameters)
        except BaseException:
            self.close()
            raise

    @property
    def schema(self) -> Any:
        """The `pyarrow.Schema` of a stream that would begin now."""
        with _Pin(self._connection):
            return self._schema(self._declared() or self._types_of_all_rows())

    def reader(self) -> Any:
        """A `pyarrow.RecordBatchReader`; the state it reads is held until it is read to the end or dropped.

        Columns whose type only their values tell are read here, see `arrow`; without any, no row is read before the
        first batch is asked for.
        """
        pin = _Pin(self._connection)
        pieces = self._pieces()
        try:
            kept: deque[Piece] = deque()
            kinds = self._declared() or self._keep(pieces, kept)
            schema = self._schema(kinds)
            return _pyarrow().RecordBatchReader.from_batches(schema, self._batches(pin, kept, pieces, kinds, schema))
        except BaseException:
            pieces.close()
            pin.close()
            raise

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        """Arrow's PyCapsule interface: pyarrow, polars, pandas and DuckDB read the stream by it."""
        return self.reader().__arrow_c_stream__(requested_schema)

    def __arrow_c_schema__(self) -> Any:
        """Arrow's PyCapsule interface: the types alone."""
        return self.schema.__arrow_c_schema__()

    def close(self) -> None:
        """Close the connection, if `arrow` opened it. Dropping the result does so, too."""
        if self._is_owner:
            self._connection.close(True)

    def __enter__(self) -> ArrowResult:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- types --------------------------------------------------------------------------------------------------------

    def _declared(self) -> list[str] | None:
        """The types of the columns, if all of them hold without a look at the rows."""
        kinds = [column.kind for column in self._columns if column.kind]
        return kinds if self._strict and len(kinds) == len(self._columns) else None

    def _keep(self, pieces: Iterator[Piece], kept: deque[Piece]) -> list[str]:
        """The types of the columns. The rows are kept, until they end or are too many; SQLite then reads the types.

        Raises ResultTypeError as soon as a column is known to have no type.
        """
        found: list[set[str]] = [set() for _ in self._columns]
        size = 0
        for piece in pieces:
            kept.append(piece)
            for column, kinds, part in zip(self._columns, found, piece, strict=True):
                size += part.nbytes
                if not (new := part.kinds(wide=not self._strict)) <= kinds:
                    kinds |= new
                    if self._strict and has_misfit(column.kind, kinds):
                        self._raise_misfit(kept, found)
            if size > KEPT_BYTES:
                return self._types_of_all_rows()
        return [column_kind(column.kind, kinds) for column, kinds in zip(self._columns, found, strict=True)]

    def _raise_misfit(self, kept: deque[Piece], found: list[set[str]]) -> None:
        for piece in kept:
            for column, part, kinds in zip(self._columns, piece, found, strict=True):
                if has_misfit(column.kind, kinds):
                    cast(part, column.kind or TEXT, column, strict=True)

    def _types_of_all_rows(self) -> list[str]:
        wanted = [i for i, column in enumerate(self._columns) if column.kind is None or not self._strict]
        found = dict(zip(wanted, self._look_ahead(wanted), strict=True))
        return [column_kind(column.kind, found.get(i, {NULL})) for i, column in enumerate(self._columns)]

    def _look_ahead(self, wanted: list[int]) -> list[set[str]]:
        """Types of the values in each of these columns, at least the first and the last by name; NULL is not needed."""
        if are_few := len(wanted) <= _FEW:
            types = "DISTINCT " + ", ".join(type_in_sql(f"c{i}", wide=not self._strict) for i in wanted)
        else:
            each = [f"nullif({type_in_sql(f'c{i}', wide=not self._strict)}, 'null')" for i in wanted]
            types = ", ".join(f"min({type_}), max({type_})" for type_ in each)
        try:
            found = list(self._run(self._select(types)))
        except apsw.SQLError:  # a PRAGMA, say, which no other statement can contain
            return self._types_by_row(wanted)
        if are_few:
            return [{row[i] for row in found} for i in range(len(wanted))]
        return [{kind or NULL for kind in found[0][i : i + 2]} for i in range(0, len(found[0]), 2)]

    def _select(self, expressions: str) -> str:
        """A statement that selects from the result, whose columns are c0, c1, ... there."""
        names = ", ".join(f"c{i}" for i in range(len(self._columns)))
        return f"WITH result({names}) AS ({self._sql}\n) SELECT {expressions} FROM result"

    def _types_by_row(self, wanted: list[int]) -> list[set[str]]:
        found: list[set[str]] = [set() for _ in wanted]
        for piece in self._pieces():
            for kinds, i in zip(found, wanted, strict=True):
                kinds |= piece[i].kinds(wide=not self._strict)
        return found

    def _schema(self, kinds: list[str]) -> Any:
        names = [column.name for column in self._columns]
        return _pyarrow().schema(list(zip(names, map(arrow_type, kinds), strict=True)))

    # --- rows ---------------------------------------------------------------------------------------------------------

    def _batches(
        self, pin: _Pin, kept: deque[Piece], pieces: Generator[Piece], kinds: list[str], schema: Any
    ) -> Iterator[Any]:
        pyarrow = _pyarrow()
        with pin, closing(pieces):
            parts: list[list[Part]] = [[] for _ in kinds]
            rows = size = 0

            def batch() -> Any:
                arrays = [joined(column, kind) for column, kind in zip(parts, kinds, strict=True)]
                return pyarrow.record_batch(arrays, schema=schema)

            for piece in chain(_popped(kept), pieces):
                for column, into, part, kind in zip(self._columns, parts, piece, kinds, strict=True):
                    into.append(cast(part, kind, column, strict=self._strict))
                    size += into[-1].nbytes
                rows += piece[0].count
                if rows >= BATCH_ROWS or size >= BATCH_BYTES:
                    yield batch()
                    parts, rows, size = [[] for _ in kinds], 0, 0
            if rows:
                yield batch()

    def _pieces(self) -> Generator[Piece]:
        """All rows. Each row is split into columns at once, so that only one is an object."""
        width = len(self._columns)
        expected = [column.kind or NULL for column in self._columns]
        widen = [self._strict and kind == REAL for kind in expected]
        first, limit = 1, _FIRST_ROWS
        cursor = self._run(self._sql)
        try:
            values = chain.from_iterable(cursor)
            while row_values := self._taken(values, width * limit, first):
                piece = [part_of(row_values[i::width], first, expected[i], widen=widen[i]) for i in range(width)]
                expected = [
                    kind if part.kind == NULL else part.kind for part, kind in zip(piece, expected, strict=True)
                ]
                first += piece[0].count
                size = sum(part.nbytes for part in piece)
                limit = max(1, min(_PIECE_ROWS, 10 * limit, piece[0].count * PIECE_BYTES // max(1, size)))
                del row_values
                yield piece
        finally:
            cursor.close(True)  # an error that is held would keep its read lock

    def _taken(self, values: Iterator[Any], count: int, first: int) -> list[Any]:
        """The next values, of rows from `first` on. Raises ResultTypeError for text that is not UTF-8."""
        taken: list[Any] = []
        try:
            taken.extend(islice(values, count))  # what came before an error stays in the list
        except UnicodeDecodeError as error:
            if error.__traceback__ and error.__traceback__.tb_next:  # an SQL function raised it
                raise
            raise self._not_utf8(error, first + len(taken) // len(self._columns)) from error
        return taken

    def _not_utf8(self, error: UnicodeDecodeError, row: int) -> ResultTypeError:
        column = self._columns[0] if len(self._columns) == 1 else self._column_with(error.object, row)
        return ResultTypeError(
            f"{column.place(row) if column else f'row {row}'}: text is not UTF-8"
            f" (byte 0x{error.object[error.start]:02x} at {error.start})",
            hint="CAST(column AS BLOB) in the statement reads its bytes",
        )

    def _column_with(self, text: bytes, row: int) -> Column | None:
        """The column that has this text. SQLite reads the row again; None if it has no such text then (`random()`)."""
        texts = (f"CASE typeof(c{i}) WHEN 'text' THEN CAST(c{i} AS BLOB) END" for i in range(len(self._columns)))
        try:
            rows = self._run(f"{self._select(', '.join(texts))} LIMIT 1 OFFSET {row - 1}").fetchall()
        except (apsw.Error, LitevfsError):  # a PRAGMA, say; the text is the error to report
            return None
        found = [
            column for values in rows for column, value in zip(self._columns, values, strict=True) if value == text
        ]
        return found[0] if found else None

    def _run(self, sql: str) -> apsw.Cursor:
        """The rows as SQLite gives them, whatever the connection makes of rows."""
        with _closed_hint():
            cursor = self._connection.cursor()
        if self._connection.row_trace is not None:
            cursor.row_trace = lambda _, row: row  # has precedence
        try:
            return cursor.execute(sql, self._parameters)
        except apsw.Error as error:
            add_hint(error)
            raise


def _popped(pieces: deque[Piece]) -> Iterator[Piece]:
    while pieces:
        yield pieces.popleft()


@contextmanager
def _closed_hint() -> Iterator[None]:
    try:
        yield
    except apsw.ConnectionClosedError as error:
        error.add_note("call litevfs.arrow again, with a URL or an open connection")
        raise


class _Pin:
    """Holds the state that a connection sees, for statements that follow each other, by a read lock."""

    def __init__(self, connection: apsw.Connection) -> None:
        with _closed_hint():
            schemas = [name.replace('"', '""') for name in connection.db_names() if name != "temp"]
        reads = [f'SELECT 1 FROM "{schema}".sqlite_schema' for schema in schemas]
        self._cursor = connection.cursor()
        self._cursor.execute(" UNION ALL ".join(["SELECT 1", *reads, "SELECT 1"]))

    def close(self) -> None:
        """Release the state. Idempotent."""
        self._cursor.close(True)

    def __enter__(self) -> _Pin:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _described(connection: apsw.Connection, sql: str, parameters: Parameters) -> tuple[str, list[Column]]:
    """The only statement of `sql`, and its columns; it is not run. Raises OptionError for more than one, or none."""
    statements: list[tuple[str, list[Column]]] = []

    def trace(cursor: apsw.Cursor, statement: str, _: object) -> bool:
        statements.append((statement, [Column(*column) for column in cursor.get_description()]))
        return False

    cursor = connection.cursor()
    cursor.exec_trace = trace
    try:
        cursor.execute(sql, parameters)
    except apsw.ExecTraceAbort:
        pass
    if not statements or not statements[0][1]:
        raise OptionError("a statement that returns no rows", hint="pass one SELECT")
    statement, columns = statements[0]
    if sql[len(statement) :].strip(" \t\r\n;"):
        raise OptionError("more than one statement", hint="pass one SELECT")
    return statement.rstrip(" \t\r\n;"), columns
