"""A primary that wants to be the one: replicates its own database to a place where others do the same.

    python -m tests.replicate.contender DATABASE REPLICA NAME honest|ignoring

Commits and syncs until its standard input ends, and begins again after each conflict. Prints `ack N TXID` for each sync
that returned, where N is what it had committed, and `conflict` for each that did not.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, BinaryIO

import apsw

from litevfs.errors import LitevfsError, ReplicaConflictError
from litevfs.replica_clients.base import LTXFileInfo
from litevfs.replica_clients.file import FileReplicaClient
from litevfs.replicate import Replicator
from tests.replicate.programs import is_asked_to_end


class Ignoring(FileReplicaClient):
    """Takes every condition, and keeps none, as some servers do."""

    keeps_conditions = False

    def put_object(self, name: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False) -> str:
        return super().put_object(name, data)

    def write(
        self, level: int, min_txid: int, max_txid: int, data: bytes | BinaryIO, timestamp_ms: int, **options: Any
    ) -> LTXFileInfo:
        return super().write(level, min_txid, max_txid, data, timestamp_ms)


def main(database: str, replica: str, name: str, kind: str) -> None:
    app = apsw.Connection(database)
    app.execute(
        "PRAGMA journal_mode=WAL; CREATE TABLE IF NOT EXISTS ledger (name TEXT PRIMARY KEY, n INTEGER)"
    ).fetchall()
    app.execute("INSERT OR IGNORE INTO ledger VALUES (?, 0)", (name,))
    client = (Ignoring if kind == "ignoring" else FileReplicaClient)(Path(replica))
    print("ready", flush=True)
    while not is_asked_to_end(0.01):
        with Replicator(database, client, new_history=True, lease_ttl_s=1.0) as replicator:
            if replicator._guard.lease is not None:
                replicator._guard.lease._settle_s = 0.2
            try:
                compete(app, replicator, name)
            except LitevfsError as error:
                print("conflict" if isinstance(error, ReplicaConflictError) else f"error {error!r}", flush=True)
    client.close()


def compete(app: apsw.Connection, replicator: Replicator, name: str) -> None:
    while not is_asked_to_end(0.005):
        app.execute("UPDATE ledger SET n = n + 1 WHERE name = ?", (name,))
        n = app.execute("SELECT n FROM ledger").get
        print("ack", n, replicator.sync(5.0), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
    os._exit(0)
