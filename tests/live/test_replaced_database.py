"""The primary's database is replaced by another file: the replica goes on, open connections read the other schema."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import apsw
import pytest

import litevfs
from litevfs.operations.follow import follow
from litevfs.replicate import Replicator

SAME = "CREATE TABLE same (x)"
TABLES = ("CREATE TABLE a (x)", "CREATE TABLE b (x)")
QUERY = "SELECT 'a', x FROM a UNION ALL SELECT 'b', x FROM b"


def make(path: Path, tables: tuple[str, ...], value: str) -> None:
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute("PRAGMA journal_mode=WAL").fetchall()
        for sql in (SAME, *tables):
            connection.execute(sql)
        connection.execute("INSERT INTO same SELECT value FROM json_each(?)", (f"[{', '.join(map(str, range(999)))}]",))
        for name in "ab":
            connection.execute(f"INSERT INTO {name} VALUES (?)", (value + name,))


@pytest.fixture
def replaced(tmp_path: Path):
    """The URL of a replica, and what replaces its database by one of the same schema version, the tables swapped."""
    path, other, url = tmp_path / "app.db", tmp_path / "other.db", f"file://{tmp_path}/replica"
    make(path, TABLES, "old ")

    def sync() -> None:
        with Replicator(path, url, lease_ttl_s=None) as replicator:
            replicator.sync()

    def replace(changes_before_it_is_seen: int = 0) -> None:
        make(other, TABLES[::-1], "new ")
        for suffix in ("-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
        other.replace(path)
        sync()
        for _ in range(changes_before_it_is_seen):
            with closing(apsw.Connection(str(path))) as connection:
                connection.execute("UPDATE a SET x = x || ''")
            sync()

    sync()
    return url, replace


NEW = [("a", "new a"), ("b", "new b")]


@pytest.mark.parametrize("changes", [0, 2])
@pytest.mark.parametrize("connect", [litevfs.connect, litevfs.connect_stdlib])
def test_an_open_connection_reads_the_other_database_with_its_own_schema(replaced, connect, changes: int):
    url, replace = replaced
    with closing(connect(url, poll_interval=0)) as connection:
        assert connection.execute(QUERY).fetchall() == [("a", "old a"), ("b", "old b")]
        replace(changes)
        connection.execute("PRAGMA litestream_poll").fetchall()
        assert connection.execute(QUERY).fetchall() == NEW
    with closing(connect(url, poll_interval=0, txid=1)) as connection:
        assert connection.execute(QUERY).fetchall() == [("a", "old a"), ("b", "old b")]


def test_a_connection_that_travels_reads_each_database_with_its_own_schema(replaced):
    url, replace = replaced
    with closing(litevfs.connect(url, poll_interval=0)) as connection:
        before = connection.execute("PRAGMA litestream_time").get
        replace()
        connection.execute("PRAGMA litestream_poll").fetchall()
        for _ in range(2):
            connection.execute("PRAGMA litestream_time = 'latest'").fetchall()
            assert connection.execute(QUERY).fetchall() == NEW
            connection.execute(f"PRAGMA litestream_time = '{before}'").fetchall()
            assert connection.execute(QUERY).fetchall() == [("a", "old a"), ("b", "old b")]


@pytest.mark.parametrize("is_new_process", [False, True])
def test_a_reader_of_a_followed_file_reads_the_other_database_with_its_own_schema(replaced, tmp_path, is_new_process):
    url, replace = replaced
    path = tmp_path / "followed.db"
    with closing(apsw.Connection(":memory:")) as reader:
        followed = follow(url, path, poll_interval=0.02)
        try:
            reader.execute("ATTACH ? AS f", (str(path),))
            query = QUERY.replace("FROM ", "FROM f.")
            assert reader.execute(query).fetchall() == [("a", "old a"), ("b", "old b")]
            if is_new_process:
                followed.close()
            replace()
            if is_new_process:
                followed = follow(url, path, poll_interval=0.02)
            followed.wait_for(2)
            assert reader.execute(query).fetchall() == NEW
        finally:
            followed.close()


@pytest.mark.parametrize("connect", [litevfs.connect, litevfs.connect_stdlib])
def test_a_schema_version_that_goes_back_is_another_schema_to_those_who_knew_it(tmp_path: Path, connect):
    """TXID 2 has a schema of its own, and TXID 3 another one with the version of TXID 1."""
    path, url = tmp_path / "app.db", f"file://{tmp_path}/replica"
    make(path, TABLES, "old ")
    with Replicator(path, url, lease_ttl_s=None) as replicator:
        replicator.sync()
    with closing(connect(url, poll_interval=0)) as connection:
        assert connection.execute(QUERY).fetchall() == [("a", "old a"), ("b", "old b")]
        for tables in ((*TABLES, "CREATE TABLE c (x)"), TABLES[::-1]):
            path.unlink()
            make(path, tables, "new ")
            with Replicator(path, url, lease_ttl_s=None) as replicator:
                replicator.sync()
        connection.execute("PRAGMA litestream_poll").fetchall()
        assert connection.execute(QUERY).fetchall() == NEW
