"""What connections of any library and tool have in common: how to find the plain one inside, and what it answers."""

from __future__ import annotations

from inspect import ismethod
from typing import Any

import apsw

from litevfs.errors import LitevfsError


def plain_connection(connection: Any) -> Any:
    """The connection of APSW, `sqlite3` or `litevfs.dbapi` that lies in one of SQLAlchemy or Django."""
    if hasattr(connection, "ensure_connection"):  # Django's, which connects when it first has to
        connection.ensure_connection()
    while not hasattr(connection, "dbapi_connection"):
        inner = getattr(connection, "connection", None)
        if inner is None:
            return connection
        connection = inner() if ismethod(inner) else inner  # a Session of SQLAlchemy has a method
    return connection.dbapi_connection


def schemas(connection: Any) -> set[str]:
    """The names of a connection's databases, in lower case."""
    if isinstance(connection, apsw.Connection):
        return {name.lower() for name in connection.db_names()}
    return {_as_text(row[1]).lower() for row in _plain_rows(connection, "PRAGMA database_list")}


def pragma(connection: Any, schema: str, name: str, value: str) -> str | None:
    """What a PRAGMA answers, or None. Raises our error where that of `sqlite3` has it as its cause."""
    if isinstance(connection, apsw.Connection):
        answer = connection.pragma(name, value, schema=schema)
        return None if answer is None else str(answer)
    quoted_schema = schema.replace('"', '""')
    try:
        rows = list(_plain_rows(connection, f"PRAGMA \"{quoted_schema}\".{name} = '{value}'"))
    except Exception as error:
        if isinstance(error.__cause__, LitevfsError):
            raise error.__cause__ from None
        raise
    return _as_text(rows[0][0]) if rows else None


def _plain_rows(connection: Any, sql: str) -> Any:
    """Rows as tuples, whatever the connection makes of rows."""
    cursor = connection.cursor()
    cursor.row_factory = None
    return cursor.execute(sql)


def _as_text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)  # a connection may read text as bytes
