"""Exchange of a replica with Litestream's own program, over any storage: each reads and continues what the other wrote.

The program is told the storage by a configuration file, as its users do.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import apsw

from litevfs.operations.restore import restore
from litevfs.replica_clients.urls import open_replica_client
from litevfs.replicate import Replicator
from tests.servers import need_program

LIMIT_S = 60


class _Litestream:
    """The program with one database and one replica, a mapping as in its configuration file."""

    def __init__(
        self, folder: Path, database: Path, replica: Mapping[str, str], environment: Mapping[str, str]
    ) -> None:
        self._program = need_program("litestream")
        self._database = database
        self._environment = {**os.environ, **environment}
        self._config = folder / "litestream.yml"
        self._config.write_text(json.dumps({"dbs": [{"path": str(database), "replica": replica}]}))  # JSON is YAML

    def run(self, command: str, *arguments: object) -> None:
        done = subprocess.run(
            [self._program, command, "-config", str(self._config), *map(str, arguments)],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr + done.stdout

    def restored_rows(self, target: Path) -> list[int]:
        self.run("restore", "-o", target, self._database)
        return rows(target)


def rows(database: Path) -> list[int]:
    connection = apsw.Connection(str(database), vfs=apsw.vfs_names()[0])
    try:
        return [row[0] for row in connection.execute("SELECT x FROM t ORDER BY x")]
    finally:
        connection.close()


def commit(database: Path, number: int) -> None:
    """A transaction of some hundred kilobytes, so that a file of it takes several blocks."""
    connection = apsw.Connection(str(database), vfs=apsw.vfs_names()[0])
    try:
        connection.execute("PRAGMA journal_mode=WAL; CREATE TABLE IF NOT EXISTS t(x, filler)").fetchall()
        connection.execute("INSERT INTO t VALUES (?, randomblob(300000))", (number,))
    finally:
        connection.close()


def exchange(folder: Path, url: str, replica: Mapping[str, str], environment: Mapping[str, str] | None = None) -> None:
    """litevfs writes, Litestream restores and goes on, litevfs restores and goes on, Litestream restores."""
    database = folder / "app.db"
    program = _Litestream(folder, database, replica, environment or {})
    client = open_replica_client(url)
    try:
        commit(database, 1)
        replicator = Replicator(database, client)
        replicator.sync()
        commit(database, 2)
        assert replicator.sync() == 2
        replicator.close()
        assert program.restored_rows(folder / "theirs-1.db") == [1, 2]

        commit(database, 3)
        program.run("replicate", "-once")
        newest = max(file.max_txid for file in client.list_files(0))
        assert newest > 2
        restore(client, folder / "ours-1.db", integrity_check=True)
        assert rows(folder / "ours-1.db") == [1, 2, 3]
        for file in client.list_files(0):
            whole = client.read(file)
            assert len(whole) == file.size
            assert client.read(file, 100_000, 70_000) == whole[100_000:170_000]

        replicator = Replicator(database, client)
        replicator.sync()
        commit(database, 4)
        assert replicator.sync() > newest
        replicator.close()
        assert program.restored_rows(folder / "theirs-2.db") == [1, 2, 3, 4]
    finally:
        client.close()
