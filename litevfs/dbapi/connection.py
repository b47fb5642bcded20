"""PEP 249's connection: one replica, transactions that see one TXID, functions and collations of the caller's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from threading import get_ident
from typing import Any, TypeVar

import apsw

from litevfs import api
from litevfs.dbapi import errors
from litevfs.dbapi.cursor import Cursor, Parameters
from litevfs.dbapi.errors import ProgrammingError, translated
from litevfs.errors import LitevfsError

LEGACY_TRANSACTION_CONTROL = -1
T = TypeVar("T")
_ELSEWHERE = {
    "backup": "litevfs.restore, or the same method of .apsw_connection",
    "blobopen": ".apsw_connection.blob_open",
    "deserialize": "litevfs.connect_stdlib",
    "enable_load_extension": ".apsw_connection",
    "getconfig": ".apsw_connection.config",
    "getlimit": ".apsw_connection.limit",
    "iterdump": ".dump in litevfs shell, or litevfs.connect_stdlib",
    "load_extension": ".apsw_connection",
    "serialize": ".apsw_connection",
    "setconfig": ".apsw_connection.config",
    "setlimit": ".apsw_connection.limit",
}
"""Where to find what `sqlite3.Connection` has, and this one has not."""
_ISOLATION_LEVELS = ("", "DEFERRED", "IMMEDIATE", "EXCLUSIVE")


def connect(
    replica_url: str,
    *,
    isolation_level: str | None = "",
    autocommit: bool | int = LEGACY_TRANSACTION_CONTROL,
    check_same_thread: bool = True,
    **options: Any,
) -> Connection:
    """A read-only connection to the replica at `replica_url`; `options` are those of `litevfs.connect`.

    As with `sqlite3`, a statement sees the newest state unless a transaction is open: `BEGIN` opens one, so does a
    change to a temporary or attached table, and `autocommit=False` has one open always. `commit` and `rollback` end it.
    Every transaction sees one TXID. Raises what `litevfs.connect` raises; each error is one of `sqlite3`'s too.
    """
    try:
        connection = api.connect(replica_url, **options)
    except (apsw.Error, LitevfsError) as error:
        raise translated(error) from error
    return Connection(
        connection, isolation_level=isolation_level, autocommit=autocommit, check_same_thread=check_same_thread
    )


class Connection:
    """Made by `connect`. `row_factory` and `text_factory` are those of `sqlite3`."""

    Warning = errors.Warning
    Error = errors.Error
    InterfaceError = errors.InterfaceError
    DatabaseError = errors.DatabaseError
    DataError = errors.DataError
    OperationalError = errors.OperationalError
    IntegrityError = errors.IntegrityError
    InternalError = errors.InternalError
    ProgrammingError = errors.ProgrammingError
    NotSupportedError = errors.NotSupportedError

    def __init__(
        self,
        connection: apsw.Connection,
        *,
        isolation_level: str | None = "",
        autocommit: bool | int = LEGACY_TRANSACTION_CONTROL,
        check_same_thread: bool = True,
    ) -> None:
        self.apsw_connection = connection
        """The APSW connection below."""
        self.row_factory: Callable[[Any, Any], Any] | None = None
        self.text_factory: Callable[[bytes], Any] = str
        self._thread = get_ident() if check_same_thread else None
        self._closed = False
        self.isolation_level = isolation_level
        self._autocommit = autocommit
        if autocommit is False:
            self._control("BEGIN")

    def __getattr__(self, name: str) -> Any:
        where = f"; hint: use {_ELSEWHERE[name]}" if name in _ELSEWHERE else ""
        raise AttributeError(f"a connection of litevfs.dbapi has no {name}{where}", name=name, obj=self)

    # --- statements ---------------------------------------------------------------------------------------------------

    def cursor(self, factory: Callable[[Connection], Cursor] = Cursor) -> Cursor:
        """A new cursor."""
        return factory(self)

    def execute(self, sql: str, parameters: Parameters = (), /) -> Cursor:
        """`Cursor.execute` on a new cursor."""
        return self.cursor().execute(sql, parameters)

    def executemany(self, sql: str, parameters: Iterable[Parameters], /) -> Cursor:
        """`Cursor.executemany` on a new cursor."""
        return self.cursor().executemany(sql, parameters)

    def executescript(self, script: str, /) -> Cursor:
        """`Cursor.executescript` on a new cursor."""
        return self.cursor().executescript(script)

    # --- transactions -------------------------------------------------------------------------------------------------

    @property
    def isolation_level(self) -> str | None:
        """The BEGIN mode of a change to a temporary or attached table; None: the change begins no transaction."""
        return self._isolation_level

    @isolation_level.setter
    def isolation_level(self, level: str | None) -> None:
        if level is not None and level.upper() not in _ISOLATION_LEVELS:
            raise ValueError("isolation_level string must be '', 'DEFERRED', 'IMMEDIATE', or 'EXCLUSIVE'")
        if level is None and getattr(self, "_isolation_level", None) is not None:
            self.commit()
        self._isolation_level = level

    @property
    def autocommit(self) -> bool | int:
        """False: a transaction is always open; True: only BEGIN opens one; LEGACY_TRANSACTION_CONTROL:
        `isolation_level`.

        To set it ends the open transaction.
        """
        return self._autocommit

    @autocommit.setter
    def autocommit(self, value: bool | int) -> None:
        self.commit()
        if self._autocommit is False:  # commit has begun the next transaction
            self._control("COMMIT")
        self._autocommit = value
        if value is False:
            self._control("BEGIN")

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open; until it ends, the connection sees one TXID."""
        self._check()
        return self.apsw_connection.in_transaction

    def commit(self) -> None:
        """End the transaction: the next statement sees the newest state."""
        self._end("COMMIT")

    def rollback(self) -> None:
        """End the transaction, undoing changes to temporary and attached tables."""
        self._end("ROLLBACK")

    def _end(self, how: str) -> None:
        self._check()
        if self.apsw_connection.in_transaction and self._autocommit is not True:
            self._control(how)
            if self._autocommit is False:
                self._control("BEGIN")

    def _begin_implicitly(self) -> None:
        """Begin a transaction before a statement that changes rows, as `sqlite3` does."""
        if (
            self._autocommit == LEGACY_TRANSACTION_CONTROL
            and self._isolation_level is not None
            and not self.apsw_connection.in_transaction
        ):
            self._control(f"BEGIN {self._isolation_level}")

    def _control(self, sql: str) -> None:
        self._do(lambda: self.apsw_connection.execute(sql))

    def __enter__(self) -> Connection:
        self._check()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End the transaction, and leave the connection open, as `sqlite3` does."""
        if kind is None:
            self.commit()
        else:
            self.rollback()

    def close(self) -> None:
        """Close the connection and release the replica. Idempotent."""
        self._check_thread()
        self._closed = True
        self.apsw_connection.close(True)

    # --- waiting ------------------------------------------------------------------------------------------------------

    def wait_for(self, txid: int | str, timeout: float = 10.0) -> int:
        """`litevfs.wait_for` on this connection: read your writes. `timeout` is in seconds."""
        return self._do(lambda: api.wait_for(self.apsw_connection, txid, timeout))

    # --- functions and hooks ------------------------------------------------------------------------------------------

    def create_function(
        self, name: str, narg: int, func: Callable[..., Any] | None, /, *, deterministic: bool = False
    ) -> None:
        """Define (None: remove) a function for SQL. Its exceptions reach the caller unchanged."""
        self._do(lambda: self.apsw_connection.create_scalar_function(name, func, narg, deterministic=deterministic))

    def create_aggregate(self, name: str, n_arg: int, aggregate_class: Callable[[], Any] | None, /) -> None:
        """Define (None: remove) an aggregate for SQL: an object with `step` and `finalize` for each group."""

        def begin() -> tuple[Any, Callable[..., None], Callable[[Any], Any]]:
            assert aggregate_class is not None
            return _Group(aggregate_class), _step, _finalize

        factory = None if aggregate_class is None else begin
        self._do(lambda: self.apsw_connection.create_aggregate_function(name, factory, n_arg))

    def create_window_function(self, name: str, num_params: int, aggregate_class: Callable[[], Any] | None, /) -> None:
        """Define (None: remove) a window function: `step`, `inverse`, `value` and `finalize` in an object for each."""

        def begin() -> tuple[Any, ...]:
            assert aggregate_class is not None
            return _Group(aggregate_class), _step, _finalize, _value, _inverse

        factory = None if aggregate_class is None else begin
        self._do(lambda: self.apsw_connection.create_window_function(name, factory, num_params))

    def create_collation(self, name: str, callback: Callable[[str, str], int] | None, /) -> None:
        """Define (None: remove) a collation for SQL."""
        self._do(lambda: self.apsw_connection.create_collation(name, callback))

    def set_authorizer(self, authorizer_callback: Callable[..., int] | None) -> None:
        """Ask `authorizer_callback` about each action of the statements to come; None: do not ask."""
        self._do(lambda: self.apsw_connection.set_authorizer(authorizer_callback))

    def set_progress_handler(self, progress_handler: Callable[[], Any] | None, n: int) -> None:
        """Call `progress_handler` every `n` virtual machine instructions; a true answer ends the statement."""
        handler = None if progress_handler is None else lambda: bool(progress_handler())
        self._do(lambda: self.apsw_connection.set_progress_handler(handler, n))

    def set_trace_callback(self, trace_callback: Callable[[str], Any] | None) -> None:
        """Call `trace_callback` with the text of each statement that begins, without the values of its parameters."""

        def trace(event: dict[str, Any]) -> None:
            if trace_callback is not None:
                trace_callback(event["sql"])

        mask = apsw.SQLITE_TRACE_STMT if trace_callback is not None else 0
        self._do(lambda: self.apsw_connection.trace_v2(mask, trace if mask else None, id=self))

    def interrupt(self) -> None:
        """End the statements that run, from any thread; they raise OperationalError."""
        if self._closed:
            self._check()
        self.apsw_connection.interrupt()

    def enable_load_extension(self, enable: bool, /) -> None:
        """Allow or forbid `load_extension`."""
        self._do(lambda: self.apsw_connection.enable_load_extension(enable))

    def load_extension(self, path: str, /, *, entrypoint: str | None = None) -> None:
        """Load an extension of SQLite from a shared library."""
        self._do(lambda: self.apsw_connection.load_extension(path, entrypoint))

    @property
    def total_changes(self) -> int:
        """Rows changed by this connection, in temporary and attached tables."""
        self._check()
        return self.apsw_connection.total_changes()

    # --- checks -------------------------------------------------------------------------------------------------------

    def _do(self, call: Callable[[], T]) -> T:
        self._check()
        try:
            return call()
        except (apsw.Error, LitevfsError) as error:
            raise translated(error) from error

    def _check(self) -> None:
        if self._thread is not None and self._thread != get_ident():
            self._check_thread()
        if self._closed:
            raise ProgrammingError(
                "Cannot operate on a closed database; hint: open another connection with litevfs.dbapi.connect"
            )

    def _check_thread(self) -> None:
        if self._thread is not None and self._thread != get_ident():
            raise ProgrammingError(
                f"this connection was made in thread {self._thread} and is used in thread {get_ident()}; "
                "hint: open one for each thread (they share the replica's memory), or pass check_same_thread=False "
                "and use it in one thread at a time"
            )


@dataclass(slots=True)
class _Group:
    """A group of rows; as in `sqlite3`, an aggregate of no rows is NULL, whatever `finalize` would make of it."""

    make: Callable[[], Any]
    made: Any = None

    def aggregate(self) -> Any:
        """The object that the rows are handed to."""
        if self.made is None:
            self.made = self.make()
        return self.made


def _step(group: _Group, *values: Any) -> None:
    group.aggregate().step(*values)


def _inverse(group: _Group, *values: Any) -> None:
    group.aggregate().inverse(*values)


def _value(group: _Group) -> Any:
    return group.aggregate().value()


def _finalize(group: _Group) -> Any:
    return None if group.made is None else group.made.finalize()
