"""Litestream's SQL functions in a SQLite library reached by ctypes: on connections whose main database is a replica."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from ctypes import byref, c_void_p
from typing import Any

from litevfs.bindings import sqlite3_library as c
from litevfs.bindings.callbacks import c_callback, interrupt_soon
from litevfs.bindings.sqlite3_library import Library
from litevfs.errors import LitevfsError
from litevfs.live.pragmas import answer_pragma
from litevfs.live.session import Session

logger = logging.getLogger("litevfs.bindings.sqlite3_functions")

_UTF8 = 1
_FUNCTIONS = (("txid", "txid", 0), ("lag", "lag", 0), ("time", "time", 0), ("set_time", "time", 1))
"""Name, the PRAGMA that it asks, and how many arguments it takes."""


class SQLFunctions:
    """The functions, on connections for whose main file `find` has a session, by the address of SQLite's structure."""

    def __init__(self, library: Library, find: Callable[[int], Session | None]) -> None:
        self._library = library
        self._find = find
        self._callbacks = [
            (f"litestream_{name}".encode(), arguments, c_callback(c.SQLFunction, self._make(pragma)))
            for name, pragma, arguments in _FUNCTIONS
        ]
        self._extension = c_callback(c.ExtensionFunction, self._make_extension())

    def add_to_every_connection(self) -> None:
        """Let SQLite add the functions to each connection that it opens from now on."""
        if (code := self._library.sqlite3_auto_extension(self._extension)) != c.OK:
            logger.warning("no SQL functions, PRAGMAs only: SQLite takes no automatic extension (code %d)", code)

    def remove_from_new_connections(self) -> None:
        """Let no connection that SQLite opens from now on call Python."""
        self._library.sqlite3_cancel_auto_extension(self._extension)

    def _session_of(self, database: int) -> Session | None:
        file = c_void_p()
        self._library.sqlite3_file_control(database, b"main", c.FCNTL_FILE_POINTER, byref(file))
        return self._find(file.value or 0)

    def _make_extension(self) -> Callable[..., int]:
        def extend(database: int, _: int, __: int) -> int:
            try:
                if self._session_of(database) is not None:
                    for name, arguments, function in self._callbacks:
                        address = ctypes.cast(function, c_void_p)
                        self._library.sqlite3_create_function_v2(
                            database, name, arguments, _UTF8, None, address, None, None, None
                        )
                return c.OK
            except KeyboardInterrupt:
                interrupt_soon()
                return c.INTERRUPT
            except BaseException:
                logger.exception("no SQL functions on this connection")
                return c.OK

        return extend

    def _make(self, pragma: str) -> Callable[..., None]:
        library = self._library

        def call(context: int, count: int, values: Any) -> None:
            try:
                session = self._session_of(library.sqlite3_context_db_handle(context))
                if session is None:
                    return  # NULL
                value = (library.sqlite3_value_text(values[0]) or b"").decode() if count else None
                answer = answer_pragma(session, f"litestream_{pragma}", value) or ""
                if pragma == "lag":
                    library.sqlite3_result_int64(context, int(answer))
                else:
                    library.sqlite3_result_text(context, answer.encode(), -1, c.TRANSIENT)
            except KeyboardInterrupt:
                library.sqlite3_result_error_code(context, c.INTERRUPT)
                interrupt_soon()
            except BaseException as error:  # noqa: BLE001 (logged, and SQLite is told)
                logger.warning("litestream_%s(): %s", pragma, error)
                library.sqlite3_result_error(context, str(error).encode(), -1)
                if isinstance(error, LitevfsError) and error.extendedresult:
                    library.sqlite3_result_error_code(context, error.extendedresult)

        return call
