"""Databases of random courses: the whole image after each transaction, what it changed, and when it was made.

`MadeUp` is made of numbers, and its files by the encoder alone: it is cheap, may lose all its pages, and may go on from
an earlier state. `Captured` is a SQLite database; the replicator and the real compaction make its files.
"""

from __future__ import annotations

import itertools
from random import Random
from typing import Protocol

from litevfs.ltx.encoder import encode_file
from litevfs.ltx.format import Header
from litevfs.replica_clients.memory import MemoryReplicaClient, MemoryStore
from tests.made import changed_pages
from tests.primary import Primary

PAGE_SIZE = 512
MAX_PAGES = 8
MAX_CAPTURED_PAGES = 12
CLOCKS: dict[str, tuple[int, ...]] = {"goes": (1, 5, 1000), "steps back": (0, 1, 1000, -3000), "stands": (0,)}

_numbers = itertools.count(1)  # no two pages are the same


class Database(Protocol):
    """What a world asks of the database that is replicated to it; by TXID, milliseconds since the Unix epoch."""

    images: dict[int, bytes]
    changed: dict[int, set[int]]
    times_ms: dict[int, int]
    now_ms: int

    def commit(self, random: Random) -> list[int]:
        """Grow, change or shrink; the TXIDs that this gave."""

    def file(self, min_txid: int, max_txid: int, timestamp_ms: int) -> bytes:
        """The LTX file of a range of transactions."""

    def close(self) -> None:
        """Close what it holds."""


class MadeUp:
    """A database of numbers, which may begin after transaction `txid` of the one `before`."""

    def __init__(self, clock: str, start_ms: int, before: Database | None = None, txid: int = 0) -> None:
        kept = range(1, txid + 1)
        self.images = {0: b""} | {n: before.images[n] for n in kept if before}
        self.changed = {n: before.changed[n] for n in kept if before}
        self.times_ms = {n: before.times_ms[n] for n in kept if before}
        self.now_ms = start_ms
        self._ticks_ms = CLOCKS[clock]

    def commit(self, random: Random) -> list[int]:
        """See `Database`; sometimes no page at all is left."""
        txid = len(self.images)
        old = self.images[txid - 1]
        pages = len(old) // PAGE_SIZE
        size = random.choice((pages, pages, pages + random.randint(1, 4), pages - random.randint(1, 5)))
        size = min(max(size, 1 if pages == 0 or random.random() < 0.9 else 0), MAX_PAGES)
        changed = {n for n in range(1, size + 1) if n == 1 or n > pages or random.random() < 0.25}
        image = bytearray(old[: size * PAGE_SIZE].ljust(size * PAGE_SIZE, b"\0"))
        for n in changed:
            image[(n - 1) * PAGE_SIZE : n * PAGE_SIZE] = next(_numbers).to_bytes(8) * (PAGE_SIZE // 8)
        self.now_ms += random.choice(self._ticks_ms)
        self.images[txid], self.changed[txid], self.times_ms[txid] = bytes(image), changed, self.now_ms
        return [txid]

    def file(self, min_txid: int, max_txid: int, timestamp_ms: int) -> bytes:
        """See `Database`."""
        image = self.images[max_txid]
        changed = set().union(*(self.changed[n] for n in range(min_txid, max_txid + 1)))
        pgnos = [n for n in range(1, len(image) // PAGE_SIZE + 1) if min_txid == 1 or n in changed]
        pages = [(n, image[(n - 1) * PAGE_SIZE : n * PAGE_SIZE]) for n in pgnos]
        header = Header(PAGE_SIZE, len(image) // PAGE_SIZE, min_txid, max_txid, timestamp_ms=timestamp_ms)
        return encode_file(header, pages)

    def close(self) -> None:
        """See `Database`."""


class Captured:
    """A SQLite database; its clock is the one of `Primary`, from `start_ms` on."""

    def __init__(self, start_ms: int) -> None:
        self._primary = Primary(MemoryReplicaClient(MemoryStore()), page_size=PAGE_SIZE)
        self._primary.start_ms = self.now_ms = start_ms
        self.images = self._primary.images
        self.changed: dict[int, set[int]] = {}
        self.times_ms: dict[int, int] = {}

    def commit(self, random: Random) -> list[int]:
        """See `Database`; SQL that changes nothing gives no TXID."""
        before = self._primary.txid
        if before == 0:
            self._primary.run("CREATE TABLE t(x); INSERT INTO t VALUES(randomblob(3000))")
        elif len(self.images[before]) > MAX_CAPTURED_PAGES * PAGE_SIZE or random.random() < 0.3:
            self._primary.run("DELETE FROM t WHERE rowid > 4", may_change_nothing=True)
            self._primary.run("VACUUM", may_change_nothing=True)
        else:
            sql = ("INSERT INTO t VALUES(randomblob(2000))", "UPDATE t SET x = randomblob(700) WHERE rowid % 3 = 1")
            self._primary.run(random.choice(sql), may_change_nothing=True)
        txids = list(range(before + 1, self._primary.txid + 1))
        for txid in txids:
            self.changed[txid] = set(changed_pages(self.images[txid - 1], self.images[txid], PAGE_SIZE))
            self.now_ms = self.times_ms[txid] = self._primary.timestamp_ms(txid)
        return txids

    def file(self, min_txid: int, max_txid: int, timestamp_ms: int) -> bytes:
        """See `Database`; its time is the one of its last transaction, whatever is asked for."""
        return self._primary.file_bytes(min_txid, max_txid)

    def close(self) -> None:
        """Close and remove it."""
        self._primary.close()
