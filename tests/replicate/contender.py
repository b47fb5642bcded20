"""A primary that wants to be the one: replicates its own database to a place where others do the same.

    python -m tests.replicate.contender DATABASE URL NAME new-history|restoring

Commits and syncs until its standard input ends, and begins again after each conflict: with a new history of its own
database, or as a container does, with the replica's newest state, restored in place of a database that is refused.
Prints `ack N TXID` for each sync that returned, where N is what it had committed; `conflict` and `unrelated` for those
that were refused, `passing` for a failure that may pass, and once, how the lease is kept: `lease conditions|read-back`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO

import apsw

from litevfs.errors import LitevfsError, ReplicaConflictError, StorageError, UnrelatedDatabaseError
from litevfs.operations.restore import restore
from litevfs.replica_clients.base import LTXFileInfo, ReplicaClient
from litevfs.replica_clients.file import FileReplicaClient
from litevfs.replica_clients.urls import open_replica_client, register_scheme
from litevfs.replicate import Replicator
from tests.replicate.programs import is_asked_to_end

LEASE_TTL_S = 1.0
SETTLE_S = 0.2

IsOver = Callable[[float], bool]
"""Waits so many seconds, or until it is over."""
Report = Callable[[str], None]


class Ignoring(FileReplicaClient):
    """Takes every condition, and keeps none, as some servers do. Its URLs are `ignoring:///path`."""

    keeps_conditions = False

    def put_object(self, name: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False) -> str:
        return super().put_object(name, data)

    def write(
        self, level: int, min_txid: int, max_txid: int, data: bytes | BinaryIO, timestamp_ms: int, **options: Any
    ) -> LTXFileInfo:
        return super().write(level, min_txid, max_txid, data, timestamp_ms)


register_scheme("ignoring", lambda url, *, read_timeout_s: Ignoring(Path(url.removeprefix("ignoring://"))))


def contend(
    database: Path, client: ReplicaClient, name: str, mode: str, is_over: IsOver, report: Report, settle_s: float
) -> None:
    """Replicate until it is over."""
    told: list[str] = []
    while not is_over(0.01):
        with closing(apsw.Connection(str(database))) as app:
            app.execute(
                "PRAGMA journal_mode=WAL; CREATE TABLE IF NOT EXISTS ledger (name TEXT PRIMARY KEY, n INTEGER)"
            ).fetchall()
            app.execute("INSERT OR IGNORE INTO ledger VALUES (?, 0)", (name,))
            try:
                _replicate(app, client, name, mode, is_over, report, settle_s, told)
                continue
            except UnrelatedDatabaseError:
                report("unrelated")
            except LitevfsError as error:
                _report_error(error, report)
                continue
        try:
            restore(client, database, force=True)
        except LitevfsError as error:
            _report_error(error, report)


def _replicate(
    app: apsw.Connection,
    client: ReplicaClient,
    name: str,
    mode: str,
    is_over: IsOver,
    report: Report,
    settle_s: float,
    told: list[str],
) -> None:
    with Replicator(app.filename, client, new_history=mode == "new-history", lease_ttl_s=LEASE_TTL_S) as replicator:
        if (lease := replicator.places[0].guard.lease) is not None:
            lease._settle_s = settle_s
        while not is_over(0.005):
            app.execute("UPDATE ledger SET n = n + 1 WHERE name = ?", (name,))
            n = app.execute("SELECT n FROM ledger WHERE name = ?", (name,)).get
            report(f"ack {n} {replicator.sync(10.0)}")
            if not told:
                told.append(str(replicator.status.lease_protocol))
                report(f"lease {told[0]}")


def _report_error(error: LitevfsError, report: Report) -> None:
    if isinstance(error, ReplicaConflictError):
        report("conflict")
    else:
        report(f"passing {error!r}" if isinstance(error, StorageError) else f"error {error!r}")


def main(database: str, url: str, name: str, mode: str, settle_s: str) -> None:
    client = open_replica_client(url)
    print("ready", flush=True)
    contend(Path(database), client, name, mode, is_asked_to_end, lambda line: print(line, flush=True), float(settle_s))
    client.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
    os._exit(0)
