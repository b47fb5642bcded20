"""PEP 249 over APSW, in the shape of the standard library's `sqlite3`: for tools that take any DB-API connection.

    import litevfs.dbapi
    connection = litevfs.dbapi.connect("s3://bucket/app", poll_interval="250ms")

Owns names, defaults and the translation of errors; rows come from APSW, pages from the VFS. The exceptions are those of
`sqlite3`, so code that catches `sqlite3.OperationalError` works unchanged.
"""

from __future__ import annotations

import apsw

from litevfs.dbapi.connection import LEGACY_TRANSACTION_CONTROL, Connection, connect
from litevfs.dbapi.cursor import Cursor, register_adapter
from litevfs.dbapi.errors import (
    DatabaseError,
    DataError,
    Error,
    IntegrityError,
    InterfaceError,
    InternalError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
    Warning,  # noqa: A004 - PEP 249's name
)
from litevfs.dbapi.rows import Row
from litevfs.dbapi.types import (
    BINARY,
    DATETIME,
    NUMBER,
    ROWID,
    STRING,
    Binary,
    Date,
    DateFromTicks,
    Time,
    TimeFromTicks,
    Timestamp,
    TimestampFromTicks,
)

apilevel = "2.0"
threadsafety = 1
"""Threads share the module, not connections. Connections to one replica share its memory, so one a thread is cheap."""
paramstyle = "qmark"
sqlite_version = apsw.sqlite_lib_version()
sqlite_version_info = tuple(int(part) for part in sqlite_version.split("."))

__all__ = [
    "BINARY",
    "DATETIME",
    "LEGACY_TRANSACTION_CONTROL",
    "NUMBER",
    "ROWID",
    "STRING",
    "Binary",
    "Connection",
    "Cursor",
    "DataError",
    "DatabaseError",
    "Date",
    "DateFromTicks",
    "Error",
    "IntegrityError",
    "InterfaceError",
    "InternalError",
    "NotSupportedError",
    "OperationalError",
    "ProgrammingError",
    "Row",
    "Time",
    "TimeFromTicks",
    "Timestamp",
    "TimestampFromTicks",
    "Warning",
    "apilevel",
    "connect",
    "paramstyle",
    "register_adapter",
    "sqlite_version",
    "sqlite_version_info",
    "threadsafety",
]
