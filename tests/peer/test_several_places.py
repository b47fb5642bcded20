"""One database to several places beside Litestream: its own program restores each of them, also over a gap."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from litevfs.maintenance.schedule import Maintenance
from litevfs.operations.restore import restore
from litevfs.replica_clients.file import FileReplicaClient
from litevfs.replicate import Replicator
from tests.peer import litestream_binary as litestream

pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(not litestream.LITESTREAM, reason="there is no litestream on the PATH"),
]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[apsw.Connection]:
    with closing(made(tmp_path / "app.db")) as connection:
        yield connection


def made(path: Path) -> apsw.Connection:
    connection = apsw.Connection(str(path))
    connection.execute("PRAGMA journal_mode=WAL").fetchall()
    connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, data BLOB)")
    return connection


def insert(connection: apsw.Connection, count: int = 20) -> None:
    for _ in range(count):
        connection.execute("INSERT INTO t (data) VALUES (randomblob(3000))")


def assert_litestream_restores(connection: apsw.Connection, folder: Path, *clients: FileReplicaClient) -> None:
    for client in clients:
        theirs, ours = folder / "theirs.db", folder / "ours.db"
        for path in (theirs, ours):
            path.unlink(missing_ok=True)
        litestream.restore(client.url, theirs)
        restore(client, ours, integrity_check=True)
        assert theirs.read_bytes() == ours.read_bytes(), client.url
        assert ours.read_bytes() == connection.serialize("main"), client.url


@pytest.mark.parametrize("is_ahead", [False, True])
def test_litestream_restores_every_place(database: apsw.Connection, tmp_path: Path, *, is_ahead: bool):
    clients = [FileReplicaClient(tmp_path / name) for name in ("a", "b", "late")]
    a, b, late = clients
    path = tmp_path / "app.db"
    if is_ahead:
        with closing(made(tmp_path / "other.db")) as other, Replicator(tmp_path / "other.db", late) as replicator:
            for _ in range(8):
                insert(other, 1)
                replicator.sync()
    with Replicator(path, a, places=[b]) as replicator:
        for _ in range(3):
            insert(database)
            replicator.sync()
            assert_litestream_restores(database, tmp_path, a, b)
    with Replicator(path, a, places=[b, late], new_history=is_ahead) as replicator:
        for _ in range(3):
            insert(database)
            database.execute("DELETE FROM t WHERE id % 3 = 0")
            replicator.sync()
            assert_litestream_restores(database, tmp_path, *clients)
        for client in clients:
            Maintenance(client).run_all()
        assert_litestream_restores(database, tmp_path, *clients)
        insert(database)
        database.execute("VACUUM")
        txid = replicator.sync()
        assert_litestream_restores(database, tmp_path, *clients)
    for client in clients:
        assert max(file["max_txid"] for file in litestream.list_files(client.url)) == f"{txid:016x}"
        client.close()
