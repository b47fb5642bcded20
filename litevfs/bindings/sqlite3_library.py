"""The SQLite library that the standard library's `sqlite3` uses, reached by ctypes: how it is found, and its functions.

`_sqlite3` is an extension module that was linked to SQLite, or a part of the interpreter. Symbols are looked up through
that very module, so the library found is the one it uses; `Library.check_vfs` proves it.
"""

from __future__ import annotations

import ctypes
import importlib
from ctypes import CFUNCTYPE, POINTER, PYFUNCTYPE, Structure, c_char, c_char_p, c_int, c_int64, c_size_t, c_void_p
from functools import partial
from typing import Any
from urllib.parse import quote

from litevfs.bindings.statements import Running, Statement, as_statement
from litevfs.errors import SQLiteLibraryError
from litevfs.options import first_of_equals

OLDEST_VERSION = 3_034_000
"""SQLite's version number: the first that tells whether a transaction is open (`sqlite3_txn_state`)."""
TRANSIENT = -1
"""SQLITE_TRANSIENT: SQLite copies the bytes."""
MAX_SQL_BYTES = 1 << 18
"""A query whose values make its text longer is not worth parsing again."""
_MAX_PLACES = 64
_STATUS_RUN = 6
"""SQLITE_STMTSTATUS_RUN: how often a statement began."""
_DBAPI_HINT = "litevfs.dbapi is the same in the shape of sqlite3, on a SQLite library of its own"

OPEN_READONLY, OPEN_READWRITE, OPEN_CREATE = 0x1, 0x2, 0x4
OPEN_DELETEONCLOSE, OPEN_MAIN_DB, OPEN_TEMP_DB = 0x8, 0x100, 0x200
FCNTL_FILE_POINTER, FCNTL_PRAGMA, FCNTL_PDB = 7, 14, 30
TXN_NONE = 0
OK, ERROR, NOMEM, READONLY, INTERRUPT, IOERR, NOTFOUND, CANTOPEN = 0, 1, 7, 8, 9, 10, 12, 14
IOERR_READ, IOERR_SHORT_READ = IOERR | 1 << 8, IOERR | 2 << 8

OpenFunction = CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_int, c_void_p)
AccessFunction = CFUNCTYPE(c_int, c_void_p, c_char_p, c_int, c_void_p)
FullPathnameFunction = CFUNCTYPE(c_int, c_void_p, c_char_p, c_int, c_void_p)
ReadFunction = CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int64)
TruncateFunction = CFUNCTYPE(c_int, c_void_p, c_int64)
FileSizeFunction = CFUNCTYPE(c_int, c_void_p, c_void_p)
FileControlFunction = CFUNCTYPE(c_int, c_void_p, c_int, POINTER(c_void_p))
ExtensionFunction = CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p)
SQLFunction = CFUNCTYPE(None, c_void_p, c_int, POINTER(c_void_p))


class VFS(Structure):
    """`struct sqlite3_vfs`, version 2 (https://www.sqlite.org/c3ref/vfs.html)."""

    _fields_ = [
        ("version", c_int),
        ("file_size", c_int),  # bytes of a file structure
        ("max_pathname", c_int),
        ("next", c_void_p),
        ("name", c_char_p),
        ("app_data", c_void_p),
        ("open", OpenFunction),
        ("delete", c_void_p),
        ("access", AccessFunction),
        ("full_pathname", FullPathnameFunction),
        ("dl_open", c_void_p),
        ("dl_error", c_void_p),
        ("dl_sym", c_void_p),
        ("dl_close", c_void_p),
        ("randomness", c_void_p),
        ("sleep", c_void_p),
        ("current_time", c_void_p),
        ("get_last_error", c_void_p),
        ("current_time_int64", c_void_p),
    ]


