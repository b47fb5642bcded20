"""The connection that `litevfs.connect_stdlib` opens: one of `sqlite3` that hides no error of a replica.

Its errors say what to do: the words of `sqlite3`, then the reason, or a hint. Only calls that fail pay for it.

Threads that share one (`check_same_thread=False`) take turns: SQLite holds the connection's mutex while it calls the
VFS, which needs Python's lock, and `sqlite3` holds Python's lock while it waits for that mutex to read a row. Without
turns both wait for ever, and with them the whole process.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable
from contextlib import nullcontext
from functools import cache, lru_cache, wraps
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

from litevfs.bindings.kept_errors import forget_error, last_error, untold_error
from litevfs.errors import HINT_FULL, HINT_OTHER_THREAD, HINT_READ_ONLY

_PROGRAMMING_HINTS = {
    "closed database": "open another one with litevfs.connect_stdlib",
    "same thread": f"{HINT_OTHER_THREAD}; or give check_same_thread=False, and use it in one thread at a time",
}
"""By a part of `sqlite3`'s message: its ProgrammingError has no code."""


def _add_hint(error: sqlite3.Error) -> None:
    """Append to the message of an error its reason, or what to do, where that is known."""
    message, code = str(error), getattr(error, "sqlite_errorcode", 0)
    hint: str | None
    if (own := untold_error(code)) is not None:
        hint, error.__cause__ = str(own), own
    elif code & 0xFF == sqlite3.SQLITE_READONLY:
        hint = HINT_READ_ONLY
    elif code & 0xFF == sqlite3.SQLITE_FULL:
        hint = HINT_FULL
    else:
        hint = next((hint for part, hint in _PROGRAMMING_HINTS.items() if part in message), None)
    if hint is not None and hint not in message:
        error.args = (f"{message.rstrip('.')}; {hint}",)


_execute = sqlite3.Connection.execute
_execute_of_cursor = sqlite3.Cursor.execute
# Called by these names, a hot query pays nothing that can be measured; super() would cost it 7 %.


if TYPE_CHECKING:
    _OtherCursor = sqlite3.Cursor
else:
    _OtherCursor = object  # a tool's own class comes after it


class _Hinting(_OtherCursor):
    """Hints on errors, before the methods of another class of cursors."""

    __slots__ = ()

    def execute(self, *arguments: Any, **keywords: Any) -> Any:
        return self._hinting(super().execute, arguments, keywords)

    def executemany(self, *arguments: Any, **keywords: Any) -> Any:
        return self._hinting(super().executemany, arguments, keywords)

    def executescript(self, *arguments: Any, **keywords: Any) -> Any:
        return self._hinting(super().executescript, arguments, keywords)

    def _hinting(self, method: Any, arguments: Any, keywords: Any) -> Any:
        try:
            return method(*arguments, **keywords)
        except sqlite3.Error as error:
            _add_hint(error)
            raise


class Cursor(_Hinting, sqlite3.Cursor):
    """A cursor whose errors say what to do."""

    __slots__ = ()

    def execute(self, sql: str, parameters: Any = (), /) -> Self:
        """Like that of `sqlite3`; a hot query pays for each further call."""
        try:
            return _execute_of_cursor(self, sql, parameters)
        except sqlite3.Error as error:
            _add_hint(error)
            raise


class _InTurns(_OtherCursor):
    """A cursor of a connection that threads share: each of these calls waits for its turn."""

    __slots__ = ()


_IN_TURNS = ("execute", "executemany", "executescript", "fetchone", "fetchmany", "fetchall", "__next__", "close")


def _in_turn(factory: type, name: str) -> Any:
    method = getattr(factory, name)

    def call(self: Any, *arguments: Any, **keywords: Any) -> Any:
        with self.connection.turn:
            return method(self, *arguments, **keywords)

    def next_row(self: Any) -> Any:
        with self.connection.turn:
            return method(self)

    return next_row if name == "__next__" else call


@lru_cache(32)
def _equipped(factory: Any, *, in_turns: bool) -> Any:
    """A subclass of a class of cursors whose errors say what to do, with turns if need be; anything else as it is."""
    if not isinstance(factory, type):
        return factory
    if not issubclass(factory, _Hinting) and factory is not sqlite3.Cursor:
        factory = _subclass(factory, _Hinting, {})
    if in_turns and not issubclass(factory, _InTurns):
        # Methods that know which one they call: to look it up, by super(), would take as long as a row.
        factory = _subclass(factory, _InTurns, {name: _in_turn(factory, name) for name in _IN_TURNS})
    return factory


def _subclass(factory: type, first: type, members: dict[str, Any]) -> type:
    members = {"__module__": factory.__module__, "__slots__": (), **members}
    return type(factory.__name__, (first, factory), members)


