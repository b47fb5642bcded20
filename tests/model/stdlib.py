"""The door of the standard library's `sqlite3`, in the shape of APSW's as far as a reader of the model needs it."""

from __future__ import annotations

import sqlite3
from typing import Any

import apsw

import litevfs
from litevfs.bindings.apsw_errors import make_apsw_error
from litevfs.bindings.kept_errors import forget_error
from litevfs.errors import LitevfsError
from litevfs.live.registry import registry
from tests.support import wait_until


class StdlibConnection:
    """A connection of `sqlite3` that raises what APSW's would: our own error, where SQLite was told one."""

    def __init__(self, url: str, **options: Any) -> None:
        self._connection = litevfs.connect_stdlib(url, isolation_level=None, **options)

    @property
    def in_transaction(self) -> bool:
        return self._connection.in_transaction

    def execute(self, sql: str, bindings: tuple[Any, ...] = ()) -> _Rows:
        return self._translated(lambda: _Rows(self._connection.execute(sql, bindings).fetchall()))

    def serialize(self, name: str) -> bytes:
        return self._translated(lambda: self._connection.serialize(name=name))

    def close(self, force: bool) -> None:
        self._connection.close()

    @staticmethod
    def _translated(do: Any) -> Any:
        forget_error()
        failed: sqlite3.Error | None = None
        try:
            result = do()
        except LitevfsError:
            result = None
        except sqlite3.Error as error:
            failed = error
        # SQLite ends well though it met an error: PRAGMA integrity_check lists the pages that it cannot read.
        own = litevfs.last_error()
        if isinstance(own, LitevfsError):
            make_apsw_error(own)
            raise own from failed
        if failed is not None:
            raise apsw.SQLError(str(failed)) from failed
        return result


class _Rows(list[tuple[Any, ...]]):
    def fetchall(self) -> list[tuple[Any, ...]]:
        return list(self)


def wait_for_closings() -> None:
    """Wait until no connection is open any more: this door lets go of a replica a moment after `close()`."""
    wait_until(lambda: not registry.shared, "the end of all connections", timeout_s=30)