class IOMethods(Structure):
    """`struct sqlite3_io_methods`, version 1: no shared memory, no mapped pages."""

    _fields_ = [
        ("version", c_int),
        ("close", c_void_p),
        ("read", ReadFunction),
        ("write", ReadFunction),
        ("truncate", TruncateFunction),
        ("sync", c_void_p),
        ("file_size", FileSizeFunction),
        ("lock", c_void_p),
        ("unlock", c_void_p),
        ("check_reserved_lock", c_void_p),
        ("file_control", FileControlFunction),
        ("sector_size", c_void_p),
        ("device_characteristics", c_void_p),
    ]


# These keep the GIL: releasing it would take longer than the calls.
copy_bytes = PYFUNCTYPE(None, c_void_p, c_char_p, c_size_t)(ctypes.cast(ctypes.memmove, c_void_p).value or 0)
"""(to, from, count)"""
fill_bytes = PYFUNCTYPE(None, c_void_p, c_int, c_size_t)(ctypes.cast(ctypes.memset, c_void_p).value or 0)
"""(to, value, count)"""
array_at = {size: (c_char * size).from_address for size in (16, 100, *(1 << power for power in range(9, 17)))}
"""Bytes at an address, by their number: `array_at[16](address).raw = data` takes a third of the time of `copy_bytes`.

Of the sizes that SQLite reads: its check of page 1 in each transaction, the header, and pages."""


class Places(dict[int, Any]):
    """Variables of one ctypes type, by their address. SQLite's own are few: they lie on its stack, which repeats."""

    def __init__(self, kind: Any) -> None:
        self._at = kind.from_address

    def __missing__(self, address: int) -> Any:
        if len(self) >= _MAX_PLACES:
            self.clear()
        place = self[address] = self._at(address)
        return place


_PROTOTYPES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "sqlite3_vfs_find": (POINTER(VFS), (c_char_p,)),
    "sqlite3_vfs_register": (c_int, (POINTER(VFS), c_int)),
    "sqlite3_uri_parameter": (c_char_p, (c_void_p, c_char_p)),
    "sqlite3_uri_key": (c_char_p, (c_void_p, c_int)),
    "sqlite3_uri_boolean": (c_int, (c_void_p, c_char_p, c_int)),
    "sqlite3_txn_state": (c_int, (c_void_p, c_char_p)),
    "sqlite3_next_stmt": (c_void_p, (c_void_p, c_void_p)),
    "sqlite3_stmt_busy": (c_int, (c_void_p,)),
    "sqlite3_stmt_status": (c_int, (c_void_p, c_int, c_int)),
    "sqlite3_expanded_sql": (c_void_p, (c_void_p,)),
    "sqlite3_malloc": (c_void_p, (c_int,)),
    "sqlite3_free": (None, (c_void_p,)),
    "sqlite3_auto_extension": (c_int, (ExtensionFunction,)),
    "sqlite3_cancel_auto_extension": (c_int, (ExtensionFunction,)),
    "sqlite3_file_control": (c_int, (c_void_p, c_char_p, c_int, POINTER(c_void_p))),
    "sqlite3_create_function_v2": (c_int, (c_void_p, c_char_p, c_int, c_int, *[c_void_p] * 5)),
    "sqlite3_context_db_handle": (c_void_p, (c_void_p,)),
    "sqlite3_value_text": (c_char_p, (c_void_p,)),
    "sqlite3_result_text": (None, (c_void_p, c_char_p, c_int, c_void_p)),
    "sqlite3_result_int64": (None, (c_void_p, c_int64)),
    "sqlite3_result_error": (None, (c_void_p, c_char_p, c_int)),
    "sqlite3_result_error_code": (None, (c_void_p, c_int)),
}


