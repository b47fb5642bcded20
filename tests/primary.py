"""A tiny primary for tests: SQL in a real SQLite database, each commit diffed into an LTX file, every image kept.

The oracle is the image itself, opened by plain SQLite; nothing of the code under test but the encoder makes the files.
Compaction here is a merge of dictionaries, on purpose not litevfs' own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import apsw
import numpy as np

from litevfs.ltx.encoder import encode_file
from litevfs.ltx.format import Header, lock_pgno
from litevfs.replica_clients.base import LEVELS, LTXFileInfo, ReplicaClient

START_MS = 1_767_225_600_000
"""2026-01-01T00:00:00Z; transaction n is n seconds later."""


class Primary:
    """A database in memory whose every `commit` becomes a level-0 file in `client`."""

    def __init__(self, client: ReplicaClient, *, page_size: int = 4096, auto_vacuum: int = 0, level: int = 0) -> None:
        self.client = client
        self.page_size = page_size
        self.level = level  # where commits are written to
        self.txid = 0
        self.start_ms = START_MS
        self.images: dict[int, bytes] = {0: b""}  # the whole database after each transaction
        self.changes: dict[int, dict[int, bytes]] = {}  # what each transaction wrote
        self._open: list[apsw.Connection] = []
        self.con = self._connection(":memory:")
        self.con.execute(f"PRAGMA page_size={page_size}; PRAGMA auto_vacuum={auto_vacuum}")

    def _connection(self, name: str) -> apsw.Connection:
        connection = apsw.Connection(name, vfs=apsw.vfs_names()[0])
        self._open.append(connection)
        return connection

    def __enter__(self) -> Primary:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the database and every oracle."""
        for connection in self._open:
            connection.close()
        self._open.clear()

    # --- transactions -------------------------------------------------------------------------------------------------

    def commit(self, sql: str, bindings: Sequence[Any] | dict[str, Any] | None = None) -> int:
        """Run SQL and upload what it changed; returns the new TXID."""
        self.run(sql, bindings)
        return self.upload()

    def run(self, sql: str, bindings: Sequence[Any] | dict[str, Any] | None = None) -> int:
        """Run SQL as one transaction that is not uploaded yet (see `upload`); returns its TXID."""
        self.con.execute(sql, bindings)
        return self.record(self.con.serialize("main"))

    def record(self, image: bytes) -> int:
        """Take `image` for the database after the next transaction."""
        if image:  # as Litestream sees it: a database in WAL mode
            image = image[:18] + b"\x02\x02" + image[20:]
        self.changes[self.txid + 1] = changed_pages(self.images[self.txid], image, self.page_size)
        self.txid += 1
        self.images[self.txid] = image
        return self.txid

    def upload(self, txid: int | None = None) -> int:
        """Write the level-0 file of a transaction, the newest unless said."""
        txid = self.txid if txid is None else txid
        self.compact(self.level, txid, txid)
        return txid

    # --- files --------------------------------------------------------------------------------------------------------

    def file_bytes(self, min_txid: int, max_txid: int) -> bytes:
        """The LTX file of a range of transactions: for each page its newest content, none above the last commit."""
        image = self.images[max_txid]
        commit = len(image) // self.page_size
        pages: dict[int, bytes] = {}
        for txid in range(min_txid, max_txid + 1):
            pages |= self.changes[txid]
        pages = {pgno: page for pgno, page in sorted(pages.items()) if pgno <= commit}
        header = Header(
            page_size=self.page_size,
            commit=commit,
            min_txid=min_txid,
            max_txid=max_txid,
            timestamp_ms=self.timestamp_ms(max_txid),
        )
        return encode_file(header, pages.items())

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
        connection = self._connection(":memory:")
        try:
            connection.deserialize("main", image[:18] + b"\x01\x01" + image[20:])
            return connection.execute(sql).fetchall()
        finally:
            connection.close()
            self._open.remove(connection)

    def page(self, pgno: int, txid: int | None = None) -> bytes:
        """One page as it was after `txid`."""
        image = self.images[self.txid if txid is None else txid]
        return image[(pgno - 1) * self.page_size : pgno * self.page_size]


def changed_pages(old: bytes, new: bytes, page_size: int) -> dict[int, bytes]:
    """The pages of `new` that are not the same in `old`, by page number; never the lock page."""
    common = min(len(old), len(new)) // page_size
    before = np.frombuffer(old, np.uint8)[: common * page_size].reshape(-1, page_size)
    after = np.frombuffer(new, np.uint8)[: common * page_size].reshape(-1, page_size)
    changed = [int(i) + 1 for i in np.flatnonzero((before != after).any(axis=1))]
    changed += range(common + 1, len(new) // page_size + 1)
    lock = lock_pgno(page_size)
    return {pgno: new[(pgno - 1) * page_size : pgno * page_size] for pgno in changed if pgno != lock}