_cursor = sqlite3.Connection.cursor


class StdlibConnection(sqlite3.Connection):
    """A connection of `sqlite3` to a replica whose errors say what to do.

    `connect_stdlib` returns one. Where a tool calls `sqlite3.connect` itself, after `register_stdlib()`, it may be
    given as `factory=litevfs.StdlibConnection`.
    """

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        is_of_one_thread = keywords.get("check_same_thread", arguments[4] if len(arguments) > 4 else True)
        self._in_turns = not is_of_one_thread
        self._cursors = _equipped(Cursor, in_turns=self._in_turns)
        self.turn: Any = threading.RLock() if self._in_turns else nullcontext()
        forget_error()
        try:
            super().__init__(*arguments, **keywords)
        except sqlite3.Error as error:
            _add_hint(error)
            raise

    def cursor(self, factory: Any = Cursor) -> Any:
        """Like that of `sqlite3`."""
        try:
            factory = self._cursors if factory is Cursor else _equipped(factory, in_turns=self._in_turns)
            return _cursor(self, factory)
        except sqlite3.Error as error:
            _add_hint(error)
            raise

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        """Like that of `sqlite3`."""
        if self._in_turns:
            return self.cursor().execute(sql, parameters)  # type: ignore[no-any-return]  # a Cursor
        try:
            return _execute(self, sql, parameters)
        except sqlite3.Error as error:
            _add_hint(error)
            raise

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> sqlite3.Cursor:
        """Like that of `sqlite3`."""
        return self.cursor().executemany(sql, parameters)  # type: ignore[no-any-return]  # a Cursor

    def executescript(self, sql_script: str, /) -> sqlite3.Cursor:
        """Like that of `sqlite3`."""
        return self.cursor().executescript(sql_script)  # type: ignore[no-any-return]  # a Cursor

    def serialize(self, *, name: str = "main") -> bytes:
        """The database as bytes. Raises the replica's error for a page that cannot be read: SQLite returns zeros."""
        forget_error()
        try:
            with self.turn:
                content = super().serialize(name=name)
        except sqlite3.Error as error:
            _add_hint(error)
            raise
        if (own := last_error()) is not None:
            raise own
        return content

    def blobopen(self, *arguments: Any, **keywords: Any) -> Any:
        """Like that of `sqlite3`. The blob's errors say what to do, and its calls take turns, too."""
        try:
            with self.turn:
                return _blobs()(super().blobopen(*arguments, **keywords), self.turn)
        except sqlite3.Error as error:
            _add_hint(error)
            raise

    def interrupt(self) -> None:
        """Like that of `sqlite3`; does not wait for a turn."""
        try:
            super().interrupt()
        except sqlite3.Error as error:
            _add_hint(error)
            raise


@cache
def _blobs() -> type:
    from litevfs.bindings.blobs import hinting_blobs  # few programs open blobs

    return hinting_blobs(sqlite3.Blob, sqlite3.Error, _add_hint)


_OTHER_METHODS = (
    "backup",
    "close",
    "commit",
    "rollback",
    "iterdump",
    "deserialize",
    "__enter__",
    "__exit__",
    "create_aggregate",
    "create_collation",
    "create_function",
    "create_window_function",
    "set_authorizer",
    "set_progress_handler",
    "set_trace_callback",
    "enable_load_extension",
    "load_extension",
    "getlimit",
    "setlimit",
    "getconfig",
    "setconfig",
)
"""Those of `sqlite3.Connection` that may fail and that no query calls; not every Python and library has all."""


def _hinting(method: Any) -> Any:
    @wraps(method)
    def call(self: StdlibConnection, /, *arguments: Any, **keywords: Any) -> Any:
        try:
            with self.turn:
                return method(self, *arguments, **keywords)
        except sqlite3.Error as error:
            _add_hint(error)
            raise

    return call


for _name in _OTHER_METHODS:
    if hasattr(sqlite3.Connection, _name):
        setattr(StdlibConnection, _name, _hinting(getattr(sqlite3.Connection, _name)))


def connect(uri: str, vfs: str, arguments: dict[str, Any]) -> sqlite3.Connection:
    """`sqlite3.connect` with these arguments. Raises the session's error if there is one, from SQLite's."""
    forget_error()  # a factory of the caller's does not
    try:
        connection: sqlite3.Connection = sqlite3.connect(
            f"{uri}&vfs={quote(vfs)}", uri=True, **{"factory": StdlibConnection} | arguments
        )
    except sqlite3.Error as error:
        own = last_error()
        if own is None:
            raise
        raise own from error
    return connection
