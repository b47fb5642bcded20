"""PEP 249's cursor: statements one at a time, a description also of empty results, rows by factories."""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, NoReturn, Self

import apsw

from litevfs.bindings.statements import blank_until
from litevfs.dbapi.errors import OperationalError, ProgrammingError, translated
from litevfs.dbapi.rows import own_row_factory, with_text
from litevfs.errors import LitevfsError

if TYPE_CHECKING:
    from litevfs.dbapi.connection import Connection

Parameters = Sequence[Any] | Mapping[str, Any]
Column = tuple[str, None, None, None, None, None, None]

_FAILURES = (apsw.Error, LitevfsError, KeyError, UnicodeDecodeError)
_CHANGE = re.compile(r"(?:insert|update|delete|replace)\b", re.IGNORECASE)

_adapters: dict[type, Callable[[Any], Any]] = {date: date.isoformat, datetime: lambda moment: moment.isoformat(" ")}


def register_adapter(type_: type, adapter: Callable[[Any], Any], /) -> None:
    """Pass parameters of exactly this type to SQLite as `adapter` converts them, in this process.

    Dates and datetimes become ISO 8601 text unless another adapter is registered.
    """
    _adapters[type_] = adapter


def _adapted(cursor: apsw.Cursor, number: int, value: Any) -> Any:
    """APSW calls this for parameters that SQLite has no type for."""
    adapter = _adapters.get(type(value))
    if adapter is None:
        raise ProgrammingError(
            f"Error binding parameter {number}: type {type(value).__name__!r} is not supported; "
            "hint: litevfs.dbapi.register_adapter says what to make of it"
        )
    return adapter(value)


