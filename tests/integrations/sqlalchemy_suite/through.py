"""A dialect for SQLAlchemy's suite: it writes to a primary, and every row that it reads comes from the replica of it.

The suite makes tables and rows and reads them back. Statements that write run on the primary, each a transaction of its
own, and are replicated at once; the connection then waits for them, as an application that reads its writes.
"""

from __future__ import annotations

import os
import re
from typing import Any

import apsw
from sqlalchemy.testing import exclusions
from sqlalchemy.testing.provision import temp_table_keyword_args
from sqlalchemy.testing.requirements import SuiteRequirements

import litevfs
import litevfs.dbapi
from litevfs.integrations.sqlalchemy import LitevfsDialect

_READ = re.compile(
    r"\s*(?:create temp(?:orary)?|select|with|pragma|values|explain|begin|commit|rollback|savepoint|release)\b",
    re.IGNORECASE,
)


class Primary:
    """The database that is written to, once for each process."""

    def __init__(self) -> None:
        folder = os.environ["THROUGH_FOLDER"]
        self.url = f"file://{folder}/replica"
        self.connection = apsw.Connection(f"{folder}/primary.db", vfs=apsw.vfs_names()[0])
        self.connection.pragma("journal_mode", "wal")
        self.connection.pragma("synchronous", "off")
        self.connection.execute("CREATE TABLE made(x); DROP TABLE made")
        self.replicator = litevfs.Replicator(f"{folder}/primary.db", f"{folder}/replica")
        self.replicator.sync()


_primary: Primary | None = None


def primary() -> Primary:
    global _primary
    if _primary is None:
        _primary = Primary()
    return _primary


class ThroughCursor(litevfs.dbapi.Cursor):
    """Reads from the replica; writes to the primary."""

    _returned: list[Any] | None = None

    def execute(self, sql: str, parameters: Any = (), /) -> ThroughCursor:
        self._returned = None
        if _READ.match(sql):
            super().execute(sql, parameters)
            return self
        self._write(sql, [parameters])
        return self

    def executemany(self, sql: str, parameters: Any, /) -> ThroughCursor:
        self._returned = None
        self._write(sql, list(parameters))
        return self

    def _write(self, sql: str, parameter_sets: list[Any]) -> None:
        to = primary()
        description: list[Any] = []

        def trace(cursor: apsw.Cursor, *_: object) -> bool:
            description[:] = cursor.get_description()
            return True

        cursor = to.connection.cursor()
        cursor.convert_binding = self._cursor.convert_binding
        cursor.exec_trace = trace
        before = to.connection.total_changes()
        try:
            with to.connection:
                self._returned = [row for each in parameter_sets for row in cursor.execute(sql, each)]
        except apsw.Error as error:
            raise litevfs.dbapi.errors.translated(error) from error
        self.description = tuple((name, *[None] * 6) for name, _ in description) or None
        self.rowcount = to.connection.total_changes() - before
        self.lastrowid = to.connection.last_insert_rowid()
        txid = to.replicator.sync()
        self.connection.rollback()
        self.connection.wait_for(txid)

    def fetchone(self) -> Any:
        if self._returned is None:
            return super().fetchone()
        return self._returned.pop(0) if self._returned else None

    def fetchmany(self, size: int | None = None) -> list[Any]:
        if self._returned is None:
            return super().fetchmany(size)
        size = size or self.arraysize
        rows, self._returned = self._returned[:size], self._returned[size:]
        return rows

    def fetchall(self) -> list[Any]:
        if self._returned is None:
            return super().fetchall()
        rows, self._returned = self._returned, []
        return rows


class ThroughConnection(litevfs.dbapi.Connection):
    """Its cursors are `ThroughCursor`s."""

    def cursor(self, factory: Any = ThroughCursor) -> Any:
        return factory(self)


class ThroughDialect(LitevfsDialect):
    """`litevfs_through:///x`."""

    supports_statement_cache = True

    def connect(self, *_: Any, **__: Any) -> Any:
        connection = litevfs.connect(primary().url, poll_interval="1h")
        return ThroughConnection(connection, check_same_thread=False, autocommit=False)


class Requirements(SuiteRequirements):
    """As SQLAlchemy supposes them of any database: what SQLite lacks fails with its own dialect, too."""

    @property
    def schemas(self) -> Any:
        """SQLite's are attached files, which a replica has none of."""
        return exclusions.closed()

    @property
    def temporary_tables(self) -> Any:
        """They would have to be both here and on the primary, where their indexes are made."""
        return exclusions.closed()

    temp_table_names = temp_table_reflection = temp_table_reflect_indexes = temporary_views = temporary_tables


@temp_table_keyword_args.for_db("litevfs_through", "sqlite")
def _temporary(cfg: Any, engine: Any) -> dict[str, list[str]]:
    return {"prefixes": ["TEMPORARY"]}
