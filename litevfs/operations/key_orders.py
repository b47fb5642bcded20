"""The order of a WITHOUT ROWID table's primary key, as SQLite states it."""

from __future__ import annotations

from functools import lru_cache

import apsw

from litevfs.operations.index_trees import COLLATIONS, KeyColumn, KeyOrder

_MAKES_A_TABLE = {
    apsw.SQLITE_CREATE_INDEX,
    apsw.SQLITE_CREATE_TABLE,
    apsw.SQLITE_FUNCTION,
    apsw.SQLITE_INSERT,
    apsw.SQLITE_READ,
    apsw.SQLITE_UPDATE,
}


def key_order(connection: apsw.Connection, schema: str, index: str, encoding: str) -> KeyOrder:
    """The order of the index that a primary key is; `encoding` as `bytes.decode` calls it."""
    name = index.replace('"', '""')
    found = connection.execute(f'PRAGMA {schema}.index_xinfo("{name}")').fetchall()
    columns = tuple(KeyColumn(str(row[2]), str(row[4]).upper(), bool(row[3])) for row in found if row[5])
    return KeyOrder(columns, encoding)


@lru_cache(maxsize=64)
def declared_key_order(sql: str, encoding: str) -> KeyOrder | None:
    """The order that a CREATE TABLE statement of a schema declares; None if SQLite alone cannot tell.

    That is so for collations and functions of an application. The statement comes from the replica: it may make a table
    in a database in memory, and do nothing else.
    """
    connection = apsw.Connection(":memory:")
    try:
        connection.authorizer = _allow_a_table
        connection.execute(sql)
        connection.authorizer = None
        found = connection.execute(
            "SELECT i.name FROM sqlite_schema AS s, pragma_index_list(s.name) AS i WHERE i.origin = 'pk'"
        ).fetchall()
        order = key_order(connection, "main", str(found[0][0]), encoding) if len(found) == 1 else None
    except apsw.Error:
        return None
    finally:
        connection.close(True)
    return order if order and all(column.collation in COLLATIONS for column in order.columns) else None


def _allow_a_table(
    action: int, _first: str | None, _second: str | None, _schema: str | None, _trigger: str | None
) -> int:
    return apsw.SQLITE_OK if action in _MAKES_A_TABLE else apsw.SQLITE_DENY
