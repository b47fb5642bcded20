"""A primary whose states are made by hand, for histories that the replicator of `primary.py` cannot be made to write:

- a database without a page: what is in WAL mode, and so can be replicated, always has page 1;
- a history that goes on from an earlier state under TXIDs that were used before, each file with its changes alone:
  litevfs' own replicator notices, and begins such a history with the whole database.

A reader meets both, because the format allows them and others write replicas, too. Here a file is the difference of two
images, and nothing of the package but the encoder has a part in it.
"""

from __future__ import annotations

import apsw
import numpy as np

from litevfs.ltx.encoder import encode_file
from litevfs.ltx.format import Header, lock_pgno
from litevfs.replica_clients.base import ReplicaClient
from tests.primary import START_MS


class MadePrimary:
    """`images[txid]` is the database after each transaction; `history` are those to go on from."""

    def __init__(self, client: ReplicaClient, history: dict[int, bytes] | None = None, page_size: int = 4096) -> None:
        self.client = client
        self.page_size = page_size
        self.start_ms = START_MS
        self.images = {0: b""} | (history or {})
        self.txid = max(self.images)
        self.con = apsw.Connection(":memory:", vfs=apsw.vfs_names()[0])
        self.con.execute(f"PRAGMA page_size={page_size}")
        if self.images[self.txid]:
            self.con.deserialize("main", _with_version(self.images[self.txid], 1))

    def __enter__(self) -> MadePrimary:
        return self

    def __exit__(self, *_: object) -> None:
        self.con.close()

    def commit(self, sql: str) -> int:
        """Run SQL and upload what it changed; returns the new TXID."""
        self.con.execute(sql)
        return self.record(_with_version(self.con.serialize("main"), 2))

    def record(self, image: bytes) -> int:
        """Take `image` for the database after the next transaction, and upload that; returns its TXID."""
        pages = changed_pages(self.images[self.txid], image, self.page_size)
        self.txid += 1
        self.images[self.txid] = image
        timestamp_ms = self.start_ms + self.txid * 1000
        header = Header(self.page_size, len(image) // self.page_size, self.txid, self.txid, timestamp_ms=timestamp_ms)
        self.client.write(0, self.txid, self.txid, encode_file(header, pages.items()), timestamp_ms)
        return self.txid

    def page(self, pgno: int, txid: int) -> bytes:
        """One page as it was after `txid`."""
        return self.images[txid][(pgno - 1) * self.page_size : pgno * self.page_size]


def changed_pages(old: bytes, new: bytes, page_size: int) -> dict[int, bytes]:
    """The pages of `new` that are not the same in `old`, by page number; never the lock page."""
    common = min(len(old), len(new)) // page_size
    before = np.frombuffer(old, np.uint8)[: common * page_size].reshape(-1, page_size)
    after = np.frombuffer(new, np.uint8)[: common * page_size].reshape(-1, page_size)
    changed = [int(i) + 1 for i in np.flatnonzero((before != after).any(axis=1))]
    changed += range(common + 1, len(new) // page_size + 1)
    lock = lock_pgno(page_size)
    return {pgno: new[(pgno - 1) * page_size : pgno * page_size] for pgno in changed if pgno != lock}


def _with_version(image: bytes, version: int) -> bytes:
    """A database file that says it is in WAL mode (2), as all that is replicated, or not (1): memory has no WAL."""
    return image[:18] + bytes([version, version]) + image[20:]
