"""Results as Arrow: a stream of record batches whose types hold for all rows, for pyarrow, polars, pandas and DuckDB.

Owns the choice of a column's Arrow type, and the conversion of SQLite's rows to columns. SQLite gives each value a
type, Arrow each column, and a stream states its types before its first row. So a type must hold for all rows: it is the
declared type, if SQLite's affinity enforces it, otherwise a first run reads the types of all values (see `arrow`).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import apsw
import numpy as np

from litevfs.api import connect
from litevfs.errors import OptionError, ResultTypeError

BATCH_ROWS = 65_536
BATCH_BYTES = 32 << 20
"""A batch ends at either limit, so wide rows need no more memory than narrow ones."""
_FEW = 3
"""So many columns have at most 125 combinations of types. DISTINCT finds them in half the time of min and max, which
are for more columns, as these may have a combination in each row."""
_PIECE_ROWS = 1000
"""Rows held as Python objects at a time. More would not fit the processor's caches, and would burden the collector."""

_INTEGER, _REAL, _TEXT, _BLOB, _NULL = "integer", "real", "text", "blob", "null"
_PYTHON_TYPES = {_INTEGER: (int,), _REAL: (int, float), _TEXT: (str,), _BLOB: (bytes,), _NULL: ()}
_FORMATS = {_INTEGER: "q", _REAL: "d"}
"""`struct`'s for a number of `_NUMBER_BYTES`."""
_NUMBER_BYTES = 8
_EXACT = 2**53
"""Up to here a real represents every integer exactly."""
_ALLOWED = {kind: {*types, type(None)} for kind, types in _PYTHON_TYPES.items()}

Parameters = Sequence[Any] | Mapping[str, Any]
Part = bytes | Any
"""Some values of a column: numbers without NULLs as the system's own, anything else as an array of pyarrow."""


