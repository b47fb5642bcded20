"""SQLAlchemy's dialect for replicas: `create_engine("litevfs:///s3://bucket/app?poll_interval=250ms")`.

Owns the URL, the pool and what a transaction is; SQL, types and reflection are those of SQLAlchemy's SQLite dialect. A
transaction of SQLAlchemy is one of the replica: it sees one TXID, and `commit` or `rollback` moves on.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlencode

import sqlalchemy
from sqlalchemy import pool
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.exc import ArgumentError

from litevfs.errors import OptionError
from litevfs.options import OPTION_NAMES, check_names

_OPTIONS = frozenset(OPTION_NAMES) - {"replica_url"}
_WITHOUT_PARAMETERS = ("", "file", "memory")
"""Schemes of replica URLs that take no parameters; nothing: a path."""
_FORM = "write litevfs:///s3://bucket/path?option=value, or litevfs:////absolute/path for a folder"
_IS_1_4 = sqlalchemy.__version__.startswith("1.4.")
_UNQUOTES_DATABASE = not (_IS_1_4 or sqlalchemy.__version__.startswith("2.0."))


class LitevfsDialect(SQLiteDialect_pysqlite):
    """SQLite's dialect over `litevfs.dbapi`. Read-only: a write raises OperationalError, which says where to write."""

    driver = "litevfs"
    supports_statement_cache = True

    @classmethod
    def import_dbapi(cls) -> Any:
        """See SQLAlchemy."""
        import litevfs.dbapi

        return litevfs.dbapi

    if _IS_1_4:
        dbapi = import_dbapi  # the name there

    @classmethod
    def get_pool_class(cls, url: Any) -> Any:
        """One connection for each thread that works, kept for the next: all of them share one replica."""
        return pool.QueuePool

    def create_connect_args(self, url: Any) -> Any:
        """Options are litevfs' own; every other parameter is the replica URL's."""
        if url.username or url.password or url.host or url.port:
            raise ArgumentError(f"a replica URL stands after three slashes: {_FORM}")
        if not url.database:
            raise ArgumentError(f"no replica URL: {_FORM}")
        if _lacks_a_slash(url.database):
            raise ArgumentError(f"no such folder: {url.database}; an absolute path has four slashes: {_FORM}")
        options, parameters = split_query(url.query)
        return [replica_url(url.database, parameters)], {"check_same_thread": False, "autocommit": False, **options}

    # --- transactions -------------------------------------------------------------------------------------------------

    def get_isolation_level_values(self, dbapi_conn: Any) -> Any:
        """Transactions are serializable, or there are none (AUTOCOMMIT)."""
        return ["SERIALIZABLE", "AUTOCOMMIT"]

    def set_isolation_level(self, dbapi_connection: Any, level: Any) -> None:
        """With AUTOCOMMIT, each statement sees the newest state."""
        dbapi_connection.autocommit = level == "AUTOCOMMIT"

    def get_isolation_level(self, dbapi_connection: Any) -> Any:
        """The level that `set_isolation_level` set."""
        return "AUTOCOMMIT" if dbapi_connection.autocommit is True else "SERIALIZABLE"

    def detect_autocommit_setting(self, dbapi_conn: Any) -> bool:
        """Whether each statement is a transaction."""
        return dbapi_conn.autocommit is True

    # --- reflection ---------------------------------------------------------------------------------------------------

    def _get_table_pragma(self, connection: Any, pragma: str, table_name: str, schema: Any = None) -> Any:
        """Run a SELECT first: only then does SQLite always see tables that a refresh has brought."""
        connection.exec_driver_sql("SELECT 1 FROM sqlite_schema LIMIT 1").fetchall()
        return super()._get_table_pragma(connection, pragma, table_name, schema=schema)

    # --- connections --------------------------------------------------------------------------------------------------

    def is_disconnect(self, e: Any, connection: Any, cursor: Any) -> bool:
        """Whether the connection is closed; after a storage error, the same connection may work again."""
        return isinstance(e, self.import_dbapi().ProgrammingError) and "closed database" in str(e)


def _lacks_a_slash(database: str) -> bool:
    return "://" not in database and not Path(database).exists() and Path("/", database).exists()


def split_query(query: Mapping[str, Any]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """(options, parameters of the replica URL). Raises ArgumentError for an option that is given twice; `warm` may."""
    options: dict[str, Any] = {}
    parameters: list[tuple[str, str]] = []
    for name, value in query.items():
        values = [value] if isinstance(value, str) else list(value)
        if name not in _OPTIONS:
            parameters += [(name, each) for each in values]
        elif len(values) == 1 or name == "warm":
            options[name] = values[0] if len(values) == 1 else values
        else:
            raise ArgumentError(f"the option {name} is given {len(values)} times")
    return options, parameters


def replica_url(database: str, parameters: list[tuple[str, str]]) -> str:
    """The replica URL as it stands in the URL of the engine. Raises OptionError for a misspelt option."""
    written = quote(database, safe=":/@!$&'()*+,;=~") if _UNQUOTES_DATABASE else database
    scheme = "file" if written.startswith("file:") else written.partition("://")[0] if "://" in written else ""
    if scheme.lower() in _WITHOUT_PARAMETERS:
        check_names((name for name, _ in parameters), "option")
    for name, _ in parameters:
        if near := difflib.get_close_matches(name, _OPTIONS, n=1, cutoff=0.8):
            raise OptionError(f"unknown option {name!r}", hint=f"did you mean {near[0]}?")
    if not scheme:
        return unquote(written)
    return f"{written}?{urlencode(parameters)}" if parameters else written
