"""PEP 249's cursor: statements one at a time, a description also of empty results, rows by factories."""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

import apsw

from litevfs.dbapi.errors import OperationalError, ProgrammingError, translated
from litevfs.dbapi.rows import own_row_factory, with_text
from litevfs.errors import LitevfsError

if TYPE_CHECKING:
    from litevfs.dbapi.connection import Connection

Parameters = Sequence[Any] | Mapping[str, Any]
Column = tuple[str, None, None, None, None, None, None]

_BLANK = re.compile(r"(?:\s|;|--[^\n]*(?:\n|$)|/\*.*?(?:\*/|$))*", re.DOTALL)
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

    def __init__(self, connection: Connection) -> None:
        connection._check()
        self.connection = connection
        self.arraysize = 1
        self.row_factory = connection.row_factory
        self.description: tuple[Column, ...] | None = None
        self.rowcount = -1
        self.lastrowid: int | None = None
        self._closed = False
        self._whole = ""  # the text of the single statement to run; "": a script
        self._started = False
        self._changes = False
        self._convert: Callable[[tuple[Any, ...]], Any] | None = None
        self._cursor = connection.apsw_connection.cursor()
        self._cursor.convert_binding = _adapted
        self._cursor.exec_trace = _tracer(weakref.ref(self))

    # --- running ------------------------------------------------------------------------------------------------------

    def execute(self, sql: str, parameters: Parameters = (), /) -> Cursor:
        """Run one statement. Raises ProgrammingError for more than one, or parameters that do not fit."""
        self._begin(sql)
        before = self.connection.apsw_connection.total_changes()
        self._run(lambda: self._cursor.execute(sql, parameters))
        if self._changes:
            self._count_changes(before)
        return self

    def executemany(self, sql: str, parameters: Iterable[Parameters], /) -> Cursor:
        """Run one statement that changes rows (of a temporary or attached table), once for each set of parameters."""
        self._begin(sql)
        if not _CHANGE.match(sql, _blank_until(sql)):
            raise ProgrammingError("executemany() can only execute DML statements.")
        before = self.connection.apsw_connection.total_changes()
        self._run(lambda: self._cursor.executemany(sql, parameters))
        self._changes = True
        self._count_changes(before)
        return self

    def executescript(self, script: str, /) -> Cursor:
        """Commit, then run all statements of `script`, and drop the rows they return."""
        self.connection.commit()
        self._begin("")
        self._run(lambda: [None for _ in self._cursor.execute(script)])
        self.description = None
        return self

    def _begin(self, sql: str) -> None:
        self._check()
        self.description, self.rowcount = None, -1
        self._whole, self._started, self._changes = sql, False, False
        self._convert = self._conversion()

    def _run(self, statement: Callable[[], object]) -> None:
        try:
            statement()
        except (apsw.Error, LitevfsError) as error:
            raise translated(error) from error
        except KeyError as error:
            if self._started:  # a function of the caller raised it
                raise
            raise ProgrammingError(f"You did not supply a value for binding parameter :{error.args[0]}.") from error
        except UnicodeDecodeError as error:
            raise _not_utf8(error) from error

    def _before_statement(self, cursor: apsw.Cursor, sql: str) -> None:
        """Check and describe the statement before its first row: later, an empty result has no description."""
        if self._whole and not self._started:
            if _blank_until(self._whole, len(sql)) < len(self._whole):
                raise ProgrammingError("You can only execute one statement at a time.")
            columns = cursor.get_description()
            self.description = tuple((name, None, None, None, None, None, None) for name, _ in columns) or None
            if not cursor.is_readonly and _CHANGE.match(sql, _blank_until(sql)):
                self._changes = True
                self.connection._begin_implicitly()
        self._started = True

    def _count_changes(self, before: int) -> None:
        self.rowcount = self.connection.apsw_connection.total_changes() - before
        self.lastrowid = self.connection.apsw_connection.last_insert_rowid()

    # --- fetching -----------------------------------------------------------------------------------------------------

    def fetchone(self) -> Any:
        """The next row, or None."""
        rows = self.fetchmany(1)
        return rows[0] if rows else None

    def fetchmany(self, size: int | None = None) -> list[Any]:
        """The next `size` rows (`arraysize` by default), fewer at the end, then none."""
        wanted = self.arraysize if size is None else size
        return self._fetched(lambda: list(islice(self._cursor, max(0, wanted))))

    def fetchall(self) -> list[Any]:
        """All rows that are left."""
        return self._fetched(self._cursor.fetchall)

    def _fetched(self, fetch: Callable[[], list[Any]]) -> list[Any]:
        self._check()
        try:
            rows = fetch()
        except (apsw.Error, LitevfsError) as error:
            raise translated(error) from error
        except UnicodeDecodeError as error:
            raise _not_utf8(error) from error
        return rows if self._convert is None else [self._convert(row) for row in rows]

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        rows = self.fetchmany(1)
        if not rows:
            raise StopIteration
        return rows[0]

    def _conversion(self) -> Callable[[tuple[Any, ...]], Any] | None:
        """The conversion of APSW's rows; None if there is none."""
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


def _tracer(reference: weakref.ref[Cursor]) -> Callable[[apsw.Cursor, str, object], bool]:
    """The function that APSW calls before each statement. It keeps no reference: dropping the cursor ends its read."""

    def trace(cursor: apsw.Cursor, sql: str, _: object) -> bool:
        if (own := reference()) is not None:
            own._before_statement(cursor, sql)
        return True

    return trace


def _blank_until(sql: str, start: int = 0) -> int:
    """Where the white space, comments and semicolons from `start` on end."""
    match = _BLANK.match(sql, start)
    return match.end() if match else start


def _not_utf8(error: UnicodeDecodeError) -> OperationalError:
    return OperationalError(f"a text is not UTF-8 ({error.reason}); hint: CAST(column AS BLOB) reads its bytes")
