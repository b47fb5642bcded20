"""What tells whether a difference is right: plain SQLite on whole images of both states."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from typing import Any

import apsw

import litevfs
from litevfs.operations.patch import patch_statements
from tests.primary import Primary

Cells = tuple[tuple[str, type, Any], ...]


def image_of(primary: Primary, txid: int) -> bytes:
    """The database after `txid`, as a database in memory takes it."""
    image = primary.images[txid]
    return image[:18] + b"\1\1" + image[20:]


def opened(image: bytes) -> Any:
    """A connection to an image, for a `with` block."""
    connection = apsw.Connection(":memory:", vfs=apsw.vfs_names()[0])
    connection.deserialize("main", image)
    return closing(connection)


def content(connection: apsw.Connection) -> dict[str, Any]:
    """Everything that SQL can see, rowids and types included."""
    schema = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY 1, 2").fetchall()
    tables = {}
    for kind, name, _, sql in schema:
        if kind == "table" and not str(sql).upper().startswith("CREATE VIRTUAL"):
            hidden = "WITHOUT ROWID" in str(sql)
            order = "" if hidden else "rowid, "
            rows = connection.execute(f'SELECT {order}* FROM "{name}" ORDER BY 1').fetchall()
            tables[str(name)] = Counter(tuple((type(value), value) for value in row) for row in rows)
    return {"schema": schema, "tables": tables}


def naive(old: apsw.Connection, new: apsw.Connection, table: str) -> tuple[set[Cells], set[Cells]]:
    """(rows that only the older state has, rows that only the newer one has), rowids included, by reading all."""
    sides = []
    for connection in (old, new):
        columns = connection.execute(f'PRAGMA table_xinfo("{table}")').fetchall()
        names = [str(column[1]) for column in columns if not column[6]]
        has_rowid = not connection.execute("SELECT wr FROM pragma_table_list WHERE name = ?", (table,)).fetchall()[0][0]
        names = ["rowid"] * has_rowid + [f'"{name}"' for name in names]
        rows = connection.execute(f'SELECT {", ".join(names)} FROM "{table}"').fetchall()
        sides.append({as_cells(dict(zip((name.strip('"') for name in names), row, strict=True))) for row in rows})
    return sides[0] - sides[1], sides[1] - sides[0]


def as_cells(row: dict[str, Any]) -> Cells:
    """A row that is equal only to rows with values of the same types."""
    return tuple((name, type(value), value) for name, value in row.items())


def assert_changes(diff: litevfs.Diff, old: apsw.Connection, new: apsw.Connection, name: str) -> None:
    """The changes of a table whose definition is the same in both states are these rows, each once."""
    table = diff.new.table(name)
    assert table is not None
    gone, come, keys = [], [], []
    for change in diff.changes(name):
        rowid = {"rowid": change.key[0]} if table.has_rowid else {}
        keys.append(change.key)
        assert change.op == ("insert" if change.old is None else "delete" if change.new is None else "update")
        gone += [] if change.old is None else [as_cells(rowid | change.old)]
        come += [] if change.new is None else [as_cells(rowid | change.new)]
        if not table.has_rowid and change.op != "insert":
            assert change.key == tuple((change.old or {})[part] for part in table.key)
    assert len(keys) == len(set(keys)), name
    assert (Counter(gone), Counter(come)) == tuple(Counter(rows) for rows in naive(old, new, name)), name


def check(primary: Primary, url: str, old_txid: int, new_txid: int) -> litevfs.Diff:
    """The patch makes the new state of the old one; tables that both have differ in just the rows that really do."""
    old_image, new_image = image_of(primary, old_txid), image_of(primary, new_txid)
    with litevfs.diff(url, old_txid, new_txid) as diff, opened(old_image) as old, opened(new_image) as new:
        changed_schema = {change.name for change in diff.schema}
        for name in set(diff.old.tables) & set(diff.new.tables) - changed_schema:
            assert_changes(diff, old, new, name)
        for statement in patch_statements(diff):
            old.execute(statement).fetchall()
        assert content(old) == content(new)
        assert old.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    return diff
