"""The connection that `litevfs.connect_stdlib` opens: one of `sqlite3` that hides no error of a replica."""

from __future__ import annotations

import sqlite3
from typing import Any
from urllib.parse import quote

from litevfs.bindings.sqlite3_vfs import forget_error, last_error


class Connection(sqlite3.Connection):
    """A connection to a replica."""

    def serialize(self, *, name: str = "main") -> bytes:
        """The database as bytes. Raises the replica's error for a page that cannot be read: SQLite returns zeros."""
        forget_error()
        content = super().serialize(name=name)
        if (error := last_error()) is not None:
            raise error
        return content


def connect(uri: str, vfs: str, arguments: dict[str, Any]) -> sqlite3.Connection:
    """`sqlite3.connect` with these arguments. Raises the session's error if there is one, from SQLite's."""
    forget_error()
    try:
        connection: sqlite3.Connection = sqlite3.connect(
            f"{uri}&vfs={quote(vfs)}", uri=True, **{"factory": Connection} | arguments
        )
    except sqlite3.Error as error:
        own = last_error()
        if own is None:
            raise
        raise own from error
    return connection