def arrow(
    source: str | os.PathLike[str] | apsw.Connection | Any,
    sql: str,
    parameters: Parameters = (),
    *,
    strict: bool = True,
    **options: Any,
) -> ArrowResult:
    """The rows of one statement as a stream of Arrow record batches: `pyarrow.table(litevfs.arrow(url, "SELECT ..."))`.

    `source` is a replica URL, with `options` as for `connect`, or a connection of `connect` or `litevfs.dbapi`. Columns
    declared INTEGER, REAL, TEXT or BLOB (by SQLite's rules of affinity) are int64, double, large_string and
    large_binary. All others, expressions and NUMERIC above all, get the type that all their values have: the statement
    runs twice for them, the first time for the types alone, and both times on one state.

    A value that does not fit raises ResultTypeError, which names row and column; with `strict=False` such a column is
    text instead. Raises what `connect` raises, OptionError without pyarrow, and APSW's errors for the statement.
    """
    if _pyarrow() is None:
        raise OptionError("Arrow needs pyarrow", hint="pip install 'litevfs[arrow]'")
    if isinstance(source, str | os.PathLike):
        return ArrowResult(connect(os.fspath(source), **options), sql, parameters, strict=strict, is_owner=True)
    if options:
        raise OptionError(f"options with an open connection: {', '.join(options)}", hint="give them where it is opened")
    connection = getattr(source, "apsw_connection", source)
    if not isinstance(connection, apsw.Connection):
        raise OptionError(
            f"no replica URL and no connection: {type(source).__name__}",
            hint="pass a URL, or a connection of litevfs.connect or litevfs.dbapi.connect",
        )
    return ArrowResult(connection, sql, parameters, strict=strict, is_owner=False)


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError:
        return None
    return pyarrow


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a result."""

    name: str
    declared: str | None

    @property
    def kind(self) -> str | None:
        """The type to which affinity converts values; None if it does not tell (NUMERIC, and expressions).

        https://www.sqlite.org/datatype3.html#determination_of_column_affinity
        """
        declared = (self.declared or "").upper()
        if "INT" in declared:
            return _INTEGER
        if any(part in declared for part in ("CHAR", "CLOB", "TEXT")):
            return _TEXT
        if "BLOB" in declared:
            return _BLOB
        return _REAL if any(part in declared for part in ("REAL", "FLOA", "DOUB")) else None


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
            return _schema(self._columns, self._kinds())

    def reader(self) -> Any:
        """A `pyarrow.RecordBatchReader`; the state it reads is held until it is read to the end or dropped."""
        pin = _Pin(self._connection)
        try:
            kinds = self._kinds()
            schema = _schema(self._columns, kinds)
            batches = self._batches(pin, kinds, schema)
            return _pyarrow().RecordBatchReader.from_batches(schema, batches)
        except BaseException:
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

    def _kinds(self) -> list[str]:
        """The type of each column; `_TEXT` for values to be converted to text."""
        declared = [column.kind for column in self._columns]
        if self._strict and None not in declared:
            return [kind for kind in declared if kind is not None]
        wanted = [i for i, kind in enumerate(declared) if kind is None or not self._strict]
        found = dict(zip(wanted, self._look_ahead(wanted), strict=True))
        return [self._kind(kind, found.get(i)) for i, kind in enumerate(declared)]

    def _kind(self, declared: str | None, found: tuple[str, str] | None) -> str:
        """`found` holds the first and the last type of the values in the order of their names; None: types unread."""
        if found is None:
            assert declared is not None
            return declared
        common = _common_kind(*found)
        if declared is None:
            return common or _TEXT
        return declared if common == _NULL or _fits(common, declared) else _TEXT

    def _look_ahead(self, wanted: list[int]) -> list[tuple[str, str]]:
        """The first and the last type, by name, of the values in each of these columns; NULL's if it has no others."""
        names = ", ".join(f"c{i}" for i in range(len(self._columns)))
        if are_few := len(wanted) <= _FEW:
            types = "DISTINCT " + ", ".join(f"typeof(c{i})" for i in wanted)
        else:
            types = ", ".join(f"min({_type(i)}), max({_type(i)})" for i in wanted)
        sql = f"WITH result({names}) AS ({self._sql}\n) SELECT {types} FROM result"
        try:
            found: list[Any] = self._connection.execute(sql, self._parameters).fetchall()
        except apsw.SQLError:  # a PRAGMA, say, which no other statement can contain
            return [_ends(types) for types in self._types_by_row(wanted)]
        if are_few:
            return [_ends({row[i] for row in found}) for i in range(len(wanted))]
        row = found[0]
        return [(row[i] or _NULL, row[i + 1] or _NULL) for i in range(0, len(row), 2)]

    def _types_by_row(self, wanted: list[int]) -> list[set[str]]:
        found: list[set[str]] = [set() for _ in wanted]
        for row in self._connection.execute(self._sql, self._parameters):
            for types, i in zip(found, wanted, strict=True):
                types.add(_kind_of(row[i]))
        return found

    # --- rows ---------------------------------------------------------------------------------------------------------

    def _batches(self, pin: _Pin, kinds: list[str], schema: Any) -> Iterator[Any]:
        pyarrow = _pyarrow()
        with pin:
            parts: list[list[Part]] = [[] for _ in kinds]
            rows = size = 0
            for piece_rows, piece in self._pieces(kinds, schema):
                for column, part in zip(parts, piece, strict=True):
                    column.append(part)
                    size += len(part) if isinstance(part, bytes) else part.nbytes
                rows += piece_rows
                if rows >= BATCH_ROWS or size >= BATCH_BYTES:
                    yield pyarrow.record_batch(_joined(parts, schema), schema=schema)
                    parts, rows, size = [[] for _ in kinds], 0, 0
            if rows:
                yield pyarrow.record_batch(_joined(parts, schema), schema=schema)

    def _pieces(self, kinds: list[str], schema: Any) -> Iterator[tuple[int, list[Part]]]:
        """How many rows, and their columns. Each row is split into columns at once, so that only one is an object."""
        with _closed_hint():
            cursor = self._connection.execute(self._sql, self._parameters)
        values = chain.from_iterable(cursor)
        width = len(kinds)
        first = 1
        while piece := list(islice(values, width * _PIECE_ROWS)):
            yield len(piece) // width, [self._part(piece[i::width], i, kinds[i], schema, first) for i in range(width)]
            first += len(piece) // width

    def _part(self, values: list[Any], index: int, kind: str, schema: Any, first: int) -> Part:
        if kind in _FORMATS and (numbers := _numbers(values, kind)) is not None:
            return numbers
        pyarrow, type_ = _pyarrow(), schema.field(index).type
        if not self._strict and kind == _TEXT:
            values = [_as_text(value) for value in values]
        if kind != _REAL and not _ALLOWED[kind].issuperset(map(type, values)):  # pyarrow would convert what it can
            raise self._misfit(values, index, kind, type_, first)
        try:
            return pyarrow.array(values, type_)
        except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError, OverflowError) as error:
            raise self._misfit(values, index, kind, type_, first) from error

    def _misfit(self, values: list[Any], index: int, kind: str, type_: Any, first: int) -> ResultTypeError:
        row, value = next((i, v) for i, v in enumerate(values, first) if not _is_fit(v, kind))
        column = self._columns[index]
        declared = f", declared {column.declared}" if column.declared else ""
        return ResultTypeError(
            f"row {row}, column {column.name!r}{declared}: {_kind_of(value)} does not fit in {type_}",
            hint="CAST it in the statement" + (", or pass strict=False to have the column as text" * self._strict),
        )


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