class Cursor:
    """Runs statements of a connection. `arraysize` is how many rows `fetchmany` returns, 1 at first."""

    arraysize = 1
    rowcount = -1
    lastrowid: int | None = None
    _closed = False
    _whole = ""  # the text of the single statement to run; "": a script
    _started = False
    _changes = False  # whether the statement changes rows
    _changed_before = 0  # rows that the connection had changed before it
    _names: Sequence[tuple[str, str]] | None = None  # columns as APSW gives them, until a caller asks for `description`
    _description: tuple[Column, ...] | None = None
    _convert: Callable[[tuple[Any, ...]], Any] | None = None

    def __init__(self, connection: Connection) -> None:
        connection._check()
        self.connection = connection
        self.row_factory = connection.row_factory
        self._cursor = connection.apsw_connection.cursor()
        self._cursor.convert_binding = _adapted
        self._cursor.exec_trace = _tracer(weakref.ref(self), connection.apsw_connection.exec_trace)

    @property
    def description(self) -> tuple[Column, ...] | None:
        """The columns of the result by PEP 249, of an empty one too; None if the statement has none."""
        if self._names is not None:
            self._description = tuple((name, None, None, None, None, None, None) for name, _ in self._names) or None
            self._names = None
        return self._description

    # --- running ------------------------------------------------------------------------------------------------------

    def execute(self, sql: str, parameters: Parameters = (), /) -> Self:
        """Run one statement. Raises ProgrammingError for more than one, or parameters that do not fit."""
        self._begin(sql)
        try:
            self._cursor.execute(sql, parameters)
        except _FAILURES as error:
            self._fail(error)
        if self._changes:
            self._count_changes()
        return self

    def executemany(self, sql: str, parameters: Iterable[Parameters], /) -> Self:
        """Run one statement that changes rows (of a temporary or attached table), once for each set of parameters."""
        self._begin(sql)
        if not _CHANGE.match(sql, blank_until(sql)):
            raise ProgrammingError("executemany() can only execute DML statements.")
        self._changed_before = self.connection.apsw_connection.total_changes()
        try:
            self._cursor.executemany(sql, parameters)
        except _FAILURES as error:
            self._fail(error)
        self._count_changes()
        return self

    def executescript(self, script: str, /) -> Self:
        """Commit, then run all statements of `script`, and drop the rows they return."""
        self.connection.commit()
        self._begin("")
        try:
            for _ in self._cursor.execute(script):
                pass
        except _FAILURES as error:
            self._fail(error)
        return self

    def _begin(self, sql: str) -> None:
        self._check()
        self._names = self._description = None
        self._whole, self.rowcount = sql, -1
        self._started = self._changes = False
        if self.row_factory is not None or self.connection.text_factory is not str:
            self._convert = self._conversion()
        else:
            self._convert = None

    def _fail(self, error: Exception) -> NoReturn:
        if isinstance(error, KeyError):
            if self._started:  # a function of the caller raised it
                raise error
            raise ProgrammingError(f"You did not supply a value for binding parameter :{error.args[0]}.") from error
        raise (_not_utf8(error) if isinstance(error, UnicodeDecodeError) else translated(error)) from error

    def _before_statement(self, cursor: apsw.Cursor, sql: str) -> None:
        """Check and describe the statement before its first row: later, an empty result has no description."""
        whole = self._whole
        if whole and not self._started:
            if len(sql) < len(whole) and blank_until(whole, len(sql)) < len(whole):
                raise ProgrammingError("You can only execute one statement at a time.")
            self._names = cursor.get_description()
            if not cursor.is_readonly and _CHANGE.match(sql, blank_until(sql)):
                self._changes = True
                self._changed_before = self.connection.apsw_connection.total_changes()
                self.connection._begin_implicitly()
        self._started = True

    def _count_changes(self) -> None:
        self.rowcount = self.connection.apsw_connection.total_changes() - self._changed_before
        self.lastrowid = self.connection.apsw_connection.last_insert_rowid()

    # --- fetching -----------------------------------------------------------------------------------------------------

    def fetchone(self) -> Any:
        """The next row, or None."""
        rows = self.fetchmany(1)
        return rows[0] if rows else None

    def fetchmany(self, size: int | None = None) -> list[Any]:
        """The next `size` rows (`arraysize` by default), fewer at the end, then none."""
        self._check()
        try:
            rows = list(islice(self._cursor, max(0, self.arraysize if size is None else size)))
        except _FAILURES as error:
            self._fail(error)
        return rows if self._convert is None else [self._convert(row) for row in rows]

    def fetchall(self) -> list[Any]:
        """All rows that are left."""
        self._check()
        try:
            rows = self._cursor.fetchall()
        except _FAILURES as error:
            self._fail(error)
        return rows if self._convert is None else [self._convert(row) for row in rows]

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        rows = self.fetchmany(1)
        if not rows:
            raise StopIteration
        return rows[0]

    def _conversion(self) -> Callable[[tuple[Any, ...]], Any] | None:
        """The conversion of APSW's rows by the factories; None if there is none."""
        row_factory = own_row_factory(self.row_factory)
        text_factory = self.connection.text_factory
        if text_factory is str:
            return None if row_factory is None else lambda row: row_factory(self, row)
        if row_factory is None:
            return lambda row: with_text(row, text_factory)
        return lambda row: row_factory(self, with_text(row, text_factory))

    # --- the rest of PEP 249 ------------------------------------------------------------------------------------------

    def setinputsizes(self, sizes: Sequence[object], /) -> None:
        """Does nothing: SQLite needs no sizes."""

    def setoutputsize(self, size: int, column: int | None = None, /) -> None:
        """Does nothing: SQLite needs no sizes."""

    def close(self) -> None:
        """End the statement, and release the state that it reads. Idempotent."""
        self.connection._check_thread()
        self._closed = True
        self._cursor.close(True)

    def __enter__(self) -> Cursor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self) -> None:
        self.connection._check()
        if self._closed:
            raise ProgrammingError("Cannot operate on a closed cursor; hint: make another with connection.cursor()")


def _tracer(reference: weakref.ref[Cursor], of_connection: apsw.ExecTracer | None) -> apsw.ExecTracer:
    """The function that APSW calls before each statement; it calls that of the connection, too.

    It keeps no reference to the cursor: dropping that ends its read.
    """

    def trace(cursor: apsw.Cursor, sql: str, parameters: apsw.Bindings | None) -> bool:
        if (own := reference()) is not None:
            own._before_statement(cursor, sql)
        return of_connection is None or of_connection(cursor, sql, parameters)

    return trace


def _not_utf8(error: UnicodeDecodeError) -> OperationalError:
    return OperationalError(f"a text is not UTF-8 ({error.reason}); hint: CAST(column AS BLOB) reads its bytes")