class Library:
    """A loaded SQLite library: `library.sqlite3_...` are its C functions."""

    def __init__(self, path: str | None, *, oldest_version: int = OLDEST_VERSION) -> None:
        self.path = path  # None: the library of the standard library's `sqlite3`
        where = path or _extension_path()
        self._handle = _load(where)
        version = self._version(where)
        if version < oldest_version:  # first: such a library lacks functions, too
            raise SQLiteLibraryError(
                f"SQLite {_dotted(version)} is too old: {_dotted(oldest_version)} is the oldest that works",
                key=where,
                hint=_DBAPI_HINT,
            )
        for name, (result, arguments) in _PROTOTYPES.items():
            self._bind(name, result, arguments, where)

    def _version(self, where: str | None) -> int:
        self._bind("sqlite3_libversion_number", c_int, (), where)
        return int(self.sqlite3_libversion_number())

    def _bind(self, name: str, result: Any, arguments: tuple[Any, ...], where: str | None) -> None:
        try:
            function = getattr(self._handle, name)
        except AttributeError:
            raise SQLiteLibraryError(
                f"the SQLite library does not show its function {name}: linked statically, with hidden symbols?",
                key=where or "the Python interpreter",
                hint=_DBAPI_HINT,
            ) from None
        function.restype, function.argtypes = result, arguments
        setattr(self, name, function)

    def __getattr__(self, name: str) -> Any:
        """Tells type checkers that there are functions; `_bind` sets them."""
        raise AttributeError(name)

    @property
    def identity(self) -> int:
        """The address of one function: equal for equal libraries, whatever path they were loaded by."""
        return ctypes.cast(self.sqlite3_vfs_find, c_void_p).value or 0

    def allocate_text(self, text: str) -> int:
        """The address of a C string in memory that SQLite frees; 0 if there is none left."""
        data = text.encode() + b"\0"
        address: int | None = self.sqlite3_malloc(len(data))
        if address:
            ctypes.memmove(address, data, len(data))
        return address or 0

    def running(self, database: int) -> Running | None:
        """The statement that a connection runs; the one prepared last, if several are under way.

        To be called in the thread that runs it, from a callback: SQLite does not wait for itself.
        """
        statement = None
        while statement := self.sqlite3_next_stmt(database, statement):
            if self.sqlite3_stmt_busy(statement):
                runs = self.sqlite3_stmt_status(statement, _STATUS_RUN, 0)
                return Running((statement, runs), partial(self._query_of, statement))
        return None

    def _query_of(self, statement: int) -> Statement | None:
        """A statement with its values, if it is a query and these are not too large."""
        address = self.sqlite3_expanded_sql(statement)
        if not address:
            return None
        try:
            sql = ctypes.string_at(address)
        finally:
            self.sqlite3_free(address)
        return as_statement(sql.decode(errors="replace"), ()) if len(sql) <= MAX_SQL_BYTES else None

    def uri_parameters(self, name: int) -> dict[str, str]:
        """The parameters of a URI, from the address of a name that SQLite gave to `xOpen`. Raises OptionError."""
        parameters: list[tuple[str, str]] = []
        while (key := self.sqlite3_uri_key(name, len(parameters))) is not None:
            parameters.append((key.decode(), (self.sqlite3_uri_parameter(name, key) or b"").decode()))
        return first_of_equals(parameters)

    def check_vfs(self, name: str) -> None:
        """Raise SQLiteLibraryError unless `sqlite3` knows the VFS that was registered here."""
        if self.path is not None:
            return
        sqlite3 = importlib.import_module("sqlite3")
        try:
            sqlite3.connect(f"file::memory:?vfs={quote(name)}", uri=True).close()
        except sqlite3.OperationalError as error:
            raise SQLiteLibraryError(
                f"the SQLite library that was found is not the one that sqlite3 uses: {error}", hint=_DBAPI_HINT
            ) from error


def _extension_path() -> str | None:
    """The file of `_sqlite3`; None where it is a part of the interpreter."""
    try:
        extension = importlib.import_module("_sqlite3")
    except ImportError as error:
        raise SQLiteLibraryError("this Python was built without sqlite3", hint=_DBAPI_HINT) from error
    path: str | None = getattr(extension, "__file__", None)
    return path


def _load(path: str | None) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(path)
    except OSError as error:
        raise SQLiteLibraryError(f"the library cannot be loaded: {error}", key=path, hint=_DBAPI_HINT) from error


def _dotted(version: int) -> str:
    return f"{version // 1_000_000}.{version // 1000 % 1000}.{version % 1000}"
