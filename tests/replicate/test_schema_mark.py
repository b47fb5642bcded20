"""After a pause a database comes by its changed pages, or whole, if readers could take its schema for another one."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import apsw
import pytest

import litevfs
from litevfs.replicate import Replicator
from litevfs.replicate.schema_mark import may_be_mistaken
from litevfs.replicate.state import State
from litevfs.replicate.wal import WALPosition

KNOWN = State("", 0, 4096, 1, 0, 0, "", WALPosition(0, 0, 0, 0, 0), schema_version=5, schema_read_at=5, schema_sum="a")


@pytest.mark.parametrize(
    ("before", "after", "is_mistaken"),
    [
        (KNOWN, KNOWN, False),
        (KNOWN, replace(KNOWN, schema_sum="b"), True),
        (KNOWN, replace(KNOWN, schema_version=6, schema_sum="b"), False),
        (KNOWN, replace(KNOWN, schema_version=4, schema_sum="b"), True),
        (KNOWN, replace(KNOWN, schema_sum=None), True),
        (replace(KNOWN, schema_sum=None), replace(KNOWN, schema_sum=None), True),
        (replace(KNOWN, schema_version=6), replace(KNOWN, schema_version=6), True),  # read before the version changed
        (replace(KNOWN, schema_version=6), replace(KNOWN, schema_version=7), False),
        (replace(KNOWN, schema_version=None), KNOWN, True),
    ],
)
def test_a_schema_is_another_one_if_its_version_was_seen_before(before: State, after: State, is_mistaken: bool):
    assert may_be_mistaken(after, before) is is_mistaken


def run(path: Path, *statements: str) -> None:
    """What a program does that closes the database, so that no WAL is left."""
    with closing(apsw.Connection(str(path))) as connection:
        for sql in ("PRAGMA journal_mode=WAL", *statements):
            connection.execute(sql).fetchall()


def sync(path: Path, url: str) -> tuple[int, int]:
    """How often it took the database whole, and how often it compared its pages."""
    with Replicator(path, url, lease_ttl_s=None) as replicator:
        replicator.sync()
        return replicator.status.snapshots, replicator.status.comparisons


FILLED = "INSERT INTO a SELECT hex(zeroblob(1000)) FROM json_each('[1, 2, 3, 4, 5, 6, 7, 8]')"


@pytest.mark.parametrize(
    "statements",
    [
        ("UPDATE a SET x = 1 WHERE rowid = 3",),
        ("CREATE TABLE b (y)",),
        ("CREATE TABLE b (y)", "INSERT INTO b VALUES (1)", "ALTER TABLE a RENAME TO c"),
        ("VACUUM",),
    ],
)
def test_what_sqlite_changed_meanwhile_is_compared(tmp_path: Path, statements: tuple[str, ...]):
    path, url = tmp_path / "app.db", f"file://{tmp_path}/replica"
    run(path, "CREATE TABLE a (x)", FILLED)
    assert sync(path, url) == (1, 0)
    for _ in range(2):  # the second time nothing, as what was captured is known with its schema
        run(path, *statements)
        assert sync(path, url) == (0, 1)
        statements = ()
    with closing(litevfs.connect(url)) as connection, closing(apsw.Connection(str(path))) as source:
        schema = "SELECT name, sql FROM sqlite_schema"
        assert connection.execute(schema).fetchall() == source.execute(schema).fetchall()


def test_a_schema_that_was_changed_while_it_was_replicated_is_known(tmp_path: Path):
    path, url = tmp_path / "app.db", f"file://{tmp_path}/replica"
    run(path, "CREATE TABLE a (x)", FILLED)
    with closing(apsw.Connection(str(path))) as connection, Replicator(path, url, lease_ttl_s=None) as replicator:
        replicator.sync()
        connection.execute("CREATE TABLE b (y)")
        replicator.sync()
    run(path, "UPDATE a SET x = 1 WHERE rowid = 3")
    assert sync(path, url) == (0, 1)


def test_a_schema_that_cannot_be_read_any_more_is_replicated(tmp_path: Path):
    path, url = tmp_path / "app.db", f"file://{tmp_path}/replica"
    run(path, "CREATE TABLE a (x)", FILLED)
    with closing(apsw.Connection(str(path))) as connection, Replicator(path, url, lease_ttl_s=None) as replicator:
        replicator.sync()
        connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 0)
        connection.execute("PRAGMA writable_schema=ON; UPDATE sqlite_schema SET sql = 'CREATE TABLE nonsense'")
        connection.execute("PRAGMA schema_version=9")
        assert replicator.sync() == 2
