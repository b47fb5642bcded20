"""A primary for tests: SQL in a real SQLite database, each transaction captured from its WAL by the real replicator.

What the replicator uploads arrives in a replica of its own, out of every reader's sight; the test decides when, in
which order and whether at all a file goes on to the replica that is read. Compaction is the real one, too.

The oracle is SQLite alone: after each transaction the image of the whole database is taken over a connection that the
replicator does not know. Histories that no replicator makes are in `made.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any

import apsw

from litevfs.ltx import compact, decode_file
from litevfs.replica_clients.base import LEVELS, LTXFileInfo, ReplicaClient
from litevfs.replica_clients.memory import MemoryReplicaClient, MemoryStore
from litevfs.replicate import Replicator
from tests.fast_folder import fast_folder

START_MS = 1_767_225_600_000
"""2026-01-01T00:00:00Z; transaction n is n seconds later."""

Bindings = Sequence[Any] | dict[str, Any] | None


class Primary:
    """A database whose every `commit` becomes a level-0 file in `client`."""

    def __init__(self, client: ReplicaClient, *, page_size: int = 4096, auto_vacuum: int = 0) -> None:
        self.client = client
        self.page_size = page_size
        self.txid = 0
        self.start_ms = START_MS
        self.images: dict[int, bytes] = {0: b""}  # the whole database after each transaction
        self._captured = MemoryReplicaClient(MemoryStore("captured"))
        self._folder = TemporaryDirectory(prefix="litevfs-primary-", dir=fast_folder())
        self.con = self._connection()
        self.con.execute(f"PRAGMA page_size={page_size}; PRAGMA auto_vacuum={auto_vacuum}")
        self.con.execute("PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF")
        self._observer = self._connection()
        self._oracle = apsw.Connection(":memory:", vfs=apsw.vfs_names()[0])
        self._loaded: bytes | None = None  # the image that the oracle has
        self._oracle_lock = Lock()
        self._replicator = Replicator(  # no other one knows of this place: a lease is of no use
            self._path, self._captured, clock_ms=lambda: self.timestamp_ms(self.txid + 1), lease_ttl_s=None
        )

    @property
    def _path(self) -> str:
        return str(Path(self._folder.name) / "app.db")

    def _connection(self) -> apsw.Connection:
        return apsw.Connection(self._path, vfs=apsw.vfs_names()[0])

    def __enter__(self) -> Primary:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the database and remove it. Idempotent."""
        self._replicator.close()
        self._observer.close()
        self._oracle.close()
        self.con.close()
        self._folder.cleanup()

    # --- transactions -------------------------------------------------------------------------------------------------

    def commit(self, sql: str, bindings: Bindings = None, *, may_change_nothing: bool = False) -> int:
        """Run SQL and upload what it changed; returns the new TXID, as `run`."""
        before = self.txid
        if self.run(sql, bindings, may_change_nothing=may_change_nothing) > before:
            self.upload()
        return self.txid

    def run(self, sql: str, bindings: Bindings = None, *, may_change_nothing: bool = False) -> int:
        """Run SQL and capture what it changed as one TXID that is not uploaded yet (see `upload`); returns it.

        SQL that changes nothing gives no TXID; where it may, that of the transaction before is returned.
        """
        self.con.execute(sql, bindings).fetchall()
        txid = self._replicator.sync()
        assert txid == self.txid + 1 or (txid == self.txid and may_change_nothing), f"TXID {txid} after {self.txid}"
        if txid > self.txid:
            self.txid = txid
            self.images[txid] = self._image()
        return txid

    def _image(self) -> bytes:
        with self._observer:  # serialize() alone takes a new connection's page size for the database's
            self._observer.execute("SELECT count(*) FROM sqlite_schema").fetchall()
            return self._observer.serialize("main")

    def upload(self, txid: int | None = None) -> int:
        """Write the level-0 file of a transaction, the newest unless said."""
        txid = self.txid if txid is None else txid
        self.client.write(0, txid, txid, self.file_bytes(txid, txid), self.timestamp_ms(txid))
        return txid

    # --- files --------------------------------------------------------------------------------------------------------

    def file_bytes(self, min_txid: int, max_txid: int) -> bytes:
        """The LTX file of one transaction as it was captured, or what compaction makes of those of several."""
        if min_txid == max_txid:
            return self._captured.read(LTXFileInfo(0, min_txid, max_txid, size=0, modified_ms=0))
        files = [decode_file(self.file_bytes(txid, txid)) for txid in range(min_txid, max_txid + 1)]
        return b"".join(compact(files))

    def compact(self, level: int, min_txid: int, max_txid: int) -> LTXFileInfo:
        """Write the file of a range of transactions to any level; level 9 with min_txid 1 is a snapshot."""
        data = self.file_bytes(min_txid, max_txid)
        return self.client.write(level, min_txid, max_txid, data, self.timestamp_ms(max_txid))

    def delete(self, level: int, txids: Iterable[int] | None = None) -> None:
        """Delete the files of a level, or those of them that end at one of `txids`."""
        wanted = None if txids is None else set(txids)
        files = [f for f in self.client.list_files(level) if wanted is None or f.max_txid in wanted]
        self.client.delete(files)

    def delete_all(self) -> None:
        """Leave an empty replica."""
        for level in LEVELS:
            self.delete(level)

    def timestamp_ms(self, txid: int) -> int:
        """When transaction `txid` was made, milliseconds since the Unix epoch."""
        return self.start_ms + txid * 1000

    # --- the oracle ---------------------------------------------------------------------------------------------------

    def rows(self, sql: str, txid: int | None = None) -> list[tuple[Any, ...]]:
        """What plain SQLite answers on the database as it was after `txid` (default: the newest)."""
        image = self.images[self.txid if txid is None else txid]
        with self._oracle_lock:
            if self._loaded is not image:  # most tests ask for one state again and again
                self._oracle.deserialize("main", image[:18] + b"\x01\x01" + image[20:])  # memory has no WAL
                self._loaded = image
            return self._oracle.execute(sql).fetchall()

    def page(self, pgno: int, txid: int | None = None) -> bytes:
        """One page as it was after `txid`."""
        image = self.images[self.txid if txid is None else txid]
        return image[(pgno - 1) * self.page_size : pgno * self.page_size]
