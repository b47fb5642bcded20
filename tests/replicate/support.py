"""For the replicator's tests: what a replica amounts to, told without the code that wrote it; storage that fails."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw

from litevfs.ltx.decoder import LTXFile, decode_file
from litevfs.ltx.names import MAX_TXID
from litevfs.replica_clients.base import ReplicaClient
from litevfs.replica_clients.file import FileReplicaClient
from litevfs.replicate import Replicator
from litevfs.testing.faulty import Fault, Faults, FaultyReplicaClient
from litevfs.testing.faulty_objects import FaultyObjectsClient

LARGE = 20_000
"""Bytes of a value whose commit makes a file that is too large for the record of the state."""


def state_folder(app: Any) -> Path:
    """Where a replicator of this application's database keeps its files."""
    return app.path.with_name(f".{app.path.name}-litevfs")


def files_of(client: ReplicaClient) -> list[LTXFile]:
    """Every file of level 0, verified, by TXID; TXIDs run from 1 without a gap, one file each."""
    infos = client.list_files(0)
    assert [(info.min_txid, info.max_txid) for info in infos] == [(n, n) for n in range(1, len(infos) + 1)]
    return [decode_file(client.read(info)) for info in infos]


def states(files: list[LTXFile]) -> Iterator[tuple[int, bytes]]:
    """(TXID, database file) after each of the files, which must follow one another."""
    pages: dict[int, bytes] = {}
    for txid, file in enumerate(files, 1):
        assert (file.header.min_txid, file.header.max_txid) == (txid, txid)
        page_size = files[0].header.page_size
        assert file.header.page_size == page_size
        pages |= dict(file.pages())
        pages = {pgno: page for pgno, page in pages.items() if pgno <= file.header.commit}
        assert len(pages) == file.header.commit, f"pages are missing at TXID {txid}"
        yield txid, b"".join(pages[pgno] for pgno in sorted(pages))


def rebuilt(client: FileReplicaClient) -> bytes:
    """The database file that the replica amounts to."""
    *_, (_, data) = states(files_of(client))
    return data


def opened(data: bytes) -> sqlite3.Connection:
    """A database file in memory, opened."""
    db = sqlite3.connect(":memory:")
    db.deserialize(data[:18] + b"\1\1" + data[20:])  # memory has no WAL
    return db


def source_bytes(path: Path) -> bytes:
    """The database as a reader sees it now. Through APSW: tests replicate in their own process too."""
    source = apsw.Connection(str(path))
    try:
        return source.serialize("main")
    finally:
        source.close()


def assert_replicated(client: FileReplicaClient, path: Path) -> None:
    """The replica amounts to the source, byte by byte, and to a sound database."""
    data = rebuilt(client)
    assert data == source_bytes(path)
    db = opened(data)
    assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    db.close()


def failing_client(root: Path) -> FaultyObjectsClient:
    """A client of a replica in a folder, for faults."""
    inner = FileReplicaClient(root)
    return FaultyObjectsClient(inner, Faults(inner.url))


def refuse_writes(client: FaultyReplicaClient, first_txid: int = 1) -> None:
    """From now on, only files before that TXID can be stored; `client.faults.clear()` ends it."""
    client.faults.clear()
    client.faults.add(Fault("transient", operations=("write",), txids=(first_txid, MAX_TXID)))


def fail_writes(client: FaultyReplicaClient, count: int = 1) -> None:
    """Let the next writes fail, before anything is stored."""
    client.faults.add(Fault("transient", operations=("write",), count=count))


def written(client: FaultyReplicaClient) -> list[int]:
    """The last TXID of each file that was to be stored, in order."""
    return [request.max_txid for request in client.faults.requests.copy() if request.operation == "write"]


def synced(app: Any, replicator: Replicator, syncs: int) -> Replicator:
    """The replicator, after so many commits and syncs."""
    for _ in range(syncs):
        app.insert()
        replicator.sync()
    return replicator


def replicated(app: Any, client: ReplicaClient, *, syncs: int = 1) -> None:
    """Replicate so many commits, and close again."""
    with Replicator(app.path, client) as replicator:
        synced(app, replicator, syncs)