def _type(index: int) -> str:
    return f"nullif(typeof(c{index}), 'null')"


def _ends(types: set[str]) -> tuple[str, str]:
    types = types - {_NULL} or {_NULL}
    return min(types), max(types)


def _common_kind(first: str, last: str) -> str | None:
    """The type of a column whose values have these types and, maybe, some between them by name; or None."""
    if first == last:
        return first
    return _REAL if (first, last) == (_INTEGER, _REAL) else None


def _fits(kind: str | None, declared: str) -> bool:
    return kind == declared or (kind, declared) == (_INTEGER, _REAL)


def _schema(columns: list[Column], kinds: list[str]) -> Any:
    pyarrow = _pyarrow()
    types = {
        _INTEGER: pyarrow.int64(),
        _REAL: pyarrow.float64(),
        _TEXT: pyarrow.large_string(),
        _BLOB: pyarrow.large_binary(),
        _NULL: pyarrow.null(),
    }
    return pyarrow.schema([(column.name, types[kind]) for column, kind in zip(columns, kinds, strict=True)])


def _numbers(values: list[Any], kind: str) -> bytes | None:
    """The values as the system's numbers, which takes a quarter of the time that Arrow needs; None if one does not fit.

    `struct` refuses reals among integers, but rounds integers of 54 bits among reals.
    """
    try:
        numbers = struct.pack(f"{len(values)}{_FORMATS[kind]}", *values)
    except struct.error:
        return None
    if kind == _REAL and not np.abs(np.frombuffer(numbers)).max() < _EXACT and int in map(type, values):
        return None
    return numbers


def _joined(parts: list[list[Part]], schema: Any) -> list[Any]:
    """A column of all parts of each column."""
    pyarrow = _pyarrow()

    def array(data: bytes, type_: Any) -> Any:
        return pyarrow.Array.from_buffers(type_, len(data) // _NUMBER_BYTES, [None, pyarrow.py_buffer(data)])

    def joined(column: list[Part], type_: Any) -> Any:
        if all(isinstance(part, bytes) for part in column):
            return array(b"".join(column), type_)
        return pyarrow.concat_arrays([array(part, type_) if isinstance(part, bytes) else part for part in column])

    return [joined(column, schema.field(i).type) for i, column in enumerate(parts)]


def _kind_of(value: object) -> str:
    return next((kind for kind in (_INTEGER, _REAL, _TEXT, _BLOB) if isinstance(value, _PYTHON_TYPES[kind])), _NULL)


def _is_fit(value: object, kind: str) -> bool:
    """Whether the value is one of that type; an integer of 54 bits is no real."""
    if value is None:
        return True
    if kind == _REAL and isinstance(value, int):
        return abs(value) <= _EXACT
    return isinstance(value, _PYTHON_TYPES[kind])


def _as_text(value: Any) -> Any:
    """The value as SQLite's CAST converts it to text; a blob that is not UTF-8 stays a blob."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value
    return value if value is None or isinstance(value, str) else str(value)
